"""Many plain puts at once: what `State.apply` and `State.load` do with each, done by columns.

Rule 1: the outcome is theirs, record by record and row by row, in every detail of the state.
Rule 2: whatever is not plain, or might be refused, is left to them: a function here then changes
        nothing and says so.

Nearly all of a log is transactions of one put. One by one they take 4 to 5 µs each; here, where
`zip`, `map` and `dict.setdefault` do most of the work, about a third of that. What makes it right:
a key is trimmed, a pointer dropped and an outcome forgotten by what came last, so that doing it
once, after the last of many records, leaves what doing it after each would.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain, compress, repeat
from operator import add, ge, is_, is_not
from struct import error as StructError
from typing import TYPE_CHECKING, Any

from ckptmesh.entries import SMALL, are_all, created_and_count, pack_head, revision_of
from ckptmesh.facts import Puts
from ckptmesh.limits import pipeline_of
from ckptmesh.messages import PUT, Outcome, Version, tuple_of
from ckptmesh.timeline import Block

if TYPE_CHECKING:
    from ckptmesh.state import State


def take_puts(state: State, puts: Puts) -> bool:
    """Take transactions of one plain put each, at least one. Returns False, with nothing changed,
    where `State.apply` has to: something would be refused, or is not as a store writes it."""
    sessions, numbers, _, _, times, keys, values, results = puts
    if times[0] < state.time or sorted(times) != list(times):
        return False
    lows = _lows(state, puts)
    if lows is None:
        return False
    first, epoch = state.revision + 1, state.epoch
    revisions = range(first, first + len(keys))
    packed: list[Any] = list(map(add, map(pack_head, revisions, revisions, repeat(1), times),
                                 values))
    _stand(state, puts, keys, packed, first)
    state.revision, state.time = revisions[-1], times[-1]
    state.pointers.update(zip([key.partition("/")[0] for key in keys], revisions, strict=True))
    _remember(state, puts, lows, first)
    state.ring.extend(Block(first, times, (epoch,) * len(keys), sessions, numbers, results, keys,
                            packed))
    _raise_floor(state)
    return True


def take_cut(state: State, rows: Sequence[Any]) -> bool:
    """Take rows of the cut in a snapshot, whose versions are all plain and never touched. Returns
    False, with nothing changed, where they have to be looked at one by one."""
    try:
        keys, since, *fields = zip(*rows, strict=True)
    except (TypeError, ValueError):
        return False
    packed = _packed(fields)
    if (packed is None or since != fields[1] or not are_all(str, keys)
            or not 0 < min(since) <= max(since) <= state.revision):
        return False
    state.entries.packed.update(zip(keys, packed, strict=True))
    return True


def take_commits(state: State, rows: Sequence[Any]) -> bool:
    """Take commits in a snapshot, each of which put one plain version. Returns False, with nothing
    changed, where they have to be looked at one by one."""
    try:
        revisions, epochs, times, changes, sessions, numbers, results = zip(*rows, strict=True)
        _, kinds, keys, versions = zip(*[change for (change,) in changes], strict=True)
        fields = [*zip(*versions, strict=True)]
    except (TypeError, ValueError):
        return False
    packed = _packed(fields)
    first = state.revision + 1
    if (packed is None or not are_all(str, keys) or kinds.count(PUT) != len(kinds)
            or not fields[1] == revisions == (*range(first, first + len(keys)),)):
        return False
    _stand(state, None, keys, packed, first)
    state.revision = revisions[-1]
    state.ring.extend(Block(first, times, epochs, sessions, numbers, [*map(tuple, results)], keys,
                            packed))
    _raise_floor(state)
    return True


def _packed(fields: Sequence[tuple[Any, ...]]) -> list[Any] | None:
    """Versions packed, given the columns of their fields. None where one is not plain, or is
    malformed."""
    if len(fields) != len(Version._fields):
        return None
    values, revisions, created, counts, times, *others, sources = fields
    if (not are_all(bytes, values) or max(map(len, values)) > SMALL
            or not are_all(int, chain(revisions, created, counts, times))
            or any(column.count(None) != len(values) for column in others)
            or any(sources) or not {*map(type, sources)} <= {tuple, list}):
        return None
    try:
        return list(map(add, map(pack_head, revisions, created, counts, times), values))
    except StructError:  # an integer below 0, or beyond 64 bits
        return None


def _lows(state: State, puts: Puts) -> dict[bytes, int] | None:
    """The last `low` of each session. None where one was never opened, or where a `low` is none
    that a store writes: lower than one before it, above its own number or that of an outcome."""
    lows: dict[bytes, int] = {}
    for session in set(puts.sessions):
        table = state.sessions.get(session)
        if table is None or min(table.outcomes, default=table.low) < table.low:
            return None
        lows[session] = table.low
    for session, number, low in zip(puts.sessions, puts.numbers, puts.lows, strict=True):
        if not lows[session] <= low <= number:
            return None
        lows[session] = low
    return lows


def _remember(state: State, puts: Puts, lows: dict[bytes, int], first: int) -> None:
    """Keep the outcomes that a client may still ask for."""
    sessions, numbers, _, digests, times, _, _, results = puts
    for session, low in lows.items():
        state.sessions[session].advance(low)
    kept = map(ge, numbers, map(lows.__getitem__, sessions))
    for at in compress(range(len(numbers)), kept):
        outcome = tuple_of(Outcome, (first + at, state.epoch, times[at], results[at]))
        state.sessions[sessions[at]].outcomes[numbers[at]] = (digests[at], outcome)


def _stand(state: State, puts: Puts | None, keys: Sequence[str], packed: list[Any],
           first: int) -> None:
    """Make packed versions the current ones of their keys, one after the other, and those that
    stood there a part of the past. `puts`: `packed` was made as if no key were there, and is
    corrected where one is."""
    held, older = state.entries.packed, state.older
    standing = list(map(held.setdefault, keys, packed))  # one look for each key that is new
    if all(map(is_, standing, packed)):
        new: Sequence[str] = keys
        again: Iterable[int] = ()
    else:
        new = list(compress(keys, map(is_, standing, packed)))
        again = compress(range(len(keys)), map(is_not, standing, packed))
    state.keys.extend(new)
    if older:
        for key in older.keys() & new:
            state.past_keys.remove(key)
    for at in again:
        key = keys[at]
        old = held[key]
        if puts is not None:
            created, count = created_and_count(old, 0)
            packed[at] = pack_head(first + at, created, count, puts.times[at]) + puts.values[at]
        if type(old) is not bytes or key in state.touched:
            state.replace(key, old, packed[at], first + at, False)
            continue
        past = older.get(key)
        if past is None:
            older[key] = past = []
        past.append((revision_of(old), old))
        held[key] = packed[at]


def _raise_floor(state: State) -> None:
    """Bring the ring within its settings, and with it what follows from the floor."""
    settings, pointers = state.settings, state.pointers
    keys, time = state.ring.cut(settings["history_revisions"], settings["history_bytes"])
    if time is None:
        return
    floor = state.floor
    state.floor_time = time
    for key in state.older.keys() & keys:
        state.trim(key, floor, 2)
    names = [*pointers] if len(pointers) < len(keys) else {*map(pipeline_of, keys)}
    for name in names:
        if pointers.get(name, floor + 1) <= floor:
            del pointers[name]
