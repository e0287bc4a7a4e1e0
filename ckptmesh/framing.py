"""Log segments as bytes: headers, frames, and the verdict on what a crash or the disk left.

Rule 1: nothing here reads a clock, a file or a random number; the salt is an argument.
Rule 2: the next frame is written only after the one before is durable. So a valid header of any
        later frame proves that a bad frame before it was once whole: damage, not a torn write.
Rule 3: a frame fills whole sectors, so that no torn sector holds parts of two frames.

Format version 1. Integers are little-endian and unsigned. A segment is a header, then frames, then
zeroes (preallocated space) up to the end of the file. `pad(n)` rounds up to whole sectors.

    segment header: 128 bytes, then zeroes to the end of the sector
      0    8  magic "CKPTSEGM"
      8    4  format version
     12    4  sector size in bytes: 512 or 4,096
     16   16  UUID of the store
     32    8  newest epoch before the segment's first frame
     40    8  segment number, from 1, without gaps
     48    8  first revision: the next one to be taken when the segment began
     56   32  previous digest: chain digest at the end of the segment before (zeroes: the first)
     88   16  salt, random, another for every file that is written
    104   20  zero, reserved
    124    4  CRC32C of bytes 0 to 123
    Size of the header and place of its CRC are the same in every format version.

    frame: pad(72 + n') bytes, where n' is n rounded up to a multiple of 4
      0    4  magic "CkFr"
      4    1  type: 1 DATA, 2 FOOTER
      5    1  flags: 0
      6    2  zero, reserved
      8    4  n: length of the payload in bytes
     12    4  record count
     16    8  frame number, from 1 within the segment
     24    8  first revision: the next one to be taken before this frame's records
     32   32  chain digest before this frame
     64    4  CRC32C, seeded with the salt, of bytes 0 to 63
     68    n  payload (DATA: see `records.py`; FOOTER: 8 bytes, the time of sealing, microseconds)
     68+n     zeroes to a multiple of 4
     68+n' 4  CRC32C, seeded with the salt, of the payload and those zeroes
     72+n'    zeroes to the end of the sector

"Seeded with the salt": the CRC32C of salt and bytes together. So blocks of another file never
match, although the same frame stood there. The payload's CRC is aligned so that it lies within one
sector: a sector of garbage can then not pass for a whole frame with damaged padding.

The chain digest begins in each segment with the SHA-256 of bytes 16 to 87 of its header, and goes
on with each frame as the SHA-256 of its bytes 0 to 63 and its payload. Neither covers a salt or a
CRC, so the chain survives being copied to another file. A FOOTER is the last frame of a sealed
segment, and the digest after it is the next segment's previous digest.
"""

from __future__ import annotations

import functools
import hashlib
import struct
from collections.abc import Iterator
from enum import Enum
from typing import NamedTuple

import google_crc32c

from ckptmesh.errors import Unsupported
from ckptmesh.messages import tuple_of

FORMAT_VERSION = 1
SEGMENT_MAGIC = b"CKPTSEGM"
FRAME_MAGIC = b"CkFr"
DATA, FOOTER = 1, 2
SECTORS = (512, 4_096)
NO_DIGEST = bytes(32)

_HEADER = struct.Struct("<8sII16sQQQ32s16s20xI")
_FRAME = struct.Struct("<4sBBHIIQQ32s")
_CRC = struct.Struct("<I")
_FRAME_AND_CRC = struct.Struct(_FRAME.format + "I")
_FOOTER_PAYLOAD = struct.Struct("<Q")
HEADER_BYTES = _HEADER.size
FRAME_HEADER_BYTES = _FRAME.size + _CRC.size
FRAME_OVERHEAD = FRAME_HEADER_BYTES + _CRC.size
PAYLOAD_LIMIT = 2**31  # bytes; the reader multiplies nothing, this only keeps offsets sane

_crc = google_crc32c.extend
_sha256 = hashlib.sha256
_ZEROES = bytes(1 << 20)
_zeroes = functools.cache(bytes)  # so many of them, of which there are as many as bytes in a sector


class SegmentHeader(NamedTuple):
    """What a segment says about itself. `previous` is the chain digest that it continues."""

    uuid: bytes
    epoch: int
    number: int
    first_revision: int
    previous: bytes
    salt: bytes
    sector: int = 512

    def start(self) -> bytes:
        """The chain digest before the first frame: it binds the frames to this place in the log."""
        return _sha256(_identity(self)).digest()

    def seed(self) -> int:
        """What every CRC of a frame begins with, so that no other file's frames match."""
        return int(google_crc32c.value(self.salt))


def _identity(header: SegmentHeader) -> bytes:
    return header.uuid + struct.pack(
        "<QQQ", header.epoch, header.number, header.first_revision
    ) + header.previous


