"""Watches that keep their own place: what comes again after what, on both clients."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ckptmesh
from ckptmesh import Conflict, Event, LeaseLost, LockTimeout, Mark, Misuse, Unavailable
from ckptmesh.client import Client
from ckptmesh.features import following, placing
from ckptmesh.testing.blocking import blocking

PLACE = "orders/_watches/billing"


@pytest.fixture(params=["plain", "asyncio"])
def mesh(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A client of either kind, seen from plain code."""
    with (ckptmesh.connect("memory://") if request.param == "plain"
          else blocking(lambda: ckptmesh.connect_async("memory://"))) as found:
        yield found


@pytest.fixture
def plain() -> Iterator[Client]:
    with ckptmesh.connect("memory://") as found:
        yield found


def opened(mesh: Any, **options: Any) -> Any:
    return mesh.watch("orders", name="billing", **{"wait": 0, **options})


def orders(mesh: Any, *values: Any) -> None:
    for value in values:
        mesh.commit("orders/a", value)


def values(events: Any, count: int = 100) -> list[Any]:
    """What comes at once, up to so many; all but the last of these are done then."""
    found: list[Any] = []
    while len(found) < count and (event := events.get(0)) is not None:
        found.append(event.checkpoint.value)
    return found


def missed(mesh: Any) -> list[Any]:
    with opened(mesh) as events:
        return values(events)


