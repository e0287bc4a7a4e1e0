"""The short way of a plain commit through the client's brain, while nothing else is under way.

Rule 1: what it decides is what `Session` would have decided. Whatever is out of the ordinary goes
        the ordinary way, also when the request is on its way already (`adopt`).
Rule 2: as in `session.py`: no clock, no socket, no waiting, one thread at a time.

A worker that commits and waits, over and over, is woken once for each commit, and pays for every
step with cold caches. The ordinary way keeps a call, its timetable and queues for what may come
between; here nothing does, so there is no call, only its number.
"""

from __future__ import annotations

from ckptmesh.calls import Call, Lane
from ckptmesh.messages import Outcome, Transact
from ckptmesh.session import Session


class ExpressSession(Session):
    """A `Session` with a short way: ask `clear`, send the request with the lane's next number, and
    then say `landed`, or `adopt` it at once where its outcome is not what came first."""

    def clear(self) -> Lane | None:
        """The lane of the next transaction, if nothing at all is open or waiting. The next number
        of the lane is then its `low` as well."""
        lane = self._lane
        if (lane is None or lane.open or self._missing is not None or self._closed
                or self._waiting or self._waiting_reads or self._ready or self._finds):
            return None
        return lane

    def landed(self, lane: Lane, outcome: Outcome) -> bool:
        """Take in the outcome of the lane's next number. False where it tells of a lost past, which
        is for `receive` to say."""
        if outcome.revision < self.seen[1]:
            return False
        lane.next += 1
        lane.low = lane.next
        if outcome.revision > self.seen[1]:
            self._saw(outcome.epoch, outcome.revision)
        return True

    def adopt(self, lane: Lane, command: Transact, now: float, deadline: float) -> Call:
        """The request with the lane's next number, which was sent at `now`, as a call like any
        other."""
        call = self._new(command, now, deadline)
        self._held_calls += 1
        self._held_bytes += call.size
        lane.add(call)
        self._emit(call, now)
        return call
