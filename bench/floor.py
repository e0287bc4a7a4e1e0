"""What the machine gives at most, whatever is built on it: syncs a second of a preallocated file,
round trips through bare ZeroMQ sockets, directly and through a broker.

Behind the broker stands a peer that echoes; the same peer is connected to directly as well.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import time
from collections.abc import Iterator
from functools import partial
from multiprocessing.connection import Connection

from bench.context import Context
from bench.figures import Result, interleaved
from ckptmesh import sockets
from ckptmesh.benchmark.driver import Crew
from ckptmesh.benchmark.machine import try_disk
from ckptmesh.config import BrokerConfig
from tests.cluster import Cluster

PAYLOAD = b"x" * 100
IN_FLIGHT = 256
DIRECT, PROXIED = "ZeroMQ directly", "ZeroMQ, broker"


def echo(backend: str, report: Connection) -> None:
    """A peer that sends everything back: over the broker, and at an address of its own."""
    router = sockets.store_requests(sockets.context())
    report.send(sockets.bind(router, "tcp://127.0.0.1:*").url)
    sockets.connect(router, backend)
    while True:
        sockets.poll([router], None)
        while (frames := sockets.receive(router, sockets.STORE_PARTS)) is not None:
            sockets.send(router, frames)


class Echoed:
    """A worker with so many messages on their way, there and back."""

    def __init__(self, url: str, in_flight: int, number: int) -> None:
        self._context = sockets.context()
        self._socket = sockets.client_requests(self._context)
        self._in_flight = in_flight
        self._missing = 0
        sockets.connect(self._socket, url)
        self._hear_echo()

    def _hear_echo(self) -> None:
        """Wait until a message comes back; a broker answers itself until the peer is there."""
        heard: list[bytes] | None = None
        while heard != [PAYLOAD]:
            time.sleep(0.01)
            if sockets.send(self._socket, [PAYLOAD]) and sockets.poll([self._socket], 1.0):
                heard = sockets.receive(self._socket, 1)

    def step(self) -> int:
        """Fill up what is on its way, take what has come back."""
        while self._missing < self._in_flight and sockets.send(self._socket, [PAYLOAD]):
            self._missing += 1
        sockets.poll([self._socket], 5.0)
        came = 0
        while sockets.receive(self._socket, 1) is not None:
            came += 1
        self._missing -= came
        return came

    def close(self) -> None:
        """Let go of the socket."""
        self._context.destroy(linger=0)


def measure(context: Context) -> list[Result]:
    """Figures a second."""
    seconds = context.seconds / 4
    folder = context.folder / "floor"
    folder.mkdir()
    syncs = [try_disk(str(folder), seconds).rate for _ in range(context.rounds)]
    results = [Result("syncs", "/s", {"fdatasync": syncs}, ("fdatasync",),
                      remarks={"fdatasync": "4 KiB each, preallocated"})]
    there = Cluster(folder)
    with contextlib.ExitStack() as stack:
        stack.callback(lambda: there.kill(there.broker))
        there.start_broker()
        urls = {PROXIED: there.url, DIRECT: stack.enter_context(_echoing(there))}
        for name, in_flight, processes in (("round-trips", 1, 1), ("messages", IN_FLIGHT, 2)):
            runs = {way: partial(stack.enter_context(
                Crew(partial(Echoed, url, in_flight), processes)).run, seconds)
                for way, url in urls.items()}
            rates = {way: [each.rate for each in found]
                     for way, found in interleaved(runs, context.rounds).items()}
            results.append(Result(name, "/s", rates, (PROXIED,), (DIRECT,)))
    return results


@contextlib.contextmanager
def _echoing(there: Cluster) -> Iterator[str]:
    """The address of an echoing peer, which is behind a broker as well."""
    spawn = multiprocessing.get_context("forkserver")
    report, theirs = spawn.Pipe()
    backend = BrokerConfig(data=str(there.data)).backend
    process = spawn.Process(target=echo, args=(backend, theirs), daemon=True)
    process.start()
    try:
        yield report.recv()
    finally:
        process.kill()
        process.join()
