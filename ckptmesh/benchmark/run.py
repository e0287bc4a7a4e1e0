"""The course of a benchmark: the limits of the place, then one workload after another.

Rule 1: the store is left as it was: whatever happens, the workers end first and then all keys of
        this run are deleted.
Rule 2: figures of the store are differences of its own counts around a window, so that commits of
        others show as what they are.
Rule 3: an embedded store allows one process; its workload runs in this one, among its own reads.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import secrets
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import forkserver, resource_tracker
from typing import Any, NamedTuple, Protocol

from ckptmesh import sockets
from ckptmesh.benchmark.driver import Crew, Make, Sample, Worker, WorkerFailed, window
from ckptmesh.benchmark.machine import Processors, Syncs, try_disk
from ckptmesh.benchmark.workloads import (
    SIZE,
    Batches,
    Commits,
    Pipelined,
    Place,
    Reads,
    remove,
    share,
)
from ckptmesh.client import Client, connect
from ckptmesh.errors import DataLoss, Error, OutOfSpace
from ckptmesh.process import uninterrupted
from ckptmesh.stats import Histogram

SECONDS = 2.0  # of each workload
_LIMIT_SECONDS = 1.0  # for the disk, and at most for the round trip
_WARM_UP = 0.2  # seconds before each window: connections, caches and the processor's clock settle
_ROUND_TRIPS = 1_000  # at most: ten of them make the p99
_LOOPBACK = ("127.", "localhost", "[::1]", "::1")

ONE, WORKERS, PIPELINED, BATCHES, READS = NAMES = (
    "one", "workers", "pipelined", "batches", "reads")

Show = Callable[[float, str], None]
"""Told the part of the whole that is done (0 to 1), and what is under way."""


class Options(NamedTuple):
    """What to do. `data`: a directory on the disk to be tried, "" for none; `size`: bytes of a
    value; `timeout`: seconds of patience for one answer; `only`: names of workloads."""

    url: str
    data: str = ""
    workers: int = 8
    seconds: float = SECONDS
    size: int = SIZE
    in_flight: int = 256
    batch: int = 100
    timeout: float = 10.0
    only: tuple[str, ...] = NAMES


class Workload(NamedTuple):
    """What some processes do. `step`: operations of one step, whose time is taken; `atom`: those of
    one commit; `slack`: commits of one process that may be in flight at either end of a window."""

    name: str
    text: str
    make: Callable[[Place], Make]
    processes: int = 1
    step: int = 1
    atom: int = 1
    slack: int = 1


@dataclass(frozen=True)
class Figures:
    """What was measured of one workload; None is what cannot be told from here.

    `commits` and `syncs`: of the store, whoever committed; `sync`: its (p50, p99) of syncs in ms,
    None where too few were of this workload; `busy`, `store`: shares of time, of all processors and
    of the store's thread, see `machine.Processors`.
    """

    workload: Workload
    sample: Sample
    commits: int
    syncs: int
    sync: tuple[float, float] | None
    busy: float | None
    store: float | None

    @property
    def own_commits(self) -> int:
        """Commits of this workload: none for reads."""
        return 0 if self.workload.name == READS else self.sample.operations // self.workload.atom

    @property
    def foreign_commits(self) -> int:
        """Commits of others meanwhile; 0 where they may have been our own at an end of the
        window."""
        work = self.workload
        found = self.commits - self.own_commits
        return found if found > work.slack * work.processes else 0

    @property
    def commits_per_sync(self) -> float | None:
        """How many commits shared a sync, on the average; None without commits."""
        return self.commits / self.syncs if self.commits and self.syncs else None

    @property
    def own_busy(self) -> float:
        """Share of the time of all processors of this machine that clients and, where it can be
        seen, the store's thread used."""
        used = self.sample.cpu / self.sample.seconds + (self.store or 0.0)
        return min(1.0, used / (os.cpu_count() or 1))

    def document(self) -> dict[str, Any]:
        """For programs; units are in the names."""
        sample, p50_p99 = self.sample, self.sync or (None, None)
        return {
            "processes": self.workload.processes, "operations": sample.operations,
            "seconds": round(sample.seconds, 3), "operations_per_second": round(sample.rate, 1),
            "steps": sample.latency.count, "step_operations": self.workload.step,
            **latency_document(sample.latency, "step_"),
            "client_cpu_us_per_operation": _rounded(client_cpu(sample), 1),
            "store_commits": self.commits, "store_syncs": self.syncs,
            "foreign_commits": self.foreign_commits,
            "commits_per_sync": _rounded(self.commits_per_sync, 2),
            "store_sync_p50_ms": p50_p99[0], "store_sync_p99_ms": p50_p99[1],
            "store_thread_share": _rounded(self.store, 3),
            "processors_busy_share": _rounded(self.busy, 3),
            "processors_own_share": _rounded(self.own_busy, 3),
        }


