"""Verify, dump and repair: what is damaged is found, what is lost is told, the old is untouched."""

from __future__ import annotations

import functools
import json
import random
import shutil
from pathlib import Path

import pytest

from ckptmesh.compaction import compact_directory
from ckptmesh.disk import RealDisk
from ckptmesh.errors import Corrupt, DirectoryInUse, InvalidDirectory
from ckptmesh.facts import LossSuspected
from ckptmesh.framing import DATA
from ckptmesh.manifest import read_manifest
from ckptmesh.repair import accept_loss, repair
from ckptmesh.survey import FileReport, dump, open_anywhere, verify
from ckptmesh.wal import Wal
from tests.crash.stores import SMALL, Store, digest_at
from tests.crash.test_compaction_crashes import compact as compact_inline

OPTIONS = SMALL._replace(retain_seconds=10**9)
digest = functools.cache(digest_at)


def make(directory: Path, *, compactions: int = 0, last: int = 12) -> str:
    """A closed store: 30 commits before each compaction, then `last`."""
    store = Store(str(directory), RealDisk(), OPTIONS, locked=True).serve()
    for _ in range(compactions):
        store.commit(30)
        compact_inline(store, RealDisk())
    store.commit(last).wal.close()
    return str(directory)


def flip(directory: str, file: str, at: int, bit: int = 0) -> None:
    path = Path(directory, file)
    data = bytearray(path.read_bytes())
    data[at] ^= 1 << bit
    path.write_bytes(data)


def frames_of(directory: str, file: str) -> list[tuple[int, int]]:
    """(offset, first revision) of each DATA frame."""
    _, scan = open_anywhere(RealDisk(), directory, file, sealed=False)
    return [(frame.offset, frame.first_revision) for frame in scan if frame.kind == DATA]


def content(directory: str) -> dict[str, bytes]:
    """All files but LOCK, which names the process that has tried last."""
    return {str(path): path.read_bytes() for path in Path(directory).rglob("*")
            if path.is_file() and path.name != "LOCK"}


def segments_of(directory: str) -> list[str]:
    return sorted(f"wal/{path.name}" for path in Path(directory, "wal").glob("*.seg"))


def by_file(reports: tuple[FileReport, ...]) -> dict[str, FileReport]:
    return {report.file: report for report in reports}


# --- verify -----------------------------------------------------------------------------------


def test_a_whole_store_is_clean_and_every_file_is_accounted_for(tmp_path: Path) -> None:
    directory = make(tmp_path / "s", compactions=2)
    before = content(directory)
    found = verify(directory)
    assert (found.verdict, found.serves, found.revision) == ("CLEAN", True, 72)
    assert found.damaged == ()
    files = {str(path.relative_to(directory)) for path in Path(directory).rglob("*")
             if path.is_file()}
    assert {each.file for each in found.files} == files - {"LOCK"}
    segments = [each for each in found.files if each.kind == "segment"]
    assert [each.first_revision for each in segments] == [
        1, *(each.last_revision + 1 for each in segments[:-1])]
    assert content(directory) == before


def test_a_store_in_use_can_be_verified(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "s"), RealDisk(), OPTIONS, locked=True).serve().commit(20)
    found = verify(str(tmp_path / "s"))
    assert (found.verdict, found.revision) == ("CLEAN", 20)
    store.wal.close()


@pytest.mark.fault(23)
def test_damage_names_file_offset_and_the_revisions_lost(tmp_path: Path) -> None:
    directory = make(tmp_path / "s")
    file = segments_of(directory)[0]
    offset, revision = frames_of(directory, file)[3]
    flip(directory, file, offset + 100)
    found = verify(directory)
    report = by_file(found.files)[file]
    assert (found.verdict, found.serves) == ("CORRUPT", False)
    assert found.damaged == (report,)
    assert (report.verdict, report.offset, report.first_lost) == ("CORRUPT", offset, revision)
    assert report.last_lost == verify_last(directory, file)
    assert report.frames == 3


