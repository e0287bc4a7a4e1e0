"""Leases: their deadlines alone, then their rules in a machine with a clock that the test turns."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from machines import Store

from ckptmesh import limits
from ckptmesh.errors import InvalidRequest, LeaseLost, QuotaExceeded
from ckptmesh.facts import Expiry
from ckptmesh.leases import Deadlines
from ckptmesh.limits import SECOND
from ckptmesh.messages import Delete, Increment, KeepAlive, Put, RevisionIs, TokenIs, Touch

KEY = "orders/_lock/main"

STEPS = st.lists(st.tuples(st.sampled_from(["grant", "renew", "drop", "shift", "wait"]),
                           st.sampled_from("abc"), st.integers(1, 50)), max_size=60)


@settings(max_examples=300, deadline=None)
@given(STEPS, st.integers(1, 3))
def test_deadlines_are_a_dict_of_times(steps: list[tuple[str, str, int]], most: int) -> None:
    deadlines, model, now = Deadlines(), {}, 0
    for what, key, micros in steps:
        if what == "grant":
            deadlines.grant(key, now + micros)
            model[key] = now + micros
        elif what == "renew" and key in model:
            deadlines.renew(key, now + micros)
            model[key] = max(model[key], now + micros)
        elif what == "drop":
            deadlines.drop(key)
            model.pop(key, None)
        elif what == "shift":
            deadlines.shift(micros)
            model = {name: at + micros for name, at in model.items()}
        elif what == "wait":
            now += micros
        over = [name for name, at in model.items() if at <= now]
        ended = deadlines.ended(now, most)
        assert set(ended) <= set(over)
        assert len(ended) == min(most, len(over))
        assert len(deadlines.ended(now, most)) == len(ended), "those named stay until dropped"
        assert len(deadlines) == len(model)
        following = deadlines.next()
        assert (following is None) == (not model)
        assert following is None or following <= min(model.values())


def test_many_grants_of_one_key_do_not_grow_its_heap() -> None:
    deadlines = Deadlines()
    for i in range(5_000):
        deadlines.grant("a", i)
    assert len(deadlines._heap) < 2_000
    assert deadlines.ended(4_998, 9) == []
    assert deadlines.ended(4_999, 9) == ["a"]


def test_a_lease_ends_when_its_ttl_has_passed_without_a_renewal() -> None:
    store = Store()
    user = store.user()
    _, revision = user.lease(KEY, 10 * SECOND)
    assert store.pass_time(10 * SECOND - 1) == []
    records = store.pass_time(1)
    assert records == [Expiry(store.now, KEY)]
    assert store.get(KEY) is None
    assert store.state.revision == revision + 1


def test_a_renewal_moves_the_deadline_takes_no_revision_and_writes_nothing() -> None:
    store = Store()
    user = store.user()
    token = user.lease(KEY, 10 * SECOND)
    store.pass_time(9 * SECOND)
    before = len(store.log)
    assert user.keep_alive(KEY, token) == 10 * SECOND
    assert store.pass_time(9 * SECOND) == []
    assert len(store.log) == before
    assert store.state.revision == token[1]
    assert store.pass_time(1 * SECOND) == [Expiry(store.now, KEY)]


def test_a_renewal_in_the_batch_in_which_a_lease_would_end_still_counts() -> None:
    store = Store()
    user = store.user()
    token = user.lease(KEY, 10 * SECOND)
    store.now += 11 * SECOND
    assert user.keep_alive(KEY, token) == 10 * SECOND, "it ends by its record, never lazily"
    assert store.get(KEY) is not None


@pytest.mark.fault(34)
@pytest.mark.fault(11)
def test_a_commit_under_a_lease_that_ended_is_refused_and_the_next_token_is_greater() -> None:
    store = Store()
    first, second = store.user(), store.user()
    old = first.lease(KEY)
    first.commit(Put("orders", b"\x01"), when=[TokenIs(KEY, *old)])
    store.pass_time(60 * SECOND)
    new = second.lease(KEY)
    assert new > old
    log = list(store.log)
    with pytest.raises(LeaseLost) as lost:
        first.commit(Put("orders", b"\x02"), when=[TokenIs(KEY, *old)])
    assert lost.value.details == {"key": KEY}
    assert store.log == log, "refused means absent"
    second.commit(Put("orders", b"\x03"), when=[TokenIs(KEY, *new)])


def test_a_token_is_the_very_grant_epoch_included() -> None:
    store = Store()
    user = store.user()
    epoch, revision = user.lease(KEY)
    for wrong in ((epoch, revision + 1), (epoch + 1, revision), (epoch - 1, revision)):
        with pytest.raises(LeaseLost):
            user.keep_alive(KEY, wrong)
    user.put("orders/data")
    with pytest.raises(LeaseLost):
        user.keep_alive("orders/data", (epoch, revision + 1))
    with pytest.raises(LeaseLost):
        user.keep_alive("orders/none", (epoch, revision))


def test_granting_again_gives_a_new_token_and_a_new_deadline() -> None:
    store = Store()
    user = store.user()
    old = user.lease(KEY, 10 * SECOND)
    new = user.lease(KEY, 2 * SECOND, when=[TokenIs(KEY, *old)])
    with pytest.raises(LeaseLost):
        user.keep_alive(KEY, old)
    assert store.pass_time(2 * SECOND) == [Expiry(store.now, KEY)], "shorter counts"
    assert new > old


def test_a_lease_is_released_by_a_delete_and_replaced_by_data() -> None:
    store = Store()
    user = store.user()
    token = user.lease(KEY)
    user.commit(Delete(KEY), when=[TokenIs(KEY, *token)])
    token = user.lease(KEY)
    user.put(KEY, b"\x07")
    with pytest.raises(LeaseLost):
        user.keep_alive(KEY, token)
    assert store.pass_time(3_600 * SECOND - 1) == []
    assert store.state.leases == set()
    assert store.machine.next_due() is None


def test_a_lease_can_neither_be_touched_nor_incremented() -> None:
    store = Store()
    user = store.user()
    user.lease(KEY)
    for mutation in (Touch(KEY, SECOND), Touch(KEY, None), Increment(KEY, 1)):
        with pytest.raises(InvalidRequest):
            user.commit(mutation)


def test_only_a_free_key_can_be_acquired_with_revision_nought() -> None:
    store = Store()
    one, two = store.user(), store.user()
    one.lease(KEY, when=[RevisionIs(KEY, 0)])
    with pytest.raises(Exception, match="is at revision 1, not nothing"):
        two.lease(KEY, when=[RevisionIs(KEY, 0)])


@pytest.mark.fault(43)
def test_a_restart_grants_every_lease_its_full_ttl_again() -> None:
    store = Store()
    user = store.user()
    token = user.lease(KEY, 10 * SECOND)
    store.pass_time(9 * SECOND)
    store.restart(after=3_600 * SECOND)
    assert store.pass_time(9 * SECOND) == []
    assert user.keep_alive(KEY, token) == 10 * SECOND, "the token is still good in the new epoch"
    assert store.pass_time(10 * SECOND) == [Expiry(store.now, KEY)]


@pytest.mark.fault(28)
def test_a_stall_of_the_store_moves_every_deadline_by_its_length() -> None:
    store = Store()
    user = store.user()
    user.lease(KEY, 10 * SECOND)
    store.machine.stalled(5 * SECOND)
    assert store.pass_time(15 * SECOND - 1) == []
    assert store.pass_time(1) == [Expiry(store.now, KEY)]


def test_a_renewal_after_a_stall_does_not_shorten_what_the_stall_gave() -> None:
    store = Store()
    user = store.user()
    token = user.lease(KEY, 10 * SECOND)
    store.machine.stalled(5 * SECOND)
    user.keep_alive(KEY, token)
    assert store.pass_time(15 * SECOND - 1) == []
    assert store.pass_time(1) == [Expiry(store.now, KEY)]


@pytest.mark.fault(53)
def test_beyond_the_quota_no_lease_is_granted_but_held_ones_can_be_granted_anew(
        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "LEASES", 2)
    store = Store()
    user = store.user()
    user.lease("a")
    token = user.lease("b")
    with pytest.raises(QuotaExceeded):
        user.lease("c")
    user.lease("b", when=[TokenIs("b", *token)])
    user.put("data")
    user.commit(Delete("a"))
    user.lease("c")
    assert store.state.leases == {"b", "c"}


def test_a_mass_expiry_of_leases_is_recorded_in_portions() -> None:
    store = Store()
    user = store.user()
    user.commit(*(Put(f"l/{i}", b"\x01", SECOND, True) for i in range(1_500)))
    assert len(store.pass_time(SECOND)) == 1_024
    assert len(store.pass_time(0)) == 476
    assert len(store.state.leases) == 0


def test_the_next_deadline_is_told_so_that_the_loop_can_sleep() -> None:
    store = Store()
    assert store.machine.next_due() is None
    user = store.user()
    user.lease(KEY, 7 * SECOND)
    assert store.machine.next_due() == store.now + 7 * SECOND
    user.put("data", ttl=SECOND // 4)
    assert store.machine.next_due() == store.now + SECOND // 4


def test_keepalive_of_a_lease_needs_no_session() -> None:
    store = Store()
    token = store.user().lease(KEY)
    assert store.ask(KeepAlive(KEY, *token)) == 10 * SECOND
