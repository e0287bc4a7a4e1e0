"""`ckptmesh state export`, `import` and `digest`: checkpoints in files, and whether two are one."""

from __future__ import annotations

import sys
from dataclasses import asdict
from datetime import datetime
from typing import IO, Any

import click

from ckptmesh.cli.common import (
    Read,
    Use,
    client_options,
    confirm,
    dry_run_option,
    yes_option,
)
from ckptmesh.cli.completion import complete_keys
from ckptmesh.cli.forms import cut_of
from ckptmesh.cli.output import progress
from ckptmesh.cli.text import many
from ckptmesh.errors import Misuse
from ckptmesh.features.transfer import CHOICES, ImportReport, opened

AT = click.option("--at", type=Read(cut_of, "moment"), metavar="WHEN",
                  help="As it was: at a revision (7), a time (2024-05-01T10:30Z), ago (10m), or at "
                       "a savepoint.")
PREFIX = click.argument("prefix", default="", shell_complete=complete_keys)


@click.command("export", short_help="Write checkpoints into a file.")
@PREFIX
@click.option("--to", "target", default="-", metavar="FILE", type=click.Path(allow_dash=True),
              help="Where to; default: stdout. A file has its name only once it is whole.")
@click.option("--format", "form", type=click.Choice(("jsonl", "gzip")),
              help="gzip: compressed; default: by the name of FILE, .gz.")
@AT
@click.option("--history", is_flag=True, help="With the earlier versions that the store keeps.")
@client_options
def export(use: Use, prefix: str, target: str, form: str | None, at: int | datetime | str | None,
           history: bool) -> None:
    """Write all checkpoints under PREFIX, as of one revision, as JSON lines with checksums.

    Any store can import them. Leases (locks, workers) are left out. An existing FILE is replaced
    once the new one is whole and on disk. Exit code 3 when there is no store.

    \b
    Examples:
      ckptmesh state export --to backup.jsonl.gz
      ckptmesh state export orders --at 1d --to yesterday.jsonl
      ckptmesh state export orders | jq -r .key
    """
    squeezed = None if form is None else form == "gzip"
    if target != "-":
        with use.connect(existing=True) as mesh, progress() as show:
            told = mesh.export(target, prefix, at=at, history=history, squeezed=squeezed,
                               progress=show)
        use.out.text(f"{many(told.keys, 'checkpoint')} as of revision {told.revision}",
                     {"file": target, **asdict(told)})
        return
    if squeezed and sys.stdout.isatty():
        raise Misuse("compressed bytes are nothing for a terminal", hint="name a file: --to FILE")
    with use.connect(existing=True) as mesh:
        sys.stdout.flush()
        told = mesh.export(sys.stdout.buffer, prefix, at=at, history=history, squeezed=squeezed)
    sys.stdout.buffer.flush()
    use.out.note(f"{many(told.keys, 'checkpoint')} as of revision {told.revision}")


@click.command("import", short_help="Write what a file holds into the store.")
@PREFIX
@click.option("--from", "source", default="-", metavar="FILE",
              type=click.Path(allow_dash=True, exists=True, dir_okay=False),
              help="What `state export` wrote; default: stdin.")
@click.option("--onto", default="", metavar="PREFIX", help="Put this before each key.")
@click.option("--on-conflict", type=click.Choice(CHOICES), default="refuse", show_default=True,
              help="Where something else stands: end with 4, leave it, or write over it.")
@yes_option
@dry_run_option
@client_options
def import_(use: Use, prefix: str, source: str, onto: str, on_conflict: str, yes: bool,
            dry_run: bool) -> None:
    """Write the checkpoints of an export, or those under PREFIX, into the store.

    The whole file is checked first, and compared with what stands: nothing is written from a
    damaged one (exit code 6) nor where something else is in the way (exit code 4). What is there
    already is passed over, so an import that was interrupted is run again.

    \b
    Examples:
      ckptmesh state import --from backup.jsonl.gz --dry-run
      ckptmesh state import orders --from backup.jsonl.gz --onto restored
      ssh other ckptmesh state export | ckptmesh state import --on-conflict skip
    """
    if source == "-" and sys.stdin.isatty():
        raise Misuse("an export is read from stdin, and that is a terminal",
                     hint="name a file: --from FILE")
    stream: IO[bytes] = sys.stdin.buffer if source == "-" else open(source, "rb")  # noqa: SIM115
    options: dict[str, Any] = {"onto": onto, "on_conflict": on_conflict}
    with stream, opened(stream) as kept, progress() as show:
        with use.connect() as mesh:
            if dry_run or on_conflict == "replace":
                told = mesh.import_(kept, prefix, dry_run=True, progress=show, **options)
            if not dry_run and (on_conflict != "replace" or not told.replaced):
                told = mesh.import_(kept, prefix, progress=show, **options)
        if not dry_run and told.dry_run:
            confirm(f"Write over {many(told.replaced, 'checkpoint')}?", yes)
            with use.connect() as mesh:  # not held while the user thinks
                told = mesh.import_(kept, prefix, progress=show, **options)
    use.out.text(summary(told), asdict(told))


def summary(told: ImportReport) -> str:
    """An import in one line."""
    counts = ((told.written, "new"), (told.replaced, "written over"), (told.same, "there already"),
              (told.skipped, "left as they were"), (told.expired, "expired since"))
    return f"{many(told.keys, 'checkpoint')}: " + (", ".join(
        f"{count:,} {what}" for count, what in counts if count) or "nothing to do") + (
        "; nothing was written (--dry-run)" if told.dry_run else "")


@click.command("digest", short_help="One number for what is under a prefix.")
@PREFIX
@AT
@client_options
def digest(use: Use, prefix: str, at: int | datetime | str | None) -> None:
    """Print a SHA-256 over all keys under PREFIX with values, positions and heads.

    It is equal for two stores that hold the same, however they came to it. Leases do not count.

    \b
    Examples:
      ckptmesh state digest
      test "$(ckptmesh state digest --url "$OLD")" = "$(ckptmesh state digest --url "$NEW")"
    """
    with use.connect(reading=True) as mesh:
        found = mesh.digest(prefix, at=at)
    use.out.text(found.sha256, asdict(found))
