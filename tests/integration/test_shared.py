"""The demo's workers: killed and frozen at random, they add up each record once."""

from __future__ import annotations

from pathlib import Path

import pytest

from demo import shared
from tests.cluster import Cluster


def test_workers_that_are_killed_and_frozen_add_up_each_record_once(tmp_path: Path) -> None:
    with Cluster(tmp_path) as cluster:
        done = shared.chaos(cluster.url, tmp_path, workers=2, partitions=4, seconds=1.5, ttl=0.6)
    assert done["kills"] > 0
    assert done["freezes"] > 0
    assert done["records"] > 50
    with pytest.raises(AssertionError, match="lost or doubled"):
        shared._check(tmp_path, 0, 10_000)
