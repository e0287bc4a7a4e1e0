"""The workers of a pipeline from outside: who is there, who has what, and ending them.

    for each in mesh.workers("orders"):
        print(each.name, each.state, each.partitions, each.heartbeat)
    mesh.workers("orders").drain("etl-1")          # gives its partitions back, and ends
    mesh.workers("orders").free_stale()            # removes what the dead have left behind

A worker is registered by a lease, `orders/_workers/NAME`. With each renewal it commits a beat
beside it, which outlives it, so that people see who was there and when he was last heard of.

Rule 1: times are the store's. No host's clock is asked, so none can be wrong.
Rule 2: a worker is stale when its lease has ended without a good-bye, or when it has not beaten
        for its TTL. It is freed only if it has not beaten since that was seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime
from functools import partial
from typing import Any, NamedTuple

from ckptmesh.api import seconds
from ckptmesh.clock import Seconds, to_datetime
from ckptmesh.errors import Conflict, LeaseLost, Misuse
from ckptmesh.features.locks import LOCKS
from ckptmesh.features.sharing import (
    BEAT,
    DRAIN,
    ORDER,
    STOP,
    folder_of,
    granted,
    is_registration,
    order_of,
    ticket_of,
)
from ckptmesh.flows import Flow, run, run_async
from ckptmesh.limits import (
    SECOND,
    TRANSACTION_MUTATIONS,
    WORKER_TRACES,
    check_key,
    pipeline_of,
)
from ckptmesh.views import Checkpoint

_PAGE = 1_000  # rows read in one round trip
_ROOM = TRANSACTION_MUTATIONS - 8  # partitions freed in one transaction
_STATES = {DRAIN: "draining", STOP: "stopping"}


class WorkerInfo(NamedTuple):
    """One worker. `state`: running, draining, stopping or stale. `partitions`: the keys of those
    that it has now. `heartbeat`: when it was last heard of, in the store's time."""

    name: str
    state: str
    partitions: tuple[str, ...]
    heartbeat: datetime
    started: datetime
    host: str
    pid: int
    version: str
    ttl: float  # seconds
    key: str


class PipelineInfo(NamedTuple):
    """One pipeline at which somebody is at work. `workers`: how many live; `locks`: how many are
    held or awaited, those of workers too."""

    name: str
    workers: int
    locks: int


class _Found(NamedTuple):
    """What is kept of one worker. One of the first two is there."""

    name: str
    registration: Checkpoint | None
    beat: Checkpoint | None
    order: Checkpoint | None
    tickets: dict[str, str]  # keys of tickets, with the names that they are for

    def silent(self, now: int) -> float:
        """Seconds since it was last heard of."""
        return (now - max(each.micros for each in (self.registration, self.beat) if each)) / SECOND

    def info(self, now: int) -> WorkerInfo:
        facts: Any = {}
        for each in (self.registration, self.beat):
            if each is not None and isinstance(each.value, dict):
                facts = {**facts, **each.value}
        ttl = float(facts.get("ttl", 0))
        state = "running"
        if self.registration is None or self.silent(now) > ttl:
            state = "stale"
        elif said := order_of(self.registration, self.order):
            state = _STATES[said]
        elif facts.get("draining"):
            state = "draining"
        last = max(each.micros for each in (self.registration, self.beat) if each)
        began = self.registration or self.beat
        assert began is not None  # see above
        return WorkerInfo(
            self.name, state, tuple(sorted(self.tickets.values())), to_datetime(last),
            to_datetime(int(facts.get("started") or began.micros)), str(facts.get("host", "")),
            int(facts.get("pid", 0)), str(facts.get("version", "")), ttl, began.key
            if self.registration else began.key.rpartition("/")[0])


# --- flows ------------------------------------------------------------------------------------


def pages(store: Any, prefix: str) -> Flow[list[Checkpoint]]:
    """All under a prefix."""
    found: list[Checkpoint] = []
    while True:
        page = yield partial(store.scan, prefix, after=found[-1].key if found else "",
                             limit=_PAGE)
        found += page
        if not page:
            return found


def _look(store: Any, pipeline: str) -> Flow[tuple[int, list[_Found]]]:
    """The store's time, and the workers."""
    rows = yield from pages(store, folder_of(pipeline))
    locks = yield from pages(store, f"{pipeline}/{LOCKS}")
    now: int = (yield store.hello).time
    by_key = {each.key: each for each in rows}
    front = folder_of(pipeline) + "/"
    names = {each.key.removeprefix(front).partition("/")[0] for each in rows
             if is_registration(each) or each.key.endswith(f"/{BEAT}")}
    held = granted(ticket for each in locks if (ticket := ticket_of(each)) is not None)
    return now, [
        _Found(name, by_key.get(front + name), by_key.get(f"{front}{name}/{BEAT}"),
               by_key.get(f"{front}{name}/{ORDER}"),
               {each.key: each.name for each in held if each.holder == name})
        for name in sorted(names)]


def listed(store: Any, pipeline: str) -> Flow[list[WorkerInfo]]:
    """The workers of a pipeline, in the order of their names."""
    now, found = yield from _look(store, pipeline)
    return [each.info(now) for each in found]


def _tell(store: Any, pipeline: str, name: str, what: str) -> Flow[WorkerInfo | None]:
    """Give an order to a worker. None where there is no such worker."""
    while True:
        now, found = yield from _look(store, pipeline)
        one = next((each for each in found if each.name == name and each.registration), None)
        if one is None:
            return None
        assert one.registration is not None  # chosen so
        tx = store.transaction()
        tx.guard(one.registration)
        tx.put(f"{one.registration.key}/{ORDER}",
               {"order": what, "registration": one.registration.revision}, ttl=WORKER_TRACES)
        for ticket in [*one.tickets][:_ROOM] if what == STOP else ():
            tx.delete(ticket)
        try:
            yield tx.commit
        except LeaseLost:  # it has ended since, or is registered anew
            continue
        return one.info(now)


