"""`ckptmesh lock`: see locks, hold one for a command, end a dead holder's."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import click

from ckptmesh.cli.common import URL, NotFound, Use, client_options, confirm, yes_option
from ckptmesh.cli.completion import complete_keys
from ckptmesh.cli.execute import COMMAND, TTL, WAIT, execute
from ckptmesh.cli.output import Rows
from ckptmesh.cli.text import span_text
from ckptmesh.clock import iso
from ckptmesh.errors import Misuse
from ckptmesh.features.tickets import Ticket, tickets
from ckptmesh.limits import pipeline_of


@click.group("lock")
def lock() -> None:
    """See locks, hold one while a command runs, end a dead holder's.

    \b
    Examples:
      ckptmesh lock list
      ckptmesh lock acquire orders/eu --wait 1m -- ./repair.sh
      ckptmesh lock release orders --holder host:4711 --force
    """


@lock.command("list", short_help="Who holds and who awaits which lock.")
@click.argument("pipeline", default="", shell_complete=complete_keys)
@client_options
def list_(use: Use, pipeline: str) -> None:
    """List who holds and who awaits the locks of PIPELINE and its parts, in the order of asking.

    A lock is held, or waited for; in a directory also dead, when its holder is gone: whoever asks
    for it next has it. Without PIPELINE: all, for which every key of the store is read.

    \b
    Examples:
      ckptmesh lock list nightly
      ckptmesh lock list --json | jq -r 'select(.ahead == 0) | .holder'
    """
    with use.connect(reading=True) as mesh:
        found = tickets(mesh, pipeline)
    gone = _gone(use)
    count = use.out.table(("key", "mode", "state", "holder", ">age", "ticket"),
                          _rows(found, gone))
    if not count and not use.out.as_json:
        use.out.note(f"nobody holds a lock of {pipeline}" if pipeline else "nobody holds a lock")


@lock.command("acquire", short_help="Hold a lock while a command runs.")
@click.argument("name")
@click.option("--shared", is_flag=True, help="Beside other shared ones.")
@click.option("--wait", type=WAIT, metavar="DURATION",
              help="How long to wait for it; default: as long as it takes.")
@TTL
@URL
@COMMAND
@click.pass_context
def acquire(ctx: click.Context, name: str, shared: bool, wait: float | None, ttl: float,
            url: str | None, command: tuple[str, ...]) -> None:
    """Run COMMAND while holding the lock NAME, which covers all under it.

    As `ckptmesh exec`, with the same exit codes, but without a checkpoint and a record. When the
    lock is lost the command is ended: SIGTERM, ten seconds, SIGKILL.

    \b
    Examples:
      ckptmesh lock acquire orders -- ./rebuild.sh --all
      ckptmesh lock acquire orders/eu --shared --wait 1m -- ./report.sh
    """
    execute(ctx, url, name, command, wait=wait, ttl=ttl, shared=shared, checkpoint=False)


@lock.command("release", short_help="End a dead holder's lock.")
@click.argument("name")
@click.option("--holder", metavar="HOST:PID", help="Whose, as `lock list` shows it.")
@click.option("--ticket", metavar="TICKET", help="Which one, as `lock list` shows it.")
@click.option("--force", is_flag=True, help="Yes, it is another's lock.")
@yes_option
@client_options
def release(use: Use, name: str, holder: str | None, ticket: str | None, force: bool, yes: bool
            ) -> None:
    """End the lock NAME of a holder who is gone, before its time is over. Asks first.

    A holder that lives is not stopped: what it commits under the lock is refused from then on, and
    it learns that at its next renewal. But what it does elsewhere, somebody else may do at the
    same time. Exit code 3 when there is no such lock.

    \b
    Examples:
      ckptmesh lock release orders --holder host:4711 --force
      ckptmesh lock release orders --ticket 4f1c08e2aa31b7c9 --force --yes
    """
    if holder is None and ticket is None:
        raise Misuse("whose lock? Name its --holder or its --ticket",
                     hint=f"ckptmesh lock list {pipeline_of(name)}")
    if not force:
        raise Misuse("this ends another's lock, who may be at work", hint="if so, add --force")
    with use.connect(reading=True) as mesh:
        found = [each for each in tickets(mesh, pipeline_of(name)) if each.name == name
                 and holder in (None, each.holder) and ticket in (None, each.number)]
    if not found:
        raise NotFound(f"nobody such holds or awaits {name}",
                       hint=f"ckptmesh lock list {pipeline_of(name)}")
    if len(found) > 1:
        raise Misuse(f"{len(found)} are meant: " + ", ".join(each.number for each in found),
                     hint="choose one with --ticket")
    (one,) = found
    confirm(f"end the lock of {one.holder} on {name}?", yes)
    with use.connect() as mesh:
        use.settled(lambda: mesh.delete(one.found.key, expect=one.found.revision))
    use.out.text(f"ended {one.number}", _document(one, _gone(use)))
    use.out.note(f"{one.holder} has {name} no more; what it commits under it is refused")


def _gone(use: Use) -> Any:
    """What tells whether a ticket's holder is known to be gone."""
    if not (use.url or "").startswith("file:"):
        return lambda found: False
    from ckptmesh.features.holding import is_dead
    from ckptmesh.urls import directory_of

    directory = directory_of(use.url or "")
    return lambda found: is_dead(directory, found)


def _rows(found: list[Ticket], gone: Any) -> Rows:
    now = datetime.now(UTC)
    for each in found:
        document = _document(each, gone)
        yield document, (
            each.name, document["mode"], document["state"], each.holder,
            span_text((now - each.found.time).total_seconds()), each.number)


def _document(each: Ticket, gone: Any) -> dict[str, Any]:
    return {
        "name": each.name, "mode": "shared" if each.shared else "exclusive",
        "state": "dead" if gone(each.found) else "waiting" if each.ahead else "held",
        "holder": each.holder, "ahead": each.ahead, "since": iso(each.found.micros),
        "ticket": each.number, "key": each.found.key, "revision": each.found.revision,
    }
