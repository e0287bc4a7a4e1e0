"""Watchers: from commit to event, whether each sees every commit, and what they cost the commits.

Rule 1: a store of its own for each number of watchers; nothing else is committed there, so the
        revisions that a watcher sees must follow each other without a gap.
Rule 2: watchers share a few processes. Where their cost to commits is measured, these run only
        while a processor has nothing else to do. They stand for other machines: what counts is what
        publishing costs a mesh, not what a hundred Python programs cost two processors. Nobody
        waits for them but the count: it waits until the last has seen all.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import time
from array import array
from collections.abc import Iterator, Sequence
from functools import partial
from multiprocessing.connection import Connection
from typing import NamedTuple

from bench.alone import running
from bench.context import Context
from bench.figures import WARM_UP, Result, detail, interleaved
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


def _watch(url: str, count: int, revision: int, aside: bool, pipe: Connection) -> None:
    if aside:
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
    """A store, its watchers in their processes, and a crew that commits there."""

    def __init__(self, client: Client, pipes: list[Connection], crew: Crew) -> None:
        self._client = client
        self._pipes = pipes
        self._crew = crew
        self.lost = self.repeated = 0

    def run(self, seconds: float) -> tuple[Sample, Histogram]:
        """Commits of a window; µs from each of them to its events, once all have seen all."""
        sample, latency = self._crew.run(seconds), Histogram()
        revision = self._client.status()["revision"]
        for pipe in self._pipes:
            pipe.send(revision)
        for pipe in self._pipes:
            for seen in pipe.recv():
                self.lost += seen.lost
                self.repeated += seen.repeated
                for value in seen.latencies:
                    latency.add(value)
        return sample, latency


@contextlib.contextmanager
def watched(context: Context, count: int, committers: int, pause: float, aside: bool
            ) -> Iterator[Watched]:
    """A store with so many watchers, and so many processes that commit after a pause (seconds) each
    time, while the block runs. `aside`: see rule 2."""
    spawn = multiprocessing.get_context("forkserver")
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(running(context.folder / f"watched-{count}", None)).url
        client = stack.enter_context(connect(url))
        revision = client.status()["revision"]
        pipes = []
        for number in range(min(count, PROCESSES)):
            share = len(range(number, count, PROCESSES))
            ours, theirs = spawn.Pipe()
            process = spawn.Process(target=_watch, args=(url, share, revision, aside, theirs),
                                    daemon=True)
            process.start()
            stack.callback(process.join)
            stack.callback(process.kill)
            theirs.close()
            pipes.append(ours)
        crew = stack.enter_context(Crew(partial(Stamped, url, pause), committers))
        yield Watched(client, pipes, crew)


def _rounds(context: Context, counts: Sequence[int], committers: int, pause: float, aside: bool
            ) -> tuple[dict[str, list[tuple[Sample, Histogram]]], dict[str, int]]:
    """By number of watchers: what each round gave, and how many events were lost or repeated."""
    with contextlib.ExitStack() as stack:
        found = {_name(count): stack.enter_context(
            watched(context, count, committers, pause, aside)) for count in counts}
        for each in found.values():
            each.run(WARM_UP)
        rounds = interleaved({name: partial(each.run, context.seconds)
                              for name, each in found.items()}, context.rounds)
        return rounds, {name: each.lost + each.repeated for name, each in found.items()}


def _name(count: int) -> str:
    return {0: "no watcher", 1: "1 watcher"}.get(count, f"{count} watchers")


def measure(context: Context) -> list[Result]:
    """Commits a second by the number of watchers; what these lost; µs from commit to event."""
    busy, lost = _rounds(context, (0, *COUNTS), COMMITTERS, 0.0, True)
    paced, missed = _rounds(context, COUNTS, 1, PAUSE, False)
    none, *some = busy
    delays = {name: [latency for _, latency in found] for name, found in paced.items()}
    worst = {name: max(each.percentile(99) for each in found) for name, found in delays.items()}
    return [
        Result("watched", "commits/s", {name: [sample.rate for sample, _ in found]
                                        for name, found in busy.items()},
               tuple(some), (none,), details={
                   name: [detail(sample) for sample, _ in found] for name, found in busy.items()}),
        Result("losses", "events", {name: [float(lost[name] + missed[name])] for name in some},
               tuple(some), remarks=dict.fromkeys(some, "lost or repeated, in all rounds")),
        Result("delay", "µs p50", {name: [float(each.percentile(50)) for each in found]
                                   for name, found in delays.items()}, tuple(some),
               remarks={name: f"p99 {worst[name]:,} µs in the worst round" for name in some}),
    ]
