"""The log on a real disk: what is committed comes back, files stay small, misuse is refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ckptmesh import limits
from ckptmesh.disk import RealDisk
from ckptmesh.errors import Closed, Corrupt, Misuse
from ckptmesh.facts import Sealed, Transaction, Write
from ckptmesh.framing import decode_header
from ckptmesh.manifest import (
    Manifest,
    SealedSegment,
    SnapshotEntry,
    read_manifest,
    snapshot_file,
    write_manifest,
)
from ckptmesh.messages import PUT
from ckptmesh.recovery import recover
from ckptmesh.snapshots import verify_snapshot, write_snapshot
from ckptmesh.state import State
from ckptmesh.testing.disks import FaultyDisk
from ckptmesh.wal import EMBEDDED, Wal, WalOptions
from tests.crash.stores import SMALL, START, Store, commit_of, digest_at, keep_two


@pytest.fixture
def place(tmp_path: Path) -> str:
    (tmp_path / "store").mkdir()
    return str(tmp_path / "store")


def kill(store: Store) -> None:
    """What is left when the process is killed: nothing sealed, files as they are."""
    handle = store.wal._active
    if handle is not None:
        handle.close()
    store.wal._spare.close()


def files(place: str, folder: str = "wal") -> list[str]:
    return sorted(os.listdir(f"{place}/{folder}"))


# --- life -------------------------------------------------------------------------------------


def test_what_was_committed_comes_back_after_a_close(place: str) -> None:
    store = Store(place).serve().commit(5)
    store.wal.close()
    again = Store(place)
    assert again.wal.verdict == "CLEAN"
    assert again.wal.uuid == store.wal.uuid
    assert again.state.digest() == store.state.digest() == digest_at(5)
    assert not again.wal.needs_copy_forward


def test_what_was_committed_comes_back_after_a_kill(place: str) -> None:
    store = Store(place).serve().commit(5)
    kill(store)
    again = Store(place)
    assert (again.wal.verdict, again.state.revision) == ("CLEAN", 5)
    assert again.wal.needs_copy_forward
    again.serve().commit(1)
    assert not again.wal.needs_copy_forward
    assert again.state.epoch == 2


def test_copy_forward_makes_a_new_file_with_a_new_salt_and_the_same_chain(place: str) -> None:
    store = Store(place).serve().commit(5)
    kill(store)
    name = f"{place}/wal/00000001-000000000001.seg"
    before, inode = Path(name).read_bytes(), os.stat(name).st_ino
    again = Store(place, seed=2)
    again.wal.begin()
    after = Path(name).read_bytes()
    assert os.stat(name).st_ino != inode
    assert decode_header(after).salt != decode_header(before).salt
    assert decode_header(after).start() == decode_header(before).start()
    kill(again)
    assert Store(place).state.digest() == digest_at(5)


def test_opening_a_store_to_read_changes_no_file(place: str) -> None:
    store = Store(place).serve().commit(5)
    kill(store)
    before = contents(place)
    reader = Store(place)
    assert reader.state.revision == 5
    reader.wal.close()
    assert contents(place) == before


def contents(place: str) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in Path(place).rglob("*") if path.is_file()}


def test_a_full_segment_is_sealed_and_the_log_goes_on_in_the_next(place: str) -> None:
    store = Store(place).serve().commit(30)
    manifest = store.wal.manifest
    assert len(manifest.sealed) >= 3
    assert manifest.active is not None
    assert manifest.active.number == manifest.sealed[-1].number + 1
    assert manifest.active.start == manifest.sealed[-1].end
    for segment in manifest.sealed:
        assert os.path.getsize(f"{place}/{segment.file}") == segment.size <= SMALL.segment_bytes
    assert read_manifest(RealDisk(), place) == manifest
    kill(store)
    assert Store(place).state.digest() == digest_at(30)


def test_a_frame_larger_than_a_segment_gets_a_segment_that_is_large_enough(place: str) -> None:
    store = Store(place).serve().commit(1)
    value = b"x" * 100_000
    large = Transaction(b"", 0, 0, 0, START + 9, (Write(PUT, "large", value),), (1,))
    store.wal.ensure_room(101_000)
    store.wal.append([large], 2)
    store.wal.sync()
    store.state.apply(large)
    assert store.wal._active is not None
    assert store.wal._active.capacity > 100_000
    store.wal.close()
    assert Store(place).state.entries["large"].value == value


def test_a_short_lived_store_leaves_small_files(place: str) -> None:
    for revision in (1, 2, 3):
        store = Store(place, options=EMBEDDED).serve().commit(1)
        assert store.wal.bytes_on_disk >= limits.EMBEDDED_SEGMENT_BYTES
        store.wal.close()
        assert store.wal.manifest.active is None
        assert len(files(place)) == revision
    assert sum(os.path.getsize(f"{place}/wal/{name}") for name in files(place)) < 12_000
    assert Store(place).state.digest() == digest_at(3)


def test_records_that_take_no_revision_come_back_too(place: str) -> None:
    store = Store(place).serve().commit(1)
    store.write([Sealed(START + 50)])
    store.wal.close()
    again = Store(place)
    assert (again.state.revision, again.state.time) == (1, START + 50)
    again.serve()
    again.wal.close()
    assert Store(place).state.epoch == 2


def test_a_batch_is_one_frame_one_write_and_one_sync(place: str) -> None:
    disk = FaultyDisk(RealDisk())
    store = Store(place, disk).serve()
    store.wal.ensure_room(5_000)
    before = len(disk.calls)
    store.write([commit_of(revision) for revision in (1, 2, 3)])
    assert [operation for operation, _ in disk.calls[before:]] == ["pwrite", "fdatasync"]
    store.wal.close()
    assert Store(place).state.digest() == digest_at(3)


def test_an_embedded_read_after_a_clean_close_needs_no_write(place: str) -> None:
    Store(place).serve().commit(2).wal.close()
    disk = FaultyDisk(RealDisk())
    reader = Store(place, disk)
    assert reader.state.revision == 2
    reader.wal.close()
    assert {operation for operation, _ in disk.calls} <= {"open", "close", "pread"}


@pytest.mark.parametrize("sector", [512, 4_096])
def test_the_sector_size_may_change_between_two_starts(place: str, sector: int) -> None:
    options = SMALL._replace(segment_bytes=65_536)
    kill(Store(place, options=options._replace(sector=sector)).serve().commit(3))
    store = Store(place, options=options._replace(sector=4_608 - sector)).serve().commit(3)
    assert store.wal.rotate() is not None
    kill(store.commit(3))
    assert Store(place).state.digest() == digest_at(9)


# --- the spare --------------------------------------------------------------------------------


def test_a_helper_thread_keeps_a_spare_that_rotation_uses(place: str) -> None:
    disk = FaultyDisk(RealDisk())
    store = Store(place, disk, SMALL._replace(spare="thread")).serve()
    for _ in range(3):
        store.wal._spare.take(f"{place}/wal/waits.tmp", 1)  # returns once the thread is done
        os.rename(f"{place}/wal/waits.tmp", f"{place}/wal/spare")
        calls = len(disk.calls)
        store.wal.rotate()
        store.commit(1)
        made = [path for operation, path in disk.calls[calls:]
                if operation == "create" and path.endswith("next.tmp")]
        assert made == []
    store.wal.close()
    assert "spare" in files(place)
    assert Store(place).state.digest() == digest_at(3)


def test_a_spare_of_another_size_is_not_used_when_it_is_too_small(place: str) -> None:
    Store(place, options=SMALL._replace(spare="inline")).serve().commit(1).wal.close()
    assert os.path.getsize(f"{place}/wal/spare") == SMALL.segment_bytes
    options = SMALL._replace(spare="inline", segment_bytes=32_768)
    store = Store(place, options=options).serve().commit(1)
    assert os.path.getsize(f"{place}/wal/spare") == 32_768
    assert store.wal._active is not None
    assert store.wal._active.capacity == 32_768


# --- misuse -----------------------------------------------------------------------------------


def test_the_order_of_calls_is_kept(place: str) -> None:
    wal = Store(place).wal
    with pytest.raises(Misuse, match="begin"):
        wal.append([Sealed(START)], 1)
    wal.begin()
    with pytest.raises(Misuse, match="begun already"):
        wal.begin()
    with pytest.raises(Misuse, match="revision 1 is next, not 2"):
        wal.append([commit_of(2)], 2)
    wal.ensure_room(1_000)
    wal.append([commit_of(1)], 1)
    with pytest.raises(Misuse, match="not synced"):
        wal.append([commit_of(2)], 2)
    wal.sync()
    wal.close()
    wal.close()
    with pytest.raises(Closed):
        wal.append([commit_of(2)], 2)
    with pytest.raises(Closed):
        wal.check_space()


def test_append_without_room_writes_nothing(place: str) -> None:
    disk = FaultyDisk(RealDisk())
    store = Store(place, disk).serve()
    huge = Transaction(b"", 0, 0, 0, START, (Write(PUT, "large", b"x" * 9_000),), (1,))
    calls = len(disk.calls)
    with pytest.raises(Misuse, match="no room was made"):
        store.wal.append([huge], 1)
    assert len(disk.calls) == calls
    store.commit(2).wal.close()
    assert Store(place).state.digest() == digest_at(2)


def test_a_frame_that_was_not_synced_is_not_sealed_by_close(place: str) -> None:
    store = Store(place).serve().commit(1)
    store.wal.append([commit_of(2)], 2)
    store.wal.close()
    assert store.wal.manifest.active is not None
    assert Store(place).wal.needs_copy_forward


@pytest.mark.parametrize("change", [
    lambda m: m._replace(sealed=()), lambda m: m._replace(active=None),
    lambda m: m._replace(uuid=bytes(16)), lambda m: m._replace(sealed=m.sealed[:-1]),
    lambda m: m._replace(sealed=(*m.sealed, m.sealed[-1])),
])
def test_the_manifest_can_only_lose_older_segments(place: str, change: object) -> None:
    wal = Store(place).serve().commit(30).wal
    with pytest.raises(Misuse):
        wal.change_manifest(change)  # type: ignore[arg-type]
    assert read_manifest(RealDisk(), place) == wal.manifest


# --- snapshots --------------------------------------------------------------------------------


def test_recovery_begins_with_the_newest_snapshot(place: str) -> None:
    store = Store(place).serve().commit(10)
    store.snapshot()
    store.commit(3)
    store.snapshot()
    store.commit(2)
    kill(store)
    disk = FaultyDisk(RealDisk())
    assert Store(place, disk).state.digest() == digest_at(15)
    read = {path.rpartition("/")[2] for operation, path in disk.calls if operation == "pread"}
    manifest = store.wal.manifest
    assert manifest.active is not None
    assert read == {"MANIFEST", Path(manifest.snapshots[-1].file).name,
                    Path(manifest.active.file).name}


def test_old_segments_and_snapshots_go_one_manifest_later(place: str) -> None:
    store = Store(place).serve()
    for _ in range(4):
        store.commit(10).snapshot(keep_two)
    manifest = store.wal.manifest
    needed = manifest.files() | set(manifest.needed_before)

    def there() -> set[str]:
        return {f"{folder}/{name}" for folder in ("wal", "snap") for name in files(place, folder)}

    assert there() == needed
    assert len(manifest.snapshots) == 2
    assert manifest.sealed[0].number > 1
    kill(store)
    assert Store(place).state.digest() == digest_at(40)
    assert there() == needed, "a start is no manifest"


@pytest.mark.fault(27)
def test_a_damaged_snapshot_is_told_and_the_one_before_it_is_used(place: str) -> None:
    store = Store(place).serve()
    for _ in range(3):
        store.commit(5).snapshot(keep_two)
    store.wal.close()
    newest = store.wal.manifest.snapshots[-1].file
    flip(f"{place}/{newest}", 300)
    again = Store(place)
    assert again.state.digest() == digest_at(15)
    assert any(newest in note and "falling back" in note for note in again.wal.notes)


@pytest.mark.fault(27)
def test_a_whole_snapshot_of_another_past_is_not_taken_for_the_one_that_the_manifest_names(
        place: str) -> None:
    store = Store(place).serve().commit(5)
    entry = store.snapshot()
    store.wal.close()
    other = State(store.wal.uuid)
    other.epochs = list(store.state.epochs)
    for revision in range(1, 6):
        other.apply(commit_of(revision)._replace(results=(7,)))
    (Path(place) / entry.file).unlink()
    write_snapshot(RealDisk(), f"{place}/{entry.file}", other, segment=entry.segment,
                   salt=bytes(16))
    again = Store(place)
    assert again.state.ring[5].results == (1,)
    assert any("is not the snapshot that the manifest names" in note for note in again.wal.notes)


@pytest.mark.fault(27)
def test_without_a_whole_snapshot_the_whole_log_is_replayed_if_it_is_there(place: str) -> None:
    store = Store(place).serve().commit(5)
    store.snapshot()
    store.commit(5).wal.close()
    flip(f"{place}/{store.wal.manifest.snapshots[0].file}", 300)
    assert Store(place).state.digest() == digest_at(10)


@pytest.mark.fault(27)
def test_both_snapshots_damaged_is_corrupt(place: str) -> None:
    store = Store(place).serve()
    for _ in range(3):
        store.commit(5).snapshot(keep_two)
    store.wal.close()
    for entry in store.wal.manifest.snapshots:
        flip(f"{place}/{entry.file}", 300)
    with pytest.raises(Corrupt) as caught:
        Store(place)
    assert caught.value.details["file"].endswith(store.wal.manifest.snapshots[-1].file)


def flip(path: str, position: int) -> None:
    data = bytearray(Path(path).read_bytes())
    data[position] ^= 1
    Path(path).write_bytes(data)


def test_a_directory_may_begin_with_a_snapshot_and_no_log(place: str) -> None:
    """What a restore makes: one snapshot that covers no segment of the new log."""
    state = State(b"r" * 16)
    for revision in range(1, 8):
        state.apply(commit_of(revision))
    os.mkdir(f"{place}/snap")
    os.mkdir(f"{place}/wal")
    file = snapshot_file(7, 0)
    write_snapshot(RealDisk(), f"{place}/{file}", state, segment=0, salt=bytes(16))
    info = verify_snapshot(RealDisk(), f"{place}/{file}")
    entry = SnapshotEntry(file, 7, 0, info.size, info.digest, START)
    write_manifest(RealDisk(), place, Manifest(state.uuid, 1, snapshots=(entry,)))
    store = Store(place).serve().commit(5)
    assert store.wal.uuid == b"r" * 16
    store.wal.close()
    assert Store(place).state.digest() == digest_at(12)


# --- figures ----------------------------------------------------------------------------------


def test_status_tells_sizes_and_counts(place: str) -> None:
    store = Store(place).serve().commit(30)
    status = store.wal.status()
    assert status["frames"] == status["syncs"] == 31
    assert status["segments"] == len(store.wal.manifest.sealed) + 1
    assert status["rotations"] == len(store.wal.manifest.sealed)
    assert 0 < status["sync_ms_p50"] <= status["sync_ms_p99"] <= status["sync_ms_max"]
    assert status["bytes_on_disk"] == sum(os.path.getsize(f"{place}/wal/{name}")
                                          for name in files(place))


def test_rotate_seals_only_what_holds_something(place: str) -> None:
    wal = Store(place).wal
    wal.begin()
    assert wal.rotate() is None
    store = Store(place)
    store.serve().commit(1)
    sealed = store.wal.rotate()
    assert isinstance(sealed, SealedSegment)
    assert sealed.last_revision == 1
    assert store.wal.rotate() == sealed


def test_recover_alone_changes_nothing_even_where_a_start_would(place: str) -> None:
    store = Store(place).serve().commit(5)
    kill(store)
    segment = Path(f"{place}/wal/00000001-000000000001.seg")
    segment.write_bytes(segment.read_bytes()[:3_000])
    Path(f"{place}/wal/stranger").write_text("?")
    Path(f"{place}/MANIFEST.tmp").write_text("?")
    before = contents(place)
    found = recover(RealDisk(), place)
    assert (found.verdict, found.strays) == ("TORN", ("wal/stranger",))
    assert found.removable == ("MANIFEST.tmp",)
    assert contents(place) == before


def test_the_default_options_are_those_of_a_served_store(tmp_path: Path) -> None:
    wal = Wal.open(tmp_path / "new", WalOptions(segment_bytes=1 << 20))
    wal.begin()
    wal.close()
    assert wal.options.spare == "thread"
    assert (tmp_path / "new" / "MANIFEST").exists()
