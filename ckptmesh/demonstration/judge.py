"""The demo's judge: counts the input again, and compares it with what the pipelines have left.

Rule 1: it shares no code with `demo/`, nor with the store: it reads the input, the two SQLite
        files and the lines of the monitor.
Rule 2: every record must stand exactly once in each ledger, and the totals must be those of the
        input. A total alone could hide one lost record behind a doubled one.
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

_WORD = re.compile(r"(?<!\S)[^\s\d]+(?!\S)")  # a word without a digit


@dataclass(frozen=True, slots=True)
class Found:
    """What is wrong with one sink: records lost, records counted more than once (each time more
    counts), rows that stand for no record or for another one."""

    lost: int
    doubled: int
    wrong: int

    @property
    def clean(self) -> bool:
        """Whether every record is there exactly once."""
        return not (self.lost or self.doubled or self.wrong)


@dataclass(frozen=True, slots=True)
class Seen:
    """What the monitor missed of the store's revisions, and what it saw more than once."""

    missed: int
    twice: int

    @property
    def clean(self) -> bool:
        """Whether it saw every revision exactly once."""
        return not (self.missed or self.twice)


def read_lines(path: Path) -> list[str]:
    """The records of a text file, one a line."""
    lines = path.read_bytes().split(b"\n")
    if not lines[-1]:
        lines.pop()  # the end of the last line, not one more
    return [line.decode("utf-8", "replace") for line in lines]


def word_of(line: str) -> str:
    """What `totals.db` counts by."""
    found = _WORD.search(line)
    return found[0] if found else "-"


def size_of(line: str) -> str:
    """What `sizes.db` counts by."""
    least = len(line) - len(line) % 20
    return f"{least}-{least + 19}"


def check_sink(path: Path, lines: list[str], name_of: Callable[[str], str]) -> Found:
    """Compare one SQLite file with the input. Where a table is missing, everything is lost."""
    with closing(sqlite3.connect(path)) as db:
        tables = {name for name, in db.execute("SELECT name FROM sqlite_schema")}
        if not {"ledger", "totals"} <= tables:
            return Found(len(lines), 0, 0)
        ledger = db.execute("SELECT seq, name, size FROM ledger").fetchall()
        totals = {name: (records, size) for name, records, size in
                  db.execute("SELECT name, records, characters FROM totals")}
    times = Counter(seq for seq, _, _ in ledger)
    wrong = sum(1 for seq, name, size in ledger if not 1 <= seq <= len(lines)
                or (name, size) != (name_of(lines[seq - 1]), len(lines[seq - 1])))
    lost = sum(1 for seq in range(1, len(lines) + 1) if not times[seq])
    doubled = sum(count - 1 for count in times.values())

    expected = _totals((name_of(line), len(line)) for line in lines)
    by_name = [totals.get(name, (0, 0))[0] - expected.get(name, (0, 0))[0]
               for name in totals.keys() | expected.keys()]
    lost = max(lost, -sum(less for less in by_name if less < 0))
    doubled = max(doubled, sum(more for more in by_name if more > 0))
    if totals != _totals((name, size) for _, name, size in ledger):
        wrong += 1  # the two tables were written in one transaction, and yet disagree
    return Found(lost, doubled, wrong)


def _totals(rows: Iterable[tuple[str, int]]) -> dict[str, tuple[int, int]]:
    records: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for name, size in rows:
        records[name] += 1
        sizes[name] += size
    return {name: (records[name], sizes[name]) for name in records}


def revisions_seen(path: Path) -> list[int]:
    """The revisions in the lines that the monitor has printed, in their order."""
    found: list[int] = []
    if not path.exists():
        return found
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            if line.startswith("{") and line.endswith("}\n"):
                found.append(int(json.loads(line)["revision"]))
    return found


def check_monitor(path: Path, head: int) -> Seen:
    """Compare what the monitor printed with the revisions from 1 to the head of the store."""
    times = Counter(revisions_seen(path))
    return Seen(missed=sum(1 for revision in range(1, head + 1) if not times[revision]),
                twice=sum(count - 1 for count in times.values()))
