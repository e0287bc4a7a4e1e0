"""The record of a run: what is known about it, as one value in the store.

    record = read(checkpoint)          # of any schema up to SCHEMA
    record.status, record.completed, record.stages[0].milliseconds

Rule 1: immutable; a change is another record (`dataclasses.replace`, `with_stage`, `noted`).
Rule 2: whatever could grow with the work is bounded: errors, events, the length of a message.
Rule 3: an older record is read by upgrading it, a step of `UPGRADES` at a time; a newer one is
        refused with `Unsupported` and never written over.

A record is a map with the fields of `RunRecord` and "schema", an integer. Stages, errors and events
are arrays of maps with the fields of their classes. Times are aware. Schema 0 is what `ckptmesh
exec` writes, which has no number: a run of one stage.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from datetime import datetime, timedelta
from typing import Any

from ckptmesh.clock import from_datetime, iso
from ckptmesh.errors import InvalidPayload, Unsupported
from ckptmesh.features.pipeline.places import EXEC, RUNS
from ckptmesh.features.readable import to_json
from ckptmesh.limits import RUN_ERRORS, RUN_EVENTS, RUN_TEXT
from ckptmesh.views import Checkpoint

SCHEMA = 1
PENDING, RUNNING, COMPLETED, FAILED, PAUSED, CANCELLED = STATUSES = (
    "pending", "running", "completed", "failed", "paused", "cancelled")
INTERRUPTED = "interrupted"  # how a run is shown that says running, and whose process is gone
FINISHED = (COMPLETED, CANCELLED)  # nothing is left to be done, or wanted


@dataclass(frozen=True, slots=True, kw_only=True)
class RunError:
    """One thing that went wrong: a stage, or one item of its work.

    `id`: of the item, or None; `context`: plain facts, shortened where they are long; `retryable`:
    whether the same again may succeed.
    """

    id: Any
    stage: str
    message: str
    context: dict[str, Any]
    time: datetime
    retryable: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEvent:
    """One step in the life of a run. `count`: how many alike in a row it stands for, the last of
    them told."""

    time: datetime
    kind: str  # created, started, resumed, stage started, batch, stage completed, error, …
    stage: str
    detail: str
    worker: str
    count: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRecord:
    """One stage of a run.

    `executions`: how often its function was called, all attempts; `sha256`, `size`: of its output
    as packed, files that it names not counted in `size`, but in `file_bytes`; `made_from`: digest
    of all that it depends on, `provenance` what that is, a digest each: "inputs", "config", and
    the stages it needs. `checkpoint`: whether its output is kept.
    """

    name: str
    needs: tuple[str, ...] = ()
    version: int | str = 1
    checkpoint: bool = True
    status: str = PENDING
    started: datetime | None = None
    finished: datetime | None = None
    heartbeat: datetime | None = None
    milliseconds: int = 0
    worker: str = ""
    executions: int = 0
    last_id: Any = None
    batch: int | None = None
    records: int = 0
    failed: int = 0
    bytes: int = 0
    error: str = ""
    sha256: str = ""
    size: int = 0
    file_bytes: int = 0
    made_from: str = ""
    provenance: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """All that is known about one run.

    `kind`: "pipeline", or "exec" for a command. `stage`: the one that is under way, or where the
    run stopped; "" between stages. `parent`: KEY@REVISION of the record that it went on from.
    `stored_at`, `asked` and `interrupted` are not of the record itself: where it was read, as
    KEY@REVISION; the "pause" or "cancel" that somebody has asked for and nobody has obeyed yet;
    and whether its process is gone, so that it is "running" only by name.
    """

    pipeline: str
    key: str
    run_id: str
    created: datetime
    updated: datetime
    kind: str = "pipeline"
    version: int | str = 1
    status: str = PENDING
    stage: str = ""
    stages: tuple[StageRecord, ...] = ()
    inputs: Any = None
    inputs_sha256: str = ""
    config: Any = None
    config_sha256: str = ""
    started: datetime | None = None
    finished: datetime | None = None
    last_success: datetime | None = None
    worker: str = ""
    resumes: int = 0
    parent: str = ""
    error: str = ""
    errors: tuple[RunError, ...] = ()
    errors_total: int = 0
    events: tuple[RunEvent, ...] = ()
    last_id: Any = None
    batch: int | None = None
    position: int | None = None
    head: int | None = None
    folder: str = ""
    stored_at: str = ""
    asked: str = ""
    interrupted: bool = False

    # --- what follows from it -----------------------------------------------------------------

    @property
    def stage_index(self) -> int | None:
        """Which of the stages `stage` is, from 0; None between stages."""
        return next((at for at, each in enumerate(self.stages) if each.name == self.stage), None)

    @property
    def completed(self) -> tuple[str, ...]:
        """The names of the stages that are completed, in order."""
        return tuple(each.name for each in self.stages if each.status == COMPLETED)

    @property
    def pending(self) -> tuple[str, ...]:
        """The names of those that are not, in order."""
        return tuple(each.name for each in self.stages if each.status != COMPLETED)

    @property
    def shown(self) -> str:
        """Its status, or "interrupted" where it is running only by name."""
        return INTERRUPTED if self.interrupted else self.status

    @property
    def finished_for_good(self) -> bool:
        """Whether nothing is left to be done: completed or cancelled."""
        return self.status in FINISHED

    @property
    def records(self) -> int:
        """Records processed, by all stages."""
        return sum(each.records for each in self.stages)

    @property
    def failed(self) -> int:
        """Records that failed, in all stages."""
        return sum(each.failed for each in self.stages)

    @property
    def bytes(self) -> int:
        """Bytes processed, by all stages."""
        return sum(each.bytes for each in self.stages)

    @property
    def size(self) -> int:
        """Bytes of all outputs: in the store and in files."""
        return sum(each.size + each.file_bytes for each in self.stages)

    @property
    def sha256(self) -> str:
        """Of the last stage's output; "" until there is one."""
        return self.stages[-1].sha256 if self.stages else ""

    @property
    def lag(self) -> int | None:
        """How far it is behind its source, in units of its positions; None where not both are
        known."""
        if self.head is None or self.position is None:
            return None
        return self.head - self.position

    @property
    def took(self) -> timedelta | None:
        """From its creation to its end; None before."""
        return None if self.finished is None else self.finished - self.created

    def behind(self, now: datetime) -> timedelta | None:
        """How long ago a stage was last completed; None where none was."""
        return None if self.last_success is None else now - self.last_success

    def __getitem__(self, stage: str) -> StageRecord:
        """A stage by its name. Raises `KeyError`."""
        for each in self.stages:
            if each.name == stage:
                return each
        raise KeyError(stage)

    # --- changes ------------------------------------------------------------------------------

    def with_stage(self, stage: str, **changes: Any) -> RunRecord:
        """The record with other facts about one stage."""
        return replace(self, stages=tuple(
            replace(each, **changes) if each.name == stage else each for each in self.stages))

    def noted(self, event: RunEvent) -> RunRecord:
        """With one more event. One like the last, of the same stage, takes its place: a million
        batches push nothing out."""
        before = self.events
        if before and event.kind == "batch" and (
                (before[-1].kind, before[-1].stage) == (event.kind, event.stage)):
            event = replace(event, count=before[-1].count + 1)
            before = before[:-1]
        event = replace(event, detail=shortened(event.detail))
        return replace(self, events=(*before, event)[-RUN_EVENTS:])

    def troubled(self, error: RunError) -> RunRecord:
        """With one more error; the oldest go when there are too many, and are counted still."""
        context = error.context
        if len(repr(context)) > RUN_TEXT:
            context = {"shortened": repr(context)[:RUN_TEXT]}
        error = replace(error, message=shortened(error.message), context=context)
        return replace(self, errors=(*self.errors, error)[-RUN_ERRORS:],
                       errors_total=self.errors_total + 1)


