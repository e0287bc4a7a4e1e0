"""Staged pipelines: what is run, what is not run again, and what is told, for both clients."""

from __future__ import annotations

import asyncio
import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import pytest

import ckptmesh
from ckptmesh import (
    InvalidValue,
    LeaseLost,
    LockTimeout,
    Misuse,
    OutcomeUnknown,
    OutputLost,
    Pipeline,
    PipelineChanged,
    RunNotFound,
    RunResult,
    RunStopped,
    Stage,
    StageNotReady,
    TooLarge,
    Unavailable,
    Unsupported,
)
from ckptmesh.aio import AsyncClient
from ckptmesh.features.pipeline import ways
from ckptmesh.testing.blocking import PATIENCE, blocking

DAY = "2026-11-21"
_names = count()


class Way:
    """One kind of client, and how it runs a pipeline."""

    def __init__(self, mesh: Any, loop: Any = None) -> None:
        self.mesh, self._loop = mesh, loop

    def run(self, pipeline: Pipeline, key: str | None = DAY, **options: Any) -> RunResult:
        options = {"wait": 5, **options}
        if self._loop is None:
            return pipeline.run(self.mesh, key=key, **options)
        target: AsyncClient = self.mesh._target
        found: RunResult = self._loop.run(
            lambda: pipeline.run_async(target, key=key, **options), PATIENCE)
        return found


@pytest.fixture(params=["plain", "asyncio"])
def way(request: pytest.FixtureRequest) -> Iterator[Way]:
    if request.param == "plain":
        with ckptmesh.connect("memory://") as mesh:
            yield Way(mesh)
    else:
        with blocking(lambda: ckptmesh.connect_async("memory://")) as mesh:
            yield Way(mesh, mesh._loop)


@pytest.fixture(autouse=True)
def _looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ways, "RUN_LOOK", 0.05)


class Crash(BaseException):
    """As if the process had been killed: nothing of the run is recorded any more."""


class Steps:
    """A pipeline of three stages that says what was executed; `fail` makes a stage fail."""

    def __init__(self, version: int = 1, name: str = "", **options: Any) -> None:
        self.done: list[str] = []
        self.fail: dict[str, Callable[[Any], Any]] = {}
        self.pipeline = ckptmesh.pipeline(name or f"nightly{next(_names)}", version=version)

        @self.pipeline.stage(**options)
        def extract(run: Any) -> list[int]:
            self.step(run)
            return list(range((run.inputs or {"n": 3})["n"]))

        @self.pipeline.stage(**options)
        def double(run: Any, rows: list[int]) -> list[int]:
            self.step(run)
            return [2 * row for row in rows]

        @self.pipeline.stage(needs=[extract, double], **options)
        def load(run: Any, rows: list[int], doubled: list[int]) -> dict[str, int]:
            self.step(run)
            return {"rows": len(rows), "sum": sum(doubled)}

        self.extract, self.double, self.load = extract, double, load

    def step(self, run: Any) -> None:
        self.done.append(run.stage)
        if run.stage in self.fail:
            self.fail[run.stage](run)


def raising(error: BaseException) -> Callable[[Any], None]:
    def fail(run: Any) -> None:
        raise error
    return fail


def times(n: int, error: Exception) -> Callable[[Any], None]:
    left = [n]

    def fail(run: Any) -> None:
        left[0] -= 1
        if left[0] >= 0:
            raise error
    return fail


def killed(way: Way, steps: Steps, stage: str) -> None:
    """Leave the run as a process that was killed within a stage does: nothing told, lock gone."""
    def die(run: Any) -> None:
        raise Crash

    steps.fail[stage] = die
    with pytest.raises(Crash):
        way.run(steps.pipeline)
    steps.fail.clear()


# --- what is run, and what is not -----------------------------------------------------------------


def test_stages_run_in_order_and_get_the_outputs_of_what_they_need(way: Way) -> None:
    steps = Steps()
    result = way.run(steps.pipeline, inputs={"n": 4})
    assert steps.done == ["extract", "double", "load"]
    assert result.output == {"rows": 4, "sum": 12}
    assert result.outputs == {"extract": [0, 1, 2, 3], "double": [0, 2, 4, 6],
                              "load": {"rows": 4, "sum": 12}}
    assert result.executed == ("extract", "double", "load")
    assert result.status == "completed"


def test_stages_stay_plain_functions(way: Way) -> None:
    steps = Steps()

    class Fake:
        inputs = None
        stage = "double"

    assert steps.double(Fake(), [1, 2]) == [2, 4]


def test_a_completed_run_returns_its_outputs_and_runs_nothing(way: Way) -> None:
    steps = Steps()
    first = way.run(steps.pipeline)
    again = way.run(steps.pipeline)
    assert again.outputs == first.outputs
    assert again.executed == ()
    assert len(steps.done) == 3
    assert way.run(steps.pipeline, resume="required").output == first.output