def elsewhere(call: Callable[[], Any]) -> Any:
    """What it gives in another thread: in this one a lock that it has itself would be a misuse."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result(30)


def test_the_next_one_goes_on_after_what_a_clean_end_left(mesh: Any) -> None:
    orders(mesh, "before it began")
    with opened(mesh) as events:
        orders(mesh, 1, 2, 3, 4)
        for event in events:
            if event.checkpoint.value == 2:
                break
    assert missed(mesh) == [3, 4]
    orders(mesh, 5)
    assert missed(mesh) == [5]
    assert missed(mesh) == []


def test_a_block_that_fails_gets_its_event_again_and_none_before_it(mesh: Any) -> None:
    missed(mesh)
    orders(mesh, 1, 2, 3)
    came: list[list[Any]] = []
    for count in (2, 1, 1):
        with suppress(ZeroDivisionError), opened(mesh) as events:
            came.append(values(events, count))
            raise ZeroDivisionError
    assert came == [[1, 2], [2], [2]]
    assert missed(mesh) == [2, 3]


def test_a_name_begins_when_it_is_first_seen_though_nothing_came_yet(mesh: Any) -> None:
    with pytest.raises(ZeroDivisionError), opened(mesh):
        raise ZeroDivisionError
    orders(mesh, 1)
    assert missed(mesh) == [1]


def test_what_a_crash_interrupts_comes_again_with_what_was_not_committed(mesh: Any) -> None:
    crashed = opened(mesh, every=2, within=60, ttl=30)
    crashed.__enter__()
    orders(mesh, *range(1, 8))
    assert values(crashed, 6) == [1, 2, 3, 4, 5, 6]  # five are done, four of them committed
    for each in mesh.scan(PLACE):
        if each.is_lease:
            mesh.delete(each.key)  # as the end of its time would
    assert elsewhere(lambda: missed(mesh)) == [5, 6, 7]
    with pytest.raises((LeaseLost, Conflict), match="billing"):
        crashed.commit()
    with pytest.raises(LeaseLost):
        crashed.__exit__(None, None, None)
    assert missed(mesh) == []


def test_places_are_committed_before_waiting_and_then_no_more(mesh: Any) -> None:
    with opened(mesh, every=1_000, within=60) as events:
        orders(mesh, 1, 2)
        assert values(events) == [1, 2]
        place, head = events.place, mesh.revision()
        assert mesh.get(PLACE).position == place.revision == head - 1
        assert events.get(0.3) is None, "a commit of the place is no event of it"
        assert mesh.revision() == head


def test_events_that_are_done_by_hand_may_be_done_together(mesh: Any) -> None:
    missed(mesh)
    orders(mesh, 1, 2, 3, 4)
    with opened(mesh, auto=False) as events:
        batch = [events.get(0) for _ in range(3)]
        events.done(batch[1])
        events.done(batch[0])  # which it was by then
        with pytest.raises(Misuse):
            events.done(Mark(10_000))
        with pytest.raises(Misuse):
            events.done("all")
    with opened(mesh, auto=False) as events:
        assert values(events) == [3, 4]
    with opened(mesh, auto=False) as events:
        assert values(events, 1) == [3]
        assert events.commit().key == events.key == PLACE
    assert missed(mesh) == [4]


def test_of_two_with_one_name_the_second_waits_or_is_told_who_has_it(mesh: Any) -> None:
    told: list[LockTimeout] = []
    came: list[Any] = []

    def second() -> None:
        try:
            opened(mesh, wait=0.05).__enter__()
        except LockTimeout as error:
            told.append(error)
        with opened(mesh, wait=30) as events:
            came.extend(values(events, 1))

    other = threading.Thread(target=second)
    with opened(mesh) as events:
        orders(mesh, 1, 2)
        other.start()
        while not told and other.is_alive():
            events.get(0.05)
        assert mesh.watches("orders")[0].holder == told[0].details["holder"]
        with pytest.raises(LockTimeout):
            elsewhere(lambda: mesh.drop_watch("orders", "billing"))
        orders(mesh, 3)
    other.join()
    assert "'billing' of 'orders' is at work in" in told[0].message
    assert came == [3]


def test_what_a_dead_process_left_of_its_lock_in_a_directory_keeps_nobody_out(mesh: Any) -> None:
    left = {"name": "orders/billing", "shared": False, "holder": "host:1"}
    mesh.commit(f"{PLACE}/_ticket/4f1c", left, lease=True, ttl=3_600)
    assert mesh.watches("orders") == []
    assert missed(mesh) == []  # with wait=0
    mesh.commit(f"{PLACE}/_ticket/4f1d", left, lease=True, ttl=3_600)
    assert mesh.watches("orders")[0].holder == "host:1"
    assert mesh.drop_watch("orders", "billing")


def test_who_watches_meets_no_lock_on_what_is_watched(mesh: Any) -> None:
    with opened(mesh), mesh.lock("orders", wait=0), mesh.watch("orders", name="other", wait=0):
        pass


def test_since_begins_a_name_or_moves_it_forward_never_back(mesh: Any) -> None:
    orders(mesh, 1, 2, 3)
    with opened(mesh, since=0) as events:
        assert values(events, 2) == [1, 2]
    with opened(mesh, since=0) as events:
        assert values(events, 1) == [3]
    orders(mesh, 4, 5)
    with opened(mesh, since=mesh.get("orders/a").revision - 1) as events:
        assert values(events) == [5]
    with pytest.raises(ckptmesh.FutureRevision):
        opened(mesh, since=10_000).__enter__()
    assert missed(mesh) == []


def test_a_name_is_of_one_prefix_and_that_of_everything_stands_apart(mesh: Any) -> None:
    missed(mesh)
    with pytest.raises(Misuse, match="is of 'orders', not of 'orders/a'"):
        mesh.watch("orders/a", name="billing", wait=0).__enter__()
    with mesh.watch("", name="billing", wait=0) as events:
        mesh.commit("orders", 1)
        mesh.commit("invoices", 2)
        assert events.key == "ckptmesh/_watches/billing"
        assert values(events) == [1, 2]
    for wrong in ("", "a/b", "_a"):
        with pytest.raises(Misuse):
            mesh.watch("orders", name=wrong)
    with pytest.raises(Misuse, match="named watch"):
        mesh.watch("orders", every=3)
    with pytest.raises(Misuse):
        mesh.watch("orders", name="n", every=0)


def test_keys_of_ckptmesh_itself_are_no_events_unless_they_are_asked_for(mesh: Any) -> None:
    with opened(mesh) as events, mesh.watch("orders/_runs/run", name="runs", wait=0) as runs:
        with mesh.lock("orders"):
            mesh.commit("orders/_runs/run/1", "record")
        mesh.commit("orders", "own")
        assert (values(events), values(runs)) == (["own"], ["record"])


def test_the_place_says_what_was_consumed_last_and_the_newest_stay(
    mesh: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placing, "SOURCES", 2)
    missed(mesh)
    last = {key: mesh.commit(f"orders/{key}", 1).revision for key in "abcab"}
    mesh.delete("orders/b")
    mesh.commit("orders/lease", 1, lease=True, ttl=60)
    with opened(mesh) as events:
        while events.get(0) is not None:
            pass
    assert mesh.get(PLACE).sources == (("orders/a", last["a"]), ("orders/b", last["b"]))
    assert not mesh.validate("orders").problems
    missed(mesh)
    mesh.commit("orders/d", 1)
    missed(mesh)
    assert [key for key, _ in mesh.get(PLACE).sources] == ["orders/b", "orders/d"]


def test_what_is_made_from_an_event_says_so(mesh: Any) -> None:
    with opened(mesh) as events:
        orders(mesh, 1)
        event = events.get(1)
        mesh.commit("bills/a", 1, sources=[event.checkpoint])
    assert mesh.get("bills/a").sources == (("orders/a", event.revision),)


def test_a_place_moves_on_though_nothing_comes_for_it(
    mesh: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "WATCH_IDLE", 5)
    with opened(mesh) as events:
        before = events.place
        for _ in range(3):
            mesh.commit("invoices", 1)
        assert events.get(0) is None
        assert events.place == before
        for _ in range(3):
            mesh.commit("invoices", 1)
        assert events.get(0) is None
        assert events.place > before


def test_a_store_that_is_away_for_a_commit_in_passing_ends_nothing(
    plain: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit, refused = plain.commit, []

    def away(key: str, *args: Any, **options: Any) -> Any:
        if key == PLACE and len(refused) < 2:
            refused.append(key)
            if len(refused) == 2:  # it arrived, and nobody heard so
                commit(key, *args, **options)
                raise ckptmesh.OutcomeUnknown("no answer")
            raise Unavailable("away")
        return commit(key, *args, **options)

    with opened(plain, every=1) as events:
        monkeypatch.setattr(plain, "commit", away)
        monkeypatch.setattr(following, "_LOOK", 0.0)
        events._core._within = 0.0
        orders(plain, 1, 2, 3, 4)
        assert values(events) == [1, 2, 3, 4]
    assert len(refused) == 2
    assert missed(plain) == []


def test_a_place_of_another_store_is_not_taken_for_one_of_this(mesh: Any) -> None:
    orders(mesh, 1)
    mesh.commit(PLACE, placing.Place("orders", Mark(900), "ab" * 16).value())
    with pytest.raises(ckptmesh.OtherStore, match="900"):
        opened(mesh).__enter__()
    with opened(mesh, since=0) as events:
        assert values(events) == [1]
    assert missed(mesh) == []


def test_a_place_that_memory_does_not_reach_is_told_with_the_way_on(plain: Client) -> None:
    plain._link.transport.engine.state.settings["history_revisions"] = 20  # type: ignore[attr-defined]
    with opened(plain) as events:
        place = events.place
    orders(plain, *range(50))
    (info,) = plain.watches()
    assert (info.compacted, info.seconds) == (True, None)
    assert info.behind == plain.revision() - info.mark.revision
    with pytest.raises(ckptmesh.Compacted, match="'billing' has done all up to") as caught:
        missed(plain)
    assert caught.value.resume_from > place.revision
    assert "since=at" in caught.value.hint
    at = plain.revision()
    now = [each.value for each in plain.list("orders/a", at=at) if each.revision > place.revision]
    with opened(plain, since=at) as events:
        orders(plain, "next")
        assert now + values(events) == [49, "next"]


def test_lists_tell_how_far_behind_a_name_is(mesh: Any) -> None:
    missed(mesh)
    (info,) = mesh.watches("orders")
    assert (info.name, info.pipeline, info.prefix) == ("billing", "orders", "orders")
    assert (info.behind, info.seconds, info.holder, info.compacted) == (0, None, None, False)
    mesh.commit("invoices", 1)
    assert mesh.watches()[0].behind == 0, "none of that is for this watch"
    orders(mesh, 1, 2)
    (info,) = mesh.watches()
    assert info.behind == mesh.revision() - info.mark.revision > 0
    assert info.seconds is not None
    assert 0 <= info.seconds < 60
    with mesh.watch("", name="all", wait=0):
        assert [(each.pipeline, each.name) for each in mesh.watches()] == [
            ("ckptmesh", "all"), ("orders", "billing")]
    assert mesh.drop_watch("orders", "billing") is True
    assert mesh.drop_watch("orders", "billing") is False
    assert mesh.watches("orders") == []


def test_lag_is_told_of_what_has_a_place_in_its_source(mesh: Any) -> None:
    mesh.commit("orders/a", 1, position=70, head=100)
    mesh.commit("orders/b", 1, position=7)
    mesh.commit("orders/c", 1)
    missed(mesh)
    mesh.commit("orders/_runs/run/x", 1, position=1, head=5)
    mesh.commit("orders/_runs/kept/x/y", 1, position=1, head=5)
    assert [(each.key, each.records) for each in mesh.lag("orders")] == [
        ("orders/_runs/run/x", 4), ("orders/a", 30), ("orders/b", None)]
    assert mesh.lag("orders/a")[0].age >= 0
    assert mesh.lag("nowhere") == []


def test_a_watch_is_used_in_its_block(mesh: Any) -> None:
    events = opened(mesh)
    with pytest.raises(ckptmesh.Closed):
        events.get(0)
    with events:
        orders(mesh, 1)
        assert [event.checkpoint.value for event in _closing(events)] == [1]
    assert missed(mesh) == []


def _closing(events: Any) -> Iterator[Event]:
    for event in events:
        yield event
        events.close()


_step = st.sampled_from(["commit", "elsewhere", "next", "next", "done", "save", "fail", "leave"])


@settings(max_examples=40, deadline=None)
@given(steps=st.lists(_step, max_size=40), every=st.integers(1, 4), auto=st.booleans())
def test_every_event_comes_in_order_and_none_that_was_done_is_lost_or_goes_back(
    steps: list[str], every: int, auto: bool
) -> None:
    with ckptmesh.connect("memory://") as mesh:
        written, seen, number = 0, 0, 0  # `seen`: the last one given out in this block
        highest, place = 0, Mark(0)
        events = opened(mesh, every=every, within=60, auto=auto).__enter__()
        given: list[Event] = []
        for step in [*steps, "leave"]:
            if step == "commit":
                written += 1
                orders(mesh, written)
            elif step == "elsewhere":
                mesh.commit("invoices", 1)
            elif step == "next" and (event := events.get(0)) is not None:
                assert event.checkpoint is not None
                number = event.checkpoint.value
                assert number == seen + 1
                seen, highest = number, max(number, highest)
                given.append(event)
            elif step == "done" and given:
                events.done(given[len(given) // 2])
            elif step == "save":
                events.commit()
            elif step in ("fail", "leave"):
                error = ZeroDivisionError() if step == "fail" else None
                events.__exit__(type(error) if error else None, error, None)
                stands = mesh.get(PLACE)
                assert stands is not None
                done = sum(each.checkpoint is not None and each.resume <= Mark(
                    *stands.value["mark"]) for each in given)
                if step == "leave" and auto:
                    assert done == len(given)
                seen = seen - len(given) + done
                given = []
                events = opened(mesh, every=every, within=60, auto=auto).__enter__()
            stands = mesh.get(PLACE)
            assert stands is not None
            assert Mark(*stands.value["mark"]) >= place
            place = Mark(*stands.value["mark"])
        rest = values(events, 1_000)
        assert rest == list(range(seen + 1, written + 1))
        events.__exit__(None, None, None)
