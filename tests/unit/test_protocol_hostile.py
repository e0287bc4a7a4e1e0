"""The wire against strangers: whatever arrives is a message or a typed error, in bounded memory."""

from __future__ import annotations

import contextlib
import tracemalloc
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_protocol import golden_file

from ckptmesh import bundles, commands, limits, protocol, publications
from ckptmesh.errors import Error, InvalidKey, InvalidRequest, TooLarge, Unsupported
from ckptmesh.messages import Get, PlainPuts, Put, Reply, RevisionIs, Transact

TRANSACT = commands.OPS.index(Transact)

SID = b"s" * 16
READERS = (protocol.decode_request, bundles.peek, protocol.decode_reply,
           publications.decode_publications)


# --- refusals ---------------------------------------------------------------------------------


def transact(conditions: Any, mutations: Any) -> bytes:
    return protocol.encode_request(TRANSACT, msgpack.packb([conditions, mutations]),
                                   session=SID, number=1)


@pytest.mark.fault(45)
@pytest.mark.parametrize("mutation", [
    [], [0], [4, "k"], [-1, "k"], [True, "k"], [1.0, "k"], ["1", "k"], [None, "k"], 7, "put", None,
    [0, "k"], [0, "k", "text"], [0, "k", b"v", 0], [0, "k", b"v", -5], [0, "k", b"v", 1.5],
    [0, "k", b"v", limits.TTL_MAX + 1], [0, "k", b"v", None, True], [0, "k", b"v", 5, 1],
    [0, "k", b"v", 5, False, "1"], [0, "k", b"v", 5, False, 2**63],
    [0, "k", b"v", 5, False, 1, True],
    [0, "k", b"v", 5, False, 1, 1, 7], [0, "k", b"v", 5, False, 1, 1, [7]],
    [0, "k", b"v", 5, False, 1, 1, [["a"]]], [0, "k", b"v", 5, False, 1, 1, [["a", -1]]],
    [0, "k", b"v", 5, False, 1, 1, [["a", 1]] * 257], [0, "k", b"v", 5, False, 1, 1, [], 9],
    [1], [1, "k", 1], [2, "k"], [2, "k", 0], [2, "k", "5"], [2, "k", 5, 5],
    [3, "k"], [3, "k", None], [3, "k", 1.0], [3, "k", True], [3, "k", 1, 0], [3, "k", 1, 5, 5],
])
def test_a_mutation_of_another_shape_is_refused(mutation: Any) -> None:
    with pytest.raises(InvalidRequest):
        protocol.decode_request(transact([], [mutation]))


@pytest.mark.fault(45)
@pytest.mark.parametrize("condition", [
    [], [0], [4, "k"], [True, "k", 1], 7, [0, "k"], [0, "k", -1], [0, "k", 1.0], [0, "k", None],
    [0, "k", 1, 1], [1, "k", 1], [1, "k", 1, "1"], [2], [2, "k", 1], [3, ""], [3, "", -1],
    [3, 7, 1], [3, "k", 1, 1]])
def test_a_condition_of_another_shape_is_refused(condition: Any) -> None:
    with pytest.raises(InvalidRequest):
        protocol.decode_request(transact([condition], []))


@pytest.mark.fault(48)
def test_floats_that_are_no_number_are_refused_wherever_an_integer_stands() -> None:
    nan = float("nan")
    for payload in (transact([[0, "k", nan]], []), transact([[3, "", nan]], []),
                    transact([], [[3, "k", nan]]), transact([], [[2, "k", nan]])):
        with pytest.raises(InvalidRequest):
            protocol.decode_request(payload)


@pytest.mark.fault(49)
@pytest.mark.fault(64)
@pytest.mark.parametrize("key", [
    1, 1.0, True, None, b"k", ["k"], "", "/a", "a/", "a//b", "_a", "a\nb", "a\0b", "a\x1b[2Jb",
    "a\x7f", "a\x85b", "a\u2028b", "k" * 513, "é" * 257])
