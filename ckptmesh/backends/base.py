"""The interface that features are written on, whatever keeps the state.

A `Client` meets it over sockets and embedded; other stores will meet it with what they can, and
declare that in `capabilities`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Any, Protocol, runtime_checkable

from ckptmesh.api import BLIND, Expectation, Expected
from ckptmesh.clock import Seconds
from ckptmesh.views import Checkpoint, Receipt


class Capability(Enum):
    """What a backend may be able to do beyond the methods of `StateBackend`."""

    HISTORY = "history"  # earlier versions of a key
    TIME_TRAVEL = "time travel"  # a true cut of the whole store at an earlier revision
    WATCH = "watch"  # every change, in order, none missed
    LEASES = "leases"  # keys that go with their holder, with fencing tokens
    PROCESSES = "processes"  # several processes at once


@runtime_checkable
class StateBackend(Protocol):
    """Keeps checkpoints. All methods raise errors of `ckptmesh.errors` alone."""

    @property
    def capabilities(self) -> frozenset[Capability]:
        """What it can do beyond this interface."""

    def get(self, key: str) -> Checkpoint | None:
        """The checkpoint of a key, or None."""

    def put(self, key: str, value: Any, *, expect: Expectation = BLIND,
            ttl: Seconds | None = None, position: int | None = None) -> Receipt:
        """Write; returns once it is durable. Raises `Conflict` when `expect` does not hold."""

    def delete(self, key: str, *, expect: Expectation = BLIND) -> bool:
        """Remove; whether it existed. Raises `Conflict`."""

    def scan(self, prefix: str = "", *, after: str = "", limit: int = 1_000) -> list[Checkpoint]:
        """At most `limit` checkpoints under a prefix with keys after `after`, in key order."""

    def transact(self, *, put: Mapping[str, Any] | None = None, delete: Iterable[str] = (),
                 expect: Mapping[str, Expected] | None = None) -> int:
        """All or nothing; returns the revision. Raises `Conflict`."""

    def close(self) -> None:
        """Let go."""