def drain(store: Any, pipeline: str, name: str) -> Flow[WorkerInfo | None]:
    """See `Workers.drain`."""
    return (yield from _tell(store, pipeline, name, DRAIN))


def stop(store: Any, pipeline: str, name: str) -> Flow[WorkerInfo | None]:
    """See `Workers.stop`."""
    return (yield from _tell(store, pipeline, name, STOP))


def freeing(store: Any, pipeline: str, older: Seconds | None = None, dry_run: bool = False
            ) -> Flow[list[WorkerInfo]]:
    """See `Workers.free_stale`."""
    limit = seconds(older, -1.0, "older")
    now, found = yield from _look(store, pipeline)
    freed = []
    for each in found:
        info = each.info(now)
        stale = info.state == "stale" if limit < 0 else each.silent(now) >= limit
        if stale and (dry_run or (yield from _free(store, each))):
            freed.append(info)
    return freed


def _free(store: Any, one: _Found) -> Flow[bool]:
    """Remove all that is kept of a worker; whether it was as silent as before."""
    tickets = [*one.tickets]
    own = [each for each in (one.registration, one.beat, one.order) if each is not None]
    for start in range(0, max(len(tickets), 1), _ROOM):
        part = tickets[start:start + _ROOM]
        tx = store.transaction()
        for each in own:
            tx.expect(each)
        if start + _ROOM >= len(tickets):
            part += [each.key for each in own]
        for key in part:
            tx.delete(key)
        try:
            yield tx.commit
        except Conflict:
            return False
    return True


def names(store: Any) -> Flow[list[str]]:
    """The pipelines that there are. One or two reads for each, and one for each key that stands
    beside them."""
    found: list[str] = []
    after = ""
    while True:
        page = yield partial(store.scan, "", after=after, limit=1)
        if not page:
            return found
        key = page[0].key
        name = pipeline_of(key)
        # "a-b" stands between "a" and "a/b": past "a/…" is jumped only from within.
        after = key if key == name else max(key, f"{name}/\U0010ffff")
        if key != name and name not in found[-1:]:
            found.append(name)


def active(store: Any) -> Flow[list[PipelineInfo]]:
    """The pipelines with workers that live, or with locks. Two or three reads for each pipeline
    that there is."""
    found: list[PipelineInfo] = []
    for name in (yield from names(store)):
        workers = yield from pages(store, folder_of(name))
        locks = yield from pages(store, f"{name}/{LOCKS}")
        info = PipelineInfo(name, sum(map(is_registration, workers)),
                            sum(ticket_of(each) is not None for each in locks))
        if info.workers or info.locks:
            found.append(info)
    return found


def free_stale(store: Any, pipeline: str, *, older: Seconds | None = None, dry_run: bool = False
               ) -> list[WorkerInfo]:
    """`Workers.free_stale` on a plain client. `dry_run`: only tell who they are."""
    return run(freeing(store, pipeline, older, dry_run))


# --- the two shells ---------------------------------------------------------------------------


def checked(pipeline: str) -> str:
    """The name of a pipeline. Raises `Misuse`, `InvalidKey`."""
    check_key(f"{pipeline}/{LOCKS}")
    if "/" in pipeline:
        raise Misuse(f"workers share a whole pipeline, and {pipeline!r} is a part of one",
                     hint=f"mesh.worker({pipeline_of(pipeline)!r}, partitions=[…])")
    return pipeline


class Workers:
    """The workers of one pipeline, through a plain client: iterate over them, or end some."""

    def __init__(self, store: Any, pipeline: str) -> None:
        self._store, self.pipeline = store, checked(pipeline)

    def list(self) -> list[WorkerInfo]:
        """All of them as they are now, in the order of their names; the stale ones too."""
        return run(listed(self._store, self.pipeline))

    def __iter__(self) -> Iterator[WorkerInfo]:
        return iter(self.list())

    def drain(self, name: str) -> WorkerInfo | None:
        """Let a worker end in order: it finishes its turn, gives its partitions back, and takes no
        more. What it was, or None where there is no such worker."""
        return run(drain(self._store, self.pipeline, name))

    def stop(self, name: str) -> WorkerInfo | None:
        """Take its partitions from a worker at once, and let it end: what it has not committed by
        then is refused, and done again by others. As `drain`."""
        return run(stop(self._store, self.pipeline, name))

    def free_stale(self, *, older: Seconds | None = None) -> Iterable[WorkerInfo]:
        """Free what stale workers have, and remove their traces; who they were. `older`: how long
        somebody must not have been heard of (None: his own ttl)."""
        return run(freeing(self._store, self.pipeline, older))


class AsyncWorkers:
    """`Workers` for asyncio: the same names, awaited; `await workers.list()` instead of a loop."""

    def __init__(self, store: Any, pipeline: str) -> None:
        self._store, self.pipeline = store, checked(pipeline)

    async def list(self) -> list[WorkerInfo]:
        """As `Workers.list`."""
        return await run_async(listed(self._store, self.pipeline))

    async def drain(self, name: str) -> WorkerInfo | None:
        """As `Workers.drain`."""
        return await run_async(drain(self._store, self.pipeline, name))

    async def stop(self, name: str) -> WorkerInfo | None:
        """As `Workers.stop`."""
        return await run_async(stop(self._store, self.pipeline, name))

    async def free_stale(self, *, older: Seconds | None = None) -> Iterable[WorkerInfo]:
        """As `Workers.free_stale`."""
        return await run_async(freeing(self._store, self.pipeline, older))
