"""Frames: what is written is found again, a torn tail is told from damage, the format stands."""

from __future__ import annotations

import itertools
import random
import struct
from pathlib import Path

import google_crc32c
import pytest

from ckptmesh.errors import Unsupported
from ckptmesh.framing import (
    DATA,
    FOOTER,
    FRAME_OVERHEAD,
    HEADER_BYTES,
    NO_DIGEST,
    Frame,
    FrameWriter,
    SegmentHeader,
    SegmentScan,
    Verdict,
    decode_header,
    encode_header,
    footer_time,
    frame_size,
)

GOLDEN = Path(__file__).parent.parent / "golden"
HEADER = SegmentHeader(bytes(range(16)), 3, 7, 41, bytes(range(32)), b"salt" * 4)
OLDER = HEADER._replace(salt=b"the file before!")  # whose blocks were given to this one
PAYLOADS = (b"one", b"two" * 200, b"", b"four" * 110, b"x" * 1_000)


def segment(payloads: tuple[bytes, ...] = PAYLOADS, *, footer: bool = False, tail: int = 2_048,
            header: SegmentHeader = HEADER) -> bytes:
    """A segment's bytes: one record a frame, each taking a revision; then zeroes."""
    writer = FrameWriter(header)
    parts = [encode_header(header)]
    for number, payload in enumerate(payloads):
        parts.append(writer.data(payload, header.first_revision + number, 1))
    if footer:
        parts.append(writer.footer(99, header.first_revision + len(payloads)))
    return b"".join(parts) + bytes(tail)


def scan(data: bytes, *, sealed: bool = False) -> tuple[SegmentScan, list[Frame]]:
    found = SegmentScan(data, decode_header(data), sealed=sealed)
    return found, list(found)


def last_frame(data: bytes) -> Frame:
    return scan(data)[1][-1]


# --- what is written is found again -----------------------------------------------------------


@pytest.mark.parametrize("sector", [512, 4_096])
def test_frames_come_back_in_order(sector: int) -> None:
    data = segment(header=HEADER._replace(sector=sector), tail=8_192)
    found, frames = scan(data)
    assert (found.verdict, found.reason) == (Verdict.OK, "")
    assert [frame.payload for frame in frames] == list(PAYLOADS)
    assert [frame.number for frame in frames] == [1, 2, 3, 4, 5]
    assert [frame.first_revision for frame in frames] == [41, 42, 43, 44, 45]
    assert all(frame.offset % sector == 0 for frame in frames)
    assert found.offset == frames[-1].end == len(data) - 8_192


def test_a_sealed_segment_ends_with_its_footer() -> None:
    found, frames = scan(segment(footer=True, tail=0), sealed=True)
    assert found.verdict is Verdict.OK
    assert frames[-1].kind == FOOTER
    assert found.footer is frames[-1]
    assert footer_time(frames[-1]) == 99
    assert found.digest == frames[-1].digest


def test_an_empty_segment_is_whole() -> None:
    found, frames = scan(segment(()))
    assert (found.verdict, frames, found.offset) == (Verdict.OK, [], 512)


@pytest.mark.parametrize("length", [*range(12), *range(430, 450), 952, 953, 100_000])
def test_a_frame_fills_whole_sectors_and_its_crc_stands_in_one(length: int) -> None:
    frame = FrameWriter(HEADER).data(b"p" * length, 41, 1)
    assert len(frame) == frame_size(length)
    assert len(frame) % 512 == 0
    crc_at = FRAME_OVERHEAD - 4 + length + -length % 4
    assert crc_at // 512 == (crc_at + 3) // 512


def test_the_chain_digest_does_not_depend_on_the_salt_or_the_sector() -> None:
    other = HEADER._replace(salt=b"other salt 12345", sector=4_096)
    digests = [scan(segment(header=header))[0].digest for header in (HEADER, other)]
    assert digests[0] == digests[1]


@pytest.mark.parametrize("change", [
    {"uuid": bytes(16)}, {"epoch": 4}, {"number": 8}, {"first_revision": 40},
    {"previous": NO_DIGEST},
])
def test_the_chain_digest_binds_frames_to_their_place(change: dict[str, object]) -> None:
    moved = HEADER._replace(**change)  # type: ignore[arg-type]
    assert moved.start() != HEADER.start()


