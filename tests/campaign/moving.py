"""Many checkpoints move from store to store: how long it takes, and what a killed import leaves.

    python -m tests.campaign.moving --keys 100000 --kills 20

A mesh is filled and exported, and the file is imported into a directory by a process that is killed
at random moments and begun again. Whatever a killed one leaves is a part of the export and nothing
else, and in the end the digests are equal. One that is left in peace gives the times.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ckptmesh
from ckptmesh.features.differences import differences, rows_of
from ckptmesh.features.migrating import migrate
from ckptmesh.flows import run as flow
from tests.cluster import Cluster

PAGE = 1_000


def run(folder: Path, *, keys: int, kills: int, seed: int = 0, longest: float | None = None
        ) -> dict[str, Any]:
    """The figures, in seconds and bytes. `longest`: seconds until a kill, counted from when the
    importing process has begun to write; None: as long as an import takes. Raises `AssertionError`
    where anything is wrong."""
    figures: dict[str, Any] = {"keys": keys}
    with Cluster(folder) as cluster, ckptmesh.connect(cluster.url) as mesh:
        fill(mesh, keys)
        digest = mesh.digest()
        assert digest.keys == keys
        for name in ("state.jsonl", "state.jsonl.gz"):
            file = folder / name
            figures[f"export {name}"] = timed(mesh.export, file)
            figures[f"bytes {name}"] = file.stat().st_size
            with ckptmesh.connect(f"file:{folder}/{name}.store") as other:
                figures[f"import {name}"] = timed(other.import_, file)
                assert other.digest().sha256 == digest.sha256
        with ckptmesh.connect("memory://") as other:
            figures["migrate to memory"] = timed(flow, migrate(mesh, other))
        target = folder / "killed"
        figures["killed"], figures["left a part"] = killed(
            folder / "state.jsonl.gz", target, kills,
            figures["import state.jsonl.gz"] if longest is None else longest,
            random.Random(seed), lambda other: check_part(mesh, other))
        with ckptmesh.connect(f"file:{target}") as other:
            assert other.digest().sha256 == digest.sha256
    figures["digests equal"] = True
    return figures


def fill(mesh: ckptmesh.Client, keys: int) -> None:
    """Checkpoints as loads of files leave them, with positions."""
    for start in range(0, keys, PAGE):
        with mesh.transaction() as tx:
            for number in range(start, min(start + PAGE, keys)):
                tx.put(f"orders/part/{number:06}", {
                    "offset": number * 17, "file": f"2026-11-{number % 30:02}/{number}.parquet",
                    "done": number % 3 == 0}, position=number * 17)


def timed(call: Callable[..., object], *args: object) -> float:
    """Seconds that a call takes."""
    began = time.perf_counter()
    call(*args)
    return round(time.perf_counter() - began, 2)


def killed(file: Path, target: Path, kills: int, longest: float, chance: random.Random,
           check: Callable[[ckptmesh.Client], bool]) -> tuple[int, int]:
    """Import by processes that are killed, and at last by one that is not: how many were, and after
    how many of them some of it stood there, but not all. One that was faster is none of them, and
    begins anew with nothing."""
    command = [sys.executable, "-m", "ckptmesh", "state", "import", "--from", str(file), "--url",
               f"file:{target}"]
    done = parts = 0
    for _ in range(5 * kills):
        if done == kills:
            break
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
            while process.poll() is None and not (target / "MANIFEST").exists():
                time.sleep(0.005)
            try:
                process.wait(chance.uniform(0, longest))
                shutil.rmtree(target)
                continue
            except subprocess.TimeoutExpired:
                process.kill()
                done += 1
        with ckptmesh.connect(f"file:{target}") as other:
            parts += check(other)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return done, parts


def check_part(mesh: ckptmesh.Client, other: ckptmesh.Client) -> bool:
    """Whether a part of the store is there, but not all; it must be nothing but a part."""
    kinds = [each.kind for each in differences(rows_of(mesh), rows_of(other))]
    assert set(kinds) <= {"removed"}, "an import has left something that was not in the file"
    return 0 < len(kinds) < mesh.digest().keys


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=int, default=100_000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(run(Path(folder), keys=args.keys, kills=args.kills, seed=args.seed),
                         indent=2))


if __name__ == "__main__":
    main()
