"""`ckptmesh snapshot`: the whole state in a file, and stores made from it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import click

from ckptmesh import views
from ckptmesh.cli import compact
from ckptmesh.cli.common import DURATION, Read, Use, client_options, json_option
from ckptmesh.cli.forms import cut_of
from ckptmesh.cli.output import Output, Rows, waiting
from ckptmesh.cli.text import size_text
from ckptmesh.clock import from_datetime, iso
from ckptmesh.disk import RealDisk
from ckptmesh.errors import Corrupt, Misuse, SavepointNotFound, Unsupported
from ckptmesh.messages import Savepoint
from ckptmesh.restore import (
    RestoreReport,
    SnapshotFacts,
    list_savepoints,
    list_snapshots,
    restore,
)
from ckptmesh.snapshots import verify_snapshot
from ckptmesh.survey import CORRUPT, UNSUPPORTED

DIRECTORY = click.argument("directory", type=click.Path(file_okay=False, exists=True))


@click.group("snapshot")
def snapshot() -> None:
    """List, check and restore snapshots; name revisions that are to be kept.

    A directory is only read, also while a store serves it; `create`, `pin`, `pins` and `unpin` ask
    the store.

    \b
    Examples:
      ckptmesh snapshot list ./ckptmesh-data
      ckptmesh snapshot pin before-migration --reason "orders get a new key"
      ckptmesh snapshot restore ./ckptmesh-data ./before --at before-migration
    """


@snapshot.command("create", short_help="Have the store make a snapshot now.")
@click.option("--wait", type=DURATION, default=600.0, metavar="DURATION",
              help="Stop waiting after this long. Default 10m.")
@client_options
def create(use: Use, wait: float) -> None:
    """Have the store make a snapshot now; as `ckptmesh compact`, which tells more. Prints its file.

    \b
    Examples:
      ckptmesh snapshot create
      ckptmesh snapshot create --json | jq .revision
    """
    with use.connect() as mesh, waiting("making a snapshot"):
        report = mesh.compact(timeout=wait)
    use.out.text(report["snapshot"], compact.document_of(report))
    if not report["made"]:
        use.out.note("nothing was committed since this one, so no other was made")


@snapshot.command("list", short_help="List the snapshots of a directory.")
@DIRECTORY
@json_option
def list_(out: Output, directory: str) -> None:
    """List the snapshots of a store's DIRECTORY, oldest first, and the savepoints that have none of
    their own (yet): the log is kept for them.

    \b
    Examples:
      ckptmesh snapshot list ./ckptmesh-data
      ckptmesh snapshot list ./ckptmesh-data --json | jq -r .file
    """
    count = out.table(
        ("file", ">revision", ">epoch", "time", ">size", "savepoints"),
        _listed(list_snapshots(directory), list_savepoints(directory)))
    if not count:
        out.note("no snapshots yet: the store makes one when its log has grown; "
                 "or `ckptmesh snapshot create`")


def _listed(snapshots: list[SnapshotFacts], savepoints: list[Savepoint]) -> Rows:
    for each in snapshots:
        yield ({"file": each.file, "revision": each.revision, "epoch": each.epoch,
                "time": iso(each.time), "size": each.size, "savepoints": list(each.savepoints)},
               (each.file, str(each.revision), str(each.epoch), iso(each.time),
                size_text(each.size), ", ".join(each.savepoints)))
    made = {each.revision for each in snapshots}
    for savepoint in savepoints:
        if savepoint.revision not in made:
            yield ({"file": None, "revision": savepoint.revision, "epoch": None, "time": None,
                    "size": None, "savepoints": [savepoint.name]},
                   ("(in the log)", str(savepoint.revision), "", "", "", savepoint.name))


@snapshot.command("pin", short_help="Name a revision, and keep it.")
@click.argument("name")
@click.option("--revision", type=click.IntRange(min=1), metavar="REVISION",
              help="The revision; the present one when left out.")
@click.option("--at", type=Read(cut_of, "moment"), metavar="WHEN",
              help="A revision (7), a time (2024-05-01T10:30Z), ago (10m), or another savepoint.")
@click.option("--reason", default="", metavar="TEXT", help="What for: for people.")
@client_options
def pin(use: Use, name: str, revision: int | None, at: int | datetime | str | None, reason: str
        ) -> None:
    """Make a savepoint: NAME a revision of the whole store, and keep it readable beyond `retain`,
    until `snapshot unpin`. `--at NAME` then takes the name everywhere.

    Exit code 4 when the name is taken, 1 when that revision is not on the disk any more.

    \b
    Examples:
      ckptmesh snapshot pin before-migration --reason "orders get a new key"
      ckptmesh snapshot pin last-night --at 2026-11-21T03:00Z
      ckptmesh state list --at before-migration
    """
    if revision is not None and at is not None:
        raise Misuse("--revision and --at both name the revision", hint="leave one away")
    with use.connect() as mesh:
        made = mesh.savepoint(name, at=revision if at is None else at, reason=reason)
    use.out.text(f"{made.name} is revision {made.revision}", _pinned(made))


@snapshot.command("pins", short_help="List the savepoints.")
@client_options
def pins(use: Use) -> None:
    """List the savepoints of the store, in the order of their revisions.

    \b
    Examples:
      ckptmesh snapshot pins
      ckptmesh snapshot pins --json | jq -r .name
    """
    with use.connect(reading=True) as mesh:
        found = mesh.savepoints()
    count = use.out.table(("name", ">revision", "made", "reason"), (
        (_pinned(each), (each.name, str(each.revision), iso(each.micros), each.reason))
        for each in found))
    if not count:
        use.out.note("no savepoints: make one with `ckptmesh snapshot pin NAME`")


@snapshot.command("unpin", short_help="Drop a savepoint.")
@click.argument("name")
@client_options
def unpin(use: Use, name: str) -> None:
    """Drop the savepoint NAME: what only it needed leaves the disk with the next compaction.

    Exit code 3 when there is none of this name.

    \b
    Examples:
      ckptmesh snapshot unpin before-migration
    """
    with use.connect() as mesh:
        if not mesh.drop_savepoint(name):
            raise SavepointNotFound(f"there is no savepoint {name!r}", name=name)
    use.out.text(f"{name} is dropped", {"name": name, "dropped": True})


def _pinned(savepoint: views.Savepoint) -> dict[str, Any]:
    return {"name": savepoint.name, "revision": savepoint.revision,
            "made": iso(savepoint.micros), "reason": savepoint.reason}


@snapshot.command("verify", short_help="Check every byte of snapshots.")
@click.argument("path", type=click.Path(exists=True))
@json_option
def verify(out: Output, path: str) -> None:
    """Check every byte of a snapshot file, or of all snapshots in a store's directory PATH.

    Exit code 6 when one is damaged (the store then goes on from the one before it), 1 when one is
    of a format that this release does not read.

    \b
    Examples:
      ckptmesh snapshot verify ./ckptmesh-data
      ckptmesh snapshot verify ./ckptmesh-data/snap/000000000042-00000003.snap
    """
    problems: list[Corrupt | Unsupported] = []
    rows: list[tuple[dict[str, Any], tuple[str, ...]]] = []
    for file in _files(path):
        try:
            info = verify_snapshot(RealDisk(), file)
        except (Corrupt, Unsupported) as error:
            problems.append(error)
            verdict = CORRUPT if isinstance(error, Corrupt) else UNSUPPORTED
            rows.append(({"file": file, "verdict": verdict, "problem": error.message},
                         (file, verdict, "", "", error.message)))
            continue
        header = info.header
        rows.append((
            {"file": file, "verdict": "OK", "revision": header.revision, "epoch": header.epoch,
             "size": info.size, "rows": info.rows, "digest": info.digest.hex()},
            (file, "OK", str(header.revision), size_text(info.size), f"{info.rows:,} rows")))
    out.table(("file", "verdict", ">revision", ">size", "remark"), rows)
    if problems:
        raise next((each for each in problems if isinstance(each, Corrupt)), problems[0])


@snapshot.command("restore", short_help="Make a new store as it was at a revision or a time.")
@DIRECTORY
@click.argument("new_directory", type=click.Path())
@click.option("--at", type=Read(cut_of, "moment"), metavar="WHEN",
              help="A revision (7), a time (2024-05-01T10:30Z), ago (10m), or a savepoint; "
                   "default: now.")
@json_option
def restore_(out: Output, directory: str, new_directory: str, at: int | datetime | str | None
             ) -> None:
    """Make NEW_DIRECTORY a store that holds what DIRECTORY held: after a revision, at a time, or at
    a savepoint.

    DIRECTORY is only read, also while a store serves it. The new one is another store: clients
    notice, no lease of the old one counts in it. Exit code 1 when that cut is no longer on the
    disk; the oldest one that is, is told.

    \b
    Examples:
      ckptmesh snapshot restore ./ckptmesh-data ./yesterday --at 1d
      ckptmesh snapshot restore ./ckptmesh-data ./copy --at 120
      ckptmesh up --data ./yesterday --bind tcp://127.0.0.1:7711 --publish tcp://127.0.0.1:7712
    """
    with waiting("reading the log"):
        if isinstance(at, datetime):
            report = restore(directory, new_directory, time=from_datetime(at))
        elif isinstance(at, str):
            report = restore(directory, new_directory, savepoint=at)
        else:
            report = restore(directory, new_directory, revision=at)
    out.text("\n".join(report.sentences()), _document(report))
    out.note(f"look at it: ckptmesh state list --url file:{os.path.abspath(new_directory)}")


def _document(report: RestoreReport) -> dict[str, Any]:
    new = report.store
    return {
        "source": report.source, "revision": report.revision, "time": iso(report.time),
        "directory": new.directory, "uuid": new.uuid.hex(), "epoch": new.epoch,
        "head": new.revision, "keys": new.keys, "sessions_ended": new.sessions_ended,
        "leases_ended": new.leases_ended, "expiring_at_once": new.expiring_at_once,
    }


def _files(path: str) -> Iterator[str]:
    """Snapshot files: the one named, or all that a store's directory has."""
    if not os.path.isdir(path):
        yield path
        return
    for each in list_snapshots(path):
        yield os.path.join(path, each.file)
