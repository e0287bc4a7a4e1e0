"""A set of integers as the half-open intervals that it is made of: the brain of `intervals.py`.

The bounds stand in one sorted array, start, end, start, end, …; neighbours are joined, so a bound
is where the set begins or ends. Two bisections find what an interval touches; at an even place of
the array a number is outside the set, at an odd one inside.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from operator import ge

from ckptmesh.features.packing import pack_integers, unpack_integers


class Spans:
    """A set of integers of 64 bits, signed. 16 bytes of memory for each interval."""

    def __init__(self, bounds: Iterable[int] = ()) -> None:
        self._bounds = array("q", bounds)

    def add(self, start: int, end: int) -> None:
        """Add [start, end)."""
        bounds = self._bounds
        left, right = bisect_left(bounds, start), bisect_right(bounds, end)
        bounds[left:right] = array("q", [start] * (left % 2 == 0) + [end] * (right % 2 == 0))

    def discard(self, start: int, end: int) -> None:
        """Remove [start, end)."""
        bounds = self._bounds
        left, right = bisect_left(bounds, start), bisect_right(bounds, end)
        bounds[left:right] = array("q", [start] * (left % 2) + [end] * (right % 2))

    def touches(self, start: int, end: int) -> bool:
        """Whether any number of [start, end) is in it."""
        place = bisect_right(self._bounds, start)
        return place % 2 == 1 or (place < len(self._bounds) and self._bounds[place] < end)

    def gap(self, start: int) -> tuple[int, int | None]:
        """The first interval from `start` on that is not in it; None: without an end."""
        bounds = self._bounds
        place = bisect_right(bounds, start)
        if place % 2:
            start, place = bounds[place], place + 1
        return start, bounds[place] if place < len(bounds) else None

    def gaps(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """All intervals of [start, end) that are not in it, ascending."""
        while start < end:
            first, last = self.gap(start)
            if first >= end:
                return
            start = end if last is None else min(last, end)
            yield first, start

    def __iter__(self) -> Iterator[tuple[int, int]]:
        bounds = self._bounds
        return zip(bounds[::2], bounds[1::2], strict=True)

    def __len__(self) -> int:
        """How many intervals, not how many numbers."""
        return len(self._bounds) // 2

    @property
    def last(self) -> int | None:
        """The end of the last interval."""
        return self._bounds[-1] if self._bounds else None

    @property
    def total(self) -> int:
        """How many numbers."""
        return sum(self._bounds[1::2]) - sum(self._bounds[::2])

    def copy(self) -> Spans:
        """Another set with the same numbers."""
        return Spans(self._bounds)

    def dump(self) -> bytes:
        """As bytes: two to four for each interval, where they are near each other."""
        return pack_integers(self._bounds)

    @staticmethod
    def load(data: bytes) -> Spans:
        """What `dump` gave. Raises `ValueError`, `TypeError`."""
        bounds = unpack_integers(data)
        if len(bounds) % 2 or any(map(ge, bounds, bounds[1:])):
            raise ValueError("not a set of intervals")
        return Spans(bounds)
