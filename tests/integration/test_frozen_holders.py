"""Who stands still for longer than his lease, or loses his store, changes nothing any more."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import ckptmesh
from tests.campaign import lock_fights
from tests.cli.conftest import PROGRAM, environment
from tests.cluster import Cluster, wait_until

TTL = 1.0
HOLDER = """
import sys, ckptmesh
mesh = ckptmesh.connect(sys.argv[1])
lock = mesh.lock("orders", ttl=float(sys.argv[2])).acquire()
mesh.commit("orders", "mine", guard=lock)
token = lock.lease
print("held", flush=True)
sys.stdin.readline()
for guard in (token, lock):
    try:
        mesh.commit("orders", "stale", guard=guard)
        print("accepted", flush=True)
    except ckptmesh.LeaseLost as error:
        print("refused", flush=True)
assert lock.lost.wait(20)
try:
    lock.release()
except ckptmesh.LeaseLost as error:
    print(error.message, flush=True)
"""


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path) as found:
        yield found


def log_of(cluster: Cluster) -> dict[str, bytes]:
    """All that the log holds, to the byte."""
    return {file.name: file.read_bytes() for file in sorted((cluster.data / "wal").iterdir())}


def quiet_log_of(cluster: Cluster) -> dict[str, bytes]:
    """The same once nothing more is added: a tenth of a second after a commit the log is sealed."""
    found: dict[str, bytes] = {}

    def still() -> bool:
        nonlocal found
        before, found = found, log_of(cluster)
        time.sleep(0.5)
        return before == found

    wait_until(still, what="a quiet log")
    return found


def test_a_frozen_holder_that_wakes_is_refused_and_told_of_the_stall_and_the_log_grows_by_no_byte(
    cluster: Cluster
) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, cluster.url, str(TTL)],
                              env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                              text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdin is not None
        assert holder.stdout.readline() == "held\n"
        holder.send_signal(signal.SIGSTOP)
        with ckptmesh.connect(cluster.url) as mesh:
            with mesh.lock("orders", ttl=30, wait=30) as lock:  # had once the frozen one's is over
                mesh.commit("orders", "theirs", guard=lock)
                revision = mesh.status()["revision"]
                before = quiet_log_of(cluster)
                holder.send_signal(signal.SIGCONT)
                said, _ = holder.communicate("go\n", timeout=30)
                assert mesh.status()["revision"] == revision
                assert quiet_log_of(cluster) == before
                assert mesh.value("orders") == "theirs"
                assert lock.held
            assert log_of(cluster) != before, "the log can be seen to grow"
    finally:
        holder.kill()
        holder.wait()
    assert holder.returncode == 0
    first, second, why = said.splitlines()
    assert (first, second) == ("refused", "refused")
    assert "this process stood still" in why


def begin(cluster: Cluster, script: str, *options: str, **environ: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*PROGRAM, "exec", "--pipeline", "nightly", *options, "--", "sh", "-c", script],
        env=environment(CKPTMESH_URL=cluster.url, **environ), stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("back", [True, False])
def test_a_store_that_goes_while_a_command_runs_is_5_unless_it_comes_back(
    cluster: Cluster, tmp_path: Path, back: bool
) -> None:
    ready, go = tmp_path / "ready", tmp_path / "go"
    script = (f'echo 7 > "$CKPTMESH_NEXT_FILE"; touch {ready}; '
              f'until [ -e {go} ]; do sleep 0.05; done')
    child = begin(cluster, script, "--ttl", "60s", CKPTMESH_TIMEOUT="10s" if back else "1s")
    try:
        wait_until(ready.exists)
        cluster.kill(cluster.store)
        if back:
            cluster.start_store()
        go.touch()
        _, told = child.communicate(timeout=60)
    finally:
        child.kill()
        child.wait()
    assert child.returncode == (0 if back else 5), told
    assert ("exit code 5 is ckptmesh's" in told) is not back
    if not back:
        cluster.start_store()
    with ckptmesh.connect(cluster.url) as mesh:
        assert mesh.value("nightly") == (7 if back else None)


def test_an_exec_that_was_frozen_ends_its_command_and_commits_nothing(
    cluster: Cluster, tmp_path: Path
) -> None:
    ready = tmp_path / "ready"
    script = f'echo 7 > "$CKPTMESH_NEXT_FILE"; touch {ready}; exec sleep 100'
    child = begin(cluster, script, "--ttl", f"{TTL:g}s")
    try:
        wait_until(ready.exists)
        os.kill(child.pid, signal.SIGSTOP)
        second = begin(cluster, 'echo 8 > "$CKPTMESH_NEXT_FILE"', "--wait", "30s")
        _, told = second.communicate(timeout=60)
        assert second.returncode == 0, told
        os.kill(child.pid, signal.SIGCONT)
        _, told = child.communicate(timeout=60)
    finally:
        child.kill()
        child.wait()
    assert child.returncode == 4
    assert "the lock was lost while the command ran" in told
    with ckptmesh.connect(cluster.url) as mesh:
        assert mesh.value("nightly") == 8


def test_two_threads_and_two_processes_never_hold_one_lock_together(tmp_path: Path) -> None:
    figures = lock_fights.run(tmp_path, 200)
    assert figures["to_another"] > 100, "nobody fought, so nothing was shown"


def test_the_judge_of_the_fight_sees_two_holders_and_one_who_was_passed_by() -> None:
    def turn(count: int, had: float) -> lock_fights.Turn:
        return lock_fights.Turn(count, 1, 10 + count, 0.0, had, had + 1, count + 1)

    fair = [[turn(0, 1), turn(2, 5)], [turn(1, 3)]]
    assert lock_fights.judge(fair)["two_holders"] == 0
    assert lock_fights.judge(fair)["passed_by"] == 0
    assert lock_fights.judge([[turn(0, 1), turn(2, 5)], [turn(1, 1.5)]])["two_holders"] == 1
    assert lock_fights.judge([[turn(0, 1), turn(2, 5)], [turn(0, 3)]])["two_holders"] == 2
    late = turn(1, 3)._replace(revision=99)
    assert lock_fights.judge([[turn(0, 1), turn(2, 5)], [late]])["passed_by"] == 1
