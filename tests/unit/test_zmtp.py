"""The client's ZMTP: its bytes, any cut of them, and whatever another end may send instead."""

from __future__ import annotations

import itertools
import time
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptmesh import zmtp
from ckptmesh.limits import MIB, SOCKET_BYTES
from ckptmesh.zmtp import GREETING, READY, PeerError, Wire, command, head

# What libzmq 4.3.5 sends for a ROUTER.
ROUTER = (b"\x04\x29\x05READY\x0bSocket-Type\x00\x00\x00\x06ROUTER\x08Identity\x00\x00\x00\x00")
OPENING = GREETING + ROUTER


def message(payload: bytes) -> bytes:
    return head(len(payload)) + payload


def met() -> Wire:
    """A wire whose handshake is done."""
    wire = Wire()
    assert wire.feed(OPENING) == []
    assert wire.ready
    wire.answers.clear()
    return wire


def fed(wire: Wire, pieces: list[bytes]) -> list[bytes]:
    return [message for piece in pieces for message in wire.feed(piece)]


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[a:b] for a, b in itertools.pairwise(places)]


# --- bytes ------------------------------------------------------------------------------------


def test_the_greeting_is_that_of_rfc_37_with_the_null_mechanism() -> None:
    assert GREETING.hex() == (
        "ff00000000000000007f" "0301" "4e554c4c00000000000000000000000000000000" "00" + "00" * 31)
    assert len(GREETING) == 64


def test_ready_names_a_dealer_without_an_identity() -> None:
    assert READY == (
        b"\x04\x29\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER\x08Identity\x00\x00\x00\x00")


@pytest.mark.parametrize(
    ("size", "expected"),
    [(0, b"\0\0"), (1, b"\0\1"), (255, b"\0\xff"), (256, b"\2\0\0\0\0\0\0\1\0"),
     (16 * MIB, b"\2\0\0\0\0\1\0\0\0")],
)
def test_the_head_of_a_message_is_short_up_to_255_bytes(size: int, expected: bytes) -> None:
    assert head(size) == expected


def test_ready_is_the_answer_to_a_greeting_and_the_handshake_ends_with_the_others() -> None:
    wire = Wire()
    assert wire.feed(GREETING) == []
    assert wire.answers == [READY]
    assert not wire.ready
    assert wire.feed(ROUTER) == []
    assert wire.ready


def test_messages_may_come_with_the_handshake() -> None:
    assert Wire().feed(OPENING + message(b"a") + message(bytes(300))) == [b"a", bytes(300)]


# --- any cut ----------------------------------------------------------------------------------

WHOLE = OPENING + b"".join(
    (message(b""), message(b"x"), command(b"PING", b"\0\1hello"),
     message(bytes(300)), b"\1\1a" + b"\0\1b", message(b"last")))
EXPECTED = [b"", b"x", bytes(300), b"last"]


@pytest.mark.parametrize("cut", range(len(WHOLE) + 1))
def test_a_cut_anywhere_changes_nothing(cut: int) -> None:
    wire = Wire()
    assert fed(wire, [WHOLE[:cut], WHOLE[cut:]]) == EXPECTED
    assert wire.answers == [READY, command(b"PONG", b"hello")]


def test_single_bytes_change_nothing() -> None:
    wire = Wire()
    assert fed(wire, [WHOLE[n : n + 1] for n in range(len(WHOLE))]) == EXPECTED
    assert wire.missing == 0


@given(st.lists(st.binary(max_size=600), max_size=30), st.lists(st.integers(0, 40_000)))
def test_any_messages_in_any_pieces_come_out_as_they_were(
    messages: list[bytes], cuts: list[int]
) -> None:
    wire = met()
    assert fed(wire, split(b"".join(map(message, messages)), cuts)) == messages


@given(st.lists(st.tuples(st.lists(st.binary(max_size=300), min_size=1, max_size=4)), max_size=8),
       st.lists(st.integers(0, 10_000)))
def test_messages_of_several_frames_are_dropped_whole_and_no_other(
    messages: list[tuple[list[bytes]]], cuts: list[int]
) -> None:
    data = b""
    for (parts,) in messages:
        for part in parts[:-1]:
            mark = message(part)
            data += bytes((mark[0] | zmtp.MORE,)) + mark[1:]
        data += message(parts[-1])
    single = [parts[0] for (parts,) in messages if len(parts) == 1]
    assert fed(met(), split(data, cuts)) == single


@given(st.binary(max_size=400), st.lists(st.integers(0, 400)))
def test_hostile_bytes_end_in_the_same_way_whatever_their_cut(
    data: bytes, cuts: list[int]
) -> None:
    def run(wire: Wire, pieces: list[bytes]) -> tuple[list[bytes], bool]:
        found: list[bytes] = []
        try:
            for piece in pieces:
                found += wire.feed(piece)
        except PeerError:
            return [], True
        return found, False

    assert run(met(), split(data, cuts)) == run(met(), [data])
    assert run(Wire(), split(data, cuts)) == run(Wire(), [data])


# --- commands ---------------------------------------------------------------------------------


@pytest.mark.parametrize("context", [b"", b"x", b"sixteen bytes ok"])
def test_a_ping_is_answered_with_its_context(context: bytes) -> None:
    wire = met()
    assert wire.feed(command(b"PING", b"\0\x0a" + context) + message(b"m")) == [b"m"]
    assert wire.answers == [command(b"PONG", context)]


