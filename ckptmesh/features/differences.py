"""What differs between two states: two cuts of a store, two stores, or an export and any of them.

    for each in differences(rows_of(mesh, at=120), rows_of(mesh)):
        print(each.kind, each.key)

Rule 1: both sides come in key order and are read side by side: a page of each is in memory.
Rule 2: two checkpoints differ by value (to the byte), position or head; revisions and times belong
        to a store, and do not count.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from ckptmesh.api import Moment
from ckptmesh.features.pages import FilePages, Pages, StorePages, cut_of, same
from ckptmesh.features.portable import Reader
from ckptmesh.flows import run
from ckptmesh.views import Checkpoint


class Difference(NamedTuple):
    """One key. `kind`: "added" (only after), "removed" (only before) or "changed"; values are
    `Packed`."""

    kind: str
    key: str
    before: Checkpoint | None
    after: Checkpoint | None


def rows_of(store: Any, prefix: str = "", *, at: Moment | None = None) -> Iterator[Checkpoint]:
    """The checkpoints of a cut of a plain client's store, values packed, without leases. Raises as
    `get`."""
    return _rows(StorePages(store, prefix, run(cut_of(store, at))))


def rows_in(reader: Reader, prefix: str = "") -> Iterator[Checkpoint]:
    """The checkpoints of an export. Raises as `Reader`, at the latest after the last of them."""
    return _rows(FilePages(reader, prefix))


def _rows(pages: Pages) -> Iterator[Checkpoint]:
    while page := run(pages.page()):
        yield from page


def differences(before: Iterable[Checkpoint], after: Iterable[Checkpoint]) -> Iterator[Difference]:
    """What differs, in key order. Both sides ascend by key."""
    left, right = iter(before), iter(after)
    one, other = next(left, None), next(right, None)
    while one is not None or other is not None:
        found, go_left, go_right = difference(one, other)
        if found is not None:
            yield found
        if go_left:
            one = next(left, None)
        if go_right:
            other = next(right, None)


def difference(one: Checkpoint | None, other: Checkpoint | None
               ) -> tuple[Difference | None, bool, bool]:
    """What two sides, at these checkpoints, differ in next, and on which of them to go on."""
    if other is None or (one is not None and one.key < other.key):
        assert one is not None
        return Difference("removed", one.key, one, None), True, False
    if one is None or other.key < one.key:
        return Difference("added", other.key, None, other), False, True
    return (None if same(one, other) else Difference("changed", one.key, one, other)), True, True