def verify_last(directory: str, file: str) -> int:
    manifest = read_manifest(RealDisk(), directory)
    assert manifest is not None
    return next(segment.last_revision for segment in manifest.sealed if segment.file == file)


@pytest.mark.fault(22)
def test_a_torn_tail_is_torn_and_serves(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "s"), RealDisk(), OPTIONS, locked=True).serve().commit(3)
    active = store.wal.manifest.active
    assert active is not None
    path = Path(tmp_path / "s", active.file)
    end = frames_of(str(tmp_path / "s"), active.file)[-1][0] + 1_024
    data = bytearray(path.read_bytes())
    data[end : end + 700] = random.Random(1).randbytes(700)
    path.write_bytes(data)
    found = verify(str(tmp_path / "s"))
    assert (found.verdict, found.serves, found.damaged) == ("TORN", True, ())
    assert found.notes
    store.wal.close()


@pytest.mark.fault(24)
def test_a_missing_file_is_named(tmp_path: Path) -> None:
    directory = make(tmp_path / "s", compactions=1)
    snapshot = next(Path(directory, "snap").iterdir())
    for file in (segments_of(directory)[1], f"snap/{snapshot.name}", "MANIFEST"):
        data = Path(directory, file).read_bytes()
        Path(directory, file).unlink()
        found = verify(directory)
        assert found.verdict == "CORRUPT"
        assert file in {each.file for each in found.damaged}
        Path(directory, file).write_bytes(data)
    assert verify(directory).verdict == "CLEAN"


def test_a_damaged_snapshot_is_told_although_the_store_would_serve(tmp_path: Path) -> None:
    directory = make(tmp_path / "s", compactions=2)
    newest = f"snap/{max(path.name for path in Path(directory, 'snap').iterdir())}"
    flip(directory, newest, 300)
    found = verify(directory)
    assert (found.verdict, found.serves, found.revision) == ("CORRUPT", True, 72)
    assert [each.file for each in found.damaged] == [newest]
    assert any("falling back" in note for note in found.notes)


def test_a_directory_without_a_store_is_refused(tmp_path: Path) -> None:
    for call in (verify, lambda place: list(dump(place)),
                 lambda place: repair(place, str(tmp_path / "new"))):
        with pytest.raises(InvalidDirectory, match="no store"):
            call(str(tmp_path))


# --- repair -----------------------------------------------------------------------------------


@pytest.mark.fault(23)
def test_a_repair_keeps_what_stands_before_the_damage_and_tells_what_is_lost(
    tmp_path: Path,
) -> None:
    directory = make(tmp_path / "s", last=40)
    file = segments_of(directory)[1]
    offset, revision = frames_of(directory, file)[2]
    flip(directory, file, offset + 200)
    before = content(directory)
    with pytest.raises(Corrupt, match="damaged at byte"):
        Wal.open(directory)
    report = repair(directory, str(tmp_path / "new"))
    assert content(directory) == before
    assert (report.revision, report.first_lost, report.last_lost) == (revision - 1, revision, 40)
    assert report.lost == f"revisions {revision} to 40 were lost"
    assert file in report.reason
    assert f"{offset:,}" in report.reason
    assert (report.before.verdict, report.after.verdict) == ("CORRUPT", "CLEAN")
    manifest = read_manifest(RealDisk(), str(tmp_path / "new"))
    assert manifest is not None
    assert report.lost in manifest.lossy
    wal = Wal.open(tmp_path / "new", OPTIONS)
    assert wal.state.digest() == digest(revision - 1)
    assert wal.state.epoch > 1_000, "the part that was lost may have begun epochs, too"
    old = read_manifest(RealDisk(), directory)
    assert old is not None
    assert wal.uuid == report.store.uuid != old.uuid
    wal.close()
    store = Store(str(tmp_path / "new"), RealDisk(), OPTIONS, locked=True).serve()
    assert store.wal.status()["lossy"] == manifest.lossy
    store.wal.close()


