"""The small interface `StateBackend`: get, put, delete, scan, transact."""

from __future__ import annotations

import pytest

from ckptmesh.backends.base import StateBackend
from ckptmesh.errors import Conflict, InvalidKey, InvalidValue
from ckptmesh.testing.conformance.base import BRIEF, Base, Connect, Store, until
from ckptmesh.views import Receipt


class BackendConformance(Base):
    """What features rely on, whatever keeps the state."""

    def test_a_backend_has_the_names_of_the_interface(self, store: Store) -> None:
        assert isinstance(store, StateBackend)
        assert isinstance(store.capabilities, frozenset)

    def test_what_was_put_is_got(self, store: Store) -> None:
        assert store.get("orders") is None
        receipt = store.put("orders", {"offset": 42}, position=42)
        found = store.get("orders")
        assert isinstance(receipt, Receipt)
        assert (found.key, found.value, found.position) == ("orders", {"offset": 42}, 42)
        assert (found.revision, found.version) == (receipt.revision, 1)

    def test_a_put_that_expects_something_else_changes_nothing(self, store: Store) -> None:
        first = store.put("a", 1, expect=None)
        second = store.put("a", 2, expect=first)
        for expect in (first, None, second.revision + 1_000):
            with pytest.raises(Conflict) as caught:
                store.put("a", 3, expect=expect)
            assert caught.value.current.value == 2
        assert store.get("a").revision == second.revision

    def test_every_client_sees_what_one_has_put(self, store: Store, another: Connect) -> None:
        receipt = store.put("a", [1, (2, 3)])
        other = another()
        assert other.get("a").value == [1, (2, 3)]
        other.put("a", "theirs", expect=receipt)
        with pytest.raises(Conflict):
            store.put("a", "mine", expect=receipt)

    def test_a_deleted_key_is_gone(self, store: Store) -> None:
        receipt = store.put("a", 1)
        with pytest.raises(Conflict):
            store.delete("a", expect=receipt.revision + 1_000)
        assert store.delete("a", expect=receipt) is True
        assert store.get("a") is None
        assert store.delete("a") is False

    def test_a_scan_gives_pages_of_whole_segments_in_key_order(self, store: Store) -> None:
        for key in ("b/1", "a", "a/2", "a/10", "a-x", "a/1/z"):
            store.put(key, key)
        keys = ["a", "a/1/z", "a/10", "a/2"]
        assert [found.key for found in store.scan("a")] == keys
        assert [found.key for found in store.scan("a", limit=3)] == keys[:3]
        assert [found.key for found in store.scan("a", after="a/1/z", limit=3)] == keys[2:]
        assert [found.value for found in store.scan()] == ["a", "a-x", *keys[1:], "b/1"]

    def test_a_transaction_is_whole_or_absent(self, store: Store) -> None:
        receipt = store.put("old", 1)
        revision = store.transact(put={"a": 1, "b": 2}, delete=["old"], expect={"old": receipt,
                                                                                "a": None})
        assert store.get("a").revision == store.get("b").revision == revision
        assert store.get("old") is None
        with pytest.raises(Conflict):
            store.transact(put={"c": 1}, delete=["a"], expect={"b": None})
        assert store.get("c") is None
        assert store.get("a").value == 1

    def test_a_ttl_ends_a_checkpoint(self, store: Store) -> None:
        store.put("a", 1, ttl=BRIEF)
        store.put("b", 1, ttl=3600)
        until(lambda: store.get("a") is None, "the checkpoint expired")
        assert [found.key for found in store.scan()] == ["b"]
        assert store.put("a", 2, expect=None).version == 1

    def test_what_cannot_be_kept_is_refused(self, store: Store) -> None:
        with pytest.raises(InvalidKey):
            store.put("a//b", 1)
        with pytest.raises(InvalidValue):
            store.put("a", object())
        assert store.scan() == []
