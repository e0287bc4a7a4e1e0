"""The client's brain, by scripts: what it sends, what it is told, what it concludes. No socket."""

from __future__ import annotations

from typing import Any

import pytest

from ckptmesh import errors
from ckptmesh.calls import NEVER, Call, Copy
from ckptmesh.commands import pack_command
from ckptmesh.limits import IN_FLIGHT_BYTES, IN_FLIGHT_REQUESTS, MIB
from ckptmesh.link import Link
from ckptmesh.messages import (
    At,
    Close,
    Find,
    Get,
    Hello,
    Open,
    Opened,
    Outcome,
    Put,
    Reply,
    Rows,
    Transact,
    Welcome,
)
from ckptmesh.session import REFUSED_FIRST, RESEND_FIRST, Session
from ckptmesh.transport import EngineTransport

UUID, OTHER = b"u" * 16, b"v" * 16
S1, S2 = b"1" * 16, b"2" * 16


class Script:
    """One client, its clock, and the words to play the store against it. Jitter is at its most."""

    def __init__(self, *, greeted: bool = True) -> None:
        self.now = 100.0
        self.session = Session("host:1:test", pack=pack_command, jitter=lambda: 1.0,
                               where="tcp://store")
        if greeted:
            self.session.call(Hello(), self.now)
            self.answer(self.one(Hello), Welcome(UUID, 1, 10, 0, 0, "", ""))
            assert len(self.session.settled()) == 1

    def put(self, key: str = "k", timeout: float = 30.0, size: int = 1) -> Call:
        command = Transact((), (Put(key, b"x" * size),))
        return self.session.call(command, self.now, self.now + timeout)

    def get(self, key: str = "k", timeout: float = 30.0) -> Call:
        return self.session.call(Get((key,)), self.now, self.now + timeout)

    def sent(self) -> list[Copy]:
        return self.session.copies(self.now)

    def one(self, kind: type[Any]) -> Copy:
        """The only copy that is due now, which is of this kind."""
        (found,) = self.sent()
        assert isinstance(found.call.command, kind)
        return found

    def later(self, seconds: float) -> list[Copy]:
        self.now += seconds
        return self.sent()

    def answer(self, copy: Copy, result: Any = None, epoch: int = 1) -> None:
        reply = Reply(copy.session, copy.number, epoch, result)
        self.session.receive(copy.op, reply, self.now)

    def refuse(self, copy: Copy, error: errors.Error, epoch: int = 1) -> None:
        reply = Reply(copy.session, copy.number, epoch, None, error)
        self.session.receive(copy.op, reply, self.now)

    def opened(self, *calls: Call, session: bytes = S1) -> list[Copy]:
        """Play the opening of a session; the copies that follow it."""
        self.answer(self.one(Open), Opened(session, self.session.epoch, 10), self.session.epoch)
        return self.sent()


def outcome(revision: int = 11, epoch: int = 1) -> Outcome:
    return Outcome(revision, epoch, 0, (1,))


# --- opening ----------------------------------------------------------------------------------


def test_the_session_opens_before_the_first_transaction_and_presents_what_was_last_seen() -> None:
    s = Script()
    call = s.put()
    opening = s.one(Open)
    assert opening.call.command == Open("host:1:test", UUID, 1, 10)
    assert (opening.session, opening.low, opening.uuid) == (b"", 0, UUID)
    assert s.sent() == [], "the transaction waits for its session"
    s.answer(opening, Opened(S1, 1, 10))
    (copy,) = s.sent()
    assert copy.call is call
    assert (copy.session, copy.number, copy.low, copy.uuid, copy.epoch) == (S1, 1, 1, UUID, 1)


def test_reads_need_no_session() -> None:
    s = Script()
    call = s.get()
    copy = s.one(Get)
    assert (copy.session, copy.low, copy.epoch) == (b"", 0, 0)
    s.answer(copy, Rows(12, 0, (None,), False))
    assert s.session.settled() == [call]
    assert call.result.revision == 12
    assert s.session.session == b""


