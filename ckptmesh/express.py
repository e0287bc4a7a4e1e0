"""The short way of a transaction through the client's brain, while nothing is in its way.

Rule 1: what it decides is what `Session` would have decided; whatever is out of the ordinary goes
        the ordinary way, at any point.
Rule 2: as in `session.py`: no clock, no socket, no waiting, one thread at a time.

A worker that commits and waits, over and over, is woken once for each commit, and then every step
is paid for with cold caches: the ordinary way takes about 700 of the interpreter's steps more.
"""

from __future__ import annotations

from typing import Any

from ckptmesh import session
from ckptmesh.calls import NEVER, Call, Copy
from ckptmesh.messages import Outcome, Reply, Transact
from ckptmesh.session import Session

_new: Any = tuple.__new__  # a tuple of its fields, without the Python-level __new__ of a NamedTuple


class ExpressSession(Session):
    """A `Session` with a short way. For each call: `express`; send the copy; then `landed` with
    what came, or `late`."""

    @property
    def least_patience(self) -> float:
        """Seconds that an express call may go without an answer before `late` has to be said."""
        return session.RESEND_FIRST / 2

    def express(self, command: Transact, now: float, deadline: float) -> Copy | None:
        """`call` and `copies` in one, for a transaction that nothing stands in the way of; None
        where something does: then ask by `call`. Every step counts in a process that has just been
        woken, and this is a third of them.

        The timetable does not know of the call yet: after a moment without an answer (`landed`), or
        when the copy could not be sent, say `late`. What `pack` raises, this raises.
        """
        lane = self._lane
        if (lane is None or self._waiting or self._ready or self._waiting_reads or self._closed
                or self._missing is not None or deadline <= now):
            return None
        op, body = self._pack(command)
        self._orders += 1
        call = Call(command, op, body, now, deadline, self._orders)
        if not lane.fits(call):
            return None
        self._unreachable = False
        self._live += 1
        self._held_calls += 1
        self._held_bytes += call.size
        call.after, call.stamp, call.copies, call.attempt = self.seen[1], self.epoch, 1, 1
        lane.add(call)
        copy: Copy = _new(Copy, (call, op, body, lane.session, call.number, lane.low, self.uuid,
                                 self.epoch))
        return copy

    def landed(self, call: Call, op: int, reply: Reply) -> bool:
        """Settle an express call, if this is its outcome and tells nothing else; the call is then
        not among `settled`. Else the reply is for `receive`."""
        sid, number, epoch, result, error = reply
        lane = call.lane
        if (error is not None or op != call.op or lane is None or number != call.number
                or sid != lane.session or epoch != self.epoch or self._missing is not None
                or call.settled or type(result) is not Outcome or result.revision < call.after):
            return False
        lane.remove(call)
        if lane is not self._lane and not lane.open:
            self._lanes.pop(lane.session, None)
        if result.revision > self.seen[1]:
            self._saw(result.epoch, result.revision)
        self._live -= 1
        self._held_calls -= 1
        self._held_bytes -= call.size
        call.settled, call.result, call.epoch = True, result, epoch
        call.release()
        return True

    def late(self, call: Call) -> None:
        """An express call takes longer: from now on it is a call like any other."""
        if not call.settled and call.wake == NEVER and not call.ready:
            self._schedule(call, call.started + self._patience(call))
