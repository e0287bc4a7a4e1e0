"""From the files of a directory to the state that they hold, or to a refusal that names the place.

Rule 1: `recover` changes nothing on disk, so that `verify`, dumps and restores use it as it is;
        `settle` then does to the disk what a starting store has to.
Rule 2: whatever a crash can leave is mended (a torn tail, temporary files); everything else is
        `Corrupt` or `Unsupported`, with file and offset, never a silent repair.
Rule 3: no file that ckptmesh did not make, or cannot place, is deleted: it goes to `quarantine/`.

The verdicts are told in `wal.py`. The order here: the manifest, the newest snapshot that is whole,
then every later segment: those that the manifest seals, then the one being written when the store
ended (or those, where a crash came between a rotation and its manifest).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, NoReturn

from ckptmesh.disk import Disk, read_file
from ckptmesh.errors import Corrupt, Unsupported
from ckptmesh.framing import (
    NO_DIGEST,
    Frame,
    SegmentHeader,
    SegmentScan,
    Verdict,
    decode_header,
    footer_time,
)
from ckptmesh.leftovers import cut_tail, header_of, put_away, sort_unknown
from ckptmesh.lock import QUARANTINE_DIRECTORY
from ckptmesh.manifest import (
    LOG_DIRECTORY,
    MANIFEST,
    SNAPSHOT_DIRECTORY,
    ActiveSegment,
    Manifest,
    SealedSegment,
    SnapshotEntry,
    read_manifest,
    segment_file,
)
from ckptmesh.replay import replay
from ckptmesh.snapshots import load_snapshot, without_collections
from ckptmesh.spare import SPARE
from ckptmesh.state import State

CLEAN, TORN = "CLEAN", "TORN"


class Place(NamedTuple):
    """Where in the log a segment must stand: what its header has to say."""

    uuid: bytes
    number: int
    first_revision: int
    previous: bytes


class Tail(NamedTuple):
    """The segment that was being written. Whole frames end at `offset`; `torn` bytes after it are
    bad; `footer` is there when only the manifest's update was missing."""

    file: str
    header: SegmentHeader
    offset: int
    frames: int
    footer: Frame | None
    torn: int
    reason: str


class Recovered(NamedTuple):
    """What `recover` found. `state` holds everything up to the last whole frame.

    `manifest` is None in a directory without a store. `sealed` are segments with a footer and a
    successor that the manifest does not know yet. Files are named relative to the directory:
    `removable` ones can go, `strays` go to quarantine. `notes` are sentences for people.
    """

    state: State
    manifest: Manifest | None
    verdict: str
    sealed: tuple[SealedSegment, ...] = ()
    tail: Tail | None = None
    removable: tuple[str, ...] = ()
    strays: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def next_place(
    state: State, manifest: Manifest, unmanifested: Sequence[SealedSegment] = ()
) -> Place:
    """Where the segment after all sealed ones stands, those included that the manifest does not
    know yet."""
    chain = (*manifest.sealed, *unmanifested)
    if not chain:
        return Place(manifest.uuid, 1, state.revision + 1, NO_DIGEST)
    return place_after(manifest.uuid, chain[-1])


def place_of(uuid: bytes, sealed: SealedSegment) -> Place:
    """Where a sealed segment stands."""
    return Place(uuid, sealed.number, sealed.first_revision, sealed.start)


def place_after(uuid: bytes, sealed: SealedSegment) -> Place:
    """Where the segment after a sealed one stands."""
    return Place(uuid, sealed.number + 1, sealed.last_revision + 1, sealed.end)


# --- reading ----------------------------------------------------------------------------------


def recover(disk: Disk, directory: str, *, fresh_uuid: bytes = b"") -> Recovered:
    """The state that a directory holds; nothing is changed on disk.

    `fresh_uuid`: the UUID of the state returned where there is no store yet.
    Raises `Corrupt` and `Unsupported` naming file and offset, `OSError` where the directory or the
    rights to it fail.
    """
    manifest = read_manifest(disk, directory)
    listing = {folder: _names(disk, f"{directory}/{folder}")
               for folder in (LOG_DIRECTORY, SNAPSHOT_DIRECTORY)}
    if manifest is None:
        return _without_manifest(directory, listing, fresh_uuid)
    _check_present(disk, directory, manifest)
    with without_collections():
        state, covered, notes = newest_base(disk, directory, manifest, lambda entry: True)
        _replay_sealed(disk, directory, manifest, state, covered)
        sealed, tail = _replay_unsealed(
            disk, directory, manifest, state, listing[LOG_DIRECTORY]
        )
    if tail is not None and tail.torn:
        notes.append(f"{tail.file}: the last write was torn at byte {tail.offset:,} "
                     f"({tail.reason}); {tail.torn:,} bytes that nobody was answered are cut off")
    last = tail.header.number if tail else next_place(state, manifest).number - 1
    known = frozenset((
        *manifest.files(), *(segment.file for segment in sealed), *((tail.file,) if tail else ()),
        SPARE,
    ))
    removable, strays = sort_unknown(disk, directory, manifest, listing, known, last)
    notes += [f"{name} is not part of the store; it is moved to {QUARANTINE_DIRECTORY}/"
              for name in strays]
    verdict = TORN if tail is not None and tail.torn else CLEAN
    return Recovered(state, manifest, verdict, tuple(sealed), tail, removable, strays,
                     tuple(notes))


