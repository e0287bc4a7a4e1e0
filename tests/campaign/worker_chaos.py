"""Workers that share partitions, killed and frozen at random: nothing lost, nothing stale accepted.

    python -m tests.campaign.worker_chaos --seconds 60

Each worker is a process. A record is a number; a turn reads the next few of its partition, writes
them down in a file of its own, and commits the place after them, with position and the worker's
name. Every worker that is killed is started again; one that is frozen, for longer than its TTL, is
let go on. A watcher of the store writes down all commits. The judge:

all       at the end every record of every partition stands in the files, and every partition at
          the end of its records
once      the commits of a partition are a chain: each begins where the one before had ended, as
          read by whoever made it; no hole, and no step back
fenced    no commit stands in the store whose worker was told that it was refused, and none was
          made after another worker had taken the partition

Each attempt to commit has a number of its own in its value. A worker that was refused may take the
partition again and do the same records again: that is another attempt, and counted apart.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import ckptmesh
from ckptmesh.features.locks import LOCKS
from tests.campaign import shares
from tests.campaign.shares import Share, numbers
from tests.cluster import Cluster

PIPELINE = "chaos"
BATCH = 10  # records a commit
_ROUND = 20  # seconds of chaos for one seed in a share
PROMISES = ("records_missing", "broken_chains", "stale_commits_in_the_store",
            "refused_and_yet_stored", "exit_codes")


class Commit(NamedTuple):
    """One commit of a partition's place, as the store tells it."""

    revision: int
    key: str
    start: int  # where its worker had read that the one before ended
    end: int
    worker: str
    lease: str  # the key of the ticket under which it was made
    attempt: str
    time: float  # the store's, in seconds


class Change(NamedTuple):
    """A ticket for a partition that came or went."""

    revision: int
    key: str
    ticket: str
    worker: str  # "" where it went


# --- a worker ---------------------------------------------------------------------------------


def work(url: str, folder: Path, partitions: int, ttl: float) -> None:
    """What each process does, until SIGTERM."""
    tag = f"{os.getpid()}"
    with (ckptmesh.connect(url, timeout=60) as mesh, (folder / f"done-{tag}").open("a") as done,
          (folder / f"refused-{tag}").open("a") as refused,
          mesh.worker(PIPELINE, partitions=partitions, ttl=ttl, idle=0.05) as worker):
        for part in worker:
            records = int((folder / "records").read_text() or 0)
            start, lease = part.value(default={"end": 0})["end"], part.key  # until it is told
            with contextlib.suppress(ckptmesh.LeaseLost):
                lease = part.lease.key
            while start < records:
                end = min(start + BATCH, records)
                for record in range(start, end):
                    done.write(f"{part.name} {record}\n")
                done.flush()
                time.sleep(0.005)
                value = {"start": start, "end": end, "worker": worker.name, "lease": lease,
                         "attempt": secrets.token_hex(8)}
                try:
                    part.commit(value, position=end, head=records)
                except ckptmesh.LeaseLost as error:
                    stalled = error.details.get("stalled", 0)
                    refused.write(json.dumps([part.key, value, stalled, error.message]) + "\n")
                    refused.flush()
                    break
                start = end
                if part.wanted:
                    break


# --- what happens to them ---------------------------------------------------------------------


class Crew:
    """The processes."""

    def __init__(self, url: str, folder: Path, count: int, partitions: int, ttl: float,
                 chance: random.Random) -> None:
        self._command = [sys.executable, "-m", "tests.campaign.worker_chaos", "--url", url,
                         "--folder", str(folder), "--partitions", str(partitions), "--ttl",
                         str(ttl)]
        self._ttl, self._chance, self._errors = ttl, chance, folder / "errors"
        self.children = [self._start() for _ in range(count)]
        self._thaw: dict[int, float] = {}  # places, with when they go on
        self.kills = self.freezes = 0

    def _start(self) -> subprocess.Popen[bytes]:
        with self._errors.open("ab") as errors:
            return subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stderr=errors)

    def harm(self) -> None:
        """Kill one, and start it again; or freeze one."""
        place = self._chance.randrange(len(self.children))
        if place in self._thaw:
            return
        child = self.children[place]
        if self._chance.random() < 0.5:
            child.kill()
            child.wait()
            self.children[place] = self._start()
            self.kills += 1
        else:
            child.send_signal(signal.SIGSTOP)
            self._thaw[place] = time.monotonic() + self._ttl * self._chance.uniform(1.5, 3)
            self.freezes += 1

    def mend(self, everyone: bool = False) -> None:
        """Let those go on whose time it is. Nobody may have ended by himself."""
        for place, when in [*self._thaw.items()]:
            if everyone or time.monotonic() >= when:
                del self._thaw[place]
                self.children[place].send_signal(signal.SIGCONT)
        for child in self.children:
            if child.poll() is not None:
                raise AssertionError(f"a worker ended by itself with {child.returncode}: "
                                     f"{self._errors.read_text()[-2000:]}")

    def end(self) -> list[int | None]:
        """SIGTERM for all; their exit codes."""
        self.mend(everyone=True)
        for child in self.children:
            child.terminate()
        return [child.wait(60) for child in self.children]

    def kill(self) -> None:
        for child in self.children:
            child.kill()
            child.wait()


