"""Text ↔ values, versions, times: how the command line writes what a shell cannot hold.

A value is written as JSON; what JSON lacks is a map with one key that begins with `$`
(`features/readable.py`).

Rule 1: JSON is written without any character that could command a terminal.
"""

from __future__ import annotations

import json
import math
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

from ckptmesh.cli.text import escaped
from ckptmesh.config import duration
from ckptmesh.errors import InvalidKey, InvalidValue, Misuse
from ckptmesh.features.readable import from_json, to_json
from ckptmesh.limits import check_savepoint
from ckptmesh.messages import LAST_INDEX
from ckptmesh.values import Packed
from ckptmesh.views import Mark

__all__ = [
    "bare", "compact", "cut_of", "from_json", "indented", "key_and_revision", "kind_of", "mark_of",
    "mark_text", "moment_of", "revision_of", "to_json", "value_of",
]

_INTEGER_DIGITS = 20  # of 2**64 - 1


# --- values → JSON ----------------------------------------------------------------------------


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
    if isinstance(value, Packed):  # which it still is
        return "unreadable"
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


def cut_of(text: str) -> int | datetime | str:
    """A moment, or the name of a savepoint. Raises `Misuse`."""
    try:
        return moment_of(text)
    except Misuse as nonsense:
        with suppress(InvalidKey):
            check_savepoint(text)
            return text
        raise nonsense from None


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
