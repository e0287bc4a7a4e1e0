"""One run of a pipeline, as a flow: from where it stands to its end, or to where it is stopped.

Rule 1: what a run is, its record says; nothing of it is known from anywhere else. So a process that
        is killed at any moment leaves a run that goes on with the stage that was interrupted.
Rule 2: a run is done under its lock, and every commit of it is guarded by that.
Rule 3: a stage's output and the fact that it is completed are one commit.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, Protocol

from ckptmesh.api import seconds
from ckptmesh.errors import (
    Compacted,
    Conflict,
    Error,
    LeaseLost,
    LockTimeout,
    OutcomeUnknown,
    RunNotFound,
    RunStopped,
)
from ckptmesh.features.pipeline.definition import Stage
from ckptmesh.features.pipeline.digests import made_from
from ckptmesh.features.pipeline.handles import Work
from ckptmesh.features.pipeline.ledger import Ledger, Put
from ckptmesh.features.pipeline.outputs import Outputs
from ckptmesh.features.pipeline.places import Places
from ckptmesh.features.pipeline.plan import NEVER, REQUIRED, Plan
from ckptmesh.features.pipeline.records import (
    CANCELLED,
    COMPLETED,
    FAILED,
    PENDING,
    RUNNING,
    RunError,
    RunRecord,
    read,
    shortened,
    write,
)
from ckptmesh.features.pipeline.runs import CANCEL, PAUSE, scan, stopped
from ckptmesh.features.pipeline.storage import Storage
from ckptmesh.flows import Flow
from ckptmesh.limits import RUN_LOOK
from ckptmesh.views import Checkpoint

_ENDS_A_STAGE = (Exception, KeyboardInterrupt, SystemExit, asyncio.CancelledError)


class Ways(Protocol):
    """How one kind of client waits, looks around and calls a stage: `ways.py`."""

    def sleep(self, wait: float) -> Any:
        """Wait so many seconds."""

    def mutex(self) -> Any:
        """A lock of threads or of tasks."""

    def lookout(self, ledger: Ledger) -> Any:
        """What looks again and again for what is asked: `start` and `close`."""

    def call(self, stage: Stage, work: Work, arguments: list[Any]) -> Any:
        """Call the function of a stage; its output."""


@dataclass(frozen=True, slots=True)
class RunResult:
    """How a run stands when `run` returns: `record`, and the outputs that are known, by stage.

    Without `only` and `at_most` it is completed. `executed`: the stages that were run here.
    """

    record: RunRecord
    outputs: dict[str, Any]
    executed: tuple[str, ...]

    @property
    def output(self) -> Any:
        """The last stage's output; None where it is not known."""
        return self.outputs.get(self.record.stages[-1].name)

    @property
    def status(self) -> str:
        """"completed", or "pending" where stages are left for others."""
        return self.record.status


