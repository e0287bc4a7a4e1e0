"""WRONG. The pipeline that most people would write first; `ckptmesh demo --naive` shows the harm.

    python -m demo.naive            takes the same flags as demo.pipeline

Three mistakes, each of which looks harmless:

1. The results are one transaction and the place another, kept elsewhere. A crash between the two
   leaves results whose place is not known: the next start counts them again.
2. The sink does not know its own place, so that nobody can find out afterwards.
3. The commit is blind (no `expect=`). A worker that slept and was replaced sets the place back.

The other order, first the place and then the results, would lose records instead.
"""

from __future__ import annotations

import time
from pathlib import Path

import ckptmesh
from demo.pipeline import POLL, Place, Row, Sink, arguments, first_word, read_after, start


def run(mesh: ckptmesh.Client, key: str, log: Path, sink: Sink, batch: int) -> None:
    """Read, write, commit. Compare with `demo.pipeline.run`."""
    found = mesh.get(key)
    place = Place(**found.value) if found else Place()
    print(f"resumed at record {place.seq:,}" if found else "began at record 0", flush=True)
    while True:
        records, after = read_after(log, place, batch)
        if not records:
            time.sleep(POLL)
            continue
        with sink.db:
            sink.db.execute("BEGIN IMMEDIATE")
            sink.count([Row(r["seq"], first_word(r["line"]), len(r["line"])) for r in records])
        mesh.commit(key, after._asdict(), position=after.seq)
        place = after


def main() -> None:
    parser = arguments("How not to do it: add up the records of a log, some of them twice.",
                       "Kill it (kill -9) a few times, and compare the totals with the input.")
    parser.add_argument("--key", default="orders")
    parser.add_argument("--log", type=Path, default=Path("orders.log"))
    parser.add_argument("--sink", type=Path, default=Path("totals.db"))
    given = parser.parse_args()
    with ckptmesh.connect(given.url) as mesh:
        run(mesh, given.key, given.log, Sink(given.sink), given.batch)


if __name__ == "__main__":
    start(main)
