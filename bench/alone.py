"""Workloads that concern ckptmesh alone: what a commit costs, in a large store and during a
compaction, how a store starts, what it holds in memory.

Rule 1: two states of one store are compared as two peers are: both are there, rounds interleave.
"""

from __future__ import annotations

import contextlib
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from bench import data, mesh
from bench.context import Context
from bench.figures import Result, detail, interleaved
from bench.peers import Job
from bench.proc import cpu_seconds, resident_bytes
from ckptmesh.benchmark.driver import Crew, Sample
from ckptmesh.benchmark.workloads import MeshWorker, Place
from ckptmesh.client import connect
from tests.cluster import Cluster

SMALL = 1_000  # keys
SHORT_HISTORY = 1_000  # revisions: next to nothing, for what checkpoints alone cost
IN_FLIGHT = 256
COMMITTERS = 4  # while a compaction runs
BEGUN = 0.2  # seconds from asking for a compaction to the window that is to lie inside it


@contextlib.contextmanager
def running(folder: Path, source: Path | None, *flags: str) -> Iterator[Cluster]:
    """A cluster in a new folder, over a copy of a store or over none; the folder goes after it."""
    there = mesh.cluster(folder, *flags)
    try:
        if source is not None:
            shutil.copytree(source, there.data)
        with there:
            yield there
    finally:
        shutil.rmtree(folder)


# --- processor time ---------------------------------------------------------------------------


def processor(context: Context) -> list[Result]:
    """Of broker, store and workers, µs for each commit that the store counts meanwhile."""
    there = context.cluster
    assert there.broker is not None
    assert there.store is not None
    pids = {"broker": there.broker.pid, "store": there.store.pid}
    series: dict[str, list[float]] = {name: [] for name in (*pids, "workers")}
    make = mesh.worker(there.url, Job("commit", "cpu"))
    with connect(there.url) as client, Crew(make, 16) as crew:
        for _ in range(context.rounds):
            commits = client.status()["counts"]["commits"]
            before = {name: cpu_seconds(pid) for name, pid in pids.items()}
            sample = crew.run(context.seconds)
            used = {name: cpu_seconds(pid) - before[name] for name, pid in pids.items()}
            used["workers"] = sample.cpu
            commits = client.status()["counts"]["commits"] - commits
            for name, seconds in used.items():
                series[name].append(seconds / commits * 1e6)
    return [Result("processor", "µs/commit", series, tuple(series))]


# --- large stores -----------------------------------------------------------------------------


class Anywhere(MeshWorker):
    """Commits to random keys of a store made by `data.fill`, many in flight."""

    def __init__(self, url: str, keys: int, number: int) -> None:
        super().__init__(Place(url, "unused", data.VALUE), number)
        self._keys = keys
        self._random = random.Random(number)

    def step(self) -> int:
        """So many at once, then all of them are waited for."""
        for _ in range(IN_FLIGHT):
            self.mesh.submit(data.key(self._random.randrange(self._keys)), self.value)
        self.mesh.flush()
        return IN_FLIGHT


def growth(context: Context) -> list[Result]:
    """µs for each commit of 2 workers with 256 in flight, by the size of the store."""
    samples: dict[str, list[Sample]]
    with contextlib.ExitStack() as stack:
        crews: dict[str, Crew] = {}
        for keys in (SMALL, context.keys):
            source = data.with_snapshot(context.folder / f"keys-{keys}", keys)
            there = stack.enter_context(running(context.folder / f"growth-{keys}", source))
            crews[f"{keys:,} keys"] = stack.enter_context(
                Crew(partial(Anywhere, there.url, keys), 2))
        runs = {name: partial(crew.run, context.seconds) for name, crew in crews.items()}
        for run in runs.values():
            run()
        samples = interleaved(runs, context.rounds)
    small, large = samples
    series = {name: [1e6 / each.rate for each in found] for name, found in samples.items()}
    details = {name: [detail(each) for each in found] for name, found in samples.items()}
    return [Result("growth", "µs/commit", series, (large,), (small,), details=details)]


def compaction(context: Context) -> list[Result]:
    """p99 of commits in µs, in windows that lie inside a compaction and in quiet ones."""
    keys = context.keys // 4
    source = context.folder / "compacted"
    data.fill(source, keys)
    remarks: dict[str, str] = {}
    with (
        running(context.folder / "compaction", source) as there,
        connect(there.url) as client,
        Crew(mesh.worker(there.url, Job("commit", "compaction")), COMMITTERS) as crew,
    ):
        def during() -> Sample:
            compacting = threading.Thread(target=client.compact)
            compacting.start()
            time.sleep(BEGUN)
            sample = crew.run(context.seconds)
            if not compacting.is_alive():
                remarks["while it runs"] = "it ended before its window did"
            compacting.join()
            return sample

        crew.run(context.seconds)
        samples: dict[str, list[Sample]] = interleaved(
            {"without": partial(crew.run, context.seconds), "while it runs": during},
            context.rounds)
    shutil.rmtree(source)
    series = {name: [float(each.latency.percentile(99)) for each in found]
              for name, found in samples.items()}
    details = {name: [detail(each) for each in found] for name, found in samples.items()}
    return [Result("compaction", "µs p99", series, ("while it runs",), ("without",), remarks,
                   details)]


