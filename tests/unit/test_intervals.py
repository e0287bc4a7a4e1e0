"""Intervals: many workers, any order, restarts; against a set of numbers."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Iterator
from itertools import count, pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ckptmesh
from ckptmesh import (
    Conflict,
    Interval,
    Intervals,
    InvalidPayload,
    LeaseLost,
    Misuse,
    OutcomeUnknown,
    TooLarge,
)
from ckptmesh.client import Client
from ckptmesh.features import holes
from ckptmesh.features.spans import Spans

END = 40


@pytest.fixture(scope="module")
def mesh() -> Iterator[Client]:
    with ckptmesh.connect("memory://") as found:
        yield found


_names = count()


def fresh() -> str:
    return f"backfill{next(_names)}"


def end_lease(mesh: Client, todo: Intervals) -> None:
    """As if the worker's process had stood still for too long."""
    kept = todo._core._kept
    assert kept is not None
    mesh.delete(kept.lease.key)


bounds = st.tuples(st.integers(-30, 30), st.integers(1, 12)).map(lambda it: (it[0], sum(it)))


@settings(max_examples=300)
@given(st.lists(st.tuples(st.booleans(), bounds), max_size=30), bounds)
def test_spans_are_a_set_of_numbers(steps: list[tuple[bool, tuple[int, int]]],
                                    asked: tuple[int, int]) -> None:
    spans, model = Spans(), set[int]()
    for add, (start, end) in steps:
        (spans.add if add else spans.discard)(start, end)
        (model.update if add else model.difference_update)(range(start, end))
    pieces = list(spans)
    assert [number for piece in pieces for number in range(*piece)] == sorted(model)
    assert all(one[1] < other[0] for one, other in pairwise(pieces)), "joined"
    assert len(spans) == len(pieces)
    assert spans.total == len(model)
    assert spans.last == (max(model) + 1 if model else None)
    assert spans.touches(*asked) == bool(model.intersection(range(*asked)))
    left = [number for gap in spans.gaps(*asked) for number in range(*gap)]
    assert left == sorted(set(range(*asked)) - model)
    assert list(Spans.load(spans.dump())) == pieces


@pytest.mark.parametrize("bad", [b"", b"\x91\x01", b"\x92\x01\x00", b"\x92\x05\xff",
                                 b"\x92\x01\xa0", b"\x01", b"\xc1"])
def test_bytes_that_are_no_spans_are_refused(bad: bytes) -> None:
    with pytest.raises((ValueError, TypeError)):
        Spans.load(bad)


class Worker:
    """A worker, and the model of what it has claimed."""

    def __init__(self, mesh: Client, key: str) -> None:
        self.todo = mesh.intervals(key, end=END)
        self.claims: list[Interval] = []
        self.lost = False


def test_a_claim_that_ended_is_told_also_where_somebody_else_has_done_the_work(
        mesh: Client) -> None:
    key = fresh()
    frozen, other = mesh.intervals(key, end=END), mesh.intervals(key, end=END)
    claimed = frozen.claim(10)
    assert claimed is not None
    end_lease(mesh, frozen)
    again = other.claim(10)
    assert again == claimed
    other.done(again)
    other.done(again)
    with pytest.raises(LeaseLost):
        frozen.done(claimed)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_order_of_work_restarts_and_deaths_leaves_what_a_set_would_hold(
    mesh: Client, data: st.DataObject
) -> None:
    key, done = fresh(), set[int]()
    workers = [Worker(mesh, key) for _ in range(3)]
    for _ in range(data.draw(st.integers(1, 25))):
        worker = data.draw(st.sampled_from(workers))
        action = data.draw(st.sampled_from(
            ["claim", "claim", "done", "done", "part", "any", "back", "dies", "freezes", "leaves"]))
        busy = done.union(*(claim.numbers for each in workers if not each.lost
                            for claim in each.claims))
        if action == "claim":
            if worker.lost:
                worker.claims, worker.lost = [], False
            size = data.draw(st.integers(1, 15))
            got = worker.todo.claim(size, wait=0)
            free = [number for number in range(END) if number not in busy]
            assert (got is None) == (not free)
            if got is not None:
                assert list(got.numbers) == free[:len(got.numbers)]
                assert 0 < len(got.numbers) <= size
                worker.claims.append(got)
        elif action in ("done", "part", "back") and worker.claims:
            claim = data.draw(st.sampled_from(worker.claims))
            part = claim if action != "part" else Interval(
                claim.start, data.draw(st.integers(claim.start + 1, claim.end)))
            if worker.lost:
                with pytest.raises(LeaseLost):
                    worker.todo.done(part)
                worker.claims, worker.lost = [], False
            elif action == "back":
                worker.todo.give_back(claim)
                worker.claims.remove(claim)
            else:
                assert worker.todo.done(part).key == key
                done.update(part.numbers)
                worker.claims.remove(claim)
                if part.end < claim.end:
                    worker.claims.append(Interval(part.end, claim.end))
        elif action == "any":
            start = data.draw(st.integers(0, END - 1))
            some = Interval(start, data.draw(st.integers(start + 1, END)))
            if busy.isdisjoint(some.numbers) and not any(each.lost for each in workers):
                worker.todo.done(some)
                done.update(some.numbers)
        elif action == "dies":  # and another takes its place
            if worker.todo._core._kept is not None and not worker.lost:
                end_lease(mesh, worker.todo)
            worker.todo._core.forget()
            workers[workers.index(worker)] = Worker(mesh, key)
        elif action == "freezes" and worker.claims and not worker.lost:
            end_lease(mesh, worker.todo)
            worker.lost = True
        elif action == "leaves":
            worker.todo.close()
            worker.claims, worker.lost = [], False
        low = next((number for number in range(END) if number not in done), END)
        assert worker.todo.low_mark == low
        assert worker.todo.finished == (low == END)
        left = [number for hole in worker.todo.holes() for number in hole.numbers]
        assert left == sorted(set(range(END)) - done)
    for worker in workers:
        worker.todo.close()
    with mesh.intervals(key, end=END) as rest:
        redone: list[int] = []
        while part := rest.claim(7, wait=5):
            redone += part.numbers
            rest.done(part)
        assert redone == sorted(set(range(END)) - done), "a restart does the holes, and them alone"
        assert rest.finished
    found = mesh.get(key)
    assert found is not None
    assert found.position == END
    assert found.value["claims"] == []
    assert mesh.scan(f"{key}/_claims") == []


