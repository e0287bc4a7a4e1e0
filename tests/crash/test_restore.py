"""A restored store holds exactly what the old one held at that place: against a model."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from ckptmesh.compaction import Compaction
from ckptmesh.cuts import reading
from ckptmesh.disk import RealDisk
from ckptmesh.errors import (
    Compacted,
    Corrupt,
    DirectoryInUse,
    FutureRevision,
    InvalidDirectory,
    Misuse,
)
from ckptmesh.facts import (
    Expiry,
    LossSuspected,
    Record,
    SessionEnded,
    SessionOpened,
    Transaction,
    Write,
)
from ckptmesh.lock import acquire
from ckptmesh.manifest import Savepoint
from ckptmesh.messages import DELETE, PUT, TOUCH
from ckptmesh.restore import list_snapshots, restore
from ckptmesh.testing.disks import FaultyDisk, Killed
from ckptmesh.wal import Wal
from tests.crash.stores import SMALL, START, Store
from tests.crash.test_compaction_crashes import compact

OPTIONS = SMALL._replace(retain_seconds=10**9)
SECOND = 1_000_000
NOW = START + 10_000 * SECOND

Model = dict[str, tuple[bytes, int]]
"""key → (value, revision of its put)"""


class History:
    """A small store's life, and a model of it: plain dicts, one for each revision."""

    def __init__(self, directory: Path, seed: int = 1) -> None:
        self.directory = str(directory)
        self.source = random.Random(seed)
        self.now = START
        self.model: list[Model] = [{}]
        self.times = [0]
        self.digests = [""]
        self.leases: list[frozenset[str]] = [frozenset()]
        self.store = self.open()

    def open(self) -> Store:
        self.store = Store(self.directory, RealDisk(), OPTIONS, locked=True).serve()
        return self.store

    def write(self, record: Record) -> None:
        self.store.write([record])

    def step(self) -> None:
        """One revision, or a session coming and going."""
        self.now += self.source.randrange(1, 3 * SECOND)
        state, source = self.store.state, self.source
        model = dict(self.model[-1])
        key = f"orders/{source.randrange(6)}"
        action = source.choice(("put", "put", "put", "lease", "delete", "touch", "expiry"))
        if source.random() < 0.2:
            session = source.randbytes(16)
            self.write(SessionOpened(session, self.now, "test"))
            if source.random() < 0.5:
                self.write(SessionEnded(session, self.now))
        if action in ("put", "lease") or key not in model:
            value = source.randbytes(source.randrange(1, 900))
            lease = 30 * SECOND if action == "lease" else None
            until = self.now + 30 * SECOND if action == "lease" or source.random() < 0.3 else None
            write = Write(PUT, key, value, until, lease)
            model[key] = (value, state.revision + 1)
        elif action == "touch":
            write = Write(TOUCH, key, b"", self.now + 60 * SECOND)
        else:
            write = Write(DELETE, key)
            del model[key]
        if action == "expiry" and write.kind == DELETE:
            self.write(Expiry(self.now, key))
        else:
            self.write(Transaction(b"", 0, 0, 0, self.now, (write,), (1,)))
        self.model.append(model)
        self.times.append(self.now)
        self.digests.append(state.digest())
        self.leases.append(frozenset(state.leases))

    def steps(self, count: int) -> History:
        for _ in range(count):
            self.step()
        return self

    def again(self) -> History:
        """A new epoch."""
        self.store.wal.close()
        self.open()
        return self

    def compact(self) -> History:
        compact(self.store, RealDisk())
        return self


@pytest.fixture
def history(tmp_path: Path) -> History:
    found = History(tmp_path / "old").steps(25).compact().steps(20).again().steps(12)
    return found.compact().again().compact().steps(18)


