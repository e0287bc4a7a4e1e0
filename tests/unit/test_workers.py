"""Workers share partitions fairly, one turn at a time, and lose them in order."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import ckptmesh
from ckptmesh import Capability, Conflict, LeaseLost, Misuse, TooLarge, Unsupported
from ckptmesh.client import Client
from ckptmesh.features import working
from ckptmesh.features.locks import covers
from ckptmesh.features.sharing import BEAT, ORDER, Asked, View, folder_of, granted, share_of
from ckptmesh.features.worker import AsyncPart, Part, Worker
from ckptmesh.features.workers import free_stale
from ckptmesh.views import Checkpoint, Event, Mark


@pytest.fixture
def mesh() -> Iterator[Client]:
    with ckptmesh.connect("memory://") as found:
        yield found


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not true():
        assert time.monotonic() < end
        time.sleep(0.002)


class Crew:
    """Workers in threads, each of which makes steps when it is let."""

    def __init__(self, mesh: Client, count: int, **options: Any) -> None:
        self.mesh, self.options = mesh, {"partitions": 7, "idle": 0.01, **options}
        self.threads: dict[str, threading.Thread] = {}
        self.workers: dict[str, Worker] = {}
        self.turns: Counter[str] = Counter()
        self.errors: list[BaseException] = []
        for _ in range(count):
            self.join()

    def join(self) -> str:
        name = f"w{len(self.threads)}"
        thread = threading.Thread(target=self._work, args=(name,))
        self.threads[name] = thread
        thread.start()
        until(lambda: name in self.workers or bool(self.errors))
        return name

    def _work(self, name: str) -> None:
        try:
            with self.mesh.worker("orders", name=name, **self.options) as worker:
                self.workers[name] = worker
                for part in worker:
                    self.turns[part.name] += 1
                    part.commit(part.value(0) + 1)
                    time.sleep(0.002)  # the interpreter is for all of them
        except BaseException as error:
            self.errors.append(error)

    def shares(self) -> list[int]:
        return sorted(len(each.partitions) for each in self.mesh.workers("orders"))

    def leave(self, name: str) -> None:
        self.workers[name].drain()
        self.threads[name].join(30)
        assert not self.threads[name].is_alive()

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *error: object) -> None:
        for name in [*self.threads]:
            if name in self.workers:
                self.leave(name)
        assert not self.errors


@given(st.integers(1, 60), st.integers(0, 200))
def test_shares_are_fair_and_add_up(members: int, partitions: int) -> None:
    shares = [share_of(place, members, partitions) for place in range(members)]
    assert sum(shares) == partitions
    assert max(shares) - min(shares) <= 1


def test_shares_stay_fair_while_workers_come_and_go(mesh: Client) -> None:
    with Crew(mesh, 1) as crew:
        until(lambda: crew.shares() == [7])
        crew.join()
        until(lambda: crew.shares() == [3, 4])
        crew.join()
        until(lambda: crew.shares() == [2, 2, 3])
        crew.leave("w0")
        until(lambda: crew.shares() == [3, 4])
        before = crew.turns.copy()
        until(lambda: all(crew.turns[str(n)] > before[str(n)] for n in range(7)))
    assert not mesh.scan("orders/_lock")
    assert not mesh.scan("orders/_workers")
    assert {each.key: each.value for each in mesh.scan("orders")} == {
        f"orders/partition/{n}": crew.turns[str(n)] for n in range(7)}


def test_a_partition_has_its_turns_one_after_the_other_with_place_position_and_head(
    mesh: Client
) -> None:
    mesh.commit("orders/partition/eu", 41)
    turns = []
    with mesh.worker("orders", partitions=["eu", "us"]) as worker:
        assert worker.key == f"orders/_workers/{worker.name}"
        for part in worker:
            turns.append(part.name)
            place = part.value(default=0)
            receipt = part.commit(place + 1, position=place + 1, head=99)
            found = part.get()
            assert found is not None
            assert (found.key, found.value, found.position, found.head, found.revision) == (
                part.key, place + 1, place + 1, 99, receipt.revision)
            assert part.held
            mesh.commit("elsewhere", 1, guard=part)
            if len(turns) == 4:
                worker.drain()
    assert turns[:2] == turns[2:]
    assert {*turns} == {"eu", "us"}
    assert mesh.value("orders/partition/eu") == 43
    with pytest.raises(Misuse, match="not held"):
        part.commit(0)


def test_what_is_being_worked_on_is_let_go_only_when_its_turn_is_over(mesh: Client) -> None:
    with mesh.worker("orders", partitions=1, name="z") as first:
        turns = iter(first)
        part = next(turns)
        other = mesh.worker("orders", partitions=["0"], name="a", idle=0.01)
        thread = threading.Thread(target=other.__enter__)
        thread.start()
        thread.join()
        mesh.workers("orders").drain("z")
        assert not part.wanted
        part.commit(1)
        assert part.wanted  # the commit has brought the news
        part.commit(2)
        assert [each.partitions for each in mesh.workers("orders")] == [(), (part.key,)]
        assert [each.state for each in mesh.workers("orders")] == ["running", "draining"]
        assert next(turns, None) is None
        theirs = next(iter(other))
        assert theirs.value() == 2
        with pytest.raises(Misuse):
            part.commit(3)
        other.__exit__(None, None, None)
    assert mesh.value(part.key) == 2


def test_others_than_the_current_one_are_let_go_within_a_long_turn(mesh: Client) -> None:
    with mesh.worker("orders", partitions=2, name="a") as worker:
        part = next(iter(worker))
        with Crew(mesh, 1, partitions=2):
            until(lambda: len([*mesh.workers("orders")]) == 2)
            part.commit(1)
            assert not part.wanted, "its share is one"
            until(lambda: all(len(each.partitions) == 1 for each in mesh.workers("orders")))


def test_a_lost_partition_is_dropped_its_commit_refused_and_the_rest_goes_on(mesh: Client) -> None:
    with mesh.worker("orders", partitions=2, idle=0.01) as worker:
        lost: list[str] = []

        def work(part: Part) -> None:
            if not lost:
                lost.append(part.name)
                mesh.delete(part.lease.key)  # as if this process had stood still for too long
                before = mesh.hello().revision
                with pytest.raises(LeaseLost):
                    mesh.commit("elsewhere", 1, guard=part)
                assert not part.lost.is_set(), "only the store knows"
                try:
                    part.commit("stale")
                finally:
                    assert mesh.hello().revision == before
                    assert part.lost.is_set()
                    assert part.wanted
            part.commit(part.value(0) + 1)
            if part.name in lost and part.value() == 2:
                worker.drain()  # it was claimed anew

        worker.run(work)
    assert "stale" not in [each.value for each in mesh.scan("orders")]


def test_what_a_function_raises_ends_the_loop_and_gives_all_back(mesh: Client) -> None:
    def fails(part: Part) -> None:
        raise LeaseLost("of another lock")

    with pytest.raises(LeaseLost, match="another"), mesh.worker("orders", partitions=3) as worker:
        worker.run(fails)
    assert not mesh.scan("orders")


names = st.sampled_from(["p", "p/a", "p/a/x", "p/b", "p/ab", "q"])


@given(st.lists(names, max_size=12))
def test_a_lock_is_held_if_no_earlier_ticket_covers_it(asked: list[str]) -> None:
    tickets = [Asked(f"k{place}", name, "h", place) for place, name in enumerate(asked)]
    assert granted(tickets[::-1])[::-1] == [
        each for each in tickets
        if not any(covers(each.name, other.name) for other in tickets[:each.revision])]


events = st.lists(st.tuples(st.booleans(), st.integers(0, 5), names), max_size=30)


@given(events, st.integers(0, 30))
def test_a_view_that_is_told_knows_what_one_knows_that_looks(
    steps: list[tuple[bool, int, str]], looked: int
) -> None:
    """Also where it looked in the midst of what it is told then."""
    there: dict[str, Checkpoint] = {}
    told: list[Event] = []
    view = View("p")
    for revision, (come, number, name) in enumerate(steps):
        key = f"p/_lock/_ticket/{number}"
        found = Checkpoint(key, {"name": name, "shared": False, "holder": "h"}, revision, 1, 1,
                           revision, 0) if come else None
        there.pop(key, None)
        if found is not None:
            there[key] = found
        told.append(Event("put" if come else "delete", key, found, revision, 1, 0, Mark(revision)))
        if revision == looked:
            view.load(there.values())
    for event in told:
        view.apply(event)
    asked = [each.value["name"] for each in there.values()]
    for name in ("p", "p/a", "p/a/x", "p/b", "p/ab", "q"):
        assert view.free(name) == (not any(covers(name, other) for other in asked))


# --- what cannot be right ---------------------------------------------------------------------


@pytest.mark.parametrize("partitions", [0, -1, True, [], ["a", "a"], ["a/b"], "abc", 3.5, None])
def test_partitions_that_cannot_be_shared_are_refused(mesh: Client, partitions: Any) -> None:
    with pytest.raises(Misuse):
        mesh.worker("orders", partitions=partitions)


def test_pipelines_names_and_times_that_cannot_be_are_refused(mesh: Client) -> None:
    for wrong in ({"name": "a/b"}, {"name": "_a"}, {"ttl": 0}):
        with pytest.raises(Misuse):
            mesh.worker("orders", partitions=1, **wrong)  # type: ignore[arg-type]
    with pytest.raises(Misuse, match="whole pipeline"):
        mesh.worker("orders/eu", partitions=1)
    with pytest.raises(Misuse, match="of 'orders'"):
        mesh.worker("other", partitions=ckptmesh.partitions.by_hash("orders", 2))
    with pytest.raises(TooLarge):
        mesh.worker("orders", partitions=100_000)
    with pytest.raises(Misuse, match="not registered"):
        next(iter(mesh.worker("orders", partitions=1)))


def test_one_name_is_one_worker(mesh: Client) -> None:
    with mesh.worker("orders", partitions=1, name="a"):
        with pytest.raises(Conflict, match="called 'a'"):
            mesh.worker("orders", partitions=1, name="a").__enter__()
        assert [each.name for each in mesh.workers("orders")] == ["a"]


def test_a_partition_has_one_turn_at_a_time_in_one_worker(mesh: Client) -> None:
    with mesh.worker("orders", partitions=2) as worker:
        for part in worker:
            with pytest.raises(Misuse, match="iterated"):
                iter(worker)
            with pytest.raises(Misuse, match="for ever"):
                mesh.lock(part.key).acquire()
            break
        assert next(iter(worker)).held  # a loop that was left may be begun again


def test_workers_with_other_partitions_are_refused_and_leave_nothing(mesh: Client) -> None:
    with mesh.worker("orders", partitions=4, name="a"):
        for other in (5, ["0", "1", "2", "x"]):
            with pytest.raises(Misuse, match="drain"):
                mesh.worker("orders", partitions=other, name="b").__enter__()  # type: ignore[arg-type]
        assert [each.name for each in mesh.workers("orders")] == ["a"]
        for same in (ckptmesh.partitions.by_hash("orders", 4), [3, 1, 0, 2]):
            with mesh.worker("orders", partitions=same):
                assert len(mesh.workers("orders").list()) == 2


class Lacking:
    """A store that lacks a capability."""

    def __init__(self, store: Client, lacks: Capability) -> None:
        self._store, self.capabilities = store, store.capabilities - {lacks}

    def __getattr__(self, name: str) -> Any:
        assert name != "watch" or Capability.WATCH in self.capabilities
        return getattr(self._store, name)


def test_a_store_without_leases_is_refused_and_one_without_watches_is_asked(
    mesh: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(working, "_LOOK", 0.05)
    with pytest.raises(Unsupported):
        Worker(Lacking(mesh, Capability.LEASES), mesh._keeper, "orders", partitions=2)
    quiet = Worker(Lacking(mesh, Capability.WATCH), mesh._keeper, "orders", partitions=2)
    with quiet:
        turns = iter(quiet)
        assert len({next(turns).name, next(turns).name}) == 2, "it has both"
        with Crew(mesh, 1, partitions=2) as crew:
            while not crew.turns.total():  # which it learns of by and by
                assert next(turns).held
                time.sleep(0.02)


# --- locks ------------------------------------------------------------------------------------


def test_a_lock_on_the_pipeline_is_given_way_to_and_excludes_workers(mesh: Client) -> None:
    with Crew(mesh, 2) as crew:
        until(lambda: crew.shares() == [3, 4])
        with mesh.lock("orders", wait=30):
            assert crew.shares() == [0, 0]
            before = crew.turns.total()
            time.sleep(0.05)
            assert crew.turns.total() == before
        until(lambda: crew.shares() == [3, 4])
        with mesh.lock("orders/partition/3", wait=30):
            assert sum(crew.shares()) <= 6
        until(lambda: crew.shares() == [3, 4])


# --- ending -----------------------------------------------------------------------------------


def test_who_rests_or_waits_is_woken_by_a_drain_at_once(mesh: Client) -> None:
    turns = []
    with mesh.worker("orders", partitions=3, idle=600) as worker:
        threading.Timer(0.2, worker.drain).start()
        for part in worker:
            turns.append(part.name)
    assert sorted(turns) == ["0", "1", "2"], "a round without a commit is followed by a rest"
    assert worker.draining


def test_progress_of_another_kind_is_told_and_keeps_a_worker_from_resting(mesh: Client) -> None:
    turns = 0
    with mesh.worker("orders", partitions=1, idle=600) as worker:
        for part in worker:
            with mesh.transaction() as tx:
                tx.guard(part)
                tx.put(part.key, turns)
            part.moved()
            turns += 1
            if turns == 3:
                worker.drain()
    assert mesh.value("orders/partition/0") == 2


def test_drain_and_stop_by_name(mesh: Client) -> None:
    team = mesh.workers("orders")
    assert team.drain("nobody") is None
    with Crew(mesh, 3) as crew:
        until(lambda: crew.shares() == [2, 2, 3])
        told = team.drain("w0")
        assert told is not None
        assert told.name == "w0"
        crew.threads["w0"].join(30)
        until(lambda: crew.shares() == [3, 4])
    with mesh.worker("orders", partitions=2, name="slow") as slow:
        for part in slow:
            assert team.stop("slow") is not None
            assert not mesh.scan("orders/_lock"), "free at once"
            with pytest.raises(LeaseLost):
                part.commit(1)
    assert not mesh.scan("orders/_workers")


def test_sigterm_ends_the_loop_after_the_turn_and_the_handler_is_put_back(mesh: Client) -> None:
    taken: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: taken.append(number))
    try:
        mine = signal.getsignal(signal.SIGTERM)
        with mesh.worker("orders", partitions=3) as worker:
            turns = 0
            for part in worker:
                os.kill(os.getpid(), signal.SIGTERM)
                part.commit(1)
                turns += 1
            assert turns == 1
            assert not taken
            os.kill(os.getpid(), signal.SIGTERM)
            assert taken == [signal.SIGTERM], "the second one does what it did before"
        assert signal.getsignal(signal.SIGTERM) is mine
        with mesh.worker("orders", partitions=1, idle=600) as worker:
            threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
            assert len([*worker]) == 1, "one that rests is woken"
        with mesh.worker("orders", partitions=1):
            assert signal.getsignal(signal.SIGTERM) is not mine
        assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, before)


def test_in_another_thread_no_handler_is_installed(mesh: Client) -> None:
    before, found = signal.getsignal(signal.SIGTERM), []

    def work() -> None:
        with mesh.worker("orders", partitions=1):
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [before]


# --- the stale --------------------------------------------------------------------------------


def leave_stale(mesh: Client, name: str, ttl: float) -> None:
    """What a worker leaves that is killed."""
    key = f"{folder_of('orders')}/{name}"
    mesh.commit(key, {"partitions": 2, "ttl": ttl, "host": "h", "pid": 7}, ttl=60, lease=True)
    mesh.commit(f"{key}/{BEAT}", {"ttl": ttl, "host": "h", "pid": 7})
    mesh.commit(f"orders/_lock/partition/{name}/_ticket/{name}", {
        "name": f"orders/partition/{name}", "shared": False, "holder": name}, ttl=60, lease=True)


def test_stale_workers_are_found_and_freed_and_those_that_live_are_not(mesh: Client) -> None:
    leave_stale(mesh, "1", 0.01)
    leave_stale(mesh, "lives", 60)
    mesh.commit("orders/_workers/gone/_beat", {"ttl": 60, "host": "h", "pid": 8})
    time.sleep(0.02)
    team = mesh.workers("orders")
    assert {each.name: each.state for each in team} == {
        "1": "stale", "gone": "stale", "lives": "running"}
    assert [each.partitions for each in team] == [("orders/partition/1",), (),
                                                  ("orders/partition/lives",)]
    assert [each.name for each in free_stale(mesh, "orders", dry_run=True)] == ["1", "gone"]
    assert len(team.list()) == 3
    assert [each.name for each in team.free_stale()] == ["1", "gone"]
    assert [each.name for each in team] == ["lives"]
    assert len(mesh.scan("orders/_lock")) == 1
    assert [*team.free_stale()] == []
    assert [each.name for each in team.free_stale(older=0)] == ["lives"]
    assert not mesh.scan("orders")


def test_one_that_beats_again_is_not_freed(mesh: Client) -> None:
    leave_stale(mesh, "1", 0.01)
    time.sleep(0.02)

    class Beating(Lacking):
        def transaction(self) -> Any:
            mesh.commit("orders/_workers/1/_beat", {"ttl": 60})
            return mesh.transaction()

    store: Any = Beating(mesh, Capability.HISTORY)
    assert free_stale(store, "orders") == []
    assert len(mesh.scan("orders")) == 3


def test_one_that_was_freed_registers_again_and_one_that_was_told_to_end_meanwhile_ends(
    mesh: Client
) -> None:
    with mesh.worker("orders", partitions=2, name="a", idle=0.01) as worker:
        turns = iter(worker)
        next(turns)
        mesh.workers("orders").free_stale(older=0)
        kept = worker._work._kept
        assert kept is not None
        kept.lose(LeaseLost("noticed"))
        for _ in range(6):
            part = next(turns)
            with contextlib.suppress(LeaseLost):
                part.commit(1)
        assert [each.name for each in mesh.workers("orders")] == ["a"]
        kept = worker._work._kept
        assert kept is not None
        kept.lose(LeaseLost("ended here only: the store has it still"))
        next(turns)
        assert [each.state for each in mesh.workers("orders")] == ["running"]
        mesh.workers("orders").drain("a")
        kept = worker._work._kept
        assert kept is not None
        mesh.delete(kept.lease.key)
        kept.lose(LeaseLost("frozen"))
        assert next(turns, None) is None
        assert mesh.get("orders/_workers/a") is None


def test_an_order_for_an_earlier_one_of_the_name_means_nothing(mesh: Client) -> None:
    mesh.commit(f"orders/_workers/a/{ORDER}", {"order": "drain", "registration": 1})
    with mesh.worker("orders", partitions=1, name="a") as worker:
        for part in worker:
            part.commit(1)
            assert not part.wanted
            break
        assert [each.state for each in mesh.workers("orders")] == ["running"]


def test_the_keeper_beats_with_each_renewal(mesh: Client) -> None:
    with mesh.worker("orders", partitions=1, name="a", ttl=0.3):
        (first,) = mesh.workers("orders")
        until(lambda: mesh.workers("orders").list()[0].heartbeat > first.heartbeat)
        (later,) = mesh.workers("orders")
    assert later.started == first.started
    assert (later.host, later.pid) == (first.host, os.getpid())


def test_pipelines_at_which_somebody_is_at_work_are_listed(mesh: Client) -> None:
    for key in ("a", "a-b", "a/x/y", "a.c/_lock", "b/1", "c/\U0010ffff", "c/\U0010ffffz", "d"):
        mesh.commit(key, 1)
    assert mesh.pipelines() == []
    with mesh.worker("a", partitions=2) as worker, mesh.lock("c"), mesh.lock("a-b/x"):
        next(iter(worker))
        assert [(each.name, each.workers, each.locks) for each in mesh.pipelines()] == [
            ("a-b", 0, 1), ("a", 1, 2), ("c", 0, 1)]


# --- asyncio ----------------------------------------------------------------------------------


def test_with_asyncio_it_is_the_same() -> None:
    async def work(mesh: Any, name: str, turns: Counter[str]) -> None:
        async with mesh.worker("orders", partitions=4, name=name, idle=0.01) as worker:
            async for part in worker:
                turns[worker.name] += 1
                await part.commit(await part.value(0) + 1, position=1)
                found = await part.get()
                assert found is not None

    async def main() -> None:
        async with await ckptmesh.connect_async("memory://") as mesh:
            turns: Counter[str] = Counter()
            team = mesh.workers("orders")
            tasks = [asyncio.create_task(work(mesh, name, turns)) for name in "ab"]
            while sorted(len(each.partitions) for each in await team.list()) != [2, 2]:
                await asyncio.sleep(0.01)
            assert (await mesh.pipelines())[0].workers == 2
            assert await team.drain("a")
            await tasks[0]
            lost: list[str] = []

            async def loses(part: AsyncPart) -> None:
                if not lost:
                    lost.append(part.name)
                    await mesh.delete(part.lease.key)
                    await part.commit("stale")
                worker.drain()

            async with mesh.worker("orders", partitions=4, name="c") as worker:
                await worker.run(loses)
            assert lost
            assert await team.stop("b")
            await asyncio.gather(tasks[1], return_exceptions=True)
            assert await team.list() == []
            assert await team.free_stale() == []

    asyncio.run(asyncio.wait_for(main(), 30))


def test_sigterm_ends_an_asynchronous_loop_that_rests() -> None:
    before = signal.getsignal(signal.SIGTERM)

    async def main() -> int:
        turns = 0
        async with (await ckptmesh.connect_async("memory://") as mesh,
                    mesh.worker("orders", partitions=2, idle=600) as worker):
            asyncio.get_running_loop().call_later(0.1, os.kill, os.getpid(), signal.SIGTERM)
            async for _ in worker:
                turns += 1
        return turns

    assert asyncio.run(asyncio.wait_for(main(), 30)) == 2
    assert signal.getsignal(signal.SIGTERM) is before
