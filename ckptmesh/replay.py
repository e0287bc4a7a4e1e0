"""The frames of a log, applied to a state: most records by the thousand, all of them checked.

Rule 1: what a log means is said by `State.apply`; what is done here by columns is the same, and
        anything that is not plain, or not right, is left to it.
Rule 2: damage is told as if one record had been applied after the other: the frame that it is in,
        and the first revision that is lost.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate
from typing import Any, NamedTuple

from ckptmesh.bulk import take_puts
from ckptmesh.errors import Corrupt
from ckptmesh.facts import RECORD_TYPES, TAKES_REVISION, Puts, Record
from ckptmesh.framing import DATA, Frame, SegmentScan
from ckptmesh.records import decode_records, records_of, steps_of, unpack_rows
from ckptmesh.state import State

_TOGETHER = 512  # records to a batch: enough to share its cost, few enough to stay in the caches
_TAKES = frozenset(map(RECORD_TYPES.index, TAKES_REVISION))


class _Batch(NamedTuple):
    """Frames that hold what they say. `starts`: how many records come before each."""

    frames: list[Frame]
    starts: list[int]
    steps: list[Puts | Record]


def replay(scan: SegmentScan, path: str, state: State, until: int | None) -> bool:
    """Apply the frames of a scan to a state. `until`: stop after this revision.

    Returns False when it stopped; the scan's verdict means something only on True. Raises `Corrupt`
    for whole frames that do not follow.
    """
    for frames in _together(scan):
        batch = _decode(frames, state.revision, until)
        if batch is not None:
            _take(batch, path, state)
        elif not _one_by_one(frames, path, state, until):
            return False
    return True


def frame_records(frame: Frame) -> list[Record]:
    """The records of a frame that was found whole. Raises `ValueError`."""
    if frame.kind != DATA:
        return []
    records = decode_records(frame.payload)
    if len(records) != frame.records:
        raise ValueError(f"it holds {len(records)} records, not {frame.records}")
    return records


def _together(scan: SegmentScan) -> Iterator[list[Frame]]:
    frames: list[Frame] = []
    records = 0
    for frame in scan:
        frames.append(frame)
        records += frame.records
        if records >= _TOGETHER:
            yield frames
            frames, records = [], 0
    yield frames


def _decode(frames: list[Frame], revision: int, until: int | None) -> _Batch | None:
    """What follows `revision` in these frames. None where they show, before anything is applied,
    that something is wrong, and where the replay has to stop among them."""
    rows: list[Any] = []
    starts = []
    try:
        for frame in frames:
            starts.append(len(rows))
            if frame.kind == DATA:
                found = unpack_rows(frame.payload)
                if len(found) != frame.records:
                    return None
                rows += found
        steps = steps_of(rows)
    except ValueError:
        return None
    if len(steps) == 1 and isinstance(steps[0], Puts):
        taken: Any = range(len(rows) + 1)
    else:
        taken = [0, *accumulate(row[0] in _TAKES for row in rows)]
    if until is not None and revision + taken[-1] >= until:
        return None
    for start, frame in zip(starts, frames, strict=True):
        if frame.first_revision != revision + taken[start] + 1:
            return None
    return _Batch(frames, starts, steps)


def _take(batch: _Batch, path: str, state: State) -> None:
    done = 0
    try:
        for step in batch.steps:
            if not isinstance(step, Puts):
                state.take(step)
                done += 1
            elif take_puts(state, step):
                done += len(step.keys)
            else:
                for record in records_of(step):
                    state.take(record)
                    done += 1
    except ValueError as error:
        frame = batch.frames[bisect_right(batch.starts, done) - 1]
        raise _unfit(frame, path, state, error) from error


def _one_by_one(frames: list[Frame], path: str, state: State, until: int | None) -> bool:
    for frame in frames:
        if frame.first_revision != state.revision + 1:
            raise Corrupt(
                f"{path}: the frame at byte {frame.offset:,} begins with revision "
                f"{frame.first_revision}, but {state.revision + 1} is next",
                file=path, offset=frame.offset, revision=state.revision + 1,
            )
        try:
            for record in frame_records(frame):
                if until is not None and state.revision >= until:
                    return False
                state.take(record)
        except ValueError as error:
            raise _unfit(frame, path, state, error) from error
    return True


def _unfit(frame: Frame, path: str, state: State, error: ValueError) -> Corrupt:
    return Corrupt(
        f"{path}: the frame at byte {frame.offset:,} is whole but cannot be replayed: {error}",
        file=path, offset=frame.offset, revision=state.revision + 1,
    )