def test_a_client_presents_the_highest_revision_it_saw_with_the_epoch_it_saw_it_in() -> None:
    s = Script()
    s.get()
    s.answer(s.one(Get), Rows(40, 0, (None,), False), epoch=2)
    s.get()
    s.answer(s.one(Get), Rows(40, 0, (None,), False), epoch=3)  # the first epoch says most
    s.get()
    s.answer(s.one(Get), Rows(7, 0, (None,), False), epoch=3)  # time travel reads an old cut
    s.put()
    assert s.one(Open).call.command == Open("host:1:test", UUID, 2, 40)


def test_a_store_that_lost_data_refuses_the_opening_and_with_it_all_that_waits() -> None:
    s = Script()
    first, second = s.put("a"), s.put("b")
    s.refuse(s.one(Open), errors.DataLoss("a revision is missing"))
    assert s.session.settled() == [first, second]
    assert isinstance(first.error, errors.DataLoss)
    assert first.error is not second.error, "two threads must not raise the same object"
    third = s.put("c")  # and each later one asks again: the loss may have been accepted
    (copy,) = s.opened(third)
    assert copy.number == 1


def test_an_opening_for_which_nobody_waits_any_more_is_dropped() -> None:
    s = Script()
    call = s.put(timeout=0.1)
    s.one(Open)
    assert s.later(0.2) == []
    assert isinstance(call.error, errors.Unavailable)
    assert s.later(60) == []
    assert s.session.wake_at() == NEVER


# --- numbers, low, bounds ---------------------------------------------------------------------


def test_low_is_the_lowest_number_neither_answered_nor_given_up() -> None:
    s = Script()
    calls = [s.put(k) for k in "abc"]
    copies = s.opened(*calls)
    assert [(c.number, c.low) for c in copies] == [(1, 1), (2, 1), (3, 1)]
    s.answer(copies[1], outcome())
    s.put("d")
    assert [(c.number, c.low) for c in s.sent()] == [(4, 1)]
    s.answer(copies[0], outcome())
    s.put("e")
    assert [(c.number, c.low) for c in s.sent()] == [(5, 3)]
    s.session.give_up(calls[2])
    s.put("f")
    assert [(c.number, c.low) for c in s.sent()] == [(6, 4)]


def test_no_more_numbers_are_in_flight_than_the_store_takes() -> None:
    s = Script()
    calls = [s.put() for _ in range(IN_FLIGHT_REQUESTS + 2)]
    copies = s.opened(*calls)
    assert len(copies) == IN_FLIGHT_REQUESTS
    assert s.session.full
    s.answer(copies[5], outcome())
    assert s.sent() == [], "number 1 still holds the window"
    s.answer(copies[0], outcome())
    (copy,) = s.sent()
    assert (copy.number, copy.low) == (IN_FLIGHT_REQUESTS + 1, 2)


def test_no_more_bytes_are_in_flight_than_the_bound() -> None:
    s = Script()
    size = 7 * MIB
    calls = [s.put(size=size) for _ in range(12)]
    copies = s.opened(*calls)
    assert len(copies) == IN_FLIGHT_BYTES // size
    assert s.session.full
    s.answer(copies[3], outcome())
    assert len(s.sent()) == 1
    for call in calls:
        s.session.give_up(call)
    assert s.session.live_bytes == 0


def test_a_settled_call_keeps_no_bytes() -> None:
    s = Script()
    call = s.put(size=MIB)
    (copy,) = s.opened(call)
    s.answer(copy, outcome())
    assert call.settled
    assert (call.body, call.command) == (b"", None)


def test_what_waits_for_a_store_that_never_comes_does_not_pile_up() -> None:
    s = Script()
    for _ in range(500):
        call = s.put(timeout=0.1)
        s.sent()
        s.now += 0.2
        s.sent()
        assert call.settled
    assert len(s.session._waiting) == 0
    assert len(s.session._times) < 100


