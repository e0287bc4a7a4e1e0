"""The runs of a pipeline, for whoever looks at them or wants them stopped.

    runs = mesh.runs("nightly")
    for run in runs.list(status="failed"): print(run.key, run.stage, run.error)
    runs.pause("2026-11-21", reason="feed is late"); runs.resume("2026-11-21")
    runs.statistics().resume_rate; runs.clean(older_than=timedelta(days=30), keep=100)

Rule 1: reading writes nothing.
Rule 2: a pause or an end is asked for at a key of its own, by anybody, and obeyed by whoever does
        the run: between stages, and inside one that looks. The record of a run that is being done
        is written by that process alone.
Rule 3: what is cleaned up has not changed since it was chosen.
"""

from __future__ import annotations

import builtins
import shutil
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from ckptmesh.api import seconds
from ckptmesh.clock import Seconds
from ckptmesh.errors import Conflict, Error, InvalidPayload, Misuse, RunNotFound, Unsupported
from ckptmesh.features.locks import LOCKS, holder_name
from ckptmesh.features.pipeline.places import (
    RUNS,
    Places,
    asked_of,
    exec_of,
    is_record,
    past_of,
    records_of,
)
from ckptmesh.features.pipeline.records import (
    CANCELLED,
    COMPLETED,
    INTERRUPTED,
    PAUSED,
    PENDING,
    RUNNING,
    STATUSES,
    RunEvent,
    RunRecord,
    read,
    shortened,
    write,
)
from ckptmesh.features.pipeline.storage import references
from ckptmesh.features.tickets import is_ticket
from ckptmesh.flows import Flow, run, run_async, settled
from ckptmesh.limits import GET_KEYS, check_key
from ckptmesh.values import unpack
from ckptmesh.views import Checkpoint

_PAGE = 1_000
PAUSE, CANCEL = "pause", "cancel"
_ENDS = {PAUSE: PAUSED, CANCEL: CANCELLED}


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """Figures over the runs that the store keeps, earlier ones too.

    `by_status`: as shown, so with "interrupted" ones. `resumes`: how often a run was taken up
    again; `resumed`: runs that were at least once;
    `resume_rate`: the share of those that came to their end, None where there are none. Seconds,
    from creation to end, of completed runs: `mean`, `shortest`, `longest`; None where there are
    none.
    """

    total: int
    by_status: dict[str, int]
    resumes: int
    resumed: int
    resume_rate: float | None
    mean: float | None
    shortest: float | None
    longest: float | None


def statistics(records: Iterable[RunRecord]) -> Statistics:
    """The figures of these runs."""
    found = list(records)
    resumed = [each for each in found if each.resumes]
    done = sum(each.status == COMPLETED for each in resumed)
    spans = [each.took.total_seconds() for each in found
             if each.status == COMPLETED and each.took is not None]
    return Statistics(
        total=len(found), by_status=dict(Counter(each.shown for each in found)),
        resumes=sum(each.resumes for each in found), resumed=len(resumed),
        resume_rate=done / len(resumed) if resumed else None,
        mean=sum(spans) / len(spans) if spans else None,
        shortest=min(spans, default=None), longest=max(spans, default=None))


# --- what is done, as flows -------------------------------------------------------------------


def scan(store: Any, prefix: str) -> Flow[list[Checkpoint]]:
    """All under a prefix."""
    found: list[Checkpoint] = []
    while True:
        page = yield partial(store.scan, prefix, after=found[-1].key if found else "", limit=_PAGE)
        found += page
        if not page:
            return found


