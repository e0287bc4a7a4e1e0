"""A disk that is full or fails: refused before anything is decided, or poisoned for ever."""

from __future__ import annotations

import errno
import os
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from ckptmesh.disk import NO_SPACE, RealDisk, read_file, write_file
from ckptmesh.errors import Closed, Corrupt, Error, InvalidDirectory, OutOfSpace, Poisoned
from ckptmesh.facts import Sealed
from ckptmesh.manifest import read_manifest
from ckptmesh.testing.disks import FaultyDisk
from tests.crash.stores import SMALL, START, Store, commit_of, digest_at, keep_two


@pytest.fixture
def place(tmp_path: Path) -> str:
    (tmp_path / "store").mkdir()
    return str(tmp_path / "store")


@pytest.fixture
def disk() -> FaultyDisk:
    return FaultyDisk(RealDisk())


def fill_segment(store: Store) -> None:
    """Commit until the next commit needs another segment."""
    active = store.wal._active
    while active is not None and active.fits(2_000):
        store.commit(1)


# --- poison -----------------------------------------------------------------------------------


@pytest.mark.fault(14)
@pytest.mark.fault(15)
@pytest.mark.fault(19)
@pytest.mark.parametrize("operation", ["pwrite", "fdatasync"])
@pytest.mark.parametrize("code", [errno.EIO, errno.EROFS, errno.ENOSPC])
def test_a_failed_write_or_sync_poisons_and_is_never_tried_again(
    place: str, disk: FaultyDisk, operation: str, code: int
) -> None:
    store = Store(place, disk).serve().commit(2)
    disk.fail(operation, code, ".seg")  # once: the next one would succeed
    with pytest.raises(Poisoned):
        store.commit(1)
    calls = len(disk.calls)
    for attempt in (
        store.wal.sync, lambda: store.wal.append([commit_of(3)], 3),
        lambda: store.wal.ensure_room(10), store.wal.rotate, store.wal.check_space,
        store.wal.begin, lambda: store.wal.change_manifest(keep_two),
    ):
        with pytest.raises(Poisoned):
            attempt()
    assert len(disk.calls) == calls, "a poisoned log leaves the disk alone"
    store.wal.close()
    assert {operation for operation, _ in disk.calls[calls:]} <= {"close"}
    with pytest.raises((Poisoned, Closed)):
        store.wal.sync()
    again = Store(place)
    assert again.state.revision in (2, 3)
    assert again.state.digest() == digest_at(again.state.revision)


@pytest.mark.fault(14)
@pytest.mark.fault(15)
@pytest.mark.fault(16)
@pytest.mark.fault(17)
@pytest.mark.fault(18)
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_an_error_at_any_call_loses_nothing_acknowledged(tmp_path: Path, code: int) -> None:
    """Whatever call fails, in whatever step: the log refuses or is poisoned, and recovers."""

    def live(place: Path, fail_at: int) -> tuple[FaultyDisk, Store | None, Error | None]:
        place.mkdir()
        disk = FaultyDisk(RealDisk())

        def meet(count: int, operation: str, path: str) -> None:
            if count == fail_at:
                raise OSError(code, os.strerror(code))

        disk.meet = meet
        store = None
        try:
            store = Store(str(place), disk)
            store.serve().commit(7)
            with suppress(OSError, Corrupt):  # the snapshot's file is its writer's affair: go on
                store.snapshot(keep_two)
            store.commit(9)
            store.wal.close()
        except Error as error:
            return disk, store, error
        finally:
            disk.abandon()
        return disk, store, None

    total = len(live(tmp_path / "whole", 0)[0].calls)
    assert total > 60
    for fail_at in range(1, total + 1):
        place = tmp_path / str(fail_at)
        disk, store, error = live(place, fail_at)
        operation, path = disk.calls[fail_at - 1]
        if error is None and "/snap/" not in path:
            assert code in NO_SPACE, (operation, path, "an EIO went unnoticed")
        elif error is not None:
            expected = Poisoned | OutOfSpace | Corrupt if operation == "pread" else (
                Poisoned | OutOfSpace)
            assert isinstance(error, expected), (operation, path, error)
        acknowledged = store.acknowledged if store is not None else 0
        again = Store(str(place))
        assert acknowledged <= again.state.revision <= acknowledged + 1, (operation, path)
        assert again.state.digest() == digest_at(again.state.revision)
        again.serve().commit(2).wal.close()


@pytest.mark.fault(16)
def test_a_failed_directory_sync_ends_the_rotation(place: str, disk: FaultyDisk) -> None:
    store = Store(place, disk).serve()
    fill_segment(store)
    disk.fail("sync_directory", errno.EIO, after=1)
    with pytest.raises(Poisoned, match="segment"):
        store.commit(1)
    assert Store(place).state.revision == store.acknowledged


