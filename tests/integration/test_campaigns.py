"""A short share of each campaign of `tests/campaign`, on real processes."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.campaign import (
    bit_flips,
    compaction_load,
    disk_full,
    kill_rounds,
    late_copies,
    long_history,
    moving,
    pipeline_kills,
    rewinds,
    watch_drops,
    worker_chaos,
)
from tests.tools import missing

pytestmark = pytest.mark.timeout(180)


def can_mount(folder: Path) -> bool:
    """Whether a tmpfs can be mounted here: only root may, and not in every container."""
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)],
                          capture_output=True)
    if made.returncode == 0:
        subprocess.run(["umount", str(folder)], check=True)
    return made.returncode == 0


@pytest.mark.fault(1)
@pytest.mark.fault(2)
@pytest.mark.fault(3)
def test_a_store_killed_again_and_again_loses_nothing_and_applies_nothing_twice(
        tmp_path: Path) -> None:
    figures = kill_rounds.run(tmp_path, rounds=5, clients=8)
    assert figures["acknowledged"] > 50


@pytest.mark.fault(7)
def test_neither_does_one_whose_broker_is_killed_too(tmp_path: Path) -> None:
    figures = kill_rounds.run(tmp_path, rounds=5, clients=4, seed=2, broker_kills=True)
    assert figures["acknowledged"] > 20


@pytest.mark.fault(5)
@pytest.mark.fault(6)
def test_neither_does_one_that_is_killed_while_it_starts_and_while_it_compacts(
        tmp_path: Path) -> None:
    figures: Any = kill_rounds.run(tmp_path, rounds=5, clients=4, seed=3, mixed=True,
                                   flags=("--segment-bytes", "1MiB"))
    assert figures["acknowledged"] > 20
    assert figures["kills"].get("starting", 0) > 0


@pytest.mark.fault(32)
@pytest.mark.fault(38)
def test_late_copies_have_no_second_effect_and_no_refusal_is_taken_back(tmp_path: Path) -> None:
    figures = late_copies.run(tmp_path, requests=600, restarts=2)
    assert figures["accepted"] > 50
    assert figures["refused"] > 50


@pytest.mark.fault(35)
def test_watchers_under_drops_miss_nothing(tmp_path: Path) -> None:
    figures = watch_drops.drops(tmp_path, seconds=3)
    assert sum(figures["gaps"].values()) > 0, "nothing was dropped, so nothing was shown"


@pytest.mark.fault(37)
def test_5_000_subscriptions_live_again_after_a_restart_of_the_store(tmp_path: Path) -> None:
    watch_drops.subscriptions(tmp_path, 5_000)


def test_100_watchers_of_one_pipeline_ask_nothing_without_a_drop(tmp_path: Path) -> None:
    assert watch_drops.quiet(tmp_path, watchers=100, commits=200)["events"] == 200


@pytest.mark.fault(20)
@pytest.mark.fault(23)
def test_flipped_bits_are_found_and_cut_tails_are_torn(tmp_path: Path) -> None:
    bit_flips.run(tmp_path, flips=60, commits=60)


def test_compaction_refuses_no_commit(tmp_path: Path) -> None:
    figures = compaction_load.run(tmp_path, rounds=1, clients=4, window=1.0)
    assert figures["commits"] > 100


@pytest.mark.fault(29)
def test_restores_of_a_long_history_equal_a_model(tmp_path: Path) -> None:
    assert long_history.run(tmp_path, commits=20_000, points=5)["restored"] == 5


@pytest.mark.fault(17)
def test_a_full_disk_serves_reads_refuses_commits_and_recovers(tmp_path: Path) -> None:
    if not can_mount(tmp_path):
        missing("tmpfs", "it cannot be mounted here (it needs root)")
    assert disk_full.run(tmp_path)["after"] > 1


def test_workers_killed_and_frozen_lose_no_record_and_commit_nothing_stale(tmp_path: Path) -> None:
    figures = worker_chaos.run(tmp_path, seconds=1.5, workers=2, partitions=4, ttl=0.6, every=0.3)
    assert figures["kills"] > 0
    assert figures["freezes"] > 0
    assert figures["commits"] >= 4 * figures["records_of_each_partition"] // worker_chaos.BATCH > 0


def test_the_judge_of_the_workers_sees_holes_steps_back_and_stale_commits(tmp_path: Path) -> None:
    def commit(revision: int, start: int, end: int, worker: str = "a", lease: str = "t1"
               ) -> worker_chaos.Commit:
        return worker_chaos.Commit(revision, "p/0", start, end, worker, lease, f"{revision}",
                                   revision / 10)

    good = [commit(2, 0, 10), commit(5, 10, 20, "b", "t2")]
    assert worker_chaos.broken_chains(good) == 0
    for bad in ([good[0], commit(5, 20, 30)], [good[0], commit(5, 0, 10)],
                [good[0], commit(5, 10, 10)], [good[1]]):
        assert worker_chaos.broken_chains(bad) == 1
    tickets = [worker_chaos.Change(1, "p/0", "t1", "a"), worker_chaos.Change(3, "p/0", "t2", "b"),
               worker_chaos.Change(4, "p/0", "t1", "")]
    assert worker_chaos.stale_commits(good, tickets) == 0
    assert worker_chaos.stale_commits(good, tickets[:2]) == 1, "b waits"
    assert worker_chaos.stale_commits([*good, commit(6, 20, 30)], tickets) == 1, "a has lost it"
    told = {"start": 0, "end": 10, "worker": "a", "attempt": "2"}
    assert worker_chaos.refused_attempts(good, [["p/0", told]]) == (1, 0)
    assert worker_chaos.refused_attempts(good, [["p/0", {**told, "attempt": "1"}]]) == (0, 1)
    assert worker_chaos.refused_attempts(good, [["p/1", {**told, "attempt": "1"}]]) == (0, 0)
    (tmp_path / "done-1").write_text("0 0\n0 1\n0 2")
    assert worker_chaos.missing(tmp_path, 1, 3) == 1
    assert worker_chaos.idle_times(good) == [0.3]


def test_a_pipeline_killed_at_random_moments_executes_no_completed_stage_again(tmp_path: Path
                                                                               ) -> None:
    """Three processes, one stage each; `run` itself compares outputs and executions."""
    figures = pipeline_kills.run(tmp_path, rounds=2, processes=3, pause=0.05, at_once=2)
    assert figures["equal_outputs"] == 2
    assert figures["kills"] > 0


def test_a_pipeline_rewound_below_the_floor_and_back_is_the_same_to_the_byte(tmp_path: Path
                                                                             ) -> None:
    figures = rewinds.run(tmp_path, rounds=2, keys=200)
    assert figures["digests equal"] == 4
    assert figures["below the floor"] >= 2


def test_an_import_killed_at_random_moments_leaves_a_part_and_ends_the_same(tmp_path: Path) -> None:
    """`run` itself compares what each killed one has left, and the digests."""
    figures = moving.run(tmp_path, keys=1_000, kills=1, longest=0.05)
    assert figures["digests equal"]
    assert figures["killed"] == 1, "no import was killed, so nothing was shown"
    assert figures["bytes state.jsonl"] > figures["bytes state.jsonl.gz"]
