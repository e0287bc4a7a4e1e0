"""What a stage function is given: the run, as it looks from inside a stage.

    @nightly.stage
    def load(run, rows):
        for batch in batches(rows, after=run.value(default=0)):
            write(batch)
            run.commit(batch.end, records=len(batch))      # goes on from here after a crash

`commit` is a checkpoint in the middle of a stage. `report` tells progress without one: it waits for
nothing, and is committed within a second or with the next commit.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import IO, Any

from ckptmesh.errors import InvalidValue, Misuse, TooLarge
from ckptmesh.features.pipeline.digests import packed
from ckptmesh.features.pipeline.ledger import Ledger, Put
from ckptmesh.features.pipeline.records import RunError, RunRecord, StageRecord
from ckptmesh.features.pipeline.storage import FileRef, Storage
from ckptmesh.flows import Flow
from ckptmesh.limits import POSITION_MAX, POSITION_MIN
from ckptmesh.views import Checkpoint, Receipt

_COUNTS = ("records", "failed", "bytes")


class Work:
    """One attempt at one stage: what its handle knows and does."""

    def __init__(self, store: Any, lock: Any, ledger: Ledger, stage: str, made_from: str,
                 attempt: int, storage: Storage, timeout: float | None) -> None:
        self.store, self.lock, self.ledger, self.storage = store, lock, ledger, storage
        self.stage, self.attempt = stage, attempt
        self.sources: list[tuple[str, int]] = []
        self.value: Any = None
        self.placed = False  # whether something is kept of it that goes when it is completed
        self.over = False
        self._made_from = made_from
        self._timeout = timeout
        self._deadline = float("inf") if timeout is None else time.monotonic() + timeout

    # --- where it goes on ---------------------------------------------------------------------

    def load(self, key: str) -> Flow[None]:
        """Go on from what an earlier attempt committed, if it was at the same work."""
        found: Checkpoint | None = yield partial(self.store.get, key)
        self.placed = found is not None
        counts = dict.fromkeys(_COUNTS, 0)
        if (found is not None and isinstance(found.value, dict)
                and found.value.get("made_from") == self._made_from):
            self.value = found.value["value"]
            counts = {name: found.value[name] for name in _COUNTS}
        self.ledger.change(lambda record: record.with_stage(self.stage, **counts))

    def commit(self, value: Any, facts: dict[str, Any]) -> Flow[Receipt]:
        """A checkpoint in the middle of the stage."""
        entry = self.report(facts)
        key = self.ledger.places.place(self.stage)
        kept = {"made_from": self._made_from, "value": value,
                **{name: getattr(entry, name) for name in _COUNTS}}
        batch = facts.get("batch")
        self.ledger.note("batch", self.stage, "" if batch is None else f"batch {batch}")
        receipts = yield from self.ledger.save(Put(key, kept, tuple(self.sources)))
        self.value, self.placed = value, True
        return receipts[key]

    # --- progress -----------------------------------------------------------------------------

    def report(self, facts: dict[str, Any]) -> StageRecord:
        """Add counts, and keep the rest as it is now."""
        if self.over:
            raise Misuse(f"stage {self.stage!r} has ended: nothing is reported of it any more")
        for name in _COUNTS:
            count = facts.get(name, 0)
            if type(count) is not int or count < 0:
                raise Misuse(f"{name} is a count from 0 up, not {count!r:.80}")
        for name in ("batch", "position", "head"):
            place = facts.get(name)
            if place is not None and (type(place) is not int
                                      or not POSITION_MIN <= place <= POSITION_MAX):
                raise Misuse(f"{name} is an integer of 64 bits, not {place!r:.80}")
        last_id, position = facts.get("last_id"), facts.get("position")
        packed(last_id, "last_id")
        if position is None and type(last_id) is int and POSITION_MIN <= last_id <= POSITION_MAX:
            position = last_id

        def change(record: RunRecord) -> RunRecord:
            entry = record[self.stage]
            told = {name: fact for name, fact in (
                ("last_id", last_id), ("batch", facts.get("batch"))) if fact is not None}
            places = {name: fact for name, fact in (
                ("position", position), ("head", facts.get("head"))) if fact is not None}
            record = record.with_stage(
                self.stage, heartbeat=datetime.now(UTC), **told,
                **{name: getattr(entry, name) + facts.get(name, 0) for name in _COUNTS})
            return replace(record, **told, **places)

        return self.ledger.change(change)[self.stage]

    def error(self, error: BaseException | str, id: Any, context: dict[str, Any],
              retryable: bool) -> None:
        """One thing that went wrong, and did not end the stage."""
        message = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
        self.report({"failed": 1})
        try:
            packed([id, context], "context")
        except (InvalidValue, TooLarge):  # an error that is told badly is better than none
            id, context = repr(id), {"repr": repr(context)}
        self.ledger.change(lambda record: record.troubled(RunError(
            id=id, stage=self.stage, message=message, context=context, time=datetime.now(UTC),
            retryable=retryable)))
        self.ledger.note("error", self.stage, message)

    # --- stopping -----------------------------------------------------------------------------

    @property
    def timed_out(self) -> bool:
        """Whether its time is over."""
        return time.monotonic() >= self._deadline

    def check(self) -> None:
        """Raises what the stage is to end with."""
        self.ledger.check()
        if self.timed_out:
            raise TimeoutError(f"stage {self.stage!r} had {self._timeout:g} s")


class _Handle:
    """What both kinds know without waiting."""

    def __init__(self, work: Work) -> None:
        self._work = work
        record = work.ledger.record
        self.pipeline, self.key, self.run_id = record.pipeline, record.key, record.run_id
        self.inputs, self.config = record.inputs, record.config
        self.stage, self.attempt = work.stage, work.attempt
        self.mesh, self.lock = work.store, work.lock

    @property
    def record(self) -> RunRecord:
        """All that is known about the run now."""
        return self._work.ledger.record

    def value(self, default: Any = None) -> Any:
        """What this stage has committed last, in this attempt or an earlier one at the same work;
        `default` where it has not. From here it goes on."""
        found = self._work.value
        return default if found is None else found

    def report(self, *, records: int = 0, failed: int = 0, bytes: int = 0, last_id: Any = None,
               batch: int | None = None, position: int | None = None, head: int | None = None
               ) -> None:
        """Tell progress. `records`, `failed`, `bytes` are added to what was told before; `last_id`
        and `batch`: the last one done; `position` and `head`: where this run and the source
        stand, integers in one unit (without `position`, `last_id` is it, if it is an integer).
        Waits for nothing. Raises `Misuse`."""
        self._work.report(_facts(records, failed, bytes, last_id, batch, position, head))

    def error(self, error: BaseException | str, *, id: Any = None,
              context: dict[str, Any] | None = None, retryable: bool = False) -> None:
        """Record that one item went wrong, and go on: it counts as `failed`. The newest 50 are
        kept. `context`: plain facts about it."""
        self._work.error(error, id, context or {}, retryable)

    def used(self, *sources: Checkpoint | Receipt | tuple[str, int]) -> None:
        """Say that what this stage does is made from these checkpoints as well: they go into the
        `sources` of its commits, beside the outputs of the stages it needs."""
        self._work.sources += [
            (each.key, each.revision) if isinstance(each, Checkpoint | Receipt) else each
            for each in sources]

    @property
    def should_stop(self) -> bool:
        """Whether to end soon: somebody has paused or cancelled the run, its lock is lost, or the
        stage's time is over. Known within about a second."""
        return self._work.ledger.wants_stop or self._work.timed_out

    def check(self) -> None:
        """Raise where `should_stop`: `RunStopped`, `LeaseLost`, `TimeoutError`. A stage that
        commits and then checks loses nothing."""
        self._work.check()

    @property
    def folder(self) -> Path:
        """The stage's own folder in the storage of the run. Raises `Misuse` without a storage."""
        return self._work.storage.folder

    def writing(self, name: str, mode: str = "wb") -> AbstractContextManager[IO[Any]]:
        """A file in it, to be written in a `with` block: bytes, or with mode "w" text. It has its
        name, for good, once the block has ended."""
        return self._work.storage.writing(name, mode)

    def save(self, source: Any, name: str | None = None) -> FileRef:
        """Keep bytes, or a copy of the file at a path, in it; a reference to return from the stage.
        Raises `Misuse` without a storage, `OSError`."""
        return self._work.storage.save(source, name)

    def file(self, name: str) -> FileRef:
        """A reference to a file that was written there. Raises `OSError`."""
        return self._work.storage.file(name)