@pytest.mark.parametrize("stage", ["extract", "double", "load"])
def test_a_run_goes_on_with_the_stage_that_was_interrupted(way: Way, stage: str) -> None:
    steps = Steps()
    killed(way, steps, stage)
    before = list(steps.done)
    assert before[-1] == stage
    record = way.mesh.runs(steps.pipeline.name).get(DAY)
    assert (record.status, record.stage) == ("running", stage)
    result = way.run(steps.pipeline)
    assert steps.done == [*before, *["extract", "double", "load"][len(before) - 1:]]
    assert result.output == {"rows": 3, "sum": 6}
    record = result.record
    assert (record.resumes, record[stage].executions) == (1, 2)
    assert record.parent.startswith(f"{steps.pipeline.name}/_runs/run/{DAY}@")
    kinds = [each.kind for each in record.events]
    assert kinds.count("interrupted") == kinds.count("resumed") == 1
    assert kinds[-1] == "completed"


@pytest.mark.parametrize("stage", ["extract", "double", "load"])
def test_a_failure_is_recorded_and_the_next_run_goes_on_there(way: Way, stage: str) -> None:
    steps = Steps()
    steps.fail[stage] = raising(ValueError("no feed"))
    with pytest.raises(ValueError, match="no feed") as caught:
        way.run(steps.pipeline)
    assert f"in stage '{stage}' of run '{DAY}'" in "".join(caught.value.__notes__)
    record = way.mesh.runs(steps.pipeline.name).get(DAY)
    assert (record.status, record.stage, record.error) == ("failed", stage, "ValueError: no feed")
    assert record[stage].status == "failed"
    assert [(each.stage, each.message, each.retryable) for each in record.errors] == [
        (stage, "ValueError: no feed", False)]
    done = len(steps.done)
    steps.fail.clear()
    assert way.run(steps.pipeline).output == {"rows": 3, "sum": 6}
    assert steps.done[done] == stage
    assert len(steps.done) == 4


def test_a_run_that_must_go_on_says_so_where_there_is_none(way: Way) -> None:
    with pytest.raises(RunNotFound, match="to go on with"):
        way.run(Steps().pipeline, resume="required")


def test_never_begins_anew_and_keeps_the_record_of_the_earlier_run(way: Way) -> None:
    steps = Steps()
    killed(way, steps, "load")
    assert way.run(steps.pipeline, resume="never").record.resumes == 0
    assert steps.done == ["extract", "double", "load"] * 2
    runs = way.mesh.runs(steps.pipeline.name)
    assert [each.status for each in runs.history(DAY)] == ["running", "completed"]
    assert [each.status for each in runs.list()] == ["completed"]
    assert len(runs.list(past=True)) == 2


def test_resuming_can_be_switched_off_for_a_pipeline(way: Way) -> None:
    seen = []
    never = ckptmesh.pipeline("never", resume="never",
                              stages=[Stage("only", lambda run: seen.append(run.run_id))])
    for _ in range(2):
        way.run(never)
    assert len(set(seen)) == 2


def test_without_a_key_the_digest_of_the_inputs_is_the_key(way: Way) -> None:
    steps = Steps()
    first = way.run(steps.pipeline, None, inputs={"n": 2, "x": [1]})
    again = way.run(steps.pipeline, None, inputs={"x": [1], "n": 2})
    other = way.run(steps.pipeline, None, inputs={"n": 3, "x": [1]})
    assert first.record.key == again.record.key == first.record.inputs_sha256[:32]
    assert other.record.key != first.record.key
    assert len(steps.done) == 6


def test_inputs_and_configuration_are_those_of_the_record_where_none_are_given(way: Way) -> None:
    steps = Steps()
    steps.fail["load"] = raising(ValueError())
    with pytest.raises(ValueError):  # noqa: PT011
        way.run(steps.pipeline, inputs={"n": 5}, config={"fast": True})
    seen = []
    steps.fail["load"] = lambda run: seen.append((run.inputs, run.config))
    assert way.run(steps.pipeline).output["rows"] == 5
    assert seen == [({"n": 5}, {"fast": True})]


# --- what makes a stage run again -----------------------------------------------------------------


def test_other_inputs_make_a_completed_run_again_and_an_unfinished_one_too(way: Way) -> None:
    steps = Steps()
    way.run(steps.pipeline, inputs={"n": 2})
    assert way.run(steps.pipeline, inputs={"n": 3}).output["rows"] == 3
    assert len(way.mesh.runs(steps.pipeline.name).history(DAY)) == 2
    steps.fail["load"] = raising(ValueError("x"))
    with pytest.raises(ValueError, match="x"):
        way.run(steps.pipeline, inputs={"n": 4})
    steps.fail.clear()
    steps.done.clear()
    assert way.run(steps.pipeline, inputs={"n": 5}).output["rows"] == 5
    assert steps.done == ["extract", "double", "load"]


def test_another_configuration_makes_all_run_again(way: Way) -> None:
    steps = Steps()
    way.run(steps.pipeline, config=1)
    way.run(steps.pipeline, config=1)
    assert len(steps.done) == 3
    way.run(steps.pipeline, config=2)
    assert len(steps.done) == 6


