"""`ckptmesh wal`: look into, check and repair the log of a directory."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import click

from ckptmesh import repair as mending
from ckptmesh import survey
from ckptmesh.cli.common import (
    Read,
    Use,
    client_options,
    confirm,
    dry_run_option,
    json_option,
    yes_option,
)
from ckptmesh.cli.compact import agree, show
from ckptmesh.cli.forms import compact, to_json
from ckptmesh.cli.health import Probe
from ckptmesh.cli.output import Output, waiting
from ckptmesh.cli.text import size_text
from ckptmesh.clock import iso
from ckptmesh.compaction import compact_directory
from ckptmesh.config import duration
from ckptmesh.disk import RealDisk
from ckptmesh.errors import (
    Corrupt,
    DirectoryInUse,
    InvalidPayload,
    Misuse,
    Unavailable,
    Unsupported,
)
from ckptmesh.messages import AcceptLoss, Command, Status
from ckptmesh.recovery import recover
from ckptmesh.survey import CORRUPT, UNSUPPORTED, FileReport, VerifyReport
from ckptmesh.urls import open_transport
from ckptmesh.values import unpack

DIRECTORY = click.argument("directory", type=click.Path(file_okay=False, exists=True))
_TIMES = frozenset(("time", "until", "expires_at"))


@click.group("wal")
def wal() -> None:
    """Look into, check and repair the log of a directory.

    `dump` and `verify` only read, also while a store serves the directory.

    \b
    Examples:
      ckptmesh wal verify ./ckptmesh-data
      ckptmesh wal repair ./ckptmesh-data ./repaired
    """


# --- verify -----------------------------------------------------------------------------------


@wal.command("verify", short_help="Check every byte of log and snapshots.")
@DIRECTORY
@json_option
def verify(out: Output, directory: str) -> None:
    """Check every byte of a store's DIRECTORY, and replay it as a starting store would.

    CLEAN: all is whole. TORN: the last write was cut short by a crash, nobody had been answered,
    and the store goes on by itself. Both end with exit code 0. CORRUPT, with exit code 6: damage
    anywhere else; told are file, offset and the revisions lost.

    \b
    Examples:
      ckptmesh wal verify ./ckptmesh-data
      ckptmesh wal verify ./ckptmesh-data --json | jq -r .verdict
    """
    with waiting("reading"):
        report = survey.verify(directory)
    out.facts(_verified(report), _verdict_lines(report))
    if not out.as_json:
        out.text("")
        out.table(("file", "verdict", ">size", ">frames", "revisions", "remark"),
                  (({}, _file_row(each)) for each in report.files))
    if report.verdict == CORRUPT:
        raise _corrupt(report)
    if report.verdict == UNSUPPORTED:
        raise Unsupported("written in a format that this release does not know",
                          hint="use the release that wrote it, or a later one")


def _verified(report: VerifyReport) -> dict[str, Any]:
    return report._asdict() | {
        "files": [each._asdict() for each in report.files], "notes": list(report.notes)}


def _verdict_lines(report: VerifyReport) -> Iterator[tuple[str, str]]:
    yield "verdict", report.verdict
    yield "directory", report.directory
    if report.serves:
        yield "revision", str(report.revision)
    yield "serves", "a store would start on it" if report.serves else "no store would start on it"
    for note in report.notes:
        yield "note", note


def _file_row(each: FileReport) -> tuple[str, ...]:
    revisions = ""
    if each.kind == "snapshot" and each.last_revision:
        revisions = str(each.last_revision)
    elif each.last_revision >= each.first_revision > 0:
        revisions = f"{each.first_revision} to {each.last_revision}"
    remark = "" if each.offset is None else f"at byte {each.offset:,}: {each.reason}"
    if each.first_lost:
        remark += f"; lost: {_lost(each)}"
    return (each.file, each.verdict, size_text(each.size), str(each.frames or ""), revisions,
            remark)


def _lost(each: FileReport) -> str:
    if each.last_lost is None:
        return f"whatever follows revision {(each.first_lost or 1) - 1}"
    if each.last_lost <= (each.first_lost or 0):
        return f"revision {each.first_lost}"
    return f"revisions {each.first_lost} to {each.last_lost}"


def _corrupt(report: VerifyReport) -> Corrupt:
    bad = next(iter(report.damaged), None)
    if bad is None:
        message = report.notes[0] if report.notes else f"{report.directory} is damaged"
    else:
        message = f"{report.directory}/{bad.file} is damaged at byte {bad.offset or 0:,}"
        message += f" ({bad.reason})" if bad.reason else ""
        message += f"; lost: {_lost(bad)}" if bad.first_lost else ""
    hint = f"save what can be saved: ckptmesh wal repair {report.directory} NEW_DIRECTORY"
    if report.serves:
        hint = "a store still starts on it, from what is older; have it make a new snapshot"
    return Corrupt(message, hint=hint)


# --- repair -----------------------------------------------------------------------------------


@wal.command("repair", short_help="Make a new store of what damage has left.")
@DIRECTORY
@click.argument("new_directory", type=click.Path())
@json_option
def repair(out: Output, directory: str, new_directory: str) -> None:
    """Make NEW_DIRECTORY a store of everything in DIRECTORY that can be trusted.

    DIRECTORY is never changed; `wal verify` tells beforehand what would be lost. The new one is
    another store, with a higher epoch, and says for ever that it has lost something.

    \b
    Examples:
      ckptmesh wal repair ./ckptmesh-data ./repaired
      ckptmesh up --data ./repaired
    """
    with waiting("reading what is left"):
        report = mending.repair(directory, new_directory)
    new = report.store
    document = {
        "source": report.source, "directory": new.directory, "revision": report.revision,
        "first_lost": report.first_lost or None, "last_lost": report.last_lost,
        "reason": report.reason, "uuid": new.uuid.hex(), "epoch": new.epoch, "keys": new.keys,
        "head": new.revision, "sessions_ended": new.sessions_ended,
        "leases_ended": new.leases_ended, "verdict": report.after.verdict,
    }
    out.facts(document, (
        ("made", f"{new.directory}, {report.after.verdict}: {new.keys:,} keys, "
                 f"all up to revision {report.revision:,}"),
        ("lost", report.lost or "nothing"),
        *((("because", report.reason),) if report.reason else ()),
        ("identity", f"another store: UUID {new.uuid.hex()}, epoch {new.epoch}"),
        ("ended", f"{new.sessions_ended:,} sessions, {new.leases_ended:,} leases"),
    ))
    out.note(f"serve it: ckptmesh up --data {new.directory}")


# --- dump -------------------------------------------------------------------------------------


@wal.command("dump", short_help="Print every record of the log.")
@DIRECTORY
@click.option("--after", type=click.IntRange(0), default=0, metavar="REV",
              help="Leave out what ends at this revision or before.")
@click.option("--values", is_flag=True, help="Show values, too; else only their size and digest.")
@json_option
def dump(out: Output, directory: str, after: int, values: bool) -> None:
    """Print every segment, frame and record of a store's DIRECTORY, oldest first.

    Damage is told where it stands, and does not end the printing.

    \b
    Examples:
      ckptmesh wal dump ./ckptmesh-data | less
      ckptmesh wal dump ./ckptmesh-data --after 100 --values
      ckptmesh wal dump ./ckptmesh-data --json | jq -c 'select(.kind == "data") | .records[]'
    """
    for row in survey.dump(directory, values=values, after=after):
        found = _readable(row)
        if out.as_json:
            out.line(found)
            continue
        records = found.pop("records", ())
        out.text(_dump_line(found))
        for record in records:
            out.text(f"    {record.pop('record')} {_pairs(record)}")


def _readable(field: Any, name: str = "") -> Any:
    """Times as ISO-8601, values as `state get` shows them."""
    if isinstance(field, dict):
        return {key: _readable(each, key) for key, each in field.items()}
    if isinstance(field, list | tuple):
        return [_readable(each) for each in field]
    if name in _TIMES and type(field) is int and field:
        return iso(field)
    if name == "value" and isinstance(field, str):
        try:
            return to_json(unpack(bytes.fromhex(field)))
        except InvalidPayload:
            return {"$bytes of no value": field}
    return field


def _dump_line(row: dict[str, Any]) -> str:
    kind, file = row.pop("kind"), row.pop("file")
    return f"{file} {_pairs(row)}" if kind == "segment" else f"  {kind} {_pairs(row)}"


def _pairs(row: dict[str, Any]) -> str:
    return " ".join(f"{name}={each if isinstance(each, str) else compact(each)}"
                    for name, each in row.items())


# --- compact and accept-loss ------------------------------------------------------------------


@wal.command("compact", short_help="Compact a directory that no store serves.")
@DIRECTORY
@click.option("--retain", type=Read(duration, "duration"), metavar="DURATION",
              help="Keep what restores need for so long, this once. Older cuts are lost: it asks.")
@yes_option
@json_option
def compact_(out: Output, directory: str, retain: float | None, yes: bool) -> None:
    """Make a snapshot of a DIRECTORY that no store serves just now, and drop what it covers.

    Where a store serves it: ckptmesh compact.

    \b
    Examples:
      ckptmesh wal compact ./state
      ckptmesh wal compact ./state --retain 1h --yes
    """
    agree(retain, yes)
    with waiting("compacting"):
        report = compact_directory(directory, None if retain is None else math.ceil(retain))
    show(out, report)


@wal.command("accept-loss", short_help="Let a store go on that lacks what it once acknowledged.")
@click.argument("directory", required=False, type=click.Path(file_okay=False, exists=True))
@yes_option
@dry_run_option
@client_options
def accept_loss(use: Use, directory: str | None, yes: bool, dry_run: bool) -> None:
    """End the read-only state that began when a client had seen more than the store holds.

    Do so only when the missing revisions are really gone for good: an older copy of the disk came
    back, or a log was cut. A new epoch begins, so that no token of what was lost counts again.
    With a DIRECTORY that no store serves, or with --url for the store that runs.

    \b
    Examples:
      ckptmesh wal accept-loss ./ckptmesh-data --dry-run
      ckptmesh wal accept-loss ./ckptmesh-data
      ckptmesh wal accept-loss --url tcp://127.0.0.1:7701 --yes
    """
    if directory is None:
        if not use.url:
            raise Misuse("which store?", hint="name its DIRECTORY, or --url of the running one")
        suspected = _suspected_there(use)
    else:
        suspected = _suspected(directory)
    where = directory or use.url
    document = {"store": where, "suspected": suspected or None, "accepted": False}
    if not suspected:
        use.out.text(f"no loss is suspected in {where}: nothing to accept", document)
        return
    use.out.note(f"{where}: {suspected}")
    if dry_run:
        use.out.text("it would be accepted", document)
        return
    confirm("Accept that these revisions are gone?", yes)
    if directory is None:
        _ask(use, AcceptLoss())
    else:
        _accept(directory)
    use.out.text("accepted: commits are taken again", document | {"accepted": True})


def _suspected(directory: str) -> str:
    """What is missing from a directory, "" for nothing."""
    state = recover(RealDisk(), directory).state
    if state.loss is None:
        return ""
    epoch, revision = state.loss
    return (f"a client has seen revision {revision:,} of epoch {epoch} acknowledged; the store "
            f"holds up to revision {state.revision:,} of epoch {state.epoch}")


def _suspected_there(use: Use) -> str:
    """The same of a store that runs, in its own words."""
    read_only = str(_ask(use, Status())["read_only"])
    return read_only if "loss" in read_only else ""


def _accept(directory: str) -> None:
    try:
        mending.accept_loss(directory)
    except DirectoryInUse as error:
        error.hint = "a store serves it: stop that first, or accept there, with --url"
        raise


def _ask(use: Use, command: Command) -> Any:
    """What the store behind --url answers. Raises its error, or `Unavailable`."""
    with contextlib.closing(open_transport(use.url or "", use.timeout)) as transport:
        answer = Probe(transport, use.timeout).ask(command)
    if answer is None:
        raise Unavailable(f"no answer from {use.url} within {use.timeout:g} s")
    if answer.error is not None:
        raise answer.error
    return answer.result
