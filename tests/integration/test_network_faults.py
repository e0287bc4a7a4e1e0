"""Faults of the network between real processes and their clients, made by a proxy in between."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

import ckptmesh
from ckptmesh import errors, sockets
from ckptmesh.config import StoreConfig
from ckptmesh.testing.chaos import ChaosProxy
from tests.cluster import Cluster, wait_until

TTL = 0.5  # seconds of the leases here


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One that no test here harms: the faults are beside it."""
    with Cluster(tmp_path_factory.mktemp("network")) as running:
        yield running


@pytest.fixture
def proxy(cluster: Cluster) -> Iterator[ChaosProxy]:
    """On the way of `mesh`."""
    with ChaosProxy(cluster.url) as running:
        yield running


@pytest.fixture
def mesh(proxy: ChaosProxy, request: pytest.FixtureRequest) -> Iterator[ckptmesh.Client]:
    """A client whose way is broken; its keys stand under the name of the test."""
    with ckptmesh.connect(proxy.url, prefix=request.node.name, timeout=30) as client:
        client.commit("before", 0)  # so that it has its session
        yield client


@pytest.fixture
def other(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[ckptmesh.Client]:
    """A client of the same keys whose way is whole."""
    with ckptmesh.connect(cluster.url, prefix=request.node.name) as client:
        yield client


@pytest.fixture
def publications(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[ChaosProxy]:
    """On the way of every watch that is begun in this test."""
    with ChaosProxy(cluster.publish) as running:
        monkeypatch.setattr(sockets, "dialable", lambda publish, request: running.url)
        yield running


def counted(client: Any, count: int) -> None:
    """The counter stands where `count` increments, each once, have left it."""
    found = client.get("count")
    assert (found.value, found.version) == (count, count)


def settled(commit: Future[ckptmesh.Receipt]) -> bool:
    """Let the client work for a moment: it does so only while somebody waits."""
    with suppress(TimeoutError):
        commit.exception(0.02)
    return commit.done()


@pytest.mark.fault(30)
def test_a_request_lost_with_its_connection_is_asked_again(
    proxy: ChaosProxy, mesh: ckptmesh.Client, other: ckptmesh.Client
) -> None:
    proxy.partition("up")
    commit = mesh.submit("count", 1, expect=None)
    wait_until(lambda: settled(commit) or proxy.waiting > 0, what="the request on its way")
    assert proxy.reset_all() == 1
    assert other.get("count") is None, "it was lost"
    proxy.heal()
    assert commit.result(20).version == 1
    counted(other, 1)
    assert mesh.stats()["retries"] >= 1


@pytest.mark.fault(30)
def test_a_request_cut_in_its_middle_is_nothing_and_its_copy_everything(
    proxy: ChaosProxy, mesh: ckptmesh.Client, other: ckptmesh.Client
) -> None:
    proxy.cut_after(70_000, "up")
    commit = mesh.submit("large", bytes(200_000), expect=None)
    wait_until(lambda: settled(commit) or proxy.counts["cut"] >= 1, what="the cut")
    assert other.get("large") is None
    proxy.heal()
    assert commit.result(20).version == 1
    assert other.value("large") == bytes(200_000)


@pytest.mark.fault(31)
def test_a_reply_lost_with_its_connection_is_given_again(
    proxy: ChaosProxy, mesh: ckptmesh.Client, other: ckptmesh.Client
) -> None:
    for count in (1, 2, 3):
        proxy.partition("down")
        commit = mesh.submit("count", count)
        wait_until(lambda n=count: other.value("count", 0) == n, what="the commit at the store")
        first = other.get("count")
        wait_until(lambda c=commit: settled(c) or proxy.waiting > 0, what="its reply on its way")
        assert proxy.reset_all() >= 1
        proxy.heal()
        assert first is not None
        assert commit.result(20).revision == first.revision
        counted(other, count)


@pytest.mark.fault(33)
def test_a_half_open_connection_is_found_by_its_unacknowledged_bytes_and_replaced(
    proxy: ChaosProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sockets, "UNACKNOWLEDGED", 600)
    with ckptmesh.connect(proxy.url, prefix="half-open") as mesh:
        mesh.commit("before", 0)
        proxy.partition()
        commits = [mesh.submit(f"large/{n}", bytes(8_000_000), expect=None) for n in range(3)]
        with pytest.raises(TimeoutError):  # more than any buffer on the way takes
            commits[-1].result(0.2)
        wait_until(lambda: settled(commits[-1]) or proxy.counts["accepted"] > 1,
                   what="a new connection")
        proxy.heal()
        assert [commit.result(30).version for commit in commits] == [1, 1, 1]
        assert [found.version for found in mesh.list("large")] == [1, 1, 1]


@pytest.mark.fault(33)
def test_a_black_hole_leaves_a_commit_in_doubt_and_the_doubt_can_be_resolved(
    proxy: ChaosProxy, mesh: ckptmesh.Client, other: ckptmesh.Client
) -> None:
    proxy.black_hole("up")
    with pytest.raises(errors.OutcomeUnknown) as swallowed:
        mesh.commit("a", 1, timeout=0.3)
    proxy.heal()
    assert swallowed.value.resolve() is None
    proxy.black_hole("down")
    with pytest.raises(errors.OutcomeUnknown) as unanswered:
        mesh.commit("a", 2, timeout=0.3)
    proxy.heal()
    receipt = unanswered.value.resolve()
    found = other.get("a")
    assert found is not None
    assert receipt is not None
    assert (found.value, found.version, found.revision) == (2, 1, receipt.revision)


@pytest.mark.fault(33)
def test_a_watch_on_a_connection_that_was_forgotten_takes_a_new_one(
    publications: ChaosProxy, other: ckptmesh.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ckptmesh.watching.HEARTBEAT_LOST", 1.5)
    with other.watch() as events:
        assert events.get(1.1) is None
        assert events.stats.heartbeats > 0
        publications.forget()
        before = events.stats.sockets
        other.commit("a", 1)
        event = events.get(10)
        assert event is not None
        assert event.key == "a"
        assert events.stats.sockets > before


def in_its_place(other: ckptmesh.Client, lease: ckptmesh.Receipt) -> ckptmesh.Receipt:
    """Wait until the lease has ended, and take it. The new token is greater."""
    wait_until(lambda: other.get("lease") is None, what="the end of the lease")
    taken = other.create("lease", "other", ttl=60, lease=True)
    assert (taken.epoch, taken.revision) > (lease.epoch, lease.revision)
    return taken


@pytest.mark.fault(34)
def test_a_client_cut_off_beyond_its_lease_loses_it_and_its_late_commit_is_refused(
    proxy: ChaosProxy, mesh: ckptmesh.Client, other: ckptmesh.Client
) -> None:
    lease = mesh.create("lease", "mesh", ttl=TTL, lease=True)
    mesh.commit("work", 1, guard=lease)
    proxy.partition()
    late = mesh.submit("work", 2, guard=lease)
    wait_until(lambda: settled(late) or proxy.waiting > 0, what="the late commit on its way")
    taken = in_its_place(other, lease)
    other.commit("work", 3, guard=taken)
    proxy.heal()
    with pytest.raises(errors.LeaseLost):
        late.result(20)
    with pytest.raises(errors.LeaseLost):
        mesh.commit("work", 4, guard=lease)
    with pytest.raises(errors.LeaseLost):
        mesh.keepalive(lease)
    assert other.value("work") == 3


def drained(events: Any, count: int) -> list[Any]:
    found = []
    while len(found) < count:
        event = events.get(20)
        assert event is not None, f"{len(found)} of {count} events came"
        found.append(event.checkpoint.value)
    return found


@pytest.mark.fault(35)
def test_a_watch_whose_way_is_cut_again_and_again_gives_every_event_once(
    publications: ChaosProxy, other: ckptmesh.Client
) -> None:
    with other.watch() as events:
        committed = 0
        seen: list[Any] = []

        def step() -> None:
            nonlocal committed
            other.commit("a", committed)
            committed += 1
            if (event := events.get(0.02)) is not None:
                seen.append(event.checkpoint.value)

        for turn in range(1, 5):
            before = events.stats.received
            while events.stats.received < before + 5:
                step()
            publications.cut_after(500, "down")  # in the middle of a publication
            while publications.counts["cut"] < turn:
                step()
            publications.heal()
        seen += drained(events, committed - len(seen))
        assert seen == list(range(committed))
        assert events.get(0.1) is None
        assert events.stats.gaps > 0


@pytest.mark.fault(36)
def test_a_watch_misses_nothing_that_was_committed_before_its_subscription_arrived(
    publications: ChaosProxy, other: ckptmesh.Client
) -> None:
    publications.delay(0.5, way="up")
    with other.watch() as events:
        for n in range(30):
            other.commit("a", n)
        assert events.stats.received == 0
        assert drained(events, 30) == list(range(30))
        assert events.stats.received < 30, "the subscription was in time: nothing was shown"
        wait_until(lambda: publications.counts["down"] > 0, what="the subscription")
        other.commit("a", "later")
        assert drained(events, 1) == ["later"]


@pytest.mark.fault(36)
def test_a_watch_that_joins_late_begins_where_it_is_told(
    cluster: Cluster, other: ckptmesh.Client
) -> None:
    receipts = [other.commit("a", n) for n in range(50)]
    with other.watch(since=receipts[9]) as events, other.watch() as fresh:
        other.commit("a", 50)
        assert drained(events, 41) == list(range(10, 51))
        assert drained(fresh, 1) == [50]


# --- clusters that are harmed -----------------------------------------------------------------


@pytest.mark.fault(37)
def test_after_the_death_of_a_broker_a_hundred_watches_and_ten_clients_are_heard_again(
    tmp_path: Path,
) -> None:
    async def work(cluster: Cluster) -> None:
        clients = [await ckptmesh.connect_async(cluster.url, timeout=60) for _ in range(10)]
        watches = [client.watch("all") for client in clients for _ in range(10)]
        for watch in watches:
            await watch.__aenter__()
        for turn in range(2):
            await asyncio.gather(*(client.increment("all/count") for client in clients))
            for watch in watches:
                events = [await watch.get(timeout=30) for _ in clients]
                assert [e and e.checkpoint and e.checkpoint.value for e in events] == list(
                    range(turn * 10 + 1, turn * 10 + 11))
            if turn == 0:
                await asyncio.to_thread(cluster.kill, cluster.broker)
                await asyncio.to_thread(cluster.start_broker)
        for watch in watches:
            await watch.close()
        for client in clients:
            await client.close()

    with Cluster(tmp_path) as cluster:
        asyncio.run(work(cluster))


@pytest.mark.fault(38)
def test_a_reply_of_the_store_before_that_arrives_after_its_restart_is_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ckptmesh.session.RESEND_MAX", 0.3)  # every second copy goes to the dead
    with ExitStack() as stack:
        cluster = stack.enter_context(Cluster(tmp_path))
        cluster.stop(cluster.store)
        proxy = stack.enter_context(ChaosProxy(StoreConfig(data=str(cluster.data)).backend))
        cluster.flags = ["--backend", proxy.url]
        cluster.start_store()
        mesh = stack.enter_context(ckptmesh.connect(cluster.url, timeout=30))
        first = mesh.commit("count", 1)
        proxy.partition("up")  # from the store, which connects, to the broker
        commit = mesh.submit("count", 2)
        wait_until(lambda: settled(commit) or proxy.waiting > 0, what="the reply")
        cluster.kill(cluster.store)
        cluster.flags = []
        cluster.start_store()  # beside the proxy: the broker still takes the old one for alive
        receipt = commit.result(30)  # the first outcome, told by the new store
        assert (receipt.revision, receipt.epoch) == (first.revision + 1, first.epoch)
        before = mesh.stats()["discarded"]
        proxy.heal()
        wait_until(lambda: mesh.get("count") and mesh.stats()["discarded"] > before,
                   what="the old reply")
        found = mesh.get("count")
        assert found is not None
        assert (found.value, found.version) == (2, 2)
        assert mesh.commit("count", 3).epoch == first.epoch + 1
