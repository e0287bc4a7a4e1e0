"""Who has consumed checkpoints: what somebody who goes back behind them has to know.

    for each in run(consumers(store, "orders", 1042)):
        print(each.kind, each.name, each.key, each.revision)

It is read from what commits say they were made from (`sources`): those of the places of named
watches, of runs of staged pipelines, and of anybody else.

Rule 1: all of it is of one cut, read by the page; every checkpoint of the store is looked at once.
Rule 2: what is itself selected, and would go back with the rest, is no consumer; a watch or a run
        is, since what it has done elsewhere stays done.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ckptmesh import values
from ckptmesh.features.pages import StorePages, cut_of
from ckptmesh.features.pipeline.places import RUNS
from ckptmesh.features.placing import name_of, read
from ckptmesh.flows import Flow
from ckptmesh.limits import SOURCES, pipeline_of, under
from ckptmesh.views import Checkpoint


@dataclass(frozen=True, slots=True)
class Consumption:
    """Somebody who has consumed `key` at `revision`, and said so at `time`.

    `kind`: "watch", "run" or "checkpoint". `name`: of a named watch and of a run with its pipeline
    before it ("orders/billing", "nightly/2026-11-21"), of a checkpoint its key. A watch that has
    consumed more keys than it can name stands with the prefix that it watches as `key`, and the
    revision up to which it has consumed all.
    """

    kind: str
    name: str
    key: str
    revision: int
    time: datetime


def consumers(store: Any, what: str | Collection[str], after: int) -> Flow[list[Consumption]]:
    """Who has consumed later versions than revision `after` of these keys, or of those under this
    prefix ("": of all), in the order of their kinds and names. Raises as `get`."""
    selected, meets = _selection(what)
    found: dict[tuple[str, str, str], Consumption] = {}
    pages = StorePages(store, "", (yield from cut_of(store, None)))
    while page := (yield from pages.page()):
        for each in page:
            for consumer in _of(each, selected, meets, after):
                place = (consumer.kind, consumer.name, consumer.key)
                before = found.get(place)
                if before is None or before.revision < consumer.revision:
                    found[place] = consumer
    return sorted(found.values(), key=lambda each: (each.kind, each.name, each.key))


def _selection(what: str | Collection[str]
               ) -> tuple[Callable[[str], bool], Callable[[str], bool]]:
    """Whether a key is selected, and whether anything under a prefix may be."""
    if isinstance(what, str):
        prefix = what
        return (lambda key: under(prefix, key),
                lambda watched: under(prefix, watched) or under(watched, prefix))
    keys = frozenset(what)
    return keys.__contains__, lambda watched: any(under(watched, key) for key in keys)


def _of(found: Checkpoint, selected: Callable[[str], bool], meets: Callable[[str], bool],
        after: int) -> list[Consumption]:
    """What one checkpoint says. Its value is packed."""
    later = [(key, revision) for key, revision in found.sources
             if revision > after and selected(key)]
    name = name_of(found.key)
    if name:
        return _watch(found, name, later, meets, after)
    pipeline, _, rest = found.key.partition("/")
    parts = rest.split("/")
    if len(parts) > 2 and parts[0] == RUNS:
        own = f"{pipeline}/{RUNS}"  # what its stages were given from each other is its own affair
        return [Consumption("run", f"{pipeline}/{parts[2]}", key, revision, found.time)
                for key, revision in later if not under(own, key)]
    if selected(found.key):
        return []
    return [Consumption("checkpoint", found.key, key, revision, found.time)
            for key, revision in later]


def _watch(found: Checkpoint, name: str, later: list[tuple[str, int]],
           meets: Callable[[str], bool], after: int) -> list[Consumption]:
    name = f"{pipeline_of(found.key)}/{name}"
    if not later and len(found.sources) >= SOURCES:  # it may have forgotten some
        place = read(found.key, values.unpack(found.value.data))
        if place.mark.revision > after and meets(place.prefix):
            later = [(place.prefix, place.mark.revision)]
    return [Consumption("watch", name, key, revision, found.time) for key, revision in later]
