"""Targets: the readers of what lies on a disk, given bytes whose checksums are right.

Damage without a right checksum is refused at the checksum; that is shown too, but what stands
behind it is reached only by bytes that are sealed again after each change.
"""

from __future__ import annotations

import struct
from hashlib import sha256
from typing import Any

import google_crc32c
import msgpack

from ckptmesh import limits
from ckptmesh.errors import Corrupt, InvalidKey, TooLarge, Unsupported
from ckptmesh.framing import (
    DATA,
    FOOTER,
    FRAME_MAGIC,
    FrameWriter,
    SegmentHeader,
    SegmentScan,
    Verdict,
    decode_header,
    encode_header,
)
from ckptmesh.manifest import (
    Manifest,
    decode_manifest,
    encode_manifest,
    parse_segment_file,
    segment_file,
)
from ckptmesh.records import decode_records, encode_records
from ckptmesh.snapshots import FOOTER_BYTES, HEADER_BYTES, SnapshotHeader, encode, load_snapshot
from ckptmesh.state import State
from tests.fuzz.taking import Taker, refused

UUID = b"u" * 16
HEADER = SegmentHeader(UUID, 1, 1, 1, bytes(32), b"salt" * 4)
_HEADER_SECTOR = encode_header(HEADER)
_U32 = struct.Struct("<I")


# --- the log ----------------------------------------------------------------------------------


def segment(data: bytes) -> None:
    """A segment: any verdict of the four and no other exception; frames that are found whole are
    byte by byte those that a writer writes. The first byte says how the rest becomes a segment."""
    take = Taker(data)
    flags = take.byte()
    match flags & 3:
        case 0:
            _header(take.rest(), flags & 4)
            return
        case 1:
            image = bytearray(_HEADER_SECTOR + take.rest())
        case _:
            image = _built(take)
    if flags & 8:
        image += bytes(-len(image) % 512)
    if flags & 4:
        seal_frames(image, chain=bool(flags & 16))
    _scan(bytes(image), sealed=bool(flags & 32))


def _header(data: bytes, sealing: int) -> None:
    if sealing and len(data) >= 128:
        data = data[:124] + _U32.pack(google_crc32c.value(data[:124])) + data[128:]
        data = data.ljust(4_096, b"\0")
    header = refused(lambda: decode_header(data), ValueError, Unsupported)
    if header is not None:
        assert encode_header(header) == data[: header.sector].ljust(header.sector, b"\0")


def _built(take: Taker) -> bytearray:
    """Frames as a writer makes them, then bytes changed in them."""
    writer = FrameWriter(HEADER)
    image = bytearray(_HEADER_SECTOR)
    for _ in range(take.byte() % 4 + 1):
        kind, count = (FOOTER if take.byte() % 4 == 3 else DATA), take.byte()
        image += writer.encode(kind, take.counted(), 1 + take.byte(), count)
    while take:
        place = int.from_bytes(take.take(2), "big") % len(image)
        image[place] ^= take.byte()
    return image


def seal_frames(image: bytearray, *, chain: bool) -> None:
    """Make the CRCs of all frames right again; with `chain` their numbers and digests too."""
    seed, digest, at, number = HEADER.seed(), HEADER.start(), 512, 0
    while image.startswith(FRAME_MAGIC, at) and at + 72 <= len(image):
        number += 1
        if chain:
            struct.pack_into("<Q8x32s", image, at + 16, number, digest)
        head = bytes(image[at : at + 64])
        _U32.pack_into(image, at + 64, google_crc32c.extend(seed, head))
        length = _U32.unpack_from(image, at + 8)[0]
        crc_at = at + 68 + length + -length % 4
        if crc_at + 4 > len(image):
            return
        content = bytes(image[at + 68 : crc_at])
        _U32.pack_into(image, crc_at, google_crc32c.extend(seed, content))
        digest = sha256(head + content[:length]).digest()
        at = crc_at + 4 + -(crc_at + 4) % 512


def _scan(image: bytes, *, sealed: bool) -> None:
    scan = SegmentScan(image, HEADER, sealed=sealed)
    writer = FrameWriter(HEADER)
    end = HEADER.sector
    for frame in scan:
        assert frame.offset == end, "there is a gap between two frames"
        end = frame.end
        assert image[frame.offset : end] == writer.encode(
            frame.kind, frame.payload, frame.first_revision, frame.records)
        if frame.kind == DATA:
            refused(lambda payload=frame.payload: decode_records(payload), ValueError)
    assert (scan.offset, scan.digest, scan.number) == (end, writer.digest, writer.number)
    assert type(scan.verdict) is Verdict
    assert (scan.verdict is Verdict.OK) == (scan.reason == "")
    if scan.verdict is Verdict.OK:
        assert not image[end:].strip(b"\0"), "something follows that was not looked at"
        assert scan.footer is not None or not sealed
    elif scan.verdict is Verdict.TORN:
        assert not sealed
        assert scan.later is None


def records(data: bytes) -> None:
    """The payload of a whole frame: records or a `ValueError`; what is read is read again the same;
    a state takes each record or raises `ValueError`, and what it then holds survives a snapshot."""
    found = refused(lambda: decode_records(data), ValueError)
    if found is None:
        return
    packed = encode_records(found)
    again = decode_records(packed)
    assert again == found
    assert encode_records(again) == packed
    state = State(UUID)
    for record in found:
        if refused(lambda record=record: [state.apply(record)], ValueError) is None:
            return
    dumped = msgpack.packb(list(state.dump()))
    loaded = State.load(msgpack.unpackb(dumped, use_list=False))
    assert msgpack.packb(list(loaded.dump())) == dumped, "a snapshot would lose something"


