"""Tests of the tests: known bugs, planted one by one into a copy of the tree. Each must be caught.

A bug is a small patch in `tests/planted`, headed by what it is (`# bug:`), which promise it breaks
(`# breaks:`) and which tests are likely to find it (`# hint:`). They run first, then everything
else that tests behaviour, until one test fails.

Rule 1: caught means that a test failed, and that its whole file passes without the bug.
Rule 2: a patch that does not apply, or whose code does not even import, is a bad patch: a finding.
Rule 3: a hang counts only where the time limit of a single test has ended it.

    python -m tests.campaign.planted_bugs --start 0 --seconds 600
    python -m tests.campaign.planted_bugs --only 07-lockf-for-flock
    python -m tests.campaign.planted_bugs --table docs/planted-bugs.md
"""

from __future__ import annotations

import argparse
import functools
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from tests.campaign.shares import Share, main

ROOT = Path(__file__).resolve().parents[2]
PATCHES = ROOT / "tests" / "planted"
ROOMS = tuple(room for room in ("tests/unit", "tests/crash", "tests/model", "tests/sim",
                                "tests/fuzz", "tests/conformance", "tests/integration",
                                "tests/cli") if (ROOT / room).exists())
"""Where else to look for a test that fails, quick ones first."""

_TEST_LIMIT = 60  # seconds for a single test
_RUN_LIMIT = 900  # seconds for one run of a room
_COPIED = ("ckptmesh", "tests", "demo", "docs", "bench", "pyproject.toml", "README.md",
           "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "Makefile", "Procfile")
_IMPORTS = """
import pathlib, pkgutil, importlib, ckptmesh
assert pathlib.Path(ckptmesh.__file__).is_relative_to(pathlib.Path.cwd()), ckptmesh.__file__
for module in pkgutil.walk_packages(ckptmesh.__path__, "ckptmesh."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
"""
_BROKEN = ("ImportError", "ModuleNotFoundError", "SyntaxError", "NameError", "UnboundLocalError")


# --- patches ----------------------------------------------------------------------------------


class Hunk(NamedTuple):
    """Lines of a file that stand there exactly once, and what they become."""

    path: str
    old: str
    new: str


class Bug(NamedTuple):
    """A planted bug: `name` is its file's, `hint` the tests to run first."""

    name: str
    bug: str
    breaks: str
    hint: tuple[str, ...]
    hunks: tuple[Hunk, ...]


def bugs(folder: Path = PATCHES) -> list[Bug]:
    """All of them, in the order of their names. Raises `ValueError` for one that is malformed."""
    return [parse(path.stem, path.read_text(encoding="utf-8"))
            for path in sorted(folder.glob("*.patch"))]


def parse(name: str, text: str) -> Bug:
    """A patch: header lines, then a unified diff. Raises `ValueError`."""
    header = dict(re.findall(r"^# (bug|breaks|hint): (\S.*)$", text, re.MULTILINE))
    missing = {"bug", "breaks", "hint"} - header.keys()
    if missing or not text.startswith("# bug: "):
        raise ValueError(f"{name}: its header lacks {', '.join(sorted(missing)) or 'its place'}")
    hunks = tuple(_hunks(name, text.splitlines(keepends=True)))
    if not hunks:
        raise ValueError(f"{name}: it changes nothing")
    return Bug(name, header["bug"], header["breaks"], tuple(header["hint"].split()), hunks)


def _hunks(name: str, lines: Sequence[str]) -> Iterator[Hunk]:
    path, old, new = "", "", ""
    for line in [*lines, "@@"]:
        if line.startswith(("@@", "--- a/")):
            if old != new:
                yield Hunk(path, old, new)
            old = new = ""
        if line.startswith("+++ b/"):
            path = line[len("+++ b/"):].strip()
        elif path and line[0] in " -+" and not line.startswith(("--- a/", "+++ b/")):
            old += line[1:] if line[0] in " -" else ""
            new += line[1:] if line[0] in " +" else ""
        elif line[0] not in "#@-":
            raise ValueError(f"{name}: {line.strip()!r} is no line of a patch")


def changed(bug: Bug, root: Path) -> dict[str, str]:
    """The files that a bug changes, as they then are. Raises `ValueError` where a hunk's lines do
    not stand in its file exactly once."""
    found: dict[str, str] = {}
    for path, old, new in bug.hunks:
        text = found[path] if path in found else (root / path).read_text(encoding="utf-8")
        if text.count(old) != 1:
            raise ValueError(f"{bug.name}: these lines stand {text.count(old)} times in {path}:\n"
                             f"{old}")
        found[path] = text.replace(old, new)
    return found


# --- runs -------------------------------------------------------------------------------------


class Verdict(NamedTuple):
    """What became of a bug: `test` caught it after `seconds`; else `trouble` says why not."""

    bug: Bug
    test: str
    seconds: float
    trouble: str = ""


class _Run(NamedTuple):
    """A run of tests. `failed`: the first that did not pass, with its message; `trouble`: why the
    run says nothing about behaviour."""

    failed: str = ""
    message: str = ""
    trouble: str = ""


def _copy(folder: str) -> Path:
    root = Path(folder) / "tree"
    root.mkdir()
    ignore = shutil.ignore_patterns("__pycache__", ".*")
    for name in _COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, root / name, ignore=ignore)
        elif source.exists():
            shutil.copy(source, root / name)
    return root


