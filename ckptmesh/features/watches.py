"""Named watches from outside: where they are, how far behind, who is at work; and their end."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

from ckptmesh.errors import Compacted, InvalidPayload, Unavailable
from ckptmesh.features.following import free
from ckptmesh.features.locks import TICKET
from ckptmesh.features.pages import store_time
from ckptmesh.features.placing import (
    WATCHES,
    Place,
    is_own,
    key_of,
    name_of,
    read,
)
from ckptmesh.features.workers import names, pages
from ckptmesh.flows import Flow
from ckptmesh.limits import pipeline_of
from ckptmesh.views import Checkpoint, Event, Mark

_PATIENCE = 10.0  # seconds for one question how far behind a watch is
_LOOK = 0.05


@dataclass(frozen=True, slots=True)
class WatchInfo:
    """A named watch. `prefix`: what it watches; `mark`: the last event that was done, and since
    when that is so; `holder`: who is at work, None: nobody.

    `behind`: revisions of the store after the mark, 0 where none of them is for this watch;
    `seconds`: the age of the oldest event that is not done, by the store's clock, None where there
    is none, or where memory does not hold it any more: then `compacted` is True.
    """

    name: str
    pipeline: str
    prefix: str
    mark: Mark
    committed: datetime
    behind: int
    seconds: float | None
    compacted: bool
    holder: str | None


def watches(store: Any, pipeline: str = "") -> Flow[list[WatchInfo]]:
    """The named watches of a pipeline, or of all. Raises as `Client.watches`."""
    folders = [pipeline] if pipeline else (yield from names(store))
    found: list[WatchInfo] = []
    for name in folders:
        rows = yield from pages(store, f"{pipeline_of(name)}/{WATCHES}")
        now = yield from store_time(store)
        for each in rows:
            if name_of(each.key):
                found.append((yield from _info(store, each, rows, now)))
    return found


def drop(store: Any, lock: Any, prefix: str, name: str) -> Flow[bool]:
    """Forget a place, unless somebody is at work there. Whether there was one."""
    key = key_of(prefix, name)
    yield from free(store, key)
    yield lock.acquire
    try:
        dropped: bool = yield partial(store.delete, key, guard=lock)
    finally:
        yield lock.release
    return dropped


def _info(store: Any, found: Checkpoint, rows: list[Checkpoint], now: int) -> Flow[WatchInfo]:
    place = read(found.key, found.value)
    tickets = [each for each in rows if each.key.startswith(f"{found.key}/{TICKET}/")]
    first = min(tickets, key=lambda each: each.revision, default=None)
    head: int = yield store.revision
    seconds, compacted = None, False
    try:
        oldest = yield from _oldest(store, place, head)
    except Compacted:
        oldest, compacted = None, True
    if oldest is not None:
        seconds = max(0.0, (now - oldest) / 1e6)
    behind = head - place.mark.revision if compacted or oldest is not None else 0
    return WatchInfo(name_of(found.key), pipeline_of(found.key), place.prefix, place.mark,
                     found.time, behind, seconds, compacted,
                     None if first is None else str(first.value["holder"]))


def _oldest(store: Any, place: Place, head: int) -> Flow[int | None]:
    """When the oldest event was committed that is not done; None where there is none."""
    watch = yield partial(store.watch, place.prefix, since=place.mark)
    until, patience = time.monotonic() + _PATIENCE, 0.0
    try:
        while True:
            try:
                event: Event | None = yield partial(watch.get, timeout=patience)
            except InvalidPayload:  # an event as any; its time is not known
                return (yield from store_time(store))
            if event is not None and not is_own(event.key, place.prefix):
                return event.micros
            mark, patience = watch.mark, _LOOK
            if event is None and mark is not None and mark.revision >= head:
                return None
            if time.monotonic() >= until:
                raise Unavailable("the store did not tell in time what a watch has still to do")
    finally:
        yield watch.close