# --- snapshots --------------------------------------------------------------------------------


class OneFile:
    """As much of `disk.Disk` as a reader of one file asks for."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def open(self, path: str, mode: str) -> int:
        return 0

    def pread(self, handle: int, size: int, offset: int) -> bytes:
        return self._data[offset : offset + size]

    def size(self, handle: int) -> int:
        return len(self._data)

    def close(self, handle: int) -> None:
        pass


def snapshot(data: bytes) -> None:
    """A snapshot file: `Corrupt`, `Unsupported`, or the state that its header says, of which a
    snapshot can be made. The first byte says how the rest becomes a file.

    No more is asked of the state: rows that contradict each other (a key that two sections hold
    at one revision) behind right checksums are their writer's, and may be `Corrupt` only when the
    state has been saved and is read again."""
    take = Taker(data)
    flags = take.byte()
    image = _built_snapshot(take) if flags & 1 else take.rest()
    if flags & 2:
        image = seal_snapshot(image, counts=bool(flags & 4))
    disk: Any = OneFile(image)
    found = refused(lambda: load_snapshot(disk, "snap"), Corrupt, Unsupported)
    if found is None:
        return
    state, info = found
    assert info.size == len(image)
    assert (state.uuid, state.revision, state.floor) == (
        info.header.uuid, info.header.revision, info.header.floor)
    disk = OneFile(b"".join(encode(info.header, state.dump())))
    refused(lambda: load_snapshot(disk, "copy"), Corrupt)


EMPTY = SnapshotHeader(UUID, 0, 0, 0, 0, 0, b"salt" * 4)


def block(section: int, count: int, rows: bytes) -> bytes:
    """One block of a snapshot, its CRC yet to be made."""
    return struct.pack("<IHHI", len(rows), section, 0, count) + rows + bytes(4)


def _built_snapshot(take: Taker) -> bytes:
    """A file of any blocks, with the header that belongs to what they make up, if anything."""
    blocks = []
    while take:
        blocks.append((take.byte(), take.byte(), take.counted(2)))
    head, foot = _ends(blocks)
    parts = [block(*parts) for parts in blocks]
    return seal_snapshot(b"".join((head, *parts, foot)), counts=True)


def _ends(blocks: list[tuple[int, int, bytes]]) -> list[bytes]:
    """Header and footer around these blocks; what cannot be loaded gets those of an empty store."""
    try:
        state = State.load((section, msgpack.unpackb(rows, use_list=False))
                           for section, _, rows in blocks)
        return list(encode(SnapshotHeader(state.uuid, state.epoch, state.revision, state.time,
                                          state.floor, 0, EMPTY.salt), ()))
    except Exception:  # the target sees for itself what the reader says to it
        return list(encode(EMPTY, ()))


def seal_snapshot(data: bytes, *, counts: bool) -> bytes:
    """The file with every CRC and the SHA-256 made right; with `counts` its totals too."""
    if len(data) < HEADER_BYTES + FOOTER_BYTES:
        return data
    image = bytearray(data)
    _U32.pack_into(image, 124, google_crc32c.value(bytes(image[:124])))
    seed = google_crc32c.value(bytes(image[68:84]))
    at, end, blocks, rows = HEADER_BYTES, len(image) - FOOTER_BYTES, 0, 0
    while at + 16 <= end:
        length, _, _, count = struct.unpack_from("<IHHI", image, at)
        crc_at = at + 12 + length
        if crc_at + 4 > end:
            break
        _U32.pack_into(image, crc_at, google_crc32c.extend(seed, bytes(image[at:crc_at])))
        at, blocks, rows = crc_at + 4, blocks + 1, rows + count
    if counts:
        struct.pack_into("<QQ", image, end + 8, blocks, rows)
    image[-32:] = sha256(bytes(image[:-32])).digest()
    return bytes(image)


# --- the manifest, names ----------------------------------------------------------------------


def manifest(data: bytes) -> None:
    """A MANIFEST: `ValueError`, `Unsupported`, or a manifest that is written and read again the
    same. With an odd first byte the line with the CRC is put behind the rest."""
    content = data[1:]
    if data[:1] and data[0] & 1:
        content = seal_manifest(content)
    found = refused(lambda: decode_manifest(content), ValueError, Unsupported)
    if found is None:
        return
    assert type(found) is Manifest
    assert decode_manifest(encode_manifest(found)) == found
    found.following().files()


def seal_manifest(content: bytes) -> bytes:
    """A manifest's last line, with the CRC of what comes before it."""
    return content + b',\n "crc32c": "%08x"\n}\n' % google_crc32c.value(content)


def names(data: bytes) -> None:
    """Names: of segments, which stand for their two numbers; of keys, which are then text of one
    pipeline that every prefix of segments selects."""
    name = data.decode("utf-8", "surrogateescape")
    place = parse_segment_file(name)
    if place is not None:
        assert parse_segment_file(segment_file(*place).removeprefix("wal/")) == place
    try:
        limits.check_key(name)
    except (InvalidKey, TooLarge):
        return
    assert 0 < len(name.encode()) <= limits.KEY_BYTES
    assert name.isprintable() or " " in name or not name.isascii()
    assert limits.under(limits.pipeline_of(name), name)
