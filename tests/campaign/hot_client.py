"""One client asks without pause: how much longer the others wait.

Others commit to their own keys one at a time. p99 of theirs is taken over windows without and with
a hot client, alternating in one run, so that the ratio is that of neighbours in time. The hot one
keeps 1,024 commits in flight, or asks for pages of 8 MB all the time, 64 at once.

    python -m tests.campaign.hot_client --rounds 4
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ckptmesh
from tests.cluster import Cluster

_COMMITS = """
import sys, ckptmesh
mesh = ckptmesh.connect(sys.argv[1], timeout=60)
for count in range(10**9):
    mesh.submit(f"hot/{count % 5000}", count)
    if count == 2_000:
        print("hot", flush=True)
"""
_PAGES = """
import asyncio, sys, ckptmesh
async def ask(mesh):
    while True:
        await mesh.scan("big", limit=10_000)
async def main():
    async with await ckptmesh.connect_async(sys.argv[1], timeout=60) as mesh:
        await mesh.scan("big")
        print("hot", flush=True)
        await asyncio.gather(*(ask(mesh) for _ in range(64)))
asyncio.run(main())
"""
HOT = {"commits": _COMMITS, "pages": _PAGES}


class Other(threading.Thread):
    """Commits one at a time. `times`: (when it was answered, seconds it took)."""

    def __init__(self, url: str, key: str) -> None:
        super().__init__(daemon=True)
        self.times: list[tuple[float, float]] = []
        self.ending = False
        self.error: BaseException | None = None
        self._url, self._key = url, key

    def run(self) -> None:
        try:
            with ckptmesh.connect(self._url, timeout=60) as mesh:
                while not self.ending:
                    began = time.monotonic()
                    mesh.commit(self._key, len(self.times))
                    self.times.append((time.monotonic(), time.monotonic() - began))
        except BaseException as error:
            self.error = error


@contextmanager
def _hot(url: str, kind: str) -> Iterator[None]:
    child = subprocess.Popen([sys.executable, "-c", HOT[kind], url], stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == b"hot\n", "the hot client did not start"
        yield
        assert child.poll() is None, "the hot client ended"
    finally:
        child.kill()
        child.communicate()


def run(folder: Path, rounds: int, kind: str = "commits", others: int = 2,
        window: float = 2.0) -> dict[str, object]:
    """Run the campaign; its figures. Raises `AssertionError` when one of the others was refused."""
    with Cluster(folder) as cluster:
        with ckptmesh.connect(cluster.url) as mesh:
            for n in range(8):
                mesh.commit(f"big/{n}", bytes(1_000_000))
        threads = [Other(cluster.url, f"other/{n}") for n in range(others)]
        for thread in threads:
            thread.start()
        windows: list[tuple[str, float, float]] = []
        for _ in range(rounds):
            began = time.monotonic()
            time.sleep(window)
            windows.append(("without", began, time.monotonic()))
            with _hot(cluster.url, kind):
                began = time.monotonic()
                time.sleep(window)
                windows.append(("with", began, time.monotonic()))
            time.sleep(0.3)  # what is left of it
        for thread in threads:
            thread.ending = True
            thread.join(60)
            assert thread.error is None, f"one of the others was refused: {thread.error!r}"
    times: dict[str, list[float]] = {"without": [], "with": []}
    for at, took in (each for thread in threads for each in thread.times):
        for name, began, ended in windows:
            if began <= at - took and at <= ended:
                times[name].append(took)
    p99 = {name: sorted(found)[int(len(found) * 0.99)] for name, found in times.items()}
    return {"hot": kind, "rounds": rounds, "others": others,
            "answers": {name: len(found) for name, found in times.items()},
            "p99_ms": {name: round(p * 1_000, 2) for name, p in p99.items()},
            "worst_ms": round(max(times["with"]) * 1_000, 2),
            "p99_ratio": round(p99["with"] / p99["without"], 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=4)
    args = parser.parse_args()
    for kind in HOT:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(run(Path(folder), args.rounds, kind)), flush=True)


if __name__ == "__main__":
    main()
