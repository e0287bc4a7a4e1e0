"""Both clients against real processes: who is missing, what a kill costs, what nobody can know."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

import ckptmesh
from ckptmesh import errors, link, sockets
from ckptmesh.messages import AcceptLoss
from ckptmesh.testing.blocking import blocking
from tests.cluster import Cluster, free_port, wait_until

Connect = Callable[..., Any]


@pytest.fixture(params=["sync", "async"])
def connect(request: pytest.FixtureRequest) -> Iterator[Connect]:
    """Connects either client, closed in the end."""
    with ExitStack() as stack:
        def make(*args: Any, **options: Any) -> Any:
            if request.param == "sync":
                return stack.enter_context(ckptmesh.connect(*args, **options))
            found = blocking(lambda: ckptmesh.connect_async(*args, **options))
            stack.callback(found.__exit__, None, None, None)
            return found
        yield make


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster that no test here harms."""
    with Cluster(tmp_path_factory.mktemp("shared"), direct=True) as running:
        yield running


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A cluster to be harmed."""
    with Cluster(tmp_path) as running:
        yield running


# --- who is missing ---------------------------------------------------------------------------


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("client", "aio"):
        monkeypatch.setattr(f"ckptmesh.{module}.CONNECT_TIMEOUT", 0.6)


def test_a_missing_broker_is_told_within_five_seconds_with_what_to_do(connect: Connect) -> None:
    assert link.CONNECT_TIMEOUT == 5.0
    started = time.monotonic()
    with pytest.raises(errors.Unavailable) as caught:
        connect(f"tcp://127.0.0.1:{free_port()}", timeout=0.5)
    assert time.monotonic() - started < 3
    assert isinstance(caught.value, ConnectionError)
    for part in ("no broker at tcp://127.0.0.1:", "`ckptmesh up`", "connect('file:./state')"):
        assert part in str(caught.value)


@pytest.mark.usefixtures("hasty")
def test_a_missing_store_is_told_from_a_missing_broker(connect: Connect, tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    cluster.start_broker()
    try:
        with pytest.raises(errors.Unavailable, match="no store is connected to it"):
            connect(cluster.url)
    finally:
        cluster.kill(cluster.broker)


@pytest.mark.usefixtures("hasty")
def test_something_that_is_no_broker_is_told_from_both(connect: Connect) -> None:
    ctx = sockets.context()
    router = sockets.store_requests(ctx)
    bound = sockets.bind(router, "tcp://127.0.0.1:*")
    try:
        with pytest.raises(errors.Unavailable, match="something accepts connections"):
            connect(bound.url)
    finally:
        router.close(linger=0)
        ctx.term()


def test_a_client_waits_for_a_store_that_is_still_starting(
    connect: Connect, tmp_path: Path
) -> None:
    cluster = Cluster(tmp_path)
    cluster.start_broker()
    starter = threading.Timer(0.3, cluster.start_store)
    starter.start()
    try:
        assert connect(cluster.url).get("orders") is None
    finally:
        starter.join()
        cluster.__exit__(None, None, None)


def test_a_directory_in_use_names_the_process_that_holds_it(
    connect: Connect, tmp_path: Path
) -> None:
    url = f"file://{tmp_path}/state"
    code = "import ckptmesh, sys; m = ckptmesh.connect(sys.argv[1]); m.commit('a', 1); " \
           "print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code, url], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(errors.DirectoryInUse) as caught:
            connect(url, timeout=0.3)
        assert caught.value.details["pid"] == holder.pid
        assert "ckptmesh up --data" in str(caught.value)
        holder.communicate()
    assert connect(url, timeout=5).value("a") == 1


# --- many at once -----------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["url", "direct"])
def test_threads_share_one_connection(shared: Cluster, address: str) -> None:
    with ckptmesh.connect(getattr(shared, address), prefix=f"threads-{address}") as mesh:
        found: list[list[int]] = [[] for _ in range(8)]

        def work(n: int) -> None:
            for i in range(40):
                receipt = mesh.commit(f"k/{n}", i)
                assert mesh.get(f"k/{n}").revision == receipt.revision
                found[n].append(receipt.revision)

        threads = [threading.Thread(target=work, args=(n,), daemon=True) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert all(revisions == sorted(revisions) for revisions in found)
        assert len({revision for revisions in found for revision in revisions}) == 320


def test_a_thousand_tasks_share_one_connection(shared: Cluster) -> None:
    async def work() -> None:
        async with await ckptmesh.connect_async(shared.url, prefix="tasks") as mesh:
            async def one(n: int) -> int:
                await mesh.commit(f"k/{n}", n, expect=None)
                found = await mesh.get(f"k/{n}")
                assert found is not None
                assert found.value == n
                return found.revision

            revisions = await asyncio.gather(*(one(n) for n in range(1_000)))
            assert len(set(revisions)) == 1_000

    asyncio.run(work())


def test_a_served_store_is_for_several_processes(connect: Connect, shared: Cluster) -> None:
    assert ckptmesh.Capability.PROCESSES in connect(shared.url).capabilities


def test_many_submitted_commits_are_in_flight_at_once(connect: Connect, shared: Cluster) -> None:
    mesh = connect(shared.url, prefix="submitted")
    futures = [mesh.submit(f"k/{n % 10}", n) for n in range(3_000)]
    mesh.flush()
    assert len({future.result(10).revision for future in futures}) == 3_000


def test_a_cancelled_commit_leaves_the_client_usable(shared: Cluster) -> None:
    async def work() -> None:
        async with await ckptmesh.connect_async(shared.url, prefix="cancelled") as mesh:
            for n in range(50):
                task = asyncio.create_task(mesh.commit("k", n))
                await asyncio.sleep(0 if n % 2 else 0.0005)
                task.cancel()
                with suppress(asyncio.CancelledError):  # or it was quicker
                    await task
            receipt = await mesh.commit("k", "last")
            assert (await mesh.get("k")).revision == receipt.revision

    asyncio.run(work())


def test_values_of_eight_mebibytes_travel_and_long_lists_come_in_pages(
    connect: Connect, shared: Cluster
) -> None:
    mesh = connect(shared.url, prefix="large")
    big = b"x" * (8 * 2**20 - 5)
    mesh.commit("big", big)
    assert mesh.value("big") == big
    with pytest.raises(errors.TooLarge):
        mesh.commit("big", big + b"xxxxx")
    part = b"y" * 2**20
    for n in range(20):
        mesh.submit(f"parts/{n:02}", part)
    mesh.flush()
    assert [c.key for c in mesh.list("parts")] == [f"parts/{n:02}" for n in range(20)]
    assert len([c for c in mesh.get_many([f"parts/{n:02}" for n in range(20)]).values() if c]) == 20


# --- kills ------------------------------------------------------------------------------------


class Worker(threading.Thread):
    """Increments a counter until it is told to stop, keeping what it was answered."""

    def __init__(self, mesh: Any) -> None:
        super().__init__(daemon=True)
        self.mesh = mesh
        self.counts: list[int] = []
        self.error: BaseException | None = None
        self.ending = False
        self.start()

    def run(self) -> None:
        try:
            while not self.ending:
                self.counts.append(self.mesh.increment("count"))
        except BaseException as error:
            self.error = error

    def goes_on(self) -> None:
        reached = len(self.counts) + 5
        wait_until(lambda: len(self.counts) >= reached or self.error, 30, "another increment")

    def finish(self) -> None:
        self.ending = True
        self.join(30)
        assert self.error is None, repr(self.error)
        assert not self.is_alive()
        assert self.counts == list(range(1, len(self.counts) + 1)), "lost, or done twice"


@pytest.mark.fault(31)
def test_a_killed_store_costs_neither_a_commit_nor_a_duplicate(
    connect: Connect, cluster: Cluster
) -> None:
    worker = Worker(connect(cluster.url, timeout=60))
    for _ in range(3):
        worker.goes_on()
        cluster.kill(cluster.store)
        cluster.start_store()
    worker.goes_on()
    worker.finish()


@pytest.mark.fault(7)
def test_a_killed_broker_costs_neither_a_commit_nor_a_duplicate(
    connect: Connect, cluster: Cluster
) -> None:
    worker = Worker(connect(cluster.url, timeout=60))
    for _ in range(3):
        worker.goes_on()
        cluster.kill(cluster.broker)
        cluster.start_broker()
    worker.goes_on()
    worker.finish()


def resolved(mesh: Any, error: errors.OutcomeUnknown) -> Any:
    loop = getattr(mesh, "_loop", None)
    return loop.run(error.resolve) if loop else error.resolve()


def test_a_store_that_stands_still_leaves_the_outcome_unknown_until_it_is_asked(
    connect: Connect, cluster: Cluster
) -> None:
    mesh = connect(cluster.url)
    mesh.commit("a", 1)
    assert cluster.store is not None
    cluster.store.send_signal(signal.SIGSTOP)
    with pytest.raises(errors.OutcomeUnknown) as caught:
        mesh.commit("a", 2, timeout=0.4)
    with pytest.raises(errors.Unavailable):
        mesh.get("a", timeout=0.2)
    cluster.store.send_signal(signal.SIGCONT)
    receipt = resolved(mesh, caught.value)
    assert mesh.get("a").revision == receipt.revision
    assert mesh.value("a") == 2


def test_an_outcome_is_known_again_after_the_store_was_restarted(
    connect: Connect, cluster: Cluster
) -> None:
    mesh = connect(cluster.url)
    mesh.commit("a", 1)
    cluster.kill(cluster.store)
    with pytest.raises(errors.OutcomeUnknown, match="no store behind it") as caught:
        mesh.commit("a", 2, timeout=0.5)
    cluster.start_store()
    assert resolved(mesh, caught.value) is None
    assert mesh.value("a") == 1
    mesh.commit("a", 3)


def test_a_client_whose_store_was_replaced_by_another_is_told(
    connect: Connect, cluster: Cluster
) -> None:
    mesh = connect(cluster.url)
    mesh.commit("a", 1)
    assert cluster.stop(cluster.store) == 0
    cluster.data.rename(cluster.data.with_name("first"))
    cluster.data.mkdir(mode=0o700)
    shutil.move(cluster.data.with_name("first") / "run", cluster.data / "run")
    cluster.start_store()
    with pytest.raises(errors.OtherStore):
        mesh.get("a")
    with pytest.raises(errors.OtherStore):
        mesh.commit("a", 2)


def test_an_older_disk_under_a_living_client_is_told_and_stops_the_store(
    connect: Connect, cluster: Cluster, tmp_path: Path
) -> None:
    mesh = connect(cluster.url)
    mesh.commit("a", 1)
    assert cluster.stop(cluster.store) == 0
    old = tmp_path / "old"
    shutil.copytree(cluster.data, old, ignore=shutil.ignore_patterns("run"))
    cluster.start_store()
    mesh.commit("a", 2)
    mesh.commit("a", 3)
    cluster.kill(cluster.store)
    for entry in list(cluster.data.iterdir()):
        if entry.name != "run":
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    shutil.copytree(old, cluster.data, dirs_exist_ok=True)
    cluster.start_store()
    with pytest.raises(errors.DataLoss):
        mesh.get("a")
    with pytest.raises(errors.DataLoss):
        mesh.commit("a", 4)
    other = connect(cluster.url)
    with pytest.raises(errors.DataLoss):
        other.commit("a", 4)
    if isinstance(mesh, ckptmesh.Client):  # what `ckptmesh wal accept-loss` does
        mesh._pump.ask(AcceptLoss(), time.monotonic() + 10)
        assert mesh.commit("a", 4).revision == 2
        assert other.value("a") == 4


# --- processes --------------------------------------------------------------------------------


@pytest.mark.fault(12)
def test_a_forked_child_is_refused_and_its_parent_goes_on(shared: Cluster) -> None:
    with ckptmesh.connect(shared.url, prefix="forked") as mesh:
        mesh.commit("a", 1)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                mesh.get("a")
            except errors.Closed:
                mesh.close()
                code = 42
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 42
        assert mesh.value("a") == 1


@pytest.mark.parametrize("code", [
    "m = ckptmesh.connect(); m.commit('left/a', 1)",
    "m = ckptmesh.connect(); m.commit('left/a', 1); del m; gc.collect()",
    "m = ckptmesh.connect(); w = m.watch('left'); w.get(timeout=0.05); del m, w; gc.collect()",
    "m = ckptmesh.connect(); w = m.watch('left'); m.close()",
    "m = asyncio.run(ckptmesh.connect_async())",
    "m = asyncio.run(ckptmesh.connect_async()); del m; gc.collect()",
])
def test_a_client_that_nobody_closed_does_not_keep_the_process(shared: Cluster, code: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"import asyncio, gc, ckptmesh\n{code}"], timeout=30,
        env={**os.environ, "CKPTMESH_URL": shared.url}, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
