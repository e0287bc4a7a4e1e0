"""Adds up the records of a log in SQLite, each exactly once, whatever is killed and when.

    python -m demo.pipeline                         follows orders.log, writes totals.db
    python -m demo.pipeline --log my.log --sink my.db --key my-pipeline

For each word that begins a record: how many records, how many characters. What makes it exact:

Rule 1: the results and the place reached are written in ONE transaction of the sink. So the sink
        itself always knows what it holds; nothing is counted without the place moving along.
Rule 2: the checkpoint is committed only after that transaction, never before. A crash between the
        two leaves the checkpoint behind the sink, which the next start sees and mends (`resume`).
Rule 3: both are conditional on what was read before: the transaction on the sink's place, the
        commit by `expect=`. A worker that was replaced while it slept can harm neither.
Rule 4: errors are not handled here. The process ends, is started again, and `resume` finds out.
        There is one way to begin, so it is the way that every crash has tested.

Why a checkpoint, when the sink knows the place? Everybody else reads it: the next pipeline starts
when it is published, people see how far things are, and it has history. And not every sink can
keep a place; this is then the only one, and results must be such that a repetition does no harm.
"""

from __future__ import annotations

import argparse
import json
import signal
import sqlite3
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ckptmesh

POLL = 0.05  # seconds between two looks at a log that has nothing new


class Place(NamedTuple):
    """How far a pipeline is. `seq` decides; `offset` saves reading the log from its start."""

    seq: int = 0
    offset: int = 0
    updated_at: int = 0


class Row(NamedTuple):
    """One result: record `seq` adds one record and `size` characters to the total of `name`."""

    seq: int
    name: str
    size: int


Checkpoint = ckptmesh.Checkpoint | ckptmesh.Receipt | None  # what `expect=` compares with

# --- reading -----------------------------------------------------------------------------------


def read_after(log: Path, place: Place, limit: int) -> tuple[list[dict[str, Any]], Place]:
    """At most `limit` records newer than the place, and the place after them."""
    found: list[dict[str, Any]] = []
    seq, offset, updated_at = place
    if not log.exists():
        return found, place
    with log.open("rb") as file:
        file.seek(offset)
        for line in file:
            if len(found) == limit or not line.endswith(b"\n"):  # half written: taken next time
                break
            record = json.loads(line)
            offset += len(line)
            if record["seq"] > seq:
                seq, updated_at = record["seq"], record["updated_at"]
                found.append(record)
    return found, Place(seq, offset, updated_at)


def first_word(line: str) -> str:
    """The first word without a digit, which leaves out dates, times and numbers."""
    for word in line.split():
        if not any(letter.isdecimal() for letter in word):
            return word
    return "-"


# --- writing -----------------------------------------------------------------------------------


class Overtaken(Exception):
    """Another worker has written to this sink since this one last did."""


class Sink:
    """Totals, a ledger and the place that they stand at, in one SQLite file.

    The ledger has a row for each record that was counted. It is there for the proof: with the
    totals alone, one lost and one doubled record could look right.
    """

    def __init__(self, path: Path) -> None:
        self.db = sqlite3.connect(path, timeout=10, isolation_level=None)
        self.db.executescript("""
            PRAGMA journal_mode = WAL;    -- others can read while this writes
            PRAGMA synchronous = FULL;    -- a transaction that has ended survives a power failure;
                                          -- with less, the checkpoint could come to stand ahead
            CREATE TABLE IF NOT EXISTS totals (
                name TEXT PRIMARY KEY, records INTEGER NOT NULL, characters INTEGER NOT NULL);
            CREATE TABLE IF NOT EXISTS ledger (
                seq INTEGER NOT NULL, name TEXT NOT NULL, size INTEGER NOT NULL);
            CREATE INDEX IF NOT EXISTS ledger_by_seq ON ledger (seq);
            CREATE TABLE IF NOT EXISTS place (
                only INTEGER PRIMARY KEY CHECK (only = 1),
                seq INTEGER NOT NULL, "offset" INTEGER NOT NULL, updated_at INTEGER NOT NULL);
        """)

    def place(self) -> Place:
        """How far the results in this sink reach."""
        row = self.db.execute('SELECT seq, "offset", updated_at FROM place').fetchone()
        return Place(*row) if row else Place()

    def add(self, rows: list[Row], before: Place, after: Place) -> None:
        """Results and place, both or neither. Raises `Overtaken` unless the place is `before`."""
        with self.db:  # ends the transaction: commits, or rolls back when something is raised
            self.db.execute("BEGIN IMMEDIATE")
            if (found := self.place()) != before:
                raise Overtaken(f"the sink is at record {found.seq:,}, expected {before.seq:,}: "
                                "another worker uses it")
            self.count(rows)
            self.db.execute("INSERT OR REPLACE INTO place VALUES (1, ?, ?, ?)", after)

    def count(self, rows: list[Row]) -> None:
        """Add results, within a transaction."""
        self.db.executemany("INSERT INTO ledger VALUES (?, ?, ?)", rows)
        self.db.executemany(
            "INSERT INTO totals VALUES (?, 1, ?) ON CONFLICT (name) DO UPDATE SET "
            "records = records + 1, characters = characters + excluded.characters",
            [(row.name, row.size) for row in rows],
        )

    def close(self) -> None:
        self.db.close()


