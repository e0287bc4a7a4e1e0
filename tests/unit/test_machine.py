"""Admission and decision: every check in its order, what is refused, what is remembered."""

from __future__ import annotations

import gc
import sys
import weakref

import msgpack
import pytest
from machines import START, UUID, Store, everything

from ckptmesh import limits
from ckptmesh.errors import (
    Compacted,
    Conflict,
    DataLoss,
    EpochChanged,
    InvalidValue,
    LeaseLost,
    OtherStore,
    RequestReused,
    SessionExpired,
    Superseded,
    TooLarge,
    TooManyInFlight,
)
from ckptmesh.facts import Expiry, SessionEnded, TimeReserved, Transaction
from ckptmesh.limits import SECOND
from ckptmesh.messages import (
    Delete,
    Exists,
    Hello,
    Increment,
    Open,
    Outcome,
    Put,
    RevisionIs,
    TokenIs,
    Touch,
    Transact,
    Unchanged,
    Welcome,
)

ONE = msgpack.packb(1)


def put(key: str, value: bytes = ONE) -> Transact:
    return Transact((), (Put(key, value),))


# --- admission --------------------------------------------------------------------------------


def test_the_checks_of_admission_come_in_their_order() -> None:
    """A copy that every check refuses; mended one by one, the next check speaks."""
    store = Store()
    user = store.user()
    for _ in range(3):
        user.put("a")
    before = everything(store.state)
    ask = user.ask
    with pytest.raises(OtherStore):
        ask(put("a"), uuid=b"o" * 16, epoch=0, number=1, low=3_000)
    ghost = user.session
    user.session = b"g" * 16
    with pytest.raises(EpochChanged):
        ask(put("a"), uuid=UUID, epoch=0, number=1, low=3_000)
    with pytest.raises(SessionExpired):
        ask(put("a"), uuid=UUID, number=1, low=3_000)
    user.session = ghost
    with pytest.raises(Superseded):
        ask(put("b"), number=2, low=3)
    with pytest.raises(TooManyInFlight) as too_many:
        ask(put("b"), number=3 + limits.IN_FLIGHT_REQUESTS, low=3)
    assert too_many.value.details == {"limit": limits.IN_FLIGHT_REQUESTS}
    with pytest.raises(RequestReused):
        ask(put("b"), number=3, low=3)
    assert everything(store.state) == before, "none of these executes anything"
    assert ask(put("b"), number=2 + limits.IN_FLIGHT_REQUESTS, low=3).revision == 4


def test_reads_need_no_session_and_no_epoch_but_the_right_store() -> None:
    store = Store()
    assert store.ask(Hello(), uuid=UUID) == Welcome(UUID, 1, 0, 0, START, "", "test")
    with pytest.raises(OtherStore):
        store.ask(Hello(), uuid=b"o" * 16)


@pytest.mark.fault(32)
@pytest.mark.fault(61)
def test_a_copy_of_an_accepted_request_is_given_the_first_outcome_again() -> None:
    store = Store()
    user = store.user()
    request = user.request(put("a"))
    first = store.batch(request)[0]
    assert store.batch(request, request) == [first, first]
    store.user().put("a")
    assert store.batch(request) == [first]
    assert store.get("a").version == 2  # type: ignore[union-attr]


@pytest.mark.fault(3)
def test_the_first_outcome_survives_a_restart_and_its_epoch_stamp_is_the_first() -> None:
    store = Store()
    user = store.user()
    command = put("a")
    first = user.ask(command, number=1)
    store.restart()
    assert user.ask(command, number=1) == first
    assert first.epoch == 1
    assert store.state.revision == 1


@pytest.mark.fault(32)
def test_a_copy_of_a_refused_request_is_refused_again_when_it_would_now_hold() -> None:
    store = Store()
    user = store.user()
    request = user.request(Transact((Exists("b"),), (Put("a", ONE),)))
    first = store.batch(request)[0].error
    assert isinstance(first, Conflict)
    store.user().put("b")
    assert store.batch(request)[0].error is first
    reused = user.request(Transact((), (Put("a", ONE),)), number=request.number)
    assert isinstance(store.batch(reused)[0].error, RequestReused)
    assert store.get("a") is None


