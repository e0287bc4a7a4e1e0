"""Files that were cut, flipped, removed, swapped or brought from elsewhere: what is told apart."""

from __future__ import annotations

import os
import random
import shutil
import struct
from pathlib import Path

import google_crc32c
import pytest

from ckptmesh.disk import RealDisk
from ckptmesh.errors import Corrupt, Unsupported
from ckptmesh.facts import Sealed
from ckptmesh.framing import (
    FrameWriter,
    SegmentHeader,
    SegmentScan,
    decode_header,
    encode_header,
)
from ckptmesh.manifest import MANIFEST, read_manifest, write_manifest
from ckptmesh.records import encode_records
from ckptmesh.recovery import recover
from ckptmesh.testing.disks import FaultyDisk
from tests.crash.stores import START, Store, commit_of, digest_at
from tests.crash.test_wal import contents, flip, kill

ACTIVE = "wal/00000001-000000000001.seg"


@pytest.fixture
def place(tmp_path: Path) -> str:
    """A killed store: revisions 1 to 5 in one segment, each in a frame of its own."""
    (tmp_path / "store").mkdir()
    kill(Store(str(tmp_path / "store")).serve().commit(5))
    return str(tmp_path / "store")


@pytest.fixture
def chain(tmp_path: Path) -> str:
    """A closed store of at least four sealed segments, revisions 1 to 30."""
    (tmp_path / "chain").mkdir()
    Store(str(tmp_path / "chain")).serve().commit(30).wal.close()
    return str(tmp_path / "chain")


def offsets(path: str) -> list[tuple[int, int]]:
    data = Path(path).read_bytes()
    return [(frame.offset, frame.end) for frame in SegmentScan(data, decode_header(data))]


def sealed(chain: str, index: int) -> Path:
    manifest = read_manifest(RealDisk(), chain)
    assert manifest is not None
    return Path(chain) / manifest.sealed[index].file


# --- the tail ---------------------------------------------------------------------------------


@pytest.mark.fault(20)
def test_a_tail_torn_at_any_byte_is_torn_and_no_earlier_frame_is_lost(place: str) -> None:
    path = Path(place, ACTIVE)
    data = path.read_bytes()
    start, end = offsets(str(path))[-1]
    written = len(data[:end].rstrip(b"\0"))
    for cut in range(start + 1, written):
        path.write_bytes(data[:cut])
        found = recover(RealDisk(), place)
        assert (found.verdict, found.state.revision) == ("TORN", 4), cut
    assert found.state.digest() == digest_at(4)


@pytest.mark.fault(20)
@pytest.mark.fault(22)
def test_a_torn_tail_is_kept_beside_then_cut_and_told(place: str) -> None:
    path = Path(place, ACTIVE)
    data = path.read_bytes()
    start, _ = offsets(str(path))[-1]
    garbage = random.Random(1).randbytes(700)
    for count, suffix in ((1, ".torn"), (2, ".2.torn")):
        path.write_bytes(data[:start] + garbage + bytes(2_000))
        store = Store(place)
        assert (store.wal.verdict, store.state.revision) == ("TORN", 4)
        assert Path(place, ACTIVE + suffix).read_bytes() == garbage
        assert path.stat().st_size == start
        assert any("torn" in note and f"{start:,}" in note for note in store.wal.notes)
        assert len(list(Path(place, "wal").glob("*.torn"))) == count
        again = Store(place)
        assert (again.wal.verdict, again.state.revision) == ("CLEAN", 4)
    store = Store(place).serve().commit(1)
    store.wal.close()
    assert Store(place).state.digest() == digest_at(5)


@pytest.mark.fault(21)
def test_any_sector_subset_of_the_last_frame_is_torn(place: str) -> None:
    store = Store(place).serve().commit(1)  # revision 6 has several sectors
    kill(store)
    path = Path(place, ACTIVE)
    data = path.read_bytes()
    start, end = offsets(str(path))[-1]
    sectors = (end - start) // 512
    assert sectors == 3
    source = random.Random(2)
    for subset in range(1, 2**sectors):
        for garbage in (False, True):
            image = bytearray(data)
            for index in range(sectors):
                if subset >> index & 1:
                    at = start + 512 * index
                    image[at : at + 512] = source.randbytes(512) if garbage else bytes(512)
            path.write_bytes(image)
            found = recover(RealDisk(), place)
            gone = subset == 2**sectors - 1 and not garbage
            assert (found.verdict, found.state.revision) == ("CLEAN" if gone else "TORN", 5)


@pytest.mark.fault(22)
def test_a_zero_tail_is_clean(place: str) -> None:
    path = Path(place, ACTIVE)
    for size in (0, 100, 1_000_000):
        path.write_bytes(path.read_bytes() + bytes(size))
        found = recover(RealDisk(), place)
        assert (found.verdict, found.state.revision) == ("CLEAN", 5)


