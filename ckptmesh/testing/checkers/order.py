"""By commit order: what clients were told, against the order that the store says it kept.

Revisions make the order visible, so nothing has to be searched for: one pass over the history by
time, O(n log n). Each operation gets a place in the order: a write its revision, whatever reads
the cut that it names, or else the first one at which it would have been told the same. Operations
that had returned before another was invoked have their places before it (Herlihy & Wing,
"Linearizability: a correctness condition for concurrent objects", 1990). The first possible place
is the best: whatever follows is bound least by it.

Rule 1: this trusts the revisions. Whether clients could tell any difference without them is what
        `linearizability.py` checks; what took effect how often, `once.py`.
Rule 2: at equal times two operations overlap.

Reads of keys that expire by themselves are judged by the commit of their expiry; a store may hide
them a little earlier, so leave those reads out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ckptmesh.testing.checkers.committed import Committed
from ckptmesh.testing.checkers.findings import Violation
from ckptmesh.testing.checkers.history import Commit, Found, Ok, Operation, Refused, Unknown
from ckptmesh.testing.checkers.model import (
    Look,
    names_of,
    play,
    refused_truly,
    says_nothing,
    told_truly,
)
from ckptmesh.testing.checkers.once import Attribution


def check_order(history: Sequence[Operation], commits: Sequence[Commit], *, start: int = 0,
                standing: Mapping[str, Found] | None = None) -> list[Violation]:
    """Violations of the one order, none for a history that keeps it.

    `commits` is all that was committed after revision `start`, at which `standing` stood. Rules:
    those of `check_once`, and "order" (a revision not beyond what had been acknowledged before),
    "stale" (what was told was true once, and no longer), "read" (it was true at no time), "future"
    (a cut beyond the head), "refusal" (nothing stood in its way).
    """
    committed = Committed(commits, start, standing)
    broken = committed.gaps()
    if broken:
        return broken
    made = Attribution(history, committed)
    sweep = _Sweep(history, committed, made.owners)
    return made.attribute(sweep.fits) + sweep.violations


class _Sweep:
    """The pass over all invocations and returns. `bound` of each operation: the greatest place of
    those that had returned before it was invoked; `before`: which one has it."""

    def __init__(self, history: Sequence[Operation], committed: Committed,
                 owners: Mapping[int, Operation]) -> None:
        self.violations: list[Violation] = []
        self._committed = committed
        self._owners = owners
        self._bounds: dict[int, int] = {}  # id of an operation -> its bound
        self._limits: dict[int, int] = {}
        bound, before = committed.start, None
        places: dict[int, int] = {}
        events = sorted([(operation.invoked_at, 0, index)
                         for index, operation in enumerate(history)]
                        + [(operation.returned_at, 1, index)
                           for index, operation in enumerate(history)
                           if operation.returned_at is not None])
        for _, returned, index in events:
            operation = history[index]
            if not returned:
                self._bounds[id(operation)] = bound
                places[index] = self._place(operation, bound, before)
            elif places[index] > bound:
                bound, before = places[index], operation
        self._limit(history, events)

    def _limit(self, history: Sequence[Operation], events: Sequence[tuple[int, int, int]]) -> None:
        """An acknowledged write without a revision lies before all writes invoked afterwards."""
        limit = self._committed.head + 1
        for _, returned, index in reversed(events):
            operation = history[index]
            if returned:
                self._limits[id(operation)] = limit
            elif (isinstance(operation.outcome, Ok) and not operation.reads
                    and operation.outcome.revision is not None):
                limit = min(limit, operation.outcome.revision)

    def fits(self, operation: Operation, revision: int) -> bool:
        """Whether time allows it to have made this commit."""
        limit = self._limits.get(id(operation), revision + 1)
        return self._bounds[id(operation)] < revision <= limit

    def _accuse(self, rule: str, message: str, revision: int | None, operation: Operation,
                before: Operation | None) -> None:
        others = () if before is None else (before,)
        self.violations.append(Violation(rule, f"{operation.name} {message}", (*others, operation),
                                         revision))

    def _place(self, operation: Operation, bound: int, before: Operation | None) -> int:
        """Its place in the order, or where it has none, that of what came before it."""
        outcome = operation.outcome
        if isinstance(outcome, Unknown) or says_nothing(operation):
            return bound
        if isinstance(outcome, Ok) and not operation.reads:
            return self._place_of_write(operation, outcome.revision, bound, before)
        if isinstance(outcome, Ok) and outcome.revision is not None:
            return self._place_of_cut(operation, outcome.revision, bound, before)
        first = max([bound, *(found.revision or 0 for found in operation.results if found)])
        place = self._first_place(operation, first)
        if place is None:
            self._untrue(operation, bound, before)
        return bound if place is None else place

    def _place_of_write(self, operation: Operation, revision: int | None, bound: int,
                        before: Operation | None) -> int:
        if revision is None or revision > self._committed.head:  # `once` tells the latter
            return bound
        idle = self._owners.get(revision) is not operation
        if revision < bound or (revision == bound and not idle):
            self._accuse("order", f"was acknowledged at revision {revision}, although {bound} had "
                         f"been reached before it was invoked", revision, operation, before)
        return max(revision, bound)

    def _place_of_cut(self, operation: Operation, cut: int, bound: int,
                      before: Operation | None) -> int:
        if cut > self._committed.head:
            self._accuse("future", f"read at revision {cut}; the head is {self._committed.head}",
                         cut, operation, None)
            return bound
        if not self._true_at(operation, self._committed.at(cut)):
            self._accuse("read", f"was told what did not stand at revision {cut}", cut, operation,
                         None)
        elif cut < bound:
            self._accuse("stale", f"read at revision {cut}, although {bound} had been reached "
                         f"before it was invoked", cut, operation, before)
        return max(cut, bound)

    def _true_at(self, operation: Operation, look: Look) -> bool:
        if isinstance(operation.outcome, Refused):
            return refused_truly(operation, look)
        return told_truly(operation, play(operation, look))

    def _first_place(self, operation: Operation, first: int) -> int | None:
        keys = names_of(operation)
        place: int | None = first
        while place is not None and not self._true_at(operation, self._committed.at(place)):
            place = self._committed.next_change(keys, place)
        return place

    def _untrue(self, operation: Operation, bound: int, before: Operation | None) -> None:
        once = self._first_place(operation, self._committed.start)
        if once is not None:
            self._accuse("stale", f"was told what stood at revision {once}, and no longer at "
                         f"{bound}, which had been reached before it was invoked", once,
                         operation, before)
        elif isinstance(operation.outcome, Refused) and not operation.outcome.stands:
            self._accuse("refusal", "was refused, and nothing ever stood in its way", None,
                         operation, None)
        else:
            self._accuse("read", "was told what never stood there", None, operation, None)