def encode_header(header: SegmentHeader) -> bytes:
    """The header's first sector, whole."""
    packed = _HEADER.pack(
        SEGMENT_MAGIC, FORMAT_VERSION, header.sector, header.uuid, header.epoch, header.number,
        header.first_revision, header.previous, header.salt, 0,
    )[:-4]
    return (packed + _CRC.pack(google_crc32c.value(packed))).ljust(header.sector, b"\0")


def decode_header(data: bytes) -> SegmentHeader:
    """The header at the beginning of a segment's bytes.

    Raises `ValueError` where it is damaged, `Unsupported` for another format version.
    """
    if len(data) < HEADER_BYTES:
        raise ValueError(f"{len(data)} bytes are too few for a segment header")
    packed = bytes(data[: HEADER_BYTES - 4])
    magic, version, sector, uuid, epoch, number, first, previous, salt, crc = _HEADER.unpack_from(
        data
    )
    if magic != SEGMENT_MAGIC:
        raise ValueError("the segment header's magic is missing")
    if crc != google_crc32c.value(packed):
        raise ValueError("the segment header's CRC does not match")
    if version != FORMAT_VERSION:
        raise Unsupported(
            f"the segment has format version {version}; this release reads {FORMAT_VERSION}",
            hint="use the release of ckptmesh that wrote it", found=version, known=FORMAT_VERSION,
        )
    if sector not in SECTORS:
        raise ValueError(f"the segment header names a sector size of {sector}")
    if packed[104:].strip(b"\0") or data[HEADER_BYTES:sector].strip(b"\0"):
        raise ValueError("the segment header's padding is not zero")
    return SegmentHeader(uuid, epoch, number, first, previous, salt, sector)


class Frame(NamedTuple):
    """One frame found whole: `end` is the next frame's offset, `records` how many records it says
    it holds, `digest` the chain digest after it."""

    offset: int
    end: int
    kind: int
    number: int
    first_revision: int
    records: int
    payload: bytes
    digest: bytes


def frame_size(payload_bytes: int, sector: int = 512) -> int:
    """Bytes on disk of a frame with a payload of this size."""
    size = FRAME_OVERHEAD + payload_bytes + -payload_bytes % 4
    return size + -size % sector


class FrameWriter:
    """Encodes the frames of one segment in their order, keeping number and chain digest.

    `number` counts the frames encoded so far, `digest` is the chain digest after them.
    """

    __slots__ = ("_sector", "_seed", "digest", "number")

    def __init__(self, header: SegmentHeader) -> None:
        self._seed = header.seed()
        self._sector = header.sector
        self.number = 0
        self.digest = header.start()

    def encode(self, kind: int, payload: bytes, first_revision: int, count: int) -> bytes:
        """The next frame, whole sectors. Raises `ValueError` over `PAYLOAD_LIMIT`."""
        length = len(payload)
        if length > PAYLOAD_LIMIT:
            raise ValueError(f"a payload of {length:,} bytes is over {PAYLOAD_LIMIT:,}")
        head = _FRAME.pack(
            FRAME_MAGIC, kind, 0, 0, length, count, self.number + 1, first_revision, self.digest
        )
        body = payload + bytes(-length % 4)
        frame = b"".join((
            head, _CRC.pack(_crc(self._seed, head)), body, _CRC.pack(_crc(self._seed, body))
        ))
        self.number += 1
        self.digest = _sha256(head + payload).digest()
        return frame + bytes(-len(frame) % self._sector)

    def data(self, payload: bytes, first_revision: int, count: int) -> bytes:
        """A DATA frame."""
        return self.encode(DATA, payload, first_revision, count)

    def footer(self, sealed_at: int, first_revision: int) -> bytes:
        """The FOOTER: `sealed_at` in microseconds, `first_revision` the next one to be taken."""
        return self.encode(FOOTER, _FOOTER_PAYLOAD.pack(sealed_at), first_revision, 0)


def footer_time(frame: Frame) -> int:
    """When a FOOTER says that its segment was sealed, microseconds."""
    return int(_FOOTER_PAYLOAD.unpack(frame.payload)[0])


class Verdict(Enum):
    """What a scan found after the last whole frame."""

    OK = "ok"
    TORN = "torn"
    CORRUPT = "corrupt"
    UNSUPPORTED = "unsupported"


class _Stop(Exception):
    """Ends a scan at a frame that is not whole. `torn`: a crash could have left it so."""

    def __init__(self, reason: str, *, torn: bool = False, verdict: Verdict = Verdict.CORRUPT):
        super().__init__(reason)
        self.reason = reason
        self.torn = torn
        self.verdict = verdict


