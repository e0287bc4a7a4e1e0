"""What was: the ring of recent commits, and the sorted index of keys.

Rule 1: nothing here reads a clock or decides anything; `state.py` alone changes these.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

from ckptmesh.entries import HEAD_BYTES, Packed, unpack_version
from ckptmesh.limits import under
from ckptmesh.messages import PUT, Change, Commit, tuple_of

# Bytes of objects around a commit, around each of its changes with its version, and around each
# source of a version, at most. The floor follows from them, so they never change: another release
# must find the same floor in the same log.
COMMIT_COST, CHANGE_COST, _SOURCE_COST = 400, 500, 160

Row = tuple[Any, ...]
"""A commit as the ring holds it, without an object for each part: (cost, time, epoch, session,
number, results), then (kind, key, packed version or None) of one change after the other."""

_CHANGES = 6  # index of the first change in a row
keys_in: Callable[[Row], tuple[str, ...]] = itemgetter(slice(_CHANGES + 1, None, 3))
"""The keys that the commit of a row changed."""


def weight(version: tuple[Any, ...]) -> int:
    """Bytes of what a version, or the tuple of its fields, carries: its value and its sources."""
    value, sources = version[0], version[9]
    if not sources:
        return len(value)
    return len(value) + sum(len(key) + _SOURCE_COST for key, _ in sources)


def weight_of(packed: Packed | None) -> int:
    """The same for a packed version; 0 for a deletion."""
    if isinstance(packed, bytes):
        return len(packed) - HEAD_BYTES
    return 0 if packed is None else weight(packed)


def cost(commit: Commit) -> int:
    """Bytes of memory that a commit holds, about: keys, values and the objects around them."""
    return COMMIT_COST + sum(
        CHANGE_COST + len(change.key) + (weight(change.version) if change.version else 0)
        for change in commit.changes
    )


def session_of(row: Row) -> bytes:
    """The session whose request made a commit; b"" for an expiry."""
    session: bytes = row[3]
    return session


def commit_of(revision: int, row: Row) -> Commit:
    """The commit of a row."""
    _, time, epoch, session, number, results, *rest = row
    changes = tuple([
        tuple_of(Change, (
            at // 3, rest[at], rest[at + 1],
            None if (packed := rest[at + 2]) is None else unpack_version(packed)))
        for at in range(0, len(rest), 3)
    ])
    commit: Commit = tuple_of(Commit, (revision, epoch, time, changes, session, number, results))
    return commit


class Block(NamedTuple):
    """Commits of consecutive revisions from `first` on, each of one plain put, by columns."""

    first: int
    times: Sequence[int]
    epochs: Sequence[int]
    sessions: Sequence[bytes]
    numbers: Sequence[int]
    results: Sequence[tuple[int, ...]]
    keys: Sequence[str]
    packed: Sequence[bytes]

    @property
    def size(self) -> int:
        """How many commits these are."""
        return len(self.keys)

    def row(self, at: int) -> Row:
        """The row of the commit at this index."""
        return (self.cost(at, at + 1), *(column[at] for column in self[1:6]), PUT, self.keys[at],
                self.packed[at])

    def cost(self, begin: int, end: int) -> int:
        """What these commits cost."""
        return ((end - begin) * (COMMIT_COST + CHANGE_COST - HEAD_BYTES)
                + sum(map(len, self.keys[begin:end])) + sum(map(len, self.packed[begin:end])))


class _Rows(NamedTuple):
    """Commits of consecutive revisions from `first` on, by rows."""

    first: int
    rows: list[Row]

    @property
    def size(self) -> int:
        """How many commits these are."""
        return len(self.rows)

    def row(self, at: int) -> Row:
        """The row of the commit at this index."""
        return self.rows[at]


class Ring:
    """The newest commits, without a gap: revisions `first` … `last`. Indexed by revision.

    Commits are made when they are asked for. Rows are exact tuples of plain values, so that the
    garbage collector leaves them alone. Many plain puts stay in blocks: most of them leave again as
    they came, and have cost next to nothing. The newest commits are rows, `_rows`, to which more
    are added; whatever came before is in `_parts`.
    """

    _FEW = 64  # a block of fewer becomes rows, lest rows and blocks take turns all the time

    def __init__(self, first: int = 1) -> None:
        self._parts: list[Block | _Rows] = []
        self._in_parts = 0  # commits in all of them
        self._rows: list[Row] = []
        self._gone = 0  # leading commits of what is first, already dropped, not yet cut
        self.first = first
        self.bytes = 0

    def __len__(self) -> int:
        return self._in_parts + len(self._rows) - self._gone

    def beyond(self, count: int, size: int) -> bool:
        """Whether anything is in it beyond so many commits or bytes."""
        length = self._in_parts + len(self._rows) - self._gone
        return length > 0 and (length > count or self.bytes > size)

    def append(self, fields: Sequence[Any]) -> Row:
        """Add the commit of the next revision, given the fields of its row after the cost."""
        carried = 0
        for at in range(_CHANGES, len(fields), 3):
            carried += len(fields[at]) + weight_of(fields[at + 1])
        return self.append_plain(fields, carried)

    def append_plain(self, fields: Sequence[Any], carried: int) -> Row:
        """The same where it is known how many bytes its keys and values have."""
        changes = (len(fields) - _CHANGES + 1) // 3
        size = COMMIT_COST + changes * CHANGE_COST + carried
        row = (size, *fields)
        self._rows.append(row)
        self.bytes += size
        return row

    def extend(self, block: Block) -> None:
        """Add the commits of the next revisions."""
        rows = self._rows
        if rows and block.size < self._FEW:
            rows += map(block.row, range(block.size))
        else:
            if len(rows) == self._gone and not self._parts:
                self._gone = 0
            elif rows:
                self._parts.append(_Rows(block.first - len(rows), rows))
                self._in_parts += len(rows)
            self._rows = []
            self._parts.append(block)
            self._in_parts += block.size
        self.bytes += block.cost(0, block.size)

    def cut(self, count: int, size: int) -> tuple[list[str], int | None]:
        """Drop the oldest commits until nothing is beyond so many commits or bytes. Returns the
        keys that they changed, and the time of the last one dropped; None for none."""
        keys: list[str] = []
        time: int | None = None
        while self.beyond(count, size):
            part = self._parts[0] if self._parts else None
            over = len(self) - max(0, count)
            if isinstance(part, Block) and over > 0:
                begin, end = self._gone, min(self._gone + over, part.size)
                keys += part.keys[begin:end]
                time = part.times[end - 1]
                self.bytes -= part.cost(begin, end)
                self._skip(part, end - begin)
            else:
                time, more = self.popleft()
                keys += more
        return keys, time

    def _skip(self, part: Block | _Rows, count: int) -> None:
        """Drop the oldest commits of the first part."""
        self.first += count
        self._gone += count
        if self._gone == part.size:
            del self._parts[0]
            self._in_parts -= self._gone
            self._gone = 0

    def popleft(self) -> tuple[int, Sequence[str]]:
        """Drop the oldest commit. Returns its time, and the keys that it changed."""
        at = self._gone
        if not self._parts:
            row = self._dropped(self._rows, at)
            self._gone += 1
            self.first += 1
            if self._gone > 1_024 and self._gone * 2 > len(self._rows):
                del self._rows[: self._gone]
                self._gone = 0
            return row[1], keys_in(row)
        part = self._parts[0]
        self._skip(part, 1)
        if isinstance(part, _Rows):
            row = self._dropped(part.rows, at)
            return row[1], keys_in(row)
        self.bytes -= part.cost(at, at + 1)
        return part.times[at], part.keys[at : at + 1]

    def _dropped(self, rows: list[Row], at: int) -> Row:
        row = rows[at]
        rows[at] = ()  # its values must not wait for the list to be cut
        self.bytes -= row[0]
        return row

    def __getitem__(self, revision: int) -> Commit:
        return commit_of(revision, self._row(revision))

    def _row(self, revision: int) -> Row:
        at = revision - self.first + self._gone
        if at >= self._in_parts:
            return self._rows[at - self._in_parts]
        part = self._parts[bisect_right(self._parts, revision, key=itemgetter(0)) - 1]
        return part.row(revision - part.first)

    def after(self, revision: int) -> Iterator[Commit]:
        """Commits with a higher revision, in order; `revision` at least `first` - 1."""
        return (commit_of(at, row) for at, row in self.rows_after(revision))

    def rows_after(self, revision: int) -> Iterator[tuple[int, Row]]:
        """The same as (revision, row), for those who look at many and take few."""
        revision += 1
        start = max(0, bisect_right(self._parts, revision, key=itemgetter(0)) - 1)
        for part in self._parts[start:]:
            for at in range(revision - part.first, part.size):
                yield revision, part.row(at)
                revision += 1
        # islice would walk all before these
        for at in range(revision - self.first + self._gone - self._in_parts, len(self._rows)):
            yield revision, self._rows[at]
            revision += 1

    def time_of(self, revision: int) -> int:
        """The time of a revision in the ring."""
        time: int = self._row(revision)[1]
        return time

    def not_later(self, time: int) -> int:
        """The last revision whose time is not later; `first` - 1 when there is none."""
        revisions = range(self.first, self.first + len(self))
        return self.first + bisect_right(revisions, time, key=self.time_of) - 1


class KeyIndex:
    """Keys in order, sorted only when somebody asks.

    Adding and removing is O(1); the next scan merges what has changed since the last one.
    """

    _FEW = 64  # up to this many fresh keys, inserting beats sorting (a memmove each)
    _FRESH = 4_096  # fresh keys held as a set: it takes 32 to 64 bytes each, the list 8

    def __init__(self) -> None:
        self._sorted: list[str] = []  # in order if `_ordered`
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
            if len(self._fresh) > self._FRESH:
                self._sorted.extend(self._fresh)
                self._fresh.clear()
                self._ordered = False

    def extend(self, keys: Iterable[str]) -> None:
        """Add many keys that are not in the index."""
        if self._gone:
            for key in keys:
                self.add(key)
        else:
            self._sorted.extend(keys)
            self._ordered = False

    def remove(self, key: str) -> None:
        """Remove a key that is in the index."""
        if key in self._fresh:
            self._fresh.discard(key)
        else:
            self._gone.add(key)
            if len(self._gone) > self._FRESH and 2 * len(self._gone) > len(self._sorted):
                self._drop()

    def _drop(self) -> None:
        self._sorted = [key for key in self._sorted if key not in self._gone]
        self._gone.clear()

    def _settle(self) -> list[str]:
        if not self._ordered:
            self._sorted.sort()
            self._ordered = True
        if len(self._gone) > self._FEW:
            self._drop()
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
