"""Records as payloads: what is encoded comes back, and no other shape does."""

from __future__ import annotations

import contextlib
import tracemalloc

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptmesh.facts import (
    RECORD_TYPES,
    EpochBegun,
    Expiry,
    LossAccepted,
    LossSuspected,
    Record,
    Sealed,
    SessionEnded,
    SessionOpened,
    SettingChanged,
    TimeReserved,
    Transaction,
    Write,
)
from ckptmesh.messages import DELETE, PUT, TOUCH
from ckptmesh.records import decode_records, encode_records

_times = st.integers(0, 2**53)
_counts = st.integers(0, 2**63)
_keys = st.text(min_size=1, max_size=20)
_maybe = st.none() | st.integers(-(2**63), 2**63 - 1)
_writes = st.builds(
    Write, st.integers(PUT, TOUCH), _keys, st.binary(max_size=40), _maybe, _maybe, _maybe, _maybe,
    st.lists(st.tuples(_keys, _counts), max_size=3).map(tuple),
)
_transactions = st.builds(
    Transaction, st.binary(max_size=16), _counts, _counts, st.integers(0, 2**64 - 1), _times,
    st.lists(_writes, max_size=4).map(tuple),
    st.lists(st.integers(-(2**63), 2**64 - 1), max_size=4).map(tuple),
)
_records: st.SearchStrategy[Record] = st.one_of(
    _transactions, st.builds(Expiry, _times, _keys),
    st.builds(SessionOpened, st.binary(max_size=16), _times, _keys),
    st.builds(SessionEnded, st.binary(max_size=16), _times), st.builds(EpochBegun, _counts, _times),
    st.builds(Sealed, _times), st.builds(TimeReserved, _times),
    st.builds(SettingChanged, _keys, _counts), st.builds(LossSuspected, _counts, _counts),
    st.just(LossAccepted()),
)

TRANSACTION = Transaction(b"s" * 16, 1, 1, 7, 1_000, (Write(PUT, "orders", b"v"),), (1,))


@given(st.lists(_records, max_size=6))
def test_what_is_encoded_comes_back_with_its_types(records: list[Record]) -> None:
    decoded = decode_records(encode_records(records))
    assert decoded == records
    assert [type(record) for record in decoded] == [type(record) for record in records]
    for record in decoded:
        if isinstance(record, Transaction):
            assert all(type(write) is Write for write in record.writes)


def test_every_record_type_has_a_decoder() -> None:
    from ckptmesh import records

    assert sorted(records._DECODERS) == list(range(len(RECORD_TYPES)))


@pytest.mark.parametrize(("write", "fields"), [
    (Write(DELETE, "a"), [DELETE, "a"]),
    (Write(PUT, "a", b"v"), [PUT, "a", b"v"]),
    (Write(PUT, "a", b"", 5), [PUT, "a", b"", 5]),
    (Write(PUT, "a", b"v", None, None, 3), [PUT, "a", b"v", None, None, 3]),
    (Write(PUT, "a", b"v", sources=(("b", 1),)),
     [PUT, "a", b"v", None, None, None, None, [["b", 1]]]),
])
def test_trailing_defaults_of_a_write_are_not_stored(write: Write, fields: list[object]) -> None:
    payload = encode_records([TRANSACTION._replace(writes=(write,))])
    assert msgpack.unpackb(payload)[0][6] == [fields]


def _row(**changes: object) -> list[object]:
    """A transaction as an array, with some fields changed."""
    fields = TRANSACTION._asdict() | {"writes": [[PUT, "orders", b"v"]], "results": [1]} | changes
    return [0, *fields.values()]


@pytest.mark.parametrize("rows", [
    1, {}, "x", [1], [[]], [["0"]], [[len(RECORD_TYPES)]], [[-1]], [[0]], [[0.0, 1]], [None],
    [_row(session="text")], [_row(number=1.0)], [_row(low=None)], [_row(digest=b"")],
    [_row(time=True)], [_row(writes=5)], [_row(results=5)], [_row(results=[True])],
    [_row(results=["1"])], [_row(writes=[1])], [_row(writes=["ab"])], [_row(writes=[[PUT]])],
    [_row(writes=[[TOUCH + 1, "a"]])], [_row(writes=[[-1, "a"]])], [_row(writes=[[False, "a"]])],
    [_row(writes=[[PUT, b"a"]])], [_row(writes=[[PUT, "a", "v"]])],
    [_row(writes=[[PUT, "a", b"", "5"]])], [_row(writes=[[PUT, "a", b"", None, None, True]])],
    [_row(writes=[[PUT, "a", b"", None, None, None, None, 1]])],
    [_row(writes=[[PUT, "a", b"", None, None, None, None, [["b"]]]])],
    [_row(writes=[[PUT, "a", b"", None, None, None, None, [[1, "b"]]]])],
    [_row(writes=[[PUT, "a", b"", None, None, None, None, [], 0]])],
    [[*_row(), 0]], [_row()[:-1]], [[1, 5]], [[1, 5, 5]], [[1, "5", "k"]], [[2, b"", 1]],
    [[5]], [[5, 1, 1]], [[9, 1]], [[7, b"name", 1]], [{0: 1}],
])
def test_any_other_shape_is_a_value_error(rows: object) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        decode_records(msgpack.packb(rows))


def test_the_error_names_the_record() -> None:
    with pytest.raises(ValueError, match="record 1 of the frame"):
        decode_records(msgpack.packb([[5, 1], [5, "1"]]))


@given(st.binary(max_size=60))
def test_random_bytes_raise_nothing_but_value_errors(payload: bytes) -> None:
    with contextlib.suppress(ValueError):
        decode_records(payload)


@given(st.lists(_records, min_size=1, max_size=3), st.data())
def test_changed_payloads_raise_nothing_but_value_errors(
    records: list[Record], data: st.DataObject
) -> None:
    payload = bytearray(encode_records(records))
    payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ValueError):
        decode_records(bytes(payload))


@pytest.mark.parametrize("payload", [
    b"", b"\x91", encode_records([TRANSACTION])[:-1], encode_records([TRANSACTION]) + b"\xc0",
    b"\x91\xc1", b"\xdd\xff\xff\xff\xff", b"\x91" * 5_000, b"\xc7\x01\x05a", b"\xd6\xff\0\0\0\0",
    b"\x91\x93\x01\x05\xa1\xff",  # a key that is not UTF-8
])
def test_broken_msgpack_is_a_value_error(payload: bytes) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        decode_records(payload)


MANY = 4 << 20


def _announcing(count: int) -> bytes:
    return b"\xdd" + count.to_bytes(4, "big")


@pytest.mark.fault(47)
@pytest.mark.parametrize("payload", [
    _announcing(MANY) + b"\x80" * MANY, b"\x91\xc7\x00\x05", b"\x91\xd4\x05\x00",
    _announcing(9_999) * 1_020 + b"\xc0" * MANY, _announcing(4_000) * 1_020, b"\x91" * MANY,
    _announcing(MANY) * 1_000, b"\xc6" + MANY.to_bytes(4, "big") + b"x",
], ids=["empty maps", "an extension", "a short one", "wide arrays at every depth", "the same alone",
        "depth", "lies about length", "a lie about bytes"])
def test_what_no_log_holds_is_refused_in_little_memory(payload: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="not msgpack"):
            decode_records(payload)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 64 << 20, f"{peak:,} bytes for a payload of {len(payload):,}"
