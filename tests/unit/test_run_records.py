"""The record of a run: what it holds, what older and newer ones are, and who reads it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import ckptmesh
from ckptmesh import InvalidPayload, Misuse, RunNotFound, RunRecord, StageRecord, Unsupported
from ckptmesh.features.pipeline import records
from ckptmesh.features.pipeline.places import Places, is_record
from ckptmesh.features.pipeline.records import RunError, RunEvent, read, write
from ckptmesh.limits import RUN_ERRORS, RUN_EVENTS, RUN_TEXT
from ckptmesh.testing.blocking import blocking

BEGAN = datetime(2026, 11, 21, 1, tzinfo=UTC)


@pytest.fixture(params=["plain", "asyncio"])
def mesh(request: pytest.FixtureRequest) -> Iterator[Any]:
    if request.param == "plain":
        with ckptmesh.connect("memory://") as found:
            yield found
    else:
        with blocking(lambda: ckptmesh.connect_async("memory://")) as found:
            yield found


def a_run(key: str = "2026-11-21", **facts: Any) -> RunRecord:
    return RunRecord(**{
        "pipeline": "nightly", "key": key, "run_id": "4f1c", "created": BEGAN, "updated": BEGAN,
        "stages": (StageRecord(name="extract", status="completed", records=7, bytes=70, size=5,
                               sha256="ab"),
                   StageRecord(name="load", needs=("extract",), records=2, failed=1)),
        **facts})


def stored(mesh: Any, record: RunRecord) -> RunRecord:
    places = Places(record.pipeline, record.key)
    mesh.put(places.record, write(record))
    return read(mesh.get(places.record))


def test_a_record_comes_back_as_it_was(mesh: Any) -> None:
    event = RunEvent(time=BEGAN, kind="created", stage="", detail="", worker="host:1")
    error = RunError(id=7, stage="load", message="no feed", context={"row": 3}, time=BEGAN,
                     retryable=True)
    record = a_run(inputs={"day": "2026-11-21"}, config=[1], resumes=2, parent="k@7", last_id="x",
                   batch=4, position=9, head=12).noted(event).troubled(error)
    found = stored(mesh, record)
    assert replace(found, stored_at="") == record
    assert found.stored_at.startswith("nightly/_runs/run/2026-11-21@")


def test_what_follows_from_a_record_is_told_with_it() -> None:
    record = a_run(stage="load", position=9, head=12, finished=BEGAN + timedelta(seconds=5),
                   last_success=BEGAN)
    assert (record.completed, record.pending) == (("extract",), ("load",))
    assert (record.stage_index, record.records, record.failed, record.bytes) == (1, 9, 1, 70)
    assert record["load"].needs == ("extract",)
    assert record.lag == 3
    assert record.took == timedelta(seconds=5)
    assert record.behind(BEGAN + timedelta(hours=1)) == timedelta(hours=1)
    document = records.document(record)
    assert (document["completed"], document["lag"]) == (["extract"], 3)
    assert a_run().lag is None
    assert a_run().stage_index is None


def test_events_and_errors_are_bounded_and_the_newest_stay() -> None:
    record = a_run()
    for count in range(RUN_EVENTS + 50):
        record = record.noted(RunEvent(time=BEGAN, kind="error", stage="load", detail=f"{count}",
                                       worker="w"))
        record = record.troubled(RunError(id=count, stage="load", message="x" * 5_000,
                                          context={"row": "y" * 5_000}, time=BEGAN,
                                          retryable=False))
    assert [each.detail for each in record.events] == [str(n) for n in range(50, RUN_EVENTS + 50)]
    assert len(record.errors) == RUN_ERRORS
    assert record.errors_total == RUN_EVENTS + 50
    assert record.errors[-1].id == RUN_EVENTS + 49
    assert all(len(each.message) <= RUN_TEXT for each in record.errors)
    assert all(len(repr(each.context)) < 2 * RUN_TEXT for each in record.errors)


def test_a_thousand_batches_in_a_row_are_one_event_that_counts_them() -> None:
    record = a_run().noted(RunEvent(time=BEGAN, kind="created", stage="", detail="", worker="w"))
    for count in range(1_000):
        record = record.noted(RunEvent(time=BEGAN, kind="batch", stage="load",
                                       detail=f"batch {count}", worker="w"))
    assert [(each.kind, each.count) for each in record.events] == [("created", 1), ("batch", 1000)]
    assert record.events[-1].detail == "batch 999"


def test_what_exec_has_recorded_is_read_as_a_run_of_one_stage(mesh: Any) -> None:
    old = {"started": BEGAN, "seconds": 90.5, "holder": "host:7", "program": "./load.sh",
           "result": "failed", "code": 3, "committed": False, "error": "no feed"}
    began = "2026-11-21T01:00:00.000000Z"
    mesh.put(f"nightly/_runs/exec/{began}", old)
    (run,) = mesh.runs("nightly").list()
    assert (run.kind, run.pipeline, run.key, run.status) == ("exec", "nightly", began, "failed")
    assert run.error == "failed, exit code 3: no feed"
    assert (run.stages[0].name, run.stages[0].milliseconds) == ("./load.sh", 90_500)
    assert run.took == timedelta(seconds=90.5)
    assert mesh.runs("nightly").get(began) == run
    assert mesh.runs("nightly").list(commands=False) == []
    with pytest.raises(RunNotFound):
        mesh.runs("nightly").pause(began)


def test_an_older_record_goes_through_each_upgrade_in_turn(monkeypatch: pytest.MonkeyPatch,
                                                           mesh: Any) -> None:
    """As it will be with the schemas to come: one step for each number."""
    monkeypatch.setattr(records, "SCHEMA", 3)
    monkeypatch.setattr(records, "UPGRADES", {
        **records.UPGRADES,
        1: lambda value, key: {**value, "error": value["error"] + "1"},
        2: lambda value, key: {**value, "error": value["error"] + "2"}})
    document = {**write(a_run(error="0")), "schema": 1}
    assert records.upgraded(document, "k")["error"] == "012"
    assert records.upgraded({**document, "schema": 2}, "k")["error"] == "02"
    mesh.put(Places("nightly", "a").record, document)
    assert mesh.runs("nightly").get("a").error == "012"


def test_a_newer_record_is_refused_and_left_alone(mesh: Any) -> None:
    places = Places("nightly", "new")
    receipt = mesh.put(places.record, {**write(a_run("new")), "schema": 2, "more": 1})
    for look in (lambda: mesh.runs("nightly").get("new"), mesh.runs("nightly").list,
                 lambda: mesh.runs("nightly").pause("new")):
        with pytest.raises(Unsupported, match="schema 2; this ckptmesh knows 1"):
            look()
    assert mesh.get(places.record).revision == receipt.revision


@pytest.mark.parametrize("value", [None, 7, [], {"schema": 1}, {"schema": "1"}, {"schema": -1}, {},
                                   {**write(a_run()), "status": "odd"},
                                   {**write(a_run()), "created": 7},
                                   {"started": BEGAN, "seconds": 1e300, "holder": "h",
                                    "program": "p", "result": "ok", "code": 0, "committed": True},
                                   {**write(a_run()), "stages": [{"nme": "x"}]}])
def test_what_is_no_record_is_refused_by_its_key(mesh: Any, value: Any) -> None:
    mesh.put(Places("nightly", "a").record, value)
    with pytest.raises(InvalidPayload, match="nightly/_runs/run/a"):
        mesh.runs("nightly").get("a")


def test_runs_are_listed_in_the_order_of_creation(mesh: Any) -> None:
    for number, key in enumerate(["c", "a", "b"]):
        stored(mesh, a_run(key, created=BEGAN + timedelta(days=number),
                           status=("failed", "completed", "failed")[number]))
    runs = mesh.runs("nightly")
    assert [each.key for each in runs.list()] == ["c", "a", "b"]
    assert [each.key for each in runs.list(status="failed")] == ["c", "b"]
    assert [each.key for each in runs.list(limit=1)] == ["b"]
    assert runs.get("nobody") is None
    with pytest.raises(Misuse, match="odd"):
        runs.list(status="odd")


def test_a_pause_of_a_run_that_nobody_does_is_told_at_once_and_can_be_taken_back(mesh: Any
                                                                                 ) -> None:
    stored(mesh, a_run("a", status="failed", stage="load"))
    runs = mesh.runs("nightly")
    assert runs.pause("a", reason="feed is late").status == "paused"
    found = runs.get("a")
    assert (found.status, found.asked, found.stage) == ("paused", "pause", "load")
    assert found.events[-1].detail == "feed is late"
    assert runs.resume("a").status == "pending"
    assert runs.get("a").asked == ""


def test_a_run_that_is_being_done_is_only_asked(mesh: Any) -> None:
    stored(mesh, a_run("a", status="running", stage="load"))
    runs = mesh.runs("nightly")
    assert runs.pause("a").status == "running"
    assert runs.get("a").asked == "pause"
    assert runs.cancel("a").asked == "cancel"
    assert runs.pause("a").asked == "cancel", "an end is not made a pause"


def test_what_has_ended_or_never_was_cannot_be_stopped(mesh: Any) -> None:
    stored(mesh, a_run("a", status="completed"))
    with pytest.raises(Misuse, match="completed already"):
        mesh.runs("nightly").pause("a")
    for ask in (mesh.runs("nightly").pause, mesh.runs("nightly").cancel,
                mesh.runs("nightly").resume):
        with pytest.raises(RunNotFound):
            ask("nobody")


def test_statistics_count_resumes_and_how_many_of_them_came_to_an_end(mesh: Any) -> None:
    ends = [("completed", 1), ("completed", 3), ("failed", 2), ("completed", 0)]
    for number, (status, resumes) in enumerate(ends):
        stored(mesh, a_run(f"{number}", status=status, resumes=resumes,
                           finished=BEGAN + timedelta(seconds=10 * (number + 1))))
    found = mesh.runs("nightly").statistics()
    assert (found.total, found.by_status) == (4, {"completed": 3, "failed": 1})
    assert (found.resumes, found.resumed, found.resume_rate) == (6, 3, 2 / 3)
    assert (found.mean, found.shortest, found.longest) == (70 / 3, 10, 40)
    assert mesh.runs("nobody").statistics().resume_rate is None


def test_cleaning_up_goes_by_count_and_age_and_spares_what_is_unfinished(mesh: Any) -> None:
    now = datetime.now(UTC)
    for age in range(5):
        stored(mesh, a_run(f"{age}", created=now - timedelta(days=age), status="completed",
                           updated=now - timedelta(days=age)))
        mesh.put(Places("nightly", f"{age}").kept("extract"), age)
    stored(mesh, a_run("9", created=now - timedelta(days=9), status="failed",
                       updated=now - timedelta(days=9)))
    runs = mesh.runs("nightly")
    assert [each.key for each in runs.clean(keep=4, dry_run=True)] == ["4"]
    assert [each.key for each in runs.clean(keep=4)] == ["4"]
    assert [each.key for each in runs.clean(older_than=timedelta(days=1, hours=1))] == ["3", "2"]
    assert [each.key for each in runs.clean(older_than=timedelta(hours=1), keep=2)] == []
    assert [each.key for each in runs.list()] == ["9", "1", "0"]
    assert {each.key for each in mesh.scan("nightly/_runs/kept")} == {
        Places("nightly", key).kept("extract") for key in "01"}
    assert [each.key for each in runs.clean(keep=2, unfinished=True)] == ["9"]
    with pytest.raises(Misuse, match="which runs"):
        runs.clean()


@pytest.mark.parametrize("mesh", ["plain"], indirect=True)  # whose method is replaced
def test_a_run_that_changes_while_it_is_cleaned_up_stays(mesh: Any,
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    record = stored(mesh, a_run("a", status="completed"))
    transact = mesh.transact

    def late(**options: Any) -> int:
        stored(mesh, replace(record, status="running", stored_at=""))
        return transact(**options)

    monkeypatch.setattr(mesh, "transact", late)
    assert mesh.runs("nightly").clean(keep=0) == []
    assert mesh.runs("nightly").get("a").status == "running"


@pytest.mark.parametrize("folder", ["", "../..", "other/a/4f1c", "/", "nightly/a"])
def test_cleaning_up_removes_no_folder_but_that_of_the_run(mesh: Any, tmp_path: Path, folder: str
                                                           ) -> None:
    storage = tmp_path / "storage"
    for kept in ("nightly/a/4f1c", "other/a/4f1c", "nightly/b"):
        (storage / kept).mkdir(parents=True)
    stored(mesh, a_run("a", status="completed", folder=folder))
    assert len(mesh.runs("nightly").clean(keep=0, storage=storage)) == 1
    assert len(list(storage.glob("**/*"))) == 7
    stored(mesh, a_run("a", status="completed", folder="nightly/a/4f1c"))
    mesh.runs("nightly").clean(keep=0, storage=storage)
    assert not (storage / "nightly/a/4f1c").exists()
    assert (storage / "nightly/b").exists()


def test_keys_of_records_are_told_from_others() -> None:
    assert is_record("nightly/_runs/run/a")
    assert is_record("nightly/_runs/past/a/4f")
    assert is_record("orders/eu/_runs/exec/2026")
    for key in ("nightly", "nightly/_runs/kept/a/s", "nightly/_runs/run", "nightly/_runs/run/a/b",
                "nightly/_runs/asked/a", "nightly/run/a"):
        assert not is_record(key)


@pytest.mark.parametrize("key", ["", "a/b", "_a", "..", 7, None])
def test_a_key_is_one_segment(mesh: Any, key: Any) -> None:
    with pytest.raises(Misuse, match="a run's key"):
        mesh.runs("nightly").get(key)
