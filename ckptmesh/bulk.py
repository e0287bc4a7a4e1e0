"""Many plain puts at once: what `State.apply` does with each, done by columns.

Rule 1: the outcome is that of `State.apply`, record by record, in every detail of the state.
Rule 2: whatever is not plain, or might be refused, is left to `State.apply`: `take_puts` then
        changes nothing and says so.

Nearly all of a log is transactions of one put. One by one they take about 5 µs each; here most of
the work is done by `zip`, `map` and `dict.update`, a quarter of a µs each. What makes that right:
a key is trimmed, a pointer dropped and an outcome forgotten by what came last, so that doing it
once, after the last of many records, leaves what doing it after each would.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, compress, repeat
from operator import add, ge, is_, is_not
from typing import Any

from ckptmesh.entries import HEAD_BYTES, pack_head, revision_of
from ckptmesh.limits import pipeline_of
from ckptmesh.messages import PUT, Outcome
from ckptmesh.records import Puts
from ckptmesh.state import State, created_and_count
from ckptmesh.timeline import CHANGE_COST, COMMIT_COST, keys_in

_COST = COMMIT_COST + CHANGE_COST - HEAD_BYTES  # of a commit, beside its key and packed version
_new: Any = tuple.__new__  # without the Python-level __new__ of a NamedTuple


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
    standing = list(map(state.entries.packed.setdefault, keys, packed))  # one look for each key
    if all(map(is_, standing, packed)):
        _note_new(state, keys)
    else:
        _rewrite(state, puts, standing, packed, first)
    state.revision, state.time = revisions[-1], times[-1]
    state.pointers.update(zip([key.partition("/")[0] for key in keys], revisions, strict=True))
    _remember(state, puts, lows, first)
    costs = map(_COST.__add__, map(add, map(len, keys), map(len, packed)))
    state.ring.extend(list(zip(costs, times, repeat(epoch), sessions, numbers, results,
                               repeat(PUT), keys, packed)))
    _raise_floor(state)
    return True


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
        outcome = _new(Outcome, (first + at, state.epoch, times[at], results[at]))
        state.sessions[sessions[at]].outcomes[numbers[at]] = (digests[at], outcome)


def _note_new(state: State, keys: Sequence[str]) -> None:
    """Index keys that did not exist, which may have been there before."""
    state.keys.extend(keys)
    if state.older:
        for key in state.older.keys() & keys:
            state.past_keys.remove(key)


def _rewrite(state: State, puts: Puts, standing: list[Any], packed: list[Any],
             first: int) -> None:
    """Where something else was standing, make what was put there the current version, and that a
    part of the past. `packed` is corrected: it was made as if no key had been there."""
    held, older, touched = state.entries.packed, state.older, state.touched
    _note_new(state, list(compress(puts.keys, map(is_, standing, packed))))
    for at in compress(range(len(packed)), map(is_not, standing, packed)):
        key, value, time, revision = puts.keys[at], puts.values[at], puts.times[at], first + at
        old = held[key]
        created, count = created_and_count(old, revision)
        new = packed[at] = pack_head(revision, created, count, time) + value
        if type(old) is not bytes or key in touched:
            state.replace(key, old, new, revision, False)
            continue
        past = older.get(key)
        if past is None:
            older[key] = past = []
        past.append((revision_of(old), old))
        held[key] = new


def _raise_floor(state: State) -> None:
    """Bring the ring within its settings, and with it what follows from the floor."""
    settings, pointers = state.settings, state.pointers
    dropped = state.ring.cut(settings["history_revisions"], settings["history_bytes"])
    if not dropped:
        return
    floor = state.floor
    state.floor_time = dropped[-1][1]
    keys = list(chain.from_iterable(map(keys_in, dropped)))
    for key in state.older.keys() & keys:
        state.trim(key, floor, 2)
    names = [*pointers] if len(pointers) < len(keys) else {*map(pipeline_of, keys)}
    for name in names:
        if pointers.get(name, floor + 1) <= floor:
            del pointers[name]