# --- retries ----------------------------------------------------------------------------------


def test_an_unanswered_request_is_sent_again_under_its_number_with_growing_pauses() -> None:
    s = Script()
    (copy,) = s.opened(s.put(timeout=100))
    pauses = []
    last = s.now
    for _ in range(7):
        s.now = s.session.wake_at()
        (again,) = s.sent()
        assert again[1:] == copy[1:]
        pauses.append(round(s.now - last, 3))
        last = s.now
    assert pauses == [0.5, 1.0, 2.0, 4.0, 8.0, 8.0, 8.0]
    assert s.session.retries == 7


def test_jitter_spreads_the_pauses_over_their_upper_half() -> None:
    pauses = []
    for jitter in (0.0, 0.5, 0.999):
        session = Session("n", pack=pack_command, jitter=lambda j=jitter: j)  # type: ignore[misc]
        session.call(Hello(), 0.0)
        session.copies(0.0)
        pauses.append(session.wake_at())
    assert pauses == pytest.approx([RESEND_FIRST / 2, RESEND_FIRST * 0.75, RESEND_FIRST], rel=0.01)


def test_a_large_request_is_given_time_to_travel_before_it_is_sent_again() -> None:
    s = Script()
    s.opened(s.put(size=8 * MIB))
    assert s.session.wake_at() - s.now == pytest.approx(RESEND_FIRST + 2, rel=0.01)


@pytest.mark.fault(31)
def test_a_lost_reply_is_made_good_by_the_answer_to_a_later_copy() -> None:
    s = Script()
    call = s.put()
    s.opened(call)
    (again,) = s.later(0.6)
    s.answer(again, outcome(11))
    assert s.session.settled() == [call]
    assert call.result == outcome(11)


@pytest.mark.fault(32)
def test_a_duplicated_reply_is_discarded() -> None:
    s = Script()
    call = s.put()
    (copy,) = s.opened(call)
    s.answer(copy, outcome(11))
    s.session.settled()
    s.answer(copy, outcome(11))
    assert s.session.settled() == []
    assert s.session.discarded == 1


@pytest.mark.fault(38)
def test_a_reply_of_an_older_epoch_is_discarded() -> None:
    s = Script()
    call = s.put()
    (copy,) = s.opened(call)
    s.get()
    s.answer(s.one(Get), Rows(20, 0, (None,), False), epoch=2)
    s.session.settled()
    s.answer(copy, outcome(11), epoch=1)
    assert s.session.settled() == []
    (again,) = s.later(1.0)
    assert (again.number, again.epoch) == (copy.number, 2)


def test_an_answer_to_another_operation_or_to_nothing_sent_is_discarded() -> None:
    s = Script()
    call = s.get()
    copy = s.one(Get)
    s.session.receive(copy.op + 1, Reply(b"", copy.number, 1, Rows(1, 0, (), False)), s.now)
    s.session.receive(copy.op, Reply(b"", 99, 1, Rows(1, 0, (), False)), s.now)
    s.session.receive(copy.op, Reply(S2, copy.number, 1, Rows(1, 0, (), False)), s.now)
    s.session.unsent(copy)
    s.answer(copy, Rows(1, 0, (), False))
    assert not call.settled
    assert s.session.discarded == 4


def test_a_changed_epoch_makes_the_client_stamp_anew_and_send_again_at_once() -> None:
    s = Script()
    call = s.put()
    (copy,) = s.opened(call)
    s.refuse(copy, errors.EpochChanged("restarted"), epoch=2)
    (again,) = s.sent()
    assert (again.number, again.epoch, again.session) == (1, 2, S1)
    s.answer(again, outcome(12, 2), epoch=2)
    assert call.result == outcome(12, 2)


