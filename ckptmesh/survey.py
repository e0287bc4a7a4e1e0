"""What is in a store's directory, file by file: for `wal verify`, `wal dump`, and repair.

Rule 1: nothing here changes a directory or needs its lock.
Rule 2: one damaged file does not keep the others from being looked at.
Rule 3: values are shown as size and digest, unless somebody asks for them.
"""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256
from typing import Any, NamedTuple

from ckptmesh.contracts import NO_RULE
from ckptmesh.disk import Disk, RealDisk, read_file
from ckptmesh.errors import Corrupt, Error, InvalidDirectory, Unsupported
from ckptmesh.facts import TAKES_REVISION, ContractChanged, Record, Transaction
from ckptmesh.framing import DATA, SegmentHeader, SegmentScan, Verdict, decode_header
from ckptmesh.manifest import (
    LOG_DIRECTORY,
    MANIFEST,
    SNAPSHOT_DIRECTORY,
    Manifest,
    SealedSegment,
    parse_segment_file,
    read_manifest,
    segment_file,
)
from ckptmesh.messages import KINDS, Rules
from ckptmesh.recovery import CLEAN, TORN, recover
from ckptmesh.replay import frame_records
from ckptmesh.snapshots import verify_snapshot

CORRUPT, UNSUPPORTED = "CORRUPT", "UNSUPPORTED"  # beside the verdicts of a recovery
_ATTEMPTS = 5  # looks at a directory that a running store changes; compactions are far rarer
_GRAVITY = (CLEAN, TORN, UNSUPPORTED, CORRUPT)
_VERDICTS = {Verdict.OK: CLEAN, Verdict.TORN: TORN, Verdict.CORRUPT: CORRUPT,
             Verdict.UNSUPPORTED: UNSUPPORTED}


class FileReport(NamedTuple):
    """One file. `kind`: manifest, snapshot or segment. `frames`: of a segment, whole ones; blocks
    of a snapshot. Revisions run from `first_revision` to `last_revision` (of a snapshot both are
    its own); 0 where there are none. `offset` and `reason` say where and what the damage is.
    `first_lost` to `last_lost` are the revisions that a damaged segment no longer gives; the last
    is None where nothing tells how far it went."""

    file: str
    kind: str
    verdict: str
    size: int = 0
    frames: int = 0
    first_revision: int = 0
    last_revision: int = 0
    offset: int | None = None
    reason: str = ""
    first_lost: int | None = None
    last_lost: int | None = None


class VerifyReport(NamedTuple):
    """A whole directory. `verdict` is the worst of its files and of the replay; `serves` tells
    whether a store would start on it, `revision` with which head; `notes` is what it would say."""

    directory: str
    verdict: str
    serves: bool
    revision: int
    files: tuple[FileReport, ...]
    notes: tuple[str, ...]

    @property
    def damaged(self) -> tuple[FileReport, ...]:
        """The files that are neither clean nor merely torn."""
        return tuple(found for found in self.files if found.verdict not in (CLEAN, TORN))


def verify(directory: str, disk: Disk | None = None) -> VerifyReport:
    """Read and check every file of a store, then replay it as a starting store would.

    Damage is reported, not raised. A store that is running meanwhile replaces files; what looks
    damaged is then looked at again. Raises `InvalidDirectory` where there is no store at all.
    """
    disk = RealDisk() if disk is None else disk
    for _ in range(_ATTEMPTS - 1):
        sequence, report = _sequence(disk, directory), _look(disk, directory)
        if report.verdict in (CLEAN, TORN) or _sequence(disk, directory) == sequence:
            return report
    return _look(disk, directory)


def _sequence(disk: Disk, directory: str) -> int | None:
    try:
        manifest = read_manifest(disk, directory)
    except (Corrupt, Unsupported, OSError):
        return None
    return manifest.sequence if manifest else None


def _look(disk: Disk, directory: str) -> VerifyReport:
    names = file_names(disk, directory)
    manifest, files = _manifest(disk, directory, any(names.values()))
    files += _snapshots(disk, directory, manifest, names[SNAPSHOT_DIRECTORY])
    files += _segments(disk, directory, manifest, names[LOG_DIRECTORY])
    verdict, serves, revision = CLEAN, False, 0
    notes: tuple[str, ...] = ()
    try:
        found = recover(disk, directory)
        verdict, serves, revision, notes = found.verdict, True, found.state.revision, found.notes
    except Unsupported as error:
        verdict, notes = UNSUPPORTED, (str(error.message),)
    except (Corrupt, OSError) as error:
        verdict, notes = CORRUPT, (error.message if isinstance(error, Error) else str(error),)
    verdict = max((verdict, *(each.verdict for each in files)), key=_GRAVITY.index)
    return VerifyReport(directory, verdict, serves, revision, tuple(files), notes)


