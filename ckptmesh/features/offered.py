"""What a client offers beyond the store's own operations: each feature, ready to be used."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

from ckptmesh.api import Held, Moment
from ckptmesh.clock import Seconds
from ckptmesh.features import (
    cleaning,
    lagging,
    merging,
    pages,
    rewinding,
    transfer,
    validating,
    watches,
)
from ckptmesh.features.cleaning import CleanupReport
from ckptmesh.features.cursors import AsyncCursor, Cursor, Field
from ckptmesh.features.following import seat
from ckptmesh.features.intervals import AsyncIntervals, Intervals
from ckptmesh.features.keeper import AsyncKeeper, Keeper
from ckptmesh.features.lagging import Lag
from ckptmesh.features.locks import AsyncLock, Claims, Lock
from ckptmesh.features.merge import Merge
from ckptmesh.features.merging import MergeReceipt
from ckptmesh.features.named import AsyncNamedWatch, NamedWatch
from ckptmesh.features.pages import Progress, StateDigest
from ckptmesh.features.partitions import Partitions
from ckptmesh.features.pipeline.runs import AsyncRuns, Runs
from ckptmesh.features.rewinding import NOTHING, AsyncRewindPlan, RewindPlan, Rewound
from ckptmesh.features.transfer import ExportReport, ImportReport, PathOrFile
from ckptmesh.features.validating import Repair, Validation
from ckptmesh.features.watches import WatchInfo
from ckptmesh.features.worker import AsyncWorker, Worker
from ckptmesh.features.workers import AsyncWorkers, PipelineInfo, Workers, active
from ckptmesh.flows import run, run_async


class Offered:
    """The features of a plain client."""

    @cached_property
    def _keeper(self) -> Keeper:
        return Keeper(self)

    @cached_property
    def _claims(self) -> Claims:
        return Claims()

    def lock(self, name: str, *, shared: bool = False, ttl: Seconds = 30,
             wait: Seconds | None = None, holder: str | None = None) -> Lock:
        """A lock on a pipeline or a part of it, and on all under that: `with mesh.lock("orders") as
        lock: mesh.commit(…, guard=lock)`.

        Nothing else is had by anybody that it covers, or that covers it, but `shared` beside
        `shared`. Those who wait are served in the order of asking. `ttl`: seconds after which it
        ends when this process is gone; it is renewed meanwhile. `wait`: seconds until
        `LockTimeout`; None: as long as it takes. `holder`: who holds it, for people.
        """
        return Lock(self, self._keeper, self._claims, name, shared=shared, ttl=ttl, wait=wait,
                    holder=holder)

    def cursor(self, key: str, *, by: Field, id: Field, late: Any = None, on_late: str = "skip",
               ordered: bool = False, guard: Held | None = None) -> Cursor:
        """A place in a source that is loaded again and again: `with mesh.cursor("orders",
        by="updated_at", id="id") as cur: load(cur.new(fetch(since=cur.floor)))`.

        `by` and `id`: the value that grows, and what tells rows with one value apart; names in a
        row, or functions of one. `late`: how far below the highest value a row may come later (a
        timedelta for datetimes and dates, else a number); one that comes later still is counted in
        `skipped`, or is an error with `on_late="raise"`. `ordered=True`: rows ascend by value.
        `guard`: a lock that must be held. Leaving the block commits; an exception does not.
        """
        return Cursor(self, key, by=by, id=id, late=late, on_late=on_late, ordered=ordered,
                      guard=guard)

    def merge(self, key: str, fields: Mapping[str, Merge] | None = None, /, *,
              guard: Held | None = None, timeout: Seconds | None = None, **named: Merge
              ) -> MergeReceipt:
        """Merge into fields of a key, beside any number of others who do: `mesh.merge("totals",
        rows=merge.Add(3), peak=merge.Max(x))`, with `from ckptmesh import merge`.

        `fields`: the same as a mapping, for names that are no Python names. The receipt's
        `attempts` says how often it was tried. Raises `Misuse` where a field is of another type,
        `TooLarge` for a set or map over its limit, `InvalidValue`, `InvalidPayload` where something
        else stands; then nothing is merged. `OutcomeUnknown`: `resolve()` gives the receipt, or
        None where it never happened; else as `update`.
        """
        return run(merging.merge(self, key, merging.parts_of(fields, named), guard=guard,
                                 timeout=timeout))

    def merged(self, key: str, *, at: Moment | None = None, timeout: Seconds | None = None
               ) -> dict[str, Any]:
        """The fields that were merged into a key; empty where nothing was. `at` and errors as of
        `get`; `InvalidPayload` where something else stands."""
        return run(merging.merged(self, key, at=at, timeout=timeout))

    def intervals(self, key: str, *, start: int = 0, end: int | None = None, ttl: Seconds = 30,
                  holder: str | None = None) -> Intervals:
        """Work over the numbers from `start` up to `end` (None: without an end), done by many in
        any order: `with mesh.intervals("backfill", end=1_000_000) as todo: …`, with
        `todo.claim(size)`, `.done(interval)`, `.holes()`, `.low_mark` and `.finished`.

        `ttl`: seconds after which what a worker has claimed is free again when its process is
        gone. `holder`: who it is, for people.
        """
        return Intervals(self, self._keeper, key, start=start, end=end, ttl=ttl, holder=holder)

    def runs(self, pipeline: str) -> Runs:
        """The runs of a staged pipeline, and of commands under `ckptmesh exec`: `list`, `get`,
        `history`, `pause`, `resume`, `cancel`, `statistics`, `clean`."""
        return Runs(self, pipeline)

    def worker(self, pipeline: str, *, partitions: int | Iterable[str | int] | Partitions,
               name: str | None = None, ttl: Seconds = 30, idle: Seconds = 1) -> Worker:
        """One of the workers that share the partitions of a pipeline: `with mesh.worker("orders",
        partitions=32) as w: for part in w: …`, with `part.value()` and `part.commit(…)`.

        Each worker has a fair share, by locks on the partitions; the loop gives them in turn, until
        `w.drain()`, SIGTERM, or `mesh.workers(pipeline).drain(name)`. `partitions`: how many, what
        they are called, or what `ckptmesh.partitions` made; the same for all workers. `name`: what
        it is called; made up unless told. `ttl`: seconds after which others have its partitions
        when its process is gone. `idle`: seconds to rest after each had a turn and none committed.
        """
        return Worker(self, self._keeper, pipeline, partitions=partitions, name=name, ttl=ttl,
                      idle=idle)

    def workers(self, pipeline: str) -> Workers:
        """The workers of a pipeline, to look at or to end: `for each in mesh.workers("orders"):
        print(each.name, each.state, each.partitions)`; `.drain(name)`, `.stop(name)`,
        `.free_stale()`. Raises `Misuse`, `InvalidKey`."""
        return Workers(self, pipeline)

    def pipelines(self) -> list[PipelineInfo]:
        """The pipelines at which somebody is at work: with workers, or locks held or awaited, as
        runs hold one. Reads two or three pages for each pipeline that there is."""
        return run(active(self))

    def export(self, target: PathOrFile, prefix: str = "", *, at: Moment | None = None,
               history: bool = False, squeezed: bool | None = None,
               progress: Progress | None = None) -> ExportReport:
        """Write all checkpoints under a prefix, as of one revision, into a file that
        `import_` reads on any store (docs/export-format.md). Leases are left out.

        `target`: a path, which has its content once it is whole and on disk, or a binary stream.
        `at` as of `get`. `history`: with the earlier versions that the store still keeps, to be
        looked at; an import passes over them. `squeezed`: with gzip; None: if the name ends in
        .gz. Raises as `get`, `InvalidPayload` for a value that nobody can read, `OSError`.
        """
        return run(transfer.export(self, target, prefix, at, history, squeezed, progress))

    def import_(self, source: PathOrFile, prefix: str = "", *, onto: str = "",
                on_conflict: str = "refuse", dry_run: bool = False,
                progress: Progress | None = None) -> ImportReport:
        """Write the checkpoints of an export, or those under a prefix, into this store. They get
        revisions and times of this store; value, position, head and what is left of a TTL stay.

        `onto`: put before each key. Where something else stands: `on_conflict="refuse"` raises
        `Conflict` before anything is written, "skip" leaves it, "replace" writes over what was
        read there. What is there already is passed over, so that an import that was interrupted
        can be run again. Raises `ExportDamaged`, `ExportTruncated`, `Unsupported` before the first
        write, else as `commit`.
        """
        return run(transfer.import_(self, source, prefix, onto, on_conflict, dry_run, progress))

    def digest(self, prefix: str = "", *, at: Moment | None = None) -> StateDigest:
        """SHA-256 of all keys under a prefix with value, position and head: equal for two stores
        that hold the same. Leases and the records of rewinds do not count. `at` and errors as of
        `get`."""
        return run(pages.digest(self, prefix, at))

    def cleanup(self, prefix: str, *, older_than: Seconds | None = None, keep: int | None = None,
                dry_run: bool = False) -> CleanupReport:
        """Delete checkpoints under a prefix that were committed longer ago than `older_than`
        (seconds or timedelta, by the store's clock), but never the `keep` newest; with `keep`
        alone all but those. What is committed meanwhile stays, and so do leases and keys with a
        segment that begins with `_`. At most 100,000 in one go: `plan.more` says that there are
        more. `dry_run`: only plan. Raises `Misuse`, `InvalidKey`.
        """
        return run(cleaning.cleanup(self, prefix, older_than, keep, dry_run))

    def validate(self, prefix: str = "", *, at: Moment | None = None) -> Validation:
        """Whether the value of every checkpoint under a prefix can be read, and whether all that it
        says it was made from was there. Only reads. `at` and errors as of `get`."""
        return run(validating.validate(self, prefix, at))

    def repair(self, key: str, *, to: str, revision: int | None = None, dry_run: bool = False
               ) -> Repair:
        """Write the newest version of a key whose value can be read, no newer than `revision`, to
        the new key `to`. Nothing is changed in place. Raises `InvalidPayload` where none can be
        read, `Conflict` where `to` exists, `Misuse` where there is no such key."""
        return run(validating.repair(self, key, to, revision, dry_run))

    def rewind(self, prefix: str, *, to: Moment | None = None, value: Any = NOTHING,
               position: int | None = None, reason: str) -> RewindPlan:
        """Plan to let what stood under a prefix (a key and all below it) at a moment stand there
        again: `plan = mesh.rewind("nightly", to=last_night, reason="bad feed")`, `print(plan)`,
        `plan.apply()`. Nothing is changed before `apply`.

        `to`: a revision, an aware datetime, a Checkpoint, a Receipt, a savepoint or its name; ""
        as the prefix is everything. Or, for one key: `value`, with `position` if it has one; or
        `position` alone: the newest version kept that is not beyond it. Locks and workers, the
        places of named watches, schemas and the records of rewinds stay as they are.

        Raises `Misuse`, `Compacted`, `SavepointNotFound`, `FutureRevision`; `TooLarge` where more
        than 4,000 keys differ.
        """
        return run(rewinding.plan(self, RewindPlan, prefix, to, value, position, reason))

    def rewinds(self, pipeline: str) -> list[Rewound]:
        """The rewinds of a pipeline, or of parts of it, oldest first."""
        return run(rewinding.rewound(self, pipeline))

    def _named_watch(self, prefix: str, name: str, **options: Any) -> NamedWatch:
        return NamedWatch(self, self._keeper, self._seats, prefix, name, **options)

    @cached_property
    def _seats(self) -> Claims:
        return Claims()

    def watches(self, pipeline: str = "") -> list[WatchInfo]:
        """The named watches of a pipeline, or of all: `for each in mesh.watches("orders"):
        print(each.name, each.behind, each.seconds, each.holder)`. Those that watch everything are
        of the pipeline "ckptmesh". Raises `InvalidKey`, `InvalidPayload`, `Unavailable`."""
        return run(watches.watches(self, pipeline))

    def drop_watch(self, prefix: str, name: str) -> bool:
        """Forget the place of a named watch; whether there was one. Raises `LockTimeout` while
        somebody is at work under this name, `Misuse`, `InvalidKey`."""
        return run(watches.drop(self, seat(self, self._keeper, self._seats, prefix, name), prefix,
                                name))

    def lag(self, prefix: str = "") -> list[Lag]:
        """How far the keys under a prefix that have a position or head are behind their sources,
        runs of staged pipelines among them: `.position`, `.head`, `.records` and `.age`, the
        seconds since their last commit. Raises `InvalidKey`."""
        return run(lagging.lag(self, prefix))


class AsyncOffered:
    """The features of a client of asyncio."""

    @cached_property
    def _keeper(self) -> AsyncKeeper:
        return AsyncKeeper(self)

    @cached_property
    def _claims(self) -> Claims:
        return Claims()

    def lock(self, name: str, *, shared: bool = False, ttl: Seconds = 30,
             wait: Seconds | None = None, holder: str | None = None) -> AsyncLock:
        """As `Client.lock`: `async with mesh.lock("orders") as lock: …`."""
        return AsyncLock(self, self._keeper, self._claims, name, shared=shared, ttl=ttl, wait=wait,
                         holder=holder)

    def cursor(self, key: str, *, by: Field, id: Field, late: Any = None, on_late: str = "skip",
               ordered: bool = False, guard: Held | None = None) -> AsyncCursor:
        """As `Client.cursor`: `async with mesh.cursor(…) as cur: …`."""
        return AsyncCursor(self, key, by=by, id=id, late=late, on_late=on_late, ordered=ordered,
                           guard=guard)

    async def merge(self, key: str, fields: Mapping[str, Merge] | None = None, /, *,
                    guard: Held | None = None, timeout: Seconds | None = None, **named: Merge
                    ) -> MergeReceipt:
        """As `Client.merge`."""
        return await run_async(merging.merge(self, key, merging.parts_of(fields, named),
                                             guard=guard, timeout=timeout))

    async def merged(self, key: str, *, at: Moment | None = None, timeout: Seconds | None = None
                     ) -> dict[str, Any]:
        """As `Client.merged`."""
        return await run_async(merging.merged(self, key, at=at, timeout=timeout))

    def intervals(self, key: str, *, start: int = 0, end: int | None = None, ttl: Seconds = 30,
                  holder: str | None = None) -> AsyncIntervals:
        """As `Client.intervals`."""
        return AsyncIntervals(self, self._keeper, key, start=start, end=end, ttl=ttl,
                              holder=holder)

    def runs(self, pipeline: str) -> AsyncRuns:
        """As `Client.runs`, its methods awaited."""
        return AsyncRuns(self, pipeline)

    def worker(self, pipeline: str, *, partitions: int | Iterable[str | int] | Partitions,
               name: str | None = None, ttl: Seconds = 30, idle: Seconds = 1) -> AsyncWorker:
        """As `Client.worker`: `async with mesh.worker(…) as w: async for part in w: …`."""
        return AsyncWorker(self, self._keeper, pipeline, partitions=partitions, name=name, ttl=ttl,
                           idle=idle)

    def workers(self, pipeline: str) -> AsyncWorkers:
        """As `Client.workers`."""
        return AsyncWorkers(self, pipeline)

    async def pipelines(self) -> list[PipelineInfo]:
        """As `Client.pipelines`."""
        return await run_async(active(self))

    async def export(self, target: PathOrFile, prefix: str = "", *, at: Moment | None = None,
                     history: bool = False, squeezed: bool | None = None,
                     progress: Progress | None = None) -> ExportReport:
        """As `Client.export`. The file is written, page by page, in the event loop."""
        return await run_async(transfer.export(self, target, prefix, at, history, squeezed,
                                               progress))

    async def import_(self, source: PathOrFile, prefix: str = "", *, onto: str = "",
                      on_conflict: str = "refuse", dry_run: bool = False,
                      progress: Progress | None = None) -> ImportReport:
        """As `Client.import_`. The file is read, page by page, in the event loop."""
        return await run_async(transfer.import_(self, source, prefix, onto, on_conflict, dry_run,
                                                progress))

    async def digest(self, prefix: str = "", *, at: Moment | None = None) -> StateDigest:
        """As `Client.digest`."""
        return await run_async(pages.digest(self, prefix, at))

    async def cleanup(self, prefix: str, *, older_than: Seconds | None = None,
                      keep: int | None = None, dry_run: bool = False) -> CleanupReport:
        """As `Client.cleanup`."""
        return await run_async(cleaning.cleanup(self, prefix, older_than, keep, dry_run))

    async def validate(self, prefix: str = "", *, at: Moment | None = None) -> Validation:
        """As `Client.validate`."""
        return await run_async(validating.validate(self, prefix, at))

    async def repair(self, key: str, *, to: str, revision: int | None = None,
                     dry_run: bool = False) -> Repair:
        """As `Client.repair`."""
        return await run_async(validating.repair(self, key, to, revision, dry_run))

    async def rewind(self, prefix: str, *, to: Moment | None = None, value: Any = NOTHING,
                     position: int | None = None, reason: str) -> AsyncRewindPlan:
        """As `Client.rewind`; `await plan.apply()`."""
        return await run_async(rewinding.plan(self, AsyncRewindPlan, prefix, to, value, position,
                                              reason))

    async def rewinds(self, pipeline: str) -> list[Rewound]:
        """As `Client.rewinds`."""
        return await run_async(rewinding.rewound(self, pipeline))

    def _named_watch(self, prefix: str, name: str, **options: Any) -> AsyncNamedWatch:
        return AsyncNamedWatch(self, self._keeper, self._seats, prefix, name, **options)

    @cached_property
    def _seats(self) -> Claims:
        return Claims()

    async def watches(self, pipeline: str = "") -> list[WatchInfo]:
        """As `Client.watches`."""
        return await run_async(watches.watches(self, pipeline))

    async def drop_watch(self, prefix: str, name: str) -> bool:
        """As `Client.drop_watch`."""
        return await run_async(watches.drop(
            self, seat(self, self._keeper, self._seats, prefix, name), prefix, name))

    async def lag(self, prefix: str = "") -> list[Lag]:
        """As `Client.lag`."""
        return await run_async(lagging.lag(self, prefix))
