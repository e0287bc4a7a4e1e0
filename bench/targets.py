"""What is to be reached, in one place.

Each concerns a row of the report: a workload, one of ours, and what it is compared with ("": the
figure itself is judged). A ratio is ckptmesh's figure divided by the other's of the same round.
"""

from __future__ import annotations

from typing import NamedTuple

from bench.figures import Row

PEERS = ("postgres", "sqlite", "etcd", "nats")


class Target(NamedTuple):
    """`least` must be reached, `reach` is hoped for; where `most` is set, both are upper bounds."""

    workload: str
    ours: str
    against: str
    least: float
    reach: float
    most: bool = False

    def verdict(self, found: float) -> str:
        """"reach", "met" or "missed"."""
        def holds(bound: float) -> bool:
            return found <= bound if self.most else found >= bound

        return "reach" if holds(self.reach) else "met" if holds(self.least) else "missed"


TARGETS = (
    Target("workers-1", "direct", "redis", 1.0, 1.2),
    Target("workers-1", "broker", "redis", 0.75, 0.9),
    Target("workers-16", "broker", "redis", 1.0, 1.3),
    Target("workers-50", "broker", "redis", 1.25, 1.6),
    Target("pipelined", "broker", "redis", 1.25, 2.0),
    Target("batches", "broker", "redis", 5.0, 8.0),
    *(Target(workload, "broker", peer, 2.0, 4.0)
      for workload in ("workers-16", "workers-50") for peer in PEERS),
    Target("embedded", "file", "sqlite", 1.0, 1.3),
    Target("growth", "1,000,000 keys", "1,000 keys", 1.15, 1.05, most=True),
    Target("compaction", "while it runs", "without", 1.5, 1.2, most=True),
    Target("replay", "1,000,000 commits", "", 700_000, 1_500_000),
    Target("start", "1,000,000 keys", "", 3.0, 1.5, most=True),
    Target("memory", "from a snapshot", "", 450, 300, most=True),
    Target("memory", "written live", "", 450, 300, most=True),
    Target("watched", "100 watchers", "no watcher", 0.5, 0.8),
    Target("losses", "100 watchers", "", 0, 0, most=True),
)


def target_of(row: Row) -> Target | None:
    """The target that concerns a row of the report."""
    place = (row.workload, row.subject, row.peer)
    return next((each for each in TARGETS if each[:3] == place), None)
