"""How a machine is played here: so many examples, the same ones for the same seed."""

from __future__ import annotations

from collections import Counter
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase
from hypothesis.stateful import RuleBasedStateMachine, invariant, run_state_machine_as_test


def play(machine: type[RuleBasedStateMachine], examples: int, steps: int, *, seed: int = 0,
         shrink: bool = True) -> None:
    """Play a machine. Raises what it finds, as the shortest story if `shrink`."""
    phases = (Phase.generate, Phase.shrink) if shrink else (Phase.generate,)
    settings = hypothesis.settings(
        max_examples=examples, stateful_step_count=steps, deadline=None, database=None,
        derandomize=False, phases=phases, print_blob=False, report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck))
    run_state_machine_as_test(hypothesis.seed(seed)(machine), settings=settings)  # type: ignore


def found_by(machine: type[RuleBasedStateMachine], examples: int, steps: int, *, seed: int = 0
             ) -> Exception | None:
    """What a machine finds, not shrunk; None when it finds nothing."""
    try:
        play(machine, examples, steps, seed=seed, shrink=False)
    except Exception as finding:
        return finding
    return None


def counting(machine: Any, name: str, counts: Counter[str]) -> type[RuleBasedStateMachine]:
    """The same machine, which tells how much of it was played: examples, steps, and what else it
    notes in `played`."""
    class Counted(machine):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            counts[f"{name}_examples"] += 1

        @invariant()
        def one_more_step(self) -> None:
            counts[f"{name}_steps"] += 1

        def teardown(self) -> None:
            super().teardown()
            counts.update({f"{name}_{what}": n for what, n in self.played.items()})

    return Counted