def test_the_low_mark_is_the_position_of_the_commit(mesh: Client) -> None:
    todo = mesh.intervals(fresh(), start=-5, end=100)
    assert (todo.low_mark, todo.finished) == (-5, False)
    todo.done((10, 20))
    assert todo.low_mark == -5
    receipt = todo.done((-5, 10))
    assert todo.low_mark == 20
    found = mesh.get(todo.key)
    assert found is not None
    assert (found.position, found.revision, found.value["low_mark"]) == (20, receipt.revision, 20)
    assert todo.done((0, 10)) == receipt, "to say it twice changes nothing"
    assert todo.holes() == [Interval(20, 100)]


def test_without_an_end_there_is_always_something_to_do(mesh: Client) -> None:
    with mesh.intervals(fresh(), start=7) as todo:
        assert todo.claim(10) == (7, 17)
        assert todo.claim(10) == (17, 27)
        todo.done((17, 27))
        assert todo.holes() == [(7, 17)]
        assert todo.low_mark == 7
        todo.done((7, 17))
        assert todo.holes() == []
        assert not todo.finished


def test_one_who_waits_gets_what_another_gives_back_and_ends_when_all_is_done(mesh: Client) -> None:
    key, got = fresh(), list[Interval | None]()
    first = mesh.intervals(key, end=10)
    assert first.claim(6) == (0, 6)
    assert first.claim(6) == (6, 10)
    assert first.claim(1) is None, "one who has claims does not wait for himself"

    def second() -> None:
        with mesh.intervals(key, end=10) as todo:
            while part := todo.claim(6):
                got.append(part)
                todo.done(part)
            got.append(None)

    assert mesh.intervals(key, end=10).claim(1, wait=0.05) is None
    thread = threading.Thread(target=second)
    thread.start()
    first.give_back((6, 10))
    end = time.monotonic() + 30
    while not got:
        assert time.monotonic() < end
        time.sleep(0.005)
    first.done((0, 6))
    thread.join(30)
    assert got == [(6, 10), None]


def test_threads_that_share_the_work_do_each_number_once(mesh: Client) -> None:
    key, did = fresh(), list[int]()

    def work(seed: int) -> None:
        chance = random.Random(seed)
        with mesh.intervals(key, end=2_000) as todo:
            while part := todo.claim(chance.randint(1, 60)):
                did.extend(part.numbers)
                todo.done(part)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(did) == list(range(2_000))


def test_a_lease_that_ended_unnoticed_is_taken_anew(mesh: Client) -> None:
    with mesh.intervals(fresh(), end=10) as todo:
        part = todo.claim(5)
        end_lease(mesh, todo)
        assert todo.claim(5) == part, "what it had claimed is free again, for itself too"
        todo.done((0, 5))