def test_a_repair_of_a_whole_store_loses_nothing_and_is_not_marked(tmp_path: Path) -> None:
    directory = make(tmp_path / "s", compactions=1)
    report = repair(directory, str(tmp_path / "new"))
    assert (report.revision, report.lost, report.reason) == (42, "", "")
    manifest = read_manifest(RealDisk(), str(tmp_path / "new"))
    assert manifest is not None
    assert manifest.lossy == ""


@pytest.mark.fault(24)
def test_without_a_manifest_everything_is_found_again(tmp_path: Path) -> None:
    directory = make(tmp_path / "s", compactions=1)
    Path(directory, "MANIFEST").unlink()
    report = repair(directory, str(tmp_path / "new"))
    assert (report.revision, report.lost) == (42, "")
    assert Wal.open(tmp_path / "new").state.digest() == digest(42)


@pytest.mark.fault(23)
def test_a_tail_that_could_be_torn_is_a_loss_where_the_manifest_knows_more(tmp_path: Path) -> None:
    directory = make(tmp_path / "s")
    file = segments_of(directory)[-1]
    offset, revision = frames_of(directory, file)[-1]
    path = Path(directory, file)
    data = path.read_bytes()
    path.write_bytes(data[:offset] + random.Random(1).randbytes(len(data) - offset))
    report = repair(directory, str(tmp_path / "new"))
    assert (report.revision, report.first_lost, report.last_lost) == (revision - 1, revision, 12)
    assert report.lost


@pytest.mark.fault(24)
def test_a_missing_segment_loses_what_follows_it(tmp_path: Path) -> None:
    directory = make(tmp_path / "s", last=40)
    gone = segments_of(directory)[2]
    first = frames_of(directory, gone)[0][1]
    Path(directory, gone).unlink()
    report = repair(directory, str(tmp_path / "new"))
    assert (report.revision, report.first_lost, report.last_lost) == (first - 1, first, 40)
    assert "is missing" in report.reason


@pytest.mark.fault(25)
def test_a_segment_of_another_store_is_not_taken(tmp_path: Path) -> None:
    directory = make(tmp_path / "s", last=40)
    other = Store(str(tmp_path / "o"), RealDisk(), OPTIONS, locked=True, seed=2).serve()
    other.commit(40).wal.close()
    file = segments_of(directory)[1]
    assert file == segments_of(str(tmp_path / "o"))[1]
    first = frames_of(directory, file)[0][1]
    shutil.copy(tmp_path / "o" / file, Path(directory, file))
    assert verify(directory).verdict == "CORRUPT"
    report = repair(directory, str(tmp_path / "new"))
    assert (report.revision, report.first_lost, report.last_lost) == (first - 1, first, 40)
    assert "does not continue" in report.reason


@pytest.mark.fault(27)
def test_with_both_snapshots_damaged_the_whole_log_is_still_a_way(tmp_path: Path) -> None:
    directory = make(tmp_path / "s", compactions=2)
    for path in Path(directory, "snap").iterdir():
        flip(directory, f"snap/{path.name}", 250)
    report = repair(directory, str(tmp_path / "new"))
    assert (report.revision, report.lost) == (72, "")
    Path(directory, segments_of(directory)[0]).unlink()
    with pytest.raises(Corrupt, match="nothing in it can be trusted"):
        repair(directory, str(tmp_path / "new2"))
    assert not (tmp_path / "new2").exists()


