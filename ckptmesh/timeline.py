"""What was: the ring of recent commits, and the sorted index of keys.

Rule 1: nothing here reads a clock or decides anything; `state.py` alone changes these.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Iterator

from ckptmesh.limits import under
from ckptmesh.messages import Commit, Version

# Bytes of objects around a commit, around each of its changes with its version, and around each
# source of a version: measured with sys.getsizeof.
_COMMIT_COST, _CHANGE_COST, _SOURCE_COST = 400, 500, 160
_DROPPED = Commit(0, 0, 0, ())


def weight(version: Version) -> int:
    """Bytes of what a version carries, about: its value and its sources."""
    if not version.sources:
        return len(version.value)
    return len(version.value) + sum(len(key) + _SOURCE_COST for key, _ in version.sources)


def cost(commit: Commit) -> int:
    """Bytes of memory that a commit holds, about: keys, values and the objects around them."""
    return _COMMIT_COST + sum(
        _CHANGE_COST + len(change.key) + (weight(change.version) if change.version else 0)
        for change in commit.changes
    )


class Ring:
    """The newest commits, without a gap: revisions `first` … `last`. Indexed by revision."""

    def __init__(self, first: int = 1) -> None:
        self._items: list[Commit] = []
        self._gone = 0  # leading items already dropped, not yet cut off
        self.first = first
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._items) - self._gone

    def append(self, commit: Commit) -> None:
        """Add the commit of the next revision."""
        self._items.append(commit)
        self.bytes += cost(commit)

    def popleft(self) -> Commit:
        """Drop the oldest commit and return it."""
        commit = self._items[self._gone]
        self._items[self._gone] = _DROPPED  # its values must not wait for the list to be cut
        self._gone += 1
        self.first += 1
        self.bytes -= cost(commit)
        if self._gone > 1_024 and self._gone * 2 > len(self._items):
            del self._items[: self._gone]
            self._gone = 0
        return commit

    def __getitem__(self, revision: int) -> Commit:
        return self._items[self._gone + revision - self.first]

    def after(self, revision: int) -> Iterator[Commit]:
        """Commits with a higher revision, in order; `revision` at least `first` - 1."""
        items = self._items
        start = self._gone + revision + 1 - self.first
        return (items[i] for i in range(start, len(items)))  # islice would walk all before start

    def not_later(self, time: int) -> int:
        """The last revision whose time is not later; `first` - 1 when there is none."""
        found = bisect_right(self._items, time, lo=self._gone, key=lambda commit: commit.time)
        return self.first + found - self._gone - 1


class KeyIndex:
    """Keys in order, sorted only when somebody asks.

    Adding and removing is O(1); the next scan merges what has changed since the last one.
    """

    _FEW = 64  # up to this many fresh keys, inserting beats sorting (a memmove each)

    def __init__(self) -> None:
        self._sorted: list[str] = []
        self._fresh: set[str] = set()
        self._gone: set[str] = set()
        self._ordered = True

    def fill(self, keys: Iterable[str]) -> None:
        """Begin with these keys, in any order; sorted when first asked for."""
        self._sorted = list(keys)
        self._ordered = False

    def add(self, key: str) -> None:
        """Add a key that is not in the index."""
        if key in self._gone:
            self._gone.discard(key)
        else:
            self._fresh.add(key)

    def remove(self, key: str) -> None:
        """Remove a key that is in the index."""
        if key in self._fresh:
            self._fresh.discard(key)
        else:
            self._gone.add(key)

    def _settle(self) -> list[str]:
        if not self._ordered:
            self._sorted.sort()
            self._ordered = True
        if len(self._gone) > self._FEW:
            self._sorted = [key for key in self._sorted if key not in self._gone]
        else:
            for key in self._gone:
                del self._sorted[bisect_left(self._sorted, key)]
        self._gone.clear()
        if len(self._fresh) > self._FEW:
            self._sorted.extend(self._fresh)
            self._sorted.sort()
        else:
            for key in self._fresh:
                insort(self._sorted, key)
        self._fresh.clear()
        return self._sorted

    def under(self, prefix: str, after: str = "") -> Iterator[str]:
        """Keys that the prefix selects, those above `after`, in order of code points."""
        settled = self._ordered and not self._fresh and not self._gone
        keys = self._sorted if settled else self._settle()
        start = bisect_right(keys, after) if after >= prefix else bisect_left(keys, prefix)
        for i in range(start, len(keys)):
            key = keys[i]
            if under(prefix, key):
                yield key
            elif not key.startswith(prefix):
                return  # siblings such as orders-2 stand between orders and orders/1
