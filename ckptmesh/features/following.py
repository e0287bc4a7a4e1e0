"""A watch that keeps its own place: the next process with its name goes on after the last event
that was done.

    with mesh.watch("orders", name="billing") as events:
        for event in events:
            bill(event.checkpoint)                  # done when the next event is asked for

Rule 1: at least once. An event is done when the next one is asked for, when `done` says so, and at
        a clean end of the block; never before, so what a crash interrupts comes again.
Rule 2: the place never goes back: each commit of it is guarded by the watch's lock, and expects
        what this process wrote or read last.
Rule 3: places are committed some events at a time, and always before waiting. A store that is away
        delays that, and ends nothing: what was done meanwhile would only come again.
Rule 4: ckptmesh's own keys, those with a segment below the prefix that begins with `_`, are no
        events of a named watch.

`named.py` has the two shells. The lock is one of `locks.py`, in a room of its own: it meets no lock
on the pipeline, so that whoever has `orders` does not keep out those who watch it.
"""

from __future__ import annotations

import math
import time
from collections import deque
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

from ckptmesh.api import seconds
from ckptmesh.backends.base import Capability
from ckptmesh.clock import Seconds
from ckptmesh.errors import (
    Closed,
    Compacted,
    Conflict,
    Error,
    FutureRevision,
    InvalidPayload,
    LockTimeout,
    Misuse,
    OtherStore,
    OutcomeUnknown,
    TooLarge,
    Unavailable,
)
from ckptmesh.features.keeper import Keeper
from ckptmesh.features.locks import TICKET, AsyncLock, Claims, Lock, holder_name
from ckptmesh.features.placing import WATCHES, Consumed, Place, is_own, key_of, read
from ckptmesh.flows import Flow
from ckptmesh.limits import WATCH_IDLE, WATCH_UNDONE, pipeline_of
from ckptmesh.views import Checkpoint, Event, Mark, Receipt, Since, mark_of

_LOOK = 1.0  # seconds between two looks whether the lock is lost, while nothing comes
_PATIENCE = 5.0  # seconds that a commit in passing may take; longer: the store is away
_LAST = 2.0  # seconds for the last commit of a block that failed: somebody waits for its error


class _Given(NamedTuple):
    """An event that was given out and is not done; without its value."""

    mark: Mark
    event: Event | None  # None: its value could not be read


def free(store: Any, key: str) -> Flow[None]:
    """Where one process at a time can have the store, end what another has left of its lock: that
    one is gone, and in a directory its time would begin anew whenever it is opened."""
    if Capability.PROCESSES in store.capabilities:
        return
    for each in (yield partial(store.scan, f"{key}/{TICKET}")):
        if each.value["holder"] != holder_name():
            with suppress(Conflict):
                yield partial(store.delete, each.key, expect=each)


