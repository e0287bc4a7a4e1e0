"""Style and structure that a machine can hold: sizes of files, rooms in the map, clean text."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = sorted((ROOT / "ckptmesh").rglob("*.py"))


def test_no_file_of_the_package_is_longer_than_600_lines() -> None:
    long = {str(p.relative_to(ROOT)): n for p in PACKAGE
            if (n := len(p.read_text().splitlines())) > 600}
    assert not long


def test_no_function_of_the_package_is_longer_than_70_lines() -> None:
    import ast

    long = {}
    for path in PACKAGE:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                size = (node.end_lineno or 0) - node.lineno + 1
                if size > 70:
                    long[f"{path.relative_to(ROOT)}:{node.name}"] = size
    assert not long


def test_the_map_names_every_module_and_no_other() -> None:
    named = set(re.findall(r"`(\w+\.py)`", (ROOT / "ARCHITECTURE.md").read_text()))
    there = {p.name for p in (ROOT / "ckptmesh").glob("*.py")} - {"__init__.py", "__main__.py"}
    assert there - named == set(), "modules that ARCHITECTURE.md does not place"
    assert named - there == set(), "modules that ARCHITECTURE.md names and that are not there"


def test_every_module_says_what_it_is_for() -> None:
    silent = [str(p.relative_to(ROOT)) for p in PACKAGE
              if not p.read_text().lstrip().startswith('"""')]
    assert not silent


def test_imports_keep_the_contracts() -> None:
    done = subprocess.run([str(Path(sys.executable).parent / "lint-imports"), "--no-cache"],
                          cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout[-3000:]


def test_importing_the_package_is_cheap_and_pulls_in_no_server_side() -> None:
    code = ("import sys, ckptmesh; "
            "print([m for m in ('zmq', 'asyncio', 'click', 'rich', 'ckptmesh.wal') "
            "if m in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


@pytest.mark.parametrize("pattern", [r"://[a-z0-9.-]*(pypi|pythonhosted|npmjs|debian)",
                                     r'[=" ]/(work|farm|root)/'])
def test_no_tracked_file_names_a_registry_or_a_path_of_one_machine(pattern: str) -> None:
    done = subprocess.run(["git", "grep", "-nIE", pattern, "--", ".",
                           ":!tests/test_architecture.py"],
                          cwd=ROOT, capture_output=True, text=True, timeout=60)
    if done.returncode == 128:
        pytest.skip("not in a git checkout")
    assert done.stdout == ""