def test_a_stage_of_another_version_runs_again_and_those_after_it_only_for_another_output(
        way: Way) -> None:
    done: list[str] = []

    def build(version: int, output: int) -> Pipeline:
        def call(name: str, value: Any) -> Callable[..., Any]:
            def stage(run: Any, *needs: Any) -> Any:
                done.append(name)
                return value
            return stage

        return ckptmesh.pipeline("versions", stages=[
            Stage("a", call("a", output), version=version), Stage("b", call("b", 1)),
            {"name": "c", "call": call("c", 2)}])

    way.run(build(1, 7))
    assert done == ["a", "b", "c"]
    way.run(build(2, 7))
    assert done == ["a", "b", "c", "a"], "the same output: what is made from it stands"
    result = way.run(build(3, 8))
    assert done[4:] == ["a", "b"], "b gives what it gave: c stands"
    assert result.executed == ("a", "b")


def test_each_output_has_its_digest_and_those_of_what_it_was_made_from(way: Way) -> None:
    record = way.run(Steps().pipeline, inputs={"n": 3}).record
    assert all(len(each.sha256) == len(each.made_from) == 64 for each in record.stages)
    assert record["load"].provenance == {
        "inputs": record.inputs_sha256, "config": record.config_sha256,
        "needs/extract": record["extract"].sha256, "needs/double": record["double"].sha256}
    assert record.sha256 == record["load"].sha256
    assert record.size == sum(each.size for each in record.stages) > 0


def test_commits_name_the_outputs_that_they_were_made_from(way: Way) -> None:
    steps = Steps()
    source = way.mesh.put("feed", 1)
    steps.fail["extract"] = lambda run: run.used(source)
    way.run(steps.pipeline)
    kept = {each.key.rpartition("/")[2]: each
            for each in way.mesh.scan(f"{steps.pipeline.name}/_runs/kept/{DAY}")}
    assert kept["extract"].sources == (("feed", source.revision),)
    assert kept["load"].sources == ((kept["extract"].key, kept["extract"].revision),
                                    (kept["double"].key, kept["double"].revision))


# --- a changed definition -------------------------------------------------------------------------


def test_a_changed_definition_under_a_run_is_refused_and_says_what_has_changed(way: Way) -> None:
    def pipeline(*stages: tuple[str, list[str] | None], version: int = 1) -> Pipeline:
        return ckptmesh.pipeline("changing", version=version, stages=[
            Stage(name, lambda run, *needs: name_of(run), needs=needs) for name, needs in stages])

    def name_of(run: Any) -> str:
        if run.stage == "c" and not fixed:
            raise ValueError("broken")
        return str(run.stage)

    fixed: list[bool] = []
    with pytest.raises(ValueError, match="broken"):
        way.run(pipeline(("a", None), ("b", None), ("c", None)))
    before = way.mesh.get(f"changing/_runs/run/{DAY}")
    for changed, text in (
            ([("a", None), ("c", None)], "stage 'b' was removed; stage 'c' needed b and needs a"),
            ([("a", None), ("b", None), ("c", None), ("d", None)], "stage 'd' was added"),
            ([("b", []), ("a", []), ("c", ["b"])], "the order was a, b, c and is b, a, c; "
                                                   "stage 'b' needed a and needs nothing"),
            ([("a", None), ("b", None), ("c", ["a", "b"])],
             "stage 'c' needed b and needs a, b")):
        with pytest.raises(PipelineChanged) as caught:
            way.run(pipeline(*changed))  # type: ignore[arg-type]
        assert text in str(caught.value)
        assert caught.value.details["changes"] == text.split("; ")
    assert way.mesh.get(f"changing/_runs/run/{DAY}") == before, "nothing is lost"
    fixed.append(True)
    result = way.run(pipeline(("a", None), ("b", None), ("c", ["a", "b"]), version=2))
    assert result.executed == ("c",), "what is as it was keeps its output"
    with pytest.raises(PipelineChanged, match="begun with version 2, and this is 1"):
        way.run(pipeline(("a", None), ("b", None), ("c", None)))
    assert way.run(pipeline(("a", None)), resume="never").executed == ("a",)


def test_a_record_of_a_newer_ckptmesh_is_not_touched(way: Way) -> None:
    steps = Steps()
    way.run(steps.pipeline)
    key = f"{steps.pipeline.name}/_runs/run/{DAY}"
    newer = way.mesh.put(key, {**way.mesh.get(key).value, "schema": 9})
    for resume in ("auto", "never", "required"):
        with pytest.raises(Unsupported, match="schema 9"):
            way.run(steps.pipeline, resume=resume)
    assert way.mesh.get(key).revision == newer.revision


# --- retries, timeouts, outputs -------------------------------------------------------------------


def test_a_stage_is_tried_again_as_often_as_declared(way: Way) -> None:
    steps = Steps(retries=2, delay=0.001)
    steps.fail["double"] = times(2, ConnectionError("down"))
    record = way.run(steps.pipeline).record
    assert steps.done == ["extract", "double", "double", "double", "load"]
    assert (record.errors_total, record.resumes, record.error) == (2, 0, "")
    assert all(each.retryable for each in record.errors)
    assert record["double"].executions == 3
    steps.fail["double"] = times(3, ConnectionError("down"))
    with pytest.raises(ConnectionError):
        way.run(steps.pipeline, resume="never")


@pytest.mark.parametrize("retry_on", [ConnectionError, (ConnectionError, KeyError),
                                      lambda error: isinstance(error, ConnectionError)])