# --- flipped bits -----------------------------------------------------------------------------


@pytest.mark.fault(23)
def test_a_flipped_bit_before_the_last_frame_is_corrupt_with_file_and_offset(place: str) -> None:
    path = Path(place, ACTIVE)
    data = path.read_bytes()
    frames = offsets(str(path))
    for position in range(0, frames[-1][0], 7):
        image = bytearray(data)
        image[position] ^= 1 << position % 8
        path.write_bytes(image)
        before = contents(place)
        with pytest.raises((Corrupt, Unsupported)) as caught:
            Store(place)
        assert caught.value.details["file"] == str(path), position
        expected = next((start for start, end in frames if start <= position < end), 0)
        assert caught.value.details["offset"] == expected, position
        assert contents(place) == before, "a refusal changes nothing"


@pytest.mark.fault(23)
def test_the_refusal_names_the_revisions_that_are_lost(place: str) -> None:
    frames = offsets(f"{place}/{ACTIVE}")
    flip(f"{place}/{ACTIVE}", frames[2][0] + 100)  # frame 1 is the epoch's
    with pytest.raises(Corrupt, match="revision 2 is lost") as caught:
        recover(RealDisk(), place)
    assert caught.value.exit_code == 6
    assert (caught.value.details["first_lost"], caught.value.details["last_lost"]) == (2, 2)


@pytest.mark.fault(23)
def test_a_flipped_bit_anywhere_in_a_sealed_segment_is_corrupt(chain: str) -> None:
    for index in (0, -1):
        path = sealed(chain, index)
        data = path.read_bytes()
        for position in range(3, len(data), 61):
            image = bytearray(data)
            image[position] ^= 0x10
            path.write_bytes(image)
            with pytest.raises(Corrupt) as caught:
                recover(RealDisk(), chain)
            assert caught.value.details["file"] == str(path)
            assert caught.value.details["offset"] <= position
        path.write_bytes(data)
    assert recover(RealDisk(), chain).state.digest() == digest_at(30)


def test_a_sealed_segment_that_has_grown_is_corrupt_be_it_by_zeroes(chain: str) -> None:
    path = sealed(chain, 0)
    path.write_bytes(path.read_bytes() + bytes(512))
    with pytest.raises(Corrupt, match="sealed it had") as caught:
        recover(RealDisk(), chain)
    assert caught.value.details["file"] == str(path)


@pytest.mark.fault(23)
def test_a_flipped_bit_of_the_manifest_is_corrupt(chain: str) -> None:
    flip(f"{chain}/{MANIFEST}", 100)
    with pytest.raises(Corrupt) as caught:
        recover(RealDisk(), chain)
    assert caught.value.details["file"] == f"{chain}/{MANIFEST}"


def test_an_unknown_version_of_a_segment_is_unsupported_and_names_the_file(place: str) -> None:
    path = Path(place, ACTIVE)
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, 8, 9)
    struct.pack_into("<I", data, 124, google_crc32c.value(bytes(data[:124])))
    path.write_bytes(data)
    with pytest.raises(Unsupported, match=r"seg: .*version 9; this release reads 1"):
        Store(place)


def test_a_read_that_the_disk_fails_is_corrupt(place: str) -> None:
    disk = FaultyDisk(RealDisk())
    disk.fail("pread", 5, ".seg")
    with pytest.raises(Corrupt, match="cannot be read") as caught:
        Store(place, disk)
    assert caught.value.details["file"] == f"{place}/{ACTIVE}"


def test_frames_with_a_revision_gap_are_corrupt(place: str) -> None:
    """Whole frames that no honest store writes: found by what they say, not by their CRCs."""
    header = decode_header(Path(place, ACTIVE).read_bytes())
    writer = FrameWriter(header)
    good = writer.data(encode_records([commit_of(1)]), 1, 1)
    for bad in (
        writer.data(encode_records([commit_of(3)]), 3, 1),
        _next(header, good, encode_records([commit_of(2)]), 1, 1),
        _next(header, good, encode_records([commit_of(2)]), 2, 2),
        _next(header, good, encode_records([commit_of(2), commit_of(3)]), 2, 1),
        _next(header, good, b"\xc1", 2, 1),
        _next(header, good, encode_records([commit_of(2)._replace(session=b"unknown")]), 2, 1),
    ):
        Path(place, ACTIVE).write_bytes(encode_header(header) + good + bad)
        with pytest.raises(Corrupt) as caught:
            recover(RealDisk(), place)
        assert caught.value.details["offset"] == 512 + len(good)


def _next(header: SegmentHeader, good: bytes, payload: bytes, revision: int, count: int) -> bytes:
    writer = FrameWriter(header)
    assert writer.data(encode_records([commit_of(1)]), 1, 1) == good
    return writer.data(payload, revision, count)