class _Core:
    """The runs of one pipeline."""

    def __init__(self, store: Any, pipeline: str) -> None:
        check_key(pipeline)
        self._store, self.pipeline = store, pipeline

    def all(self, past: bool, commands: bool) -> Flow[list[RunRecord]]:
        """Every run that is kept, in the order of creation."""
        asked = {each.key.rpartition("/")[2]: _what(each)
                 for each in (yield from scan(self._store, asked_of(self.pipeline)))}
        found = [read(each, asked.get(each.key.rpartition("/")[2], ""))
                 for each in (yield from scan(self._store, records_of(self.pipeline)))]
        for prefix, wanted in ((past_of(self.pipeline), past), (exec_of(self.pipeline), commands)):
            if wanted:
                found += map(read, (yield from scan(self._store, prefix)))
        found = yield from self._looked_after(found)
        return sorted(found, key=lambda each: (each.created, each.run_id))

    def _looked_after(self, found: list[RunRecord]) -> Flow[list[RunRecord]]:
        """The records, with those told as interrupted that say running and whose lock nobody has:
        a run holds it for longer than its record says so, and the record is looked at before and
        after the locks."""
        running = [each for each in found if each.status == RUNNING]
        if not running:
            return found
        locks = yield from scan(self._store, f"{self.pipeline}/{LOCKS}")
        alone = {_stands_at(each) for each in running} - _held(locks)
        standing = (yield partial(self._store.get_many, sorted(alone)[:GET_KEYS])) if alone else {}
        gone = {f"{key}@{each.revision}" for key, each in standing.items() if each is not None}
        return [replace(each, interrupted=each.stored_at in gone and each.status == RUNNING)
                for each in found]

    def get(self, key: str) -> Flow[RunRecord | None]:
        """The run under a key."""
        places = Places(self.pipeline, key)
        found = yield partial(self._store.get_many, [places.record, places.asked])
        record, asked = found[places.record], found[places.asked]
        if record is None:
            record = yield partial(self._store.get, f"{exec_of(self.pipeline)}/{key}")
        if record is None:
            return None
        return (yield from self._looked_after([read(record, _what(asked) if asked else "")]))[0]

    def history(self, key: str) -> Flow[list[RunRecord]]:
        """All runs under a key that are kept, the newest last."""
        earlier = yield from scan(self._store, Places(self.pipeline, key).past())
        found = sorted(map(read, earlier), key=lambda each: each.created)
        record = yield from self.get(key)
        return found if record is None else [*found, record]

    def ask(self, key: str, what: str, reason: str) -> Flow[RunRecord]:
        """Ask for a pause or an end. One that is asked for an end is not paused any more."""
        places = Places(self.pipeline, key)
        record = yield from self._unfinished(key, what)
        if record.asked == CANCEL:
            what = CANCEL
        else:
            yield from settled(partial(self._store.put, places.asked, {
                "ask": what, "reason": shortened(reason), "by": holder_name(),
                "time": datetime.now(UTC)}))
        return (yield from self._settle(places, what, reason))

    def _unfinished(self, key: str, what: str) -> Flow[RunRecord]:
        record = yield from self.get(key)
        if record is None or record.kind != "pipeline":
            raise RunNotFound(f"there is no run {key!r} of {self.pipeline!r} to {what}",
                              pipeline=self.pipeline, key=key)
        if record.finished_for_good:
            raise Misuse(f"run {key!r} of {self.pipeline!r} is {record.status} already",
                         hint="there is nothing to stop or to go on with")
        return record

    def _settle(self, places: Places, what: str, reason: str) -> Flow[RunRecord]:
        """Where nobody does the run, say in its record at once what whoever comes next would."""
        found = yield partial(self._store.get, places.record)
        if found is None or read(found).finished_for_good:  # it went, or came to its end, meanwhile
            yield from settled(partial(self._store.delete, places.asked))
        if found is None:
            return (yield from self._unfinished(places.key, what))
        record = read(found, what)
        if record.status == RUNNING or record.finished_for_good:
            return (yield from self._looked_after([record]))[0]
        changed = stopped(record, what, reason)
        try:
            yield from settled(partial(self._store.put, places.record, write(changed),
                                       expect=found))
        except Conflict:  # somebody does it just now, and will look
            return record
        return changed

    def resume(self, key: str) -> Flow[RunRecord]:
        """Take back what was asked for; the next `run` goes on."""
        places = Places(self.pipeline, key)
        record = yield from self._unfinished(key, "resume")
        yield from settled(partial(self._store.delete, places.asked))
        found = yield partial(self._store.get, places.record)
        record = record if found is None else read(found)
        if found is None or record.status != PAUSED:
            return record
        changed = replace(record, status=PENDING).noted(_event("pause ended", record.stage, ""))
        try:
            yield from settled(partial(self._store.put, places.record, write(changed),
                                       expect=found))
        except Conflict:
            return record
        return changed

    def clean(self, older_than: float | None, keep: int | None, unfinished: bool,
              storage: str | Path | None, dry_run: bool, only: Iterable[RunRecord] | None
              ) -> Flow[list[RunRecord]]:
        """Remove old runs."""
        if older_than is None and keep is None:
            raise Misuse("which runs are to go?", hint="clean(older_than=…) or clean(keep=…)")
        if keep is not None and (type(keep) is not int or keep < 0):
            raise Misuse(f"keep is a number of runs, not {keep!r:.80}")
        records = yield from self.all(past=True, commands=False)
        can_go = [each for each in records if unfinished or each.finished_for_good
                  or "/past/" in each.stored_at]
        now = datetime.now(UTC)
        surplus = len(can_go) - keep if keep is not None else len(can_go)
        chosen = [each for each in can_go[:max(0, surplus)] if older_than is None
                  or (now - each.updated).total_seconds() > older_than]
        if only is not None:
            planned = {each.stored_at for each in only}
            chosen = [each for each in chosen if each.stored_at in planned]
        if dry_run:
            return chosen
        gone = []
        for each in chosen:
            folders = [] if storage is None else (yield from self._folders(each, Path(storage)))
            if (yield from self._remove(each)):
                gone.append(each)
                for folder in folders:
                    yield partial(shutil.rmtree, folder, ignore_errors=True)
        return gone

    def _folders(self, record: RunRecord, storage: Path) -> Flow[list[Path]]:
        """The folders that nobody needs any more once a run is gone. A run that was begun anew with
        outputs of the one before needs the folder of that as well, and takes it along."""
        places, needed = Places(self.pipeline, record.key), set[str]()
        for each in (yield from scan(self._store, places.folders()[0])):
            needed |= {ref.name.rpartition("/")[0].rpartition("/")[0]
                       for ref in references(each.value)}
        own = {record.folder} if record.folder.endswith(f"/{record.run_id}") else set()
        own = own | needed if _stands_at(record) == places.record else own - needed
        return [storage / each for each in own if _is_own(record, each)]

    def _remove(self, record: RunRecord) -> Flow[bool]:
        """Whether it was as it was read; then it is gone."""
        key, revision = _stands_at(record), record.stored_at.rpartition("@")[2]
        doomed = [key]
        places = Places(self.pipeline, record.key)
        if key == places.record:
            doomed.append(places.asked)
            for folder in places.folders():
                doomed += [each.key for each in (yield from scan(self._store, folder))]
        try:
            yield from settled(partial(self._store.transact, delete=doomed,
                                       expect={key: int(revision)}))
        except Conflict:
            return False
        return True


