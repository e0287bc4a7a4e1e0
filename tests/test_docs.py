"""The pages do what they say: their code is taken from them and run."""

from __future__ import annotations

import ast
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import ckptmesh
from ckptmesh import commands, errors
from tests import faults
from tests.cluster import Cluster, wait_until

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
ENV = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
MESH = [sys.executable, "-m", "ckptmesh"]


def blocks(language: str, page: str = README) -> list[str]:
    """Fenced blocks of a page in one language."""
    found = re.findall(r"^```(\w*)\n(.*?)^```", page, re.M | re.S)
    return [text for name, text in found if name == language]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path) as running:
        yield running


def test_the_first_example_goes_on_where_it_was_killed(tmp_path: Path) -> None:
    script = tmp_path / "job.py"
    script.write_text(blocks("python")[0])
    out = tmp_path / "out"
    with out.open("wb") as stream:
        job = subprocess.Popen([sys.executable, script], cwd=tmp_path, env=ENV, stdout=stream)
        try:
            wait_until(lambda: out.read_text().count("\n") >= 5, what="five records")
        finally:
            job.send_signal(signal.SIGKILL)
            job.wait()
    first = [int(line.split()[-1]) for line in out.read_text().splitlines()]
    done = subprocess.run([sys.executable, script], cwd=tmp_path, env=ENV, capture_output=True,
                          text=True, timeout=100, check=True)
    second = [int(line.split()[-1]) for line in done.stdout.splitlines()]
    assert first == list(range(len(first)))
    assert second[0] in (first[-1], first[-1] + 1), "the last record may be done again, no other"
    assert second[-1] == 99