def _without_manifest(
    directory: str, listing: dict[str, list[str]], fresh_uuid: bytes
) -> Recovered:
    for folder, names in listing.items():
        for name in names:
            if name.endswith((".seg", ".snap")):
                path = f"{directory}/{MANIFEST}"
                raise Corrupt(f"{path} is missing, but {folder}/{name} is there",
                              file=path, offset=0)
    return Recovered(State(fresh_uuid), None, CLEAN)


def _check_present(disk: Disk, directory: str, manifest: Manifest) -> None:
    sizes = {segment.file: segment.size for segment in manifest.sealed}
    for name in sorted(manifest.files()):
        path = f"{directory}/{name}"
        found = disk.file_size(path)
        if found is None:
            raise Corrupt(f"{path} is missing; the manifest needs it", file=path, offset=0)
        if name in sizes and found != sizes[name]:
            raise Corrupt(f"{path} has {found:,} bytes; sealed it had {sizes[name]:,}",
                          file=path, offset=min(found, sizes[name]))


def newest_base(
    disk: Disk, directory: str, manifest: Manifest, usable: Callable[[SnapshotEntry], bool]
) -> tuple[State, int, list[str]]:
    """The state to begin a replay with, the last segment that it covers, notes: the newest usable
    snapshot that is whole, else the empty state.

    Raises `Corrupt` where a snapshot is damaged and the log does not reach back beyond it.
    """
    notes: list[str] = []
    failure: Corrupt | None = None
    state, covered = State(manifest.uuid), 0
    for entry in filter(usable, reversed(manifest.snapshots)):
        try:
            state, covered = _load_base(disk, directory, manifest, entry), entry.segment
            break
        except Corrupt as error:
            failure = failure or error
            notes.append(f"{error.message}; falling back to what came before it")
    if failure is not None and not _reaches(manifest, state.revision, covered):
        raise failure
    return state, covered, notes


def _load_base(disk: Disk, directory: str, manifest: Manifest, entry: SnapshotEntry) -> State:
    """The state in a snapshot, which must be the very one that the manifest names.

    Raises `Corrupt`, `Unsupported`.
    """
    path = f"{directory}/{entry.file}"
    state, info = load_snapshot(disk, path)
    header = info.header
    if (header.uuid, header.revision, header.segment, info.digest) != (
        manifest.uuid, entry.revision, entry.segment, entry.digest
    ):
        raise Corrupt(f"{path} is not the snapshot that the manifest names", file=path, offset=0)
    return state


def _reaches(manifest: Manifest, revision: int, covered: int) -> bool:
    """Whether the log is there from an older base on: the state at `revision`, which `covered`
    segments have made."""
    if manifest.sealed and manifest.sealed[-1].number <= covered:
        return True
    chain: list[SealedSegment | ActiveSegment] = [*manifest.sealed]
    if manifest.active is not None:
        chain.append(manifest.active)
    return (covered + 1, revision + 1) in ((s.number, s.first_revision) for s in chain)


def _replay_sealed(
    disk: Disk, directory: str, manifest: Manifest, state: State, covered: int
) -> None:
    for segment in manifest.sealed:
        if segment.number <= covered:
            continue
        if segment.number != covered + 1:
            path = f"{directory}/{segment_file(covered + 1, state.revision + 1)}"
            raise Corrupt(f"segment {covered + 1} is missing: {path}", file=path, offset=0)
        path = f"{directory}/{segment.file}"
        data, header = open_segment(disk, path, place_of(manifest.uuid, segment))
        scan = SegmentScan(data, header, sealed=True)
        replay(scan, path, state, None)
        check_scan(scan, path, state.revision, segment)
        covered = segment.number