def _python(root: Path, *arguments: str) -> tuple[int | None, str]:
    """Run Python in a tree: exit code (None: it took too long) and what it said."""
    process = subprocess.Popen(
        [sys.executable, *arguments], cwd=root, env={**os.environ, "PYTHONPATH": str(root)},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)
    try:
        output, _ = process.communicate(timeout=_RUN_LIMIT)
        return process.returncode, output
    except subprocess.TimeoutExpired:
        return None, ""
    finally:
        with suppress(ProcessLookupError):  # what the tests have left running, too
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _pytest(root: Path, selection: Sequence[str]) -> _Run:
    report = root.parent / "report.xml"
    report.unlink(missing_ok=True)
    code, output = _python(
        root, "-m", "pytest", "-p", "no:cacheprovider", "-x", "-q", f"--timeout={_TEST_LIMIT}",
        f"--junit-xml={report}", "-o", "junit_family=xunit1", *selection)
    if code is None:
        return _Run(trouble=f"{' '.join(selection)} took more than {_RUN_LIMIT} s")
    if code == 0:
        return _Run()
    return _first_failure(report) or _Run(trouble=f"pytest ended with {code}: {output[-400:]}")


def _first_failure(report: Path) -> _Run | None:
    if not report.exists():
        return None
    for case in ElementTree.parse(report).iter("testcase"):
        for trouble in (*case.iter("failure"), *case.iter("error")):
            message = trouble.get("message", "")
            if message == "collection failure" or message.startswith(_BROKEN):
                return _Run(trouble=f"a bad patch: {message}: {(trouble.text or '')[-300:]}")
            return _Run(f"{case.get('file')}::{case.get('name')}", message)
    return None


@functools.cache
def _passes_without(file: str) -> bool:
    """Whether a file of tests passes in the tree as it is."""
    with tempfile.TemporaryDirectory() as folder:
        return _pytest(_copy(folder), [file]) == _Run()


def check(bug: Bug, rooms: Sequence[str] | None = None) -> Verdict:
    """Plant a bug in a copy of the tree and run tests until one fails: those that its patch hints
    at, then `rooms` (None: all)."""
    started = time.monotonic()

    def verdict(test: str = "", trouble: str = "") -> Verdict:
        return Verdict(bug, test, time.monotonic() - started, trouble)

    with tempfile.TemporaryDirectory() as folder:
        root = _copy(folder)
        try:
            for path, text in changed(bug, root).items():
                (root / path).write_text(text, encoding="utf-8")
        except ValueError as error:
            return verdict(trouble=f"it does not apply: {error}")
        code, output = _python(root, "-c", _IMPORTS)
        if code != 0:
            return verdict(trouble=f"a bad patch: it does not import: {output[-300:]}")
        others = [(room,) for room in (ROOMS if rooms is None else rooms)]
        for selection in (bug.hint, *others):
            run = _pytest(root, selection)
            if run.trouble:
                return verdict(trouble=run.trouble)
            if run.failed:
                caught = verdict(run.failed)
                if _passes_without(run.failed.partition("::")[0]):
                    return caught
                return verdict(trouble=f"{run.failed} fails without the bug too")
    return verdict(trouble="no test failed")


def share(start: int, seconds: float) -> Share:
    """Bugs from number `start` on, counted from 0; behind the last there is nothing left."""
    planted = bugs()
    until = time.monotonic() + seconds
    counts, findings, number = {"planted": 0, "caught": 0}, [], start
    while number < len(planted):
        verdict = check(planted[number])
        _say(verdict)
        number += 1
        counts["planted"] += 1
        counts["caught"] += not verdict.trouble
        if verdict.trouble:
            findings.append(f"{verdict.bug.name}: {verdict.trouble} (python -m "
                            f"tests.campaign.planted_bugs --only {verdict.bug.name})")
        if time.monotonic() >= until:
            break
    return Share(number, counts, findings)


def _say(verdict: Verdict) -> None:
    print(f"{verdict.bug.name}: {verdict.trouble or verdict.test} ({verdict.seconds:.1f} s)",
          file=sys.stderr, flush=True)


# --- the table --------------------------------------------------------------------------------


def table(verdicts: Sequence[Verdict]) -> str:
    """The page of planted bugs."""
    caught = sum(not verdict.trouble for verdict in verdicts)
    lines = [
        "# Planted bugs", "",
        "Tests are worth what they catch. Each bug below is a patch in",
        "[tests/planted](../tests/planted), applied alone to a copy of the tree; then tests run",
        "until one fails, and the file of that test must pass without the bug. Made by", "",
        "    python -m tests.campaign.planted_bugs --table docs/planted-bugs.md", "",
        "The seconds are those from planting a bug to the failure, with the starts of Python and",
        "of pytest, on two cores that were busy with other tests as well.", "",
        f"Planted: {len(verdicts)}. Caught: {caught}.", "",
        "| bug | breaks | caught by | seconds |", "|---|---|---|---|",
    ]
    for bug, test, seconds, trouble in verdicts:
        by = f"**not caught**: {trouble.splitlines()[0]}" if trouble else f"`{test}`"
        lines.append(f"| {bug.name[:2]} {bug.bug} | {bug.breaks} | {_cell(by)} | {seconds:.1f} |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _main() -> None:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--only", action="append", default=[])
    parser.add_argument("--table", type=Path)
    chosen, _ = parser.parse_known_args()
    if not chosen.only and not chosen.table:
        main(share, __doc__)
        return
    verdicts = []
    for bug in bugs():
        if not chosen.only or any(bug.name.startswith(name) for name in chosen.only):
            verdicts.append(check(bug))
            _say(verdicts[-1])
    if chosen.table:
        chosen.table.write_text(table(verdicts), encoding="utf-8")
    sys.exit(any(verdict.trouble for verdict in verdicts) or not verdicts)


if __name__ == "__main__":
    _main()