# --- starts -----------------------------------------------------------------------------------


def starts(context: Context) -> list[Result]:
    """Records a second of a replay, seconds until a store serves."""
    keys = context.keys
    log = context.folder / "replayed"
    context.tell(f"writing a log of {keys:,} commits")
    data.fill(log, keys)
    context.tell(f"writing a snapshot of {keys:,} keys")
    snapshot = data.with_snapshot(context.folder / f"keys-{keys}", keys)
    replay, start = f"{keys:,} commits", f"{keys:,} keys"
    seconds = interleaved({
        replay: partial(_open, log), f"{start}, opened": partial(_open, snapshot),
        start: partial(_until_ready, context.folder / "started", snapshot),
    }, context.rounds)
    from_log = _until_ready(context.folder / "started", log)
    shutil.rmtree(log)
    found = {name: seconds[name] for name in (start, f"{start}, opened")}
    return [
        Result("replay", "records/s", {replay: [keys / each for each in seconds[replay]]},
               (replay,), remarks={replay: f"a fresh process serves after {from_log:.1f} s"},
               details={"seconds": seconds[replay], "until_ready": from_log}),
        Result("start", "s", found, tuple(found), remarks={
            start: "a fresh process, until it serves", f"{start}, opened": "opening alone"}),
    ]


def _open(directory: Path) -> float:
    """Seconds that opening a store takes, in a fresh process that does nothing else."""
    code = ("import sys, time; from ckptmesh.wal import Wal; began = time.perf_counter(); "
            "wal = Wal.open(sys.argv[1]); print(time.perf_counter() - began); wal.close()")
    done = subprocess.run([sys.executable, "-c", code, str(directory)], check=True,
                          capture_output=True, text=True)
    return float(done.stdout)


def _until_ready(folder: Path, source: Path) -> float:
    """Seconds from the start of `ckptmesh store` over a copy until it says that it serves."""
    there = mesh.cluster(folder)
    try:
        shutil.copytree(source, there.data)
        there.start_broker()
        began = time.perf_counter()
        there.start_store()
        return time.perf_counter() - began
    finally:
        there.kill(there.store)
        there.kill(there.broker)
        shutil.rmtree(folder)


# --- memory -----------------------------------------------------------------------------------


class Filling(MeshWorker):
    """Commits that never come to the same key twice."""

    def __init__(self, url: str, number: int) -> None:
        super().__init__(Place(url, "unused", data.VALUE), number)
        self._next = number

    def step(self) -> int:
        """So many at once, then all of them are waited for."""
        for _ in range(IN_FLIGHT):
            self.mesh.submit(data.key(self._next), self.value)
            self._next += 2
        self.mesh.flush()
        return IN_FLIGHT


def memory(context: Context) -> list[Result]:
    """Resident bytes of the store's process for each key, beyond those of an empty store.

    An eighth of the keys fills the tables of Python's dicts, which double, as far as all would."""
    keys = context.keys // 8
    folder, flags = context.folder / "memory", ("--history-revisions", str(SHORT_HISTORY))
    snapshot = data.with_snapshot(context.folder / "short-history", keys, SHORT_HISTORY)
    loaded = []
    for _ in range(context.rounds):
        with running(folder, None, *flags) as empty:
            nothing = _resident(empty)
        with running(folder, snapshot, *flags) as there:
            loaded.append((_resident(there) - nothing) / keys)
    shutil.rmtree(snapshot)
    with (running(folder, None, *flags) as there, connect(there.url) as client,
          Crew(partial(Filling, there.direct), 2) as crew):
        before, there_already = _resident(there), client.status()["keys"]
        while client.status()["keys"] < keys:
            crew.run(context.seconds)
        written = (_resident(there) - before) / (client.status()["keys"] - there_already)
    return [Result("memory", "B/key", {"from a snapshot": loaded, "written live": [written]},
                   ("from a snapshot", "written live"),
                   remarks={"written live": "one measurement"})]


def _resident(there: Cluster) -> int:
    assert there.store is not None
    return resident_bytes(there.store.pid)
