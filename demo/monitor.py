"""Shows every commit of every pipeline as it is published, and misses none.

    python -m demo.monitor                  from now on, a line a commit
    python -m demo.monitor --since 0        from the beginning, as far back as the store remembers
    python -m demo.monitor --json           the same for programs

Kill the store or the broker while it runs: it finds them again, asks for what was published in the
meantime, and goes on. A publication may be lost on its way; the watch sees that by the revisions.
"""

from __future__ import annotations

import argparse
import json
import sys

import ckptmesh
from demo.pipeline import start


def as_text(event: ckptmesh.Event) -> str:
    """`14:02:07.123  revision    431  orders  at 1,240`"""
    place = event.checkpoint.position if event.checkpoint else None
    what = event.kind if place is None else f"at {place:,}"
    return f"{event.time:%H:%M:%S.%f}  revision {event.revision:6}  {event.key}  {what}"


def as_json(event: ckptmesh.Event) -> str:
    """One object a line: revision, key, kind, position, time."""
    return json.dumps({
        "revision": event.revision, "key": event.key, "kind": event.kind,
        "position": event.checkpoint.position if event.checkpoint else None,
        "time": event.time.isoformat(),
    })


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Show every commit as it is published.",
        epilog="Stop it with Ctrl-C. `--since` with the last revision that it showed goes on "
               "after that one.",
    )
    parser.add_argument("--url", help="the store (default: CKPTMESH_URL, else the local broker)")
    parser.add_argument("--key", default="", help="a key or a prefix (default: everything)")
    parser.add_argument("--since", type=int, help="begin after this revision (default: now)")
    parser.add_argument("--json", action="store_true", help="a JSON object a line")
    given = parser.parse_args()
    show = as_json if given.json else as_text
    with ckptmesh.connect(given.url) as mesh, mesh.watch(given.key, since=given.since) as events:
        print(f"watching {given.key or 'everything'}", file=sys.stderr, flush=True)
        for event in events:
            print(show(event), flush=True)


if __name__ == "__main__":
    start(main)
