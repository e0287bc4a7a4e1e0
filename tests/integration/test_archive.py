"""Reads far below the floor and savepoints, on a real store that commits and compacts meanwhile."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import ckptmesh
from ckptmesh.messages import Setting
from tests.cluster import Cluster, wait_until

FLAGS = ("--segment-bytes", "1MiB", "--snapshot-bytes", "2MiB", "--history-revisions", "50")
KEYS = tuple(f"orders/{n}" for n in range(7))
ROUNDS, MANY = 10, 500

Then = dict[int, tuple[dict[str, int], Any]]
"""Revision → (value of each key after it, its time where it is the last one of that time)."""


def value(count: int) -> bytes:
    """Large enough that a few hundred make a segment."""
    return count.to_bytes(8, "big") * 200


def count_of(packed: Any) -> int:
    return int.from_bytes(packed[:8], "big")


def write(mesh: Any, then: Then, rounds: int = ROUNDS, count: int = 0) -> None:
    """Commits, each with a revision of its own, and what stood after some of them."""
    state: dict[str, int] = dict(then[max(then)][0]) if then else {}
    for _ in range(rounds):
        puts = [(KEYS[n % len(KEYS)], value(count + n)) for n in range(MANY)]
        receipts = mesh.commit_many(puts)
        for n, (key, _) in enumerate(puts):
            state[key] = count + n
            if n % 97 == 0 or n == MANY - 1:
                last = n == MANY - 1
                then[receipts[n].revision] = (dict(state), receipts[n].time if last else None)
        count += MANY


def stood(mesh: Any, at: Any) -> dict[str, int]:
    return {each.key: count_of(each.value) for each in mesh.list("orders", at=at, timeout=60)}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("archive"), *FLAGS) as found:
        yield found


@pytest.fixture(scope="module")
def then(cluster: Cluster) -> Then:
    found: Then = {}
    with ckptmesh.connect(cluster.url) as mesh:
        write(mesh, found)
        wait_until(lambda: mesh.status()["log"]["snapshots"], what="a compaction")
    return found


@contextlib.contextmanager
def asking(mesh: Any, what: Callable[[], Any]) -> Iterator[tuple[int, Future[Any]]]:
    """A read of the past that has come to a process that stands still: its pid, and the answer."""
    pid = mesh.status()["archive"]["pid"]
    os.kill(pid, signal.SIGSTOP)
    with ThreadPoolExecutor(1) as pool:
        try:
            future = pool.submit(what)
            wait_until(lambda: mesh.status()["archive"]["waiting"], what="the question")
            yield pid, future
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def test_every_cut_is_as_it_was_while_commits_and_compactions_go_on(
        cluster: Cluster, then: Then) -> None:
    asked = dict(sorted(then.items())[5:-8:3])
    with ckptmesh.connect(cluster.url) as mesh, ckptmesh.connect(cluster.url) as other:
        assert max(asked) < mesh.status()["floor"]
        assert any(time for _, time in asked.values())
        more, stop = dict(then), threading.Event()

        def go_on() -> None:
            while not stop.wait(0.05):  # leaves the reader a part of the machine
                write(other, more, rounds=1)

        writer = threading.Thread(target=go_on)
        writer.start()
        try:
            for revision, (state, time) in asked.items():
                assert stood(mesh, revision) == state
                if time is not None:
                    assert stood(mesh, time) == state
        finally:
            stop.set()
            writer.join()
        for revision in sorted(more)[::len(more) // 3]:
            assert stood(mesh, revision) == more[revision][0]
        figures = mesh.status()["archive"]
        assert figures["answered"] >= len(asked)
        assert (figures["deaths"], figures["refused"]) == (0, 0)


def test_a_store_serves_everybody_else_while_the_past_is_read(cluster: Cluster, then: Then) -> None:
    """Told by the order of events: the answer cannot come before the commits are back."""
    revision = sorted(then)[3]
    with ckptmesh.connect(cluster.url) as mesh, ckptmesh.connect(cluster.url) as other:
        stood(mesh, revision)
        with asking(other, lambda: stood(mesh, revision)) as (pid, future):
            for count in range(20):
                assert other.commit("aside", count).version == count + 1
                assert mesh.get("aside").value == count, "the client that asks goes on, too"
            assert not future.done()
            os.kill(pid, signal.SIGCONT)
            assert future.result(60) == then[revision][0]


def test_a_reader_that_is_killed_is_replaced_and_the_answer_is_right(
        cluster: Cluster, then: Then) -> None:
    revision = sorted(then)[5]
    with ckptmesh.connect(cluster.url) as mesh, ckptmesh.connect(cluster.url) as other:
        stood(mesh, revision)
        deaths = other.status()["archive"]["deaths"]
        with asking(other, lambda: stood(mesh, revision)) as (pid, future):
            os.kill(pid, signal.SIGKILL)
            assert future.result(60) == then[revision][0]
        figures = other.status()["archive"]
        assert figures["deaths"] == deaths + 1
        assert figures["pid"] not in (0, pid)


def test_a_savepoint_outlives_compaction_and_a_cut_beside_it_does_not(
        cluster: Cluster, then: Then) -> None:
    with ckptmesh.connect(cluster.url) as mesh:
        more = dict(then)
        write(mesh, more, rounds=1)
        state = stood(mesh, None)
        pinned = mesh.savepoint("before-migration", reason="a test")
        write(mesh, more, rounds=2)
        wait_until(lambda: _has_snapshot(mesh, cluster, pinned.revision), what="its snapshot")
        for _ in range(3):
            mesh.commit("aside", 0)
            mesh.compact(retain=0)
        assert mesh.get(KEYS[0], at="before-migration").value == value(state[KEYS[0]])
        assert stood(mesh, "before-migration") == stood(mesh, pinned) == state
        for beside in (pinned.revision - 200, pinned.revision + 1):
            with pytest.raises(ckptmesh.Compacted) as caught:
                mesh.get(KEYS[0], at=beside, timeout=60)
            assert caught.value.details["floor"] > beside
        cluster.kill(cluster.store)
        cluster.start_store()
        assert stood(mesh, "before-migration") == state
        assert mesh.drop_savepoint("before-migration")
        mesh.compact(retain=0)
        cluster.kill(cluster.store)  # with its reader, which still knows it
        cluster.start_store()
        with pytest.raises(ckptmesh.Compacted):
            mesh.get(KEYS[0], at=pinned, timeout=60)


def _has_snapshot(mesh: Any, cluster: Cluster, revision: int) -> bool:
    return (not mesh.status()["compacting"]
            and any(name.startswith(f"{revision:012}-") and name.endswith(".snap")
                    for name in os.listdir(cluster.data / "snap")))


def test_the_reader_ends_with_a_store_that_is_killed(cluster: Cluster) -> None:
    with ckptmesh.connect(cluster.url) as mesh:
        mesh.commit("aside", 1)
        receipt = mesh.commit("aside", 2)
        mesh.commit_many([("aside", n) for n in range(100)])
        assert mesh.get("aside", at=receipt, timeout=60).value == 2
        pid = mesh.status()["archive"]["pid"]
        assert pid
        cluster.kill(cluster.store)
        wait_until(lambda: not _alive(pid), what="the reader's end")
        cluster.start_store()


def _alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return " Z" not in Path(f"/proc/{pid}/stat").read_text()
    return False


def test_an_embedded_store_reads_the_past_beside_its_other_threads(tmp_path: Path) -> None:
    def set_history() -> Any:
        yield Setting("history_revisions", 5)

    with ckptmesh.connect(f"file:{tmp_path}/state") as mesh:
        mesh._run(set_history(), None)
        receipts = mesh.commit_many([("orders", count) for count in range(50)])
        assert mesh.get("orders", at=receipts[9]).value == 9
        with asking(mesh, lambda: mesh.get("orders", at=receipts[8])) as (pid, future):
            for count in range(20):
                mesh.commit("orders", count)
            assert not future.done()
            os.kill(pid, signal.SIGCONT)
            assert future.result(30).value == 8
    wait_until(lambda: not _alive(pid), what="the reader's end")
