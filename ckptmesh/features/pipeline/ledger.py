"""The record of a run while it is being done: changed in memory, committed in order.

Rule 1: every commit is made under the run's lock, and expects what this process wrote last.
Rule 2: one commit is under way at a time, whoever asks for it: the run, a stage, the lookout.
Rule 3: what nobody heard the outcome of is asked for, never written again blindly.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, NamedTuple

from ckptmesh.errors import Error, OutcomeUnknown, RunStopped, Unavailable
from ckptmesh.features.pipeline.places import Places
from ckptmesh.features.pipeline.records import RunEvent, RunRecord, write
from ckptmesh.features.pipeline.runs import PAUSE
from ckptmesh.flows import Flow
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
        self._dirty = self._doubt = False
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
        self.change(lambda record: record.noted(RunEvent(
            time=datetime.now(UTC), kind=kind, stage=stage, detail=detail, worker=self.worker)))

    def save(self, *puts: Put, delete: Iterable[str] = (), only_if_dirty: bool = False
             ) -> Flow[Mapping[str, Receipt]]:
        """Commit the record, with whatever goes with it; the receipts by key. Raises `LeaseLost`,
        `Conflict`, and what the store raises."""
        yield self._mutex.acquire
        try:
            if self._doubt:
                yield from self._find_out()
            with self._memory:
                record, dirty = self.record, self._dirty
                self._dirty = False
            if only_if_dirty and not dirty:
                return {}
            tx = self._store.transaction()
            tx.guard(self._lock)
            tx.expect(self.places.record, self._stands)
            sources = tuple(dict.fromkeys(pair for put in puts for pair in put.sources))
            tx.put(self.places.record, write(record), position=record.position,
                   head=record.head, sources=sources[:SOURCES])
            for put in puts:
                tx.put(put.key, put.value, position=record.position, head=record.head,
                       sources=put.sources[:SOURCES])
            for key in delete:
                tx.delete(key)
            yield from self._settled(tx)
            receipts: Mapping[str, Receipt] = tx.receipts
            self._stands = receipts[self.places.record]
            return receipts
        finally:
            self._mutex.release()

    def _settled(self, tx: Any) -> Flow[None]:
        """Commit; where no answer comes, ask what became of it."""
        try:
            yield tx.commit
        except OutcomeUnknown as error:
            self._doubt = True
            found = yield error.resolve
            self._doubt = False
            if found is None:
                raise Unavailable("the store did not get a commit of the run in time",
                                  hint="run it again: it goes on where it was") from None

    def _find_out(self) -> Flow[None]:
        """What stands there after a commit of ours that nobody heard of: while the lock is held
        nobody else writes a run that is under way."""
        found = yield partial(self._store.get, self.places.record)
        if found is not None and found.value.get("run_id") == self.record.run_id:
            self._stands = found
        self._doubt = False

    # --- what somebody asks for -----------------------------------------------------------------

    def look(self) -> Flow[None]:
        """Read what was asked for, and commit what was reported since the last commit."""
        found = yield partial(self._store.get, self.places.asked)
        self.asked = found.value if found is not None and isinstance(found.value, dict) else {}
        try:
            yield from self.save(only_if_dirty=True)
        except Error:  # the next commit of the run says so to the run
            self._doubt = True

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
