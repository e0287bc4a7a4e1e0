"""Rewinds: what a plan shows is what it does, or nothing; and back again."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from test_packed import write_raw

import ckptmesh
from ckptmesh import (
    Client,
    Conflict,
    InvalidPayload,
    Misuse,
    OutcomeUnknown,
    RewindRefused,
    TooLarge,
    Unavailable,
)
from ckptmesh.limits import REWIND_KEYS
from ckptmesh.values import Packed, pack, register, unpack


@register
@dataclass(frozen=True)
class Exotic:
    """A value of a class; here it is lost before it is read again."""

    number: int


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
    newest, before, *_ = mesh.history("nightly/eu")
    assert newest.rewind is not None
    assert seen == {"nightly/eu": "rewind", "nightly/gone": "rewind", "nightly/new": "delete",
                    newest.rewind: "put"}
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
    assert mesh.rewinds("nightly") == mesh.rewinds("other") == [done]
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


def test_two_plans_of_one_moment_for_two_parts_are_both_done(mesh: Client) -> None:
    yesterday = _day(mesh)
    one, other = (mesh.rewind(key, to=yesterday, reason="bad feed")
                  for key in ("nightly/eu", "nightly/gone"))
    first, second = one.apply(), other.apply()
    assert first is not None
    assert second is not None
    assert first.at == second.at
    assert mesh.rewinds("nightly") == [first, second]


def test_a_value_of_a_class_that_is_lost_goes_back_to_the_byte(mesh: Client) -> None:
    broken = Packed(pack(Exotic(7)).replace(b"Exotic", b"Foreig"))
    assert unpack(broken.data) != Exotic(7)
    then = mesh.commit("nightly/eu", broken, position=1, head=9).revision
    mesh.commit("nightly/eu", broken, position=5)
    for plan in (mesh.rewind("nightly", to=then, reason="odd"),
                 mesh.rewind("nightly/eu", position=4, reason="odd")):
        assert [each.again for each in plan.changes] == [4]
    assert plan.apply() is not None
    found = mesh.get("nightly/eu", packed=True)
    assert found is not None
    assert (found.value, found.position, found.head) == (broken, 1, 9)


def test_damage_can_be_left_but_not_gone_back_to(mesh: Client) -> None:
    then = mesh.commit("nightly/eu", 1).revision
    write_raw(mesh, "nightly/eu", b"\xc1")
    damaged = mesh.revision()
    mesh.rewind("nightly", to=then, reason="damage").apply()
    assert mesh.value("nightly/eu") == 1
    with pytest.raises(InvalidPayload, match="'nightly/eu' cannot stand there again"):
        mesh.rewind("nightly", to=damaged, reason="odd")


def test_a_version_found_by_its_position_keeps_its_head_and_its_time_to_live(mesh: Client) -> None:
    mesh.commit("nightly/eu", 1, position=1, head=9, ttl=600)
    mesh.commit("nightly/eu", 2, position=5)
    mesh.rewind("nightly/eu", position=4, reason="odd").apply()
    found = mesh.get("nightly/eu")
    assert found is not None
    assert (found.value, found.position, found.head) == (1, 1, 9)
    assert found.expires_at is not None
    assert 590 < (found.expires_at - found.time).total_seconds() <= 600


def test_a_client_with_a_prefix_rewinds_by_the_names_that_it_knows() -> None:
    with ckptmesh.connect("memory://", prefix="team") as team:
        yesterday = _day(team)
        before, then = team.digest(), team.digest(at=yesterday)
        done = team.rewind("", to=yesterday, reason="bad feed").apply()
        assert done is not None
        assert team.digest().sha256 == then.sha256
        assert [each.key for each in team.list("nightly") if each.rewind]
        assert team.rewinds("nightly") == [done]
        with team.lock("nightly/eu", holder="loader"):
            plan = team.rewind("nightly", to=done.at, reason="it was not")
            assert plan.holders == ["nightly/eu by loader"]
        team.rewind("", to=done.at, reason="it was not").apply()
        assert team.digest().sha256 == before.sha256


def test_everything_of_hundreds_of_pipelines_goes_back_as_one(mesh: Client) -> None:
    for day in (1, 2):
        for number in range(300):
            mesh.commit(f"p{number:03}/state", day)
        if day == 1:
            then = mesh.digest()
    now = mesh.digest()
    done = mesh.rewind("", to=then.revision, reason="bad feed").apply()
    assert done is not None
    assert (done.changed, mesh.digest().sha256) == (300, then.sha256)
    assert [each.key for each in mesh.list() if "/_lock/" in each.key] == []
    mesh.rewind("", to=done.at, reason="it was not").apply()
    assert mesh.digest().sha256 == now.sha256


@pytest.mark.parametrize("key", ["nightly/_rewinds", "nightly/_rewinds/1", "nightly/_workers/a",
                                 "nightly/_watches/billing", "nightly/_schemas/0"])
@pytest.mark.parametrize("arguments", [{"to": 1}, {"value": 1}, {"position": 1}])
def test_what_no_rewind_changes_is_refused_by_name(mesh: Client, key: str,
                                                   arguments: dict[str, Any]) -> None:
    mesh.commit(key, 1, position=1)
    with pytest.raises(Misuse, match="own"):
        mesh.rewind(key, reason="odd", **arguments)


def test_a_lease_is_not_rewound_to_a_value(mesh: Client) -> None:
    lease = mesh.commit("nightly/lead", "me", lease=True, ttl=30)
    with pytest.raises(Misuse, match="lease"):
        mesh.rewind("nightly/lead", value="you", reason="odd")
    mesh.commit("nightly/eu", 1, guard=lease)


def test_a_rewind_of_which_nobody_heard_is_asked_for(mesh: Client,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    yesterday = _day(mesh)
    for came_through in (False, True):
        plan, begin = mesh.rewind("nightly", to=yesterday, reason="bad feed"), mesh.transaction

        def transaction(begin: Any = begin, heard: bool = came_through, **options: Any) -> Any:
            tx = begin(**options)
            commit = tx.commit

            def unheard() -> int:
                revision = commit() if heard else None
                error = OutcomeUnknown("no answer")
                error._resolver = lambda timeout=None: revision
                raise error

            tx.commit = unheard
            return tx

        monkeypatch.setattr(mesh, "transaction", transaction)
        if came_through:
            done = plan.apply()
            assert done is not None
        else:
            with pytest.raises(Unavailable, match="nothing of it was done"):
                plan.apply()
        monkeypatch.undo()
    assert mesh.rewinds("nightly") == [done]


def test_more_bytes_than_one_revision_holds_are_refused_before_they_are_read(mesh: Client) -> None:
    for number in range(5):
        mesh.commit(f"nightly/{number}", b"x" * 4_000_000)
    then = mesh.revision()
    for number in range(5):
        mesh.delete(f"nightly/{number}")
    with pytest.raises(TooLarge, match="bytes"):
        mesh.rewind("nightly", to=then, reason="odd")
    assert mesh.rewind("nightly/1", to=then, reason="odd").apply() is not None
