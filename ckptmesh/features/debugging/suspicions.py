"""What is suspicious about one run, one lock or one key: each a finding, with what to do next.

A finding is an `ERROR` (something is lost, damaged or stands still), a `WARNING` (it may be right,
and somebody should look) or a `NOTE` (to be known; nothing is wrong).
"""

from __future__ import annotations

import os
import socket
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from ckptmesh.features.debugging.analysing import kind_of
from ckptmesh.features.debugging.reading import Gone, Run, Unread, moment
from ckptmesh.features.debugging.verifying import (
    CHANGED,
    GOOD,
    MISSING,
    UNKNOWN,
    UNREADABLE,
    outputs,
    provenance,
)
from ckptmesh.features.locks import covers
from ckptmesh.features.pipeline.places import Places
from ckptmesh.features.pipeline.records import (
    COMPLETED,
    FAILED,
    PAUSED,
    RUNNING,
    RunRecord,
)
from ckptmesh.features.tickets import Ticket
from ckptmesh.features.workers import WorkerInfo
from ckptmesh.views import Checkpoint

ERROR, WARNING, NOTE = SEVERITIES = ("error", "warning", "note")
_ALIKE = 3  # errors of one kind, or failed runs in a row, that are called repeated


class Finding(NamedTuple):
    """`fault`: what kind, one word for programs; `key`: where; `evidence`: what was seen;
    `next`: the command, or the call, that comes next."""

    severity: str
    fault: str
    key: str
    evidence: str
    next: str


def going_on(record: RunRecord) -> str:
    """The call that goes on with a run."""
    return f"{record.pipeline}.run(mesh, key={record.key!r})"


# --- runs -------------------------------------------------------------------------------------


def unread(found: Unread) -> Finding:
    """A record that cannot be read."""
    if found.newer:
        return Finding(ERROR, "newer-record", found.key, found.text,
                       "install a ckptmesh as new as the one that wrote it; change nothing before")
    return Finding(ERROR, "unreadable-record", found.key, found.text,
                   f"ckptmesh state history {found.key}; then ckptmesh state repair {found.key} "
                   "--to KEY")


def of_holder(run: Run, held: Sequence[Ticket], dead: Gone, now: datetime, stale: float
              ) -> Iterator[Finding]:
    """A run that is under way: whether anybody is at it. `held`: the locks that are held now."""
    record = run.record
    if record.kind != "pipeline" or record.status != RUNNING or run.past:
        return
    name = Places(record.pipeline, record.key).lock
    mine = [each for each in held if covers(each.name, name)]
    where = f"in stage {record.stage!r}" if record.stage else "between stages"
    if not any(not dead(each.found) for each in mine):
        evidence = (f"marked running {where} by {record.worker} since {moment(record.updated)}, "
                    + ("and the holder of its lock is dead" if mine else "and nobody holds the "
                       f"lock {name!r}"))
        yield Finding(ERROR, "nobody-at-it", run.found.key, evidence, going_on(record))
        return
    last = max([record.updated, *(each.heartbeat for each in record.stages if each.heartbeat)])
    silent = (now - last).total_seconds()
    if silent > stale:
        yield Finding(WARNING, "old-heartbeat", run.found.key,
                      f"{record.worker} is {where} and has reported nothing for {silent:,.0f} s",
                      f"ckptmesh run show {record.pipeline} {record.key}; a stage that works for "
                      "long calls run.report(…)")


def of_outputs(mesh: Any, run: Run, storage: str | Path | None, files: bool) -> Iterator[Finding]:
    """Outputs that are gone or changed, and digests that do not agree."""
    faults = {MISSING: "missing-output", CHANGED: "changed-output", UNREADABLE: "unreadable-output"}
    anew = f'{going_on(run.record)[:-1]}, resume="never")'
    for output in outputs(mesh, run.record, storage, files) if not run.past else ():
        key = Places(run.record.pipeline, run.record.key).kept(output.stage)
        for verdict in output.verdicts:
            if verdict.state == UNKNOWN:
                yield Finding(NOTE, "output-not-judged", key, f"{verdict.what}: {verdict.text}",
                              "say where the files are: --storage DIR")
            elif verdict.state != GOOD:
                yield Finding(ERROR, faults[verdict.state], key,
                              f"run {run.record.key}, stage {output.stage}: {verdict.text}",
                              f"put back what was there, or {anew}")
    for verdict in provenance(run):
        if verdict.state != GOOD:
            yield Finding(ERROR, "provenance", run.found.key,
                          f"{verdict.what}: {verdict.text}", anew)


def of_order(run: Run) -> Iterator[Finding]:
    """Stages that are completed though what they need never was."""
    record = run.record
    for stage in record.stages:
        for name in stage.needs if stage.status == COMPLETED else ():
            need = next((each for each in record.stages if each.name == name), None)
            if need is None or (need.status != COMPLETED and not need.made_from):
                yield Finding(ERROR, "completed-before-need", run.found.key,
                              f"stage {stage.name!r} is completed, and {name!r}, which it needs, "
                              "never was", f"ckptmesh debug inspect {run.found.key}")
    pending = [each.name for each in record.stages if each.status != COMPLETED]
    if record.status == COMPLETED and pending:
        yield Finding(ERROR, "completed-before-need", run.found.key,
                      f"the run is completed, and stages are not: {', '.join(pending)}",
                      going_on(record))