def test_a_late_refusal_of_an_older_copy_sends_nothing_again() -> None:
    s = Script()
    (copy,) = s.opened(s.put())
    s.refuse(copy, errors.EpochChanged("restarted"), epoch=2)
    s.sent()
    s.refuse(copy, errors.EpochChanged("restarted"), epoch=2)
    assert s.sent() == []


def test_a_new_epoch_brings_forward_what_was_long_without_an_answer() -> None:
    s = Script()
    call = s.put(timeout=100)
    s.opened(call)
    for _ in range(4):
        s.now = s.session.wake_at()
        s.sent()
    assert s.session.wake_at() - s.now == pytest.approx(8)
    s.get()
    s.answer(s.one(Get), Rows(1, 0, (None,), False), epoch=2)
    assert s.session.wake_at() - s.now <= RESEND_FIRST


def test_too_many_in_flight_means_wait_and_go_on() -> None:
    s = Script()
    call = s.put()
    (copy,) = s.opened(call)
    s.refuse(copy, errors.TooManyInFlight("wait"))
    assert s.sent() == []
    (again,) = s.later(0.1)
    assert again.number == 1
    assert not call.settled


def test_a_superseded_answer_is_ignored() -> None:
    s = Script()
    call = s.put()
    (copy,) = s.opened(call)
    s.refuse(copy, errors.Superseded("late"))
    assert not call.settled


def test_a_refusal_settles_the_call_with_its_error() -> None:
    s = Script()
    call = s.put()
    (copy,) = s.opened(call)
    s.refuse(copy, errors.Conflict("no", key="k", expected=3, revision=9))
    assert s.session.settled() == [call]
    assert isinstance(call.error, errors.Conflict)
    assert call.error.details["revision"] == 9


# --- a session that is gone -------------------------------------------------------------------


def test_a_request_sent_exactly_once_goes_again_in_a_new_session() -> None:
    s = Script()
    call = s.put()
    (copy,) = s.opened(call)
    s.refuse(copy, errors.SessionExpired("evicted"))
    (again,) = s.opened(call, session=S2)
    assert (again.session, again.number, again.low) == (S2, 1, 1)
    s.answer(again, outcome(15))
    assert call.result == outcome(15)


def test_a_request_sent_more_than_once_becomes_an_unknown_outcome() -> None:
    s = Script()
    call = s.put()
    s.opened(call)
    (again,) = s.later(0.6)
    s.refuse(again, errors.SessionExpired("evicted"))
    assert s.session.settled() == [call]
    assert isinstance(call.error, errors.OutcomeUnknown)


def test_a_restart_alone_does_not_make_the_outcome_unknown_when_the_session_is_gone() -> None:
    # An hour idle, the store restarted meanwhile, the session evicted: an everyday case.
    s = Script()
    call = s.put()
    (copy,) = s.opened(call)
    s.refuse(copy, errors.EpochChanged("restarted"), epoch=2)
    (again,) = s.sent()
    s.refuse(again, errors.SessionExpired("evicted"), epoch=2)
    (third,) = s.opened(call, session=S2)
    s.answer(third, outcome(15, 2), epoch=2)
    assert call.result == outcome(15, 2)


def test_a_copy_that_never_left_does_not_count_when_the_session_ends() -> None:
    s = Script()
    call = s.put()
    (copy,) = s.opened(call)
    s.session.unsent(copy)
    (again,) = s.sent()
    s.refuse(again, errors.SessionExpired("evicted"))
    (third,) = s.opened(call, session=S2)
    assert (third.call, third.session) == (call, S2)


def test_what_an_ended_session_refused_and_no_new_one_took_did_not_happen() -> None:
    s = Script()
    call = s.put(timeout=2)
    (copy,) = s.opened(call)
    s.refuse(copy, errors.SessionExpired("evicted"))
    s.one(Open)
    s.later(2.1)
    assert s.session.settled() == [call]
    assert isinstance(call.error, errors.Unavailable)


