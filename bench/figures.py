"""Figures of interleaved rounds: medians, spreads, ratios.

Rule 1: a ratio is made of two figures of the same round, and its median is told; never the ratio
        of two medians, since a machine is not equally busy in all rounds.
Rule 2: every round counts; none is left out for being slow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import inf
from statistics import median
from typing import Any, NamedTuple

from ckptmesh.benchmark.driver import Sample

WARM_UP = 0.2  # seconds that each crew runs before the first round


class Spread(NamedTuple):
    """The median of some rounds, the least and the most of them."""

    median: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """Of at least one value."""
    return Spread(median(values), min(values), max(values))


class Result(NamedTuple):
    """What a workload found. `series`: for each subject one figure a round, in `unit`. Each of
    `ours` is compared with each of `against`; where there is none, it stands for itself.
    `remarks`: by subject, a few words for its row. `details`: whatever else is worth keeping."""

    workload: str
    unit: str
    series: dict[str, list[float]]
    ours: tuple[str, ...]
    against: tuple[str, ...] = ()
    remarks: dict[str, str] = {}  # noqa: RUF012  # never changed
    details: dict[str, Any] = {}  # noqa: RUF012

    def ratios(self, ours: str, against: str) -> list[float]:
        """Of each round; infinite for a round in which the other came to nothing at all."""
        return [a / b if b else inf
                for a, b in zip(self.series[ours], self.series[against], strict=True)]


class Row(NamedTuple):
    """One line of the report. `their` and `ratio`: None where a figure stands for itself."""

    workload: str
    unit: str
    subject: str
    peer: str
    own: Spread
    their: Spread | None
    ratio: Spread | None
    remark: str


def rows(result: Result) -> list[Row]:
    """The lines of one workload: each of ours against each of the others."""
    found = []
    for ours in result.ours:
        own = spread(result.series[ours])
        for peer in result.against or ("",):
            their = spread(result.series[peer]) if peer else None
            ratio = spread(result.ratios(ours, peer)) if peer else None
            remark = result.remarks.get(peer, "") or result.remarks.get(ours, "")
            found.append(Row(result.workload, result.unit, ours, peer, own, their, ratio, remark))
    return found


def interleaved(runs: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[Any]]:
    """A B C A B C …: what each of the runs gave in each round."""
    found: dict[str, list[Any]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            found[name].append(run())
    return found


def detail(sample: Sample) -> dict[str, float]:
    """One round of a crew, for the raw figures. Latencies in µs, of steps."""
    return {
        "operations": sample.operations, "seconds": sample.seconds, "rate": sample.rate,
        "steps": sample.latency.count, "p50_us": sample.latency.percentile(50),
        "p99_us": sample.latency.percentile(99), "max_us": sample.latency.maximum,
        "worker_cpu_us_per_operation": sample.cpu / max(1, sample.operations) * 1e6,
    }
