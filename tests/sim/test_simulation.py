"""Whole systems by seed: every promise is kept, and a promise that is broken shows."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from ckptmesh import machine, transactions
from ckptmesh.clock import StoreClock
from ckptmesh.leases import Deadlines
from ckptmesh.machine import Machine
from ckptmesh.messages import Rows
from ckptmesh.segment import SegmentFile
from ckptmesh.session import Session
from ckptmesh.testing.checkers import (
    Inconclusive,
    Linearizable,
    NotLinearizable,
    check_linearizable,
)
from ckptmesh.testing.disks import MemoryDisk
from ckptmesh.testing.simulation import Plan, history_of, make, shrink, simulate
from ckptmesh.testing.simulation.clients import Client
from ckptmesh.testing.simulation.judge import Judge
from ckptmesh.testing.simulation.sites import SITES, never_fired
from ckptmesh.wal import Wal
from ckptmesh.watching import Watching


def first_broken(most: int) -> Plan | None:
    """The first plan that breaks a promise."""
    return next((plan for plan in map(make, range(most)) if simulate(plan).violation), None)


@pytest.mark.fault(4)
@pytest.mark.fault(6)
@pytest.mark.fault(30)
@pytest.mark.fault(31)
@pytest.mark.fault(32)
@pytest.mark.fault(35)
@pytest.mark.fault(39)
def test_in_many_worlds_full_of_faults_every_promise_is_kept() -> None:
    fired: Counter[str] = Counter()
    broken = {}
    revisions = 0
    for seed in range(120):
        report = simulate(make(seed))
        fired += report.sites
        revisions += report.revisions
        if report.violation:
            broken[seed] = report.violation
    assert not broken, "to look at one: python -m ckptmesh.testing.simulation SEED --shrink"
    assert revisions > 1_000
    assert len(never_fired(fired)) < len(SITES) / 2


def test_what_clients_saw_is_linearizable_by_itself() -> None:
    verdicts = Counter(type(check_linearizable(history_of(simulate(make(seed)).operations)))
                       for seed in range(30))
    assert NotLinearizable not in verdicts
    assert verdicts[Linearizable] > verdicts[Inconclusive]


def test_a_stale_read_shows_in_what_clients_saw(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the judge, which would tell it first."""
    monkeypatch.setattr(Judge, "answered", lambda self, operation, result, error: (
        setattr(operation, "answered", self._world.now), setattr(operation, "result", result),
        setattr(operation, "error", error)))
    monkeypatch.setattr(machine.queries, "get", lambda state, command, now: Rows(
        state.revision, now, tuple(None for _ in command.keys), False))
    verdicts = [check_linearizable(history_of(simulate(make(seed)).operations))
                for seed in range(10)]
    assert any(isinstance(verdict, NotLinearizable) for verdict in verdicts)


def test_one_seed_has_one_trace_in_every_process() -> None:
    script = ("from ckptmesh.testing.simulation import make, simulate\n"
              "print([simulate(make(seed)).trace for seed in range(30)])")
    traces = {subprocess.run([sys.executable, "-c", script], capture_output=True, text=True,
                             check=True, env={**os.environ, "PYTHONHASHSEED": seed}).stdout
              for seed in ("1", "2")}
    assert len(traces) == 1
    assert len({simulate(make(seed)).trace for seed in range(30)}) == 30


def wall_clock(self: StoreClock) -> int:
    from ckptmesh.testing.simulation.store import Machine as Host  # its clock stands in a closure

    host = self._boot.__self__  # type: ignore[attr-defined]
    assert isinstance(host, Host)
    return host.wall()


def forgetful_begin(self: Wal) -> None:
    """Goes on in a new segment, and leaves in the page cache what it recovered."""
    self._found = self._found._replace(tail=None)
    begin(self)


begin = Wal.begin
first_of_session = Session.__init__


def counting_from_one(self: Session, *args: Any, first: int = 1, **named: Any) -> None:
    first_of_session(self, *args, **named)


BUGS: dict[str, tuple[Any, str, Callable[..., Any]]] = {
    "what was answered once is decided again": (
        Machine, "_known", lambda self, request: None),
    "a sync of the log is left out": (SegmentFile, "sync", lambda self: None),
    "a sync of a directory is left out": (MemoryDisk, "sync_directory", lambda self, path: None),
    "a rename is done before the file is synced": (MemoryDisk, "fdatasync",
                                                   lambda self, handle: None),
    "a gap is not asked about": (Watching, "_gap", lambda self: None),
    "a token is not compared": (transactions, "held",
                                lambda state, key, epoch, revision: state.entries[key]),
    "leases end before their time": (Deadlines, "renew", lambda self, key, deadline: None),
    "store time is the wall's": (StoreClock, "now", wall_clock),
    "requests without a session count from one": (Session, "__init__", counting_from_one),
    "an older epoch's copies are let in": (
        Machine, "_admit",
        lambda self, request: admit(self, request._replace(epoch=self.state.epoch)
                                    if request.epoch < self.state.epoch else request)),
    "late copies below low are let in": (machine._Visit, "advance", lambda self, low: None),
}
admit = Machine._admit


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_breaks_a_promise_in_some_world(
        bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    place, name, instead = BUGS[bug]
    monkeypatch.setattr(place, name, instead)
    assert first_broken(700) is not None


def test_a_failing_story_shrinks_to_a_short_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Machine, "_known", lambda self, request: None)
    plan = first_broken(400)
    assert plan is not None
    report = shrink(plan)
    assert report.violation
    assert len(report.plan.steps) < len(plan.steps)
    assert report.violation in report.story[-1]
    assert simulate(report.plan).trace == report.trace, "it replays alone"


def test_a_plan_that_breaks_nothing_does_not_shrink() -> None:
    with pytest.raises(ValueError, match="breaks no promise"):
        shrink(make(0))


def test_a_client_whose_requests_are_lost_for_good_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Client, "_request", lambda self, payload: None)
    assert "was told" in simulate(make(0)).violation
