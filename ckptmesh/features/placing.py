"""Where a named watch is: its place in the store, as a checkpoint that can be read by anybody.

    orders/_watches/billing       {"prefix": "orders", "mark": [1042, …], "store": …, "schema": 1}

The name is one of the pipeline: "billing" of `orders` watches `orders`, or a part of it, not both.
A watch of everything has no pipeline, and its place stands in one that is ckptmesh's own:
`ckptmesh/_watches/NAME`. `position` is the revision of the mark; `sources` are the checkpoints that
were consumed last, by key, at most `SOURCES` of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from ckptmesh.errors import InvalidPayload, Unsupported
from ckptmesh.features.pipeline.places import check_segment
from ckptmesh.limits import SOURCES, check_key, check_prefix, pipeline_of
from ckptmesh.views import Event, Mark

WATCHES = "_watches"
EVERYTHING = "ckptmesh"  # the pipeline that has the places of those who watch everything
SCHEMA = 1


class Place(NamedTuple):
    """A place: `mark` is the last event that was done; `store` the UUID of the store whose
    revisions it counts."""

    prefix: str
    mark: Mark
    store: str

    def value(self) -> dict[str, Any]:
        """What is committed."""
        return {"prefix": self.prefix, "mark": list(self.mark), "store": self.store,
                "schema": SCHEMA}


def folder_of(prefix: str) -> str:
    """The prefix of the places of those who watch this prefix, or another of its pipeline."""
    return f"{pipeline_of(prefix) or EVERYTHING}/{WATCHES}"


def key_of(prefix: str, name: str) -> str:
    """The key of a place. Raises `Misuse`, `InvalidKey`, `TooLarge`."""
    check_prefix(prefix)
    key = f"{folder_of(prefix)}/{check_segment(name, 'the name of a watch')}"
    check_key(key)
    return key


def name_of(key: str) -> str:
    """The name of the watch whose place has this key; "" for any other key."""
    parts = key.split("/")
    return parts[2] if len(parts) == 3 and parts[1] == WATCHES else ""


def is_own(key: str, prefix: str) -> bool:
    """Whether a key is one of ckptmesh's own below a prefix, as locks and workers have them; or of
    a named watch, whoever looks: else each commit of a place would be an event for which the place
    is committed."""
    return "/_" in key[len(prefix):] or key.split("/", 2)[1:2] == [WATCHES]


def read(key: str, value: Any) -> Place:
    """A place as it was committed. Raises `InvalidPayload`, `Unsupported`."""
    if isinstance(value, dict) and type(value.get("schema")) is int and value["schema"] > SCHEMA:
        raise Unsupported(f"{key!r} was written by a newer ckptmesh (schema {value['schema']})",
                          hint="upgrade this one")
    try:
        prefix, mark, store = value["prefix"], Mark(*value["mark"]), value["store"]
    except (TypeError, KeyError):
        prefix, mark, store = None, None, None
    if not (isinstance(prefix, str) and isinstance(store, str) and mark is not None
            and all(type(part) is int and part >= -1 for part in mark)):
        raise InvalidPayload(f"what stands under {key!r} is not the place of a watch", key=key)
    return Place(prefix, mark, store)


class Consumed:
    """The checkpoints that were consumed last, by key: at most `SOURCES`, the newest stay."""

    def __init__(self, sources: Iterable[tuple[str, int]] = ()) -> None:
        self._last = dict(sources)

    def add(self, event: Event) -> None:
        """One more event that is done. (A deletion leaves nothing that could be named, and a lease
        is no progress.)"""
        found = event.checkpoint
        if found is None or found.is_lease:
            return
        self._last.pop(found.key, None)
        self._last[found.key] = found.revision
        if len(self._last) > SOURCES:
            del self._last[next(iter(self._last))]

    def sources(self) -> list[tuple[str, int]]:
        """What the commit of the place says it was made from, the newest last."""
        return list(self._last.items())
