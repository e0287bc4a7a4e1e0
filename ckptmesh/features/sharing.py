"""Who of a pipeline's workers is to have how many partitions, and which are free: without waiting.

Rule 1: shares differ by at most one. Those who came first have the larger ones.
Rule 2: nobody moves more than he must: who has too many lets some go, who has too few takes some.
        Which ones, a hash decides, so that those who choose at once seldom choose the same.
Rule 3: a view may be late. What is decided by it is a wish: the store's leases decide who has what.

`View` is what one worker knows: the registrations, the tickets of locks, and what workers were
told, kept up to date by the events of the pipeline.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

from ckptmesh.features.locks import LOCKS, TICKET, above, covers
from ckptmesh.features.partitions import hash_of
from ckptmesh.views import Checkpoint, Event, Receipt

WORKERS, BEAT, ORDER = "_workers", "_beat", "_order"
DRAIN, STOP = "drain", "stop"


def folder_of(pipeline: str) -> str:
    """Where the workers of a pipeline are registered."""
    return f"{pipeline}/{WORKERS}"


def share_of(place: int, members: int, partitions: int) -> int:
    """How many partitions the member at a place, counted from 0, is to have."""
    return partitions // members + (place < partitions % members)


def weight(worker: str, key: str) -> int:
    """How much a worker prefers a partition to others. (Highest random weight: D. Thaler, C.
    Ravishankar, "A name-based mapping scheme for rendezvous", 1996.)"""
    return hash_of(f"{worker}\n{key}")


class Asked(NamedTuple):
    """A lock that is held or awaited: a ticket, as `locks.py` draws it."""

    key: str
    name: str
    holder: str
    revision: int


class View:
    """What is known of a pipeline's workers and locks."""

    def __init__(self, pipeline: str) -> None:
        self._workers = folder_of(pipeline) + "/"
        self._locks = f"{pipeline}/{LOCKS}/"
        self.load(())

    def load(self, found: Iterable[Checkpoint]) -> None:
        """Forget all, and begin with what is there."""
        self._seen: dict[str, Checkpoint] = {}  # registrations and orders
        self._tickets: dict[str, Asked] = {}
        self._names: Counter[str] = Counter()  # that tickets are for …
        self._parents: Counter[str] = Counter()  # … and what is above them
        for each in found:
            self._put(each)

    def apply(self, event: Event) -> bool:
        """Take in what has happened, unless it is known. Whether it may matter to somebody."""
        key = event.key
        if not key.startswith((self._workers, self._locks)) or key.endswith(f"/{BEAT}"):
            return False
        known = self._seen.get(key) or self._tickets.get(key)
        if known is not None and known.revision > event.revision:
            return False
        self._drop(key)
        if event.checkpoint is not None:
            self._put(event.checkpoint)
        return True

    def _put(self, found: Checkpoint) -> None:
        if found.key.startswith(self._workers):
            self._seen[found.key] = found
        elif (asked := ticket_of(found)) is not None:
            self._tickets[found.key] = asked
            self._names[asked.name] += 1
            self._parents.update(above(asked.name))

    def _drop(self, key: str) -> None:
        self._seen.pop(key, None)
        asked = self._tickets.pop(key, None)
        if asked is not None:
            self._names[asked.name] -= 1
            self._parents.subtract(above(asked.name))

    # --- members ------------------------------------------------------------------------------

    @property
    def members(self) -> list[Checkpoint]:
        """The registrations, in the order in which they were made."""
        return sorted(filter(is_registration, self._seen.values()),
                      key=lambda each: each.revision)

    def order(self, registration: Checkpoint | Receipt) -> str:
        """What the worker that is, or was, registered so was told: `DRAIN`, `STOP`, or nothing."""
        return order_of(registration, self._seen.get(f"{registration.key}/{ORDER}"))

    def share(self, worker: str, partitions: int) -> int:
        """How many partitions this worker is to have now."""
        active = [name_of(each) for each in self.members if not self.order(each)]
        if worker not in active:
            return 0
        return share_of(active.index(worker), len(active), partitions)

    def registered(self, registration: Checkpoint | Receipt) -> bool:
        """Whether this very registration stands."""
        found = self._seen.get(registration.key)
        return found is not None and found.revision == registration.revision

    # --- partitions ---------------------------------------------------------------------------

    def tickets_of(self, holder: str) -> list[Asked]:
        """What somebody holds or awaits."""
        return [each for each in self._tickets.values() if each.holder == holder]

    def gone(self, key: str) -> None:
        """This ticket was given back: its event may come later."""
        self._drop(key)

    def free(self, key: str) -> bool:
        """Whether no ticket covers a partition."""
        return not self._parents[key] and not any(self._names[name] for name in (key, *above(key)))

    def outsiders(self) -> list[Asked]:
        """The locks that are held or awaited by others than workers. Workers await none: what one
        of them has too many of, he lets go as it is."""
        workers = {name_of(each) for each in self.members}
        return [each for each in self._tickets.values() if each.holder not in workers]


def awaited(key: str, revision: int, others: Iterable[Asked]) -> bool:
    """Whether one of others waits for the lock on a partition behind a ticket of this revision."""
    return any(each.revision > revision and covers(each.name, key) for each in others)


def granted(tickets: Iterable[Asked]) -> list[Asked]:
    """Those of all tickets that no earlier one covers: locks that are held, not awaited. (For
    exclusive ones, as workers have.)"""
    found = [*tickets]
    first: dict[str, int] = {}  # the earliest ticket for a name
    inside: dict[str, int] = {}  # … and for it or any part of it
    for each in found:
        first[each.name] = min(each.revision, first.get(each.name, each.revision))
        for name in (each.name, *above(each.name)):
            inside[name] = min(each.revision, inside.get(name, each.revision))
    return [each for each in found if each.revision <= inside[each.name] and all(
        first.get(name, each.revision) >= each.revision for name in above(each.name))]


def name_of(registration: Checkpoint) -> str:
    """What a worker is called, by its registration."""
    return registration.key.rpartition("/")[2]


def is_registration(found: Checkpoint) -> bool:
    """Whether a checkpoint registers a worker, and is nothing of somebody's that looks alike."""
    parts = found.key.split("/")
    return (found.is_lease and len(parts) == 3 and parts[1] == WORKERS
            and isinstance(found.value, dict) and "partitions" in found.value)


def order_of(registration: Checkpoint | Receipt, order: Checkpoint | None) -> str:
    """What a worker was told. An order is for one registration, not for a later one."""
    if order is None or not isinstance(order.value, dict):
        return ""
    said: Any = order.value.get("order")
    meant = order.value.get("registration") == registration.revision
    return said if meant and said in (DRAIN, STOP) else ""


def ticket_of(found: Checkpoint) -> Asked | None:
    """The ticket that a checkpoint is, if it is one."""
    if f"/{TICKET}/" not in found.key or not isinstance(found.value, dict):
        return None
    name, holder = found.value.get("name"), found.value.get("holder")
    if not isinstance(name, str) or not isinstance(holder, str):
        return None
    return Asked(found.key, name, holder, found.revision)
