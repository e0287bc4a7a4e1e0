"""Locks over parts of a pipeline: hierarchical, shared or exclusive, fair, and fenced.

    with mesh.lock("orders/partition/3", ttl=30, wait=60) as lock:
        mesh.commit("orders/partition/3", end, guard=lock)

A lock has the name of what it covers. "orders" covers all under it: while it is held, nobody has
"orders/partition/3", and the other way round. Shared locks go together with shared ones.

How it is kept: each who holds or waits has a ticket, a lease under

    orders/_lock/partition/3/_ticket/4f1c…        {"name": …, "shared": …, "holder": …}

whose revision is its place in the queue. A ticket is had once none before it conflicts. So the
order is that of asking, nobody asks again and again, and a ticket's token fences: what it guards is
refused as soon as it has ended. (The recipe of sequential ephemeral nodes, as ZooKeeper's
documentation gives it for locks.)

Rule 1: a ticket that has not been granted is never shown to the user, so it guards nothing.
Rule 2: whatever ends an acquisition early, a timeout or a cancellation, takes its ticket back.
Rule 3: granted once is granted until released or ended: tickets that come later never go before.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Any

from ckptmesh.api import seconds
from ckptmesh.clock import Seconds
from ckptmesh.errors import Compacted, Error, LeaseLost, LockTimeout, Misuse
from ckptmesh.features.keeper import AsyncKeeper, Keeper, Kept
from ckptmesh.flows import Flow, firmly, run, run_async
from ckptmesh.limits import check_key, pipeline_of
from ckptmesh.views import Checkpoint, Event, Receipt

LOCKS, TICKET = "_lock", "_ticket"
_PAGE = 1_000  # tickets looked at in one round trip
_LOOK = 1.0  # seconds that a waiter sleeps at most before it looks whether its own ticket is lost


def folder_of(name: str, room: str = LOCKS) -> str:
    """Where the tickets for a name, and for all under it, are kept. Names of one `room` meet."""
    pipeline, _, rest = name.partition("/")
    return f"{pipeline}/{room}/{rest}" if rest else f"{pipeline}/{room}"


def covers(one: str, other: str) -> bool:
    """Whether a lock on one of two names covers the other."""
    return one == other or other.startswith(one + "/") or one.startswith(other + "/")


def holder_name() -> str:
    """Who holds a lock, for people: host and process."""
    return f"{socket.gethostname()}:{os.getpid()}"


def above(name: str) -> list[str]:
    """The names that cover this one from above."""
    parts = name.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts))]


class Acquisition:
    """One way from asking to having, as flows; knows a store by its methods only."""

    def __init__(self, store: Any, name: str, shared: bool, ttl: float, holder: str,
                 room: str = LOCKS) -> None:
        check_key(name)
        if any(part.startswith("_") for part in name.split("/")):
            raise Misuse(f"{name!r} names a part of ckptmesh's own",
                         hint="a lock has the name of the pipeline or key that it covers")
        self._store = store
        self._ttl = ttl
        self._value = {"name": name, "shared": shared, "holder": holder}
        self.name, self.shared, self.room = name, shared, room
        self.key = f"{folder_of(name, room)}/{TICKET}/{secrets.token_hex(8)}"
        check_key(self.key)
        self.ticket: Receipt | None = None  # as soon as it is known to be drawn

    def draw(self) -> Flow[Receipt]:
        """Take a ticket."""
        store = self._store
        self.ticket = yield lambda: store.commit(self.key, self._value, expect=None,
                                                 ttl=self._ttl, lease=True)
        return self.ticket

    def before(self) -> Flow[dict[str, Checkpoint]]:
        """The tickets before ours that conflict with it, by key. Ours was drawn before they are
        looked at, so that none of them can be missed; and none can join them later."""
        found: dict[str, Checkpoint] = {}
        yield from self._look(folder_of(self.name, self.room), found)
        for name in above(self.name):
            yield from self._look(f"{folder_of(name, self.room)}/{TICKET}", found)
        return found

    def _look(self, prefix: str, found: dict[str, Checkpoint]) -> Flow[None]:
        ticket, after = self.ticket, ""
        assert ticket is not None
        while True:
            page = yield partial(self._store.scan, prefix, after=after, limit=_PAGE)
            for each in page:
                if (f"/{TICKET}/" in each.key and each.revision < ticket.revision
                        and not (self.shared and each.value["shared"])):
                    found[each.key] = each
            if len(page) < _PAGE:
                return
            after = page[-1].key

    def wait(self, ahead: dict[str, Checkpoint], until: float, kept: Kept) -> Flow[None]:
        """Wait until those ahead are gone. Raises `LockTimeout`, or why our own ticket is lost."""
        store, ticket = self._store, self.ticket
        if time.monotonic() >= until:
            raise self._timed_out(ahead)
        tickets = folder_of(pipeline_of(self.name), self.room)
        watch = store.watch(tickets, since=ticket)
        try:
            while ahead:
                now = time.monotonic()
                if kept.lost is not None:
                    raise kept.lost
                if now >= until:
                    raise self._timed_out(ahead)
                patience = min(until - now, _LOOK)
                try:
                    event: Event | None = yield partial(watch.get, timeout=patience)
                except Compacted:  # so much happened meanwhile that not all of it is kept
                    yield watch.close
                    watch = store.watch(tickets)
                    yield partial(watch.get, timeout=0)  # now it has begun
                    ahead = yield from self.before()
                    continue
                if event is not None and event.checkpoint is None:
                    ahead.pop(event.key, None)
        finally:
            yield watch.close

    def _timed_out(self, ahead: dict[str, Checkpoint]) -> LockTimeout:
        first = min(ahead.values(), key=lambda each: each.revision)
        what = first.value
        return LockTimeout(
            f"{self.name!r} was not to be had in time: {what['holder']} holds or awaits "
            f"{what['name']!r} since {first.time.isoformat(timespec='seconds')}"
            + (f", and {len(ahead) - 1} more are ahead" if len(ahead) > 1 else ""),
            key=self.name, holder=what["holder"], held=what["name"])

    def give_back(self) -> Flow[None]:
        """Take the ticket back. Raises `LeaseLost` when it had ended before. One that may have been
        drawn is deleted, if it is there: nobody else has its key."""
        yield lambda: self._store.delete(self.key, guard=self.ticket)


def acquire(way: Acquisition, wait: float | None, keep: Callable[[Receipt, float], Kept]
            ) -> Flow[None]:
    """From asking to having. `keep` begins to renew a ticket, given when it was asked for.

    Raises `LockTimeout` after `wait` seconds (None: never), `LeaseLost`, and what the store raises.
    """
    asked = time.monotonic()
    try:
        ticket = yield from way.draw()
        kept = keep(ticket, asked)
        ahead = yield from way.before()
        if ahead:
            until = float("inf") if wait is None else asked + wait
            yield from way.wait(ahead, until, kept)
    except BaseException as error:
        yield from _withdraw(way, error)
        raise
    if kept.lost is not None:
        raise kept.lost


class Claims:
    """Who holds or awaits what through one client, so that nobody waits for himself."""

    def __init__(self) -> None:
        self._ways: dict[Acquisition, object] = {}

    def add(self, way: Acquisition, owner: object) -> None:
        """Raises `Misuse` where this owner, a thread or a task, is in his own way."""
        for other, whose in list(self._ways.items()):
            if (whose == owner and way.room == other.room and covers(way.name, other.name)
                    and not (way.shared and other.shared)):
                raise Misuse(f"{way.name!r} would wait for ever: the lock on {other.name!r}, which "
                             "covers it, is held or awaited right here",
                             hint="one lock on the part that both need is enough")
        self._ways[way] = owner

    def check(self, name: str, owner: object) -> None:
        """Raises `Misuse` where this owner holds or awaits a lock on what is above a name."""
        for other, whose in list(self._ways.items()):
            if whose == owner and other.room == LOCKS and other.name in above(name):
                raise Misuse(f"{name!r} would never be free: the lock on {other.name!r}, which "
                             "covers it, is held or awaited right here",
                             hint="release it first, or hold it in another thread or task")

    def drop(self, way: Acquisition) -> None:
        """It is neither held nor awaited any more."""
        self._ways.pop(way, None)


def _withdraw(way: Acquisition, error: BaseException) -> Flow[None]:
    """Take back what was drawn. (Where the store is away, and nobody knows whether it was, it ends
    by its TTL.)"""
    if way.ticket is None and isinstance(error, Error):
        return
    try:
        yield from way.give_back()
    except LeaseLost:
        pass
    except Error as again:
        error.add_note(f"its ticket ends by itself: {again}")


class _Handle:
    """What both kinds of lock know without waiting."""

    lost: threading.Event | asyncio.Event
    _keeper: Keeper | AsyncKeeper

    def __init__(self, store: Any, claims: Claims, name: str, shared: bool, ttl: Seconds,
                 wait: Seconds | None, holder: str | None, room: str) -> None:
        granted = seconds(ttl, 0.0, "a lock's ttl")
        if not granted:
            raise Misuse("a lock needs a ttl above 0", hint="mesh.lock(name, ttl=30)")
        self._store, self._claims = store, claims
        self._ttl, self._wait = granted, seconds(wait, None, "wait")
        self._holder, self._room = holder or holder_name(), room
        self._way = Acquisition(store, name, shared, granted, self._holder, room)
        self._kept: Kept | None = None
        self.name, self.shared = name, shared

    @property
    def key(self) -> str:
        """The key of the lock's ticket."""
        return self._way.key

    @property
    def held(self) -> bool:
        """Whether it is held, as far as this process can know: the time granted is not over."""
        kept = self._kept
        return kept is not None and not kept.released and kept.lost is None and (
            time.monotonic() < kept.until)

    @property
    def lease(self) -> Receipt:
        """What `guard=` compares. Raises `LeaseLost` when it is lost, `Misuse` when it is not
        held."""
        kept = self._kept
        if kept is None or kept.released:
            raise Misuse(f"the lock on {self.name!r} is not held", hint="with mesh.lock(…): …")
        kept.look(time.monotonic())  # after a stall this may come before the keeper's own turn
        if kept.lost is not None:
            raise kept.lost
        return kept.lease

    @property
    def token(self) -> tuple[int, int]:
        """The fencing token, (epoch, revision): higher than that of every lock on the same name
        that was granted before. Raises as `lease`."""
        return self.lease.token

    def refused(self, error: LeaseLost) -> LeaseLost:
        """The store has refused something that this lock guarded: it is lost. Why, as far as that
        is known here."""
        if self._kept is None:
            return error
        self._kept.look(time.monotonic())
        self._kept.lose(error)
        return self._kept.lost or error

    def _begin(self, owner: object) -> None:
        """A new way to it, for an owner, which is a thread or a task."""
        if self._kept is not None and not self._kept.released:
            raise Misuse(f"the lock on {self.name!r} is held or awaited already",
                         hint="a handle is for one at a time: ask for another by mesh.lock(…)")
        way = Acquisition(self._store, self.name, self.shared, self._ttl, self._holder,
                          self._room)
        self._claims.add(way, owner)
        self._way = way
        self.lost.clear()

    def _keep(self, ticket: Receipt, asked: float) -> Kept:
        self._kept = Kept(ticket, self._ttl, asked, self.lost.set)
        self._keeper.add(self._kept)
        return self._kept

    def abandon(self) -> None:
        """Hold it no more, without asking the store: its ticket ends by its TTL."""
        self._claims.drop(self._way)
        if self._kept is not None:
            self._keeper.drop(self._kept)

    def _lost(self) -> LeaseLost | None:
        """Why it was lost, if it was. Raises `Misuse` where it is not held."""
        kept = self._kept
        if kept is None or kept.released:
            raise Misuse(f"the lock on {self.name!r} is not held")
        return kept.lost


