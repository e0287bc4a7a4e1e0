"""Watching through a real broker and a real store, which get killed."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from ckptmesh.aio import connect_async
from ckptmesh.client import Client, connect
from ckptmesh.testing.blocking import blocking
from tests.cluster import Cluster

WATCHERS = 100


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path) as running:
        yield running


@pytest.fixture(params=["sync", "async"])
def reader(request: Any, cluster: Cluster) -> Iterator[Any]:
    """A client to watch with; another one commits."""
    make = {"sync": lambda: connect(cluster.url),
            "async": lambda: blocking(lambda: connect_async(cluster.url))}[request.param]
    with make() as client:
        yield client


@pytest.fixture
def writer(cluster: Cluster) -> Iterator[Client]:
    with connect(cluster.url, timeout=60) as client:
        yield client


def values(events: Any, count: int) -> list[Any]:
    found: list[Any] = []
    while len(found) < count:
        event = events.get(timeout=20)
        assert event is not None, f"only {len(found)} of {count} events came"
        found.append(event.checkpoint.value)
    return found


def test_a_hundred_watchers_ask_nothing_while_nothing_is_lost(
    reader: Any, writer: Client,
) -> None:
    with ExitStack() as stack:
        watches = [stack.enter_context(reader.watch("orders")) for _ in range(WATCHERS)]
        writer.commit("orders", "first")
        for events in watches:
            assert values(events, 1) == ["first"]
        time.sleep(1.2)  # a heartbeat, in case the first commit came before a subscription
        asked = []
        for events in watches:
            assert events.get(timeout=0) is None
            asked.append(events.stats.since_requests)
        for n in range(50):
            writer.commit("orders/a", n)
            writer.commit(f"other/{n}", n)
        time.sleep(1.2)
        for events in watches:
            assert values(events, 50) == list(range(50))
            assert events.get(timeout=0) is None
        assert [events.stats.since_requests for events in watches] == asked
        assert max(asked) <= 2
        assert {events.stats.gaps for events in watches} <= {0, 1}
        assert {events.stats.sockets for events in watches} == {1}


@pytest.mark.fault(37)
@pytest.mark.parametrize("victim", ["store", "broker"])
def test_a_watch_survives_the_death_of_what_it_watches_through(
    cluster: Cluster, reader: Any, writer: Client, victim: str,
) -> None:
    stop = threading.Event()
    committed: list[int] = []

    def commit() -> None:
        while not stop.is_set():
            writer.commit("orders", len(committed))
            committed.append(len(committed))
            time.sleep(0.002)

    with reader.watch("orders") as orders, reader.watch() as everything:
        thread = threading.Thread(target=commit)
        thread.start()
        try:
            for kills in range(1, 3):
                until = time.monotonic() + 30
                while len(committed) < 10 * kills and time.monotonic() < until:
                    time.sleep(0.01)
                cluster.kill(getattr(cluster, victim))
                time.sleep(0.1)
                getattr(cluster, f"start_{victim}")()
            time.sleep(0.3)
        finally:
            stop.set()
            thread.join(60)
        assert len(committed) > 20
        assert values(orders, len(committed)) == committed
        assert values(everything, len(committed)) == committed
        assert orders.get(timeout=0.2) is None


def test_a_watch_outlives_a_long_silence(
    cluster: Cluster, reader: Any, writer: Client, monkeypatch: Any,
) -> None:
    monkeypatch.setattr("ckptmesh.watching.HEARTBEAT_LOST", 0.5)
    with reader.watch("orders") as events:
        writer.commit("orders", 1)
        assert values(events, 1) == [1]
        cluster.kill(cluster.store)
        cluster.kill(cluster.broker)
        assert events.get(timeout=1.5) is None
        cluster.start_broker()
        cluster.start_store()
        writer.commit("orders", 2)
        assert values(events, 1) == [2]
        assert events.stats.sockets > 1


def ends(reader: Any, pause: float) -> list[Any]:
    """What a watch in another thread gives when its client is closed after a pause."""
    events = reader.watch("orders").__enter__()
    ended: list[Any] = []
    thread = threading.Thread(target=lambda: ended.append(list(events)))
    thread.start()
    time.sleep(pause)
    reader.close()
    thread.join(10)
    return ended


def test_closing_the_client_ends_its_watches(reader: Any) -> None:
    assert ends(reader, 0.1) == [[]]


def test_closing_the_client_ends_a_watch_wherever_it_is(cluster: Cluster) -> None:
    for pause in (0.0, 0.001, 0.003, 0.01) * 5:
        assert ends(connect(cluster.url), pause) == [[]]
