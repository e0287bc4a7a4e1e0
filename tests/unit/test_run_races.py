"""Runs of pipelines while others meddle: what is seen of a run is always a state to go on from."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import ckptmesh
from ckptmesh import Client, Conflict, LeaseLost, OutcomeUnknown, RunNotFound, Stage, Unavailable
from ckptmesh.features.pipeline import executing, ways
from ckptmesh.features.pipeline.storage import FileRef


@pytest.fixture
def mesh() -> Iterator[Client]:
    with ckptmesh.connect("memory://") as client:
        yield client


@pytest.fixture
def switches() -> Iterator[None]:
    """Threads that take turns as often as can be."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def completed_without_output(mesh: Client, pipeline: str, key: str) -> list[str]:
    """Where a version of the record says that a stage is completed whose output is not there."""
    own = f"{pipeline}/_runs"
    return [f"{each['name']}@{version.revision}"
            for version in mesh.history(f"{own}/run/{key}")
            for each in version.value["stages"] if each["status"] == "completed"
            and mesh.get(f"{own}/kept/{key}/{each['name']}", at=version.revision) is None]


@pytest.mark.usefixtures("switches")
def test_no_stage_is_ever_seen_as_completed_without_its_output(
        mesh: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is killed between two commits leaves what was seen there: here at each of them."""
    monkeypatch.setattr(ways, "RUN_LOOK", 0.0)
    versions = 0
    for number in range(6):
        name = f"looked{number}"
        ckptmesh.pipeline(name, stages=[
            Stage(f"s{at}", lambda run, *_: run.report(records=1) or 1) for at in range(10)
        ]).run(mesh, key="a")
        assert completed_without_output(mesh, name, "a") == []
        versions += len(list(mesh.history(f"{name}/_runs/run/a")))
    assert versions > 6 * 22, "the lookout has committed nothing in between"


def test_a_run_that_is_rewound_while_it_is_under_way_ends_and_goes_on_from_there(
        mesh: Client) -> None:
    done: list[str] = []

    def transform(run: Any, rows: int) -> int:
        done.append("transform")
        if len(done) == 2:
            plan = mesh.rewind("nightly", to=before, reason="bad feed")
            assert plan.apply(force=True) is not None
            run.report(records=1)
            run._work.ledger.note("touched")  # so that the lookout has something to commit
            ways.run(run._work.ledger.look())
        return rows + 1

    def extract(run: Any) -> int:
        done.append("extract")
        return 1

    pipeline = ckptmesh.pipeline("nightly", stages=[
        Stage("extract", extract), Stage("transform", transform)])
    mesh.commit("nightly/other", 1)
    before = mesh.revision()
    with pytest.raises(Conflict):
        pipeline.run(mesh, key="a")
    assert mesh.runs("nightly").get("a") is None, "the rewind stands"
    assert completed_without_output(mesh, "nightly", "a") == []
    assert pipeline.run(mesh, key="a").executed == ("extract", "transform")


@pytest.mark.parametrize("came_through", [True, False])
def test_a_completed_stage_of_which_nobody_can_tell_is_never_called_failed(
        mesh: Client, monkeypatch: pytest.MonkeyPatch, came_through: bool) -> None:
    done: list[str] = []
    pipeline = ckptmesh.pipeline("nightly", stages=[
        Stage("one", lambda run: done.append("one")), Stage("two", lambda run, _: len(done))])
    begin = mesh.transaction

    def transaction(**options: Any) -> Any:
        tx = begin(**options)
        commit = tx.commit

        def unheard() -> int:
            if not done or begin is mesh.transaction:
                return commit()
            monkeypatch.setattr(mesh, "transaction", begin)
            if came_through:
                commit()
            error = OutcomeUnknown("no answer")

            def nobody(timeout: float | None = None) -> None:
                raise Unavailable("nobody there")

            error._resolver = nobody
            raise error

        tx.commit = unheard
        return tx

    monkeypatch.setattr(mesh, "transaction", transaction)
    with pytest.raises(OutcomeUnknown) as told:
        pipeline.run(mesh, key="a")
    assert "the next run finds out" in told.value.__notes__[0]
    record = mesh.runs("nightly").get("a")
    assert record is not None
    assert record["one"].status == ("completed" if came_through else "running")
    again = () if came_through else ("one",)
    assert pipeline.run(mesh, key="a").executed == (*again, "two")


def test_a_process_that_stood_still_replaces_no_file_of_the_one_that_took_over(
        mesh: Client, tmp_path: Path) -> None:
    """The frozen one has begun to write; the other one has done the whole run; it wakes."""
    turn = ["frozen"]

    def dump(run: Any) -> FileRef:
        who = turn.pop() if turn else "other"
        with run.writing("rows") as file:
            if who == "frozen":
                mesh.delete(run.lock.key)  # its time is over …
                with ThreadPoolExecutor(1) as pool:
                    other = pool.submit(pipeline.run, mesh, key="a", storage=tmp_path)
                    assert other.result(30).output == b"other"
                run.lock.refused(LeaseLost("its time is over"))  # … and it hears of that
            file.write(who.encode())
        found: FileRef = run.file("rows")
        return found

    pipeline = ckptmesh.pipeline("nightly", stages=[
        Stage("dump", dump), Stage("read", lambda run, ref: ref.open().read())])
    with pytest.raises(LeaseLost):
        pipeline.run(mesh, key="a", storage=tmp_path)
    kept = mesh.value("nightly/_runs/kept/a/dump")
    assert kept.open().read() == b"other"
    assert [each.name for each in kept.path.parent.iterdir()] == ["rows"], "no draft is left"


def _files(folder: Path) -> set[str]:
    return {each.name for each in folder.glob("nightly/a/*")}


def test_cleaning_up_spares_the_files_that_a_later_run_has_taken_over(
        mesh: Client, tmp_path: Path) -> None:
    def pipeline(version: int) -> ckptmesh.Pipeline:
        return ckptmesh.pipeline("nightly", stages=[
            Stage("dump", lambda run: run.save(b"rows", "rows")),
            Stage("count", lambda run, ref: len(ref.open().read()), version=version)])

    runs = mesh.runs("nightly")
    pipeline(1).run(mesh, key="a", storage=tmp_path)
    assert pipeline(2).run(mesh, key="a", storage=tmp_path).executed == ("count",)
    assert [each.status for each in runs.history("a")] == ["completed", "completed"]
    assert len(runs.clean(keep=1, storage=tmp_path)) == 1
    again = pipeline(3).run(mesh, key="a", storage=tmp_path)
    assert (again.executed, again.output) == (("count",), 4), "the file of the first run is there"
    assert len(runs.clean(keep=0, storage=tmp_path)) == 2
    assert _files(tmp_path) == set(), "with the last run that needs it, it goes"


def test_a_run_that_is_cleaned_up_while_a_pause_is_asked_for_is_told_as_gone(
        mesh: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = ckptmesh.pipeline("nightly", stages=[
        Stage("one", lambda run: 1), Stage("two", lambda run, one: 2)])
    pipeline.run(mesh, key="a", at_most=1)
    put, runs = mesh.put, mesh.runs("nightly")

    def late(*args: Any, **options: Any) -> Any:
        runs.clean(keep=0, unfinished=True)
        return put(*args, **options)

    monkeypatch.setattr(mesh, "put", late)
    with pytest.raises(RunNotFound):
        runs.pause("a")
    monkeypatch.undo()
    assert mesh.get("nightly/_runs/asked/a") is None
    mesh.put("nightly/_runs/asked/a", {"ask": "pause"})  # left by a client that was killed there
    assert pipeline.run(mesh, key="a").status == "completed", "it was meant for an earlier run"


@pytest.mark.parametrize("ask", ["pause", "resume"])
def test_a_request_that_comes_while_a_run_is_taken_up_is_no_conflict(
        mesh: Client, monkeypatch: pytest.MonkeyPatch, ask: str) -> None:
    pipeline = ckptmesh.pipeline("nightly", stages=[
        Stage("one", lambda run: 1), Stage("two", lambda run, one: 2)])
    pipeline.run(mesh, key="a", at_most=1)
    runs, begin = mesh.runs("nightly"), executing.Execution._take_up
    asked: list[Callable[..., object]] = [runs.pause]
    if ask == "resume":
        runs.pause("a")
        mesh.delete("nightly/_runs/asked/a")  # as if it were taken back just now
        asked = [runs.resume]

    def late(self: Any, record: Any) -> Any:
        if asked:
            asked.pop()("a")
        return begin(self, record)

    monkeypatch.setattr(executing.Execution, "_take_up", late)
    if ask == "pause":
        with pytest.raises(ckptmesh.RunStopped):
            pipeline.run(mesh, key="a")
    else:
        assert pipeline.run(mesh, key="a").status == "completed"


@pytest.mark.parametrize("before", [True, False])
def test_a_run_goes_on_from_each_of_its_commits(mesh: Client, monkeypatch: pytest.MonkeyPatch,
                                                before: bool) -> None:
    """Its process ends before, or after, the first commit, the second, and so on, each time it is
    run: no stage is executed again whose completion had been committed."""
    class Killed(BaseException):
        pass

    done: list[str] = []

    def part(run: Any, *needs: int) -> int:
        done.append(run.stage)
        place = run.value(0)
        for batch in range(place, 3):
            run.commit(batch + 1, batch=batch)
        return 1 + sum(needs)

    pipeline = ckptmesh.pipeline("nightly", stages=[Stage(name, part) for name in "abc"])
    left, begin = 0, mesh.transaction

    def transaction(**options: Any) -> Any:
        tx = begin(**options)
        commit = tx.commit

        def until() -> int:
            nonlocal left
            left -= 1
            if before and not left:
                raise Killed
            revision = commit()
            if not left:
                raise Killed
            return revision

        tx.commit = until
        return tx

    monkeypatch.setattr(mesh, "transaction", transaction)
    runs, kills = mesh.runs("nightly"), 0
    for count in range(1, 40):
        left, key = count, f"{count}"
        done.clear()
        try:
            pipeline.run(mesh, key=key)
        except Killed:
            kills += 1
        else:
            break  # there are no more commits than that
        record, at = runs.get(key), len(done)
        completed = record.completed if record else ()
        assert pipeline.run(mesh, key=key).output == 3
        assert not set(done[at:]) & set(completed)
        assert completed_without_output(mesh, "nightly", key) == []
    assert kills == 3 * 5 + 2, "created; started, three batches, completed, each; the end"
