"""The README does what it says: its code is taken from the page and run."""

from __future__ import annotations

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

from ckptmesh import errors, protocol
from tests.cluster import Cluster, wait_until

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
ENV = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
MESH = [sys.executable, "-m", "ckptmesh"]


def blocks(language: str) -> list[str]:
    """Fenced blocks of the README in one language."""
    found = re.findall(r"^```(\w*)\n(.*?)^```", README, re.M | re.S)
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


def test_every_command_of_the_readme_runs(tmp_path: Path, cluster: Cluster) -> None:
    (page,) = [block for block in blocks("") if "ckptmesh up" in block]
    commands = [shlex.split(line, comments=True)[1:] for line in page.splitlines()]
    assert commands.pop(0) == ["up"]
    env = {**ENV, "CKPTMESH_URL": cluster.url, "CKPTMESH_DATA": str(cluster.data)}
    for command in commands:
        if command[0] == "watch":
            _watch(command, env, cluster)
            continue
        done = subprocess.run([*MESH, *command], env=env, capture_output=True, text=True,
                              timeout=60, cwd=tmp_path)
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        if command[:2] == ["state", "get"]:
            assert done.stdout == "42\n"


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
    assert [int(op) for op, _ in operations] == list(range(len(protocol.OPS)))
    assert [name.replace("-", "") for _, name in operations] == [
        cls.__name__.lower() for cls in protocol.OPS]
    page = page[page.index("## 5. "):page.index("## 7. ")]
    told = {int(code): name for code, name in re.findall(r"\b(\d\d?) (?:\| )?([A-Z]\w+)", page)}
    for codes, names in re.findall(r"^\| (\d+, \d+) \| (\w+, \w+) \|", page, re.M):
        told.update(zip(map(int, codes.split(", ")), names.split(", "), strict=True))
    travel = {code: cls.__name__ for code, cls in errors.BY_CODE.items() if code < 52}
    assert told == travel


def test_every_fault_has_a_test_or_is_named_as_having_none() -> None:
    page, _, without = (ROOT / "docs" / "faults.md").read_text().partition("## Without a test")
    rows = re.findall(r"^\| (\d[\d, ]*) \|", page, re.M)
    faults = {int(n) for row in rows for n in row.split(",")}
    answered = {int(n) for path in (ROOT / "tests").rglob("test_*.py")
                for n in re.findall(r"^@pytest\.mark\.fault\((\d+)\)", path.read_text(), re.M)}
    bare = {int(n) for n in re.findall(r"\d+", without.splitlines()[2].partition(".")[0])}
    assert answered - faults == {61}, "a stranger's copy; the rest of security does not exist"
    assert faults - answered == bare
