"""Questions below the floor: the store's side, with an archivist that does what a test says."""

from __future__ import annotations

from typing import Any

import pytest

from ckptmesh import commands, limits, protocol, session
from ckptmesh.answers import Caller
from ckptmesh.archive import Archive
from ckptmesh.errors import ArchiveUnavailable, Compacted, TooManyInFlight, Unavailable
from ckptmesh.limits import SECOND
from ckptmesh.messages import At, Get, Hello, History, Reply, Request, Rows, Scan, Setting, Since
from tests.unit.test_engine import Site, put


class Archivist:
    """Answers when told to. `fate`: the error that its next look for an answer meets."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.questions: list[Request] = []
        self.answer: bytes | None = None
        self.fate: Exception | None = None
        self.over = self.closed = False

    def send(self, payload: bytes) -> None:
        assert len(self.questions) == 0 or self.answer is None, "one question at a time"
        self.questions.append(protocol.decode_request(payload))

    def receive(self) -> bytes | None:
        if self.fate is not None:
            raise self.fate
        answer, self.answer = self.answer, None
        return answer

    def ended(self) -> bool:
        return self.over

    def close(self) -> None:
        self.closed = True


class Desk:
    """An archive, its clock, and the archivists that it has started."""

    def __init__(self) -> None:
        self.now = 0
        self.started: list[Archivist] = []
        self.unable: Exception | None = None
        self.archive = Archive("/place", spawn=self.spawn, elapsed=lambda: self.now)

    def spawn(self, directory: str) -> Archivist:
        assert directory == "/place"
        if self.unable:
            raise self.unable
        self.started.append(Archivist(100 + len(self.started)))
        return self.started[-1]

    def ask(self, number: int, route: Any = "way", revision: int = 5, size: int = 10) -> None:
        self.archive.ask(route, Request(b"", number, 0, b"", 3, Get(("k",), At(revision)),
                                        revision, size))

    def poll(self) -> list[tuple[Any, Any]]:
        """(route, bytes of an answer, or the error of a refusal)"""
        found = []
        for route, payload in self.archive.poll():
            if payload.startswith(b"answer"):
                found.append((route, payload))
            else:
                op, reply = protocol.decode_reply(payload)
                assert (op, reply.epoch) == (commands.op_of(Get(())), 3)
                found.append((route, reply.error))
        return found


def test_questions_are_answered_one_after_the_other_by_one_process() -> None:
    desk = Desk()
    assert (desk.archive.waiting, desk.poll(), desk.started) == (False, [], [])
    desk.ask(1, "first", 7)
    desk.ask(2, "second", 8)
    assert desk.poll() == []
    [archivist] = desk.started
    assert [(q.number, q.epoch, q.command) for q in archivist.questions] == [
        (1, 3, Get(("k",), At(7)))]
    archivist.answer = b"answer one"
    assert desk.poll() == [("first", b"answer one")]
    assert [question.number for question in archivist.questions] == [1, 2]
    archivist.answer = b"answer two"
    assert desk.poll() == [("second", b"answer two")]
    assert not desk.archive.waiting
    assert desk.archive.status() == {
        "waiting": 0, "pid": 100, "asked": 2, "answered": 2, "refused": 0, "deaths": 0}


def test_a_copy_is_no_further_question_and_its_way_is_the_newer_one() -> None:
    desk = Desk()
    desk.ask(1, "before")
    desk.poll()
    for _ in range(100):
        desk.ask(1, "after")
    desk.started[0].answer = b"answer"
    assert desk.poll() == [("after", b"answer")]
    assert desk.poll() == []
    assert len(desk.started[0].questions) == 1


@pytest.mark.parametrize("fate", [ConnectionResetError("gone"), ValueError("no answer")])
def test_a_process_that_dies_is_replaced_and_its_question_asked_once_more(fate: Exception) -> None:
    desk = Desk()
    desk.ask(1)
    desk.ask(2, "other")
    desk.poll()
    desk.started[0].fate = fate
    assert desk.poll() == []
    assert desk.started[0].closed
    assert [question.number for question in desk.started[1].questions] == [1]
    desk.started[1].fate = fate
    [(route, error)] = desk.poll()
    assert route == "way"
    assert type(error) is ArchiveUnavailable
    assert error.retryable
    assert isinstance(error, Unavailable)
    desk.poll()
    desk.started[2].answer = b"answer"
    assert desk.poll() == [("other", b"answer")], "the next one is none the worse for it"
    assert desk.archive.status()["deaths"] == 2


def test_a_process_that_cannot_be_started_is_told_and_ends_nothing() -> None:
    desk = Desk()
    desk.unable = OSError(12, "no memory")
    desk.ask(1)
    [(_, error)] = desk.poll()
    assert type(error) is ArchiveUnavailable
    desk.unable = None
    desk.ask(2)
    desk.poll()
    desk.started[0].answer = b"answer"
    assert desk.poll() == [("way", b"answer")]


def test_a_question_that_takes_too_long_is_refused_and_its_process_ended() -> None:
    desk = Desk()
    desk.ask(1)
    desk.poll()
    desk.now += limits.ARCHIVE_TIME
    assert desk.poll() == []
    desk.now += 1
    [(_, error)] = desk.poll()
    assert type(error) is ArchiveUnavailable
    assert "600 s" in error.message
    assert desk.started[0].closed


def test_so_many_may_wait_and_more_are_told_to_come_again() -> None:
    desk = Desk()
    for number in range(limits.ARCHIVE_QUESTIONS):
        desk.ask(number)
    desk.ask(1_000, "late")
    [(route, error)] = desk.poll()
    assert (route, type(error)) == ("late", TooManyInFlight)
    desk = Desk()
    desk.ask(1, size=limits.ARCHIVE_QUESTION_BYTES)
    desk.ask(2, "large", size=1)
    [(route, error)] = desk.poll()
    assert (route, type(error)) == ("large", TooManyInFlight)


def test_who_sends_no_copies_is_forgotten_before_it_costs_anything() -> None:
    desk = Desk()
    desk.ask(1, "first")
    desk.ask(2, "gone")
    desk.ask(3, "waits")
    desk.poll()
    desk.now += limits.ARCHIVE_FORGET
    desk.ask(3, "waits")
    desk.now += 1
    desk.started[0].answer = b"answer"
    assert desk.poll() == [("first", b"answer")]
    assert [question.number for question in desk.started[0].questions] == [1, 3]
    assert limits.ARCHIVE_FORGET > 2 * session.RESEND_MAX * SECOND


def test_a_process_that_has_ended_of_itself_is_let_go_and_started_again() -> None:
    desk = Desk()
    desk.ask(1)
    desk.poll()
    desk.started[0].answer = b"answer"
    desk.poll()
    desk.started[0].over = True
    desk.poll()
    assert desk.started[0].closed
    assert desk.archive.status()["pid"] == 0
    desk.ask(2)
    desk.poll()
    desk.archive.close()
    desk.archive.close()
    assert desk.started[1].closed
    assert (desk.archive.waiting, desk.poll()) == (False, [])


# --- in an engine -----------------------------------------------------------------------------


def old_site() -> tuple[Site, Desk]:
    """A store at revision 10, whose memory goes back to 8."""
    site, desk = Site(), Desk()
    site.engine.archive = desk.archive
    site.ask(Setting("history_revisions", 2))
    for _ in range(10):
        site.commit(*put("k").mutations)
    assert site.engine.state.floor == 8
    return site, desk


@pytest.mark.parametrize("command", [
    Get(("k",), At(revision=5)), Scan("", at=At(revision=0)), Get(("k",), At(time=1))])
def test_a_read_below_the_floor_is_left_to_the_archive_and_nobody_waits_for_it(
        command: Any) -> None:
    site, desk = old_site()
    late, prompt = site.payload(command), site.payload(put("k"))
    [(route, payload)] = site.engine.process([("late", late), ("prompt", prompt)])[0]
    assert route == "prompt"
    assert protocol.decode_reply(payload)[1].result.revision == 11
    [archivist] = desk.started
    assert archivist.questions[0].command == command
    assert site.engine.wait() <= 0.02
    archivist.answer = protocol.encode_reply(
        commands.op_of(command), Reply(b"", 99, 1, Rows(5, 0, (), False)))
    [(route, payload)] = site.engine.tick()[0]
    assert (route, protocol.decode_reply(payload)[1].number) == ("late", 99)


@pytest.mark.parametrize("command", [
    Since(1, 0), History("k"), Get(("k",), At(revision=8)), Hello(), Get(("k",))])
def test_nothing_else_is_left_to_it(command: Any) -> None:
    site, desk = old_site()
    [answer] = site.batch(command)
    assert isinstance(answer, Compacted) == isinstance(command, Since)
    assert desk.started == []


def test_a_store_that_ends_ends_its_archive() -> None:
    site, desk = old_site()
    site.engine.process([("late", site.payload(Get(("k",), At(revision=5))))])
    site.engine.close()
    assert desk.started[0].closed


# --- in a client ------------------------------------------------------------------------------


def test_a_refusal_of_the_archive_concerns_that_read_alone() -> None:
    """`Unavailable` itself would say that there is no store, and hold everything back."""
    core = session.Session("n", pack=commands.pack_command, jitter=lambda: 0.5)
    past, present = core.call(Get(("k",), At(5)), 0.0), core.call(Get(("k",)), 0.0)
    copies = core.copies(0.0)
    op = commands.op_of(Get(()))
    core.receive(op, Reply(b"", copies[0].number, 1, None, ArchiveUnavailable("ended")), 0.1)
    assert core.settled() == [past]
    assert isinstance(past.error, ArchiveUnavailable)
    core.receive(op, Reply(b"", copies[1].number, 1, Rows(9, 0, (None,), False)), 0.2)
    assert core.settled() == [present]
    assert present.error is None


# --- in a process of its own ------------------------------------------------------------------


def test_who_has_left_is_answered_nothing_more_and_nobody_else_waits_for_it() -> None:
    site, desk = old_site()
    stays, leaves = Caller(), Caller()
    past = Get(("k",), At(revision=5))
    assert site.engine.handle([site.payload(past)], leaves) == []
    assert site.engine.expects(stays), "whoever looks brings the answers of all"
    site.engine.leave(leaves)
    desk.started[0].answer = protocol.encode_reply(
        commands.op_of(past), Reply(b"", 99, 1, Rows(5, 0, (), False)))
    assert site.engine.late(stays) == []
    assert not site.engine.expects(stays)
    assert not site.engine.expects(leaves)


def test_an_answer_that_nobody_fetches_keeps_no_other_caller_awake() -> None:
    site, desk = old_site()
    one, other = Caller(), Caller()
    past = Get(("k",), At(revision=5))
    site.engine.handle([site.payload(past)], one)
    desk.started[0].answer = protocol.encode_reply(
        commands.op_of(past), Reply(b"", 99, 1, Rows(5, 0, (), False)))
    assert site.engine.late(other) == []
    assert (site.engine.expects(one), site.engine.expects(other)) == (True, False)
    [payload] = site.engine.late(one)
    assert protocol.decode_reply(payload)[1].number == 99
    assert not site.engine.expects(one)
