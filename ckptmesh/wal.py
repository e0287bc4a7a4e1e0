"""The write-ahead log: what a store acknowledges is here first.

Rule 1: one batch is one frame, one write, one `fdatasync`; the next frame is written only after it.
Rule 2: the first failed write, sync or close poisons the log: nothing is tried again, since after a
        failed sync the page cache no longer says what is on the disk.
Rule 3: space is taken before a batch is decided, so that a full disk refuses and never breaks.
Rule 4: only this class writes the manifest, and no file goes that one of the last two needs.

The rest of this text is the manual of the directory, format version 1.

    LOCK           held with flock while a process uses the directory; holds its pid, for people
    MANIFEST       which files make up the store (`manifest.py`); replaced as a whole
    wal/<number>-<first revision>.seg         segments (`framing.py`), numbered without gaps
    wal/<number>-<first revision>.seg.torn    a torn tail that was cut off, kept as evidence
    wal/spare      zeroes, preallocated: the next segment to be
    snap/<revision>-<segment>.snap            snapshots (`snapshots.py`): the state after a segment
    quarantine/    files that are not the store's, moved out of its way
    run/           sockets of a served store
    *.tmp          unfinished; removed at the next start

Segment. A header in a sector of its own: magic, format version, sector size, store UUID, epoch,
segment number, first revision, previous chain digest, salt, CRC32C. Then frames, each in sectors of
its own: magic, type, flags, length, record count, frame number, first revision, chain digest,
header CRC32C, payload, payload CRC32C, zeroes. The byte tables are at the head of `framing.py`, the
payload at the head of `records.py`. A sealed segment ends with a FOOTER frame and is cut to its
content; the one being written is preallocated, zeroes after its last frame.

Verdicts on a directory:

    CLEAN        every frame is whole, then zeroes
    TORN         the segment being written ends in bad bytes that no later frame follows: the write
                 under way when the power went. Nobody was answered. Kept as .torn, cut off, told
    Corrupt      a later frame proves that the bad bytes were once whole; anything bad in a sealed
                 segment; non-zero padding; a revision gap; a file of the manifest missing; a read
                 that the disk fails. Refused with file and offset
    Unsupported  another format version. Refused, naming both

Life of a segment. It is made from the spare: header written and synced as `.tmp`, renamed, the
directory synced, then named in the manifest as `active`. When it is full: footer, cut to its
content, sync; next segment; manifest with both. A crash in between leaves segments that the
manifest does not know but whose digests continue its chain: they are replayed. At the next start
the segment being written is copied forward: its frames go to a new file with a new salt, synced and
renamed over the old one, because after a kill or a failed sync what was read came from the page
cache and need not be on the disk. Chain digests do not cover salts, so they stay the same.
"""

from __future__ import annotations

import errno
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, NoReturn, Protocol

from ckptmesh import limits
from ckptmesh.clock import wall_micros
from ckptmesh.disk import NO_SPACE, Disk, RealDisk, read_file
from ckptmesh.errors import (
    Closed,
    Compacted,
    Corrupt,
    Error,
    InvalidDirectory,
    Misuse,
    OutOfSpace,
    Poisoned,
)
from ckptmesh.facts import Puts, Record
from ckptmesh.framing import DATA, FrameWriter, SegmentHeader, SegmentScan
from ckptmesh.lock import acquire
from ckptmesh.manifest import (
    LOG_DIRECTORY,
    SNAPSHOT_DIRECTORY,
    Manifest,
    ManifestKeeper,
    SealedSegment,
    SnapshotEntry,
    write_manifest,
)
from ckptmesh.messages import Savepoint
from ckptmesh.records import count_of, encode_records, taken_by
from ckptmesh.recovery import Place, Recovered, Tail, next_place, recover, settle
from ckptmesh.retention import bases, kept
from ckptmesh.segment import SegmentFile, bytes_for
from ckptmesh.spare import Keeping, Spare

_URGENT_SHARE = 256  # of each segment, at its end, is for epochs and the like on a full disk
_LATENCIES = 1_024  # syncs remembered for percentiles


class Lock(Protocol):
    """What the log needs of a lock on its directory."""

    def still_ours(self) -> bool:
        """Whether no other process can hold it as well."""

    def release(self) -> None:
        """Give it back."""


