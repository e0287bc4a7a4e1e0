"""Which files of the log and which snapshots stay on disk, and why.

Rule 1: nothing here reads a clock or touches a file; the manifest and `now` are arguments.
Rule 2: recovery can always begin with the newest snapshot, and with the one before it should the
        newest be damaged; before there are two, with the very first segment.
Rule 3: every cut of the last `retain_seconds` can be restored, as far as `retain_bytes` allow.
Rule 4: every savepoint can be restored, whatever it costs.
Rule 5: the last sealed segment stays, since the next one continues it.

A cut is restored from a *base*, a snapshot at or below it (or the empty state, while the first
segment is there), by replaying the segments after the base. The manifest holds a chain of segments
without gaps, so the whole question is which base is the oldest one to keep: all before it may go.
A savepoint whose revision is exactly a snapshot's needs that one file and no segment.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ckptmesh.limits import SECOND
from ckptmesh.manifest import (
    ActiveSegment,
    Manifest,
    SealedSegment,
    SnapshotEntry,
)

RECOVERY = "recovery begins with the newest snapshot"
FALLBACK = "recovery falls back to this if the newest snapshot is damaged"
RETAIN = "restores within `retain` need it"
ACTIVE = "the log is being written there"
LINK = "the next segment continues its chain of digests"


class RetentionPlan(NamedTuple):
    """What stays and what may go. Files are named relative to the store's directory.

    `keep` and `unlink` ascend by name; `reasons` says for each kept file why. `oldest_revision` and
    `oldest_time` (microseconds) are the oldest cut from which on every later one can be restored;
    savepoints may be older. `size_won`: `retain_bytes` made that cut younger than `retain_seconds`
    asked for.
    """

    keep: tuple[str, ...]
    unlink: tuple[str, ...]
    reasons: dict[str, str]
    oldest_revision: int
    oldest_time: int
    size_won: bool


class Base(NamedTuple):
    """Where a replay may begin: a snapshot, or the empty state before the first segment."""

    revision: int
    segment: int
    time: int
    snapshot: SnapshotEntry | None


def plan(
    manifest: Manifest, now: int, retain_seconds: float, retain_bytes: int,
) -> RetentionPlan:
    """What of the manifest's files must stay. `now` in microseconds; `retain_seconds` and
    `retain_bytes` 0 or more, the smaller wins."""
    places = bases(manifest)
    if not places:  # an honest manifest always has one: touch nothing
        return _settle(manifest, dict.fromkeys(manifest.files(), RECOVERY), 0, 0, False)
    needed = max(0, len(places) - 2)  # the newest and the one before it
    wanted = min(needed, _last(places, now - round(retain_seconds * SECOND)))
    first = wanted
    while first < needed and _cost(manifest, places[first]) > retain_bytes:
        first += 1
    size_won = first > wanted
    exact, replayed = _savepoint_needs(manifest, places)
    oldest = min((first, *replayed))
    reasons = dict(exact)
    for index, base in enumerate(places):
        if base.snapshot is None:
            continue
        if index >= first:
            reasons[base.snapshot.file] = _why(index, len(places), needed)
        elif index in replayed:
            reasons[base.snapshot.file] = f"savepoint {replayed[index]!r} is replayed from it"
    for segment in manifest.sealed:
        if segment.number > places[oldest].segment:
            reasons[segment.file] = _why_segment(segment, places, first, needed)
    if manifest.sealed:
        reasons.setdefault(manifest.sealed[-1].file, LINK)
    if manifest.active is not None:
        reasons[manifest.active.file] = ACTIVE
    return _settle(manifest, reasons, places[oldest].revision, places[oldest].time, size_won)


def bases(manifest: Manifest) -> list[Base]:
    """All places from which the head can be reached by replay, oldest first."""
    chain: list[SealedSegment | ActiveSegment] = [*manifest.sealed]
    if manifest.active is not None:
        chain.append(manifest.active)
    found = []
    if not chain:  # never written to: all there is, is in the newest snapshot
        found += [_base(entry) for entry in manifest.snapshots[-1:]]
    if not found and (not chain or (chain[0].number, chain[0].first_revision) == (1, 1)):
        found.append(Base(0, 0, 0, None))
    if chain:
        found += [_base(entry) for entry in manifest.snapshots
                  if entry.segment + 1 >= chain[0].number]
    return found


def _base(entry: SnapshotEntry) -> Base:
    return Base(entry.revision, entry.segment, entry.made_at, entry)


def _last(places: Sequence[Base], time: int) -> int:
    """Index of the youngest base that is not younger than `time`; 0 when all are."""
    return max((index for index, base in enumerate(places) if base.time <= time), default=0)


def _cost(manifest: Manifest, base: Base) -> int:
    """Bytes on disk of everything from a base on, the active segment aside."""
    return sum(
        segment.size for segment in manifest.sealed if segment.number > base.segment
    ) + sum(entry.size for entry in manifest.snapshots if entry.segment >= base.segment)


def _savepoint_needs(
    manifest: Manifest, places: Sequence[Base],
) -> tuple[dict[str, str], dict[int, str]]:
    """Files of snapshots that are savepoints, with the reason; and the bases that the other
    savepoints replay from: index → name. One older than all that is left needs nothing."""
    snapshots = {entry.revision: entry.file for entry in manifest.snapshots}
    exact: dict[str, str] = {}
    replayed: dict[int, str] = {}
    for name, revision, *_ in manifest.savepoints:
        if revision in snapshots:
            exact[snapshots[revision]] = f"it is savepoint {name!r}"
            continue
        at = max((index for index, base in enumerate(places) if base.revision <= revision),
                 default=None)
        if at is not None:
            replayed.setdefault(at, name)
    return exact, replayed


def kept(manifest: Manifest, revision: int) -> bool:
    """Whether the state at a revision, not beyond the head, can be read from these files."""
    return (any(base.revision <= revision for base in bases(manifest)[:1])
            or any(entry.revision == revision for entry in manifest.snapshots))


def awaiting_snapshot(manifest: Manifest) -> int:
    """The first sealed segment that ends with a savepoint of which there is no snapshot, 0 for
    none. Once there is one, the savepoint keeps that file alone, and no segment."""
    if not manifest.savepoints:  # asked at each turn of the store's loop
        return 0
    made = {entry.revision for entry in manifest.snapshots}
    wanted = {savepoint.revision for savepoint in manifest.savepoints} - made
    return min((segment.number for segment in manifest.sealed if segment.last_revision in wanted),
               default=0)


def _why(index: int, count: int, needed: int) -> str:
    if index == count - 1:
        return RECOVERY
    return FALLBACK if index >= needed else RETAIN


def _why_segment(
    segment: SealedSegment, places: Sequence[Base], first: int, needed: int
) -> str:
    if segment.number > places[-1].segment:
        return RECOVERY
    if segment.number > places[needed].segment:
        return FALLBACK
    if segment.number > places[first].segment:
        return RETAIN
    return "a savepoint is replayed through it"


def _settle(
    manifest: Manifest, reasons: dict[str, str], revision: int, time: int, size_won: bool
) -> RetentionPlan:
    gone = manifest.files() - set(reasons)
    return RetentionPlan(
        tuple(sorted(reasons)), tuple(sorted(gone)), reasons, revision, time, size_won
    )
