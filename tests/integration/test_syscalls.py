"""One fault in one system call of a real process; `tests/campaign/syscalls.py` sweeps over all."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ckptmesh.errors import Corrupt
from tests.campaign import store_syscalls, syscalls
from tests.campaign.syscalls import Bench, Case, Ran
from tests.tools import tool

Pick = Callable[[str, str, str], Case]
pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    tool("strace")
    return Bench(tmp_path_factory.mktemp("bench"))


@pytest.fixture(scope="module")
def cases(bench: Bench) -> list[Case]:
    return bench.cases()


@pytest.fixture(scope="module")
def pick(cases: list[Case]) -> Pick:
    """The first case with that phase, call and fault."""
    def first(phase: str, name: str, fault: str) -> Case:
        return next(case for case in cases
                    if (case.call.phase, case.call.name, case.fault) == (phase, name, fault))

    return first


@pytest.mark.parametrize(("phase", "name", "fault", "told"), [
    pytest.param("commit", "fdatasync", "kill", "", marks=pytest.mark.fault(2)),
    pytest.param("compaction", "rename", "kill", "", marks=pytest.mark.fault(5)),
    pytest.param("compactor", "pwrite64", "kill", "CompactionFailed", marks=pytest.mark.fault(5)),
    pytest.param("start_used", "rename", "kill", "", marks=pytest.mark.fault(6)),
    pytest.param("commit", "pwrite64", "short", "-", marks=pytest.mark.fault(13)),
    pytest.param("commit", "pwrite64", "short_eio", "failed", marks=pytest.mark.fault(13)),
    pytest.param("commit", "pwrite64", "eio", "failed", marks=pytest.mark.fault(14)),
    pytest.param("commit", "fdatasync", "eio", "failed", marks=pytest.mark.fault(15)),
    pytest.param("rotation", "fsync", "eio", "failed", marks=pytest.mark.fault(16)),
    pytest.param("start_fresh", "mkdir", "enospc", "ended", marks=pytest.mark.fault(17)),
    pytest.param("compactor", "fdatasync", "enospc", "OutOfSpace", marks=pytest.mark.fault(18)),
])
def test_a_fault_in_a_system_call_loses_nothing_acknowledged_and_lets_nothing_refused_in(
        bench: Bench, pick: Pick, phase: str, name: str, fault: str, told: str) -> None:
    case = pick(phase, name, fault)
    ran = bench.run(case, -1)
    bench.judge(case, ran)
    if told:
        assert told in {word for line in ran.said for word in line}
    else:
        assert ran.code == -signal.SIGKILL


def test_the_judge_sees_what_was_lost_what_was_let_in_and_what_was_hushed_up(
        bench: Bench, pick: Pick) -> None:
    case = pick("commit", "fdatasync", "eio")
    ran = bench.run(case, -1)
    failed = next(line for line in ran.said if line[0] == "failed")

    def judged(*lines: list[str], code: int = ran.code, without: str = "") -> None:
        said = [line for line in ran.said if line[0] != without]
        bench.judge(case, Ran(code, [*said[:-1], *lines, said[-1]], "", True))

    with pytest.raises(AssertionError, match="exit code 0"):
        judged(code=0)
    with pytest.raises(AssertionError, match="acknowledged after a failed log"):
        judged(["try", "9"], ["done", "9", "9"])
    with pytest.raises(AssertionError, match="acknowledged as another revision"):
        judged(["done", failed[1], "77"], without="failed")
    with pytest.raises(AssertionError, match="an I/O error went unheard"):
        bench.judge(case, Ran(0, [["ended", "-"]], "", True))
    with pytest.raises(AssertionError, match="the fault was not met"):
        bench.judge(case, ran._replace(injected=False))
    done = [line for line in ran.said if line[0] == "done"]
    more = [["done", str(n), str(n + 1)] for n in range(len(done), len(done) + 2)]
    with pytest.raises(AssertionError, match="found"):  # more than was ever written
        bench.judge(case, Ran(ran.code, [*done, *more, ran.said[-1]], "", True))
    segment = next((bench.box / "data").glob("wal/*.seg"))
    segment.write_bytes(segment.read_bytes()[:600] + b"x" + segment.read_bytes()[601:])
    with pytest.raises((AssertionError, Corrupt)):
        judged()


def test_a_share_of_the_sweep_finds_nothing(bench: Bench, cases: list[Case]) -> None:
    done = syscalls.sweep(bench, cases, 5, time.monotonic() + 1)
    assert done.findings == []
    assert done.counts["sweep_cases_run"] == done.next - 5 > 0


def test_a_share_of_the_sweep_over_a_store_process_finds_nothing(tmp_path: Path) -> None:
    tool("strace")
    done = store_syscalls.share(0, 1.5)
    assert done.findings == []
    assert done.counts["syscall_faults"] > 0
