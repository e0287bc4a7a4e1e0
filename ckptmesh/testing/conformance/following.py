"""Watching what happens, and consuming: write, then acknowledge."""



from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pytest

from ckptmesh.backends.base import Capability
from ckptmesh.errors import DataLoss, InvalidPayload, Misuse
from ckptmesh.testing.conformance.base import (
    BRIEF,
    PATIENCE,
    Base,
    Connect,
    Store,
    needs,
)
from ckptmesh.views import Mark


def take(events: Any, count: int) -> list[Any]:
    """So many events, each within `PATIENCE`."""
    found: list[Any] = []
    while len(found) < count:
        event = events.get(timeout=PATIENCE)
        assert event is not None, f"only {len(found)} of {count} events came"
        found.append(event)
    return found


class Following(Base):
    """Watch and consumer."""

    @needs(Capability.WATCH)
    def test_a_watch_sees_every_kind_of_change_once_and_in_order(self, store: Store) -> None:
        with store.watch("orders") as events:
            store.commit("orders/1", "a", position=1)
            store.commit("orders/1", "b")
            store.commit("elsewhere", 1)
            store.delete("orders/1")
            last = store.commit("orders", 2, ttl=3600)
            store.touch("orders", ttl=60)
            found = take(events, 5)
            assert [(each.kind, each.key) for each in found] == [
                ("put", "orders/1"), ("put", "orders/1"), ("delete", "orders/1"),
                ("put", "orders"), ("touch", "orders")]
            assert [each.checkpoint and each.checkpoint.value for each in found] == [
                "a", "b", None, 2, 2]
            assert found[0].checkpoint.position == 1
            assert found[3].revision == last.revision
            revisions = [each.revision for each in found]
            assert revisions == sorted(set(revisions))
            assert events.get(timeout=0.05) is None

    @needs(Capability.WATCH)
    def test_a_watch_begins_now_or_after_what_it_is_given(self, store: Store) -> None:
        first = store.commit("a/1", 1)
        store.commit("a/2", 2)
        checkpoint = store.get("a/2")
        store.commit("a/3", 3)
        with store.watch("a") as events:
            store.commit("a/4", 4)
            [event] = take(events, 1)
            assert event.key == "a/4"
        for since, expected in (
            (first, [2, 3, 4]), (first.revision, [2, 3, 4]), (checkpoint, [3, 4]),
            (Mark(first.revision), [2, 3, 4]), (event, []),
        ):
            with store.watch("a", since=since) as events:
                assert [each.checkpoint.value for each in take(events, len(expected))] == expected
                assert events.get(timeout=0.02) is None

    @needs(Capability.WATCH)
    def test_a_watch_goes_on_inside_a_transaction(self, store: Store) -> None:
        with store.watch("a") as events:
            with store.transaction() as tx:
                for n in range(3):
                    tx.put(f"a/{n}", n)
            first, second, third = take(events, 3)
        assert first.revision == second.revision == third.revision == tx.revision
        with store.watch("a", since=second.resume) as events:
            assert take(events, 1) == [third]

    @needs(Capability.WATCH)
    def test_a_watch_on_a_narrower_prefix_sees_only_that(self, store: Store) -> None:
        with store.watch("orders/a") as events:
            for key in ("orders", "orders/b", "orders/ab", "orders/a", "orders/a/1"):
                store.commit(key, 1)
            assert [each.key for each in take(events, 2)] == ["orders/a", "orders/a/1"]

    @needs(Capability.WATCH)
    def test_a_watch_on_everything_sees_each_revision_whole(self, store: Store) -> None:
        with store.watch() as events:
            with store.transaction() as tx:
                tx.put("b", 1)
                tx.put("a/1", 2)
                tx.put("b/2", 3)
            store.commit("c", 4)
            assert [each.key for each in take(events, 4)] == ["b", "a/1", "b/2", "c"]

    @needs(Capability.WATCH)
    def test_an_expiry_is_an_event(self, store: Store) -> None:
        with store.watch("a") as events:
            store.commit("a", 1, ttl=BRIEF)
            put, expired = take(events, 2)
            assert (put.kind, expired.kind, expired.checkpoint) == ("put", "expire", None)
            assert expired.revision > put.revision
            assert expired.time >= put.checkpoint.expires_at

    @needs(Capability.WATCH)
    def test_many_watchers_each_see_everything(self, store: Store) -> None:
        with ExitStack() as stack:
            watches = [stack.enter_context(store.watch("a")) for _ in range(10)]
            for n in range(50):
                store.commit("a", n)
            for events in watches:
                assert [each.checkpoint.value for each in take(events, 50)] == list(range(50))

    @needs(Capability.WATCH)
    def test_a_watch_from_beyond_the_head_is_data_loss(self, store: Store) -> None:
        last = store.commit("a", 1)
        with pytest.raises(DataLoss), store.watch("a", since=last.revision + 10**6) as events:
            events.get(timeout=PATIENCE)

    @needs(Capability.WATCH)
    def test_a_watch_begins_only_at_a_place_in_the_order(self, store: Store) -> None:
        with pytest.raises(Misuse), store.watch("a", since="yesterday") as events:
            events.get(timeout=PATIENCE)

    # --- write, then acknowledge ---

    def test_a_consumer_processes_commits_then_acknowledges(self, store: Store) -> None:
        acked: list[Any] = []
        consumer = store.consumer("orders/0", ack=lambda ids, receipt: acked.append((ids, receipt)))
        assert consumer.offset == 0
        handled: list[Any] = []
        assert consumer.process([(1, "a"), (2, "b")], handled.extend) is True
        assert consumer.offset == store.get("orders/0").position == 2
        assert consumer.process([(2, "b"), (3, "c")], handled.extend) is True
        assert handled == ["a", "b", "c"]
        assert [ids for ids, _ in acked] == [[1, 2], [2, 3]]
        assert acked[1][1].revision == store.get("orders/0").revision

    def test_reading_an_offset_writes_nothing(self, store: Store) -> None:
        consumer = store.consumer("orders/0", ack=print)
        before = store.commit("other", 1)
        assert consumer.offset == 0
        assert store.get("orders/0") is None
        assert store.commit("other", 2).revision == before.revision + 1

    def test_a_consumer_that_was_replaced_acknowledges_nothing(
        self, store: Store, another: Connect,
    ) -> None:
        acked: list[Any] = []
        old = store.consumer("orders/0", ack=lambda ids, receipt: acked.append(ids))
        new = another().consumer("orders/0", ack=lambda ids, receipt: None)

        def overtaken(records: Any) -> None:
            assert new.process([(1, "a"), (2, "b")], lambda records: None) is True

        assert old.process([(1, "a")], overtaken) is False
        assert (acked, old.offset) == ([], 2)

    def test_what_is_no_offset_is_a_clear_error(self, store: Store) -> None:
        store.commit("orders/0", {"something": "else"})
        with pytest.raises(InvalidPayload, match="orders/0"):
            _ = store.consumer("orders/0", ack=print).offset