def test_the_example_of_a_served_mesh_runs(tmp_path: Path, cluster: Cluster) -> None:
    script = tmp_path / "served.py"
    script.write_text("import ckptmesh\n" + blocks("python")[1])
    env = {**ENV, "CKPTMESH_URL": cluster.url}
    done = subprocess.run([sys.executable, script], cwd=tmp_path, env=env, capture_output=True,
                          text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "put orders 2\n"


@pytest.mark.parametrize(("told", "code"), [("found.value", 0), ("41", 1)])
def test_the_example_of_a_history_runs_and_fails_for_a_wrong_answer(
    tmp_path: Path, told: str, code: int
) -> None:
    (example,) = blocks("python", (ROOT / "docs" / "proof.md").read_text())
    script = tmp_path / "history.py"
    script.write_text(example.replace("found.value", told))
    done = subprocess.run([sys.executable, script], cwd=tmp_path, env=ENV, capture_output=True,
                          text=True, timeout=60)
    assert done.returncode == code, done.stderr
    assert ("AssertionError" in done.stderr) is bool(code)


def test_every_command_of_the_readme_runs(tmp_path: Path, cluster: Cluster) -> None:
    (page,) = [block for block in blocks("") if "ckptmesh up" in block]
    commands = [shlex.split(line, comments=True)[1:] for line in page.splitlines()]
    assert commands.pop(0) == ["up"]
    env = {**ENV, "CKPTMESH_URL": cluster.url, "CKPTMESH_DATA": str(cluster.data)}
    load = tmp_path / "load.sh"
    load.write_text('#!/bin/sh\necho 7 > "$CKPTMESH_NEXT_FILE"\n')
    load.chmod(0o755)
    for command in commands:
        if command[0] == "watch":
            _watch(command, env, cluster)
            continue
        done = subprocess.run([*MESH, *command], env=env, capture_output=True, text=True,
                              timeout=60, cwd=tmp_path)
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        if command[:2] == ["state", "get"]:
            assert done.stdout == "42\n"
    with ckptmesh.connect(cluster.url) as mesh:
        assert mesh.value("nightly") == 7, "what the command wrote is the checkpoint"


def _watch(command: list[str], env: dict[str, str], cluster: Cluster) -> None:
    watcher = subprocess.Popen([*MESH, *command, "--json"], env=env, stdout=subprocess.PIPE)
    try:
        stop = time.monotonic() + 30
        assert watcher.stdout is not None
        os.set_blocking(watcher.stdout.fileno(), False)
        seen = b""
        while b"orders" not in seen:
            assert time.monotonic() < stop, "the watch saw nothing"
            subprocess.run([*MESH, "state", "set", "orders", "42"], env=env, check=True,
                           capture_output=True, timeout=30)
            seen += watcher.stdout.read() or b""
    finally:
        watcher.send_signal(signal.SIGINT)
        watcher.wait(20)


def test_links_between_pages_lead_somewhere() -> None:
    broken = []
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            if not (page.parent / target).exists():
                broken.append(f"{page.name}: {target}")
    assert not broken


def test_the_page_of_the_wire_names_every_operation_and_code() -> None:
    page = (ROOT / "docs" / "protocol.md").read_text()
    operations = re.findall(r"^\| (\d+) \| ([a-z-]+) \| `\[", page, re.M)
    assert [int(op) for op, _ in operations] == list(range(len(commands.OPS)))
    assert [name.replace("-", "") for _, name in operations] == [
        cls.__name__.lower() for cls in commands.OPS]
    page = page[page.index("## 5. "):page.index("## 7. ")]
    told = {int(code): name for code, name in re.findall(r"\b(\d\d?) (?:\| )?([A-Z]\w+)", page)}
    for codes, names in re.findall(r"^\| (\d+, \d+) \| (\w+, \w+) \|", page, re.M):
        told.update(zip(map(int, codes.split(", ")), names.split(", "), strict=True))
    travel = {code: cls.__name__ for code, cls in errors.BY_CODE.items() if code < 52}
    assert told == travel


def test_the_page_of_faults_is_made_from_the_tests_and_every_fault_has_one() -> None:
    made = faults.page(faults.answers())
    assert faults.PAGE.read_text() == made, "run `python -m tests.faults`"
    assert re.findall(r"^\| (\d+) \|", made, re.M) == [str(number) for number in faults.ROWS]
    assert sorted(faults.ROWS) == [*range(1, 56), 64]


_MARKED = """
import pytest
pytestmark = [pytest.mark.timeout(9), pytest.mark.fault(1)]
CASES = [pytest.param(1, marks=pytest.mark.fault(2)), 3]

@pytest.mark.fault(3)
@pytest.mark.fault(4)
def test_a(): ...

@pytest.mark.parametrize("case", CASES)
async def test_b(case): ...

@pytest.mark.fault(5)
class TestC:
    @pytest.mark.parametrize("x", [pytest.param(1, marks=[pytest.mark.fault(6)])])
    def test_d(self, x): ...

@pytest.mark.fault(7)
def helper(): ...
"""


def test_markers_are_found_on_modules_classes_tests_and_parameters() -> None:
    assert list(faults.marked(ast.parse(_MARKED))) == [
        ("test_a", {1, 3, 4}), ("test_b", {1, 2}), ("test_d", {1, 5, 6})]
    unmarked = _MARKED.replace("pytest.mark.fault(1)", "pytest.mark.slow(1)")
    assert list(faults.marked(ast.parse(unmarked + "def test_e(): ...")))[-1][0] == "test_d"


def test_a_fault_without_a_test_and_a_marker_of_no_fault_keep_the_page_from_being_made() -> None:
    tests = faults.answers()
    with pytest.raises(ValueError, match=r"no test answers for the faults \[17\]"):
        faults.page({number: found for number, found in tests.items() if number != 17})
    with pytest.raises(ValueError, match=r"faults that are none: \[99\]"):
        faults.page({**tests, 99: tests[1]})


def test_a_row_shows_a_few_tests_of_different_files_and_counts_the_others() -> None:
    tests = {number: [faults.Answer("tests/x.py", "test_one")] for number in faults.ROWS}
    tests[1] = [faults.Answer(f"tests/{file}.py", f"test_{name}")
                for file, name in ("aa", "ab", "ac", "bd", "ce")]
    row = re.search(r"^\| 1 \|.*$", faults.page(tests), re.M)
    assert row is not None
    assert row[0].endswith("| [a](../tests/a.py); [d](../tests/b.py); [e](../tests/c.py); "
                           "and 2 more |")