@pytest.mark.parametrize("name", ["MANIFEST", ".seg"])
def test_what_the_disk_cannot_read_is_corrupt_and_what_it_may_not_is_no_damage(
    place: str, disk: FaultyDisk, name: str
) -> None:
    Store(place).serve().commit(2).wal.close()
    disk.fail("pread", errno.EIO, name)
    with pytest.raises(Corrupt, match="cannot be read") as caught:
        Store(place, disk)
    assert name in caught.value.details["file"]
    disk.fail("open", errno.EACCES, name)
    with pytest.raises(InvalidDirectory, match="cannot be used by this user"):
        Store(place, disk)


@pytest.mark.parametrize("operation", ["pwrite", "fdatasync", "rename", "sync_directory"])
def test_a_segment_that_cannot_be_begun_leaves_no_file_open(
    place: str, disk: FaultyDisk, operation: str
) -> None:
    store = Store(place, disk)
    disk.fail(operation, errno.EIO, {"sync_directory": "wal", "rename": "wal"}.get(
        operation, "next.tmp"), after=operation in ("fdatasync", "sync_directory"))
    with pytest.raises(Poisoned):
        store.wal.begin()
    store.wal.close()
    assert disk._paths == {}


def test_the_first_error_tells_why_a_file_was_not_written(place: str, disk: FaultyDisk) -> None:
    """Were it the second, a full disk would look like a broken one."""

    def meet(count: int, operation: str, path: str) -> None:
        if operation in ("fdatasync", "unlink"):
            code = errno.ENOSPC if operation == "fdatasync" else errno.EIO
            raise OSError(code, errno.errorcode[code])

    disk.meet = meet
    with pytest.raises(OSError, match="ENOSPC"):
        write_file(disk, f"{place}/file", (b"one", b"two"))
    disk.heal()
    assert read_file(disk, f"{place}/file") == b"onetwo"