# --- keeping the place -------------------------------------------------------------------------


def commit(mesh: ckptmesh.Client, key: str, place: Place, expect: Checkpoint,
           sources: Sequence[ckptmesh.Checkpoint] = ()) -> ckptmesh.Receipt:
    """Commit a place, if nobody else has since `expect` was read (None: there was none).

    `sources`: the checkpoints of others that this work was made from, for those who ask later.
    """
    return mesh.commit(key, place._asdict(), position=place.seq, expect=expect, sources=sources)


def resume(mesh: ckptmesh.Client, key: str, sink: Sink) -> tuple[Place, Checkpoint]:
    """Where to go on, and what the next commit has to expect.

    Three cases, and there is no fourth:
      equal             the last batch was finished, or its transaction rolled back. Go on.
      sink ahead        a crash came between the transaction and the commit. The results are in,
                        so the sink is right, and the checkpoint is brought up to it.
      checkpoint ahead  cannot come from a crash (rule 2): the sink was deleted, or an older copy
                        came back. Going on would lose records without a word, so it stops.
    """
    checkpoint: Checkpoint = None
    committed = Place()
    if found := mesh.get(key):
        checkpoint, committed = found, Place(**found.value)
    place = sink.place()
    if place.seq < committed.seq:
        raise SystemExit(
            f"the sink is at record {place.seq:,}, but checkpoint {key!r} at {committed.seq:,}: "
            f"bring the right sink back, or begin again with `ckptmesh state delete {key}`"
        )
    how = f"resumed at record {place.seq:,}" if place.seq else "began at record 0"
    if place.seq > committed.seq:
        checkpoint = commit(mesh, key, place, checkpoint)
        how += f", the sink ahead of the checkpoint at {committed.seq:,}: mended"
    print(how, flush=True)
    return place, checkpoint


def run(mesh: ckptmesh.Client, key: str, log: Path, sink: Sink, batch: int,
        more: Callable[[], bool] = lambda: True) -> None:
    """Read, write, commit, for as long as `more()` says so."""
    place, checkpoint = resume(mesh, key, sink)
    while more():
        records, after = read_after(log, place, batch)
        if not records:
            time.sleep(POLL)
            continue
        rows = [Row(r["seq"], first_word(r["line"]), len(r["line"])) for r in records]
        sink.add(rows, place, after)
        checkpoint = commit(mesh, key, after, checkpoint)
        place = after


# --- the program -------------------------------------------------------------------------------


SAFE = "Kill it as you like (kill -9), start it again: nothing is lost or doubled."


def arguments(description: str, epilog: str = SAFE) -> argparse.ArgumentParser:
    """What all pipelines here can be told."""
    parser = argparse.ArgumentParser(description=description, epilog=epilog)
    parser.add_argument("--url", help="the store (default: CKPTMESH_URL, else the local broker; "
                        "file:./state needs no server)")
    parser.add_argument("--batch", type=int, default=100, help="records a commit (default: 100)")
    return parser


def main() -> None:
    parser = arguments("Add up the records of a log, each exactly once.")
    parser.add_argument("--key", default="orders", help="of the checkpoint (default: orders)")
    parser.add_argument("--log", type=Path, default=Path("orders.log"),
                        help="what `python -m demo.producer` writes (default: %(default)s)")
    parser.add_argument("--sink", type=Path, default=Path("totals.db"),
                        help="the SQLite file for the results (default: %(default)s)")
    given = parser.parse_args()
    with ckptmesh.connect(given.url) as mesh:
        run(mesh, given.key, given.log, Sink(given.sink), given.batch)


def start(program: Callable[[], None]) -> None:
    """Run a program until Ctrl-C or SIGTERM, which both end it in the same, clean way."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        program()
    except KeyboardInterrupt:
        print("stopped", flush=True)
    except (ckptmesh.Error, Overtaken) as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from None


if __name__ == "__main__":
    start(main)
