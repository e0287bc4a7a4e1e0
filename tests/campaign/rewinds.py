"""Pipelines rewound to yesterday and back: the state is the same again each time, to the byte.

    python -m tests.campaign.rewinds --rounds 20

A real store that keeps next to nothing in memory, so that yesterday is below its floor and is read
from its files; an export of it too. Each round is three days: on each of them keys are changed,
deleted and made at random, and a staged run is done in parts, so that yesterday ends within it.
Then the pipeline goes back to yesterday, its interrupted run goes on from there and gives what it
gave, and all of it goes forth again to today.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import ckptmesh
from tests.cluster import Cluster

FLAGS = ("--history-revisions", "20", "--segment-bytes", "1MiB", "--snapshot-bytes", "2MiB")
NAME = "nightly"


def pipeline(executed: list[str]) -> ckptmesh.Pipeline:
    """Three stages; each execution is noted."""
    found = ckptmesh.pipeline(NAME)

    @found.stage
    def extract(run: Any) -> list[int]:
        executed.append("extract")
        chance = random.Random(run.inputs)
        return [chance.randrange(1_000) for _ in range(50)]

    @found.stage
    def transform(run: Any, rows: list[int]) -> dict[str, int]:
        executed.append("transform")
        return {"rows": len(rows), "sum": sum(rows)}

    @found.stage
    def load(run: Any, totals: dict[str, int]) -> int:
        executed.append("load")
        return totals["sum"]

    return found


class Game:
    """One store, round after round."""

    def __init__(self, mesh: ckptmesh.Client, keys: int, seed: int) -> None:
        self.mesh, self.keys, self.chance = mesh, keys, random.Random(seed)
        self.executed: list[str] = []
        self.pipeline = pipeline(self.executed)
        self.below = self.changed = self.deleted = 0
        self.seconds: dict[str, list[float]] = {"plan": [], "apply": []}

    def day(self, number: int) -> None:
        """Random changes: a tenth of all keys, a few of them deleted."""
        with self.mesh.transaction() as tx:
            for key in self.chance.sample(range(self.keys), max(1, self.keys // 10)):
                if self.chance.random() < 0.1:
                    tx.delete(f"{NAME}/part/{key:04}")
                else:
                    tx.put(f"{NAME}/part/{key:04}", {"day": number, "noise":
                           self.chance.randbytes(self.chance.randrange(40))}, position=number)
        self.mesh.commit("other/state", number)
        for count in range(25):  # so much happens that memory forgets the day
            self.mesh.commit(f"{NAME}/beat", count)

    def fill(self) -> None:
        """All keys, once."""
        with self.mesh.transaction() as tx:
            for key in range(self.keys):
                tx.put(f"{NAME}/part/{key:04}", {"day": 0}, position=0)

    def round(self, number: int) -> None:
        """Three days, back to the second and forth again. Raises `AssertionError`."""
        key, mesh = f"run-{number}", self.mesh
        self.day(3 * number)
        self.pipeline.run(mesh, key=key, inputs=number, at_most=1)
        self.day(3 * number + 1)
        self.pipeline.run(mesh, key=key, at_most=1)
        yesterday = mesh.digest(NAME)
        self.day(3 * number + 2)
        output = self.pipeline.run(mesh, key=key).output
        today, other = mesh.digest(NAME), mesh.value("other/state")
        assert today.sha256 != yesterday.sha256
        self.carried(yesterday)
        back = self.rewind(yesterday.revision, "bad feed")
        assert mesh.digest(NAME).sha256 == yesterday.sha256, f"round {number}: not yesterday's"
        assert mesh.value("other/state") == other, "another pipeline was touched"
        self.executed.clear()
        assert self.pipeline.run(mesh, key=key).output == output
        assert self.executed == ["load"], self.executed
        self.rewind(back.at, "it was not")
        assert mesh.digest(NAME).sha256 == today.sha256, f"round {number}: not today's"

    def carried(self, then: ckptmesh.StateDigest) -> None:
        """An export as of then is what stood there then."""
        file = io.BytesIO()
        self.mesh.export(file, NAME, at=then.revision)
        with ckptmesh.connect("memory://") as other:
            other.import_(file)
            assert other.digest().sha256 == then.sha256

    def rewind(self, to: int, reason: str) -> ckptmesh.Rewound:
        """Plan it and do it."""
        self.below += to < self.mesh.hello().floor
        began = time.perf_counter()
        plan = self.mesh.rewind(NAME, to=to, reason=reason)
        planned = time.perf_counter()
        done = plan.apply()
        assert done is not None
        self.seconds["plan"].append(planned - began)
        self.seconds["apply"].append(time.perf_counter() - planned)
        self.changed += done.changed
        self.deleted += done.deleted
        return done


def run(folder: Path, *, rounds: int = 20, keys: int = 1_000, seed: int = 1) -> dict[str, Any]:
    """The figures. Raises `AssertionError` where any digest is not what it was."""
    with Cluster(folder, *FLAGS) as cluster, ckptmesh.connect(cluster.url, timeout=60) as mesh:
        game = Game(mesh, keys, seed)
        game.fill()
        for number in range(rounds):
            game.round(number)
        told = mesh.rewinds(NAME)
    assert len(told) == 2 * rounds
    assert game.below >= rounds, f"only {game.below} were to what memory had forgotten"
    return {
        "rounds": rounds, "keys": keys, "rewinds": len(told), "digests equal": 2 * rounds,
        "below the floor": game.below, "changed": game.changed, "deleted": game.deleted,
        **{f"{name} seconds, mean": round(sum(each) / len(each), 3)
           for name, each in game.seconds.items()},
    }


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--keys", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(run(Path(folder), rounds=args.rounds, keys=args.keys, seed=args.seed)))


if __name__ == "__main__":
    main()
