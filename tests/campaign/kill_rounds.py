"""kill -9 of the store at random moments under concurrent committing clients.

Each client process commits 1, 2, 3, … to its own key with `expect=`, and writes a line to its own
file after each acknowledged commit. After the last round: every acknowledged revision is in the
history that watchers were given, each count was applied exactly once, in order, and the log's
verdict was CLEAN or TORN every time.

    python -m tests.campaign.kill_rounds --rounds 200
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import ckptmesh
from ckptmesh.survey import verify
from tests.cluster import Cluster

_WORKER = """
import sys, ckptmesh
url, key, path = sys.argv[1:]
while True:
    try:
        mesh = ckptmesh.connect(url, timeout=120)
        break
    except ckptmesh.Unavailable:
        pass
place = mesh.get(key)
with open(path, "a", buffering=1) as acknowledged:
    while True:
        count = (place.value if place else 0) + 1
        place = mesh.commit(key, count, expect=place)
        acknowledged.write(f"{place.revision} {count}\\n")
        place = ckptmesh.Checkpoint(key, count, place.revision, place.epoch, place.version, 0, 0)
"""


def run(folder: Path, rounds: int, clients: int = 8, seed: int = 1, broker_kills: bool = False,
        flags: tuple[str, ...] = ()) -> dict[str, object]:
    """Run the campaign; its figures. Raises `AssertionError` when a promise is broken."""
    chance = random.Random(seed)
    verdicts: Counter[str] = Counter()
    seen: list[tuple[int, str, object]] = []
    with Cluster(folder, *flags) as cluster:
        workers = [
            subprocess.Popen([sys.executable, "-c", _WORKER, cluster.url, f"k{i}",
                              str(folder / f"acks-{i}")])
            for i in range(clients)
        ]
        try:
            watching = ckptmesh.connect(cluster.url, timeout=120)
            with watching.watch("", since=0) as events:
                for _ in range(rounds):
                    until = time.monotonic() + chance.uniform(0.02, 0.4)
                    while (left := until - time.monotonic()) > 0:
                        event = events.get(timeout=left)
                        if event is not None:
                            seen.append((event.revision, event.key, event.checkpoint.value))
                    cluster.kill(cluster.store)
                    report = verify(str(cluster.data))
                    verdicts[report.verdict] += 1
                    if broker_kills and chance.random() < 0.3:
                        cluster.kill(cluster.broker)
                        cluster.start_broker()
                    cluster.start_store()
                for worker in workers:
                    worker.kill()
                    worker.wait()
                head = watching.status()["revision"]
                while not seen or seen[-1][0] < head:  # a dead worker's last request may follow
                    event = events.get(timeout=20)
                    assert event is not None, f"the watch stopped at {seen[-1:]}; head {head}"
                    seen.append((event.revision, event.key, event.checkpoint.value))
            seen = [event for event in seen if event[0] <= head]
            final = {f"k{i}": watching.value(f"k{i}", 0, at=head) for i in range(clients)}
            watching.close()
        finally:
            for worker in workers:
                worker.kill()
                worker.wait()
        cluster.stop(cluster.store)
    return _judge(folder, clients, rounds, seen, final, verdicts)


def _judge(folder: Path, clients: int, rounds: int, seen: list[tuple[int, str, object]],
           final: dict[str, object], verdicts: Counter[str]) -> dict[str, object]:
    revisions = [revision for revision, _, _ in seen]
    assert revisions == list(range(1, len(revisions) + 1)), "a watcher missed or repeated one"
    committed = {(revision, key): value for revision, key, value in seen}
    acknowledged = 0
    for i in range(clients):
        counts = [value for _, key, value in seen if key == f"k{i}"]
        assert counts == list(range(1, len(counts) + 1)), f"k{i} was applied twice or lost"
        assert final[f"k{i}"] == len(counts)
        acks = folder / f"acks-{i}"
        for line in acks.read_text().splitlines() if acks.exists() else ():
            revision, count = map(int, line.split())
            assert committed.get((revision, f"k{i}")) == count, f"acknowledged, lost: {line}"
            acknowledged += 1
    assert set(verdicts) <= {"CLEAN", "TORN"}, verdicts
    return {"rounds": rounds, "clients": clients, "revisions": len(revisions),
            "acknowledged": acknowledged, "lost": 0, "twice": 0, "verdicts": dict(verdicts)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--broker-kills", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        figures = run(Path(folder), args.rounds, args.clients, args.seed, args.broker_kills)
        figures["seconds"] = round(time.monotonic() - started, 1)
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
