"""User values go into bytes and come back equal, or are refused with the place of the trouble."""

from __future__ import annotations

import contextlib
import enum
import math
from collections import OrderedDict
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptmesh.errors import InvalidPayload, InvalidValue, Misuse, TooLarge
from ckptmesh.limits import VALUE_BYTES, VALUE_DEPTH, VALUE_ITEMS
from ckptmesh.values import pack, register, unpack


@register
class Colour(enum.Enum):
    RED = 1
    ROUGE = 1  # noqa: PIE796 - an alias, on purpose
    BLUE = "b"


@register
class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Unknown(enum.Enum):
    ONE = 1


class Bits(enum.Flag):
    A = 1
    B = 2


@register
@dataclass(frozen=True)
class Point:
    x: int
    y: int = 0
    tags: tuple[str, ...] = ()
    total: int = field(init=False, default=7)


@dataclass
class Loose:
    name: str
    inner: Any = None


class Pair(NamedTuple):
    a: int
    b: int


# --- round trips ------------------------------------------------------------------------------

offsets = st.integers(-86_399, 86_399).map(lambda seconds: timezone(timedelta(seconds=seconds)))
hashable_scalars = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False) | st.text() | st.binary()
    | st.datetimes(timezones=offsets) | st.datetimes(timezones=st.just(UTC))
    | st.dates() | st.times() | st.times(timezones=offsets)
    | st.decimals(allow_nan=False) | st.uuids()
    | st.sampled_from([*Colour, *Level])
)
hashable = st.recursive(
    hashable_scalars,
    lambda inner: st.lists(inner, max_size=4).map(tuple) | st.frozensets(inner, max_size=4),
    max_leaves=8,
)
values = st.recursive(
    hashable | st.sets(hashable, max_size=4),
    lambda inner: st.lists(inner, max_size=5)
    | st.dictionaries(st.text(), inner, max_size=5)
    | st.lists(inner, max_size=3).map(tuple)
    | st.builds(Point, st.integers(0, 9), st.integers(0, 9), st.tuples(st.text())),
    max_leaves=20,
)


def same(left: Any, right: Any) -> bool:
    """Equal, and of the same types all the way down."""
    if type(left) is not type(right):
        return False
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, set | frozenset):
        return left == right and {pack(item) for item in left} == {pack(item) for item in right}
    if isinstance(left, datetime | time):
        return left == right and left.utcoffset() == right.utcoffset()
    return bool(left == right) and pack(left) == pack(right)


@given(values)
@settings(max_examples=400, deadline=None)
def test_every_value_comes_back_equal_and_of_the_same_types(value: Any) -> None:
    packed = pack(value)
    assert same(unpack(packed), value)
    assert pack(unpack(packed)) == packed