def stopped(record: RunRecord, what: str, reason: str, stage: str = "") -> RunRecord:
    """The record of a run that has stopped as it was asked to."""
    status, now = _ENDS[what], datetime.now(UTC)
    stage = stage or record.stage or next(iter(record.pending), "")
    return replace(record, status=status, stage=stage, updated=now,
                   finished=now if status == CANCELLED else None,
                   ).noted(_event(status, stage, reason))


def _held(locks: Iterable[Checkpoint]) -> set[str]:
    """The keys of the records of runs that somebody does, or waits to do: those tickets are for."""
    found = set()
    for each in locks:
        pipeline, _, key = each.value["name"].partition("/") if is_ticket(each) else ("", "", "")
        if key and "/" not in key:
            found.add(Places(pipeline, key).record)
    return found


def _stands_at(record: RunRecord) -> str:
    return record.stored_at.rpartition("@")[0]


def _is_own(record: RunRecord, folder: str) -> bool:
    """Whether a folder is that of a run under the key of this one, and can be no other."""
    parts = folder.split("/")
    return parts[:-1] == [record.pipeline, record.key] and all(
        part not in ("", ".", "..") for part in parts)


def _event(kind: str, stage: str, detail: str) -> RunEvent:
    return RunEvent(time=datetime.now(UTC), kind=kind, stage=stage, detail=detail,
                    worker=holder_name())


def _what(asked: Checkpoint) -> str:
    found = asked.value.get("ask") if isinstance(asked.value, dict) else None
    return found if found in _ENDS else ""


def chosen(records: list[RunRecord], status: str | None, limit: int | None) -> list[RunRecord]:
    """Those of a status, the newest so many. Raises `Misuse`."""
    known = (*STATUSES, INTERRUPTED)
    if status is not None and status not in known:
        raise Misuse(f"no run has the status {status!r:.40}", hint=f"one of {', '.join(known)}")
    found = [each for each in records if status in (None, each.shown)]
    return found if limit is None else found[max(0, len(found) - limit):]


# --- the two shells ---------------------------------------------------------------------------


