"""The demo's nightly shell job: killed at random under `exec`, it adds up each line once."""

from __future__ import annotations

import os
import random
import subprocess
from collections import Counter
from pathlib import Path

import pytest

import ckptmesh
from tests.cli.conftest import PROGRAM, ROOT, environment
from tests.cluster import Cluster

ROUNDS = 4


def begin(url: str, folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*PROGRAM, "exec", "--pipeline", "nightly", "--wait", "60s", "--ttl", "1s", "--",
         str(ROOT / "demo" / "nightly.sh"), "orders.log", "totals"], cwd=folder,
        env=environment(CKPTMESH_URL=url), text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE)


def totals(folder: Path) -> Counter[str]:
    found: Counter[str] = Counter()
    for file in (folder / "totals").glob("from-???????????????"):
        for line in file.read_text().splitlines():
            word, count = line.split()
            found[word] += int(count)
    return found


@pytest.mark.parametrize("where", ["file", "mesh"])
def test_a_nightly_job_that_is_killed_at_random_moments_counts_each_line_once(
    tmp_path: Path, where: str
) -> None:
    chance, log = random.Random(7), tmp_path / "orders.log"
    log.touch()
    killed = 0
    with Cluster(tmp_path) as cluster:
        url = cluster.url if where == "mesh" else f"file:{tmp_path}/state"
        for _ in range(ROUNDS):
            with log.open("a") as file:
                file.writelines(f"{chance.choice('abc')} {n}\n" for n in range(3_000))
                file.write("half")  # of a line, which is ended in the next round
            job = begin(url, tmp_path)
            try:
                job.wait(chance.uniform(0, 0.6))
            except subprocess.TimeoutExpired:
                job.kill()
                killed += 1
            job.communicate()
            again = begin(url, tmp_path)
            said, told = again.communicate(timeout=90)
            assert again.returncode == 0, told
            assert said
            with ckptmesh.connect(url) as mesh:
                place = mesh.value("nightly")
            assert place == log.stat().st_size - len("half")
        lines = log.read_bytes()[:place].decode().splitlines()
    assert killed > 0
    assert totals(tmp_path) == Counter(line.split()[0] for line in lines)
    assert len(lines) == 3_000 * ROUNDS


def test_a_nightly_job_that_cannot_read_its_log_moves_nothing(tmp_path: Path) -> None:
    url = f"file:{tmp_path}/state"
    job = begin(url, tmp_path)
    _, told = job.communicate(timeout=60)
    assert job.returncode == 1
    assert "orders.log" in told
    assert not os.path.exists(tmp_path / "totals" / "from-000000000000000")
    with ckptmesh.connect(url) as mesh:
        assert mesh.get("nightly") is None
