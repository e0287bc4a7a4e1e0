"""Counters and latencies in bounded memory.

Rule 1: nothing here reads a clock; durations are handed in.
Rule 2: memory does not grow with use: a histogram has a fixed number of buckets.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

_PARTS = 8  # buckets an octave: a percentile is at most one eighth too high
_BUCKETS = _PARTS * 62


class Histogram:
    """How whole numbers from 0 up are spread: exact up to 15, then eight buckets an octave.

    For latencies in microseconds, sizes of batches, and the like. About 4 KB.
    """

    __slots__ = ("_buckets", "count", "maximum", "total")

    def __init__(self) -> None:
        self._buckets: list[int] = []  # grows to the largest seen, at most `_BUCKETS`
        self.count = 0
        self.total = 0
        self.maximum = 0

    def add(self, value: int) -> None:
        """Count one value; below 0 counts as 0."""
        if value < 2 * _PARTS:
            value = index = max(0, value)
        else:
            index = _bucket_of(value)
        try:
            self._buckets[index] += 1
        except IndexError:
            self._buckets.extend([0] * (index - len(self._buckets)))
            self._buckets.append(1)
        self.count += 1
        self.total += value
        if value > self.maximum:
            self.maximum = value

    def percentile(self, percent: float) -> int:
        """The value that `percent` (0 to 100) of those counted do not exceed; 0 when empty.

        It is the upper end of a bucket, so at most 12.5 % above the true one.
        """
        wanted = max(1, -(-self.count * percent // 100))
        passed = 0
        for index, found in enumerate(self._buckets):
            passed += found
            if passed >= wanted:
                return min(_top_of(index), self.maximum)
        return 0

    @property
    def mean(self) -> float:
        """The exact mean; 0 when empty."""
        return self.total / self.count if self.count else 0.0


def _bucket_of(value: int) -> int:
    if value < 2 * _PARTS:
        return value
    octave = value.bit_length() - 4
    index = (octave << 3) + (value >> octave)
    return index if index < _BUCKETS else _BUCKETS - 1


def _top_of(index: int) -> int:
    if index < 2 * _PARTS:
        return index
    octave = (index >> 3) - 1
    return (((index & 7) + _PARTS + 1) << octave) - 1


class OperationStats:
    """What a client has done: operations by kind with latencies, errors by name, hits, bytes."""

    def __init__(self) -> None:
        self._latency: dict[str, Histogram] = {}
        self._failed: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.hits = 0
        self.misses = 0
        self.bytes_in = 0
        self.bytes_out = 0

    def add(self, kind: str, seconds: float, error: BaseException | None) -> None:
        """One operation came to its end, well or with an error."""
        latency = self._latency.get(kind)
        if latency is None:
            latency = self._latency[kind] = Histogram()
        latency.add(round(seconds * 1_000_000))
        if error is not None:
            self._failed[kind] += 1
            self.errors[type(error).__name__] += 1

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, for `stats()`. Latencies in milliseconds."""
        return {
            "operations": {
                kind: {
                    "count": latency.count,
                    "errors": self._failed[kind],
                    "mean_ms": round(latency.mean / 1_000, 3),
                    "p50_ms": latency.percentile(50) / 1_000,
                    "p99_ms": latency.percentile(99) / 1_000,
                    "max_ms": latency.maximum / 1_000,
                }
                for kind, latency in sorted(self._latency.items())
            },
            "hits": self.hits,
            "misses": self.misses,
            "errors": dict(self.errors),
            "bytes_in": self.bytes_in,
            "bytes_out": self.bytes_out,
        }
