"""The recovery report of a pipeline: where it would go on, what is done again, what is suspicious.

    told = report(mesh, "nightly")
    told.plans; told.findings; told.suspicious

Rule 1: locks are read after the runs, and a run that has changed meanwhile is alive: what ends in
        between is no finding.
Rule 2: no false alarm: what may be right is a note, and does not make a report suspicious.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from ckptmesh.backends.base import Capability
from ckptmesh.clock import to_datetime
from ckptmesh.errors import Error
from ckptmesh.features.debugging import suspicions
from ckptmesh.features.debugging.reading import (
    Gone,
    Run,
    Unread,
    each_run,
    each_under,
    one_run,
    unpacked,
)
from ckptmesh.features.debugging.suspicions import NOTE, SEVERITIES, Finding
from ckptmesh.features.debugging.verifying import left
from ckptmesh.features.holes import State
from ckptmesh.features.locks import LOCKS
from ckptmesh.features.pipeline.places import RUNS, Places, is_record
from ckptmesh.features.pipeline.records import CANCELLED, PAUSED, RUNNING, RunRecord
from ckptmesh.features.sharing import WORKERS
from ckptmesh.features.tickets import tickets
from ckptmesh.features.validating import problem_of
from ckptmesh.limits import DEBUG_FINDINGS, DEBUG_KEYS
from ckptmesh.views import Checkpoint

_LAST = 3  # runs that are compared with each other
_HOLES = 5  # of one set of intervals that are told


class Plan(NamedTuple):
    """Where an unfinished run goes on. `stage`: the first that is executed; `redo`: all that are,
    at most, in order; `inside`: the checkpoint within that stage where it goes on, KEY@REVISION,
    or ""; `call`: what does it; `waits`: what must come first, a command, or ""."""

    key: str
    status: str
    at_work: str
    stage: str
    done: tuple[str, ...]
    redo: tuple[str, ...]
    inside: str
    call: str
    waits: str


class Holes(NamedTuple):
    """What is left of a set of intervals. `low_mark`: all before is done; `holes` before the last
    that is done: the first few of `number`, with `missing` numbers in all; `claims`: how many."""

    key: str
    low_mark: int
    number: int
    missing: int
    holes: tuple[tuple[int, int], ...]
    claims: int


@dataclass(slots=True, kw_only=True)
class Report:
    """What a report tells. `more`: findings that are not told, since there are so many. `runs`,
    `keys`: looked at; `all_keys`: whether these were all. `free`: partitions that no worker has,
    None where there are no workers."""

    pipeline: str
    run: str | None
    time: datetime
    plans: list[Plan] = field(default_factory=list)
    holes: list[Holes] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    workers: int = 0
    partitions: int = 0
    free: int | None = None
    runs: int = 0
    keys: int = 0
    all_keys: bool = True
    more: int = 0

    @property
    def suspicious(self) -> bool:
        """Whether anything was found that is more than a note."""
        return any(each.severity != NOTE for each in self.findings)

    def add(self, found: Iterable[Finding]) -> None:
        """Take findings in, as far as there is room."""
        for each in found:
            if len(self.findings) < DEBUG_FINDINGS:
                self.findings.append(each)
            else:
                self.more += 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """How to look. `dead`: what else is known of holders that are dead; `storage`: where files
    are; `files`: whether to read them; `stale`: seconds without a report; `everything`: all keys,
    however many."""

    dead: Gone | None = None
    storage: str | Path | None = None
    files: bool = True
    stale: float = 3_600.0
    everything: bool = False


def report(mesh: Any, pipeline: str, key: str | None = None, look: Look | None = None) -> Report:
    """Look at a pipeline, or at one run of it. Raises `RunNotFound` for one that is not there,
    `InvalidKey`."""
    return _Reporter(mesh, pipeline, key, look or Look()).report()


class _Reporter:
    """One report in the making."""

    def __init__(self, mesh: Any, pipeline: str, key: str | None, look: Look) -> None:
        self._mesh, self._pipeline, self._key, self._look = mesh, pipeline, key, look
        self._report = Report(pipeline=pipeline, run=key, time=to_datetime(mesh.hello().time))

    def report(self) -> Report:
        self._runs()
        if self._key is None:
            self._locks()
            self._team()
            self._keys()
        self._report.findings.sort(key=lambda each: SEVERITIES.index(each.severity))
        return self._report

    def _dead(self, found: Checkpoint) -> bool:
        known = self._look.dead
        return suspicions.is_dead_here(found) or (known is not None and known(found))

    # --- runs ---------------------------------------------------------------------------------

    def _runs(self) -> None:
        last: list[RunRecord] = []
        unfinished: list[Run] = []
        found: Iterable[Run | Unread] = (
            each_run(self._mesh, self._pipeline) if self._key is None
            else [one_run(self._mesh, self._pipeline, self._key)])
        for each in found:
            self._report.runs += 1
            if isinstance(each, Unread):
                self._report.add([suspicions.unread(each)])
                continue
            self._one(each)
            if not each.past and each.record.kind == "pipeline":
                last = sorted([*last, each.record], key=lambda one: one.created)[-_LAST:]
                if not each.record.finished_for_good and len(unfinished) < DEBUG_FINDINGS:
                    unfinished.append(each)
        for each in unfinished:
            self._report.add(suspicions.of_version(each, last[-1]))
            self._report.plans.append(self._plan(each))
        self._report.add(suspicions.failing(last))

    def _one(self, run: Run) -> None:
        add, look = self._report.add, self._look
        add(suspicions.of_order(run))
        add(suspicions.of_outputs(self._mesh, run, look.storage, look.files))
        add(suspicions.of_errors(run))
        add(suspicions.of_request(run))
        if run.record.status == RUNNING and not run.past:
            add(self._holder(run))

    def _holder(self, run: Run) -> list[Finding]:
        """Whether somebody is at a run. One whose record has changed since it was read has somebody
        who changed it: so what ends in between is never taken for dead."""
        held = [each for each in tickets(self._mesh, self._pipeline) if not each.ahead]
        now = self._mesh.get(run.found.key, packed=True)
        if now is None or now.revision != run.found.revision:
            return []
        return [*suspicions.of_holder(run, held, self._dead, self._report.time,
                                      self._look.stale)]

    def _plan(self, run: Run) -> Plan:
        record = run.record
        redo = left(record)
        place = Places(record.pipeline, record.key).place(redo[0]) if redo else ""
        found = self._mesh.get(place, packed=True) if place else None
        alive = record.status == RUNNING and all(
            (each.fault, each.key) != ("nobody-at-it", run.found.key)
            for each in self._report.findings)
        waits = (f"ckptmesh run resume {record.pipeline} {record.key}"
                 if record.status == PAUSED or record.asked else "")
        return Plan(
            record.key, record.status, record.worker if alive else "",
            redo[0] if redo else "", record.completed, redo,
            f"{place}@{found.revision}" if found else "",
            "" if record.status == CANCELLED else suspicions.going_on(record), waits)

    # --- locks, workers, keys -----------------------------------------------------------------

    def _locks(self) -> None:
        for each in tickets(self._mesh, self._pipeline):
            self._report.add(suspicions.of_lock(each, self._dead))

    def _team(self) -> None:
        if "/" in self._pipeline:
            return
        team = self._mesh.workers(self._pipeline).list()
        owned: set[str] = set()
        for each in team:
            self._report.add(suspicions.of_worker(self._pipeline, each))
            if each.state != "stale":
                self._report.workers += 1
                owned.update(each.partitions)
                registration = self._mesh.get(each.key)
                value = registration.value if registration else None
                if isinstance(value, dict) and type(value.get("partitions")) is int:
                    self._report.partitions = value["partitions"]
        if self._report.partitions:
            self._report.free = max(0, self._report.partitions - len(owned))

    def _keys(self) -> None:
        """The pipeline's own checkpoints, one after the other."""
        most = None if self._look.everything else DEBUG_KEYS
        for each in islice(each_under(self._mesh, self._pipeline), most):
            self._report.keys += 1
            if each.is_lease:
                continue
            problem = problem_of(each)
            if problem and not is_record(each.key):
                self._report.add([suspicions.of_value(each, problem)])
            if not _is_own(each.key, self._pipeline):
                self._report.add(suspicions.of_place(self._mesh, each))
                self._report.holes += () if problem else _holes_of(each)
        self._report.all_keys = most is None or self._report.keys < most


