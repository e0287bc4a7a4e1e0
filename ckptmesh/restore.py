"""A new store from an older state of another one; snapshots listed and made.

Rule 1: the old directory is only read; a running store may go on using it.
Rule 2: the new store is another store: it has a new UUID and a higher epoch than the old one ever
        had, so that no client, token or lease of the old one means anything in it. Its sessions and
        leases end with it being made, by records as any store would write them.
Rule 3: the new directory is nothing until its manifest is there, which comes last.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import NamedTuple

from ckptmesh.clock import iso, wall_micros
from ckptmesh.cuts import highest_epoch, reading, revision_at, state_at
from ckptmesh.disk import Disk, RealDisk
from ckptmesh.errors import FutureRevision, InvalidDirectory, Misuse, SavepointNotFound
from ckptmesh.facts import EpochBegun, Expiry, LossAccepted, SessionEnded
from ckptmesh.lock import LOCK, acquire
from ckptmesh.manifest import (
    LOG_DIRECTORY,
    SNAPSHOT_DIRECTORY,
    Manifest,
    SnapshotEntry,
    snapshot_file,
    write_manifest,
)
from ckptmesh.messages import Savepoint
from ckptmesh.snapshots import read_header, verify_snapshot, write_snapshot
from ckptmesh.state import State
from ckptmesh.wal import Lock

Progress = Callable[[int, int], None]
"""Called with (the segment just read, the last one)."""


class NewStore(NamedTuple):
    """A store that was made in a new directory. `revision` is its head: the cut, and one more for
    each lease that ended. `expiring_at_once`: keys whose TTL was over when it was made."""

    directory: str
    uuid: bytes
    epoch: int
    revision: int
    keys: int
    sessions_ended: int
    leases_ended: int
    expiring_at_once: int


class RestoreReport(NamedTuple):
    """What `restore` did: the cut that was asked for, by revision and time (microseconds)."""

    source: str
    revision: int
    time: int
    store: NewStore

    def sentences(self) -> list[str]:
        """For people."""
        new = self.store
        found = [
            f"restored revision {self.revision:,} of {self.source} ({iso(self.time)}) "
            f"into {new.directory}: {new.keys:,} keys",
            f"it is another store now: UUID {new.uuid.hex()}, epoch {new.epoch}; "
            f"{new.sessions_ended:,} sessions and {new.leases_ended:,} leases were ended",
        ]
        if new.expiring_at_once:
            found.append(f"{new.expiring_at_once:,} keys have a TTL that is over by now: they "
                         "expire when the store is served")
        return found


class SnapshotFacts(NamedTuple):
    """A snapshot in a store's directory. `time`: of its newest record, microseconds; `savepoints`:
    the names under which it is kept."""

    file: str
    revision: int
    epoch: int
    time: int
    size: int
    savepoints: tuple[str, ...]


def restore(
    directory: str, new_directory: str, *, revision: int | None = None, time: int | None = None,
    savepoint: str | None = None, progress: Progress | None = None, disk: Disk | None = None,
    clock: Callable[[], int] = wall_micros, random: Callable[[int], bytes] = os.urandom,
    lock: Callable[[str, float], Lock] = acquire,
) -> RestoreReport:
    """Make `new_directory` a store that holds what `directory` held after `revision`, or at `time`
    (microseconds), or at a savepoint of this name, or (none of them) holds now.

    Raises `InvalidDirectory` (no store there; the new directory is not empty), `DirectoryInUse`,
    `Compacted` naming the oldest cut that is left, `FutureRevision`, `Corrupt`, `Unsupported`,
    `SavepointNotFound`, `Misuse` for more than one of them, `OSError` where the new files cannot
    be written.
    """
    if sum(each is not None for each in (revision, time, savepoint)) > 1:
        raise Misuse("a cut is named by a revision, a time or a savepoint, by one of them")
    disk = RealDisk() if disk is None else disk
    now = clock()
    if time is not None and time > now:
        raise FutureRevision(f"{iso(time)} is in the future", time=time)
    check_empty(disk, new_directory)

    def read(manifest: Manifest) -> tuple[State, int]:
        at = revision
        if time is not None:
            at = revision_at(disk, directory, manifest, time)
        if savepoint is not None:
            at = _pinned(directory, manifest, savepoint)
        state = state_at(disk, directory, manifest, at, progress)
        return state, max(state.epoch, highest_epoch(disk, directory, manifest)) + 1

    state, epoch = reading(disk, directory, read)
    at, when = state.revision, state.time_of(state.revision)
    store = found_store(disk, new_directory, state, epoch, now, random, lock)
    return RestoreReport(directory, at, when, store)


def _pinned(directory: str, manifest: Manifest, name: str) -> int:
    for each in manifest.savepoints:
        if each.name == name:
            return each.revision
    raise SavepointNotFound(f"{directory} has no savepoint {name!r}", name=name)


def check_empty(disk: Disk, directory: str) -> None:
    """Refuse a directory for a new store that holds anything. Raises `InvalidDirectory`."""
    try:
        names = [name for name in disk.listdir(directory) if name not in (LOCK, "lost+found")]
    except FileNotFoundError:
        return
    except NotADirectoryError:
        raise InvalidDirectory(f"{directory} is a file", hint="name a new directory") from None
    if names:
        raise InvalidDirectory(f"{directory} is not empty: it holds {names[0]}",
                               hint="name a new directory")


def found_store(
    disk: Disk, directory: str, state: State, epoch: int, now: int,
    random: Callable[[int], bytes], lock: Callable[[str, float], Lock], *, lossy: str = "",
) -> NewStore:
    """Write a new store that begins with this state, which is changed: a new UUID, a new epoch, no
    sessions, no leases. `lossy`: see `Manifest`.

    Raises `InvalidDirectory`, `DirectoryInUse`, `OSError`.
    """
    ended = end_all(state, epoch, now)
    state.uuid = random(16)
    held = lock(directory, 0.0)
    try:
        check_empty(disk, directory)
        for folder in (LOG_DIRECTORY, SNAPSHOT_DIRECTORY):
            disk.mkdir(f"{directory}/{folder}")
        file = snapshot_file(state.revision, 0)
        path = f"{directory}/{file}"
        write_snapshot(disk, path, state, segment=0, salt=random(16))
        info = verify_snapshot(disk, path)
        disk.sync_directory(f"{directory}/{SNAPSHOT_DIRECTORY}")
        disk.sync_directory(directory)
        disk.sync_directory(os.path.dirname(os.path.abspath(directory)))
        entry = SnapshotEntry(file, state.revision, 0, info.size, info.digest, state.time)
        write_manifest(disk, directory, Manifest(
            state.uuid, sequence=1, snapshots=(entry,), lossy=lossy))
    finally:
        held.release()
    expired = sum(1 for version in state.entries.values()
                  if version.expires_at is not None and version.expires_at <= now)
    return NewStore(directory, state.uuid, epoch, state.revision, len(state.entries), *ended,
                    expired)


def end_all(state: State, epoch: int, now: int) -> tuple[int, int]:
    """Begin a new epoch and end every session and lease. Returns how many of each there were."""
    time = max(state.time, now)
    state.apply(EpochBegun(epoch, time))
    sessions, leases = list(state.sessions), sorted(state.leases)
    for session in sessions:
        state.apply(SessionEnded(session, time))
    for key in leases:
        state.apply(Expiry(time, key))
    if state.loss is not None:  # suspected of the old store; nobody has seen anything of this one
        state.apply(LossAccepted())
    return len(sessions), len(leases)


def list_snapshots(directory: str) -> list[SnapshotFacts]:
    """The snapshots of a store, oldest first. Raises `InvalidDirectory`, `Corrupt`,
    `Unsupported`."""
    disk = RealDisk()

    def read(manifest: Manifest) -> list[SnapshotFacts]:
        found = []
        for entry in manifest.snapshots:
            header = read_header(disk, f"{directory}/{entry.file}")
            names = tuple(each.name for each in manifest.savepoints
                          if each.revision == entry.revision)
            found.append(SnapshotFacts(entry.file, entry.revision, header.epoch, header.time,
                                       entry.size, names))
        return found

    return reading(disk, directory, read)


def list_savepoints(directory: str) -> list[Savepoint]:
    """The savepoints of a store, in the order of their revisions. Raises as `list_snapshots`."""
    return reading(RealDisk(), directory,
                   lambda manifest: sorted(manifest.savepoints, key=_revision_of))


def _revision_of(savepoint: Savepoint) -> int:
    return savepoint.revision
