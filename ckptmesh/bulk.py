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

from collections import deque
from collections.abc import Sequence
from itertools import chain, compress, repeat
from operator import add, ge, is_, is_not
from struct import error as StructError
from typing import TYPE_CHECKING, Any

from ckptmesh.entries import (
    SMALL,
    are_all,
    created_and_count,
    pack_head,
    revision_in,
    unpack_head,
)
from ckptmesh.facts import Puts
from ckptmesh.limits import pipelines_of
from ckptmesh.messages import PUT, Outcome, Version, tuple_of
from ckptmesh.timeline import Block

if TYPE_CHECKING:
    from ckptmesh.state import State


def counts(state: State, keys: Sequence[str]) -> list[int] | None:
    """The `version` of what plain puts of these keys, one after the other, would make. None: one of
    them stands there with more than a small value, and has to be looked at."""
    standing: list[Any] = [*map(state.entries.packed.get, keys)]
    if tuple in {*map(type, standing)}:
        return None
    found = [1 if old is None else unpack_head(old)[2] + 1 for old in standing]
    if len({*keys}) < len(keys):
        before: dict[str, int] = {}
        for at, key in enumerate(keys):
            found[at] += before.get(key, 0)
            before[key] = before.get(key, 0) + 1
    return found


def put_all(state: State, keys: Sequence[str], values: Sequence[bytes], revision: int,
            time: int) -> list[Any]:
    """Put plain values under keys that are all different, with one revision: the versions, packed.
    A part of `apply`."""
    revisions, times = (revision,) * len(keys), (time,) * len(keys)
    packed = _put(state, keys, values, revisions, times)
    state.pointers.update(dict.fromkeys(pipelines_of(keys), revision))
    return packed


def take_puts(state: State, puts: Puts) -> Block | None:
    """Take transactions of one plain put each, at least one. Returns None, with nothing changed,
    where `State.apply` has to: something would be refused, or is not as a store writes it."""
    sessions, numbers, _, _, times, keys, values, results = puts
    if times[0] < state.time or sorted(times) != list(times):
        return None
    lows = _lows(state, puts)
    if lows is None:
        return None
    first, epoch = state.revision + 1, state.epoch
    revisions = range(first, first + len(keys))
    packed = _put(state, keys, values, revisions, times)
    state.revision, state.time = revisions[-1], times[-1]
    state.pointers.update(zip(pipelines_of(keys), revisions, strict=True))
    _remember(state, puts, lows, first)
    block = Block(first, times, (epoch,) * len(keys), sessions, numbers, results, keys, packed)
    state.ring.extend(block)
    _raise_floor(state)
    return block


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
    _stand(state, keys, packed, revisions, times, None)
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
    rows = [*zip(puts.sessions, puts.numbers, puts.lows, strict=True)]
    for session, number, low in rows[:1] if rows.count(rows[0]) == len(rows) else rows:
        if not lows[session] <= low <= number:
            return None
        lows[session] = low
    return lows


def _remember(state: State, puts: Puts, lows: dict[bytes, int], first: int) -> None:
    """Keep the outcomes that a client may still ask for."""
    sessions, numbers, _, digests, times, _, _, results = puts
    for session, low in lows.items():
        state.sessions[session].advance(low)
    if numbers[0] == numbers[-1] and len({*zip(sessions, numbers, strict=True)}) == 1:
        _remember_one(state, puts, first)
        return
    kept = map(ge, numbers, map(lows.__getitem__, sessions))
    for at in compress(range(len(numbers)), kept):
        outcomes, number = state.sessions[sessions[at]].outcomes, numbers[at]
        known = outcomes.get(number)
        told = results[at] if known is None else known[1][3] + results[at]
        outcomes[number] = (digests[at], tuple_of(Outcome, (
            first + at, state.epoch, times[at], told)))


def _remember_one(state: State, puts: Puts, first: int) -> None:
    """The same where all of it is one request."""
    outcomes, number = state.sessions[puts.sessions[0]].outcomes, puts.numbers[0]
    known = outcomes.get(number)
    told = (*(() if known is None else known[1][3]), *chain.from_iterable(puts.results))
    outcomes[number] = (puts.digests[0], tuple_of(Outcome, (
        first + len(puts.keys) - 1, state.epoch, puts.times[-1], told)))


