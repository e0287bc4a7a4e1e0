"""Compaction, ended at every call it makes to the disk, in the compactor as in the store."""

from __future__ import annotations

import errno
import functools
import json
import random

import pytest

from ckptmesh.compaction import Compaction
from ckptmesh.compactor import attempt, temporary_name
from ckptmesh.disk import Disk
from ckptmesh.errors import CompactionFailed, Corrupt, OutOfSpace
from ckptmesh.limits import MIB
from ckptmesh.manifest import decode_manifest
from ckptmesh.testing.disks import FaultyDisk, Killed, MemoryDisk
from tests.crash.stores import SMALL, START, Store, digest_at

PLACE = "/store"
OPTIONS = SMALL._replace(retain_seconds=0)
digest = functools.cache(digest_at)


class Inline:
    """A compactor that has run, in this process, before anybody polls it."""

    pid = 4_711

    def __init__(self, disk: Disk, directory: str, segment: int, epoch: int) -> None:
        report, self.returncode = attempt(disk, directory, segment,
                                          temporary_name(epoch, self.pid), b"salt of 16 bytes")
        self._output = json.dumps(report).encode()

    def poll(self) -> int | None:
        return self.returncode

    def kill(self) -> None:
        pass

    def communicate(self) -> tuple[bytes, bytes | None]:
        return self._output, None


def compaction_of(store: Store, disk: Disk) -> Compaction:
    return Compaction(store.wal, disk=disk, clock=lambda: START, elapsed=lambda: 0,
                      spawn=functools.partial(Inline, disk))


def compact(store: Store, disk: Disk) -> dict[str, object]:
    compaction = compaction_of(store, disk)
    compaction.start(None)
    report = compaction.poll()
    assert report is not None
    return report


def fresh() -> MemoryDisk:
    disk = MemoryDisk()
    disk.mkdir(PLACE)
    disk.sync_directory("/")
    return disk


def live(disk: FaultyDisk) -> Store:
    """Two compactions with commits around them."""
    store = Store(PLACE, disk, OPTIONS)
    assert store.state.digest() == digest(store.state.revision)
    store.serve().commit(12)
    compact(store, disk)
    store.commit(12)
    compact(store, disk)
    store.commit(3)
    store.wal.close()
    return store


def calls_of_compactions() -> list[int]:
    """The calls, counted from 1, that lie in a compaction."""
    disk = FaultyDisk(fresh())
    store = Store(PLACE, disk, OPTIONS)
    store.serve().commit(12)
    found = []
    for count in (12, 3):
        begin = len(disk.calls)
        compact(store, disk)
        found += range(begin + 1, len(disk.calls) + 1)
        store.commit(count)
    return found


def killed_at(call: int) -> tuple[MemoryDisk, int]:
    """The disk after a life that ended at this call, and the last acknowledged revision."""
    inner = fresh()
    disk = FaultyDisk(inner)
    acknowledged = 0

    def meet(count: int, operation: str, path: str) -> None:
        if count == call:
            raise Killed(operation)

    disk.meet = meet
    store: Store | None = None
    try:
        store = Store(PLACE, disk, OPTIONS)
        store.serve().commit(12)
        compact(store, disk)
        store.commit(12)
        compact(store, disk)
        store.commit(3)
    except Killed:
        acknowledged = store.acknowledged if store else 0
    return inner, acknowledged


@pytest.mark.fault(5)
def test_killed_at_any_step_the_old_or_the_new_state_is_there() -> None:
    for call in calls_of_compactions():
        disk, acknowledged = killed_at(call)
        store = live(FaultyDisk(disk.killed()))
        assert store.state.revision == acknowledged + 27, call


@pytest.mark.fault(5)
@pytest.mark.fault(26)
def test_power_lost_at_any_step_the_old_or_the_new_state_is_there() -> None:
    for call in calls_of_compactions():
        disk, acknowledged = killed_at(call)
        for seed in range(3):
            image = disk.power_failure(random.Random(call * 10 + seed), all_lost=seed == 0)
            store = live(FaultyDisk(image))
            assert store.state.revision == acknowledged + 27, (call, seed)