def file_names(disk: Disk, directory: str) -> dict[str, list[str]]:
    """The names of snapshots and of segments in a directory, by folder, in order. A file that is
    not named like one is none of the store's."""
    found = {}
    for folder in (LOG_DIRECTORY, SNAPSHOT_DIRECTORY):
        try:
            found[folder] = disk.listdir(f"{directory}/{folder}")
        except (FileNotFoundError, NotADirectoryError):
            found[folder] = []
    segments = [name for name in found[LOG_DIRECTORY] if parse_segment_file(name)]
    snapshots = [name for name in found[SNAPSHOT_DIRECTORY] if name.endswith(".snap")]
    return {LOG_DIRECTORY: sorted(segments, key=number_of), SNAPSHOT_DIRECTORY: snapshots}


def _manifest(
    disk: Disk, directory: str, something: bool
) -> tuple[Manifest | None, list[FileReport]]:
    size = disk.file_size(f"{directory}/{MANIFEST}")
    if size is None:
        if not something:
            raise InvalidDirectory(f"{directory} holds no store",
                                   hint="name the directory that holds a MANIFEST")
        return None, [FileReport(MANIFEST, "manifest", CORRUPT, offset=0, reason="it is missing")]
    try:
        return read_manifest(disk, directory), [FileReport(MANIFEST, "manifest", CLEAN, size)]
    except (Corrupt, Unsupported, OSError) as error:
        return None, [FileReport(MANIFEST, "manifest", size=size, **_trouble(error))]


def _trouble(error: Exception) -> dict[str, Any]:
    offset = error.details.get("offset", 0) if isinstance(error, Error) else 0
    return {
        "verdict": UNSUPPORTED if isinstance(error, Unsupported) else CORRUPT, "offset": offset,
        "reason": error.message if isinstance(error, Error) else str(error),
    }


# --- snapshots --------------------------------------------------------------------------------


def _snapshots(
    disk: Disk, directory: str, manifest: Manifest | None, names: list[str]
) -> list[FileReport]:
    named = {entry.file: entry for entry in manifest.snapshots} if manifest else {}
    found = []
    for file in sorted({*named, *(f"{SNAPSHOT_DIRECTORY}/{name}" for name in names)}):
        path, entry = f"{directory}/{file}", named.get(file)
        size = disk.file_size(path) or 0
        try:
            info = verify_snapshot(disk, path)
            if entry is not None and (info.digest, info.header.revision) != (
                entry.digest, entry.revision
            ):
                raise Corrupt(f"{path} is not the snapshot that the manifest names", offset=0)
        except (Corrupt, Unsupported) as error:
            at = entry.revision if entry else 0
            found.append(FileReport(file, "snapshot", size=size, first_revision=at,
                                    last_revision=at, **_trouble(error)))
            continue
        revision = info.header.revision
        found.append(FileReport(file, "snapshot", CLEAN, size, info.blocks, revision, revision))
    return found


# --- segments ---------------------------------------------------------------------------------


def _segments(
    disk: Disk, directory: str, manifest: Manifest | None, names: list[str]
) -> list[FileReport]:
    sealed = {segment.file: segment for segment in manifest.sealed} if manifest else {}
    files = {*sealed, *(f"{LOG_DIRECTORY}/{name}" for name in names)}
    if manifest is not None and manifest.active is not None:
        files.add(manifest.active.file)
    ordered = sorted(files, key=number_of)
    return [_segment(disk, directory, file, sealed.get(file), file == ordered[-1])
            for file in ordered]


def number_of(file: str) -> int:
    """The number of a segment by its file's name, with its folder or without; 0 for another."""
    place = parse_segment_file(file.rpartition("/")[2])
    return place[0] if place else 0


def _segment(
    disk: Disk, directory: str, file: str, sealed: SealedSegment | None, last: bool
) -> FileReport:
    size = disk.file_size(f"{directory}/{file}") or 0
    first = sealed.first_revision if sealed else 0
    final = sealed.last_revision if sealed else None
    try:
        header, scan = open_anywhere(disk, directory, file, sealed=sealed is not None or not last)
    except (Corrupt, Unsupported) as error:
        return FileReport(file, "segment", size=size, first_revision=first, first_lost=first,
                          last_lost=final, **_trouble(error))
    next_revision = header.first_revision
    frames, verdict, offset, reason = 0, CLEAN, None, ""
    for frame in scan:
        try:
            taken = sum(type(record) in TAKES_REVISION for record in frame_records(frame))
        except ValueError as error:
            verdict, offset, reason = CORRUPT, frame.offset, str(error)
            break
        if frame.first_revision != next_revision:
            verdict, offset = CORRUPT, frame.offset
            reason = f"revision {frame.first_revision} stands where {next_revision} belongs"
            break
        frames += 1
        next_revision += taken
    else:
        if scan.verdict is not Verdict.OK:
            verdict, offset, reason = _VERDICTS[scan.verdict], scan.offset, scan.reason
        elif sealed is not None and (scan.digest, next_revision - 1) != (
            sealed.end, sealed.last_revision
        ):
            verdict, offset = CORRUPT, scan.offset
            reason = "it is whole, but not the segment that the manifest seals"
    lost = None if verdict in (CLEAN, TORN) else next_revision
    if lost is not None and final is None and scan.later is not None:
        final = scan.later - 1
    return FileReport(file, "segment", verdict, size, frames, header.first_revision,
                      next_revision - 1, offset, reason, lost, final if lost else None)


