"""The process ends, or the power fails, at every single call that the log makes to the disk.

After each: every acknowledged revision is there, at most the one in flight beside them, the state
equals the model's, and the store goes on. No image is ever taken for corrupt.
"""

from __future__ import annotations

import functools
import random

import pytest

from ckptmesh.testing.disks import FaultyDisk, Killed, MemoryDisk
from ckptmesh.testing.images import Images
from ckptmesh.wal import WalOptions
from tests.crash.stores import SMALL, Store, digest_at, keep_two

PLACE = "/store"
digest = functools.cache(digest_at)


class Run:
    """One life of a store: `acknowledged` is what its users were told, over all lives."""

    def __init__(self, disk: MemoryDisk, acknowledged: int = 0,
                 options: WalOptions = SMALL) -> None:
        self.faulty = FaultyDisk(disk)
        self.options = options
        self.acknowledged = acknowledged
        self.store: Store | None = None

    def live(self, kill_at: int = 0) -> bool:
        """Commit, rotate, take snapshots, close; ends early at call `kill_at`. True when closed."""

        def meet(count: int, operation: str, path: str) -> None:
            if count == kill_at:
                raise Killed(f"{operation} {path}")

        self.faulty.meet = meet
        try:
            self._live()
        except Killed:
            return False
        finally:
            if self.store is not None:
                self.acknowledged = max(self.acknowledged, self.store.acknowledged)
        return True

    def _live(self) -> None:
        self.store = store = Store(PLACE, self.faulty, self.options)
        revision = store.state.revision
        assert self.acknowledged <= revision <= self.acknowledged + 1
        assert store.state.digest() == digest(revision)
        store.serve()
        store.acknowledged = revision  # shown to readers from here on
        store.commit(7)
        store.snapshot(keep_two)
        store.commit(4)
        store.snapshot(keep_two)
        store.commit(9)
        store.wal.close()


def calls_of_a_life(disk: MemoryDisk) -> list[tuple[str, str]]:
    run = Run(disk)
    assert run.live()
    return run.faulty.calls


def test_a_life_without_faults_meets_every_operation() -> None:
    calls = {operation for operation, _ in calls_of_a_life(fresh())}
    assert calls >= {"create", "write", "open", "close", "pread", "pwrite", "zero_fill",
                     "truncate", "fdatasync", "sync_directory", "rename", "unlink", "mkdir"}


@pytest.mark.fault(1)
@pytest.mark.fault(2)
@pytest.mark.fault(3)
@pytest.mark.fault(5)
def test_killed_at_any_call_nothing_acknowledged_is_lost() -> None:
    total = len(calls_of_a_life(fresh()))
    for kill_at in range(1, total + 1):
        disk = fresh()
        first = Run(disk)
        assert not first.live(kill_at)
        assert Run(disk.killed(), first.acknowledged).live(), kill_at


@pytest.mark.fault(2)
@pytest.mark.fault(5)
@pytest.mark.fault(26)
def test_power_lost_at_any_call_nothing_acknowledged_is_lost() -> None:
    total = len(calls_of_a_life(fresh()))
    for kill_at in range(1, total + 1):
        disk = fresh()
        first = Run(disk)
        assert not first.live(kill_at)
        for seed in range(4):
            image = disk.power_failure(random.Random(kill_at * 10 + seed), all_lost=seed == 0)
            assert Run(image, first.acknowledged).live(), (kill_at, seed)


def test_whatever_is_named_spare_after_a_power_failure_is_all_zeroes() -> None:
    options = SMALL._replace(spare="inline")
    run = Run(fresh(), options=options)
    assert run.live()
    found = 0
    for kill_at in range(1, len(run.faulty.calls) + 1):
        disk = fresh()
        first = Run(disk, options=options)
        assert not first.live(kill_at)
        for seed in range(3):
            image = disk.power_failure(random.Random(kill_at * 10 + seed), all_lost=seed == 0)
            spare = image.names.get(f"{PLACE}/wal/spare")
            if spare is not None:
                found += 1
                assert spare.data == bytes(options.segment_bytes), kill_at
            assert Run(image, first.acknowledged, options).live(), (kill_at, seed)
    assert found > 100


