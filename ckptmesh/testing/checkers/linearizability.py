"""Linearizability from outside: is there any order in which a store that does one thing at a time
would have answered just this?

    Herlihy & Wing, "Linearizability: a correctness condition for concurrent objects", 1990
    Wing & Gong, "Testing and verifying concurrent objects", 1993: the search over orders
    Lowe, "Testing for linearizability", 2017: just-in-time linearization, and remembering
        configurations (what has taken effect, and the state it made)

The history is read event by event. A configuration is a state with those operations under way that
have taken effect in it. Only when one returns must it have taken effect: from each configuration
every order of operations under way that ends with this one is tried, no further. When no
configuration is left, no order explains the history up to there.

Rule 1: nothing but invocations, answers and their times is used. Revisions are opaque names of
        versions: equal or not, never less or more. One that nobody was told, of a write that was
        never answered, may be any that somebody met and nobody was told for another write.
Rule 2: keys that no operation names together are checked apart: linearizability is local (Herlihy
        & Wing, theorem 1).
Rule 3: the question is NP-complete, so there are bounds; beyond them the answer is `Inconclusive`,
        never a pass.
Rule 4: what never changes anything (a read, a refusal) takes effect as soon as it could: whatever
        can follow without it can follow with it. That is not so of a write which happens to change
        nothing here: it may be needed later. One that was never answered is not needed at all.

Nothing here expires: leave out keys with a time to live.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ckptmesh.testing.checkers.findings import Violation
from ckptmesh.testing.checkers.history import (
    ANYTHING,
    Change,
    Found,
    Increment,
    Ok,
    Operation,
    Put,
    Refused,
    Step,
    found_text,
)
from ckptmesh.testing.checkers.model import (
    canonical,
    made_of,
    names_of,
    play,
    refused_truly,
    says_nothing,
    told_truly,
)

SHOWN = 5  # states, and operations before it, that a story tells


class Bounds(NamedTuple):
    """What one group of keys may have: operations, those under way at once, those never answered
    that may have changed something, and steps of the search (3 to 10 microseconds each)."""

    operations: int = 1_000
    clients: int = 8
    unknown: int = 10
    steps: int = 1_000_000


@dataclass(frozen=True, slots=True)
class Linearizable:
    """There is such an order. `steps` tells what the search took."""

    operations: int
    steps: int

    def __bool__(self) -> bool:
        return True


@dataclass(frozen=True, slots=True)
class NotLinearizable:
    """There is none. `prefix` is the shortest beginning without one, in the order asked:
    all that was asked before `operation`, the offending one, returned. `possible` tells what could
    have stood under the keys at that moment without it (some of it), `around` what was under way
    then, `before` what had returned last."""

    keys: tuple[str, ...]
    operation: Operation
    prefix: tuple[Operation, ...]
    possible: tuple[str, ...]
    around: tuple[Operation, ...]
    before: tuple[Operation, ...]

    def __bool__(self) -> bool:
        return False

    @property
    def violation(self) -> Violation:
        """The same as other checkers tell it. Rule: "linearizability"."""
        message = (f"no order of the {len(self.prefix)} operations on {', '.join(self.keys)} up to "
                   f"then explains what {self.operation.name} was told")
        return Violation("linearizability", message,
                         (*self.before, *self.around, self.operation))

    def __str__(self) -> str:
        parts = [f"Not linearizable: {self.violation.message}.", f"  {self.operation}",
                 "Without it there could have been:", *(f"  {text}" for text in self.possible)]
        for title, operations in (("Under way at the time:", self.around),
                                  ("Returned last before it was invoked:", self.before)):
            if operations:
                parts += [title, *(f"  {operation}" for operation in operations)]
        return "\n".join(parts)


@dataclass(frozen=True, slots=True)
class Inconclusive:
    """Nobody knows: a bound was met. Not a pass."""

    reason: str

    def __bool__(self) -> bool:
        return False


Verdict = Linearizable | NotLinearizable | Inconclusive
"""True only where there is such an order: `assert check_linearizable(history)`."""


def check_linearizable(history: Sequence[Operation], *,
                       standing: Mapping[str, Found] | None = None,
                       bounds: Bounds = Bounds()) -> Verdict:  # noqa: B008  # immutable
    """Whether the history is linearizable; `standing` is what stood there before it.

    A group of keys that is not makes all of it so, whatever is not known of the others.
    """
    steps = 0
    doubt: Inconclusive | None = None
    for keys, group in groups(history):
        verdict = _Search(keys, group, standing or {}, bounds).run()
        if isinstance(verdict, NotLinearizable):
            return verdict
        if isinstance(verdict, Inconclusive):
            doubt = verdict if doubt is None else doubt
        else:
            steps += verdict.steps
    return Linearizable(len(history), steps) if doubt is None else doubt


def groups(history: Iterable[Operation]) -> list[tuple[tuple[str, ...], list[Operation]]]:
    """The history apart: keys that operations name together, and these operations."""
    leader: dict[str, str] = {}

    def lead(key: str) -> str:
        while leader.setdefault(key, key) != key:
            leader[key] = key = leader[leader[key]]
        return key

    told = [(operation, names_of(operation)) for operation in history
            if not says_nothing(operation)]
    for _, keys in told:
        for key in keys[1:]:
            leader[lead(key)] = lead(keys[0])
    apart: dict[str, tuple[dict[str, None], list[Operation]]] = {}
    for operation, keys in told:
        names, group = apart.setdefault(lead(keys[0]), ({}, []))
        names.update(dict.fromkeys(keys))
        group.append(operation)
    return [(tuple(sorted(names)), group) for names, group in apart.values()]


_State = tuple[Found | None, ...]
"""What stands under each key of a group."""


class _Configuration(NamedTuple):
    """A state, and which operations under way have taken effect in it: bits of those that will
    return, of those never answered; and which unclaimed names were given away."""

    state: _State
    done: int = 0
    silent: int = 0
    used: frozenset[int] = frozenset()


class _Frontier:
    """Configurations, of which none is better than another: where state and `done` are equal, one
    with less of `silent` and `used` can do whatever the other can."""

    def __init__(self) -> None:
        self._best: dict[tuple[_State, int], list[_Configuration]] = {}

    def add(self, new: _Configuration) -> bool:
        """Take it, unless there is one as good."""
        peers = self._best.setdefault(new[:2], [])
        if any(peer.silent & new.silent == peer.silent and peer.used <= new.used
               for peer in peers):
            return False
        peers[:] = [peer for peer in peers
                    if peer.silent & new.silent != new.silent or not new.used <= peer.used]
        peers.append(new)
        return True

    def __contains__(self, configuration: _Configuration) -> bool:
        return configuration in self._best.get(configuration[:2], ())

    def __iter__(self) -> Iterator[_Configuration]:
        for peers in self._best.values():
            yield from peers


class _TooMany(Exception):
    """The search has taken all its steps."""


class _Search:
    """The search over one group of keys."""

    def __init__(self, keys: tuple[str, ...], group: Sequence[Operation],
                 standing: Mapping[str, Found], bounds: Bounds) -> None:
        self._keys = keys
        self._place = {key: place for place, key in enumerate(keys)}
        self._asked = sorted(group, key=lambda operation: operation.invoked_at)
        self._played = [_hashable(operation) for operation in self._asked]
        self._still = [operation.reads or isinstance(operation.outcome, Refused)
                       for operation in self._asked]
        self._bounds = bounds
        self._steps = 0
        self._after_known: dict[tuple[int, _State], list[tuple[_State, int | None]]] = {}
        self._first = tuple(_hashable_found(standing.get(key)) for key in keys)
        self._name_versions([found.revision for found in self._first if found])

    def _name_versions(self, standing: Sequence[int | None]) -> None:
        """Whose version has which name: `_tokens` of those told, `_unclaimed` for the rest."""
        self._met: dict[tuple[str, int | None], Any] = {}  # key and name -> the value told with it
        met: set[int | None] = set()
        in_vain: set[int | None] = set()  # met by those who expected it and were refused
        for operation in self._played:
            refused = isinstance(operation.outcome, Refused)
            (in_vain if refused else met).update(name for _, name in operation.expect)
            for key, found in _told(operation):
                if found is not None:
                    met.add(found.revision)
                    self._met[key, found.revision] = found.value
        self._tokens: list[int | None] = []
        self._nameless: list[bool] = []
        claimed: set[int | None] = {None, 0, ANYTHING, *standing}
        for operation in self._played:
            writes = any(isinstance(step, Put | Increment) for step in operation.steps)
            outcome = operation.outcome
            token = outcome.revision if isinstance(outcome, Ok) and writes else None
            claimed.add(token)
            # A name that nobody ever met tells nothing: without it states are equal more often.
            self._tokens.append(token if token in met | in_vain else None)
            self._nameless.append(writes and token is None)
        self._unclaimed = [name for name in met if name is not None and name not in claimed]

    # --- events --------------------------------------------------------------------------------

    def run(self) -> Verdict:
        """The verdict on this group."""
        events = sorted([(operation.invoked_at, 0, index)
                         for index, operation in enumerate(self._asked)]
                        + [(operation.returned_at, 1, index)
                           for index, operation in enumerate(self._asked)
                           if operation.returned_at is not None])
        beyond = self._beyond(events)
        if beyond:
            return Inconclusive(f"{', '.join(self._keys)}: {beyond} (see `Bounds`)")
        try:
            return self._walk(events)
        except _TooMany:
            return Inconclusive(f"{', '.join(self._keys)}: not settled within "
                                f"{self._bounds.steps:,} steps (see `Bounds`)")

    def _beyond(self, events: Sequence[tuple[int, int, int]]) -> str:
        """Which bound the history is beyond; "" when it is within all."""
        operations, clients, unknown, _ = self._bounds
        if len(self._asked) > operations:
            return f"{len(self._asked):,} operations; the bound is {operations:,}"
        unanswered = sum(operation.returned_at is None for operation in self._asked)
        if unanswered > unknown:
            return f"{unanswered} operations were never answered; the bound is {unknown}"
        under_way = most = 0
        for _, returned, index in events:
            if self._asked[index].returned_at is not None:
                under_way += -1 if returned else 1
                most = max(most, under_way)
        return f"{most} operations at once; the bound is {clients}" if most > clients else ""

    def _walk(self, events: Sequence[tuple[int, int, int]]) -> Verdict:
        configurations = [_Configuration(self._first)]
        under_way: dict[int, int] = {}  # index of an operation -> its bit
        free: list[int] = []
        for _, returned, index in events:
            if not returned:
                under_way[index] = free.pop() if free else 1 << len(under_way)
                configurations = [self._settled(configuration, {index: under_way[index]})
                                  for configuration in configurations]
                continue
            left = self._return(index, configurations, under_way)
            if not left:
                return self._story(index, configurations)
            configurations = left
            free.append(under_way.pop(index))
        return Linearizable(len(self._asked), self._steps)

    def _return(self, index: int, configurations: Sequence[_Configuration],
                under_way: Mapping[int, int]) -> list[_Configuration]:
        """Those in which this one has taken effect, and is no longer under way."""
        bit = under_way[index]
        left, met = _Frontier(), _Frontier()
        waiting = [configuration for configuration in configurations if met.add(configuration)]
        while waiting:
            configuration = waiting.pop()
            if configuration not in met:  # one that is better came since
                continue
            if configuration.done & bit:
                left.add(configuration._replace(done=configuration.done & ~bit))
                continue
            for found in self._next(configuration, under_way):
                if met.add(found):
                    waiting.append(found)
        return list(left)

    def _next(self, configuration: _Configuration, under_way: Mapping[int, int]
              ) -> Iterator[_Configuration]:
        """With one more in effect."""
        state, done, silent, used = configuration
        for index, bit in under_way.items():
            if (done | silent) & bit:
                continue
            unanswered = self._asked[index].returned_at is None
            for after, name in self._after(index, state):
                if name in used or (unanswered and after == state):
                    continue
                yield self._settled(_Configuration(
                    after, done if unanswered else done | bit,
                    silent | bit if unanswered else silent,
                    used if name is None else used | {name}), under_way)

    def _settled(self, configuration: _Configuration, bits: Mapping[int, int]) -> _Configuration:
        """With those in effect that never change anything, and could be here."""
        done = configuration.done
        for index, bit in bits.items():
            if (self._still[index] and not done & bit
                    and self._after(index, configuration.state)):
                done |= bit
        return configuration._replace(done=done)

    # --- the model -----------------------------------------------------------------------------

    def _after(self, index: int, state: _State) -> list[tuple[_State, int | None]]:
        """What an operation may make of this state, with the unclaimed name that its version has
        then; nothing where it cannot be."""
        self._steps += 1
        if self._steps > self._bounds.steps:
            raise _TooMany
        found = self._after_known.get((index, state))
        if found is None:
            found = self._after_known[index, state] = self._play(index, state)
        return found

    def _play(self, index: int, state: _State) -> list[tuple[_State, int | None]]:
        operation = self._played[index]

        def look(key: str) -> Found | None:
            return state[self._place[key]]

        if isinstance(operation.outcome, Refused):
            return [(state, None)] if refused_truly(operation, look) else []
        done = play(operation, look)
        if done.refusal or not told_truly(operation, done):
            return []
        given = [name for name in self._unclaimed
                 if self._nameless[index] and self._could_be(name, done.changes)]
        return [(self._with(state, made_of(done.changes, self._tokens[index])), None),
                *((self._with(state, made_of(done.changes, name)), name) for name in given)]

    def _could_be(self, name: int, changes: Sequence[Change]) -> bool:
        """Whether nobody met another value under this name."""
        return all(self._met.get((change.key, name), change.value) == change.value
                   for change in changes if change.kind == "put")

    def _with(self, state: _State, made: Mapping[str, Found | None]) -> _State:
        after = list(state)
        for key, found in made.items():
            after[self._place[key]] = found
        return tuple(after)

    # --- telling -------------------------------------------------------------------------------

    def _story(self, index: int, configurations: Sequence[_Configuration]) -> NotLinearizable:
        offending = self._asked[index]
        assert offending.returned_at is not None
        end, begin = offending.returned_at, offending.invoked_at
        prefix = tuple(operation for operation in self._asked if operation.invoked_at <= end)
        states = sorted({self._text(configuration.state) for configuration in configurations})
        more = [f"and {len(states) - SHOWN} others"] if len(states) > SHOWN else []
        done = [operation for operation in prefix
                if operation.returned_at is not None and operation.returned_at < begin]
        done.sort(key=lambda operation: operation.returned_at or 0)
        around = tuple(operation for operation in prefix
                       if operation is not offending
                       and (operation.returned_at is None or operation.returned_at >= begin))
        return NotLinearizable(self._keys, offending, prefix, (*states[:SHOWN], *more), around,
                               tuple(done[-SHOWN:]))

    def _text(self, state: _State) -> str:
        return ", ".join(f"{key}: {found_text(_thawed(found))}"
                         for key, found in zip(self._keys, state, strict=True))


# --- values that can be put into sets ------------------------------------------------------------


class _Frozen(NamedTuple):
    """A value that is neither an integer nor a string, as its JSON."""

    text: str


def _hashable_value(value: Any) -> Any:
    return value if type(value) in (int, str) else _Frozen(canonical(value))


def _hashable_found(found: Found | None) -> Found | None:
    return None if found is None else Found(_hashable_value(found.value), found.revision)


def _thawed(found: Found | None) -> Found | None:
    if found is None or not isinstance(found.value, _Frozen):
        return found
    return found._replace(value=json.loads(found.value.text))


def _hashable(operation: Operation) -> Operation:
    steps: tuple[Step, ...] = tuple(Put(step.key, _hashable_value(step.value))
                                    if isinstance(step, Put) else step for step in operation.steps)
    outcome = operation.outcome
    if isinstance(outcome, Refused):
        outcome = outcome._replace(stands=tuple((key, _hashable_found(found))
                                                for key, found in outcome.stands))
    elif isinstance(outcome, Ok) and operation.reads:
        outcome = outcome._replace(results=tuple(map(_hashable_found, operation.results)))
    return Operation(operation.client, steps, operation.invoked_at, operation.returned_at,
                     outcome, operation.expect, operation.request)


def _told(operation: Operation) -> Iterable[tuple[str, Found | None]]:
    outcome = operation.outcome
    if isinstance(outcome, Refused):
        return outcome.stands
    return zip(operation.keys, operation.results, strict=True) if operation.reads else ()
