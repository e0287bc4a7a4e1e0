"""Savepoints on a disk: kept by one file, through compactions and crashes, until dropped."""

from __future__ import annotations

import errno
import random

import pytest

from ckptmesh.cuts import reading, state_at
from ckptmesh.errors import Compacted, OutOfSpace, Poisoned, SavepointNotFound
from ckptmesh.messages import Savepoint
from ckptmesh.restore import restore
from ckptmesh.retention import awaiting_snapshot
from ckptmesh.testing.disks import FaultyDisk, Killed, MemoryDisk
from tests.crash.stores import Store, no_lock
from tests.crash.test_compaction_crashes import (
    OPTIONS,
    PLACE,
    compact,
    compaction_of,
    digest,
    fresh,
)

HERE = Savepoint("here", 12, 99, "why")


def served(disk: FaultyDisk) -> Store:
    return Store(PLACE, disk, OPTIONS).serve()


def compact_due(store: Store, disk: FaultyDisk) -> None:
    """What the store's loop does of its own accord."""
    compaction = compaction_of(store, disk)
    assert compaction.due()
    compaction.start(None, due=True)
    assert compaction.poll() is not None


def readable(disk: FaultyDisk, revision: int) -> bool:
    try:
        state = reading(disk, PLACE, lambda manifest: state_at(disk, PLACE, manifest, revision))
    except Compacted:
        return False
    assert state.digest() == digest(revision)
    return True


@pytest.mark.parametrize("late", [False, True])
def test_a_savepoint_of_the_head_outlives_retention_by_its_snapshot_alone(late: bool) -> None:
    """`late`: another compaction was under way, and commits came, before that of the savepoint."""
    disk = FaultyDisk(fresh())
    store = served(disk).commit(12)
    store.wal.pin(HERE)
    if late:
        store.commit(12)
        compact(store, disk)
    assert awaiting_snapshot(store.wal.manifest)
    compact_due(store, disk)
    assert not awaiting_snapshot(store.wal.manifest)
    assert not compaction_of(store, disk).due()
    for _ in range(3):
        store.commit(12)
        compact(store, disk)
    assert readable(disk, 12)
    assert not readable(disk, 11)
    assert not readable(disk, 13)
    manifest = store.wal.manifest
    assert manifest.snapshots[0].revision == 12
    assert manifest.sealed[0].first_revision > 13, "no segment is kept for it"
    store.wal.close()
    store = served(disk)
    assert store.wal.savepoints == (HERE,)
    store.wal.unpin("here")
    store.commit(1)
    compact(store, disk)
    assert not readable(disk, 12)
    assert store.wal.savepoints == ()


def test_a_savepoint_of_the_past_keeps_the_log_from_there_on() -> None:
    disk = FaultyDisk(fresh())
    store = served(disk).commit(30)
    past = Savepoint("past", 17)
    store.wal.pin(past)
    assert not awaiting_snapshot(store.wal.manifest)
    for _ in range(3):
        store.commit(12)
        compact(store, disk)
    assert all(readable(disk, revision) for revision in (17, 18, 40))
    store.wal.unpin("past")
    store.commit(1)
    compact(store, disk)
    assert not readable(disk, 17)
    with pytest.raises(Compacted):
        store.wal.pin(past)
    assert store.wal.savepoints == ()


def test_a_store_is_restored_to_a_savepoint_by_its_name() -> None:
    disk = FaultyDisk(fresh())
    store = served(disk).commit(12)
    store.wal.pin(HERE)
    store.commit(5)
    disk.inner.mkdir("/new")  # as the lock does
    report = restore(PLACE, "/new", savepoint="here", disk=disk, lock=no_lock)
    assert report.revision == 12
    with pytest.raises(SavepointNotFound):
        restore(PLACE, "/newer", savepoint="nowhere", disk=disk, lock=no_lock)


