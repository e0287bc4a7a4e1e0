"""The long campaigns, for a moment: what they count adds up, and they go on where they stopped."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.campaign.prove import CAMPAIGNS, Progress, Prover


def prove(folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "tests.campaign.prove", "--folder", str(folder),
                           "--jobs", "1", *flags], capture_output=True, text=True)


def test_a_campaign_goes_on_where_it_stopped(tmp_path: Path) -> None:
    seeds = []
    for _ in range(2):
        done = prove(tmp_path, "--minutes", "0.04", "--only", "simulation")
        assert done.returncode == 0, done.stderr
        kept = json.loads((tmp_path / "progress.json").read_text())["simulation"]
        assert kept["next"] == kept["counts"]["seeds"]
        seeds.append(kept["next"])
    assert 0 < seeds[0] < seeds[1]
    assert f"{seeds[1]:,} seeds" in (tmp_path / "summary.md").read_text()


def test_every_campaign_has_a_module() -> None:
    folder = Path(__file__).parent.parent / "campaign"
    assert not [name for name in CAMPAIGNS if not (folder / f"{name}.py").exists()]


def test_findings_are_kept_and_told(tmp_path: Path) -> None:
    (tmp_path / "progress.json").write_text(json.dumps(
        {"simulation": {"next": 5, "findings": ["seed 4: a promise"]}}))
    done = prove(tmp_path, "--minutes", "0.03", "--only", "simulation")
    assert done.returncode == 1
    assert "**found**: seed 4: a promise" in done.stdout


def test_a_share_that_ends_without_a_result_is_a_finding() -> None:
    progress = Progress(next=7)
    progress.take("", "Traceback: out of memory", -9, 3.0)
    assert "from 7 on ended with -9" in progress.findings[0]
    assert progress.next == 8


def test_a_campaign_that_cannot_run_is_tried_three_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CAMPAIGNS, "no_such_module", (9, "nothing"))
    prover = Prover(tmp_path, ["no_such_module"])
    prover.run(600.0, jobs=1)
    found = prover.progress["no_such_module"].findings
    assert ["No module named" in finding for finding in found] == [True] * 3


def test_a_campaign_that_was_not_run_has_no_result(tmp_path: Path) -> None:
    summary = Prover(tmp_path, ["fuzz"]).summary()
    assert "not run yet" in summary
    assert "0 findings" not in summary


def test_counts_add_up_and_a_share_that_goes_nowhere_is_the_last() -> None:
    progress = Progress()
    for number in (3, 3):
        progress.take(json.dumps({"next": number, "counts": {"seeds": 2, "lost": 0},
                                  "findings": []}), "", 0, 1.0)
    assert progress.counts == {"seeds": 4, "lost": 0}
    assert progress.finished
    assert progress.shares == 2


def test_a_run_that_is_stopped_leaves_no_process_behind(tmp_path: Path) -> None:
    running = subprocess.Popen(
        [sys.executable, "-m", "tests.campaign.prove", "--folder", str(tmp_path), "--minutes", "1",
         "--only", "kill_rounds"], env={**os.environ, "CKPTMESH_MARK": str(tmp_path)},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: len(marked(tmp_path)) > 2)  # the campaign, its cluster, its clients
        twice = prove(tmp_path, "--minutes", "1")
        assert twice.returncode == 2
        assert "another run goes on" in twice.stderr
        running.terminate()
        assert running.wait(60) == 130
        wait_for(lambda: not marked(tmp_path))
    finally:
        running.kill()
        running.wait()


def wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


def marked(folder: Path) -> list[str]:
    """The processes, but for the first, that this run has brought about."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"CKPTMESH_MARK={folder}".encode() in (process / "environ").read_bytes() and (
                    b"campaign.prove" not in (process / "cmdline").read_bytes()):
                found.append(process.name)
    return found