def test_a_ping_inside_a_message_of_several_frames_is_answered() -> None:
    wire = met()
    assert wire.feed(b"\1\1a" + command(b"PING", b"\0\0") + message(b"b") + message(b"c")) == [b"c"]
    assert wire.answers == [command(b"PONG", b"")]


def test_a_flood_of_pings_takes_bounded_memory() -> None:
    wire = met()
    wire.feed(command(b"PING", b"\0\0") * 10_000)
    assert 0 < len(wire.answers) <= 16


def test_commands_that_are_not_for_us_are_passed_over() -> None:
    wire = met()
    assert wire.feed(command(b"SUBSCRIBE", b"x") + command(b"NEW", b"") + message(b"m")) == [b"m"]
    assert wire.answers == []


def test_a_ready_with_other_properties_and_in_long_frames_is_understood() -> None:
    body = (b"\5READY" b"\4Xtra\0\0\1\0" + bytes(256) + b"\x0bsOCKET-tYPE\0\0\0\6ROUTER")
    wire = Wire()
    wire.feed(GREETING + b"\6" + len(body).to_bytes(8, "big") + body)
    assert wire.ready


# --- what is no peer --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n", "does not speak ZMTP 3: it began with b'HTTP/1.1 400"),
        (b"S", "does not speak ZMTP"),
        (b"\x01\x00", "does not speak ZMTP"),  # ZMTP 1.0: an anonymous identity
        (b"\xff" + bytes(8) + b"\x00", "does not speak ZMTP"),
        (b"\xff" + bytes(8) + b"\x7f\x01\x05", "older ZMTP"),  # ZMTP 2.0
        (GREETING[:12] + b"CURVE".ljust(20, b"\0"), "mechanism b'CURVE', not for NULL"),
        (GREETING[:12] + b"NULLX", "mechanism"),
        (GREETING + command(b"ERROR", b"\x0aNo, thanks"), "refused the connection: b'No, thanks'"),
        (GREETING + message(b"early"), "a message before its READY"),
        (GREETING + command(b"PING", b"\0\0"), "b'PING' before its READY"),
        (GREETING + ROUTER.replace(b"ROUTER", b"DEALER"), "a b'DEALER', not a ROUTER"),
        (GREETING + command(b"READY", b""), "a b'', not a ROUTER"),
        (GREETING + command(b"READY", b"\x0bSocket-Type\0\0\0\x09ROUTER"), "malformed"),
        (GREETING + command(b"READY", b"\x0bSocket-Type\0\0"), "malformed"),
        (GREETING + command(b"READY", b"\0\0\0\0\0"), "malformed"),
        (GREETING + b"\4\0", "malformed command"),
        (GREETING + b"\4\2\5R", "malformed command"),
        (OPENING + b"\x08\0", "flags 0x08"),
        (OPENING + b"\x05\0", "flags 0x05"),
        (OPENING + b"\xff", "flags 0xff"),
        (OPENING + b"\2" + (SOCKET_BYTES + 1).to_bytes(8, "big"), "the limit is 17,825,792"),
        (OPENING + b"\2" + b"\xff" * 8, "the limit is"),
        (OPENING + b"\1\1a" + b"\3" + b"\xff" * 8, "the limit is"),
        (OPENING + b"\6" + (65_537).to_bytes(8, "big"), "the limit is 65,536"),
        (OPENING + command(b"PING", b"\0"), "PING of 1 bytes"),
        (OPENING + command(b"PING", bytes(19)), "PING of 19 bytes"),
        (OPENING + command(b"ERROR", b""), "refused"),
    ],
)
def test_what_is_no_broker_is_told_with_the_reason(data: bytes, told: str) -> None:
    with pytest.raises(PeerError) as caught:
        Wire().feed(data)
    assert told in str(caught.value)
    assert len(str(caught.value)) < 1_500
    wire = Wire()
    with pytest.raises(PeerError):
        fed(wire, [data[n : n + 1] for n in range(len(data))])


def test_a_later_minor_or_major_version_is_accepted() -> None:
    for version in (b"\3\0", b"\3\2", b"\4\0"):
        wire = Wire()
        wire.feed(GREETING[:10] + version + GREETING[12:] + ROUTER)
        assert wire.ready


# --- bounds -----------------------------------------------------------------------------------


def test_the_longest_frame_passes_and_is_held_once() -> None:
    wire = met()
    payload = bytes(SOCKET_BYTES)
    data = message(payload)
    tracemalloc.start()
    try:
        for at in range(0, len(data) - 65_536, 65_536):
            assert wire.feed(data[at : at + 65_536]) == []
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 1.2 * SOCKET_BYTES  # a bytearray grows by an eighth at a time
    assert 0 < wire.missing <= 65_536
    assert wire.feed(data[len(data) - wire.missing :]) == [payload]


def test_a_frame_that_comes_by_single_bytes_is_not_held_as_many_objects() -> None:
    wire = met()
    wire.feed(head(SOCKET_BYTES))
    tracemalloc.start()
    try:
        for _ in range(100_000):
            wire.feed(b"\1")
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 200_000


def test_work_is_linear_in_what_arrives() -> None:
    """Ten times as many frames in one piece, ten times the work: a copy of the rest at each frame
    would make it a hundred."""
    def took(count: int) -> float:
        data = message(b"x" * 20) * count
        best = float("inf")
        for _ in range(3):
            wire = met()
            began = time.process_time()
            assert len(wire.feed(data)) == count
            best = min(best, time.process_time() - began)
        return best

    assert took(200_000) < 40 * took(20_000)
