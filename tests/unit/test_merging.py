"""Mergeable state: the algebra of its types, and merging by both clients."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
import test_client
from hypothesis import given
from hypothesis import strategies as st
from test_client import TRANSACT, Way, op_of, resolved, unknown

import ckptmesh
from ckptmesh import InvalidPayload, InvalidValue, Misuse, TooLarge, merge, values
from ckptmesh.client import Client
from ckptmesh.features.merge import NOTES, Kept, Merge, PerKey, read, written

way = test_client.way  # fixtures
client = test_client.client

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)


def merged(*parts: Merge) -> Kept:
    """What is kept after merging parts into one field, one after the other."""
    kept = functools.reduce(lambda kept, part: part.onto(kept, "f"), parts, None)
    assert kept is not None
    return kept


# --- the algebra ------------------------------------------------------------------------------

exact = st.integers(-(2**40), 2**40) | st.decimals(-(10**12), 10**12, places=6)
moments = st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))
members = (st.text(max_size=3) | st.integers(-5, 5) | st.binary(max_size=2) | st.uuids()
           | st.dates() | moments)
numbers = st.integers(-(2**40), 2**40) | st.floats(allow_nan=False) | exact
PARTS: dict[str, st.SearchStrategy[Merge]] = {
    "add": exact.map(merge.Add),
    "max": numbers.map(merge.Max),
    "max of strings": st.text(max_size=3).map(merge.Max),
    "min": numbers.map(merge.Min),
    "min of moments": moments.map(merge.Min),
    "union": st.lists(members, max_size=4).map(merge.Union),
    "last with a time": st.builds(
        merge.Last, st.integers(0, 3) | st.text(max_size=2),
        st.integers(0, 3).map(lambda seconds: NOON + timedelta(seconds=seconds))),
}
PARTS["per key"] = st.dictionaries(
    st.sampled_from("abc"), st.integers(1, 9).map(merge.Add), max_size=3).map(merge.PerKey)
REPEATABLE = [name for name in PARTS if name not in ("add", "per key")]


@pytest.mark.parametrize("name", PARTS)
@given(data=st.data())
def test_the_order_of_merging_makes_no_difference(name: str, data: st.DataObject) -> None:
    parts = data.draw(st.lists(PARTS[name], min_size=1, max_size=6))
    shuffled = data.draw(st.permutations(parts))
    assert merged(*shuffled) == merged(*parts)


@pytest.mark.parametrize("name", PARTS)
@given(data=st.data())
def test_what_was_merged_apart_may_be_merged_together(name: str, data: st.DataObject) -> None:
    one, other, third = (data.draw(PARTS[name]) for _ in range(3))
    apart = again(merged(other, third))
    assert merged(one, apart) == merged(one, other, third)


def again(kept: Kept) -> Merge:
    """What brings as much as was merged into one field."""
    value, note = kept
    if isinstance(note, list):
        return merge.Last(value, at=note[1])
    if isinstance(note, dict):
        return PerKey({name: again((value[name], note[name])) for name in note})
    types: dict[str, Callable[[Any], Merge]] = {
        "add": merge.Add, "max": merge.Max, "min": merge.Min, "union": merge.Union}
    return types[note](value)


@pytest.mark.parametrize("name", REPEATABLE)
@given(data=st.data())
def test_merged_twice_is_as_merged_once(name: str, data: st.DataObject) -> None:
    parts = data.draw(st.lists(PARTS[name], min_size=1, max_size=4))
    assert merged(*parts, *parts) == merged(*parts)


@pytest.mark.parametrize("name", PARTS)
@given(data=st.data())
def test_what_is_kept_can_be_stored_and_is_read_as_it_was_merged(
    name: str, data: st.DataObject
) -> None:
    kept = PerKey({"f": data.draw(PARTS[name]), "g": merge.Last(None)}).first("")
    assert read(values.unpack(values.pack(written(kept))), "k") == kept


@given(st.lists(st.integers(-100, 100), min_size=1))
def test_each_type_is_what_python_makes_of_it(found: list[int]) -> None:
    assert merged(*map(merge.Add, found)) == (sum(found), "add")
    assert merged(*map(merge.Max, found)) == (max(found), "max")
    assert merged(*map(merge.Min, found)) == (min(found), "min")
    assert merged(*(merge.Union([each]) for each in found)) == (set(found), "union")
    assert merged(*map(merge.Last, found)) == (found[-1], "last")


@given(st.lists(st.floats(-1e6, 1e6), min_size=1))
def test_floats_are_added_as_floats(found: list[float]) -> None:
    assert merged(*map(merge.Add, found))[0] == functools.reduce(float.__add__, found)


def test_decimals_are_added_without_rounding_or_not_at_all() -> None:
    big, small = Decimal(10**40), Decimal("1E-40")
    assert merged(merge.Add(big), merge.Add(small), merge.Add(-big))[0] == small
    with pytest.raises(InvalidValue, match="'f': the sum has more than 100 digits"):
        merged(merge.Add(Decimal("1E+80")), merge.Add(Decimal("1E-80")))
    assert merged(merge.Add(Decimal("1E+9000")), merge.Add(Decimal("1E+9000")))[0] == Decimal(
        "2E+9000")


def test_the_latest_wins_whoever_commits_last() -> None:
    early, late = merge.Last("early", at=NOON), merge.Last("late", at=NOON + timedelta(seconds=1))
    assert merged(late, early)[0] == merged(early, late)[0] == "late"
    abroad = datetime(2026, 11, 21, 13, tzinfo=timezone(timedelta(hours=1)))
    assert merged(merge.Last(1, at=abroad)) == merged(merge.Last(1, at=NOON))


# --- what cannot be merged --------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [
    lambda: merge.Add(True), lambda: merge.Add("3"), lambda: merge.Add(float("inf")),
    lambda: merge.Add(Decimal("NaN")), lambda: merge.Add(Decimal("sNaN")),
    lambda: merge.Max(float("nan")), lambda: merge.Max(None), lambda: merge.Max([1]),
    lambda: merge.Min(datetime(2026, 1, 1)),
    lambda: merge.Union("abc"), lambda: merge.Union([1.0]), lambda: merge.Union([True]),
    lambda: merge.Union([datetime(2026, 1, 1)]), lambda: merge.Union([1], limit=0),
    lambda: merge.Last(1, at=datetime(2026, 1, 1)),
    lambda: merge.PerKey({"": merge.Add(1)}), lambda: merge.PerKey({NOTES: merge.Add(1)}),
    lambda: merge.PerKey({"a": 1}),
])
def test_what_no_type_takes_is_refused_where_it_is_written(wrong: Callable[[], object]) -> None:
    with pytest.raises(Misuse):
        wrong()


ONE_OF_EACH: dict[str, Merge] = {
    "add": merge.Add(1), "max": merge.Max(1), "min": merge.Min(1), "union": merge.Union([1]),
    "last": merge.Last(1), "latest": merge.Last(1, at=NOON),
    "per key": merge.PerKey({"a": merge.Add(1)}),
}


@pytest.mark.parametrize("held", ONE_OF_EACH)
@pytest.mark.parametrize("given", ONE_OF_EACH)
def test_a_field_stays_what_it_was_first(held: str, given: str) -> None:
    kept = ONE_OF_EACH[held].first("f")
    if held == given:
        ONE_OF_EACH[given].onto(kept, "f")
        return
    with pytest.raises(Misuse, match="field 'f' is") as caught:
        ONE_OF_EACH[given].onto(kept, "f")
    assert (caught.value.details["holds"], caught.value.details["given"]) == (held, given)


@pytest.mark.parametrize(("first", "then"), [
    (merge.Add(1), merge.Add(1.0)), (merge.Add(1.0), merge.Add(Decimal(1))),
    (merge.Max(1), merge.Max("1")), (merge.Min(NOON), merge.Min(date(2026, 1, 1))),
])
def test_what_cannot_be_added_or_compared_is_not_mixed(first: Merge, then: Merge) -> None:
    with pytest.raises(Misuse, match=r"field 'f' (counts|compares)"):
        merged(first, then)


def test_a_sum_of_floats_that_no_float_can_be_is_refused() -> None:
    with pytest.raises(InvalidValue, match="beyond what a float can be"):
        merged(merge.Add(1.7e308), merge.Add(1.7e308))


def test_a_set_and_a_map_are_bounded_and_the_refusal_names_the_bound() -> None:
    with pytest.raises(TooLarge, match="'f' would have 3 members; the limit is 2") as caught:
        merged(merge.Union([1, 2]), merge.Union([2, 3], limit=2))
    assert (caught.value.details["size"], caught.value.details["limit"]) == (3, 2)
    with pytest.raises(TooLarge, match="10,001 members; the limit is 10,000"):
        merged(merge.Union(range(10_001)))
    with pytest.raises(TooLarge, match="'f' would have 2 keys; the limit is 1"):
        merged(merge.PerKey({"a": merge.Add(1)}), merge.PerKey({"b": merge.Add(1)}, limit=1))


@pytest.mark.parametrize("stored", [
    None, 1, {}, {"rows": 1}, {"rows": 1, NOTES: {}}, {NOTES: {"rows": "add"}},
    {"rows": 1, NOTES: {"rows": "sub"}}, {"rows": "x", NOTES: {"rows": "add"}},
    {"rows": [1], NOTES: {"rows": "union"}}, {"rows": 1, NOTES: {"rows": ["add", NOON]}},
    {"rows": 1, NOTES: {"rows": "latest"}}, {"rows": 1, NOTES: {"rows": ["latest", 7]}},
    {"rows": 1, NOTES: {"rows": {}}}, {"rows": {"a": 1}, NOTES: {"rows": {"a": "union"}}},
    {"rows": 1, NOTES: {"rows": []}}, {"rows": True, NOTES: {"rows": "max"}},
])
def test_what_no_merge_has_written_is_told_from_what_one_has(stored: object) -> None:
    with pytest.raises(InvalidPayload, match="'k' is not mergeable state"):
        read(stored, "k")


# --- both clients -----------------------------------------------------------------------------


@pytest.fixture
def mesh(client: Callable[..., Any]) -> Any:
    return client()


def test_fields_are_merged_and_read_plain(mesh: Any) -> None:
    ids = [UUID(int=7), "a", 3]
    receipt = mesh.merge("totals", rows=merge.Add(3), seen=merge.Union(ids), peak=merge.Max(9))
    assert (receipt.key, receipt.version, receipt.attempts) == ("totals", 1, 1)
    assert isinstance(receipt, ckptmesh.Receipt)
    mesh.merge("totals", {"rows": merge.Add(2), "by/step": merge.PerKey(
        {"extract": merge.Add(1), "load": merge.Min(2.5)})}, peak=merge.Max(4))
    mesh.merge("totals", {"by/step": merge.PerKey({"extract": merge.Add(1)})})
    assert mesh.merged("totals") == {
        "rows": 5, "seen": set(ids), "peak": 9, "by/step": {"extract": 2, "load": 2.5}}
    assert mesh.get("totals").value["rows"] == 5
    assert mesh.merged("totals", at=receipt) == {"rows": 3, "seen": set(ids), "peak": 9}
    assert mesh.merged("other") == {}
    assert mesh.commit("totals", mesh.get("totals").value, expect=3).version == 4


def test_fields_may_have_the_names_of_options(mesh: Any) -> None:
    mesh.merge("k", {"timeout": merge.Add(1)}, key=merge.Add(2), self=merge.Add(3))
    assert mesh.merged("k") == {"timeout": 1, "key": 2, "self": 3}


@pytest.mark.parametrize("wrong", [
    lambda mesh: mesh.merge("k"), lambda mesh: mesh.merge("k", {}),
    lambda mesh: mesh.merge("k", [1]), lambda mesh: mesh.merge("k", rows=3),
    lambda mesh: mesh.merge("k", {"rows": merge.Add(1)}, rows=merge.Add(1)),
    lambda mesh: mesh.merge("k", peak=merge.Max(3), rows=merge.Max(3)),
    lambda mesh: mesh.merge("k", peak=merge.Max(3), ids=merge.Union([3], limit=2)),
    lambda mesh: mesh.merge("k", peak=merge.Max(3), rows=merge.Add(2**64 - 1)),
    lambda mesh: mesh.merge("plain", rows=merge.Add(1)),
    lambda mesh: mesh.merge("_bad", rows=merge.Add(1)),
])
def test_a_merge_that_is_refused_writes_nothing(
    mesh: Any, wrong: Callable[[Any], object], way: Way
) -> None:
    mesh.commit("plain", 7)
    mesh.merge("k", peak=merge.Max(1), rows=merge.Add(1), ids=merge.Union([1, 2]))
    before = way.revision
    with pytest.raises((Misuse, TooLarge, InvalidValue, InvalidPayload, ckptmesh.InvalidKey)):
        wrong(mesh)
    assert way.revision == before
    assert mesh.merged("k") == {"peak": 1, "rows": 1, "ids": {1, 2}}


def test_a_merge_under_a_lease_that_was_lost_is_refused(mesh: Any) -> None:
    lease = mesh.create("worker", "me", lease=True, ttl=30)
    mesh.merge("k", rows=merge.Add(1), guard=lease)
    mesh.delete("worker")
    with pytest.raises(ckptmesh.LeaseLost):
        mesh.merge("k", rows=merge.Add(1), guard=lease)
    assert mesh.merged("k") == {"rows": 1}


def test_who_was_slower_merges_into_what_the_other_left(
    mesh: Any, way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Client(way.transport()) as other:
        found = merge.Add.first
        faster = iter([True, True])

        def first(self: merge.Add, field: str) -> Kept:
            if field == "rows" and next(faster, False):
                other.merge("k", hits=merge.Add(1))
            return found(self, field)

        monkeypatch.setattr(merge.Add, "first", first)
        receipt = mesh.merge("k", rows=merge.Add(1))
    assert receipt.attempts == 3
    assert mesh.merged("k") == {"rows": 1, "hits": 2}


@pytest.mark.fault(31)
@pytest.mark.parametrize(("fault", "counted"), [("lose_outcomes", 2), ("lose_commits", 1)])
def test_a_merge_whose_outcome_is_unknown_is_counted_once_or_never(
    client: Callable[..., Any], way: Way, fault: str, counted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = way.handle

    def losing(payloads: Sequence[bytes]) -> list[bytes]:
        return handle([payload for payload in payloads
                       if not (getattr(way, "lose_commits", False) and op_of(payload) == TRANSACT)])

    monkeypatch.setattr(way, "handle", losing)
    mesh = client()
    mesh.merge("k", rows=merge.Add(1))
    error = unknown(mesh, way, fault, lambda: mesh.merge("k", rows=merge.Add(1), timeout=0.05))
    receipt = resolved(mesh, error)
    standing = mesh.get("k")
    assert standing.value["rows"] == counted
    if counted == 1:
        assert receipt is None
        assert mesh.merge("k", rows=merge.Add(1)).version == 2, "so it may be merged again"
    else:
        assert (receipt.key, receipt.revision) == ("k", standing.revision)