class Following:
    """What a named watch does, as flows; knows a store by its methods only."""

    def __init__(self, store: Any, lock: Lock | AsyncLock, prefix: str, name: str, since: Since,
                 every: int, within: Seconds, auto: bool) -> None:
        if type(every) is not int or every < 1:
            raise Misuse(f"every= is a number of events from 1 up, not {every!r:.80}")
        self.key = key_of(prefix, name)
        self._store, self._lock, self._prefix, self.name = store, lock, prefix, name
        self._since = None if since is None else mark_of(since)
        self._every, self._within, self._auto = every, seconds(within, 0.0, "within"), auto
        self.watch: Any = None
        self.closed = False
        self._given: deque[_Given] = deque()
        self._consumed = Consumed()
        self._done = self._committed = Mark(0)
        self._stands: Checkpoint | Receipt | None = None
        self._uuid = ""
        self._doubt = False  # nobody heard what became of the last commit
        self._undone = 0  # events done and not committed
        self._since_when = self._retry_at = 0.0

    @property
    def place(self) -> Mark:
        """What is committed."""
        return self._committed

    # --- begin and end --------------------------------------------------------------------------

    def open(self) -> Flow[None]:
        """Take the lock, find the place, begin there."""
        if self.watch is not None:
            raise Misuse(f"the watch {self.name!r} is open already", hint="ask for another")
        self.closed = False
        yield from free(self._store, self.key)
        try:
            yield self._lock.acquire
        except LockTimeout as error:
            raise self._held(error) from None
        try:
            self._given.clear()
            self._undone = 0
            yield from self._find()
            self.watch = yield partial(self._store.watch, self._prefix, since=self._done)
        except BaseException:
            yield from self._release(failed=True)
            raise

    def leave(self, failed: bool) -> Flow[None]:
        """Commit what is done, let go. What failed keeps its event."""
        watch = self.watch
        if watch is None:
            return
        try:
            if failed:
                yield from self._save_in_passing(_LAST)
            else:
                if self._auto:
                    self._finish(len(self._given))
                self._pass()
                if self._has_news():
                    yield from self.save()
        except Error:
            if not failed:
                raise
        finally:
            self.closed, self.watch = True, None
            yield watch.close
            yield from self._release(failed)

    def _release(self, failed: bool) -> Flow[None]:
        try:
            yield self._lock.release
        except Error:
            if not failed:
                raise

    def _find(self) -> Flow[None]:
        """Where to begin. A place is made at once, so that nothing is missed from here on."""
        store = self._store
        found: Checkpoint | None = yield partial(store.get, self.key)
        welcome = yield store.hello
        self._uuid, self._stands, self._doubt = welcome.uuid.hex(), found, False
        place = None if found is None else self._place(found)
        start = self._since
        if place is None:
            start = Mark(welcome.revision) if start is None else start
        else:
            start = place.mark if start is None or start < place.mark else start
        if start.revision > welcome.revision:
            raise FutureRevision(f"since= is beyond the head, revision {welcome.revision}",
                                 revision=welcome.revision)
        self._consumed = Consumed(found.sources if found is not None and place is not None else ())
        self._done = start
        if place is None or start != place.mark:
            yield from self.save()
        self._committed = start

    def _place(self, found: Checkpoint) -> Place | None:
        """The place that stands there; None where `since=` replaces it. Raises `Misuse` for one of
        another prefix, `OtherStore` for one that counts another store's revisions."""
        place = read(self.key, found.value)
        if place.prefix != self._prefix:
            raise Misuse(
                f"the watch {self.name!r} is of {place.prefix or 'everything'!r}, not of "
                f"{self._prefix or 'everything'!r}",
                hint="give this one a name of its own, or drop_watch the other")
        if place.store == self._uuid:
            return place
        if self._since is not None:
            return None
        raise OtherStore(
            f"the place of the watch {self.name!r}, revision {place.mark.revision}, counts the "
            f"revisions of store {place.store}; this one, a copy of it, is {self._uuid}",
            hint=f"since={place.mark.revision} goes on there, where this is a restored copy; "
                 "else begin with since= at a revision of this store",
            uuid=self._uuid, expected=place.store, revision=place.mark.revision)

    def _held(self, error: LockTimeout) -> LockTimeout:
        return LockTimeout(
            f"the watch {self.name!r} of {self._prefix or 'everything'!r} is at work in "
            f"{error.details['holder']}", hint="one process at a time has a name: wait longer for "
            "it, or give this watch a name of its own",
            key=self.key, holder=error.details["holder"], held=error.details["held"])

    # --- events ---------------------------------------------------------------------------------

    def next(self, timeout: float | None) -> Flow[Event | None]:
        """The next event, or None when none came in time. What was given out before is done."""
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        self._check()
        if self._auto:
            self._finish(len(self._given))
        while True:
            now = time.monotonic()
            if self._is_due(now):
                yield from self._save_in_passing(_PATIENCE)
            event = yield from self._ask(0)
            if event is None:
                self._pass()
                if self._has_news() and now >= self._retry_at:
                    yield from self._save_in_passing(_PATIENCE)
                left = deadline - time.monotonic()
                event = yield from self._ask(max(0.0, min(left, _LOOK)))
                self._check()
                if event is None and time.monotonic() >= deadline:
                    return None
            if event is not None and not is_own(event.key, self._prefix):
                self._give(event.resume, event)
                return event

    def _ask(self, timeout: float) -> Flow[Event | None]:
        try:
            event: Event | None = yield partial(self.watch.get, timeout=timeout)
        except InvalidPayload as damage:
            if isinstance(damage.details.get("resume"), Mark):
                self._give(damage.details["resume"], None)
            raise
        except Compacted as error:
            error.message = (f"the watch {self.name!r} has done all up to revision "
                             f"{self._done.revision}, and {error.message}")
            error.args = (error.message,)
            error.hint = ("at = mesh.revision(): look at what mesh.list(…, at=at) has that is "
                          "newer, then go on with since=at; what stood between is in no memory")
            raise
        return event

    def _check(self) -> None:
        """Raises `Closed`, `LeaseLost`."""
        if self.watch is None or self.closed:
            raise Closed(f"the watch {self.name!r} is not open",
                         hint="with mesh.watch(…, name=…) as events:")
        if self._lock.lost.is_set():
            _ = self._lock.lease  # says why

    def _give(self, mark: Mark, event: Event | None) -> None:
        if len(self._given) >= WATCH_UNDONE:
            raise TooLarge(f"{WATCH_UNDONE:,} events were given out, and none of them is done",
                           hint="say events.done(event) as you go", limit=WATCH_UNDONE)
        self._given.append(_Given(mark, event))

    # --- what is done ---------------------------------------------------------------------------

    def finish(self, upto: Event | Mark | None) -> None:
        """This event and those before it are done; None: all that were given out."""
        self._check()
        if upto is None:
            return self._finish(len(self._given))
        mark = upto.resume if isinstance(upto, Event) else upto
        if not isinstance(mark, Mark):
            raise Misuse(f"done() takes an event or a mark, not {upto!r:.80}")
        if mark > (self._given[-1].mark if self._given else self._done):
            raise Misuse(f"{mark!r} was not given out by this watch")
        return self._finish(sum(each.mark <= mark for each in self._given))

    def _finish(self, count: int) -> None:
        if not count:
            return
        if not self._undone:
            self._since_when = time.monotonic()
        self._undone += count
        for _ in range(count):
            mark, event = self._given.popleft()
            self._done = mark
            if event is not None:
                self._consumed.add(event)

    def _pass(self) -> None:
        """All that was given out is done, and nothing else is there: the place may go on to where
        the watch is."""
        mark = self.watch.mark
        if not self._given and mark is not None:
            self._done = max(self._done, mark)

    def _has_news(self) -> bool:
        """Whether there is something to commit: events, or that so much happened elsewhere that
        the place would fall out of memory in time."""
        return bool(self._undone) or (
            self._done.revision - self._committed.revision >= WATCH_IDLE)

    def _is_due(self, now: float) -> bool:
        return bool(self._undone) and now >= self._retry_at and (
            self._undone >= self._every or now - self._since_when >= self._within)

    # --- the place ------------------------------------------------------------------------------

    def save(self, patience: float | None = None) -> Flow[Receipt]:
        """Commit what is done. Raises `LeaseLost`, `Conflict`, and what the store raises."""
        store, mark, count = self._store, self._done, self._undone
        if self._doubt:
            self._stands = yield partial(store.get, self.key, timeout=patience)
        value = Place(self._prefix, mark, self._uuid).value()
        self._doubt = True
        try:
            receipt: Receipt = yield partial(
                store.commit, self.key, value, expect=self._stands, guard=self._lock,
                position=mark.revision, sources=self._consumed.sources(), timeout=patience)
        except Conflict as conflict:
            conflict.hint = (f"somebody else has the name {self.name!r} by now, or has written its "
                             "place; what was not committed comes again")
            raise
        self._stands, self._doubt, self._committed = receipt, False, mark
        self._undone -= count
        return receipt

    def _save_in_passing(self, patience: float) -> Flow[None]:
        """The same, of a watch that goes on where the store is away."""
        if not self._has_news():
            return
        try:
            yield from self.save(patience)
        except (Unavailable, OutcomeUnknown):
            self._retry_at = time.monotonic() + max(_LOOK, self._within)


def seat(store: Any, keeper: Any, claims: Claims, prefix: str, name: str,
         wait: Seconds | None = 0, ttl: Seconds = 30) -> Any:
    """The lock that whoever is at work under a name has, plain or of asyncio as its keeper is."""
    kind = Lock if isinstance(keeper, Keeper) else AsyncLock
    pipeline = pipeline_of(key_of(prefix, name))
    return kind(store, keeper, claims, f"{pipeline}/{name}", ttl=ttl, wait=wait, room=WATCHES)
