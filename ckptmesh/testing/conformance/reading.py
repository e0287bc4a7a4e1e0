"""Reads: prefixes, cuts, history, time travel. None of them writes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from ckptmesh.backends.base import Capability
from ckptmesh.errors import FutureRevision, InvalidKey, Misuse
from ckptmesh.testing.conformance.base import Base, Store, needs


class Reading(Base):
    """List, get_many, history, at=."""

    def test_a_prefix_selects_whole_segments(self, store: Store) -> None:
        for key in ("orders", "orders/1", "orders/1/a", "orders2", "orders-x", "order", "z"):
            store.commit(key, key)
        assert [found.key for found in store.list("orders")] == [
            "orders", "orders/1", "orders/1/a"]
        assert [found.key for found in store.list("orders/1")] == ["orders/1", "orders/1/a"]
        assert list(store.list("orders/2")) == []
        assert list(store.list("ord")) == []

    def test_the_empty_prefix_selects_everything_in_key_order(self, store: Store) -> None:
        keys = ["b", "a/2", "a", "ö", "a/10", "Z", "🦆", "a-"]
        for key in keys:
            store.commit(key, 1)
        assert [found.key for found in store.list("")] == sorted(keys)

    def test_a_list_shows_values_and_leaves_out_what_was_deleted(self, store: Store) -> None:
        for n in range(5):
            store.commit(f"a/{n}", n)
        store.delete("a/2")
        assert [found.value for found in store.list("a")] == [0, 1, 3, 4]

    def test_a_list_longer_than_a_page_is_complete_and_of_one_cut(self, store: Store) -> None:
        with store.transaction() as tx:
            for n in range(2_500):
                tx.put(f"a/{n:04}", n)
        listing = iter(store.list("a"))
        first = next(listing)
        if Capability.TIME_TRAVEL in store.capabilities:
            store.commit("a/9999", "later")
            store.commit("a/2000", "changed")
        assert [first.value, *(found.value for found in listing)] == list(range(2_500))

    def test_what_is_no_prefix_is_refused(self, store: Store) -> None:
        for prefix in ("/", "a/", "a//b", "a\n"):
            with pytest.raises(InvalidKey):
                list(store.list(prefix))

    def test_many_keys_are_read_as_one_cut(self, store: Store) -> None:
        store.commit("a", 1)
        store.commit("b", 2)
        found = store.get_many(["b", "missing", "a"])
        assert list(found) == ["b", "missing", "a"]
        assert [each and each.value for each in found.values()] == [2, None, 1]
        assert store.get_many([]) == {}

    def test_reading_writes_nothing(self, store: Store) -> None:
        before = store.commit("a", 1)
        store.get("a")
        store.get("missing")
        store.get_many(["a", "b"])
        list(store.list(""))
        if Capability.HISTORY in store.capabilities:
            list(store.history("a"))
        assert store.get("a").revision == before.revision
        assert store.commit("b", 1).revision == before.revision + 1

    @needs(Capability.HISTORY)
    def test_history_gives_versions_newest_first(self, store: Store) -> None:
        for n in range(5):
            store.commit("a", n, position=n)
            store.commit("b", -n)
        found = list(store.history("a"))
        assert [(each.value, each.version, each.position) for each in found] == [
            (n, n + 1, n) for n in (4, 3, 2, 1, 0)]
        assert [each.value for each in store.history("a", limit=2)] == [4, 3]
        assert list(store.history("missing")) == []

    @needs(Capability.HISTORY)
    def test_history_goes_back_beyond_a_deletion(self, store: Store) -> None:
        store.commit("a", "before")
        store.delete("a")
        store.commit("a", "after")
        assert [(each.value, each.version) for each in store.history("a")] == [
            ("after", 1), ("before", 1)]

    @needs(Capability.TIME_TRAVEL)
    def test_a_key_is_read_as_of_any_revision(self, store: Store) -> None:
        first = store.commit("a", 1)
        second = store.commit("a", 2)
        store.delete("a")
        last = store.commit("b", 1)
        assert store.get("a", at=first.revision).value == 1
        assert store.get("a", at=second).value == 2
        assert store.get("a", at=second.revision + 1) is None
        assert store.get("b", at=second.revision) is None
        assert store.get("a", at=last.revision) is None
        assert store.value("a", default=0, at=first) == 1

    @needs(Capability.TIME_TRAVEL)
    def test_a_cut_as_of_a_revision_shows_the_whole_store_as_it_was(self, store: Store) -> None:
        store.commit("a/1", 1)
        store.commit("a/2", 2)
        cut = store.commit("a/3", 3)
        store.commit("a/1", "changed")
        store.delete("a/2")
        store.commit("a/0", "new")
        assert [(found.key, found.value) for found in store.list("a", at=cut)] == [
            ("a/1", 1), ("a/2", 2), ("a/3", 3)]
        found = store.get_many(["a/0", "a/1", "a/2"], at=cut.revision)
        assert [each and each.value for each in found.values()] == [None, 1, 2]

    @needs(Capability.TIME_TRAVEL)
    def test_a_cut_as_of_a_time_is_that_of_the_last_revision_not_later(self, store: Store) -> None:
        first = store.commit("a", 1)
        second = store.commit("a", 2)
        assert store.get("a", at=first.time).value in (1, 2)  # 2: within the same microsecond
        assert store.get("a", at=second.time).value == 2
        if first.time < second.time:
            just_before = second.time - timedelta(microseconds=1)
            assert store.get("a", at=just_before).value == 1

    @needs(Capability.TIME_TRAVEL)
    def test_the_future_cannot_be_read(self, store: Store) -> None:
        last = store.commit("a", 1)
        with pytest.raises(FutureRevision):
            store.get("a", at=last.revision + 1_000_000)
        with pytest.raises(FutureRevision):
            store.get("a", at=datetime.now(UTC) + timedelta(days=1))

    @needs(Capability.TIME_TRAVEL)
    @pytest.mark.parametrize("at", [-1, True, b"7", 1.5, datetime(2024, 1, 1)])
    def test_a_moment_that_is_none_is_refused(self, store: Store, at: Any) -> None:
        with pytest.raises(Misuse):
            store.get("a", at=at)