def _replay_unsealed(
    disk: Disk, directory: str, manifest: Manifest, state: State, names: list[str]
) -> tuple[list[SealedSegment], Tail | None]:
    """Replay what follows the manifest's sealed segments: any number of segments with a footer
    (returned, but for the last), then the one that was being written."""
    sealed: list[SealedSegment] = []
    tail: Tail | None = None
    place = next_place(state, manifest)
    if place.first_revision != state.revision + 1:
        last = f"{directory}/{manifest.sealed[-1].file}"
        raise Corrupt(f"{last} should end with revision {state.revision}", file=last, offset=0)
    while True:
        name = segment_file(place.number, place.first_revision)
        path = f"{directory}/{name}"
        named = tail is None and manifest.active is not None
        if not named and (
            name.rpartition("/")[2] not in names or not _may_be_ours(disk, path, manifest.uuid)
        ):
            return sealed, tail
        data, header = open_segment(disk, path, place)
        if tail is not None:
            sealed.append(sealed_by_footer(tail))
        scan = SegmentScan(data, header)
        replay(scan, path, state, None)
        check_scan(scan, path, state.revision, None)
        torn = len(data[scan.offset :].rstrip(b"\0")) if scan.verdict is Verdict.TORN else 0
        tail = Tail(name, header, scan.offset, scan.number, scan.footer, torn, scan.reason)
        if scan.footer is None:
            return sealed, tail
        place = next_place(state, manifest, (*sealed, sealed_by_footer(tail)))


def sealed_by_footer(tail: Tail) -> SealedSegment:
    """What the manifest would say of a segment that has a footer."""
    footer = tail.footer
    if footer is None:
        raise ValueError(f"{tail.file} has no footer")
    return SealedSegment(
        tail.header.number, tail.header.first_revision, footer.first_revision - 1, tail.offset,
        tail.header.previous, footer.digest, footer_time(footer),
    )


def open_segment(disk: Disk, path: str, place: Place) -> tuple[bytes, SegmentHeader]:
    """A segment's bytes and header, which must belong at this place of the log.

    Raises `Corrupt`, also where the disk cannot read it, `Unsupported`, `PermissionError`.
    """
    try:
        data = read_file(disk, path)
    except PermissionError:
        raise
    except OSError as error:
        raise Corrupt(f"{path} cannot be read: {error.strerror or error}",
                      file=path, offset=0) from error
    try:
        header = decode_header(data)
    except ValueError as error:
        raise Corrupt(f"{path} is damaged at its beginning: {error}",
                      file=path, offset=0) from error
    except Unsupported as error:
        raise Unsupported(f"{path}: {error.message}", hint=error.hint, file=path,
                          **error.details) from None
    if header.uuid != place.uuid:
        raise Corrupt(f"{path} belongs to another store ({header.uuid.hex()}, not "
                      f"{place.uuid.hex()})", file=path, offset=0)
    if (header.number, header.first_revision, header.previous) != place[1:]:
        raise Corrupt(
            f"{path} is segment {header.number} from revision {header.first_revision} on, or "
            f"follows another one; segment {place.number} from revision {place.first_revision} on "
            "belongs here", file=path, offset=0,
        )
    return data, header


def check_scan(
    scan: SegmentScan, path: str, revision: int, sealed: SealedSegment | None
) -> None:
    """Refuse what an exhausted scan, which led to `revision`, found to be damage. `sealed`: what
    the manifest says of the segment, None for one that it does not name as sealed; only that one
    may be torn. Raises `Corrupt`, `Unsupported`."""
    if scan.verdict is Verdict.OK:
        if sealed and (scan.digest, revision) != (sealed.end, sealed.last_revision):
            raise Corrupt(f"{path} is whole, but not the segment that the manifest seals",
                          file=path, offset=scan.offset)
    elif scan.verdict is not Verdict.TORN:
        refuse(scan, path, revision + 1, sealed.last_revision if sealed else None)


def refuse(scan: SegmentScan, path: str, first: int, last: int | None) -> NoReturn:
    """Raise what a scan's verdict means. `first` to `last` are the revisions that are lost, as far
    as they are known."""
    if scan.verdict is Verdict.UNSUPPORTED:
        raise Unsupported(f"{path}: at byte {scan.offset:,}: {scan.reason}",
                          hint="use the release of ckptmesh that wrote it", file=path,
                          offset=scan.offset)
    if last is None and scan.later is not None:
        last = scan.later - 1
    lost = "" if last is None or last < first else (
        f"; revision {first} is lost" if first == last else f"; revisions {first} to {last}"
        " are lost")
    raise Corrupt(f"{path} is damaged at byte {scan.offset:,}: {scan.reason}{lost}",
                  file=path, offset=scan.offset, first_lost=first, last_lost=last)


def _may_be_ours(disk: Disk, path: str, uuid: bytes) -> bool:
    """Whether a segment is not plainly another store's. A damaged header counts as ours."""
    header = header_of(disk, path)
    return header is None or header.uuid == uuid


def _names(disk: Disk, path: str) -> list[str]:
    try:
        return disk.listdir(path)
    except FileNotFoundError:
        return []


# --- putting the disk in order ----------------------------------------------------------------


def settle(disk: Disk, directory: str, found: Recovered) -> None:
    """Do to the disk what a starting store must: move strays to quarantine, remove what a crash
    left over, keep the torn tail beside its segment and cut it off. Raises `OSError`."""
    put_away(disk, directory, found.removable, found.strays)
    if found.tail is not None and found.tail.torn:
        cut_tail(disk, f"{directory}/{found.tail.file}", found.tail.offset)
