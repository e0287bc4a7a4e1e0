"""What is left to do of a run: its record under the definition of today. Nothing here asks a store.

Rule: what a stage's output was made from is in the record; the same made from the same is not made
      again.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ckptmesh.errors import PipelineChanged, StageNotReady
from ckptmesh.features.pipeline.definition import Definition, Stage
from ckptmesh.features.pipeline.digests import digest_of, made_from, provenance_of
from ckptmesh.features.pipeline.records import COMPLETED, PENDING, RUNNING, RunRecord

AUTO, NEVER, REQUIRED = RESUME = ("auto", "never", "required")


class AsRecorded:
    """Stands for inputs or a configuration that were not given: those of the run's record."""

    def __repr__(self) -> str:
        return "as recorded"


AS_RECORDED = AsRecorded()


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What one call of `run` asks for, checked. `wait`: seconds for the lock, and for the stages
    that those of `only` need; None: as long as it takes."""

    key: str
    inputs: Any
    config: Any
    resume: str
    only: tuple[str, ...] | None
    at_most: int | None
    storage: str | Path | None
    max_output: int
    ttl: float
    wait: float | None
    worker: str


class Plan:
    """A definition, and what one call asks for."""

    def __init__(self, definition: Definition, options: Options) -> None:
        self.definition, self.options = definition, options
        self.stages = definition.stages

    # --- records ------------------------------------------------------------------------------

    def fresh(self, again: RunRecord | None, parent: str) -> RunRecord:
        """A new run; `again`: one of which the stages that hold are taken over."""
        now, options, name = datetime.now(UTC), self.options, self.definition.name
        run_id = secrets.token_hex(8)
        inputs, inputs_sha = _given(options.inputs, again and again.inputs, "the inputs")
        config, config_sha = _given(options.config, again and again.config, "the configuration")
        return RunRecord(
            pipeline=name, key=options.key, run_id=run_id, created=now, updated=now, started=now,
            version=self.definition.version, status=RUNNING, worker=options.worker,
            stages=again.stages if again else self.definition.entries(), inputs=inputs,
            inputs_sha256=inputs_sha, config=config, config_sha256=config_sha, parent=parent,
            folder=f"{name}/{options.key}/{run_id}")

    def adopted(self, record: RunRecord) -> RunRecord:
        """The record under this definition, with the inputs and the configuration of this call.
        Stages that do not hold any more are pending. Raises `PipelineChanged`."""
        definition = self.definition
        self._check(record)
        before = {each.name: each for each in record.stages}
        inputs, inputs_sha = _given(self.options.inputs, record.inputs, "the inputs")
        config, config_sha = _given(self.options.config, record.config, "the configuration")
        entries = []
        for stage in self.stages.values():
            fresh = definition.entry(stage)
            was = before.get(stage.name)
            if was is not None and was.needs == fresh.needs:
                kept = was.checkpoint or not fresh.checkpoint
                fresh = replace(
                    was, version=fresh.version, checkpoint=fresh.checkpoint,
                    status=COMPLETED if kept and was.status == COMPLETED else PENDING)
            entries.append(fresh)
        record = replace(record, version=definition.version, stages=tuple(entries), inputs=inputs,
                         inputs_sha256=inputs_sha, config=config, config_sha256=config_sha)
        for stage in self.stages.values():
            if self.provenance(record, stage) is not None and not self.stands(record, stage):
                record = record.with_stage(stage.name, status=PENDING)
        return record

    def _check(self, record: RunRecord) -> None:
        """Raises `PipelineChanged` where the definition is not that of the record, and nobody has
        said so by another version; or is an older one."""
        definition = self.definition
        changes = definition.changes(record)
        theirs, ours = record.version, definition.version
        older = isinstance(theirs, int) and isinstance(ours, int) and ours < theirs
        if older:
            changes = [f"it was begun with version {theirs}, and this is {ours}"]
        if changes and (older or theirs == ours):
            raise PipelineChanged(
                f"pipeline {definition.name!r} is not as it was when run {record.key!r} was begun: "
                + "; ".join(changes), pipeline=definition.name, key=record.key, changes=changes)

    # --- stages -------------------------------------------------------------------------------

    def provenance(self, record: RunRecord, stage: Stage) -> dict[str, str] | None:
        """What a stage depends on; None where a stage that it needs is not completed."""
        needs = {}
        for name in record[stage.name].needs:
            need = record[name]
            if need.status != COMPLETED:
                return None
            needs[name] = need.sha256 if need.checkpoint else need.made_from
        return provenance_of(record.inputs_sha256, record.config_sha256, needs)

    def made(self, record: RunRecord, stage: Stage) -> str:
        """The digest of that. Raises `StageNotReady`."""
        provenance = self.provenance(record, stage)
        if provenance is None:
            raise self.not_ready(record, stage.name)
        return made_from(stage.name, stage.version, provenance)

    def stands(self, record: RunRecord, stage: Stage) -> bool:
        """Whether a stage is completed, and made from what it would be made from now."""
        entry = record[stage.name]
        return (entry.status == COMPLETED and self.provenance(record, stage) is not None
                and entry.made_from == self.made(record, stage))

    def is_done(self, record: RunRecord) -> bool:
        """Whether all stages stand."""
        return all(self.stands(record, stage) for stage in self.stages.values())

    def missing(self, record: RunRecord | None) -> str:
        """The first of our stages that cannot be run yet, since it needs what is not completed and
        is not ours; "" where there is none."""
        only = self.options.only or ()
        there = () if record is None else record.completed
        return next((name for name in only for need in self.stages[name].needs or ()
                     if need not in only and need not in there), "")

    def not_ready(self, record: RunRecord | None, name: str) -> StageNotReady:
        """Why a stage cannot be run yet."""
        there = () if record is None else record.completed
        needs = [str(need) for need in self.stages[name].needs or () if need not in there]
        key, pipeline = self.options.key, self.definition.name
        return StageNotReady(
            f"stage {name!r} of run {key!r} of {pipeline!r} needs {', '.join(needs)}, not yet "
            "completed", pipeline=pipeline, key=key, stage=name, needs=needs)


def _given(given: Any, recorded: Any, what: str) -> tuple[Any, str]:
    """The value and its digest. Raises `InvalidValue`, `TooLarge`."""
    value = recorded if isinstance(given, AsRecorded) else given
    return value, digest_of(value, what)