def test_a_key_is_a_clean_string_wherever_it_stands(key: Any) -> None:
    for payload in (transact([], [[1, key]]), transact([[2, key]], []), transact([[3, key, 1]], []),
                    transact([], [[0, "k", b"v", None, False, None, None, [[key, 1]]]])):
        if key == "" and payload == transact([[3, key, 1]], []):
            continue  # the empty prefix is everything
        with pytest.raises((InvalidKey, TooLarge, InvalidRequest)):
            protocol.decode_request(payload)


@pytest.mark.fault(49)
def test_a_key_stands_in_one_mutation_of_a_transaction_at_most() -> None:
    with pytest.raises(InvalidRequest, match="at most one mutation"):
        protocol.decode_request(transact([], [[1, "k"], [2, "k", 5]]))
    protocol.decode_request(transact([[2, "k"], [2, "k"]], [[1, "k"], [1, "k2"]]))


@pytest.mark.parametrize(("op", "body"), [
    (1, ["n" * 257, b"", 0, 0]), (1, ["n", b"u", 0, 0]), (1, ["n", b"", 2**63, 0]), (1, []),
    (3, ["k", 1]), (3, ["k", 1.0, 1]),
    (5, [["k"], None, 2]), (5, ["k", None, 0]), (5, [["k"], [1, 1], 0]),
    (5, [["k"], [None, None], 0]), (5, [["k"], [-1, None], 0]),
    (5, [["k"], [None, 2**63], 0]), (5, [["k"], 7, 0]), (5, [["k"]]),
    (6, ["p", "", 0, None]), (6, ["p", "", 10_001, None]), (6, ["/", "", 1, None]),
    (6, ["p", "a" * 513, 1, None]), (6, [7, "", 1, None]), (7, ["k", 0, 0]), (7, ["k", 1, -1]),
    (8, [0, -2, "", 1]), (8, [0, 2**31, "", 1]), (8, [0, 0, "a/b", 1]), (8, [0, 0, "", 0]),
    (8, [0, 0, "", 10_001]), (9, [1]), (11, [-1]), (11, ["1"]), (12, ["s" * 65, 1]),
    (12, ["s", -1]), (13, [0]), (0, 7), (0, {"a": 1})])
def test_a_body_of_another_shape_is_refused_and_the_request_can_be_answered(
        op: int, body: Any) -> None:
    payload = protocol.encode_request(op, msgpack.packb(body), number=77)
    with pytest.raises((InvalidRequest, InvalidKey)) as refused:
        protocol.decode_request(payload)
    echo = {"op": op, "session": b"", "number": 77}
    assert echo.items() <= refused.value.details.items()


# --- a revision for each --------------------------------------------------------------------------

ROWS: list[Any] = [[0, f"k{n}", b"v"] for n in range(20)]


def each(puts: Any, *more: Any) -> bytes:
    return in_request(msgpack.packb([[], puts, *more]))


@pytest.mark.fault(45)
@pytest.mark.parametrize("told", [None, 0, 1, 2, -1, 1.0, "", "true", b"", b"\x01", [], [True]])
@pytest.mark.parametrize("rows", [ROWS, ROWS[:1], [[1, "k"]]])
def test_each_is_a_boolean_and_nothing_else(told: Any, rows: Any) -> None:
    with pytest.raises(InvalidRequest, match="boolean"):
        protocol.decode_request(each(rows, told))


