"""How threads and tasks share one client: hand-over, cancellation, re-entry, closing, forks."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest

import ckptmesh
from ckptmesh import bundles, errors
from ckptmesh.aio import AsyncClient
from ckptmesh.client import Client
from ckptmesh.opening import open_engine
from ckptmesh.transport import EngineTransport
from ckptmesh.views import Receipt

PATIENCE = 20.0


class Gate:
    """An engine in memory whose batches wait while the gate is closed."""

    def __init__(self) -> None:
        self.engine = open_engine(None)
        self.open = threading.Event()
        self.open.set()
        self.entered = threading.Event()
        self.threads: set[int] = set()
        self.batches: list[int] = []
        self.fault: BaseException | None = None

    def handle(self, payloads: Sequence[bytes]) -> list[bytes]:
        self.threads.add(threading.get_ident())
        self.batches.append(sum(map(bundles.count, payloads)))
        self.entered.set()
        assert self.open.wait(PATIENCE)
        if self.fault is not None:
            fault, self.fault = self.fault, None
            raise fault
        return self.engine.handle(payloads)

    def transport(self) -> EngineTransport:
        return EngineTransport("memory://gate", self.handle, self.engine.close, self.engine)

    def hold(self) -> None:
        self.open.clear()
        self.entered.clear()


class Thread(threading.Thread):
    """A thread whose result or error can be asked for."""

    def __init__(self, work: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self.work = work
        self.value: Any = None
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self.value = self.work()
        except BaseException as error:
            self.error = error

    def result(self) -> Any:
        self.join(PATIENCE)
        assert not self.is_alive(), "stuck"
        if self.error is not None:
            raise self.error
        return self.value


# --- threads ----------------------------------------------------------------------------------


def test_threads_share_a_client_and_each_gets_its_own_answers() -> None:
    gate = Gate()
    with Client(gate.transport()) as mesh:
        def work(n: int) -> list[Receipt]:
            return [mesh.commit(f"key/{n}", i) for i in range(50)]

        threads = [Thread(lambda n=n: work(n)) for n in range(8)]  # type: ignore[misc]
        found = [thread.result() for thread in threads]
        for n, receipts in enumerate(found):
            assert {receipt.key for receipt in receipts} == {f"key/{n}"}
            assert [receipt.version for receipt in receipts] == list(range(1, 51))
        assert len({receipt.revision for receipts in found for receipt in receipts}) == 400


def test_commits_that_wait_behind_a_sync_share_the_next_one() -> None:
    gate = Gate()
    with Client(gate.transport()) as mesh:
        mesh.commit("first", 0)
        gate.hold()
        first = Thread(lambda: mesh.commit("a", 1))
        assert gate.entered.wait(PATIENCE)
        others = [Thread(lambda n=n: mesh.commit(f"b/{n}", n)) for n in range(10)]  # type: ignore[misc]
        while mesh._link.session.live < 11:
            threading.Event().wait(0.001)
        before = len(gate.batches)
        gate.open.set()
        for thread in (first, *others):
            thread.result()
        assert gate.batches[before:] == [10]


def test_the_pump_is_handed_over_when_its_thread_is_done() -> None:
    gate = Gate()
    with Client(gate.transport()) as mesh:
        mesh.commit("first", 0)
        gate.hold()
        first = Thread(lambda: mesh.commit("a", 1))
        assert gate.entered.wait(PATIENCE)
        second = Thread(lambda: mesh.commit("b", 1))
        while mesh._link.session.live < 2:
            threading.Event().wait(0.001)
        gate.open.set()
        first.result()
        second.result()
        assert {first.ident, second.ident} <= gate.threads


def test_an_interrupted_thread_leaves_the_pump_to_the_others() -> None:
    gate = Gate()
    with Client(gate.transport()) as mesh:
        mesh.commit("first", 0)
        gate.hold()
        gate.fault = KeyboardInterrupt()
        first = Thread(lambda: mesh.get("first"))
        assert gate.entered.wait(PATIENCE)
        second = Thread(lambda: mesh.get("first"))
        while mesh._link.session.live < 2:
            threading.Event().wait(0.001)
        gate.open.set()
        with pytest.raises(KeyboardInterrupt):
            first.result()
        assert second.result().value == 0
        assert mesh._link.session.live == 0


def test_a_callback_of_a_future_may_use_the_client() -> None:
    gate = Gate()
    with Client(gate.transport()) as mesh:
        found: list[Any] = []
        future = mesh.submit("a", 1)
        future.add_done_callback(lambda done: found.append(mesh.get("a")))
        mesh.flush()
        assert found[0].revision == future.result().revision


def test_a_future_can_be_waited_for_by_several_threads() -> None:
    gate = Gate()
    with Client(gate.transport()) as mesh:
        mesh.commit("first", 0)
        gate.hold()
        future = mesh.submit("a", 1)
        threads = [Thread(lambda: future.result(PATIENCE)) for _ in range(5)]
        assert gate.entered.wait(PATIENCE)
        gate.open.set()
        assert len({thread.result().revision for thread in threads}) == 1


def test_a_thread_behind_a_long_sync_times_out_by_itself() -> None:
    gate = Gate()
    with Client(gate.transport()) as mesh:
        mesh.commit("first", 0)
        gate.hold()
        first = Thread(lambda: mesh.commit("a", 1))
        assert gate.entered.wait(PATIENCE)
        second = Thread(lambda: mesh.get("first", timeout=0.05))
        with pytest.raises(errors.Unavailable):
            second.result()
        assert first.is_alive()
        gate.open.set()
        assert first.result().revision == 2


def test_closing_ends_what_another_thread_waits_for() -> None:
    gate = Gate()
    mesh = Client(gate.transport())
    mesh.commit("first", 0)
    gate.hold()
    reader = Thread(lambda: mesh.get("first"))
    assert gate.entered.wait(PATIENCE)
    writer = Thread(lambda: mesh.commit("a", 1))
    while mesh._link.session.live < 2:
        threading.Event().wait(0.001)
    closer = Thread(mesh.close)
    threading.Timer(0.05, gate.open.set).start()
    closer.result()
    for thread in (reader, writer):
        with contextlib.suppress(errors.Closed, errors.OutcomeUnknown, errors.Poisoned):
            thread.result()
    with pytest.raises(errors.Closed):
        mesh.get("first")


@pytest.mark.fault(12)
def test_a_forked_child_is_told_to_connect_again() -> None:
    gate = Gate()
    with Client(gate.transport()) as mesh:
        mesh.commit("a", 1)
        future = mesh.submit("a", 2)
        mesh._pump._lock.acquire()  # as another thread may hold it, which is not in the child
        child = os.fork()
        if child:
            mesh._pump._lock.release()
        else:
            signal.alarm(10)
            told = 0
            for call in (lambda: mesh.get("a"), mesh.flush, future.result,
                         lambda: mesh.submit("a", 3), mesh.transaction, mesh.watch, mesh.stats):
                try:
                    call()
                except errors.Closed as error:
                    told += "connect again" in str(error)
                except BaseException:  # anything else is a failure, and must not leave the child
                    pass
            try:
                mesh.close()
            finally:
                os._exit(100 + told)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 107
        assert future.result(PATIENCE).revision == 2


@pytest.mark.parametrize("url", ["memory://dropped", "file:"])
def test_a_watch_that_is_dropped_without_close_leaves_nothing(url: str, tmp_path: Any) -> None:
    url = url if url.startswith("memory") else f"file:{tmp_path}/state"
    with ckptmesh.connect(url) as mesh:
        receipt = mesh.commit("a", 1)
        engine = mesh._link.transport.engine  # type: ignore[attr-defined]

        def follow() -> None:
            for event in mesh.watch("a", since=receipt.revision - 1):
                assert event.revision == receipt.revision
                break

        follow()
        gc.collect()
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(5):
            follow()
        gc.collect()
        assert len(os.listdir("/proc/self/fd")) == before
        assert engine._listeners == []


# --- tasks ------------------------------------------------------------------------------------


def run(work: Callable[[AsyncClient, Gate], Any]) -> Any:
    gate = Gate()

    async def there() -> Any:
        async with asyncio.timeout(PATIENCE), AsyncClient(gate.transport()) as mesh:
            return await work(mesh, gate)

    return asyncio.run(there())


def test_a_thousand_tasks_share_a_client() -> None:
    async def work(mesh: AsyncClient, gate: Gate) -> None:
        async def one(n: int) -> Receipt:
            await mesh.get(f"k/{n}")
            return await mesh.commit(f"k/{n}", n, expect=None)

        receipts = await asyncio.gather(*(one(n) for n in range(1_000)))
        assert len({receipt.revision for receipt in receipts}) == 1_000
        assert [receipt.key for receipt in receipts] == [f"k/{n}" for n in range(1_000)]

    run(work)


def test_more_tasks_than_the_window_wait_their_turn() -> None:
    async def work(mesh: AsyncClient, gate: Gate) -> None:
        receipts = await asyncio.gather(*(mesh.commit("k", n) for n in range(3_000)))
        assert len({receipt.revision for receipt in receipts}) == 3_000
        assert max(gate.batches) <= 1_024

    run(work)


def test_a_cancelled_commit_leaves_the_client_usable() -> None:
    async def work(mesh: AsyncClient, gate: Gate) -> None:
        await mesh.commit("first", 0)
        gate.hold()
        task = asyncio.create_task(mesh.commit("a", 1))
        await asyncio.to_thread(gate.entered.wait, PATIENCE)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert mesh._link.session.live == 0
        gate.open.set()
        receipt = await mesh.commit("b", 1)
        assert receipt.revision == 3, "the cancelled commit was under way, and took effect"
        assert (await mesh.value("a")) == 1

    run(work)


def test_a_commit_cancelled_before_it_was_sent_never_happens() -> None:
    async def work(mesh: AsyncClient, gate: Gate) -> None:
        await mesh.commit("first", 0)
        gate.hold()
        first = asyncio.create_task(mesh.commit("a", 1))
        await asyncio.to_thread(gate.entered.wait, PATIENCE)
        second = asyncio.create_task(mesh.commit("b", 1))
        await asyncio.sleep(0.01)
        second.cancel()
        gate.open.set()
        await first
        assert await mesh.get("b") is None

    run(work)


def test_tasks_time_out_one_by_one() -> None:
    async def work(mesh: AsyncClient, gate: Gate) -> None:
        await mesh.commit("first", 0)
        gate.hold()
        first = asyncio.create_task(mesh.commit("a", 1))
        await asyncio.to_thread(gate.entered.wait, PATIENCE)
        with pytest.raises(errors.Unavailable):
            await mesh.get("first", timeout=0.05)
        assert not first.done()
        gate.open.set()
        assert (await first).revision == 2

    run(work)


def test_a_client_belongs_to_its_event_loop() -> None:
    gate = Gate()

    async def make() -> AsyncClient:
        return AsyncClient(gate.transport())

    mesh = asyncio.run(make())

    async def use() -> None:
        await mesh.get("a")

    with pytest.raises(errors.Closed, match="event loop"):
        asyncio.run(use())


def test_submitted_tasks_are_futures_of_the_loop() -> None:
    async def work(mesh: AsyncClient, gate: Gate) -> None:
        futures = [await mesh.submit("a", n) for n in range(10)]
        done, pending = await asyncio.wait(futures)
        assert not pending
        assert len({future.result().revision for future in done}) == 10
        refused = await mesh.submit("a", 1, expect=None)
        with pytest.raises(errors.Conflict):
            await refused
        await mesh.flush()

    run(work)


def test_commits_leave_nothing_for_the_collector() -> None:
    """What waits for a collection of all generations stops a busy client for a tenth of a second,
    over and over."""
    with ckptmesh.connect("memory://") as mesh:
        def some() -> None:
            for number in range(300):
                mesh.submit("a", number)
            mesh.flush()
            mesh.commit_many({f"b/{number}": number for number in range(300)})
            for number in range(100):
                mesh.commit("c", number)
                with contextlib.suppress(errors.Conflict):
                    mesh.commit("c", number, expect=None)

        some()
        gc.collect()
        gc.disable()
        try:
            some()
            assert gc.collect() < 100
        finally:
            gc.enable()
