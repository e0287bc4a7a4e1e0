"""`ckptmesh compact`: a snapshot now, and away with what it covers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from ckptmesh.cli.common import DURATION, Read, Use, client_options, confirm, yes_option
from ckptmesh.cli.output import Output, waiting
from ckptmesh.cli.text import size_text
from ckptmesh.clock import iso
from ckptmesh.config import duration


@click.command("compact")
@click.option("--retain", type=Read(duration, "duration"), metavar="DURATION",
              help="Keep what restores need for so long, this once, not as the store is set. "
                   "Older cuts are lost, so it asks.")
@click.option("--wait", type=DURATION, default=600.0, metavar="DURATION",
              help="Stop waiting after this long; the store goes on compacting. Default 10m.")
@yes_option
@client_options
def compact(use: Use, retain: float | None, wait: float, yes: bool) -> None:
    """Have the store make a snapshot now and drop what it covers and need not keep.

    The store goes on serving meanwhile. Prints sizes before and after, and why each file that
    stays is kept. The store also does this by itself; and it keeps what is needed to restore any
    cut of the last days (its setting `retain`).

    \b
    Examples:
      ckptmesh compact
      ckptmesh compact --retain 1h --yes
      ckptmesh compact --json | jq .bytes_after
    """
    agree(retain, yes)
    with use.connect() as mesh, waiting("compacting"):
        report = mesh.compact(retain=retain, timeout=wait)
    show(use.out, report)


def agree(retain: float | None, yes: bool) -> None:
    """Ask before cuts are lost that the setting would have kept. Raises as `confirm` does."""
    if retain is not None:
        confirm(f"Cuts older than {retain:g} s can not be restored afterwards. Go on?", yes)


def show(out: Output, report: dict[str, Any]) -> None:
    """Print the report of a compaction."""
    out.facts(document_of(report), _lines(report))
    if not out.as_json and report["kept"]:
        out.text("")
        out.table(("kept", "why"), (({}, item) for item in sorted(report["kept"].items())))


def document_of(report: dict[str, Any]) -> dict[str, Any]:
    """The report as JSON, its time as ISO-8601."""
    return report | {"oldest_time": iso(report["oldest_time"])}


def _lines(report: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if report["made"]:
        yield "snapshot", f"{report['snapshot']}, of revision {report['revision']}"
    else:
        yield "snapshot", "none made: nothing was committed since the last one"
    before, after = report["bytes_before"], report["bytes_after"]
    yield "size", f"{size_text(before)} before, {size_text(after)} after"
    removed = report["removed"]
    yield "removed", ", ".join(removed) if removed else "nothing: all files are still needed"
    oldest = f"revision {report['oldest_revision']}"
    if report["oldest_time"]:
        oldest += f" of {iso(report['oldest_time'])}"
    yield "restorable", f"every cut from {oldest} on"
    if report["size_won"]:
        yield "note", "less is kept than `retain` asks for: --retain-bytes of the store won"
    yield "took", f"{report['seconds']:.2f} s"