@pytest.mark.fault(6)
def test_power_lost_again_and_again_during_recovery() -> None:
    source = random.Random(7)
    for _ in range(60):
        disk, acknowledged = fresh(), 0
        for _ in range(6):
            run = Run(disk, acknowledged)
            run.live(source.randrange(1, 60))
            acknowledged = run.acknowledged
            disk = disk.power_failure(source) if source.random() < 0.7 else disk.killed()
        assert Run(disk, acknowledged).live()


@pytest.mark.fault(2)
def test_what_was_read_after_a_kill_survives_a_power_failure() -> None:
    """The frame was in the page cache only; the next process read it, so it must make it last."""
    disk = fresh()
    run = Run(disk)
    syncs = [index for index, (operation, path) in enumerate(calls_of_a_life(fresh()), 1)
             if operation == "fdatasync" and path.endswith(".seg")]
    assert not run.live(syncs[5])
    second = Store(PLACE, FaultyDisk(disk.killed()))
    assert second.wal.needs_copy_forward
    assert second.state.revision == run.acknowledged + 1
    second.wal.begin()
    after = Store(PLACE, FaultyDisk(disk.power_failure(random.Random(1), all_lost=True)))
    assert after.state.revision == run.acknowledged + 1


def fresh() -> MemoryDisk:
    disk = MemoryDisk()
    disk.mkdir(PLACE)
    disk.sync_directory("/")
    return disk


@pytest.mark.fault(6)
def test_a_first_manifest_that_was_read_after_a_kill_is_durable_before_the_first_segment() -> None:
    renamed = calls_of_a_life(fresh()).index(("rename", f"{PLACE}/MANIFEST")) + 1
    for kill_at in range(1, 30):
        disk = fresh()
        assert not Run(disk).live(renamed + 1)
        second = Run(disk.killed())
        assert not second.live(kill_at)
        for image in Images(disk, bound=20):
            assert Store(PLACE, image).state.revision in (
                second.acknowledged, second.acknowledged + 1), kill_at


def test_a_directory_that_somebody_else_made_lasts_once_a_commit_in_it_does() -> None:
    disk = MemoryDisk()
    disk.mkdir(PLACE)
    Store(PLACE, disk).serve().commit(1)
    image = disk.power_failure(random.Random(1), all_lost=True)
    assert Store(PLACE, image).state.digest() == digest(1)


@pytest.mark.fault(20)
def test_a_torn_tail_is_never_cut_before_its_copy_is_durable() -> None:
    source = random.Random(3)
    garbage = source.randbytes(900)

    def torn() -> tuple[MemoryDisk, str]:
        disk = fresh()
        run = Run(disk)
        run.store = Store(PLACE, run.faulty).serve().commit(3)
        active = run.store.wal.manifest.active
        assert active is not None
        path = f"{PLACE}/{active.file}"
        handle = disk.open(path, "write")
        disk.pwrite(handle, garbage, 4_096)
        disk.fdatasync(handle)
        return disk, path

    disk, path = torn()
    faulty = FaultyDisk(disk)
    assert Store(PLACE, faulty).wal.verdict == "TORN"
    for kill_at in range(1, len(faulty.calls) + 1):
        disk, path = torn()
        faulty = FaultyDisk(disk)

        def meet(count: int, operation: str, place: str, kill_at: int = kill_at) -> None:
            if count == kill_at:
                raise Killed

        faulty.meet = meet
        with pytest.raises(Killed):
            Store(PLACE, faulty)
        image = disk.power_failure(source, all_lost=True)
        kept = [bytes(file.data) for name, file in image.names.items()
                if file is not None and (name == path or name.endswith(".torn"))]
        assert any(data.rstrip(b"\0").endswith(garbage.rstrip(b"\0")) for data in kept), kill_at
