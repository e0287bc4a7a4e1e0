"""The MANIFEST: which files make up the store, replaced as a whole at each change.

Rule 1: only the store writes it (two writers would lose a segment), and only as MANIFEST.tmp,
        sync, rename, sync of the directory: that rename is the commit point of every change.
Rule 2: no file is unlinked that this manifest or the one before it needs (`needed_before`).
Rule 3: it is read strictly: every byte is covered by the CRC, every field has its type.

Format version 1: readable JSON, one object, closed by the member "crc32c" on a line of its own.
That CRC32C, eight hexadecimal digits, covers every byte before the comma and line break in front of
this last member. Files are named relative to the store's directory. Times are microseconds since
1970-01-01 UTC; digests are SHA-256 in hexadecimal. A savepoint's `made_at` and `reason` are left
out where they are 0 and "".
"""

from __future__ import annotations

import functools
import json
import re
from typing import Any, NamedTuple, get_type_hints

import google_crc32c

from ckptmesh.disk import NO_SPACE, Disk, read_file, write_file
from ckptmesh.errors import Corrupt, OutOfSpace, Unsupported
from ckptmesh.messages import Savepoint

FORMAT_VERSION = 1
MANIFEST = "MANIFEST"
MANIFEST_TMP = "MANIFEST.tmp"
LOG_DIRECTORY = "wal"
SNAPSHOT_DIRECTORY = "snap"

_KIND = "ckptmesh manifest"
_TAIL = re.compile(rb',\n "crc32c": "([0-9a-f]{8})"\n\}\n\Z')
_SEGMENT_NAME = re.compile(r"(\d{8,20})-(\d{12,20})\.seg\Z")


def segment_file(number: int, first_revision: int) -> str:
    """A segment's file, relative to the store's directory."""
    return f"{LOG_DIRECTORY}/{number:08}-{first_revision:012}.seg"


def snapshot_file(revision: int, segment: int) -> str:
    """A snapshot's file, relative to the store's directory. The number of the last segment that it
    covers tells two snapshots of one revision apart."""
    return f"{SNAPSHOT_DIRECTORY}/{revision:012}-{segment:08}.snap"


def parse_segment_file(name: str) -> tuple[int, int] | None:
    """(number, first revision) of a segment's file name without its folder, None for another."""
    match = _SEGMENT_NAME.match(name)
    return (int(match[1]), int(match[2])) if match else None


class SealedSegment(NamedTuple):
    """A segment that ends with a footer. `start` and `end` are the chain digests that it continues
    and leaves; `last_revision` is first_revision - 1 where no record in it took a revision."""

    number: int
    first_revision: int
    last_revision: int
    size: int
    start: bytes
    end: bytes
    sealed_at: int

    @property
    def file(self) -> str:
        """Its file, relative to the store's directory."""
        return segment_file(self.number, self.first_revision)


class ActiveSegment(NamedTuple):
    """The segment that is (or was, after a crash) being written. `start`: see `SealedSegment`."""

    number: int
    first_revision: int
    start: bytes

    @property
    def file(self) -> str:
        """Its file, relative to the store's directory."""
        return segment_file(self.number, self.first_revision)


class SnapshotEntry(NamedTuple):
    """A snapshot that recovery may begin with; replay goes on with segment `segment` + 1.

    `digest` is the SHA-256 in the snapshot's footer."""

    file: str
    revision: int
    segment: int
    size: int
    digest: bytes
    made_at: int


class Manifest(NamedTuple):
    """Which files make up the store.

    `sequence` counts manifests from 1. `sealed` ascends without gaps, and its last element stays
    whatever snapshots cover, since the next segment continues it; `active` is None after a clean
    close. `snapshots` ascend. `needed_before` lists the files that the manifest before this
    one needed. `lossy` is "" or says, for people, what a repair gave up.
    """

    uuid: bytes
    sequence: int = 0
    sealed: tuple[SealedSegment, ...] = ()
    active: ActiveSegment | None = None
    snapshots: tuple[SnapshotEntry, ...] = ()
    savepoints: tuple[Savepoint, ...] = ()
    needed_before: tuple[str, ...] = ()
    lossy: str = ""

    def files(self) -> frozenset[str]:
        """The files that this manifest needs."""
        active = (self.active.file,) if self.active else ()
        return frozenset((
            *(segment.file for segment in self.sealed), *active,
            *(entry.file for entry in self.snapshots),
        ))

    def following(self, **changes: Any) -> Manifest:
        """The manifest after this one, with these fields changed."""
        return self._replace(
            sequence=self.sequence + 1, needed_before=tuple(sorted(self.files())), **changes
        )


