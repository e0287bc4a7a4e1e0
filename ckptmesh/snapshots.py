"""Snapshot files: the whole state at one revision, written once, checked in full before trust.

Rule 1: a snapshot is written under a temporary name, synced, reopened and verified by its writer;
        only the store renames it into place (see `compactor.py` and `compaction.py`).
Rule 2: every byte is covered twice: by a CRC32C that says where damage is, and by the SHA-256 of
        the footer, which no rewritten CRC can satisfy. There is no byte that nobody checks.
Rule 3: a reader takes one checked block at a time; it never unpacks what has not been checked.

The file, format version 1. Integers are little-endian and unsigned.

    header, 128 bytes (size and place of its CRC are the same in every format version)
      0    8  magic "CKPTSNAP"
      8    4  format version
     12   16  UUID of the store
     28    8  epoch: the newest that the state holds
     36    8  revision: the last one that the state holds (0: none yet)
     44    8  time: last time in the state, microseconds since 1970-01-01 UTC
     52    8  floor: oldest revision of which the state still holds a true cut
     60    8  segment: number of the last log segment that the state covers (0: none)
     68   16  salt, random
     84   40  zero, reserved
    124    4  CRC32C of bytes 0 to 123

    block, any number; sections ascend
      0    4  length of the rows in bytes
      4    2  section number (see `State.dump`)
      6    2  zero
      8    4  row count, 1 to 1,000
     12    n  rows: one msgpack array of the rows, each an array
     12+n  4  CRC32C, seeded with the salt, of the block before this field
    A block is closed at 1,000 rows or at 1 MiB; a single row may be larger than that.

    footer, 56 bytes
      0    8  magic "CKPTSEND"
      8    8  block count
     16    8  row count
     24   32  SHA-256 of everything before this field
    Nothing follows the footer.
"""

from __future__ import annotations

import gc
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from typing import Any, NamedTuple

import google_crc32c
import msgpack

from ckptmesh.disk import Disk, write_file
from ckptmesh.errors import Corrupt, Unsupported
from ckptmesh.limits import MIB
from ckptmesh.records import unpack_rows
from ckptmesh.state import State

FORMAT_VERSION = 1
BLOCK_ROWS = 1_000  # one unpackb each: large enough that Python's part is small
BLOCK_BYTES = MIB  # what a reader holds unpacked at once, but for a single larger row

_MAGIC, _END = b"CKPTSNAP", b"CKPTSEND"
_HEADER = struct.Struct("<8sI16sQQQQQ16s40s")
_BLOCK = struct.Struct("<IHHI")
_FOOTER = struct.Struct("<8sQQ")
_CRC = struct.Struct("<I")
HEADER_BYTES = _HEADER.size + _CRC.size
FOOTER_BYTES = _FOOTER.size + 32
_RESERVED = bytes(40)

Block = tuple[int, Sequence[Any]]
"""(section number, rows), as `State.dump` makes them and `State.load` takes them."""


class SnapshotHeader(NamedTuple):
    """What a snapshot says of itself; the fields of its header (see the table above)."""

    uuid: bytes
    epoch: int
    revision: int
    time: int
    floor: int
    segment: int
    salt: bytes


def encode(header: SnapshotHeader, blocks: Iterable[Block]) -> Iterator[bytes]:
    """The bytes of a snapshot file, in pieces of about 1 MiB. `blocks`: sections ascending."""
    head = _HEADER.pack(_MAGIC, FORMAT_VERSION, *header, _RESERVED)
    head += _CRC.pack(google_crc32c.value(head))
    seed = google_crc32c.value(header.salt)
    whole = sha256(head)
    yield head
    count = total = 0
    for section, packed in _split(blocks):
        rows = b"".join((_array_header(len(packed)), *packed))
        piece = _BLOCK.pack(len(rows), section, 0, len(packed)) + rows
        piece += _CRC.pack(google_crc32c.extend(seed, piece))
        whole.update(piece)
        count += 1
        total += len(packed)
        yield piece
    foot = _FOOTER.pack(_END, count, total)
    whole.update(foot)
    yield foot + whole.digest()


