"""ckptmesh's own side: broker and store as processes, and what their workers do.

Rule 1: settings are those of a user who set none, but that no compaction starts by itself in the
        middle of a measurement (`FLAGS`).
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from bench.peers import Job
from ckptmesh.benchmark import workloads
from ckptmesh.benchmark.driver import Make
from ckptmesh.benchmark.workloads import Place
from tests.cluster import Cluster

FLAGS = ("--snapshot-bytes", "1024GiB")


def cluster(folder: Path, *flags: str) -> Cluster:
    """A broker and a store with a direct address beside, not started yet, in a new folder."""
    folder.mkdir()
    return Cluster(folder, *FLAGS, *flags, direct=True)


class Together(workloads.MeshWorker):
    """Commits of `many` (1 to 1,024) keys in one round trip, each with a revision of its own, as a
    pipeline of commands has it."""

    def __init__(self, place: Place, many: int, number: int) -> None:
        super().__init__(place, number)
        self._put = {f"{self.key}/{each}": self.value for each in range(many)}

    def step(self) -> int:
        """One call; each of its commits counts."""
        return len(self.mesh.commit_many(self._put))


def worker(url: str, job: Job) -> Make:
    """What makes the workers for a job."""
    place = Place(url, job.prefix, job.size)
    kinds: dict[str, Make] = {
        "commit": partial(workloads.Commits, place), "read": partial(workloads.Reads, place),
        "batch": partial(workloads.Batches, place, job.many),
        "pipeline": partial(Together, place, job.many),
        "submit": partial(workloads.Pipelined, place, job.many),
    }
    return kinds[job.kind]
