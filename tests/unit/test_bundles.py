"""Bundles: how requests travel together, and that they are nothing but requests."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptmesh import bundles, commands, limits, protocol
from ckptmesh.calls import Call, Copy
from ckptmesh.errors import Conflict, Error, InvalidKey, InvalidRequest, TooLarge, Unavailable
from ckptmesh.messages import (
    Delete,
    Get,
    Opened,
    Outcome,
    Put,
    Reply,
    Request,
    RevisionIs,
    Transact,
)
from ckptmesh.opening import open_engine

SID, UUID = b"s" * 16, b"u" * 16
TRANSACT = commands.op_of(Transact((), ()))


def copy_of(number: int, command: Any = None, **stamps: Any) -> Copy:
    command = command or Transact((), (Put(f"k/{number}", b"v"),))
    op, body = commands.pack_command(command)
    call = Call(command, op, body, 0.0, 1.0, number)
    return Copy(call, op, body, SID, number, 1, UUID, 3)._replace(**stamps)


def numbers(groups: Any) -> list[list[int]]:
    return [[copy.number for copy in group] for group in groups]


# --- what may travel together -----------------------------------------------------------------


def test_consecutive_transactions_of_one_session_travel_together() -> None:
    assert numbers(bundles.gather([copy_of(n) for n in range(1, 6)])) == [[1, 2, 3, 4, 5]]
    assert numbers(bundles.gather([])) == []
    assert numbers(bundles.gather([copy_of(7)])) == [[7]]


@pytest.mark.parametrize("other", [
    {"session": b"t" * 16}, {"low": 2}, {"uuid": b""}, {"epoch": 4}, {"number": 4}, {"number": 1},
    {"op": commands.op_of(Get(()))}])
def test_what_differs_in_more_than_its_number_begins_another_group(other: dict[str, Any]) -> None:
    copies = [copy_of(1), copy_of(2)._replace(**other), copy_of(7)]
    assert [len(group) for group in bundles.gather(copies)] == [1, 1, 1]


def test_a_group_holds_as_many_requests_and_bytes_as_a_bundle_may() -> None:
    many = [copy_of(n) for n in range(1, 2 * limits.BUNDLE_REQUESTS + 2)]
    assert [len(group) for group in bundles.gather(many)] == [
        limits.BUNDLE_REQUESTS, limits.BUNDLE_REQUESTS, 1]
    large = Transact((), (Put("k", bytes(limits.BUNDLE_BYTES // 2)),))
    groups = list(bundles.gather([copy_of(n, large) for n in range(1, 5)]))
    assert [len(group) for group in groups] == [1, 1, 1, 1]
    for group in groups:
        assert isinstance(bundles.decode_requests(bundles.encode_requests(group))[0], Request)


@given(st.lists(st.integers(1, 6), max_size=12))
def test_groups_keep_every_copy_in_its_order(given_numbers: list[int]) -> None:
    copies = [copy_of(number) for number in given_numbers]
    groups = [list(group) for group in bundles.gather(copies)]
    assert [copy for group in groups for copy in group] == copies
    for group in groups:
        assert [copy.number for copy in group] == list(
            range(group[0].number, group[0].number + len(group)))


# --- requests ---------------------------------------------------------------------------------


def test_a_request_in_a_bundle_is_what_it_would_be_alone() -> None:
    commands = [Transact((), (Put("a", b"1"),)), Transact((RevisionIs("a", 5),), (Delete("a"),)),
                Transact((), (Put("b", b"2", 5_000_000, True), Delete("c")))]
    copies = [copy_of(n, command) for n, command in enumerate(commands, 4)]
    together = bundles.decode_requests(bundles.encode_requests(copies))
    alone = [bundles.decode_requests(bundles.encode_requests([copy]))[0] for copy in copies]
    assert [request[:7] for request in together] == [request[:7] for request in alone]  # type: ignore[index]
    assert [request.command for request in together] == commands  # type: ignore[union-attr]
    assert all(request.bundled for request in together)  # type: ignore[union-attr]
    assert not any(request.bundled for request in alone)  # type: ignore[union-attr]
    assert bundles.count(bundles.encode_requests(copies)) == 3
    assert bundles.count(bundles.encode_requests(copies[:1])) == 1
    assert bundles.peek(bundles.encode_requests(copies)) == (TRANSACT, SID, range(4, 7))


def bundle(bodies: Any, **fields: Any) -> bytes:
    header = {"session": SID, "number": 4, "low": 1, "uuid": b"", "epoch": 1} | fields
    packed: bytes = msgpack.packb((1, bundles.BUNDLE, *header.values(), bodies))
    return packed


GOOD = commands.pack_command(Transact((), (Put("k", b"v"),)))[1]


@pytest.mark.fault(45)
def test_a_bad_request_among_good_ones_is_refused_alone_and_by_its_number() -> None:
    bad_key = msgpack.packb([[], [[0, "a//b", b"v"]]])
    found = bundles.decode_requests(bundle([GOOD, bad_key, 7, b"\xc1", GOOD]))
    assert [type(each) for each in found] == [
        Request, InvalidKey, InvalidRequest, InvalidRequest, Request]
    assert [each.details["number"] for each in found if isinstance(each, Error)] == [5, 6, 7]
    assert all(each.details["session"] == SID and each.details["op"] == TRANSACT
               for each in found if isinstance(each, Error))
    assert [each.number for each in found if isinstance(each, Request)] == [4, 8]


@pytest.mark.fault(45)
@pytest.mark.parametrize(("payload", "error"), [
    (bundle([]), InvalidRequest), (bundle(GOOD), InvalidRequest), (bundle(None), InvalidRequest),
    (bundle([GOOD] * (limits.BUNDLE_REQUESTS + 1)), InvalidRequest),
    (bundle([GOOD], session=b""), InvalidRequest), (bundle([GOOD], session=b"x"), InvalidRequest),
    (bundle([GOOD], number=-1), InvalidRequest), (bundle([GOOD], epoch=None), InvalidRequest),
    (bundle([bytes(limits.BUNDLE_BYTES)] * 2), TooLarge),
])
def test_a_bundle_of_another_form_is_refused_in_one_piece(payload: bytes, error: type) -> None:
    [found] = bundles.decode_requests(payload)
    assert type(found) is error
    assert bundles.count(payload) >= 1


@pytest.mark.fault(45)
@given(st.binary(max_size=60))
def test_any_bytes_behind_the_mark_of_a_bundle_can_be_counted_and_read(rest: bytes) -> None:
    payload = b"\x98\x01\xcc\xff" + rest
    assert bundles.count(payload) >= 1
    assert all(isinstance(each, Request | Error) for each in bundles.decode_requests(payload))


# --- replies ----------------------------------------------------------------------------------


def test_outcomes_that_leave_together_arrive_as_single_replies() -> None:
    replies = [Reply(SID, n, 2, Outcome(n + 10, 2, 5, (n,))) for n in (4, 5, 9)]
    assert bundles.decode_replies(bundles.encode_outcomes(replies)) == [
        (TRANSACT, reply) for reply in replies]
    single = protocol.encode_reply(TRANSACT, replies[0])
    assert bundles.decode_replies(single) == [(TRANSACT, replies[0])]
    refused = Reply(SID, 4, 2, None, Unavailable("no store"))
    [(_, reply)] = bundles.decode_replies(protocol.encode_reply(bundles.BUNDLE, refused))
    assert type(reply.error) is Unavailable


@pytest.mark.parametrize("outcomes", [7, [7], [[1, 2]], None, [[1, 2, 3, 4, [], 6]]])
def test_a_reply_of_another_form_is_none(outcomes: Any) -> None:
    with pytest.raises(InvalidRequest, match="not a reply"):
        bundles.decode_replies(msgpack.packb(
            (1, bundles.BUNDLE, SID, 4, 1, 0, msgpack.packb(outcomes))))


# --- in a store -------------------------------------------------------------------------------


class Bench:
    """An engine in memory with one open session."""

    def __init__(self) -> None:
        self.engine = open_engine(None)
        op, body = commands.pack_command(protocol.Open("test", b"", 0, 0))
        [(_, opened)] = self.ask([protocol.encode_request(op, body, number=1)])
        assert isinstance(opened.result, Opened)
        self.session, self.epoch = opened.result.session, opened.result.epoch

    def ask(self, payloads: list[bytes]) -> list[tuple[int, Reply]]:
        return [each for payload in self.engine.handle(payloads)
                for each in bundles.decode_replies(payload)]

    def bundle(self, first: int, *commands: Transact, **stamps: Any) -> bytes:
        return bundles.encode_requests([
            copy_of(n, command, session=self.session, epoch=self.epoch, uuid=b"", **stamps)
            for n, command in enumerate(commands, first)])


def put(key: str, *conditions: Any) -> Transact:
    return Transact(conditions, (Put(key, b"v"),))


def test_each_request_of_a_bundle_is_decided_remembered_and_answered_by_itself() -> None:
    bench = Bench()
    bundle = bench.bundle(1, put("a"), put("a", RevisionIs("a", 0)), put("b"))
    replies = {reply.number: reply for _, reply in bench.ask([bundle])}
    assert [replies[n].result.revision for n in (1, 3)] == [1, 2]
    assert type(replies[2].error) is Conflict
    # The same again, in other company: nothing is executed twice, and the refusal stands.
    again = bench.bundle(2, put("a", RevisionIs("a", 0)), put("b"), put("c"))
    repeated = {reply.number: reply for _, reply in bench.ask([again])}
    assert type(repeated[2].error) is Conflict
    assert repeated[3].result == replies[3].result
    assert repeated[4].result.revision == 3
    alone = bundles.encode_requests([copy_of(
        1, put("a"), session=bench.session, epoch=bench.epoch, uuid=b"")])
    [(_, first)] = bench.ask([alone])
    assert first.result == replies[1].result
    assert bench.engine.state.revision == 3


def test_a_bundle_shares_one_sync_and_one_answer() -> None:
    bench = Bench()
    syncs = bench.engine.counts["syncs"]
    commands = [put(f"k/{n}") for n in range(50)]
    [payload] = bench.engine.handle([bench.bundle(1, *commands)])
    assert len(bundles.decode_replies(payload)) == 50
    assert bench.engine.counts["syncs"] == syncs + 1
    assert bench.engine.counts["requests"] == 51


def test_bundles_of_two_sessions_are_answered_apart() -> None:
    bench = Bench()
    op, body = commands.pack_command(protocol.Open("other", b"", 0, 0))
    [(_, opened)] = bench.ask([protocol.encode_request(op, body, number=2)])
    other = bundles.encode_requests([copy_of(
        n, put(f"o/{n}"), session=opened.result.session, epoch=bench.epoch, uuid=b"")
        for n in (1, 2)])
    payloads = bench.engine.handle([bench.bundle(1, put("a"), put("b")), other])
    assert [{reply.session for _, reply in bundles.decode_replies(p)} for p in payloads] == [
        {bench.session}, {opened.result.session}]


@pytest.mark.fault(45)
def test_what_cannot_be_read_in_a_bundle_is_answered_beside_what_can() -> None:
    bench = Bench()
    packed = msgpack.unpackb(bench.bundle(1, put("a"), put("b"), put("c")))
    packed[7][1] = b"\xc1"
    replies = {reply.number: reply for _, reply in bench.ask([msgpack.packb(packed)])}
    assert sorted(replies) == [1, 2, 3]
    assert type(replies[2].error) is InvalidRequest
    assert replies[1].error is None
    assert replies[3].error is None
    assert bench.engine.counts["malformed"] == 1
