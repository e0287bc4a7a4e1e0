"""Two threads and two processes fight for one lock: never two holders, and each in his turn.

What shows that there were never two:
- a file beside the store, which only the holder writes: it must say that nobody is in, and what
  the count is; two at once would find each other there, or lose a count;
- the store's own count, one fenced commit for each acquisition, without `expect=`: two at once
  would overwrite each other;
- tokens, which grow from holder to holder.

The order: those who wait are served in the order of their tickets' revisions. Hand-over: from the
moment before a holder releases, while others wait, until the next one has it, on one clock
(CLOCK_MONOTONIC is the system's).

    python -m tests.campaign.lock_fights --count 10000
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import ckptmesh
from tests.cluster import Cluster

KEY = "fight"


class Turn(NamedTuple):
    """One acquisition. Times in seconds of the system's monotonic clock."""

    count: int  # how many there were before
    epoch: int
    revision: int  # of the ticket
    asked: float
    had: float
    released: float  # just before it was given back
    commits: int  # what the fenced commit said that the store has counted


def fight(mesh: ckptmesh.Client, count: int, file: Path, who: str) -> list[Turn]:
    """Acquire so often; what each was like."""
    turns = []
    for _ in range(count):
        lock = mesh.lock(KEY, ttl=30, wait=120)
        asked = time.monotonic()
        with lock:
            had = time.monotonic()
            before = _enter(file, who)
            token = lock.token
            commits = mesh.value(KEY, default=0) + 1
            mesh.commit(KEY, commits, guard=lock)
            _leave(file, who, before)
            released = time.monotonic()
        turns.append(Turn(before, *token, asked, had, released, commits))
    return turns


def _enter(file: Path, who: str) -> int:
    """What the file counts; from here on it names who is in."""
    inside, count = file.read_text().split()
    assert inside == "-", f"{who} has the lock, and so has {inside}"
    file.write_text(f"{who} {count}")
    return int(count)


def _leave(file: Path, who: str, before: int) -> None:
    found = file.read_text()
    assert found == f"{who} {before}", f"{who} had the lock, but meanwhile {found!r} was written"
    file.write_text(f"- {before + 1}")


class Thread(threading.Thread):
    """One of those who fight, with a client of its own."""

    def __init__(self, url: str, count: int, file: Path, who: str) -> None:
        super().__init__(daemon=True)
        self.turns: list[Turn] = []
        self.error: BaseException | None = None
        self._work = (url, count, file, who)

    def run(self) -> None:
        url, count, file, who = self._work
        try:
            with ckptmesh.connect(url, timeout=60) as mesh:
                self.turns = fight(mesh, count, file, who)
        except BaseException as error:
            self.error = error


def run(folder: Path, count: int = 10_000) -> dict[str, Any]:
    """The figures of a fight in which each of four acquires `count / 4` times."""
    file, each = folder / "inside", count // 4
    file.write_text("- 0")
    with Cluster(folder) as cluster:
        began = time.monotonic()
        children = [subprocess.Popen(
            [sys.executable, "-m", "tests.campaign.lock_fights", "--url", cluster.url, "--file",
             str(file), "--count", str(each), "--who", who], stdout=subprocess.PIPE, text=True)
            for who in ("process-1", "process-2")]
        threads = [Thread(cluster.url, each, file, who) for who in ("thread-1", "thread-2")]
        try:
            for thread in threads:
                thread.start()
            parties = [[Turn(*turn) for turn in json.loads(child.communicate()[0] or "[]")]
                       for child in children]
            for thread in threads:
                thread.join(600)
                if thread.error is not None:
                    raise thread.error
                parties.append(thread.turns)
        finally:
            for child in children:
                child.kill()
                child.wait()
        took = time.monotonic() - began
        with ckptmesh.connect(cluster.url) as mesh:
            left = mesh.scan(f"{KEY}/_lock")
            stored = mesh.value(KEY)
    assert not left, f"{len(left)} tickets are left"
    assert file.read_text() == f"- {4 * each}", "the file has lost counts"
    assert stored == 4 * each, f"the store counts {stored} of {4 * each}"
    figures = judge(parties)
    assert figures["two_holders"] == 0, figures
    assert figures["passed_by"] == 0, figures
    assert figures["acquisitions"] == 4 * each, figures
    return {**figures, "seconds": round(took, 1), "per_second": round(4 * each / took)}


def judge(parties: list[list[Turn]]) -> dict[str, Any]:
    """The figures. `two_holders`: turns that began before the one before had ended, or counted the
    same; `passed_by`: those that had asked later than the one after them."""
    turns = sorted((turn for party in parties for turn in party), key=lambda turn: turn.count)
    owner = {turn: number for number, party in enumerate(parties) for turn in party}
    handed, others, two, passed = [], 0, 0, 0
    for before, after in pairwise(turns):
        two += (before.count + 1 != after.count or before.commits + 1 != after.commits
                or before.released > after.had)
        passed += (before.epoch, before.revision) > (after.epoch, after.revision)
        if after.asked < before.released:
            handed.append(after.had - before.released)
            others += owner[before] != owner[after]
    ordered = sorted(handed)
    return {
        "acquisitions": len(turns), "of_each": [len(party) for party in parties],
        "two_holders": two, "passed_by": passed, "handed_over": len(handed), "to_another": others,
        "hand_over_ms": {
            "mean": round(1_000 * statistics.fmean(handed), 2),
            "p50": round(1_000 * ordered[len(ordered) // 2], 2),
            "p99": round(1_000 * ordered[len(ordered) * 99 // 100], 2),
            "worst": round(1_000 * ordered[-1], 2)},
        "wait_ms": round(1_000 * statistics.fmean(turn.had - turn.asked for turn in turns), 2),
        "held_ms": round(1_000 * statistics.fmean(turn.released - turn.had for turn in turns), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    for name in ("--url", "--file", "--who"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.url:
        with ckptmesh.connect(args.url, timeout=60) as mesh:
            print(json.dumps(fight(mesh, args.count, Path(args.file), args.who)))
        return
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(run(Path(folder), args.count)))


if __name__ == "__main__":
    main()