@given(st.lists(hashable, max_size=8, unique=True), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_equal_sets_give_equal_bytes_however_they_were_built(items: list[Any], random: Any) -> None:
    shuffled = list(items)
    random.shuffle(shuffled)
    if len(set(items)) == len(items):
        assert pack(set(items)) == pack(set(shuffled))
        assert pack(frozenset(items)) == pack(frozenset(shuffled))


def test_map_order_is_kept() -> None:
    assert list(unpack(pack({"b": 1, "a": 2}))) == ["b", "a"]


def test_the_bytes_of_each_extension_are_fixed() -> None:
    moment = datetime(2024, 5, 1, 10, 30, 0, 1, tzinfo=timezone(timedelta(hours=2)))
    golden = {
        "c72001" + b"2024-05-01T10:30:00.000001+02:00".hex(): moment,
        "c70a02" + b"2024-05-01".hex(): date(2024, 5, 1),
        "c70f03" + b"10:30:00.000000".hex(): time(10, 30),
        "d604" + b"1.50".hex(): Decimal("1.50"),
        "d805" + "00112233445566778899aabbccddeeff": UUID("00112233445566778899aabbccddeeff"),
        "c70306920102": (1, 2),
        "c70307920102": {2, 1},
        "c70308920102": frozenset((1, 2)),
        "c70c0992" + "a6436f6c6f7572" + "a3524544": Colour.RED,
        "2a": 42,
        "81a66f6666736574cd012c": {"offset": 300},
        "c403000102": b"\0\1\2",
    }
    for data, value in golden.items():
        assert pack(value).hex() == data
        assert unpack(bytes.fromhex(data)) == value


def test_a_datetime_keeps_its_microseconds_and_its_offset() -> None:
    moment = datetime(2024, 10, 27, 2, 30, 0, 123_456, tzinfo=ZoneInfo("Europe/Berlin"), fold=1)
    back = unpack(pack(moment))
    assert back.isoformat() == moment.isoformat() == "2024-10-27T02:30:00.123456+01:00"
    for edge in (datetime.min, datetime.max):
        for hours in (-14, 14):
            moment = edge.replace(tzinfo=timezone(timedelta(hours=hours)))
            assert unpack(pack(moment)).isoformat() == moment.isoformat()


def test_infinities_are_values() -> None:
    assert unpack(pack([math.inf, -math.inf, Decimal("-Infinity")])) == [
        math.inf, -math.inf, Decimal("-Infinity")]


def test_an_alias_of_an_enum_member_comes_back_as_the_member() -> None:
    assert unpack(pack(Colour.ROUGE)) is Colour.RED
    assert unpack(pack({"level": Level.HIGH}))["level"] is Level.HIGH


def test_an_enum_member_of_an_unregistered_class_comes_back_as_its_name() -> None:
    assert unpack(pack([Unknown.ONE])) == ["ONE"]


def test_an_unregistered_dataclass_comes_back_as_a_map() -> None:
    assert unpack(pack(Loose("a", Loose("b")))) == {
        "name": "a", "inner": {"name": "b", "inner": None}}


def test_a_registered_dataclass_comes_back_with_its_computed_fields() -> None:
    point = Point(1, 2, ("a",))
    object.__setattr__(point, "total", 9)
    back = unpack(pack([point]))[0]
    assert isinstance(back, Point)
    assert (back, back.total) == (point, 9)


def test_subclasses_of_plain_types_come_back_as_the_plain_type() -> None:
    class Text(str):
        pass

    back = unpack(pack([Pair(1, 2), OrderedDict(a=1), Text("x"), bytearray(b"y")]))
    assert back == [(1, 2), {"a": 1}, "x", b"y"]
    assert [type(item) for item in back] == [tuple, dict, str, bytes]


def test_registering_takes_enums_and_dataclasses_only() -> None:
    with pytest.raises(Misuse, match="only Enum classes and dataclasses"):
        register(int)
    assert register(Colour) is Colour
    elsewhere = enum.Enum("Colour", ["GREEN"], module="elsewhere", qualname="Colour")
    with pytest.raises(Misuse, match="already registered"):
        register(elsewhere)


# --- refusals, each with its place ------------------------------------------------------------

LOOP: list[Any] = []
LOOP.append(LOOP)


@pytest.mark.parametrize(("value", "place", "reason"), [
    (math.nan, "value", "NaN"),
    ({"rows": [1, 2, 3, math.nan]}, "value['rows'][3]", "NaN"),
    ([Decimal("NaN")], "value[0]", "NaN"),
    ([Decimal("sNaN")], "value[0]", "NaN"),
    ({"a": {"b": (1, 2**64)}}, "value['a']['b'][1]", "64 bits"),
    (-(2**63) - 1, "value", "64 bits"),
    ({"a": {1: 2}}, "value['a']", "a map key is a string, not int"),
    ({Colour.RED: 2}, "value", "a map key is a string, not Colour"),
    ({b"a": 2}, "value", "a map key is a string, not bytes"),
    ({None: 2}, "value", "not NoneType"),
    ([datetime(2024, 1, 1)], "value[0]", "without a time zone"),
    ([time(1, 2, tzinfo=ZoneInfo("Europe/Berlin"))], "value[0]", "no fixed offset"),
    ({"f": object()}, "value['f']", "builtins.object cannot be stored"),
    ({"f": 1j}, "value['f']", "builtins.complex"),
    ({"f": Colour}, "value['f']", "cannot be stored"),
    ({"f": "\ud800"}, "value['f']", "lone surrogate"),
    ({"\ud800": 1}, "value['\\ud800']", "lone surrogate"),
    (LOOP, "value" + "[0]" * VALUE_DEPTH, "holding itself"),
    ({(1, math.inf, (math.nan,))}, "value{…}[2][0]", "NaN"),
    (Loose("x", [math.nan]), "value.inner[0]", "NaN"),
    ({Point(1, 2)}, "value{…}", "inside a set"),
    ([datetime(2024, 1, 1, tzinfo=timezone(timedelta(microseconds=1)))], "value[0]", "fraction"),
    (Bits.A | Bits.B, "value", "combination of Bits flags"),
])
def test_what_cannot_be_stored_is_refused_with_its_place(
    value: Any, place: str, reason: str,
) -> None:
    with pytest.raises(InvalidValue) as caught:
        pack(value)
    assert caught.value.details["path"] == place
    assert caught.value.message.startswith(place + ": ")
    assert reason in caught.value.message


def test_a_naive_datetime_is_refused_with_a_tip() -> None:
    with pytest.raises(InvalidValue, match=r"datetime\.now"):
        pack({"at": datetime(2024, 1, 1)})


def test_a_subclass_of_datetime_is_refused_since_it_may_hold_more() -> None:
    class Finer(datetime):
        pass

    with pytest.raises(InvalidValue, match="Finer cannot be stored"):
        pack(Finer(2024, 1, 1, tzinfo=UTC))


def test_depth_is_bounded_alike_on_the_way_in_and_out() -> None:
    for wrap in (lambda v: [v], lambda v: {"k": v}, lambda v: (v,), lambda v: Loose("n", v),
                 lambda v: Point(1, 2, v)):
        value: Any = Colour.RED
        for _ in range(VALUE_DEPTH):
            value = wrap(value)
        unpack(pack(value))
        with pytest.raises(InvalidValue, match="deeper than"):
            pack(wrap(value))


def test_a_value_over_8_mib_is_too_large() -> None:
    pack(b"x" * (VALUE_BYTES - 5))
    for value in (b"x" * VALUE_BYTES, ["x" * (VALUE_BYTES // 2)] * 3, "é" * (VALUE_BYTES // 2),
                  [1.5] * (VALUE_ITEMS - 1)):
        with pytest.raises(TooLarge):
            pack(value)
    with pytest.raises(TooLarge):
        unpack(b"\xc0" * (VALUE_BYTES + 1))


def test_a_small_value_that_unfolds_to_a_huge_one_is_refused_quickly() -> None:
    bomb: Any = "x"
    for _ in range(60):
        bomb = [bomb, bomb]
    with pytest.raises(TooLarge, match="items"):
        pack(bomb)
    with pytest.raises(TooLarge, match="bytes"):
        pack(["x" * 1_000_000] * 100_000)


@pytest.mark.parametrize("make", [
    lambda n: [None] * (n - 1),
    lambda n: {str(i): None for i in range((n - 1) // 2)},
    lambda n: [()] * ((n - 1) // 2),
    lambda n: [Level.LOW] * ((n - 1) // 4),
])
def test_items_are_counted_alike_on_the_way_in_and_out(make: Any, monkeypatch: Any) -> None:
    def allow(items: int) -> None:
        for room in ("values", "shape"):  # the way in, the way out
            monkeypatch.setattr(f"ckptmesh.{room}.VALUE_ITEMS", items)

    allow(1_000)
    assert len(unpack(pack(make(1_000)))) >= 249
    with pytest.raises(TooLarge):
        pack(make(1_010))
    allow(1_010)
    data = pack(make(1_010))
    allow(1_000)
    with pytest.raises(InvalidPayload):
        unpack(data)


# --- damage -----------------------------------------------------------------------------------


def ext(code: int, payload: bytes) -> bytes:
    packed: bytes = msgpack.packb(msgpack.ExtType(code, payload))
    return packed


@pytest.mark.parametrize("data", [
    b"", b"\xc1", b"\x01\x02", b"\x92\x01", b"\xa5ab", b"\xd9", b"\xc4\x05a",
    b"\xdd\xff\xff\xff\xff",
    b"\xdf\xff\xff\xff\xff", b"\xa1\xff", b"\x81\x01\x02", b"\x81\xc4\x01a\x02",
    b"\x82\xa1a\x01\xa1a\x02",
    b"\xcb\x7f\xf8\0\0\0\0\0\0", b"\xca\x7f\xc0\0\0", b"\xcb\x7f",
    ext(0, b"x"), ext(11, b"x"), b"\xd4\xff\x00", b"\xd6\xff\0\0\0\0", b"\xc7\xff\x06\x90", b"\xd4",
    ext(1, b"2024-05-01"), ext(1, b"2024-05-01T10:30:00.000000"), ext(1, b"\xff"), ext(1, b""),
    ext(2, b"20240501"), ext(2, b"2024-13-01"), ext(3, b"10:30"), ext(4, b"NaN"), ext(4, b"1_0"),
    ext(4, b"sNaN"), ext(4, b" 1"), ext(4, b"1E+99999999999999999999"), ext(5, b"short"),
    ext(6, b"\x01"), ext(6, b""), ext(6, b"\x90\x90"), ext(6, b"\x91"), ext(6, b"\x80"),
    ext(7, b"\x92\x01\x01"), ext(7, b"\x92\x01\xc3"), ext(7, b"\x91\x90"), ext(8, b"\x91\x80"),
    ext(9, b"\x92\xa6Colour\xa5GREEN"), ext(9, b"\x92\xa6Colour\x01"), ext(9, b"\x91\xa1a"),
    ext(9, b"\x92\x01\x01"), ext(10, b"\x92\xa5Point\x90"), ext(10, b"\x92\xa5Point\x80"),
    ext(10, b"\x92\xa5Point\x81\xa1z\x01"),
])
def test_bytes_that_pack_never_writes_are_refused_by_type(data: bytes) -> None:
    with pytest.raises(InvalidPayload):
        unpack(data)


@given(st.binary(max_size=200))
@settings(max_examples=500, deadline=None)
def test_random_bytes_give_a_value_or_a_typed_error(data: bytes) -> None:
    try:
        value = unpack(data)
    except InvalidPayload:
        return
    assert same(unpack(pack(value)), value)


@given(values, st.data())
@settings(max_examples=300, deadline=None)
def test_damaged_bytes_give_a_value_or_a_typed_error(value: Any, data: Any) -> None:
    packed = bytearray(pack(value))
    where = data.draw(st.integers(0, len(packed) - 1))
    if data.draw(st.booleans()):
        packed[where] ^= 1 << data.draw(st.integers(0, 7))
    else:
        del packed[where:]
    with contextlib.suppress(InvalidPayload):
        unpack(bytes(packed))


@pytest.mark.fault(46)
@pytest.mark.parametrize("level", [b"\x91", b"\x81\xa1k", b"\xc9\x00\x7f\xff\xff\x06"])
def test_hostile_nesting_is_refused_before_it_is_unpacked(level: bytes) -> None:
    with pytest.raises(InvalidPayload, match="deeper than"):
        unpack(level * (VALUE_BYTES // len(level)))


@pytest.mark.fault(47)
@pytest.mark.parametrize("item", [b"\x80", b"\xd4\x07\x90"])
def test_millions_of_empty_containers_are_refused_without_making_them(
    item: bytes, monkeypatch: Any,
) -> None:
    monkeypatch.setattr("ckptmesh.values._load", lambda data: pytest.fail("made objects"))
    count = 4 * 2**20 // len(item)
    with pytest.raises(InvalidPayload, match="items"):
        unpack(b"\xdd" + count.to_bytes(4, "big") + item * count)


@pytest.mark.fault(47)
@pytest.mark.parametrize("item", [
    lambda number: ext(5, number.to_bytes(16, "big")), lambda number: ext(4, str(number).encode())])
def test_a_set_of_items_that_all_have_one_hash_is_refused_before_it_is_made(item: Any) -> None:
    alike = [item(number * (2**61 - 1)) for number in range(1, 101)]  # UUIDs, or Decimals
    header = b"\xdd" + (100).to_bytes(4, "big")
    assert len(unpack(ext(7, header + b"".join(alike)))) == 100
    for code in (7, 8):
        with pytest.raises(InvalidPayload, match="same hash"):
            unpack(ext(code, header[:4] + b"\x65" + b"".join(alike) + item(101 * (2**61 - 1))))


def test_neither_is_such_a_set_packed() -> None:
    alike = {UUID(int=number * (2**61 - 1)) for number in range(1, 102)}
    with pytest.raises(InvalidValue, match=r"value\['a'\]: .*same hash"):
        pack({"a": alike})
    alike.pop()
    assert unpack(pack(alike)) == alike
