"""How threads share one transport: whoever waits does the work of all.

Rule 1: no background thread. One thread pumps: it sends for all, receives for all, and hands the
        pump over when its own call is settled. The others sleep until they are told.
Rule 2: only the pumping thread uses the transport, and waits there without the lock.
Rule 3: no user code runs while the lock is held.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from ckptmesh.calls import Call
from ckptmesh.errors import Error
from ckptmesh.limits import IN_FLIGHT_REQUESTS
from ckptmesh.link import FOREVER, Link
from ckptmesh.messages import Command, Outcome
from ckptmesh.operation import Operation
from ckptmesh.views import Receipt

GATHER = 64  # submitted commits that go out together while others are on their way …
GATHER_TIME = 0.001  # … or those of so many seconds


class Submitted(Future[Receipt]):
    """A commit on its way. It goes on while any thread waits on its client: in `result()`, in
    `flush()`, or in any other call. It cannot be cancelled."""

    def __init__(self, pump: Pump, operation: Operation[Receipt], deadline: float) -> None:
        super().__init__()
        self._pump = pump
        self._waiter = _Waiter(operation, self, deadline)

    def cancel(self) -> bool:
        """False: what is on its way cannot be called back."""
        return False

    def running(self) -> bool:
        """Whether it is on its way."""
        return not self.done()

    def result(self, timeout: float | None = None) -> Receipt:
        """The receipt, or the error of the commit. `TimeoutError` after `timeout` seconds."""
        self._pump.wait_for(self._waiter, timeout)
        return super().result(0)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """The error of the commit, or None. `TimeoutError` after `timeout` seconds."""
        self._pump.wait_for(self._waiter, timeout)
        return super().exception(0)


class _Waiter:
    """Something that is waited for: one call, or a submitted operation with its future."""

    __slots__ = ("deadline", "done", "future", "operation", "turns")

    def __init__(self, operation: Operation[Any] | None = None, future: Submitted | None = None,
                 deadline: float = FOREVER) -> None:
        self.operation = operation
        self.future = future
        self.deadline = deadline
        self.done = False
        self.turns: list[threading.Condition] = []  # of the threads that stand by


class Pump:
    """The waiting of one client. `settle` gives an operation the answer to its call and raises
    what the operation raises."""

    def __init__(self, link: Link, settle: Callable[[Operation[Any], Call], None]) -> None:
        self._link = link
        self._settle = settle
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)  # told when a pumping thread stops
        self._thread = 0  # that used this client first
        self._several = False
        self._pumping = False
        self._closing = False
        self._receiving = False
        self._standby: dict[threading.Condition, None] = {}
        self._finished: deque[tuple[_Waiter, Any, Error | None]] = deque()
        self._submitted: dict[_Waiter, None] = {}
        self._gathered = 0  # submitted since the last exchange
        self._exchanged = 0.0  # when that was
        self._untold: dict[_Waiter, Error] = {}  # of submitted commits, until somebody is told

    def commit(self, key: str, value: bytes, deadline: float) -> Outcome | Call | None:
        """Put a packed value and nothing else, by the short way: its outcome. Else a settled call,
        or None where nothing was asked: `ask` then.

        Only as long as one thread alone uses the client: meanwhile the lock is held.
        """
        if self._shared():
            return None
        with self._lock:
            if self._pumping or self._finished or self._submitted:
                return None
            found = self._link.commit(key, value, deadline)
        return self.ask(lambda: found, deadline) if isinstance(found, Call) else found

    def _shared(self) -> bool:
        """Whether more than one thread has used this client."""
        me = threading.get_ident()
        if self._thread != me:
            if self._thread:
                self._several = True
            else:
                self._thread = me
        return self._several

    def ask(self, what: Command | Callable[[], Call], deadline: float) -> Call:
        """Ask, and wait until it is settled. A callable makes the call itself."""
        self._shared()
        with self._lock:
            call = what() if callable(what) else self._link.call(what, deadline)
            waiter = call.owner = _Waiter()
            waiter.done = call.settled
            try:
                if self._pumping or self._finished:
                    self._await(waiter, deadline)
                elif not waiter.done:  # one thread alone, as most often
                    self._work(waiter, deadline)
                    if self._finished or not waiter.done:
                        self._await(waiter, deadline)
                if not waiter.done:  # the pumping thread is held up, by a sync that takes long
                    self._link.expire()
                    self._collect()
            except BaseException:  # KeyboardInterrupt above all
                self._link.session.give_up(call)
                raise
        return call

    def submit(self, operation: Operation[Receipt], deadline: float) -> Submitted:
        """Ask, and wait only while too much is in flight."""
        self._shared()
        future = Submitted(self, operation, deadline)
        waiter = future._waiter
        assert operation.command is not None  # a commit always asks
        with self._lock:
            while self._link.session.full and self._submitted:
                self._await(next(iter(self._submitted)), FOREVER)
            call = self._link.call(operation.command, deadline)
            call.owner = waiter
            self._submitted[waiter] = None
            self._gathered += 1
            # What a message costs is paid once for all that go out together. The first goes at
            # once: only while others are on their way is there something to gain by waiting.
            if (len(self._submitted) == 1 or self._gathered >= GATHER
                    or call.started - self._exchanged >= GATHER_TIME):
                if self._receiving:
                    self._link.transport.wake()
                elif not self._pumping:
                    self._work(waiter, 0.0)
            if self._finished:
                self._run_callbacks()
        return future

    def wait_for(self, waiter: _Waiter, timeout: float | None) -> None:
        """Wait for a submitted commit, at most `timeout` seconds. Its error counts as told."""
        if waiter.done and waiter not in self._untold:
            return
        self._link.owner.check()
        until = FOREVER if timeout is None else time.monotonic() + timeout
        with self._lock:
            self._await(waiter, until)
            if waiter.done:
                self._untold.pop(waiter, None)  # by whoever asked for this

    def flush(self) -> None:
        """Wait until every submitted commit is settled. Raises the first error that nobody has
        been told yet."""
        with self._lock:
            while self._submitted:
                self._await(next(iter(self._submitted)), FOREVER)
            untold, self._untold = self._untold, {}
        for error in untold.values():
            raise error

    def figures(self) -> dict[str, Any]:
        """What `stats()` tells."""
        with self._lock:
            return self._link.figures()

    def close(self) -> None:
        """Settle everything, wait until nobody uses the transport, let go of it."""
        link = self._link
        with self._lock:
            self._closing = True
            link.session.close()
            self._collect()
            self._run_callbacks()
            while self._pumping:  # that thread's call has settled; it only has to notice
                link.transport.wake()
                self._idle.wait(1.0)
            link.close()

    # --- with the lock held ---------------------------------------------------------------------

    def _await(self, waiter: _Waiter, until: float) -> None:
        """With the lock held: wait for something, doing the work of all meanwhile."""
        try:
            while True:
                self._run_callbacks()
                if waiter.done or time.monotonic() >= until:
                    return
                if self._pumping:
                    self._stand_by(waiter, until)
                else:
                    self._work(waiter, until)
        finally:
            self._hand_over()

    def _stand_by(self, waiter: _Waiter, until: float) -> None:
        """Sleep until the pumping thread has our answer, or leaves the pump to us."""
        turn = threading.Condition(self._lock)
        waiter.turns.append(turn)
        self._standby[turn] = None
        if self._receiving:
            self._link.transport.wake()
        try:
            turn.wait(None if until == FOREVER else max(0.0, until - time.monotonic()))
        finally:
            waiter.turns.remove(turn)
            del self._standby[turn]

    def _hand_over(self) -> None:
        if not self._pumping:
            for turn in self._standby:
                turn.notify()
                return

    def _work(self, waiter: _Waiter, until: float) -> None:
        """Send and receive for everybody, at least once, until what we wait for is there."""
        self._pumping = True
        try:
            while True:
                self._exchange(waiter, until)
                if waiter.done or self._finished or time.monotonic() >= until:
                    return
        finally:
            self._rest()

    def _rest(self) -> None:
        """This thread pumps no more."""
        self._pumping = False
        if self._closing:
            self._idle.notify_all()
        if self._standby:
            self._hand_over()

    def _exchange(self, waiter: _Waiter, until: float) -> None:
        link = self._link
        self._gathered, self._exchanged = 0, time.monotonic()
        link.send()
        self._collect()
        if waiter.done or self._finished:  # by its deadline: there may be nothing to wait for
            return
        link.feed(self._receive(until))
        self._collect()

    def _receive(self, until: float) -> list[bytes]:
        """Wait, without the lock, for what comes, until something else is due."""
        link = self._link
        wait = link.wait(until)
        payloads: list[bytes] = []
        broken: Error | None = None
        self._receiving = True
        self._lock.release()
        try:
            payloads = link.transport.receive(wait)
        except Error as error:
            broken = error
        finally:
            self._lock.acquire()
            self._receiving = False
        if broken is not None:
            link.session.fail(broken)
        return payloads

    def _collect(self) -> None:
        """Tell the threads and futures whose calls have settled."""
        for call in self._link.settled():
            waiter: _Waiter | None = call.owner
            if waiter is None:
                continue
            if waiter.operation is None:
                self._done(waiter)
            else:
                self._advance(waiter, waiter.operation, call)

    def _done(self, waiter: _Waiter) -> None:
        waiter.done = True
        for turn in waiter.turns:
            turn.notify()

    def _advance(self, waiter: _Waiter, operation: Operation[Any], call: Call) -> None:
        """A submitted operation goes on; its future is told later, without the lock."""
        try:
            self._settle(operation, call)
            if operation.command is not None:
                self._link.call(operation.command, waiter.deadline).owner = waiter
                return
        except Error as error:
            if len(self._untold) < IN_FLIGHT_REQUESTS:
                self._untold[waiter] = error
            self._finished.append((waiter, None, error))
        else:
            self._finished.append((waiter, operation.value, None))

    def _run_callbacks(self) -> None:
        """Settle futures. Their callbacks are users' code, which may call this client."""
        while self._finished:
            waiter, value, error = self._finished.popleft()
            future = waiter.future
            assert future is not None  # only submitted operations come here
            self._submitted.pop(waiter, None)
            self._lock.release()
            try:
                if error is not None:
                    future.set_exception(error)
                else:
                    future.set_result(value)
            finally:
                self._lock.acquire()
                waiter.future = None  # a ring of thousands would be left for the collector
                self._done(waiter)
