"""What an incremental load has taken, and how that is kept: the brain of `cursors.py`.

Kept are the highest value taken, the floor, which is that less the bound for late rows, and every
(value, id) taken from the floor up. A row is new when it is at or above the floor and not among
them. So what is asked for from the floor, inclusive, may have equal values, come late within the
bound, and stand in any order.

Rule 1: the floor never falls, also when the bound grows: what was below it is not remembered.
Rule 2: ids are kept as they are, never as a hash: a collision would be a row lost.
Rule 3: values and ids are of one kind each, so that what is kept has one order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import date, datetime, timedelta
from decimal import Context, Decimal, Inexact
from itertools import groupby
from operator import itemgetter
from typing import Any, NamedTuple
from uuid import UUID

import msgpack

from ckptmesh.clock import from_datetime, to_datetime
from ckptmesh.errors import InvalidPayload, InvalidValue, Misuse, TooLarge
from ckptmesh.features.packing import pack_integers, pack_texts, unpack_integers, unpack_texts
from ckptmesh.limits import CURSOR_IDS, POSITION_MAX, POSITION_MIN, VALUE_BYTES

_FORMAT = 1
_ROOM = 4_096  # bytes of a stored cursor beside its columns
_EXACT = Context(prec=10_000, traps=[Inexact])
_DAY = timedelta(days=1)


class Kind(NamedTuple):
    """One kind of value: how it is kept, an integer or bytes or a Decimal in the same order, and
    how far a bound reaches below it."""

    name: str
    inward: Callable[[Any], Any]
    outward: Callable[[Any], Any]
    bound: Callable[[Any], Any]  # what `late` means for it; raises `Misuse`
    pack: Callable[[Any], bytes]
    unpack: Callable[[bytes], list[Any]]


def _integer(value: int) -> int:
    if not POSITION_MIN <= value <= POSITION_MAX:
        raise Misuse(f"{value!r:.80} is no integer of 64 bits, signed", hint="give it as text")
    return value


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise Misuse(f"{text!r:.80} is not valid UTF-8 text") from None


def _decimal(value: Decimal) -> Decimal:
    if not value.is_finite():
        raise Misuse(f"{value} has no place among other values")
    return value


def _moment(micros: int) -> datetime:
    return to_datetime(max(micros, _FIRST))


_FIRST = -62_135_596_800_000_000  # the first microsecond of year 1, before which no datetime is


def _bad_bound(late: Any, need: str) -> Misuse:
    return Misuse(f"late= is {need}, not {late!r:.80}")


def _whole(late: Any) -> int:
    if type(late) is not int or late < 0:
        raise _bad_bound(late, "an integer from 0 up where the values are integers")
    return late


def _span(late: Any) -> int:
    if not isinstance(late, timedelta) or late < timedelta(0):
        raise _bad_bound(late, "a timedelta where the values are datetimes")
    return late // timedelta(microseconds=1)


def _days(late: Any) -> int:
    if not isinstance(late, timedelta) or late < timedelta(0) or late % _DAY:
        raise _bad_bound(late, "a timedelta of whole days where the values are dates")
    return late // _DAY


def _amount(late: Any) -> Decimal:
    if not (type(late) is int or isinstance(late, Decimal)) or not late >= 0:
        raise _bad_bound(late, "an integer or Decimal from 0 up where the values are Decimals")
    return Decimal(late)


def _none(late: Any) -> Any:
    raise Misuse("text has no bound for late rows", hint="leave late= out, or order by a time")


def _decimals(values: Any) -> bytes:
    return pack_texts([str(value).encode() for value in values])


_NUMBERS = (pack_integers, unpack_integers)
_TEXTS = (pack_texts, unpack_texts)
_VALUES = {kind.name: kind for kind in (
    Kind("datetime", from_datetime, _moment, _span, *_NUMBERS),
    Kind("date", date.toordinal, lambda day: date.fromordinal(max(day, 1)), _days, *_NUMBERS),
    Kind("int", _integer, lambda number: max(number, POSITION_MIN), _whole, *_NUMBERS),
    Kind("Decimal", _decimal, Decimal, _amount, _decimals,
         lambda data: [Decimal(text.decode()) for text in unpack_texts(data)]),
    Kind("str", _utf8, bytes.decode, _none, *_TEXTS),
)}
_IDS = {kind.name: kind for kind in (
    Kind("int", _integer, int, _none, *_NUMBERS),
    Kind("str", _utf8, bytes.decode, _none, *_TEXTS),
    Kind("bytes", bytes, bytes, _none, *_TEXTS),
    Kind("UUID", lambda found: found.bytes, lambda found: UUID(bytes=found), _none, *_TEXTS),
)}
_TYPES: tuple[tuple[type, str], ...] = (
    (datetime, "datetime"), (date, "date"), (int, "int"), (Decimal, "Decimal"), (str, "str"),
    (UUID, "UUID"), (bytes, "bytes"))


def _kind_of(value: Any, kinds: Mapping[str, Kind], what: str) -> Kind:
    name = next((name for kind, name in _TYPES if isinstance(value, kind)), "")
    if name not in kinds or isinstance(value, bool):
        hint = {"float": "equal floats may be written differently: use Decimal or integers",
                "NoneType": f"leave out the rows that have no {what} yet"}.get(
                    type(value).__name__, "several columns: join them to one text")
        raise Misuse(f"a row's {what} is {_or(kinds)}, not {type(value).__name__}", hint=hint)
    if isinstance(value, datetime) and value.utcoffset() is None:
        raise Misuse(f"a row's {what} {value.isoformat()} has no time zone",
                     hint="two hosts would read two times from it: "
                          "value.replace(tzinfo=timezone.utc) if it is in UTC")
    return kinds[name]


def _or(kinds: Mapping[str, Kind]) -> str:
    *most, last = kinds
    return f"{', '.join(most)} or {last}"


class Taken:
    """The rows taken, as far as they are remembered. `late`: the bound; None: nothing is late."""

    def __init__(self, key: str, late: Any = None) -> None:
        self.key = key
        self._late = late
        self._by: Kind | None = None
        self._id: Kind | None = None
        self._high: Any = None
        self._floor: Any = None
        self._rows: set[tuple[Any, Any]] = set()

    @property
    def floor(self) -> Any:
        """Where to fetch from, inclusive; None before anything was taken."""
        return None if self._by is None or self._floor is None else self._by.outward(self._floor)

    @property
    def position(self) -> int | None:
        """The highest value as an integer: itself, or microseconds since 1970."""
        whole = self._by is not None and self._by.name in ("int", "datetime")
        return self._high if whole else None

    def __len__(self) -> int:
        return len(self._rows)

    def value_of(self, value: Any) -> Any:
        """A row's value as it is kept. Raises `Misuse`."""
        kind = _kind_of(value, _VALUES, "value")
        if self._by is None:
            self._by = kind
            self._bound()  # whether it fits: now, and not at the end of the batch
        if kind is not self._by:
            raise Misuse(f"{self.key!r} goes by values of {self._by.name}, this row's is a "
                         f"{kind.name}", hint="begin under another key to go by something else")
        return kind.inward(value)

    def id_of(self, found: Any) -> Any:
        """A row's id as it is kept. Raises `Misuse`."""
        kind = _kind_of(found, _IDS, "id")
        self._id = self._id or kind
        if kind is not self._id:
            raise Misuse(f"{self.key!r} has ids of {self._id.name}, this row's is a {kind.name}",
                         hint="give all ids as text: id=lambda row: str(row.id)")
        return kind.inward(found)

    def below(self, value: Any) -> bool:
        """Whether a kept value is older than the floor."""
        return self._floor is not None and bool(value < self._floor)

    def take(self, value: Any, found: Any) -> bool:
        """Remember a row at or above the floor; False when it was taken before. Raises
        `TooLarge`."""
        row = (value, found)
        if row in self._rows:
            return False
        if len(self._rows) >= CURSOR_IDS:
            raise self._too_large(f"{len(self._rows):,} rows", len(self._rows), CURSOR_IDS)
        self._rows.add(row)
        if self._high is None or value > self._high:
            self._high = value
        return True

    def settle(self) -> None:
        """Raise the floor as far as the bound allows, and forget what is below it."""
        if self._high is None:
            return
        bound = self._bound()
        try:
            floor = (self._high if not bound else
                     _EXACT.subtract(self._high, bound) if isinstance(bound, Decimal)
                     else self._high - bound)
        except Inexact:
            raise Misuse("these Decimals have too many digits between them") from None
        if self._floor is None or floor > self._floor:
            self._floor = floor
            self._rows = {row for row in self._rows if row[0] >= floor}

    def _bound(self) -> Any:
        if self._late is None or self._by is None:
            return 0
        return self._by.bound(self._late)

    def late_error(self, value: Any) -> InvalidValue:
        """For a row that is older than the floor."""
        assert self._by is not None
        return InvalidValue(
            f"{self.key!r}: a row with {self._by.outward(value)!s:.80} comes after all below "
            f"{self.floor!s:.80} was settled; it was taken before, or is later than late= allows",
            hint='fetch from cur.floor on, give a wider late=, or say on_late="skip"', key=self.key)

    def _too_large(self, what: str, size: int, limit: int) -> TooLarge:
        return TooLarge(
            f"{self.key!r} would have to remember {what}; the limit is {limit:,}",
            hint="give a smaller late=, go by a finer value (a time of day, not a day) or by an id "
                 "that grows; where rows come in ascending order, ordered=True forgets as it goes",
            key=self.key, size=size, limit=limit)

    # --- the stored form ----------------------------------------------------------------------

    def dump(self) -> dict[str, Any]:
        """What is committed. Raises `TooLarge`."""
        by, ids = self._by, self._id
        if by is None or ids is None or self._high is None:
            return {"cursor": _FORMAT, "count": 0}
        rows = sorted(self._rows)
        runs = [(value, sum(1 for _ in run)) for value, run in groupby(map(itemgetter(0), rows))]
        columns = {
            "values": by.pack([value for value, _ in runs]),
            "counts": msgpack.packb([count for _, count in runs]),
            "ids": ids.pack([found for _, found in rows]),
        }
        size = sum(map(len, columns.values()))
        if size > VALUE_BYTES - _ROOM:
            raise self._too_large(f"{len(rows):,} rows in {size:,} bytes", size, VALUE_BYTES)
        return {"cursor": _FORMAT, "by": by.name, "id": ids.name, "high": by.outward(self._high),
                "floor": by.outward(self._floor), "count": len(rows), **columns}

    def load(self, stored: Any) -> None:
        """Take up what was committed. Raises `InvalidPayload`, and `Misuse` where `late` does not
        fit."""
        try:
            if stored["cursor"] != _FORMAT:
                raise ValueError(f"format {stored['cursor']!r:.20} is not known here")
            if "by" not in stored:
                return
            by, ids = _VALUES[stored["by"]], _IDS[stored["id"]]
            values, counts = by.unpack(stored["values"]), msgpack.unpackb(stored["counts"])
            if sum(counts) > CURSOR_IDS:
                raise ValueError("more rows than a cursor remembers")
            spread = [value for value, count in zip(values, counts, strict=True)
                      for _ in range(count)]
            rows = set(zip(spread, ids.unpack(stored["ids"]), strict=True))
            if len(rows) != stored["count"]:
                raise ValueError("not as many rows as it says")
            high, floor = by.inward(stored["high"]), by.inward(stored["floor"])
        except (KeyError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
            raise InvalidPayload(f"what is stored under {self.key!r} is no cursor: {error!s:.200}",
                                 key=self.key) from error
        self._by, self._id, self._rows = by, ids, rows
        self._high, self._floor = high, floor
        self._bound()
