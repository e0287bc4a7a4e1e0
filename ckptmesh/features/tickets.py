"""Who holds and who awaits which lock: the queue of `locks.py`, from outside."""

from __future__ import annotations

from typing import Any, NamedTuple

from ckptmesh.features.locks import LOCKS, TICKET, covers
from ckptmesh.limits import pipeline_of
from ckptmesh.views import Checkpoint


class Ticket(NamedTuple):
    """One place in the queue. `ahead`: how many that were drawn before conflict with it; with
    none it has the lock."""

    found: Checkpoint
    name: str
    shared: bool
    holder: str
    ahead: int

    @property
    def number(self) -> str:
        """What tells it from others: the last segment of its key."""
        return self.found.key.rpartition("/")[2]


def tickets(store: Any, pipeline: str = "") -> list[Ticket]:
    """The tickets of a pipeline ("": of all; then every key of the store is looked at), in the
    order of asking."""
    drawn = sorted((each for each in store.list(f"{pipeline}/{LOCKS}" if pipeline else "")
                    if is_ticket(each)), key=lambda each: each.revision)
    found: list[Ticket] = []
    for each in drawn:
        name, shared = each.value["name"], each.value["shared"] is True
        ahead = sum(covers(name, other.name) and not (shared and other.shared) for other in found)
        found.append(Ticket(each, name, shared, str(each.value["holder"]), ahead))
    return found


def is_ticket(found: Checkpoint) -> bool:
    """Whether a checkpoint is a ticket, and not a key of somebody's that looks alike."""
    return (found.is_lease and found.key.startswith(f"{pipeline_of(found.key)}/{LOCKS}/")
            and f"/{TICKET}/" in found.key and isinstance(found.value, dict)
            and isinstance(found.value.get("name"), str)
            and {"shared", "holder"} <= found.value.keys())
