"""The compactor as the process that it is: spawned, killed, orphaned."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from ckptmesh.compaction import Compaction, spawn
from ckptmesh.disk import RealDisk
from ckptmesh.errors import CompactionFailed
from tests.crash.stores import SMALL, Store, digest_at

OPTIONS = SMALL._replace(retain_seconds=0)
WAIT = 30.0  # seconds; a compaction here takes 0.1 s


def wait_for(compaction: Compaction) -> dict[str, Any]:
    deadline = time.monotonic() + WAIT
    while time.monotonic() < deadline:
        report = compaction.poll()
        if report is not None:
            return report
        time.sleep(0.005)
    raise AssertionError("the compaction does not end")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"), RealDisk(), OPTIONS, locked=True).serve().commit(20)


def test_a_spawned_compactor_makes_the_snapshot_that_recovery_begins_with(store: Store) -> None:
    compaction = Compaction(store.wal)
    compaction.start()
    assert compaction.running
    store.commit(5)  # the store goes on meanwhile
    report = wait_for(compaction)
    assert report["made"]
    assert report["revision"] == 20
    assert report["seconds"] > 0
    assert not compaction.running
    store.wal.close()
    again = Store(store.wal.directory, RealDisk(), OPTIONS, locked=True)
    assert again.wal.notes == ()
    assert again.state.digest() == digest_at(25)
    again.wal.close()


@pytest.mark.fault(5)
def test_a_killed_compactor_leaves_the_old_state_and_a_clear_error(store: Store) -> None:
    started: list[Any] = []

    def stopped(directory: str, segment: int, epoch: int) -> Any:
        started.append(spawn(directory, segment, epoch))
        os.kill(started[-1].pid, signal.SIGSTOP)
        return started[-1]

    compaction = Compaction(store.wal, spawn=stopped)
    compaction.start()
    assert compaction.poll() is None
    left = Path(store.wal.directory, "snap", f"snap.1.{started[0].pid}.tmp")
    left.write_bytes(b"half a snapshot")
    os.kill(started[0].pid, signal.SIGKILL)
    with pytest.raises(CompactionFailed, match="killed by signal 9"):
        wait_for(compaction)
    assert not compaction.running
    assert not left.exists()
    assert store.wal.manifest.snapshots == ()
    assert store.commit(1).acknowledged == 21
    compaction = Compaction(store.wal)
    compaction.start()
    assert wait_for(compaction)["revision"] == 21
    store.wal.close()


def test_closing_ends_the_compactor(store: Store) -> None:
    started: list[Any] = []

    def stopped(directory: str, segment: int, epoch: int) -> Any:
        started.append(spawn(directory, segment, epoch))
        os.kill(started[-1].pid, signal.SIGSTOP)
        return started[-1]

    compaction = Compaction(store.wal, spawn=stopped)
    compaction.start()
    compaction.close()
    compaction.close()
    assert started[0].returncode == -signal.SIGKILL
    assert not compaction.running
    assert os.listdir(f"{store.wal.directory}/snap") == []
    store.wal.close()


def test_a_compactor_that_hangs_is_killed(store: Store) -> None:
    now = [0]

    def stopped(directory: str, segment: int, epoch: int, *hurry: str) -> Any:
        process = spawn(directory, segment, epoch, *hurry)
        os.kill(process.pid, signal.SIGSTOP)
        return process

    compaction = Compaction(store.wal, spawn=stopped, elapsed=lambda: now[0])
    compaction.start()
    for now[0] in (59_000_000, 60_000_000, 3_599_000_000):
        assert compaction.poll() is None
    now[0] = 3_600_000_000
    with pytest.raises(CompactionFailed, match="killed by signal 9"):
        compaction.poll()
    store.wal.close()


def test_a_compactor_that_gets_no_processor_for_a_minute_makes_place_for_one_that_hurries(
        store: Store) -> None:
    now = [0]
    started: list[Any] = []

    def starved(directory: str, segment: int, epoch: int, *hurry: str) -> Any:
        started.append(spawn(directory, segment, epoch, *hurry))
        if not hurry:
            os.kill(started[-1].pid, signal.SIGSTOP)
        return started[-1]

    compaction = Compaction(store.wal, spawn=starved, elapsed=lambda: now[0])
    compaction.start()
    now[0] = 59_000_000
    assert compaction.poll() is None
    assert len(started) == 1
    now[0] = 60_000_000
    report = wait_for(compaction)
    assert report["made"]
    assert report["revision"] == 20
    assert [process.returncode for process in started] == [-signal.SIGKILL, 0]
    assert all(not name.endswith(".tmp") for name in os.listdir(f"{store.wal.directory}/snap"))
    store.wal.close()


def test_a_compactor_runs_only_while_a_processor_is_idle_unless_it_hurries(store: Store) -> None:
    policies = []
    for hurry in ((), ("hurry",)):
        process = spawn(store.wal.directory, 1, 1, *hurry)
        until = time.monotonic() + 20
        policy = None
        while process.poll() is None and time.monotonic() < until:
            with contextlib.suppress(ProcessLookupError):
                policy = os.sched_getscheduler(process.pid)
                if policy == os.SCHED_IDLE:
                    break
        policies.append(policy)
        process.kill()
        process.communicate()
    assert policies == [os.SCHED_IDLE, os.SCHED_OTHER]
    store.wal.close()


PARENT = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", '''
import os, signal, sys, time
from ckptmesh.process import end_with
assert end_with(os.getppid(), signal.SIGKILL)
print(os.getpid(), flush=True)
time.sleep(60)
'''], stdout=sys.stdout)
time.sleep(60)
"""


def test_a_compactor_dies_with_its_store() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE,
                          env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.kill()
    deadline = time.monotonic() + WAIT
    while _alive(pid):
        assert time.monotonic() < deadline, "the compactor outlives its store"
        time.sleep(0.005)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_compactor_whose_store_is_gone_already_does_nothing(store: Store) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "ckptmesh.compactor", store.wal.directory, "1", "1", "1"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, timeout=WAIT, check=False)
    assert ended.returncode == 3
    assert os.listdir(f"{store.wal.directory}/snap") == []
    store.wal.close()
