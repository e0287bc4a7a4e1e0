"""Text ↔ values, versions, times: how the command line writes what a shell cannot hold.

A value is written as JSON. What JSON lacks is a map with one key that begins with `$`:

  {"$bytes": "aGk="}               bytes, base64
  {"$datetime": "2024-05-01T10:30:00+02:00"}   also $date, $time: ISO-8601
  {"$decimal": "1.50"}             Decimal
  {"$uuid": "0188…"}               UUID
  {"$tuple": […]}                  also $set, $frozenset: the items (sets in a fixed order)
  {"$float": "Infinity"}           also "-Infinity"
  {"$map": {"$bytes": "text"}}     a map that would otherwise be read as one of these

Rule 1: `from_json(to_json(value)) == value` for whatever the store can hold.
Rule 2: JSON is written without any character that could command a terminal.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from ckptmesh.cli.text import escaped
from ckptmesh.config import duration
from ckptmesh.errors import InvalidValue, Misuse
from ckptmesh.messages import LAST_INDEX
from ckptmesh.views import Mark

_INTEGER_DIGITS = 20  # of 2**64 - 1


# --- values → JSON ----------------------------------------------------------------------------

def _in_order(items: set[Any] | frozenset[Any]) -> list[Any]:
    return sorted((to_json(item) for item in items), key=compact)


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
    """A value of the store as what `json.dumps` can write."""
    kind = type(value)
    if kind is dict:
        found = {key: to_json(item) for key, item in value.items()}
        return {"$map": found} if _tag(found) else found
    if kind is list:
        return [to_json(item) for item in value]
    if kind is float and math.isinf(value):
        return {"$float": "Infinity" if value > 0 else "-Infinity"}
    writer = _WRITERS.get(kind)
    return value if writer is None else {writer[0]: writer[1](value)}


def compact(document: Any) -> str:
    """A JSON document on one line, safe to show on a terminal."""
    return escaped(json.dumps(document, ensure_ascii=False, separators=(", ", ": ")))


def indented(document: Any) -> str:
    """A JSON document over several lines, safe to show on a terminal."""
    lines = json.dumps(document, ensure_ascii=False, indent=2).split("\n")
    return "\n".join(map(escaped, lines))


def bare(value: Any) -> str:
    """What `state get` prints: a string as it is, anything else as JSON on one line."""
    return value if type(value) is str else compact(to_json(value))


_NAMES = {
    type(None): "null", bool: "boolean", int: "integer", float: "float", str: "string",
    dict: "map", list: "list",
}


def kind_of(value: Any) -> str:
    """The type of a value in words of the command line."""
    return _NAMES.get(type(value), type(value).__name__.lower())


# --- JSON → values ----------------------------------------------------------------------------


def value_of(text: str) -> Any:
    """What `state set` stores: the JSON value that the text is, else the text itself.

    Raises `InvalidValue` where the text is JSON, but not of a value that can be kept exactly.
    """
    try:
        document = json.loads(text, object_pairs_hook=_map, parse_constant=_not_json,
                              parse_float=_float, parse_int=_integer)
    except json.JSONDecodeError:
        return text
    except RecursionError:
        raise InvalidValue("the JSON is nested too deeply") from None
    return from_json(document)


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
            f"{place}: {compact(document):.80} does not hold a {tag[1:]}",
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


def _map(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise InvalidValue("the JSON has a key twice in one map", hint="which one should count?")
    return found


def _not_json(name: str) -> Any:
    raise json.JSONDecodeError(f"{name} is not JSON", name, 0)


def _float(text: str) -> float:
    found = float(text)
    if math.isinf(found):
        raise InvalidValue(f"{text:.40} is beyond what a float holds",
                           hint='use {"$decimal": "…"}')
    return found


def _integer(text: str) -> int:
    if len(text.lstrip("-")) > _INTEGER_DIGITS:
        raise InvalidValue(f"the integer {text[:20]}… is beyond 64 bits",
                           hint='use {"$decimal": "…"}')
    return int(text)


# --- versions, times, durations ---------------------------------------------------------------


def key_and_revision(text: str) -> tuple[str, int | None]:
    """`orders@7` → ("orders", 7); `orders` and `orders@` → ("orders", None).

    So a key that itself ends in @DIGITS is named with one more @.
    """
    key, found, revision = text.rpartition("@")
    if not found or (revision and not _is_number(revision)):
        return text, None
    return key, int(revision) if revision else None


def revision_of(text: str) -> int:
    """A revision: `7`, or `orders@7` as `state set` prints it. Raises `Misuse`."""
    number = text.rpartition("@")[2]
    if not _is_number(number):
        raise Misuse(f"{text!r} is not a revision", hint="write 7 or KEY@7; 0 means: no such key")
    return int(number)


def mark_of(text: str) -> Mark:
    """A place in the store's order: `7` (all of revision 7), `7.2` (up to its event 2)."""
    revision, dot, index = text.rpartition("@")[2].partition(".")
    if not _is_number(revision) or (dot and not _is_number(index)):
        raise Misuse(f"{text!r} is no place to start from",
                     hint="write a revision, 7, or what an event gave as `resume`, 7.2")
    return Mark(int(revision), int(index) if dot else LAST_INDEX)


def mark_text(mark: Mark) -> str:
    """What `mark_of` reads."""
    return str(mark.revision) if mark.index == LAST_INDEX else f"{mark.revision}.{mark.index}"


def moment_of(text: str, now: datetime | None = None) -> int | datetime:
    """A revision (`7`), a time (`2024-05-01T10:30Z`) or how long ago (`10m`). Raises `Misuse`.

    `now`: what "ago" is counted from; this machine's clock when not given.
    """
    if _is_number(text):
        return int(text)
    try:
        ago = timedelta(seconds=duration(text))
        return (now or datetime.now(UTC)) - ago
    except (Misuse, OverflowError):
        pass
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise Misuse(
            f"{text!r} is neither a revision nor a time",
            hint="write a revision (7), a time (2024-05-01T10:30Z) or how long ago (10m, 2h, 1d)",
        ) from None
    if moment.tzinfo is None:
        raise Misuse(f"{text} has no time zone", hint=f"write {text}Z for UTC, or {text}+02:00")
    return moment


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= _INTEGER_DIGITS
