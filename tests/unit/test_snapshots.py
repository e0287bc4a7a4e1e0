"""Snapshot files: what is written comes back, and no changed bit passes."""

from __future__ import annotations

import errno
import hashlib
import struct
from pathlib import Path
from typing import Any

import google_crc32c
import pytest

from ckptmesh.disk import RealDisk
from ckptmesh.errors import Corrupt, Unsupported
from ckptmesh.facts import (
    EpochBegun,
    Expiry,
    LossAccepted,
    LossSuspected,
    SessionOpened,
    SettingChanged,
    TimeReserved,
    Transaction,
    Write,
)
from ckptmesh.messages import DELETE, PUT, TOUCH
from ckptmesh.snapshots import (
    BLOCK_BYTES,
    BLOCK_ROWS,
    FOOTER_BYTES,
    HEADER_BYTES,
    Reader,
    SnapshotHeader,
    encode,
    load_snapshot,
    verify_snapshot,
    write_snapshot,
)
from ckptmesh.state import State

GOLDEN = Path(__file__).parent.parent / "golden" / "snapshot-1.snap"
SESSION = b"session-of-16-by"
SALT = bytes(range(16))
HEADER = SnapshotHeader(b"u" * 16, 1, 2, 3, 0, 4, SALT)


def rich_state() -> State:
    """A state in which each section of a snapshot has rows."""
    state = State(b"0123456789abcdef")
    state.apply(SettingChanged("history_revisions", 6))
    state.apply(SettingChanged("history_versions", 2))
    state.apply(EpochBegun(1, 1_000))
    state.apply(SessionOpened(SESSION, 1_001, "host:1:test"))
    writes = [
        (Write(PUT, "orders", b"\x01", None, None, 1), Write(PUT, "orders/a", b"\x02", 9_000)),
        (Write(PUT, "orders", b"\x03", None, None, 2, 9, (("orders/a", 1),)),),
        (Write(PUT, "orders/_lock/x", b"\xc0", 5_000, 3_000),),
        (Write(DELETE, "orders"),),
        (Write(PUT, "orders", b"\x04"),),
        (Write(TOUCH, "orders", b"", 8_000),),
        (Write(PUT, "invoices", b"\x05" * 40),),
        (Write(DELETE, "orders"), Write(PUT, "orders/b", b"\x06")),
    ]
    for number, row in enumerate(writes, 1):
        state.apply(Transaction(SESSION, number, max(1, number - 2), 77 + number, 1_001 + number,
                                row, tuple(1 for _ in row)))
    state.apply(EpochBegun(2, 2_000))
    state.apply(Expiry(9_001, "orders/a"))
    state.apply(TimeReserved(20_000))
    state.apply(LossSuspected(1, 99))
    state.apply(LossAccepted())
    return state


def everything(state: State) -> list[object]:
    """All that a state dumps, as plain values: equal for equal states."""
    return [(section, [_plain(row) for row in rows]) for section, rows in state.dump()]


def _plain(row: object) -> object:
    return [_plain(item) for item in row] if isinstance(row, list | tuple) else row


def reader(data: bytes) -> Reader:
    return Reader(lambda offset, size: data[offset : offset + size], len(data), "x.snap")


def read_all(data: bytes) -> list[tuple[int, tuple[object, ...]]]:
    return list(reader(data).blocks())


def test_a_state_comes_back_from_its_snapshot(tmp_path: Path) -> None:
    state, path = rich_state(), str(tmp_path / "a.snap")
    header = write_snapshot(RealDisk(), path, state, segment=7, salt=SALT)
    loaded, info = load_snapshot(RealDisk(), path)
    assert everything(loaded) == everything(state)
    assert loaded.digest() == state.digest()
    assert info.header == header == (state.uuid, 2, 9, 9_001, state.floor, 7, SALT)
    assert 0 < state.floor < state.revision
    assert info == verify_snapshot(RealDisk(), path)
    assert info.size == (tmp_path / "a.snap").stat().st_size
    assert {section for section, _ in state.dump()} == {0, 1, 2, 3, 4, 5}


def test_a_loaded_state_goes_on_like_the_one_that_was_saved(tmp_path: Path) -> None:
    state, path = rich_state(), str(tmp_path / "a.snap")
    write_snapshot(RealDisk(), path, state, segment=7, salt=SALT)
    loaded, _ = load_snapshot(RealDisk(), path)
    for number in range(9, 30):
        record = Transaction(SESSION, number, number - 1, 5, 10_000 + number,
                             (Write(PUT, f"orders/{number % 4}", b"\x07"),), (number,))
        assert loaded.apply(record) == state.apply(record)
    assert everything(loaded) == everything(state)