@pytest.mark.fault(45)
@pytest.mark.parametrize("wrong", [[1, "k"], [2, "k", 5], [3, "k", 1]])
@pytest.mark.parametrize("count", [0, 1, 7, 20])
def test_with_each_nothing_but_puts_may_stand_and_one_at_least(wrong: Any, count: int) -> None:
    with pytest.raises(InvalidRequest, match="for puts"):
        protocol.decode_request(each([], True))
    for at in {0, count // 2, count}:
        rows = [*ROWS[:at], wrong, *ROWS[at:count]]
        with pytest.raises(InvalidRequest, match="for puts"):
            protocol.decode_request(each(rows, True))
        protocol.decode_request(each(rows, False))


def test_each_false_is_as_if_it_were_left_out_and_the_body_ends_there() -> None:
    for rows in (ROWS, ROWS[:3], [], [[1, "k"]]):
        assert protocol.decode_request(each(rows, False)).command == protocol.decode_request(
            each(rows)).command
    with pytest.raises(InvalidRequest, match="2 to 3"):
        protocol.decode_request(each(ROWS, True, True))
    for other in (commands.OPS.index(Get), 6, 7, 8):
        body = msgpack.packb([["k"], None, 0, True])
        with pytest.raises(InvalidRequest):
            protocol.decode_request(protocol.encode_request(other, body, number=1))


@pytest.mark.parametrize("plain", [True, False])
def test_a_key_may_come_again_only_where_each_has_a_revision_of_its_own(plain: bool) -> None:
    rows = ROWS * 2 if plain else [*ROWS * 2, [0, "t", b"v", 5]]
    command = protocol.decode_request(each(rows, True)).command
    assert isinstance(command, Transact)
    assert isinstance(command.mutations, PlainPuts) is plain
    assert command.each
    assert [m.key for m in command.mutations] == [row[1] for row in rows]
    for more in ((), (False,)):
        with pytest.raises(InvalidRequest, match="at most one mutation"):
            protocol.decode_request(each(rows, *more))


@pytest.mark.parametrize("row", [[0, "k", b"v"], [0, "k", b"v", 5]])
def test_so_many_and_no_more_take_a_revision_each(row: Any) -> None:
    most = limits.COMMIT_MANY
    assert len(protocol.decode_request(each([row] * most, True)).command.mutations) == most  # type: ignore[union-attr]
    for count in (most + 1, limits.TRANSACTION_MUTATIONS, 3 * limits.TRANSACTION_MUTATIONS):
        with pytest.raises(TooLarge) as large:
            protocol.decode_request(each([row] * count, True))
        assert large.value.details["limit"] in (most, limits.TRANSACTION_MUTATIONS)


@pytest.mark.fault(45)
@pytest.mark.parametrize("wrong", [
    7, None, True, "abc", b"abc", 1.5, [], [0], [0, "k"], ["0", "k", b"v"], [False, "k", b"v"],
    [True, "k", b"v"], [0.0, "k", b"v"], [4, "k", b"v"], [0, "k", "v"], [0, "k", None],
    [0, "k", 5], [0, "k", [b"v"]], [0, "k", b"v", 0], [[0], "k", b"v"]])
@pytest.mark.parametrize("at", [0, 10, 20])
@pytest.mark.parametrize("asked", [[], [False], [True]])
def test_a_wrong_row_of_many_is_refused_as_it_is_alone(wrong: Any, at: int, asked: Any) -> None:
    for rows in ([*ROWS[:at], wrong, *ROWS[at:]], [wrong] * 20):
        with pytest.raises(InvalidRequest) as alone:
            protocol.decode_request(each([wrong], *asked))
        with pytest.raises(InvalidRequest) as among:
            protocol.decode_request(each(rows, *asked))
        assert among.value.message == alone.value.message


@pytest.mark.fault(49)
@pytest.mark.parametrize("key", [
    1, 1.0, True, None, b"k", ["k"], "", "/a", "a/", "a//b", "_a", "a\nb", "a\x85b", "k" * 513,
    "é" * 257])
@pytest.mark.parametrize("at", [0, 10, 20])
def test_a_wrong_key_of_many_is_refused_as_it_is_alone(key: Any, at: int) -> None:
    wrong = [0, key, b"v"]
    protocol.decode_request(each(ROWS, True))  # the others are known to be good
    with pytest.raises((InvalidKey, TooLarge)) as alone:
        protocol.decode_request(each([wrong], True))
    for rows in ([*ROWS[:at], wrong, *ROWS[at:]], [[0, key, b"v"]] * 20):
        with pytest.raises(type(alone.value)) as among:
            protocol.decode_request(each(rows, True))
        assert among.value.message == alone.value.message


@pytest.mark.fault(50)
@pytest.mark.parametrize("fields", [
    [], [1], 7, ["1", 0, b"", 1, 0, b"", 0, b"\x90"], [True, 0, b"", 1, 0, b"", 0, b"\x90"],
    [1, 0, b"", 1, 0, b"", 0], [1, 0, b"", 1, 0, b"", 0, b"\x90", 0],
    [1, -1, b"", 1, 0, b"", 0, b"\x90"], [1, 256, b"", 1, 0, b"", 0, b"\x90"],
    [1, 0, b"x", 1, 0, b"", 0, b"\x90"], [1, 0, "", 1, 0, b"", 0, b"\x90"],
    [1, 0, b"", -1, 0, b"", 0, b"\x90"], [1, 0, b"", 1, -1, b"", 0, b"\x90"],
    [1, 0, b"", 1, 0, b"u", 0, b"\x90"], [1, 0, b"", 1, 0, b"", -1, b"\x90"],
    [1, 0, b"", 1, 0, b"", 2**63, b"\x90"], [1, 0, b"", 1, 0, b"", 0, "\x10"],
    [1, 0, b"", 1, 0, b"", 0, []], [1, 0, SID, 1, 0, b"", 0, b"\x90"],
    [1, 4, b"", 1, 0, b"", 0, b"\x92\x90\x90"]])
def test_a_header_of_another_shape_is_refused(fields: Any) -> None:
    with pytest.raises(InvalidRequest):
        protocol.decode_request(msgpack.packb(fields))


@pytest.mark.fault(50)
def test_other_versions_and_operations_are_unsupported_by_name() -> None:
    for payload in (msgpack.packb([2, 0]), msgpack.packb([0]),
                    msgpack.packb([1, 200, b"", 1, 0, b"", 0, b"\x90"])):
        with pytest.raises(Unsupported):
            protocol.decode_request(payload)
    with pytest.raises(Unsupported):
        bundles.peek(msgpack.packb([2]))
    with pytest.raises(Unsupported):
        protocol.decode_reply(msgpack.packb([2, 0, b"", 1, 1, 0, b"\xc0"]))
    with pytest.raises(Unsupported):
        publications.decode_publications(b"_heartbeat\0" + msgpack.packb([2]))


@pytest.mark.parametrize("reply", [
    b"", b"\xc1", msgpack.packb(7), msgpack.packb([1, 2]),
    msgpack.packb([1, "0", b"", 1, 1, 0, b"\xc0"]), msgpack.packb([1, 0, {}, 1, 1, 0, b"\xc0"]),
    msgpack.packb([1, 0, b"", "1", 1, 0, b"\xc0"]), msgpack.packb([1, 0, b"", 1, None, 0, b"\xc0"]),
    msgpack.packb([1, 0, b"", 1, 1, "0", b"\xc0"]), msgpack.packb([1, 0, b"", 1, 1, 0, b"\xc0"]),
    msgpack.packb([1, 0, b"", 1, 1, 10, b"\xc0"]),
    msgpack.packb([1, 0, b"", 1, 1, 15, msgpack.packb([7, "", {}])]),
    msgpack.packb([1, 0, b"", 1, 1, 15, msgpack.packb(["m", 7, {}])]),
    msgpack.packb([1, 0, b"", 1, 1, 0, b""])])
def test_bytes_that_are_no_reply_are_refused(reply: bytes) -> None:
    with pytest.raises(InvalidRequest):
        protocol.decode_reply(reply)


def test_a_reply_to_an_operation_of_the_future_is_given_as_it_is() -> None:
    for op in (99, -1):
        payload = msgpack.packb([1, op, b"", 1, 1, 0, msgpack.packb([1, 2])])
        assert protocol.decode_reply(payload) == (op, Reply(b"", 1, 1, (1, 2)))


@pytest.mark.parametrize("frame", [
    b"", b"_heartbeat\0", b"_heartbeat\0\x91\x01", b"_broker\0\x92\x01\x02", b"orders/\0\x91\x01",
    b"orders/\0\xc1", b"orders/"])
def test_bytes_that_are_no_publication_are_refused(frame: bytes) -> None:
    with pytest.raises(InvalidRequest):
        publications.decode_publications(frame)


# --- limits -----------------------------------------------------------------------------------


def test_a_transaction_at_its_limits_is_accepted_and_beyond_them_refused() -> None:
    count = limits.TRANSACTION_MUTATIONS
    puts = tuple(Put(f"orders/{i}", b"v" * 20, 5, False, i, i, (("raw", i),)) for i in range(count))
    holds = tuple(RevisionIs(f"orders/{i}", i) for i in range(limits.TRANSACTION_CONDITIONS))
    full = Transact(holds, puts)
    op, body = commands.pack_command(full)
    payload = protocol.encode_request(op, body, session=SID, number=1)
    assert protocol.decode_request(payload).command == full
    with pytest.raises(TooLarge) as large:
        protocol.decode_request(transact([], [[1, f"k{i}"] for i in range(count + 1)]))
    assert (large.value.details["size"], large.value.details["limit"]) == (count + 1, count)
    with pytest.raises(TooLarge):
        protocol.decode_request(transact([], [[1, f"k{i}"] for i in range(2 * count + 1)]))
    with pytest.raises(InvalidRequest):
        protocol.decode_request(transact([[2, "k"]] * (count + 1), []))


def test_every_put_may_have_its_sources_as_long_as_the_whole_stays_bounded() -> None:
    sources = tuple((f"raw/{i}", i) for i in range(limits.SOURCES))
    many = Transact((), tuple(Put(f"k{i}", b"v", None, False, None, None, sources)
                              for i in range(300)))
    op, body = commands.pack_command(many)
    assert protocol.decode_request(
        protocol.encode_request(op, body, session=SID, number=1)).command == many
    rows = [[0, f"k{i}", b"v", None, False, None, None, [["raw", 1]] * 256] for i in range(600)]
    with pytest.raises(TooLarge, match="elements"):
        protocol.decode_request(transact([], rows))


def test_values_and_requests_over_their_limit_are_refused_with_size_and_limit() -> None:
    big = bytes(limits.VALUE_BYTES)
    protocol.decode_request(transact([], [[0, "k", big]]))
    with pytest.raises(TooLarge):
        protocol.decode_request(transact([], [[0, "k", big + b"x"]]))
    with pytest.raises(TooLarge):
        commands.pack_command(Transact((), (Put("a", big), Put("b", big))))
    for read in (protocol.decode_request, bundles.peek):
        with pytest.raises(TooLarge) as large:
            read(bytes(limits.REQUEST_BYTES + 1))
        assert large.value.details["limit"] == limits.REQUEST_BYTES


def test_a_get_of_many_keys_is_a_long_list() -> None:
    many = tuple(f"orders/{i}" for i in range(limits.GET_KEYS))
    payload = protocol.encode_request(*commands.pack_command(Get(many)), number=1)
    assert protocol.decode_request(payload).command == Get(many)
    payload = protocol.encode_request(*commands.pack_command(Get((*many, "x"))), number=1)
    with pytest.raises(InvalidRequest):
        protocol.decode_request(payload)


# --- hostile bytes ----------------------------------------------------------------------------


def refused_within(payload: bytes, most: int) -> str:
    """The class of the refusal; fails when memory beside the payload went over `most` bytes."""
    tracemalloc.start()
    try:
        protocol.decode_request(payload)
    except Error as error:
        peak = tracemalloc.get_traced_memory()[1]
        assert peak <= most, f"{peak:,} bytes for a payload of {len(payload):,}"
        return type(error).__name__
    finally:
        tracemalloc.stop()
    raise AssertionError("accepted")


def header(count: int) -> bytes:
    """The head of a msgpack array of so many elements."""
    return b"\xdd" + min(count, 2**32 - 1).to_bytes(4, "big")


def in_request(body: bytes, op: int = TRANSACT) -> bytes:
    return protocol.encode_request(op, body, session=SID if op in commands.IN_SESSION else b"",
                                   number=1)


@pytest.mark.fault(47)
@pytest.mark.parametrize("body", [
    header(4 << 20) + b"\x80" * (4 << 20),
    b"\x92\x90" + header(4 << 20) + b"\x80" * (4 << 20),
    b"\x92\x90" + header(4_096) + b"\x80" * (4 << 20),
    b"\x92\x90" + header(4_096) + b"\x9f" * 4_096 + b"\x90" * (4 << 20),
    b"\x92\x90" + header(8_192) + (b"\xdc\x02\x00" + b"\x90" * 512) * 8_192,
    b"\x92\x90" + header(8_192) + (b"\xdc\x02\x00" + b"\xa1a" * 512) * 8_192,
    b"\x92\x90" + header(8_192) + (b"\xdc\x02\x00" + b"\xcb" + bytes(8)) * 8_192,
], ids=["maps", "maps as mutations", "maps in mutations", "arrays in arrays", "empty arrays",
        "strings", "floats"])
def test_megabytes_of_small_things_are_refused_within_a_few_times_their_size(body: bytes) -> None:
    payload = in_request(body)
    refused_within(payload, 3 * len(payload) + 32 * limits.MIB)
    refused_within(body, 3 * len(body) + 32 * limits.MIB)


@pytest.mark.fault(46)
@pytest.mark.parametrize("depth", [17, 900, 1_000, 1_020, 3_000_000])
def test_a_nest_deeper_than_any_request_is_refused_wherever_it_stands(depth: int) -> None:
    nest = b"\x91" * depth + b"\xc0"
    for body in (nest, b"\x92" + nest + b"\x90", b"\x92\x90\x91\x92" + nest + b"\x01",
                 b"\x92\x90\x91\x92\x01" + nest, b"\x92\x91\x93" + nest + b"\x01\x01",
                 b"\x92\x90\x91\x98\x00\xa1k\xc4\x01v\xc0\xc2\xc0\xc0" + nest):
        refused_within(in_request(body), 3 * len(body) + limits.MIB)
    for op in range(len(commands.OPS)):
        refused_within(in_request(nest, op), 3 * depth + limits.MIB)
    refused_within(nest, 3 * depth + limits.MIB)
    refused_within(b"\x98\x01\x04" + nest, 3 * depth + limits.MIB)


@pytest.mark.fault(46)
@pytest.mark.parametrize("width", [15, 511, 512, 4_095, 8_191, 65_535])
def test_a_few_bytes_that_announce_wide_arrays_at_every_depth_take_little(width: int) -> None:
    wide = (b"\xdc" + width.to_bytes(2, "big")) * 1_500
    for body in (wide, b"\x92\x90" + wide, b"\x92\x90\x91" + wide, b"\x93\x91" + wide):
        for payload in (in_request(body), in_request(body, commands.OPS.index(Get)), body,
                        b"\x98" + wide):
            refused_within(payload, 6 * limits.MIB)


@pytest.mark.fault(46)
@pytest.mark.fault(47)
@pytest.mark.parametrize("size", [1_025, 4_097, 50_000, 200_000, 200_100])
@pytest.mark.parametrize("announced", [1, 1_000, 2**16, 2**31, 2**32 - 1])
def test_a_list_that_announces_more_than_is_there_takes_a_few_times_its_size(
        size: int, announced: int) -> None:
    row = msgpack.packb([0, "k", b"v"])
    rows = row * ((size - 200) // len(row))
    there = len(rows) // len(row)
    filling = bytes(size - 200)
    for body in (b"\x92\x90" + header(there + announced) + rows,
                 b"\x93\x90" + header(there + announced) + rows + b"\xc3",
                 b"\x93\x90" + header(there + 1) + rows + header(announced) + b"\x00" * 50,
                 b"\x93\x90" + header(len(filling) + announced) + filling,
                 b"\x92" + header(len(filling) + announced) + filling,
                 b"\x92\x90" + header(announced) * (len(filling) // 5)):
        for payload in (in_request(body), in_request(body, commands.OPS.index(Get)), body):
            refused_within(payload, 3 * len(payload) + 6 * limits.MIB)


@pytest.mark.fault(47)
@pytest.mark.parametrize("size", [1_000, 20_000, 199_000, 300_000])
@pytest.mark.parametrize("small", [b"\x90", b"\x91\x00", b"\x93\x00\xa1k\x01", b"\xc0", b"\xa1a"])
def test_long_lists_of_small_things_take_a_few_dozen_times_their_size(
        size: int, small: bytes) -> None:
    count = size // len(small)
    for end in (b"", b"\xc3"):
        body = bytes([0x92 + len(end)]) + b"\x90" + header(count) + small * count + end
        refused_within(in_request(body), 90 * len(body) + limits.MIB)


@pytest.mark.fault(46)
@pytest.mark.parametrize("count", [2_000, 4_090, 60_000, 2**32 - 1])
def test_a_reply_that_announces_wide_arrays_at_every_depth_takes_little_too(count: int) -> None:
    wide = header(count) * 1_020 + bytes(min(count, 100_000))
    for data, read in ((wide, protocol.decode_reply),
                       (b"a/\0" + wide, publications.decode_publications),
                       (msgpack.packb([1, 5, b"", 1, 1, 0, wide]), protocol.decode_reply)):
        tracemalloc.start()
        try:
            with pytest.raises(InvalidRequest):
                read(data)
            assert tracemalloc.get_traced_memory()[1] <= 33 * limits.MIB
        finally:
            tracemalloc.stop()


@pytest.mark.fault(48)
@pytest.mark.parametrize("piece", [
    b"\x80", b"\x81\xa1k\x01", b"\xdf\xff\xff\xff\xff", b"\xc7\x00\x01", b"\xd4\x05\x00",
    b"\xd6\xff\x00\x00\x00\x00", b"\xc1", b"\xa2\xff\xfe", b"\xdb\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff", b"\xdd\xff\xff\xff\xff", b""])
def test_maps_extensions_bad_text_and_lies_about_length_are_refused(piece: bytes) -> None:
    for body in (piece, b"\x92\x90\x91\x92\x01" + piece, b"\x92" + piece + b"\x90",
                 b"\x92\x91\x92" + piece + b"\xa1k\x90"):
        refused_within(in_request(body), limits.MIB)
        refused_within(body, limits.MIB)


def test_bytes_behind_the_end_are_refused() -> None:
    payload = transact([], [[1, "k"]])
    protocol.decode_request(payload)
    for wrong in (payload + b"\x00", in_request(b"\x92\x90\x90\x90")):
        with pytest.raises(InvalidRequest):
            protocol.decode_request(wrong)


GOLDEN_BYTES = list(golden_file().values())


@pytest.mark.fault(45)
def test_every_truncation_of_every_message_gives_a_message_or_an_error_of_the_catalogue() -> None:
    for whole in GOLDEN_BYTES:
        for end in range(len(whole)):
            for read in READERS:
                with contextlib.suppress(Error):
                    read(whole[:end])


@pytest.mark.fault(45)
@settings(max_examples=400, deadline=None)
@given(st.sampled_from(GOLDEN_BYTES), st.lists(st.tuples(
    st.integers(0, 400), st.sampled_from(["set", "insert", "cut"]),
    st.sampled_from([0, 1, 0x7F, 0x80, 0x81, 0x90, 0x91, 0x92, 0xA0, 0xC0, 0xC1, 0xC4, 0xC7, 0xCB,
                     0xCF, 0xD3, 0xD9, 0xDC, 0xDD, 0xDE, 0xDF, 0xFF]) | st.integers(0, 255)),
    min_size=1, max_size=6))
def test_every_mutation_of_every_message_gives_a_message_or_an_error_of_the_catalogue(
        whole: bytes, edits: list[tuple[int, str, int]]) -> None:
    mutant = bytearray(whole)
    for far, what, byte in edits:
        place = far % (len(mutant) + 1)
        if what == "insert":
            mutant.insert(place, byte)
        elif what == "cut":
            del mutant[place: place + byte % 5]
        else:
            mutant[place: place + 1] = bytes([byte])
    for read in READERS:
        with contextlib.suppress(Error):
            read(bytes(mutant))


@pytest.mark.fault(45)
@settings(max_examples=200, deadline=None)
@given(st.recursive(st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats()
                    | st.text(max_size=4) | st.binary(max_size=4),
                    lambda inner: st.lists(inner, max_size=6)
                    | st.dictionaries(st.text(max_size=2), inner, max_size=2), max_leaves=30),
       st.integers(0, 13))
def test_any_body_gives_a_request_or_an_error_that_can_be_answered(body: object, op: int) -> None:
    try:
        protocol.decode_request(in_request(msgpack.packb(body), op))
        return
    except Error as refused:
        error = refused
    assert error.details["number"] == 1
    reply = protocol.encode_reply(op, Reply(SID, 1, 1, None, error))
    assert type(protocol.decode_reply(reply)[1].error) is type(error)
