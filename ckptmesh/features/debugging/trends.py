"""Whether something grows over the last runs: two plain statistics, told in words.

`slower` asks of every pair of runs whether the later one took longer, and whether more of them did
than chance would make (H. B. Mann, "Nonparametric tests against trend", 1945; M. G. Kendall, "Rank
correlation methods", 1948). How much: the median of the newer half against that of the older.

`worse` asks whether so many of all failures would fall into the newer half by chance (the exact
test of R. A. Fisher, "The design of experiments", 1935).

Rule: with fewer than `FEWEST` runs nothing is said; a trend is called one when chance makes it less
      often than one time in twenty, and nothing below a tenth is called slower or faster.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import comb, erfc, sqrt
from statistics import median
from typing import NamedTuple

FEWEST, MOST = 8, 30
_RARE = 0.05
_SLIGHT = 0.10


class Trend(NamedTuple):
    """`verdict`: "too few runs", "steady", or in which direction it goes; `text`: why, for people;
    `runs`: over how many; `chance`: how often chance alone makes as much, None for too few."""

    verdict: str
    text: str
    runs: int
    chance: float | None


def slower(seconds: Sequence[float]) -> Trend:
    """Durations of runs in the order of their creation; the last `MOST` count."""
    found = list(seconds[-MOST:])
    count = len(found)
    if count < FEWEST:
        return _too_few(count, "completed runs")
    pairs = count * (count - 1) // 2
    longer = sum(found[i] < found[j] for i in range(count) for j in range(i + 1, count))
    shorter = sum(found[i] > found[j] for i in range(count) for j in range(i + 1, count))
    chance = _mann_kendall(longer - shorter, found)
    older, newer = median(found[:count // 2]), median(found[(count + 1) // 2:])
    change = newer / older - 1 if older else float(newer > 0)
    verdict = "steady"
    if chance < _RARE and abs(change) >= _SLIGHT and (change > 0) == (longer > shorter):
        verdict = "slower" if change > 0 else "faster"
    return Trend(verdict, (
        f"of {pairs} pairs among the last {count} completed runs, the later took longer in "
        f"{longer} and less in {shorter}; the median of the newer half is {change:+.0%}; chance "
        f"alone does as much {_share(chance)}"), count, chance)


def _mann_kendall(s: int, found: Sequence[float]) -> float:
    """How often chance makes a balance of pairs at least as far from 0 (normal approximation, with
    its corrections for continuity and for equal values)."""
    count = len(found)

    def part(n: int) -> int:
        return n * (n - 1) * (2 * n + 5)

    variance = (part(count) - sum(map(part, Counter(found).values()))) / 18
    return 1.0 if variance <= 0 or s == 0 else erfc((abs(s) - 1) / sqrt(2 * variance))


def worse(troubled: Sequence[bool]) -> Trend:
    """Whether each run was in trouble, in the order of creation; the last `MOST` count."""
    found = list(troubled[-MOST:])
    count = len(found)
    if count < FEWEST:
        return _too_few(count, "runs")
    newer = count // 2
    bad, late = sum(found), sum(found[count - newer:])
    early = bad - late
    more = late * (count - newer) > early * newer
    chance = _at_least(late, bad, newer, count) if more else _at_least(
        early, bad, count - newer, count)
    verdict = "steady" if chance >= _RARE else "more failures" if more else "fewer failures"
    return Trend(verdict, (
        f"{late} of the last {newer} runs failed or were resumed, and {early} of the "
        f"{count - newer} before; chance alone puts as many on one side {_share(chance)}"),
        count, chance)


def _at_least(hits: int, bad: int, drawn: int, count: int) -> float:
    """The chance that, of `count` runs of which `bad` are bad, `drawn` hold at least `hits`."""
    ways = sum(comb(bad, each) * comb(count - bad, drawn - each)
               for each in range(hits, min(bad, drawn) + 1))
    return ways / comb(count, drawn)


def _share(chance: float) -> str:
    return f"in {chance:.0%} of cases" if chance >= 0.01 else "in less than 1% of cases"


def _too_few(count: int, what: str) -> Trend:
    return Trend("too few runs", f"{FEWEST} {what} are needed to tell a trend; found: {count}",
                 count, None)
