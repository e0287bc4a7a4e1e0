"""kill -9 of the store at random moments under concurrent committing clients.

Each client process commits 1, 2, 3, … to its own key with `expect=`, and writes a line to its own
file after each acknowledged commit. After the last round: every acknowledged revision is in the
history that watchers were given, each count was applied exactly once, in order, and the log's
verdict was CLEAN or TORN every time.

A round ends with the death of a serving store. In a mixed run compactions are asked for all the
time, and some rounds kill more than that: the compactor process under way, the broker, and the
store that starts again, up to three times in a row.

A share is a number of mixed runs of 50 rounds, each on a fresh directory; its numbers are seeds.

    python -m tests.campaign.kill_rounds --rounds 200
    python -m tests.campaign.kill_rounds --start 0 --seconds 600
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import ckptmesh
from ckptmesh.survey import verify
from tests.campaign import shares
from tests.campaign.shares import Share, numbers
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


_COMPACTING = """
import sys, time, ckptmesh
while True:
    try:
        with ckptmesh.connect(sys.argv[1], timeout=120) as mesh:
            while True:
                mesh.compact(retain=0)
                time.sleep(0.2)
    except ckptmesh.Error:  # its process or its store was killed, which is what this is about
        pass
"""
_ROUNDS = 50  # of one run of a share: a longer history would make a round slower
_SMALL = ("--segment-bytes", "1MiB")


class Killer:
    """Kills the processes of a cluster. `kills`: how many of each kind."""

    def __init__(self, cluster: Cluster, chance: random.Random) -> None:
        self.cluster = cluster
        self.chance = chance
        self.kills: Counter[str] = Counter()
        self._takes = 0.3  # seconds of a start, as it was last seen

    def start(self) -> None:
        """Start the store, and let it serve."""
        began = time.monotonic()
        self.cluster.start_store()
        self._takes = time.monotonic() - began

    def store(self) -> str:
        """Kill the store. Returns the verdict on what it leaves behind."""
        assert self.cluster.store is not None
        assert self.cluster.store.poll() is None, "the store ended by itself"
        self.cluster.kill(self.cluster.store)
        self.kills["store"] += 1
        return verify(str(self.cluster.data)).verdict

    def broker(self) -> None:
        self.cluster.kill(self.cluster.broker)
        self.cluster.start_broker()
        self.kills["broker"] += 1

    def starting(self) -> None:
        """Kill the store while it starts; importing its modules takes the first third."""
        for _ in range(self.chance.randint(1, 3)):
            served = self.cluster.kill_while_starting(self._takes * self.chance.uniform(0.3, 1.0))
            self.kills["store" if served else "starting"] += 1

    def compactor(self) -> None:
        """Kill the compactor, if one comes up soon."""
        assert self.cluster.store is not None
        pid = self.cluster.store.pid
        children = Path(f"/proc/{pid}/task/{pid}/children")
        until = time.monotonic() + 0.2
        while not (found := children.read_text().split()):
            if time.monotonic() > until:
                return
            time.sleep(0.005)
        time.sleep(self.chance.uniform(0, 0.15))
        with suppress(ProcessLookupError):  # it has ended
            os.kill(int(found[0]), signal.SIGKILL)
            self.kills["compactor"] += 1


class Worker(NamedTuple):
    """Who keeps the store busy, as processes."""

    script: str
    arguments: tuple[str, ...]

    def start(self, url: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", self.script, url, *self.arguments])


def run(folder: Path, rounds: int, clients: int = 8, seed: int = 1, broker_kills: bool = False,
        flags: tuple[str, ...] = (), mixed: bool = False, until: float = math.inf,
        ) -> dict[str, object]:
    """Run the campaign; its figures. It ends early when `time.monotonic()` is `until`. Raises
    `AssertionError` when a promise is broken."""
    chance = random.Random(seed)
    verdicts: Counter[str] = Counter()
    workers = [Worker(_WORKER, (f"k{i}", str(folder / f"acks-{i}"))) for i in range(clients)]
    if mixed:
        workers.append(Worker(_COMPACTING, ()))
    with Cluster(folder, *flags) as cluster:
        killer = Killer(cluster, chance)
        running = [worker.start(cluster.url) for worker in workers]
        try:
            with ckptmesh.connect(cluster.url, timeout=120) as watching:
                events = _Events(watching)
                while verdicts.total() < rounds and (not verdicts or time.monotonic() < until):
                    events.read(chance.uniform(0.02, 0.3 if mixed else 0.4))
                    if mixed and chance.random() < 0.5:
                        killer.compactor()
                    verdicts[killer.store()] += 1
                    if chance.random() < (0.1 if mixed else 0.3 * broker_kills):
                        killer.broker()
                    if mixed and verdicts.total() % 4 == 0:
                        killer.starting()
                    killer.start()
                _end(running)
                head = events.read_all()
                final = {f"k{i}": watching.value(f"k{i}", 0, at=head) for i in range(clients)}
        finally:
            _end(running)
        cluster.stop(cluster.store)
    figures = _judge(folder, clients, verdicts.total(), events.seen, final, verdicts)
    return {**figures, "kills": dict(killer.kills)}


def _end(workers: list[subprocess.Popen[bytes]]) -> None:
    for worker in workers:
        worker.kill()
        worker.wait()


class _Events:
    """What a watcher of everything is given: (revision, key, value) in `seen`."""

    def __init__(self, mesh: ckptmesh.Client) -> None:
        self.mesh = mesh
        self.events = mesh.watch("", since=0)
        self.seen: list[tuple[int, str, object]] = []

    def _take(self, event: ckptmesh.Event) -> None:
        self.seen.append((event.revision, event.key, event.checkpoint.value))

    def read(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            event = self.events.get(timeout=left)
            if event is not None:
                self._take(event)

    def read_all(self) -> int:
        """Read up to the head and return it. A dead worker's last request may follow it."""
        head = int(self.mesh.status()["revision"])
        while not self.seen or self.seen[-1][0] < head:
            event = self.events.get(timeout=20)
            assert event is not None, f"the watch stopped at {self.seen[-1:]}; head {head}"
            self._take(event)
        self.events.close()
        self.seen = [event for event in self.seen if event[0] <= head]
        return head


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


