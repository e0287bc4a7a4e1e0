"""Many commits in one request against real processes: kills cost none of them, and none comes
twice."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import ckptmesh
from ckptmesh import errors
from ckptmesh.testing.blocking import blocking
from ckptmesh.testing.checkers import (
    Operation,
    Put,
    Recorder,
    check_once,
    check_order,
    commits_of,
)
from ckptmesh.testing.checkers.history import Asked
from tests.cluster import Cluster, wait_until

PAIRS = [(f"{'ab'[n % 2]}/{n % 8}", n) for n in range(20)]
PATIENCE = 20.0


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path) as running:
        yield running


@pytest.fixture(params=["sync", "async"])
def connect(request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    with ExitStack() as stack:
        def make(*args: Any, **options: Any) -> Any:
            if request.param == "sync":
                return stack.enter_context(ckptmesh.connect(*args, **options))
            return stack.enter_context(blocking(lambda: ckptmesh.connect_async(*args, **options)))
        yield make


class Loader(threading.Thread):
    """Commits by twenties, and alone, until it is told to stop. Each commit is an operation."""

    def __init__(self, mesh: Any, name: str, recorder: Recorder) -> None:
        super().__init__(daemon=True)
        self.mesh, self.label, self.recorder = mesh, name, recorder
        self.rounds = 0
        self.error: BaseException | None = None
        self.ending = False
        self.start()

    def run(self) -> None:
        try:
            while not self.ending:
                self.rounds += 1
                told = f"{self.label}.{self.rounds}"
                pairs = [(key, f"{told}.{value}") for key, value in PAIRS]
                if self.rounds % 3 == 0:  # one of them is large: decided one by one
                    pairs.append(("a/large", told + "x" * 2_000))
                self.many(pairs)
                [asked] = self.asked([("a/0", told)])
                self.recorder.ok(asked, revision=self.mesh.commit("a/0", told).revision)
        except BaseException as error:
            self.error = error

    def asked(self, pairs: list[tuple[str, Any]]) -> list[Asked]:
        return [self.recorder.invoke(self.label, Put(key, value)) for key, value in pairs]

    def many(self, pairs: list[tuple[str, Any]]) -> None:
        asked = self.asked(pairs)
        receipts = self.mesh.commit_many(pairs)
        assert [each.key for each in receipts] == [key for key, _ in pairs]
        for each, receipt in zip(asked, receipts, strict=True):
            self.recorder.ok(each, revision=receipt.revision)

    def goes_on(self) -> None:
        reached = self.rounds + 3
        wait_until(lambda: self.rounds >= reached or self.error, 30, "three more rounds")

    def finish(self) -> None:
        self.ending = True
        self.join(30)
        assert self.error is None, repr(self.error)
        assert not self.is_alive()


def watched(events: Any, upto: int) -> list[Any]:
    found: list[Any] = []
    while not found or found[-1].revision < upto:
        event = events.get(timeout=PATIENCE)
        assert event is not None, f"nothing came after {found[-1:]}"
        found.append(event)
    return found


@pytest.mark.fault(31)
@pytest.mark.fault(7)
def test_kills_cost_none_of_many_commits_and_none_comes_twice(
        connect: Callable[..., Any], cluster: Cluster) -> None:
    recorder = Recorder()
    first = connect(cluster.url, timeout=60)
    with first.watch("") as events:
        loaders = [Loader(first, "one", recorder),
                   Loader(connect(cluster.url, timeout=60), "two", recorder)]
        for process, start in ((cluster.store, cluster.start_store),
                               (cluster.broker, cluster.start_broker)):
            for loader in loaders:
                loader.goes_on()
            cluster.kill(process)
            start()
        for loader in loaders:
            loader.goes_on()
            loader.finish()
        last = first.commit("end", 0).revision
        commits = commits_of(watched(events, last))
    history: list[Operation] = recorder.history()
    assert [commit.revision for commit in commits] == [*range(1, last + 1)]
    assert check_once(history, commits[:-1]) == []
    assert check_order(history, commits[:-1]) == []
    assert len(history) == last - 1
    # Those of one request stand one right after the other.
    by_request: dict[str, list[int]] = {}
    for commit in commits[:-1]:
        [change] = commit.changes
        if change.key != "a/large" and str(change.value).count(".") == 2:
            by_request.setdefault(str(change.value).rpartition(".")[0], []).append(commit.revision)
    assert {len(found) for found in by_request.values()} == {20}
    assert all(found == [*range(found[0], found[0] + 20)] for found in by_request.values())


def test_a_store_that_stands_still_leaves_many_commits_unknown_until_it_is_asked(
        connect: Callable[..., Any], cluster: Cluster) -> None:
    mesh = connect(cluster.url)
    mesh.commit("a/0", 0)
    assert cluster.store is not None
    cluster.store.send_signal(signal.SIGSTOP)
    with pytest.raises(errors.OutcomeUnknown) as caught:
        mesh.commit_many(PAIRS, timeout=0.4)
    cluster.store.send_signal(signal.SIGCONT)
    loop = getattr(mesh, "_loop", None)
    receipts = loop.run(caught.value.resolve) if loop else caught.value.resolve()
    assert [each.key for each in receipts] == [key for key, _ in PAIRS]
    assert [each.revision for each in receipts] == [*range(2, 22)]
    assert mesh.get("b/7").revision == receipts[15].revision
    assert mesh.commit_many(PAIRS)[0].revision == 22


def test_many_commits_outlive_their_store(connect: Callable[..., Any], cluster: Cluster) -> None:
    mesh = connect(cluster.url, timeout=60)
    receipts = mesh.commit_many(PAIRS, expect={"a/0": None})
    cluster.kill(cluster.store)
    cluster.start_store()
    assert {each.key: each.revision for each in mesh.list()} == {
        each.key: each.revision for each in receipts}
    again = mesh.commit_many(PAIRS, expect={"a/0": receipts[16]})
    assert [each.version for each in again] == [
        (n // 8) + 1 + (3 if n % 8 < 4 else 2) for n in range(20)]
    assert again[0].epoch > receipts[0].epoch
    assert [each.revision for each in again] == [*range(21, 41)]