@pytest.mark.fault(23)
@pytest.mark.fault(27)
def test_whatever_bit_flips_a_repair_gives_a_true_state_and_tells_every_loss(
    tmp_path: Path,
) -> None:
    directory = make(tmp_path / "s", compactions=1, last=8)
    head = 38
    source = random.Random(5)
    files = [path for path in sorted(Path(directory).rglob("*"))
             if path.is_file() and path.name != "LOCK"]
    losses = 0
    for _ in range(150):
        path = source.choice(files)
        data = path.read_bytes()
        at = source.randrange(len(data))
        flip(directory, str(path.relative_to(directory)), at, source.randrange(8))
        place = tmp_path / "new"
        assert verify(directory).verdict == "CORRUPT", (path, at)
        report = repair(directory, str(place))
        wal = Wal.open(place)
        assert wal.state.digest() == digest(report.revision), (path, at)
        wal.close()
        if report.revision < head:
            losses += 1
            assert report.lost
            assert report.first_lost == report.revision + 1
        path.write_bytes(data)
        shutil.rmtree(place)
    assert losses > 5
    assert verify(directory).verdict == "CLEAN"


# --- dump -------------------------------------------------------------------------------------


def test_a_dump_shows_every_record_and_no_value(tmp_path: Path) -> None:
    directory = make(tmp_path / "s", compactions=1)
    rows = list(dump(directory))
    json.dumps(rows)  # plain values only
    records = [record for row in rows for record in row.get("records", ())]
    assert [record["revision"] for record in records if "revision" in record] == list(range(1, 43))
    writes = [write for record in records for write in record.get("writes", ())]
    assert len(writes) == 42
    assert all("value" not in write for write in writes)
    assert {write["kind"] for write in writes} == {"put"}
    shown = [write["value"] for row in dump(directory, values=True)
             for record in row.get("records", ()) for write in record.get("writes", ())]
    assert [len(value) // 2 for value in shown] == [write["value_bytes"] for write in writes]
    assert bytes.fromhex(shown[6]).startswith(b"7:7:")


def test_a_dump_can_begin_after_a_revision(tmp_path: Path) -> None:
    directory = make(tmp_path / "s")
    rows = [row for row in dump(directory, after=9) if row["kind"] == "data"]
    assert [record["revision"] for row in rows for record in row["records"]
            if "revision" in record] == [10, 11, 12]


@pytest.mark.fault(23)
def test_a_dump_tells_where_it_had_to_end_and_goes_on_in_the_next_file(tmp_path: Path) -> None:
    directory = make(tmp_path / "s", last=40)
    first, second, *_ = segments_of(directory)
    offset, revision = frames_of(directory, first)[2]
    flip(directory, first, offset + 80)
    rows = list(dump(directory))
    damage = [row for row in rows if row["kind"] == "damage"]
    assert [(row["file"], row["offset"], row["verdict"]) for row in damage] == [
        (first, offset, "CORRUPT")]
    shown = {record["revision"] for row in rows for record in row.get("records", ())
             if "revision" in record}
    assert revision not in shown
    assert {row["file"] for row in rows} >= {first, second}


# --- a directory that nobody serves -----------------------------------------------------------


def test_an_offline_compaction_keeps_the_state(tmp_path: Path) -> None:
    directory = make(tmp_path / "s", last=40)
    report = compact_directory(directory, 0)
    assert report["made"]
    assert report["revision"] == 40
    again = Wal.open(directory)
    assert again.state.digest() == digest(40)
    with pytest.raises(DirectoryInUse):
        compact_directory(directory, lock_timeout=0.0)
    again.close()


def test_an_accepted_loss_ends_the_read_only_state_in_a_new_epoch(tmp_path: Path) -> None:
    directory = str(tmp_path / "s")
    store = Store(directory, RealDisk(), OPTIONS, locked=True).serve().commit(3)
    store.write([LossSuspected(1, 99)])
    store.wal.close()
    assert accept_loss(directory) is True
    assert accept_loss(directory) is False
    wal = Wal.open(directory)
    assert wal.state.loss is None
    assert wal.state.accepted == {1: 99}
    assert wal.state.epoch == 2
    assert wal.state.digest() == digest(3)
    wal.close()
