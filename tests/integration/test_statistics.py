"""Every figure against a count of somebody else: the transport, the system, the test itself."""

from __future__ import annotations

import json
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import ckptmesh
from ckptmesh import bundles, disk, errors, limits, publications, session, sockets
from ckptmesh.aio import AsyncClient
from ckptmesh.client import Client
from ckptmesh.opening import open_engine
from ckptmesh.stats import OperationStats
from ckptmesh.stream import StreamTransport
from ckptmesh.testing.blocking import blocking
from ckptmesh.transport import EngineTransport
from ckptmesh.wal import Wal
from tests.cli.conftest import CommandLine
from tests.cluster import Cluster, wait_until

SHARES = {"p50_ms": 50, "p99_ms": 99}
ABOVE = 1.125  # a percentile of a histogram is at most an eighth too high


class Scales(EngineTransport):
    """A store in memory behind a transport that weighs what passes, and loses what it is told."""

    def __init__(self) -> None:
        engine = open_engine(None)
        super().__init__("memory://scales", engine.handle, engine.close, engine)
        self.sent: list[bytes] = []
        self.received: list[bytes] = []
        self.fates: list[str] = []  # of the next copies: "lost" on the way, or "refused" at once

    def send(self, payload: bytes) -> bool:
        fate = self.fates.pop(0) if self.fates else "delivered"
        if fate == "refused":
            return False
        self.sent.append(payload)
        return fate == "lost" or super().send(payload)

    def receive(self, timeout: float) -> list[bytes]:
        found = super().receive(min(timeout, 0.02))  # what was refused may be tried again
        self.received += found
        return found


class Slow(EngineTransport):
    """A store in memory that takes, for each batch, as long as the test says."""

    def __init__(self) -> None:
        engine = open_engine(None)
        self.delay = 0.0
        super().__init__("memory://slow", self.handle, engine.close, engine)
        self._engine_handle = engine.handle

    def handle(self, payloads: Sequence[bytes]) -> list[bytes]:
        time.sleep(self.delay)
        return self._engine_handle(payloads)


@pytest.fixture(params=["sync", "async"])
def client(request: pytest.FixtureRequest) -> Iterator[Callable[[EngineTransport], Any]]:
    """Either client over a transport, closed in the end."""
    with ExitStack() as stack:
        def make(transport: EngineTransport) -> Any:
            if request.param == "sync":
                return stack.enter_context(Client(transport))

            async def there() -> AsyncClient:
                return AsyncClient(transport)

            found = blocking(there)
            stack.callback(found.__exit__, None, None, None)
            return found
        yield make


# --- what a client tells of itself --------------------------------------------------------------


def test_operations_errors_hits_and_bytes_are_those_that_were_made(
    client: Callable[[EngineTransport], Any]
) -> None:
    scales = Scales()
    mesh = client(scales)
    for count in range(5):
        mesh.commit(f"a/{count}", b"x" * 10 ** count)
    for _ in range(3):
        with pytest.raises(errors.Conflict):
            mesh.create("a/0", 1)
    with pytest.raises(errors.InvalidValue):
        mesh.increment("a/0")
    mesh.increment("n")
    with pytest.raises(errors.InvalidKey):
        mesh.get("/")  # never becomes a request
    mesh.get("a/1")
    mesh.value("none", default=1)
    mesh.get_many(["a/0", "a/1", "none", "a/2", "nor this"])
    assert len(list(mesh.list("a"))) == 5
    assert len(list(mesh.history("a/0"))) == 1
    mesh.update("n", lambda n: n + 1)  # a get that hits, and a put
    with mesh.transaction() as tx:
        tx.put("t", 1)
        tx.delete("a/4")
    with pytest.raises(errors.FutureRevision):
        mesh.get("a/0", at=10_000)
    found = mesh.stats()
    told = {kind: (of["count"], of["errors"]) for kind, of in found["operations"].items()}
    assert told == {
        "put": (5 + 3 + 1, 3), "increment": (2, 1), "get": (5, 1), "scan": (1, 0),
        "history": (1, 0), "transaction": (1, 0),
    }
    assert found["errors"] == {"Conflict": 3, "InvalidValue": 1, "FutureRevision": 1}
    assert (found["hits"], found["misses"]) == (1 + 3 + 1, 1 + 2)
    assert found["bytes_out"] == sum(map(len, scales.sent)) > 11_111
    assert found["bytes_in"] == sum(map(len, scales.received)) > 11_111
    assert (found["retries"], found["discarded"], found["in_flight"]) == (0, 0, 0)


