"""A consumer that is killed at random: every event at least once, in order; its place never goes
back."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import ckptmesh
from ckptmesh import Mark
from tests.cli.conftest import environment
from tests.cluster import Cluster

CONSUMER = """
import os, sys, ckptmesh
out = os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND)
with ckptmesh.connect(sys.argv[1]) as mesh:
    with mesh.watch("orders", name="billing", ttl=0.5, every=5) as events:
        for event in events:
            os.write(out, b"%d\\n" % event.checkpoint.value)
            if event.checkpoint.value < 0:
                break
"""
ROUNDS, EACH = 3, 60


def test_a_consumer_that_is_killed_misses_nothing_and_repeats_little(tmp_path: Path) -> None:
    chance, seen = random.Random(7), tmp_path / "seen"
    seen.touch()
    places: list[Mark] = []
    with Cluster(tmp_path) as cluster, ckptmesh.connect(cluster.url) as mesh:
        with mesh.watch("orders", name="billing"):
            pass  # it begins here
        written = 0
        for _ in range(ROUNDS):
            child = subprocess.Popen([sys.executable, "-c", CONSUMER, cluster.url, str(seen)],
                                     env=environment())
            before = seen.stat().st_size
            for _ in range(EACH):
                written += 1
                mesh.commit("orders/a", written)
                places += [each.mark for each in mesh.watches("orders")] if written % 9 == 0 else []
            while seen.stat().st_size == before:  # it has begun
                assert child.poll() is None
                time.sleep(0.01)
            time.sleep(chance.uniform(0, 0.05))
            child.send_signal(signal.SIGKILL)
            child.wait()
        mesh.commit("orders/a", -1)
        last = subprocess.run([sys.executable, "-c", CONSUMER, cluster.url, str(seen)],
                              env=environment(), timeout=60)
        assert last.returncode == 0
        places += [each.mark for each in mesh.watches("orders")]
        assert mesh.watches("orders")[0].behind == 0
        kept = [each.position for each in mesh.history("orders/_watches/billing")]
    came = [*map(int, seen.read_text().splitlines())]
    assert set(came) == {*range(1, written + 1), -1}
    assert came[-1] == -1
    repeated = 0
    for earlier, later in pairwise(came[:-1]):
        assert later <= earlier + 1, "in order, none left out"
        repeated += later <= earlier
    assert repeated <= ROUNDS, "only a kill goes back"
    assert places == sorted(places)
    assert kept == sorted(kept, reverse=True)
