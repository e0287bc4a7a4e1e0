"""`ckptmesh state validate` and `repair`: whether checkpoints can be read, and what if not."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import click

from ckptmesh.cli.common import NotFound, Use, client_options, dry_run_option
from ckptmesh.cli.completion import complete_keys
from ckptmesh.cli.diff import document_of, shown
from ckptmesh.cli.forms import compact, key_and_revision
from ckptmesh.cli.output import progress
from ckptmesh.cli.text import many, preview
from ckptmesh.cli.transfer import AT
from ckptmesh.clock import iso
from ckptmesh.errors import InvalidPayload
from ckptmesh.features.validating import Repair
from ckptmesh.features.validating import validate as validating
from ckptmesh.flows import run


@click.command("validate", short_help="Whether checkpoints can be read.")
@click.argument("prefix", default="", shell_complete=complete_keys)
@AT
@client_options
def validate(use: Use, prefix: str, at: int | datetime | str | None) -> None:
    """Read every checkpoint under PREFIX: whether its value can be unpacked and fits the schema
    that a contract demands, and whether what it says that it was made from was there. Prints what
    is wrong; exit code 6 if anything is.

    The files of a store are checked by `ckptmesh wal verify DIR`.

    \b
    Examples:
      ckptmesh state validate
      ckptmesh state validate orders --json
    """
    with use.connect(reading=True) as mesh, progress() as show:
        found = run(validating(mesh, prefix, at, show))
    use.out.table(("key", ">revision", "problem", "in detail"), (
        ({"key": each.key, "revision": each.revision, "problem": each.kind, "text": each.text},
         (each.key, str(each.revision), each.kind, each.text)) for each in found.problems))
    if found.problems:
        first = found.problems[0]
        raise InvalidPayload(
            f"{many(len(found.problems), 'problem')} in {many(found.keys, 'checkpoint')}",
            hint=f"save an earlier version: ckptmesh state repair {first.key} --to NEW_KEY")
    unknown = f"; {many(found.unknown, 'source')} older than the store can tell" \
        if found.unknown else ""
    if found.unchecked:
        unknown += (f"; {many(found.unchecked, 'checkpoint')} not checked with the schema of a "
                    "contract (pip install 'ckptmesh[schema]')")
    use.out.note(f"{many(found.keys, 'checkpoint')} as of revision {found.revision}: all good"
                 + unknown)


@click.command("repair", short_help="Save the newest good version of a key under another.")
@click.argument("key", shell_complete=complete_keys)
@click.option("--to", "to", required=True, metavar="NEW_KEY", help="Where to; must not exist.")
@dry_run_option
@client_options
def repair(use: Use, key: str, to: str, dry_run: bool) -> None:
    """Write the newest version of KEY that can be read to NEW_KEY; KEY@REVISION: no newer than
    that. KEY itself is not changed. Shows what stood before and what stands after.

    Exit code 4 when NEW_KEY exists, 6 when no version can be read.

    \b
    Examples:
      ckptmesh state repair orders --to orders-repaired --dry-run
      ckptmesh state repair orders@120 --to orders-repaired
    """
    name, revision = key_and_revision(key)
    with use.connect(existing=True) as mesh:
        if not list(mesh.history(name, limit=1, packed=True)):
            raise NotFound(f"there is no {name}", hint="list what there is: ckptmesh state list")
        told = mesh.repair(name, to=to, revision=revision, dry_run=dry_run)
    use.out.facts(_document(told, to), (
        ("before", f"{name}@{told.before.revision}, {told.problem or 'good'}"),
        ("", preview(compact(shown(told.before)))),
        ("after", f"{to}, from {name}@{told.after.revision} of {iso(told.after.micros)}"
                  + ("; not written (--dry-run)" if dry_run else "")),
        ("", preview(compact(shown(told.after)))),
    ))
    if told.passed:
        use.out.note(f"{many(told.passed, 'version')} between them could not be read either")


def _document(told: Repair, to: str) -> dict[str, Any]:
    return {"key": told.before.key, "to": to, "before": document_of(told.before),
            "problem": told.problem or None, "after": document_of(told.after),
            "passed": told.passed, "revision": told.receipt.revision if told.receipt else None}