class Execution:
    """One call of `run`."""

    def __init__(self, store: Any, plan: Plan, ways: Ways) -> None:
        options = plan.options
        self._store, self._plan, self._options, self._ways = store, plan, options, ways
        self._places = Places(plan.definition.name, options.key)
        self._lock = store.lock(self._places.lock, ttl=options.ttl, wait=options.wait,
                                holder=options.worker)
        self._ledger = Ledger(store, self._places, self._lock, ways.mutex(), options.worker)
        self._outputs = Outputs(store, self._places, options)
        self._executed: list[str] = []

    def run(self) -> Flow[RunResult]:
        """Do what is left to do."""
        if self._options.resume != NEVER:
            found = yield partial(self._store.get, self._places.record)
            done = yield from self._done(found)
            if done is not None:
                return done
            if self._options.only and self._options.wait != 0:
                yield from self._await_needs()
        try:
            yield self._lock.acquire
        except LockTimeout as error:
            raise LockTimeout(
                f"run {self._places.key!r} of {self._places.pipeline!r} is being done: "
                f"{error.message}", hint="wait=None waits for its end; `ckptmesh run show` tells "
                "how far it is", **error.details) from None
        try:
            return (yield from self._locked())
        finally:
            with suppress(Error):  # what was not committed for that was told; it ends by itself
                yield self._lock.release

    def _locked(self) -> Flow[RunResult]:
        """Everything that is done while the lock is held."""
        try:
            done = yield from self._begin()
        except Conflict:  # somebody has paused or resumed it just now, which needs no lock
            done = yield from self._begin()
        if done is not None:
            return done
        lookout = self._ways.lookout(self._ledger)
        yield lookout.start
        try:
            yield from self._stages()
        except RunStopped:
            if self._ledger.asked:
                yield from self._stop()
            raise
        finally:
            yield lookout.close
        return (yield from self._finish())

    # --- where it begins ----------------------------------------------------------------------

    def _done(self, found: Checkpoint | None) -> Flow[RunResult | None]:
        """What is returned where all is completed already."""
        record = None if found is None else read(found)
        if record is None or record.status != COMPLETED:
            return None
        record = self._plan.adopted(record)
        if not self._plan.is_done(record):
            return None
        return RunResult(record, (yield from self._outputs.all(record, kept=True)), ())

    def _begin(self) -> Flow[RunResult | None]:
        """Read the record and make it ours; the result, where somebody else has completed it."""
        places = self._places
        standing = yield partial(self._store.get_many, [places.record, places.asked])
        found, asked = standing[places.record], standing[places.asked]
        if found is None and self._options.resume == REQUIRED:
            raise RunNotFound(
                f"there is no run {places.key!r} of {places.pipeline!r} to go on with",
                hint='resume="auto" begins one', pipeline=places.pipeline, key=places.key)
        if found is None or self._options.resume == NEVER:
            yield from self._create(found, None)
            return None
        done = yield from self._done(found)
        if done is not None:
            return done
        record = read(found)
        if record.status == COMPLETED:
            yield from self._create(found, self._plan.adopted(record))
            return None
        self._ledger.load(record, found)
        if asked is not None:
            self._ledger.asked = asked.value
            yield from self._stop()
            raise self._ledger.stop_of(asked.value)
        if record.status == CANCELLED:
            raise self._ledger.stop_of({"ask": CANCEL, "by": record.events[-1].worker,
                                        "reason": record.events[-1].detail})
        yield from self._take_up(record)
        return None

    def _take_up(self, record: RunRecord) -> Flow[None]:
        """Go on with an unfinished run."""
        ledger, adopted = self._ledger, self._plan.adopted(record)
        resumed = bool(record.stage)  # else it was handed over, between stages
        if record.status == RUNNING and resumed:
            ledger.note("interrupted", record.stage, f"{record.worker} ended within it")
        events = ledger.record.events
        ledger.change(lambda _: replace(
            adopted, status=RUNNING, stage="", worker=self._options.worker, finished=None,
            started=record.started or record.created, error="", stored_at="", events=events,
            resumes=record.resumes + resumed, parent=record.stored_at))
        if resumed:
            ledger.note("resumed", record.stage, f"from {record.stored_at}")
        for what, before, after in (
                ("inputs", record.inputs_sha256, adopted.inputs_sha256),
                ("configuration", record.config_sha256, adopted.config_sha256),
                ("version", record.version, adopted.version)):
            if before != after:
                ledger.note(f"{what} changed", "", f"from {before} to {after}")
        gone = {each.name for each in record.stages} - set(self._plan.stages)
        yield from ledger.save(delete=[self._places.kept(name) for name in sorted(gone)])

    def _create(self, old: Checkpoint | None, again: RunRecord | None) -> Flow[None]:
        """A new run. `old`: what stands there, which is kept as an earlier run; `again`: the
        completed run of which the stages that still hold are taken over."""
        parent = f"{old.key}@{old.revision}" if old else ""
        self._ledger.load(self._plan.fresh(again, parent), old)
        self._ledger.note("created", "", "again: what it was made from has changed" if again else
                          "anew" if old else "")
        if old is None:
            yield from self._ledger.save(delete=[self._places.asked])  # meant for an earlier one
            return
        before = read(old)
        doomed = [self._places.asked]
        for folder in self._places.folders() if again is None else ():
            doomed += [each.key for each in (yield from scan(self._store, folder))]
        yield from self._ledger.save(
            Put(self._places.past(before.run_id), write(before)), delete=doomed)

    # --- stages -------------------------------------------------------------------------------

    def _stages(self) -> Flow[None]:
        only, at_most = self._options.only, self._options.at_most
        for stage in self._plan.stages.values():
            if self._plan.stands(self._ledger.record, stage) or (only and stage.name not in only):
                continue
            if at_most is not None and len(self._executed) >= at_most:
                return
            yield from self._execute(stage)

    def _execute(self, stage: Stage) -> Flow[None]:
        """Run a stage, again as often as declared, until its output is kept."""
        for need in self._ledger.record[stage.name].needs:
            if need not in self._outputs and not self._plan.stages[need].checkpoint:
                yield from self._execute(self._plan.stages[need])  # it was made before a crash
        attempt, done = 0, False
        while not done:
            attempt += 1
            yield from self._ledger.look()
            self._ledger.check()
            done = yield from self._attempt(stage, attempt)
            if not done:
                yield partial(self._ways.sleep, stage.pause(attempt))

    def _attempt(self, stage: Stage, attempt: int) -> Flow[bool]:
        """Whether it was completed; False: it may be tried again. Raises what ends the run."""
        work, returned = self._work(stage, attempt), False
        try:
            yield from work.load(self._ledger.places.place(stage.name))
            yield from self._started(stage, attempt)
            arguments = []
            for need in self._ledger.record[stage.name].needs:
                arguments.append((yield from self._outputs.get(need)))
                work.sources += self._outputs.source(need)
            began = time.monotonic()
            output = yield partial(self._ways.call, stage, work, arguments)
            returned, took = True, round(1_000 * (time.monotonic() - began))
            yield from self._completed(stage, work, output, took)
            return True
        except _ENDS_A_STAGE as error:
            if isinstance(error, RunStopped) and self._ledger.asked:
                raise
            if returned and isinstance(error, OutcomeUnknown):
                error.add_note(f"stage {stage.name!r} has ended; whether it is recorded nobody can "
                               "tell now: the next run finds out, and loses nothing")
                raise  # to call it failed might undo it
            again = not returned and attempt <= stage.retries and stage.may_retry(error)
            yield from self._failed(stage, error, attempt, again)
            if not again:
                raise
            return False
        finally:
            work.over = True

    def _work(self, stage: Stage, attempt: int) -> Work:
        record = self._ledger.record
        return Work(
            self._store, self._lock, self._ledger, stage.name, self._plan.made(record, stage),
            attempt, Storage(self._options.storage, f"{record.folder}/{stage.name}",
                             lambda: self._lock.lease),
            seconds(stage.timeout, None, "timeout"))

    def _started(self, stage: Stage, attempt: int) -> Flow[None]:
        now = datetime.now(UTC)
        self._ledger.change(lambda record: replace(
            record, status=RUNNING, stage=stage.name).with_stage(
            stage.name, status=RUNNING, started=now, finished=None, heartbeat=now, error="",
            worker=self._options.worker, executions=record[stage.name].executions + 1))
        self._ledger.note("stage started", stage.name, f"attempt {attempt}" if attempt > 1 else "")
        yield from self._ledger.save()

    def _completed(self, stage: Stage, work: Work, output: Any, took: int) -> Flow[None]:
        """Keep the output, with the fact that the stage is completed, in one commit."""
        name, now, places = stage.name, datetime.now(UTC), self._places
        provenance = self._plan.provenance(self._ledger.record, stage) or {}
        facts: dict[str, Any] = {"sha256": "", "size": 0, "file_bytes": 0}
        puts: list[Put] = []
        if stage.checkpoint:
            output, kept, facts = self._outputs.pack(name, output)
            puts = [Put(places.kept(name), kept, tuple(work.sources))]

        def change(record: RunRecord) -> RunRecord:
            return replace(record, stage="", error="", last_success=now).with_stage(
                name, status=COMPLETED, finished=now, heartbeat=now, milliseconds=took,
                provenance=provenance, made_from=made_from(name, stage.version, provenance),
                **facts).noted(self._ledger.event("stage completed", name))

        receipts = yield from self._ledger.save(
            *puts, delete=[places.place(name)] if work.placed else [], change=change)
        self._outputs.note(name, output, receipts[puts[0].key].revision if puts else 0)
        self._executed.append(name)

    def _failed(self, stage: Stage, error: BaseException, attempt: int, again: bool) -> Flow[None]:
        """Record a failure, as well as can be; the error itself goes on."""
        message, now = shortened(f"{type(error).__name__}: {error}"), datetime.now(UTC)
        trouble = RunError(id=None, stage=stage.name, message=message,
                           context={"attempt": attempt}, time=now, retryable=again)
        self._ledger.change(lambda record: replace(
            record, status=RUNNING if again else FAILED, stage=stage.name, error=message,
            ).with_stage(stage.name, status=PENDING if again else FAILED, error=message,
                         finished=now, heartbeat=now).troubled(trouble))
        self._ledger.note("retry" if again else "failed", stage.name, message)
        if not again:
            error.add_note(f"in stage {stage.name!r} of run {self._places.key!r} of pipeline "
                           f"{self._places.pipeline!r}, attempt {attempt}; what is completed is "
                           "kept, and the next run goes on with this stage")
        try:
            yield from self._ledger.save()
        except Error as other:
            error.add_note(f"the failure could not be recorded: {other.message}")
            if again:
                raise

    # --- where it ends ------------------------------------------------------------------------

    def _finish(self) -> Flow[RunResult]:
        """All is completed, or the rest is for others."""
        now, ledger = datetime.now(UTC), self._ledger
        done = self._plan.is_done(ledger.record)
        ledger.change(lambda record: replace(
            record, status=COMPLETED if done else PENDING, stage="",
            finished=now if done else None))
        if done:
            ledger.note("completed")
        else:
            ledger.note("handed over", "", "left: " + ", ".join(ledger.record.pending))
        yield from ledger.save(delete=[self._places.asked] if done else [])
        outputs = yield from self._outputs.all(ledger.record, kept=done)
        return RunResult(ledger.record, outputs, tuple(self._executed))

    def _stop(self) -> Flow[None]:
        """Say in the record that it has stopped as it was asked to."""
        what = CANCEL if self._ledger.asked.get("ask") == CANCEL else PAUSE
        reason = shortened(str(self._ledger.asked.get("reason", "")))

        def change(record: RunRecord) -> RunRecord:
            at, record = record.stage, stopped(record, what, reason)
            return record.with_stage(at, status=record.status) if at else record

        self._ledger.change(change)
        with suppress(LeaseLost):  # whoever has it now obeys
            yield from self._ledger.save(delete=[self._places.asked] if what == CANCEL else [])

    # --- waiting for others -------------------------------------------------------------------

    def _await_needs(self) -> Flow[None]:
        """Wait until the stages that ours need are completed, by whoever does them. Raises
        `StageNotReady`."""
        wait = self._options.wait
        until = float("inf") if wait is None else time.monotonic() + wait
        watch: Any = None
        try:
            while True:
                found = yield partial(self._store.get, self._places.record)
                record = None if found is None else read(found)
                missing = self._plan.missing(record)
                if not missing:
                    return
                left = until - time.monotonic()
                if left <= 0:
                    raise self._plan.not_ready(record, missing)
                if watch is None:  # it begins now: look again, so that nothing is missed
                    watch, left = self._store.watch(self._places.record), 0.0
                try:
                    yield partial(watch.get, timeout=min(left, RUN_LOOK))
                except Compacted:  # more happened than is kept: begin anew
                    yield watch.close
                    watch = None
        finally:
            if watch is not None:
                yield watch.close
