"""Checkpoints by the page, values packed: from one cut of a store, or out of an export.

Rule 1: all pages of a store show one revision, whatever is committed meanwhile.
Rule 2: leases (locks, workers, claims), and what workers say beside theirs, are no progress: they
        are left out everywhere.
Rule 3: no more than a page is in memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import msgpack

from ckptmesh.api import Moment
from ckptmesh.features.portable import Reader
from ckptmesh.features.sharing import WORKERS
from ckptmesh.flows import Flow
from ckptmesh.limits import EXPORT_BATCH, EXPORT_BATCH_BYTES, under
from ckptmesh.messages import REWINDS
from ckptmesh.views import Checkpoint

Progress = Callable[[str, int, int | None], object]
"""Told how far it is: (what is done, checkpoints done, of how many or None)."""


class Pages(Protocol):
    """Checkpoints in key order, by the page."""

    def page(self) -> Flow[list[Checkpoint]]:
        """The next ones; none at the end."""


class StorePages:
    """One cut of a store, under a prefix, as it was at a revision."""

    def __init__(self, store: Any, prefix: str, revision: int) -> None:
        self._store, self._prefix, self._at = store, prefix, revision
        self._after = ""
        self._done = False

    def page(self) -> Flow[list[Checkpoint]]:
        """The next ones; none at the end. Raises `Compacted` when the store has moved on by more
        than it keeps."""
        while not self._done:
            found = yield partial(self._store.scan, self._prefix, after=self._after,
                                  limit=EXPORT_BATCH, at=self._at, packed=True)
            if not found:
                self._done = True
                break
            self._after = found[-1].key
            kept = [each for each in found
                    if not each.is_lease and f"/{WORKERS}/" not in each.key]
            if kept:
                return kept
        return []


class FilePages:
    """The current checkpoints of an export, under a prefix; earlier versions are passed over."""

    def __init__(self, reader: Reader, prefix: str = "") -> None:
        self._rows = (row.found for row in reader
                      if not row.past and under(prefix, row.found.key))

    def page(self) -> Flow[list[Checkpoint]]:
        """The next ones; none at the end. Raises as `Reader`."""
        yield from ()
        page: list[Checkpoint] = []
        size = 0
        for found in self._rows:
            page.append(found)
            size += len(found.value.data)
            if len(page) >= EXPORT_BATCH or size >= EXPORT_BATCH_BYTES:
                break
        return page


def cut_of(store: Any, at: Moment | None) -> Flow[int]:
    """The revision at which all is read. Raises as `get`."""
    found: int = yield partial(store.revision, at=at)
    return found


def store_time(store: Any) -> Flow[int]:
    """The store's time, in microseconds: ages and TTLs are counted by it, not by this machine's."""
    hello = yield store.hello
    now: int = hello.time
    return now


def each_of(listing: Any) -> Iterator[Callable[[], Any]]:
    """Calls that give the next item of a plain or an async listing, `None` at its end; the caller
    stops there."""
    if hasattr(listing, "__anext__"):
        async def there() -> Any:
            return await anext(listing, None)

        while True:
            yield there
    while True:
        yield partial(next, listing, None)


# --- whether two are the same -----------------------------------------------------------------


def same(one: Checkpoint, other: Checkpoint) -> bool:
    """Whether both say the same: value to the byte, position, head, and whether it expires."""
    return (one.value.data == other.value.data and one.position == other.position
            and one.head == other.head
            and (one.expires_at is None) == (other.expires_at is None))


@dataclass(frozen=True, slots=True)
class StateDigest:
    """What a cut holds, in one number. `sha256` in hex, of `keys` checkpoints at `revision`."""

    sha256: str
    keys: int
    revision: int


class Digester:
    """SHA-256 over checkpoints in key order: key, packed value, position and head of each. Equal
    for two stores that hold the same, whenever and in whatever order it was committed."""

    def __init__(self) -> None:
        self._whole = hashlib.sha256()
        self.keys = 0

    def add(self, found: Checkpoint) -> None:
        """The next one."""
        self._whole.update(msgpack.packb(
            [found.key, found.value.data, found.position, found.head]))
        self.keys += 1

    def digest(self, revision: int) -> StateDigest:
        """Of all so far."""
        return StateDigest(self._whole.hexdigest(), self.keys, revision)


def digest(store: Any, prefix: str, at: Moment | None) -> Flow[StateDigest]:
    """The digest of a cut. Raises as `Client.digest`."""
    revision = yield from cut_of(store, at)
    pages, whole = StorePages(store, prefix, revision), Digester()
    while page := (yield from pages.page()):
        for found in page:
            if REWINDS not in found.key:  # what is written down about a state is not part of it
                whole.add(found)
    return whole.digest(revision)
