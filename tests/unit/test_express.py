"""The short way of a commit: it tells and leaves behind what the ordinary way would have."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from ckptmesh import bundles, commands, errors, link, protocol, session
from ckptmesh.client import Client
from ckptmesh.errors import EpochChanged, Error, OutcomeUnknown, SessionExpired, Unavailable
from ckptmesh.link import Link
from ckptmesh.messages import Outcome, Reply, Transact
from ckptmesh.opening import open_engine
from ckptmesh.transport import EngineTransport

TRANSACT = commands.op_of(Transact((), ()))
Fate = Callable[[list[bytes], list[bytes]], list[bytes]]


class Road(EngineTransport):
    """The way to an engine in memory, on which one batch of answers may meet a fate: a function of
    requests and answers."""

    def __init__(self) -> None:
        self.store: Any = open_engine(None)
        super().__init__("memory://road", self.carry, self.store.close, self.store)
        self.fates: list[Fate] = []
        self.sent: list[bytes] = []

    def send(self, payload: bytes) -> bool:
        self.sent.append(payload)
        return super().send(payload)

    def carry(self, payloads: Sequence[bytes]) -> list[bytes]:
        replies = self.store.handle(payloads)
        return self.fates.pop(0)(list(payloads), replies) if self.fates else replies

    def commits(self) -> list[int]:
        """The numbers of the transactions that were sent, copies too."""
        return [number for payload in self.sent
                for op, _, numbers in [bundles.peek(payload)] if op == TRANSACT
                for number in numbers]


@pytest.fixture
def short_ways(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What became of each attempt to go the short way."""
    taken: list[str] = []
    honest = Link.commit

    def watched(self: Link, key: str, value: bytes, deadline: float) -> Any:
        try:
            found = honest(self, key, value, deadline)
        except BaseException as error:
            taken.append(type(error).__name__)
            raise
        taken.append("none" if found is None else "outcome" if type(found) is Outcome else "call")
        return found

    monkeypatch.setattr(Link, "commit", watched)
    monkeypatch.setattr(session, "RESEND_FIRST", 0.02)
    monkeypatch.setattr(session, "RESEND_MAX", 0.04)
    return taken


@pytest.fixture
def road() -> Road:
    return Road()


@pytest.fixture
def mesh(road: Road, short_ways: list[str]) -> Any:
    with Client(road, timeout=5) as client:
        client.hello()
        client.commit("begun", 0)  # opens the session: the ordinary way
        short_ways.clear()
        yield client


def lost(payloads: list[bytes], replies: list[bytes]) -> list[bytes]:
    return []


def doubled(payloads: list[bytes], replies: list[bytes]) -> list[bytes]:
    return replies * 2


def told_before(payloads: list[bytes], replies: list[bytes]) -> list[bytes]:
    """An answer to an earlier request comes first."""
    _, sid, numbers = bundles.peek(payloads[0])
    return [protocol.encode_reply(TRANSACT, Reply(sid, numbers[0] - 1, 1, Outcome(
        1, 1, 1, (1,)))), *replies]


def garbled(payloads: list[bytes], replies: list[bytes]) -> list[bytes]:
    return [b"\xc1", *replies]


def refused(error: Error, epoch: int = 1) -> Fate:
    def fate(payloads: list[bytes], replies: list[bytes]) -> list[bytes]:
        op, sid, numbers = bundles.peek(payloads[0])
        return [protocol.encode_reply(op, Reply(sid, numbers[0], epoch, None, error))]
    return fate


# --- the way itself ---------------------------------------------------------------------------


def test_a_plain_commit_goes_the_short_way_and_any_other_does_not(
        mesh: Client, short_ways: list[str]) -> None:
    receipt = mesh.commit("a", {"n": 1})
    assert (receipt.key, receipt.version, receipt.revision) == ("a", 1, 2)
    assert mesh.get("a").revision == 2  # type: ignore[union-attr]
    assert short_ways == ["outcome"]
    mesh.commit("a", 2, expect=receipt)
    mesh.commit("b", 2, ttl=60)
    mesh.commit("b", 2, position=5)
    mesh.commit("b", 2, sources=[receipt])
    mesh.submit("c", 3).result()
    assert short_ways == ["outcome"]
    assert mesh.commit("c", 4).version == 2
    assert short_ways == ["outcome", "outcome"]


def test_numbers_go_on_where_the_other_way_left_off(mesh: Client, road: Road) -> None:
    for n in range(3):
        mesh.commit("a", n)
        mesh.increment("b")
        mesh.submit("c", n).result()
    assert road.commits() == list(range(1, 11))
    lane: Any = mesh._link.session._lane
    assert (lane.low, lane.next, lane.open, lane.bytes) == (11, 11, {}, 0)
    assert mesh._link.session.live == mesh._link.session.live_bytes == 0
    assert mesh._link.session.seen == (1, 10)


def test_figures_count_both_ways_alike(mesh: Client, road: Road) -> None:
    before = mesh.stats()
    mesh.commit("a", 1)
    after = mesh.stats()
    assert after["operations"]["put"]["count"] == before["operations"]["put"]["count"] + 1
    assert after["bytes_out"] == sum(map(len, road.sent))
    assert after["bytes_in"] > before["bytes_in"]


@pytest.mark.parametrize(("key", "value", "error"), [
    ("a//b", 1, errors.InvalidKey), ("_a", 1, errors.InvalidKey),
    ("a", {1: 2}, errors.InvalidValue),
    ("a", float("nan"), errors.InvalidValue), ("a", 2**64, errors.InvalidValue),
    ("a", "\ud800", errors.InvalidValue), ("a", bytes(2**23 + 1), errors.TooLarge),
    ("k" * 513, 1, errors.TooLarge)])