class Witness(threading.Thread):
    """Writes down what the store tells."""

    def __init__(self, mesh: ckptmesh.Client) -> None:
        super().__init__(daemon=True)
        self._watch = mesh.watch(PIPELINE)
        self.commits: list[Commit] = []
        self.changes: list[Change] = []
        self.seen = 0

    def run(self) -> None:
        for event in self._watch:
            found, parts = event.checkpoint, event.key.split("/")
            if parts[1] == "partition" and found is not None:
                self.commits.append(Commit(event.revision, event.key, found.value["start"],
                                           found.value["end"], found.value["worker"],
                                           found.value["lease"], found.value["attempt"],
                                           event.micros / 1e6))
            elif parts[1] == LOCKS:
                key = f"{PIPELINE}/partition/{parts[3]}"
                self.changes.append(Change(event.revision, key, event.key,
                                           found.value["holder"] if found else ""))
            self.seen = event.revision

    def close(self) -> None:
        self._watch.close()


# --- the judge --------------------------------------------------------------------------------


def broken_chains(commits: Iterable[Commit]) -> int:
    """Commits that do not begin where the one before had ended."""
    chains: dict[str, list[Commit]] = {}
    for each in commits:
        chains.setdefault(each.key, []).append(each)
    return sum((chain[0].start != 0) + sum(before.end != after.start or after.end <= after.start
                                           for before, after in pairwise(chain))
               for chain in chains.values())


def stale_commits(commits: Iterable[Commit], changes: Iterable[Change]) -> int:
    """Commits by who was not the first in the queue for the partition at that revision."""
    queues: dict[str, dict[str, str]] = {}
    found = 0
    for each in sorted([*commits, *changes], key=lambda one: one.revision):
        queue = queues.setdefault(each.key, {})
        if isinstance(each, Commit):
            found += next(iter(queue.items()), ("", "")) != (each.lease, each.worker)
        elif each.worker:
            queue[each.ticket] = each.worker
        else:
            queue.pop(each.ticket, None)
    return found


def idle_times(commits: Iterable[Commit]) -> list[float]:
    """Seconds between two commits of each partition."""
    times: dict[str, list[float]] = {}
    for each in commits:
        times.setdefault(each.key, []).append(each.time)
    return sorted(after - before for chain in times.values() for before, after in pairwise(chain))


def missing(folder: Path, partitions: int, records: int) -> int:
    """Records that nobody has written down."""
    done: set[str] = set()
    for file in folder.glob("done-*"):
        lines = file.read_text().split("\n")
        done.update(lines[:-1])  # the last may be half a line of one that was killed
    return sum(f"{part} {record}" not in done for part in range(partitions)
               for record in range(records))


def refusals(folder: Path) -> list[Any]:
    """(key, value, seconds of the stall, message) of each commit that was refused."""
    return [json.loads(line) for file in folder.glob("refused-*")
            for line in file.read_text().split("\n")[:-1]]


def refused_attempts(commits: Iterable[Commit], refused: Iterable[Any]) -> tuple[int, int]:
    """Of the attempts that were refused, how many stand in the store all the same; and after how
    many the same worker has done the same again, in another attempt."""
    stored = {each.attempt: (each.key, each.start, each.end, each.worker) for each in commits}
    told = {value["attempt"]: (key, value["start"], value["end"], value["worker"])
            for key, value, *_ in refused}
    done = {*stored.values()}
    return len(stored.keys() & told.keys()), sum(
        attempt not in stored and what in done for attempt, what in told.items())


