"""Workers in trouble: every call may fail, lose its answer, or be cancelled; leases may be lost."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import ckptmesh
from ckptmesh import LeaseLost, Misuse
from ckptmesh.aio import AsyncClient
from ckptmesh.client import Client
from ckptmesh.features import working
from ckptmesh.features.keeper import Kept
from ckptmesh.features.locks import AsyncLock, Lock
from ckptmesh.features.worker import AsyncWorker, Worker
from ckptmesh.views import Receipt

ASKED = ("get", "scan", "commit", "delete")


@pytest.fixture
def mesh(monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    monkeypatch.setattr(working, "_LOOK", 0.01)
    with ckptmesh.connect("memory://") as found:
        yield found


class Trouble:
    """A store with which something happens at one call: `around` makes of each call another."""

    def __init__(self, store: Any, lock: type[Lock] | type[AsyncLock], at: int = -1) -> None:
        self._store, self._lock, self.at = store, lock, at
        self.calls = 0
        self.what = ""

    def around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        raise NotImplementedError

    def turn(self, what: str = "") -> bool:
        """Count a call; whether it is the one."""
        self.calls += 1
        if self.calls - 1 == self.at:
            self.what = what
            return True
        return False

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._store, name)
        return self.around(found) if name in ASKED else found

    def transaction(self) -> Any:
        tx = self._store.transaction()
        tx.commit = self.around(tx.commit)
        return tx

    def lock(self, name: str, **options: Any) -> Any:
        store: Any = self._store
        return self._lock(self, store._keeper, store._claims, name, **options)


class Failing(Trouble):
    """One call does not arrive, or its answer does not."""

    lost = away = False
    spares = ""  # a call that arrives also when it is away

    def around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def asked(*args: Any, **options: Any) -> Any:
            fails = self.turn(call.__name__)
            if (self.away and call.__name__ != self.spares) or (fails and not self.lost):
                raise ckptmesh.Unavailable("no answer")
            found = call(*args, **options)
            if fails:
                raise (ckptmesh.Unavailable if call.__name__ in ("get", "scan")
                       else ckptmesh.OutcomeUnknown)("no answer")
            return found

        return asked


def leases(mesh: Client) -> list[str]:
    return [each.key for each in mesh.scan("orders") if each.is_lease]


def go_round(worker: Worker, mesh: Client) -> None:
    """Until each of three partitions was committed twice."""
    for part in worker:
        with contextlib.suppress(ckptmesh.Unavailable, ckptmesh.OutcomeUnknown):
            part.commit((mesh.value(part.key) or 0) + 1)
        if [each.value >= 2 for each in mesh.scan("orders/partition")] == [True] * 3:
            return


@pytest.mark.parametrize("lost", [False, True], ids=["call", "answer"])
def test_whatever_is_lost_between_worker_and_store_the_worker_goes_on_and_leaves_nothing(
    mesh: Client, lost: bool
) -> None:
    """Leases live for ten minutes: none may be waited for."""
    at, reached = 0, True
    while reached:
        store: Any = Failing(mesh, Lock, at)
        store.lost = lost
        worker = Worker(store, mesh._keeper, "orders", partitions=3, name="a", ttl=600, idle=0)
        try:
            worker.__enter__()
        except (ckptmesh.Unavailable, ckptmesh.OutcomeUnknown):
            assert {*leases(mesh)} <= ({worker.key} if store.what == "commit" else set())
        else:
            go_round(worker, mesh)
            reached = store.calls > at
            store.at = -1
            worker.__exit__(None, None, None)
            assert not leases(mesh), at
        assert not mesh._keeper._kept
        for each in mesh.scan("orders"):
            mesh.delete(each.key)
        at += 1
    assert at > 15


def test_a_store_that_is_away_at_the_end_is_asked_once_and_nothing_is_renewed(mesh: Client) -> None:
    store: Any = Failing(mesh, Lock)
    worker = Worker(store, mesh._keeper, "orders", partitions=9, ttl=600)
    with worker:
        next(iter(worker))
        assert len(worker.owned) == 9
        calls, store.away = store.calls, True
        with pytest.raises(ckptmesh.Unavailable):
            worker.__exit__(None, None, None)
        assert store.calls == calls + 1
        assert not mesh._keeper._kept
        store.away = False
    mesh._claims.add(mesh.lock("orders")._way, threading.get_ident())  # nothing is in the way


class Signalling(Trouble):
    """SIGTERM comes while one of the calls is made."""

    def around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def asked(*args: Any, **options: Any) -> Any:
            found = call(*args, **options)
            if self.turn():
                os.kill(os.getpid(), signal.SIGTERM)
            return found

        return asked


def test_whenever_sigterm_comes_a_worker_ends_in_order(mesh: Client) -> None:
    before, at, reached = signal.getsignal(signal.SIGTERM), 0, True
    while reached:
        store: Any = Signalling(mesh, Lock, at)
        turns = 0
        with Worker(store, mesh._keeper, "orders", partitions=3, ttl=600, idle=0) as worker:
            for part in worker:
                part.commit(turns)
                turns += 1
                if turns == 4:
                    worker.drain()
                    reached = store.calls > at
                    store.at = -1
        assert not leases(mesh)
        assert signal.getsignal(signal.SIGTERM) is before
        at += 1
    assert at > 10


class Cancelling(Trouble):
    """Whoever makes one of the calls is cancelled, before it takes effect or after."""

    after = False

    def around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        async def asked(*args: Any, **options: Any) -> Any:
            task = asyncio.current_task()
            assert task is not None
            cancels = self.turn()
            if cancels and not self.after:
                task.cancel()
                await asyncio.sleep(0)
            found = await call(*args, **options)
            if cancels:
                task.cancel()
                await asyncio.sleep(0)
            return found

        return asked


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_task_that_is_cancelled_anywhere_leaves_no_lease(after: bool) -> None:
    async def work(store: Any, keeper: Any) -> None:
        async with AsyncWorker(store, keeper, "orders", partitions=3, ttl=600, idle=0) as worker:
            turns = 0
            async for part in worker:
                await part.commit(turns)
                turns += 1
                if turns == 5:
                    worker.drain()

    async def once(mesh: AsyncClient, at: int) -> bool:
        store: Any = Cancelling(mesh, AsyncLock, at)
        store.after = after
        task = asyncio.create_task(work(store, mesh._keeper))
        await asyncio.wait([task])
        assert task.cancelled() == (store.calls > at), at
        assert [each.key for each in await mesh.scan("orders") if each.is_lease] == [], at
        assert not mesh._keeper._kept
        return task.cancelled()

    async def main() -> int:
        async with await ckptmesh.connect_async("memory://") as mesh:
            at = 0
            while await once(mesh, at):
                at += 1
            return at

    assert asyncio.run(asyncio.wait_for(main(), 60)) > 20


def test_a_thread_that_holds_the_whole_pipeline_is_told_that_its_worker_would_wait_for_ever(
    mesh: Client
) -> None:
    for name, shared in (("orders", False), ("orders", True), ("orders/partition", False)):
        with mesh.lock(name, shared=shared), mesh.worker("orders", partitions=2) as worker:
            with pytest.raises(Misuse, match="held or awaited right here"):
                next(iter(worker))
            thread = threading.Thread(target=list, args=[worker])
            thread.start()  # another thread waits
            thread.join(0.1)
            assert thread.is_alive()
            worker.drain()
            thread.join(30)
    with mesh.worker("orders", partitions=2) as worker:
        part = next(iter(worker))
        with pytest.raises(Misuse, match="for ever"):
            mesh.lock("orders").acquire()
        assert part.held


def test_a_task_that_holds_the_whole_pipeline_is_told_too() -> None:
    async def main() -> None:
        async with (await ckptmesh.connect_async("memory://") as mesh, mesh.lock("orders"),
                    mesh.worker("orders", partitions=2) as worker):
            with pytest.raises(Misuse, match="held or awaited right here"):
                await anext(aiter(worker))

    asyncio.run(asyncio.wait_for(main(), 30))


def test_one_whose_registration_was_removed_registers_again_after_its_turn(mesh: Client) -> None:
    with mesh.worker("orders", partitions=2, name="a", ttl=600) as worker:
        turns = iter(worker)
        part = next(turns)
        mesh.delete(worker.key)
        part.commit(1)
        assert part.wanted, "the others do not count it in"
        next(turns)
        assert [(each.name, each.state) for each in mesh.workers("orders")] == [("a", "running")]
        assert len(worker.owned) == 2


def test_a_store_that_is_away_between_turns_is_waited_for_and_a_commit_that_stands_is_told(
    mesh: Client
) -> None:
    store: Any = Failing(mesh, Lock)
    store.spares = "commit"
    with Worker(store, mesh._keeper, "orders", partitions=2, name="a", ttl=600) as worker:
        turns = iter(worker)
        part = next(turns)
        with mesh.worker("orders", partitions=2, name="b"):  # is to have the other one
            store.away = True
            receipt = part.commit(7)
            assert mesh.get(part.key).revision == receipt.revision  # type: ignore[union-attr]
            threading.Timer(0.1, setattr, (store, "away", False)).start()
            assert next(turns).held
            assert len(worker.owned) == 1
            assert len(mesh.scan("orders/_lock")) == 1, "the other one is free"


# --- why a lease was lost ---------------------------------------------------------------------


def kept_lease() -> tuple[Kept, list[int]]:
    told: list[int] = []
    return Kept(Receipt("orders", 1, 1, 1, 1), 30.0, 1000.0, lambda: told.append(1)), told


def test_a_stall_is_named_with_its_length() -> None:
    kept, told = kept_lease()
    assert not kept.look(1009.0)
    assert kept.look(1010.0)
    kept.look(1071.2)
    assert kept.lost is not None
    assert "did not run its renewal for 61.2 s; ttl 30 s" in kept.lost.message
    assert kept.lost.details["stalled"] == pytest.approx(61.2)
    assert told == [1]


def test_a_store_out_of_reach_is_not_called_a_stall() -> None:
    kept, told = kept_lease()
    now = 1010.0
    while kept.look(now):
        kept.failed(ckptmesh.Unavailable("no answer"), now)
        now += 3.0
    kept.look(1030.5)
    assert kept.lost is not None
    assert "no renewal came through" in kept.lost.message
    assert "no answer" in kept.lost.message
    assert told == [1]


def test_a_renewal_that_was_asked_for_before_the_stall_and_refused_after_it_names_it_too() -> None:
    kept, _ = kept_lease()
    assert kept.look(1010.0)
    kept.failed(LeaseLost("not held"), 1050.0)
    assert kept.lost is not None
    assert kept.lost.details["stalled"] == pytest.approx(40.0)
    freed, _ = kept_lease()
    freed.failed(LeaseLost("not held"), 1010.0)  # by an operator: nothing stood still
    assert freed.lost is not None
    assert freed.lost.message == "not held"


def test_a_stall_while_a_renewal_waits_for_its_answer_is_named_too() -> None:
    kept, told = kept_lease()
    kept.failed(ckptmesh.Unavailable("no answer"), 1045.0, late=34.0)
    assert kept.lost is not None
    assert kept.lost.details["stalled"] == pytest.approx(35.0)
    assert told == [1]
    away, _ = kept_lease()
    away.failed(ckptmesh.Unavailable("no answer"), 1011.0, late=0.01)
    assert away.lost is None
