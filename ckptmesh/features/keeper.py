"""Leases that are kept alive in the background, and whose loss is noticed.

Rule 1: a holder counts from the moment it asked, never from the answer: when the time granted is
        over here, the lease may be another's already.
Rule 2: what is lost stays lost. Whoever waits for the loss is told once, with the reason.

A thread of its own renews for a plain client, a task for one of asyncio. Python code that computes
without a pause does not hold the thread up; a C extension that keeps the interpreter's lock does,
and so does whatever stops the process. When it goes on after the lease has ended, the reason names
the stall, as this process measured it. (A helper process could renew meanwhile, but would have to
tell one that computes from one that never comes back: whose partition nobody would ever get.)
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any

from ckptmesh.errors import Closed, Error, LeaseLost
from ckptmesh.views import Receipt

_SHARE = 3  # of a TTL passes between two renewals: one may fail
_PATIENCE = 1.0  # seconds, at most, that one renewal keeps the others waiting
_AGAIN = 10  # of a TTL passes before a renewal that failed is tried again


class Kept:
    """One lease that is renewed. `lost` is why it is no longer held, or None; `until` is when the
    time granted ends, in `time.monotonic()`."""

    def __init__(self, lease: Receipt, ttl: float, asked: float, on_loss: Callable[[], object],
                 beat: Callable[[], Any] | None = None) -> None:
        self.lease = lease
        self.ttl = ttl
        self.until = asked + ttl
        self.due = asked + ttl / _SHARE
        self.lost: LeaseLost | None = None
        self.released = False  # by its holder: what a renewal on its way finds means nothing
        self.beat = beat  # what else is to be done with each renewal, if it can be
        self._on_loss = on_loss
        self._failing = ""  # why the last renewal failed

    def look(self, now: float) -> bool:
        """Whether a renewal is due. Notices a lease whose time is over."""
        if self.lost is None and now >= self.until:
            self.lose(self._ended(now))
        return self.lost is None and now >= self.due

    def _ended(self, now: float) -> LeaseLost:
        """Why the time is over: nobody asked for more, or nobody answered."""
        stalled = now - self.due  # a renewal that failed would have moved it on
        what = f"the lease on {self.lease.key!r} has ended: "
        if stalled > self.ttl / _AGAIN or not self._failing:
            return LeaseLost(
                f"{what}this process stood still, or one call kept its interpreter busy: it did "
                f"not run its renewal for {stalled:.1f} s; ttl {self.ttl:g} s",
                hint="cut such calls into shorter ones, or take a longer ttl; begin again from "
                     "what is committed", key=self.lease.key, stalled=stalled)
        return LeaseLost(
            f"{what}for {now - self.until + self.ttl:.1f} s no renewal came through; ttl "
            f"{self.ttl:g} s; the last one: {self._failing}", key=self.lease.key)

    def patience(self, now: float) -> float:
        """Seconds to wait for one renewal: not so long that the loss of others goes unnoticed."""
        return max(0.0, min(self.until - now, _PATIENCE))

    def renewed(self, asked: float, granted: float) -> None:
        """The store has granted so many seconds, counted from when it was asked."""
        self.until, self.due = asked + granted, asked + granted / _SHARE
        self._failing = ""

    def failed(self, error: Error, now: float, late: float = 0.0) -> None:
        """A renewal was refused, or did not come through: again soon, unless it is lost. `late`: by
        how many seconds it has taken longer than it was allowed."""
        if isinstance(error, LeaseLost):  # after a stall it is no news: why it came so late is
            self.lose(self._ended(now) if now >= self.until else error)
        elif isinstance(error, Closed):
            self.lose(LeaseLost(f"the lease on {self.lease.key!r} is renewed no more: its client "
                                "was closed", key=self.lease.key))
        elif now >= self.until and late > self.ttl / _AGAIN:  # the process stood still in it
            self.lose(self._ended(now))
        else:
            self.due = now + self.ttl / _AGAIN
            self._failing = error.message

    def lose(self, error: LeaseLost) -> None:
        """It is lost, if it was not before, and was not given back."""
        if self.lost is None and not self.released:
            self.lost = error
            self._on_loss()


class _Keeping:
    """What both kinds know: the leases, and when the next renewal is due."""

    def __init__(self) -> None:
        self._kept: dict[Kept, None] = {}

    def _next(self) -> float:
        return min((kept.due for kept in self._kept), default=float("inf"))

    def _due(self, now: float) -> list[Kept]:
        due = [kept for kept in self._kept if kept.look(now)]
        for kept in [kept for kept in self._kept if kept.lost]:
            del self._kept[kept]
        return due


class Keeper(_Keeping):
    """Renews the leases of one plain client, in one thread, as long as there are any."""

    def __init__(self, store: Any) -> None:
        super().__init__()
        self._store = store
        self._change = threading.Condition()
        self._thread: threading.Thread | None = None

    def add(self, kept: Kept) -> None:
        """Renew from now on."""
        with self._change:
            self._kept[kept] = None
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, daemon=True,
                                                name="ckptmesh-leases")
                self._thread.start()
            self._change.notify()

    def drop(self, kept: Kept) -> None:
        """Renew no more."""
        with self._change:
            kept.released = True
            self._kept.pop(kept, None)
            self._change.notify()

    def _run(self) -> None:
        while True:
            with self._change:
                if not self._kept:
                    self._thread = None
                    return
                wait = self._next() - time.monotonic()
                if wait > 0:
                    self._change.wait(wait)
                due = self._due(time.monotonic())
            for kept in due:
                self._renew(kept)

    def _renew(self, kept: Kept) -> None:
        asked = time.monotonic()
        patience = kept.patience(asked)
        try:
            granted = self._store.keepalive(kept.lease, timeout=patience)
        except Error as error:
            kept.failed(error, now := time.monotonic(), now - asked - patience)
        else:
            kept.renewed(asked, granted)
            if kept.beat is not None and not kept.released:
                with contextlib.suppress(Error):  # it is for people: the lease is what counts
                    kept.beat()


class AsyncKeeper(_Keeping):
    """The same for a client of asyncio, in one task."""

    def __init__(self, store: Any) -> None:
        super().__init__()
        self._store = store
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def add(self, kept: Kept) -> None:
        """Renew from now on."""
        self._kept[kept] = None
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name="ckptmesh-leases")
        self._changed.set()

    def drop(self, kept: Kept) -> None:
        """Renew no more."""
        kept.released = True
        self._kept.pop(kept, None)
        self._changed.set()

    async def _run(self) -> None:
        while self._kept:
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(),
                                       max(0.0, self._next() - time.monotonic()))
            for kept in self._due(time.monotonic()):
                await self._renew(kept)

    async def _renew(self, kept: Kept) -> None:
        asked = time.monotonic()
        patience = kept.patience(asked)
        try:
            granted = await self._store.keepalive(kept.lease, timeout=patience)
        except Error as error:
            kept.failed(error, now := time.monotonic(), now - asked - patience)
        else:
            kept.renewed(asked, granted)
            if kept.beat is not None and not kept.released:
                with contextlib.suppress(Error):
                    await kept.beat()
