"""Compaction while clients commit: nothing is refused; how much longer a commit takes meanwhile.

Each client commits as fast as it is answered. p99 is taken over windows without and with a
compaction, alternating in one run, so that the ratio is that of neighbours in time.

    python -m tests.campaign.compaction_load --rounds 4
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import ckptmesh
from tests.cluster import Cluster

_WORKER = """
import sys, time, ckptmesh
url, key, path, seconds = sys.argv[1:]
mesh = ckptmesh.connect(url, timeout=60)
end = time.time() + float(seconds)
with open(path, "w", buffering=1 << 16) as out:
    i = 0
    while time.time() < end:
        i += 1
        started = time.perf_counter()
        mesh.commit(f"{key}/{i % 5000}", {"i": i, "pad": "x" * 80})
        out.write(f"{time.time()} {time.perf_counter() - started}\\n")
"""


def run(folder: Path, rounds: int, clients: int = 8, window: float = 3.0) -> dict[str, object]:
    """Run the campaign; its figures. Raises `AssertionError` when a commit was refused."""
    with Cluster(folder, "--retain", "0", "--snapshot-bytes", "100GiB") as cluster:
        mesh = ckptmesh.connect(cluster.url, timeout=60)
        seconds = rounds * (window + 8) + 3
        workers = [subprocess.Popen([sys.executable, "-c", _WORKER, cluster.url, f"c{i}",
                                     str(folder / f"times-{i}"), str(seconds)])
                   for i in range(clients)]
        time.sleep(2)
        windows: list[tuple[str, float, float]] = []
        sizes = []
        for _ in range(rounds):
            begun = time.time()
            time.sleep(window)
            windows.append(("without", begun, time.time()))
            begun = time.time()
            report = mesh.compact()
            windows.append(("with", begun, time.time()))
            sizes.append({"before": report["bytes_before"], "after": report["bytes_after"],
                          "seconds": round(time.time() - begun, 2)})
        for worker in workers:
            worker.wait()
            assert worker.returncode == 0, "a client was refused"
        refused = mesh.status()["counts"]["refused"]
        assert refused == 0, f"{refused} requests were refused"
        mesh.close()
    times: dict[str, list[float]] = {"with": [], "without": []}
    for i in range(clients):
        for line in (folder / f"times-{i}").read_text().splitlines():
            at, took = map(float, line.split())
            for kind, begun, ended in windows:
                if begun <= at - took and at <= ended:
                    times[kind].append(took)
    p99 = {kind: sorted(found)[int(len(found) * 0.99)] for kind, found in times.items()}
    return {"rounds": rounds, "clients": clients, "commits": sum(map(len, times.values())),
            "p99_ms": {kind: round(p * 1000, 2) for kind, p in p99.items()},
            "p99_ratio": round(p99["with"] / p99["without"], 2), "sizes": sizes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=4)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(run(Path(folder), args.rounds)))


if __name__ == "__main__":
    main()
