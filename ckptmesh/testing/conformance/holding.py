"""Leases: one holder at a time, told apart by tokens that only grow."""

# ruff: noqa: PT012 - leaving the block of a transaction is what raises

from __future__ import annotations

import time

import pytest

from ckptmesh.backends.base import Capability
from ckptmesh.errors import Conflict, InvalidRequest, LeaseLost, Misuse
from ckptmesh.testing.conformance.base import BRIEF, Base, Store, needs, until


class Holding(Base):
    """Grant, renew, fence, release, expire."""

    @needs(Capability.LEASES)
    def test_a_lease_is_a_checkpoint_that_tells_its_holder(self, store: Store) -> None:
        lease = store.create("orders/_lock", "worker-1", ttl=60, lease=True)
        found = store.get("orders/_lock")
        assert (found.value, found.is_lease, found.token) == ("worker-1", True, lease.token)

    @needs(Capability.LEASES)
    def test_a_lease_is_granted_to_one(self, store: Store) -> None:
        store.create("lock", "worker-1", ttl=60, lease=True)
        with pytest.raises(Conflict) as caught:
            store.create("lock", "worker-2", ttl=60, lease=True)
        assert caught.value.current.value == "worker-1"

    @needs(Capability.LEASES)
    def test_a_commit_under_a_held_lease_goes_through(self, store: Store) -> None:
        lease = store.create("lock", "me", ttl=60, lease=True)
        store.commit("a", 1, guard=lease)
        store.commit("a", 2, guard=store.get("lock"))
        assert store.value("a") == 2

    @needs(Capability.LEASES)
    def test_a_commit_under_a_released_lease_is_fenced(self, store: Store) -> None:
        lease = store.create("lock", "me", ttl=60, lease=True)
        assert store.delete("lock", guard=lease) is True
        with pytest.raises(LeaseLost):
            store.commit("a", 1, guard=lease)
        with pytest.raises(LeaseLost):
            store.keepalive(lease)
        assert store.get("a") is None

    @needs(Capability.LEASES)
    def test_an_expired_holder_cannot_commit_nor_disturb_the_next(self, store: Store) -> None:
        old = store.create("lock", "old", ttl=BRIEF, lease=True)
        until(lambda: store.get("lock") is None, "the lease expired")
        new = store.create("lock", "new", ttl=60, lease=True)
        assert new.token > old.token
        last = store.commit("a", "new", guard=new)
        with pytest.raises(LeaseLost):
            store.commit("a", "old", guard=old)
        with pytest.raises(LeaseLost):
            store.delete("lock", guard=old)
        assert store.get("lock").token == new.token
        assert store.commit("a", "newer", guard=new).revision == last.revision + 1

    @needs(Capability.LEASES)
    def test_keepalive_holds_a_lease_and_takes_no_revision(self, store: Store) -> None:
        lease = store.create("lock", "me", ttl=BRIEF * 2, lease=True)
        end = time.monotonic() + BRIEF * 4
        while time.monotonic() < end:
            assert store.keepalive(lease) == pytest.approx(BRIEF * 2)
            time.sleep(BRIEF / 4)
        assert store.get("lock").token == lease.token
        assert store.commit("a", 1, guard=lease).revision == lease.revision + 1

    @needs(Capability.LEASES)
    def test_tokens_grow_with_every_grant(self, store: Store) -> None:
        tokens = []
        for _ in range(3):
            lease = store.create("lock", "me", ttl=60, lease=True)
            tokens.append(lease.token)
            store.delete("lock", guard=lease)
        assert tokens == sorted(set(tokens))

    @needs(Capability.LEASES)
    def test_a_lease_needs_a_ttl_and_is_renewed_by_keepalive_only(self, store: Store) -> None:
        with pytest.raises(Misuse):
            store.create("lock", "me", lease=True)
        store.create("lock", 1, ttl=60, lease=True)
        with pytest.raises(InvalidRequest):
            store.touch("lock", ttl=60)
        with pytest.raises(InvalidRequest):
            store.increment("lock")

    @needs(Capability.LEASES)
    def test_plain_data_is_no_lease(self, store: Store) -> None:
        receipt = store.commit("a", 1, ttl=60)
        with pytest.raises(LeaseLost):
            store.commit("b", 1, guard=receipt)

    @needs(Capability.LEASES)
    def test_a_transaction_under_a_lost_lease_does_nothing(self, store: Store) -> None:
        lease = store.create("lock", "me", ttl=60, lease=True)
        with store.transaction() as tx:
            tx.guard(lease)
            tx.put("a", 1)
        store.delete("lock")
        with pytest.raises(LeaseLost), store.transaction() as tx:
            tx.guard(lease)
            tx.put("a", 2)
            tx.put("b", 2)
        assert (store.value("a"), store.get("b")) == (1, None)
