"""The compactor process: previous snapshot and sealed segments in, one new snapshot file out.

    python -m ckptmesh.compactor DIRECTORY SEGMENT EPOCH PARENT [hurry]

Rule 1: it reads sealed files only, up to segment number SEGMENT, so nothing changes under it.
Rule 2: it writes one file, `snap/snap.EPOCH.PID.tmp`; it never renames, never deletes another's
        file, never writes the manifest. That is the store's part (see `compaction.py`).
Rule 3: it dies with PARENT, the store's process id, and gives way to everything else: it runs only
        while a processor has nothing else to do, or with `hurry`, at a low priority (nice 10).

Standard output is one line of JSON: what was made, read back and verified,
    {"file": …, "revision": …, "segment": …, "size": …, "digest": hex, "rows": …, "time": …}
or why not, with an exit code of `errors.py`:
    {"error": code, "message": …, "details": {…}}
"""

from __future__ import annotations

import json
import os
import signal
import sys
from contextlib import suppress
from typing import Any

from ckptmesh.cuts import state_through
from ckptmesh.disk import NO_SPACE, Disk, RealDisk
from ckptmesh.errors import Corrupt, Error, OutOfSpace
from ckptmesh.manifest import SNAPSHOT_DIRECTORY, read_manifest
from ckptmesh.process import end_with
from ckptmesh.snapshots import verify_snapshot, write_snapshot

_NICE = 10
_ORPHANED = 3


def temporary_name(epoch: int, pid: int) -> str:
    """The unfinished snapshot's file, relative to the store's directory."""
    return f"{SNAPSHOT_DIRECTORY}/snap.{epoch}.{pid}.tmp"


def make(disk: Disk, directory: str, segment: int, file: str, salt: bytes) -> dict[str, Any]:
    """Write `file`, the snapshot of everything up to sealed segment `segment`, and verify it.

    Returns the report that the store takes. Raises `Corrupt` where what was read is damaged or
    what was written does not read back, `OutOfSpace` (the file is then gone again), `OSError`.
    """
    manifest = read_manifest(disk, directory)
    if manifest is None:
        raise Corrupt(f"{directory} holds no store", file=directory, offset=0)
    state = state_through(disk, directory, manifest, segment)
    path = f"{directory}/{file}"
    try:
        written = write_snapshot(disk, path, state, segment=segment, salt=salt)
    except OSError as error:
        if error.errno in NO_SPACE:
            raise OutOfSpace(f"no room for a snapshot: {error.strerror}", file=path) from error
        raise
    info = verify_snapshot(disk, path)
    if info.header != written:
        raise Corrupt(f"{path} does not read back as it was written", file=path, offset=0)
    return {
        "file": file, "revision": written.revision, "segment": segment, "size": info.size,
        "digest": info.digest.hex(), "rows": info.rows, "time": written.time,
    }


def attempt(
    disk: Disk, directory: str, segment: int, file: str, salt: bytes
) -> tuple[dict[str, Any], int]:
    """`make`, with every trouble as a report. Returns what goes to standard output, and the exit
    code."""
    try:
        return make(disk, directory, segment, file, salt), 0
    except Error as error:
        return {"error": error.code, "message": error.message,
                "details": error.details}, error.exit_code
    except OSError as error:
        return {"error": Error.code, "message": str(error), "details": {}}, Error.exit_code


def main(arguments: list[str]) -> int:
    """Run as the program that the module docstring tells of; returns the exit code."""
    directory, segment, epoch, parent, *hurry = arguments
    if not end_with(int(parent), signal.SIGKILL):
        return _ORPHANED
    os.nice(_NICE)
    if not hurry:  # whoever wakes up takes the processor at once, instead of after a time slice
        with suppress(OSError):  # a system that forbids it: nice is nice too
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    report, code = attempt(RealDisk(), directory, int(segment),
                           temporary_name(int(epoch), os.getpid()), os.urandom(16))
    print(json.dumps(report, default=str))
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
