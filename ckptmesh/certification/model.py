"""What must be found: every commit follows from its number, and so does the state after it.

Rule 1: commit N of a run is the one that takes revision N, so a commit that is lost, doubled or
        changed shows wherever the state is looked at.
Rule 2: nothing here is taken from what a store wrote; the seed and a number are all.
"""

from __future__ import annotations

import random
from hashlib import sha256
from typing import NamedTuple

import msgpack

from ckptmesh.messages import PUT, Commit, Version
from ckptmesh.state import State
from ckptmesh.values import pack, unpack

KEYS = 7
_SIZES = ((0, 300), (0, 300), (0, 300), (300, 2_500), (300, 2_500), (2_500, 12_000))


def key_of(number: int) -> str:
    """The key that commit `number` writes."""
    return f"certify/{number % KEYS}"


def before(number: int) -> int | None:
    """The revision that commit `number` replaces; None for the first of its key."""
    return number - KEYS if number > KEYS else None


def value_of(seed: int, number: int) -> bytes:
    """What commit `number` writes: its number, and up to some sectors that nobody can guess."""
    chance = random.Random(seed << 32 | number)
    return b"%d:" % number + chance.randbytes(chance.randint(*chance.choice(_SIZES)))


class Problem(NamedTuple):
    """Something that is not as it must be. `twice`: a commit that took effect again."""

    text: str
    twice: bool = False


class Model:
    """The states that a run with this seed goes through."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._values: list[bytes] = [b""]  # by number, packed; there is no commit 0

    def digest(self, revision: int) -> str:
        """What `content` gives after this revision."""
        newest = {key_of(number): number
                  for number in range(max(1, revision - KEYS + 1), revision + 1)}
        return _digest(revision, {
            key: (self._value(number), number, (number - 1) % KEYS + 1, (number - 1) // KEYS + 1)
            for key, number in newest.items()})

    def problems(self, state: State) -> list[Problem]:
        """What in a recovered state, or in the history that it holds, is not as it must be."""
        history = enumerate(state.ring.after(state.floor), state.floor + 1)
        found = [wrong for each in history if (wrong := self._compare(*each))]
        if content(state) != self.digest(state.revision) and not found:
            found.append(Problem(
                f"the state at revision {state.revision:,} is not what its commits make"))
        return found

    def _compare(self, number: int, commit: Commit) -> Problem | None:
        for change in commit.changes:
            version = change.version
            if len(commit.changes) == 1 and commit.revision == number and change.kind == PUT and (
                version is not None and change.key == key_of(number)
                and version.value == self._value(number)
            ):
                return None
            held = _number(version)
            if 0 < held < number and version and version.value == self._value(held):
                return Problem(f"commit {held:,} took effect again, as revision {number:,}", True)
        return Problem(f"revision {number:,} holds something that nobody committed there")

    def _value(self, number: int) -> bytes:
        while len(self._values) <= number:
            self._values.append(pack(value_of(self._seed, len(self._values))))
        return self._values[number]


def content(state: State) -> str:
    """A digest of all that a user sees of a state: revision, keys, values, versions."""
    return _digest(state.revision, {
        key: (entry.value, entry.revision, entry.create_revision, entry.version)
        for key, entry in state.entries.items()})


def _digest(revision: int, entries: dict[str, tuple[bytes, int, int, int]]) -> str:
    whole = sha256(b"%d" % revision)
    for key in sorted(entries):
        whole.update(msgpack.packb((key, *entries[key])))
    return whole.hexdigest()


def _number(version: Version | None) -> int:
    """The number that a value begins with; 0 where it has none."""
    try:
        text = unpack(version.value).partition(b":")[0] if version else b""
        return int(text) if len(text) < 10 else 0
    except (ValueError, TypeError, AttributeError):
        return 0
