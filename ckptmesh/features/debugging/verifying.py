"""Whether the outputs of a run are what its record says of them, and what is to be done again.

Rule: what cannot be judged here is not called wrong: files of a storage that this host does not
      have, values of classes that this process does not know.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ckptmesh import values
from ckptmesh.errors import Error, OutputLost
from ckptmesh.features.debugging.reading import Run, is_exact
from ckptmesh.features.pipeline.digests import (
    digest_of,
    made_from,
    packed,
    provenance_of,
    sha256,
)
from ckptmesh.features.pipeline.places import Places
from ckptmesh.features.pipeline.records import COMPLETED, RunRecord, StageRecord
from ckptmesh.features.pipeline.storage import FileRef, by_content, rebased, references
from ckptmesh.views import Checkpoint

GOOD, MISSING, CHANGED, UNREADABLE, UNKNOWN = (
    "good", "missing", "changed", "unreadable", "unknown")


class Verdict(NamedTuple):
    """What was found of one thing. `state`: good, missing, changed, unreadable, or unknown where
    it cannot be judged from here; `text` says why."""

    what: str
    state: str
    text: str = ""


@dataclass(frozen=True, slots=True)
class Output:
    """The kept output of a stage: the checkpoint, None where it is gone, and what was found."""

    stage: str
    found: Checkpoint | None
    verdicts: tuple[Verdict, ...]


# --- outputs ----------------------------------------------------------------------------------


def outputs(mesh: Any, record: RunRecord, storage: str | Path | None = None,
            files: bool = True) -> Iterator[Output]:
    """The outputs of the completed stages that keep them, one after the other. `storage`: where
    files are (None: where they were written); without `files` those are not looked at."""
    if record.kind != "pipeline":
        return
    places = Places(record.pipeline, record.key)
    for stage in record.stages:
        if stage.checkpoint and stage.status == COMPLETED:
            found = mesh.get(places.kept(stage.name), packed=True)
            yield Output(stage.name, found, tuple(
                _verdicts(stage, places.kept(stage.name), found, storage, files)))


def _verdicts(stage: StageRecord, key: str, found: Checkpoint | None,
              storage: str | Path | None, files: bool) -> Iterator[Verdict]:
    if found is None:
        yield Verdict(key, MISSING, f"stage {stage.name} is completed, and its output is gone")
        return
    try:
        value = values.unpack(found.value.data)
    except Error as error:
        yield Verdict(f"{key}@{found.revision}", UNREADABLE, error.message)
        return
    named = references(value)
    yield _digest(stage, found, value, bool(named))
    for ref in named if files else ():
        yield file_verdict(ref, storage)


def _digest(stage: StageRecord, found: Checkpoint, value: Any, named: bool) -> Verdict:
    name = f"{found.key}@{found.revision}"
    if named and not is_exact(found):
        return Verdict(name, UNKNOWN, "it holds classes that are not known here")
    data = packed(by_content(value), "its output") if named else found.value.data
    told = sha256(data)
    if told == stage.sha256:
        return Verdict(name, GOOD)
    return Verdict(name, CHANGED, f"its SHA-256 is {told[:12]}…, and stage {stage.name} has left "
                                  f"{stage.sha256[:12]}…")


def file_verdict(ref: FileRef, storage: str | Path | None) -> Verdict:
    """Whether a file is what was written."""
    try:
        ref = rebased(ref, storage)
        if not Path(ref.storage).is_dir():
            return Verdict(ref.name, UNKNOWN, f"there is no {ref.storage} on this host")
        ref.verify()
    except OutputLost as error:
        state = MISSING if not ref.path.exists() else CHANGED
        return Verdict(str(ref.path), state, error.message)
    return Verdict(str(ref.path), GOOD)


# --- provenance -------------------------------------------------------------------------------


def provenance(run: Run) -> Iterator[Verdict]:
    """Whether the digests in a completed run agree with each other. In one that is under way they
    need not: what does not hold any more is made again."""
    record = run.record
    if record.kind != "pipeline":
        return
    if run.exact:
        for what, value, told in (("inputs", record.inputs, record.inputs_sha256),
                                  ("configuration", record.config, record.config_sha256)):
            good = digest_of(value, what) == told
            yield Verdict(what, GOOD if good else CHANGED,
                          "" if good else f"the {what} are not those whose digest is recorded")
    if record.status != COMPLETED:
        return
    for stage in record.stages:
        if stage.status == COMPLETED:
            good = stands(record, stage)
            yield Verdict(f"stage {stage.name}", GOOD if good else CHANGED, "" if good else
                          "it was made from something else than what is recorded now")


def made_now(record: RunRecord, stage: StageRecord) -> str:
    """The digest of what a stage would be made from now; "" where what it needs is not there."""
    needs = {}
    for name in stage.needs:
        try:
            need = record[name]
        except KeyError:
            return ""
        if need.status != COMPLETED:
            return ""
        needs[name] = need.sha256 if need.checkpoint else need.made_from
    return made_from(stage.name, stage.version,
                     provenance_of(record.inputs_sha256, record.config_sha256, needs))


def stands(record: RunRecord, stage: StageRecord) -> bool:
    """Whether a stage is completed, and made from what it would be made from now."""
    return stage.status == COMPLETED and stage.made_from == made_now(record, stage)


def left(record: RunRecord) -> tuple[str, ...]:
    """The stages that going on with a run would execute, in order, if their definition, inputs and
    outputs stay as they were: those that do not stand, and those whose outputs they need and
    nobody kept."""
    if record.kind != "pipeline":
        return ()
    known: set[str] = set()
    found: list[str] = []

    def execute(stage: StageRecord) -> None:
        for name in stage.needs:
            need = record[name]
            if name not in known and not need.checkpoint:
                execute(need)
        known.add(stage.name)
        found.append(stage.name)

    for stage in record.stages:
        if not stands(record, stage) and stage.name not in known:
            execute(stage)
    return tuple(found)
