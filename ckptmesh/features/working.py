"""Workers that share the partitions of a pipeline: what one does, as flows.

Rule 1: a partition is worked on under its lock (`locks.py`) and under nothing else. Whatever any
        worker believes, two never hold one, and what has lost it commits nothing.
Rule 2: a partition that is being worked on is never let go: its turn ends first.
Rule 3: what is had and free is learned from the events of the pipeline; it is asked for again and
        again only where a store has none.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from ckptmesh.api import seconds
from ckptmesh.clock import Seconds
from ckptmesh.errors import (
    Closed,
    Compacted,
    Conflict,
    Error,
    InvalidPayload,
    LeaseLost,
    LockTimeout,
    Misuse,
    OutcomeUnknown,
    Unavailable,
    Unsupported,
)
from ckptmesh.features.keeper import AsyncKeeper, Keeper, Kept
from ckptmesh.features.locks import LOCKS, AsyncLock, Lock
from ckptmesh.features.partitions import Partitions, by, by_hash, hash_of
from ckptmesh.features.sharing import (
    BEAT,
    ORDER,
    View,
    awaited,
    folder_of,
    is_registration,
    weight,
)
from ckptmesh.features.workers import checked, pages
from ckptmesh.flows import Flow, firmly
from ckptmesh.limits import WORKER_TRACES, check_key
from ckptmesh.release import RELEASE
from ckptmesh.views import Checkpoint, Receipt

_LOOK = 1.0  # seconds that one without partitions waits until it looks whether it is lost itself,
# that a beat may keep renewals waiting, and between two looks where nothing is published
_NEWS = 1_000  # events taken in between two turns: a pipeline that never rests ends no wait


def declared(pipeline: str, partitions: int | Iterable[str | int] | Partitions) -> Partitions:
    """The partitions that a worker was given. Raises `Misuse`, `TooLarge`, `InvalidKey`."""
    if isinstance(partitions, Partitions):
        if partitions.pipeline != pipeline:
            raise Misuse(f"these are partitions of {partitions.pipeline!r}, not of {pipeline!r}")
        return partitions
    if isinstance(partitions, int):
        return by_hash(pipeline, partitions)
    if not isinstance(partitions, Iterable):
        raise Misuse(f"partitions are a number, names, or a strategy, not {partitions!r:.80}")
    return by(pipeline, partitions, str)


def default_name() -> str:
    """What a worker is called that was given no name: host, process, and what tells it from
    others in it."""
    return f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(2)}"


class Owned:
    """One partition while this worker has it. `wanted`: it should be let go soon."""

    def __init__(self, key: str, lock: Lock | AsyncLock) -> None:
        self.key, self.name = key, key.rpartition("/")[2]
        self.lock, self.revision = lock, lock.token[1]
        self.wanted = False
        self.handle: Any = None  # what the user holds

    @property
    def lost(self) -> bool:
        """Whether it is lost, as far as this process can know."""
        return not self.lock.held


class Work:
    """One worker. `ending` may be set from anywhere, then `interrupt` called."""

    def __init__(self, store: Any, keeper: Keeper | AsyncKeeper, sleep: Callable[[float], Any],
                 pipeline: str, partitions: int | Iterable[str | int] | Partitions,
                 name: str | None, ttl: Seconds, idle: Seconds) -> None:
        self._store, self._keeper, self._sleep = store, keeper, sleep
        self.pipeline = checked(pipeline)
        self.partitions = declared(pipeline, partitions)
        self.name = default_name() if name is None else name
        if "/" in self.name or self.name.startswith("_"):
            raise Misuse(f"a worker cannot be called {self.name!r:.80}",
                         hint="a name has no '/', and does not begin with '_'")
        self.key = f"{folder_of(pipeline)}/{self.name}"
        check_key(f"{self.key}/{ORDER}")
        granted = seconds(ttl, 0.0, "a worker's ttl")
        if not granted:
            raise Misuse("a worker needs a ttl above 0", hint="mesh.worker(…, ttl=30)")
        self._ttl, self._idle = granted, seconds(idle, 0.0, "idle")
        able = {each.name for each in store.capabilities}
        if "LEASES" not in able:
            raise Unsupported("workers need a store with leases", hint="use a mesh")
        self._watches = "WATCH" in able
        self._digest = hash_of("\n".join(sorted(self.partitions.names)))
        self._preferred = sorted(self.partitions.names, reverse=True,
                                 key=lambda key: weight(self.name, key))
        self._rank = {key: place for place, key in enumerate(self._preferred)}
        self._view = View(pipeline)
        self._watch: Any = None
        self._looked = float("-inf")
        self._stirred = False  # whether something has happened that may matter
        self._kept: Kept | None = None  # the registration
        self._instance = secrets.token_hex(8)  # tells it from another's under the same name
        self._asked = False  # whether there may be one
        self._started = 0
        self._turns = 0
        self.owned: dict[str, Owned] = {}  # the next turn's first
        self.turn: Owned | None = None
        self._barren = 0  # turns since the last commit
        self.ending = False

    # --- being there --------------------------------------------------------------------------

    def _facts(self) -> dict[str, Any]:
        return {"host": socket.gethostname(), "pid": os.getpid(), "version": RELEASE,
                "ttl": self._ttl, "partitions": len(self.partitions), "digest": self._digest,
                "instance": self._instance}

    def enter(self) -> Flow[None]:
        """Register. Raises `Conflict` where a worker of this name is there, `Misuse` where others
        share other partitions."""
        try:
            yield from self._register()
        except BaseException as error:
            try:
                yield from self.leave()
            except Error as again:
                error.add_note(f"what it has registered ends by itself: {again}")
            raise

    def _register(self) -> Flow[None]:
        standing: Checkpoint | None = yield from self._standing()  # it ended here only
        tx, asked = self._store.transaction(), time.monotonic()
        tx.put(self.key, self._facts(), expect=standing, ttl=self._ttl, lease=True)
        tx.put(f"{self.key}/{BEAT}", self._beat_value(), ttl=WORKER_TRACES)
        self._asked = True
        try:
            yield tx.commit
        except Conflict as conflict:
            raise Conflict(
                f"a worker called {self.name!r} is at work on {self.pipeline!r} already, or was "
                "until a moment ago",
                hint="give each a name of its own, or none; a dead one's ends with its ttl",
                **conflict.details) from None
        receipt = tx.receipts[self.key]
        self._started = self._started or receipt.micros
        self._kept = Kept(receipt, self._ttl, asked, lambda: None, partial(self._beat, receipt))
        self._keeper.add(self._kept)
        yield from self._look()
        self._same_partitions(receipt)

    def _standing(self) -> Flow[Checkpoint | None]:
        """The registration that stands, if it is this worker's: also where the answer was lost."""
        found: Checkpoint | None = yield partial(self._store.get, self.key)
        mine = found is not None and is_registration(found) and (
            found.value.get("instance") == self._instance)
        return found if mine else None

    def _same_partitions(self, mine: Receipt) -> None:
        for each in self._view.members:
            if each.revision < mine.revision and each.value.get("digest") != self._digest:
                raise Misuse(
                    f"{each.key.rpartition('/')[2]!r} works on {self.pipeline!r} with "
                    f"{each.value['partitions']} partitions, which are not these "
                    f"{len(self.partitions)}",
                    hint="drain those who have the old ones first: ckptmesh worker drain "
                         f"{self.pipeline} --all")

    def _beat_value(self) -> dict[str, Any]:
        return {**self._facts(), "started": self._started, "turns": self._turns,
                "draining": self.ending}

    def _beat(self, registration: Receipt) -> Any:
        """Called by the keeper, in its thread, after each renewal; it awaits what this gives."""
        return self._store.commit(f"{self.key}/{BEAT}", self._beat_value(), ttl=WORKER_TRACES,
                                  guard=registration, timeout=min(self._ttl / 3, _LOOK))

    def leave(self) -> Flow[None]:
        """Give everything back, also where this is cancelled. What cannot be given back, since the
        store is away, ends with its time: that is found out once, then raised."""
        self.ending, self.turn = True, None
        kept, self._kept = self._kept, None
        if kept is not None:
            self._keeper.drop(kept)
        failed: BaseException | None = None
        away = False
        for step in [*(self._let_go(each) for each in self.owned.values()),
                     firmly(self._farewell)]:
            try:
                if not away:
                    yield from step
            except BaseException as error:
                failed, away = failed or error, away or isinstance(error, Error)
        for each in self.owned.values():
            each.lock.abandon()
        self.owned.clear()
        watch, self._watch = self._watch, None
        if watch is not None:
            yield watch.close
        if failed is not None:
            raise failed

    def _farewell(self) -> Flow[None]:
        if self._asked and (standing := (yield from self._standing())) is not None:
            tx = self._store.transaction()
            tx.guard(standing)
            for key in (self.key, f"{self.key}/{BEAT}", f"{self.key}/{ORDER}"):
                tx.delete(key)
            with contextlib.suppress(LeaseLost):
                yield tx.commit
        self._asked = False

    def interrupt(self) -> Any:
        """End what is waited for. For a signal handler, or another thread."""
        return None if self._watch is None else self._watch.close()

    # --- turns --------------------------------------------------------------------------------

    def next(self) -> Flow[Owned | None]:
        """End the turn that was, and begin the next; None when this worker is to end."""
        if self._kept is None:
            if self.ending:
                return None
            raise Misuse("this worker is not registered",
                         hint="with mesh.worker(…) as w: for part in w: …")
        if self.turn is not None:
            self._turns += 1
            self._barren += 1
            self._stirred = self._stirred or self.turn.wanted  # now it can be let go
            self.turn = None
        rest = 0.0
        while True:
            try:
                yield from self._news(rest)
                if not self.ending:
                    yield from self._settle()
                    yield from self._claim()
            except (Unavailable, OutcomeUnknown):  # who is away is waited for, as by a watch
                self._stirred = True
                if not self.ending:
                    yield partial(self._sleep, _LOOK)
                    continue
            if self.ending:
                yield from self.leave()
                return None
            if self.owned and self._barren < len(self.owned):
                self.turn = next(iter(self.owned.values()))
                self.owned[self.turn.key] = self.owned.pop(self.turn.key)  # and to the end
                return self.turn
            self._barren, rest = 0, self._idle if self.owned else _LOOK
            if not self.owned:
                self._lock(self._preferred[0]).check()

    def commit(self, owned: Owned, value: Any, options: dict[str, Any]) -> Flow[Receipt]:
        """Commit under a partition's lock, then take in what has happened."""
        try:
            receipt: Receipt = yield partial(self._store.commit, owned.key, value,
                                             guard=owned.lock, **options)
        except LeaseLost as error:
            raise owned.lock.refused(error) from None
        self.moved(owned)
        try:
            yield from self._news(0)
            yield from self._settle()
        except Error:  # the commit stands; what else is wrong is told when the turn has ended
            self._stirred = True
        return receipt

    def moved(self, owned: Owned) -> None:
        """This turn is not one without progress."""
        self._barren = -1 if self.turn is owned else 0

    # --- what is had --------------------------------------------------------------------------

    def _settle(self) -> Flow[None]:
        """Drop what is lost, and let go what others are to have, but for the turn's own. Between
        turns, register again where that is lost."""
        kept = self._kept
        assert kept is not None  # between `enter` and `leave`
        for each in [each for each in self.owned.values() if each.lost]:
            if each is not self.turn:
                yield from self._let_go(each)
        self.ending = self.ending or bool(self._view.order(kept.lease))
        here = kept.lost is None and self._view.registered(kept.lease)
        if not here and self.turn is None and not self.ending:
            self._keeper.drop(kept)
            yield from self._register()
        elif not self._stirred:
            return
        self._stirred = False
        others, share = self._view.outsiders(), self._share()
        for each in sorted(self.owned.values(), key=lambda one: self._rank[one.key],
                           reverse=True):
            if each is not self.turn and (len(self.owned) > share
                                          or awaited(each.key, each.revision, others)):
                yield from self._let_go(each)
        if self.turn is not None:
            self.turn.wanted = len(self.owned) > share or awaited(
                self.turn.key, self.turn.revision, others)
        yield from self._clear()

    def _share(self) -> int:
        return self._view.share(self.name, len(self.partitions))

    def _let_go(self, owned: Owned) -> Flow[None]:
        self.owned.pop(owned.key, None)
        with contextlib.suppress(LeaseLost):
            yield owned.lock.release
            self._view.gone(owned.lock.key)

    def _lock(self, key: str) -> Any:
        return self._store.lock(key, ttl=self._ttl, wait=0, holder=self.name)

    def _claim(self) -> Flow[None]:
        """Take free ones, up to this worker's share."""
        for key in self._preferred:
            if len(self.owned) >= self._share() or self.ending:
                return
            if self._view.free(key):
                lock = self._lock(key)
                with contextlib.suppress(LockTimeout, LeaseLost):  # somebody was faster
                    yield lock.acquire
                    self.owned = {key: Owned(key, lock), **self.owned}
                yield from self._news(0)

    def _clear(self) -> Flow[None]:
        """Remove tickets of this worker that it does not hold: the answer was lost, or their time
        was over here while the store was away, which lets them live on."""
        held = {each.lock.key for each in self.owned.values()}
        for each in self._view.tickets_of(self.name):
            if each.key not in held and each.name in self._rank:
                yield partial(self._store.delete, each.key)
                self._view.gone(each.key)

    # --- news ---------------------------------------------------------------------------------

    def _look(self) -> Flow[None]:
        """Learn anew who is there and what is held. What happens after is told by the watch."""
        if self._watches:
            before, self._watch = self._watch, None
            if before is not None:
                yield before.close
            self._watch = self._store.watch(self.pipeline)
            with contextlib.suppress(InvalidPayload, Compacted, Closed):
                yield partial(self._watch.get, timeout=0)  # now it has begun
        workers: list[Checkpoint] = yield from pages(self._store, folder_of(self.pipeline))
        locks: list[Checkpoint] = yield from pages(self._store, f"{self.pipeline}/{LOCKS}")
        self._view.load([*workers, *locks])
        self._looked, self._stirred = time.monotonic(), True

    def _news(self, patience: float) -> Flow[None]:
        """Take in what has happened; wait until something that matters does, at most so long."""
        until = time.monotonic() + patience
        if not self._watches:
            yield from self._poll(until)
            return
        if self._watch is None:  # the store was away when it was to be begun
            yield from self._look()
        for _ in range(_NEWS):
            if self.ending and patience:
                return
            left = max(0.0, until - time.monotonic())
            try:
                event = yield partial(self._watch.get, timeout=left)
            except InvalidPayload:  # somebody's value that cannot be read here
                continue
            except Compacted:  # so much has happened that not all of it is kept
                yield from self._look()
                return
            except Closed:
                if self.ending:  # `interrupt` did it
                    return
                raise
            if event is None:
                return
            if self._view.apply(event):
                self._stirred = True
                until = 0.0  # what else is there, without waiting

    def _poll(self, until: float) -> Flow[None]:
        if (left := until - time.monotonic()) > 0:
            yield partial(self._sleep, min(left, _LOOK))
        if time.monotonic() - self._looked >= _LOOK:
            yield from self._look()
