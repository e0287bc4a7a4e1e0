"""Looking into runs: what is drawn, what is told of trends, what would be executed again."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import ckptmesh
from ckptmesh import RunRecord, Stage, limits
from ckptmesh.features.debugging import analysing, attempts, trends
from ckptmesh.features.debugging.analysing import analyze
from ckptmesh.features.debugging.attempts import picture_of
from ckptmesh.features.debugging.drawing import _Drawing, png
from ckptmesh.features.debugging.layout import laid_out
from ckptmesh.features.debugging.reading import Run, each_run, newest_run, one_run
from ckptmesh.features.debugging.reporting import Look, report
from ckptmesh.features.debugging.texts import cut, dot, mermaid
from ckptmesh.features.debugging.verifying import left
from ckptmesh.features.pipeline.records import StageRecord
from tests import pictures

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def mesh() -> Iterator[Any]:
    with ckptmesh.connect("memory://") as found:
        yield found


# --- pictures ---------------------------------------------------------------------------------


def statuses(picture: attempts.Picture) -> list[list[str]]:
    return [[box.status for box in lane.boxes.values()] for lane in picture.lanes]


def test_a_run_under_way_is_drawn_as_it_is_and_suspected_of_nothing(mesh: Any) -> None:
    seen: list[Any] = []

    def look(pipeline: str) -> None:
        seen.append(pictures.picture(mesh, pipeline))
        seen.append(report(mesh, pipeline))
        seen.append(report(mesh, pipeline, look=Look(stale=0)))

    pictures.under_way(mesh, 0, look)
    picture, told, impatient = seen
    assert statuses(picture) == [["completed", "completed", "running", "pending"]]
    assert picture.lanes[0].boxes["load"].batches == 3
    assert told.findings == []
    assert (told.plans[0].stage, told.plans[0].status) == ("load", "running")
    assert told.plans[0].at_work
    assert [each.fault for each in impatient.findings] == ["old-heartbeat"]
    assert png(picture).startswith(PNG)


def test_retries_failures_and_resumes_each_show_where_they_were(mesh: Any) -> None:
    picture = pictures.picture(mesh, pictures.diamond(mesh))
    first, second = picture.lanes
    assert (first.boxes["score"].status, first.boxes["score"].executions) == ("failed", 2)
    assert first.boxes["score"].error.startswith("TimeoutError: the scoring service")
    assert (first.stopped_at, second.parent.partition("@")[0]) == (
        "score", "customers/_runs/run/week 47")
    assert second.boxes["read-accounts"].status == "skipped"
    kept = {name: mesh.get(f"customers/_runs/kept/week 47/{name}").revision
            for name in picture.columns.places}
    told = {name: box.revision for lane in picture.lanes for name, box in lane.boxes.items()
            if box.status == "completed"}
    assert told == kept


def test_a_pause_shows_and_twelve_stages_go_on_below(mesh: Any) -> None:
    picture = pictures.picture(mesh, pictures.twelve(mesh))
    assert statuses(picture)[0][5:8] == ["completed", "paused", "pending"]
    drawing = _Drawing(picture)
    tops = {drawing._corner(0, place)[1] for place in picture.columns.places.values()}
    assert len(tops) == 2, "in two parts"
    assert [each.fault for each in report(mesh, "catalogue").findings] == ["paused"]


def test_a_lane_is_begun_where_another_process_took_over(mesh: Any) -> None:
    pipeline = ckptmesh.pipeline("shared", stages=[
        Stage("a", lambda run: 1), Stage("b", lambda run, a: 2)])
    pipeline.run(mesh, key="1", at_most=1)
    pipeline.run(mesh, key="1", at_most=1)
    picture = pictures.picture(mesh, "shared")
    assert [lane.kind for lane in picture.lanes] == ["begun", "handed over"]
    assert statuses(picture) == [["completed", "pending"], ["skipped", "completed"]]


def test_more_attempts_than_a_page_holds_are_counted(mesh: Any) -> None:
    pipeline = ckptmesh.pipeline("often", stages=[Stage("a", lambda run: 1 / 0)])
    for _ in range(limits.DEBUG_LANES + 3):
        with suppress(ZeroDivisionError):
            pipeline.run(mesh, key="1")
    picture = pictures.picture(mesh, "often")
    assert (len(picture.lanes), picture.hidden) == (limits.DEBUG_LANES, 3)
    assert png(picture).startswith(PNG)


graphs = st.lists(st.integers(0, 2**16), min_size=1, max_size=12).map(lambda bits: tuple(
    StageRecord(name=f"s{at}", needs=tuple(f"s{need}" for need in range(at) if mask >> need & 1))
    for at, mask in enumerate(bits)))


@given(graphs)
def test_stages_stand_right_of_what_they_need_and_nothing_stands_on_another(
    stages: tuple[StageRecord, ...]
) -> None:
    layout = laid_out(stages)
    places = layout.places
    for stage in stages:
        assert all(places[need].column < places[stage.name].column for need in stage.needs)
        assert -1e-9 <= places[stage.name].row <= layout.height - 1 + 1e-9
    passed = {(place, need) for (need, _), route in layout.routes.items() for place in route}
    for (need, name), route in layout.routes.items():
        assert [place.column for place in route] == list(
            range(places[need].column + 1, places[name].column))
    for column in range(layout.width):
        rows = sorted([(place.row - 0.5, place.row + 0.5) for place in places.values()
                       if place.column == column]
                      + [(place.row - 0.2, place.row + 0.2) for place, _ in passed
                         if place.column == column])
        assert all(above[1] <= below[0] + 1e-9 for above, below in pairwise(rows))


def test_names_that_are_markup_end_no_label(mesh: Any) -> None:
    bad = 'a"]; end\\ <b> $x_2$ 名前'
    pipeline = ckptmesh.pipeline("odd", stages=[Stage(bad, lambda run: 1)])
    pipeline.run(mesh, key='k"1')
    picture = picture_of(mesh, newest_run(mesh, "odd"))
    text = mermaid(picture)
    assert 'title: "odd · k\\"1 · completed"' in text
    (label,) = re.findall(r'S0_0\["([^"]*)"\]:::completed', text)
    assert not {"<b>", "]"} & set(re.findall(r"<b>|\]", label))
    (quoted,) = re.findall(r'S0_0 \[label="((?:[^"\\]|\\.)*)", color', dot(picture))
    assert 'a\\"]; end\\\\ <b>' in quoted
    assert png(picture).startswith(PNG)


def test_long_names_are_cut_in_their_middle() -> None:
    assert cut("short", 10) == "short"
    assert cut("load-customers-eu", 11) == "load-…rs-eu"
    assert all(len(cut("x" * 50, most)) == most for most in range(2, 30))


# --- what would be executed -------------------------------------------------------------------


@given(graphs.filter(lambda stages: len(stages) <= 6), st.data())
def test_what_the_report_says_is_executed_again_is_what_is(
    stages: tuple[StageRecord, ...], data: st.DataObject
) -> None:
    fails = data.draw(st.sampled_from([each.name for each in stages]))
    unkept = data.draw(st.sets(st.sampled_from([each.name for each in stages])))
    broken = [True]

    def work(run: Any, *needs: Any) -> str:
        if run.stage == fails and broken:
            raise ConnectionError
        return run.stage

    pipeline = ckptmesh.pipeline("any", stages=[
        Stage(each.name, work, needs=each.needs, checkpoint=each.name not in unkept)
        for each in stages])
    with ckptmesh.connect("memory://") as mesh:
        with suppress(ConnectionError):
            pipeline.run(mesh, key="1")
        broken.clear()
        (plan,) = report(mesh, "any").plans
        assert plan.stage == plan.redo[0]
        assert pipeline.run(mesh, key="1").executed == plan.redo
        assert report(mesh, "any").plans == []


def test_going_on_inside_a_stage_is_told_with_its_checkpoint(mesh: Any) -> None:
    def load(run: Any) -> None:
        run.commit(7)
        raise ConnectionError

    with suppress(ConnectionError):
        ckptmesh.pipeline("inside", stages=[Stage("load", load)]).run(mesh, key="1")
    (plan,) = report(mesh, "inside").plans
    place = mesh.get("inside/_runs/place/1/load")
    assert plan.inside == f"{place.key}@{place.revision}"


# --- suspicions -------------------------------------------------------------------------------


def test_an_unfinished_run_of_another_version_is_told(mesh: Any) -> None:
    for version in (1, 2):
        ckptmesh.pipeline("versions", version=version, stages=[
            Stage("a", lambda run: 1), Stage("b", lambda run, a: 1)]).run(
            mesh, key=str(version), at_most=version)
    (found,) = report(mesh, "versions").findings
    assert (found.severity, found.fault, found.key) == (
        "warning", "other-version", "versions/_runs/run/1")


def test_holes_dead_claims_and_partitions_without_owner_are_told(mesh: Any) -> None:
    todo = mesh.intervals("orders/rows", end=100)
    todo.done((10, 20))
    todo.done((50, 60))
    with mesh.worker("orders", partitions=4, idle=0) as worker:
        next(iter(worker))
        told = report(mesh, "orders")
    (holes,) = told.holes
    assert (holes.low_mark, holes.missing, holes.holes) == (0, 40, ((0, 10), (20, 50)))
    assert (told.workers, told.partitions) == (1, 4)
    assert told.free in (0, 1, 2, 3)
    assert told.findings == []


def test_a_position_that_a_rewind_took_back_is_no_step_back(mesh: Any) -> None:
    for position in (5, 10):
        mesh.commit("orders", position, position=position)
    mesh.rewind("orders", to=1, reason="bad feed").apply()
    assert mesh.get("orders").position == 5
    assert report(mesh, "orders").findings == []
    mesh.commit("orders", 1, position=3)
    assert [each.fault for each in report(mesh, "orders").findings] == ["stepped-back"]
    mesh.commit("orders", 1, position=6)
    assert report(mesh, "orders").findings == []


def test_a_long_list_of_findings_is_bounded_and_counted(
    mesh: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ckptmesh.features.debugging.reporting.DEBUG_FINDINGS", 5)
    for at in range(8):
        mesh.commit(f"orders/{at}", 1, position=2, head=1)
    told = report(mesh, "orders")
    assert (len(told.findings), told.more, told.suspicious) == (5, 3, True)
    monkeypatch.setattr("ckptmesh.features.debugging.reporting.DEBUG_KEYS", 3)
    told = report(mesh, "orders")
    assert (told.keys, told.all_keys) == (3, False)
    assert report(mesh, "orders", look=Look(everything=True)).all_keys


# --- figures ----------------------------------------------------------------------------------


def test_the_figures_over_the_newest_runs_pass_the_older_over(mesh: Any) -> None:
    fail = [3]

    def work(run: Any) -> int:
        run.report(records=10, bytes=100)
        if run.inputs < fail[0]:
            raise ValueError("bad row: 7")
        return 1

    pipeline = ckptmesh.pipeline("figures", stages=[Stage("a", work)])
    for at in range(6):
        with suppress(ValueError):
            pipeline.run(mesh, key=str(at), inputs=at)
    fail.clear()
    fail.append(0)
    pipeline.run(mesh, key="2")
    found = analyze(mesh, "figures")
    assert (found.runs, found.by_status) == (6, {"completed": 4, "failed": 2})
    assert (found.resumes, found.resumed, found.resume_rate) == (1, 1, 1.0)
    assert found.failures == (analysing.Failure("a", "ValueError", 3, 3, "2"),)
    (stage,) = found.stages
    assert (stage.runs, stage.executions, stage.failed) == (6, 7, 2)
    assert (found.records, found.bytes) == (60, 600)
    newest = analyze(mesh, "figures", last=2)
    assert (newest.runs, newest.passed_over, newest.failures) == (2, 4, ())
    assert [each.record.key for each in each_run(mesh, "figures") if isinstance(each, Run)] == [
        str(at) for at in range(6)]


def test_percentiles_are_values_that_were_there() -> None:
    spread = analysing.spread_of(range(1, 101))
    assert spread == (100, 50, 95, 100, 5_050)
    assert analysing.spread_of([7.0]) == (1, 7.0, 7.0, 7.0, 7.0)
    assert analysing.spread_of([]) is None


def test_growth_is_called_a_trend_and_noise_is_not() -> None:
    assert trends.slower([60 + at for at in range(20)]).verdict == "slower"
    assert trends.slower([60 - at for at in range(20)]).verdict == "faster"
    assert trends.slower([60.0] * 30).verdict == "steady"
    assert trends.slower([1.0, 2.0] * 3).verdict == "too few runs"
    slight = trends.slower([100 + at / 10 for at in range(20)])
    assert (slight.verdict, slight.chance is not None and slight.chance < 0.01) == ("steady", True)
    chance = random.Random(7)
    false = sum(trends.slower([chance.gauss(60, 20) for _ in range(20)]).verdict != "steady"
                for _ in range(400))
    assert false <= 400 * 0.08, "about one in twenty at most is by chance"


def test_failures_are_a_trend_where_chance_would_not_put_them_all_late() -> None:
    late = trends.worse([False] * 10 + [True] * 8 + [False] * 2)
    assert late.verdict == "more failures"
    assert trends.worse([True] * 8 + [False] * 12).verdict == "fewer failures"
    assert trends.worse([False, True] * 10).verdict == "steady"
    assert trends.worse([False] * 20).verdict == "steady"
    assert trends.worse([True] * 7).verdict == "too few runs"
    # Four bad ones among eight, all in the newer half: one of the 70 ways to choose four.
    assert trends.worse([False] * 4 + [True] * 4).chance == pytest.approx(1 / 70)


def test_the_picture_of_the_guide_is_one_of_a_run(tmp_path: Path) -> None:
    assert pictures.GUIDE.read_bytes().startswith(PNG)
    assert pictures.GUIDE.stat().st_size < 120_000
    with ckptmesh.connect("memory://") as mesh:
        picture = pictures.picture(mesh, pictures.linear(mesh))
        assert statuses(picture)[0] == ["completed", "completed", "failed", "pending"]
        read = one_run(mesh, "nightly", "2026-11-21")
    assert isinstance(read, Run)
    assert left(read.record) == ()
    old: RunRecord = replace(read.record, created=datetime.now(UTC) - timedelta(days=2))
    assert old.took is not None
    assert old.took > timedelta(days=1)