# --- headers ----------------------------------------------------------------------------------


@pytest.mark.fault(23)
def test_every_flipped_bit_of_a_header_is_found() -> None:
    whole = encode_header(HEADER)
    for bit in range(len(whole) * 8):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        with pytest.raises((ValueError, Unsupported)):
            decode_header(bytes(data))


def test_an_unknown_version_is_unsupported_and_named_with_the_known_one() -> None:
    data = bytearray(encode_header(HEADER))
    struct.pack_into("<I", data, 8, 2)
    struct.pack_into("<I", data, HEADER_BYTES - 4, google_crc32c.value(bytes(data[:124])))
    with pytest.raises(Unsupported, match="version 2; this release reads 1"):
        decode_header(bytes(data))


def test_a_header_of_another_sector_size_is_damage_though_its_crc_fits() -> None:
    with pytest.raises(ValueError, match="sector size of 1024"):
        decode_header(encode_header(HEADER._replace(sector=1_024)))


def test_a_header_that_is_cut_off_is_damage() -> None:
    with pytest.raises(ValueError, match="too few"):
        decode_header(encode_header(HEADER)[: HEADER_BYTES - 1])


# --- torn tails -------------------------------------------------------------------------------


@pytest.mark.fault(20)
@pytest.mark.parametrize("keep_size", [True, False])
def test_a_tail_torn_at_any_byte_loses_the_last_frame_only(keep_size: bool) -> None:
    data = segment()
    last = last_frame(data)
    written = len(data[last.offset :].rstrip(b"\0"))
    for cut in range(last.offset + 1, last.offset + written):
        torn = data[:cut] + (bytes(len(data) - cut) if keep_size else b"")
        found, frames = scan(torn)
        assert len(frames) == len(PAYLOADS) - 1, cut
        assert found.verdict is Verdict.TORN, cut
        assert found.offset == last.offset


@pytest.mark.fault(22)
def test_zeroes_after_the_last_frame_are_clean_and_garbage_is_torn() -> None:
    data = segment(tail=0)
    for tail in (b"", bytes(1), bytes(511), bytes(70_000)):
        assert scan(data + tail)[0].verdict is Verdict.OK
    garbage = random.Random(1).randbytes(3_000)
    for tail in (garbage, bytes(600) + garbage, bytes(2_000_000) + b"x", b"CkFr" + garbage):
        found, frames = scan(data + tail)
        assert (found.verdict, len(frames)) == (Verdict.TORN, len(PAYLOADS))
        assert found.offset == len(data)


@pytest.mark.fault(21)
@pytest.mark.parametrize("fill", ["zero", "garbage", "older"])
def test_any_sector_subset_of_the_last_frame_is_torn_or_whole(fill: str) -> None:
    source = random.Random(2)
    for length in (1_400, 952, 956, 2_000):  # 952 and 956: the CRC ends a sector, or begins one
        data = segment((b"first", b"x" * length), tail=1_024)
        last = last_frame(data)
        count = (last.end - last.offset) // 512
        for subset in itertools.product((False, True), repeat=count):
            image = bytearray(data)
            for index, lost in enumerate(subset):
                if lost:
                    at = last.offset + 512 * index
                    image[at : at + 512] = {
                        "zero": bytes(512), "garbage": source.randbytes(512),
                        "older": segment((b"older" * 300,), header=OLDER)[512:1_024],
                    }[fill]
            found, frames = scan(bytes(image))
            if not any(subset):
                assert (found.verdict, len(frames)) == (Verdict.OK, 2)
            else:
                clean = fill == "zero" and all(subset)
                assert found.verdict is (Verdict.OK if clean else Verdict.TORN), subset
                assert len(frames) == 1


def test_a_torn_footer_leaves_the_segment_unsealed() -> None:
    data = segment(footer=True, tail=0)
    found, frames = scan(data[:-500])
    assert (found.verdict, len(frames), found.footer) == (Verdict.TORN, len(PAYLOADS), None)
    assert scan(data[:-500], sealed=True)[0].verdict is Verdict.CORRUPT


