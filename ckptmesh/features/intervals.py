"""Work over a range of numbers, done by many in any order: what is left are the holes.

    with mesh.intervals("backfill", start=0, end=1_000_000) as todo:
        while part := todo.claim(10_000):
            copy_rows(part.start, part.end)
            todo.done(part)

One checkpoint holds what is done, and who has claimed what; each change is a compare-and-set, tried
again. A worker that claims holds one lease, under KEY/_claims/…, and its claims count as long as
that lives: nobody has to give them back for one who was killed.

Rule 1: what is done is kept for good, and only what was said to be done.
Rule 2: a claim is made and ended under its worker's lease: one whose claims are free for others is
        refused with `LeaseLost` when it says that they are done. They are done again then.
Rule 3: whether a worker lives is asked after its claim was read. Its lease is older than its
        claims, so none that lives can be missed.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
import time
from collections.abc import Awaitable, Callable
from functools import partial
from types import TracebackType
from typing import Any

from ckptmesh.api import seconds
from ckptmesh.clock import Seconds
from ckptmesh.errors import Compacted, Conflict, Error, LeaseLost, Misuse
from ckptmesh.features.holes import Claim, Interval, State, number_of
from ckptmesh.features.keeper import AsyncKeeper, Keeper, Kept
from ckptmesh.features.locks import holder_name
from ckptmesh.features.spans import Spans
from ckptmesh.flows import Flow, run, run_async
from ckptmesh.limits import PAUSE_MAX, POSITION_MAX, check_key
from ckptmesh.views import Checkpoint, Receipt

_FOLDER = "_claims"
_PAGE = 1_000  # workers looked at in one round trip
_LOOK = 1.0  # seconds that one who waits sleeps at most before it looks again
_ATTEMPTS = 10_000  # of one change; losing this often means that something is wrong


class _Core:
    """What a set of intervals does, as flows."""

    def __init__(self, store: Any, keeper: Keeper | AsyncKeeper, sleep: Callable[[float], Any],
                 key: str, start: int, end: int | None, ttl: Seconds, holder: str | None) -> None:
        check_key(f"{key}/{_FOLDER}/{'0' * 16}")
        self._store, self._keeper, self._sleep = store, keeper, sleep
        self.key, self.start = key, number_of(start, "start")
        self.last = POSITION_MAX if end is None else number_of(end, "end")
        self.endless = end is None
        if self.last < self.start:
            raise Misuse(f"end={end} is before start={start}")
        granted = seconds(ttl, 0.0, "the ttl of claims")
        if not granted:
            raise Misuse("claims need a ttl above 0", hint="mesh.intervals(…, ttl=30)")
        self._ttl, self._holder = granted, holder or holder_name()
        self._worker = ""
        self._kept: Kept | None = None  # its lease
        self._mine = Spans()  # what is claimed under that lease
        self._doubt = Spans()  # what may be claimed under it: nobody heard how the commit went

    # --- the checkpoint -----------------------------------------------------------------------

    def read(self) -> Flow[State]:
        """What is done and claimed now."""
        state = State(self.key, self.start)
        found: Checkpoint | None = yield partial(self._store.get, self.key)
        if found is not None:
            state.load(found)
        return state

    def change(self, step: Callable[[State], bool], lease: Receipt | None, *, bury: bool = False
               ) -> Flow[Receipt | None]:
        """Read, take a step, commit if it changed something and nobody was faster; else again,
        after a pause. The receipt of what stands there then. `bury`: whose worker is gone is
        claimed no more."""
        write = (self._store.put if lease is None  # which every StateBackend has
                 else partial(self._store.commit, guard=lease))
        for losses in range(1, _ATTEMPTS + 1):
            began = time.monotonic()
            state = yield from self.read()
            if bury:
                yield from self._bury(state)
            if not step(state):
                if lease is not None:  # somebody else may have done it, since this claim ended
                    yield partial(self._store.keepalive, lease)
                return state.proof
            try:
                receipt: Receipt = yield partial(write, self.key, state.dump(),
                                                 expect=state.stands, position=state.low)
                return receipt
            except Conflict as conflict:
                lost = conflict
            took = time.monotonic() - began
            pause = random.uniform(0, min(took * 2.0 ** min(losses, 64), PAUSE_MAX))
            yield partial(self._sleep, pause)
        raise lost

    # --- claims -------------------------------------------------------------------------------

    def claim(self, size: int, wait: float | None) -> Flow[Interval | None]:
        """The first numbers that nobody has done or claimed, at most `size`."""
        if type(size) is not int or size < 1:
            raise Misuse(f"a claim has a size from 1 up, not {size!r:.80}")
        until = float("inf") if wait is None else time.monotonic() + wait
        watch: Any = None
        try:
            while True:
                got, finished = yield from self._try(size)
                left = until - time.monotonic()
                if got is not None or finished or left <= 0 or self._mine:
                    return got  # one who holds something waits for nobody: two would for ever
                if watch is None:
                    watch = self._store.watch(self.key)
                    left = 0  # it begins now: look again, so that nothing is missed
                try:
                    yield partial(watch.get, timeout=min(left, _LOOK))
                except Compacted:  # more happened than is kept: begin anew
                    yield watch.close
                    watch = None
        finally:
            if watch is not None:
                yield watch.close

    def _try(self, size: int) -> Flow[tuple[Interval | None, bool]]:
        """(what was claimed, whether all is done)."""
        free: Interval | None = None
        finished = False

        def step(state: State) -> bool:
            nonlocal free, finished
            free, finished = state.free(size, self.last), state.low >= self.last
            if free is not None:
                state.claims.append(Claim(*free, self._worker))
            return free is not None

        lease = yield from self._enter()
        try:
            try:
                yield from self.change(step, lease, bury=True)
            except LeaseLost:  # it ended since: once more, with another
                self.forget()
                lease = yield from self._enter()
                yield from self.change(step, lease, bury=True)
        except BaseException:
            if free is not None:
                self._doubt.add(*free)
            raise
        if free is not None:
            self._mine.add(*free)
            self._doubt.discard(*free)
        return free, finished

    def _bury(self, state: State) -> Flow[None]:
        """Drop the claims of workers that are gone, and those that this one never heard of."""
        state.claims = [claim for claim in state.claims if claim.worker != self._worker
                        or not self._doubt.touches(claim.start, claim.end)]
        if any(claim.worker != self._worker for claim in state.claims):
            live = yield from self._live()
            state.claims = [claim for claim in state.claims if claim.worker in live]

    def _live(self) -> Flow[set[str]]:
        """The workers whose lease lives."""
        front, after = f"{self.key}/{_FOLDER}", ""
        found: set[str] = set()
        while True:
            page = yield partial(self._store.scan, front, after=after, limit=_PAGE)
            found.update(each.key.removeprefix(f"{front}/") for each in page)
            if not page:
                return found
            after = page[-1].key

    def _enter(self) -> Flow[Receipt]:
        """The lease of this worker, taken anew where there is none."""
        if self._kept is not None and self._kept.lost is not None:
            self.forget()
        if self._kept is None:
            worker, asked = secrets.token_hex(8), time.monotonic()
            lease: Receipt = yield partial(
                self._store.commit, f"{self.key}/{_FOLDER}/{worker}", {"holder": self._holder},
                expect=None, ttl=self._ttl, lease=True)
            self._worker, self._kept = worker, Kept(lease, self._ttl, asked, lambda: None)
            self._keeper.add(self._kept)
        return self._kept.lease

    def forget(self) -> Kept | None:
        """The lease is kept no more, and nothing is claimed."""
        kept, self._kept = self._kept, None
        self._mine, self._doubt = Spans(), Spans()
        if kept is not None:
            self._keeper.drop(kept)
        return kept

    def leave(self) -> Flow[None]:
        """Give the lease back, and with it whatever is claimed."""
        kept = self.forget()
        if kept is not None and kept.lost is None:
            with contextlib.suppress(LeaseLost):  # then it is gone
                yield partial(self._store.delete, kept.lease.key, guard=kept.lease)

    # --- progress -----------------------------------------------------------------------------

    def done(self, interval: tuple[int, int]) -> Flow[Receipt]:
        """These numbers are done."""
        start, end = self._checked(interval)

        def step(state: State) -> bool:
            hole, _ = state.done.gap(start)
            ended = state.unclaim(start, end)
            state.done.add(start, end)
            return hole < end or ended

        receipt = yield from self._end(start, end, step)
        assert receipt is not None  # something stands there, since this is done
        return receipt

    def give_back(self, interval: tuple[int, int]) -> Flow[None]:
        """They are not done, and are claimed no more."""
        start, end = self._checked(interval)
        worker = self._worker

        def step(state: State) -> bool:
            return state.unclaim(start, end, worker)

        if self._mine.touches(start, end):
            yield from self._end(start, end, step)

    def _end(self, start: int, end: int, step: Callable[[State], bool]
             ) -> Flow[Receipt | None]:
        """A change that ends claims: under their lease, if they are this worker's."""
        lease = None
        if self._mine.touches(start, end) and self._kept is not None:
            if self._kept.lost is not None:
                lost = self._kept.lost
                self.forget()
                raise lost
            lease = self._kept.lease
        try:
            receipt = yield from self.change(step, lease)
        except LeaseLost:
            self.forget()
            raise
        self._mine.discard(start, end)
        return receipt

    def _checked(self, interval: tuple[int, int]) -> tuple[int, int]:
        if not isinstance(interval, tuple) or len(interval) != 2:
            raise Misuse(f"an interval is what claim() gave, or (start, end), not {interval!r:.80}")
        start, end = (number_of(bound, "a bound of an interval") for bound in interval)
        if not self.start <= start < end <= self.last:
            raise Misuse(f"[{start}, {end}) is empty, or not within [{self.start}, "
                         f"{'…' if self.endless else self.last})")
        return start, end

    def holes(self) -> Flow[list[Interval]]:
        """What is not done, up to the end, or to the last that is done."""
        state = yield from self.read()
        end = (state.done.last or self.start) if self.endless else self.last
        return [Interval(*hole) for hole in state.done.gaps(self.start, end)]

    def low_mark(self) -> Flow[int]:
        """All before is done."""
        state = yield from self.read()
        return min(state.low, self.last)

    def finished(self) -> Flow[bool]:
        """Whether all is done."""
        return not self.endless and (yield from self.low_mark()) >= self.last


