"""User values ↔ bytes: plain msgpack, with reserved extension codes for what msgpack lacks.

Rule 1: what `pack` accepts, `unpack` gives back equal; anything else is refused, never bent.
Rule 2: never pickle; no bytes can make `unpack` run code that the application did not register.
Rule 3: equal values give equal bytes where their types allow it. Maps keep their order.
Rule 4: depth, items and bytes are bounded, on the way in and on the way out.

Native: nil, booleans, integers of 64 bits (-2**63 to 2**64 - 1), 64-bit floats, UTF-8 strings,
binary, arrays (a list), maps (string keys only). Extension codes:

  code  type        payload
  1     datetime    ISO-8601 text, microseconds, UTC offset: 2024-05-01T10:30:00.000001+02:00
  2     date        ISO-8601 text: 2024-05-01
  3     time        ISO-8601 text, microseconds, UTC offset if it has one: 10:30:00.000000
  4     Decimal     its text: 1.50, 1E+3, -Infinity
  5     UUID        its 16 bytes
  6     tuple       a msgpack array of the items
  7     set         a msgpack array of the items, ascending by their packed bytes
  8     frozenset   likewise
  9     Enum        a msgpack array: [class name, member name]
  10    dataclass   a msgpack array: [class name, map of the fields in order]

An Enum member and a dataclass come back as such where `register` was called for their class, and
as the member's name (a string) and as a map (a dict) where it was not, for instance in the command
line. A class is known by its qualified name without its module, so that code may move.

What does not come back exactly as it was, and is taken all the same because it comes back equal:
a subclass of int, float, str, list, dict, tuple, set or frozenset, and bytearray, come back as
the plain type; the zone of a datetime comes back as its UTC offset at that moment, in seconds.

Decided: infinities are taken (they equal themselves and are ordered; a running minimum starts
from one), NaN is not (it would make a value that differs from itself). A naive datetime is
refused: two hosts would read two times from it. A naive time of day is taken: it is a wall time
by nature. A dataclass inside a set is refused: a reader that lacks the class could not hash it.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import date, datetime, time
from decimal import Decimal
from enum import Enum
from typing import Any, TypeVar
from uuid import UUID

import msgpack

from ckptmesh.errors import InvalidPayload, InvalidValue, Misuse, TooLarge
from ckptmesh.limits import (
    INTEGER_MAX,
    INTEGER_MIN,
    VALUE_BYTES,
    VALUE_DEPTH,
    VALUE_ITEMS,
    check_value,
)
from ckptmesh.shape import (
    DATACLASS,
    DATE,
    DATETIME,
    DECIMAL,
    ENUM,
    FROZENSET,
    HOLDERS,
    SET,
    TIME,
    TUPLE,
    UUID_CODE,
    check_shape,
    damaged,
)

_ALIKE = 100  # items of one set with one hash: honest values have a few; a set slows down squared

_T = TypeVar("_T", bound=type)
_registered: dict[str, type] = {}


class Packed:
    """A value as the store keeps it, not looked into: what reads give with `packed=True`, for
    whoever passes values on without knowing their classes. A commit takes it for the value that its
    bytes are; `unpack(packed.data)` is that value. Inside another value it is refused."""

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data = data

    def __eq__(self, other: object) -> bool:
        return self.data == other.data if isinstance(other, Packed) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.data)

    def __repr__(self) -> str:
        return f"Packed({len(self.data)} bytes)"


def register(cls: _T) -> _T:
    """Let `unpack` give members of this Enum, or instances of this dataclass, back as such.

    Returns the class, so that it serves as a decorator. Raises `Misuse` for any other class, and
    when another class of that qualified name is registered.
    """
    if not (isinstance(cls, type) and (issubclass(cls, Enum) or dataclasses.is_dataclass(cls))):
        raise Misuse(f"only Enum classes and dataclasses can be registered, not {cls!r:.80}")
    known = _registered.setdefault(cls.__qualname__, cls)
    if known is not cls and known.__module__ != cls.__module__:
        raise Misuse(
            f"a class named {cls.__qualname__} is already registered, from {known.__module__}",
            hint="rename one of the two: values name their class without its module",
        )
    _registered[cls.__qualname__] = cls  # the same module again: a reload
    return cls


def pack(value: Any) -> bytes:
    """Turn a user's value into the bytes that the store keeps; `Packed` has them already.

    At most `VALUE_BYTES` packed, `VALUE_DEPTH` levels, `VALUE_ITEMS` items in all. Raises
    `InvalidValue`, whose message names the place (`value['rows'][3]`), or `TooLarge`.
    """
    if type(value) is Packed:
        return _passed(value.data)
    try:
        # Nothing in them would have to be lowered, and msgpack refuses what it cannot carry.
        data = _pack_plain(value) if type(value) in _PLAIN else None
        if data is None:
            data = _dump(_Lowering().lower(value, 0))
    except _Refused as refused:
        place = "value" + "".join(reversed(refused.steps))
        raise InvalidValue(f"{place}: {refused.reason}", hint=refused.hint, path=place) from None
    if len(data) > VALUE_BYTES:
        check_value(data)
    return data


def _passed(data: bytes) -> bytes:
    """Packed bytes that can be unpacked again."""
    check_value(data)
    try:
        check_shape(data)
    except InvalidPayload as damage:
        raise InvalidValue(f"value: {damage.message}", path="value") from None
    return data


def pack_all(values: Iterable[Any]) -> list[bytes]:
    """`pack` of each, for many at once. Raises as it does, for the first that cannot be stored."""
    packer = msgpack.Packer()
    found: list[bytes] = []
    for value in values:
        data = None
        if type(value) in _PLAIN:
            with suppress(ValueError, OverflowError):  # what exactly is wrong, `pack` says
                data = packer.pack(value)
        found.append(data if data is not None and len(data) <= VALUE_BYTES else pack(value))
    return found


def unpack(data: bytes) -> Any:
    """Turn stored bytes back into the value.

    Raises `InvalidPayload` for anything that `pack` cannot have written, `TooLarge` beyond
    `VALUE_BYTES`. Memory is bounded by `VALUE_ITEMS`: damage is found before objects are made.
    """
    check_value(data)
    check_shape(data)
    return _load(data)


def _dump(lowered: Any) -> bytes:
    packed: bytes = msgpack.packb(lowered, use_bin_type=True, strict_types=True)
    return packed


_PLAIN = frozenset({str, bytes, int, bool, type(None)})


def _pack_plain(value: Any) -> bytes | None:
    """A value of a type in `_PLAIN`; None where it cannot be stored."""
    try:
        packed: bytes = msgpack.packb(value)
        return packed
    except (ValueError, OverflowError):  # what exactly is wrong, `_Lowering` says
        return None


# --- the way in -------------------------------------------------------------------------------


class _Refused(Exception):
    """A value that cannot be stored; `steps` is filled on the way out, innermost first."""

    def __init__(self, reason: str, hint: str | None = None) -> None:
        super().__init__(reason)
        self.reason, self.hint, self.steps = reason, hint, list[str]()


class _Lowering:
    """One call of `pack`: turns a value into what msgpack knows, counting as it goes.

    Bytes are counted here and not only at the end, because a small value that holds one long
    string many times over would otherwise be written out first. Items are counted as
    `shape.check_shape` counts them, so that whatever is packed can be unpacked.
    """

    def __init__(self) -> None:
        self.items = 0
        self.size = 0
        self.in_set = 0

    def lower(self, value: Any, depth: int) -> Any:
        self._tally(1)
        kind = type(value)
        if kind is str:
            return self._text(value)
        if kind is bool or value is None:
            return value
        if kind is int:
            return self._integer(value)
        return self._other(value, kind, depth)

    def _other(self, value: Any, kind: type, depth: int) -> Any:
        if issubclass(kind, Enum):  # before int and str: IntEnum and StrEnum are both
            return self._enum(value)
        if issubclass(kind, float):
            if value != value:
                raise _Refused("NaN cannot be stored", "store None where there is no number")
            return float(value)
        if issubclass(kind, int):
            return self._integer(int(value))
        if issubclass(kind, str):
            return self._text(str.__str__(value))
        if issubclass(kind, bytes | bytearray):
            self._count(len(value))
            return bytes(value)
        scalar = _SCALARS.get(kind)
        if scalar is not None:
            code, dump = scalar
            payload = dump(value)
            self._count(len(payload))
            return msgpack.ExtType(code, payload)
        if depth >= VALUE_DEPTH:
            raise _Refused(f"nested deeper than {VALUE_DEPTH} levels, or holding itself")
        return self._holder(value, kind, depth + 1)

    def _holder(self, value: Any, kind: type, depth: int) -> Any:
        if dataclasses.is_dataclass(kind):
            return self._dataclass(value, depth)
        if issubclass(kind, dict):
            return self._map(value.items(), depth, "[{!r:.80}]")
        if issubclass(kind, list):
            return self._array(value, depth, "[{}]")
        if issubclass(kind, tuple):
            self._tally(1)
            return self._ext(TUPLE, self._array(value, depth, "[{}]"))
        if issubclass(kind, set | frozenset):
            self._tally(1)
            return self._set(value, depth)
        raise _Refused(
            f"{kind.__module__}.{kind.__qualname__} cannot be stored",
            "turn it into numbers, strings, lists and dicts, or a dataclass, first",
        )

    def _array(self, items: Iterable[Any], depth: int, step: str) -> list[Any]:
        lowered: list[Any] = []
        try:
            for item in items:
                lowered.append(self.lower(item, depth))
        except _Refused as refused:
            refused.steps.append(step.format(len(lowered)))
            raise
        return lowered

    def _map(self, items: Iterable[tuple[Any, Any]], depth: int, step: str) -> dict[str, Any]:
        lowered: dict[str, Any] = {}
        for key, item in items:
            if not isinstance(key, str) or isinstance(key, Enum):
                raise _Refused(
                    f"a map key is a string, not {type(key).__name__}",
                    "use str(key), or a list of pairs",
                )
            self._tally(1)
            try:
                lowered[self._text(str.__str__(key))] = self.lower(item, depth)
            except _Refused as refused:
                refused.steps.append(step.format(key))
                raise
        return lowered

    def _dataclass(self, value: Any, depth: int) -> Any:
        if self.in_set:
            raise _Refused("a dataclass cannot be stored inside a set", "use a list")
        self._tally(3)
        name = self._text(type(value).__qualname__)
        fields = ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))
        return self._ext(DATACLASS, [name, self._map(fields, depth, ".{}")])

    def _set(self, value: set[Any] | frozenset[Any], depth: int) -> Any:
        if _crowded(value):
            raise _Refused(f"more than {_ALIKE} items of the set have the same hash", "use a list")
        self.in_set += 1
        packed = sorted(_dump(item) for item in self._array(value, depth, "{{…}}"))
        self.in_set -= 1
        code = SET if isinstance(value, set) else FROZENSET
        header: bytes = msgpack.Packer().pack_array_header(len(packed))
        return self._bounded(code, header + b"".join(packed))

    def _ext(self, code: int, lowered: list[Any]) -> Any:
        return self._bounded(code, _dump(lowered))

    def _bounded(self, code: int, payload: bytes) -> Any:
        check_value(payload)
        return msgpack.ExtType(code, payload)

    def _integer(self, value: int) -> int:
        if not INTEGER_MIN <= value <= INTEGER_MAX:
            raise _Refused("the integer is beyond 64 bits", "store str(number)")
        return value

    def _text(self, value: str) -> str:
        try:
            self._count(len(value) if value.isascii() else len(value.encode()))
        except UnicodeEncodeError:
            raise _Refused("the string holds a lone surrogate, which is not text",
                           "store bytes: text.encode(errors='surrogateescape')") from None
        return value

    def _enum(self, value: Enum) -> Any:
        kind = type(value)
        if value.name not in kind.__members__:
            raise _Refused(f"a combination of {kind.__qualname__} flags has no name of its own",
                           "store a list of its members, or its integer value")
        self._tally(3)
        return self._ext(ENUM, [self._text(kind.__qualname__), self._text(value.name)])

    def _tally(self, items: int) -> None:
        self.items += items
        if self.items > VALUE_ITEMS:
            raise TooLarge(
                f"the value has more than {VALUE_ITEMS:,} items",
                hint="keep the data elsewhere and commit its address",
                size=self.items, limit=VALUE_ITEMS,
            )

    def _count(self, size: int) -> None:
        self.size += size
        if self.size > VALUE_BYTES:
            raise TooLarge(
                f"the value has more than {VALUE_BYTES:,} bytes packed",
                hint="keep the data elsewhere and commit its address",
                size=self.size, limit=VALUE_BYTES,
            )


def _dump_datetime(value: datetime) -> bytes:
    if value.utcoffset() is None:
        raise _Refused("a datetime without a time zone",
                       "use datetime.now(timezone.utc) or moment.astimezone()")
    return _dump_moment(value)


def _dump_time(value: time) -> bytes:
    if value.tzinfo is not None and value.utcoffset() is None:
        raise _Refused("a time of day whose zone has no fixed offset",
                       "store a datetime, or the time and the zone's name apart")
    return _dump_moment(value)


def _dump_moment(value: datetime | time) -> bytes:
    offset = value.utcoffset()
    if offset is not None and offset.microseconds:  # no zone has that; ISO readers disagree on it
        raise _Refused("a UTC offset with a fraction of a second")
    return value.isoformat(timespec="microseconds").encode()


def _dump_decimal(value: Decimal) -> bytes:
    if value.is_nan():
        raise _Refused("NaN cannot be stored", "store None where there is no number")
    return str(value).encode()


# Exactly these types: a subclass may carry more (a pandas Timestamp has nanoseconds).
_SCALARS: dict[type, tuple[int, Callable[[Any], bytes]]] = {
    datetime: (DATETIME, _dump_datetime),
    date: (DATE, lambda value: value.isoformat().encode()),
    time: (TIME, _dump_time),
    Decimal: (DECIMAL, _dump_decimal),
    UUID: (UUID_CODE, lambda value: value.bytes),
}


# --- the way out ------------------------------------------------------------------------------


def _load(data: bytes) -> Any:
    """Decode bytes whose shape is checked."""
    try:
        return msgpack.unpackb(
            data, raw=False, strict_map_key=True, ext_hook=_load_ext, object_pairs_hook=_load_map,
        )
    except InvalidPayload:
        raise
    except Exception as problem:  # msgpack has half a dozen, without a common root
        raise InvalidPayload(
            f"the stored bytes are not a value: {type(problem).__name__}"
        ) from problem


def _load_map(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        damaged("a map has a key twice")
    return found


def _load_ext(code: int, payload: bytes) -> Any:
    if code == UUID_CODE:
        if len(payload) != 16:
            damaged("a UUID is not 16 bytes")
        return UUID(bytes=payload)
    if code not in HOLDERS:
        return _load_text(code, payload)
    items = _load(payload)
    if type(items) is not list:
        damaged(f"extension {code} does not hold an array")
    if code == TUPLE:
        return tuple(items)
    if code in (SET, FROZENSET):
        return _load_set(code, items)
    if len(items) != 2 or type(items[0]) is not str:
        damaged(f"extension {code} does not name a class")
    return (_load_enum if code == ENUM else _load_dataclass)(*items)


_PARSERS: dict[int, tuple[Callable[[str], Any], Callable[[Any], str]]] = {
    DATETIME: (datetime.fromisoformat, lambda value: value.isoformat(timespec="microseconds")),
    DATE: (date.fromisoformat, date.isoformat),
    TIME: (time.fromisoformat, lambda value: value.isoformat(timespec="microseconds")),
    DECIMAL: (Decimal, str),
}


def _load_text(code: int, payload: bytes) -> Any:
    parse, write = _PARSERS[code]
    try:
        text = payload.decode("ascii")
        value = parse(text)
    except (ValueError, ArithmeticError):
        damaged(f"extension {code} is not the text of one")
    if write(value) != text or (code == DATETIME and value.tzinfo is None) or value != value:
        damaged(f"extension {code} is not in the form that is written")
    return value


def _crowded(items: Iterable[Any]) -> bool:
    """Whether so many items share a hash that a set of them would take hours: a stranger can make
    8 MiB of UUIDs or Decimals whose hashes are all alike."""
    return max(Counter(map(hash, items)).values(), default=0) > _ALIKE


def _load_set(code: int, items: list[Any]) -> Any:
    try:
        if _crowded(items):
            damaged(f"more than {_ALIKE} items of a set have the same hash")
        found: Any = set(items) if code == SET else frozenset(items)
    except TypeError:
        damaged("a set holds what cannot be in a set")
    if len(found) != len(items):
        damaged("a set has an item twice")
    return found


def _load_enum(name: str, member: Any) -> Any:
    if type(member) is not str:
        damaged("an Enum member has no name")
    cls = _registered.get(name)
    if cls is None or not issubclass(cls, Enum):
        return member
    if member not in cls.__members__:
        damaged(f"{name} has no member {member[:80]!r} here")
    return cls[member]


def _load_dataclass(name: str, fields: Any) -> Any:
    if type(fields) is not dict:
        damaged("a dataclass has no fields")
    cls = _registered.get(name)
    if cls is None or not dataclasses.is_dataclass(cls):
        return fields
    known = {field.name: field.init for field in dataclasses.fields(cls)}
    strange = [field for field in fields if field not in known]
    if strange:
        damaged(f"{name} has no field {strange[0][:80]!r} here")
    try:
        made = cls(**{field: item for field, item in fields.items() if known[field]})
    except Exception as problem:  # the application's own class: it may raise anything
        raise InvalidPayload(f"the stored fields of a {name} do not make one: "
                             f"{type(problem).__name__}") from problem
    for field, item in fields.items():
        if not known[field]:
            object.__setattr__(made, field, item)
    return made