class Runs:
    """The runs of one pipeline, of a plain client; made by `Client.runs`."""

    def __init__(self, store: Any, pipeline: str) -> None:
        self._core = _Core(store, pipeline)
        self.pipeline = pipeline

    def list(self, *, status: str | None = None, limit: int | None = None, past: bool = False,
             commands: bool = True) -> builtins.list[RunRecord]:
        """The runs, in the order of their creation: the one under each key, with `past` those
        before it too, with `commands` those of `ckptmesh exec`. `status`: only such
        ("interrupted": say running, and nobody has their lock); `limit`: the newest so many.
        Raises `Unsupported` for a record that is newer than this ckptmesh."""
        return chosen(run(self._core.all(past, commands)), status, limit)

    def get(self, key: str) -> RunRecord | None:
        """The run under a key, or None. Raises as `list`."""
        return run(self._core.get(key))

    def history(self, key: str) -> builtins.list[RunRecord]:
        """All runs under a key that are kept, the newest last."""
        return run(self._core.history(key))

    def pause(self, key: str, *, reason: str = "") -> RunRecord:
        """Ask it to stop before its next stage (or within one that looks), and not to go on until
        `resume`. The record as it is now: "paused" where nobody was at it, else with
        `asked="pause"`. Raises `RunNotFound`; `Misuse` for one that is completed or cancelled."""
        return run(self._core.ask(key, PAUSE, reason))

    def cancel(self, key: str, *, reason: str = "") -> RunRecord:
        """Ask it to end for good. As `pause`."""
        return run(self._core.ask(key, CANCEL, reason))

    def resume(self, key: str) -> RunRecord:
        """Take back a pause (or an end that nobody has obeyed yet): the next `Pipeline.run` under
        this key goes on. Raises as `pause`."""
        return run(self._core.resume(key))

    def statistics(self) -> Statistics:
        """Figures over all runs that are kept, but not commands."""
        return statistics(run(self._core.all(past=True, commands=False)))

    def clean(self, *, older_than: Seconds | None = None, keep: int | None = None,
              unfinished: bool = False, storage: str | Path | None = None, dry_run: bool = False,
              only: Iterable[RunRecord] | None = None) -> builtins.list[RunRecord]:
        """Remove runs with their outputs; which ones. Those that are beyond the newest `keep` and
        whose last change is longer ago than `older_than` (each counts only if given; one must
        be). Never one that is unfinished, unless `unfinished`. `storage`: the folder from which
        their files are removed as well. `dry_run`: remove nothing. `only`: no others than these,
        as a dry run has shown them."""
        return run(self._core.clean(seconds(older_than, None, "older_than"), keep, unfinished,
                                    storage, dry_run, only))


class AsyncRuns:
    """`Runs` for asyncio: the same names, awaited."""

    def __init__(self, store: Any, pipeline: str) -> None:
        self._core = _Core(store, pipeline)
        self.pipeline = pipeline

    async def list(self, *, status: str | None = None, limit: int | None = None,
                   past: bool = False, commands: bool = True) -> builtins.list[RunRecord]:
        """As `Runs.list`."""
        return chosen(await run_async(self._core.all(past, commands)), status, limit)

    async def get(self, key: str) -> RunRecord | None:
        """As `Runs.get`."""
        return await run_async(self._core.get(key))

    async def history(self, key: str) -> builtins.list[RunRecord]:
        """As `Runs.history`."""
        return await run_async(self._core.history(key))

    async def pause(self, key: str, *, reason: str = "") -> RunRecord:
        """As `Runs.pause`."""
        return await run_async(self._core.ask(key, PAUSE, reason))

    async def cancel(self, key: str, *, reason: str = "") -> RunRecord:
        """As `Runs.cancel`."""
        return await run_async(self._core.ask(key, CANCEL, reason))

    async def resume(self, key: str) -> RunRecord:
        """As `Runs.resume`."""
        return await run_async(self._core.resume(key))

    async def statistics(self) -> Statistics:
        """As `Runs.statistics`."""
        return statistics(await run_async(self._core.all(past=True, commands=False)))

    async def clean(self, *, older_than: Seconds | None = None, keep: int | None = None,
                    unfinished: bool = False, storage: str | Path | None = None,
                    dry_run: bool = False, only: Iterable[RunRecord] | None = None
                    ) -> builtins.list[RunRecord]:
        """As `Runs.clean`."""
        return await run_async(self._core.clean(seconds(older_than, None, "older_than"), keep,
                                                unfinished, storage, dry_run, only))


def runs(mesh: Any, pipeline: str) -> Runs:
    """The runs of a pipeline; the same as `mesh.runs(pipeline)`."""
    return Runs(mesh, pipeline)


def every_run(mesh: Any, unreadable: Callable[[Error], object] | None = None
              ) -> builtins.list[RunRecord]:
    """The runs of all pipelines and commands, but not earlier ones, in the order of creation; every
    key of the store is read. `unreadable` is told of a record that cannot be read, which is then
    left out. Raises as `Runs.list`."""
    found, asked, locks = [], {}, []
    for packed in mesh.list(packed=True):  # other keys' values are none of its business
        pipeline, _, rest = packed.key.partition(f"/{RUNS}/")
        is_asked, is_run = rest.startswith("asked/"), (
            is_record(packed.key) and not rest.startswith("past/"))
        if not (packed.is_lease or is_asked or is_run):
            continue
        try:
            each = replace(packed, value=unpack(packed.value.data))
            if each.is_lease:
                locks.append(each)
            if is_asked:
                asked[pipeline, rest.rpartition("/")[2]] = _what(each)
            elif is_run:
                found.append(read(each))
        except (InvalidPayload, Unsupported) as error:
            if unreadable is None:
                raise
            unreadable(error)
    held = _held(locks)
    told = [replace(each, asked=asked.get((each.pipeline, each.key), ""),
                    interrupted=each.status == RUNNING and _stands_at(each) not in held)
            for each in found]
    return sorted(told, key=lambda each: (each.created, each.run_id))