def _split(blocks: Iterable[Block]) -> Iterator[tuple[int, list[bytes]]]:
    """Packed rows in blocks of at most `BLOCK_ROWS` and, from two rows on, `BLOCK_BYTES`."""
    pack = msgpack.Packer(autoreset=True).pack
    for section, rows in blocks:
        packed: list[bytes] = []
        size = 0
        for row in rows:
            data = pack(row)
            if packed and (size + len(data) > BLOCK_BYTES or len(packed) == BLOCK_ROWS):
                yield section, packed
                packed, size = [], 0
            packed.append(data)
            size += len(data)
        if packed:
            yield section, packed


def _array_header(count: int) -> bytes:
    packer = msgpack.Packer(autoreset=False)
    packer.pack_array_header(count)
    return bytes(packer.bytes())


class Reader:
    """Reads one snapshot, checking everything: `header` at once, `blocks()` as they are asked for.

    `read(offset, size)` gives at most `size` bytes; `size` is the length of the file; `name`
    stands in errors. Raises `Corrupt` with `file` and `offset` of the first damaged structure,
    `Unsupported` for another format version.
    """

    def __init__(self, read: Callable[[int, int], bytes], size: int, name: str) -> None:
        self._read = read
        self._size = size
        self._name = name
        self._offset = 0
        self._whole = sha256()
        self.header = self._header()
        self.block_count = 0
        self.row_count = 0

    def blocks(self) -> Iterator[tuple[int, tuple[Any, ...]]]:
        """The blocks in order, each checked before it is unpacked. What they make up may be
        trusted only when the iterator has ended without an error: the footer comes last."""
        seed = google_crc32c.value(self.header.salt)
        end = self._size - FOOTER_BYTES
        while self._offset < end:
            yield self._block(seed, end)
        self._footer()

    def _take(self, size: int) -> bytes:
        data = self._read(self._offset, size)
        if len(data) != size:
            raise self._damage("ends early")
        return data

    def _damage(self, what: str) -> Corrupt:
        return Corrupt(f"snapshot {self._name} is damaged at byte {self._offset:,}: {what}",
                       file=self._name, offset=self._offset)

    def _header(self) -> SnapshotHeader:
        if self._size < HEADER_BYTES + FOOTER_BYTES:
            raise self._damage(f"it has {self._size:,} bytes, too few for a snapshot")
        data = self._take(HEADER_BYTES)
        magic, version, *fields, reserved = _HEADER.unpack_from(data)
        if magic != _MAGIC:
            raise self._damage("no snapshot begins like this")
        if google_crc32c.value(data[:-4]) != _CRC.unpack(data[-4:])[0]:
            raise self._damage("the header's checksum is wrong")
        if version != FORMAT_VERSION:
            raise Unsupported(
                f"snapshot {self._name} has format version {version}; this release of ckptmesh "
                f"reads version {FORMAT_VERSION}",
                hint="open it with the release that wrote it, or a newer one",
                file=self._name, found=version, known=FORMAT_VERSION,
            )
        if reserved != _RESERVED:
            raise self._damage("reserved bytes are not zero")
        self._whole.update(data)
        self._offset = HEADER_BYTES
        return SnapshotHeader(*fields)

    def _block(self, seed: int, end: int) -> tuple[int, tuple[Any, ...]]:
        if end - self._offset < _BLOCK.size + _CRC.size:
            raise self._damage("no room for a block")
        length, section, zero, count = _BLOCK.unpack(self._take(_BLOCK.size))
        size = _BLOCK.size + length + _CRC.size
        if size > end - self._offset:
            raise self._damage("a block is longer than the file")
        data = self._take(size)
        body = data[:-4]
        if google_crc32c.extend(seed, body) != _CRC.unpack_from(data, size - 4)[0]:
            raise self._damage("a block's checksum is wrong")
        if zero or not 0 < count <= BLOCK_ROWS:
            raise self._damage("a block's head is impossible")
        rows = self._unpack(memoryview(body)[_BLOCK.size:], count)
        self._whole.update(data)
        self._offset += size
        self.block_count += 1
        self.row_count += count
        return section, rows

    def _unpack(self, data: memoryview, count: int) -> tuple[Any, ...]:
        try:
            rows = unpack_rows(data)
        except ValueError as error:
            raise self._damage(f"a block does not unpack ({error})") from error
        if len(rows) != count:
            raise self._damage(f"a block does not hold the {count} rows that it says")
        return rows

    def _footer(self) -> None:
        if self._offset != self._size - FOOTER_BYTES:
            raise self._damage("a block runs into the footer")
        data = self._take(FOOTER_BYTES)
        magic, count, total = _FOOTER.unpack_from(data)
        if magic != _END:
            raise self._damage("the footer is missing")
        self._whole.update(data[:-32])
        if data[-32:] != self._whole.digest():
            raise self._damage("the SHA-256 of the whole is wrong")
        if (count, total) != (self.block_count, self.row_count):
            raise self._damage("blocks or rows are missing")
        self._offset += FOOTER_BYTES

    def info(self) -> SnapshotInfo:
        """Header and totals; to be asked for once `blocks()` has ended."""
        return SnapshotInfo(self.header, self._size, self.block_count, self.row_count,
                            self._whole.digest())