def _put(state: State, keys: Sequence[str], values: Sequence[bytes], revisions: Sequence[int],
         times: Sequence[int]) -> list[Any]:
    """Put plain values under keys, one after the other: the versions, packed."""
    packed = _replace_all(state, keys, values, revisions, times)
    if packed is None:
        packed = [*map(add, map(pack_head, revisions, revisions, repeat(1), times), values)]
        _stand(state, keys, packed, revisions, times, values)
    return packed


def _stand(state: State, keys: Sequence[str], packed: list[Any], revisions: Sequence[int],
           times: Sequence[int], values: Sequence[bytes] | None) -> None:
    """Make packed versions the current ones of their keys, one after the other, and those that
    stood there a part of the past. `values`: `packed` was made of them as if no key were there, and
    is corrected where one is."""
    held, older = state.entries.packed, state.older
    standing = list(map(held.setdefault, keys, packed))  # one look for each key that is new
    if all(map(is_, standing, packed)):
        new: Sequence[str] = keys
        again: list[int] = []
    else:
        new = list(compress(keys, map(is_, standing, packed)))
        again = list(compress(range(len(keys)), map(is_not, standing, packed)))
    if new:
        state.keys.extend(new)
        if older:
            for key in older.keys() & new:
                state.past_keys.remove(key)
    for at in again:
        key = keys[at]
        old = held[key]
        if values is not None:
            created, count = created_and_count(old, 0)
            packed[at] = pack_head(revisions[at], created, count, times[at]) + values[at]
        if type(old) is not bytes or key in state.touched:
            state.replace(key, old, packed[at], revisions[at], False)
            continue
        past = older.get(key)
        if past is None:
            older[key] = past = []
        past.append(old)
        held[key] = packed[at]


def _replace_all(state: State, keys: Sequence[str], values: Sequence[bytes],
                 revisions: Sequence[int], times: Sequence[int]) -> list[Any] | None:
    """Put plain values under keys that are all different and all stand there with plain versions,
    never touched: the versions, packed. None, with nothing changed, where it is otherwise."""
    held = state.entries.packed
    if keys[0] not in held or state.touched or len({*keys}) < len(keys):
        return None
    standing: list[Any] = [*map(held.get, keys)]
    if not are_all(bytes, standing):
        return None
    _, created, found, _ = zip(*map(unpack_head, standing), strict=True)
    new: list[Any] = [*map(add, map(pack_head, revisions, created, [count + 1 for count in found],
                                    times), values)]
    pasts = map(state.older.setdefault, keys, [[] for _ in keys])
    deque(map(list.append, pasts, standing), 0)
    held.update(zip(keys, new, strict=True))
    return new


def _trim_all(state: State, keys: set[str], floor: int, sunk: int) -> None:
    """`State.trim` for each key that has a past. Nearly always one version more than is shown has
    come below the floor, and the oldest goes."""
    shown = state.settings["history_versions"]
    below, above = shown + 1, shown + 2
    usual = sunk == 1 and shown > 0 and not state.contracts
    older = state.older
    for key in keys:
        past = older.get(key)
        if past is None:
            continue
        if usual and len(past) > above:
            last, first = past[below], past[above]  # below the floor, and above it
            if (type(last) is type(first) is type(past[shown]) is bytes
                    and revision_in(last)[0] <= floor < revision_in(first)[0]):
                del past[0]
                continue
        state.trim(key, floor, sunk)


def _raise_floor(state: State) -> None:
    """Bring the ring within its settings, and with it what follows from the floor."""
    settings, pointers = state.settings, state.pointers
    keys, time = state.ring.cut(settings["history_revisions"], settings["history_bytes"])
    if time is None:
        return
    floor = state.floor
    state.floor_time = time
    if state.older:
        sunk = {*keys}
        _trim_all(state, sunk, floor, 1 if len(sunk) == len(keys) else 2)
    names = [*pointers] if len(pointers) < len(keys) else {*pipelines_of(keys)}
    for name in names:
        if pointers.get(name, floor + 1) <= floor:
            del pointers[name]
