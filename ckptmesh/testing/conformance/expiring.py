"""Expiry: what has a TTL goes by itself, and stays gone."""

# ruff: noqa: PT012 - leaving the block of a transaction is what raises

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from ckptmesh.backends.base import Capability
from ckptmesh.errors import Conflict, Misuse
from ckptmesh.testing.conformance.base import BRIEF, Base, Store, needs, until


class Expiring(Base):
    """TTLs on commits, transactions and increments; touch."""

    def test_a_checkpoint_with_a_ttl_tells_when_it_expires(self, store: Store) -> None:
        receipt = store.commit("a", 1, ttl=3600)
        assert store.get("a").expires_at - receipt.time == timedelta(hours=1)
        store.commit("a", 2, ttl=timedelta(minutes=1))
        found = store.get("a")
        assert found.expires_at - found.time == timedelta(minutes=1)

    def test_a_commit_without_a_ttl_does_not_expire(self, store: Store) -> None:
        store.commit("a", 1, ttl=3600)
        store.commit("a", 2)
        assert store.get("a").expires_at is None

    def test_what_has_expired_is_gone_for_every_read(self, store: Store) -> None:
        receipt = store.commit("a", 1, ttl=BRIEF)
        store.commit("b", 2)
        assert store.value("a") == 1
        until(lambda: store.get("a") is None, "the checkpoint expired")
        assert store.get_many(["a", "b"])["a"] is None
        assert [found.key for found in store.list("")] == ["b"]
        assert store.pop("a") is None
        with pytest.raises(Conflict):
            store.commit("a", 2, expect=receipt)
        assert store.create("a", 3).version == 1

    def test_a_checkpoint_lives_to_the_end_of_its_ttl(self, store: Store) -> None:
        store.commit("a", 1, ttl=60)
        store.commit("short", 1, ttl=BRIEF)
        until(lambda: store.get("short") is None, "the checkpoint expired")
        assert store.value("a") == 1

    @needs(Capability.TIME_TRAVEL)
    def test_what_has_expired_can_still_be_read_as_it_was(self, store: Store) -> None:
        receipt = store.commit("a", 1, ttl=BRIEF)
        until(lambda: store.get("a") is None, "the checkpoint expired")
        store.commit("b", 1)
        assert store.get("a", at=receipt).value == 1

    def test_touch_sets_a_new_expiry_and_nothing_else(self, store: Store) -> None:
        receipt = store.commit("a", 1, ttl=BRIEF)
        assert store.touch("a", ttl=3600) is True
        found = store.get("a")
        assert (found.value, found.revision, found.version) == (1, receipt.revision, 1)
        assert timedelta(minutes=59) < found.expires_at - found.time < timedelta(minutes=61)
        store.commit("b", 1, ttl=BRIEF)
        until(lambda: store.get("b") is None, "the other checkpoint expired")
        assert store.value("a") == 1
        assert store.touch("a", ttl=None) is True
        assert store.get("a").expires_at is None
        store.commit("a", 2, expect=receipt)

    def test_touch_of_nothing_is_false(self, store: Store) -> None:
        assert store.touch("a", ttl=10) is False
        assert store.get("a") is None

    def test_an_increment_keeps_an_expiry_or_sets_a_new_one(self, store: Store) -> None:
        store.increment("n", ttl=3600)
        first = store.get("n")
        assert first.expires_at - first.time == timedelta(hours=1)
        store.increment("n")
        assert store.get("n").expires_at == first.expires_at
        store.increment("n", ttl=60)
        assert store.get("n").expires_at < first.expires_at

    def test_a_transaction_can_give_ttls(self, store: Store) -> None:
        store.commit("b", 1)
        with store.transaction() as tx:
            tx.put("a", 1, ttl=BRIEF)
            tx.touch("b", ttl=BRIEF)
        until(lambda: store.get_many(["a", "b"]) == {"a": None, "b": None}, "both expired")

    def test_an_expiry_is_a_change_under_its_prefix(self, store: Store) -> None:
        mark = store.commit("orders/a", 1, ttl=BRIEF)
        until(lambda: store.get("orders/a") is None, "the checkpoint expired")
        with pytest.raises(Conflict), store.transaction() as tx:
            tx.unchanged("orders", mark)
            tx.put("out", 1)

    @pytest.mark.parametrize("ttl", [0, -1, float("nan"), float("inf"), "1", True, 10**12])
    def test_a_ttl_that_cannot_be_meant_is_refused(self, store: Store, ttl: Any) -> None:
        with pytest.raises(Misuse):
            store.commit("a", 1, ttl=ttl)
        assert store.get("a") is None