def test_an_empty_store_has_a_snapshot_too(tmp_path: Path) -> None:
    path = str(tmp_path / "empty.snap")
    write_snapshot(RealDisk(), path, State(b"e" * 16), segment=0, salt=SALT)
    loaded, info = load_snapshot(RealDisk(), path)
    assert (loaded.revision, loaded.uuid, info.rows) == (0, b"e" * 16, 1)


def test_the_format_is_the_golden_one() -> None:
    """A change of this file is a change of the format: it needs a new format version."""
    data = b"".join(encode(SnapshotHeader(b"0123456789abcdef", 2, 9, 9_001, rich_state().floor, 7,
                                          SALT), rich_state().dump()))
    assert data == GOLDEN.read_bytes()
    state, _ = load_snapshot(RealDisk(), str(GOLDEN))
    assert everything(state) == everything(rich_state())


@pytest.mark.fault(27)
def test_each_flipped_bit_is_found() -> None:
    data = GOLDEN.read_bytes()
    for at in range(len(data)):
        for bit in range(8):
            flipped = bytearray(data)
            flipped[at] ^= 1 << bit
            with pytest.raises(Corrupt) as caught:
                read_all(bytes(flipped))
            assert caught.value.details["file"] == "x.snap"
            assert 0 <= caught.value.details["offset"] <= at


@pytest.mark.fault(27)
def test_each_cut_and_each_appended_byte_is_found() -> None:
    data = GOLDEN.read_bytes()
    for size in range(len(data)):
        with pytest.raises(Corrupt):
            read_all(data[:size])
    for tail in (b"\0", b"\0" * 512, data[-FOOTER_BYTES:], data):
        with pytest.raises(Corrupt):
            read_all(data + tail)


@pytest.mark.fault(27)
def test_a_missing_doubled_or_swapped_block_is_found() -> None:
    pieces = list(encode(HEADER, [(1, [(1,)]), (2, [(2,)]), (3, [(3,)])]))
    head, one, two, three, foot = pieces
    assert [rows for _, rows in read_all(b"".join(pieces))] == [((1,),), ((2,),), ((3,),)]
    for order in ([one, three], [one, two, two, three], [two, one, three], []):
        with pytest.raises(Corrupt):
            read_all(b"".join([head, *order, foot]))


def test_a_block_of_another_snapshot_never_matches() -> None:
    other = HEADER._replace(salt=b"another salt 16b")
    head, _, foot = encode(HEADER, [(1, [(1,)])])
    _, block, _ = encode(other, [(1, [(1,)])])
    with pytest.raises(Corrupt, match="checksum") as caught:
        read_all(head + block + foot)
    assert caught.value.details["offset"] == HEADER_BYTES


def test_a_rewritten_block_with_a_right_checksum_is_found_by_the_footer() -> None:
    pieces = list(encode(HEADER, [(1, [(1,)])]))
    forged = list(encode(HEADER, [(1, [(2,)])]))[1]
    with pytest.raises(Corrupt, match="SHA-256"):
        read_all(pieces[0] + forged + pieces[2])


def test_another_format_version_is_refused_with_both_versions() -> None:
    data = bytearray(GOLDEN.read_bytes())
    struct.pack_into("<I", data, 8, 9)
    struct.pack_into("<I", data, 124, google_crc32c.value(bytes(data[:124])))
    with pytest.raises(Unsupported, match=r"version 9.*version 1") as caught:
        reader(bytes(data))
    assert (caught.value.details["found"], caught.value.details["known"]) == (9, 1)


