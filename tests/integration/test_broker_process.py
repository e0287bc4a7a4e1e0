"""The broker as a process of its own: idle cost, signals, exit codes, kills, descriptors."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ckptmesh import sockets
from ckptmesh.config import BrokerConfig, arguments
from ckptmesh.errors import Unavailable
from tests.integration.peers import (
    WAIT,
    BrokerProcess,
    Client,
    EchoStore,
    Watcher,
    hello,
    reply_of,
    settings,
    short_folder,
    until,
)


@pytest.fixture
def folder() -> Iterator[Path]:
    with short_folder() as path:
        yield path


@pytest.fixture
def config(folder: Path) -> BrokerConfig:
    return settings(folder)


def cpu_share(broker: BrokerProcess, seconds: float = 1.0) -> float:
    """The part of one processor that the broker uses just now."""
    began, used = time.monotonic(), broker.cpu_seconds()
    time.sleep(seconds)
    return (broker.cpu_seconds() - used) / (time.monotonic() - began)


def test_without_a_store_the_broker_does_not_spin(config: BrokerConfig) -> None:
    with BrokerProcess(config) as broker, Client(config.bind) as client:
        assert isinstance(reply_of(client.ask(hello(1))).error, Unavailable)
        client.send(b"malformed: nobody can answer this one")
        for number in range(100):
            client.send(hello(number))  # and nobody reads the answers
        assert cpu_share(broker) < 0.15


def test_after_its_store_was_lost_the_broker_does_not_spin(config: BrokerConfig) -> None:
    with BrokerProcess(config) as broker, Client(config.bind) as client:
        with EchoStore(config):
            until(lambda: "a store is connected" in broker.log(), "the store is seen")
            assert client.ask(b"x") == b"echox"
            assert cpu_share(broker, 0.5) < 0.15
        for number in range(100):
            client.send(hello(number))
        until(lambda: "the store is gone" in broker.log(), "the loss is seen")
        assert cpu_share(broker) < 0.15


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_signal_ends_it_cleanly_within_two_seconds(
    config: BrokerConfig, number: signal.Signals
) -> None:
    with (
        BrokerProcess(config) as broker, EchoStore(config),
        Client(config.bind) as client, Watcher(config.publish, b""),
    ):
        until(lambda: "a store is connected" in broker.log(), "the store is seen")
        for n in range(2_000):
            client.send(b"%d" % n)
        began = time.monotonic()
        broker.process.send_signal(number)
        assert broker.process.wait(WAIT) == 0
        assert time.monotonic() - began < 2.0
        assert broker.log().endswith("stopped\n")
        assert not os.path.exists(config.bind.removeprefix("ipc://"))


def test_it_is_ready_for_a_supervisor_once_it_serves(config: BrokerConfig) -> None:
    read, write = os.pipe()
    environ = {**os.environ, "CKPTMESH_READY_FD": str(write)}
    with BrokerProcess(config, env=environ, pass_fds=(write,)) as broker:
        os.close(write)
        assert os.read(read, 64) == b"READY=1\n"
        broker.process.kill()
        assert os.read(read, 64) == b""  # nobody else holds the other end
    os.close(read)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"bind": "tcp://127.0.0.1:99999"}, "99999"),
        ({"bind": "http://127.0.0.1:80"}, "http://127.0.0.1:80"),
        ({"publish": "ipc:///" + "x" * 200}, "107"),
    ],
)
def test_a_wrong_address_ends_it_with_code_2_and_says_which(
    config: BrokerConfig, change: dict[str, str], said: str
) -> None:
    with BrokerProcess(replace(config, **change)) as broker:
        assert broker.process.wait(WAIT) == 2
        assert said in broker.log()


def test_an_address_in_use_ends_it_with_code_4_and_says_which(config: BrokerConfig) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        with BrokerProcess(replace(config, bind=url)) as broker:
            assert broker.process.wait(WAIT) == 4
            assert url in broker.log()
    with BrokerProcess(config), BrokerProcess(config) as second:
        assert second.process.wait(WAIT) == 4


@pytest.mark.fault(37)
def test_after_a_kill_three_hundred_clients_come_back(config: BrokerConfig) -> None:
    ctx = sockets.context()
    clients = [sockets.client_requests(ctx) for _ in range(300)]
    for client in clients:
        sockets.connect(client, config.bind)
    with EchoStore(config):
        for turn in range(2):
            with BrokerProcess(config) as broker:
                until(lambda b=broker: "a store is connected" in b.log(), "the store is seen")
                waiting = dict(enumerate(clients))
                for n, client in waiting.items():
                    until(
                        lambda c=client, t=b"%d" % n: sockets.send(c, [t]), "a client is back"
                    )
                for n, client in waiting.items():
                    assert sockets.poll([client], WAIT), f"client {n} has no answer, turn {turn}"
                    assert sockets.receive(client, 1) == [b"echo%d" % n]
                broker.process.kill()
    for client in clients:
        client.close(0)
    ctx.term()


@pytest.mark.fault(7)
def test_a_broker_killed_under_load_takes_neither_store_nor_client_along(
    config: BrokerConfig,
) -> None:
    """With IMMEDIATE=1 on the store's ROUTER, libzmq aborted this very process here."""
    with EchoStore(config) as store, Client(config.bind, wait=False) as client:
        for turn in range(8):
            with BrokerProcess(config) as broker:
                until(lambda b=broker: "a store is connected" in b.log(), "the store is seen")
                until(lambda: sockets.writable(client.socket), "the client is back")
                before = len(store.seen)
                for n in range(2_000):
                    sockets.send(client.socket, [b"%d %d" % (turn, n)])
                until(lambda b=before: len(store.seen) > b + 20, "requests arrive")
                broker.process.kill()


@pytest.mark.fault(51)
def test_half_open_connections_cannot_keep_clients_out_for_long(config: BrokerConfig) -> None:
    def few_descriptors() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (60, 60))

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = replace(config, bind=f"tcp://127.0.0.1:{port}")
    with BrokerProcess(config, preexec_fn=few_descriptors) as broker:
        silent = [socket.create_connection(("127.0.0.1", port), WAIT) for _ in range(50)]
        with Client(config.bind, wait=False) as client:
            until(lambda: sockets.writable(client.socket), "those in its way were cut off", 20.0)
            assert isinstance(reply_of(client.ask(hello(1))).error, Unavailable)
        assert broker.process.poll() is None
        for connection in silent:
            connection.close()


def test_a_broker_that_a_supervisor_started_ends_when_that_one_is_killed(
    config: BrokerConfig,
) -> None:
    program = (
        "import os, subprocess, sys, time\n"
        "child = subprocess.Popen(sys.argv[1:], env={**os.environ, 'CKPTMESH_PARENT':"
        " str(os.getpid())})\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    command = [sys.executable, "-m", "ckptmesh", "broker", *arguments(config)]
    parent = subprocess.Popen(
        [sys.executable, "-c", program, *command], stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        with Client(config.bind) as client:
            assert client.ask(hello(1))
            parent.kill()
            until(lambda: not _alive(pid), "the child ends", 3.0)
    finally:
        parent.kill()
        parent.communicate(timeout=WAIT)


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"
