"""Random histories of a store that is right, played one event at a time; and a search through all
orders of a history, to compare a checker with. Both have a store of their own in a few lines."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any, NamedTuple

from hypothesis import strategies as st

from ckptmesh.testing.checkers import (
    ANYTHING,
    Change,
    Commit,
    Delete,
    Found,
    Get,
    Increment,
    Ok,
    Operation,
    Put,
    Refused,
)

Standing = dict[str, Found]
REFUSALS = ("Conflict", "InvalidValue")
CHANCES = st.integers(0, 2**32).map(random.Random)  # much quicker than what draws each number


def do(standing: Standing, operation: Operation, name: int | None
       ) -> tuple[str, list[Any], list[Change]]:
    """Refusal, results and changes; `standing` becomes what it makes, its version so named."""
    for key, revision in operation.expect:
        there = standing[key].revision if key in standing else 0
        if revision == ANYTHING:
            if key not in standing:
                return "Conflict", [], []
        elif revision != there:
            return "Conflict", [], []
    if any(isinstance(step, Increment) and step.key in standing
           and type(standing[step.key].value) is not int for step in operation.steps):
        return "InvalidValue", [], []
    results: list[Any] = []
    changes = []
    for step in operation.steps:
        if isinstance(step, Get):
            results.append(standing.get(step.key))
        elif isinstance(step, Put | Increment):
            value = step.value if isinstance(step, Put) else (
                standing[step.key].value if step.key in standing else 0) + step.by
            results.append(None if isinstance(step, Put) else value)
            changes.append(Change(step.key, "put", value))
            standing[step.key] = Found(value, name)
        else:
            results.append(step.key in standing)
            if step.key in standing:
                changes.append(Change(step.key, "delete" if isinstance(step, Delete) else "touch"))
            if isinstance(step, Delete):
                standing.pop(step.key, None)
    return "", results, changes


class _Client:
    """One client, and what it has asked for."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.asked: Operation | None = None
        self.outcome: Ok | Refused | None = None


class Game(NamedTuple):
    """How to play. `values`: how many there are, 0: each is another; `silent`: of 1, how many are
    never answered; `several`: of 1, how many operations name several keys; `cuts`: of 1, how many
    reads name theirs; `named`: whether commits name requests."""

    size: int = 12
    clients: int = 3
    keys: int = 2
    values: int = 0
    silent: float = 0.1
    several: float = 0.2
    cuts: float = 0.5
    named: bool = False


class Play:
    """One random history with its commits: `history`, `commits`."""

    def __init__(self, chance: random.Random, game: Game = Game()) -> None:  # noqa: B008
        self.chance, self.game = chance, game
        self.history: list[Operation] = []
        self.commits: list[Commit] = []
        self.standing: Standing = {}
        self._time = self._begun = 0
        self._clients = [_Client(f"c{i}") for i in range(game.clients)]
        while self._clients and (self._begun < game.size or any(c.asked for c in self._clients)):
            self._time += 1
            self._event(chance.choice([c for c in self._clients
                                       if c.asked or self._begun < game.size]))
        self.history.sort(key=lambda operation: operation.invoked_at)

    def _event(self, client: _Client) -> None:
        if client.asked is None:
            self._begun += 1
            request = f"r{self._begun}" if self.game.named else None
            client.asked = Operation(client.name, self._steps(), self._time, request=request,
                                     expect=self._expect())
            if type(client.asked.steps[0]) is Get:
                client.asked = Operation(client.name, client.asked.steps, self._time)
        elif self.chance.random() < self.game.silent / 2:  # before its effect, or after
            self.history.append(client.asked)
            client.asked = client.outcome = None
            client.name += "'"
        elif client.outcome is None:
            client.outcome = self._execute(client.asked)
        else:
            a = client.asked
            self.history.append(Operation(a.client, a.steps, a.invoked_at, self._time,
                                          client.outcome, a.expect, a.request))
            client.asked = client.outcome = None

    def _steps(self) -> tuple[Any, ...]:
        count = self.chance.randint(2, 3) if self.chance.random() < self.game.several else 1
        keys = self.chance.sample("xyzuvw"[:self.game.keys], min(count, self.game.keys))
        if self.chance.random() < 0.4:
            return tuple(map(Get, keys))
        return tuple(self.chance.choice([self._put(key), self._put(key), Delete(key),
                                         Increment(key, self.chance.randint(1, 2))])
                     for key in keys)

    def _put(self, key: str) -> Put:
        values = self.game.values
        return Put(key, self.chance.randrange(values) if values else 1_000 + 10 * self._begun)

    def _expect(self) -> tuple[tuple[str, int], ...]:
        if self.chance.random() < 0.5:
            return ()
        key = self.chance.choice("xyzuvw"[:self.game.keys])
        now = self.standing[key].revision if key in self.standing else 0
        assert now is not None
        return ((key, self.chance.choice([now, now, max(0, now - 1), ANYTHING, 0])),)

    def _execute(self, operation: Operation) -> Ok | Refused:
        revision = len(self.commits) + 1
        refusal, results, changes = do(self.standing, operation, revision)
        if refusal:
            key = operation.expect[0][0] if operation.expect else operation.keys[0]
            told = ((key, self.standing.get(key)),) if self.chance.random() < 0.5 else ()
            return Refused(refusal, told)
        if changes:
            self.commits.append(Commit(revision, tuple(changes), operation.request))
        if type(operation.steps[0]) is Get and self.chance.random() >= self.game.cuts:
            return Ok(None, tuple(results))
        return Ok(len(self.commits), tuple(results))