class Lock(_Handle):
    """A lock of a plain client: a context manager, or `acquire` and `release`. Made by
    `Client.lock`. `lost` is set when the lock is lost while it is held."""

    lost: threading.Event

    def __init__(self, store: Any, keeper: Keeper, claims: Claims, name: str, *,
                 shared: bool = False, ttl: Seconds = 30, wait: Seconds | None = None,
                 holder: str | None = None, room: str = LOCKS) -> None:
        super().__init__(store, claims, name, shared, ttl, wait, holder, room)
        self._keeper, self.lost = keeper, threading.Event()

    def acquire(self) -> Lock:
        """Wait until it is had. Raises `LockTimeout` after `wait` seconds (None: never), naming who
        is ahead, and `Misuse` where this thread holds a lock that it would wait for."""
        self._begin(threading.get_ident())
        try:
            run(acquire(self._way, self._wait, self._keep))
        except BaseException:
            self.abandon()
            raise
        return self

    def release(self) -> None:
        """Give it back. Raises `LeaseLost` where it was lost before: what was done under it may
        have been refused."""
        lost = self._lost()
        self.abandon()
        if lost is not None:
            raise lost
        run(firmly(self._way.give_back))

    def check(self) -> None:
        """Raises `Misuse` where this thread holds or awaits a lock on something above."""
        self._claims.check(self.name, threading.get_ident())

    def __enter__(self) -> Lock:
        return self.acquire()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        try:
            self.release()
        except Error:
            if kind is None:
                raise


