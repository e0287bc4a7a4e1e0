"""The state of a store at a chosen place of its past, read from its files.

Rule 1: nothing here changes a directory or needs its lock: a running store may be using it.
Rule 2: only whole frames count: what a running store is writing just now is not there yet.
Rule 3: what is replayed is checked as recovery checks it; doubt is `Corrupt`, with file and offset.

A *base* is where a replay can begin: a snapshot, or the empty state before the very first segment.
A running store may replace its manifest and remove files at any moment. A reader that meets a
missing file therefore begins again with the new manifest: see `reading`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

from ckptmesh.clock import iso
from ckptmesh.disk import Disk
from ckptmesh.errors import Compacted, Corrupt, FutureRevision, InvalidDirectory, Unsupported
from ckptmesh.facts import EpochBegun, Expiry, Transaction
from ckptmesh.framing import NO_DIGEST, SegmentScan
from ckptmesh.leftovers import header_of
from ckptmesh.manifest import (
    Manifest,
    SealedSegment,
    SnapshotEntry,
    read_manifest,
    segment_file,
)
from ckptmesh.recovery import (
    Place,
    check_scan,
    newest_base,
    open_segment,
    place_after,
    place_of,
)
from ckptmesh.replay import frame_records, replay
from ckptmesh.retention import Base, bases
from ckptmesh.snapshots import load_snapshot, read_header, without_collections
from ckptmesh.state import State

_ATTEMPTS = 5  # readings of a directory that changes underneath: compactions are far rarer

T = TypeVar("T")


class Segment(NamedTuple):
    """A segment opened at its place in the log. `sealed`: what the manifest says of it, None for
    one that it does not name as sealed."""

    number: int
    epoch: int
    path: str
    sealed: SealedSegment | None
    scan: SegmentScan


def reading(disk: Disk, directory: str, work: Callable[[Manifest], T]) -> T:
    """What `work` makes of the manifest; again when a running store has changed files meanwhile.

    Raises `InvalidDirectory` where there is no store, and what `work` raises.
    """
    manifest = _manifest(disk, directory)
    for _ in range(_ATTEMPTS - 1):
        try:
            return work(manifest)
        except Corrupt as error:
            before, manifest = manifest, _manifest(disk, directory)
            # A frame that is being written while it is read can look damaged, too.
            written = before.active is not None and (
                error.details.get("file") == f"{directory}/{before.active.file}")
            if before.sequence == manifest.sequence and not written:
                raise
    return work(manifest)


def _manifest(disk: Disk, directory: str) -> Manifest:
    manifest = read_manifest(disk, directory)
    if manifest is None:
        raise InvalidDirectory(f"{directory} holds no store",
                               hint="name the directory that holds a MANIFEST")
    return manifest


# --- states -----------------------------------------------------------------------------------


def state_through(disk: Disk, directory: str, manifest: Manifest, number: int) -> State:
    """The state after sealed segment `number` (0: before the first).

    Raises `Corrupt`, `Unsupported`.
    """
    with without_collections():
        state, covered, _ = newest_base(
            disk, directory, manifest, lambda entry: entry.segment <= number)
        for segment in segments(disk, directory, manifest, covered):
            if segment.number > number:
                break
            replay(segment.scan, segment.path, state, None)
            check_scan(segment.scan, segment.path, state.revision, segment.sealed)
            if segment.scan.footer is None:
                break
            covered = segment.number
    if covered != number:
        raise Corrupt(f"segment {number} of {directory} is not sealed, or is not there",
                      file=directory, offset=0)
    return state


def state_at(
    disk: Disk, directory: str, manifest: Manifest, revision: int | None,
    progress: Callable[[int, int], None] | None = None,
) -> State:
    """The state after a revision, and after nothing that came later; None: the head. `progress` is
    told the number of the segment that was replayed, and that of the last one.

    Raises `Compacted` naming the oldest cut that is left, `FutureRevision` beyond the last whole
    frame, `Corrupt`, `Unsupported`.
    """
    with without_collections():
        state, covered, _ = newest_base(
            disk, directory, manifest,
            lambda entry: revision is None or entry.revision <= revision)
        exact = 0 < state.revision == revision  # a savepoint needs nothing but its snapshot
        if not exact and not _connected(manifest, state, covered):
            raise _compacted(directory, manifest, f"revision {revision}")
        for segment in segments(disk, directory, manifest, covered):
            if state.revision == revision:
                break
            if replay(segment.scan, segment.path, state, revision):
                check_scan(segment.scan, segment.path, state.revision, segment.sealed)
            if progress is not None:
                progress(segment.number, max(segment.number, _last_number(manifest)))
    if revision is not None and state.revision < revision:
        raise FutureRevision(
            f"revision {revision:,} is beyond the head of {directory}, which is at "
            f"{state.revision:,}", revision=state.revision,
        )
    return state


def revision_at(disk: Disk, directory: str, manifest: Manifest, time: int) -> int:
    """The last revision that is not later than `time` (microseconds); the head if none is.

    Raises `Compacted` naming the oldest cut that is left, `Corrupt`, `Unsupported`.
    """
    places = bases(manifest)
    begin: Base | None = None
    for base in places:
        if base.snapshot is None or _header_time(disk, directory, base.snapshot) <= time:
            begin = base
    if begin is None and places and _stands_since(disk, directory, places[0]) <= time:
        begin = places[0]
    if begin is None:
        raise _compacted(directory, manifest, f"the state at {iso(time)}")
    found, covered = begin.revision, begin.segment
    for segment in segments(disk, directory, manifest, covered):
        for frame in segment.scan:
            try:
                records = frame_records(frame)
            except ValueError as error:
                raise Corrupt(
                    f"{segment.path}: the frame at byte {frame.offset:,} is whole but cannot be "
                    f"read: {error}", file=segment.path, offset=frame.offset) from error
            for record in records:
                if isinstance(record, Transaction | Expiry):
                    if record.time > time:
                        return found
                    found += 1
        check_scan(segment.scan, segment.path, found, segment.sealed)
    return found


def _header_time(disk: Disk, directory: str, entry: SnapshotEntry) -> int:
    """The time of the newest record that a snapshot covers, which may be no revision's."""
    return read_header(disk, f"{directory}/{entry.file}").time


