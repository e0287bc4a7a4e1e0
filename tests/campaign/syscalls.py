"""A fault in every system call that changes a store's directory, one at a time, by `strace`.

A script with an embedded store (`subject.py`) is first run undisturbed, and each call that changes
its directory is counted: starting on a fresh directory and on one whose last user was killed and
left a torn tail, commits, a rotation, a compaction and its compactor process, closing. Then, for
each of these calls, the script runs again with one fault in that very call:

    eio, enospc          the call fails, once
    eio_on, enospc_on    it and all further calls of its name fail
    kill                 the process is killed as it enters the call
    short                a `pwrite64` writes a part and says so
    short_eio, short_enospc, short_kill   and the call that goes on with the rest has that fault

`strace` cannot shorten a write: `retval=` only claims bytes that were never written. So the short
ones are made in the process, which asks the system for fewer bytes (`subject.shorten`).

After each run it must hold: nothing but an error of the catalogue came out; the directory is CLEAN,
TORN or no store yet; an ordinary start finds every acknowledged operation, no refused one, and
the one under way whole or not at all; the store then takes commits and leaves no unfinished file.

The cases are run in an order that is mixed but always the same; case N of `--start N` is one of
them, and after the last the sweep begins again, with another length of the short writes.

    python -m tests.campaign.syscalls --start 0 --seconds 600
"""

from __future__ import annotations

import os
import random
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import ckptmesh
from ckptmesh import errors
from ckptmesh.disk import RealDisk
from ckptmesh.recovery import CLEAN, TORN
from ckptmesh.survey import open_anywhere, verify
from tests.campaign.shares import Share, main
from tests.campaign.subject import applied, operate

ROOT = Path(__file__).parents[2]
CALLS = ("pwrite64", "fdatasync", "fsync", "rename", "unlink", "ftruncate", "mkdir")
# Calls that would change a directory too, and that the store does not use there: a sweep of CALLS
# would miss them, so the undisturbed run must not show them.
OTHERS = ("write", "writev", "pwritev", "pwritev2", "renameat", "renameat2", "unlinkat", "rmdir",
          "truncate", "fallocate", "link", "linkat", "symlink", "mkdirat", "copy_file_range",
          "sendfile", "sync_file_range")
FAULTS = ("eio", "enospc", "eio_on", "enospc_on", "kill")
SHORT = ("short", "short_eio", "short_enospc", "short_kill")
CUTS = (-1, 1, 300)  # bytes that a short write writes; below 0: all but so many
# Which phases of which run are swept, and what they are called in the figures.
PHASES = {
    "fresh": {"start": "start_fresh", "commit": "commit", "rotation": "rotation", "close": "close"},
    "used": {"start": "start_used"},
    "compact": {"compaction": "compaction"},
    "compactor": {"": "compactor"},
}
_CALL = re.compile(r"^(\d+) +(\w+)\((.*)")
_PATH = re.compile(r'<([^>]*)>|"((?:[^"\\]|\\.)*)"')
_LIMIT = 60.0  # seconds for one run; it takes one


class Call(NamedTuple):
    """A call of the undisturbed run: the `index`-th of its name, on the file `target`. `quiet`: one
    that may fail without anybody being told."""

    phase: str
    name: str
    index: int
    target: str
    quiet: bool


class Case(NamedTuple):
    """A run to be disturbed, and how."""

    scenario: str
    call: Call
    fault: str

    def __str__(self) -> str:
        call = self.call
        return f"{self.fault} in {call.name} {call.index} ({call.phase}, {call.target})"


class Ran(NamedTuple):
    """What came of a run: exit code, what it said, whether the fault was met."""

    code: int
    said: list[list[str]]
    trouble: str
    injected: bool