class _Handle:
    """What both kinds know without waiting."""

    _core: _Core

    @property
    def key(self) -> str:
        """Where progress is kept."""
        return self._core.key


class Intervals(_Handle):
    """Work over a range of numbers, of a plain client; made by `Client.intervals`. One thread uses
    it at a time; another thread takes another for the same key."""

    def __init__(self, store: Any, keeper: Keeper, key: str, *, start: int = 0,
                 end: int | None = None, ttl: Seconds = 30, holder: str | None = None) -> None:
        self._core = _Core(store, keeper, time.sleep, key, start, end, ttl, holder)

    def claim(self, size: int, *, wait: Seconds | None = None) -> Interval | None:
        """The first numbers that nobody has done or claimed: at most `size`, fewer before what is
        done. They stay claimed as long as this worker lives, or until they are done.

        Where others have claimed all that is left, waits until some of it is free again, for
        `wait` seconds (None: as long as it takes); one who has claims waits for nobody. None: all
        is done, or nothing was free in time.
        Raises `TooLarge` with 10,000 claims at once, `Misuse`, `InvalidPayload`.
        """
        return run(self._core.claim(size, seconds(wait, None, "wait")))

    def done(self, interval: tuple[int, int]) -> Receipt:
        """These numbers are done, for good: what `claim` gave, a part of it, or any (start, end).
        To say it twice does no harm.

        Raises `LeaseLost` where they were claimed here and the claim has ended, since this process
        stood still for longer than `ttl`: others do them again. `TooLarge` where what is done
        would be in too many pieces; `Misuse` for what is outside the range.
        """
        return run(self._core.done(interval))

    def give_back(self, interval: tuple[int, int]) -> None:
        """Let others have what was claimed here, or a part of it. Raises as `done`."""
        run(self._core.give_back(interval))

    def holes(self) -> list[Interval]:
        """What is not done, claimed or not, ascending; with `end=None`, up to the last that is
        done."""
        return run(self._core.holes())

    @property
    def low_mark(self) -> int:
        """All numbers below are done: what an upstream may acknowledge. Read anew."""
        return run(self._core.low_mark())

    @property
    def finished(self) -> bool:
        """Whether all is done. Read anew; never with `end=None`."""
        return run(self._core.finished())

    def close(self) -> None:
        """Give back whatever is claimed here."""
        run(self._core.leave())

    def __enter__(self) -> Intervals:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        try:
            self.close()
        except Error:
            if kind is None:
                raise