def client_cpu(sample: Sample) -> float | None:
    """Microseconds of processor time for an operation, of the workers."""
    return sample.cpu * 1e6 / sample.operations if sample.operations else None


def latency_document(latency: Histogram, prefix: str = "") -> dict[str, float]:
    """A histogram of microseconds, for programs."""
    return {f"{prefix}p50_ms": latency.percentile(50) / 1e3,
            f"{prefix}p99_ms": latency.percentile(99) / 1e3,
            f"{prefix}max_ms": latency.maximum / 1e3}


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)


@dataclass
class Result:
    """What was found. `round_trip`: microseconds of a question to the store. What was not asked for
    is missing."""

    options: Options
    prefix: str
    embedded: bool
    disk: Syncs | None = None
    round_trip: Histogram = field(default_factory=Histogram)
    workloads: dict[str, Figures] = field(default_factory=dict)
    seconds: float = 0.0


def workloads(options: Options, embedded: bool) -> Iterator[Workload]:
    """Those that were asked for and that the store allows, in their order."""
    depth, batch, count = options.in_flight, options.batch, options.workers
    known = (
        Workload(ONE, "one worker", lambda place: partial(Commits, place)),
        Workload(WORKERS, f"{count} workers", lambda place: partial(Commits, place), count),
        Workload(PIPELINED, f"{depth} in flight", lambda place: partial(Pipelined, place, depth),
                 step=share(depth), slack=depth),
        Workload(BATCHES, f"batches of {batch}", lambda place: partial(Batches, place, batch),
                 step=batch, atom=batch),
        Workload(READS, "reads", lambda place: partial(Reads, place)),
    )
    for workload in known:
        if workload.name in options.only and not (embedded and workload.processes > 1):
            yield workload


def bench(options: Options, show: Show, tell: Callable[[str], None]) -> Result:
    """Measure a mesh. See the module's rules. `tell`: told what could not be cleaned up.

    Raises what `connect` does, `DataLoss` or `OutOfSpace` for a store that is read-only,
    `WorkerFailed`, `OSError` and `OutOfSpace` of the disk that is tried.
    """
    began = time.monotonic()
    embedded = is_embedded(options.url)
    prefix = f"bench-{secrets.token_hex(4)}"
    if options.url in ("memory:", "memory://"):  # by name, so that all clients meet in one store
        options = options._replace(url=f"memory://{prefix}")
    result = Result(options, prefix, embedded)
    with connected(options) as mesh:
        check_writable(mesh)
    if not embedded:
        _start_fork_server()
    try:
        with connected(options) as mesh:
            _measure(mesh, result, show)
    except BaseException as error:
        with contextlib.suppress(Error):
            _clean(result, tell)
        if isinstance(error, WorkerFailed):
            with connected(options) as mesh:  # what stands behind it, where the store can tell
                check_writable(mesh)
        raise
    _clean(result, tell)
    result.seconds = time.monotonic() - began
    return result


def _start_fork_server() -> None:
    """Have a process import what all workers need, and leave Ctrl-C at the terminal to this one: it
    and the workers inherit the mask. Without it, an import would end with a traceback."""
    multiprocessing.set_forkserver_preload([Place.__module__])
    resource_tracker.ensure_running()  # first: it would take the mask off again
    with _deferred(signal.SIGINT):
        forkserver.ensure_running()


