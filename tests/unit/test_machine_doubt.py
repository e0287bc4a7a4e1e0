"""What the machine does in doubt: full disks, lost data, requests given up, clocks that step."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
from machines import START, UUID, Store, everything

from ckptmesh import limits
from ckptmesh.errors import (
    Conflict,
    DataLoss,
    EpochChanged,
    Error,
    InvalidRequest,
    OutcomeUnknown,
    OutOfSpace,
    Superseded,
    Unavailable,
    Unsupported,
)
from ckptmesh.facts import EpochBegun, Expiry, Sealed, SettingChanged, TimeReserved
from ckptmesh.limits import SECOND
from ckptmesh.machine import Machine
from ckptmesh.messages import (
    AcceptLoss,
    Close,
    Delete,
    Exists,
    Find,
    Hello,
    Increment,
    Open,
    Outcome,
    Put,
    Request,
    Scan,
    Setting,
    Status,
    Touch,
    Transact,
    Welcome,
)
from ckptmesh.state import State

ONE = msgpack.packb(1)


def put(key: str, value: bytes = ONE) -> Transact:
    return Transact((), (Put(key, value),))


# --- space, loss, settings --------------------------------------------------------------------


@pytest.mark.fault(17)
def test_on_a_full_disk_deletes_opens_and_expiries_go_on_and_puts_do_not() -> None:
    store = Store()
    user = store.user()
    user.put("a", ttl=SECOND)
    user.put("b")
    store.machine.out_of_space = OutOfSpace("full")
    for refused in (Put("c", ONE), Touch("b", None), Increment("n", 1)):
        with pytest.raises(OutOfSpace):
            user.commit(refused)
    with pytest.raises(OutOfSpace):
        user.commit(Delete("b"), Put("c", ONE))
    user.commit(when=[Exists("b")])
    user.commit(Delete("b"))
    store.user().commit(Delete("none"))
    store.pass_time(SECOND)
    assert store.state.entries == {}
    store.machine.out_of_space = None
    user.put("c")


@pytest.mark.fault(17)
def test_where_no_frame_fits_nothing_is_recorded_and_reads_go_on() -> None:
    store = Store()
    user = store.user()
    user.put("a", ttl=SECOND)
    before, log = everything(store.state), len(store.log)
    store.machine.out_of_space, store.machine.writable = OutOfSpace("full"), False
    store.now += 20 * SECOND
    for refused in (Transact((), (Delete("a"), Delete("b"))), put("c"), Close()):
        reply = store.batch(user.request(refused))[0]
        assert type(reply.error) is OutOfSpace or reply.result == Outcome(1, 1, store.now, (0, 0))
    for command in (Open("x"), Setting("history_revisions", 1)):
        with pytest.raises(OutOfSpace):
            store.ask(command)
    with pytest.raises(DataLoss):
        store.ask(Open("x", UUID, 9, 9))
    assert store.get("a") is None, "its time is over, recorded or not"
    assert (everything(store.state), len(store.log)) == (before, log)
    store.machine.out_of_space, store.machine.writable = None, True
    user.put("c")


def test_before_an_epoch_began_nothing_can_be_recorded() -> None:
    machine = Machine(State(UUID), lambda: b"s" * 16)
    machine.begin(START)
    reply = machine.execute(Request(b"", 1, 0, b"", 0, Open("x")))
    assert isinstance(reply.error, Unavailable)
    assert isinstance(machine.execute(Request(b"", 1, 0, b"", 0, Hello())).result, Welcome)
    machine.finish()
    assert machine.records == []


def test_a_client_that_saw_what_is_not_there_makes_the_store_read_only() -> None:
    store = Store()
    user = store.user()
    user.put("a")
    for claim in [(1, 1), (1, 0), (0, 0)]:
        store.ask(Open("x", UUID, *claim))
    store.ask(Open("x", b"o" * 16, 99, 99))  # another store's business
    with pytest.raises(DataLoss) as loss:
        store.ask(Open("x", UUID, 1, 2))
    assert loss.value.details == {"epoch": 1, "revision": 2, "head": 1}
    with pytest.raises(DataLoss):
        store.ask(Open("x", UUID, 2, 1))
    assert store.state.loss == (1, 2), "the first claim stands"
    with pytest.raises(DataLoss):
        user.put("a")
    user.commit(when=[Exists("a")])
    store.restart()
    with pytest.raises(DataLoss):
        user.put("a")
    assert store.get("a") is not None


def test_a_copy_from_an_epoch_to_come_is_a_loss_of_data() -> None:
    store = Store()
    user = store.user()
    with pytest.raises(DataLoss):
        user.ask(put("a"), epoch=5)
    assert store.state.loss == (5, 0)


@pytest.mark.parametrize("claim", [(1, 9), (7, 3)])
def test_an_accepted_loss_is_not_suspected_again_and_epochs_go_on_above_it(
        claim: tuple[int, int]) -> None:
    store = Store()
    user = store.user()
    user.put("a")
    with pytest.raises(DataLoss):
        store.ask(Open("x", UUID, *claim))
    store.ask(AcceptLoss())
    assert store.state.epoch == claim[0] + 1
    with pytest.raises(EpochChanged):
        user.ask(put("a"), epoch=claim[0])
    user.put("a")
    store.ask(Open("x", UUID, *claim))
    store.ask(Open("x", UUID, claim[0], 10**6))
    with pytest.raises(DataLoss):
        store.ask(Open("x", UUID, claim[0] + 1, 10**6))
    store.ask(AcceptLoss())
    log = len(store.log)
    store.ask(AcceptLoss())
    assert len(store.log) == log, "nothing to accept"


def test_a_restart_during_a_suspected_loss_begins_an_epoch_above_the_claim() -> None:
    store = Store()
    with pytest.raises(DataLoss):
        store.ask(Open("x", UUID, 7, 3))
    store.restart()
    assert store.log[-1] == EpochBegun(8, store.now)


def test_settings_are_checked_and_logged_when_they_differ() -> None:
    store = Store()
    store.ask(Setting("history_versions", 3))
    store.ask(Setting("history_versions", 3))
    assert [r for r in store.log if type(r) is SettingChanged] == [
        SettingChanged("history_versions", 3)]
    for name, value in (("colour", 1), ("history_bytes", 2**40 + 1)):
        with pytest.raises(InvalidRequest):
            store.ask(Setting(name, value))


def test_what_the_machine_does_not_know_is_unsupported() -> None:
    with pytest.raises(Unsupported):
        Store().ask(Status())


# --- find -------------------------------------------------------------------------------------


def test_find_tells_what_became_of_a_request_that_was_given_up() -> None:
    store = Store()
    user = store.user()
    user.put("x")
    done = user.ask(put("a"), number=2, low=1)
    with pytest.raises(Conflict):
        user.ask(Transact((Exists("none"),), (Put("b", ONE),)), number=3, low=1)
    user.number = 4
    assert user.find(2, 1) == done
    assert user.find(3, 1) is None
    assert user.find(4, 1) is None, "a copy that never came"
    assert user.find(2, 2) is None, "it was sent before that"
    with pytest.raises(Superseded):
        user.ask(put("late"), number=4, low=4)
    store.restart()
    assert user.find(2, 1) == done


def test_find_does_not_take_another_sessions_request_of_the_same_number() -> None:
    store = Store()
    user, other = store.user(), store.user()
    assert other.put("a").revision == 1
    user.number = 1  # given up before a copy arrived
    assert user.find(1, 0) is None


def test_find_answers_only_where_the_answer_is_final() -> None:
    store = Store(history_revisions=2)
    user, other = store.user(), store.user()
    with pytest.raises(InvalidRequest):
        user.ask(Find(user.session, 9, 0), number=5, low=5)
    with pytest.raises(InvalidRequest):
        user.ask(Find(other.session, 1, 0), number=5, low=5)
    for _ in range(4):
        other.put("a")
    with pytest.raises(InvalidRequest):
        user.ask(Find(other.session, 1, 4), number=5, low=5)
    with pytest.raises(OutcomeUnknown):
        user.ask(Find(user.session, 1, 1), number=6, low=5)
    with pytest.raises(DataLoss):
        user.ask(Find(user.session, 1, 5), number=6, low=5)


# --- time -------------------------------------------------------------------------------------


@pytest.mark.fault(41)
def test_time_never_runs_back_for_anybody() -> None:
    store = Store()
    user = store.user()
    store.now += 100 * SECOND
    first = user.put("a").time
    store.now -= 3_600 * SECOND
    assert user.put("a").time == first
    store.restart()
    assert user.put("a").time >= first
    assert store.ask(Hello()).time >= first


@pytest.mark.fault(41)
def test_a_restart_never_revives_what_a_read_saw_expired() -> None:
    store = Store()
    store.user().put("a", ttl=7 * SECOND)
    store.machine.begin(store.now + 7 * SECOND)  # a read alone, and then the end
    assert store.machine.execute(Request(b"", 1, 0, b"", 0, Hello())).result.time == (
        store.now + 7 * SECOND)
    store.log += store.machine.records
    store.now -= 3_600 * SECOND
    store.restart()
    assert store.get("a") is None


@pytest.mark.fault(41)
def test_time_is_reserved_before_it_is_told_while_anything_can_expire() -> None:
    store = Store()
    user = store.user()
    assert store.pass_time(60 * SECOND) == [], "nothing can expire, nothing is reserved"
    user.put("a", ttl=3_000 * SECOND)
    assert store.log[-1] == TimeReserved(store.now + SECOND), "a little at first"
    for _ in range(50):
        store.pass_time(SECOND)
        assert store.state.reserved >= store.now
    store.machine.begin(store.now + 60 * SECOND)
    assert store.machine.records == [TimeReserved(store.machine.now + limits.CLOCK_RESERVE)]
    assert store.machine.next_due() == store.state.reserved - limits.CLOCK_RESERVE // 2


def test_a_store_that_closes_gives_back_the_time_it_did_not_use() -> None:
    store = Store()
    store.user().put("a", ttl=3_000 * SECOND)
    store.machine.begin(store.now)
    store.machine.give_back_time()
    assert store.machine.records == [TimeReserved(store.now)]
    assert store.state.reserved == store.now
    store.machine.begin(store.now)
    store.machine.give_back_time()
    assert store.machine.records == [], "there is nothing more to give back"


def test_a_mass_expiry_is_recorded_in_portions_and_nothing_reads_it_meanwhile() -> None:
    store = Store()
    user = store.user()
    user.commit(*(Put(f"k/{i}", ONE, SECOND) for i in range(1_500)))
    records = store.pass_time(SECOND)
    assert sum(type(r) is Expiry for r in records) == 1_024
    assert store.ask(Scan("")).found == ()
    assert store.state.revision == 1 + 1_500
    assert store.state.entries == {}


def test_a_seal_says_nothing_but_the_time() -> None:
    store = Store()
    store.machine.begin(store.now + 5)
    store.machine.seal()
    assert store.machine.records == [Sealed(store.now + 5)]


def test_publications_get_the_pointers_from_before_their_commit() -> None:
    store = Store()
    user = store.user()
    user.put("a/1")
    user.put("b/1", ttl=SECOND)
    store.machine.begin(store.now)
    store.machine.execute(user.request(Transact((), (Put("a/2", ONE), Put("b/2", ONE),
                                                     Put("c", ONE)))))
    [(revision, _, before)] = store.machine.commits
    assert (revision, before) == (3, {"a": 1, "b": 2, "c": 0})
    store.pass_time(SECOND)
    [(revision, _, before)] = store.machine.commits
    assert (revision, before) == (4, {"b": 3})


def test_a_pipeline_whose_last_revision_memory_has_forgotten_points_to_the_floor() -> None:
    """Pointing to nought would let a watcher that missed that revision join on."""
    store = Store(history_revisions=2)
    user = store.user()
    user.put("a")
    user.put("b", ttl=SECOND)
    for _ in range(3):
        user.put("c")
    floor = store.state.floor
    user.put("a")
    assert (floor, store.machine.commits[0][2]) == (3, {"a": 3})
    store.pass_time(SECOND)
    assert store.machine.commits[0][2] == {"b": 4}


def test_every_refusal_is_an_error_of_the_catalogue_and_echoes_the_request() -> None:
    store = Store()
    user = store.user()
    reply: Any = store.batch(user.request(Transact((Exists("b"),), ()), number=77, low=1))[0]
    assert (reply.session, reply.number, reply.epoch) == (user.session, 77, 1)
    assert isinstance(reply.error, Error)
