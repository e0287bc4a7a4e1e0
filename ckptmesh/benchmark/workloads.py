"""What is done to a mesh, over and over, by one worker.

    make = functools.partial(Commits, Place("tcp://127.0.0.1:7701", "bench-4f1c/one"))
    worker = make(3)  # worker 3, in its own process
    worker.step()

Rule 1: a worker writes only keys under its place's prefix and its own number, and few of them, so
        that no two workers meet and `remove` has little to do.
Rule 2: what `step` counts is durable when it returns: a receipt is there for each.
Rule 3: a worker connects when it is made, and has its session and its keys after its first step.
"""

from __future__ import annotations

import os
import time
from collections import deque
from concurrent.futures import Future
from itertools import cycle
from typing import NamedTuple

from ckptmesh.client import Client, connect
from ckptmesh.views import Receipt

SIZE = 100  # bytes of a value, when nobody says otherwise: an offset and a few words about it
_PARTS = 4  # of what is in flight, a step waits for one: the others keep the store busy meanwhile
_REMOVED = 1_000  # keys with one transaction
_QUIET = 0.05  # seconds without a key until all is removed: a copy on its way would be there


class Place(NamedTuple):
    """Where a worker commits: to which store, under which prefix, values of how many bytes, with
    how much patience (seconds) for a commit."""

    url: str
    prefix: str
    size: int = SIZE
    timeout: float = 30.0


class MeshWorker:
    """What all of them share: a client, a value, a key of their own. Raises what `connect` does."""

    def __init__(self, place: Place, number: int) -> None:
        self.key = f"{place.prefix}/{number}"
        self.value = os.urandom(place.size)  # what nothing on the way can make smaller
        self.mesh: Client = connect(place.url, timeout=place.timeout)

    def close(self) -> None:
        """Wait for what is in flight, end the session. Raises as `Client.close`."""
        self.mesh.close()


class Commits(MeshWorker):
    """One commit of one key at a time."""

    def step(self) -> int:
        """One commit."""
        self.mesh.commit(self.key, self.value)
        return 1


class Pipelined(MeshWorker):
    """Single commits by `submit`, up to `in_flight` (1 to 1,024) of them at once, each to a key of
    its own.

    Between two steps some stay in flight, as with a worker that never waits for all. They belong to
    the next step, so over several steps none is counted twice and none too early.
    """

    def __init__(self, place: Place, in_flight: int, number: int) -> None:
        super().__init__(place, number)
        self.operations = share(in_flight)
        self._in_flight = in_flight
        self._keys = cycle([f"{self.key}/{each}" for each in range(in_flight)])
        self._waiting: deque[Future[Receipt]] = deque()

    def step(self) -> int:
        """Fill up what is in flight, then wait for the oldest quarter of it."""
        while len(self._waiting) < self._in_flight:
            self._waiting.append(self.mesh.submit(next(self._keys), self.value))
        for _ in range(self.operations):
            self._waiting.popleft().result()
        return self.operations


def share(in_flight: int) -> int:
    """Operations of one step of `Pipelined`."""
    return max(1, in_flight // _PARTS)


class Batches(MeshWorker):
    """Transactions that put `batch` (1 to 4,096) keys at once: one revision, one sync."""

    def __init__(self, place: Place, batch: int, number: int) -> None:
        super().__init__(place, number)
        self._put = {f"{self.key}/{each}": self.value for each in range(batch)}

    def step(self) -> int:
        """One transaction; each of its keys counts."""
        self.mesh.transact(put=self._put)
        return len(self._put)


class Reads(MeshWorker):
    """Reads of one key, one at a time; the key is committed when the worker is made."""

    def __init__(self, place: Place, number: int) -> None:
        super().__init__(place, number)
        self.mesh.commit(self.key, self.value)

    def step(self) -> int:
        """One read. Raises `LookupError` when the key is gone."""
        if self.mesh.get(self.key) is None:
            raise LookupError(f"{self.key} was removed by somebody else")
        return 1


def remove(mesh: Client, prefix: str) -> int:
    """Delete every key under a prefix; how many there were. Call it when the workers have ended:
    it looks again until nothing comes any more, since copies of a killed worker's commits may be on
    their way. Raises as `Client.transact`."""
    count = 0
    while True:
        found = [each.key for each in mesh.scan(prefix, limit=_REMOVED)]
        if not found:
            time.sleep(_QUIET)
            found = [each.key for each in mesh.scan(prefix, limit=_REMOVED)]
            if not found:
                return count
        mesh.transact(delete=found)
        count += len(found)
