"""`ckptmesh status`: is it there, is it well?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from ckptmesh.cli.common import Use, client_options
from ckptmesh.cli.health import HEALTHY, Health, examine, is_address
from ckptmesh.cli.text import many, size_text, span_text
from ckptmesh.config import DEFAULT_URL


@click.command("status")
@click.option("--publish", envvar="CKPTMESH_PUBLISH", show_envvar=True, default="", metavar="URL",
              help="Where the broker publishes. Default: as the store tells, or the next port.")
@client_options
def status(use: Use, publish: str) -> None:
    """Tell whether broker and store are there and well, within two seconds.

    Exit code 0 when they are; 5: no broker, no store or no answer; 4: two stores at one broker; 6
    or 7: read-only, after a suspected loss of data or for lack of space.

    \b
    Examples:
      ckptmesh status
      ckptmesh status --url tcp://db1:7701 --json | jq .store.revision
      until ckptmesh status >/dev/null 2>&1; do sleep 1; done
    """
    found = examine(use, use.url or DEFAULT_URL, publish)
    use.out.facts(_document(found), _lines(found))
    if found.verdict != HEALTHY:
        raise click.exceptions.Exit(found.exit_code)


def _document(found: Health) -> dict[str, Any]:
    beat = found.broker
    return {
        "verdict": found.verdict, "advice": found.advice, "url": found.url,
        "publish": found.publish,
        "broker": None if beat is None else {
            "pid": beat.pid, "release": beat.release, "stores": beat.stores,
            "clients": beat.clients, "uptime_seconds": round(beat.uptime, 1)},
        "store": found.store,
        "round_trip_ms": None if found.round_trip is None else round(found.round_trip * 1_000, 3),
    }


def _lines(found: Health) -> Iterator[tuple[str, str]]:
    yield "verdict", found.verdict
    if found.advice:
        yield "next", found.advice
    yield "url", found.url
    beat = found.broker
    if beat is not None:
        yield "broker", (f"up {span_text(beat.uptime)}, pid {beat.pid}, release {beat.release}, "
                         f"{many(beat.clients, 'client')}, {many(beat.stores, 'store')}")
    store = found.store
    if store is not None:
        yield from _store_lines(store, not is_address(found.url))
    if found.round_trip is not None:
        yield "round trip", f"{found.round_trip * 1_000:.2f} ms"


def _store_lines(store: dict[str, Any], embedded: bool) -> Iterator[tuple[str, str]]:
    who = "in this process" if embedded else f"pid {store['pid']}"
    yield "store", f"{who}, release {store['release']}, UUID {store['uuid']}"
    yield "revision", f"{store['revision']} of epoch {store['epoch']}, floor {store['floor']}"
    yield "holds", ", ".join((many(store["keys"], "key"), many(store["leases"], "lease"),
                              many(store["sessions"], "session")))
    log = store.get("log") or {}
    if "directory" in log:
        yield "directory", str(log["directory"])
    if "bytes_on_disk" in log:
        lossy = f", lossy: {log['lossy']}" if log.get("lossy") else ""
        yield "log", (f"{size_text(log['bytes_on_disk'])}, {many(log['segments'], 'segment')}, "
                      f"{many(log['snapshots'], 'snapshot')}, {log['verdict']} at start{lossy}")
    if log.get("sync_ms_p50"):
        yield "sync", f"{log['sync_ms_p50']} ms median, {log['sync_ms_p99']} ms 99 %"
