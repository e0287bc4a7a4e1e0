"""`ckptmesh exec`: a command under a pipeline's lock, with its checkpoint."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from ckptmesh.cli.common import DURATION, TIMEOUT, URL, Read
from ckptmesh.cli.forms import compact, to_json, value_of
from ckptmesh.cli.output import Output
from ckptmesh.config import duration
from ckptmesh.errors import Error

if TYPE_CHECKING:
    from ckptmesh.features.executing import Forms
    from ckptmesh.features.holding import Directory, Served

COMMAND = click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
TTL = click.option("--ttl", type=DURATION, default="30s", show_default=True, metavar="DURATION",
                   help="How long the lock outlives this process; it is renewed until then.")
WAIT = Read(duration, "duration")


@click.command("exec", short_help="Run a command under a pipeline's lock, with its checkpoint.",
               context_settings={"allow_interspersed_args": False})
@click.option("--pipeline", required=True, metavar="KEY",
              help="Whose lock and checkpoint: a pipeline, or any key.")
@click.option("--timeout", type=DURATION, metavar="DURATION",
              help="End the command after this: SIGTERM, ten seconds, SIGKILL.")
@click.option("--wait", type=WAIT, default="0s", show_default=True, metavar="DURATION",
              help="How long to wait for the lock.")
@TTL
@URL
@COMMAND
@click.pass_context
def exec(ctx: click.Context, pipeline: str, timeout: float | None, wait: float, ttl: float,
         url: str | None, command: tuple[str, ...]) -> None:
    """Run COMMAND while holding the lock of a pipeline, and commit what it leaves if it ends with
    0.

    \b
    What the command finds in its environment:
      CKPTMESH_CHECKPOINT       the checkpoint as JSON; empty when there is none
      CKPTMESH_CHECKPOINT_FILE  a file with the same (for one of more than 64 KiB, only this)
      CKPTMESH_NEXT_FILE        write the next checkpoint here: JSON if it parses, else text

    Without such a file the value is kept, and the success recorded. Runs are recorded under
    KEY/_runs/exec, failures with the last lines of stderr.

    \b
    Exit codes: the command's own (128+n after signal n), and of ckptmesh, as stderr says:
      4     the lock is held, or was lost; or the commit was refused
      5     the store cannot be reached, or did not say whether it committed
      2, 6, 7    before the command is started only: see the table of docs/cli.md
      124   --timeout was over
      126, 127   the command cannot be started, is not found

    \b
    Examples:
      ckptmesh exec --pipeline nightly --timeout 2h -- ./load.sh
      ckptmesh exec --pipeline nightly --wait 10m -- sh -c \\
        'echo $((${CKPTMESH_CHECKPOINT:-0} + 1)) > "$CKPTMESH_NEXT_FILE"'
    """
    execute(ctx, url, pipeline, command, timeout=timeout, wait=wait, ttl=ttl)


def execute(ctx: click.Context, url: str | None, name: str, command: tuple[str, ...],
            **options: Any) -> None:
    """Run a command, and end with its exit code."""
    from ckptmesh.features.executing import Execution

    def note(line: str) -> None:
        Output().note(f"ckptmesh: {line}")

    environ = {"CKPTMESH_URL": url} if url else {}  # for a command that is one of ckptmesh's
    with contextlib.ExitStack() as stack:
        try:
            place = stack.enter_context(_place(url))
        except Error as error:
            note(f"the command was not started; exit code {error.exit_code} is ckptmesh's")
            raise
        code = Execution(place, name, command, forms(), note, environ=environ, **options).run()
    ctx.exit(code)


def forms() -> Forms:
    """How a command sees values: as JSON."""
    from ckptmesh.features.executing import Forms

    return Forms(lambda value: compact(to_json(value)), value_of)


@contextlib.contextmanager
def _place(url: str | None) -> Iterator[Served | Directory]:
    import ckptmesh
    from ckptmesh.features.holding import Directory, Served
    from ckptmesh.urls import directory_of

    patience = DURATION.convert(os.environ.get("CKPTMESH_TIMEOUT") or TIMEOUT, None, None)
    if (url or "").startswith("file:"):
        yield Directory(directory_of(url or ""), lambda: ckptmesh.connect(url, timeout=patience))
        return
    with contextlib.closing(ckptmesh.connect(url, timeout=patience)) as client:
        yield Served(client)
