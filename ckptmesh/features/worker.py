"""Workers that share the partitions of a pipeline: what a user holds.

    with mesh.worker("orders", partitions=32) as w:             # run this ten times
        for part in w:                                          # the owned ones, in turn
            for batch in read(part.name, since=part.value(default=0)):
                sink(batch)
                part.commit(batch.end)

Each has a fair share of the partitions, and takes over from those that end or die. The iteration
ends when the worker is drained, or at SIGTERM. `Work` in `working.py` decides; here are its two
shells, and those of a partition.
"""

from __future__ import annotations

import asyncio
import signal
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from types import FrameType, TracebackType
from typing import Any

from ckptmesh.api import Source
from ckptmesh.clock import Seconds
from ckptmesh.errors import Error, LeaseLost, Misuse
from ckptmesh.features.keeper import AsyncKeeper, Keeper
from ckptmesh.features.partitions import Partitions
from ckptmesh.features.working import Owned, Work
from ckptmesh.flows import run, run_async
from ckptmesh.views import Checkpoint, Receipt


class _Part:
    """What both kinds of partition know without waiting."""

    def __init__(self, store: Any, work: Work, owned: Owned) -> None:
        self._store, self._work, self._owned = store, work, owned
        self.key, self.name = owned.key, owned.name

    @property
    def lease(self) -> Receipt:
        """What `guard=` compares, so that `guard=part` can be written. Raises `LeaseLost` when the
        partition is lost, `Misuse` when it was given back."""
        return self._owned.lock.lease

    @property
    def lost(self) -> threading.Event | asyncio.Event:
        """Set when this process knows that the partition is lost while it is held."""
        return self._owned.lock.lost

    @property
    def held(self) -> bool:
        """Whether it is held, as far as this process can know."""
        return self._owned.lock.held

    @property
    def wanted(self) -> bool:
        """Whether it should be let go: this worker is to end, others are to have it, somebody
        waits for its lock, or it is lost. A long turn looks at it after each commit, and breaks."""
        return self._work.ending or self._owned.wanted or not self.held

    def moved(self) -> None:
        """Say that this turn has made progress, where that was committed in another way than by
        `commit`: by a transaction under `guard(part)`, say. So the worker does not rest."""
        self._work.moved(self._owned)


class Part(_Part):
    """One partition in its turn. `name` is what it was called, `key` where its checkpoint is."""

    def get(self) -> Checkpoint | None:
        """Its checkpoint, or None. Raises as `Client.get`."""
        found: Checkpoint | None = self._store.get(self.key)
        return found

    def value(self, default: Any = None) -> Any:
        """The value of its checkpoint, or `default` when there is none. Raises as `Client.get`."""
        return self._store.value(self.key, default)

    def commit(self, value: Any, *, position: int | None = None, head: int | None = None,
               sources: Iterable[Source] = (), timeout: Seconds | None = None) -> Receipt:
        """Commit its checkpoint if this worker has the partition still; arguments as of
        `Client.commit`. Raises `LeaseLost` where it has not, naming the stall if there was one:
        then nothing was written, and another worker does the rest. Else as `Client.commit`."""
        return run(self._work.commit(self._owned, value, {
            "position": position, "head": head, "sources": sources, "timeout": timeout}))


class AsyncPart(_Part):
    """`Part` for asyncio: the same names, awaited."""

    async def get(self) -> Checkpoint | None:
        """As `Part.get`."""
        found: Checkpoint | None = await self._store.get(self.key)
        return found

    async def value(self, default: Any = None) -> Any:
        """As `Part.value`."""
        return await self._store.value(self.key, default)

    async def commit(self, value: Any, *, position: int | None = None, head: int | None = None,
                     sources: Iterable[Source] = (), timeout: Seconds | None = None) -> Receipt:
        """As `Part.commit`."""
        return await run_async(self._work.commit(self._owned, value, {
            "position": position, "head": head, "sources": sources, "timeout": timeout}))


