"""What a field of mergeable state can be: counters, extremes, sets, last writers, and maps of them.

    from ckptmesh import merge
    mesh.merge("totals", rows=merge.Add(3), seen=merge.Union(ids), peak=merge.Max(x))

Rule 1: what is kept is plain: a number, a set, a value, a map. What each field is stands beside
        them, under `NOTES`, so that a counter is never taken for a maximum.
Rule 2: the order of merging makes no difference, but where a type says so. (State-based convergent
        types, as M. Shapiro, N. Preguiça, C. Baquero and M. Zawirski define them in "Conflict-free
        Replicated Data Types", 2011; here one store decides, so a counter is one number.)
Rule 3: nothing here asks a store. A merge that cannot be is refused before anything is written.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import date, datetime
from decimal import Context, Decimal, Inexact, InvalidOperation
from enum import Enum
from math import inf
from typing import Any
from uuid import UUID

from ckptmesh import values
from ckptmesh.clock import from_datetime, to_datetime
from ckptmesh.errors import InvalidPayload, InvalidValue, Misuse, TooLarge
from ckptmesh.limits import MERGE_DIGITS, MERGE_MEMBERS

__all__ = ["Add", "Last", "Max", "Merge", "Min", "PerKey", "Union"]

NOTES = "_merge"  # the field that says what the others are; no other may have this name
Kept = tuple[Any, Any]
"""What is kept of a field: its value, and the note that says what it is."""


class Merge:
    """What one merge brings to one field; the types below are all there are."""

    kind: str

    def first(self, field: str) -> Kept:
        """What is kept where nothing is yet. Raises as `join`."""
        raise NotImplementedError

    def join(self, kept: Kept, field: str) -> Kept:
        """What is kept then. Raises `Misuse`, `InvalidValue`, `TooLarge`, naming the field."""
        raise NotImplementedError

    def onto(self, kept: Kept | None, field: str) -> Kept:
        """What is kept after this, given what is kept of this field so far, if anything. Raises
        as `join`; `Misuse` where the field is of another type."""
        if kept is None:
            return self.first(field)
        kind = kind_of(kept[1])
        if kind != self.kind:
            raise Misuse(f"field {field!r} is {_NAMES[kind]}, not {_NAMES[self.kind]}: nothing was "
                         "merged", hint="a field stays what it was first; use another name",
                         field=field, holds=kind, given=self.kind)
        return self.join(kept, field)


class Add(Merge):
    """A counter. `by` is an int or a Decimal, which are added exactly, or a float.

    Exact ones go together, and give the same whatever the order: integers up to 64 bits, decimals
    up to `MERGE_DIGITS` digits; beyond, `InvalidValue`. A field of floats takes floats alone; their
    sum depends on the order in its last digits. Merged twice is counted twice.
    """

    kind = "add"

    def __init__(self, by: int | float | Decimal = 1) -> None:
        if _scale_of(by) != "numbers" or by in (inf, -inf):
            raise Misuse(f"Add takes a finite number, not {by!r:.80}")
        self.by = by

    def first(self, field: str) -> Kept:
        return self.by, self.kind

    def join(self, kept: Kept, field: str) -> Kept:
        value, note = kept
        if isinstance(value, float) != isinstance(self.by, float):
            raise Misuse(f"field {field!r} counts {_exactness(value)}, not {_exactness(self.by)}",
                         hint="write Add(3.0) for floats, Add(3) or Add(Decimal('0.5')) for exact "
                         "numbers", field=field)
        if isinstance(value, Decimal) or isinstance(self.by, Decimal):
            return _exact_sum(value, self.by, field), note
        total = value + self.by
        if total in (inf, -inf):
            raise InvalidValue(f"field {field!r}: the sum is beyond what a float can be",
                               field=field)
        return total, note


class Max(Merge):
    """The greatest ever merged: of numbers, strings, aware datetimes, or dates; a field stays with
    one of these. Merged twice is as merged once."""

    kind = "max"

    def __init__(self, value: Any) -> None:
        self._scale = _scale(value)
        self.value = value

    def first(self, field: str) -> Kept:
        return self.value, self.kind

    def join(self, kept: Kept, field: str) -> Kept:
        value, note = kept
        if _scale(value) != self._scale:
            raise Misuse(f"field {field!r} compares {_scale(value)}, not {self._scale}",
                         field=field)
        return (self.value if self._beyond(value) else value), note

    def _beyond(self, value: Any) -> bool:
        return bool(self.value > value)


class Min(Max):
    """The least ever merged; else as `Max`."""

    kind = "min"

    def _beyond(self, value: Any) -> bool:
        return bool(self.value < value)


class Union(Merge):
    """A set that only grows, of strings, integers, bytes, UUIDs, dates or aware datetimes. Merged
    twice is as merged once.

    `limit`: members that it may have in all, from 1 up; beyond, `TooLarge`. Each merge reads and
    writes the whole set.
    """

    kind = "union"

    def __init__(self, members: Iterable[Any], *, limit: int = MERGE_MEMBERS) -> None:
        if isinstance(members, str | bytes):  # its characters would be taken for members
            raise Misuse(f"Union takes several members, not the one {members!r:.80}",
                         hint="write Union([member])")
        self.members = list(members)
        self.limit = _checked_limit(limit)
        for member in self.members:
            if not _is_member(member):
                raise Misuse(f"a member is a string, an integer, bytes, a UUID, a date or an aware "
                             f"datetime, not {member!r:.80}")

    def first(self, field: str) -> Kept:
        return self.join((set(), self.kind), field)

    def join(self, kept: Kept, field: str) -> Kept:
        value, note = kept
        together = value.union(self.members)
        _bound(len(together), self.limit, "members", "Union(members, limit=…)", field)
        return together, note


class Last(Merge):
    """The value of the last writer: any value that can be committed.

    Without `at`, last is who commits last: the store's order decides, and so the order of merging
    makes the difference. With `at`, an aware datetime, the latest of these wins, whoever commits
    last; of two at one microsecond the one whose packed bytes are greater. A field stays with one
    of the two.
    """

    def __init__(self, value: Any, at: datetime | None = None) -> None:
        self.value = value
        self.at = None if at is None else to_datetime(from_datetime(at))
        self.kind = "last" if at is None else "latest"

    def first(self, field: str) -> Kept:
        return self.value, self.kind if self.at is None else [self.kind, self.at]

    def join(self, kept: Kept, field: str) -> Kept:
        value, note = kept
        if self.at is not None and (self.at < note[1] or (
                self.at == note[1] and values.pack(self.value) <= values.pack(value))):
            return kept
        return self.first(field)


class PerKey(Merge):
    """A map whose keys are strings, each with a type of its own: `PerKey({"extract": Add(3)})`.
    Keys that a merge does not name stay as they are.

    `limit`: keys that it may have in all, from 1 up; beyond, `TooLarge`.
    """

    kind = "per key"

    def __init__(self, fields: Mapping[str, Merge], *, limit: int = MERGE_MEMBERS) -> None:
        for name, part in fields.items():
            if not isinstance(name, str) or not name or name == NOTES:
                raise Misuse(f"{name!r:.80} cannot be the name of a field",
                             hint=f"it is a string of at least one character, and not {NOTES!r}")
            if not isinstance(part, Merge):
                raise Misuse(f"field {name!r:.80} is given {part!r:.80}, which does not say how to "
                             "merge it", hint="write merge.Add(…), Max, Min, Union, Last or PerKey")
        self.fields = dict(fields)
        self.limit = _checked_limit(limit)

    def first(self, field: str) -> Kept:
        return self.join(({}, {}), field)

    def join(self, kept: Kept, field: str) -> Kept:
        found, notes = dict(kept[0]), dict(kept[1])
        for name, part in self.fields.items():
            known = (found[name], notes[name]) if name in notes else None
            found[name], notes[name] = part.onto(known, f"{field}/{name}" if field else name)
        _bound(len(found), self.limit, "keys", "PerKey(fields, limit=…)", field)
        return dict(sorted(found.items())), dict(sorted(notes.items()))


# --- what is kept, and its notes --------------------------------------------------------------


def kind_of(note: Any) -> str:
    """The type of a field, given its note; "" for what is none."""
    if isinstance(note, dict):
        return PerKey.kind
    kind = note[0] if isinstance(note, list) and len(note) == 2 else note
    return kind if isinstance(kind, str) and kind in _NAMES else ""


def read(value: Any, key: str) -> Kept:
    """What is kept of all fields, given the value of a checkpoint: a map, and the notes. Raises
    `InvalidPayload` for what no merge has written."""
    if isinstance(value, dict):
        fields = {name: kept for name, kept in value.items() if name != NOTES}
        notes = value.get(NOTES)
        if isinstance(notes, dict) and _agree(fields, notes):
            return fields, notes
    raise InvalidPayload(f"what is stored under {key!r} is not mergeable state", key=key,
                         hint="only merge() writes it; choose another key, or delete this one")


def written(kept: Kept) -> dict[str, Any]:
    """The value of a checkpoint, given what is kept: what `read` takes."""
    return {**kept[0], NOTES: kept[1]}


def _agree(fields: Any, notes: dict[str, Any]) -> bool:
    """Whether each field is what its note says."""
    if not isinstance(fields, dict) or fields.keys() != notes.keys():
        return False
    for name, note in notes.items():
        kind, value = kind_of(note), fields[name]
        if not kind or (isinstance(note, dict) and not _agree(value, note)):
            return False
        if isinstance(note, list) != (kind == "latest") or not _fits(kind, value):
            return False
        if isinstance(note, list) and not isinstance(note[1], datetime):
            return False
    return True


def _fits(kind: str, value: Any) -> bool:
    if kind == "union":
        return isinstance(value, set)
    return kind not in ("add", "max", "min") or _scale_of(value) in (
        ("numbers",) if kind == "add" else _SCALES)


_NAMES = {"add": "a counter (Add)", "max": "a maximum (Max)", "min": "a minimum (Min)",
          "union": "a set (Union)", "last": "the last writer's (Last)",
          "latest": "the latest (Last with at=)", "per key": "a map (PerKey)", "": "nothing known"}
_SCALES = ("numbers", "strings", "datetimes", "dates")


def _scale_of(value: Any) -> str:
    """What a value can be compared with; "" where nothing."""
    if isinstance(value, bool | Enum):
        return ""
    if isinstance(value, Decimal):
        return "" if value.is_nan() else "numbers"
    if isinstance(value, int | float):
        return "" if value != value else "numbers"
    if isinstance(value, datetime):
        return "" if value.utcoffset() is None else "datetimes"
    return "strings" if isinstance(value, str) else "dates" if isinstance(value, date) else ""


def _scale(value: Any) -> str:
    found = _scale_of(value)
    if not found:
        raise Misuse(f"{value!r:.80} has no order to merge by",
                     hint="give a number that is not NaN, a string, a date or an aware datetime")
    return found


def _is_member(value: Any) -> bool:
    if isinstance(value, datetime):
        return value.utcoffset() is not None
    # Not bool nor float: 1, 1.0 and True are one member, and which is kept would be chance.
    return (isinstance(value, str | int | bytes | UUID | date)
            and not isinstance(value, bool | Enum))


def _exactness(value: Any) -> str:
    return "floats" if isinstance(value, float) else "exact numbers"


def _exact_sum(one: Any, other: Any, field: str) -> Decimal:
    exact = Context(prec=MERGE_DIGITS, traps=[Inexact, InvalidOperation])
    try:
        return exact.add(Decimal(one), Decimal(other))
    except (Inexact, InvalidOperation):
        raise InvalidValue(f"field {field!r}: the sum has more than {MERGE_DIGITS} digits",
                           field=field) from None


def _checked_limit(limit: int) -> int:
    if type(limit) is not int or limit < 1:
        raise Misuse(f"a limit is a number from 1 up, not {limit!r:.80}")
    return limit


def _bound(size: int, limit: int, what: str, where: str, field: str) -> None:
    if size > limit:
        name = f"field {field!r}" if field else "the state"
        raise TooLarge(f"{name} would have {size:,} {what}; the limit is {limit:,}: nothing was "
                       "merged", hint=f"raise it with {where}, or spread them over several keys",
                       size=size, limit=limit, field=field)