@pytest.mark.fault(32)
def test_a_refused_copy_from_before_a_restart_is_kept_out_by_its_epoch() -> None:
    store = Store()
    user = store.user()
    request = user.request(Transact((Exists("b"),), (Put("a", ONE),)))
    store.batch(request)
    store.user().put("b")
    store.restart()
    assert isinstance(store.batch(request)[0].error, EpochChanged)
    assert store.get("a") is None


def test_low_forgets_answers_and_a_late_copy_below_it_is_superseded() -> None:
    store = Store()
    user = store.user()
    refused = user.request(Transact((Exists("b"),), (Put("a", ONE),)))
    store.batch(refused)
    accepted = user.request(put("c"))
    store.batch(accepted)
    store.batch(user.request(put("c"), low=3))
    assert [type(r.error) for r in store.batch(refused, accepted)] == [Superseded, Superseded]
    assert list(store.state.sessions[user.session].outcomes) == [3]


@pytest.mark.fault(52)
def test_a_refusal_that_its_client_has_settled_is_let_go() -> None:
    store = Store()
    user = store.user()
    refused = user.request(Transact((Exists("b"),), (Put("a", ONE),)))
    error = weakref.ref(store.batch(refused)[0].error)
    gc.collect()
    assert error() is not None, "it may be asked for again"
    store.batch(user.request(put("c"), low=2))
    gc.collect()
    assert error() is None


def test_low_never_goes_back_over_a_restart() -> None:
    store = Store()
    user = store.user()
    for _ in range(5):
        user.put("a")
    store.restart()
    with pytest.raises(Superseded):
        user.ask(put("b"), number=3, low=1)
    assert user.ask(put("a"), number=6, low=5).revision == 6


@pytest.mark.fault(52)
def test_a_remembered_refusal_holds_neither_its_request_nor_a_growing_traceback() -> None:
    store = Store()
    user = store.user()
    value = bytes(1_000)
    alone = sys.getrefcount(value)
    request = user.request(Transact((Exists("b"),), (Put("a", value),)))
    for _ in range(3):
        error = store.batch(request)[0].error
        assert error is not None
        assert error.__traceback__ is None
    del request
    gc.collect()
    assert sys.getrefcount(value) == alone


# --- sessions ---------------------------------------------------------------------------------


def test_a_closed_session_answers_no_more() -> None:
    store = Store()
    user = store.user()
    user.put("a")
    user.close()
    assert store.log[-1] == SessionEnded(user.session, START)
    with pytest.raises(SessionExpired):
        user.put("a")
    with pytest.raises(SessionExpired):
        user.close()
    assert store.state.sessions == {}


def test_a_session_that_was_idle_for_an_hour_is_evicted_and_a_used_one_is_not() -> None:
    store = Store()
    idle, used = store.user(), store.user()
    store.pass_time(limits.SESSION_IDLE - 1)
    used.put("a")
    assert store.pass_time(1) == [SessionEnded(idle.session, store.now)]
    with pytest.raises(SessionExpired):
        idle.put("a")
    used.put("a")


@pytest.mark.fault(53)
def test_an_hour_after_a_restart_unused_sessions_are_evicted_in_portions() -> None:
    store = Store()
    for _ in range(1_500):
        store.ask(Open("x"))
    store.restart()
    assert len(store.pass_time(limits.SESSION_IDLE)) == 1_024
    assert len(store.pass_time(0)) == 476


