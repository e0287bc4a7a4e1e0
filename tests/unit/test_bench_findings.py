"""What figures mean: each sentence appears for the figures that support it, and for no others."""

from __future__ import annotations

import os

import pytest

from ckptmesh.benchmark import findings as judge
from ckptmesh.benchmark.driver import Sample
from ckptmesh.benchmark.findings import findings, sync_share
from ckptmesh.benchmark.machine import Syncs
from ckptmesh.benchmark.run import (
    BATCHES,
    NAMES,
    ONE,
    PIPELINED,
    READS,
    WORKERS,
    Figures,
    Options,
    Result,
    workloads,
)
from ckptmesh.stats import Histogram

CORES = os.cpu_count() or 1
KNOWN = {each.name: each for each in workloads(Options("tcp://127.0.0.1:7701"), False)}


def spread(*values: int) -> Histogram:
    """A histogram of these microseconds."""
    found = Histogram()
    for value in values:
        found.add(value)
    return found


def figures(name: str, rate: float = 1_000, syncs: int = 1_000, sync: float | None = 0.1,
            busy: float | None = 0.5, store: float | None = 0.3, cpu: float = 0.4,
            foreign: int = 0, latency: Histogram | None = None) -> Figures:
    """A second of a workload. `sync`: median of the store's syncs in ms."""
    own = 0 if name == READS else round(rate) // KNOWN[name].atom
    return Figures(KNOWN[name], Sample(round(rate), 1.0, latency or spread(300), cpu),
                   own + foreign, syncs if own else 0, None if sync is None else (sync, 2 * sync),
                   busy, store)


def result(*found: Figures, disk: Syncs | None = None, round_trip: int = 100,
           embedded: bool = False) -> Result:
    """What a run has found."""
    return Result(Options("tcp://127.0.0.1:7701"), "bench-x", embedded, disk, spread(round_trip),
                  {each.workload.name: each for each in found})


def bare(*values: int, kind: str = "ext4") -> Syncs:
    """A disk with these syncs."""
    return Syncs("/data", kind, sum(values) / 1e6, spread(*values))


def told(*found: Figures, **options: object) -> str:
    return " ".join(findings(result(*found, **options)))  # type: ignore[arg-type]


# --- the limit --------------------------------------------------------------------------------


def test_the_busiest_writer_is_told_with_what_it_shares() -> None:
    text = told(figures(ONE), figures(WORKERS, 2_700), figures(BATCHES, 90_000))
    assert "At most 2,700 single commits a second here, with 8 workers, 2.7 to a sync." in text
    assert "256 in flight" not in text


@pytest.mark.parametrize(("sync", "store", "full"), [
    (0.65, 0.3, True), (0.1, 0.85, True), (0.3, 0.3, False), (0.75, None, True),
    (0.65, None, False), (None, 0.95, True), (None, 0.85, False)])
def test_the_store_is_the_limit_when_its_thread_is_hardly_ever_idle(
    sync: float | None, store: float | None, full: bool
) -> None:
    text = told(figures(WORKERS, sync=sync, store=store))
    assert ("At the limit: the store's thread" in text) is full
    assert ("None of that is at its limit" in text) is not full
    assert (f"waits for its disk about {sync:.0%}" in text) if sync else "disk" not in text


def test_the_processors_are_the_limit_and_not_the_disk() -> None:
    text = told(figures(WORKERS, busy=0.97, cpu=0.4 * CORES, sync=0.1, store=0.2))
    assert "At the limit: the processors of this machine are 97% busy" in text
    assert "Below theirs: the store's thread works 20% and waits for its disk about 10%" in text
    assert "At the limit" not in told(figures(WORKERS, busy=0.85))


def test_what_cannot_be_told_is_not_claimed() -> None:
    text = told(figures(WORKERS, sync=None, busy=None, store=None))
    assert text.endswith("cannot be told from here.")
    assert findings(result(figures(READS))) == ["Nothing stands out in these figures."]


