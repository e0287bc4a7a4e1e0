"""Cleaning up: checkpoints under a prefix go by age and by number.

Rule 1: what goes is planned first, from one cut, and can be looked at: `plan`, then `clean`.
Rule 2: each is deleted only as it was planned: what was committed since stays.
Rule 3: leases never go, nor keys with a segment that begins with `_`: those are ckptmesh's own, and
        whoever made them cleans them up.
Rule 4: ages are counted by the store's clock.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ckptmesh.api import seconds
from ckptmesh.clock import Seconds
from ckptmesh.errors import Conflict, Misuse
from ckptmesh.features.pages import Progress, StorePages, cut_of, store_time
from ckptmesh.flows import Flow, settled
from ckptmesh.limits import CLEANUP_KEYS, EXPORT_BATCH, check_prefix


@dataclass(frozen=True, slots=True)
class Candidate:
    """A checkpoint that is to go, as it stood in the plan; `micros`: when it was committed."""

    key: str
    revision: int
    micros: int
    size: int


@dataclass(frozen=True, slots=True)
class CleanupPlan:
    """What a cleanup would delete, in key order, of `seen` checkpoints under `prefix` as of
    `revision`. `more`: there is more to delete than one plan holds; plan again afterwards."""

    prefix: str
    revision: int
    now: int
    seen: int
    candidates: tuple[Candidate, ...]
    more: bool = False


@dataclass(frozen=True, slots=True)
class CleanupReport:
    """What a cleanup deleted, and how many of the plan it `kept` since they changed or went; both
    0 with `dry_run`."""

    plan: CleanupPlan
    deleted: int
    kept: int


def plan(store: Any, prefix: str, older_than: Seconds | None, keep: int | None,
         progress: Progress | None = None) -> Flow[CleanupPlan]:
    """What is older than that, and not among the `keep` newest under the prefix. Raises
    as `Client.cleanup`."""
    check_prefix(prefix)
    if older_than is None and keep is None:
        raise Misuse("what is to go?", hint="older_than=timedelta(days=30), or keep=10, or both")
    if keep is not None and (type(keep) is not int or keep < 0):
        raise Misuse(f"keep is a number from 0 up, not {keep!r:.80}")
    now = yield from store_time(store)
    revision = yield from cut_of(store, None)
    spared, seen = yield from _newest(StorePages(store, prefix, revision), keep or 0, progress)
    latest = now - int(seconds(older_than, 0.0, "older_than") * 1e6)
    found: list[Candidate] = []
    more = False
    pages = StorePages(store, prefix, revision)
    while not more and (page := (yield from pages.page())):
        for each in page:
            if _own(each.key) or each.key in spared or each.micros > latest:
                continue
            if len(found) == CLEANUP_KEYS:
                more = True
                break
            found.append(Candidate(each.key, each.revision, each.micros, len(each.value.data)))
    return CleanupPlan(prefix, revision, now, seen, tuple(found), more)


def _newest(pages: StorePages, keep: int, progress: Progress | None
            ) -> Flow[tuple[set[str], int]]:
    """The keys of the newest so many, and how many there are in all."""
    newest: list[tuple[int, str]] = []  # a heap: the oldest of the newest first
    seen = 0
    while page := (yield from pages.page()):
        for each in page:
            if _own(each.key):
                continue
            seen += 1
            if keep:
                entry = (each.revision, each.key)
                (heapq.heappush if len(newest) < keep else heapq.heappushpop)(newest, entry)
        if progress is not None:
            progress("looked at", seen, None)
    return {key for _, key in newest}, seen


def _own(key: str) -> bool:
    return "/_" in key


def clean(store: Any, planned: CleanupPlan, progress: Progress | None = None
          ) -> Flow[CleanupReport]:
    """Delete what was planned and has not changed since. Raises as `delete`."""
    deleted = 0
    for start in range(0, len(planned.candidates), EXPORT_BATCH):
        batch = planned.candidates[start:start + EXPORT_BATCH]
        deleted += yield from _delete(store, batch)
        if progress is not None:
            progress("deleted", deleted, len(planned.candidates))
    return CleanupReport(planned, deleted, len(planned.candidates) - deleted)


def cleanup(store: Any, prefix: str, older_than: Seconds | None, keep: int | None, dry_run: bool
            ) -> Flow[CleanupReport]:
    """Plan and delete. Raises as `Client.cleanup`."""
    planned = yield from plan(store, prefix, older_than, keep)
    if dry_run:
        return CleanupReport(planned, 0, 0)
    report = yield from clean(store, planned)
    return report


def _delete(store: Any, batch: Sequence[Candidate]) -> Flow[int]:
    """Delete those that stand as planned; how many."""
    left = {each.key: each.revision for each in batch}
    while left:
        transaction = store.transaction()
        for key, revision in left.items():
            transaction.delete(key, expect=revision)
        try:
            yield from settled(transaction.commit)
        except Conflict as conflict:
            del left[conflict.details["key"]]  # each turn leaves one out, so it comes to an end
        else:
            break
    return len(left)
