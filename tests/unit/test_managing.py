"""Cleaning up, comparing, validating and repairing checkpoints, by both clients."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
import test_client
from hypothesis import given
from hypothesis import strategies as st
from test_client import Way
from test_packed import write_raw

import ckptmesh
from ckptmesh import Conflict, InvalidPayload, Misuse, Schema
from ckptmesh.features import cleaning, pages
from ckptmesh.features.cleaning import clean, plan
from ckptmesh.features.differences import differences, rows_in, rows_of
from ckptmesh.features.portable import Reader
from ckptmesh.flows import run

way = test_client.way  # fixtures
client = test_client.client
Make = Callable[..., Any]


@pytest.fixture
def memory() -> Iterator[Any]:
    with ckptmesh.connect("memory://") as found:
        yield found


def keys(mesh: Any, prefix: str = "") -> list[str]:
    return [each.key for each in mesh.list(prefix)]


# --- cleaning up ------------------------------------------------------------------------------


def test_all_but_the_newest_go(client: Make) -> None:
    mesh = client()
    for day in (3, 1, 2, 4):
        mesh.commit(f"daily/{day}", day)
    mesh.commit("daily2", "another prefix")
    told = mesh.cleanup("daily", keep=2, dry_run=True)
    assert [each.key for each in told.plan.candidates] == ["daily/1", "daily/3"]
    assert (told.deleted, told.plan.seen) == (0, 4)
    assert len(keys(mesh)) == 5
    assert mesh.cleanup("daily", keep=2).deleted == 2
    assert keys(mesh) == ["daily/2", "daily/4", "daily2"]


def test_only_what_is_old_goes_and_never_the_newest(client: Make) -> None:
    mesh = client()
    mesh.commit("daily/old", 1)
    mesh.commit("daily/older", 1)
    time.sleep(0.06)
    mesh.commit("daily/new", 1)
    hour = timedelta(hours=1)
    assert mesh.cleanup("daily", older_than=hour).deleted == 0
    assert mesh.cleanup("daily", older_than=0.05, keep=2, dry_run=True).plan.candidates[
        0].key == "daily/old"
    told = mesh.cleanup("daily", older_than=0.05, keep=2)
    assert told.deleted == 1
    assert keys(mesh) == ["daily/new", "daily/older"]


def test_leases_and_what_is_ckptmeshs_own_stay(client: Make) -> None:
    mesh = client()
    mesh.commit("job/_runs/exec/1", "a record")
    mesh.commit("job/lease", 1, lease=True, ttl=30)
    mesh.commit("job", 1)
    mesh.commit("job/a_b", 1)
    told = mesh.cleanup("job", keep=0)
    assert (told.deleted, told.plan.seen) == (2, 2)
    assert keys(mesh) == ["job/_runs/exec/1", "job/lease"]


def test_what_was_committed_since_the_plan_stays(memory: Any) -> None:
    for number in range(5):
        memory.commit(f"k/{number}", number)
    planned = run(plan(memory, "k", None, 0))
    memory.commit("k/1", "again")
    memory.delete("k/3")
    memory.commit("k/3", "another life")
    memory.delete("k/4")
    told = run(clean(memory, planned))
    assert (told.deleted, told.kept) == (2, 3)
    assert keys(memory) == ["k/1", "k/3"]


def test_a_plan_is_bounded_and_says_that_there_is_more(
    client: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cleaning, "CLEANUP_KEYS", 3)
    mesh = client()
    mesh.commit_many({f"k/{number}": number for number in range(5)})
    told = mesh.cleanup("k", keep=0)
    assert (told.deleted, told.plan.more) == (3, True)
    told = mesh.cleanup("k", keep=0)
    assert (told.deleted, told.plan.more) == (2, False)


@pytest.mark.parametrize("options", [{}, {"keep": -1}, {"keep": True}, {"older_than": "1d"}])
def test_a_cleanup_of_nothing_in_particular_is_misuse(client: Make, options: Any) -> None:
    with pytest.raises(Misuse):
        client().cleanup("k", **options)


# --- differences ------------------------------------------------------------------------------


states = st.dictionaries(st.sampled_from("abcdef"), st.tuples(st.integers(0, 2), st.integers(0, 1)))


@given(before=states, after=states)
def test_differences_are_those_of_two_dictionaries(before: Any, after: Any) -> None:
    with ckptmesh.connect("memory://") as one, ckptmesh.connect("memory://") as other:
        for mesh, state in ((one, before), (other, after)):
            for key, (value, position) in state.items():
                mesh.commit(key, value, position=position)
        found = {each.key: each.kind for each in differences(rows_of(one), rows_of(other))}
    expected = {key: "added" if key not in before else "removed" if key not in after else "changed"
                for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
    assert found == expected
    assert list(found) == sorted(found)


def test_two_moments_and_a_file_can_be_compared(memory: Any) -> None:
    memory.commit("a", 1)
    then = memory.commit("b", 1)
    stream = io.BytesIO()
    memory.export(stream, history=True)
    memory.commit("a", 2)
    memory.delete("b")
    memory.commit("lease", 1, lease=True, ttl=9)
    for before in (rows_of(memory, at=then), rows_in(Reader(stream))):
        assert [(each.kind, each.key) for each in differences(before, rows_of(memory))] == [
            ("changed", "a"), ("removed", "b")]


# --- validating and repairing -----------------------------------------------------------------


def test_what_cannot_be_read_is_found_and_the_rest_is_good(client: Make) -> None:
    mesh = client()
    first = mesh.commit("source", 1)
    mesh.commit("made", 1, sources=[first])
    write_raw(mesh, "orders", b"\xc1")
    found = mesh.validate()
    assert (found.keys, found.unknown) == (3, 0)
    assert [(each.key, each.kind) for each in found.problems] == [("orders", "unreadable")]
    assert mesh.validate("made").problems == ()
    assert mesh.validate(at=first).keys == 1


@pytest.mark.parametrize("wrong", [("source", 2), ("nobody", 1), ("source", 99)])
def test_a_source_that_was_never_there_is_found(client: Make, wrong: tuple[str, int]) -> None:
    mesh = client()
    mesh.commit("source", 1)
    mesh.commit("other", 1)
    mesh.commit("made", 1, sources=[("source", 1), wrong])
    (problem,) = mesh.validate().problems
    assert (problem.key, problem.kind) == ("made", "source")
    assert f"{wrong[0]}@{wrong[1]}" in problem.text


def test_a_value_that_does_not_fit_the_schema_of_its_contract_is_found(
        client: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    mesh = client()
    schema = Schema({"type": "integer"})
    mesh.commit("orders/old", "a text")
    mesh.commit("other", "a text")
    mesh.contract("orders", schema=schema)
    mesh.commit("orders/new", 7, schema=schema)
    mesh.commit("orders/_runs/run/a", "ckptmesh's own")
    found = mesh.validate()
    assert [(each.key, each.kind) for each in found.problems] == [("orders/old", "schema")]
    assert "'a text' is not of type 'integer'" in found.problems[0].text
    monkeypatch.setitem(sys.modules, "jsonschema", None)
    found = mesh.validate()
    assert (found.problems, found.unchecked) == ((), 2)


def test_what_a_rewind_wrote_is_good(client: Make) -> None:
    mesh = client()
    mesh.commit("orders", 1)
    mesh.commit("orders", 2)
    mesh.commit("orders", 1, sources=[("orders/_rewinds/1", 0), ("orders", 1)])
    assert mesh.validate().problems == ()


def test_the_newest_good_version_is_saved_under_a_new_key(client: Make) -> None:
    mesh = client()
    mesh.commit("orders", "older", position=1)
    good = mesh.commit("orders", "good", position=2, head=9)
    write_raw(mesh, "orders", b"\xc1")
    write_raw(mesh, "orders", b"\x92\x01")
    told = mesh.repair("orders", to="saved", dry_run=True)
    assert (told.after.revision, told.passed, told.receipt) == (good.revision, 1, None)
    assert mesh.get("saved") is None
    told = mesh.repair("orders", to="saved")
    found = mesh.get("saved")
    assert (found.value, found.position, found.head) == ("good", 2, 9)
    assert found.sources == (("orders", good.revision),)
    assert mesh.get("orders", packed=True).value.data == b"\x92\x01", "nothing in place"
    assert "ends early" in told.problem
    told = mesh.repair("orders", to="older", revision=good.revision - 1)
    assert mesh.value("older") == "older"
    assert told.problem == ""


def test_a_repair_never_writes_over_anything(client: Make, way: Way) -> None:
    mesh = client()
    mesh.commit("orders", 1)
    mesh.commit("there", "mine")
    before = way.revision
    with pytest.raises(Conflict):
        mesh.repair("orders", to="there")
    with pytest.raises(Misuse, match="in place"):
        mesh.repair("orders", to="orders")
    with pytest.raises(Misuse, match="no 'nothing'"):
        mesh.repair("nothing", to="new")
    write_raw(mesh, "bad", b"\xc1")
    with pytest.raises(InvalidPayload, match="none of the 1 versions"):
        mesh.repair("bad", to="new")
    assert way.revision == before + 1


def test_pages_are_small_and_all_of_it_is_seen(
    client: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "EXPORT_BATCH", 2)
    monkeypatch.setattr(cleaning, "EXPORT_BATCH", 2)
    mesh = client()
    mesh.commit_many({f"k/{number}": number for number in range(7)})
    assert mesh.validate().keys == 7
    assert mesh.digest().keys == 7
    assert mesh.cleanup("k", keep=1).deleted == 6