class Bench:
    """A place to run cases in: directories to begin with, and what is in them."""

    def __init__(self, box: Path) -> None:
        self.box = box
        self.env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONPYCACHEPREFIX": str(box / "pyc")}
        self.env.pop("PYTHONDONTWRITEBYTECODE", None)  # compiled now, not in every run
        self._subject("leave", box / "left")
        self.env["PYTHONDONTWRITEBYTECODE"] = "1"  # that would be more calls of these names
        shutil.copytree(box / "left", box / "used")
        tear(box / "used")
        shutil.copytree(box / "left", box / "look")
        with ckptmesh.connect(f"file:{box / 'look'}") as store:
            self.before, self.revision = contents(store), store.hello().revision

    def _subject(self, scenario: str, data: Path, *wrap: str, **env: str) -> Any:
        return subprocess.run(
            [*wrap, sys.executable, "-m", "tests.campaign.subject", scenario, str(data)],
            cwd=self.box, env={**self.env, **env}, capture_output=True, text=True, timeout=_LIMIT)

    def _directory(self, scenario: str) -> Path:
        data = self.box / "data"
        shutil.rmtree(data, ignore_errors=True)
        if scenario != "fresh":
            shutil.copytree(self.box / ("used" if scenario == "used" else "left"), data)
        return data

    # --- the undisturbed run -------------------------------------------------------------------

    def cases(self) -> list[Case]:
        """Every case of one sweep, in its order."""
        found = [
            Case(scenario, call, fault)
            for scenario in PHASES for call in self.calls(scenario)
            for fault in FAULTS + (SHORT if call.name == "pwrite64" else ())
        ]
        rotation = {case.call.name for case in found if case.call.phase == "rotation"}
        assert {"rename", "ftruncate", "fsync"} <= rotation, "no segment was filled"
        random.Random(1).shuffle(found)
        return found

    def calls(self, scenario: str) -> list[Call]:
        """The calls of an undisturbed run that change its directory, in the phases to sweep."""
        data, trace = self._directory(scenario), self.box / "trace"
        strace = ["strace", "-f", "-y", "-s", "200", "-o", str(trace),
                  "-e", "trace=" + ",".join(CALLS + OTHERS)]
        if scenario == "compactor":
            done = self._compactor(data, [*strace, "-D"])
        else:
            done = self._subject(scenario, data, *strace, "--seccomp-bpf")
        assert done.returncode == 0, done.stderr
        assert "compaction made" in done.stdout or scenario in ("fresh", "used"), done.stdout
        return parse(trace, str(data), PHASES[scenario])

    def _compactor(self, data: Path, strace: list[str], **env: str) -> Any:
        """Run `compactor` with its compactor process under strace. With -D that process stays the
        child of its store, and strace is its grandchild."""
        wrapper = self.box / "compactor"
        settings = [f"{name}={value}" for name, value in env.items()]  # not for its store
        command = shlex.join(["env", *settings, *strace, sys.executable])
        wrapper.write_text(f'#!/bin/sh\nexec {command} -m tests.campaign.subject "$@"\n')
        wrapper.chmod(0o700)
        done = self._subject("compactor", data, SUBJECT_COMPACTOR=str(wrapper))
        settled(self.box / "trace")
        return done

    # --- a disturbed run -----------------------------------------------------------------------

    def run(self, case: Case, cut: int) -> Ran:
        """One run with its fault."""
        data, trace = self._directory(case.scenario), self.box / "trace"
        trace.unlink(missing_ok=True)
        index, fault, env = case.call.index, case.fault, {}
        if fault.startswith("short"):
            env["SUBJECT_SHORT"] = f"{index}:{cut}"
            index, fault = index + 1, fault[6:]
        strace = disturbing(trace, case.call.name, index, fault)
        if case.scenario == "compactor":
            done = self._compactor(data, [*strace, "-D"], **env)
        else:
            done = self._subject(case.scenario, data, *strace, **env)
        return Ran(done.returncode, [line.split() for line in done.stdout.splitlines()],
                   done.stderr, was_met(trace, fault) and (not env or "shortened" in done.stderr))

    # --- the judge -----------------------------------------------------------------------------

    def judge(self, case: Case, ran: Ran) -> None:
        """Raises `AssertionError` where a promise was broken."""
        data = self.box / "data"
        assert ran.injected, f"the fault was not met: {ran}"
        judge_words(case, ran)
        state, revision = (self.before, self.revision) if case.scenario != "fresh" else ({}, 0)
        for line in ran.said:
            if line[0] == "done":
                state, revision = applied(state, int(line[1])), revision + 1
                assert int(line[2]) == revision, f"acknowledged as another revision: {line}"
        allowed = [(revision, state)]
        doubt = under_way(ran.said)
        if doubt is not None:
            allowed.append((revision + 1, applied(state, doubt)))
        if case.scenario == "fresh" and revision == 0 and not (data / "MANIFEST").exists():
            verdict = CLEAN  # it did not get as far as a store
        else:
            verdict = verify(str(data)).verdict
        assert verdict in (CLEAN, TORN), verdict
        judge_start(data, allowed)