def restored(history: History, place: Path, **at: int) -> tuple[Wal, Model]:
    """The new directory's log and its keys, leases that ended with the restore put aside."""
    report = restore(history.directory, str(place), clock=lambda: NOW,
                     random=random.Random(9).randbytes, **at)
    wal = Wal.open(place, OPTIONS)
    state = wal.state
    assert wal.notes == ()
    assert state.uuid == report.store.uuid != history.store.wal.uuid
    assert state.epoch == report.store.epoch > history.store.state.epoch
    assert not state.sessions
    assert not state.leases
    assert state.revision == report.store.revision == report.revision + report.store.leases_ended
    return wal, {key: (version.value, version.revision) for key, version in state.entries.items()}


def test_a_loss_that_the_old_store_suspects_is_none_of_the_restored_one(tmp_path: Path) -> None:
    old = History(tmp_path / "old").steps(3)
    old.write(LossSuspected(9, 99))
    epoch = restore(old.directory, str(tmp_path / "new"), clock=lambda: NOW).store.epoch
    state = Store(str(tmp_path / "new"), RealDisk(), OPTIONS, locked=True).state
    assert state.loss is None, "else nobody could write to it"
    assert epoch > old.store.state.epoch


@pytest.mark.fault(29)
def test_each_revision_can_be_restored_and_equals_the_model(
    history: History, tmp_path: Path,
) -> None:
    """The store is in use meanwhile: its last commits lie in the segment that it writes to."""
    assert len(history.store.wal.manifest.snapshots) == 3
    for revision in range(history.store.state.revision + 1):
        place = tmp_path / f"new-{revision}"
        wal, keys = restored(history, place, revision=revision)
        leases = history.leases[revision]
        assert keys == {key: kept for key, kept in history.model[revision].items()
                        if key not in leases}, revision
        assert wal.state.revision == revision + len(leases)
        if revision and not leases:
            assert wal.state.digest() == history.digests[revision]
        wal.close()
        shutil.rmtree(place)


@pytest.mark.fault(29)
def test_each_time_can_be_restored_and_equals_the_model(history: History, tmp_path: Path) -> None:
    for revision in range(1, history.store.state.revision + 1, 4):
        for before in (0, 1):
            place = tmp_path / f"new-{revision}-{before}"
            report = restore(history.directory, str(place), time=history.times[revision] - before,
                             clock=lambda: NOW)
            assert report.revision == revision - before
            assert report.time == history.times[revision - before]
            shutil.rmtree(place)


def test_a_time_beyond_damage_is_refused_and_not_restored_to_before_it(
    history: History, tmp_path: Path,
) -> None:
    """The first frame after a snapshot: the snapshot alone must not pass for the cut."""
    manifest = history.store.wal.manifest
    segment = next(each for each in manifest.sealed
                   if each.number == manifest.snapshots[0].segment + 1)
    path = Path(history.directory, segment.file)
    data = bytearray(path.read_bytes())
    data[OPTIONS.sector + 80] ^= 1
    path.write_bytes(data)
    with pytest.raises(Corrupt, match="damaged") as caught:
        restore(history.directory, str(tmp_path / "new"), clock=lambda: NOW,
                time=history.times[segment.last_revision])
    assert caught.value.details["file"] == str(path)
    assert not (tmp_path / "new").exists()


def test_the_head_is_restored_when_nothing_is_named(history: History, tmp_path: Path) -> None:
    wal, _ = restored(history, tmp_path / "new")
    head = len(history.model) - 1
    assert wal.state.revision == head + len(history.leases[head])
    wal.close()


def test_a_restored_store_is_served_compacted_and_restored_again(
    history: History, tmp_path: Path,
) -> None:
    wal, keys = restored(history, tmp_path / "new", revision=30)
    wal.close()
    store = Store(str(tmp_path / "new"), RealDisk(), OPTIONS, locked=True).serve()
    first = store.state.revision
    store.write([Transaction(b"", 0, 0, 0, NOW, (Write(PUT, "orders/new", b"\x01"),), (1,))])
    compact(store, RealDisk())
    store.write([Transaction(b"", 0, 0, 0, NOW, (Write(PUT, "orders/new", b"\x02"),), (2,))])
    store.wal.close()
    assert first >= 30
    for revision, value in ((first, None), (first + 1, b"\x01"), (first + 2, b"\x02")):
        place = tmp_path / f"again-{revision}"
        restore(str(tmp_path / "new"), str(place), revision=revision, clock=lambda: NOW)
        wal = Wal.open(place)
        entry = wal.state.entries.get("orders/new")
        assert (entry.value if entry else None) == value
        assert {key for key in wal.state.entries if key != "orders/new"} == set(keys)
        wal.close()