# --- writing ----------------------------------------------------------------------------------


def encode_manifest(manifest: Manifest) -> bytes:
    """The file's bytes."""
    document = {
        "kind": _KIND,
        "format": FORMAT_VERSION,
        "uuid": manifest.uuid.hex(),
        "sequence": manifest.sequence,
        "lossy": manifest.lossy,
        "active": None if manifest.active is None else _document(manifest.active),
        "sealed": [_document(segment) for segment in manifest.sealed],
        "snapshots": [_document(entry) for entry in manifest.snapshots],
        "savepoints": [_pin_document(savepoint) for savepoint in manifest.savepoints],
        "needed_before": list(manifest.needed_before),
    }
    body = json.dumps(document, indent=1, ensure_ascii=True)[: -len("\n}")].encode()
    return body + b',\n "crc32c": "%08x"\n}\n' % google_crc32c.value(body)


def _document(row: Any) -> dict[str, Any]:
    return {
        name: value.hex() if isinstance(value, bytes) else value
        for name, value in row._asdict().items()
    }


def _pin_document(savepoint: Savepoint) -> dict[str, Any]:
    """Without what says nothing."""
    return {name: value for name, value in savepoint._asdict().items()
            if value or name not in Savepoint._field_defaults}


def write_manifest(disk: Disk, directory: str, manifest: Manifest) -> None:
    """Make `manifest` the store's manifest, durably.

    Raises `OutOfSpace` where the disk has no room for it: the old one stands. After any other
    `OSError` nobody can tell which one stands.
    """
    temporary = f"{directory}/{MANIFEST_TMP}"
    if disk.file_size(temporary) is not None:
        disk.unlink(temporary)
    try:
        write_file(disk, temporary, (encode_manifest(manifest),))
    except OSError as error:
        if error.errno in NO_SPACE:
            raise OutOfSpace(f"no space for {temporary}") from error
        raise
    disk.rename(temporary, f"{directory}/{MANIFEST}")
    disk.sync_directory(directory)


class ManifestKeeper:
    """The manifest of a running store. `current` is how things are; what is on disk is the same,
    or, while the disk had no space for it (`due`), an older one that recovery can go on from."""

    def __init__(self, disk: Disk, directory: str, durable: Manifest) -> None:
        self.current = durable
        self.due = False
        self._disk = disk
        self._directory = directory
        self._durable = durable

    def write(self, wanted: Manifest) -> None:
        """Make this the store's manifest, then unlink the files that neither it nor the one before
        needs. Raises `OutOfSpace` with nothing changed; `OSError`, after which all is in doubt."""
        old = self._durable
        fields = wanted._asdict()
        for own in ("uuid", "sequence", "needed_before"):
            del fields[own]
        new = old.following(**fields)
        write_manifest(self._disk, self._directory, new)
        self._durable = self.current = new
        self.due = False
        needed = {*new.files(), *new.needed_before}
        self._unlink({*old.files(), *old.needed_before} - needed)

    def postpone(self, wanted: Manifest) -> None:
        """Go on with this one although the disk has no space for it now. Only for changes that
        recovery finds by itself: segments that continue the chain."""
        self.current = wanted
        self.due = True

    def _unlink(self, files: set[str]) -> None:
        for file in sorted(files):
            path = f"{self._directory}/{file}"
            if self._disk.file_size(path) is not None:
                self._disk.unlink(path)
        for folder in sorted({file.rpartition("/")[0] for file in files}):
            self._disk.sync_directory(f"{self._directory}/{folder}")


# --- reading ----------------------------------------------------------------------------------


def read_manifest(disk: Disk, directory: str) -> Manifest | None:
    """The store's manifest, None where there is no such file.

    Raises `Corrupt` where it is damaged or the disk cannot read it, `Unsupported` for another
    format version, `PermissionError`.
    """
    path = f"{directory}/{MANIFEST}"
    if disk.file_size(path) is None:
        return None
    try:
        return decode_manifest(read_file(disk, path))
    except PermissionError:
        raise
    except OSError as error:
        raise Corrupt(f"{path} cannot be read: {error.strerror or error}", file=path,
                      offset=0) from error
    except ValueError as error:
        raise Corrupt(f"{path} is damaged: {error}", file=path, offset=0) from error
    except Unsupported as error:
        raise Unsupported(f"{path}: {error.message}", hint=error.hint, **error.details) from None


