"""Values ↔ JSON that people can read: for exports, and for the command line.

A value is written as JSON. What JSON lacks is a map with one key that begins with `$`:

  {"$bytes": "aGk="}               bytes, base64
  {"$datetime": "2024-05-01T10:30:00+02:00"}   also $date, $time: ISO-8601
  {"$decimal": "1.50"}             Decimal
  {"$uuid": "0188…"}               UUID
  {"$tuple": […]}                  also $set, $frozenset: the items (sets in a fixed order)
  {"$float": "Infinity"}           also "-Infinity"
  {"$map": {"$bytes": "text"}}     a map that would otherwise be read as one of these

Rule 1: `from_json(to_json(value)) == value` for whatever the store can hold, but for members of an
        Enum and dataclasses: `readable` says whether a value comes back to the byte.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from datetime import date, datetime, time
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

from ckptmesh.errors import Error, InvalidPayload, InvalidValue
from ckptmesh.values import Packed, pack, unpack

NOT_READABLE = object()
_DOUBTFUL = (Error, ValueError, TypeError, ArithmeticError, RecursionError)


def readable(data: bytes) -> Any:
    """The JSON document of packed bytes that gives these very bytes again, whoever reads it, or
    `NOT_READABLE`. That it does is tried out, not assumed: a member of an Enum, a dataclass or a
    map with a key twice would come back as something else.
    """
    try:
        document = to_json(unpack(data))
        text = json.dumps(document, allow_nan=False)
        return document if pack(from_json(json.loads(text))) == data else NOT_READABLE
    except _DOUBTFUL:
        return NOT_READABLE


def _line(document: Any) -> str:
    return json.dumps(document, ensure_ascii=False)


def _in_order(items: set[Any] | frozenset[Any]) -> list[Any]:
    return sorted((to_json(item) for item in items), key=_line)


_WRITERS: dict[type, tuple[str, Callable[[Any], Any]]] = {
    bytes: ("$bytes", lambda value: base64.b64encode(value).decode()),
    datetime: ("$datetime", datetime.isoformat),
    date: ("$date", date.isoformat),
    time: ("$time", time.isoformat),
    Decimal: ("$decimal", str),
    UUID: ("$uuid", str),
    tuple: ("$tuple", lambda value: [to_json(item) for item in value]),
    set: ("$set", _in_order),
    frozenset: ("$frozenset", _in_order),
}


def to_json(value: Any) -> Any:
    """A value of the store as what `json.dumps` can write. A member of an Enum and a dataclass
    appear as they do where their class is not known: as its name, and as a map; a `Packed` as the
    value that it is, or as its bytes, under "$packed"."""
    kind = type(value)
    if kind is Packed:
        try:
            return to_json(unpack(value.data))
        except InvalidPayload:  # bytes as such, where nobody can read them
            return {"$packed": base64.b64encode(value.data).decode()}
    if kind is dict:
        found = {key: to_json(item) for key, item in value.items()}
        return {"$map": found} if _tag(found) else found
    if kind is list:
        return [to_json(item) for item in value]
    if kind is float and math.isinf(value):
        return {"$float": "Infinity" if value > 0 else "-Infinity"}
    if isinstance(value, Enum):
        return value.name
    if is_dataclass(value):
        return to_json({each.name: getattr(value, each.name) for each in fields(value)})
    writer = _WRITERS.get(kind)
    return value if writer is None else {writer[0]: writer[1](value)}


def from_json(document: Any, place: str = "value") -> Any:
    """The value that a JSON document stands for. Raises `InvalidValue` naming the place."""
    if type(document) is list:
        return [from_json(item, f"{place}[{index}]") for index, item in enumerate(document)]
    if type(document) is not dict:
        return document
    tag = _tag(document)
    if not tag:
        return {key: from_json(item, f"{place}[{key!r:.80}]") for key, item in document.items()}
    try:
        return _READERS[tag](document[tag], place)
    except InvalidValue:
        raise
    except (ValueError, TypeError, ArithmeticError):
        raise InvalidValue(
            f"{place}: {_line(document):.80} does not hold a {tag[1:]}",
            hint=f'to store such a map itself, write {{"$map": {{"{tag}": …}}}}',
        ) from None


def _tag(document: dict[str, Any]) -> str:
    """The tag of a map that stands for something else, "" for a plain map."""
    if len(document) != 1:
        return ""
    (key,) = document
    return key if key in _READERS else ""


def _items(found: Any, place: str) -> list[Any]:
    if type(found) is not list:
        raise ValueError
    return [from_json(item, f"{place}[{index}]") for index, item in enumerate(found)]


def _literal_map(found: Any, place: str) -> dict[str, Any]:
    if type(found) is not dict:
        raise ValueError
    return {key: from_json(item, f"{place}[{key!r:.80}]") for key, item in found.items()}


def _infinity(found: Any) -> float:
    if found not in ("Infinity", "-Infinity"):
        raise ValueError
    return float(found)


def _bytes(found: Any) -> bytes:
    return base64.b64decode(found, validate=True)


def _text(found: Any) -> str:
    if type(found) is not str:  # of a JSON number some digits may be lost already
        raise ValueError
    return found


_READERS: dict[str, Callable[[Any, str], Any]] = {
    "$bytes": lambda found, place: _bytes(found),
    "$datetime": lambda found, place: datetime.fromisoformat(found),
    "$date": lambda found, place: date.fromisoformat(found),
    "$time": lambda found, place: time.fromisoformat(found),
    "$decimal": lambda found, place: Decimal(_text(found)),
    "$uuid": lambda found, place: UUID(_text(found)),
    "$tuple": lambda found, place: tuple(_items(found, place)),
    "$set": lambda found, place: set(_items(found, place)),
    "$frozenset": lambda found, place: frozenset(_items(found, place)),
    "$float": lambda found, place: _infinity(found),
    "$map": _literal_map,
}
