"""Stores with one planted fault each. Run by `test_suite.py`, which wants the suite to catch them.

Not collected by itself: every class here has to fail.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ckptmesh.api import BLIND
from ckptmesh.client import Client
from ckptmesh.consumer import Consumer
from ckptmesh.errors import Conflict, LeaseLost
from ckptmesh.testing.conformance import StoreConformance
from ckptmesh.urls import open_transport
from ckptmesh.views import Mark
from ckptmesh.watch import Watch


class Broken(StoreConformance):
    kind: type[Client]

    @pytest.fixture
    def connect(self, request: pytest.FixtureRequest) -> Callable[[], Client]:
        url = f"memory://{request.node.name}-{id(self)}"
        return lambda: self.kind(open_transport(url, 5.0))


class BlindCommits(Client):
    """Takes whatever is committed, whatever was expected."""

    def commit(self, key: str, value: Any, **options: Any) -> Any:
        return super().commit(key, value, **options | {"expect": BLIND})


class NoFence(Client):
    """Lets a holder commit whose lease is gone."""

    def commit(self, key: str, value: Any, **options: Any) -> Any:
        try:
            return super().commit(key, value, **options)
        except LeaseLost:
            return super().commit(key, value, **options | {"guard": None})


class TextPrefixes(Client):
    """Takes `orders2` for a part of `orders`."""

    def list(self, prefix: str = "", **options: Any) -> Iterator[Any]:
        return (found for found in super().list("", **options) if found.key.startswith(prefix))


class MovingList(Client):
    """Shows each page of a list as things stand when it is asked for."""

    def list(self, prefix: str = "", **options: Any) -> Iterator[Any]:
        after = ""
        while page := self.scan(prefix, after=after, **options):
            yield from page
            after = page[-1].key


class WritingReads(Client):
    """Notes each read in the store."""

    def get(self, key: str, **options: Any) -> Any:
        found = super().get(key, **options)
        super().commit("reads", key)
        return found


class ImmortalKeys(Client):
    """Forgets TTLs of commits."""

    def commit(self, key: str, value: Any, **options: Any) -> Any:
        if not options.get("lease"):
            options.pop("ttl", None)
        return super().commit(key, value, **options)


class HalfTransactions(Client):
    """Does what it can of a transaction that is refused."""

    def transact(self, *, put: Any = None, delete: Any = (), expect: Any = None,
                 timeout: Any = None) -> int:
        try:
            return super().transact(put=put, delete=delete, expect=expect)
        except Conflict:
            super().transact(put=put)
            raise


class OneAfterTheOther(Client):
    """Makes many commits one by one, as far as they go."""

    def commit_many(self, puts: Any, **options: Any) -> Any:
        pairs = [*(puts.items() if isinstance(puts, dict) else puts)]
        return [super(OneAfterTheOther, self).commit(*pair) for pair in pairs]


class Doubled:
    """A watch that gives some events twice."""

    def __init__(self, watch: Watch) -> None:
        self._watch, self._again = watch, deque[Any]()

    def get(self, timeout: Any = None) -> Any:
        if self._again:
            return self._again.popleft()
        event = self._watch.get(timeout)
        if event is not None and event.resume > Mark(1, 0):
            self._again.append(event)
        return event

    def __enter__(self) -> Doubled:
        return self

    def __exit__(self, *error: object) -> None:
        self._watch.close()


class DoubledEvents(Client):
    def watch(self, *args: Any, **named: Any) -> Any:
        return Doubled(super().watch(*args, **named))


class Eager(Consumer):
    """Acknowledges before it commits."""

    def process(self, batch: Any, handler: Any) -> bool:
        batch = list(batch)
        self._core.ack([item[0] for item in batch], None)
        return super().process(batch, handler)


class AckFirst(Client):
    def consumer(self, key: str, *, ack: Any) -> Consumer:
        return Eager(self, key, ack=ack)


FAULTS: dict[type[Client], str] = {
    BlindCommits: "test_a_commit_expecting_something_else_is_refused",
    NoFence: "test_a_commit_under_a_released_lease_is_fenced",
    TextPrefixes: "test_a_prefix_selects_whole_segments",
    OneAfterTheOther: "test_one_that_cannot_be_committed_undoes_the_others",
    MovingList: "test_a_list_longer_than_a_page_is_complete_and_of_one_cut",
    WritingReads: "test_reading_writes_nothing",
    ImmortalKeys: "test_a_checkpoint_with_a_ttl_tells_when_it_expires",
    HalfTransactions: "test_a_transaction_is_whole_or_absent",
    DoubledEvents: "test_a_watch_sees_every_kind_of_change_once",
    AckFirst: "test_a_consumer_that_was_replaced_acknowledges_nothing",
}

for _kind in FAULTS:
    globals()[f"Test{_kind.__name__}"] = type(f"Test{_kind.__name__}", (Broken,), {"kind": _kind})