def shortened(text: str) -> str:
    """A text of bounded length that can be stored."""
    text = text.encode(errors="replace").decode()
    return text if len(text) <= RUN_TEXT else text[:RUN_TEXT - 1] + "…"


# --- record ↔ value ---------------------------------------------------------------------------

_OUTSIDE = ("stored_at", "asked", "interrupted")
_OF_USERS = ("inputs", "config", "last_id", "id", "context")
_TYPES = {"pipeline": str, "key": str, "run_id": str, "kind": str, "stage": str, "error": str,
          "folder": str, "created": datetime, "updated": datetime}
_PARTS = {"stages": StageRecord, "errors": RunError, "events": RunEvent}


def write(record: RunRecord) -> dict[str, Any]:
    """The value that is stored."""
    found = _plain(record)
    for name in _OUTSIDE:
        del found[name]
    return {"schema": SCHEMA, **found}


def document(record: RunRecord) -> dict[str, Any]:
    """All of it as JSON can hold it, with what follows from it: for people and programs. Times are
    ISO-8601, UTC; values of users as `features/readable.py` writes them."""
    found = _plain(record)
    for name in ("stage_index", "completed", "pending", "records", "failed", "bytes", "size",
                 "sha256", "lag"):
        value = getattr(record, name)
        found[name] = list(value) if isinstance(value, tuple) else value
    return {"schema": SCHEMA, **_readable(found)}


