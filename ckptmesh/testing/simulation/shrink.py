"""From a failing plan to a short one: leave out what is not needed to break the promise.

Delta debugging over the plan's steps (Zeller and Hildebrandt, Simplifying and Isolating
Failure-Inducing Input, IEEE TSE 2002): first halves, then quarters, and so on to single steps.
A shorter plan counts only if it breaks the same promise: what it tells, but for names and numbers,
begins alike. Else the story of one bug would turn into that of another.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from ckptmesh.testing.simulation.network import CALM
from ckptmesh.testing.simulation.plan import Plan, Step
from ckptmesh.testing.simulation.run import Report, simulate

_WORDS = 4  # of what is told that have to be the same


def shrink(plan: Plan, most: int = 2_000) -> Report:
    """The report of the shortest plan found, with its story; it takes at most so many simulations.

    Raises `ValueError` when the plan breaks no promise.
    """
    broken = _kind(simulate(plan).violation)
    if not broken:
        raise ValueError(f"the plan of seed {plan.seed} breaks no promise")
    runs = 1

    def fails(candidate: Plan) -> bool:
        nonlocal runs
        runs += 1
        return runs <= most and _kind(simulate(candidate).violation) == broken

    size = max(1, len(plan.steps) // 2)
    while runs < most:
        for candidate in (*_simpler(plan), *(plan._replace(steps=fewer)
                                             for fewer in _without(plan.steps, size))):
            if fails(candidate):
                plan = candidate
                break
        else:
            if size == 1:
                break
            size = max(1, size // 2)
    return simulate(plan, keep=True)


def _kind(violation: str) -> list[str]:
    """The first plain words of a violation."""
    return re.findall(r"(?<!\S)[A-Za-z]+[:,;]?(?!\S)", violation)[:_WORDS]


def _simpler(plan: Plan) -> Iterator[Plan]:
    """The plan with calmer weather, or without its last watcher, an idle client, an idle end."""
    if plan.weather != CALM:
        yield plan._replace(weather=CALM)
        yield from (plan._replace(weather=plan.weather._replace(**{field: 0.0}))
                    for field, chance in plan.weather._asdict().items() if chance)
    if plan.watched:
        last = f"w{len(plan.watched)}"
        yield plan._replace(watched=plan.watched[:-1],
                            steps=tuple(step for step in plan.steps if step.who != last))
    if plan.clients > 1 and all(step.who != f"c{plan.clients}" for step in plan.steps):
        yield plan._replace(clients=plan.clients - 1)
    end = plan.steps[-1].at + 1 if plan.steps else 0
    if end < plan.length:
        yield plan._replace(length=end)


def _without(steps: tuple[Step, ...], size: int) -> Iterator[tuple[Step, ...]]:
    """The steps without one block of this size, the last block first: what happened after the
    promise was broken goes soonest."""
    for begin in range(max(0, len(steps) - size), -size, -size):
        yield steps[: max(0, begin)] + steps[begin + size :]