def open_anywhere(
    disk: Disk, directory: str, file: str, *, sealed: bool
) -> tuple[SegmentHeader, SegmentScan]:
    """A segment by itself, wherever it belongs: its header must agree with its name only.

    Raises `Corrupt`, `Unsupported`.
    """
    path = f"{directory}/{file}"
    try:
        data = read_file(disk, path)
        header = decode_header(data)
    except OSError as error:
        raise Corrupt(f"it cannot be read: {error.strerror or error}",
                      file=path, offset=0) from error
    except ValueError as error:
        raise Corrupt(str(error), file=path, offset=0) from error
    if segment_file(header.number, header.first_revision) != file:
        raise Corrupt(f"it is segment {header.number} from revision {header.first_revision} on, "
                      "by its header", file=path, offset=0)
    return header, SegmentScan(data, header, sealed=sealed)


# --- dump -------------------------------------------------------------------------------------


def dump(
    directory: str, *, values: bool = False, after: int = 0
) -> Iterator[dict[str, Any]]:
    """Every segment, frame and record as plain values (numbers, text, lists), oldest first.

    A row has `file` and `kind`: "segment" (what its header says), "data" or "footer" (a frame, with
    its records) or "damage" (where reading ended and why). `values`: show values, in hexadecimal.
    `after`: leave out frames that end at this revision or before.
    Raises `InvalidDirectory` where there is no store.
    """
    disk = RealDisk()
    names = file_names(disk, directory)[LOG_DIRECTORY]
    if not names and disk.file_size(f"{directory}/{MANIFEST}") is None:
        raise InvalidDirectory(f"{directory} holds no store",
                               hint="name the directory that holds a MANIFEST")
    for name in names:
        yield from _dump_segment(disk, directory, f"{LOG_DIRECTORY}/{name}", values, after)


def _dump_segment(
    disk: Disk, directory: str, file: str, values: bool, after: int
) -> Iterator[dict[str, Any]]:
    try:
        header, scan = open_anywhere(disk, directory, file, sealed=False)
    except (Corrupt, Unsupported) as error:
        if disk.file_size(f"{directory}/{file}") is None:
            return  # a running store has dropped it meanwhile
        yield {"file": file, "kind": "damage", **_trouble(error)}
        return
    yield {"file": file, "kind": "segment", "number": header.number, "epoch": header.epoch,
           "first_revision": header.first_revision, "uuid": header.uuid.hex(),
           "previous": header.previous.hex()}
    for frame in scan:
        try:
            records = frame_records(frame)
        except ValueError as error:
            yield {"file": file, "kind": "damage", "verdict": CORRUPT, "offset": frame.offset,
                   "reason": str(error)}
            return
        taken = sum(type(record) in TAKES_REVISION for record in records)
        if after and frame.first_revision + taken - 1 <= after:
            continue
        yield {
            "file": file, "kind": "data" if frame.kind == DATA else "footer",
            "offset": frame.offset, "frame": frame.number, "first_revision": frame.first_revision,
            "bytes": frame.end - frame.offset, "digest": frame.digest.hex(),
            "records": list(_plain(records, frame.first_revision, values)),
        }
    if scan.verdict is not Verdict.OK:
        yield {"file": file, "kind": "damage", "verdict": _VERDICTS[scan.verdict],
               "offset": scan.offset, "reason": scan.reason}


def _plain(records: list[Record], revision: int, values: bool) -> Iterator[dict[str, Any]]:
    for record in records:
        row: dict[str, Any] = {"record": type(record).__name__}
        if type(record) in TAKES_REVISION:
            row["revision"] = revision
            revision += 1
        for name, field in zip(record._fields, record, strict=True):
            row[name] = field.hex() if isinstance(field, bytes) else field
        if isinstance(record, Transaction):
            row["results"] = list(record.results)
            row["writes"] = [_plain_write(write._asdict(), values) for write in record.writes]
        elif isinstance(record, ContractChanged):
            rules = zip(Rules._fields, record.contract, NO_RULE, strict=True)
            row["contract"] = {name: rule for name, rule, none in rules if rule != none}
        yield row


def _plain_write(row: dict[str, Any], values: bool) -> dict[str, Any]:
    value = row.pop("value")
    row["kind"] = KINDS[row["kind"]]
    row["sources"] = [list(pair) for pair in row["sources"]]
    shown = {name: field for name, field in row.items() if field not in (None, [])}
    if row["kind"] == "put":
        shown["value_bytes"] = len(value)
        shown["value_sha256"] = sha256(value).hexdigest()
        if values:
            shown["value"] = value.hex()
    return shown
