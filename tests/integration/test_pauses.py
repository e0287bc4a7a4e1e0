"""Processes that stand still beyond a lease: SIGSTOP, and later SIGCONT."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import ckptmesh
from ckptmesh import errors
from tests.cluster import Cluster, wait_until

TTL = 0.8  # seconds of the leases here

# Commits under a lease, a line for each that was acknowledged, until one is refused. The last line
# names the error. It renews the lease as often as it commits, and knows nothing of a pause.
_HOLDER = """
import sys, ckptmesh
mesh = ckptmesh.connect(sys.argv[1], timeout=30, prefix=sys.argv[3])
lease = mesh.create("lease", "holder", ttl=float(sys.argv[2]), lease=True)
print(lease.epoch, lease.revision, flush=True)
count = 0
try:
    while True:
        mesh.keepalive(lease)
        count += 1
        mesh.commit("work", ("holder", count), guard=lease)
        print(count, flush=True)
except ckptmesh.Error as error:
    print(type(error).__name__, flush=True)
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("pauses")) as running:
        yield running


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Where the holder prints to."""
    return tmp_path / "out"


@pytest.fixture
def mesh(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[ckptmesh.Client]:
    """A client that is not stopped; its keys, and the holder's, stand under the test's name."""
    with ckptmesh.connect(cluster.url, prefix=request.node.name) as client:
        yield client


@pytest.fixture
def child(cluster: Cluster, out: Path, request: pytest.FixtureRequest
          ) -> Iterator[subprocess.Popen[bytes]]:
    """A holder that has committed some."""
    command = [sys.executable, "-c", _HOLDER, cluster.url, str(TTL), request.node.name]
    with out.open("wb") as stream:
        running = subprocess.Popen(command, stdout=stream)
    try:
        wait_until(lambda: out.read_text().count("\n") > 20, what="some commits")
        yield running
    finally:
        running.kill()
        running.wait()


@pytest.mark.fault(8)
def test_a_holder_that_was_stopped_beyond_its_lease_commits_nothing_more(
    child: subprocess.Popen[bytes], mesh: ckptmesh.Client, out: Path
) -> None:
    child.send_signal(signal.SIGSTOP)
    wait_until(lambda: mesh.get("lease") is None, what="the end of its lease")
    taken = mesh.create("lease", "other", ttl=60, lease=True)
    before = mesh.get("work")
    receipt = mesh.commit("work", "other", expect=before, guard=taken)
    child.send_signal(signal.SIGCONT)
    assert child.wait(20) == 0
    token, *counts, last = out.read_text().split("\n")[:-1]
    assert last == "LeaseLost"
    assert (taken.epoch, taken.revision) > tuple(map(int, token.split()))
    assert before is not None
    # What was sent before the pause may have been done without its answer being printed.
    assert before.value[1] - int(counts[-1]) in (0, 1)
    found = mesh.get("work")
    assert found is not None
    assert (found.value, found.revision) == ("other", receipt.revision)


@pytest.mark.fault(28)
@pytest.mark.fault(44)
def test_a_store_that_stood_still_beyond_a_lease_ends_it_for_nobody(
    cluster: Cluster, child: subprocess.Popen[bytes], mesh: ckptmesh.Client, out: Path
) -> None:
    """What holds for a store that was stopped holds for one whose disk or machine stood still."""
    assert cluster.store is not None
    expired = mesh.status()["counts"]["expired"]
    idle = mesh.create("idle", 1, ttl=TTL, lease=True)
    cluster.store.send_signal(signal.SIGSTOP)
    time.sleep(2 * TTL)
    before = out.read_text().count("\n")
    cluster.store.send_signal(signal.SIGCONT)
    assert mesh.keepalive(idle) == pytest.approx(TTL)
    wait_until(lambda: out.read_text().count("\n") > before + 20, what="more commits")
    assert child.poll() is None, out.read_text()[-200:]
    assert mesh.status()["counts"]["expired"] == expired
    with pytest.raises(errors.Conflict):
        mesh.create("lease", "other", ttl=60, lease=True)
    # and the fence holds: a lease that nobody renews ends after its time, counted from now
    wait_until(lambda: mesh.get("idle") is None, 3 * TTL, "the end of the idle lease")
    with pytest.raises(errors.LeaseLost):
        mesh.commit("work", 0, guard=idle)


@pytest.mark.fault(8)
@pytest.mark.fault(44)
def test_holder_and_store_may_both_stand_still_and_one_lease_is_held_by_one(
    cluster: Cluster, child: subprocess.Popen[bytes], mesh: ckptmesh.Client, out: Path
) -> None:
    """As when the whole machine is suspended: nobody could renew, so nothing ends meanwhile; and
    if the holder wakes too late, its lease has ended and another's token is greater."""
    assert cluster.store is not None
    for process in (child, cluster.store):
        process.send_signal(signal.SIGSTOP)
    time.sleep(2 * TTL)
    cluster.store.send_signal(signal.SIGCONT)
    assert mesh.get("lease") is not None
    wait_until(lambda: mesh.get("lease") is None, what="the end of the lease")
    taken = mesh.create("lease", "other", ttl=60, lease=True)
    mesh.commit("work", "other", guard=taken)
    child.send_signal(signal.SIGCONT)
    assert child.wait(20) == 0
    assert out.read_text().endswith("LeaseLost\n")
    assert mesh.value("work") == "other"