# --- files --------------------------------------------------------------------------------------


class SnapshotInfo(NamedTuple):
    """What is known of a snapshot file that was found whole. `size` in bytes;
    `digest` is the SHA-256 in its footer."""

    header: SnapshotHeader
    size: int
    blocks: int
    rows: int
    digest: bytes


def write_snapshot(
    disk: Disk, path: str, state: State, *, segment: int, salt: bytes
) -> SnapshotHeader:
    """A new file with the whole state, synced; its name is durable once the directory is.

    `segment`: number of the last log segment that the state covers. `salt`: 16 random bytes.
    Raises `FileExistsError` when something has that name, `OSError` when it cannot be written;
    the unfinished file is then removed again.
    """
    header = SnapshotHeader(state.uuid, state.epoch, state.revision, state.time, state.floor,
                            segment, salt)
    write_file(disk, path, encode(header, state.dump()))
    return header


def read_header(disk: Disk, path: str) -> SnapshotHeader:
    """What a snapshot says of itself; nothing else of the file is checked. Raises `Corrupt` (also
    where the disk cannot read it), `Unsupported`."""
    with _reading(disk, path) as reader:
        return reader.header


def verify_snapshot(disk: Disk, path: str) -> SnapshotInfo:
    """Read the whole file and check all of it but whether a state can be made of its rows.

    Raises as `Reader` does, and `Corrupt` where the disk cannot read it or it is missing.
    """
    with _reading(disk, path) as reader, without_collections():
        for _ in reader.blocks():
            pass
    return reader.info()


def load_snapshot(disk: Disk, path: str) -> tuple[State, SnapshotInfo]:
    """The state that a snapshot holds, and what its header and footer say.

    Raises as `verify_snapshot` does; `Corrupt` also where rows are whole but make no state, or
    another state than the header says.
    """
    with _reading(disk, path) as reader, without_collections():
        try:
            state = State.load(reader.blocks())
        except (ValueError, TypeError, IndexError, KeyError, AttributeError) as error:
            raise Corrupt(f"snapshot {path} holds rows that make no state: {error}",
                          file=path, offset=HEADER_BYTES) from error
    header = reader.header
    made = (state.uuid, state.epoch, state.revision, state.time, state.floor)
    if made != header[:5]:
        raise Corrupt(f"snapshot {path} holds another state than its header says",
                      file=path, offset=0)
    return state, reader.info()


@contextmanager
def _reading(disk: Disk, path: str) -> Iterator[Reader]:
    try:
        handle = disk.open(path, "read")
        try:
            yield Reader(lambda offset, size: disk.pread(handle, size, offset),
                         disk.size(handle), path)
        finally:
            disk.close(handle)
    except OSError as error:
        raise Corrupt(f"snapshot {path} cannot be read: {error.strerror or error}",
                      file=path, offset=0) from error


@contextmanager
def without_collections() -> Iterator[None]:
    """No garbage collection inside: loading and replaying make no cycles, yet each collection walks
    all of them. Measured: a million keys load in 4 s instead of 8 s."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