def share(start: int, seconds: float) -> Share:
    """Mixed runs with the seeds `start` and on; each tenth with segments of the usual size."""
    until = time.monotonic() + seconds
    counts: Counter[str] = Counter()
    findings: list[str] = []
    for seed in numbers(start, seconds):
        with tempfile.TemporaryDirectory() as folder:
            try:
                figures: Any = run(Path(folder), _ROUNDS, seed=seed, mixed=True, until=until,
                                   flags=() if seed % 10 == 9 else _SMALL)
            except (AssertionError, ckptmesh.Error, RuntimeError) as error:
                findings.append(f"seed {seed}: {type(error).__name__}: {error}"[:1_000]
                                + f" — python -m tests.campaign.kill_rounds --start {seed} "
                                "--seconds 60")
            else:
                counts.update({"kill_rounds": figures["rounds"]})
                counts.update({f"kills_{kind}": n for kind, n in figures["kills"].items()})
                counts.update({f"kill_verdicts_{kind}": n
                               for kind, n in figures["verdicts"].items()})
                counts.update({f"kill_{name}": figures[name]
                               for name in ("revisions", "acknowledged", "lost", "twice")})
    return Share(seed + 1, dict(counts), findings)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--broker-kills", action="store_true")
    parser.add_argument("--mixed", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        figures = run(Path(folder), args.rounds, args.clients, args.seed, args.broker_kills,
                      mixed=args.mixed)
        figures["seconds"] = round(time.monotonic() - started, 1)
        print(json.dumps(figures))


if __name__ == "__main__":
    if "--start" in sys.argv:
        shares.main(share, __doc__)
    main()
