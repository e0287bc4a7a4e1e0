"""The committed sequence, to be looked at as of any of its revisions.

Rule 1: a revision that is missing or comes twice makes it no sequence: `gaps` tells, and nothing
        else of it may be used then.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence

from ckptmesh.testing.checkers.findings import Violation
from ckptmesh.testing.checkers.history import Commit, Found
from ckptmesh.testing.checkers.model import Look, made_of


class Committed:
    """Commits in the store's order, after revision `start`, at which `standing` stood."""

    def __init__(self, commits: Sequence[Commit], start: int = 0,
                 standing: Mapping[str, Found] | None = None) -> None:
        self.commits = commits
        self.start = start
        self.head = start + len(commits)
        self._revisions: dict[str, list[int]] = {}
        self._versions: dict[str, list[Found | None]] = {}
        for key, found in (standing or {}).items():
            self._note(key, start, found)
        for commit in commits:
            for key, standing_now in made_of(commit.changes, commit.revision).items():
                self._note(key, commit.revision, standing_now)

    def _note(self, key: str, revision: int, found: Found | None) -> None:
        self._revisions.setdefault(key, []).append(revision)
        self._versions.setdefault(key, []).append(found)

    def gaps(self) -> list[Violation]:
        """Where a revision is not the one after that before it."""
        found = []
        for expected, commit in enumerate(self.commits, self.start + 1):
            if commit.revision != expected:
                found.append(Violation(
                    "dense", f"revision {commit.revision} stands where {expected} belongs",
                    revision=commit.revision))
                break
        return found

    def __getitem__(self, revision: int) -> Commit:
        return self.commits[revision - self.start - 1]

    def __contains__(self, revision: int) -> bool:
        return self.start < revision <= self.head

    def at(self, revision: int) -> Look:
        """What stood under each key once that revision was committed."""
        def look(key: str) -> Found | None:
            place = bisect_right(self._revisions.get(key, ()), revision)
            return self._versions[key][place - 1] if place else None

        return look

    def next_change(self, keys: Iterable[str], after: int) -> int | None:
        """The first revision beyond `after` that changed any of these keys."""
        found = []
        for key in keys:
            revisions = self._revisions.get(key, ())
            place = bisect_right(revisions, after)
            if place < len(revisions):
                found.append(revisions[place])
        return min(found, default=None)
