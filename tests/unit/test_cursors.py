"""Cursors: nothing lost, nothing repeated, against a model that remembers every row."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from itertools import count
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ckptmesh
from ckptmesh import Conflict, InvalidPayload, InvalidValue, LeaseLost, Misuse, TooLarge
from ckptmesh.client import Client
from ckptmesh.features import taken
from ckptmesh.features.cursors import Cursor

MORNING = datetime(2026, 3, 1, 6, tzinfo=UTC)
Make = Callable[[Any], Any]


@pytest.fixture(scope="module")
def mesh() -> Iterator[Client]:
    with ckptmesh.connect("memory://") as found:
        yield found


_names = count()


def fresh() -> str:
    return f"feed{next(_names)}"


def cursor(mesh: Client, key: str, **options: Any) -> Cursor:
    return mesh.cursor(key, by="at", id="id", **options)


def rows(*pairs: tuple[Any, Any]) -> list[dict[str, Any]]:
    return [{"at": at, "id": id} for at, id in pairs]


def load(mesh: Client, key: str, *pairs: tuple[Any, Any], **options: Any) -> list[Any]:
    with cursor(mesh, key, **options) as cur:
        return [(row["at"], row["id"]) for row in cur.new(rows(*pairs))]


KINDS: list[Make] = [
    lambda n: n,
    lambda n: MORNING + timedelta(microseconds=n),
    lambda n: date(2026, 3, 1) + timedelta(days=n),
    lambda n: Decimal(n) / 8,
    lambda n: f"{n + 500:04d}é",
]
IDS: list[Make] = [lambda n: n - 3, str, lambda n: str(n).encode(), lambda n: UUID(int=n << 100)]
BOUND: list[Make] = [
    lambda n: n,
    lambda n: timedelta(microseconds=n),
    lambda n: timedelta(days=n),
    lambda n: Decimal(n) / 8,
]


class Source:
    """A table to which rows are added, with values at most `bound` behind the highest one that a
    load has seen; the model of what has to arrive."""

    def __init__(self, bound: int) -> None:
        self.bound = bound
        self.rows: list[tuple[int, int]] = []
        self.arrived: list[tuple[int, int]] = []
        self.seen = -100

    def grow(self, data: st.DataObject) -> None:
        low = max(self.seen - self.bound, -100)
        for value in data.draw(st.lists(st.integers(low, low + 12), max_size=8)):
            row = (value, data.draw(st.integers(0, 5)))
            if row not in self.rows:
                self.rows.append(row)

    def answer(self, data: st.DataObject, floor: Any, make: Make, ordered: bool
               ) -> list[tuple[int, int]]:
        due = [row for row in self.rows if floor is None or make(row[0]) >= floor]
        if ordered:
            return sorted(due, key=lambda row: row[0])
        repeated = data.draw(st.lists(st.sampled_from(due), max_size=3)) if due else []
        return data.draw(st.permutations(due + repeated))


@settings(max_examples=150, deadline=None)
@given(data=st.data(), kind=st.integers(0, 4), ids=st.sampled_from(IDS), ordered=st.booleans())
def test_every_row_arrives_once_whatever_is_equal_late_shuffled_or_crashes(
    mesh: Client, data: st.DataObject, kind: int, ids: Make, ordered: bool
) -> None:
    make = KINDS[kind]
    source = Source(data.draw(st.integers(0, 5)) if kind < 4 else 0)
    late = BOUND[kind](source.bound) if kind < 4 else None
    key = fresh()
    for _ in range(data.draw(st.integers(1, 6))):
        source.grow(data)
        ending = data.draw(st.sampled_from(["clean", "clean", "crash", "second copy", "commits"]))
        cur = cursor(mesh, key, late=late, ordered=ordered)
        before = mesh.get(key)
        new: list[tuple[int, int]] = []
        try:
            with cur:
                batch = source.answer(data, cur.floor, make, ordered)
                shown = [SimpleNamespace(at=make(value), id=ids(id), row=(value, id))
                         for value, id in batch]
                for row in cur.new(shown):
                    new.append(row.row)
                    if ending == "commits" and ordered:
                        cur.commit()
                assert cur.skipped == 0
                if ending == "crash":
                    raise ZeroDivisionError
                if ending == "second copy":
                    with cursor(mesh, key, late=late) as other:
                        assert other.floor is None or before is not None
        except (ZeroDivisionError, Conflict):
            assert ending in ("crash", "second copy")
            if ending == "crash":
                assert mesh.get(key) == before, "progress is unchanged"
            continue
        assert ending in ("clean", "commits")
        source.arrived += new
        source.seen = max([source.seen, *(value for value, _ in new)])
    with cursor(mesh, key, late=late) as cur:
        batch = source.answer(data, cur.floor, make, False)
        last = [(value, id) for value, id in batch]
        left = list(cur.new(rows(*((make(value), ids(id)) for value, id in last))))
    total = [(make(value), ids(id)) for value, id in source.arrived]
    total += [(row["at"], row["id"]) for row in left]
    assert sorted(total, key=repr) == sorted(
        ((make(value), ids(id)) for value, id in source.rows), key=repr)


def test_equal_values_are_neither_lost_nor_repeated(mesh: Client) -> None:
    key = fresh()
    assert load(mesh, key, (MORNING, 1), (MORNING, 2)) == [(MORNING, 1), (MORNING, 2)]
    assert load(mesh, key, (MORNING, 2), (MORNING, 3), (MORNING, 1)) == [(MORNING, 3)]
    assert load(mesh, key, (MORNING, 1), (MORNING, 2), (MORNING, 3)) == []


def test_a_row_that_was_changed_comes_again(mesh: Client) -> None:
    key = fresh()
    assert load(mesh, key, (1, "a"), (1, "b")) == [(1, "a"), (1, "b")]
    assert load(mesh, key, (1, "b"), (2, "a")) == [(2, "a")]


def test_the_commit_says_where_it_stands(mesh: Client) -> None:
    key = fresh()
    with cursor(mesh, key, late=timedelta(minutes=5)) as cur:
        assert cur.key == key
        assert cur.floor is None
        list(cur.new(rows((MORNING, 1), (MORNING - timedelta(hours=1), 2))))
        receipt = cur.commit()
        assert receipt == cur._core._stands
        assert cur.floor == MORNING - timedelta(minutes=5)
    found = mesh.get(key)
    assert found is not None
    assert found.revision == receipt.revision, "nothing was left to commit"
    assert found.position == 1_772_344_800_000_000
    assert found.value["high"] == MORNING
    assert found.value["count"] == 1, "what is below the floor is not remembered"


def test_rows_below_the_floor_are_counted_or_refused(mesh: Client) -> None:
    key = fresh()
    load(mesh, key, (10, 1), late=3)
    with cursor(mesh, key, late=3) as cur:
        assert [row["id"] for row in cur.new(rows((6, 2), (7, 3), (10, 1)))] == [3]
        assert cur.skipped == 1
    with pytest.raises(InvalidValue, match="later than late= allows"):
        load(mesh, key, (6, 2), late=3, on_late="raise")


def test_a_wider_bound_does_not_repeat_what_is_forgotten(mesh: Client) -> None:
    key = fresh()
    load(mesh, key, (5, 1), (10, 2), late=1)
    with cursor(mesh, key, late=8) as cur:
        assert cur.floor == 9
        list(cur.new(rows((5, 1), (20, 3))))
        assert cur.skipped == 1
    with cursor(mesh, key, late=8) as cur:
        assert cur.floor == 12


def test_an_exception_and_a_batch_half_read_leave_progress_unchanged(mesh: Client) -> None:
    key = fresh()
    load(mesh, key, (1, 1))
    before = mesh.get(key)
    with pytest.raises(ZeroDivisionError), cursor(mesh, key) as cur:
        _ = 1 // len([row for row in cur.new(rows((2, 2))) if row["id"] == 3])
    with pytest.raises(Misuse, match="not read to their end"), cursor(mesh, key) as cur:
        assert next(cur.new(rows((9, 2), (3, 3))))["id"] == 2
    assert mesh.get(key) == before


def test_rows_that_ascend_may_be_left_and_committed_half_way(mesh: Client) -> None:
    key = fresh()
    table = rows((1, 1), (1, 2), (2, 1), (2, 2), (3, 1))
    with cursor(mesh, key, ordered=True) as cur:
        for row in cur.new(table):
            if row == table[2]:
                break
    with cursor(mesh, key, ordered=True) as cur:
        assert cur.floor == 2
        assert list(cur.new(table)) == table[3:]
        assert cur.skipped == 2
    with pytest.raises(Misuse, match="do not ascend"), cursor(mesh, key, ordered=True) as cur:
        list(cur.new(rows((5, 1), (4, 1))))


def test_the_second_copy_of_a_job_gets_a_conflict(mesh: Client) -> None:
    key = fresh()
    slow = cursor(mesh, key).__enter__()
    assert len(list(slow.new(rows((1, 1), (2, 2))))) == 2
    assert load(mesh, key, (1, 1)) == [(1, 1)]
    with pytest.raises(Conflict):
        slow.__exit__(None, None, None)
    assert load(mesh, key, (1, 1), (2, 2)) == [(2, 2)]


def test_a_cursor_under_a_lock_is_fenced(mesh: Client) -> None:
    key = fresh()
    with mesh.lock(key, ttl=30) as lock, cursor(mesh, key, guard=lock) as cur:
        list(cur.new(rows((1, 1))))
    lease = mesh.commit(f"{key}/other", 1, lease=True, ttl=30)
    mesh.delete(lease.key)
    with pytest.raises(LeaseLost), cursor(mesh, key, guard=lease) as cur:
        list(cur.new(rows((2, 2))))
    assert load(mesh, key, (2, 2)) == [(2, 2)]


def test_more_rows_than_can_be_remembered_are_refused_with_what_to_do(
    mesh: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(taken, "CURSOR_IDS", 100)
    key = fresh()
    with pytest.raises(TooLarge, match=r"101 rows|100 rows.*smaller late=") as caught:
        load(mesh, key, *((1, n) for n in range(101)))
    assert caught.value.details["limit"] == 100
    assert mesh.get(key) is None
    assert len(load(mesh, key, *((1, n) for n in range(100)))) == 100
    monkeypatch.setattr(taken, "VALUE_BYTES", 5_000)
    with pytest.raises(TooLarge, match="bytes; the limit is 5,000"):
        load(mesh, fresh(), *((1, f"{n}" * 20) for n in range(90)))


def test_rows_that_ascend_are_forgotten_as_it_goes(
    mesh: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(taken, "CURSOR_IDS", 12_000)
    key, table = fresh(), ((n // 3, n) for n in range(40_000))
    with cursor(mesh, key, ordered=True, late=10) as cur:
        assert sum(1 for _ in cur.new({"at": at, "id": id} for at, id in table)) == 40_000
    with pytest.raises(TooLarge):
        load(mesh, fresh(), *((n // 3, n) for n in range(40_000)))


@pytest.mark.parametrize(("at", "id", "match"), [
    (datetime(2026, 3, 1), 1, "no time zone"),
    (1.5, 1, "use Decimal"),
    (True, 1, "not bool"),
    (None, 1, "leave out the rows"),
    (Decimal("NaN"), 1, "no place"),
    (2**63, 1, "64 bits"),
    ("\ud800", 1, "UTF-8"),
    (1, None, "leave out the rows"),
    (1, (1, 2), "join them"),
    (1, 2**64, "64 bits"),
])
def test_what_cannot_be_kept_is_refused_with_a_tip(
    mesh: Client, at: Any, id: Any, match: str
) -> None:
    key = fresh()
    with pytest.raises(Misuse, match=match):
        load(mesh, key, (at, id))
    assert mesh.get(key) is None


def test_kinds_are_not_mixed(mesh: Client) -> None:
    key = fresh()
    with pytest.raises(Misuse, match="goes by values of int"):
        load(mesh, key, (1, 1), ("2", 1))
    load(mesh, key, (1, 1))
    with pytest.raises(Misuse, match="goes by values of int"):
        load(mesh, key, (MORNING, 1))
    with pytest.raises(Misuse, match="ids of int"):
        load(mesh, key, (2, "a"))


@pytest.mark.parametrize(("value", "late"), [
    (1, timedelta(1)), (1, -1), (1, 0.5), (MORNING, 5), (MORNING, -timedelta(1)), ("a", 1),
    (date(2026, 1, 1), timedelta(hours=1)), (Decimal(1), 0.5)])
def test_a_bound_of_the_wrong_kind_is_refused(mesh: Client, value: Any, late: Any) -> None:
    with pytest.raises(Misuse, match="late"):
        load(mesh, fresh(), (value, 1), late=late)


def test_the_ends_of_what_can_be_told_are_no_obstacle(mesh: Client) -> None:
    for value, late in ((datetime(1, 1, 2, tzinfo=UTC), timedelta(days=9)),
                        (date(1, 1, 2), timedelta(days=9)), (-(2**63), 2**70),
                        (Decimal("1E+30"), Decimal("1E-30"))):
        key = fresh()
        assert load(mesh, key, (value, 1), late=late) == [(value, 1)]
        assert load(mesh, key, (value, 1), (value, 2), late=late) == [(value, 2)]


GOOD = {"cursor": 1, "by": "int", "id": "int", "high": 1, "floor": 1, "count": 1,
        "values": b"\x91\x01", "counts": b"\x91\x01", "ids": b"\x91\x01"}


def test_a_stored_cursor_is_what_the_next_tests_damage(mesh: Client) -> None:
    key = fresh()
    load(mesh, key, (1, 1))
    assert mesh.value(key) == GOOD


@pytest.mark.parametrize("stored", [
    1, {}, {"cursor": 2}, {"cursor": 1, "by": "float"},
    {**GOOD, "counts": b"\x91\xce\xff\xff\xff\xff"}, {**GOOD, "count": 2},
    {**GOOD, "values": b"\xc1"}, {**GOOD, "ids": b"\x91\xa1a"}, {**GOOD, "high": "1"},
    {**GOOD, "id": "str", "ids": b"\x92\x05\xc4\x01a"},
])
def test_what_another_wrote_there_is_told_from_a_cursor(mesh: Client, stored: Any) -> None:
    key = fresh()
    mesh.commit(key, stored)
    with pytest.raises(InvalidPayload, match="is no cursor"), cursor(mesh, key):
        pass


def test_rows_are_mappings_objects_or_whatever_a_function_reads(mesh: Client) -> None:
    base = sqlite3.connect(":memory:")
    base.row_factory = sqlite3.Row
    base.execute("create table t (at integer, id integer)")
    base.executemany("insert into t values (?, ?)", [(1, 1), (2, 2)])
    key = fresh()
    with cursor(mesh, key) as cur:
        assert len(list(cur.new(base.execute("select * from t")))) == 2
    with mesh.cursor(key, by=lambda row: row[0], id=lambda row: row[1]) as cur:
        assert list(cur.new([(2, 2), (3, 3)])) == [(3, 3)]
    with cursor(mesh, key) as cur:
        assert list(cur.new([SimpleNamespace(at=3, id=3)])) == []


@pytest.mark.parametrize("bad", [{"by": 1}, {"id": 1}, {"on_late": "no"}, {"key": ""}])
def test_arguments_that_cannot_be_are_refused_at_once(mesh: Client, bad: dict[str, Any]) -> None:
    with pytest.raises((Misuse, ckptmesh.InvalidKey)):
        mesh.cursor(**{"key": "a", "by": "at", "id": "id", **bad})


def test_a_cursor_works_inside_its_block_only(mesh: Client) -> None:
    cur = cursor(mesh, fresh())
    with pytest.raises(Misuse, match="is not open"):
        _ = cur.floor
    with pytest.raises(Misuse, match="is not open"):
        cur.commit()
    with cur:
        late = cur.new(rows((1, 1), (2, 2)))
    with pytest.raises(Misuse, match="is not open"):
        next(late)


def test_with_asyncio_it_is_the_same() -> None:
    async def arrive(*pairs: tuple[Any, Any]) -> AsyncIterator[dict[str, Any]]:
        for row in rows(*pairs):
            await asyncio.sleep(0)
            yield row

    async def main() -> None:
        async with await ckptmesh.connect_async("memory://") as mesh:
            def place() -> ckptmesh.AsyncCursor:
                return mesh.cursor("orders", by="at", id="id", late=1)

            async with place() as cur:
                new = cur.new(arrive((1, 1), (2, 2), (1, 1)))
                assert [row["id"] async for row in new] == [1, 2]
            async with place() as cur:
                assert cur.floor == 1
                assert [row["id"] for row in cur.new(rows((1, 1), (1, 3)))] == [3]
                assert (await cur.commit()).version == 2
                assert [row["id"] async for row in cur.new(rows((1, 3), (2, 4)))] == [4]
            with pytest.raises(Misuse, match="asynchronously"):
                async with place() as cur:
                    list(cur.new(arrive((9, 9))))
            with pytest.raises(Conflict):
                async with place() as slow, place():
                    assert slow.key == "orders"
            found = await mesh.get("orders")
            assert found is not None
            assert found.value["high"] == 2
    asyncio.run(main())
