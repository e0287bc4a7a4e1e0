"""Deadlines of leases: when a holder that stays silent loses its grant.

Rule 1: deadlines are volatile. A restart grants every lease its full TTL again, so that nobody
        loses a lease because the store was away.
Rule 2: nothing ends here. `ended` names leases whose time is over; they end by their record.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush


class Deadlines:
    """A deadline per key, in store time (microseconds), and which are over."""

    def __init__(self) -> None:
        self._at: dict[str, int] = {}
        self._heap: list[tuple[int, str]] = []  # an element may be early or stale, never late

    def __len__(self) -> int:
        return len(self._at)

    def grant(self, key: str, deadline: int) -> None:
        """A new grant, or a new holder's."""
        self._at[key] = deadline
        heappush(self._heap, (deadline, key))
        if len(self._heap) > 2 * len(self._at) + 1_024:
            self._heap = [(at, name) for name, at in self._at.items()]
            heapify(self._heap)

    def renew(self, key: str, deadline: int) -> None:
        """A later deadline for a grant that stands; the heap catches up when it gets there."""
        self._at[key] = max(deadline, self._at[key])

    def drop(self, key: str) -> None:
        """The grant is over: released, replaced by data, or ended by its record."""
        self._at.pop(key, None)

    def shift(self, micros: int) -> None:
        """Move every deadline by the length of a pause in which nobody could renew."""
        for key in self._at:
            self._at[key] += micros

    def ended(self, now: int, most: int) -> list[str]:
        """Up to `most` keys whose deadline has passed, soonest first. Asking changes nothing that
        matters: those named stay until they are dropped."""
        found: dict[str, int] = {}
        while self._heap and self._heap[0][0] <= now and len(found) < most:
            _, key = heappop(self._heap)
            deadline = self._at.get(key)
            if deadline is None:
                continue
            if deadline > now:
                heappush(self._heap, (deadline, key))
            else:
                found[key] = deadline
        for key, deadline in found.items():
            heappush(self._heap, (deadline, key))
        return list(found)

    def next(self) -> int | None:
        """A time not later than the next deadline; None when there is no lease."""
        return self._heap[0][0] if self._at and self._heap else None