def disturbing(trace: Path, name: str, index: int, fault: str) -> list[str]:
    """The command for a run with a fault in the `index`-th call `name`; "" is none."""
    strace = ["strace", "-f", "-o", str(trace), "-e", f"trace={name}"]
    if fault:
        kind, _, on = fault.partition("_")
        what = "signal=KILL" if kind == "kill" else f"error={kind.upper()}"
        strace += ["-e", f"inject={name}:{what}:when={index}{'+' if on else ''}"]
    if fault != "kill":
        strace.append("--seccomp-bpf")  # three times as fast; signals are not injected with it
    return strace


def was_met(trace: Path, fault: str) -> bool:
    """Whether a run came to its fault, by its trace."""
    if not fault:
        return True
    return ("killed by SIGKILL" if fault == "kill" else "(INJECTED)") in settled(trace)


def judge_start(data: Path, allowed: list[tuple[int, dict[str, Any]]]) -> None:
    """An ordinary start finds one of these (revision, contents), goes on from there, and leaves a
    clean directory. Raises `AssertionError`."""
    with ckptmesh.connect(f"file:{data}") as store:
        found = store.hello().revision, contents(store)
        assert found in allowed, f"found {found}, allowed {allowed}"
        operate(store, 1_000)
    with ckptmesh.connect(f"file:{data}") as store:
        after = store.hello().revision, contents(store)
    assert after == (found[0] + 1, applied(found[1], 1_000)), f"found {after} after {found}"
    assert verify(str(data)).verdict == CLEAN
    assert not list(data.rglob("*.tmp")), "unfinished files stay"


def judge_words(case: Case, ran: Ran) -> None:
    """What the run said and how it ended must fit the fault. Raises `AssertionError`."""
    words = [line[0] for line in ran.said]
    fault = case.fault.removeprefix("short").removeprefix("_")
    if fault == "kill" and case.scenario != "compactor":
        assert ran.code == -9, f"not killed: {ran}"
        return
    assert words[-1:] == ["ended"], f"no error of the catalogue: {ran.trouble}"
    name = ran.said[-1][1]
    cls = getattr(errors, name, None)
    assert ran.code == (cls.exit_code if cls else 0), f"exit code {ran.code} for {name}"
    if case.scenario == "compactor":
        assert name == "-", f"a compactor took its store with it: {name}"
        made = [line[1] for line in ran.said if line[0] == "compaction"]
        assert made[1] == "made", f"no compaction after one that failed: {made}"
        assert fault == "" or made[0] != "made" or case.call.name == "unlink", "nothing failed"
    elif fault.startswith("eio") and not case.call.quiet:
        assert name != "-" or ["compaction", "Poisoned"] in ran.said, "an I/O error went unheard"
    broken = next((at for at, line in enumerate(ran.said) if _breaks(line)), len(words))
    assert "done" not in words[broken:], "acknowledged after a failed log"


def _breaks(line: list[str]) -> bool:
    return line[0] == "failed" or line == ["compaction", "Poisoned"]


def under_way(said: list[list[str]]) -> int | None:
    """The operation whose outcome is open: the one that met the failure of the log, or the last
    without a word. Those after the failure never reached it."""
    broken = next((line for line in said if _breaks(line)), None)
    if broken is not None:
        return int(broken[1]) if broken[0] == "failed" else None
    told = {line[1] for line in said if line[0] in ("done", "refused")}
    return next((int(line[1]) for line in said if line[0] == "try" and line[1] not in told), None)