def _stands_since(disk: Disk, directory: str, base: Base) -> int:
    """The time of a base's revision. Reads the whole snapshot."""
    assert base.snapshot is not None  # the empty state stands since ever
    with without_collections():
        state, _ = load_snapshot(disk, f"{directory}/{base.snapshot.file}")
    return state.time_of(state.revision)


def highest_epoch(disk: Disk, directory: str, manifest: Manifest) -> int:
    """The newest epoch that the log names, as far as it can be read: damage ends the reading."""
    highest = 0
    try:
        for segment in segments(disk, directory, manifest, _last_number(manifest) - 1):
            highest = max(highest, segment.epoch)
            for frame in segment.scan:
                for record in frame_records(frame):
                    if isinstance(record, EpochBegun):
                        highest = max(highest, record.epoch)
    except (Corrupt, Unsupported, ValueError):
        pass
    return highest


def _last_number(manifest: Manifest) -> int:
    if manifest.active is not None:
        return manifest.active.number
    return manifest.sealed[-1].number if manifest.sealed else 0


def _connected(manifest: Manifest, state: State, covered: int) -> bool:
    return any((base.revision, base.segment) == (state.revision, covered)
               for base in bases(manifest))


def _compacted(directory: str, manifest: Manifest, what: str) -> Compacted:
    left = bases(manifest)
    floor = left[0].revision if left else 0
    since = f" (of {iso(left[0].time)})" if left and left[0].time else ""
    return Compacted(
        f"{what} is no longer on the disk: the oldest cut of {directory} is revision "
        f"{floor:,}{since}", hint=f"choose revision {floor} or a later one, or a savepoint",
        floor=floor, snapshots=[entry.revision for entry in manifest.snapshots],
    )


# --- segments ---------------------------------------------------------------------------------


def segments(
    disk: Disk, directory: str, manifest: Manifest, covered: int
) -> Iterator[Segment]:
    """All segments after number `covered`, in order, each opened at its place: the sealed ones,
    then those that the manifest does not name as sealed. The scan of one must be exhausted before
    the next is asked for. Raises `Corrupt`, `Unsupported`."""
    place = Place(manifest.uuid, 1, 1, NO_DIGEST)
    if not manifest.sealed and manifest.snapshots:
        place = place._replace(first_revision=manifest.snapshots[-1].revision + 1)
    for sealed in manifest.sealed:
        if sealed.number > covered:
            path = f"{directory}/{sealed.file}"
            data, header = open_segment(disk, path, place_of(manifest.uuid, sealed))
            scan = SegmentScan(data, header, sealed=True)
            yield Segment(sealed.number, header.epoch, path, sealed, scan)
        place = place_after(manifest.uuid, sealed)
    while True:
        path = f"{directory}/{segment_file(place.number, place.first_revision)}"
        named = manifest.active is not None and manifest.active.number == place.number
        if not named:
            stands = header_of(disk, path)
            if disk.file_size(path) is None or (stands and stands.uuid != manifest.uuid):
                return
        data, header = open_segment(disk, path, place)
        scan = SegmentScan(data, header)
        yield Segment(place.number, header.epoch, path, None, scan)
        if scan.footer is None:
            return
        place = Place(manifest.uuid, place.number + 1, scan.footer.first_revision, scan.digest)
