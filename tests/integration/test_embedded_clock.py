"""The clock of a directory that is opened often."""

from __future__ import annotations

import time
from pathlib import Path

import ckptmesh


def test_a_directory_opened_again_and_again_does_not_run_ahead_of_the_clock(tmp_path: Path) -> None:
    url = f"file:{tmp_path / 'state'}"
    for count in range(8):
        with ckptmesh.connect(url) as mesh:
            receipt = mesh.commit("job", count, ttl=3_600)
    assert abs(receipt.time.timestamp() - time.time()) < 5
