"""A staged pipeline that is killed at random moments and started again until it is done.

Each round is one run of three stages in processes of their own, with SIGKILL at moments chosen by
chance, from before the first stage begins to after the last has ended. What shows that nothing is
lost and nothing done that was done:
- the final output, and the file it is about, are those of a run that nobody disturbed;
- each execution of a stage appends a line to a file outside the store. After a kill, no stage is
  executed that the store had as completed at that moment; the stages come in their order; and there
  are no more executions than three and one for each kill.
- one stage commits each of its batches: a batch is done again only where its commit had not come
  through.

    python -m tests.campaign.pipeline_kills --rounds 300
    python -m tests.campaign.pipeline_kills --rounds 100 --processes 3

With three processes each does one stage, has a folder of its own, and waits for the others.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ckptmesh
from tests.cluster import Cluster

NAME, STAGES, BATCHES, TTL = "killed", ("extract", "transform", "load"), 8, 1.5
PATIENCE = 180.0  # seconds in which a round must come to its end


# --- the pipeline, in a process of its own --------------------------------------------------------


def pipeline(log: Path, pause: float) -> ckptmesh.Pipeline:
    """Three stages; every execution, and every batch, is a line in a file."""
    found = ckptmesh.pipeline(NAME, version=1)

    def note(*words: object) -> None:
        with log.open("a") as file:  # one write, appended: kills leave no part of it
            file.write(" ".join(map(str, words)) + "\n")

    @found.stage
    def extract(run: Any) -> list[int]:
        note("begin", "extract")
        time.sleep(pause)
        chance = random.Random(run.inputs["seed"])
        return [chance.randrange(1_000) for _ in range(BATCHES * 50)]

    @found.stage
    def transform(run: Any, rows: list[int]) -> Any:
        note("begin", "transform")
        total: dict[str, int] = {}
        place, total = run.value((0, total))
        for batch in range(place, BATCHES):
            note("batch", batch)
            for row in rows[batch * 50:(batch + 1) * 50]:
                total[str(row % 7)] = total.get(str(row % 7), 0) + row
            time.sleep(pause / BATCHES)
            run.commit((batch + 1, total), batch=batch, records=50, position=batch + 1,
                       head=BATCHES)
        text = json.dumps(total, sort_keys=True).encode()
        return run.save(text, "totals.json") if run.inputs["files"] else text

    @found.stage
    def load(run: Any, totals: Any) -> dict[str, Any]:
        note("begin", "load")
        time.sleep(pause)
        text = totals if isinstance(totals, bytes) else totals.open().read()
        return {"sha256": hashlib.sha256(text).hexdigest(), "total": sum(json.loads(text).values())}

    return found


def work(args: argparse.Namespace) -> None:
    """One process of one round."""
    inputs = {"seed": args.seed, "files": args.storage is not None}
    with ckptmesh.connect(args.url, timeout=60) as mesh:
        pipeline(Path(args.log), args.pause).run(
            mesh, key=args.key, inputs=inputs, only=args.only, storage=args.storage, ttl=TTL,
            wait=None)


# --- the rounds -----------------------------------------------------------------------------------


@dataclass
class Round:
    """What happened in one: `kills` by the stage that the record named, `again` the executions
    beyond the first of each stage."""

    kills: Counter[str] = field(default_factory=Counter)
    again: Counter[str] = field(default_factory=Counter)
    completed_again: int = 0  # executions of a stage that the store had as completed
    equal: bool = False  # whether the output is that of the undisturbed run
    batches_again: int = 0
    ended: int = 0  # processes that ended by themselves with an error
    seconds: float = 0.0


class Game:
    """One round after the other against one store."""

    def __init__(self, url: str, folder: Path, pause: float, processes: int) -> None:
        self.url, self.folder, self.pause, self.processes = url, folder, pause, processes
        self.mesh = ckptmesh.connect(url, timeout=60)

    def spawn(self, key: str, seed: int, only: str | None) -> subprocess.Popen[bytes]:
        """A process that does the run, or a stage of it, in a folder of its own."""
        home = self.folder / key / (only or "all")
        home.mkdir(parents=True, exist_ok=True)
        args = ["--url", self.url, "--key", key, "--seed", str(seed), "--pause", str(self.pause),
                "--log", str(self.folder / f"{key}.log")]
        args += ["--only", only] if only else ["--storage", str(home)]
        env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        with (self.folder / f"{key}.err").open("ab") as err:
            return subprocess.Popen(
                [sys.executable, "-m", "tests.campaign.pipeline_kills", *args], cwd=home, env=env,
                stdin=subprocess.DEVNULL, stdout=err, stderr=err)

    def undisturbed(self, seed: int) -> tuple[dict[str, Any], float]:
        """(the output of a run that nobody kills, how long it takes)."""
        key, began = f"calm-{seed}", time.monotonic()
        children = [self.spawn(key, seed, only) for only in self._parts()]
        assert [child.wait(PATIENCE) for child in children] == [0] * len(children), (
            self.folder / f"{key}.err").read_text()
        took = time.monotonic() - began
        assert self._executed(key) == [f"begin {name}" for name in STAGES]
        return self._output(key), took

    def _parts(self) -> list[str | None]:
        return [None] if self.processes == 1 else list(STAGES)

    def _output(self, key: str) -> dict[str, Any]:
        record = self.mesh.runs(NAME).get(key)
        assert record is not None
        assert record.status == "completed", record
        output: dict[str, Any] = self.mesh.value(f"{NAME}/_runs/kept/{key}/load")
        return output

    def _executed(self, key: str) -> list[str]:
        return [line for line in self._lines(key) if line.startswith("begin")]

    def _lines(self, key: str) -> list[str]:
        log = self.folder / f"{key}.log"
        return log.read_text().splitlines() if log.exists() else []

    def play(self, number: int, seed: int, calm: dict[str, Any], typical: float) -> Round:
        """One round. Raises `AssertionError` for whatever should not be."""
        chance, key, found = random.Random(number), f"run-{number}", Round()
        began = time.monotonic()
        children = {only: self.spawn(key, seed, only) for only in self._parts()}
        kills = chance.choice((1, 1, 1, 2, 3))
        try:
            while any(child.poll() != 0 for child in children.values()):
                assert time.monotonic() - began < PATIENCE, f"{key} does not end"
                if kills:
                    only = self._moment(key, chance, children, typical)
                    found.kills += self._kill(key, only, children, seed)
                    kills -= 1
                    continue
                time.sleep(0.02)
                for only, child in children.items():
                    if child.poll() not in (None, 0):
                        found.ended += 1
                        children[only] = self.spawn(key, seed, only)
        finally:
            for child in children.values():
                child.kill()
                child.wait()
        found.seconds = time.monotonic() - began
        self._judge(key, calm, found)
        return found

    def _moment(self, key: str, chance: random.Random,
                children: dict[str | None, subprocess.Popen[bytes]], typical: float) -> str | None:
        """Wait for a random moment; who is to be killed then. Mostly one after the next execution
        has begun, or the one after that or after that, and then mostly the process that is at it;
        else any moment, and any process."""
        anybody = chance.choice(list(children))
        if chance.random() < 0.15:
            time.sleep(chance.uniform(0, typical))
            return anybody
        wanted = len(self._executed(key)) + chance.choice((1, 1, 2, 3))
        while len(self._executed(key)) < wanted:
            if all(child.poll() == 0 for child in children.values()):
                return anybody
            time.sleep(0.005)
        time.sleep(chance.uniform(0, 1.1 * self.pause * (len(STAGES) if len(children) == 1 else 1)))
        at_work = self._executed(key)[-1].split()[1]
        return at_work if at_work in children and chance.random() < 0.8 else anybody

    def _kill(self, key: str, only: str | None,
              children: dict[str | None, subprocess.Popen[bytes]], seed: int) -> Counter[str]:
        """SIGKILL one and start it again; what was executing, by what the store says then."""
        child = children[only]
        if child.poll() == 0:
            return Counter({"(had ended)": 1})
        child.kill()
        child.wait()
        record = self.mesh.runs(NAME).get(key)
        done = () if record is None else record.completed
        with (self.folder / f"{key}.log").open("a") as file:
            file.write(f"killed {','.join(done)}\n")
        children[only] = self.spawn(key, seed, only)
        return Counter({"(before)" if record is None else record.stage or (
            "(after)" if record.status == "completed" else "(between)"): 1})

    def _judge(self, key: str, calm: dict[str, Any], found: Round) -> None:
        found.equal = self._output(key) == calm
        lines, completed, begun = self._lines(key), set[str](), list[str]()
        for line in lines:
            word, _, what = line.partition(" ")
            if word == "killed":
                completed |= set(filter(None, what.split(",")))
            elif word == "begin":
                found.completed_again += what in completed
                begun.append(what)
        assert begun == sorted(begun, key=STAGES.index), f"{key}: out of order: {begun}"
        assert set(begun) == set(STAGES)
        killed = sum(line.startswith("killed") for line in lines)
        assert len(begun) <= len(STAGES) + killed + found.ended, f"{key}: {begun}"
        found.again = Counter(begun) - Counter(STAGES)
        batches = Counter(line for line in lines if line.startswith("batch"))
        assert len(batches) == BATCHES
        found.batches_again = sum(batches.values()) - BATCHES
        assert found.batches_again <= found.again["transform"], f"{key}: {batches}"


def run(folder: Path, rounds: int = 300, processes: int = 1, pause: float = 0.15, at_once: int = 4,
        seed: int = 1) -> dict[str, Any]:
    """The figures of so many rounds, `at_once` of them side by side."""
    began = time.monotonic()
    with Cluster(folder) as cluster:
        game = Game(cluster.url, folder, pause, processes)
        calm, typical = game.undisturbed(seed)
        with game.mesh, ThreadPoolExecutor(at_once) as pool:
            played = list(pool.map(lambda number: game.play(number, seed, calm, typical),
                                   range(rounds)))
            figures = game.mesh.runs(NAME).statistics()
    kills, again = Counter[str](), Counter[str]()
    for each in played:
        kills += each.kills
        again += each.again
    equal, completed_again = sum(each.equal for each in played), sum(
        each.completed_again for each in played)
    assert equal == rounds, f"{rounds - equal} outputs differ"
    assert completed_again == 0, f"{completed_again} completed stages were executed again"
    return {
        "rounds": rounds, "processes": processes, "equal_outputs": equal,
        "kills": sum(kills.values()) - kills["(had ended)"],
        "killed_in": dict(sorted(kills.items())), "executed_again": dict(sorted(again.items())),
        "completed_stages_executed_again": completed_again, "batches_again": sum(
            each.batches_again for each in played),
        "processes_ended_with_an_error": sum(each.ended for each in played),
        "resumes": figures.resumes, "resume_rate": figures.resume_rate,
        "round_seconds": round(statistics.fmean(each.seconds for each in played), 2),
        "seconds": round(time.monotonic() - began, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--processes", type=int, choices=(1, 3), default=1)
    parser.add_argument("--at-once", type=int, default=4)
    parser.add_argument("--pause", type=float, default=0.15)
    parser.add_argument("--seed", type=int, default=1)
    for name in ("--url", "--key", "--log", "--only", "--storage"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.url:
        work(args)
        return
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(run(Path(folder), args.rounds, args.processes, args.pause, args.at_once,
                             args.seed)))


if __name__ == "__main__":
    main()