def _facts(records: int, failed: int, bytes: int, last_id: Any, batch: int | None,
           position: int | None, head: int | None) -> dict[str, Any]:
    return {"records": records, "failed": failed, "bytes": bytes, "last_id": last_id,
            "batch": batch, "position": position, "head": head}


class StageRun(_Handle):
    """A run, from inside a plain stage function."""

    def __init__(self, work: Work, drive: Callable[[Flow[Any]], Any]) -> None:
        super().__init__(work)
        self._drive = drive

    def commit(self, value: Any, *, records: int = 0, failed: int = 0, bytes: int = 0,
               last_id: Any = None, batch: int | None = None, position: int | None = None,
               head: int | None = None) -> Receipt:
        """A checkpoint in the middle of the stage: after a crash the stage is begun again, and
        `value()` is this one. The rest as for `report`, counted together with it.

        Raises `LeaseLost` where the run is another's by now, `InvalidValue`, `TooLarge`.
        """
        facts = _facts(records, failed, bytes, last_id, batch, position, head)
        receipt: Receipt = self._drive(self._work.commit(value, facts))
        return receipt


class AsyncStageRun(_Handle):
    """A run, from inside a coroutine: `commit` is awaited, the rest is the same."""

    def __init__(self, work: Work, drive: Callable[[Flow[Any]], Any]) -> None:
        super().__init__(work)
        self._drive = drive

    async def commit(self, value: Any, *, records: int = 0, failed: int = 0, bytes: int = 0,
                     last_id: Any = None, batch: int | None = None, position: int | None = None,
                     head: int | None = None) -> Receipt:
        """As `StageRun.commit`."""
        facts = _facts(records, failed, bytes, last_id, batch, position, head)
        receipt: Receipt = await self._drive(self._work.commit(value, facts))
        return receipt
