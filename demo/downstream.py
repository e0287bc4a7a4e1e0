"""A second pipeline, which starts whenever the first one has committed.

    python -m demo.downstream       follows `orders`, reads totals.db, writes sizes.db

It sorts the records by their length. The rules are those of `demo/pipeline.py`; new is only what
wakes it up:

Rule 1: it waits for the publication of the first one's commits (a watch), and asks nobody every
        second whether there is something to do.
Rule 2: what it may read ends at the position that was committed. The first pipeline commits after
        its transaction, so up to there its results are complete.
Rule 3: first the watch, then one look at what stands there already. The other way round, a commit
        between the two would be seen by neither.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path

import ckptmesh
from demo.pipeline import Place, Row, Sink, arguments, commit, resume, start


def size_class(size: int) -> str:
    """A record of 47 characters is among those from 40 to 59."""
    least = size // 20 * 20
    return f"{least}-{least + 19}"


def results_after(source: sqlite3.Connection, seq: int, position: int, limit: int) -> list[Row]:
    """At most `limit` results of the first pipeline after `seq`, up to the committed position."""
    found = source.execute(
        "SELECT seq, name, size FROM ledger WHERE seq > ? AND seq <= ? ORDER BY seq LIMIT ?",
        (seq, position, limit),
    )
    return [Row(*row) for row in found]


def commits_of(mesh: ckptmesh.Client, key: str, events: Iterable[ckptmesh.Event],
               ) -> Iterator[ckptmesh.Checkpoint]:
    """What is committed under a key: first what stands there, then each commit as it comes."""
    if standing := mesh.get(key):
        yield standing
    for event in events:
        if event.key == key and event.checkpoint:
            yield event.checkpoint


def run(mesh: ckptmesh.Client, follow: str, key: str, source: sqlite3.Connection, sink: Sink,
        batch: int) -> None:
    """Follow the checkpoint `follow`: for each of its commits, work up to the same position."""
    with mesh.watch(follow) as events:
        place, checkpoint = resume(mesh, key, sink)
        for upstream in commits_of(mesh, follow, events):
            position = upstream.position or 0
            while place.seq < position:
                results = results_after(source, place.seq, position, batch)
                if not results:
                    raise SystemExit(f"{follow} is committed up to {position:,}, but the results "
                                     f"end at {place.seq:,}: is this the right --source?")
                place, before = Place(seq=results[-1].seq), place
                sink.add([Row(seq, size_class(size), size) for seq, _, size in results],
                         before, place)
                checkpoint = commit(mesh, key, place, checkpoint, sources=[upstream])


def main() -> None:
    parser = arguments("Sort the results of the first pipeline by size, as they are committed.")
    parser.add_argument("--follow", default="orders",
                        help="the checkpoint to follow (default: orders)")
    parser.add_argument("--key", default="sizes", help="of its own checkpoint (default: sizes)")
    parser.add_argument("--source", type=Path, default=Path("totals.db"),
                        help="the first pipeline's SQLite file (default: %(default)s)")
    parser.add_argument("--sink", type=Path, default=Path("sizes.db"),
                        help="the SQLite file for the results (default: %(default)s)")
    given = parser.parse_args()
    source = sqlite3.connect(given.source, timeout=10)
    source.execute("PRAGMA query_only = ON")  # it is not ours
    with ckptmesh.connect(given.url) as mesh:
        run(mesh, given.follow, given.key, source, Sink(given.sink), given.batch)


if __name__ == "__main__":
    start(main)