def run(folder: Path, seconds: float = 60, workers: int = 8, partitions: int = 32,
        ttl: float = 2.0, seed: int = 1, every: float = 0.7, events: Path | None = None
        ) -> dict[str, Any]:
    """The figures. `events`: where to write down all that was seen; elsewhere, if a promise is
    broken."""
    chance, records_file = random.Random(seed), folder / "records"
    records_file.write_text("0")
    with Cluster(folder) as cluster, ckptmesh.connect(cluster.url, timeout=60) as mesh:
        witness = Witness(mesh)
        witness.start()
        crew = Crew(cluster.url, folder, workers, partitions, ttl, chance)
        try:
            _wait(lambda: sum(len(each.partitions) for each in mesh.workers(PIPELINE))
                  == partitions)
            records, began = 0, time.monotonic()
            next_harm = began + every
            while (now := time.monotonic()) < began + seconds:
                records = int((now - began) * 20) + BATCH  # of each partition
                _publish(records_file, records)
                if now >= next_harm:
                    crew.harm()
                    next_harm += every * chance.uniform(0.5, 1.5)
                crew.mend()
                time.sleep(0.05)
            crew.mend(everyone=True)
            settled = time.monotonic()
            _wait(lambda: all(_place(mesh, part) == records for part in range(partitions)))
            caught_up = time.monotonic() - settled
            pids = {child.pid for child in crew.children}
            _wait(lambda: pids <= {each.pid for each in mesh.workers(PIPELINE)})  # none just begins
            codes = crew.end()
            head = mesh.hello().revision
            _wait(lambda: witness.seen >= head)
        finally:
            crew.kill()
            witness.close()
        left = [each.key for front in (LOCKS, "_workers")
                for each in mesh.scan(f"{PIPELINE}/{front}") if each.is_lease]
    refused = refusals(folder)
    accepted, again = refused_attempts(witness.commits, refused)
    idle = idle_times(witness.commits)
    figures = {
        "seconds": seconds, "workers": workers, "partitions": partitions, "ttl": ttl,
        "kills": crew.kills, "freezes": crew.freezes, "commits": len(witness.commits),
        "records_of_each_partition": records,
        "records_missing": missing(folder, partitions, records),
        "broken_chains": broken_chains(witness.commits),
        "stale_commits_in_the_store": stale_commits(witness.commits, witness.changes),
        "commits_refused": len(refused), 
        "refused_and_yet_stored": accepted, "refused_and_done_again_by_the_same_worker": again,
        "refusals_that_name_a_stall": sum(stalled > 0 for _, _, stalled, _ in refused),
        "other_refusals": [why for _, _, stalled, why in refused if not stalled][:3],
        "longest_idle_s": round(idle[-1], 2), "idle_p99_s": round(idle[len(idle) * 99 // 100], 2),
        "takeovers": sum(each.worker != "" for each in witness.changes),
        "caught_up_s": round(caught_up, 2), "exit_codes": sorted({*codes} - {0}), "left": left,
    }
    broken = [name for name in PROMISES if figures[name]]
    if broken and events is None:
        events = Path(tempfile.mkdtemp(prefix="worker-chaos-")) / "events"
    if events is not None:
        _write_down(events, witness, refused)
    assert not broken, (broken, figures, events)
    return figures


def _write_down(file: Path, witness: Witness, refused: list[Any]) -> None:
    """All that was seen, so that each commit can be traced."""
    seen = sorted([*witness.commits, *witness.changes], key=lambda each: each.revision)
    with file.open("w") as out:
        out.writelines(f"{each}\n" for each in seen)
        out.writelines(f"refused {each}\n" for each in refused)


def share(start: int, seconds: float) -> Share:
    """Teams with the seeds `start` and on."""
    counts: Counter[str] = Counter()
    findings: list[str] = []
    for seed in numbers(start, seconds):
        with tempfile.TemporaryDirectory() as folder:
            try:
                figures = run(Path(folder), min(seconds, _ROUND), seed=seed)
            except (AssertionError, ckptmesh.Error) as error:
                findings.append(f"seed {seed}: {type(error).__name__}: {error}"[:1_000]
                                + f" — python -m tests.campaign.worker_chaos --seed {seed} "
                                f"--seconds {_ROUND}")
            else:
                counts.update({f"worker_{name}": figures[name] for name in (
                    "kills", "freezes", "commits", "takeovers", "commits_refused", *PROMISES[:-1])})
    return Share(seed + 1, dict(counts), findings)


def _publish(file: Path, records: int) -> None:
    """Replace the count at once, so that nobody reads half of it."""
    other = file.with_suffix(".new")
    other.write_text(str(records))
    other.rename(file)


def _place(mesh: ckptmesh.Client, part: int) -> int:
    found = mesh.value(f"{PIPELINE}/partition/{part}")
    return found["end"] if found else 0


def _wait(true: Any, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "not reached in time"
        time.sleep(0.05)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--partitions", type=int, default=32)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--ttl", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--events", type=Path, help="write down all commits and refusals here")
    for name in ("--url", "--folder"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.url:
        work(args.url, Path(args.folder), args.partitions, args.ttl)
        return
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(run(Path(folder), args.seconds, args.workers, args.partitions, args.ttl,
                             args.seed, events=args.events)))


if __name__ == "__main__":
    if "--start" in sys.argv:
        shares.main(share, __doc__)
    main()