def test_only_errors_that_are_declared_so_are_tried_again(way: Way, retry_on: Any) -> None:
    steps = Steps(retries=2, delay=0, retry_on=retry_on)
    steps.fail["double"] = times(1, ConnectionError())
    way.run(steps.pipeline)
    steps.done.clear()
    steps.fail["double"] = times(1, ValueError("wrong"))
    with pytest.raises(ValueError, match="wrong"):
        way.run(steps.pipeline, resume="never")
    assert steps.done == ["extract", "double"]


def test_pauses_between_attempts_grow() -> None:
    stage = Stage("a", len, retries=9, delay=0.5, backoff=3)
    assert [stage.pause(attempt) for attempt in (1, 2, 3)] == [0.5, 1.5, 4.5]
    assert stage.pause(40) == 3_600


def test_a_stage_whose_time_is_over_is_told_when_it_asks(way: Way) -> None:
    steps = Steps(timeout=0.02)

    def slow(run: Any) -> None:
        while True:
            time.sleep(0.005)
            run.check()

    steps.fail["double"] = slow
    with pytest.raises(TimeoutError, match=r"had 0\.02 s"):
        way.run(steps.pipeline)
    assert way.mesh.runs(steps.pipeline.name).get(DAY).status == "failed"


@pytest.mark.parametrize(("output", "error", "place"), [
    ({"rows": [1, {"at": object()}]}, InvalidValue, "value['rows'][1]['at']"),
    ({"rows": [float("nan")]}, InvalidValue, "value['rows'][0]"),
    (b"x" * 2_000_000, TooLarge, "2,000,005 bytes")])
def test_an_output_that_cannot_be_kept_is_told_by_stage_and_place_and_nothing_is_lost(
        way: Way, output: Any, error: type[Exception], place: str) -> None:
    name = f"bad{next(_names)}"
    good = [False]
    pipeline = ckptmesh.pipeline(name, stages=[
        Stage("first", lambda run: 1), Stage("bad", lambda run, one: 2 if good[0] else output,
                                             retries=3)])
    with pytest.raises(error) as caught:
        way.run(pipeline)
    assert "stage 'bad'" in str(caught.value)
    assert place in str(caught.value)
    assert caught.value.details["stage"] == "bad"  # type: ignore[attr-defined]
    record = way.mesh.runs(name).get(DAY)
    assert (record.status, record.stage, record.completed) == ("failed", "bad", ("first",))
    assert record["bad"].executions == 1, "another attempt would give the same"
    good[0] = True
    assert way.run(pipeline).executed == ("bad",)


def test_inputs_that_cannot_be_kept_are_refused_before_anything_begins(way: Way) -> None:
    steps = Steps()
    with pytest.raises(InvalidValue, match="the inputs: value"):
        way.run(steps.pipeline, inputs={"f": object()})
    assert way.mesh.scan(steps.pipeline.name) == []


def test_a_stage_that_keeps_no_output_runs_again_only_where_it_is_needed(way: Way) -> None:
    done: list[str] = []
    broken = [True]

    def a(run: Any) -> Callable[[], int]:
        done.append("a")
        return lambda: 5

    def b(run: Any, function: Callable[[], int]) -> int:
        done.append("b")
        return function()

    def c(run: Any, five: int, function: Callable[[], int]) -> int:
        done.append("c")
        if broken[0]:
            raise ValueError("broken")
        return five + function()

    pipeline = ckptmesh.pipeline(f"loose{next(_names)}", stages=[
        Stage("a", a, checkpoint=False), Stage("b", b), Stage("c", c, needs=["b", "a"])])
    with pytest.raises(ValueError, match="broken"):
        way.run(pipeline)
    assert done == ["a", "b", "c"]
    broken[0] = False
    result = way.run(pipeline)
    assert done == ["a", "b", "c", "a", "c"]
    assert result.output == 10
    assert way.run(pipeline).outputs == {"b": 5, "c": 10}
    assert len(done) == 5


def test_checkpoints_can_be_switched_off_for_a_pipeline(way: Way) -> None:
    name = f"off{next(_names)}"
    pipeline = ckptmesh.pipeline(name, checkpoint=False, stages=[
        Stage("a", lambda run: 1), Stage("b", lambda run, a: a + 1, checkpoint=True)])
    assert way.run(pipeline).outputs == {"a": 1, "b": 2}
    assert [each.key for each in way.mesh.scan(f"{name}/_runs/kept")] == [
        f"{name}/_runs/kept/{DAY}/b"]


# --- progress inside a stage ----------------------------------------------------------------------