def parse(trace: Path, data: str, phases: dict[str, str]) -> list[Call]:
    """The calls of CALLS in a trace, of its first process, in the phases named. Raises
    `AssertionError` for another call that changes a file in the directory `data`."""
    counts: Counter[str] = Counter()
    found: list[Call] = []
    phase, first = "", ""
    for pid, name, paths, rest in traced(trace):
        first = first or pid
        here = bool(paths) and paths[0].startswith(data)
        if name in OTHERS:
            assert not here, f"a call that no fault is injected into: {name} {paths}"
            if pid == first and '"phase ' in rest:
                phase = rest.partition('"phase ')[2].partition("\\n")[0]
        elif pid == first:
            assert here or name in ("fsync", "mkdir"), f"outside the directory: {name} {paths}"
            counts[name] += 1
            if phase in phases:
                target = paths[0][len(data) + 1:]
                # LOCK holds a pid, for people only. The frame that closing begins with only says
                # that no more time was used than went by.
                quiet = target == "LOCK" or (
                    phase == "close" and [call.phase for call in found].count("close") < 2)
                found.append(Call(phases[phase], name, counts[name], target, quiet))
    return found


def traced(trace: Path) -> Iterator[tuple[str, str, list[str], str]]:
    """The calls in a trace with paths (-y) of several processes (-f), in the order they were
    entered: process, name, the paths in the first argument, all arguments as they stand there."""
    for line in _text(trace).splitlines():
        match = _CALL.match(line)
        if match is not None:
            paths = [a or b for a, b in _PATH.findall(match[3].partition(", ")[0])]
            yield match[1], match[2], paths, match[3]


def settled(trace: Path) -> str:
    """A trace whose strace ends a moment after what it traced, once it has."""
    until = time.monotonic() + 5
    while not _text(trace).rstrip().endswith("+++") and time.monotonic() < until:
        time.sleep(0.005)
    return _text(trace)


def tear(data: Path) -> None:
    """Leave a torn tail: bytes of no frame after the last one of the segment being written."""
    path = max(data.glob("wal/*.seg"))
    _, scan = open_anywhere(RealDisk(), str(data), f"wal/{path.name}", sealed=False)
    end = [frame.end for frame in scan][-1]
    with path.open("r+b") as file:
        file.seek(end)
        file.write(b"\xa5" * 700)
    assert verify(str(data)).verdict == TORN


def contents(store: Any) -> dict[str, Any]:
    """Key → value, as `subject.applied` tells it."""
    return {row.key: {"n": row.value["n"], "pad": ""} for row in store.list()}


def _text(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""


def share(start: int, seconds: float) -> Share:
    """Cases `start` and on, of sweeps one after the other."""
    until = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as box:
        bench = Bench(Path(box))
        return sweep(bench, bench.cases(), start, until)


def sweep(bench: Bench, cases: list[Case], start: int, until: float) -> Share:
    """A share, ending when `time.monotonic()` is `until`."""
    counts: Counter[str] = Counter()
    findings: list[str] = []
    at = start
    while at == start or time.monotonic() < until:
        case, turn = cases[at % len(cases)], at // len(cases)
        try:
            bench.judge(case, bench.run(case, CUTS[turn % len(CUTS)]))
        except (AssertionError, errors.Error, subprocess.TimeoutExpired) as error:
            findings.append(f"{case}: {type(error).__name__}: {error}"[:1_000] + " — python -m "
                            f"tests.campaign.syscalls --start {at} --seconds 0")
        counts[f"syscall_faults_{case.call.phase}_{case.fault}"] += 1
        counts["short_writes" if case.fault == "short" else "syscall_faults"] += 1
        at += 1
    counts["sweep_cases_run"] = at - start
    counts["sweep_complete"] = at // len(cases) - start // len(cases)
    return Share(at, dict(counts), findings)


if __name__ == "__main__":
    main(share, __doc__)