def test_what_is_no_longer_kept_is_refused_naming_the_oldest_cut(
    history: History, tmp_path: Path,
) -> None:
    head = history.store.state.revision
    compaction = Compaction(history.store.wal, clock=lambda: NOW)
    compaction.start(0)
    while (report := compaction.poll()) is None:
        pass
    oldest = report["oldest_revision"]
    assert 0 < oldest < head
    for revision in (0, 1, oldest - 1):
        with pytest.raises(Compacted, match=f"revision {oldest}") as caught:
            restore(history.directory, str(tmp_path / "new"), revision=revision)
        assert caught.value.details["floor"] == oldest
    with pytest.raises(Compacted):
        restore(history.directory, str(tmp_path / "new"), time=history.times[oldest] - 1,
                clock=lambda: NOW)
    assert not (tmp_path / "new").exists()
    restored(history, tmp_path / "new", revision=oldest)[0].close()


def test_a_savepoint_outlives_retention(history: History, tmp_path: Path) -> None:
    snapshot = history.store.wal.manifest.snapshots[0]
    history.store.wal.change_manifest(lambda manifest: manifest._replace(
        savepoints=(Savepoint("release", snapshot.revision),)))
    history.compact()
    compaction = Compaction(history.store.wal, clock=lambda: NOW)
    for _ in range(2):
        history.steps(3)
        compaction.start(0)
        while compaction.poll() is None:
            pass
    found = list_snapshots(history.directory)
    assert (found[0].revision, found[0].savepoints) == (25, ("release",))
    wal, _ = restored(history, tmp_path / "new", revision=25)
    wal.close()
    with pytest.raises(Compacted):
        restore(history.directory, str(tmp_path / "new2"), revision=26)


def test_the_future_is_refused(history: History, tmp_path: Path) -> None:
    head = history.store.state.revision
    with pytest.raises(FutureRevision, match=f"{head + 1}") as caught:
        restore(history.directory, str(tmp_path / "new"), revision=head + 1)
    assert caught.value.details["revision"] == head
    with pytest.raises(FutureRevision, match="in the future"):
        restore(history.directory, str(tmp_path / "new"), time=NOW + 1, clock=lambda: NOW)
    with pytest.raises(Misuse):
        restore(history.directory, str(tmp_path / "new"), revision=1, time=1)


def test_only_an_empty_directory_that_nobody_uses_is_taken(
    history: History, tmp_path: Path,
) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine").write_text("precious")
    with pytest.raises(InvalidDirectory, match="not empty"):
        restore(history.directory, str(full))
    assert [path.name for path in full.iterdir()] == ["mine"]
    with pytest.raises(InvalidDirectory, match="not empty"):
        restore(history.directory, history.directory)
    with pytest.raises(InvalidDirectory, match="is a file"):
        restore(history.directory, str(full / "mine"))
    with pytest.raises(InvalidDirectory, match="no store"):
        restore(str(full), str(tmp_path / "new"))
    used = tmp_path / "used"
    lock = acquire(str(used))
    with pytest.raises(DirectoryInUse):
        restore(history.directory, str(used))
    lock.release()
    restore(history.directory, str(used))


def test_the_old_store_is_not_changed(history: History, tmp_path: Path) -> None:
    history.store.wal.close()
    def content() -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in Path(history.directory).rglob("*")
                if path.is_file()}
    before = content()
    restore(history.directory, str(tmp_path / "new"), revision=40)
    assert content() == before


