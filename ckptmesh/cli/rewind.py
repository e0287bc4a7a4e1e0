"""`ckptmesh state rewind`: what stood there before stands there again."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import Any

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
from ckptmesh.cli.diff import shown
from ckptmesh.cli.forms import cut_of, value_of
from ckptmesh.cli.text import many
from ckptmesh.client import Client
from ckptmesh.clock import from_datetime, iso
from ckptmesh.errors import Misuse
from ckptmesh.features.rewinding import NOTHING, Change, RewindPlan
from ckptmesh.views import Checkpoint


@click.command("rewind", short_help="Let what stood there before stand there again.")
@click.argument("prefix", metavar="KEY|PREFIX", shell_complete=complete_keys)
@click.option("--to", type=Read(cut_of, "moment"), metavar="WHEN",
              help="A revision (7), a time (2024-05-01T10:30Z), ago (10m), or a savepoint.")
@click.option("--value", metavar="VALUE", help="This value instead, for one key.")
@click.option("--position", type=int, metavar="N",
              help="For one key: the newest version that is not beyond N; or N for --value.")
@click.option("--reason", required=True, metavar="TEXT", help="Why; it is kept.")
@click.option("--force", is_flag=True, help="Even while somebody is at work there.")
@yes_option
@dry_run_option
@client_options
def rewind(use: Use, prefix: str, to: int | datetime | str | None, value: str | None,
           position: int | None, reason: str, force: bool, yes: bool, dry_run: bool) -> None:
    """Let KEY, or all under PREFIX ("": everything), be again what it was. Shows the plan and asks.

    It is one new commit: nothing is taken back, and another rewind undoes it. The plan shows what
    changes, what will be done again, who has consumed what will be gone, and who holds a lock
    there, which refuses it unless told with --force. Exit code 4 when anything has moved since it
    was planned, or is held. Contracts do not hold it up. Its record stands at PIPELINE/_rewinds,
    and `state history` shows it.

    \b
    Examples:
      ckptmesh state rewind nightly --to 8h --reason "bad feed" --dry-run
      ckptmesh state rewind orders --to 120 --reason "bad feed" --yes
      ckptmesh state rewind "" --to before-migration --reason "migration failed"
      ckptmesh state rewind orders --position 1000 --reason "rerun from batch 1001 on"
    """
    if (to is None) == (value is None and position is None):
        raise Misuse("to which moment, or to which version or value?",
                     hint="either --to 8h, or for one key --position 1000 or --value 7")
    if not prefix and to is None:
        raise Misuse("which key is to have it?", hint="name one; \"\" as all goes with --to")
    with use.connect(existing=True) as mesh:
        plan = mesh.rewind(prefix, to=to, position=position, reason=reason,
                           value=NOTHING if value is None else value_of(value))
        if dry_run:
            use.out.text(str(plan), _document(plan))
            return
        if plan.changes:
            use.out.note(str(plan))
            confirm(f"rewind {many(len(plan.changes), 'key')}?", yes)
        done = plan.apply(force=force)
    if done is None:
        use.out.text("nothing differs", {"revision": None, "changed": 0, "deleted": 0})
        return
    use.out.text(f"rewound {prefix or 'everything'} at revision {done.revision}: {done.changed:,} "
                 f"changed, {done.deleted:,} deleted", asdict(done))
    use.out.note(f"to undo it: ckptmesh state rewind {prefix!r} --to {done.at} --reason …")


def reason_of(mesh: Client, found: Checkpoint) -> str:
    """Why a rewind wrote this version; "" where none did."""
    said = None if found.rewind is None else mesh.value(found.rewind)
    return str(said.get("reason", "")) if isinstance(said, dict) else ""


def _document(plan: RewindPlan) -> dict[str, Any]:
    return {
        "prefix": plan.prefix, "to": plan.to, "revision": plan.revision, "reason": plan.reason,
        "changes": [_change(change) for change in plan.changes], "again": plan.redo,
        "consumers": [{**asdict(each), "time": iso(from_datetime(each.time))}
                      for each in plan.consumers],
        "holders": plan.holders,
    }


def _change(change: Change) -> dict[str, Any]:
    return {"key": change.key, "change": change.kind, "again": change.again,
            "before": _side(change.before), "after": _side(change.after)}


def _side(found: Checkpoint | None) -> dict[str, Any] | None:
    return None if found is None else {
        "value": shown(found), "revision": found.revision or None, "position": found.position}
