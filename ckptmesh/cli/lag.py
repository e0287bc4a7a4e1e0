"""`ckptmesh state lag`: how far pipelines are behind their sources."""

from __future__ import annotations

import click

from ckptmesh.cli.common import Use, client_options
from ckptmesh.cli.completion import complete_keys
from ckptmesh.cli.output import Rows
from ckptmesh.cli.text import span_text
from ckptmesh.features.lagging import Lag


@click.command("lag", short_help="How far keys are behind their sources.")
@click.argument("prefix", default="", shell_complete=complete_keys)
@client_options
def lag(use: Use, prefix: str) -> None:
    """List the keys under PREFIX that have a position or head, how many records are left to do, and
    how long ago each was committed. Runs of staged pipelines are among them. Without PREFIX: all.

    \b
    Examples:
      ckptmesh state lag orders
      ckptmesh state lag --json | jq -r 'select(.records > 1000) | .key'
    """
    with use.connect(reading=True) as mesh:
        found = mesh.lag(prefix)
    if not use.out.table(("key", ">position", ">head", ">records", ">age"), _rows(found)):
        use.out.note(f"nothing under {prefix} has a position" if prefix
                     else "nothing has a position")


def _rows(found: list[Lag]) -> Rows:
    for each in found:
        places = [each.position, each.head, each.records]
        yield ({"key": each.key, "position": each.position, "head": each.head,
                "records": each.records, "age": each.age, "revision": each.revision},
               (each.key, *("" if place is None else f"{place:,}" for place in places),
                span_text(each.age)))