def test_threads_are_counted_together() -> None:
    scales = Scales()
    with Client(scales) as mesh:
        workers = [threading.Thread(target=lambda: [mesh.get("a") for _ in range(50)])
                   for _ in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(20)
        found = mesh.stats()
        assert (found["operations"]["get"]["count"], found["misses"]) == (200, 200)
        assert found["bytes_in"] == sum(map(len, scales.received))


def test_latencies_lie_between_what_the_store_took_and_what_the_caller_waited(
    client: Callable[[EngineTransport], Any]
) -> None:
    slow = Slow()
    mesh = client(slow)
    took, waited = [], []
    for count in range(60):
        slow.delay = (count * 37 % 60) / 15_000  # 0 to 4 ms, in no order
        started = time.perf_counter()
        mesh.get("a")
        waited.append(1_000 * (time.perf_counter() - started))
        took.append(1_000 * slow.delay)
    took.sort()
    waited.sort()
    told = mesh.stats()["operations"]["get"]
    assert told["count"] == 60
    for name, percent in SHARES.items():
        rank = max(1, -(-60 * percent // 100)) - 1
        assert took[rank] <= told[name] <= waited[rank] * ABOVE + 0.002, name
    assert took[-1] <= told["max_ms"] <= waited[-1] + 0.002
    assert sum(took) / 60 <= told["mean_ms"] <= sum(waited) / 60 + 0.002


def test_percentiles_of_given_latencies_are_within_the_stated_error() -> None:
    stats = OperationStats()
    samples = sorted(17 * 1.01 ** n for n in range(1_000))  # microseconds: 17 to 350,000
    for sample in samples:
        stats.add("get", sample / 1_000_000, None)
    told = stats.as_dict()["operations"]["get"]
    for name, percent in SHARES.items():
        true = round(samples[10 * percent - 1])
        assert true <= 1_000 * told[name] <= true * ABOVE, name
    assert told["max_ms"] == round(samples[-1]) / 1_000


@pytest.mark.parametrize("lost", [1, 4])
def test_retries_are_the_copies_beyond_the_first(
    client: Callable[[EngineTransport], Any], monkeypatch: pytest.MonkeyPatch, lost: int
) -> None:
    monkeypatch.setattr(session, "RESEND_FIRST", 0.01)
    monkeypatch.setattr(session, "RESEND_MAX", 0.02)
    scales = Scales()
    mesh = client(scales)
    mesh.commit("a", 0)
    for ask in (lambda: mesh.commit("a", 1), lambda: mesh.get("a")):
        scales.fates = ["lost"] * lost
        ask()

    def again() -> int:
        copies = Counter(bundles.peek(payload) for payload in scales.sent)
        return sum(copies.values()) - len(copies)

    assert mesh.stats()["retries"] == again() >= 2 * lost
    # What could not leave has not been sent, so it has not been sent again either.
    scales.fates = ["refused", "refused", "lost", "refused", "refused"]
    mesh.get("a")
    assert mesh.stats()["retries"] == again()
    assert mesh.stats()["bytes_out"] == sum(map(len, scales.sent))
    assert mesh.value("a") == 1


def resident() -> int:
    """VmRSS, in bytes."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines()
              if line.startswith("VmRSS:")]
    return int(line.split()[1]) * limits.KIB


def test_memory_is_what_the_system_says() -> None:
    with ckptmesh.connect("memory://") as mesh:
        before = mesh.stats()["memory_bytes"]
        assert abs(before - resident()) < limits.MIB
        held = bytearray(b"x") * (64 * limits.MIB)
        after = mesh.stats()["memory_bytes"]
        assert abs(after - resident()) < limits.MIB
        assert after - before > 60 * limits.MIB
        del held


# --- what a store tells of its log --------------------------------------------------------------


class Syncs:
    """Counts the syncs of segments as the system is asked for them, and how long each took, from
    inside the log's own measurement and from outside."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.within: list[float] = []
        self.around: list[float] = []
        self._in_sync = False
        really, whole = os.fdatasync, Wal.sync

        def fdatasync(descriptor: int) -> None:
            started = time.perf_counter()
            really(descriptor)
            if self._in_sync:
                self.within.append(1_000 * (time.perf_counter() - started))

        def sync(log: Wal) -> None:
            started = time.perf_counter()
            self._in_sync = True
            try:
                whole(log)
            finally:
                self._in_sync = False
            self.around.append(1_000 * (time.perf_counter() - started))

        monkeypatch.setattr(disk.os, "fdatasync", fdatasync)
        monkeypatch.setattr(Wal, "sync", sync)


def on_disk(directory: Path) -> int:
    """Bytes of segments and snapshots, from the directory alone."""
    return sum(path.stat().st_size for path in directory.rglob("*")
               if path.suffix in (".seg", ".snap"))


def test_syncs_and_their_latencies_are_those_of_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    syncs = Syncs(monkeypatch)
    with ckptmesh.connect(f"file:{tmp_path}/state") as mesh:
        for count in range(50):
            mesh.commit("a", count)
        mesh.get("a")
        with pytest.raises(errors.Conflict):
            mesh.create("a", 1)
        before = len(syncs.within)
        assert before >= 50
        futures = [mesh.submit("b", count) for count in range(100)]
        mesh.flush()
        assert all(future.done() for future in futures)
        status = mesh.status()
    log = status["log"]
    assert status["counts"]["syncs"] == log["syncs"] == log["frames"] == before + 1
    seen = log["syncs"]  # closing may have synced once more
    within, around = sorted(syncs.within[:seen]), sorted(syncs.around[:seen])
    for name, share in {"sync_ms_p50": 0.5, "sync_ms_p99": 0.99, "sync_ms_max": 1.0}.items():
        rank = int(share * (seen - 1))
        assert within[rank] - 0.001 <= log[name] <= around[rank] + 0.001, name


def test_the_size_of_the_log_is_that_of_its_files(tmp_path: Path) -> None:
    with ckptmesh.connect(f"file:{tmp_path}/state") as mesh:
        def same() -> bool:
            return bool(mesh.status()["log"]["bytes_on_disk"] == on_disk(tmp_path))

        mesh.commit("a", 1)
        assert same()
        for count in range(4):
            mesh.commit(f"big/{count}", os.urandom(3 * limits.MIB))
        log = mesh.status()["log"]
        assert log["rotations"] >= 3
        assert log["segments"] == len(list(tmp_path.rglob("*.seg")))
        assert same()
        mesh.compact(retain=0)
        wait_until(same, what="files that are no longer listed are gone")
        assert mesh.status()["log"]["snapshots"] == len(list(tmp_path.rglob("*.snap"))) == 1


# --- what a served store and its broker tell ----------------------------------------------------


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("statistics")) as running:
        yield running


def weighed(mesh: Client, monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What this client sends from now on."""
    transport, sent = mesh._link.transport, []
    really = transport.send

    def send(payload: bytes) -> bool:
        left = really(payload)
        if left:
            sent.append(payload)
        return left

    monkeypatch.setattr(transport, "send", send)
    return sent


def test_the_store_counts_what_was_asked_of_it(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ckptmesh.connect(cluster.url) as mesh, ckptmesh.connect(cluster.url) as other:
        before = mesh.status()
        sent = weighed(mesh, monkeypatch)
        sent_by_other = weighed(other, monkeypatch)
        for count in range(7):
            mesh.commit(f"s/{count}", count)
        other.commit("s/0", "other", ttl=60)
        for _ in range(3):
            with pytest.raises(errors.Conflict):
                other.create("s/1", 1)
        mesh.get("s/1")
        leases = [mesh.create(f"s/lease/{n}", "me", ttl=60, lease=True) for n in range(2)]
        mesh.delete("s/lease/1", guard=leases[1])
        mesh.transact(put={"s/x": 1, "s/y": 2}, delete=["s/6"])
        for count in range(3):
            mesh.commit(f"s/brief/{count}", 1, ttl=0.1)
        wait_until(lambda: not list(mesh.list("s/brief")), what="they expire")
        stranger = StreamTransport(cluster.url)
        wait_until(lambda: stranger.send(b"\xc1 not msgpack") or stranger.receive(0.01),
                   what="a stranger is heard")
        stranger.receive(0.0)
        wait_until(lambda: mesh.status()["counts"]["malformed"] > before["counts"]["malformed"])
        stranger.close()
        after = mesh.status()
        grown = {name: after["counts"][name] - before["counts"][name] for name in after["counts"]}
        commits = 7 + 1 + 2 + 1 + 1 + 3
        assert grown["requests"] == len(sent) + len(sent_by_other)
        assert (grown["commits"], grown["refused"], grown["expired"], grown["malformed"]) == (
            commits, 3, 3, 1)
        assert after["revision"] - before["revision"] == commits + 3
        assert commits <= grown["syncs"] == after["log"]["syncs"] - before["log"]["syncs"]
        assert after["keys"] == len(list(mesh.list()))
        assert after["leases"] - before["leases"] == 1
        assert after["expiring"] - before["expiring"] == 1
        assert after["sessions"] - before["sessions"] == 2
        assert after["log"]["bytes_on_disk"] == on_disk(cluster.data)
    with ckptmesh.connect(cluster.url) as mesh:
        assert mesh.status()["sessions"] == before["sessions"], "they were closed"


def test_subscriptions_are_the_topics_of_open_watches(cluster: Cluster) -> None:
    with ckptmesh.connect(cluster.url) as mesh, ExitStack() as watches:
        def subscriptions() -> int:
            return int(mesh.status()["sockets"]["subscriptions"])

        wait_until(lambda: subscriptions() == 0, what="nobody watches")
        for pipeline in "abc":
            watches.enter_context(mesh.watch(pipeline))
        watches.enter_context(mesh.watch("a"))  # the same topic: one subscription reaches the store
        wait_until(lambda: subscriptions() == 3 + 1, what="three pipelines and the heartbeat")
        watches.close()
        wait_until(lambda: subscriptions() == 0, what="nobody watches any more")


def test_the_broker_counts_its_clients(cluster: Cluster) -> None:
    context = sockets.context()
    socket = sockets.watcher(context)
    sockets.connect(socket, cluster.publish)
    sockets.subscribe(socket, publications.BROKER_TOPIC)

    def counted() -> tuple[int, int]:
        """(clients, stores) in the next beat."""
        while True:
            assert sockets.poll((socket,), 5.0), "the broker beats"
            frames = sockets.receive(socket, 1)
            if frames:
                beat = publications.decode_publications(frames[0])[0]
                return beat.clients, beat.stores  # type: ignore[union-attr]

    try:
        wait_until(lambda: counted() == (0, 1), what="nobody")
        with ExitStack() as clients:
            for _ in range(5):
                clients.enter_context(ckptmesh.connect(cluster.url))
            wait_until(lambda: counted() == (5, 1), what="five")
        wait_until(lambda: counted() == (0, 1), what="nobody again")
    finally:
        socket.close()
        context.term()


def test_info_prints_the_figures_of_status_and_stats(cluster: Cluster) -> None:
    with ckptmesh.connect(cluster.url) as mesh:
        mesh.commit("info", 1)
        status = mesh.status()
        info = CommandLine(cluster.url)
        found = json.loads(info("info", "--json").stdout)
        assert set(status["counts"]) == set(found["counts"])
        assert found["counts"]["commits"] == status["counts"]["commits"]
        assert found["counts"]["requests"] == status["counts"]["requests"] + (
            2 + found["client"]["retries"])  # hello, status
        assert found["log"]["bytes_on_disk"] == on_disk(cluster.data)
        assert found["store"]["keys"] == len(list(mesh.list()))
        made = found["client.operations"]
        assert {kind: of["count"] for kind, of in made.items()} == {"hello": 1, "status": 1}
        lines = info("info", "counts").stdout.splitlines()
        assert f"commits: {status['counts']['commits']}" in lines
