"""Named watches: the two shells around `following.py`.

    with mesh.watch("orders", name="billing") as events:
        for event in events:
            bill(event.checkpoint)

Rule 1: what is done, and when the place is committed, is decided in `following.py`, once.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from types import TracebackType
from typing import Any

from ckptmesh.api import seconds
from ckptmesh.clock import Seconds
from ckptmesh.errors import Closed
from ckptmesh.features.following import Following, seat
from ckptmesh.features.keeper import AsyncKeeper, Keeper
from ckptmesh.features.locks import Claims
from ckptmesh.flows import run, run_async
from ckptmesh.views import Event, Mark, Receipt, Since
from ckptmesh.watching import WatchStats


class _Handle:
    """What both kinds know without waiting."""

    _core: Following

    @property
    def key(self) -> str:
        """Where the place is kept."""
        return self._core.key

    @property
    def name(self) -> str:
        """Its name."""
        return self._core.name

    @property
    def place(self) -> Mark:
        """The place as it was committed last."""
        return self._core.place

    @property
    def stats(self) -> WatchStats:
        """Counters, as of `Watch.stats`."""
        watch = self._core.watch
        return WatchStats() if watch is None else watch.stats

    def done(self, event: Event | Mark) -> None:
        """This event, and all before it, are done; the place is committed with the next batch.

        A mark: what an `InvalidPayload` carries as `details["resume"]`. Raises `Misuse` for one
        that was not given out, `Closed`, `LeaseLost`.
        """
        self._core.finish(event)


class NamedWatch(_Handle):
    """A watch that keeps its own place, of a plain client: a context manager and an iterator, for
    one thread. Made by `Client.watch(prefix, name=…)`."""

    def __init__(self, store: Any, keeper: Keeper, claims: Claims, prefix: str, name: str, *,
                 since: Since = None, every: int = 100, within: Seconds = 1, auto: bool = True,
                 wait: Seconds | None = None, ttl: Seconds = 30) -> None:
        lock = seat(store, keeper, claims, prefix, name, wait, ttl)
        self._core = Following(store, lock, prefix, name, since, every, within, auto)

    def get(self, timeout: Seconds | None = None) -> Event | None:
        """The next event; None when none came within `timeout` seconds (None: for ever). With
        `auto`, those given out before are done.

        Raises as `Watch.get`; `LeaseLost` where the lock is lost, and another may be at work;
        `InvalidPayload` for an event whose value cannot be read, which is given out so.
        """
        return run(self._core.next(None if timeout is None else seconds(timeout, 0.0)))

    def commit(self) -> Receipt:
        """All that was given out is done: commit that now. Raises `LeaseLost`, `Conflict` where
        somebody else has written the place, and what `commit` of a client raises."""
        self._core.finish(None)
        return run(self._core.save())

    def close(self) -> None:
        """End the iteration, from any thread, also in a signal handler; what is done is committed
        as the block is left. Harmless when repeated."""
        self._core.closed = True
        if self._core.watch is not None:
            self._core.watch.close()

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        try:
            event = self.get()
        except Closed:
            if self._core.closed:
                raise StopIteration from None
            raise
        assert event is not None  # without a timeout there is one
        return event

    def __enter__(self) -> NamedWatch:
        run(self._core.open())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        run(self._core.leave(kind is not None))


class AsyncNamedWatch(_Handle):
    """`NamedWatch` for asyncio: `async with`, `async for`, `await events.commit()`."""

    def __init__(self, store: Any, keeper: AsyncKeeper, claims: Claims, prefix: str, name: str, *,
                 since: Since = None, every: int = 100, within: Seconds = 1, auto: bool = True,
                 wait: Seconds | None = None, ttl: Seconds = 30) -> None:
        lock = seat(store, keeper, claims, prefix, name, wait, ttl)
        self._core = Following(store, lock, prefix, name, since, every, within, auto)

    async def get(self, timeout: Seconds | None = None) -> Event | None:
        """As `NamedWatch.get`. Being cancelled loses nothing."""
        return await run_async(
            self._core.next(None if timeout is None else seconds(timeout, 0.0)))

    async def commit(self) -> Receipt:
        """As `NamedWatch.commit`."""
        self._core.finish(None)
        return await run_async(self._core.save())

    async def close(self) -> None:
        """As `NamedWatch.close`."""
        self._core.closed = True
        if self._core.watch is not None:
            await self._core.watch.close()

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        try:
            event = await self.get()
        except Closed:
            if self._core.closed:
                raise StopAsyncIteration from None
            raise
        assert event is not None  # without a timeout there is one
        return event

    async def __aenter__(self) -> AsyncNamedWatch:
        await run_async(self._core.open())
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None,
                        trace: TracebackType | None) -> None:
        await run_async(self._core.leave(kind is not None))
