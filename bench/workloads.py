"""The table of all workloads, and those that compare crews of workers in interleaved rounds.

Rule 1: the crews of one workload are all there before its first round, and idle between theirs.
Rule 2: a workload leaves out the peers that are not measured, and what a peer has no way to do.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench import alone, fanout, floor, mesh
from bench.context import Context
from bench.figures import WARM_UP, Result, detail, interleaved
from bench.peers import PEERS, Job
from ckptmesh.benchmark.driver import Crew, Make, Sample

KIB, MIB = 1024, 1024 * 1024
EVERY = tuple(PEERS)


@dataclass(frozen=True)
class Workload:
    """One line of `--only`: `about` is for people; `run` takes some seconds and gives the results
    that `gives` names, in that order (by default one, of the workload's name)."""

    name: str
    about: str
    run: Callable[[Context], list[Result]]
    gives: tuple[str, ...] = ()

    @property
    def results(self) -> tuple[str, ...]:
        """Names of the results."""
        return self.gives or (self.name,)


@dataclass(frozen=True)
class Compared:
    """Crews of `processes` workers, one of each variant of ckptmesh and one of each peer."""

    job: Job
    processes: int
    variants: tuple[str, ...] = ("broker",)
    peers: tuple[str, ...] = EVERY
    share: float = 1.0  # of the usual length of a round

    def __call__(self, name: str, context: Context) -> list[Result]:
        """Figures in operations a second."""
        remarks = {each.name: each.remark for each in context.servers.values()} | {
            peer: each.remark for peer, each in PEERS.items() if each.remark}
        with contextlib.ExitStack() as stack:
            crews = {subject: stack.enter_context(Crew(make, self.processes))
                     for subject, make in self._makers(context, stack).items()}
            for crew in crews.values():
                crew.run(min(WARM_UP, context.seconds))
            runs = {subject: partial(crew.run, context.seconds * self.share)
                    for subject, crew in crews.items()}
            samples: dict[str, list[Sample]] = interleaved(runs, context.rounds)
        return [Result(
            name, "/s", {subject: [each.rate for each in found]
                         for subject, found in samples.items()},
            self.variants, tuple(each for each in crews if each not in self.variants), remarks,
            {subject: [detail(each) for each in found] for subject, found in samples.items()},
        )]

    def _makers(self, context: Context, stack: contextlib.ExitStack) -> dict[str, Make]:
        urls = {"broker": context.cluster.url, "direct": context.cluster.direct,
                "submit": context.cluster.url}
        if "file" in self.variants:
            urls["file"] = f"file:{stack.enter_context(_folder(context.folder / 'embedded'))}"
        found = {variant: mesh.worker(urls[variant], self.job._replace(kind="submit")
                                      if variant == "submit" else self.job)
                 for variant in self.variants}
        for name in self.peers:
            server = context.servers.get(PEERS[name].server or name)
            if server is not None and PEERS[name].can(self.job.kind):
                found[name] = partial(PEERS[name], server.where, self.job)
        return found


@contextlib.contextmanager
def _folder(path: Path) -> Iterator[Path]:
    path.mkdir()
    yield path
    shutil.rmtree(path)


def _compared(name: str, about: str, compared: Compared) -> Workload:
    return Workload(name, about, partial(compared, name))


WORKLOADS: tuple[Workload, ...] = (
    Workload("floor", "what the machine gives: syncs a second, bare ZeroMQ round trips",
             floor.measure, ("syncs", "round-trips", "messages")),
    _compared("workers-1", "one worker, one commit of 100 B at a time; also beside the broker",
              Compared(Job("commit", "one"), 1, ("broker", "direct"))),
    *(_compared(f"workers-{count}", f"{count} worker processes, one commit of 100 B at a time",
                Compared(Job("commit", f"w{count}"), count, share=share))
      for count, share in ((4, 0.7), (16, 1.0), (50, 1.0))),
    _compared("pipelined", "2 processes, 256 commits in a round trip; by `submit`, in flight",
              Compared(Job("pipeline", "pipe", many=256), 2, ("broker", "direct", "submit"),
                       ("redis",))),
    _compared("batches", "2 processes, transactions of 100 keys; keys a second",
              Compared(Job("batch", "batch", many=100), 2, peers=("redis", "postgres", "sqlite"))),
    _compared("reads", "one worker, one read of one key at a time",
              Compared(Job("read", "read"), 1, ("broker", "direct"), share=0.5)),
    _compared("values-10k", "one worker, values of 10 KB",
              Compared(Job("commit", "v10k", size=10 * KIB), 1, share=0.5)),
    _compared("values-1m", "one worker, values of 1 MB",
              Compared(Job("commit", "v1m", size=MIB), 1, share=0.6)),
    _compared("embedded", "one process with its own file, no server",
              Compared(Job("commit", "embedded"), 1, ("file",), ("sqlite",))),
    Workload("processor", "processor time of broker and store for a commit, 16 workers",
             alone.processor),
    Workload("watched", "from commit to event at 1, 10 and 100 watchers; commits meanwhile",
             fanout.measure, ("watched", "losses", "delay")),
    Workload("starts", "start by replay of 1,000,000 commits, and from a snapshot of as many keys",
             alone.starts, ("replay", "start")),
    Workload("growth", "commits to a store of 1,000 and to one of 1,000,000 keys", alone.growth),
    Workload("compaction", "latency of commits while a compaction runs and without",
             alone.compaction),
    Workload("memory", "resident memory of the store for a checkpoint of 100 B", alone.memory),
)

BY_NAME = {each.name: each for each in WORKLOADS}
