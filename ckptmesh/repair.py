"""What to do about a directory that a store refuses, or that no store serves: `ckptmesh wal …`.

Rule 1: a damaged directory is never changed. `repair` makes a new store of what can be trusted in
        it, and says what is lost.
Rule 2: what can be trusted is one whole snapshot and every whole frame that follows it without a
        gap. A frame beyond the damage is not taken: what it was decided on is gone.
Rule 3: a store that has lost something says so for ever, in its manifest (`lossy`).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import NamedTuple

from ckptmesh.clock import iso, wall_micros
from ckptmesh.disk import Disk, RealDisk
from ckptmesh.errors import Corrupt
from ckptmesh.facts import EpochBegun, LossAccepted
from ckptmesh.framing import Verdict
from ckptmesh.limits import KIB
from ckptmesh.lock import acquire
from ckptmesh.manifest import (
    LOG_DIRECTORY,
    SNAPSHOT_DIRECTORY,
    read_manifest,
    segment_file,
)
from ckptmesh.recovery import refuse
from ckptmesh.replay import frame_records, replay
from ckptmesh.restore import NewStore, check_empty, found_store
from ckptmesh.snapshots import load_snapshot, read_header, without_collections
from ckptmesh.state import State
from ckptmesh.survey import VerifyReport, file_names, number_of, open_anywhere, verify
from ckptmesh.wal import EMBEDDED, Lock, Wal

_UNSEEN_EPOCHS = 1_000  # a lost part may have begun epochs; nobody begins that many unseen


class RepairReport(NamedTuple):
    """What `repair` did. `revision` is the last one that could be kept. `first_lost` is 0 when
    nothing is lost, `last_lost` is None when nothing tells how far the log went; `reason` says
    where the reading had to end."""

    source: str
    revision: int
    first_lost: int
    last_lost: int | None
    reason: str
    store: NewStore
    before: VerifyReport
    after: VerifyReport

    @property
    def lost(self) -> str:
        """What is lost, for people; "" for nothing."""
        if not self.first_lost:
            return ""
        return _lost(self.first_lost, self.last_lost)


class _Salvage(NamedTuple):
    """What can be trusted. `reason` says why reading ended before the log did, "" if it did not."""

    state: State
    reason: str


def repair(
    directory: str, new_directory: str, *, disk: Disk | None = None,
    clock: Callable[[], int] = wall_micros, random: Callable[[int], bytes] = os.urandom,
    lock: Callable[[str, float], Lock] = acquire,
) -> RepairReport:
    """Make a new store of everything in a damaged directory that can be trusted.

    Raises `InvalidDirectory` (no store there; the new directory is not empty), `DirectoryInUse`,
    `Corrupt` where nothing at all can be trusted, `Unsupported` (use the release that wrote it),
    `OSError` where the new files cannot be written.
    """
    disk = RealDisk() if disk is None else disk
    check_empty(disk, new_directory)
    before = verify(directory, disk)
    with without_collections():
        state, reason = _salvage(disk, directory)
    head = max((each.last_lost or each.last_revision for each in before.files), default=0)
    lost = bool(reason) or head > state.revision
    first_lost = state.revision + 1 if lost else 0
    last_lost = head if head > state.revision else None
    revision, now = state.revision, clock()
    epoch = max(state.epoch, _highest_epoch(disk, directory)) + (_UNSEEN_EPOCHS if lost else 1)
    text = f"{_lost(first_lost, last_lost)} in a repair of {directory}, {iso(now)}" if lost else ""
    store = found_store(disk, new_directory, state, epoch, now, random, lock, lossy=text)
    return RepairReport(directory, revision, first_lost, last_lost, reason, store, before,
                        verify(new_directory, disk))


def _lost(first: int, last: int | None) -> str:
    if last is None:
        return f"whatever followed revision {first - 1:,} was lost"
    if first == last:
        return f"revision {first:,} was lost"
    return f"revisions {first:,} to {last:,} were lost"


def _salvage(disk: Disk, directory: str) -> _Salvage:
    """The newest whole snapshot, and every whole frame that follows it without a gap."""
    names = file_names(disk, directory)
    uuid = _uuid(disk, directory, names)
    state, covered = _newest_snapshot(disk, directory, uuid, names[SNAPSHOT_DIRECTORY])
    segments = {f"{LOG_DIRECTORY}/{name}" for name in names[LOG_DIRECTORY]}
    if covered is None and segment_file(1, 1) not in segments:
        raise Corrupt(f"{directory} has no whole snapshot, and its log does not begin with "
                      "revision 1: nothing in it can be trusted", file=directory, offset=0,
                      hint="use a backup, or a store that was restored from this one earlier")
    number, previous = (covered or 0) + 1, b""
    while (file := segment_file(number, state.revision + 1)) in segments:
        path = f"{directory}/{file}"
        try:
            header, scan = open_anywhere(disk, directory, file, sealed=False)
            if header.uuid != uuid or (previous and header.previous != previous):
                return _Salvage(state, f"{path} does not continue the segment before it")
            replay(scan, path, state, None)
        except Corrupt as error:
            return _Salvage(state, f"{path}: {error.message}")
        if scan.verdict is Verdict.UNSUPPORTED:
            refuse(scan, path, state.revision + 1, None)
        if scan.verdict is Verdict.CORRUPT:
            return _Salvage(state, f"{path} at byte {scan.offset:,}: {scan.reason}")
        if scan.footer is None:  # the last one, torn or not, unless others follow
            later = any(number_of(name) > number for name in names[LOG_DIRECTORY])
            return _Salvage(state, f"{path} ends early at byte {scan.offset:,}" if later else "")
        number, previous = number + 1, scan.digest
    if any(number_of(name) >= number for name in names[LOG_DIRECTORY]):
        return _Salvage(state, f"{directory}/{file} is missing")
    return _Salvage(state, "")


def _newest_snapshot(
    disk: Disk, directory: str, uuid: bytes, names: list[str]
) -> tuple[State, int | None]:
    """The state in the newest whole snapshot of this store and the last segment that it covers;
    the empty state and None where there is no such snapshot."""
    for name in reversed(names):  # names ascend by revision
        try:
            state, info = load_snapshot(disk, f"{directory}/{SNAPSHOT_DIRECTORY}/{name}")
        except Corrupt:
            continue
        if info.header.uuid == uuid:
            return state, info.header.segment
    return State(uuid), None


def _uuid(disk: Disk, directory: str, names: dict[str, list[str]]) -> bytes:
    """The store's UUID: by its manifest, else by the first file that still says so."""
    try:
        manifest = read_manifest(disk, directory)
    except (Corrupt, OSError):
        manifest = None
    if manifest is not None:
        return manifest.uuid
    for name in names[LOG_DIRECTORY]:
        try:
            return open_anywhere(disk, directory, f"{LOG_DIRECTORY}/{name}", sealed=False)[0].uuid
        except Corrupt:
            continue
    for name in names[SNAPSHOT_DIRECTORY]:
        try:
            return read_header(disk, f"{directory}/{SNAPSHOT_DIRECTORY}/{name}").uuid
        except Corrupt:
            continue
    return b""