@pytest.mark.fault(5)
def test_nothing_unfinished_stays_behind() -> None:
    for call in calls_of_compactions():
        disk, _ = killed_at(call)
        live(FaultyDisk(disk.killed()))
        assert not [name for name in disk.names if name.endswith(".tmp")], call


def test_no_file_goes_that_the_durable_manifest_or_the_one_before_it_needs() -> None:
    inner = fresh()
    disk, gone = FaultyDisk(inner), []

    def meet(count: int, operation: str, path: str) -> None:
        if operation == "unlink" and not path.endswith(".tmp"):
            written = inner.durable[f"{PLACE}/MANIFEST"]
            assert written is not None
            manifest = decode_manifest(written.durable)
            gone.append(path.removeprefix(f"{PLACE}/"))
            assert gone[-1] not in {*manifest.files(), *manifest.needed_before}

    disk.meet = meet
    live(disk)
    assert gone


def test_a_compactor_changes_its_own_file_and_nothing_else() -> None:
    """Above all not the manifest: the store may have written a newer one meanwhile."""
    disk = FaultyDisk(fresh())
    store = Store(PLACE, disk, OPTIONS).serve().commit(12)
    sealed = store.wal.rotate()
    assert sealed is not None
    before = len(disk.calls)
    report, code = attempt(disk, PLACE, sealed.number, "snap/snap.1.2.tmp", b"salt of 16 bytes")
    assert (code, report["revision"]) == (0, 12)
    changes = {call for call in disk.calls[before:] if call[0] not in ("open", "pread", "close")}
    own = f"{PLACE}/snap/snap.1.2.tmp"
    assert changes == {("create", own), ("pwrite", own), ("fdatasync", own)}


@pytest.mark.fault(18)
def test_a_full_disk_leaves_the_old_snapshot_and_says_so() -> None:
    disk = FaultyDisk(fresh())
    store = Store(PLACE, disk, OPTIONS).serve().commit(12)
    compact(store, disk)
    before = store.wal.manifest.snapshots
    store.commit(12)
    for operation in ("create", "pwrite", "fdatasync"):
        disk.fail_always(operation, errno.ENOSPC, "snap.")
        with pytest.raises(OutOfSpace, match="no room for a snapshot"):
            compact(store, disk)
    disk.heal()
    assert store.wal.manifest.snapshots == before
    assert disk.listdir(f"{PLACE}/snap") == [before[0].file.removeprefix("snap/")]
    store.commit(1)
    compact(store, disk)
    store.wal.close()
    assert Store(PLACE, disk, OPTIONS).state.digest() == digest(25)


@pytest.mark.fault(18)
def test_a_full_disk_at_the_manifest_leaves_the_old_state() -> None:
    disk = FaultyDisk(fresh())
    store = Store(PLACE, disk, OPTIONS).serve().commit(12)
    compaction = compaction_of(store, disk)
    compaction.start(None)
    disk.fail_always("pwrite", errno.ENOSPC, "MANIFEST")
    with pytest.raises(OutOfSpace):
        compaction.poll()
    disk.heal()
    assert not compaction.running
    assert disk.listdir(f"{PLACE}/snap") == []
    store.commit(1).wal.close()
    assert Store(PLACE, disk, OPTIONS).state.digest() == digest(13)


def test_a_failing_disk_under_the_compactor_does_not_stop_the_store() -> None:
    disk = FaultyDisk(fresh())
    store = Store(PLACE, disk, OPTIONS).serve().commit(12)
    disk.fail_always("fdatasync", errno.EIO, "snap.")
    with pytest.raises(CompactionFailed, match="EIO"):
        compact(store, disk)
    disk.heal()
    assert store.commit(1).acknowledged == 13


@pytest.mark.fault(23)
def test_damage_in_what_the_compactor_reads_is_told_and_nothing_changes() -> None:
    disk = fresh()
    store = Store(PLACE, disk, OPTIONS).serve().commit(40)
    first = store.wal.manifest.sealed[0].file
    file = disk.names[f"{PLACE}/{first}"]
    assert file is not None
    file.data[700] ^= 1
    with pytest.raises(Corrupt, match="compaction failed") as caught:
        compact(store, disk)
    assert caught.value.details["file"] == f"{PLACE}/{first}"
    assert store.wal.manifest.snapshots == ()


