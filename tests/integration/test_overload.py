"""One that asks too much, or does not read, or only holds connections: the others go on.

Bounds are told in requests, bytes and batches, which are the same on every machine.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import ckptmesh
from ckptmesh import commands, limits, protocol, sockets
from ckptmesh.config import StoreConfig
from ckptmesh.messages import Scan
from ckptmesh.opening import open_engine
from ckptmesh.store_actor import StoreActor
from ckptmesh.testing.chaos import ChaosProxy
from tests.cluster import Cluster, wait_until
from tests.integration.peers import Client, RunningBroker, hello, settings, short_folder, until

FEW = 64  # descriptors that a process may have
THE_OTHER = 99_999_999  # the number of its request


def resident(pid: int, field: str = "VmRSS") -> int:
    """Memory of a process in MiB: now, or at its worst (VmHWM)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) // 1_024
    raise AssertionError(f"no {field}")


# --- descriptors ------------------------------------------------------------------------------


class FewDescriptors(Cluster):
    """A cluster whose broker may open few files."""

    def start_broker(self) -> None:
        self.broker = self._spawn(
            "broker", "--bind", self.url, "--publish", self.publish,
            wrap=["sh", "-c", f'ulimit -n {FEW}; exec "$@"', "sh"])


@pytest.mark.fault(51)
def test_half_open_connections_that_take_every_descriptor_disturb_nobody_who_is_there(
    tmp_path: Path,
) -> None:
    with FewDescriptors(tmp_path) as cluster, ckptmesh.connect(cluster.url) as mesh:
        with mesh.watch("a") as events:
            mesh.commit("a", 0)
            assert events.get(10) is not None
            assert cluster.broker is not None
            files = f"/proc/{cluster.broker.pid}/fd"
            where = ("127.0.0.1", int(cluster.url.rpartition(":")[2]))
            flood: list[socket.socket] = []

            def taken() -> int:  # one or two more or less, while one goes and another comes
                return len(os.listdir(files))

            def full() -> bool:  # the broker cuts what does not speak: so more and more of them
                if len(flood) < 20 * FEW:
                    flood.extend(socket.create_connection(where) for _ in range(FEW // 2))
                return taken() >= FEW

            wait_until(full, what="the last descriptor")
            for n in range(1, 51):
                mesh.commit("a", n)
            assert [event and event.checkpoint and event.checkpoint.value
                    for event in (events.get(10) for _ in range(50))] == list(range(1, 51))
            assert taken() >= FEW - 4, "they were there all the time"
            for connection in flood:
                connection.close()
        with ckptmesh.connect(cluster.url) as fresh:
            assert fresh.value("a") == 50


# --- memory -----------------------------------------------------------------------------------


@pytest.mark.fault(54)
@pytest.mark.fault(52)
def test_a_reader_that_does_not_read_what_it_asked_for_costs_bounded_memory_and_delays_nobody(
    tmp_path: Path,
) -> None:
    """It asks for 1.6 GB in pages of 8 MB, at once. All that a batch packs for it is 16 MiB."""
    pages, asked = 8_000_000, 200
    with Cluster(tmp_path) as cluster, ckptmesh.connect(cluster.url) as mesh:
        for n in range(8):
            mesh.commit(f"big/{n}", bytes(pages // 8))
        assert cluster.store is not None
        assert cluster.broker is not None
        before = resident(cluster.store.pid), resident(cluster.broker.pid)
        op, body = commands.pack_command(Scan("big", "", limits.SCAN_LIMIT))
        with ChaosProxy(cluster.url) as proxy, Client(proxy.url) as reader:
            proxy.partition("down")
            for n in range(asked):
                reader.send(protocol.encode_request(
                    op, body, session=b"", number=n, low=0, uuid=b"", epoch=0))
            for n in range(20):  # behind all that, and answered
                assert mesh.commit("small", n).version == n + 1
            assert mesh.status()["counts"]["requests"] > asked, "the store had all of them"
        grown = (resident(cluster.store.pid, "VmHWM") - before[0],
                 resident(cluster.broker.pid, "VmHWM") - before[1])
    assert max(grown) < 300, f"store and broker grew by {grown} MiB; {asked} pages are 1,500"


# --- turns ------------------------------------------------------------------------------------


class Stand:
    """A broker, and a store's sockets whose batches are taken one by one."""

    def __init__(self, folder: Path) -> None:
        config = settings(folder)
        self.url, self.direct = config.bind, f"ipc://{folder}/direct"
        self.running = RunningBroker(config)
        self.engine = open_engine(None)
        self.actor = StoreActor(self.engine, StoreConfig(data=config.data, direct=self.direct))
        until(lambda: self.running.broker._seen_stores == 1, "the store is seen")

    def batches_until_the_other(self, hot: Client) -> int:
        """Batches up to the one with its request, while the hot client asks on without pause."""
        for count in range(1, 100):
            batch = self.actor._drain()
            if any(protocol.decode_request(payload).number == THE_OTHER for _, payload in batch):
                return count
            ask_until_full(hot, most=2_000)
        raise AssertionError("the other was never heard")

    def close(self) -> None:
        self.actor.close()
        self.engine.close()
        self.running.stop()


@pytest.fixture
def stand() -> Iterator[Stand]:
    with short_folder() as folder:
        found = Stand(folder)
        yield found
        found.close()


def ask_until_full(client: Client, most: int) -> int:
    """Send requests until no more are taken for a while, or so many were."""
    sent, quiet = 0, time.monotonic() + 0.2
    while sent < most and time.monotonic() < quiet:
        if sockets.send(client.socket, [hello(sent)]):
            sent, quiet = sent + 1, time.monotonic() + 0.2
    return sent


@pytest.mark.fault(55)
@pytest.mark.parametrize(("way", "asked", "bound"), [
    # All that a client of ours has in flight: as many reads and as many transactions.
    ("url", 2 * limits.IN_FLIGHT_REQUESTS, 3),
    # A stranger who asks until nothing more is taken, anywhere between him and the store.
    ("url", 3 * limits.QUEUE, 2 * limits.QUEUE // limits.BATCH_REQUESTS + 3),
    # On a direct address each peer has a queue of its own, and they take turns.
    ("direct", 3 * limits.QUEUE, 1),
])
def test_a_client_that_asks_without_pause_delays_another_by_few_batches(
    stand: Stand, way: str, asked: int, bound: int
) -> None:
    url = getattr(stand, way)
    with Client(url) as hot, Client(url) as other:
        assert ask_until_full(hot, asked) >= min(asked, limits.QUEUE)
        other.send(hello(THE_OTHER))
        time.sleep(0.6)  # it is in the queue now; what the hot client sends later stands behind it
        assert stand.batches_until_the_other(hot) <= bound