def test_a_share_of_the_disk_needs_some_syncs_and_a_median() -> None:
    disk = bare(*[200] * 100)
    assert sync_share(result(disk=disk), figures(ONE, sync=None)) == pytest.approx(0.2, rel=0.13)
    assert sync_share(result(disk=disk), figures(ONE, sync=0.5)) == pytest.approx(0.5)
    assert sync_share(result(), figures(ONE, sync=None)) is None
    assert sync_share(result(disk=disk), figures(ONE, syncs=judge.IN_SYNCS - 1)) is None
    assert "would wait for the bare disk" in told(figures(ONE, sync=None), disk=disk)


def test_an_embedded_store_is_in_the_process_that_works() -> None:
    text = told(figures(PIPELINED, cpu=0.95, store=None), embedded=True)
    assert "At the limit: this process, with the store in it, works 95%" in text
    assert "more workers may" not in told(figures(PIPELINED, store=None), embedded=True)


# --- one worker, batches ----------------------------------------------------------------------


@pytest.mark.parametrize(("way", "sync", "says"), [
    (100, 0.2, "and the store's sync 0.20 ms of it"),
    (200, 0.1, "a faster disk would change little, more in flight helps"),
    (200, None, "of it: more in flight helps")])
def test_what_a_lone_worker_waits_for_most(way: int, sync: float | None, says: str) -> None:
    assert says in told(figures(ONE, sync=sync), round_trip=way)


def test_where_neither_is_half_of_a_lone_commit_nothing_is_said() -> None:
    assert "A lone commit" not in told(figures(ONE, sync=0.1), round_trip=100)


@pytest.mark.parametrize(("rate", "said"), [(1_900, False), (52_000, True)])
def test_batches_are_worth_a_word_when_they_write_more(rate: int, said: bool) -> None:
    text = told(figures(ONE), figures(BATCHES, rate))
    assert ("Batches of 100 write 52 times as many keys as one worker" in text) is said


# --- what makes figures worth less ------------------------------------------------------------


def test_a_tail_is_told_with_who_has_it() -> None:
    long = spread(*[300] * 90, *[6_000] * 10)
    assert "--data DIR tells them apart" in told(figures(ONE, latency=long))
    assert "likewise" in told(figures(ONE, latency=long), disk=bare(*[100] * 90, *[5_000] * 10))
    assert "look for what else" in told(figures(ONE, latency=long), disk=bare(*[100] * 100))
    assert "times p50" not in told(figures(ONE, latency=spread(*[100] * 90, *[1_500] * 10)))
    assert "times p50" not in told(figures(ONE, latency=spread(*[3_000] * 90, *[9_000] * 10)))


def test_commits_of_others_are_told_and_those_of_our_own_at_the_ends_are_not() -> None:
    assert "Others committed 500 times" in told(figures(WORKERS, foreign=500))
    assert "Others committed" not in told(figures(WORKERS, foreign=KNOWN[WORKERS].processes))
    assert "Others committed" not in told(figures(PIPELINED, foreign=256))
    assert figures(PIPELINED, foreign=257).foreign_commits == 257


def test_a_machine_that_others_use_is_told() -> None:
    assert "With one worker, other programs" in told(figures(ONE, busy=0.95, cpu=0.0, store=0.2))
    assert "other programs" not in told(figures(ONE, busy=0.95, cpu=0.5 * CORES))
    assert "other programs" not in told(figures(ONE, busy=0.5, cpu=0.0, store=0.1))


def test_syncs_that_are_none_are_told() -> None:
    assert "all is gone after a restart" in told(disk=bare(3, kind="tmpfs"))
    assert "no disk can do" in told(disk=bare(3))
    assert "no disk can do" not in told(disk=bare(100))


# --- which workloads --------------------------------------------------------------------------


def test_workloads_are_those_asked_for_that_the_store_allows() -> None:
    asked = Options("x", only=(READS, WORKERS), workers=3)
    assert [each.name for each in workloads(asked, embedded=False)] == [WORKERS, READS]
    assert [each.name for each in workloads(asked, embedded=True)] == [READS]
    assert [each.name for each in workloads(Options("x"), embedded=False)] == list(NAMES)
