"""`ckptmesh run`: what it shows of runs, and what it asks of them."""

from __future__ import annotations

import json
from typing import Any

import pytest

import ckptmesh
from ckptmesh import RunStopped, Stage
from tests.cli.conftest import CommandLine, process

DAY = "2026-11-21"


def run_until_load_fails(url: str, name: str, **options: Any) -> None:
    def load(run: Any, rows: list[int]) -> None:
        run.report(records=2, batch=7, last_id=70, head=100)
        run.error("odd row", id=71, retryable=True)
        raise ConnectionError("no database\nat all")

    pipeline = ckptmesh.pipeline(name, stages=[
        Stage("extract", lambda run: [1, 2, 3]), Stage("load", load)])
    with ckptmesh.connect(url) as mesh, pytest.raises(ConnectionError):
        pipeline.run(mesh, key=DAY, inputs={"day": DAY}, **options)


@pytest.fixture
def failed(directory: CommandLine) -> CommandLine:
    """A directory with a run that has failed in its second stage."""
    run_until_load_fails(directory.environ["CKPTMESH_URL"], "nightly")
    return directory


def test_runs_are_listed_with_where_they_stand_and_why(failed: CommandLine) -> None:
    head, row = failed.out("run", "list", "nightly").splitlines()
    assert head.split() == ["PIPELINE", "KEY", "STATUS", "STAGE", "RESUMES", "RECORDS", "AGE",
                            "TOOK", "WHY"]
    assert row.split()[:6] == ["nightly", DAY, "failed", "load", "2/2", "0"]
    assert row.endswith("ConnectionError: no database")
    assert failed.out("run", "list") == failed.out("run", "list", "nightly")
    document = json.loads(failed.out("run", "list", "--json"))
    assert (document["completed"], document["pending"]) == (["extract"], ["load"])


def test_lists_can_be_narrowed_and_say_when_nothing_is_left(failed: CommandLine) -> None:
    assert len(failed.out("run", "list", "nightly", "--status", "failed").splitlines()) == 2
    result = failed("run", "list", "nightly", "--status", "paused")
    assert "there is no such run of nightly" in result.stderr
    assert failed("run", "list", "--status", "odd", code=2).stdout == ""


def test_runs_of_commands_are_listed_with_those_of_pipelines(failed: CommandLine) -> None:
    url = failed.environ["CKPTMESH_URL"]
    assert process("exec", "--pipeline", "nightly", "--", "sh", "-c", "exit 3",
                   CKPTMESH_URL=url).returncode == 3
    rows = [json.loads(line) for line in failed.out("run", "list", "--json").splitlines()]
    assert [(each["kind"], each["status"]) for each in rows] == [("pipeline", "failed"),
                                                                ("exec", "failed")]
    shown = failed.out("run", "show", "nightly", rows[1]["key"])
    assert "exit code 3" in shown
    failed("run", "pause", "nightly", rows[1]["key"], code=3)


def test_a_run_is_shown_with_its_stages_errors_and_events(failed: CommandLine) -> None:
    shown = failed.out("run", "show", "nightly", DAY)
    for text in ("status         failed", 'inputs         {"day": "2026-11-21"}',
                 "records        2, 1 failed", "lag            30", "batch          7",
                 "load 71: odd row (may succeed again)", "failed load: ConnectionError"):
        assert text in shown, shown
    document = json.loads(failed.out("run", "show", "nightly", DAY, "--json"))
    assert document["schema"] == 1
    assert [each["name"] for each in document["stages"]] == ["extract", "load"]
    assert document["created"].endswith("Z")
    assert document["errors"][0]["id"] == 71
    assert failed("run", "show", "nightly", "nobody", code=3).stdout == ""


def test_a_run_is_paused_resumed_and_cancelled(failed: CommandLine) -> None:
    url = failed.environ["CKPTMESH_URL"]
    pipeline = ckptmesh.pipeline("nightly", stages=[
        Stage("extract", lambda run: [1, 2, 3]), Stage("load", lambda run, rows: len(rows))])
    assert failed.out("run", "pause", "nightly", DAY, "--reason", "late feed") == "paused"
    with ckptmesh.connect(url) as mesh, pytest.raises(RunStopped, match="late feed"):
        pipeline.run(mesh, key=DAY)
    result = failed("run", "resume", "nightly", DAY)
    assert result.stdout == "pending\n"
    assert "with the next run" in result.stderr
    failed("run", "cancel", "nightly", DAY, code=2)
    document = json.loads(failed.out("run", "cancel", "nightly", DAY, "--yes", "--json"))
    assert document["status"] == "cancelled"
    assert "cancelled already" in failed("run", "pause", "nightly", DAY, code=2).stderr
    failed("run", "pause", "nightly", "nobody", code=3)


