"""How tasks share one transport: a turn of the event loop sends and receives for all.

Rule 1: a turn never waits. A transport with a descriptor is watched by the loop; one without (an
        engine in this process, whose sync takes its time) works in a thread, one batch at a time.
Rule 2: a cancelled task gives its call up; nobody else notices.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Generator
from typing import Any

from ckptmesh.calls import NEVER, Call
from ckptmesh.errors import Closed, Error
from ckptmesh.limits import IN_FLIGHT_REQUESTS
from ckptmesh.link import Link
from ckptmesh.messages import Command
from ckptmesh.views import Receipt


class SubmittedTask(asyncio.Future[Receipt]):
    """A commit on its way; await it for the receipt. `told` says whether anybody asked."""

    told = False

    def __await__(self) -> Generator[Any, None, Receipt]:
        self.told = True
        return (yield from super().__await__())

    def result(self) -> Receipt:
        """As of any future."""
        self.told = True
        return super().result()

    def exception(self) -> BaseException | None:
        """As of any future."""
        self.told = True
        return super().exception()


class TaskPump:
    """The waiting of one asyncio client."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._loop = asyncio.get_running_loop()
        self._descriptor = link.transport.descriptor()
        self._scheduled = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = NEVER
        self._batch: asyncio.Future[list[bytes]] | None = None  # under way in a thread
        self._closed = False
        self._submitted: set[asyncio.Task[None]] = set()
        self._untold: list[tuple[SubmittedTask, Exception]] = []
        if self._descriptor is not None:
            self._loop.add_reader(self._descriptor, self._turn)

    async def ask(self, what: Command | Callable[[], Call], deadline: float) -> Call:
        """Ask, and wait until it is settled. A callable makes the call itself."""
        if asyncio.get_running_loop() is not self._loop:
            raise Closed("this client belongs to another event loop",
                         hint="connect again in the loop that uses it")
        call = what() if callable(what) else self._link.call(what, deadline)
        if call.settled:
            return call
        settled: asyncio.Future[None] = self._loop.create_future()
        call.owner = settled
        self._schedule()
        try:
            await settled
        except BaseException:
            self._link.session.give_up(call)
            self._schedule()
            raise
        return call

    async def submit(self, work: Coroutine[Any, Any, Receipt]) -> SubmittedTask:
        """Do this beside what goes on; waits only while too much is in flight."""
        try:
            while self._link.session.full and self._submitted:
                await asyncio.wait(self._submitted, return_when=asyncio.FIRST_COMPLETED)
        except BaseException:
            work.close()
            raise
        future = SubmittedTask(loop=self._loop)

        async def settle() -> None:
            try:
                receipt = await work
            except Exception as error:
                if not future.done():
                    future.set_exception(error)
                    future._log_traceback = False  # flush() and close() tell it
                    if len(self._untold) < IN_FLIGHT_REQUESTS:
                        self._untold.append((future, error))
            except BaseException:
                future.cancel()
                raise
            else:
                if not future.done():
                    future.set_result(receipt)

        task = self._loop.create_task(settle())
        self._submitted.add(task)
        task.add_done_callback(self._submitted.discard)
        await asyncio.sleep(0)  # so that it is asked in order, and counts as in flight
        return future

    async def flush(self) -> None:
        """Wait until all that was submitted is settled. Raises the first error untold."""
        while self._submitted:
            await asyncio.wait(self._submitted)
        untold, self._untold = self._untold, []
        for future, error in untold:
            if not future.told:
                raise error

    async def close(self) -> None:
        """Settle everything, wait for the batch under way, let go of the transport."""
        self._link.session.close()
        self._tell()
        self._closed = True
        if self._descriptor is not None:
            self._loop.remove_reader(self._descriptor)
        if self._timer is not None:
            self._timer.cancel()
        if self._batch is not None:
            await asyncio.wait((self._batch,))
        self._link.close()

    # --- turns --------------------------------------------------------------------------------

    def _schedule(self) -> None:
        if not self._scheduled and not self._closed:
            self._scheduled = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        """Send what is due, receive what is there, tell who waits, plan the next turn."""
        self._scheduled = False
        if self._closed:
            return
        link = self._link
        if self._batch is not None:  # a thread uses the transport
            link.expire()
            self._tell()
            self._plan()
            return
        link.send()
        if self._descriptor is not None:
            payloads = link.transport.receive(0.0)
            link.feed(payloads)
            if payloads:
                link.send()
            if link.transport.pending():
                self._schedule()
        elif link.transport.pending():
            self._batch = self._loop.run_in_executor(None, link.transport.receive, 1.0)
            self._batch.add_done_callback(self._end_batch)
        self._tell()
        self._plan()

    def _end_batch(self, batch: asyncio.Future[list[bytes]]) -> None:
        self._batch = None
        try:
            self._link.feed(batch.result())
        except Error as error:
            self._link.session.fail(error)
        except BaseException as error:
            self._link.session.fail(Error(f"the embedded store failed: {error!r}"))
        self._tell()
        self._schedule()

    def _tell(self) -> None:
        for call in self._link.settled():
            settled = call.owner
            if settled is not None and not settled.done():
                settled.set_result(None)

    def _plan(self) -> None:
        """A timer for what is due although nothing arrives."""
        at = min(self._link.session.wake_at(), self._link.transport.due())
        if at == self._timer_at and self._timer is not None:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._timer_at = at
        if at != NEVER:
            self._timer = self._loop.call_later(max(0.0, at - time.monotonic()), self._ring)

    def _ring(self) -> None:
        self._timer = None
        self._turn()