@contextlib.contextmanager
def _deferred(*numbers: signal.Signals) -> Iterator[None]:
    """Let these signals wait until the block is done."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def is_embedded(url: str) -> bool:
    """Whether the store of a URL lives in the process that uses it."""
    return url.startswith(("file:", "memory:"))


def connected(options: Options) -> Client:
    """A client of its own. Raises what `connect` does."""
    return connect(options.url, timeout=options.timeout, name="ckptmesh bench")


def check_writable(mesh: Client) -> None:
    """Raises `DataLoss` or `OutOfSpace` for a store that is read-only."""
    why = str(mesh.status()["read_only"])
    if why:
        refusal = DataLoss if "loss" in why else OutOfSpace
        raise refusal(f"the store is read-only, so nothing can be measured: {why}")


def _clean(result: Result, tell: Callable[[str], None]) -> None:
    """Delete the keys of this run, by a client of its own: the other may have been interrupted."""
    with uninterrupted():
        try:
            with connected(result.options) as mesh:
                remove(mesh, result.prefix)
        except Error:
            tell(f"keys of this run may be left: ckptmesh state list {result.prefix}")
            raise


# --- measuring --------------------------------------------------------------------------------


def _measure(mesh: Client, result: Result, show: Show) -> None:
    options = result.options
    todo = list(workloads(options, result.embedded))
    parts = len(todo) + 1
    show(0.0, "disk" if options.data else "round trip")
    if options.data:
        result.disk = try_disk(options.data, min(_LIMIT_SECONDS, options.seconds))
        show(0.5 / parts, "round trip")
    result.round_trip = _round_trips(mesh, min(_LIMIT_SECONDS, options.seconds))
    for done, workload in enumerate(todo, 1):
        show(done / parts, workload.text)
        result.workloads[workload.name] = _try(mesh, result, workload)
    show(1.0, "")


def _round_trips(mesh: Client, seconds: float) -> Histogram:
    latency = Histogram()
    mesh.hello()
    began = now = time.perf_counter()
    while now - began < seconds and latency.count < _ROUND_TRIPS:
        mesh.hello()
        last, now = now, time.perf_counter()
        latency.add(round((now - last) * 1e6))
    return latency


class _Runner(Protocol):
    """What a crew is, and a worker in this process."""

    def run(self, seconds: float) -> Sample: ...

    def close(self) -> None: ...


class _Alone:
    """A worker in this process, used as a crew is."""

    def __init__(self, make: Make) -> None:
        self._worker: Worker = make(0)

    def run(self, seconds: float) -> Sample:
        begin, latency = time.monotonic(), Histogram()
        done = window(self._worker, begin, begin + seconds)
        for value in done.latencies:
            latency.add(value)
        return Sample(round(done.operations), seconds, latency, done.cpu)

    def close(self) -> None:
        with contextlib.suppress(Error):  # of commits in flight, after an interruption
            self._worker.close()


def _try(mesh: Client, result: Result, workload: Workload) -> Figures:
    options = result.options
    make = workload.make(Place(options.url, f"{result.prefix}/{workload.name}", options.size,
                               options.timeout))
    runner: _Runner | None = None
    try:
        # A process whose start is cut short would commit when all keys are deleted already.
        with _deferred(signal.SIGINT, signal.SIGTERM):
            runner = _Alone(make) if result.embedded else Crew(make, workload.processes)
        runner.run(min(_WARM_UP, options.seconds))
        before = mesh.status()
        used = Processors(0 if result.embedded else _pid_here(options.url, before))
        sample = runner.run(options.seconds)
        busy, store = used.busy(), used.thread()
        after = mesh.status()
    finally:
        if runner is not None:
            with uninterrupted():
                runner.close()
    commits, syncs = (after["counts"][name] - before["counts"][name]
                      for name in ("commits", "syncs"))
    return Figures(workload, sample, commits, syncs, _sync_times(after["log"], syncs), busy, store)


_REMEMBERED = 1_024  # latest syncs of which a store tells percentiles: see `wal.py`


def _sync_times(log: dict[str, Any], syncs: int) -> tuple[float, float] | None:
    """What the store tells of its latest syncs, when all of them were of the window."""
    if syncs < _REMEMBERED or "sync_ms_p50" not in log:
        return None
    return log["sync_ms_p50"], log["sync_ms_p99"]


def _pid_here(url: str, status: dict[str, Any]) -> int:
    """The store's process where it can only be one of this machine, else 0."""
    where = sockets.address(url)
    here = where.scheme == "ipc" or where.host.startswith(_LOOPBACK)
    return int(status["pid"]) if here else 0
