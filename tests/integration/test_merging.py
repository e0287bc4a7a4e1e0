"""Hundreds of processes merge into one key of a real mesh at once: all finish, nothing is lost."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ckptmesh
from ckptmesh import merge
from tests.cluster import Cluster

PROCESSES = 256
PATIENCE = 120  # seconds; a busy machine may need many


def _merging(mesh: Any, number: int) -> int:
    receipt = mesh.merge(
        "totals", rows=merge.Add(number), seen=merge.Union([number]), peak=merge.Max(number),
        first=merge.Min(number), done=merge.PerKey({f"{number % 8}": merge.Add(1)}),
        timeout=PATIENCE)
    return int(receipt.attempts)


def one_of_many(work: Callable[[Any, int], int], url: str, number: int, start: Any, told: Any
                ) -> None:
    """A process: connects, waits for the others, does its work, tells how often it tried."""
    with ckptmesh.connect(url) as mesh:
        start.wait(PATIENCE)
        told.put(work(mesh, number))


def attempts_of_all(work: Callable[[Any, int], int], url: str) -> list[int]:
    """Let all processes work at once; how often each tried."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ckptmesh.client", __name__])
    start, told = context.Barrier(PROCESSES), context.Queue()
    processes = [context.Process(target=one_of_many, args=(work, url, number, start, told))
                 for number in range(PROCESSES)]
    for process in processes:
        process.start()
    try:
        found = [told.get(timeout=PATIENCE) for _ in processes]
        for process in processes:
            process.join(PATIENCE)
            assert process.exitcode == 0
    finally:
        for process in processes:
            process.kill()
    return found


def test_256_processes_merge_into_one_key_at_once_and_all_finish(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """A merge is an `update`: the same loop, the same pauses."""
    with Cluster(tmp_path) as cluster:
        attempts = attempts_of_all(_merging, cluster.url)
        with ckptmesh.connect(cluster.url) as mesh:
            everyone = range(PROCESSES)
            assert mesh.merged("totals") == {
                "rows": sum(everyone), "seen": set(everyone), "peak": PROCESSES - 1, "first": 0,
                "done": {str(part): PROCESSES // 8 for part in range(8)}}
            standing = mesh.get("totals")
            assert standing is not None
            assert standing.version == PROCESSES, "each was committed once"
    record_property("attempts", sum(attempts))
    print(f"{PROCESSES} processes, {sum(attempts):,} attempts, {max(attempts)} at most")
    # All at once without a pause would make half the square of their number.
    assert PROCESSES <= sum(attempts) < PROCESSES ** 2 / 4
