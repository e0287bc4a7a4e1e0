"""What an operation does to a store that does one thing at a time: what all checkers compare with.

Rule 1: the whole semantics stand here, once; no checker has its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

from ckptmesh.testing.checkers.history import (
    ANYTHING,
    Change,
    Delete,
    Found,
    Get,
    Increment,
    Operation,
    Put,
    Refused,
)

Look = Callable[[str], Found | None]
CONDITIONAL = ("Conflict", "LeaseLost")
"""Refusals that say that a condition did not hold."""


class Played(NamedTuple):
    """What an operation would do at some place: a refusal ("" for none), else its results and what
    it changes."""

    refusal: str
    results: tuple[Any, ...] = ()
    changes: tuple[Change, ...] = ()


def play(operation: Operation, look: Look) -> Played:
    """What it does to the state that `look` shows."""
    for key, revision in operation.expect:
        found = look(key)
        if (found is None) if revision == ANYTHING else (_revision(found) != revision):
            return Played("Conflict")
    return effects(operation, look)


def effects(operation: Operation, look: Look) -> Played:
    """As `play`, whether or not the conditions hold."""
    results: list[Any] = []
    changes: list[Change] = []
    for step in operation.steps:
        found = look(step.key)
        if isinstance(step, Get):
            results.append(found)
        elif isinstance(step, Put):
            results.append(None)
            changes.append(Change(step.key, "put", step.value))
        elif isinstance(step, Increment):
            before = 0 if found is None else found.value
            if type(before) is not int:
                return Played("InvalidValue")
            results.append(before + step.by)
            changes.append(Change(step.key, "put", before + step.by))
        else:
            results.append(found is not None)
            if found is not None:
                changes.append(Change(step.key, "delete" if isinstance(step, Delete) else "touch"))
    return Played("", tuple(results), tuple(changes))


def _revision(found: Found | None) -> int | None:
    return 0 if found is None else found.revision


def told_truly(operation: Operation, played: Played) -> bool:
    """Whether an acknowledged operation was told what it would be told there."""
    if operation.reads:
        return all(same_found(told, real) for told, real
                   in zip(operation.results, played.results, strict=True))
    return all(told is None or told == real
               for told, real in zip(operation.results, played.results, strict=True))


def refused_truly(operation: Operation, look: Look) -> bool:
    """Whether a refused operation would be refused there, and stands what it was told stands."""
    outcome = operation.outcome
    assert isinstance(outcome, Refused)
    if not all(same_found(told, look(key)) for key, told in outcome.stands):
        return False
    if outcome.reason in CONDITIONAL:
        return play(operation, look).refusal == "Conflict"
    return outcome.reason != "InvalidValue" or play(operation, look).refusal == "InvalidValue"


def says_nothing(operation: Operation) -> bool:
    """Whether it neither changed anything nor was told anything about the state."""
    outcome = operation.outcome
    if isinstance(outcome, Refused):
        return not outcome.stands and outcome.reason not in (*CONDITIONAL, "InvalidValue")
    return operation.reads and operation.returned_at is None


def names_of(operation: Operation) -> list[str]:
    """All keys on which its answer depends; some perhaps more than once."""
    outcome = operation.outcome
    told = outcome.stands if isinstance(outcome, Refused) else ()
    return [*operation.keys, *(key for key, _ in operation.expect), *(key for key, _ in told)]


def canonical(value: Any) -> str:
    """Equal for equal values: 1, 1.0 and true are three."""
    return json.dumps(value, sort_keys=True)


def same(one: Any, other: Any) -> bool:
    """Whether two values are equal."""
    if type(one) is type(other) and isinstance(one, int | str):
        return bool(one == other)
    return canonical(one) == canonical(other)


def same_found(told: Found | None, real: Found | None) -> bool:
    """Whether somebody was told what really stands there, as far as he was told."""
    if told is None or real is None:
        return told is real
    return same(told.value, real.value) and told.revision in (None, real.revision)


def same_changes(some: tuple[Change, ...], others: tuple[Change, ...]) -> bool:
    """Whether both change the same keys in the same way, in whatever order."""
    return len(some) == len(others) and all(
        a.key == b.key and a.kind == b.kind and same(a.value, b.value)
        for a, b in zip(sorted(some, key=_by_key), sorted(others, key=_by_key), strict=True))


def _by_key(change: Change) -> str:
    return change.key


def made_of(changes: tuple[Change, ...], revision: int | None) -> dict[str, Found | None]:
    """What they leave under the keys that they change; a touch changes nothing here."""
    return {change.key: Found(change.value, revision) if change.kind == "put" else None
            for change in changes if change.kind != "touch"}
