"""A three-stage ETL over a real file: a CSV of orders becomes a table of totals in SQLite.

    python -m demo.etl orders.csv totals.db --make 10000        # writes a file to begin with
    python -m demo.etl orders.csv totals.db --crash extract     # kill -9 of itself, halfway
    python -m demo.etl orders.csv totals.db                     # goes on from there

What makes the result exact, wherever it is killed:

1. Each stage begins with what the store has of the stage before, or of its own last batch.
2. `extract` leaves its rows in one file, which has its name only when it is whole. What it had
   written before it was killed it finds again by the place it has committed, and cuts off the rest.
3. `load` replaces the table in one transaction of SQLite, so that to do it twice is to do it once.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import signal
import sqlite3
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import ckptmesh

BATCH = 500  # lines between two checkpoints of `extract`
Crash = Callable[[str], None]


def pipeline(crash: Crash) -> ckptmesh.Pipeline:
    """The stages. `crash(stage)` is called halfway through each."""
    etl = ckptmesh.pipeline("etl", version=1)

    @etl.stage
    def extract(run: ckptmesh.StageRun) -> ckptmesh.FileRef:
        """The good lines of the file, as JSON lines; bad ones are counted and told."""
        done, size = run.value(default=(0, 0))  # lines read, bytes written
        draft = run.folder / "_draft"
        with Path(run.inputs["file"]).open(newline="") as source, draft.open(
                "r+b" if size else "wb") as rows:
            rows.truncate(size)  # what was written after the last commit is written again
            rows.seek(size)
            lines = islice(enumerate(csv.reader(source)), done, None)
            while batch := list(islice(lines, BATCH)):
                good = [row for row in (_row(run, number, line) for number, line in batch) if row]
                rows.write(b"".join(json.dumps(row).encode() + b"\n" for row in good))
                rows.flush()
                os.fsync(rows.fileno())
                done += len(batch)
                run.commit((done, rows.tell()), records=len(good), batch=done // BATCH,
                           position=done, head=run.inputs["lines"])
                if done >= run.inputs["lines"] // 2:
                    crash("extract")
        return run.save(draft, "rows.jsonl")

    @etl.stage
    def transform(run: ckptmesh.StageRun, rows: ckptmesh.FileRef) -> dict[str, dict[str, int]]:
        """Orders and cents by customer."""
        totals: dict[str, dict[str, int]] = {}
        with rows.open() as file:
            for number, line in enumerate(file):
                customer, cents = json.loads(line)
                entry = totals.setdefault(customer, {"orders": 0, "cents": 0})
                entry["orders"] += 1
                entry["cents"] += cents
                if number == run.inputs["lines"] // 2:
                    crash("transform")
            run.report(records=len(totals), bytes=rows.size)
        return totals

    @etl.stage(retries=2, retry_on=sqlite3.OperationalError)
    def load(run: ckptmesh.StageRun, totals: dict[str, dict[str, int]]) -> int:
        """The table, replaced as a whole."""
        with sqlite3.connect(run.inputs["database"]) as database:
            database.execute("DROP TABLE IF EXISTS totals")
            database.execute("CREATE TABLE totals (customer PRIMARY KEY, orders, cents)")
            database.executemany("INSERT INTO totals VALUES (?, ?, ?)", (
                (name, entry["orders"], entry["cents"]) for name, entry in sorted(totals.items())))
            crash("load")
        run.report(records=len(totals))
        return len(totals)

    return etl


def _row(run: ckptmesh.StageRun, number: int, line: list[str]) -> tuple[str, int] | None:
    try:
        customer, cents = line
        return customer, int(cents)
    except ValueError as error:
        run.error(error, id=number, context={"line": line})
        return None


def make(file: Path, lines: int) -> None:
    """A file of orders, some of them broken."""
    chance = random.Random(lines)

    def rows() -> Iterator[list[Any]]:
        for _ in range(lines):
            cents = "?" if chance.random() < 0.001 else chance.randrange(10_000)
            yield [f"customer-{chance.randrange(100):03d}", cents]

    with file.open("w", newline="") as out:
        csv.writer(out).writerows(rows())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("file", type=Path)
    parser.add_argument("database", type=Path)
    parser.add_argument("--make", type=int, metavar="LINES", help="write such a file first")
    parser.add_argument("--crash", choices=("extract", "transform", "load"),
                        help="SIGKILL of this process halfway through the stage")
    parser.add_argument("--ttl", type=float, default=5.0, help="seconds until a dead run is free")
    args = parser.parse_args()
    if args.make:
        make(args.file, args.make)

    def crash(stage: str) -> None:
        if stage == args.crash:
            os.kill(os.getpid(), signal.SIGKILL)

    with args.file.open("rb") as file:
        lines = sum(1 for _ in file)
    inputs = {"file": str(args.file), "lines": lines, "database": str(args.database)}
    with ckptmesh.connect() as mesh:
        result = pipeline(crash).run(
            mesh, key=args.file.name, inputs=inputs, ttl=args.ttl, wait=None,
            storage=args.database.with_suffix(".files"))
    record = result.record
    print(f"{', '.join(result.executed) or 'nothing'} done here; {result.output} customers, "
          f"{record['extract'].records} orders, {record['extract'].failed} bad lines, "
          f"{record.resumes} resumes")


if __name__ == "__main__":
    main()