def _readable(part: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in part.items():
        if name in _PARTS:
            found[name] = [_readable(item) for item in value]
        elif name in _OF_USERS:
            found[name] = to_json(value)
        else:
            found[name] = iso(from_datetime(value)) if isinstance(value, datetime) else value
    return found


def _plain(part: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for each in fields(part):
        value = getattr(part, each.name)
        if each.name in _PARTS:
            value = [_plain(item) for item in value]
        elif each.name == "needs":
            value = list(value)
        found[each.name] = value
    return found


def read(found: Checkpoint, asked: str = "") -> RunRecord:
    """The record that stands in a checkpoint, of any schema that is known.

    Raises `Unsupported` for one that a newer ckptmesh has written, `InvalidPayload` for what is no
    record.
    """
    try:
        value = upgraded(found.value, found.key)
        stored_at = f"{found.key}@{found.revision}"
        return _run_of(value, stored_at, asked)
    except (TypeError, KeyError, AttributeError, ValueError, OverflowError) as error:
        if isinstance(error, InvalidPayload):
            raise
        raise InvalidPayload(f"what stands at {found.key!r} is not the record of a run: {error}",
                             key=found.key) from None


def upgraded(value: Any, key: str) -> dict[str, Any]:
    """The value of a record in the schema of today. Raises `Unsupported`, `TypeError`."""
    if type(value) is not dict:
        raise TypeError(f"{type(value).__name__} instead of a map")
    found: dict[str, Any] = value
    schema = found.get("schema", 0)
    if type(schema) is not int or schema < 0:
        raise TypeError("its schema is not a number")
    if schema > SCHEMA:
        raise Unsupported(
            f"the record at {key!r} has schema {schema}; this ckptmesh knows {SCHEMA} and older",
            hint="use a ckptmesh as new as the one that wrote it; nothing was changed",
            key=key, schema=schema, known=SCHEMA)
    for step in range(schema, SCHEMA):
        found = {**UPGRADES[step](found, key), "schema": step + 1}
    return found


def _run_of(value: dict[str, Any], stored_at: str, asked: str) -> RunRecord:
    facts = {name: fact for name, fact in value.items() if name != "schema"}
    for name, part_of in _PARTS.items():
        facts[name] = tuple(part_of(**part) for part in facts[name])
    facts["stages"] = tuple(replace(each, needs=tuple(each.needs)) for each in facts["stages"])
    if facts["status"] not in STATUSES:
        raise ValueError(f"no status {facts['status']!r:.40}")
    for name, kind in _TYPES.items():
        if not isinstance(facts[name], kind):
            raise ValueError(f"{name} is no {kind.__name__}")
    return RunRecord(**facts, stored_at=stored_at, asked=asked)


def _from_exec(value: dict[str, Any], key: str) -> dict[str, Any]:
    """0 → 1: what `ckptmesh exec` has recorded of a command."""
    pipeline, _, began = key.partition(EXEC)
    started: datetime = value["started"]
    ended = started + timedelta(seconds=value["seconds"])
    status = COMPLETED if value["result"] == "ok" else FAILED
    error = "" if status == COMPLETED else shortened(
        f"{value['result']}, exit code {value['code']}: {value.get('error', '')}")
    stage = StageRecord(
        name=value["program"], status=status, started=started, finished=ended, heartbeat=ended,
        milliseconds=round(1_000 * value["seconds"]), worker=value["holder"], executions=1,
        error=error, checkpoint=value["committed"])
    errors = () if not error else (RunError(
        id=None, stage=stage.name, message=error, context={"code": value["code"]}, time=ended,
        retryable=True),)
    return write(RunRecord(
        pipeline=pipeline.partition(f"/{RUNS}")[0], key=began, run_id=began, kind="exec",
        created=started, started=started, updated=ended, finished=ended, status=status,
        stage="" if status == COMPLETED else stage.name, stages=(stage,), worker=value["holder"],
        last_success=ended if status == COMPLETED else None, error=error, errors=errors,
        errors_total=len(errors)))


UPGRADES: dict[int, Callable[[dict[str, Any], str], dict[str, Any]]] = {0: _from_exec}
"""From schema n to n + 1: takes the value and the key at which it stands, gives the new value. A
change of the record adds a step here, and a test with a record as the schema before wrote it."""