def test_an_epochs_refusal_of_one_copy_absolves_no_other() -> None:
    s = Script()
    call = s.put()
    s.opened(call)
    (again,) = s.later(2 * RESEND_FIRST)
    s.refuse(again, errors.EpochChanged("restarted"), epoch=2)
    (third,) = s.sent()  # the first copy may have been executed before the restart
    s.refuse(third, errors.SessionExpired("evicted"), epoch=2)
    assert s.session.settled() == [call]
    assert isinstance(call.error, errors.OutcomeUnknown)


def test_requests_of_an_evicted_session_keep_their_order_in_the_new_one() -> None:
    s = Script()
    calls = [s.put(k) for k in "abc"]
    copies = s.opened(*calls)
    s.put("d")
    copies += s.sent()
    for copy in (copies[2], copies[0], copies[3], copies[1]):
        s.refuse(copy, errors.SessionExpired("evicted"))
    again = s.opened(*calls, session=S2)
    assert [c.call.command.mutations[0].key for c in again] == list("abcd")
    assert [c.number for c in again] == [1, 2, 3, 4]


def test_an_answer_in_the_old_session_counts_although_a_new_one_is_open() -> None:
    s = Script()
    first, second = s.put("a"), s.put("b")
    copies = s.opened(first, second)
    s.refuse(copies[1], errors.SessionExpired("evicted"))
    s.opened(second, session=S2)
    s.answer(copies[0], outcome(11))  # executed just before the eviction
    assert first.result == outcome(11)


# --- giving up --------------------------------------------------------------------------------


@pytest.mark.fault(30)
def test_a_transaction_that_was_sent_and_not_answered_is_unknown_never_absent() -> None:
    s = Script()
    call = s.put("orders", timeout=2)
    s.opened(call)
    s.later(2.1)
    assert s.session.settled() == [call]
    assert isinstance(call.error, errors.OutcomeUnknown)
    assert "'orders'" in str(call.error)
    assert "2 s" in str(call.error)
    assert "resolve()" in call.error.hint


def test_a_transaction_that_never_left_is_unavailable_for_want_of_a_broker() -> None:
    s = Script()
    call = s.put(timeout=2)
    for _ in range(5):
        for copy in s.sent():
            s.session.unsent(copy)
        s.now += 0.5
    assert isinstance(call.error, errors.Unavailable)
    assert call.error.details["missing"] == "broker"
    assert "no broker at tcp://store" in str(call.error)
    assert "never sent" in str(call.error)


def test_a_numbered_transaction_that_never_left_is_unavailable_too() -> None:
    s = Script()
    first = s.put()
    s.answer(s.opened(first)[0], outcome())
    call = s.put(timeout=1)
    (copy,) = s.sent()
    s.session.unsent(copy)
    s.later(1.5)
    assert isinstance(call.error, errors.Unavailable)
    s.put()
    (after,) = s.sent()
    assert (after.number, after.low) == (3, 3), "its number is spent"


def test_a_missing_store_is_told_from_a_missing_broker() -> None:
    s = Script()
    call = s.put(timeout=2)
    s.refuse(s.one(Open), errors.Unavailable("no store is connected"), epoch=0)
    while not call.settled:
        s.now = s.session.wake_at()
        for copy in s.sent():
            s.refuse(copy, errors.Unavailable("no store is connected"), epoch=0)
    assert isinstance(call.error, errors.Unavailable)
    assert call.error.details["missing"] == "store"
    assert "no store behind it" in str(call.error)


def test_a_read_without_an_answer_is_unavailable() -> None:
    s = Script()
    call = s.get(timeout=1)
    s.sent()
    s.later(1.1)
    assert isinstance(call.error, errors.Unavailable)
    assert call.error.details["missing"] == "answer"