def test_a_claim_of_unknown_outcome_is_claimed_again(mesh: Client, monkeypatch: pytest.MonkeyPatch
                                                     ) -> None:
    commit = mesh.commit

    def lost(key: str, value: Any, **options: Any) -> None:
        commit(key, value, **options)
        raise OutcomeUnknown("no answer came")

    with mesh.intervals(fresh(), end=20) as todo:
        first = todo.claim(5)
        with monkeypatch.context() as patch:
            patch.setattr(mesh, "commit", lost)
            with pytest.raises(OutcomeUnknown):
                todo.claim(5)
        assert mesh.value(todo.key)["claims"][1][:2] == [5, 10]
        assert todo.claim(7) == (5, 12)
        assert todo.claim(9) == (12, 20)
        assert first == (0, 5)
        claims = mesh.value(todo.key)["claims"]
        assert [claim[:2] for claim in claims] == [[0, 5], [5, 12], [12, 20]]


def test_a_change_that_always_loses_says_so(mesh: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ckptmesh.features.intervals._ATTEMPTS", 3)
    todo = mesh.intervals(fresh(), end=10)
    attempts: list[float] = []

    def sleep(seconds: float) -> None:
        attempts.append(seconds)

    def put(*args: Any, **options: Any) -> None:
        raise Conflict("somebody was faster")

    monkeypatch.setattr(todo._core, "_sleep", sleep)
    monkeypatch.setattr(mesh, "put", put)
    with pytest.raises(Conflict):
        todo.done((0, 5))
    assert len(attempts) == 3


def do_every_other(todo: Intervals) -> None:
    for number in range(0, 1_000, 2):
        todo.done((number, number + 1))


def test_too_many_pieces_or_claims_are_refused_with_what_to_do(
    mesh: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holes, "VALUE_BYTES", holes._ROOM + 100)
    with mesh.intervals(fresh(), end=10_000) as todo:
        with pytest.raises(TooLarge, match="split the range") as caught:
            do_every_other(todo)
        assert caught.value.details["limit"] == 100
        assert 40 < todo.holes().index(Interval(todo.holes()[-1].start, 10_000)) < 100
        todo.done((0, 1_000))
        assert todo.low_mark == 1_000, "to fill holes is always possible"
        monkeypatch.setattr(holes, "INTERVAL_CLAIMS", 3)
        for _ in range(3):
            todo.claim(1)
        with pytest.raises(TooLarge, match="larger intervals"):
            todo.claim(1)


@pytest.mark.parametrize("bad", [{"start": 1.0}, {"end": -1}, {"end": 2**63}, {"ttl": 0},
                                 {"start": True}, {"ttl": None}, {"key": ""}, {"key": "a" * 512}])
def test_arguments_that_cannot_be_are_refused_at_once(mesh: Client, bad: dict[str, Any]) -> None:
    with pytest.raises((Misuse, ckptmesh.InvalidKey, TooLarge)):
        mesh.intervals(**{"key": "a", **bad})


@pytest.mark.parametrize("bad", [(1, 1), (5, 4), (-1, 4), (0, 101), (0, 1.0), [0, 1], (1, 2, 3), 5])
def test_intervals_that_cannot_be_are_refused(mesh: Client, bad: Any) -> None:
    todo = mesh.intervals(fresh(), end=100)
    with pytest.raises(Misuse):
        todo.done(bad)
    with pytest.raises(Misuse, match="size"):
        todo.claim(0)
    assert mesh.get(todo.key) is None


@pytest.mark.parametrize("change", [
    {"intervals": 2}, {"done": b"\x91\x01"}, {"done": 5}, {"claims": [[1, 1, "a"]]},
    {"claims": [[1]]}, {"claims": 1}])
def test_what_another_wrote_there_is_told_from_intervals(mesh: Client, change: dict[str, Any]
                                                         ) -> None:
    key = fresh()
    mesh.intervals(key).done((0, 1))
    good = mesh.value(key)
    mesh.commit(key, {**good, **change})
    with pytest.raises(InvalidPayload, match="no set of intervals"):
        mesh.intervals(key).holes()
    mesh.commit(key, 5)
    with pytest.raises(InvalidPayload):
        mesh.intervals(key).claim(1)
    mesh.commit(key, good)
    with pytest.raises(Misuse, match="start=0, not 1"):
        mesh.intervals(key, start=1).holes()


def test_with_asyncio_it_is_the_same() -> None:
    async def main() -> None:
        async with await ckptmesh.connect_async("memory://") as mesh:
            did: list[int] = []

            async def work(size: int) -> None:
                async with mesh.intervals("backfill", end=100) as todo:
                    while part := await todo.claim(size):
                        await asyncio.sleep(0)
                        did.extend(part.numbers)
                        await todo.done(part)

            await asyncio.gather(*(work(size) for size in (3, 5, 7)))
            assert sorted(did) == list(range(100))
            async with mesh.intervals("backfill", end=120) as todo:
                assert todo.key == "backfill"
                assert await todo.low_mark == 100
                assert not await todo.finished
                assert await todo.claim(50) == (100, 120)
                await todo.give_back((100, 110))
                assert await todo.holes() == [(100, 120)]
                await todo.done((100, 120))
                assert await todo.finished
    asyncio.run(main())