class _Worker:
    """What both kinds know without waiting."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._turns: weakref.ref[Any] | None = None
        self._before: Any = None  # what SIGTERM did
        self._handles = False

    @property
    def name(self) -> str:
        """What this worker is called."""
        return self._work.name

    @property
    def key(self) -> str:
        """Where it is registered."""
        return self._work.key

    @property
    def owned(self) -> list[str]:
        """The names of the partitions that it has now."""
        return sorted(each.name for each in self._work.owned.values())

    @property
    def draining(self) -> bool:
        """Whether the iteration ends with this turn."""
        return self._work.ending

    def _once(self, turns: Any) -> Any:
        if self._turns is not None and self._turns() is not None:
            raise Misuse(f"worker {self.name!r} is iterated over already: a partition has one turn "
                         "at a time", hint="end that loop first, or begin another worker")
        self._turns = weakref.ref(turns)
        return turns

    # --- SIGTERM ------------------------------------------------------------------------------

    def _handle(self, drain: Callable[[], object]) -> None:
        """From here on SIGTERM drains; the second one does what it did before."""
        if threading.current_thread() is not threading.main_thread():
            return  # elsewhere Python can install no handlers

        def drained(number: int, frame: FrameType | None) -> None:
            self._put_back()
            drain()

        self._before, self._handles = signal.signal(signal.SIGTERM, drained), True

    def _put_back(self) -> None:
        if self._handles and threading.current_thread() is threading.main_thread():
            self._handles = False
            signal.signal(signal.SIGTERM, signal.SIG_DFL if self._before is None else self._before)


class Worker(_Worker):
    """One worker of a pipeline, on a plain client: a context manager to iterate over. Made by
    `Client.worker`. One thread uses it; `drain` may be called from any."""

    def __init__(self, store: Any, keeper: Keeper, pipeline: str, *,
                 partitions: int | Iterable[str | int] | Partitions, name: str | None = None,
                 ttl: Seconds = 30, idle: Seconds = 1) -> None:
        super().__init__(Work(store, keeper, time.sleep, pipeline, partitions, name, ttl, idle))
        self._store = store

    def __iter__(self) -> Iterator[Part]:
        found: Iterator[Part] = self._once(_Turns(self))
        return found

    def _next(self) -> Part | None:
        owned = run(self._work.next())
        if owned is None:
            return None
        owned.handle = owned.handle or Part(self._store, self._work, owned)
        part: Part = owned.handle
        return part

    def run(self, function: Callable[[Part], object]) -> None:
        """Call `function` with the partition of each turn, until this worker is to end. One that is
        lost meanwhile is left to those who have it now; other errors go on to the caller."""
        for part in self:
            try:
                function(part)
            except LeaseLost:
                if part.held:
                    raise

    def drain(self) -> None:
        """End the iteration after this turn. Harmless in a signal handler, and from any thread."""
        self._work.ending = True
        self._work.interrupt()

    def __enter__(self) -> Worker:
        self._handle(self.drain)  # first: who is registered is never ended without a good-bye
        try:
            run(self._work.enter())
        except BaseException:
            self._put_back()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._put_back()
        try:
            run(self._work.leave())
        except Error:
            if kind is None:
                raise


class AsyncWorker(_Worker):
    """`Worker` for asyncio: `async with … as w: async for part in w: …`."""

    def __init__(self, store: Any, keeper: AsyncKeeper, pipeline: str, *,
                 partitions: int | Iterable[str | int] | Partitions, name: str | None = None,
                 ttl: Seconds = 30, idle: Seconds = 1) -> None:
        super().__init__(Work(store, keeper, asyncio.sleep, pipeline, partitions, name, ttl, idle))
        self._store = store
        self._closing: asyncio.Task[None] | None = None

    def __aiter__(self) -> AsyncIterator[AsyncPart]:
        found: AsyncIterator[AsyncPart] = self._once(_AsyncTurns(self))
        return found

    async def _next(self) -> AsyncPart | None:
        owned = await run_async(self._work.next())
        if owned is None:
            return None
        owned.handle = owned.handle or AsyncPart(self._store, self._work, owned)
        part: AsyncPart = owned.handle
        return part

    async def run(self, function: Callable[[AsyncPart], Any]) -> None:
        """As `Worker.run`; `function` is a coroutine function."""
        async for part in self:
            try:
                await function(part)
            except LeaseLost:
                if part.held:
                    raise

    def drain(self) -> None:
        """As `Worker.drain`, in the event loop's thread."""
        self._work.ending = True
        if (closing := self._work.interrupt()) is not None:
            self._closing = asyncio.ensure_future(closing)

    async def __aenter__(self) -> AsyncWorker:
        loop = asyncio.get_running_loop()
        self._handle(lambda: loop.call_soon_threadsafe(self.drain))
        try:
            await run_async(self._work.enter())
        except BaseException:
            self._put_back()
            raise
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None,
                        trace: TracebackType | None) -> None:
        self._put_back()
        try:
            await run_async(self._work.leave())
            if self._closing is not None:
                await self._closing
        except Error:
            if kind is None:
                raise


class _Turns:
    """One iteration over a worker."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def __iter__(self) -> _Turns:
        return self

    def __next__(self) -> Part:
        part = self._worker._next()
        if part is None:
            raise StopIteration
        return part


class _AsyncTurns:
    """The same for asyncio."""

    def __init__(self, worker: AsyncWorker) -> None:
        self._worker = worker

    def __aiter__(self) -> _AsyncTurns:
        return self

    async def __anext__(self) -> AsyncPart:
        part = await self._worker._next()
        if part is None:
            raise StopAsyncIteration
        return part
