"""Rewinds: what a plan shows is what it does, or nothing; and back again."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

import ckptmesh
from ckptmesh import Client, Conflict, Misuse, RewindRefused, TooLarge
from ckptmesh.limits import REWIND_KEYS


@pytest.fixture
def mesh() -> Iterator[Client]:
    with ckptmesh.connect("memory://") as client:
        yield client


def _day(mesh: Client) -> int:
    """Yesterday's state, then today's; the revision of yesterday."""
    mesh.commit("nightly/eu", {"rows": 1}, position=400, head=900)
    mesh.commit("nightly/us", "same")
    yesterday = mesh.commit("nightly/gone", 7).revision
    mesh.commit("nightly/eu", {"rows": 2}, position=1_000)
    mesh.delete("nightly/gone")
    mesh.commit("nightly/new", 1, position=12)
    mesh.commit("other", 1)
    return yesterday


def test_a_pipeline_goes_back_and_forth_and_its_state_is_the_same_again(mesh: Client) -> None:
    yesterday = _day(mesh)
    before, then = mesh.digest("nightly"), mesh.digest("nightly", at=yesterday)
    back = mesh.rewind("nightly", to=yesterday, reason="bad feed").apply()
    assert back is not None
    assert mesh.digest("nightly").sha256 == then.sha256
    assert mesh.value("other") == 1
    mesh.rewind("nightly", to=back.at, reason="it was not").apply()
    assert mesh.digest("nightly").sha256 == before.sha256


def test_a_plan_changes_nothing_and_says_what_will_be(mesh: Client) -> None:
    yesterday = _day(mesh)
    head = mesh.revision()
    plan = mesh.rewind("nightly", to=yesterday, reason="bad feed")
    assert mesh.revision() == head
    assert [(each.kind, each.key, each.again) for each in plan.changes] == [
        ("change", "nightly/eu", 600), ("restore", "nightly/gone", None),
        ("delete", "nightly/new", None)]
    assert plan.redo == ["nightly/eu: from position 400 to 1,000, 600 in all",
                         "nightly/new: all, up to position 12"]
    text = str(plan)
    assert text.startswith(f"rewind nightly to revision {yesterday}, as of revision {head}: bad")
    assert "change  nightly/eu  @" in text
    assert "(position 1,000) → @1 (position 400)" in text


def test_a_rewind_is_a_commit_of_its_own_kind_with_its_reason(mesh: Client) -> None:
    yesterday = _day(mesh)
    with mesh.watch("nightly", since=mesh.revision()) as events:
        done = mesh.rewind("nightly", to=yesterday, reason="bad feed").apply()
        assert done is not None
        seen: dict[str, str] = {}
        while len(seen) < 4:
            event = events.get(timeout=5)
            assert event is not None
            if "/_lock/" not in event.key:
                seen[event.key] = event.kind
    assert seen == {"nightly/eu": "rewind", "nightly/gone": "rewind", "nightly/new": "delete",
                    f"nightly/_rewinds/{done.at:016d}": "put"}
    newest, before, *_ = mesh.history("nightly/eu")
    assert newest.rewind is not None
    assert before.rewind is None
    said = mesh.value(newest.rewind)
    assert (said["reason"], said["to"], said["at"]) == ("bad feed", yesterday, done.at)
    assert said["gone"] == ["nightly/new"]
    assert newest.revision == done.revision
    assert ("nightly/eu", 1) in newest.sources
    assert (newest.position, newest.head) == (400, 900)
    assert mesh.rewinds("nightly") == [done]


def test_nothing_is_done_where_anything_has_moved(mesh: Client) -> None:
    yesterday = _day(mesh)
    for move in (lambda: mesh.commit("nightly/eu", 3), lambda: mesh.commit("nightly/later", 1),
                 lambda: mesh.delete("nightly/new")):
        plan = mesh.rewind("nightly", to=yesterday, reason="bad feed")
        move()
        head = mesh.revision()
        with pytest.raises(Conflict, match="moved"):
            plan.apply()
        assert not [each for each in mesh.list("nightly") if each.rewind]
        assert mesh.rewinds("nightly") == []
        assert mesh.value("nightly/us") == "same"
        assert mesh.revision() >= head


def test_it_is_refused_while_somebody_is_at_work_unless_told(mesh: Client) -> None:
    yesterday = _day(mesh)
    with mesh.lock("nightly/eu", ttl=30, holder="loader"):
        plan = mesh.rewind("nightly", to=yesterday, reason="bad feed")
        assert plan.holders == ["nightly/eu by loader"]
        assert "held    nightly/eu by loader" in str(plan)
        with pytest.raises(Misuse, match="wait for ever"):  # it is this thread's own lock
            plan.apply()
        assert mesh.value("nightly/eu") == {"rows": 2}
        assert plan.apply(force=True) is not None
    assert mesh.value("nightly/eu") == {"rows": 1}


def test_somebody_elses_lock_refuses_it() -> None:
    async def both() -> None:
        mesh = await ckptmesh.connect_async("memory://")
        await mesh.commit("nightly/eu", 1)
        await mesh.commit("nightly/eu", 2)
        plan = await mesh.rewind("nightly/eu", to=1, reason="bad feed")
        locked, done = asyncio.Event(), asyncio.Event()

        async def holder() -> None:
            async with mesh.lock("nightly", ttl=30, holder="loader"):
                locked.set()
                await done.wait()

        task = asyncio.create_task(holder())
        await locked.wait()
        with pytest.raises(RewindRefused, match="loader"):
            await plan.apply()
        done.set()
        await task
        assert (await plan.apply()) is not None
        assert await mesh.value("nightly/eu") == 1
        assert len(await mesh.rewinds("nightly")) == 1
        await mesh.close()

    asyncio.run(both())


def test_locks_workers_and_earlier_rewinds_stay(mesh: Client) -> None:
    yesterday = _day(mesh)
    mesh.rewind("nightly", to=yesterday, reason="first").apply()
    mesh.commit("nightly/_watches/billing", 9)
    mesh.rewind("nightly", to=yesterday - 1, reason="second").apply()
    assert [each.reason for each in mesh.rewinds("nightly")] == ["first", "second"]
    assert mesh.value("nightly/_watches/billing") == 9
    assert mesh.get("nightly/gone") is None


def test_everything_goes_back_together_to_a_savepoint(mesh: Client) -> None:
    _day(mesh)
    mesh.savepoint("before-migration")
    before = mesh.digest()
    mesh.commit("other", 2)
    mesh.delete("nightly/us")
    done = mesh.rewind("", to="before-migration", reason="it failed").apply()
    assert done is not None
    assert {each.key for each in mesh.list() if "/_rewinds/" in each.key} == {
        f"nightly/_rewinds/{done.at:016d}", f"other/_rewinds/{done.at:016d}"}
    assert mesh.digest().sha256 == before.sha256


def test_one_key_goes_back_to_a_value_or_to_a_position(mesh: Client) -> None:
    for batch in range(5):
        mesh.commit("orders", {"batch": 1_000 + batch}, position=1_000 + batch)
    mesh.rewind("orders", position=1_001, reason="rerun from batch 1001 on").apply()
    found = mesh.get("orders")
    assert found is not None
    assert (found.value, found.position) == ({"batch": 1_001}, 1_001)
    mesh.rewind("orders", value=None, position=7, reason="by hand").apply()
    found = mesh.get("orders")
    assert found is not None
    assert (found.value, found.position) == (None, 7)
    with pytest.raises(Misuse, match="position up to 3"):
        mesh.rewind("orders", position=3, reason="too far")


def test_a_rewind_passes_contracts(mesh: Client) -> None:
    mesh.commit("orders", "a", position=1)
    mesh.contract("orders", monotonic=True, required=True, max_bytes=10)
    mesh.commit("orders", "b", position=100)
    mesh.rewind("orders", to=1, reason="bad feed").apply()
    assert mesh.value("orders") == "a"


def test_what_had_a_time_to_live_has_it_again(mesh: Client) -> None:
    mesh.commit("orders", 1, ttl=3600)
    mesh.delete("orders")
    mesh.rewind("orders", to=1, reason="back").apply()
    found = mesh.get("orders")
    assert found is not None
    assert found.expires_at is not None
    assert 3590 < (found.expires_at - found.time).total_seconds() <= 3600


def test_a_plan_names_who_has_consumed_what_will_be_gone(mesh: Client) -> None:
    first = mesh.commit("orders", 1)
    second = mesh.commit("orders", 2)
    mesh.commit("report", "made of it", sources=[second])
    mesh.commit("early", "made of the first", sources=[first])
    plan = mesh.rewind("orders", to=first, reason="bad feed")
    assert [(each.name, each.key, each.revision) for each in plan.consumers] == [
        ("report", "orders", second.revision)]
    assert f"taken   orders@{second.revision} by checkpoint report" in str(plan)


def test_a_run_goes_back_to_the_stage_it_was_at(mesh: Client) -> None:
    done: list[str] = []
    nightly = ckptmesh.pipeline("nightly", version=1)

    @nightly.stage
    def extract(run: Any) -> int:
        done.append("extract")
        return 1

    @nightly.stage
    def store(run: Any, rows: int) -> int:
        done.append("store")
        return rows + 1

    nightly.run(mesh, key="monday")
    kept = {each.key: each.revision for each in mesh.list("nightly")}
    middle = kept["nightly/_runs/kept/monday/extract"]
    plan = mesh.rewind("nightly", to=middle, reason="the second stage was wrong")
    assert plan.redo == ["run monday of nightly: store"]
    plan.apply()
    assert nightly.run(mesh, key="monday").outputs["store"] == 2
    assert done == ["extract", "store", "store"]


def test_nothing_differs_is_no_commit(mesh: Client) -> None:
    _day(mesh)
    head = mesh.revision()
    plan = mesh.rewind("nightly", to=head, reason="why not")
    assert plan.apply() is None
    assert "nothing differs" in str(plan)
    assert mesh.revision() == head


def test_a_plan_is_done_once(mesh: Client) -> None:
    plan = mesh.rewind("nightly", to=_day(mesh), reason="bad feed")
    plan.apply()
    with pytest.raises(Misuse, match="done"):
        plan.apply()


@pytest.mark.parametrize("arguments", [
    {}, {"to": 1, "value": 2}, {"to": 1, "position": 2}, {"to": 1, "reason": " "},
    {"prefix": "", "value": 2}])
def test_a_rewind_that_cannot_be_is_refused(mesh: Client, arguments: dict[str, Any]) -> None:
    mesh.commit("orders", 1)
    with pytest.raises(Misuse):
        mesh.rewind(**{"prefix": "orders", "reason": "x", **arguments})


def test_too_much_for_one_revision_is_refused(mesh: Client) -> None:
    for begin in range(0, REWIND_KEYS + 1, 1_000):
        mesh.commit_many({f"orders/{n}": 1 for n in range(begin, begin + 1_000)})
    with pytest.raises(TooLarge, match="4,000"):
        mesh.rewind("orders", to=0, reason="all")
