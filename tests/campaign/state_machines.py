"""State machines of hypothesis against the model: the engine over a disk that forgets, and every
way to reach a store.

A number stands for one play: which machine, and the seed of its examples. Played alone

    python -m tests.campaign.state_machines --start NUMBER --seconds 0

what it finds is shrunk, and its story is printed. The engine's plays are the same every time; those
of clients run on real clocks and are so but for what time does to them.
"""

from __future__ import annotations

import sys
import tempfile
import time
import traceback
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from hypothesis.stateful import RuleBasedStateMachine

from tests.campaign.shares import Share, main
from tests.model.client_machines import (
    AsyncMemoryMachine,
    FileMachine,
    MemoryMachine,
    SmallInterfaceMachine,
    cluster_machine,
)
from tests.model.engine_machine import EngineMachine
from tests.model.playing import counting, play


class Play(NamedTuple):
    """So many examples of so many steps. `machine` None: of the cluster that a share starts."""

    name: str
    machine: type[RuleBasedStateMachine] | None
    examples: int
    steps: int


ENGINE = Play("engine", EngineMachine, 10, 50)
PLAYS = (ENGINE, Play("memory", MemoryMachine, 8, 50), ENGINE,
         Play("small_interface", SmallInterfaceMachine, 8, 50), ENGINE,
         Play("async_memory", AsyncMemoryMachine, 4, 40), ENGINE,
         Play("file", FileMachine, 2, 40), ENGINE, Play("cluster", None, 2, 30))


def share(start: int, seconds: float) -> Share:
    """Play from number `start` on; at least one play, and only whole ones."""
    deadline = time.monotonic() + seconds
    counts: Counter[str] = Counter()
    findings: list[str] = []
    number = start
    with ExitStack() as stack:
        cluster: type[RuleBasedStateMachine] | None = None
        while True:
            chosen = PLAYS[number % len(PLAYS)]
            if chosen.machine is None and cluster is None:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
                cluster = cluster_machine(folder, stack)
            machine = counting(chosen.machine or cluster, chosen.name, counts)
            try:
                play(machine, chosen.examples, chosen.steps, seed=number, shrink=seconds <= 0)
            except Exception as found:
                if seconds <= 0:
                    traceback.print_exc(file=sys.stderr)
                findings.append(
                    f"{chosen.name}: {type(found).__name__}: {str(found)[:200]!r}: "
                    f"python -m tests.campaign.state_machines --start {number} --seconds 0")
            number += 1
            if time.monotonic() >= deadline:
                return Share(number, dict(counts), findings)


if __name__ == "__main__":
    main(share, __doc__)