def test_what_cannot_be_committed_is_refused_before_anything_is_sent(
        mesh: Client, road: Road, key: str, value: Any, error: type[Error]) -> None:
    before = len(road.sent)
    with pytest.raises(error):
        mesh.commit(key, value)
    assert len(road.sent) == before


# --- out of the ordinary ----------------------------------------------------------------------


@pytest.mark.parametrize("fate", [lost, doubled, told_before, garbled])
def test_what_comes_between_costs_no_commit_and_repeats_none(
        mesh: Client, road: Road, short_ways: list[str], fate: Fate) -> None:
    road.fates = [fate]
    assert mesh.commit("a", 1).revision == 2
    assert short_ways == ["call"]
    assert mesh.commit("a", 2).revision == 3
    assert mesh.value("a") == 2
    assert road.store.state.revision == 3
    assert set(road.commits()) == {1, 2, 3}
    assert mesh._link.session.live == 0


@pytest.mark.fault(4)
def test_a_commit_that_is_not_answered_in_time_is_in_doubt_and_can_be_resolved(
        mesh: Client, road: Road) -> None:
    road.fates = [lost] * 100
    with pytest.raises(OutcomeUnknown, match="the commit of 'a' waited") as unknown:
        mesh.commit("a", 1, timeout=0.1)
    road.fates = []
    assert unknown.value.resolve().revision == 2
    assert mesh.commit("a", 2).revision == 3


def test_refusals_and_endings_are_met_as_on_the_other_way(
        mesh: Client, road: Road, short_ways: list[str]) -> None:
    road.fates = [refused(Unavailable("no store"), 0)]
    assert mesh.commit("a", 1).version == 1
    road.fates = [refused(EpochChanged("later"), 1)]  # about an earlier copy, as far as one knows
    assert mesh.commit("a", 2).version == 2
    road.fates = [refused(errors.OutOfSpace("full"))]
    with pytest.raises(errors.OutOfSpace):
        mesh.commit("a", 3)
    assert short_ways == ["call"] * 3
    # In a session that has ended, a commit sent once goes again, in the next one.
    road.store.machine._end_session(mesh._link.session.session)
    road.fates = [refused(SessionExpired("gone"))]
    assert mesh.commit("b", 1).version == 1


def test_a_head_behind_what_was_seen_is_a_lost_past(mesh: Client, road: Road) -> None:
    def behind(payloads: list[bytes], replies: list[bytes]) -> list[bytes]:
        _, sid, numbers = bundles.peek(payloads[0])
        return [protocol.encode_reply(TRANSACT, Reply(sid, numbers[0], 1, Outcome(1, 1, 1, (1,))))]

    mesh.commit("a", 1)
    road.fates = [behind]
    with pytest.raises(errors.DataLoss):
        mesh.commit("a", 2)


def test_an_outcome_told_in_another_epoch_goes_the_other_way(
        mesh: Client, road: Road, short_ways: list[str]) -> None:
    def later(payloads: list[bytes], replies: list[bytes]) -> list[bytes]:
        _, reply = protocol.decode_reply(replies[0])
        return [protocol.encode_reply(TRANSACT, reply._replace(epoch=7))]

    road.fates = [later]
    assert mesh.commit("a", 1).revision == 2
    assert short_ways == ["call"]
    assert mesh._link.session.epoch == 7, "it was learnt from that answer"


@pytest.mark.fault(30)
def test_an_interrupt_leaves_a_client_that_goes_on(mesh: Client, road: Road) -> None:
    def interrupted(payloads: list[bytes], replies: list[bytes]) -> list[bytes]:
        raise KeyboardInterrupt

    road.fates = [interrupted]
    with pytest.raises(KeyboardInterrupt):
        mesh.commit("a", 1)
    assert mesh._link.session.live == 0
    assert mesh.commit("a", 2).revision == 3, "the interrupted one had happened"


def test_a_store_that_fails_under_a_commit_says_so(mesh: Client, road: Road) -> None:
    def failed(payloads: list[bytes], replies: list[bytes]) -> list[bytes]:
        raise errors.Poisoned("the disk is gone")

    road.fates = [failed]
    with pytest.raises(OutcomeUnknown, match="the disk is gone"):
        mesh.commit("a", 1)


def test_it_is_not_taken_beside_submitted_commits_nor_after_another_thread_came(
        mesh: Client, short_ways: list[str]) -> None:
    future = mesh.submit("a", 1)
    mesh.commit("b", 2)
    assert short_ways == []
    assert future.result().revision == 2
    mesh.commit("b", 3)
    assert short_ways == ["outcome"]
    other = threading.Thread(target=mesh.commit, args=("c", 4))
    other.start()
    other.join(10)
    mesh.commit("b", 5)
    assert short_ways == ["outcome"], "two threads share syncs on the other way"
    assert mesh.value("c") == 4


def test_other_threads_wait_for_a_short_way_for_a_bounded_time_only(
        mesh: Client, road: Road, short_ways: list[str]) -> None:
    def receive(timeout: float) -> list[bytes]:
        waited.append(timeout)
        return honest(0.5)

    waited: list[float] = []
    honest = road.receive
    road.receive = receive  # type: ignore[method-assign]
    mesh.commit("a", 1)
    assert waited == [link.SHORT_WAIT]
    assert short_ways == ["outcome"]
