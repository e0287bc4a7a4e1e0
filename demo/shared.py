"""Adds up the records of many logs, each exactly once, shared by as many workers as you start.

    ckptmesh up &                                   a mesh, since workers are processes
    python -m demo.shared                           one worker; start ten, here and elsewhere
    python -m demo.shared --chaos --seconds 30      eight of them, killed and frozen at random

Partition 7 has the log `feed/7.log` and the results `sums/7.db`. `demo.pipeline` says how results
and checkpoint are kept together; here a worker does that for each partition that it has, in turn.

A worker that was frozen may wake when another has its partition. Two things stop it: the sink,
whose place has moved on (`Overtaken`), and the store, which refuses its commit (`LeaseLost`).
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import ckptmesh
from demo.pipeline import Overtaken, Row, Sink, arguments, first_word, read_after

PIPELINE = "shared"


def turn(part: ckptmesh.Part, folder: Path, batch: int) -> None:
    """Do what is new in one partition."""
    sink = Sink(folder / "sums" / f"{part.name}.db")
    try:
        place = sink.place()
        if place.seq > part.value(default=0):  # a crash came between sink and commit
            part.commit(place.seq, position=place.seq)
        while not part.wanted:
            records, after = read_after(folder / "feed" / f"{part.name}.log", place, batch)
            if not records:
                break
            rows = [Row(r["seq"], first_word(r["line"]), len(r["line"])) for r in records]
            sink.add(rows, place, after)
            part.commit(after.seq, position=after.seq)
            place = after
    except Overtaken:
        pass  # this worker has lost the partition, and does not know it yet
    finally:
        sink.close()


def work(url: str | None, folder: Path, partitions: int, batch: int, ttl: float) -> None:
    """One worker, until SIGTERM."""
    (folder / "sums").mkdir(parents=True, exist_ok=True)
    with (ckptmesh.connect(url) as mesh,
          mesh.worker(PIPELINE, partitions=partitions, ttl=ttl, idle=0.2) as worker):
        print(f"{worker.name} began", flush=True)
        worker.run(lambda part: turn(part, folder, batch))


# --- chaos -------------------------------------------------------------------------------------


def chaos(url: str | None, folder: Path, workers: int, partitions: int, seconds: float, ttl: float,
          seed: int = 0) -> dict[str, int]:
    """Feed the logs while workers are killed and frozen; what became of it. Raises
    `AssertionError` where a record was lost or doubled."""
    chance, command = random.Random(seed), [
        sys.executable, "-m", "demo.shared", "--folder", str(folder), "--partitions",
        str(partitions), "--ttl", str(ttl), *(["--url", url] if url else [])]
    (folder / "feed").mkdir(parents=True, exist_ok=True)
    made = dict.fromkeys(range(partitions), 0)
    crew = [_start(command) for _ in range(workers)]
    frozen: dict[int, float] = {}  # a worker's number, and when it goes on
    kills = freezes = 0
    try:
        end = time.monotonic() + seconds
        while (now := time.monotonic()) < end:
            for partition in made:
                made[partition] += _feed(folder, partition, made[partition], chance)
            for number in [each for each, when in frozen.items() if now >= when]:
                del frozen[number]
                crew[number].send_signal(signal.SIGCONT)
            number = chance.randrange(workers)
            if number not in frozen and chance.random() < 0.5:
                kills += 1
                crew[number].kill()
                crew[number].wait()
                crew[number] = _start(command)
            elif number not in frozen:
                freezes += 1
                frozen[number] = now + 2 * ttl
                crew[number].send_signal(signal.SIGSTOP)
            time.sleep(0.5)
        for child in crew:
            child.send_signal(signal.SIGCONT)
        _wait_for_all(url, made)
    finally:
        for child in crew:
            child.terminate()
            child.send_signal(signal.SIGCONT)
        for child in crew:
            child.wait(60)
    for partition, count in made.items():
        _check(folder, partition, count)
    return {"partitions": partitions, "workers": workers, "kills": kills, "freezes": freezes,
            "records": sum(made.values())}


def _start(command: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


def _feed(folder: Path, partition: int, made: int, chance: random.Random) -> int:
    """Append some records to a log; how many."""
    count = chance.randrange(20)
    with (folder / "feed" / f"{partition}.log").open("a") as file:
        for seq in range(made + 1, made + count + 1):
            file.write(json.dumps({"seq": seq, "line": f"{chance.choice('abc')} {seq}",
                                   "updated_at": seq}) + "\n")
    return count


def _wait_for_all(url: str | None, made: dict[int, int]) -> None:
    """Until every partition stands at the end of its log."""
    with ckptmesh.connect(url) as mesh:
        end = time.monotonic() + 60
        while any(mesh.value(f"{PIPELINE}/partition/{each}", default=0) < count
                  for each, count in made.items()):
            assert time.monotonic() < end, "the workers did not get to the end"
            time.sleep(0.1)


def _check(folder: Path, partition: int, count: int) -> None:
    """Each record once in the ledger, and as many in the totals."""
    sink = Sink(folder / "sums" / f"{partition}.db")
    ledger = [seq for (seq,) in sink.db.execute("SELECT seq FROM ledger ORDER BY seq")]
    assert ledger == [*range(1, count + 1)], f"partition {partition} lost or doubled records"
    (total,) = sink.db.execute("SELECT COALESCE(SUM(records), 0) FROM totals").fetchone()
    assert total == count, f"partition {partition} counts {total} of {count}"
    sink.close()


def main() -> None:
    parser = arguments("Add up the records of many logs, with as many workers as you start.")
    parser.add_argument("--folder", type=Path, default=Path("shared"),
                        help="of the logs and results (default: %(default)s)")
    parser.add_argument("--partitions", type=int, default=32, help="(default: %(default)s)")
    parser.add_argument("--ttl", type=float, default=30, help="seconds (default: %(default)s)")
    parser.add_argument("--chaos", action="store_true",
                        help="feed the logs, start workers, kill and freeze them, and judge")
    parser.add_argument("--workers", type=int, default=8, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=30, help="of chaos (default: %(default)s)")
    given = parser.parse_args()
    if given.chaos:
        print(chaos(given.url, given.folder, given.workers, given.partitions, given.seconds,
                    ttl=2))
    else:
        work(given.url, given.folder, given.partitions, given.batch, given.ttl)


if __name__ == "__main__":
    main()