def test_blocks_end_at_a_thousand_rows_and_at_a_mebibyte() -> None:
    rows = [(n,) for n in range(2_500)]
    large = [(b"x" * (BLOCK_BYTES // 3),) for _ in range(7)]
    giant = [(b"y" * (3 * BLOCK_BYTES),), (1,)]
    data = b"".join(encode(HEADER, [(1, rows), (2, large), (3, giant), (4, [])]))
    found = read_all(data)
    assert [len(block) for section, block in found if section == 1] == [BLOCK_ROWS, BLOCK_ROWS, 500]
    assert [len(block) for section, block in found if section == 2] == [2, 2, 2, 1]
    assert [len(block) for section, block in found if section == 3] == [1, 1]
    for section, expected in ((1, rows), (2, large), (3, giant)):
        assert [row for name, block in found if name == section for row in block] == expected


def test_hostile_blocks_with_right_checksums_are_refused() -> None:
    payloads = (b"\x91" * 5_000 + b"\xc0", b"\xdd\xff\xff\xff\xff", b"\x91\x81\x01\x02",
                b"\x91\xd4\x01\x00", b"\x91\xa1\xff", b"\x91\x80", b"\xc0",
                b"\x92\x01\x02", b"\x91\x01\x01")
    for payload in payloads:
        head, _, foot = encode(HEADER, [(1, [(1,)])])
        block = struct.pack("<IHHI", len(payload), 1, 0, 1) + payload
        block += struct.pack("<I", google_crc32c.extend(google_crc32c.value(SALT), block))
        foot = foot[:-32] + hashlib.sha256(head + block + foot[:-32]).digest()
        with pytest.raises(Corrupt):
            read_all(head + block + foot)


def test_rows_that_make_no_state_are_damage(tmp_path: Path) -> None:
    path = tmp_path / "a.snap"
    for blocks in ([(9, [(1,)])], [(0, [(1, 2)])], [(5, [(1, 2, 3)])], [(0, [None])]):
        path.write_bytes(b"".join(encode(HEADER, blocks)))
        verify_snapshot(RealDisk(), str(path))
        with pytest.raises(Corrupt, match="make no state"):
            load_snapshot(RealDisk(), str(path))


@pytest.mark.parametrize("field", ["uuid", "epoch", "revision", "time", "floor"])
def test_a_state_that_is_not_the_headers_is_damage(tmp_path: Path, field: str) -> None:
    path, state = tmp_path / "a.snap", rich_state()
    header = SnapshotHeader(state.uuid, state.epoch, state.revision, state.time, state.floor, 4,
                            SALT)
    path.write_bytes(b"".join(encode(header, state.dump())))
    assert load_snapshot(RealDisk(), str(path))[1].header == header
    wrong = header._replace(**{field: getattr(HEADER, field)})
    path.write_bytes(b"".join(encode(wrong, state.dump())))
    with pytest.raises(Corrupt, match="another state"):
        load_snapshot(RealDisk(), str(path))


@pytest.mark.parametrize(("blocks", "rows"), [(1, 0), (0, 1), (-1, 0), (0, -1)])
def test_a_footer_that_counts_otherwise_is_damage_though_its_digest_fits(
        tmp_path: Path, blocks: int, rows: int) -> None:
    data = b"".join(encode(HEADER, rich_state().dump()))
    body, (magic, count, total) = data[:-FOOTER_BYTES], struct.unpack_from(
        "<8sQQ", data, len(data) - FOOTER_BYTES)
    body += struct.pack("<8sQQ", magic, count + blocks, total + rows)
    path = tmp_path / "a.snap"
    path.write_bytes(body + hashlib.sha256(body).digest())
    with pytest.raises(Corrupt, match="blocks or rows are missing"):
        verify_snapshot(RealDisk(), str(path))


def test_a_snapshot_never_overwrites_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.snap"
    path.write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        write_snapshot(RealDisk(), str(path), State(), segment=0, salt=SALT)
    assert path.read_bytes() == b"mine"


def test_a_missing_snapshot_is_damage_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(Corrupt, match=r"gone\.snap"):
        verify_snapshot(RealDisk(), str(tmp_path / "gone.snap"))


class FullDisk(RealDisk):
    """Accepts so many bytes and no more."""

    def __init__(self, room: int) -> None:
        self.room = room

    def pwrite(self, handle: int, data: bytes, offset: int) -> None:
        if offset + len(data) > self.room:
            super().pwrite(handle, data[: max(0, self.room - offset)], offset)
            raise OSError(errno.ENOSPC, "No space left on device")
        super().pwrite(handle, data, offset)


@pytest.mark.fault(18)
def test_a_full_disk_leaves_no_half_snapshot(tmp_path: Path) -> None:
    size = len(GOLDEN.read_bytes())
    for room in range(0, size, 97):
        with pytest.raises(OSError, match="No space"):
            write_snapshot(FullDisk(room), str(tmp_path / "a.snap"), rich_state(), segment=7,
                           salt=SALT)
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("since", ["a", 0, 4, 99])
def test_a_key_stands_since_a_revision_between_its_own_and_the_floor(since: Any) -> None:
    state = State(b"u" * 16)
    for _ in range(2):
        state.apply(Transaction(b"", 0, 0, 0, 7, (Write(PUT, "a", b"\x01"),), (1,)))
    blocks = [(section, [list(row) for row in rows]) for section, rows in state.dump()]
    facts = blocks[0][1][0]
    facts[1] = 5  # the floor
    row = ["a", 5, b"\x01", 5, 1, 2, 7, None, None, None, None, []]
    State.load([blocks[0], (2, [row])])
    row[1] = since
    with pytest.raises((ValueError, TypeError)):
        State.load([blocks[0], (2, [row])])


def test_revisions_of_rows_are_integers() -> None:
    state = State(b"u" * 16)
    facts = next(iter(state.dump()))[1][0]
    version = [b"\x01", 5, 1, 2, 7, None, None, None, None, []]
    nameless = [b"\x01", None, *version[2:]]
    State.load([(0, [facts]), (1, [["a", 5, version]])])
    for row in (["a", None, version], ["a", 5, nameless]):
        with pytest.raises(TypeError):
            State.load([(0, [facts]), (1, [row])])