def _is_own(key: str, pipeline: str) -> bool:
    """Whether a key is one of ckptmesh's own, and no progress of somebody's."""
    return any(f"/{each}/" in key[len(pipeline):] + "/" for each in (RUNS, LOCKS, WORKERS)) or (
        "/_" in key[len(pipeline):])


def _holes_of(found: Checkpoint) -> Iterator[Holes]:
    """What is left of it, if it is a set of intervals."""
    if found.value.data[:1] < b"\x80":  # no map: most checkpoints are numbers and texts
        return
    value = unpacked(found).value
    if not isinstance(value, dict) or "intervals" not in value or "done" not in value:
        return
    state = State(found.key, value.get("start", 0))
    try:
        state.load(unpacked(found))
    except Error:
        return
    end = state.done.last or state.start
    holes = [*state.done.gaps(state.start, end)]
    if holes or state.claims:
        yield Holes(found.key, state.low, len(holes), sum(b - a for a, b in holes),
                    tuple(holes[:_HOLES]), len(state.claims))


def dead_in(directory: str | None, mesh: Any) -> Gone:
    """What is known of holders where a store is a directory that this process has open alone: those
    of `exec` live as long as their file is locked, and everybody else is gone."""
    if directory is None or Capability.PROCESSES in mesh.capabilities:
        return lambda found: False
    from ckptmesh.features.holding import ALIVE, is_dead

    def dead(found: Checkpoint) -> bool:
        marked = isinstance(found.value, dict) and ALIVE in found.value
        return is_dead(directory, found) if marked else True

    return dead
