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


def worker(url: str, job: Job) -> Make:
    """What makes the workers for a job."""
    place = Place(url, job.prefix, job.size)
    kinds: dict[str, Make] = {
        "commit": partial(workloads.Commits, place), "read": partial(workloads.Reads, place),
        "batch": partial(workloads.Batches, place, job.many),
        "pipeline": partial(workloads.Pipelined, place, job.many),
    }
    return kinds[job.kind]