# --- segments ---------------------------------------------------------------------------------


@pytest.mark.fault(24)
@pytest.mark.parametrize("index", [0, 1, -1])
def test_a_missing_sealed_segment_is_corrupt(chain: str, index: int) -> None:
    path = sealed(chain, index)
    path.unlink()
    with pytest.raises(Corrupt, match="missing") as caught:
        Store(chain)
    assert caught.value.details["file"] == str(path)


@pytest.mark.fault(24)
def test_the_segment_being_written_missing_is_corrupt(place: str) -> None:
    os.unlink(f"{place}/{ACTIVE}")
    with pytest.raises(Corrupt, match="missing"):
        Store(place)


@pytest.mark.fault(24)
@pytest.mark.parametrize(("first", "second"), [(0, 1), (1, 2), (0, -1)])
def test_swapped_sealed_segments_are_corrupt(chain: str, first: int, second: int) -> None:
    one, two = sealed(chain, first), sealed(chain, second)
    data = one.read_bytes(), two.read_bytes()
    one.write_bytes(data[1])
    two.write_bytes(data[0])
    with pytest.raises(Corrupt) as caught:
        Store(chain)
    assert caught.value.details["file"] in (str(one), str(two))


@pytest.mark.fault(24)
def test_a_sealed_segment_duplicated_over_another_is_corrupt(chain: str) -> None:
    one, two = sealed(chain, 1), sealed(chain, 2)
    shutil.copy(one, two)
    with pytest.raises(Corrupt):
        Store(chain)


@pytest.mark.fault(24)
def test_a_sealed_segment_of_the_same_size_from_another_time_is_corrupt(
    chain: str, tmp_path: Path,
) -> None:
    """Same store, same number, same length, valid frames: only the chain digest tells."""
    path = sealed(chain, 1)
    data = path.read_bytes()
    header = decode_header(data)
    writer = FrameWriter(header)
    parts = [encode_header(header)]
    for frame in SegmentScan(data, header, sealed=True):
        payload = frame.payload.replace(b"orders/1", b"orders/9")
        parts.append(writer.encode(frame.kind, payload, frame.first_revision, frame.records))
    path.write_bytes(b"".join(parts))
    assert path.stat().st_size == len(data)
    with pytest.raises(Corrupt):
        Store(chain)


@pytest.mark.fault(24)
def test_a_copy_of_a_segment_under_another_name_goes_to_quarantine(chain: str) -> None:
    shutil.copy(sealed(chain, 1), f"{chain}/wal/00000002-000000000999.seg")
    store = Store(chain)
    assert store.state.digest() == digest_at(30)
    assert os.listdir(f"{chain}/quarantine") == ["wal-00000002-000000000999.seg"]
    assert any("quarantine" in note for note in store.wal.notes)


