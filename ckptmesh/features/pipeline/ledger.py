"""The record of a run while it is being done: changed in memory, committed in order.

Rule 1: every commit is made under the run's lock, and expects what this process wrote last.
Rule 2: one commit is under way at a time, whoever asks for it: the run, a stage, the lookout.
Rule 3: what nobody heard the outcome of is asked for, never written again blindly.
Rule 4: what must not be known without the rest of its commit is changed by that commit (`save`'s
        `change`): the lookout commits whatever else it finds changed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, NamedTuple

from ckptmesh import values
from ckptmesh.errors import Error, OutcomeUnknown, RunStopped
from ckptmesh.features.pipeline.places import Places
from ckptmesh.features.pipeline.records import RunEvent, RunRecord, write
from ckptmesh.features.pipeline.runs import PAUSE
from ckptmesh.flows import Flow, settled
from ckptmesh.limits import SOURCES
from ckptmesh.views import Checkpoint, Receipt


class Put(NamedTuple):
    """A value that is committed together with the record."""

    key: str
    value: Any
    sources: tuple[tuple[str, int], ...] = ()


class Ledger:
    """The record of one run, and what was asked of it. `mutex`: a lock of threads or of tasks."""

    def __init__(self, store: Any, places: Places, lock: Any, mutex: Any, worker: str) -> None:
        self._store, self._lock, self._mutex = store, lock, mutex
        self._memory = threading.Lock()  # held for a change in memory, never over a call
        self._record: RunRecord | None = None
        self._stands: Checkpoint | Receipt | None = None
        self._dirty = False
        self._sent: values.Packed | None = None  # the record of a commit of unknown outcome
        self.places, self.worker = places, worker
        self.asked: dict[str, Any] = {}

    @property
    def record(self) -> RunRecord:
        """What is known now."""
        assert self._record is not None
        return self._record

    def load(self, record: RunRecord, stands: Checkpoint | None) -> None:
        """Begin with a record; `stands`: what the store has there."""
        self._record, self._stands = record, stands

    def change(self, change: Callable[[RunRecord], RunRecord]) -> RunRecord:
        """Change the record in memory; it is committed with the next commit, or soon."""
        with self._memory:
            self._record = replace(change(self.record), updated=datetime.now(UTC))
            self._dirty = True
            return self._record

    def note(self, kind: str, stage: str = "", detail: str = "") -> None:
        """One more event of the run."""
        self.change(lambda record: record.noted(self.event(kind, stage, detail)))

    def event(self, kind: str, stage: str = "", detail: str = "") -> RunEvent:
        """An event of now, of this process."""
        return RunEvent(time=datetime.now(UTC), kind=kind, stage=stage, detail=detail,
                        worker=self.worker)

    def save(self, *puts: Put, delete: Iterable[str] = (), only_if_dirty: bool = False,
             change: Callable[[RunRecord], RunRecord] | None = None
             ) -> Flow[Mapping[str, Receipt]]:
        """Commit the record, with a last `change` and whatever goes with it; the receipts by key.
        Raises `LeaseLost`, `Conflict`, and what the store raises."""
        yield self._mutex.acquire
        try:
            if self._sent is not None:
                yield from self._find_out(self._sent)
            if change is not None:
                self.change(change)
            with self._memory:
                record, dirty = self.record, self._dirty
                self._dirty = False
            if only_if_dirty and not dirty:
                return {}
            sent = values.Packed(values.pack(write(record)))
            tx = self._store.transaction()
            tx.guard(self._lock)
            tx.expect(self.places.record, self._stands)
            sources = tuple(dict.fromkeys(pair for put in puts for pair in put.sources))
            tx.put(self.places.record, sent, position=record.position, head=record.head,
                   sources=sources[:SOURCES])
            for put in puts:
                tx.put(put.key, put.value, position=record.position, head=record.head,
                       sources=put.sources[:SOURCES])
            for key in delete:
                tx.delete(key)
            yield from self._settled(tx, sent)
            receipts: Mapping[str, Receipt] = tx.receipts
            self._stands = receipts[self.places.record]
            return receipts
        finally:
            self._mutex.release()

    def _settled(self, tx: Any, sent: values.Packed) -> Flow[None]:
        """Commit; where no answer comes, ask what became of it. Whatever else cuts it off, a
        cancelled task or Ctrl-C, leaves it in doubt."""
        self._sent = sent
        try:
            yield from settled(tx.commit)
        except OutcomeUnknown:
            raise
        except Error:
            self._sent = None  # refused: what stands there is not ours
            raise
        self._sent = None

    def _find_out(self, sent: values.Packed) -> Flow[None]:
        """Whether a commit of ours that nobody heard of stands there. Where anything else does,
        the next commit says so: `Conflict`."""
        found = yield partial(self._store.get, self.places.record, packed=True)
        if found is not None and found.value.data == sent.data:
            self._stands = found
        self._sent = None

    # --- what somebody asks for -----------------------------------------------------------------

    def look(self) -> Flow[None]:
        """Read what was asked for, and commit what was reported since the last commit."""
        found = yield partial(self._store.get, self.places.asked)
        self.asked = found.value if found is not None and isinstance(found.value, dict) else {}
        with suppress(Error):  # the next commit of the run says so to the run
            yield from self.save(only_if_dirty=True)

    @property
    def wants_stop(self) -> bool:
        """Whether the run is to stop: it was asked to, or its lock is lost."""
        return bool(self.asked) or self._lock.lost.is_set()

    def check(self) -> None:
        """Raises `RunStopped` where the run is to stop, `LeaseLost` where its lock is lost."""
        if self._lock.lost.is_set():
            _ = self._lock.lease  # says why
        if self.asked:
            raise self.stop_of(self.asked)

    def stop_of(self, asked: dict[str, Any]) -> RunStopped:
        """Why the run stops."""
        status = "paused" if asked.get("ask") == PAUSE else "cancelled"
        reason, by = asked.get("reason", ""), asked.get("by", "somebody")
        places = self.places
        again = (f"ckptmesh run resume {places.pipeline} {places.key}" if status == "paused"
                 else 'resume="never" begins anew')
        return RunStopped(
            f"run {places.key!r} of {places.pipeline!r} was {status} by {by}"
            + (f": {reason}" if reason else ""), hint=again, pipeline=places.pipeline,
            key=places.key, status=status, reason=reason)
