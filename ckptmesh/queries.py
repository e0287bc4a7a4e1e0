"""Reading the state: cuts, scans, histories, events. Nothing here changes anything.

Rule 1: a read at or past a key's expiry finds nothing, whether or not the expiry is recorded yet.
        (A history is of what was written, so expiries do not matter there.)
Rule 2: an answer ends at `REPLY_BYTES`, or after one item if that is larger, and says `more`.
Rule 3: what memory cannot answer exactly is refused (`Compacted`, `FutureRevision`), never guessed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from heapq import merge

from ckptmesh import limits
from ckptmesh.clock import iso
from ckptmesh.entries import revision_of, unpack_version, version_of
from ckptmesh.errors import Compacted, DataLoss, FutureRevision
from ckptmesh.limits import pipeline_of
from ckptmesh.messages import (
    LAST_INDEX,
    At,
    Commit,
    Events,
    Get,
    History,
    Row,
    Rows,
    Scan,
    Since,
    Version,
)
from ckptmesh.state import State
from ckptmesh.timeline import commit_of, cost, keys_in

_SCANNED = 20_000  # revisions looked at for one page of events, so that one reader delays nobody
_ROW_COST = 120  # bytes of a packed row around its key and value, at most


def alive(version: Version | None, now: int) -> Version | None:
    """The version, or None once its TTL is over."""
    if version is None or (version.expires_at is not None and version.expires_at <= now):
        return None
    return version


def resolve(state: State, at: At | None, now: int) -> tuple[int, int]:
    """(revision, time) of the cut that `at` names; of the present for None.

    Raises `Compacted` below the floor and `FutureRevision` beyond the head or the present.
    """
    if at is None:
        return state.revision, now
    if at.revision is not None:
        revision = at.revision
        if revision > state.revision:
            raise FutureRevision(f"revision {revision} is beyond the head, {state.revision}",
                                 revision=state.revision)
    else:
        moment = at.time or 0
        if moment > now:
            raise FutureRevision(f"{iso(moment)} is in the future; the store's time is {iso(now)}",
                                 revision=state.revision)
        revision = state.ring.not_later(moment)
        if revision == state.floor and moment < state.floor_time:
            raise Compacted(
                f"{iso(moment)} is before the oldest cut in memory, {iso(state.floor_time)} "
                f"(revision {state.floor})", floor=state.floor, resume_from=state.floor)
    if revision < state.floor:
        raise Compacted(f"revision {revision} is below the oldest cut in memory, {state.floor}",
                        floor=state.floor, resume_from=state.floor)
    return revision, state.time_of(revision)


def _lookup(state: State, key: str, at: At | None, revision: int, time: int) -> Row | None:
    version = alive(state.entries.get(key) if at is None else state.at(key, revision), time)
    return None if version is None else Row(key, state.epoch_of(version.revision), version)


def _page(rows: Iterable[Row | None], limit: int) -> tuple[list[Row | None], bool]:
    page: list[Row | None] = []
    size = 0
    for row in rows:
        size += _ROW_COST
        if row is not None:
            size += len(row.version.value) + 4 * len(row.key) + sum(
                4 * len(key) + 16 for key, _ in row.version.sources)
        if page and (len(page) >= limit or size > limits.REPLY_BYTES):
            return page, True
        page.append(row)
    return page, False


def get(state: State, command: Get, now: int) -> Rows:
    """One cut over the keys, from index `start` on, in the order asked."""
    revision, time = resolve(state, command.at, now)
    rows = (_lookup(state, key, command.at, revision, time)
            for key in command.keys[command.start:])
    page, more = _page(rows, limits.GET_KEYS)
    return Rows(revision, time, tuple(page), more)


def _names(state: State, command: Scan) -> Iterator[str]:
    live = state.keys.under(command.prefix, command.after)
    if command.at is None:
        return live
    return merge(live, state.past_keys.under(command.prefix, command.after))


def scan(state: State, command: Scan, now: int) -> Rows:
    """The keys that existed at the cut under the prefix, in order, after `after`."""
    revision, time = resolve(state, command.at, now)
    rows = (row for key in _names(state, command)
            if (row := _lookup(state, key, command.at, revision, time)) is not None)
    page, more = _page(rows, command.limit)
    return Rows(revision, time, tuple(page), more)


def history(state: State, command: History, now: int) -> Rows:
    """What was written to a key, newest first; touches, deletions and expiries are not versions."""
    key, limit, before = command
    # A touched version stands there again under its revision: one version, with its last expiry.
    versions = {revision_of(packed): unpack_version(packed)
                for past in state.older.get(key, ()) if (packed := version_of(past)) is not None}
    current = state.entries.get(key)
    if current is not None:  # expired or not: it was written, and its record will leave it here
        versions[current.revision] = current
    rows = (Row(key, state.epoch_of(version.revision), version)
            for version in reversed(versions.values()) if not before or version.revision < before)
    page, more = _page(rows, limit)
    return Rows(state.revision, now, tuple(page), more)


def since(state: State, command: Since) -> Events:
    """Whole revisions after the mark. `complete_to`: nothing up to there is missing.

    Raises `Compacted` below the floor, `DataLoss` beyond the head.
    """
    mark, index, pipeline, _ = command
    if mark > state.revision:
        raise DataLoss(f"a watcher has seen revision {mark}; the head here is {state.revision}",
                       revision=mark, head=state.revision)
    start = mark + 1 if index >= LAST_INDEX else max(mark, 1)
    if start <= state.floor:
        raise Compacted(f"events after revision {mark} are older than memory holds; it goes back "
                        f"to {state.floor}", floor=state.floor, resume_from=state.floor)
    if pipeline and state.pointers.get(pipeline, state.floor) < start:
        return Events((), state.revision, False)
    return _collect(state, command, start)


def _collect(state: State, command: Since, start: int) -> Events:
    found: list[Commit] = []
    size, complete_to = 0, start - 1
    pipeline = command.pipeline
    for revision, row in state.ring.rows_after(start - 1):
        selected = None
        if not pipeline or pipeline in map(pipeline_of, keys_in(row)):
            selected = _selected(commit_of(revision, row), command)
        if selected is not None:
            size += cost(selected)
            if found and (len(found) >= command.limit or size > limits.REPLY_BYTES):
                return Events(tuple(found), complete_to, True)
            found.append(selected)
        complete_to = revision
        if complete_to - start >= _SCANNED:
            break
    return Events(tuple(found), complete_to, complete_to < state.revision)


def _selected(commit: Commit, command: Since) -> Commit | None:
    changes = commit.changes
    if command.pipeline:
        changes = tuple(c for c in changes if pipeline_of(c.key) == command.pipeline)
    if commit.revision == command.revision:
        changes = tuple(c for c in changes if c.index > command.index)
    if not changes:
        return None
    return commit if changes is commit.changes else commit._replace(changes=changes)