def of_errors(run: Run) -> Iterator[Finding]:
    """Errors that come again and again in a run that has not come to its end."""
    record = run.record
    if record.finished_for_good or run.past:
        return
    for (stage, kind), number in Counter(
            (each.stage, kind_of(each.message)) for each in record.errors).items():
        if number >= _ALIKE:
            yield Finding(WARNING, "repeated-errors", run.found.key,
                          f"{kind} {number} times in stage {stage!r} of run {record.key}",
                          f"ckptmesh run show {record.pipeline} {record.key}")


def of_request(run: Run) -> Iterator[Finding]:
    """What somebody has asked for, and what waits for somebody."""
    record = run.record
    again = f"ckptmesh run resume {record.pipeline} {record.key}"
    if record.status == PAUSED:
        yield Finding(NOTE, "paused", run.found.key,
                      f"since {moment(record.updated)}, at stage {record.stage!r}", again)
    elif record.asked and not record.finished_for_good:
        yield Finding(NOTE, "asked", run.found.key,
                      f"somebody has asked to {record.asked} it", again)


def failing(last: Sequence[RunRecord]) -> Iterator[Finding]:
    """The last runs, in the order of creation: whether all have failed in one place."""
    last = last[-_ALIKE:]
    stages = {each.stage for each in last}
    if len(last) == _ALIKE and len(stages) == 1 and all(each.status == FAILED for each in last):
        (stage,) = stages
        yield Finding(WARNING, "repeated-errors", last[-1].stored_at.rpartition("@")[0],
                      f"the last {_ALIKE} runs failed in stage {stage!r}: "
                      f"{kind_of(last[-1].error)}",
                      f"ckptmesh run show {last[-1].pipeline} {last[-1].key}")


def of_version(run: Run, newest: RunRecord | None) -> Iterator[Finding]:
    """An unfinished run whose pipeline has another version by now."""
    record = run.record
    if newest is None or run.past or record.finished_for_good or record.kind != "pipeline":
        return
    theirs, now = record.version, newest.version
    if theirs != now:
        older = isinstance(theirs, int) and isinstance(now, int) and theirs > now
        yield Finding(WARNING, "other-version", run.found.key,
                      f"begun with version {theirs} of the pipeline, and the newest run, "
                      f"{newest.key}, has version {now}",
                      "go on with the newer definition: the older one is refused" if older else
                      f"{going_on(record)}: stages that are as they were keep their outputs")


# --- locks and workers ------------------------------------------------------------------------


def is_dead_here(found: Checkpoint) -> bool:
    """Whether the holder of a ticket, "host:pid", was a process of this host that is no more."""
    holder = found.value.get("holder", "") if isinstance(found.value, dict) else ""
    host, _, pid = str(holder).rpartition(":")
    if host != socket.gethostname() or not pid.isdecimal():
        return False
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        return False
    return False


def of_lock(ticket: Ticket, dead: Gone) -> Iterator[Finding]:
    """A lock whose holder is dead."""
    if dead(ticket.found):
        yield Finding(
            ERROR, "dead-holder", ticket.found.key,
            f"{ticket.holder} {'awaits' if ticket.ahead else 'holds'} the lock {ticket.name!r} "
            f"since {moment(ticket.found.time)}, and is dead",
            f"ckptmesh lock release {ticket.name} --ticket {ticket.number} --force")


def of_worker(pipeline: str, worker: WorkerInfo) -> Iterator[Finding]:
    """A worker that is not heard of any more."""
    if worker.state == "stale":
        yield Finding(
            WARNING, "stale-worker", worker.key,
            f"worker {worker.name} ({worker.host}:{worker.pid}) was last heard of "
            f"{moment(worker.heartbeat)}; its ttl is {worker.ttl:g} s, and it has "
            f"{len(worker.partitions)} partitions",
            f"ckptmesh state cleanup {pipeline} --stale-workers")


# --- keys -------------------------------------------------------------------------------------


def of_value(found: Checkpoint, problem: str) -> Finding:
    """A value that cannot be unpacked."""
    return Finding(ERROR, "unreadable-value", found.key,
                   f"revision {found.revision}: {problem}",
                   f"ckptmesh state repair {found.key} --to KEY")


def of_place(mesh: Any, found: Checkpoint) -> Iterator[Finding]:
    """A position that is behind what it was, or ahead of its source."""
    if found.head is not None and found.position is not None and found.head < found.position:
        yield Finding(WARNING, "head-behind", found.key,
                      f"revision {found.revision}: head {found.head} is behind position "
                      f"{found.position}", f"ckptmesh state history {found.key}; whoever reports "
                      "the head counts in another unit, or looks at another source")
    if found.revision == found.create_revision:
        return
    best: Checkpoint | None = None
    for each in mesh.history(found.key, packed=True):
        if each.create_revision != found.create_revision:
            break
        if each.position is not None and (
                best is None or best.position is None or each.position > best.position):
            best = each
        if each.rewind:
            break
    if best is None or best.position is None or (
            found.position is not None and found.position >= best.position):
        return
    yield Finding(WARNING, "stepped-back", found.key,
                  f"position {found.position} in revision {found.revision} is behind "
                  f"{best.position} in revision {best.revision}, and nobody has rewound it",
                  f"ckptmesh state history {found.key}; ckptmesh state get "
                  f"{found.key}@{best.revision}")