def test_ended_at_any_call_no_half_store_is_ever_taken_for_one(
    history: History, tmp_path: Path,
) -> None:
    def attempt(place: Path, kill_at: int) -> int:
        disk = FaultyDisk(RealDisk())

        def meet(count: int, operation: str, path: str) -> None:
            if count == kill_at and str(place) in path:
                raise Killed

        disk.meet = meet
        try:
            restore(history.directory, str(place), revision=30, disk=disk, clock=lambda: NOW)
        finally:
            disk.abandon()
        return len(disk.calls)

    total = attempt(tmp_path / "whole", 0)
    whole = 0
    for kill_at in range(1, total + 1):
        place = tmp_path / f"new-{kill_at}"
        try:
            attempt(place, kill_at)
        except Killed:
            pass
        else:
            continue
        names = {path.name for path in place.rglob("*")} - {"LOCK", "wal", "snap"}
        if "MANIFEST" in names:
            whole += 1
            assert Wal.open(place).state.revision >= 30
        elif names - {"MANIFEST.tmp"}:
            with pytest.raises(Corrupt, match="MANIFEST is missing"):
                Wal.open(place)
    assert whole == 1


def test_a_report_tells_what_ended_and_what_will_expire(history: History, tmp_path: Path) -> None:
    head = history.store.state.revision
    revision = max(r for r in range(head) if history.leases[r])
    report = restore(history.directory, str(tmp_path / "new"), revision=revision,
                     clock=lambda: NOW)
    text = "\n".join(report.sentences())
    assert f"restored revision {revision} of" in text
    assert f"{len(history.leases[revision])} leases were ended" in text
    wal = Wal.open(tmp_path / "new")
    assert report.store.expiring_at_once == len(wal.state.due(NOW)) > 0
    wal.close()


def test_progress_counts_the_segments(history: History, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    restore(history.directory, str(tmp_path / "new"), revision=20,
            progress=lambda done, last: seen.append((done, last)))
    assert [done for done, _ in seen] == list(range(1, len(seen) + 1))
    assert {last for _, last in seen} == {history.store.wal.manifest.active.number}  # type: ignore[union-attr]


def test_a_reader_begins_again_when_the_store_has_changed_its_files(history: History) -> None:
    """A compaction between reading the manifest and reading what it names."""
    seen = []

    def read(manifest: object) -> int:
        seen.append(manifest)
        if len(seen) == 1:
            history.steps(1).compact()
            raise Corrupt("a segment is missing", file="gone", offset=0)
        return len(seen)

    assert reading(RealDisk(), history.directory, read) == 2
    with pytest.raises(Corrupt):
        reading(RealDisk(), history.directory, _damaged)


def _damaged(manifest: object) -> None:
    raise Corrupt("damaged", file="it", offset=0)


def test_a_whole_frame_that_cannot_be_read_is_named_by_a_restore_to_a_time(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(str(tmp_path / "s"), RealDisk(), OPTIONS, locked=True).serve().commit(3)
    store.wal.close()

    def unreadable(frame: object) -> list[Record]:
        raise ValueError("a record of no known kind")

    monkeypatch.setattr("ckptmesh.cuts.frame_records", unreadable)
    with pytest.raises(Corrupt) as caught:
        restore(str(tmp_path / "s"), str(tmp_path / "new"), time=START)
    assert caught.value.details["file"].endswith(".seg")
    assert caught.value.details["offset"] > 0


def test_a_time_at_which_the_oldest_snapshot_stood_already_is_restored(tmp_path: Path) -> None:
    """The snapshot's newest record, a session's end, is later than its last revision."""
    disk, place = RealDisk(), str(tmp_path / "store")
    disk.mkdir(place)
    store = Store(place, disk, SMALL._replace(retain_seconds=0)).serve().commit(3)
    for hours in (1, 2):
        store.write([SessionOpened(bytes([hours]) * 16, START + hours * 3_600_000_000, "late")])
        compact(store, disk)
    assert len(store.wal.manifest.sealed) < 2, "the log before the first snapshot is gone"
    store.wal.close()
    at = restore(place, str(tmp_path / "copy"), time=START + 3)
    assert at.revision == 3
    with pytest.raises(Compacted, match="revision 3"):
        restore(place, str(tmp_path / "none"), time=START + 2)
