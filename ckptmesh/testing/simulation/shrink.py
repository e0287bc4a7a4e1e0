"""From a failing plan to a short one: leave out steps for as long as the promise stays broken.

Delta debugging over the plan's steps (Zeller and Hildebrandt, Simplifying and Isolating
Failure-Inducing Input, IEEE TSE 2002): first halves, then quarters, and so on to single steps.
"""

from __future__ import annotations

from collections.abc import Iterator

from ckptmesh.testing.simulation.network import CALM
from ckptmesh.testing.simulation.plan import Plan, Step
from ckptmesh.testing.simulation.run import Report, simulate


def shrink(plan: Plan, most: int = 2_000) -> Report:
    """The report of the shortest plan found, with its story; it takes at most so many simulations.

    Raises `ValueError` when the plan breaks no promise.
    """
    if not simulate(plan).violation:
        raise ValueError(f"the plan of seed {plan.seed} breaks no promise")
    runs = 1

    def fails(candidate: Plan) -> bool:
        nonlocal runs
        runs += 1
        return runs <= most and bool(simulate(candidate).violation)

    for simpler in (plan._replace(weather=CALM), plan._replace(watched=())):
        if fails(simpler):
            plan = simpler
    size = max(1, len(plan.steps) // 2)
    while runs < most:
        for fewer in _without(plan.steps, size):
            candidate = plan._replace(steps=fewer)
            if fails(candidate):
                plan = candidate
                break
        else:
            if size == 1:
                break
            size = max(1, size // 2)
    return simulate(plan, keep=True)


def _without(steps: tuple[Step, ...], size: int) -> Iterator[tuple[Step, ...]]:
    """The steps without one block of this size, the last block first: what happened after the
    promise was broken goes soonest."""
    for begin in range(max(0, len(steps) - size), -size, -size):
        yield steps[: max(0, begin)] + steps[begin + size :]
