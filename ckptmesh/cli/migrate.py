"""`ckptmesh migrate`: all that one store holds, into another."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime

import click

from ckptmesh.cli.common import (
    DURATION,
    TIMEOUT,
    Use,
    confirm,
    dry_run_option,
    json_option,
    yes_option,
)
from ckptmesh.cli.output import Output, progress
from ckptmesh.cli.text import many
from ckptmesh.cli.transfer import AT, summary
from ckptmesh.features.migrating import migrate as migrating
from ckptmesh.flows import run


@click.command("migrate")
@click.argument("source", metavar="FROM")
@click.argument("target", metavar="TO")
@click.option("--prefix", default="", metavar="PREFIX", help="Only what is under this.")
@AT
@click.option("--replace", is_flag=True,
              help="TO may hold something else; it is written over where FROM has the key.")
@click.option("--timeout", type=DURATION, default=TIMEOUT, envvar="CKPTMESH_TIMEOUT",
              metavar="DURATION", help="Give up a request after this long; default 10s.")
@yes_option
@dry_run_option
@json_option
def migrate(out: Output, source: str, target: str, prefix: str, at: int | datetime | str | None,
            replace: bool, timeout: float, yes: bool, dry_run: bool) -> None:
    """Copy all checkpoints of the store FROM into the store TO, and verify each of them.

    FROM is only read, at one revision, and may go on meanwhile. TO must be empty, or hold what a
    migration left that was interrupted: run it again, and it goes on. At the end every key is read
    back and compared, and the digests of both are equal; exit code 4 if not. Leases are left out.

    \b
    Examples:
      ckptmesh migrate file:./state tcp://store:7701 --dry-run
      ckptmesh migrate file:./state tcp://store:7701
      ckptmesh migrate tcp://store:7701 file:./copy --prefix orders --at 1h
    """
    here, there = Use(source, timeout, out), Use(target, timeout, out)
    if replace and not dry_run:
        confirm(f"Write over what is in {target}?", yes)
    with here.connect(existing=True) as old, there.connect(reading=dry_run) as new, \
            progress() as show:
        told = run(migrating(old, new, prefix=prefix, at=at, replace=replace, dry_run=dry_run,
                             progress=show))
    document = {"from": source, "to": target, "revision": told.revision, **asdict(told.loaded),
                "verified": told.verified, "sha256": told.sha256 or None}
    verified = "" if dry_run else f"; {many(told.verified, 'key')} compared, digests equal"
    out.text(summary(told.loaded) + verified, document)