def test_a_stage_goes_on_from_its_own_last_batch(way: Way) -> None:
    name, seen, die = f"batches{next(_names)}", list[int](), [True]

    def load(run: Any) -> int:
        for batch in range(run.value(default=0), 1_100):
            if batch == 1_001 and die[0]:
                raise Crash
            seen.append(batch)
            if batch >= 995:
                run.commit(batch + 1, batch=batch, records=10, bytes=100,
                           position=10 * (batch + 1), head=11_000)
        return len(seen)

    pipeline = ckptmesh.pipeline(name, stages=[Stage("load", load)])
    with pytest.raises(Crash):
        way.run(pipeline)
    record = way.mesh.runs(name).get(DAY)
    assert (record.batch, record.position, record.head, record.lag) == (1_000, 10_010, 11_000,
                                                                        990)
    assert (record.records, record["load"].records, record.bytes) == (60, 60, 600)
    found = way.mesh.get(f"{name}/_runs/place/{DAY}/load")
    assert (found.position, found.head) == (10_010, 11_000)
    die[0] = False
    record = way.run(pipeline).record
    assert seen == list(range(1_100)), "nothing twice, nothing left out"
    assert record.records == 1_050
    assert way.mesh.get(f"{name}/_runs/place/{DAY}/load") is None
    batches = [each for each in record.events if each.kind == "batch"]
    assert [each.count for each in batches] == [6, 99]


def test_what_was_committed_within_a_stage_of_another_make_is_not_gone_on_from(way: Way) -> None:
    name, seen = f"remade{next(_names)}", list[Any]()

    def load(run: Any) -> None:
        seen.append(run.value("none"))
        run.commit(7)
        if run.inputs < 3:
            raise Crash

    pipeline = ckptmesh.pipeline(name, stages=[Stage("load", load)])
    for inputs in (1, 1, 2, 3):
        try:
            way.run(pipeline, inputs=inputs)
        except Crash:
            continue
    assert seen == ["none", 7, "none", "none"]


def test_reports_are_counted_and_wait_for_nothing(way: Way) -> None:
    name = f"reports{next(_names)}"

    def load(run: Any) -> None:
        for number in range(10):
            run.report(records=5, failed=1, bytes=50, last_id=number)
        run.report(last_id="ten", batch=3)
        run.error(ValueError("row 7"), id=7, context={"row": 7}, retryable=True)
        run.error("odd", id=object(), context={"x": object()})
        for bad in ({"records": -1}, {"bytes": 1.5}, {"head": 2**80}, {"batch": "x"}):
            with pytest.raises(Misuse):
                run.report(**bad)
        with pytest.raises(InvalidValue):
            run.report(last_id=object())
        kept.append(run)

    kept: list[Any] = []
    record = way.run(ckptmesh.pipeline(name, stages=[Stage("load", load)])).record
    assert (record.records, record.failed, record.bytes) == (50, 12, 500)
    assert (record.last_id, record.batch, record.position) == ("ten", 3, 9)
    first = record.errors[0]
    assert (first.id, first.message, first.retryable) == (7, "ValueError: row 7", True)
    assert record.errors[1].id.startswith("<object")
    with pytest.raises(Misuse, match="has ended"):
        kept[0].report(records=1)


def test_what_is_reported_is_seen_by_others_while_the_stage_is_under_way(way: Way) -> None:
    name, seen = f"seen{next(_names)}", list[int]()
    going = threading.Event()

    def load(run: Any) -> None:
        run.report(records=42)
        going.wait(20)

    def look() -> None:
        deadline = time.monotonic() + 15
        while time.monotonic() < deadline and not seen:
            record = way.mesh.runs(name).get(DAY)
            if record is not None and record.records:
                seen.append(record.records)
            time.sleep(0.02)
        going.set()

    thread = threading.Thread(target=look)
    thread.start()
    way.run(ckptmesh.pipeline(name, stages=[Stage("load", load)]))
    thread.join()
    assert seen == [42]


# --- pause, cancel --------------------------------------------------------------------------------


@pytest.mark.parametrize(("ask", "status"), [("pause", "paused"), ("cancel", "cancelled")])
def test_what_somebody_asks_for_is_obeyed_before_the_next_stage(way: Way, ask: str, status: str
                                                                ) -> None:
    steps = Steps()
    runs = way.mesh.runs(steps.pipeline.name)
    steps.fail["double"] = lambda run: ask_here(ask)

    def ask_here(ask: str) -> None:
        other = threading.Thread(target=lambda: getattr(runs, ask)(DAY, reason="feed is late"))
        other.start()
        other.join()

    with pytest.raises(RunStopped, match="feed is late") as caught:
        way.run(steps.pipeline)
    assert caught.value.details["status"] == status
    assert steps.done == ["extract", "double"]
    record = runs.get(DAY)
    assert (record.status, record.stage, record.completed) == (status, "load",
                                                               ("extract", "double"))
    steps.fail.clear()
    with pytest.raises(RunStopped):
        way.run(steps.pipeline)
    if ask == "pause":
        assert runs.resume(DAY).status == "pending"
        result = way.run(steps.pipeline)
        assert result.executed == ("load",)
        assert result.record.resumes == 1
    else:
        with pytest.raises(Misuse, match="cancelled already"):
            runs.resume(DAY)
        assert len(way.run(steps.pipeline, resume="never").executed) == 3