@pytest.mark.fault(25)
def test_a_segment_of_another_store_in_a_segments_place_is_corrupt(
    chain: str, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    other = Store(str(tmp_path / "other"), seed=99).serve().commit(30)
    other.wal.close()
    for index in (0, 2):
        path = sealed(chain, index)
        data = path.read_bytes()
        path.write_bytes(sealed(str(tmp_path / "other"), index).read_bytes())
        with pytest.raises(Corrupt, match="another store"):
            Store(chain)
        path.write_bytes(data)


@pytest.mark.fault(25)
def test_a_segment_of_another_store_beside_the_log_goes_to_quarantine(
    chain: str, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    other = Store(str(tmp_path / "other"), seed=99).serve().commit(60)
    other.wal.close()
    manifest = read_manifest(RealDisk(), chain)
    assert manifest is not None
    following = len(manifest.sealed)
    shutil.copy(sealed(str(tmp_path / "other"), following), f"{chain}/wal/")
    assert Store(chain).state.digest() == digest_at(30)
    assert len(os.listdir(f"{chain}/quarantine")) == 1


@pytest.mark.fault(24)
def test_a_segment_of_this_stores_other_past_is_corrupt(place: str, tmp_path: Path) -> None:
    """Two copies of a directory went on apart: same store, number and revisions, other content."""
    fork = str(tmp_path / "fork")
    shutil.copytree(place, fork)
    for directory, more in ((place, 0), (fork, 1)):
        store = Store(directory).serve()
        store.write([Sealed(START + 5)] * (1 + more))
        store.wal.rotate()
        kill(store.commit(2))
    shutil.copy(f"{fork}/wal/00000002-000000000006.seg", f"{place}/wal/")
    with pytest.raises(Corrupt, match="follows another one"):
        Store(place)


def test_an_unmanifested_segment_that_continues_the_chain_is_replayed(chain: str) -> None:
    """As after a crash between a rotation and its manifest: here, several rotations."""
    manifest = read_manifest(RealDisk(), chain)
    assert manifest is not None
    write_manifest(RealDisk(), chain, manifest._replace(sealed=manifest.sealed[:1]))
    store = Store(chain)
    assert store.state.digest() == digest_at(30)
    store.serve().commit(2)
    assert store.wal.manifest.sealed[:-1] == manifest.sealed[:-1]
    store.wal.close()
    assert Store(chain).state.digest() == digest_at(32)


def test_a_missing_segment_between_unmanifested_ones_is_corrupt(chain: str) -> None:
    manifest = read_manifest(RealDisk(), chain)
    assert manifest is not None
    write_manifest(RealDisk(), chain, manifest._replace(sealed=manifest.sealed[:1]))
    os.unlink(f"{chain}/{manifest.sealed[1].file}")
    with pytest.raises(Corrupt, match="missing"):
        Store(chain)


@pytest.mark.fault(26)
def test_a_torn_segment_that_a_later_one_follows_is_corrupt(chain: str) -> None:
    manifest = read_manifest(RealDisk(), chain)
    assert manifest is not None
    write_manifest(RealDisk(), chain, manifest._replace(sealed=manifest.sealed[:1]))
    path = sealed(chain, 0).with_name(Path(manifest.sealed[1].file).name)
    path.write_bytes(path.read_bytes()[:-700])
    with pytest.raises(Corrupt, match="ends early"):
        Store(chain)


def test_a_damaged_header_is_corrupt_in_a_segment_that_the_manifest_does_not_know(
    chain: str,
) -> None:
    """It may hold what was acknowledged while the disk had no room for a manifest."""
    manifest = read_manifest(RealDisk(), chain)
    assert manifest is not None
    write_manifest(RealDisk(), chain, manifest._replace(sealed=manifest.sealed[:-1]))
    flip(f"{chain}/{manifest.sealed[-1].file}", 20)
    with pytest.raises(Corrupt, match="damaged at its beginning"):
        Store(chain)
    assert not Path(chain, "quarantine").exists()


def test_a_segment_that_changes_between_recovery_and_begin_is_corrupt(place: str) -> None:
    store = Store(place)
    begin, _ = offsets(f"{place}/{ACTIVE}")[-1]
    flip(f"{place}/{ACTIVE}", begin + 80)
    with pytest.raises(Corrupt, match="changed since it was recovered"):
        store.wal.begin()


def test_a_missing_manifest_is_corrupt_while_there_are_segments(chain: str) -> None:
    os.unlink(f"{chain}/{MANIFEST}")
    with pytest.raises(Corrupt, match="MANIFEST is missing"):
        Store(chain)


def test_a_missing_manifest_is_corrupt_while_there_are_snapshots(tmp_path: Path) -> None:
    """What a restore makes has no segments yet."""
    (tmp_path / "snap").mkdir()
    (tmp_path / "snap" / "000000000005-00000000.snap").touch()
    with pytest.raises(Corrupt, match="MANIFEST is missing"):
        Store(str(tmp_path))


def test_a_missing_snapshot_is_corrupt(place: str) -> None:
    store = Store(place).serve().commit(5)
    entry = store.snapshot()
    store.wal.close()
    os.unlink(f"{place}/{entry.file}")
    with pytest.raises(Corrupt, match="missing"):
        Store(place)


def test_unknown_files_go_to_quarantine_and_are_never_deleted(chain: str) -> None:
    for name in ("wal/notes.txt", "snap/000000000001-00000001.snap", "wal/00000007-abc.seg"):
        Path(chain, name).write_text(f"content of {name}")
    for _ in range(2):
        Path(chain, "wal/again").write_text("again")
        assert Store(chain).state.digest() == digest_at(30)
    kept = {path.name: path.read_text() for path in Path(chain, "quarantine").iterdir()}
    assert kept == {
        "wal-notes.txt": "content of wal/notes.txt", "wal-again": "again", "wal-again.2": "again",
        "snap-000000000001-00000001.snap": "content of snap/000000000001-00000001.snap",
        "wal-00000007-abc.seg": "content of wal/00000007-abc.seg",
    }


def test_what_a_crash_left_over_is_removed(place: str) -> None:
    left = ["MANIFEST.tmp", "wal/next.tmp", "wal/spare.tmp", "snap/snap.1.2.tmp"]
    for name in left:
        Path(place, name).write_text("unfinished")
    Store(place)
    assert not any(Path(place, name).exists() for name in left)
    assert not Path(place, "quarantine").exists()


def test_an_own_snapshot_that_the_manifest_never_knew_is_removed(place: str) -> None:
    store = Store(place).serve().commit(5)
    entry = store.snapshot()
    kill(store)
    manifest = store.wal.manifest
    write_manifest(RealDisk(), place, manifest._replace(snapshots=(), needed_before=()))
    assert Store(place).state.digest() == digest_at(10)
    assert not Path(place, entry.file).exists()
