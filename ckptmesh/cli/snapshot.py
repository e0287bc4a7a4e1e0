"""`ckptmesh snapshot`: the whole state in a file, and stores made from it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import click

from ckptmesh.cli import compact
from ckptmesh.cli.common import DURATION, Read, Use, client_options, json_option
from ckptmesh.cli.forms import moment_of
from ckptmesh.cli.output import Output, waiting
from ckptmesh.cli.text import size_text
from ckptmesh.clock import from_datetime, iso
from ckptmesh.disk import RealDisk
from ckptmesh.errors import Corrupt, Unsupported
from ckptmesh.restore import RestoreReport, list_snapshots, restore
from ckptmesh.snapshots import verify_snapshot
from ckptmesh.survey import CORRUPT, UNSUPPORTED

DIRECTORY = click.argument("directory", type=click.Path(file_okay=False, exists=True))


@click.group("snapshot")
def snapshot() -> None:
    """List, check and restore snapshots.

    A directory is only read, also while a store serves it; `create` asks the store.

    \b
    Examples:
      ckptmesh snapshot list ./ckptmesh-data
      ckptmesh snapshot restore ./ckptmesh-data ./yesterday --at 1d
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
    """List the snapshots of a store's DIRECTORY, oldest first.

    \b
    Examples:
      ckptmesh snapshot list ./ckptmesh-data
      ckptmesh snapshot list ./ckptmesh-data --json | jq -r .file
    """
    count = out.table(
        ("file", ">revision", ">epoch", "time", ">size", "savepoints"),
        (({"file": each.file, "revision": each.revision, "epoch": each.epoch,
           "time": iso(each.time), "size": each.size, "savepoints": list(each.savepoints)},
          (each.file, str(each.revision), str(each.epoch), iso(each.time), size_text(each.size),
           ", ".join(each.savepoints)))
         for each in list_snapshots(directory)))
    if not count:
        out.note("no snapshots yet: the store makes one when its log has grown; "
                 "or `ckptmesh snapshot create`")


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
@click.option("--at", type=Read(moment_of, "moment"), metavar="WHEN",
              help="A revision (7), a time (2024-05-01T10:30Z), or ago (10m); default: now.")
@json_option
def restore_(out: Output, directory: str, new_directory: str, at: int | datetime | None) -> None:
    """Make NEW_DIRECTORY a store that holds what DIRECTORY held after a revision or at a time.

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
