"""Watchers: from commit to event, whether each sees every commit, and what they cost the commits.

Rule 1: a store of its own for each number of watchers; nothing else is committed there, so the
        revisions that a watcher sees must follow each other without a gap.
Rule 2: watchers share a few processes that run only while a processor has nothing else to do. They
        stand for other machines: what is measured is what publishing costs a mesh, not what a
        hundred Python programs cost two processors. Nobody waits for them but the count: it waits
        until the last has seen all.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import time
from array import array
from collections.abc import Iterator
from functools import partial
from multiprocessing.connection import Connection
from typing import NamedTuple

from bench.alone import running
from bench.context import Context
from bench.figures import Result, detail, interleaved
from ckptmesh.aio import connect_async
from ckptmesh.benchmark.driver import Crew, Sample
from ckptmesh.benchmark.workloads import MeshWorker, Place
from ckptmesh.client import Client, connect
from ckptmesh.stats import Histogram
from ckptmesh.watch import AsyncWatch

COUNTS = (1, 10, 100)
PROCESSES = 4  # at most, for the watchers
COMMITTERS = 4
PAUSE = 0.02  # seconds between two commits whose events are timed
PATIENCE = 30.0  # seconds until an event that a watcher has not seen counts as lost
PIPELINE = "watched"


class Seen(NamedTuple):
    """What the watchers of one process saw of one round: `lost` and `repeated` events, µs from
    commit to receipt of the others."""

    lost: int
    repeated: int
    latencies: array[int]


class Stamped(MeshWorker):
    """Commits of the moment at which they begin, after a pause."""

    def __init__(self, url: str, pause: float, number: int) -> None:
        super().__init__(Place(url, PIPELINE), number)
        self._pause = pause

    def step(self) -> int:
        """One commit."""
        if self._pause:
            time.sleep(self._pause)
        self.mesh.commit(self.key, time.monotonic_ns())
        return 1


class _Watcher:
    """One watch and what it has seen, counted until it is asked for."""

    def __init__(self, watch: AsyncWatch, revision: int) -> None:
        self.watch = watch
        self.revision = revision
        self.lost = self.repeated = 0
        self.latencies = array("Q")

    async def follow(self) -> None:
        async with self.watch:
            async for event in self.watch:
                now = time.monotonic_ns()
                if event.revision <= self.revision:
                    self.repeated += 1
                    continue
                self.lost += event.revision - self.revision - 1
                self.revision = event.revision
                if event.checkpoint is not None:
                    self.latencies.append((now - event.checkpoint.value) // 1_000)


def _watch(url: str, count: int, revision: int, pipe: Connection) -> None:
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))  # its threads inherit that
    with contextlib.suppress(EOFError, OSError):
        asyncio.run(_watch_all(url, count, revision, pipe))


async def _watch_all(url: str, count: int, revision: int, pipe: Connection) -> None:
    """Follow with so many watches; for each revision that is asked, what was seen up to there."""
    mesh = await connect_async(url)
    watchers = [_Watcher(mesh.watch(PIPELINE, since=revision), revision) for _ in range(count)]
    tasks = [asyncio.create_task(each.follow()) for each in watchers]
    loop = asyncio.get_running_loop()
    while True:
        target = await loop.run_in_executor(None, pipe.recv)
        deadline = time.monotonic() + PATIENCE
        while min(each.revision for each in watchers) < target and time.monotonic() < deadline:
            for task in tasks:
                if task.done():
                    task.result()  # its error
            await asyncio.sleep(0.01)
        pipe.send([_taken(each, target) for each in watchers])


def _taken(watcher: _Watcher, target: int) -> Seen:
    seen = Seen(watcher.lost + max(0, target - watcher.revision), watcher.repeated,
                watcher.latencies)
    watcher.lost = watcher.repeated = 0
    watcher.latencies = array("Q")
    return seen


class Watched:
    """A store, its watchers in their processes, and two crews that commit there."""

    def __init__(self, client: Client, pipes: list[Connection], timed: Crew, busy: Crew) -> None:
        self._client = client
        self._pipes = pipes
        self._timed = timed
        self._busy = busy
        self.lost = self.repeated = 0

    def run(self, seconds: float) -> tuple[Histogram, Sample]:
        """µs from commit to event at a slow pace, then commits as fast as they go."""
        self._timed.run(seconds / 2)
        latency = self._seen()
        sample = self._busy.run(seconds)
        self._seen()
        return latency, sample

    def _seen(self) -> Histogram:
        """Wait until every watcher has seen every commit."""
        revision = self._client.status()["revision"]
        for pipe in self._pipes:
            pipe.send(revision)
        latency = Histogram()
        for pipe in self._pipes:
            for seen in pipe.recv():
                self.lost += seen.lost
                self.repeated += seen.repeated
                for value in seen.latencies:
                    latency.add(value)
        return latency


@contextlib.contextmanager
def watched(context: Context, count: int) -> Iterator[Watched]:
    """A store with so many watchers, while the block runs."""
    spawn = multiprocessing.get_context("forkserver")
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(running(context.folder / f"watched-{count}", None)).url
        client = stack.enter_context(connect(url))
        revision = client.status()["revision"]
        pipes = []
        for number in range(min(count, PROCESSES)):
            share = len(range(number, count, PROCESSES))
            ours, theirs = spawn.Pipe()
            process = spawn.Process(target=_watch, args=(url, share, revision, theirs),
                                    daemon=True)
            process.start()
            stack.callback(process.join)
            stack.callback(process.kill)
            theirs.close()
            pipes.append(ours)
        timed = stack.enter_context(Crew(partial(Stamped, url, PAUSE), 1))
        busy = stack.enter_context(Crew(partial(Stamped, url, 0.0), COMMITTERS))
        yield Watched(client, pipes, timed, busy)


def measure(context: Context) -> list[Result]:
    """Commits a second by the number of watchers, what these lost, µs from commit to event."""
    names = {0: "no watcher", 1: "1 watcher", **{each: f"{each} watchers" for each in COUNTS[1:]}}
    with contextlib.ExitStack() as stack:
        found = {name: stack.enter_context(watched(context, count))
                 for count, name in names.items()}
        for each in found.values():
            each.run(context.seconds / 2)
        rounds = interleaved({name: partial(each.run, context.seconds)
                              for name, each in found.items()}, context.rounds)
        lost = {name: each.lost + each.repeated for name, each in found.items()}
    none, *some = names.values()
    remarks = {name: f"{lost[name]} events lost or repeated" for name in some}
    delays = {name: [latency for latency, _ in rounds[name]] for name in some}
    return [
        Result("watched", "commits/s", {name: [sample.rate for _, sample in each]
                                        for name, each in rounds.items()},
               tuple(some), (none,), details={
                   name: [detail(sample) for _, sample in each] for name, each in rounds.items()}),
        Result("delay", "µs p50", {name: [float(each.percentile(50)) for each in delays[name]]
                                   for name in some}, tuple(some), remarks={
            name: f"p99 {max(each.percentile(99) for each in delays[name]):,} µs in the worst round"
            for name in some}),
        Result("losses", "events", {name: [float(lost[name])] for name in some}, tuple(some),
               remarks=remarks),
    ]