class AsyncLock(_Handle):
    """`Lock` for asyncio: `async with`, or `await lock.acquire()` and `await lock.release()`."""

    lost: asyncio.Event

    def __init__(self, store: Any, keeper: AsyncKeeper, claims: Claims, name: str, *,
                 shared: bool = False, ttl: Seconds = 30, wait: Seconds | None = None,
                 holder: str | None = None, room: str = LOCKS) -> None:
        super().__init__(store, claims, name, shared, ttl, wait, holder, room)
        self._keeper, self.lost = keeper, asyncio.Event()

    async def acquire(self) -> AsyncLock:
        """As `Lock.acquire`, for this task."""
        self._begin(asyncio.current_task())
        try:
            await run_async(acquire(self._way, self._wait, self._keep))
        except BaseException:
            self.abandon()
            raise
        return self

    async def release(self) -> None:
        """As `Lock.release`."""
        lost = self._lost()
        self.abandon()
        if lost is not None:
            raise lost
        await run_async(firmly(self._way.give_back))

    def check(self) -> None:
        """As `Lock.check`, for this task."""
        self._claims.check(self.name, asyncio.current_task())

    async def __aenter__(self) -> AsyncLock:
        return await self.acquire()

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None,
                        trace: TracebackType | None) -> None:
        try:
            await self.release()
        except Error:
            if kind is None:
                raise
