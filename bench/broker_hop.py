"""What the broker costs: round trips and throughput through it and beside it, side by side.

    python bench/broker_hop.py

A trivial peer that echoes stands behind a real broker, and is connected to directly as well. Both
ways are measured in turns, in one run, so that a busy machine is busy for both.
"""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from statistics import median

from ckptmesh import sockets
from ckptmesh.config import BrokerConfig, arguments
from ckptmesh.sockets import Socket

ROUND_TRIPS, TURNS = 1_000, 5
MESSAGES, CLIENTS, IN_FLIGHT = 30_000, 2, 256
PAYLOAD = b"x" * 100


def echo(backend: str, report: Connection) -> None:
    """A peer that sends everything back: over the broker, and at an address of its own."""
    router = sockets.store_requests(sockets.context())
    report.send(sockets.bind(router, "tcp://127.0.0.1:*").url)
    sockets.connect(router, backend)
    while True:
        sockets.poll([router], None)
        while (frames := sockets.receive(router, sockets.STORE_PARTS)) is not None:
            sockets.send(router, frames)


def connected(url: str) -> Socket:
    """A client at an address, with its echo heard."""
    client = sockets.client_requests(sockets.context())
    sockets.connect(client, url)
    while not (sockets.send(client, [PAYLOAD]) and sockets.poll([client], 0.2)):
        time.sleep(0.01)
    while sockets.poll([client], 0.2):
        sockets.receive(client, 1)
    return client


def round_trips(client: Socket) -> list[float]:
    """Seconds of each of some round trips, one after the other."""
    found = []
    for _ in range(ROUND_TRIPS):
        began = time.perf_counter()
        sockets.send(client, [PAYLOAD])
        sockets.poll([client], 5.0)
        sockets.receive(client, 1)
        found.append(time.perf_counter() - began)
    return found


def load(url: str, report: Connection) -> None:
    """One client with many requests in flight; reports when it began and ended."""
    client = connected(url)
    report.send("ready")
    report.recv()
    sent = answered = 0
    began = time.perf_counter()
    while answered < MESSAGES:
        while sent < MESSAGES and sent - answered < IN_FLIGHT and sockets.send(client, [PAYLOAD]):
            sent += 1
        sockets.poll([client], 5.0)
        while sockets.receive(client, 1) is not None:
            answered += 1
    report.send(time.perf_counter() - began)


def throughput(url: str) -> float:
    """Round trips a second of several clients at once."""
    pipes = []
    for _ in range(CLIENTS):
        ours, theirs = multiprocessing.Pipe()
        multiprocessing.Process(target=load, args=(url, theirs), daemon=True).start()
        pipes.append(ours)
    for pipe in pipes:
        pipe.recv()
    for pipe in pipes:
        pipe.send("go")
    return CLIENTS * MESSAGES / max(pipe.recv() for pipe in pipes)


def main() -> None:
    multiprocessing.set_start_method("spawn")
    with tempfile.TemporaryDirectory(prefix="ckpt-") as folder:
        config = BrokerConfig(
            bind="tcp://127.0.0.1:17701", publish="tcp://127.0.0.1:17702", data=f"{folder}/data"
        )
        broker = subprocess.Popen(
            [sys.executable, "-m", "ckptmesh", "broker", *arguments(config)],
            stderr=subprocess.DEVNULL,
        )
        report, theirs = multiprocessing.Pipe()
        peer = multiprocessing.Process(target=echo, args=(config.backend, theirs), daemon=True)
        peer.start()
        try:
            ways = {"through the broker": config.bind, "directly": report.recv()}
            clients = {name: connected(url) for name, url in ways.items()}
            times: dict[str, list[float]] = {name: [] for name in ways}
            rates: dict[str, list[float]] = {name: [] for name in ways}
            for _ in range(TURNS):
                for name, url in ways.items():
                    times[name] += round_trips(clients[name])
                    rates[name].append(throughput(url))
            for name in ways:
                worst = sorted(times[name])[int(0.99 * len(times[name]))]
                print(f"{name:20} round trip p50 {median(times[name]) * 1e6:4.0f} µs, "
                      f"p99 {worst * 1e6:5.0f} µs; {CLIENTS} clients with {IN_FLIGHT} in flight: "
                      f"median of {TURNS} {median(rates[name]):9,.0f}/s")
        finally:
            peer.terminate()
            broker.terminate()
            broker.wait(10)


if __name__ == "__main__":
    main()