def test_a_spare_that_no_thread_can_make_is_done_without(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    store = Store(place, options=SMALL._replace(spare="thread")).serve().commit(20)
    assert store.wal.status()["rotations"] > 0
    store.wal.close()
    assert Store(place).state.revision == 20


# --- short writes -----------------------------------------------------------------------------


@pytest.mark.fault(13)
def test_a_short_write_is_continued(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(place).serve()
    whole = os.pwrite
    monkeypatch.setattr(
        os, "pwrite", lambda handle, data, offset: whole(handle, data[:100], offset)
    )
    store.commit(3)
    monkeypatch.undo()
    assert Store(place).state.digest() == digest_at(3)


@pytest.mark.fault(13)
def test_a_write_that_goes_no_further_poisons(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(place).serve().commit(1)
    monkeypatch.setattr(os, "pwrite", lambda handle, data, offset: 0)
    with pytest.raises(Poisoned):
        store.commit(1)


def test_a_short_read_is_continued(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Store(place).serve().commit(3).wal.close()
    whole = os.pread
    monkeypatch.setattr(
        os, "pread", lambda handle, size, offset: whole(handle, min(size, 99), offset)
    )
    assert Store(place).state.digest() == digest_at(3)


# --- no space ---------------------------------------------------------------------------------


@pytest.mark.fault(17)
@pytest.mark.parametrize("code", NO_SPACE)
def test_no_space_for_the_next_segment_refuses_before_anything_happens(
    place: str, disk: FaultyDisk, code: int
) -> None:
    store = Store(place, disk).serve()
    fill_segment(store)
    manifest, taken = store.wal.manifest, store.acknowledged
    disk.fail_always("zero_fill", code)
    for _ in range(3):
        with pytest.raises(OutOfSpace) as caught:
            store.commit(1)
        assert caught.value.exit_code == 7
    assert store.wal.manifest == manifest
    assert not Path(place, "wal/next.tmp").exists()
    disk.heal()
    store.commit(5)
    assert store.state.revision == taken + 5
    store.wal.close()
    assert Store(place).state.digest() == digest_at(taken + 5)


@pytest.mark.fault(17)
def test_a_full_disk_goes_on_into_the_spare(place: str, disk: FaultyDisk) -> None:
    options = SMALL._replace(spare="inline")
    store = Store(place, disk, options).serve()
    fill_segment(store)
    disk.fail_always("zero_fill", errno.ENOSPC)
    store.commit(1)  # into the spare; another one cannot be made
    assert len(store.wal.manifest.sealed) == 1
    fill_segment(store)
    with pytest.raises(OutOfSpace):
        store.commit(1)
    disk.heal()
    store.wal.check_space()
    assert store.wal.status()["spare_ready"]
    store.commit(1)


@pytest.mark.fault(17)
def test_the_end_of_a_segment_is_left_to_what_a_full_disk_must_not_stop(
    place: str, disk: FaultyDisk
) -> None:
    store = Store(place, disk, SMALL._replace(segment_bytes=1 << 20)).serve()
    disk.fail_always("zero_fill", errno.ENOSPC)
    with pytest.raises(OutOfSpace):
        store.commit(2_000)
    store.wal.ensure_room(4_000, urgent=True)
    store.wal.append([Sealed(START + 10_000)], store.acknowledged + 1)
    store.wal.sync()


@pytest.mark.fault(17)
def test_a_full_disk_can_still_start(place: str, disk: FaultyDisk) -> None:
    """Copy forward uses the spare that the last start left."""
    options = SMALL._replace(spare="inline")
    store = Store(place, disk, options).serve().commit(3)
    disk.abandon()
    disk.fail_always("zero_fill", errno.ENOSPC)
    store = Store(place, disk, options).serve()
    store.commit(1)
    disk.abandon()
    assert Store(place).state.digest() == digest_at(4)


@pytest.mark.fault(17)
def test_begin_without_space_changes_nothing_and_may_be_tried_again(
    place: str, disk: FaultyDisk
) -> None:
    Store(place, disk).serve().commit(3)
    disk.abandon()
    store = Store(place, disk)
    disk.fail_always("zero_fill", errno.ENOSPC)
    with pytest.raises(OutOfSpace):
        store.wal.begin()
    assert store.wal.needs_copy_forward
    disk.heal()
    store.serve().commit(1)
    store.wal.close()
    assert Store(place).state.digest() == digest_at(4)


@pytest.mark.fault(17)
def test_no_space_for_the_manifest_is_made_up_for_later(place: str, disk: FaultyDisk) -> None:
    store = Store(place, disk).serve()
    disk.fail_always("create", errno.ENOSPC, "MANIFEST")
    store.commit(30)
    assert len(store.wal.manifest.sealed) >= 3
    on_disk = read_manifest(RealDisk(), place)
    assert on_disk is not None
    assert on_disk.sealed == ()
    assert Store(place).state.digest() == digest_at(30), "the chain alone is enough"
    disk.heal()
    store.wal.check_space()
    assert read_manifest(RealDisk(), place) == store.wal.manifest
    assert store.wal.manifest.sequence == on_disk.sequence + 1
    store.wal.close()
    assert Store(place).state.digest() == digest_at(30)


@pytest.mark.fault(18)
def test_no_space_for_a_snapshots_manifest_keeps_the_old_state(
    place: str, disk: FaultyDisk
) -> None:
    store = Store(place, disk).serve().commit(5)
    store.snapshot()
    before = store.wal.manifest.snapshots
    store.commit(5)
    disk.fail_always("create", errno.ENOSPC, "MANIFEST")
    with pytest.raises(OutOfSpace):
        store.snapshot(keep_two)
    assert store.wal.manifest.snapshots == before
    assert len(os.listdir(f"{place}/snap")) == 1
    store.commit(3)
    disk.heal()
    store.wal.close()
    assert Store(place).state.digest() == digest_at(13)


@pytest.mark.fault(17)
def test_a_new_store_on_a_full_disk_is_out_of_space(place: str, disk: FaultyDisk) -> None:
    disk.fail_always("pwrite", errno.ENOSPC)
    with pytest.raises(OutOfSpace):
        Store(place, disk)
    disk.heal()
    assert Store(place, disk).serve().commit(1).state.revision == 1


def test_space_below_the_watermark_is_told_and_ends_by_itself(
    place: str, disk: FaultyDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(place, disk, SMALL._replace(watermark_bytes=1_000)).serve().commit(5)
    size = max(store.snapshot().size, store.wal.state.ring.bytes)
    free = 1_000 + size * 5 // 4
    for left, low in ((free, False), (free - 1, True), (0, True), (free, False)):
        monkeypatch.setattr(disk.inner, "free_bytes", lambda path, left=left: left)
        assert store.wal.check_space() is low
        assert store.wal.space_low is low


def test_a_fast_writer_is_told_of_low_space_with_the_next_segment(
    place: str, disk: FaultyDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(place, disk, SMALL._replace(watermark_bytes=1_000)).serve().commit(1)
    monkeypatch.setattr(disk.inner, "free_bytes", lambda path: 0)
    assert not store.wal.space_low
    store.wal.rotate()
    assert store.wal.space_low


# --- the lock ---------------------------------------------------------------------------------


@pytest.mark.fault(10)
def test_a_lost_lock_keeps_the_manifest_from_being_written(place: str) -> None:
    store = Store(place).serve().commit(3)
    manifest = read_file(RealDisk(), f"{place}/MANIFEST")
    store.wal._lock.held = False  # type: ignore[attr-defined]
    assert not store.wal.holds_lock()
    with pytest.raises(Poisoned, match="LOCK"):
        store.wal.rotate()
    assert read_file(RealDisk(), f"{place}/MANIFEST") == manifest