class SegmentScan:
    """The frames of one segment's bytes: iterate once, then read the verdict.

    `sealed`: the segment must end with a FOOTER, so whatever is wrong is damage. Otherwise a bad
    tail without a later frame is TORN, and zeroes after the last frame are how it should end.

    After the iteration: `verdict`; `offset`, where the whole frames end (and the bad bytes begin);
    `reason`, for people, "" when ok; `number` and `digest` after the last whole frame; `footer`,
    the FOOTER frame or None; `later`, the first revision of the later frame that proves damage, or
    None.
    """

    def __init__(self, data: bytes, header: SegmentHeader, *, sealed: bool = False) -> None:
        self._data = data
        self._sector = header.sector
        self._seed = header.seed()
        self._sealed = sealed
        self.verdict = Verdict.OK
        self.offset = header.sector
        self.reason = ""
        self.number = 0
        self.digest = header.start()
        self.footer: Frame | None = None
        self.later: int | None = None

    def __iter__(self) -> Iterator[Frame]:
        data, size = self._data, len(self._data)
        try:
            while self.offset < size and self.footer is None:
                if not data.startswith(FRAME_MAGIC, self.offset) and self._zero_tail():
                    break
                frame = self._read()
                self.offset = frame.end
                self.number = frame.number
                self.digest = frame.digest
                if frame.kind == FOOTER:
                    self.footer = frame
                yield frame
            if self.footer is not None and not self._zero_tail():
                raise _Stop("there are bytes after the footer")
            if self._sealed and self.footer is None:
                raise _Stop("the footer of a sealed segment is missing")
        except _Stop as stop:
            self._judge(stop)

    def _judge(self, stop: _Stop) -> None:
        self.reason = stop.reason
        self.verdict = stop.verdict
        self.later = self._find_later()
        if self.later is not None:
            self.reason += "; a later frame is whole, so this is damage and no torn write"
        elif stop.torn and not self._sealed:
            self.verdict = Verdict.TORN

    def _read(self) -> Frame:
        """The frame at `offset`. Raises `_Stop` where it is not whole."""
        data, offset = self._data, self.offset
        body_at = offset + FRAME_HEADER_BYTES
        if len(data) < body_at:
            raise _Stop("the frame's header is cut off", torn=True)
        magic, kind, flags, reserved, length, count, number, revision, previous, crc = (
            _FRAME_AND_CRC.unpack_from(data, offset))
        head = data[offset : offset + _FRAME.size]
        if magic != FRAME_MAGIC:
            raise _Stop("no frame begins here", torn=True)
        if crc != _crc(self._seed, head):
            raise _Stop("the frame header's CRC does not match", torn=True)
        # From here on the header is what its writer meant: no torn write explains a difference.
        if number != self.number + 1:
            raise _Stop(f"frame {number} stands where frame {self.number + 1} belongs")
        if previous != self.digest:
            raise _Stop(f"frame {number} does not continue the digest chain")
        if kind not in (DATA, FOOTER) or flags or reserved:
            raise _Stop(f"frame {number} has unknown type {kind} or flags {flags}",
                        verdict=Verdict.UNSUPPORTED)
        payload_end = body_at + length
        crc_at = payload_end + -length % 4
        padding_at = crc_at + _CRC.size
        if len(data) < padding_at:
            raise _Stop(f"frame {number} is cut off", torn=True)
        body = data[body_at:crc_at]
        if _CRC.unpack_from(data, crc_at)[0] != _crc(self._seed, body):
            raise _Stop(f"the payload's CRC of frame {number} does not match", torn=True)
        end = padding_at + -(padding_at - offset) % self._sector
        if not data.startswith(_zeroes(min(end, len(data)) - padding_at), padding_at):
            raise _Stop(f"the padding of frame {number} is not zero")
        if len(data) < end:
            raise _Stop(f"the padding of frame {number} is cut off", torn=True)
        if kind == FOOTER and length != _FOOTER_PAYLOAD.size:
            raise _Stop(f"the footer, frame {number}, has a wrong length")
        payload = body
        if crc_at != payload_end:
            payload = body[:length]
            if body[length:].strip(b"\0"):  # the chain does not cover these
                raise _Stop(f"the padding of frame {number} is not zero")
        frame: Frame = tuple_of(Frame, (offset, end, kind, number, revision, count, payload,
                                    _sha256(head + payload).digest()))
        return frame

    def _zero_tail(self) -> bool:
        """Whether nothing but zeroes follows."""
        data, at = self._data, self.offset
        if data[at : at + 4].strip(b"\0"):
            return False
        while at < len(data):
            chunk = data[at : at + len(_ZEROES)]
            if chunk != _ZEROES[: len(chunk)]:
                return False
            at += len(chunk)
        return True

    def _find_later(self) -> int | None:
        """First revision of a frame beyond the bad one whose header is whole, or None.

        A value may hold a copy of this very file (a backup), but only of frames already written
        when it was: a later frame's number is greater than the bad one's.
        """
        data = self._data
        at = data.find(FRAME_MAGIC, self.offset)
        while at >= 0:
            head = data[at : at + 64]
            if at % self._sector == 0 and at + FRAME_HEADER_BYTES <= len(data):
                number, revision = struct.unpack_from("<QQ", head, 16)
                crc = _CRC.unpack_from(data, at + 64)[0]
                if number > self.number + 1 and crc == _crc(self._seed, head):
                    return int(revision)
            at = data.find(FRAME_MAGIC, at + 1)
        return None
