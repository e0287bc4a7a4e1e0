"""The outputs of stages: kept in the store, read again, handed on.

Rule: a stage gets what came out of the store, or what would have come out of it.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

from ckptmesh import values
from ckptmesh.errors import InvalidPayload, InvalidValue, TooLarge
from ckptmesh.features.pipeline.digests import packed, sha256
from ckptmesh.features.pipeline.places import Places
from ckptmesh.features.pipeline.plan import Options
from ckptmesh.features.pipeline.records import RunRecord
from ckptmesh.features.pipeline.storage import by_content, rebased, references
from ckptmesh.flows import Flow


class Output(NamedTuple):
    """A stage's output as those after it get it. `revision`: of the commit that keeps it, 0 where
    it is not kept."""

    value: Any
    revision: int


class Outputs:
    """The outputs of one run, as far as this process knows them."""

    def __init__(self, store: Any, places: Places, options: Options) -> None:
        self._store, self._places, self._options = store, places, options
        self._known: dict[str, Output] = {}

    def __contains__(self, stage: str) -> bool:
        return stage in self._known

    def note(self, stage: str, value: Any, revision: int) -> None:
        """A stage has been completed here."""
        self._known[stage] = Output(value, revision)

    def get(self, stage: str) -> Flow[Any]:
        """The output of a stage that is kept or known, its files compared with what was written.
        Raises `OutputLost`, `InvalidPayload`."""
        if stage not in self._known:
            key = self._places.kept(stage)
            found = yield partial(self._store.get, key)
            if found is None:
                raise InvalidPayload(f"the output of stage {stage!r} is gone from {key!r}",
                                     hint='make it again with resume="never"', key=key)
            value = rebased(found.value, self._options.storage)
            for each in references(value):
                yield partial(each.verify, stage)
            self._known[stage] = Output(value, found.revision)
        return self._known[stage].value

    def source(self, stage: str) -> list[tuple[str, int]]:
        """The commit that keeps it, as a source of another."""
        revision = self._known[stage].revision
        return [(self._places.kept(stage), revision)] if revision else []

    def all(self, record: RunRecord, kept: bool) -> Flow[dict[str, Any]]:
        """What is known here, by stage; with `kept` also whatever the store keeps. Files are not
        looked at: they are when they are opened."""
        wanted = [each.name for each in record.stages
                  if kept and each.checkpoint and each.name not in self._known]
        keys = {name: self._places.kept(name) for name in wanted}
        found = (yield partial(self._store.get_many, list(keys.values()))) if keys else {}
        outputs = {name: rebased(found[key].value, self._options.storage)
                   for name, key in keys.items() if found[key] is not None}
        outputs |= {name: output.value for name, output in self._known.items()}
        return {each.name: outputs[each.name] for each in record.stages if each.name in outputs}

    def pack(self, stage: str, output: Any) -> tuple[Any, values.Packed, dict[str, Any]]:
        """An output as it comes out of the store, the bytes that go there, and what its record says
        of them. Raises `InvalidValue`, `TooLarge`, which name the stage and the place inside."""
        limit = self._options.max_output
        try:
            data = packed(output, "its output")
        except (InvalidValue, TooLarge) as error:
            details = {**error.details, "stage": stage}
            raise type(error)(f"stage {stage!r}: {error.message}", hint=error.hint or None,
                              **details) from None
        if len(data) > limit:
            raise TooLarge(
                f"stage {stage!r}: its output has {len(data):,} bytes packed; the limit is "
                f"{limit:,}", hint="save it as a file and return the reference: run.save(…)",
                stage=stage, size=len(data), limit=limit)
        files = references(output)
        return values.unpack(data), values.Packed(data), {
            "sha256": sha256(packed(by_content(output), "its output") if files else data),
            "size": len(data), "file_bytes": sum(each.size for each in files)}