class WalOptions(NamedTuple):
    """How a log is kept, in bytes and seconds. `spare`: see `spare.Keeping`."""

    segment_bytes: int = limits.SEGMENT_BYTES
    sector: int = limits.SECTOR
    spare: Keeping = "thread"
    retain_seconds: float = limits.RETAIN_SECONDS
    retain_bytes: int = limits.RETAIN_BYTES
    watermark_bytes: int = limits.SPACE_WATERMARK
    lock_timeout: float = 0.0


SERVED = WalOptions()
"""For a store process."""

EMBEDDED = WalOptions(segment_bytes=limits.EMBEDDED_SEGMENT_BYTES, spare="none", lock_timeout=5.0)
"""For a store inside its user's process: small segments, made when they are needed."""


class Wal:
    """A store's log in a directory. `open`, `begin`, then for each batch `ensure_room`, `append`,
    `sync`; `close` at the end. For one thread.

    `state`: what was recovered, to be advanced by the caller. `verdict`: "CLEAN" or "TORN".
    `notes`: sentences for people about what recovery met. `space_low`: as of `check_space`.
    """

    def __init__(self, directory: str, options: WalOptions, disk: Disk, lock: Lock,
                 found: Recovered, manifest: Manifest, clock: Callable[[], int],
                 random: Callable[[int], bytes]) -> None:
        """See `open`."""
        self.directory = directory
        self.options = options
        self.state = found.state
        self.uuid = manifest.uuid
        self.verdict = found.verdict
        self.notes = found.notes
        self.space_low = False
        self._disk = disk
        self._lock = lock
        self._found = found
        self._clock = clock
        self._random = random
        self._manifest = ManifestKeeper(disk, directory, manifest)
        self._spare = Spare(disk, directory, options.segment_bytes, options.spare)
        self._active: SegmentFile | None = None
        self._next_revision = found.state.revision + 1
        self._unsynced = False
        self._poisoned = ""
        self._closed = False
        self._syncs: deque[float] = deque(maxlen=_LATENCIES)
        self._counts = {"frames": 0, "bytes": 0, "syncs": 0, "rotations": 0}

    @classmethod
    def open(cls, directory: str | os.PathLike[str], options: WalOptions = SERVED,
             disk: Disk | None = None, *, lock: Callable[[str, float], Lock] = acquire,
             clock: Callable[[], int] = wall_micros,
             random: Callable[[int], bytes] = os.urandom) -> Wal:
        """Lock the directory (made if only its parent exists) and recover what it holds.

        `clock` gives microseconds, `random` so many random bytes.
        Raises `DirectoryInUse`, `InvalidDirectory`, `Corrupt`, `Unsupported`, `OutOfSpace` (no
        room for a new store, or to keep a torn tail), `Poisoned` (the disk fails).
        """
        path = os.path.abspath(directory)
        disk = RealDisk() if disk is None else disk
        held = lock(path, options.lock_timeout)
        try:
            try:
                found = recover(disk, path, fresh_uuid=random(16))
                manifest = found.manifest or _create(disk, path, found.state.uuid)
                settle(disk, path, found)
            except OSError as error:
                raise _start_failure(path, error) from error
            return cls(path, options, disk, held, found, manifest, clock, random)
        except BaseException:
            held.release()
            raise

    @property
    def manifest(self) -> Manifest:
        """Which files make up the store now."""
        return self._manifest.current

    @property
    def needs_copy_forward(self) -> bool:
        """Whether some of the recovered state may not be on the disk yet (the last user of the
        directory was killed): then `begin` must come before anything is shown to anybody."""
        tail = self._found.tail
        return self._active is None and not self._closed and tail is not None and tail.frames > 0

    def holds_lock(self) -> bool:
        """Whether the directory is still this process's (LOCK was not removed or replaced)."""
        return self._lock.still_ours()

    # --- writing -------------------------------------------------------------------------------

    def begin(self) -> None:
        """Make what was recovered durable and get ready to write. Once, before serving.

        Raises `OutOfSpace` with nothing changed (it may be tried again), `Poisoned`, `Corrupt`.
        """
        self._check()
        if self._active is not None:
            raise Misuse("this log has begun already")
        found = self._found
        try:
            # The manifest first: after a kill it may stand in the page cache only, and a segment
            # without one is no store.
            self._disk.sync_directory(self.directory)
            if found.tail is not None:
                self._copy_forward(found.tail)
            else:
                place = next_place(found.state, self.manifest, found.sealed)
                self._start_segment(place, self._take(0))
            wanted = self.manifest._replace(
                sealed=(*self.manifest.sealed, *found.sealed), active=self._ready().place
            )
            if wanted != self.manifest:
                self._change_when_possible(wanted)
        except OSError as error:
            self._fail("the log could not be begun", error)
        self._spare.want()

    def ensure_room(self, nbytes: int, *, urgent: bool = False) -> None:
        """Make sure that one frame with a payload of up to `nbytes` can be written without asking
        the disk for space; may seal the segment and go on in the next.

        `urgent` is for what a full disk must not stop (beginning an epoch, what frees space): it
        may take the rest of each segment that others leave, and the last spare.
        Raises `OutOfSpace` with nothing changed, `Poisoned`.
        """
        if urgent:
            if not self._ready().fits(nbytes):
                self._rotate(nbytes)
            return
        nbytes += self.options.segment_bytes // _URGENT_SHARE
        if not self._ready().fits(nbytes):
            try:
                self._spare.check_replaceable()
            except OSError as error:
                self._fail("the free space cannot be told", error)
            self._rotate(nbytes)

    def append(self, records: Sequence[Record | Puts], first_revision: int) -> None:
        """Write one frame; `first_revision` is the next revision before these records.

        Raises `Misuse` (nothing was written) where `ensure_room` did not ask for as much, the frame
        before is not synced, or revisions do not follow; `Poisoned`.
        """
        active = self._ready()
        if self._unsynced:
            raise Misuse("the frame before this one is not synced")
        if first_revision != self._next_revision:
            raise Misuse(f"revision {self._next_revision} is next, not {first_revision}")
        payload = encode_records(records)
        if not active.fits(len(payload)):
            raise Misuse(f"no room was made for {len(payload):,} bytes of records")
        self._unsynced = True
        try:
            size = active.write(payload, first_revision, count_of(records))
        except OSError as error:
            self._fail(f"writing {active.path} failed", error)
        self._next_revision += taken_by(records)
        self._counts["frames"] += 1
        self._counts["bytes"] += size

    def sync(self) -> None:
        """Make the frame durable. Raises `Poisoned`, once and for ever, when it cannot."""
        active = self._ready()
        started = time.perf_counter()
        try:
            active.sync()
        except OSError as error:
            self._fail(f"syncing {active.path} failed", error)
        self._unsynced = False
        self._syncs.append(time.perf_counter() - started)
        self._counts["syncs"] += 1

    def rotate(self) -> SealedSegment | None:
        """Seal the segment being written, if it holds anything, and go on in the next: then all
        that happened is in sealed files. Returns the last of them, None where there is none.

        Raises `OutOfSpace` with nothing changed, `Poisoned`.
        """
        if self._ready().frames:
            self._rotate(0)
        return self.manifest.sealed[-1] if self.manifest.sealed else None

    def close(self) -> None:
        """Seal what is open and give the directory back. May be called twice.

        Raises `Poisoned` when sealing fails; the directory is given back all the same.
        """
        if self._closed:
            return
        try:
            # What is not synced was answered to nobody: recovery judges it.
            if self._active is not None and not self._poisoned and not self._unsynced:
                self._change_when_possible(self._sealed_manifest())
        except OSError as error:
            self._fail("sealing the log failed", error)
        finally:
            self._closed = True
            self._spare.close()
            if self._active is not None:
                with suppress(OSError):  # a poisoned log promises nothing about this file
                    self._active.close()
            self._lock.release()

    # --- snapshots and retention ---------------------------------------------------------------

    def install_snapshot(self, temporary: str, entry: SnapshotEntry,
                         plan: Callable[[Manifest], Manifest] = lambda manifest: manifest) -> None:
        """Make a finished, synced snapshot file part of the store: rename, sync, manifest.

        `temporary`: its present path. `plan` gets the manifest with `entry` in it and returns what
        is kept; see `change_manifest`. Raises `OutOfSpace` (the old state stays, the file is
        removed), `Poisoned`.
        """
        self._check()
        path = f"{self.directory}/{entry.file}"
        if entry in self.manifest.snapshots:
            raise Misuse(f"{entry.file} is part of the store already")
        try:
            self._disk.rename(temporary, path)
            self._disk.sync_directory(f"{self.directory}/{SNAPSHOT_DIRECTORY}")
        except OSError as error:
            self._fail(f"installing {path} failed", error)
        try:
            self.change_manifest(lambda manifest: plan(manifest._replace(
                snapshots=tuple(sorted((*manifest.snapshots, entry), key=_place_of))
            )))
        except OutOfSpace:
            with suppress(OSError):  # the next start removes it
                self._disk.unlink(path)
            raise

    def change_manifest(self, change: Callable[[Manifest], Manifest]) -> None:
        """Write the manifest that `change` makes of the present one (its snapshots, savepoints and
        `lossy`; older segments may be dropped, but not the last), then unlink what neither of the
        last two manifests needs.

        Raises `Misuse` for any other change, `OutOfSpace` (the old one stays), `Poisoned`.
        """
        self._check()
        old, new = self.manifest, change(self.manifest)
        dropped = len(old.sealed) - len(new.sealed)
        if (new.uuid, new.active, new.sealed) != (old.uuid, old.active, old.sealed[dropped:]) or (
            old.sealed and not new.sealed
        ):
            raise Misuse("only older segments, snapshots and savepoints may be changed")
        try:
            self._write_manifest(new)
        except OSError as error:
            self._fail("writing the manifest failed", error)

    @property
    def savepoints(self) -> Sequence[Savepoint]:
        """See `log.Log`."""
        return self.manifest.savepoints

    def pin(self, savepoint: Savepoint) -> None:
        """Keep a revision up to the head until it is dropped. Where it is the head, a segment ends
        with it: so the next compaction can make a snapshot of it, which is all that it then needs.

        Raises `Compacted` where it cannot be read any more, `OutOfSpace`, `Poisoned`.
        """
        if not kept(self.manifest, savepoint.revision):
            raise Compacted(f"revision {savepoint.revision} is no longer on the disk",
                            floor=min((base.revision for base in bases(self.manifest)), default=0))
        if savepoint.revision == self._next_revision - 1:
            self.rotate()
        self.change_manifest(lambda manifest: manifest._replace(
            savepoints=(*manifest.savepoints, savepoint)))

    def unpin(self, name: str) -> None:
        """Drop a savepoint: what only it needed goes with the next compaction. Raises `OutOfSpace`,
        `Poisoned`."""
        self.change_manifest(lambda manifest: manifest._replace(savepoints=tuple(
            each for each in manifest.savepoints if each.name != name)))

    # --- space and figures ---------------------------------------------------------------------

    def check_space(self) -> bool:
        """Look at the free space: below the watermark (and 1.25 times the last snapshot, which the
        next one may need) `space_low` is set. Also makes up for what lacked space before.

        Raises `Poisoned`.
        """
        self._check()
        try:
            free = self._disk.free_bytes(self.directory) - self._spare.pending()
            self.space_low = free < self._watermark()
            if self._manifest.due:
                self._change_when_possible(self.manifest)
        except OSError as error:
            self._fail("looking at the free space failed", error)
        if self._active is not None:
            self._spare.want()
        return self.space_low

    def _watermark(self) -> int:
        snapshots = self.manifest.snapshots
        # The next snapshot holds the history that memory holds, whatever the last one held.
        expected = max(snapshots[-1].size if snapshots else 0, self.state.ring.bytes)
        return self.options.watermark_bytes + expected * 5 // 4

    @property
    def bytes_on_disk(self) -> int:
        """Bytes of segments (the one being written with its preallocated part) and snapshots."""
        manifest = self.manifest
        return (sum(segment.size for segment in manifest.sealed)
                + sum(entry.size for entry in manifest.snapshots)
                + (self._active.capacity if self._active is not None else 0))

    def status(self) -> dict[str, Any]:
        """Facts for `status`: sizes in bytes, counts since the start, syncs in milliseconds."""
        manifest, syncs = self.manifest, sorted(self._syncs)

        def percentile(share: float) -> float:
            return round(1_000 * syncs[int(share * (len(syncs) - 1))], 3) if syncs else 0.0

        return {
            "directory": self.directory, "verdict": self.verdict, "lossy": manifest.lossy,
            "segments": len(manifest.sealed) + (self._active is not None),
            "snapshots": len(manifest.snapshots), "bytes_on_disk": self.bytes_on_disk,
            "manifest": manifest.sequence, "space_low": self.space_low,
            "watermark_bytes": self._watermark(), "spare_ready": self._spare.ready(),
            "sync_ms_p50": percentile(0.5), "sync_ms_p99": percentile(0.99),
            "sync_ms_max": percentile(1.0), **self._counts,
        }

    # --- segments and manifest -----------------------------------------------------------------

    def _rotate(self, room: int) -> None:
        """Seal the segment and begin the next, with room for a payload of `room` bytes. The next
        one's space is taken first: when there is none, nothing has happened."""
        try:
            temporary = self._take(room)
            manifest = self._sealed_manifest()
            self._start_segment(next_place(self.state, manifest), temporary)
            self._change_when_possible(manifest._replace(active=self._ready().place))
        except OSError as error:
            self._fail("going on in a new segment failed", error)
        self._counts["rotations"] += 1
        self._spare.want()
        self.check_space()  # between two looks of the store's loop a fast writer fills a disk

    def _take(self, payload: int, content: int = 0, sector: int = 0) -> str:
        """The path of a preallocated file with room for both. Raises `OutOfSpace`, `OSError`."""
        temporary = f"{self.directory}/{LOG_DIRECTORY}/next.tmp"
        need = bytes_for(payload, sector or self.options.sector, content)
        self._spare.take(temporary, max(self.options.segment_bytes, need))
        return temporary

    def _sealed_manifest(self) -> Manifest:
        """Seal the segment being written. Returns what the manifest must then say."""
        sealed = self._ready().seal(self._clock(), self._next_revision)
        self._active = None
        return self.manifest._replace(sealed=(*self.manifest.sealed, sealed), active=None)

    def _start_segment(self, place: Place, temporary: str) -> None:
        header = SegmentHeader(
            place.uuid, self.state.epoch, place.number, place.first_revision, place.previous,
            self._random(16), self.options.sector,
        )
        self._active = SegmentFile(self._disk, self.directory, temporary, header,
                                   FrameWriter(header))

    def _copy_forward(self, tail: Tail) -> None:
        """Rewrite the segment's frames into a new file of the same name, durably."""
        path = f"{self.directory}/{tail.file}"
        header = tail.header._replace(salt=self._random(16))
        writer = FrameWriter(header)
        scan = SegmentScan(read_file(self._disk, path), tail.header)
        frames = b"".join([
            writer.data(frame.payload, frame.first_revision, frame.records)
            for frame in scan if frame.kind == DATA
        ])
        if scan.number != tail.frames or scan.reason:
            raise Corrupt(f"{path} changed since it was recovered", file=path, offset=scan.offset)
        temporary = self._take(0, len(frames), header.sector)
        self._active = SegmentFile(self._disk, self.directory, temporary, header, writer, frames)

    def _write_manifest(self, wanted: Manifest) -> None:
        if not self._lock.still_ours():
            raise OSError(errno.ESTALE, f"LOCK of {self.directory} was removed or replaced")
        self._manifest.write(wanted)

    def _change_when_possible(self, wanted: Manifest) -> None:
        """For changes that recovery finds by itself: where the disk has no space for the manifest,
        the old one stands, and `check_space` tries again. Raises `OSError`."""
        try:
            self._write_manifest(wanted)
        except OutOfSpace:
            self._manifest.postpone(wanted)

    # --- trouble -------------------------------------------------------------------------------

    def _check(self) -> None:
        if self._poisoned:
            raise Poisoned(self._poisoned, hint="start the store again: recovery tells")
        if self._closed:
            raise Closed(f"the log in {self.directory} is closed")

    def _ready(self) -> SegmentFile:
        self._check()
        if self._active is None:
            raise Misuse("the log has not begun", hint="call begin() first")
        return self._active

    def _fail(self, what: str, error: OSError) -> NoReturn:
        """Nothing is answered after this, and nothing is tried again."""
        self._poisoned = f"{what}: {error.strerror or error}"
        raise Poisoned(self._poisoned, hint="start the store again: recovery tells") from error


def _place_of(entry: SnapshotEntry) -> tuple[int, int]:
    return entry.revision, entry.segment


def _create(disk: Disk, directory: str, uuid: bytes) -> Manifest:
    """The first manifest of a new store, and its folders. Raises `OSError`."""
    for folder in (LOG_DIRECTORY, SNAPSHOT_DIRECTORY):
        disk.mkdir(f"{directory}/{folder}")
    disk.sync_directory(directory)
    # Whoever made the directory, a user or a start that was killed, need not have made it last.
    with suppress(PermissionError):  # a parent that may be passed through but not read
        disk.sync_directory(os.path.dirname(directory))
    manifest = Manifest(uuid, sequence=1)
    write_manifest(disk, directory, manifest)
    return manifest


def _start_failure(directory: str, error: OSError) -> Error:
    if isinstance(error, PermissionError):
        return InvalidDirectory(f"{error.filename or directory} cannot be used by this user",
                                hint=f"see who owns the files: ls -lR {directory}")
    if error.errno in NO_SPACE:
        return OutOfSpace(f"{directory} cannot be opened: the disk is full")
    return Poisoned(f"{directory} cannot be put in order: {error.strerror or error}",
                    hint="see the system's log about this disk")