def decode_manifest(data: bytes) -> Manifest:
    """The manifest in these bytes. Raises `ValueError` for damage, `Unsupported`."""
    tail = _TAIL.search(data)
    if tail is None:
        raise ValueError("its last line, with the CRC, is missing")
    if google_crc32c.value(data[: tail.start()]) != int(tail[1], 16):
        raise ValueError("its CRC does not match")
    try:
        document = json.loads(data)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    if type(document) is not dict or document.get("kind") != _KIND:
        raise ValueError("it is not a manifest of ckptmesh")
    version = document.get("format")
    if version != FORMAT_VERSION:
        raise Unsupported(
            f"the manifest has format version {version}; this release reads {FORMAT_VERSION}",
            hint="use the release of ckptmesh that wrote it", found=version, known=FORMAT_VERSION,
        )
    for name in ("kind", "format", "crc32c"):
        del document[name]
    try:
        return _checked(_manifest(document))
    except (KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"a member is missing or has a wrong type: {error}") from error


def _manifest(document: dict[str, Any]) -> Manifest:
    if set(document) != set(Manifest._fields):
        raise ValueError("its members are not those of format version 1")
    active = document["active"]
    return Manifest(
        uuid=_bytes(document["uuid"], 16),
        sequence=_count(document["sequence"]),
        sealed=tuple(_row(SealedSegment, row) for row in _list(document["sealed"])),
        active=None if active is None else _row(ActiveSegment, active),
        snapshots=tuple(_row(SnapshotEntry, row) for row in _list(document["snapshots"])),
        savepoints=tuple(_row(Savepoint, {**Savepoint._field_defaults, **row}
                              if type(row) is dict else row)
                         for row in _list(document["savepoints"])),
        needed_before=tuple(_text(name) for name in _list(document["needed_before"])),
        lossy=_text(document["lossy"]),
    )


def _row(kind: Any, row: Any) -> Any:
    if type(row) is not dict or set(row) != set(kind._fields):
        raise ValueError(f"an entry is not a {kind.__name__}: {row!r:.80}")
    types = _types(kind)
    return kind(**{name: _READERS[types[name]](value) for name, value in row.items()})


_types = functools.cache(get_type_hints)  # it takes as long as all else in reading a manifest


def _list(value: Any) -> list[Any]:
    if type(value) is not list:
        raise ValueError(f"{value!r:.80} is not a list")
    return value


def _text(value: Any) -> str:
    if type(value) is not str:
        raise ValueError(f"{value!r:.80} is not a text")
    return value


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r:.80} is not a count")
    return value


def _bytes(value: Any, size: int = 32) -> bytes:
    decoded = bytes.fromhex(_text(value))
    if len(decoded) != size:
        raise ValueError(f"{value!r:.80} does not have {size} bytes")
    return decoded


_READERS: dict[Any, Any] = {int: _count, str: _text, bytes: _bytes}


def _checked(manifest: Manifest) -> Manifest:
    """What no honest writer writes: gaps, broken chains, names that lead out of the directory."""
    chain = [*manifest.sealed, *((manifest.active,) if manifest.active else ())]
    for before, after in zip(manifest.sealed, chain[1:], strict=False):
        if (after.number, after.first_revision, after.start) != (
            before.number + 1, before.last_revision + 1, before.end
        ):
            raise ValueError(f"segment {after.number} does not continue segment {before.number}")
    last = manifest.sealed[-1].number if manifest.sealed else 0
    if chain and (chain[0].number < 1 or (not manifest.sealed and chain[0].number > 1)):
        raise ValueError("segments before the first are missing")
    if any(entry.segment > last for entry in manifest.snapshots):
        raise ValueError("a snapshot covers a segment that is not sealed")
    for entry in manifest.snapshots:
        if entry.file != snapshot_file(entry.revision, entry.segment):
            raise ValueError(f"{entry.file!r:.80} is not the name of such a snapshot")
    places = [(entry.revision, entry.segment) for entry in manifest.snapshots]
    if places != sorted(set(places)):
        raise ValueError("the snapshots are out of order")
    return manifest