@pytest.mark.fault(53)
def test_beyond_the_quota_of_sessions_the_idlest_makes_room(
        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SESSIONS", 2)
    store = Store()
    one, two = store.user(), store.user()
    one.put("a")
    three = store.user()
    one.put("a")
    three.put("a")
    with pytest.raises(SessionExpired):
        two.put("a")


# --- conditions -------------------------------------------------------------------------------


def test_a_conflict_tells_what_stands_there() -> None:
    store = Store()
    user = store.user()
    user.put("a", b"\x05")
    log = list(store.log)
    for condition, expected, revision in [
            (RevisionIs("a", 0), 0, 1), (RevisionIs("a", 7), 7, 1), (RevisionIs("b", 3), 3, 0),
            (Exists("b"), -1, 0)]:
        with pytest.raises(Conflict) as conflict:
            user.commit(Put("c", ONE), when=[condition])
        details = conflict.value.details
        assert (details["expected"], details["revision"]) == (expected, revision)
        assert (details["row"] is not None) == (details["key"] == "a")
        if details["row"]:
            assert (details["row"].epoch, details["row"].version.value) == (1, b"\x05")
    assert store.log == log, "refused means absent"
    user.commit(Put("c", ONE), when=[RevisionIs("a", 1), RevisionIs("b", 0), Exists("a")])


def test_all_conditions_hold_or_nothing_happens() -> None:
    store = Store()
    user = store.user()
    user.put("a")
    with pytest.raises(LeaseLost):
        user.commit(Delete("a"), Put("b", ONE), when=[Exists("a"), TokenIs("a", 1, 1)])
    assert store.get("a") is not None
    assert store.get("b") is None


def test_an_overdue_key_does_not_exist_and_its_expiry_is_recorded_first() -> None:
    store = Store()
    user = store.user()
    user.put("a", ttl=SECOND)
    store.now += SECOND
    outcome = user.commit(Put("a", ONE), when=[RevisionIs("a", 0)])
    assert outcome.results == (1,), "a new life"
    assert outcome.revision == 3
    assert [type(r) for r in store.log[-3:]] == [TimeReserved, Expiry, Transaction]
    version = store.get("a")
    assert version is not None
    assert (version.create_revision, version.version) == (3, 1)


def test_a_refusal_records_no_overdue_expiry_of_its_own() -> None:
    store = Store()
    user = store.user()
    user.put("a", ttl=SECOND)
    store.machine.begin(store.now + SECOND)
    store.machine.execute(user.request(Transact((Exists("a"),), (Put("a", ONE),))))
    assert store.machine.records == []


def test_unchanged_holds_until_somebody_puts_deletes_or_lets_expire_under_the_prefix() -> None:
    store = Store()
    user = store.user()
    base = user.put("a/1").revision

    def hold(prefix: str, since: int) -> bool:
        try:
            user.commit(when=[Unchanged(prefix, since)])
        except Conflict:
            return False
        return True

    assert hold("a", base)
    assert not hold("a", base - 1)
    assert not hold("", 0)
    user.commit(Touch("a/1", 60 * SECOND))
    assert hold("a", base), "a touch is no change"
    user.put("a2")
    user.put("b")
    assert hold("a", base)
    assert not hold("", base)
    user.commit(Delete("a/1"))
    assert not hold("a", base)
    base = user.put("a/1", ttl=SECOND).revision
    assert hold("a", base)
    store.machine.begin(store.now + SECOND)
    reply = store.machine.execute(user.request(Transact((Unchanged("a", base),), ())))
    assert isinstance(reply.error, Conflict), "an expiry counts when it is due"
    assert isinstance(store.machine.execute(
        user.request(Transact((Unchanged("b", base),), ()))).result, Outcome)
    store.pass_time(SECOND)
    assert not hold("a", base), "and when it is recorded"


def test_unchanged_is_refused_where_memory_cannot_tell() -> None:
    store = Store(history_revisions=1)
    user = store.user()
    for _ in range(3):
        user.put("a")
    with pytest.raises(Compacted) as too_old:
        user.commit(when=[Unchanged("b", 1)])
    assert too_old.value.resume_from == 2
    user.commit(when=[Unchanged("b", 2)])
    with pytest.raises(DataLoss):
        user.commit(when=[Unchanged("a", 4)])


# --- mutations --------------------------------------------------------------------------------


def test_a_transaction_takes_one_revision_and_tells_a_result_for_each_mutation() -> None:
    store = Store()
    user = store.user()
    user.commit(Put("a", ONE), Put("b", ONE), Put("n", msgpack.packb(40)))
    outcome = user.commit(Put("a", ONE), Delete("b"), Increment("n", 2), Delete("none"),
                          Touch("none", SECOND), Increment("fresh", -5, SECOND))
    assert outcome == Outcome(2, 1, START, (2, 1, 42, 0, 0, -5))
    assert store.get("n").value == msgpack.packb(42)  # type: ignore[union-attr]
    assert store.get("fresh").expires_at == START + SECOND  # type: ignore[union-attr]


def test_a_transaction_that_has_nothing_to_do_takes_no_revision_and_is_remembered() -> None:
    store = Store()
    user = store.user()
    command = Transact((), (Delete("a"), Touch("b", 5)))
    request = user.request(command)
    first = store.batch(request)[0]
    assert first.result == Outcome(0, 1, START, (0, 0))
    assert store.machine.records == []
    store.user().put("a")
    assert store.batch(request)[0] == first, "the first outcome, though there is something now"
    assert store.get("a") is not None
    check = user.commit(when=[Exists("a")])
    assert (check.revision, check.results) == (1, ())


def test_a_touch_sets_and_takes_away_an_expiry_and_nothing_else() -> None:
    store = Store()
    user = store.user()
    user.put("a", b"\x09")
    first = store.get("a")
    user.commit(Touch("a", SECOND))
    assert store.get("a") == first._replace(expires_at=START + SECOND)  # type: ignore[union-attr]
    user.commit(Touch("a", None))
    assert store.get("a") == first
    user.commit(Put("z", ONE), when=[RevisionIs("a", 1)])
    assert store.pass_time(3_000 * SECOND) == []


def test_increments_keep_an_expiry_unless_they_set_one() -> None:
    store = Store()
    user = store.user()
    user.put("n", ONE, ttl=SECOND)
    user.commit(Increment("n", 1))
    assert store.get("n").expires_at == START + SECOND  # type: ignore[union-attr]
    user.commit(Increment("n", 1, 5 * SECOND))
    assert store.get("n").expires_at == START + 5 * SECOND  # type: ignore[union-attr]
    assert store.get("n").value == msgpack.packb(3)  # type: ignore[union-attr]


@pytest.mark.fault(48)
@pytest.mark.parametrize("value", [
    msgpack.packb("1"), msgpack.packb(1.0), msgpack.packb(True), msgpack.packb(None), b"",
    b"\x01\x01", b"\xcf", msgpack.packb("a long piece of text"), b"\xc1", b"\xd4\x01\x01"])
def test_what_is_no_packed_integer_cannot_be_incremented(value: bytes) -> None:
    store = Store()
    user = store.user()
    user.put("n", value)
    with pytest.raises(InvalidValue):
        user.commit(Increment("n", 1))
    assert store.state.revision == 1


@pytest.mark.fault(48)
@pytest.mark.parametrize(("start", "by", "fits"), [
    (2**64 - 2, 1, True), (2**64 - 1, 1, False), (-(2**63) + 1, -1, True), (-(2**63), -1, False)])
def test_an_increment_stays_within_64_bits(start: int, by: int, fits: bool) -> None:
    store = Store()
    user = store.user()
    user.put("n", msgpack.packb(start))
    if fits:
        assert user.commit(Increment("n", by)).results == (start + by,)
    else:
        with pytest.raises(InvalidValue):
            user.commit(Increment("n", by))
    assert store.replayed().digest() == store.state.digest()


def test_touching_more_bytes_than_an_event_can_carry_is_refused(
        monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store()
    user = store.user()
    for key in "abc":
        user.put(key, bytes(500), sources=(("s", 1),))
    monkeypatch.setattr(limits, "REQUEST_BYTES", 1_500)
    user.commit(Touch("a", SECOND), Touch("b", SECOND), Touch("none", SECOND))
    with pytest.raises(TooLarge) as large:
        user.commit(*(Touch(key, SECOND) for key in "abc"))
    assert large.value.details["limit"] == 1_500