def test_a_stage_that_looks_stops_within_and_loses_nothing(way: Way) -> None:
    name, seen = f"stop{next(_names)}", list[int]()
    runs = way.mesh.runs(name)

    def load(run: Any) -> str:
        for number in range(run.value(default=0), 1_000_000):
            run.commit(number + 1)
            seen.append(number)
            if number == 3 and len(seen) == 4:
                other = threading.Thread(target=lambda: runs.pause(DAY))
                other.start()
                other.join()
            if number > 3 and not over[0]:
                if not run.should_stop:
                    time.sleep(0.02)
                run.check()
            if over[0] and number - resumed[0] > 3:
                return "done"
        return "all"

    over, resumed = [False], [0]
    pipeline = ckptmesh.pipeline(name, stages=[Stage("load", load)])
    with pytest.raises(RunStopped):
        way.run(pipeline)
    record = runs.get(DAY)
    assert (record.status, record["load"].status, record.errors) == ("paused", "paused", ())
    runs.resume(DAY)
    over[0], resumed[0] = True, len(seen)
    assert way.run(pipeline).output == "done"
    assert seen == list(range(len(seen)))


# --- one at a time, and several processes ---------------------------------------------------------


def test_a_second_copy_of_a_run_is_told_who_does_it(way: Way) -> None:
    steps = Steps()
    told: list[str] = []

    def second(run: Any) -> None:
        def copy() -> None:
            try:
                other_way.run(steps.pipeline, wait=0)
            except LockTimeout as error:
                told.append(str(error))
        steps.fail.clear()
        thread = threading.Thread(target=copy)
        thread.start()
        thread.join()

    other_way = way
    steps.fail["double"] = second
    assert way.run(steps.pipeline).output == {"rows": 3, "sum": 6}
    assert len(told) == 1
    assert f"run '{DAY}' of '{steps.pipeline.name}' is being done" in told[0]
    assert steps.done == ["extract", "double", "load"]


@pytest.mark.parametrize("way", ["plain"], indirect=True)  # a stage looks by the client itself
def test_a_second_copy_that_waits_gets_the_outputs_of_the_first(way: Way) -> None:
    steps = Steps()
    found: list[RunResult] = []
    second = threading.Thread(target=lambda: found.append(way.run(steps.pipeline, wait=30)))

    def begin(run: Any) -> None:
        second.start()
        while not any(each.value["name"] == f"{steps.pipeline.name}/{DAY}"
                      and each.key != run.lock.key
                      for each in way.mesh.scan(f"{steps.pipeline.name}/_lock")):
            time.sleep(0.005)  # until it waits

    steps.fail["double"] = begin
    first = way.run(steps.pipeline)
    second.join(30)
    assert [(each.outputs, each.executed) for each in found] == [(first.outputs, ())]
    assert steps.done == ["extract", "double", "load"]


def test_a_run_is_covered_by_a_lock_on_the_pipeline(way: Way) -> None:
    steps = Steps()
    held = way.mesh.create(f"{steps.pipeline.name}/_lock/_ticket/0", {
        "name": steps.pipeline.name, "shared": False, "holder": "exec"}, ttl=60, lease=True)
    with pytest.raises(LockTimeout, match="exec"):
        way.run(steps.pipeline, wait=0)
    way.mesh.delete(held.key)
    assert way.run(steps.pipeline).status == "completed"


def test_stages_can_be_run_one_here_and_one_there(way: Way) -> None:
    steps = Steps()
    result = way.run(steps.pipeline, only=steps.extract, inputs={"n": 4})
    assert (result.status, result.executed) == ("pending", ("extract",))
    assert result.outputs == {"extract": [0, 1, 2, 3]}
    with pytest.raises(StageNotReady, match=r"'load' .* needs double, not yet completed"):
        way.run(steps.pipeline, only="load", wait=0)
    assert way.run(steps.pipeline, only="extract").executed == ()
    assert way.run(steps.pipeline, at_most=1).executed == ("double",)
    result = way.run(steps.pipeline, only=["load"])
    assert (result.status, result.output) == ("completed", {"rows": 4, "sum": 12})
    assert result.record.resumes == 0, "handed over, not interrupted"
    assert steps.done == ["extract", "double", "load"]


def test_a_stage_waits_for_those_it_needs(way: Way) -> None:
    steps = Steps()
    with pytest.raises(StageNotReady) as caught:
        way.run(steps.pipeline, only="double", wait=0.01)
    assert caught.value.details["needs"] == ["extract"]
    found: list[RunResult] = []
    waiting = [threading.Thread(target=lambda name=name: found.append(
        way.run(steps.pipeline, only=name, wait=30))) for name in ("load", "double")]
    for thread in waiting:
        thread.start()
    way.run(steps.pipeline, only="extract")
    for thread in waiting:
        thread.join(30)
    assert {each.executed for each in found} == {("double",), ("load",)}
    assert steps.done == ["extract", "double", "load"]


# --- outputs by reference -------------------------------------------------------------------------


class Files:
    """A pipeline whose first stage leaves a file."""

    def __init__(self) -> None:
        self.name = f"files{next(_names)}"
        self.done: list[str] = []
        self.fail = False

        def write(run: Any) -> dict[str, Any]:
            self.done.append("write")
            with run.writing("rows.txt", "w") as file:
                file.write("one\ntwo\n")
            return {"rows": 2, "file": run.file("rows.txt"), "more": [run.save(b"x", "x.bin")]}

        def count(run: Any, found: dict[str, Any]) -> int:
            self.done.append("count")
            if self.fail:
                raise ValueError("not yet")
            with found["file"].open() as file:
                return len(file.readlines())

        self.pipeline = ckptmesh.pipeline(self.name, stages=[
            Stage("write", write), Stage("count", count)])