def _highest_epoch(disk: Disk, directory: str) -> int:
    """The newest epoch that any readable frame or header names."""
    highest = 0
    for name in file_names(disk, directory)[LOG_DIRECTORY]:
        try:
            header, scan = open_anywhere(disk, directory, f"{LOG_DIRECTORY}/{name}", sealed=False)
            highest = max(highest, header.epoch)
            for frame in scan:
                for record in frame_records(frame):
                    if isinstance(record, EpochBegun):
                        highest = max(highest, record.epoch)
        except (Corrupt, ValueError):
            continue
    return highest


def accept_loss(directory: str) -> bool:
    """End the read-only state of a store that nobody serves just now: a client had seen revisions
    that it does not hold, and an operator accepts that. A new epoch begins, so that no token of
    what was lost is ever valid again.

    Returns False when no loss was suspected. Raises as `Wal.open` does, `OutOfSpace`, `Poisoned`.
    """
    wal = Wal.open(directory, EMBEDDED)
    try:
        state = wal.state
        if state.loss is None:
            return False
        wal.begin()
        wal.ensure_room(KIB, urgent=True)
        wal.append([LossAccepted(), EpochBegun(state.epoch + 1, max(state.time, wall_micros()))],
                   state.revision + 1)
        wal.sync()
        return True
    finally:
        wal.close()
