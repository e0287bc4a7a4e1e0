"""Watching a pipeline, or everything: `mesh.watch("orders")`. The two shells around `feed.py`.

    with mesh.watch("orders", since=receipt) as events:
        for event in events:
            print(event.kind, event.key, event.revision)

Rule 1: what to do next is decided in `feed.py`, once; here is only how to ask and how to wait.
Rule 2: a socket is used under the lock of its watch, by one thread at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import timedelta
from types import TracebackType
from typing import Any

from ckptmesh import sockets
from ckptmesh.clock import Seconds
from ckptmesh.errors import Closed, Error
from ckptmesh.feed import Ask, Feed, Flow, Wait, WatchSource
from ckptmesh.sockets import Socket
from ckptmesh.views import Event, Mark, Since
from ckptmesh.watching import WatchStats


def _seconds(timeout: Seconds | None) -> float | None:
    return timeout.total_seconds() if isinstance(timeout, timedelta) else timeout


def _weakly(wake: Callable[[], None]) -> Callable[[], None]:
    """`wake` without holding the watch that it wakes."""
    method = weakref.WeakMethod(wake)

    def woken() -> None:
        found = method()
        if found is not None:
            found()

    return woken


def _finish(undo: Callable[[], None] | None, *ends: int) -> None:
    if undo is not None:
        undo()
    for end in ends:
        os.close(end)


class Watch:
    """Events of the keys under a prefix ("": everything), in order, each once. Made by
    `Client.watch`. A context manager and an iterator; an iteration ends when the watch is closed.

    Use it from one thread at a time; `close` may be called from any.
    """

    def __init__(self, source: WatchSource, key: str = "", *, since: Since = None) -> None:
        self._owner = sockets.Owner()
        self._feed = Feed(source, key, since)
        self._source = source
        self._lock = threading.Lock()
        self._wake_out, self._wake_in = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        # For a watch that is dropped without close(), as by a `break` out of a loop over it.
        undo = source.on_change(_weakly(self._wake)) if source.on_change else None
        self._finish = weakref.finalize(self, _finish, undo, self._wake_out, self._wake_in)
        self._finish.atexit = False
        try:
            self._run(self._feed.open())
        except BaseException:
            self.close()
            raise

    @property
    def stats(self) -> WatchStats:
        """Counters, for monitoring and tests."""
        return self._feed.stats

    @property
    def mark(self) -> Mark | None:
        """All events up to here were given out, and there are no others; what `since=` takes. It
        grows also while nothing comes; None before the watch has begun."""
        return self._feed.mark

    def get(self, timeout: Seconds | None = None) -> Event | None:
        """The next event; None when none came within `timeout` seconds (None: for ever; while the
        store is away a question may take half a second longer).

        Raises `Compacted` (go on with `since=error.resume_from`), `DataLoss`, `OtherStore`,
        `Closed`; `InvalidPayload` for an event whose value cannot be read: the next call goes on
        after it.
        """
        self._owner.check("watch")
        try:
            with self._lock:
                found: Event | None = self._run(self._feed.next(_seconds(timeout)))
                return found
        finally:
            if self._feed.closed:
                self._dispose()

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        try:
            event = self.get()
        except Closed:
            if self._feed.closed:
                raise StopIteration from None
            raise
        assert event is not None  # without a timeout there is one
        return event

    def close(self) -> None:
        """End the watch, at once. A call that waits, here or in another thread, ends with `Closed`.
        Harmless when repeated, and in a signal handler."""
        self._feed.closed = True
        self._wake()
        self._dispose()

    def _dispose(self) -> None:
        """Give everything back, unless a call is under way: then that does so as it ends."""
        if not self._lock.acquire(blocking=False):
            return
        try:
            self._feed.close_socket()
            self._wake_out = self._wake_in = -1
            self._finish()
        finally:
            self._lock.release()

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError, OSError):
            os.write(self._wake_in, b"\0")

    def _run(self, flow: Flow) -> Any:
        try:
            step = next(flow)
            while True:
                try:
                    answer = self._do(step)
                except Exception as error:
                    step = flow.throw(error)
                else:
                    step = flow.send(answer)
        except StopIteration as end:
            return end.value
        except sockets.ContextEnded:  # its client was closed while this call waited
            raise Closed("this watch is closed", hint="begin another") from None
        except Error as error:
            self._feed.fail(error)
            raise

    def _do(self, step: Ask | Wait) -> Any:
        if isinstance(step, Ask):
            return self._source.ask(*step)
        socket = self._feed.socket
        sources: list[Socket | int] = [self._wake_out] if socket is None else [
            socket, self._wake_out]
        if self._wake_out in sockets.poll(sources, step.seconds):
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake_out, 4096)
        return None


class AsyncWatch:
    """`Watch` for asyncio: `async with`, `async for`, `await events.get(timeout=…)`. It begins
    when it is entered, or at the first event asked for."""

    def __init__(self, source: WatchSource, key: str = "", *, since: Since = None) -> None:
        self._owner = sockets.Owner()
        self._feed = Feed(source, key, since)
        self._source = source
        self._lock = asyncio.Lock()
        self._woken = asyncio.Event()
        self._undo: Callable[[], None] | None = None

    @property
    def stats(self) -> WatchStats:
        """Counters, for monitoring and tests."""
        return self._feed.stats

    @property
    def mark(self) -> Mark | None:
        """All events up to here were given out, and there are no others; what `since=` takes. It
        grows also while nothing comes; None before the watch has begun."""
        return self._feed.mark

    async def get(self, timeout: Seconds | None = None) -> Event | None:
        """As `Watch.get`. Being cancelled loses nothing."""
        self._owner.check("watch")
        async with self._lock:
            self._listen()
            found: Event | None = await self._run(self._feed.next(_seconds(timeout)))
            return found

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        try:
            event = await self.get()
        except Closed:
            if self._feed.closed:
                raise StopAsyncIteration from None
            raise
        assert event is not None  # without a timeout there is one
        return event

    async def close(self) -> None:
        """As `Watch.close`."""
        self._feed.closed = True
        self._woken.set()
        async with self._lock:
            if self._undo is not None:
                self._undo()
                self._undo = None
            self._feed.close_socket()

    async def __aenter__(self) -> AsyncWatch:
        async with self._lock:
            self._listen()
            await self._run(self._feed.open())
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None,
                        trace: TracebackType | None) -> None:
        await self.close()

    def _listen(self) -> None:
        if self._undo is None and self._source.on_change is not None and not self._feed.closed:
            loop = asyncio.get_running_loop()

            def changed() -> None:
                with contextlib.suppress(RuntimeError):  # the loop has ended
                    loop.call_soon_threadsafe(self._woken.set)

            self._undo = self._source.on_change(changed)

    async def _run(self, flow: Flow) -> Any:
        try:
            step = next(flow)
            while True:
                try:
                    answer = await self._do(step)
                except Exception as error:
                    step = flow.throw(error)
                else:
                    step = flow.send(answer)
        except StopIteration as end:
            return end.value
        except Error as error:
            self._feed.fail(error)
            raise

    async def _do(self, step: Ask | Wait) -> Any:
        if isinstance(step, Ask):
            return await self._source.ask(*step)
        if step.seconds <= 0:
            await asyncio.sleep(0)
            return None
        socket, loop = self._feed.socket, asyncio.get_running_loop()
        if socket is None:
            await self._woken_within(step.seconds)
            return None
        # Only while somebody waits: the descriptor stays readable as long as nobody reads.
        descriptor = sockets.descriptor(socket)
        loop.add_reader(descriptor, self._woken.set)
        try:
            if not sockets.readable(socket):
                await self._woken_within(step.seconds)
        finally:
            loop.remove_reader(descriptor)
        return None

    async def _woken_within(self, seconds: float) -> None:
        if not self._feed.closed:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._woken.wait(), seconds)
        self._woken.clear()