def test_a_large_output_is_a_file_with_its_digest(way: Way, tmp_path: Path) -> None:
    files = Files()
    result = way.run(files.pipeline, storage=tmp_path)
    assert result.output == 2
    ref = result.outputs["write"]["file"]
    assert ref.path.read_text() == "one\ntwo\n"
    assert (ref.size, ref.path.parent.name) == (8, "write")
    assert ref.path.is_relative_to(tmp_path / result.record.folder)
    assert result.record["write"].file_bytes == 9
    assert sorted(each.name for each in ref.path.parent.iterdir()) == ["rows.txt", "x.bin"]
    assert way.run(files.pipeline, storage=tmp_path).outputs["write"]["file"] == ref
    gone = way.mesh.runs(files.name).clean(keep=0, storage=tmp_path)
    assert [each.key for each in gone] == [DAY]
    assert not ref.path.exists()


@pytest.mark.parametrize("damage", ["changed", "cut", "gone", "elsewhere"])
def test_a_file_that_is_not_what_was_written_is_told_before_a_stage_gets_it(
        way: Way, tmp_path: Path, damage: str) -> None:
    files, storage = Files(), tmp_path / "a"
    files.fail = True
    with pytest.raises(ValueError, match="not yet"):
        way.run(files.pipeline, storage=storage)
    files.fail = False
    (path,) = storage.glob("**/rows.txt")
    if damage == "elsewhere":
        storage = tmp_path / "b"
    elif damage == "gone":
        path.unlink()
    else:
        path.write_text("one\ntwx\n" if damage == "changed" else "one\n")
    with pytest.raises(OutputLost, match="stage 'write'") as caught:
        way.run(files.pipeline, storage=storage)
    assert str(storage) in str(caught.value)
    if damage in ("gone", "elsewhere"):
        assert "one shared folder as storage=" in caught.value.hint
    assert way.mesh.runs(files.name).get(DAY).status == "failed"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("one\ntwo\n")
    assert way.run(files.pipeline, storage=tmp_path / "a").output == 2
    assert files.done.count("write") == 1


def test_a_file_that_could_not_be_written_leaves_the_one_before(way: Way, tmp_path: Path) -> None:
    def write(run: Any) -> Any:
        run.save(b"whole", "a")
        with suppress(ValueError), run.writing("a") as file:
            file.write(b"ha")
            raise ValueError("half")
        with pytest.raises(Misuse, match="file's name"):
            run.save(b"x", "../a")
        return run.file("a")

    pipeline = ckptmesh.pipeline("half", stages=[Stage("a", write)], storage=tmp_path)
    ref = way.run(pipeline).output
    assert ref.path.read_bytes() == b"whole"
    assert [each.name for each in ref.path.parent.iterdir()] == ["a"]


def test_without_a_storage_a_stage_is_told_what_to_give(way: Way) -> None:
    files = Files()
    with pytest.raises(Misuse, match="no storage for outputs by reference"):
        way.run(files.pipeline)


# --- asyncio --------------------------------------------------------------------------------------


def test_stages_may_be_coroutine_functions_and_go_on_from_their_last_batch() -> None:
    seen: list[Any] = []
    pipeline = ckptmesh.pipeline("tasks", storage=None)

    @pipeline.stage(retries=1, delay=0)
    async def extract(run: Any) -> int:
        seen.append(run.value())
        receipt = await run.commit(len(seen), records=1)
        assert receipt.key == f"tasks/_runs/place/{DAY}/extract"
        if len(seen) == 1:
            raise ConnectionError
        return len(seen)

    @pipeline.stage
    def load(run: Any, number: int) -> str:
        run.commit("half", records=number)  # in a thread, so it need not be awaited
        return threading.current_thread().name

    @pipeline.stage(timeout=0.05)
    async def wait(run: Any, name: str) -> None:
        await asyncio.sleep(0 if seen[-1] == "quick" else 60)

    async def main() -> None:
        async with await ckptmesh.connect_async("memory://") as mesh:
            with pytest.raises(TimeoutError):
                await pipeline.run_async(mesh, key=DAY)
            record = await mesh.runs("tasks").get(DAY)
            assert record is not None
            assert (record.status, record.stage, record.records) == ("failed", "wait", 4)
            seen.append("quick")
            result = await pipeline.run_async(mesh, key=DAY)
            assert result.executed == ("wait",)
            assert result.outputs["load"] != threading.current_thread().name

    asyncio.run(main())
    assert seen == [None, 1, "quick"]


def test_a_task_that_is_cancelled_leaves_a_run_that_goes_on() -> None:
    pipeline, begun = ckptmesh.pipeline("tasks"), asyncio.Event()

    @pipeline.stage
    async def wait(run: Any) -> int:
        if run.attempt == 1 and run.record.resumes == 0:
            begun.set()
            await asyncio.sleep(60)
        return 1

    async def main() -> None:
        async with await ckptmesh.connect_async("memory://") as mesh:
            task = asyncio.create_task(pipeline.run_async(mesh, key=DAY))
            await begun.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            record = await mesh.runs("tasks").get(DAY)
            assert record is not None
            assert record.status == "failed"
            assert (await pipeline.run_async(mesh, key=DAY, wait=0)).output == 1

    asyncio.run(main())


