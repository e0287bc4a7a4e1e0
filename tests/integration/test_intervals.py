"""Processes that share a range of numbers while some of them are killed."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import ckptmesh
from tests.cluster import Cluster, wait_until

END, SIZE, PROCESSES, KILLS = 8_000, 40, 5, 8

# Does numbers, a line for each in a file of its own, until all are done.
_WORKER = """
import sys, time, ckptmesh
url, end, size, out = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
with ckptmesh.connect(url) as mesh, mesh.intervals("backfill", end=end, ttl=2) as todo, \\
        open(out, "a", buffering=1) as log:
    while part := todo.claim(size):
        for number in part.numbers:
            print(number, file=log)
            time.sleep(0.002)
        try:
            todo.done(part)
        except ckptmesh.LeaseLost:  # stood still for too long: others do it again
            print("lost", file=log)
"""


def test_every_number_is_done_while_processes_are_killed(tmp_path: Path) -> None:
    chance = random.Random(7)
    outs: list[Path] = []

    def start(url: str) -> tuple[subprocess.Popen[bytes], Path]:
        outs.append(tmp_path / f"{len(outs)}.log")
        return subprocess.Popen([sys.executable, "-c", _WORKER, url, str(END), str(SIZE),
                                 str(outs[-1])]), outs[-1]

    with Cluster(tmp_path) as cluster, ckptmesh.connect(cluster.url) as mesh:
        workers = [start(cluster.url) for _ in range(PROCESSES)]
        try:
            todo, marks = mesh.intervals("backfill", end=END), [0]
            for _ in range(KILLS):
                victim = chance.randrange(PROCESSES)
                process, out = workers[victim]
                wait_until(lambda out=out: out.exists() and out.stat().st_size)
                time.sleep(chance.uniform(0.02, 0.15))
                assert process.poll() is None, "there is work left for it to be killed at"
                cluster.kill(process)
                workers[victim] = start(cluster.url)
                marks.append(todo.low_mark)
                missing = set(range(marks[-1])) - set(_numbers(outs))
                assert not missing, "all below the low mark was done before it was said"
            assert [process.wait(60) for process, _ in workers] == [0] * PROCESSES
        finally:
            for process, _ in workers:
                cluster.kill(process)
        did = Counter(_numbers(outs))
        assert set(did) == set(range(END))
        assert marks == sorted(marks)
        assert (todo.low_mark, todo.finished, todo.holes()) == (END, True, [])
        lost = sum("lost" in out.read_text() for out in outs if out.exists())
        again = sum(did.values()) - END
        assert again <= (KILLS + lost) * SIZE, "only what the killed had claimed is done again"
        found = mesh.get("backfill")
        assert found is not None
        assert found.position == END


def _numbers(outs: list[Path]) -> list[int]:
    lines = [line for out in outs if out.exists() for line in out.read_text().splitlines(True)]
    return [int(line) for line in lines if line.endswith("\n") and line != "lost\n"]
