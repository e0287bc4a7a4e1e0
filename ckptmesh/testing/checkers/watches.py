"""Watches: whether a watcher was given every change once, in order, up to where it says.

Rule 1: the commits are the measure; a watch of a prefix owes those of its keys, no others.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from ckptmesh.limits import under
from ckptmesh.testing.checkers.findings import Violation
from ckptmesh.testing.checkers.history import Change, Commit, change_of
from ckptmesh.testing.checkers.model import same_changes
from ckptmesh.views import Mark


class Seen(NamedTuple):
    """One event as a watcher was given it."""

    revision: int
    change: Change


def seen_of(events: Iterable[Any]) -> list[Seen]:
    """What `ckptmesh.Event`s show, in the order given."""
    return [Seen(event.revision, change_of(event)) for event in events]


def check_watch(seen: Sequence[Seen], commits: Sequence[Commit], *, prefix: str = "",
                since: Mark | int = 0, complete_to: int | None = None) -> list[Violation]:
    """Violations of "a watcher misses nothing, sees nothing twice, sees it in order".

    `since` is the mark or revision after which the watch began, `prefix` what it selects (whole
    segments). All up to revision `complete_to` must have been given; left out: up to the last event
    that was. Rules: "missed", "twice", "order", "content" (another change of that key than was
    committed), "phantom" (no such change was committed), "outside" (of the prefix, or before the
    start).
    """
    mark = since if isinstance(since, Mark) else Mark(since)
    owed = {(revision, change.key): (place, change)
            for place, (revision, change) in enumerate(_owed(commits, prefix, mark))}
    committed = {(commit.revision, change.key) for commit in commits for change in commit.changes}
    found: list[Violation] = []
    given: set[tuple[int, str]] = set()
    last = -1
    for revision, change in seen:
        name = (revision, change.key)
        if name not in owed:
            found.append(_uncalled(name, name in committed))
            continue
        place, real = owed[name]
        if name in given:
            found.append(_about("twice", "was given twice", *name))
        elif place < last:
            found.append(_about("order", "was given after a later one", *name))
        if not same_changes((change,), (real,)):
            found.append(_about("content", f"was given as {change}, and committed as {real}",
                                *name))
        given.add(name)
        last = max(last, place)
    for name, (place, _) in owed.items():
        due = place < last or (complete_to is not None and name[0] <= complete_to)
        if due and name not in given:
            found.append(_about("missed", "was never given", *name))
    return found


def _owed(commits: Sequence[Commit], prefix: str, mark: Mark) -> Iterator[Seen]:
    for commit in commits:
        for index, change in enumerate(commit.changes):
            if (commit.revision, index) > mark and under(prefix, change.key):
                yield Seen(commit.revision, change)


def _uncalled(name: tuple[int, str], committed: bool) -> Violation:
    if committed:
        return _about("outside", "was given, and lies outside of this watch", *name)
    return _about("phantom", "was given, and never committed", *name)


def _about(rule: str, what: str, revision: int, key: str) -> Violation:
    return Violation(rule, f"the change of {key!r} at revision {revision} {what}",
                     revision=revision)