def test_a_second_compaction_without_new_commits_writes_nothing_new() -> None:
    disk = fresh()
    store = Store(PLACE, disk, OPTIONS).serve().commit(12)
    first, second = compact(store, disk), compact(store, disk)
    assert (first["made"], second["made"]) == (True, False)
    assert len(disk.listdir(f"{PLACE}/snap")) == 1


def test_the_next_compaction_removes_what_an_earlier_one_left() -> None:
    disk = fresh()
    store = Store(PLACE, disk, OPTIONS).serve().commit(12)
    disk.close(disk.open(f"{PLACE}/snap/snap.1.99.tmp", "create"))
    compaction = compaction_of(store, disk)
    compaction.start(None)
    assert f"{PLACE}/snap/snap.1.99.tmp" not in disk.names
    assert f"{PLACE}/snap/snap.1.{Inline.pid}.tmp" in disk.names
    assert compaction.poll() is not None


def test_what_a_snapshot_covers_goes_and_the_report_says_what_stays_and_why() -> None:
    disk = fresh()
    store = Store(PLACE, disk, OPTIONS).serve().commit(60)
    compact(store, disk)
    store.commit(60)
    before = set(disk.listdir(f"{PLACE}/wal"))
    report = compact(store, disk)
    gone = before - set(disk.listdir(f"{PLACE}/wal"))
    assert gone
    assert {f"wal/{name}" for name in gone} == set(report["removed"])  # type: ignore[call-overload]
    there = {f"{folder}/{name}" for folder in ("wal", "snap")
             for name in disk.listdir(f"{PLACE}/{folder}")}
    assert there == set(report["kept"])  # type: ignore[call-overload]
    assert report["oldest_revision"] == 60
    assert report["bytes_before"] > 0
    assert report["bytes_after"] == store.wal.bytes_on_disk


@pytest.mark.fault(27)
def test_one_damaged_snapshot_falls_back_loudly_two_refuse() -> None:
    disk = fresh()
    store = Store(PLACE, disk, OPTIONS).serve().commit(12)
    compact(store, disk)
    store.commit(12)
    compact(store, disk)
    store.commit(12)
    compact(store, disk)
    store.commit(3).wal.close()
    older, newest = (disk.names[f"{PLACE}/{entry.file}"] for entry in store.wal.manifest.snapshots)
    assert older is not None
    assert newest is not None
    newest.data[200] ^= 4
    again = Store(PLACE, disk, OPTIONS)
    assert again.state.digest() == digest(39)
    assert any("is damaged at byte" in note and "falling back" in note for note in again.wal.notes)
    again.wal.close()
    older.data[200] ^= 4
    with pytest.raises(Corrupt) as caught:
        Store(PLACE, disk, OPTIONS)
    assert caught.value.details["file"] == f"{PLACE}/{store.wal.manifest.snapshots[1].file}"
    newest.data[200] ^= 4
    assert Store(PLACE, disk, OPTIONS).state.digest() == digest(39)


def test_due_by_bytes_or_by_segments_and_not_soon_after_a_failure() -> None:
    now = [0]
    disk = FaultyDisk(fresh())
    store = Store(PLACE, disk, OPTIONS)

    def compaction(due_bytes: int, due_segments: int) -> Compaction:
        return Compaction(store.wal, due_bytes, due_segments, disk=disk, clock=lambda: START,
                          elapsed=lambda: now[0], spawn=functools.partial(Inline, disk))

    assert not compaction(1, 1).due(), "before the log has begun"
    store.serve().commit(60)
    count = len(store.wal.manifest.sealed)
    size = sum(segment.size for segment in store.wal.manifest.sealed)
    assert count > 2
    assert compaction(size, 1_000).due()
    assert not compaction(size + 1, 1_000).due()
    assert compaction(MIB, count).due()
    assert not compaction(MIB, count + 1).due()

    one = compaction(MIB, count)
    disk.fail_always("pwrite", errno.ENOSPC, "snap.")
    one.start(None)
    with pytest.raises(OutOfSpace):
        one.poll()
    assert not one.due()
    now[0] += 60_000_000
    assert one.due()
    disk.heal()
    one.start(None)
    assert one.poll() is not None
    assert not one.due(), "covered by the snapshot now"