# --- all orders ----------------------------------------------------------------------------------


def _told(operation: Operation) -> list[Found | None]:
    if isinstance(operation.outcome, Refused):
        return [found for _, found in operation.outcome.stands]
    return list(operation.results) if type(operation.steps[0]) is Get else []


def explained(history: list[Operation]) -> bool:
    """Whether any order of any choice of the unanswered gives all these answers: every one tried.

    Versions of writes that told no revision are named by any that was met and not told."""
    writes = [o for o in history if any(isinstance(s, Put | Increment) for s in o.steps)]
    claimed = {o.outcome.revision for o in writes if isinstance(o.outcome, Ok)}
    met = {f.revision for o in history for f in _told(o) if f} | {
        r for o in history for _, r in o.expect}
    return _search(history, {}, {r for r in met - claimed if r is not None and r > 0})


def _search(left: list[Operation], standing: Standing, names: set[int]) -> bool:
    answered = [o for o in left if o.returned_at is not None]
    if not answered:
        return True
    for operation in left:
        if any(other.returned_at < operation.invoked_at for other in answered):
            continue
        rest = [other for other in left if other is not operation]
        for after, name in _possible(operation, standing, names):
            if _search(rest, after, names - {name}):
                return True
    return False


def _possible(operation: Operation, standing: Standing, names: set[int]
              ) -> Iterator[tuple[Standing, int | None]]:
    outcome = operation.outcome
    if isinstance(outcome, Refused):
        refusal, _, _ = do(dict(standing), operation, None)
        told = all(_same(found, standing.get(key)) for key, found in outcome.stands)
        if told and (refusal == outcome.reason or outcome.reason not in REFUSALS):
            yield standing, None
        return
    writes = any(isinstance(step, Put | Increment) for step in operation.steps)
    told_name = outcome.revision if isinstance(outcome, Ok) and writes else None
    for name in [None, *names] if writes and told_name is None else [told_name]:
        after = dict(standing)
        refusal, results, _ = do(after, operation, name)
        if refusal:
            continue
        if isinstance(outcome, Ok) and not all(
                told in (None, real) if type(operation.steps[0]) is not Get else _same(told, real)
                for told, real in zip(operation.results, results, strict=True)):
            continue
        yield after, name


def _same(told: Found | None, real: Found | None) -> bool:
    if told is None or real is None:
        return told is real
    return (told.value == real.value and type(told.value) is type(real.value)
            and told.revision in (None, real.revision))