def test_a_cancelled_transaction_moves_low_on_and_its_late_answer_is_discarded() -> None:
    s = Script()
    call = s.put()
    (copy,) = s.opened(call)
    s.session.give_up(call)
    assert isinstance(call.error, errors.OutcomeUnknown)
    s.answer(copy, outcome())
    assert call.result is None
    s.put()
    (after,) = s.sent()
    assert (after.number, after.low) == (2, 2)


def test_closing_settles_everything_and_takes_no_more() -> None:
    s = Script()
    sent = s.put("a")
    s.opened(sent)
    waiting, read = s.put("b"), s.get()
    s.session.close()
    assert isinstance(sent.error, errors.OutcomeUnknown)
    assert isinstance(waiting.error, errors.Closed)
    assert isinstance(read.error, errors.Closed)
    with pytest.raises(errors.Closed):
        s.put()
    with pytest.raises(errors.Closed):
        s.session.find(sent, s.now)


def test_the_session_is_closed_after_what_was_asked_before() -> None:
    s = Script()
    (put,) = s.opened(s.put())
    call = s.session.call(Close(), s.now, s.now + 1)
    later = s.put("later")
    assert s.sent() == [], "a late copy of the put would meet a session that has ended"
    s.answer(put, outcome())
    closing, opening = s.sent()
    assert isinstance(closing.call.command, Close)
    assert (closing.session, closing.number) == (S1, 2)
    assert isinstance(opening.call.command, Open), "what comes after it needs another session"
    s.refuse(closing, errors.SessionExpired("evicted"))
    assert call.settled
    assert call.error is None
    assert not later.settled


# --- another store ----------------------------------------------------------------------------


def test_another_store_is_told_to_whoever_asked() -> None:
    s = Script()
    call = s.get()
    s.refuse(s.one(Get), errors.OtherStore("not me"), epoch=0)
    assert isinstance(call.error, errors.OtherStore)


def test_another_store_of_a_lower_epoch_is_not_taken_for_a_late_reply() -> None:
    s = Script()
    s.session.epoch = 9
    call = s.put()
    s.refuse(s.one(Open), errors.OtherStore("not me"), epoch=1)
    assert isinstance(call.error, errors.OtherStore)


def test_a_store_that_was_put_back_is_heard_although_its_epoch_is_lower() -> None:
    s = Script()
    s.session.epoch = 9
    call = s.put()
    s.refuse(s.one(Open), errors.DataLoss("you have seen more than I hold"), epoch=5)
    assert isinstance(call.error, errors.DataLoss)


def test_another_store_says_nothing_about_copies_that_the_first_may_have_taken() -> None:
    s = Script()
    call = s.put()
    s.opened(call)
    (again,) = s.later(0.6)
    s.refuse(again, errors.OtherStore("not me"))
    assert isinstance(call.error, errors.OutcomeUnknown)


def test_a_greeting_by_another_store_is_refused() -> None:
    s = Script()
    call = s.session.call(Hello(), s.now)
    s.answer(s.one(Hello), Welcome(OTHER, 1, 0, 0, 0, "", ""))
    assert isinstance(call.error, errors.OtherStore)
    assert s.session.uuid == UUID


# --- a store that lost something --------------------------------------------------------------


@pytest.mark.parametrize("head", [9, 0])
def test_a_head_behind_what_was_acknowledged_is_data_loss(head: int) -> None:
    s = Script()
    call = s.get()
    s.answer(s.one(Get), Rows(head, 0, (None,), False), epoch=2)
    assert isinstance(call.error, errors.DataLoss)
    assert call.error.details["revision"] == 10
    assert s.session.seen == (1, 10)


def test_an_older_answer_that_was_asked_for_earlier_is_no_loss() -> None:
    s = Script()
    first, second = s.get("a"), s.get("b")
    one, two = s.sent()
    s.answer(two, Rows(30, 0, (None,), False))
    s.answer(one, Rows(20, 0, (None,), False))  # reordered on the way
    assert first.error is None
    assert second.error is None


