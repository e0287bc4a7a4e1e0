"""The place that is tried: what the system says of it, and how long its syncs take.

Rule 1: nothing is touched but one new folder, which is made here.
Rule 2: what only looks suspicious is a warning; a failure is what was seen to go wrong.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from ckptmesh.disk import NO_SPACE, Disk, RealDisk, read_file, write_file
from ckptmesh.errors import InvalidDirectory, OutOfSpace
from ckptmesh.limits import MIB, SECTOR
from ckptmesh.lock import FORGETFUL, NETWORK, mount_of

PREFIX = "ckptmesh-certify-"
ROOM = 32 * MIB  # several times what is ever there at once
SYNC_TOO_FAST = 0.000_015  # seconds: no disk, and no flash with a cache that survives, is so fast
_NO_BARRIERS = frozenset(("nobarrier", "barrier=0", "barrier=none"))
_SYNC_FILE = MIB  # bytes of the preallocated file that is synced
_MOST_SYNCS = 2_000
_RENAMES = 50
_DOUBTFUL = "so that syncs prove nothing here"


@dataclass
class Place:
    """A place by what the system says of it. `write_cache`: of its device, "" where it cannot be
    told; `free`: bytes."""

    directory: str
    kind: str
    device: str
    write_cache: str
    free: int
    warnings: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Syncs:
    """How long a write of one sector with its sync took, in seconds."""

    count: int
    median: float
    p99: float
    worst: float

    def as_dict(self) -> dict[str, float]:
        """For programs, in ms."""
        return {"count": self.count, "p50_ms": round(self.median * 1e3, 3),
                "p99_ms": round(self.p99 * 1e3, 3), "max_ms": round(self.worst * 1e3, 3)}


def new_folder(directory: str) -> Path:
    """A new folder in a directory, for this user alone.

    Raises `InvalidDirectory` where it cannot hold a store, `OutOfSpace` where there is no room.
    """
    if not os.path.isdir(directory):
        there = os.path.lexists(directory)
        raise InvalidDirectory(
            f"{directory} is not a directory" if there else f"{directory} does not exist",
            hint="name a directory on the disk to be tried" if there
            else f"make it first: mkdir -p {directory}")
    kind = mount_of(directory).kind
    if kind in NETWORK:
        raise InvalidDirectory(
            f"{directory} is on a network file system ({kind}), whose locks and syncs cannot be "
            "relied on: a store refuses it", hint="name a directory on a local disk")
    try:
        free = RealDisk().free_bytes(directory)
        if free < ROOM:
            raise OutOfSpace(
                f"{directory} has {free // MIB} MiB free; {ROOM // MIB} MiB are needed for a while",
                hint="make room, or name a directory on another disk")
        return Path(tempfile.mkdtemp(prefix=PREFIX, dir=os.path.abspath(directory)))
    except OSError as error:
        if error.errno in NO_SPACE:
            raise OutOfSpace(f"{directory}: no folder can be made, the disk is full",
                             hint="make room, or name a directory on another disk") from error
        raise InvalidDirectory(
            f"no folder can be made in {directory}: {error.strerror}",
            hint=f"name a directory that can be written; whose this is: ls -ld {directory}"
        ) from error


def look(directory: str, folder: Path, disk: Disk) -> Place:
    """What the system says of a place, and whether its locks and renames do what they must."""
    mount = mount_of(str(folder))
    device, cache = _device(folder)
    place = Place(directory, mount.kind, device, cache, shutil.disk_usage(folder).free)
    if mount.kind in FORGETFUL:
        place.warnings.append(f"{mount.kind} is {FORGETFUL[mount.kind]}")
    if mount.options & _NO_BARRIERS:
        place.warnings.append("the file system is mounted without barriers: a sync does not empty "
                              f"the disk's own cache, {_DOUBTFUL}")
    checks = {"flock": partial(_lock, folder / "flock"), "rename": partial(_rename, disk, folder)}
    for what, check in checks.items():
        try:
            wrong = check()
        except OSError as error:
            if error.errno in NO_SPACE:
                raise
            wrong = f"it failed: {error.strerror or error}"
        if wrong:
            place.failures.append(f"{what}: {wrong}")
    return place


def _device(folder: Path) -> tuple[str, str]:
    """Name and kind of write cache of the device below, "" for each that cannot be told."""
    number = folder.stat().st_dev
    link = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")
    try:
        device = link.resolve(strict=True)
    except OSError:
        return "", ""
    for each in (device, device.parent):  # a partition has its queue above it
        try:
            return each.name, (each / "queue" / "write_cache").read_text().strip()
        except OSError:
            continue
    return device.name, ""


def _lock(path: Path) -> str:
    """What is wrong with locks, "" for nothing."""
    with path.open("wb") as held, path.open("wb") as other:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno != errno.EWOULDBLOCK:
                raise
            return ""
    return "two can hold the same lock, so that two stores could use one directory"


def _rename(disk: Disk, folder: Path) -> str:
    """What is wrong with renames over a file that is being read, "" for nothing."""
    name, temporary = str(folder / "renamed"), str(folder / "renamed.tmp")
    write_file(disk, name, [_page(0)])
    disk.sync_directory(str(folder))
    seen: list[str] = []
    stop = threading.Event()

    def watch() -> None:
        while not stop.is_set() and not seen:
            try:
                data = read_file(RealDisk(), name)
            except OSError as error:
                seen.append(f"the name was gone for a moment: {error.strerror}")
                return
            if data not in pages:
                seen.append("a file was there that nobody had written")

    pages = {_page(number) for number in range(_RENAMES + 1)}
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        for number in range(1, _RENAMES + 1):
            write_file(disk, temporary, [_page(number)])
            disk.rename(temporary, name)
            disk.sync_directory(str(folder))
            found = read_file(RealDisk(), name)
            if found == _page(number - 1):
                return "the old file was still there when it had returned"
            if found != _page(number):
                return "another file was there when it had returned"
    finally:
        stop.set()
        watcher.join()
    return seen[0] if seen else ""


def _page(number: int) -> bytes:
    return bytes([number]) * (8 * SECTOR)


# --- syncs ------------------------------------------------------------------------------------


def measure(place: Place, folder: Path, disk: Disk, seconds: float,
            progress: Callable[[float], None]) -> Syncs:
    """Write single sectors to a preallocated file and sync each, for about so many seconds; adds to
    the warnings of the place. `progress`: the part that is done. Raises `OSError`."""
    handle = disk.open(str(folder / "synced"), "create")
    try:
        disk.zero_fill(handle, _SYNC_FILE)
        disk.fdatasync(handle)
        took: list[float] = []
        began = time.perf_counter()
        while not took or (len(took) < _MOST_SYNCS and time.perf_counter() - began < seconds):
            sector = os.urandom(SECTOR)
            start = time.perf_counter()
            disk.pwrite(handle, sector, len(took) * SECTOR % _SYNC_FILE)
            disk.fdatasync(handle)
            took.append(time.perf_counter() - start)
            progress(max(len(took) / _MOST_SYNCS, (time.perf_counter() - began) / seconds))
    finally:
        disk.close(handle)
    took.sort()
    found = Syncs(len(took), took[len(took) // 2], took[int(0.99 * (len(took) - 1))], took[-1])
    if found.median < SYNC_TOO_FAST and place.kind not in FORGETFUL:
        place.warnings.append(
            f"a sync takes {found.median * 1e6:.0f} µs, which no disk can do: make sure that "
            f"something below does not lie about fsync, {_DOUBTFUL}")
    return found
