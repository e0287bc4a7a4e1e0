"""`ckptmesh completion`: what makes a shell complete commands, options and keys."""

from __future__ import annotations

import contextlib
import os
from itertools import islice

import click
from click.shell_completion import CompletionItem, get_completion_class

from ckptmesh.errors import Error

PATIENCE = 0.5  # seconds until keys are not offered: whoever pressed Tab goes on typing
MOST = 100  # keys offered
LOOKED_AT = 5_000  # keys read to find them


@click.command("completion")
@click.argument("shell", type=click.Choice(("bash", "zsh", "fish")))
def completion(shell: str) -> None:
    """Print what makes a shell complete commands, options and the keys of the store.

    \b
    Examples:
      eval "$(ckptmesh completion bash)"          # in ~/.bashrc
      eval "$(ckptmesh completion zsh)"           # in ~/.zshrc
      ckptmesh completion fish > ~/.config/fish/completions/ckptmesh.fish
    """
    from ckptmesh.cli import program

    found = get_completion_class(shell)
    assert found is not None  # the choice above
    script = found(program, {}, "ckptmesh", "_CKPTMESH_COMPLETE")
    click.echo(script.source_template % script.source_vars())


def complete_keys(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Keys that begin with what is typed so far; none when the store does not answer at once."""
    import ckptmesh

    url = ctx.params.get("url") or os.environ.get("CKPTMESH_URL")
    folder, _, _ = incomplete.rpartition("/")
    with contextlib.suppress(Error), contextlib.closing(
        ckptmesh.connect(url, timeout=PATIENCE)
    ) as mesh:
        found: list[CompletionItem] = []
        for each in islice(mesh.list(folder), LOOKED_AT):
            if each.key.startswith(incomplete):
                found.append(CompletionItem(each.key))
                if len(found) == MOST:
                    break
        return found
    return []
