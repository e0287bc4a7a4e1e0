"""A run as a picture has it: stages in columns by what they need, a lane for each attempt.

    picture = picture_of(run, revisions)
    picture.columns.places["load"]; picture.lanes[-1].boxes["load"].status

A lane begins where the run was begun, taken up again, or handed over. What happened in it, the
run's events tell; where the run stands now, its record. In each lane a stage is

    completed, failed, running, paused, cancelled    as it was then
    interrupted                                      its process ended within it
    skipped                                          completed before, not run again
    pending                                          it was not reached

Rule: what the record does not keep any more is said to be missing, never made up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from ckptmesh.features.debugging.layout import Layout, laid_out
from ckptmesh.features.debugging.reading import Run
from ckptmesh.features.pipeline.places import Places
from ckptmesh.features.pipeline.records import (
    CANCELLED,
    COMPLETED,
    FAILED,
    PAUSED,
    PENDING,
    RUNNING,
    RunEvent,
    RunRecord,
)
from ckptmesh.limits import DEBUG_LANES, RUN_EVENTS

SKIPPED, INTERRUPTED = "skipped", "interrupted"
STATES = (COMPLETED, SKIPPED, RUNNING, PENDING, FAILED, INTERRUPTED, PAUSED, CANCELLED)
_ENDS = {"stage completed": COMPLETED, "failed": FAILED, "interrupted": INTERRUPTED,
         PAUSED: PAUSED, CANCELLED: CANCELLED}


@dataclass(frozen=True, slots=True)
class Box:
    """A stage in one lane. `seconds` of its executions here; `executions`, attempts; `revision` of
    the checkpoint that keeps its output, where that was made here; `batches`: checkpoints inside;
    `error`: its first line."""

    status: str
    began: datetime | None = None
    seconds: float | None = None
    executions: int = 0
    revision: int | None = None
    batches: int = 0
    error: str = ""


@dataclass(slots=True)
class Lane:
    """One attempt. `kind`: "begun", "resumed", "handed over", or "earlier" where its begin is not
    kept; `parent`: KEY@REVISION of the record that it went on from."""

    kind: str
    began: datetime
    worker: str
    parent: str = ""
    ended: datetime | None = None
    boxes: dict[str, Box] = field(default_factory=dict)

    @property
    def stopped_at(self) -> str:
        """The stage where it did not go on; "" where it came to its end."""
        return next((name for name, box in self.boxes.items()
                     if box.status in (FAILED, INTERRUPTED, PAUSED, CANCELLED)), "")


@dataclass(frozen=True, slots=True)
class Picture:
    """`hidden`: earlier lanes that are not told; `whole`: whether all events of the run are
    kept."""

    record: RunRecord
    columns: Layout
    lanes: tuple[Lane, ...]
    hidden: int
    whole: bool

    @property
    def edges(self) -> list[tuple[str, str]]:
        """(needed stage, stage)."""
        return [(need, each.name) for each in self.record.stages for need in each.needs]


def picture_of(mesh: Any, run: Run) -> Picture:
    """The picture of a run; where its checkpoints stand is read."""
    record = run.record
    revisions: dict[str, int] = {}
    if record.kind == "pipeline" and not run.past and record.stages:
        places = Places(record.pipeline, record.key)
        found = mesh.get_many([places.kept(each.name) for each in record.stages], packed=True)
        revisions = {each.name: kept.revision for each in record.stages
                     if (kept := found[places.kept(each.name)]) is not None}
    return _picture(record, revisions)


def _picture(record: RunRecord, revisions: Mapping[str, int]) -> Picture:
    lanes = _lanes(record, revisions)
    return Picture(record, laid_out(record.stages), tuple(lanes[-DEBUG_LANES:]),
                   max(0, len(lanes) - DEBUG_LANES), len(record.events) < RUN_EVENTS)


# --- lanes ------------------------------------------------------------------------------------


def _lanes(record: RunRecord, revisions: Mapping[str, int]) -> list[Lane]:
    """The lanes of a run, the earliest first."""
    if record.kind != "pipeline" or not record.events:
        began = record.started or record.created
        only = Lane("begun", began, record.worker, ended=record.finished)
        _settle(only, record, set(), revisions)
        return [only]
    lanes: list[Lane] = []
    for event in record.events:
        if not lanes or event.kind == "resumed" or (
                lanes[-1].ended and event.kind == "stage started"):
            lanes.append(_begun(event, first=not lanes))
        _happened(lanes[-1], event)
    done = {each.name for each in record.stages if each.status == COMPLETED} - {
        name for lane in lanes for name, box in lane.boxes.items() if box.status == COMPLETED}
    for lane in lanes[:-1]:
        here = {name for name, box in lane.boxes.items() if box.status == COMPLETED}
        lane.boxes = {each.name: _earlier(lane, each.name, done) for each in record.stages}
        done |= here
    _settle(lanes[-1], record, done, revisions)
    for name, revision in revisions.items():  # it was kept by the last that completed it
        for by in [each for each in lanes if each.boxes[name].status == COMPLETED][-1:]:
            by.boxes[name] = replace(by.boxes[name], revision=revision)
    return lanes


def _begun(event: RunEvent, first: bool) -> Lane:
    kind = event.kind if event.kind == "resumed" else "handed over"
    if first and kind != "resumed":
        kind = "begun" if event.kind == "created" else "earlier"
    parent = event.detail.removeprefix("from ") if event.kind == "resumed" else ""
    return Lane(kind, event.time, event.worker, parent)


def _happened(lane: Lane, event: RunEvent) -> None:
    """Take an event into the lane in which it happened."""
    stage = event.stage
    box = lane.boxes.get(stage, Box(PENDING)) if stage else None
    if event.kind in ("handed over", "completed"):
        lane.ended = event.time
    if box is None:
        return
    if event.kind == "stage started":
        box = replace(box, status=RUNNING, began=event.time, executions=box.executions + 1,
                      error="")
        lane.ended = None
    elif event.kind == "batch":
        box = replace(box, batches=box.batches + event.count)
    elif event.kind == "retry":
        box = replace(box, status=PENDING, error=_line(event.detail), began=None,
                      seconds=_spent(box, event.time))
    elif event.kind in _ENDS:
        error = _line(event.detail) if event.kind in ("failed", "interrupted") else ""
        # Of one that was interrupted nobody knows when; the event is written by who goes on.
        spent = None if event.kind == "interrupted" else _spent(box, event.time)
        box = replace(box, status=_ENDS[event.kind], error=error, seconds=spent)
        if event.kind != "stage completed":
            lane.ended = None if event.kind == "interrupted" else event.time
    else:
        return
    lane.boxes[stage] = box


def _spent(box: Box, until: datetime) -> float | None:
    """Seconds of all executions in a lane, up to the end of the last."""
    if box.began is None:
        return box.seconds
    return (box.seconds or 0.0) + (until - box.began).total_seconds()


def _earlier(lane: Lane, name: str, done: set[str]) -> Box:
    """A stage in a lane that is over."""
    box = lane.boxes.get(name)
    if box is None or box.status == PENDING:
        return Box(SKIPPED if name in done else PENDING)
    return replace(box, status=INTERRUPTED) if box.status == RUNNING else box


def _settle(lane: Lane, record: RunRecord, done: set[str], revisions: Mapping[str, int]) -> None:
    """The last lane: as the record says that the run stands."""
    boxes = {}
    for each in record.stages:
        box = lane.boxes.get(each.name, Box(PENDING))
        status = each.status
        if status == COMPLETED and each.name in done:
            boxes[each.name] = Box(SKIPPED, revision=revisions.get(each.name))
            continue
        if status == PENDING and box.status in (PAUSED, CANCELLED, INTERRUPTED):
            status = box.status
        seconds = each.milliseconds / 1_000 if status == COMPLETED else box.seconds
        if status == RUNNING and each.started:
            seconds = (max(record.updated, each.heartbeat or each.started)
                       - each.started).total_seconds()
        boxes[each.name] = replace(
            box, status=status, seconds=seconds, executions=box.executions,
            revision=revisions.get(each.name), error=_line(each.error) or box.error)
    lane.boxes = boxes


def _line(text: str) -> str:
    return text.partition("\n")[0]