class AsyncIntervals(_Handle):
    """`Intervals` for asyncio: the same names, awaited, `low_mark` and `finished` too."""

    def __init__(self, store: Any, keeper: AsyncKeeper, key: str, *, start: int = 0,
                 end: int | None = None, ttl: Seconds = 30, holder: str | None = None) -> None:
        self._core = _Core(store, keeper, asyncio.sleep, key, start, end, ttl, holder)

    async def claim(self, size: int, *, wait: Seconds | None = None) -> Interval | None:
        """As `Intervals.claim`."""
        return await run_async(self._core.claim(size, seconds(wait, None, "wait")))

    async def done(self, interval: tuple[int, int]) -> Receipt:
        """As `Intervals.done`."""
        return await run_async(self._core.done(interval))

    async def give_back(self, interval: tuple[int, int]) -> None:
        """As `Intervals.give_back`."""
        await run_async(self._core.give_back(interval))

    async def holes(self) -> list[Interval]:
        """As `Intervals.holes`."""
        return await run_async(self._core.holes())

    @property
    def low_mark(self) -> Awaitable[int]:
        """As `Intervals.low_mark`: `await todo.low_mark`."""
        return run_async(self._core.low_mark())

    @property
    def finished(self) -> Awaitable[bool]:
        """As `Intervals.finished`: `await todo.finished`."""
        return run_async(self._core.finished())

    async def close(self) -> None:
        """As `Intervals.close`."""
        await run_async(self._core.leave())

    async def __aenter__(self) -> AsyncIntervals:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None,
                        trace: TracebackType | None) -> None:
        try:
            await self.close()
        except Error:
            if kind is None:
                raise
