"""Retention plans against a model that literally tries to reach every cut from the kept files."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptmesh.limits import SECOND
from ckptmesh.manifest import (
    ActiveSegment,
    Manifest,
    Savepoint,
    SealedSegment,
    SnapshotEntry,
    snapshot_file,
)
from ckptmesh.retention import LINK, RetentionPlan, plan

DIGEST = bytes(32)
SEGMENT_SIZE, SNAPSHOT_SIZE = 100, 10


class Log:
    """A log under construction; one microsecond-free clock that counts seconds."""

    def __init__(self, first: int = 1, revision: int = 0) -> None:
        self.sealed: list[SealedSegment] = []
        self.snapshots: list[SnapshotEntry] = []
        self.number, self.revision, self.time = first, revision, 100
        self.times = {revision: 100}  # revision → seconds

    def __repr__(self) -> str:
        segments = [(s.number, s.first_revision, s.last_revision) for s in self.sealed]
        return f"{segments} {[s[1:3] for s in self.snapshots]} {self.times}"

    def segment(self, revisions: int) -> None:
        start = self.revision + 1
        for _ in range(revisions):
            self.time += 1
            self.revision += 1
            self.times[self.revision] = self.time
        self.time += 1
        self.sealed.append(SealedSegment(self.number, start, self.revision, SEGMENT_SIZE, DIGEST,
                                         DIGEST, self.time * SECOND))
        self.number += 1

    def snapshot(self) -> None:
        covered = self.number - 1
        self.snapshots.append(SnapshotEntry(
            snapshot_file(self.revision, covered), self.revision, covered, SNAPSHOT_SIZE, DIGEST,
            self.times[self.revision] * SECOND))

    def manifest(self, *savepoints: Savepoint) -> Manifest:
        return Manifest(b"u" * 16, 5, tuple(self.sealed),
                        ActiveSegment(self.number, self.revision + 1, DIGEST),
                        tuple(self.snapshots), savepoints)


def reachable(files: frozenset[str], log: Log, revision: int,
              bases: list[SnapshotEntry | None] | None = None) -> bool:
    """Whether the cut after `revision` can be made from these files alone. The head lies in the
    active segment. `bases`: begin with one of these only; None is the empty state."""
    everything = [None, *log.snapshots] if bases is None else bases
    for base in everything:
        at, covered = (base.revision, base.segment) if base else (0, 0)
        if base is not None and base.file not in files:
            continue
        if at > revision:
            continue
        needed = range(covered + 1, log.number) if revision == log.revision else [
            segment.number for segment in log.sealed
            if segment.number > covered and segment.first_revision <= revision
        ]
        kept = {segment.number for segment in log.sealed if segment.file in files}
        whole = set(needed) <= kept
        if revision < log.revision and at < revision:  # some kept segment must hold the revision
            whole = whole and any(s.first_revision <= revision <= s.last_revision
                                  and s.number > covered and s.file in files for s in log.sealed)
        begins = base is not None or 1 in {*kept, log.number}
        if whole and begins:
            return True
    return False


@st.composite
def logs(draw: st.DrawFn) -> Log:
    log = Log(draw(st.sampled_from([1, 1, 4])))
    if log.number > 1:
        log.revision = 50
        log.times = {50: log.time}
        log.snapshot()
    for revisions, snapshot, pause in draw(st.lists(
        st.tuples(st.integers(0, 3), st.booleans(), st.integers(0, 20)), max_size=9,
    )):
        log.segment(revisions)
        log.time += pause
        if snapshot and (not log.snapshots or log.snapshots[-1].segment < log.number - 1):
            log.snapshot()
    return log


@st.composite
def cases(draw: st.DrawFn) -> tuple[Log, int, float, int, list[Savepoint]]:
    log = draw(logs())
    points = draw(st.lists(st.sampled_from(sorted(log.times)), max_size=2))
    return (log, (log.time + draw(st.integers(0, 50))) * SECOND, draw(st.integers(0, 150)),
            draw(st.integers(0, 1_500)),
            [Savepoint(f"s{index}", revision) for index, revision in enumerate(points)])


@settings(max_examples=600, deadline=None)
@given(cases())
def test_what_is_kept_reaches_every_cut_that_was_promised(
    case: tuple[Log, int, float, int, list[Savepoint]],
) -> None:
    log, now, seconds, size, savepoints = case
    manifest = log.manifest(*savepoints)
    before = manifest.files()
    found = plan(manifest, now, seconds, size)
    kept = frozenset(found.keep)

    assert kept | set(found.unlink) == before
    assert not kept & set(found.unlink)
    assert set(found.reasons) == kept
    assert not log.sealed or log.sealed[-1].file in kept
    numbers = [segment.number for segment in log.sealed if segment.file in kept]
    assert numbers == list(range(log.number - len(numbers), log.number)), "a chain without gaps"

    bases = [None] if 1 in (log.number, *(s.number for s in log.sealed)) else []
    bases += log.snapshots
    for base in bases[-2:]:  # recovery, and its way back
        assert reachable(kept, log, log.revision, [base])
    for savepoint in savepoints:
        assert reachable(kept, log, savepoint.revision)
    for revision in range(found.oldest_revision, log.revision + 1):
        assert reachable(kept, log, revision)
    if not found.size_won:
        cutoff = now - seconds * SECOND
        for revision in log.times:
            until = log.times.get(revision + 1)
            if until is None or until * SECOND > cutoff:
                assert reachable(kept, log, revision)


@settings(max_examples=600, deadline=None)
@given(cases())
def test_nothing_is_kept_without_need(
    case: tuple[Log, int, float, int, list[Savepoint]],
) -> None:
    """Dropping the oldest kept segment would break a promise: tried with every smaller set."""
    log, now, seconds, size, savepoints = case
    manifest = log.manifest(*savepoints)
    kept = frozenset(plan(manifest, now, seconds, size).keep)
    segments = [segment for segment in log.sealed if segment.file in kept]
    if len(segments) < 2 or segments[0].last_revision <= segments[0].first_revision:
        return  # the last one always stays; one revision between two snapshots adds no cut
    smaller = kept - {segments[0].file}
    bases = [None] if log.sealed[0].number == 1 else []
    bases += log.snapshots
    cutoff = now - seconds * SECOND
    recovery = all(reachable(smaller, log, log.revision, [base]) for base in bases[-2:])
    window = all(
        reachable(smaller, log, revision)
        for revision in log.times
        if log.times.get(revision + 1) is None or log.times[revision + 1] * SECOND > cutoff
    )
    points = all(reachable(smaller, log, savepoint.revision) for savepoint in savepoints)
    assert not (recovery and window and points)


def four_snapshots() -> Log:
    log = Log()
    for _ in range(4):
        log.segment(2)
        log.snapshot()
    log.segment(2)
    return log


def kept(found: RetentionPlan) -> tuple[list[str], list[str]]:
    return ([name for name in found.keep if name.startswith("snap/")],
            [name[4:12] for name in found.keep if name.startswith("wal/")])


def test_without_retain_the_last_two_snapshots_and_what_follows_them_stay() -> None:
    log = four_snapshots()
    found = plan(log.manifest(), log.time * SECOND, 0, 10**9)
    assert kept(found) == ([snapshot_file(6, 3), snapshot_file(8, 4)],
                           ["00000004", "00000005", "00000006"])
    assert (found.oldest_revision, found.size_won) == (6, False)


def test_the_first_snapshot_keeps_the_whole_log_as_its_way_back() -> None:
    log = Log()
    log.segment(3)
    log.segment(3)
    log.snapshot()
    found = plan(log.manifest(), log.time * SECOND, 0, 0)
    assert found.unlink == ()
    assert found.oldest_revision == 0


def test_the_last_sealed_segment_stays_although_a_snapshot_covers_it() -> None:
    log = Log(4, 50)
    log.segment(2)
    log.snapshot()
    decided = plan(log.manifest(), log.time * SECOND, 0, 0)
    assert decided.reasons[log.sealed[0].file] == LINK
    assert decided.unlink == ()


def test_size_wins_over_time_and_says_so() -> None:
    log = four_snapshots()
    everything = plan(log.manifest(), log.time * SECOND, 10**6, 10**6)
    assert (everything.unlink, everything.size_won) == ((), False)
    tight = plan(log.manifest(), log.time * SECOND, 10**6, 2 * SEGMENT_SIZE + 2 * SNAPSHOT_SIZE)
    assert (tight.size_won, tight.oldest_revision) == (True, 6)
    assert tight.oldest_time == log.times[6] * SECOND


def test_a_savepoint_at_a_snapshot_keeps_that_file_and_no_segment() -> None:
    log = four_snapshots()
    found = plan(log.manifest(Savepoint("release", 2)), log.time * SECOND, 0, 0)
    assert kept(found) == ([snapshot_file(2, 1), snapshot_file(6, 3), snapshot_file(8, 4)],
                           ["00000004", "00000005", "00000006"])
    assert "'release'" in found.reasons[snapshot_file(2, 1)]
    again = Log()
    again.__dict__.update(log.__dict__)
    again.snapshots = [entry for entry in log.snapshots if entry.file in found.keep]
    again.sealed = [segment for segment in log.sealed if segment.file in found.keep]
    assert plan(again.manifest(Savepoint("release", 2)), log.time * SECOND, 0, 0).unlink == ()
    assert plan(again.manifest(), log.time * SECOND, 0, 0).unlink == (snapshot_file(2, 1),)


def test_a_savepoint_between_snapshots_keeps_the_log_from_there_on() -> None:
    log = four_snapshots()
    found = plan(log.manifest(Savepoint("before", 3)), log.time * SECOND, 0, 0)
    assert kept(found)[1] == ["00000002", "00000003", "00000004", "00000005", "00000006"]
    assert snapshot_file(2, 1) in found.keep
    assert snapshot_file(4, 2) in found.unlink


def test_a_store_without_segments_and_snapshots_keeps_what_it_has() -> None:
    assert plan(Manifest(b"u" * 16), 0, 0, 0).keep == ()


@pytest.mark.parametrize("revision", [0, 1])
def test_a_savepoint_older_than_all_that_is_left_needs_nothing(revision: int) -> None:
    log = Log(4, 50)
    log.snapshot()
    log.segment(2)
    log.snapshot()
    found = plan(log.manifest(Savepoint("lost", revision)), log.time * SECOND, 0, 0)
    assert found.unlink == ()