def test_a_run_that_is_under_way_is_asked(served: CommandLine) -> None:
    said: list[str] = []

    def stage(run: Any) -> None:
        if not said:
            said.append(served.out("run", "pause", "asked", DAY))
            said.append(served.out("run", "list", "asked"))

    pipeline = ckptmesh.pipeline("asked", stages=[Stage("one", stage), Stage("two", len)])
    with ckptmesh.connect(served.environ["CKPTMESH_URL"]) as mesh, pytest.raises(RunStopped):
        pipeline.run(mesh, key=DAY)
    assert said[0] == "running (pause asked)"
    assert "running (pause asked)" in said[1]
    assert served.out("run", "list", "asked").splitlines()[1].split()[2] == "paused"


def test_a_record_that_cannot_be_read_hides_no_other_run(served: CommandLine) -> None:
    with ckptmesh.connect(served.environ["CKPTMESH_URL"]) as mesh:
        ckptmesh.pipeline("whole", stages=[Stage("one", lambda run: 1)]).run(mesh, key=DAY)
        mesh.commit(f"broken/_runs/run/{DAY}", "no record")
        told = served("run", "list")
        assert "whole" in told.stdout
        assert f"left out: what stands at 'broken/_runs/run/{DAY}'" in told.stderr
        mesh.delete(f"broken/_runs/run/{DAY}")


def test_nothing_is_made_where_there_is_no_store(directory: CommandLine) -> None:
    assert "there is no store" in directory("run", "list").stderr


def test_a_run_whose_process_is_gone_reads_interrupted(served: CommandLine) -> None:
    class Killed(BaseException):
        pass

    def stage(run: Any) -> None:
        assert served.out("run", "list", "gone").splitlines()[1].split()[2] == "running"
        raise Killed

    pipeline = ckptmesh.pipeline("gone", stages=[Stage("one", stage)])
    with ckptmesh.connect(served.environ["CKPTMESH_URL"]) as mesh:
        with pytest.raises(Killed):
            pipeline.run(mesh, key=DAY)
        found = mesh.runs("gone").get(DAY)
        assert found is not None
        assert (found.status, found.shown) == ("running", "interrupted")
    for arguments in (("gone",), ("--status", "interrupted"), ()):
        rows = [row.split() for row in served.out("run", "list", *arguments).splitlines()]
        assert [row[2] for row in rows if row[0] == "gone"] == ["interrupted"]
    assert "there is no such run" in served("run", "list", "gone", "--status", "running").stderr
    assert "status         interrupted" in served.out("run", "show", "gone", DAY)
    document = json.loads(served.out("run", "show", "gone", DAY, "--json"))
    assert (document["status"], document["interrupted"]) == ("running", True)
    result = served("run", "pause", "gone", DAY)
    assert result.stdout == "interrupted (pause asked)\n"
    assert "the next run obeys" in result.stderr
    assert "interrupted  1" in served.out("run", "statistics", "gone")


def test_statistics_of_runs_are_shown(failed: CommandLine) -> None:
    shown = failed.out("run", "statistics", "nightly")
    assert [line.split()[:2] for line in shown.splitlines()] == [
        ["runs", "1"], ["failed", "1"], ["resumes", "0,"]]
    document = json.loads(failed.out("run", "statistics", "nightly", "--json"))
    assert (document["pipeline"], document["total"]) == ("nightly", 1)
    assert document["resume_rate"] is None


def test_old_runs_are_shown_and_removed(failed: CommandLine) -> None:
    url = failed.environ["CKPTMESH_URL"]
    pipeline = ckptmesh.pipeline("nightly", stages=[Stage("one", lambda run: run.inputs)])
    with ckptmesh.connect(url) as mesh:
        for day in range(3):
            pipeline.run(mesh, key=f"{day}", inputs=day)
    failed("run", "clean", "nightly", code=2)
    shown = failed("run", "clean", "nightly", "--keep", "1", "--dry-run")
    assert [line.split()[1] for line in shown.stdout.splitlines()[1:]] == ["0", "1"]
    assert "would remove 2 runs" in shown.stderr
    assert "add --yes" in failed("run", "clean", "nightly", "--keep", "1", code=2).stderr
    assert failed.out("run", "clean", "nightly", "--older-than", "1h", "--json") == ""
    gone = failed.out("run", "clean", "nightly", "--keep", "1", "--yes", "--json").splitlines()
    assert [json.loads(line)["key"] for line in gone] == ["0", "1"]
    rows = failed.out("run", "list", "nightly").splitlines()
    assert [row.split()[1] for row in rows[1:]] == [DAY, "2"], "the unfinished one stays"