def test_a_coroutine_function_is_not_for_a_plain_client() -> None:
    pipeline = ckptmesh.pipeline("tasks")

    @pipeline.stage
    async def stage(run: Any) -> None: ...

    with ckptmesh.connect("memory://") as mesh, pytest.raises(Misuse, match="run_async"):
        pipeline.run(mesh)


# --- when the store does not answer ---------------------------------------------------------------


@pytest.mark.parametrize("came_through", [True, False])
def test_a_commit_that_nobody_heard_of_is_asked_for(monkeypatch: pytest.MonkeyPatch,
                                                    came_through: bool) -> None:
    with ckptmesh.connect("memory://") as mesh:
        steps, lost = Steps(), list[str]()
        begin = mesh.transaction

        def transaction(**options: Any) -> Any:
            tx = begin(**options)
            commit = tx.commit

            def unheard() -> int:
                if steps.done != ["extract", "double"] or lost:
                    return commit()
                lost.append("once")
                revision = commit() if came_through else None
                error = OutcomeUnknown("no answer")
                error._resolver = lambda timeout=None: revision
                raise error

            tx.commit = unheard
            return tx

        monkeypatch.setattr(mesh, "transaction", transaction)
        if not came_through:
            with pytest.raises(Unavailable, match="in time"):
                steps.pipeline.run(mesh, key=DAY)
        result = steps.pipeline.run(mesh, key=DAY)
        assert lost
        assert result.output == {"rows": 3, "sum": 6}
        again = [] if came_through else ["double"]
        assert sorted(steps.done) == sorted(["extract", "double", "load", *again])


def test_a_run_whose_lock_is_lost_commits_no_more() -> None:
    with ckptmesh.connect("memory://") as mesh:
        steps = Steps()
        runs = mesh.runs(steps.pipeline.name)
        steps.fail["double"] = lambda run: mesh.delete(run.lock.key)  # as if it had ended
        with pytest.raises(LeaseLost):
            steps.pipeline.run(mesh, key=DAY)
        record = runs.get(DAY)
        assert record is not None
        assert (record.status, record.completed) == ("running", ("extract",))
        steps.fail.clear()
        assert steps.pipeline.run(mesh, key=DAY).executed == ("double", "load")


# --- wrong from the beginning ---------------------------------------------------------------------


@pytest.mark.parametrize("make", [
    lambda: ckptmesh.pipeline("a/b"), lambda: ckptmesh.pipeline("_a"),
    lambda: ckptmesh.pipeline("a", version=None),  # type: ignore[arg-type]
    lambda: ckptmesh.pipeline("a", resume="maybe"),
    lambda: ckptmesh.pipeline("a", max_output=0),
    lambda: ckptmesh.pipeline("a", stages=[Stage("x", len), Stage("x", len)]),
    lambda: ckptmesh.pipeline("a", stages=[Stage("x", len, needs=["y"])]),
    lambda: ckptmesh.pipeline("a", stages=[Stage("x", len), Stage("y", len, needs="x")]),
    lambda: ckptmesh.pipeline("a", stages=[Stage("x", len), Stage("y", len, needs=["x", "x"])]),
    lambda: ckptmesh.pipeline("a", stages=[Stage("x/y", len)]),
    lambda: ckptmesh.pipeline("a", stages=[Stage("x", len, retries=-1)]),
    lambda: ckptmesh.pipeline("a", stages=[{"name": "x"}]),
    lambda: ckptmesh.pipeline("a", stages=[{"name": "x", "call": len, "retry": 3}]),
    lambda: ckptmesh.pipeline("a", stages=[Stage("x", "nowhere:nothing")]).run(None),
    lambda: ckptmesh.pipeline("a").run(None),
    lambda: Steps().pipeline.run(None, only="nobody"),
    lambda: Steps().pipeline.run(None, resume="maybe"),
    lambda: Steps().pipeline.run(None, at_most=0),
    lambda: Steps().pipeline.run(None, key="a/b")])
def test_what_cannot_be_right_is_refused(make: Callable[[], object]) -> None:
    with pytest.raises(Misuse):
        make()


def test_a_stage_as_data_may_name_its_function() -> None:
    pipeline = ckptmesh.pipeline("data", stages=[
        {"name": "rows", "call": "tests.unit.test_pipelines:three"}])
    with ckptmesh.connect("memory://") as mesh:
        assert pipeline.run(mesh).output == 3


def three(run: Any) -> int:
    return 3


def test_the_digest_of_an_output_is_that_of_the_bytes_that_are_kept(way: Way) -> None:
    @dataclass
    class Unknown:
        rows: int

    pipeline = ckptmesh.pipeline("exact", stages=[Stage("count", lambda run: [Unknown(7)])])
    record = way.run(pipeline).record
    kept = way.mesh.get(f"exact/_runs/kept/{DAY}/count", packed=True)
    assert hashlib.sha256(kept.value.data).hexdigest() == record["count"].sha256
    assert len(kept.value.data) == record["count"].size