def test_reading_an_old_cut_is_no_loss() -> None:
    s = Script()
    call = s.session.call(Get(("k",), At(revision=3)), s.now)
    s.answer(s.one(Get), Rows(3, 0, (None,), False))
    assert call.error is None


def test_a_commit_on_a_store_that_lost_data_is_told_and_the_store_is_shown() -> None:
    s = Script()
    s.answer(s.opened(s.put())[0], outcome(20))
    call = s.put()
    (copy,) = s.sent()
    s.answer(copy, outcome(15, 2), epoch=2)
    assert isinstance(call.error, errors.DataLoss)
    later = s.put()
    opening = s.one(Open)
    assert opening.call.command == Open("host:1:test", UUID, 1, 20)
    s.refuse(opening, errors.DataLoss("read-only now"), epoch=2)
    assert isinstance(later.error, errors.DataLoss)


def test_after_an_accepted_loss_the_client_goes_on() -> None:
    s = Script()
    s.get()
    s.answer(s.one(Get), Rows(4, 0, (None,), False), epoch=2)
    call = s.put()
    s.answer(s.one(Open), Opened(S1, 2, 4), epoch=2)
    (copy,) = s.sent()
    s.answer(copy, outcome(5, 2), epoch=2)
    assert call.result == outcome(5, 2)
    read = s.get()
    s.answer(s.one(Get), Rows(5, 0, (None,), False), epoch=2)
    assert read.error is None


# --- a store that is missing ------------------------------------------------------------------


def test_while_no_store_is_there_only_one_small_question_is_asked() -> None:
    s = Script()
    copies = s.opened(*[s.put(k) for k in "abc"])
    for copy in copies:
        s.refuse(copy, errors.Unavailable("no store"), epoch=0)
    s.put("d")
    assert s.sent() == []
    pauses, last = [], s.now
    for _ in range(8):
        s.now = s.session.wake_at()
        probe = s.one(Hello)
        pauses.append(round(s.now - last, 3))
        last = s.now
        s.refuse(probe, errors.Unavailable("no store"), epoch=0)
    assert pauses[:4] == [0.02, 0.04, 0.08, 0.16]
    assert pauses[-1] == 1.0


def test_when_a_store_answers_everything_held_goes_at_once_with_its_stamps() -> None:
    s = Script()
    calls = [s.put(k) for k in "ab"]
    for copy in s.opened(*calls):
        s.refuse(copy, errors.Unavailable("no store"), epoch=0)
    late = s.put("c")
    s.now += REFUSED_FIRST
    s.answer(s.one(Hello), Welcome(UUID, 2, 30, 0, 0, "", ""), epoch=2)
    copies = s.sent()
    assert [(c.number, c.epoch) for c in copies] == [(1, 2), (2, 2), (3, 2)]
    for copy in copies:
        s.answer(copy, outcome(31, 2), epoch=2)
    assert all(call.result for call in (*calls, late))
    assert s.session.live == 0


def test_a_client_that_waits_for_nothing_does_not_ask_whether_the_store_is_back() -> None:
    s = Script()
    call = s.get(timeout=0.05)
    s.refuse(s.one(Get), errors.Unavailable("no store"), epoch=0)
    s.later(0.1)
    assert call.settled
    s.later(10)
    assert s.session.wake_at() == NEVER
    s.get()
    s.one(Get)


def test_a_request_that_only_the_broker_refused_may_go_in_a_new_session() -> None:
    s = Script()
    call = s.put()
    (copy,) = s.opened(call)
    s.refuse(copy, errors.Unavailable("no store"), epoch=0)
    s.now += REFUSED_FIRST
    s.answer(s.one(Hello), Welcome(UUID, 2, 30, 0, 0, "", ""), epoch=2)
    (again,) = s.sent()
    s.refuse(again, errors.SessionExpired("evicted"), epoch=2)
    (third,) = s.opened(call, session=S2)
    assert third.call is call


