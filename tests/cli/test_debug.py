"""`ckptmesh debug`: prepared stores, each with one fault, and what is shown of good ones."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

import ckptmesh
from tests.broken import BROKEN, DAY, RECORD, healthy, url_of
from tests.cli.conftest import CommandLine
from tests.pictures import linear


@pytest.mark.parametrize("name", BROKEN)
def test_the_report_names_the_planted_fault_and_its_key(name: str, tmp_path: Path) -> None:
    planted = BROKEN[name]
    planted.make(tmp_path)
    call = CommandLine(url_of(tmp_path))
    found = json.loads(call.out("debug", "report", "nightly", "--json", code=1))
    named = [(each["fault"], each["key"]) for each in found["findings"]]
    assert any(fault == planted.fault and key.startswith(planted.key) for fault, key in named)
    others = {fault for fault, _ in named} - {planted.fault}
    assert others == planted.also
    assert all(each["evidence"] and each["next"] for each in found["findings"])
    told = call("debug", "report", "nightly", code=1).stdout
    assert f"{planted.fault} {planted.key}" in told
    assert told.endswith(" suspicious\n")


def test_a_healthy_store_is_reported_clean_with_where_it_goes_on(tmp_path: Path) -> None:
    healthy(tmp_path)
    call = CommandLine(url_of(tmp_path))
    found = json.loads(call.out("debug", "report", "nightly", "--json"))
    assert (found["findings"], found["suspicious"], found["all_keys"]) == ([], False, True)
    (plan,) = found["plans"]
    assert (plan["key"], plan["stage"], plan["redo"], plan["waits"]) == (DAY, "load", ["load"], "")
    assert found["intervals"] == []
    assert "nothing suspicious" in call.out("debug", "report", "nightly")
    one = json.loads(call.out("debug", "report", "nightly", "--run", "2026-11-20", "--json"))
    assert (one["runs"], one["keys"], one["plans"], one["findings"]) == (1, 0, [], [])
    call("debug", "report", "nightly", "--run", "nobody", code=3)


def test_a_report_changes_not_a_byte_of_the_store(tmp_path: Path) -> None:
    BROKEN["worker-died"].make(tmp_path)
    call = CommandLine(url_of(tmp_path))
    before = call.out("state", "digest"), call.out("state", "get", RECORD)
    for command in (("report", "nightly"), ("analyze", "nightly"), ("visualize", "nightly"),
                    ("inspect", RECORD)):
        call("debug", *command, code=1 if command[0] == "report" else 0)
    with ckptmesh.connect(url_of(tmp_path)) as mesh:
        revision = mesh.revision()
    assert (call.out("state", "digest"), call.out("state", "get", RECORD)) == before
    assert json.loads(call.out("debug", "inspect", RECORD, "--json"))["revision"] <= revision


def test_a_checkpoint_is_shown_in_full(directory: CommandLine) -> None:
    url = directory.environ["CKPTMESH_URL"]
    with ckptmesh.connect(url) as mesh:
        mesh.contract("orders", monotonic=True)
        feed = mesh.commit("feed", 1)
        mesh.commit("orders/eu", {"at": 10}, position=10, head=25, sources=[feed])
        mesh.commit("feed", 2)
        last = mesh.commit("orders/eu", {"at": 20}, position=20, head=25, sources=[feed])
        mesh.commit("report", "done", sources=[last])
    shown = directory.out("debug", "inspect", "orders/eu")
    for text in ("position  20", "lag       5", '"at": 20', "the value  good", "monotonic",
                 "replaced", "report", "used by", "history"):
        assert text in shown, shown
    found = json.loads(directory.out("debug", "inspect", f"orders/eu@{last.revision - 2}",
                                     "--json"))
    assert (found["value"], found["newest"], found["good"]) == ({"at": 10}, last.revision, True)
    assert found["consumers"] == [{"key": "report", "revision": last.revision + 1,
                                   "used": last.revision}]
    assert found["sources"] == [{"key": "feed", "revision": feed.revision, "state": "replaced",
                                 "now": last.revision - 1}]
    directory("debug", "inspect", "nobody", code=3)
    directory("debug", "inspect", "orders/eu@1", code=3)


def test_damage_to_an_output_shows_at_its_key_and_at_its_run(tmp_path: Path) -> None:
    BROKEN["file-changed"].make(tmp_path)
    call = CommandLine(url_of(tmp_path))
    for key in (RECORD, f"nightly/_runs/kept/{DAY}/extract"):
        done = call("debug", "inspect", key, code=6)
        assert "rows.csv" in done.stdout
        assert "is not what" in done.stderr
    found = json.loads(call.out("debug", "inspect", RECORD, "--json", code=6))
    states = [each["state"] for each in found["verified"]]
    assert states.count("changed") == 1
    assert states.count("good") == len(states) - 1
    assert [each["name"] for each in found["run"]["stages"]] == ["extract", "transform", "load"]
    (tmp_path / "storage").rename(tmp_path / "elsewhere")
    found = json.loads(call.out("debug", "inspect", RECORD, "--json"))
    assert [each["state"] for each in found["verified"]].count("unknown") == 1
    call("debug", "inspect", RECORD, "--storage", str(tmp_path / "elsewhere"), code=6)
    told = json.loads(call.out("debug", "report", "nightly", "--json"))
    assert [each["severity"] for each in told["findings"]] == ["note"]


def test_the_figures_of_a_pipeline_are_told(directory: CommandLine) -> None:
    with ckptmesh.connect(directory.environ["CKPTMESH_URL"]) as mesh:
        linear(mesh)
    found = json.loads(directory.out("debug", "analyze", "nightly", "--json"))
    assert (found["runs"], found["resumes"], found["resume_rate"]) == (1, 2, 1.0)
    assert [(each["stage"], each["error"], each["number"]) for each in found["failures"]] == [
        ("load", "ConnectionError", 1)]
    assert found["records"] == 1_500
    assert found["trends"]["durations"]["verdict"] == "too few runs"
    text = directory.out("debug", "analyze", "nightly")
    assert "2 of 1 run; 1 (100%) came to their end" in text
    assert "durations: too few runs" in text
    directory("debug", "analyze", "nobody", code=3)


def test_a_picture_is_written_in_the_form_that_its_name_says(
    directory: CommandLine, tmp_path: Path
) -> None:
    with ckptmesh.connect(directory.environ["CKPTMESH_URL"]) as mesh:
        linear(mesh)
    for ending, begins in (("png", b"\x89PNG\r\n"), ("dot", b"digraph run {"),
                           ("md", b"---\ntitle:"), ("json", b'{"pipeline": "nightly"')):
        file = tmp_path / f"run.{ending}"
        assert directory.out("debug", "visualize", "nightly", "--output", str(file)) == ""
        assert file.read_bytes().startswith(begins)
    lanes = json.loads(directory.out("debug", "visualize", "nightly", "--json"))["lanes"]
    assert [[each["status"] for each in lane["stages"]] for lane in lanes] == [
        ["completed", "completed", "failed", "pending"],
        ["skipped", "skipped", "interrupted", "pending"],
        ["skipped", "skipped", "completed", "completed"]]
    assert directory.out("debug", "visualize", "nightly").startswith("---\ntitle:")
    directory("debug", "visualize", "nightly", "--run", "nobody", code=3)


def test_without_matplotlib_the_error_names_the_extra(
    directory: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ckptmesh.connect(directory.environ["CKPTMESH_URL"]) as mesh:
        linear(mesh)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    done: Any = directory("debug", "visualize", "nightly", "--format", "png", code=1)
    assert "ckptmesh[debug]" in done.stderr
    assert directory.out("debug", "visualize", "nightly", "--format", "dot")
