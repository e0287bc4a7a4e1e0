"""Locks exclude what they cover, serve in the order of asking, and fence; on every store."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import ckptmesh
from ckptmesh import LeaseLost, LockTimeout, Misuse
from ckptmesh.client import Client
from ckptmesh.features.locks import Lock, covers, folder_of
from tests.cluster import Cluster

TTL = 20


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("locks")) as found:
        yield found


@pytest.fixture(params=["memory", "file", "mesh"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "mesh":
        found: str = request.getfixturevalue("cluster").url
        return found
    return "memory://" if request.param == "memory" else f"file:{tmp_path}/store"


@pytest.fixture
def mesh(url: str, request: pytest.FixtureRequest) -> Iterator[Client]:
    with ckptmesh.connect(url, prefix=f"p{abs(hash(request.node.name))}") as client:
        yield client


class Waiting:
    """A thread that waits for a lock, and what became of it."""

    def __init__(self, mesh: Client, name: str, had: list[str], tag: str, *,
                 shared: bool = False) -> None:
        self.go = threading.Event()
        self.lock = mesh.lock(name, shared=shared, ttl=TTL, wait=30, holder=tag)
        self._had, self._tag = had, tag
        self.thread = threading.Thread(target=self._run)
        self.thread.start()
        until(lambda: tickets(mesh, name, tag) == 1)

    def _run(self) -> None:
        with self.lock:
            self._had.append(self._tag)
            assert self.go.wait(30)

    def end(self) -> None:
        self.go.set()
        self.thread.join(30)
        assert not self.thread.is_alive()


def tickets(mesh: Client, name: str, holder: str | None = None) -> int:
    return sum(holder in (None, each.value["holder"]) for each in mesh.scan(folder_of(name)))


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_names_cover_whole_segments() -> None:
    assert covers("a", "a")
    assert covers("a", "a/b")
    assert covers("a/b/c", "a")
    assert not covers("a/b", "a/bc")
    assert not covers("a/b", "a/c")


def test_a_lock_commits_under_its_token_and_leaves_nothing_behind(mesh: Client) -> None:
    with mesh.lock("orders", ttl=TTL) as lock:
        assert lock.held
        assert not lock.lost.is_set()
        receipt = mesh.commit("orders", 1, guard=lock)
        assert lock.token < receipt.token
        assert mesh.get(lock.key).is_lease  # type: ignore[union-attr]
    assert not lock.held
    assert tickets(mesh, "orders") == 0
    with pytest.raises(Misuse, match="is not held"):
        mesh.commit("orders", 2, guard=lock)
    with lock:  # it can be had again
        assert mesh.commit("orders", 3, guard=lock).version == 2


@pytest.mark.parametrize(("held", "asked"), [
    ("a", "a"), ("a", "a/b"), ("a/b", "a"), ("a", "a/b/c"), ("a/b/c", "a")])
def test_a_lock_excludes_what_it_covers_and_what_covers_it(mesh: Client, held: str, asked: str
                                                           ) -> None:
    had: list[str] = []
    first = Waiting(mesh, held, had, "first")
    with pytest.raises(LockTimeout, match=f"first holds or awaits '{held}'") as caught:
        mesh.lock(asked, ttl=TTL, wait=0).acquire()
    assert caught.value.details["holder"] == "first"
    assert caught.value.details["key"] == asked
    assert tickets(mesh, "a") == 1, "who gave up has left no ticket"
    with mesh.lock("a-b", ttl=TTL, wait=0), mesh.lock("b/a", ttl=TTL, wait=0):
        pass
    first.end()
    with mesh.lock(asked, ttl=TTL, wait=0):
        pass


def test_siblings_do_not_wait_for_each_other(mesh: Client) -> None:
    with (mesh.lock("a/1", ttl=TTL, wait=0), mesh.lock("a/2", ttl=TTL, wait=0),
          mesh.lock("a/12", ttl=TTL, wait=0)):
        assert tickets(mesh, "a") == 3


def test_shared_locks_go_together_and_stand_behind_an_exclusive_one(mesh: Client) -> None:
    had: list[str] = []
    readers = [Waiting(mesh, "a", had, f"r{n}", shared=True) for n in range(3)]
    until(lambda: len(had) == 3)
    writer = Waiting(mesh, "a/b", had, "w")
    late = Waiting(mesh, "a", had, "late", shared=True)
    for reader in readers:
        assert sorted(had) == ["r0", "r1", "r2"]
        reader.end()
    until(lambda: len(had) == 4)
    assert had[3] == "w", "an exclusive lock that waits is not passed by shared ones"
    writer.end()
    until(lambda: len(had) == 5)
    late.end()


def test_those_who_wait_are_served_in_the_order_of_asking(mesh: Client) -> None:
    had: list[str] = []
    waiting = [Waiting(mesh, "a", had, str(n)) for n in range(6)]
    for count, each in enumerate(waiting, 1):
        until(lambda count=count: len(had) == count)  # type: ignore[misc]
        each.end()
    assert had == [str(n) for n in range(6)]
    assert tickets(mesh, "a") == 0


def test_who_would_wait_for_himself_is_told(mesh: Client) -> None:
    with mesh.lock("a/b", ttl=TTL):
        for name in ("a", "a/b", "a/b/c"):
            with pytest.raises(Misuse, match="would wait for ever"):
                mesh.lock(name, ttl=TTL).acquire()
    with mesh.lock("a", shared=True, ttl=TTL), mesh.lock("a/b", shared=True, ttl=TTL):
        pass


def test_a_holder_whose_lease_has_ended_is_refused_and_told(mesh: Client) -> None:
    lock = mesh.lock("a", ttl=TTL).acquire()
    token = lock.lease
    mesh.delete(lock.key)  # as an operator does who frees a lock
    with pytest.raises(LeaseLost):
        mesh.commit("a", "zombie", guard=token)
    lock._kept.due = 0  # type: ignore[union-attr]  # the next renewal, now
    with mesh.lock("b", ttl=TTL):  # wakes the one who renews
        assert lock.lost.wait(10)
    with pytest.raises(LeaseLost):
        mesh.commit("a", "zombie", guard=lock)
    with pytest.raises(LeaseLost):
        lock.release()
    assert mesh.get("a") is None
    with mesh.lock("a", ttl=TTL, wait=0):
        pass


def test_a_lease_is_renewed_while_the_holder_computes(mesh: Client) -> None:
    with mesh.lock("a", ttl=0.6) as lock:
        end = time.monotonic() + 1.8
        while time.monotonic() < end:
            sum(range(10_000))
        assert lock.held
        mesh.commit("a", 1, guard=lock)


@pytest.mark.parametrize("bad", [
    {"name": "a/_lock"}, {"name": ""}, {"ttl": 0}, {"ttl": -1}, {"wait": -1}, {"ttl": None}])
def test_a_lock_that_cannot_be_is_refused_before_anything_is_asked(
    mesh: Client, bad: dict[str, object]
) -> None:
    options: dict[str, object] = {"name": "a", **bad}
    with pytest.raises((Misuse, ckptmesh.InvalidKey)):
        mesh.lock(**options)  # type: ignore[arg-type]


def test_a_handle_that_is_held_is_not_taken_again_and_still_gives_its_ticket_back(mesh: Client
                                                                                 ) -> None:
    lock = mesh.lock("a", ttl=TTL)
    with lock:
        with pytest.raises(Misuse, match="held or awaited already"):
            lock.acquire()
        assert lock.held
    assert tickets(mesh, "a") == 0
    with mesh.lock("a", ttl=TTL, wait=0):
        pass


def test_a_handle_that_lost_its_lock_can_be_had_again_and_knows_of_no_loss(mesh: Client) -> None:
    lock = mesh.lock("a", ttl=TTL).acquire()
    lock._kept.lose(LeaseLost("as if"))  # type: ignore[union-attr]
    assert lock.lost.is_set()
    with pytest.raises(LeaseLost, match="as if"):
        lock.release()
    mesh.delete(lock.key)
    with lock:
        assert not lock.lost.is_set()


def test_a_lock_that_is_not_held_is_not_released(mesh: Client) -> None:
    lock: Lock = mesh.lock("a", ttl=TTL)
    with pytest.raises(Misuse, match="is not held"):
        lock.release()
    with pytest.raises(Misuse, match="is not held"):
        _ = lock.token


def test_tasks_wait_in_the_order_of_asking_and_may_be_cancelled(url: str) -> None:
    async def main() -> list[int]:
        had: list[int] = []
        async with await ckptmesh.connect_async(url, prefix="tasks") as mesh:
            async def one(number: int) -> None:
                async with mesh.lock("a", ttl=TTL, wait=30) as lock:
                    had.append(number)
                    await mesh.commit("a", number, guard=lock)

            async with mesh.lock("a", ttl=TTL):
                tasks = []
                for number in range(5):
                    tasks.append(asyncio.create_task(one(number)))
                    while len(await mesh.scan(folder_of("a"))) < number + 2:
                        await asyncio.sleep(0.005)
                tasks[2].cancel()
                with pytest.raises(asyncio.CancelledError):
                    await tasks[2]
            await asyncio.gather(tasks[0], tasks[1], *tasks[3:])
            assert await mesh.scan(folder_of("a")) == []
            with pytest.raises(LockTimeout):
                async with mesh.lock("b", ttl=TTL):
                    await asyncio.create_task(mesh.lock("b", ttl=TTL, wait=0).acquire())
            return had

    assert asyncio.run(main()) == [0, 1, 3, 4]