def test_an_echo_of_the_brokers_refusal_absolves_no_later_copy() -> None:
    s = Script()
    call = s.put()
    (copy,) = s.opened(call)
    refusal = errors.Unavailable("no store")
    s.refuse(copy, refusal, epoch=0)
    s.now += REFUSED_FIRST
    s.answer(s.one(Hello), Welcome(UUID, 1, 30, 0, 0, "", ""))
    (again,) = s.sent()  # executed; its answer is lost
    s.refuse(again, refusal, epoch=0)
    s.now += REFUSED_FIRST
    s.answer(s.one(Hello), Welcome(UUID, 1, 30, 0, 0, "", ""))
    (third,) = s.sent()
    s.refuse(third, errors.SessionExpired("evicted"))
    assert isinstance(call.error, errors.OutcomeUnknown)


# --- asking what became of it -----------------------------------------------------------------


def lost(s: Script) -> Call:
    call = s.put(timeout=1)
    s.opened(call)
    s.later(1.1)
    assert isinstance(call.error, errors.OutcomeUnknown)
    s.session.settled()
    return call


def test_find_asks_in_the_same_session_with_low_beyond_the_number() -> None:
    s = Script()
    call = lost(s)
    asked = s.session.find(call, s.now, s.now + 5)
    copy = s.one(Find)
    assert copy.call.command == Find(S1, 1, 10)
    assert (copy.session, copy.number, copy.low) == (S1, 2, 2)
    s.answer(copy, outcome(11))
    assert asked.result == outcome(11)


def test_find_says_none_for_what_is_absent_for_ever() -> None:
    s = Script()
    asked = s.session.find(lost(s), s.now, s.now + 5)
    s.answer(s.one(Find), None)
    assert asked.settled
    assert (asked.result, asked.error) == (None, None)


def test_find_waits_until_older_requests_are_settled() -> None:
    s = Script()
    older = s.put("old", timeout=60)
    (first,) = s.opened(older)
    call = s.put("new", timeout=1)
    s.sent()
    s.later(1.1)
    assert isinstance(call.error, errors.OutcomeUnknown)
    s.session.find(call, s.now, s.now + 30)
    assert not [c for c in s.sent() if isinstance(c.call.command, Find)]
    s.answer(first, outcome())
    (copy,) = [c for c in s.sent() if isinstance(c.call.command, Find)]
    assert copy.low > call.number


def test_find_after_the_session_was_evicted_cannot_tell() -> None:
    s = Script()
    call = lost(s)
    asked = s.session.find(call, s.now, s.now + 5)
    s.refuse(s.one(Find), errors.SessionExpired("evicted"))
    assert isinstance(asked.error, errors.OutcomeUnknown)
    again = s.session.find(call, s.now, s.now + 5)
    assert again.settled
    assert isinstance(again.error, errors.OutcomeUnknown)
    assert s.sent() == []


def test_find_without_an_answer_is_unavailable_and_can_be_asked_again() -> None:
    s = Script()
    call = lost(s)
    asked = s.session.find(call, s.now, s.now + 1)
    s.one(Find)
    s.later(1.1)
    assert isinstance(asked.error, errors.Unavailable)
    s.session.find(call, s.now, s.now + 1)
    s.answer(s.one(Find), None)


def test_requests_without_a_session_count_from_where_they_are_told() -> None:
    session = Session("n", pack=pack_command, jitter=lambda: 1.0, first=4_711)
    session.call(Hello(), 0.0)
    session.call(Hello(), 0.0)
    assert [copy.number for copy in session.copies(0.0)] == [4_711, 4_712]


def test_two_clients_do_not_wait_for_the_same_numbers() -> None:
    links = [Link(EngineTransport("memory://", list, lambda: None), "n") for _ in range(2)]
    numbers = set()
    for link in links:
        link.call(Hello(), NEVER)
        numbers.update(copy.number for copy in link.session.copies(0.0))
    assert len(numbers) == 2
