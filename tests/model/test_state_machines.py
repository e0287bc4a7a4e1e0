"""State machines against the model: a small share of each, and that each can fail."""

from __future__ import annotations

import runpy
import sys
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from textwrap import dedent
from types import ModuleType
from typing import Any
from unittest.mock import patch

import hypothesis
import pytest

from ckptmesh.client import Client
from ckptmesh.errors import Error
from ckptmesh.testing import conformance, stateful
from ckptmesh.testing.stateful import StoreMachine
from ckptmesh.urls import open_transport
from tests.campaign import state_machines
from tests.conformance.broken_stores import (
    BlindCommits,
    DoubledEvents,
    HalfTransactions,
    ImmortalKeys,
    NoFence,
    TextPrefixes,
    WritingReads,
)
from tests.model import broken_engines
from tests.model.client_machines import (
    AsyncMemoryMachine,
    FileMachine,
    MemoryMachine,
    SmallInterfaceMachine,
    cluster_machine,
)
from tests.model.engine_machine import EngineMachine
from tests.model.playing import counting, found_by, play

SEED = 3  # any does; with this one all of them are found soon


@pytest.mark.fault(1)
@pytest.mark.fault(2)
@pytest.mark.fault(3)
@pytest.mark.fault(5)
@pytest.mark.fault(6)
@pytest.mark.fault(21)
@pytest.mark.fault(26)
@pytest.mark.fault(28)
@pytest.mark.fault(29)
@pytest.mark.fault(32)
@pytest.mark.fault(40)
@pytest.mark.fault(41)
@pytest.mark.fault(43)
def test_a_store_is_its_model_over_every_end_compaction_restore_and_clock() -> None:
    counts: Counter[str] = Counter()
    play(counting(EngineMachine, "engine", counts), 20, 35)
    for what in ("ends", "whole", "absent", "restores", "compactions"):
        assert counts[f"engine_{what}"] > 0, counts


@pytest.mark.parametrize(("machine", "examples", "steps"), [
    (MemoryMachine, 10, 30), (AsyncMemoryMachine, 4, 20), (SmallInterfaceMachine, 5, 25),
    (FileMachine, 2, 20)], ids=lambda given: getattr(given, "__name__", ""))
def test_a_store_is_its_model_through_its_public_interface(
        machine: type[StoreMachine], examples: int, steps: int) -> None:
    play(machine, examples, steps)


@pytest.mark.fault(1)
@pytest.mark.fault(4)
def test_a_store_behind_a_broker_is_its_model_however_often_it_is_killed(tmp_path: Path) -> None:
    with ExitStack() as stack:
        counts: Counter[str] = Counter()
        machine = counting(cluster_machine(tmp_path, stack), "cluster", counts)
        for seed in range(6):
            play(machine, 4, 12, seed=seed)
            if counts["cluster_kills"]:
                return
    raise AssertionError(f"the store was never killed: {counts}")


@pytest.mark.parametrize("fault", broken_engines.FAULTS, ids=lambda fault: fault.__name__)
def test_a_fault_planted_in_the_store_is_found(fault: broken_engines.Fault) -> None:
    with fault():
        found = found_by(EngineMachine, 400, 40, seed=SEED)
    assert isinstance(found, AssertionError | Error), repr(found)


@pytest.mark.parametrize("kind", [BlindCommits, NoFence, TextPrefixes, WritingReads, ImmortalKeys,
                                  HalfTransactions, DoubledEvents])
def test_a_client_with_a_fault_is_found(kind: type[Client]) -> None:
    class Machine(StoreMachine):
        def connect(self) -> Any:
            return kind(open_transport("memory://", 5.0))

    assert isinstance(found_by(Machine, 200, 30, seed=SEED), AssertionError)


def test_what_is_found_is_told_as_a_story() -> None:
    with broken_engines.ends_leases_while_its_disk_is_slow():
        finding = found_by(EngineMachine, 400, 40, seed=SEED)
    assert "state.commit_while_the_disk_is_slow(" in "\n".join(finding.__notes__)


def test_the_example_of_the_manual_runs() -> None:
    """Few lines make a machine for a store of one's own."""
    text = stateful.__doc__ or ""
    example = dedent(text[text.index("    import ckptmesh"):text.index("`connect` makes")])
    made: dict[str, Any] = {}
    exec(example, made)
    played = []
    connect = made["MyMachine"].connect
    made["MyMachine"].connect = lambda self: played.append(connect(self)) or played[-1]
    case = made["TestMyStore"]
    case.settings = hypothesis.settings(max_examples=3, stateful_step_count=5, database=None,
                                      deadline=None)
    case("runTest").debug()
    assert len(played) >= 3


@pytest.mark.parametrize(("part", "needed"), [(stateful, "hypothesis"), (conformance, "pytest")])
def test_without_what_a_part_needs_the_error_says_what_to_install(
    part: ModuleType, needed: str
) -> None:
    gone = {name: None for name in sys.modules if name.partition(".")[0] == needed}
    with patch.dict(sys.modules, gone), pytest.raises(ImportError, match=f"needs {needed}"):
        runpy.run_path(part.__file__ or "")


def test_a_wait_fails_when_the_patience_of_the_machine_is_over() -> None:
    class Hasty(SmallInterfaceMachine):
        patience = 0.05

    machine = Hasty()
    try:
        with pytest.raises(AssertionError, match=r"in 0\.05 s it never came true: it rains"):
            machine.until(lambda: False, "it rains")
    finally:
        machine.teardown()


def test_a_share_of_the_campaign_tells_what_it_played_and_plays_the_same_again() -> None:
    first, second = state_machines.share(0, 0.01), state_machines.share(0, 0.01)
    assert first == second
    assert (first.next, first.findings) == (1, [])
    assert first.counts["engine_examples"] > 5
    assert first.counts["engine_ends"] > 5


def test_a_finding_of_the_campaign_names_the_command_that_shows_it_again() -> None:
    with broken_engines.checks_conditions_after_the_log():
        [finding] = state_machines.share(0, 0.01).findings
    assert "python -m tests.campaign.state_machines --start 0 --seconds 0" in finding