# --- damage -----------------------------------------------------------------------------------


@pytest.mark.fault(23)
def test_every_flipped_bit_before_the_last_frame_is_corrupt() -> None:
    data = segment()
    last = last_frame(data)
    for position in range(512, last.offset):
        for bit in (0, 3, 7):
            image = bytearray(data)
            image[position] ^= 1 << bit
            found, frames = scan(bytes(image))
            assert found.verdict is Verdict.CORRUPT, position
            assert found.offset <= position
            assert len(frames) < len(PAYLOADS)


@pytest.mark.fault(23)
def test_every_flipped_byte_of_a_sealed_segment_is_corrupt() -> None:
    data = segment(footer=True, tail=0)
    for position in range(512, len(data)):
        image = bytearray(data)
        image[position] ^= 0x40
        assert scan(bytes(image), sealed=True)[0].verdict is Verdict.CORRUPT, position


def test_a_later_frame_proves_damage_even_when_it_is_torn_itself() -> None:
    data = bytearray(segment())
    frames = scan(bytes(data))[1]
    data[frames[3].offset + 100] ^= 1
    del data[frames[4].offset + 600 :]
    found, _ = scan(bytes(data))
    assert found.verdict is Verdict.CORRUPT
    assert found.later == 45


def test_several_lost_frames_are_corrupt_as_long_as_one_is_left() -> None:
    data = bytearray(segment())
    frames = scan(bytes(data))[1]
    data[frames[0].offset : frames[4].offset] = bytes(frames[4].offset - frames[0].offset)
    found, none = scan(bytes(data))
    assert (found.verdict, none, found.later) == (Verdict.CORRUPT, [], 45)


@pytest.mark.parametrize("sealed", [False, True])
def test_non_zero_padding_is_damage_in_the_very_last_frame_too(sealed: bool) -> None:
    data = bytearray(segment((b"one", b"two"), footer=sealed))
    end = scan(bytes(data))[1][-1].end
    data[end - 1] = 1
    assert scan(bytes(data), sealed=sealed)[0].verdict is Verdict.CORRUPT


def test_bytes_after_a_footer_are_damage() -> None:
    assert scan(segment(footer=True, tail=512) + b"x")[0].verdict is Verdict.CORRUPT


@pytest.mark.parametrize("cut", [1, 512, 700])
def test_a_sealed_segment_cut_short_is_damage(cut: int) -> None:
    assert scan(segment(footer=True, tail=0)[:-cut], sealed=True)[0].verdict is Verdict.CORRUPT


@pytest.mark.fault(25)
def test_frames_of_another_file_never_match() -> None:
    other = segment(header=HEADER._replace(salt=b"another salt 123"))
    data = segment(tail=0)
    found, frames = scan(data + other[512:])
    assert (found.verdict, len(frames)) == (Verdict.TORN, len(PAYLOADS))
    found, frames = scan(data[:512] + other[512:])
    assert (found.verdict, frames) == (Verdict.TORN, [])


def test_a_value_that_holds_a_copy_of_this_segment_proves_nothing() -> None:
    copy = segment(tail=0)
    base = (*PAYLOADS, b"a" * (512 - FRAME_OVERHEAD))
    data = segment((*base, b"b" * (512 - FRAME_OVERHEAD + 4) + copy), tail=0)
    image = bytearray(data)
    image[-600] ^= 1
    found, frames = scan(bytes(image))
    assert (found.verdict, len(frames)) == (Verdict.TORN, len(base))


def test_a_frame_in_the_wrong_place_is_corrupt() -> None:
    data = segment((b"one", b"two", b"three"), tail=0)
    swapped = data[:512] + data[1_024:1_536] + data[512:1_024] + data[1_536:]
    repeated = data[:1_024] + data[512:1_024]
    for image in (swapped, repeated):
        assert scan(image)[0].verdict is Verdict.CORRUPT