def test_what_is_pinned_while_a_compaction_is_under_way_stays() -> None:
    disk = FaultyDisk(fresh())
    store = served(disk).commit(30)
    for _ in range(2):
        store.commit(12)
        compaction = compaction_of(store, disk)
        compaction.start(0)
        if not store.wal.savepoints:
            store.wal.pin(Savepoint("past", 17))
            store.wal.pin(Savepoint("head", store.state.revision))
        store.commit(3)
        assert compaction.poll() is not None
    assert readable(disk, 17)
    assert readable(disk, 42)
    store.wal.unpin("past")
    compact(store.commit(1), disk)
    assert not readable(disk, 17), "nothing else had kept it"
    assert readable(disk, 42)


def test_a_savepoint_that_is_dropped_while_its_snapshot_is_made_ends_nothing() -> None:
    disk = FaultyDisk(fresh())
    store = served(disk).commit(12)
    store.wal.pin(HERE)
    store.commit(30)
    compact(store, disk)
    compact(store.commit(3), disk)
    compaction = compaction_of(store, disk)
    compaction.start(None, due=True)
    store.wal.unpin("here")
    assert compaction.poll() is not None
    assert not compaction_of(store, disk).due()
    for _ in range(2):
        compact(store.commit(3), disk)
    assert not readable(disk, 12)
    assert readable(disk, store.state.revision)


# --- crashes ----------------------------------------------------------------------------------


MAKING, MADE, DROPPING, DROPPED = "making", "made", "dropping", "dropped"
MAY_BE = {MAKING: {(), (HERE,)}, MADE: {(HERE,)}, DROPPING: {(), (HERE,)}, DROPPED: {()}}


def pinned_until(call: int) -> tuple[MemoryDisk, str, int]:
    """The disk after a life that ended at this call to it: with a savepoint made, its snapshot, and
    the savepoint dropped. How far that was; the calls that there were."""
    inner = fresh()
    disk = FaultyDisk(inner)
    store = served(disk).commit(12)
    begun, stage = len(disk.calls), MAKING

    def meet(count: int, operation: str, path: str) -> None:
        if count == begun + call:
            raise Killed(operation)

    disk.meet = meet
    try:
        store.wal.pin(HERE)
        stage = MADE
        store.commit(3)
        compact_due(store, disk)
        store.commit(12)
        compact(store, disk)
        stage = DROPPING
        store.wal.unpin("here")
        stage = DROPPED
    except Killed:
        pass
    return inner, stage, len(disk.calls) - begun


@pytest.mark.fault(5)
@pytest.mark.fault(26)
@pytest.mark.parametrize("power", [False, True])
def test_an_acknowledged_savepoint_is_there_after_a_crash_at_any_step(power: bool) -> None:
    calls = pinned_until(1_000_000)[2]
    stages = set()
    for call in range(1, calls + 2):
        inner, stage, _ = pinned_until(call)
        stages.add(stage)
        image = (inner.power_failure(random.Random(call), all_lost=call % 3 == 0) if power
                 else inner.killed())
        disk = FaultyDisk(image)
        store = served(disk)
        held = store.wal.savepoints
        assert held in MAY_BE[stage], (call, stage)
        if held:
            for _ in range(2):
                store.commit(9)
                compact(store, disk)
            assert readable(disk, 12), (call, stage)
    assert stages == set(MAY_BE)


@pytest.mark.fault(17)
def test_without_space_there_is_no_savepoint_and_the_store_goes_on() -> None:
    disk = FaultyDisk(fresh())
    store = served(disk).commit(12)
    for operation in ("create", "pwrite", "fdatasync"):
        disk.fail_always(operation, errno.ENOSPC, "MANIFEST.tmp")
        with pytest.raises(OutOfSpace):
            store.wal.pin(HERE)
        disk.heal()
        assert store.wal.savepoints == ()
        store.commit(1)
    store.wal.pin(HERE._replace(revision=store.state.revision))
    assert len(store.wal.savepoints) == 1


def test_a_failed_rename_of_the_manifest_leaves_everything_in_doubt() -> None:
    disk = FaultyDisk(fresh())
    store = served(disk).commit(12)
    disk.fail_always("rename", errno.EIO, "MANIFEST")
    with pytest.raises(Poisoned):
        store.wal.pin(HERE)
