"""Once: what was acknowledged took effect once, what was never answered at most once, what was
refused not at all; and nothing else took effect.

Rule 1: each commit is made by one operation: by the one that was told its revision, or that bears
        its `request`; else by one without a revision that would do just this there.
Rule 2: of those without a revision each makes at most one commit; who made which is a matching
        (by augmenting paths: Kuhn 1955). So a commit is accused only if no assignment clears it.
Rule 3: expiry needs nobody.

The history has to hold every request that may have changed a key of these commits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ckptmesh.testing.checkers.committed import Committed
from ckptmesh.testing.checkers.findings import Violation
from ckptmesh.testing.checkers.history import (
    Commit,
    Found,
    Increment,
    Ok,
    Operation,
    Put,
    Refused,
    Unknown,
)
from ckptmesh.testing.checkers.model import effects, names_of, play, same_changes, told_truly

Fits = Callable[[Operation, int], bool]
SUMS = 1_000_000  # sums of unanswered increments held at once by `check_counters`


def check_once(history: Sequence[Operation], commits: Sequence[Commit], *, start: int = 0,
               standing: Mapping[str, Found] | None = None) -> list[Violation]:
    """Violations of "once", none for a history that keeps it.

    `commits` is all that was committed after revision `start`, at which `standing` stood. Rules:
    "dense" (the commits are no sequence), "lost" (acknowledged, not there), "shared" (two were told
    the same revision), "twice", "refused" (and took effect all the same), "phantom" (nobody asked
    for this), and what an acknowledged one was wrongly told: "condition", "result".
    """
    committed = Committed(commits, start, standing)
    return committed.gaps() or Attribution(history, committed).attribute()


class Attribution:
    """Who made which commit: `owners` by revision. At first those that were told their revisions;
    the others after `attribute`."""

    def __init__(self, history: Sequence[Operation], committed: Committed) -> None:
        self.violations: list[Violation] = []
        self.owners: dict[int, Operation] = {}
        self._committed = committed
        self._loose: list[Operation] = []
        self._refused: list[Operation] = []
        for operation in history:
            if not operation.reads:
                self._sort_out(operation)

    def _sort_out(self, operation: Operation) -> None:
        if isinstance(operation.outcome, Refused):
            self._refused.append(operation)
        elif isinstance(operation.outcome, Ok) and operation.outcome.revision is not None:
            self._claim(operation, operation.outcome.revision)
        else:
            self._loose.append(operation)

    def _accuse(self, rule: str, message: str, revision: int | None,
                *operations: Operation) -> None:
        if operations:
            message = f"{operations[-1].name} {message}"
        self.violations.append(Violation(rule, message, operations, revision))

    # --- those that were told a revision -------------------------------------------------------

    def _claim(self, operation: Operation, revision: int) -> None:
        rule, message = self._objection(operation, revision)
        if not rule:
            self.owners[revision] = operation
        elif not self._idle(operation, revision):
            others = (self.owners[revision],) if rule == "shared" else ()
            self._accuse(rule, message, revision, *others, operation)

    def _objection(self, operation: Operation, revision: int) -> tuple[str, str]:
        """Why this commit cannot be its own: a rule and a sentence; ("", "") when it can."""
        if revision not in self._committed:
            return "lost", (f"was acknowledged at revision {revision}; the commits reach from "
                            f"{self._committed.start + 1} to {self._committed.head}")
        commit = self._committed[revision]
        look = self._committed.at(revision - 1)
        done = effects(operation, look)
        if not same_changes(done.changes, commit.changes) or not _same_request(operation, commit):
            return "lost", (f"was acknowledged at revision {revision}, and there stands "
                            f"something else: {_text(commit)}")
        if play(operation, look).refusal:
            return "condition", (f"was committed at revision {revision}, where its condition did "
                                 f"not hold")
        if not told_truly(operation, done):
            return "result", (f"was told {list(operation.results)} at revision {revision}; "
                              f"it did {list(done.results)}")
        if revision in self.owners:
            return "shared", (f"was told revision {revision}, and so was "
                              f"{self.owners[revision].name}")
        return "", ""

    def _idle(self, operation: Operation, revision: int) -> bool:
        """Whether it had nothing to do there, and was told just that."""
        if not self._committed.start <= revision <= self._committed.head:
            return False
        done = play(operation, self._committed.at(revision))
        return not done.refusal and not done.changes and told_truly(operation, done)

    # --- those that were not -------------------------------------------------------------------

    def attribute(self, fits: Fits = lambda operation, revision: True) -> list[Violation]:
        """Find makers for the rest; all violations. `fits` may rule out an operation for one."""
        rest = [commit for commit in self._committed.commits
                if commit.revision not in self.owners and not _of_its_own_accord(commit)]
        by_key: dict[str, list[Operation]] = {}
        for operation in self._loose:
            for key in operation.keys:
                by_key.setdefault(key, []).append(operation)
        could = {commit.revision: [operation
                                   for operation in by_key.get(_first_key(commit), ())
                                   if fits(operation, commit.revision)
                                   and self._explains(operation, commit)]
                 for commit in rest}
        owed = [operation for operation in self._loose
                if isinstance(operation.outcome, Ok) and not self._ever_idle(operation)]
        theirs = {id(operation) for operation in owed}
        makes: dict[int, int] = {}  # id of an operation -> the commit that it makes
        # First those that must have made one: an augmenting path takes it from none again.
        for choice in ({revision: [operation for operation in some if id(operation) in theirs]
                        for revision, some in could.items()}, could):
            for commit in rest:
                if commit.revision not in self.owners:
                    self._augment(commit.revision, choice, makes)
        for commit in rest:
            if commit.revision not in self.owners:
                self._explain(commit, could[commit.revision])
        for operation in owed:
            if id(operation) not in makes:
                self._accuse("lost", "was acknowledged, and no commit shows its effect", None,
                             operation)
        return self.violations

    def _augment(self, root: int, could: Mapping[int, Sequence[Operation]],
                 makes: dict[int, int]) -> None:
        """Find a maker for one more commit, others changing theirs where need be."""
        waiting = [root]
        reached: dict[int, int] = {}  # id of an operation -> the commit that it could make instead
        for revision in waiting:
            for operation in could[revision]:
                if id(operation) in reached:
                    continue
                reached[id(operation)] = revision
                if id(operation) in makes:
                    waiting.append(makes[id(operation)])
                    continue
                self._move(operation, reached, makes)
                return

    def _move(self, free: Operation, reached: Mapping[int, int], makes: dict[int, int]) -> None:
        """The free one takes the commit at which it was reached, whose maker takes another, …"""
        maker: Operation | None = free
        while maker is not None:
            taken = reached[id(maker)]
            former = self.owners.get(taken)
            makes[id(maker)], self.owners[taken] = taken, maker
            maker = former

    def _explains(self, operation: Operation, commit: Commit) -> bool:
        if not _same_request(operation, commit):
            return False
        done = play(operation, self._committed.at(commit.revision - 1))
        return (not done.refusal and same_changes(done.changes, commit.changes)
                and told_truly(operation, done))

    def _ever_idle(self, operation: Operation) -> bool:
        """Whether it may have had nothing to do, and so have made no commit."""
        if any(isinstance(step, Put | Increment) for step in operation.steps):
            return False
        revision: int | None = self._committed.start
        while revision is not None and not self._idle(operation, revision):
            revision = self._committed.next_change(names_of(operation), revision)
        return revision is not None

    def _explain(self, commit: Commit, could: Sequence[Operation]) -> None:
        """Nobody is left who could have made it: say what it looks like."""
        revision, text = commit.revision, _text(commit)
        if could:
            self._accuse("twice", f"took effect more often than it was asked for: revision "
                         f"{revision} is one too many, {text}", revision, *could)
            return
        for operation in (*self.owners.values(), *self._loose):
            if self._looks_like(operation, commit):
                self._accuse("twice", f"took effect once more at revision {revision}: {text}",
                             revision, operation)
                return
        for operation in self._refused:
            if self._looks_like(operation, commit):
                self._accuse("refused", f"was refused, and took effect at revision {revision}: "
                             f"{text}", revision, operation)
                return
        self._accuse("phantom", f"nobody asked for revision {revision}: {text}", revision)

    def _looks_like(self, operation: Operation, commit: Commit) -> bool:
        if commit.request is not None:
            return operation.request == commit.request
        return same_changes(effects(operation, self._committed.at(commit.revision - 1)).changes,
                            commit.changes)


def _first_key(commit: Commit) -> str:
    return commit.changes[0].key if commit.changes else ""


def _of_its_own_accord(commit: Commit) -> bool:
    return bool(commit.changes) and all(change.kind == "expire" for change in commit.changes)


def _same_request(operation: Operation, commit: Commit) -> bool:
    return None in (operation.request, commit.request) or operation.request == commit.request


def _text(commit: Commit) -> str:
    return ", ".join(f"{change.kind} {change.key}"
                     + (f" = {change.value!r}" if change.kind == "put" else "")
                     for change in commit.changes) or "nothing"


# --- without the commits -------------------------------------------------------------------------


def check_counters(history: Sequence[Operation], final: Mapping[str, int], *,
                   begun: Mapping[str, int] | None = None) -> list[Violation]:
    """Whether increments sum up: each counter's `final` value is what it began with (0), all that
    was acknowledged, and some of what was never answered. For keys that are incremented only.

    Rule: "sum". Raises `ValueError` where a counter was also written otherwise, or where its
    unanswered increments have more than a million sums.
    """
    found = []
    for key, value in final.items():
        concerned = [operation for operation in history
                     if not operation.reads and key in operation.keys]
        sure = (begun or {}).get(key, 0)
        sums = {0}
        for operation in concerned:
            step = next(step for step in operation.steps if step.key == key)
            if not isinstance(step, Increment):
                raise ValueError(f"{key!r} is not only incremented: {operation}")
            if isinstance(operation.outcome, Ok):
                sure += step.by
            elif isinstance(operation.outcome, Unknown):
                sums |= {total + step.by for total in sums}
                if len(sums) > SUMS:
                    raise ValueError(f"too many unanswered increments of {key!r}")
        if value - sure not in sums:
            open_ones = tuple(operation for operation in concerned
                              if isinstance(operation.outcome, Unknown))
            found.append(Violation(
                "sum", f"{key!r} is {value}; what was acknowledged makes {sure}, and no choice "
                f"among {len(open_ones)} unanswered increments makes the difference", open_ones))
    return found