def test_a_frame_whose_number_skips_one_is_corrupt_though_its_digest_fits() -> None:
    writer = FrameWriter(HEADER)
    data = encode_header(HEADER) + writer.data(b"one", 41, 1)
    writer.number += 1
    found, frames = scan(data + writer.data(b"two", 42, 1))
    assert (found.verdict, len(frames)) == (Verdict.CORRUPT, 1)
    assert found.reason.startswith("frame 3 stands where frame 2 belongs")


def test_a_frame_rewritten_with_valid_checksums_breaks_the_chain_of_those_after_it() -> None:
    """Checksums find accidents; what was changed on purpose shows in the digests."""
    honest = segment((b"one", b"two", b"three"))
    forged = segment((b"one", b"TWO", b"three"))
    found, frames = scan(honest[:1_024] + forged[1_024:1_536] + honest[1_536:])
    assert [frame.payload for frame in frames] == [b"one", b"TWO"]
    assert (found.verdict, found.offset) == (Verdict.CORRUPT, 1_536)
    assert found.reason == "frame 3 does not continue the digest chain"


@pytest.mark.parametrize("fields", [(3, 0, 0, 0), (DATA, 1, 0, 0), (0, 0, 0, 0),
                                    (DATA, 0, 1, 0), (DATA, 0, 0, 1)])
def test_an_unknown_frame_type_or_flag_is_unsupported(fields: tuple[int, ...]) -> None:
    data = bytearray(segment((b"one",)))
    data[516:520] = bytes(fields)
    struct.pack_into("<I", data, 576, google_crc32c.extend(HEADER.seed(), bytes(data[512:576])))
    assert scan(bytes(data))[0].verdict is Verdict.UNSUPPORTED


@pytest.mark.parametrize("size", [0, 7, 9])
def test_a_footer_whose_payload_is_no_time_is_damage(size: int) -> None:
    footer = FrameWriter(HEADER).encode(FOOTER, bytes(size), 41, 0)
    found, frames = scan(encode_header(HEADER) + footer)
    assert (found.verdict, frames, found.footer) == (Verdict.CORRUPT, [], None)


# --- golden -----------------------------------------------------------------------------------


def test_the_golden_segment_of_version_1_reads_and_writes_byte_for_byte() -> None:
    data = (GOLDEN / "segment-1.seg").read_bytes()
    found, frames = scan(data, sealed=True)
    assert found.verdict is Verdict.OK
    header = decode_header(data)
    writer = FrameWriter(header)
    again = encode_header(header) + b"".join(
        writer.encode(frame.kind, frame.payload, frame.first_revision, frame.records)
        for frame in frames
    )
    assert again == data
    assert dump(data) == (GOLDEN / "segment-1.txt").read_text()


def dump(data: bytes) -> str:
    """A segment for people: what `segment-1.txt` holds, so that a change of format is a diff."""
    from ckptmesh.records import decode_records

    header = decode_header(data)
    lines = [f"{name}: {value.hex() if isinstance(value, bytes) else value}"
             for name, value in header._asdict().items()]
    for frame in SegmentScan(data, header, sealed=True):
        lines.append(f"frame {frame.number} kind {frame.kind} at {frame.offset} "
                     f"first_revision {frame.first_revision} digest {frame.digest.hex()}")
        if frame.kind == DATA:
            lines += [f"  {record}" for record in decode_records(frame.payload)]
        else:
            lines.append(f"  sealed_at {footer_time(frame)}")
    for offset in range(0, len(data), 16):
        row = data[offset : offset + 16]
        if row.strip(b"\0"):
            lines.append(f"{offset:08x}  {row.hex(' ')}")
    return "\n".join(lines) + "\n"


@pytest.mark.fault(23)
@pytest.mark.parametrize("length", [1, 2, 3])
def test_a_byte_between_payload_and_crc_is_damage_even_behind_a_right_crc(length: int) -> None:
    """The chain covers the payload alone, so nothing else would tell."""
    image = bytearray(segment((b"p" * length,)))
    image[512 + 68 + length] = 1
    body = bytes(image[512 + 68 : 512 + 72])
    struct.pack_into("<I", image, 512 + 72, google_crc32c.extend(HEADER.seed(), body))
    found, frames = scan(bytes(image))
    assert (found.verdict, frames) == (Verdict.CORRUPT, [])
    assert "padding" in found.reason
