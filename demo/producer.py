"""Appends records to a log file, as an application or a collector would.

    python -m demo.producer                                          invented orders, 50 a second
    python -m demo.producer --input /var/log/dpkg.log --log orders.log

A record is a line of JSON: {"seq": 1240, "updated_at": 1763712000000000, "line": "…"}

Rule 1: the log is append-only. What a reader has seen once stays where it was.
Rule 2: `updated_at` (microseconds since 1970) never goes back, even when the clock does.
Rule 3: `seq` counts 1, 2, 3, … Two records may have the same time, so a reader that asks for
        "later than this time" would lose or repeat one of them; "after this number" cannot.
Rule 4: after a crash it goes on where its own log ends. It needs no checkpoint: the log is one.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from collections.abc import Iterable, Iterator
from itertools import count, islice
from pathlib import Path


def lines_of(path: Path) -> Iterator[str]:
    """The lines of any text file. What is not UTF-8 is replaced, not refused."""
    with path.open(encoding="utf-8", errors="replace", newline="\n") as file:
        for line in file:
            yield line.removesuffix("\n")


def invented_orders() -> Iterator[str]:
    """Orders without end. Each follows from its number, so a restart invents the same ones."""
    for number in count(1):
        chance = random.Random(number)
        article = chance.choice(["apples", "bread", "cheese", "dates", "eggs"])
        yield f"{article} {chance.randint(1, 12)} pieces for customer {chance.randint(1, 999)}"


def last_record(log: Path) -> tuple[int, int]:
    """(seq, updated_at) of the last whole record of a log; (0, 0) when there is none.

    A crash may have left half a line at the end. Nobody has taken it, because readers take only
    lines that end; it is cut off here, and written again.
    """
    seq, updated_at, whole = 0, 0, 0
    if log.exists():
        with log.open("r+b") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    file.truncate(whole)
                    break
                whole += len(line)
                record = json.loads(line)
                seq, updated_at = record["seq"], record["updated_at"]
    return seq, updated_at


def append(log: Path, lines: Iterable[str], rate: float) -> int:
    """Append the lines that the log does not have yet, `rate` a second. The last seq."""
    seq, updated_at = last_record(log)
    first, began = seq, time.monotonic()
    with log.open("ab") as file:
        for line in islice(lines, seq, None):
            pause = began + (seq - first) / rate - time.monotonic()
            if pause > 0:
                time.sleep(pause)
            seq += 1
            updated_at = max(updated_at, time.time_ns() // 1000)
            record = {"seq": seq, "updated_at": updated_at, "line": line}
            file.write(json.dumps(record).encode() + b"\n")
            file.flush()  # readers see whole records as they come
        os.fsync(file.fileno())
    return seq


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m demo.producer", description="Append records to a log file.",
        epilog="Next, in other terminals: `ckptmesh up`, then `python -m demo.pipeline`.",
    )
    parser.add_argument("--input", type=Path, help="a text file, a record a line (default: "
                        "orders are invented, without end)")
    parser.add_argument("--log", type=Path, default=Path("orders.log"),
                        help="the log to append to (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=50.0, help="records a second (default: 50)")
    given = parser.parse_args()
    if given.rate <= 0:
        parser.error("--rate must be above 0")

    print(f"appending to {given.log} after record {last_record(given.log)[0]:,}", flush=True)
    lines = lines_of(given.input) if given.input else invented_orders()
    print(f"done: {append(given.log, lines, given.rate):,} records", flush=True)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("stopped")
