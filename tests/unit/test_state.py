"""The state: what each record does to it, and that replay and snapshots arrive at the very same."""

from __future__ import annotations

from typing import Any

import pytest
from histories import STEPS, play
from hypothesis import given, settings
from hypothesis import strategies as st
from machines import UUID, Store, everything, through_a_snapshot

from ckptmesh.entries import since_of, unpack_version, version_of
from ckptmesh.facts import (
    EpochBegun,
    Expiry,
    LossAccepted,
    LossSuspected,
    Sealed,
    SessionEnded,
    SessionOpened,
    SettingChanged,
    TimeReserved,
    Transaction,
    Write,
)
from ckptmesh.limits import SECOND
from ckptmesh.messages import (
    DELETE,
    EXPIRE,
    PUT,
    TOUCH,
    Delete,
    Outcome,
    Put,
    Touch,
    Transact,
    Version,
)
from ckptmesh.state import SessionState, State

SID = b"s" * 16


def put(key: str, value: bytes = b"v", time: int = 1, **fields: Any) -> Transaction:
    return Transaction(b"", 0, 0, 0, time, (Write(PUT, key, value, **fields),), (1,))


def wrote(state: State, kind: int, key: str, time: int = 1) -> Any:
    return state.apply(Transaction(b"", 0, 0, 0, time, (Write(kind, key),), (1,)))


# --- single records ---------------------------------------------------------------------------


def test_a_put_creates_a_version_and_the_next_put_counts_on() -> None:
    state = State(UUID)
    state.apply(EpochBegun(3, 1))
    commit = state.apply(put("a", b"x", 5, position=7, head=9, sources=(("s", 1),)))
    first = Version(b"x", 1, 1, 1, 5, None, None, 7, 9, (("s", 1),))
    assert commit is not None
    assert commit.changes[0].version == state.entries["a"] == first
    assert (commit.revision, commit.epoch, commit.time) == (1, 3, 5)
    state.apply(put("a", b"y", 6))
    assert state.entries["a"] == Version(b"y", 2, 1, 2, 6)
    wrote(state, DELETE, "a", 7)
    state.apply(put("a", b"z", 8))
    assert state.entries["a"] == Version(b"z", 4, 4, 1, 8), "it came to exist anew"


def test_a_touch_changes_the_expiry_alone_and_the_past_keeps_both() -> None:
    state = State(UUID)
    state.apply(put("a", b"x", 5, expires_at=100))
    state.apply(Transaction(b"", 0, 0, 0, 6, (Write(TOUCH, "a", expires_at=200),), (1,)))
    assert state.entries["a"] == Version(b"x", 1, 1, 1, 5, 200)
    assert state.at("a", 1) == Version(b"x", 1, 1, 1, 5, 100)
    assert state.at("a", 2) == Version(b"x", 1, 1, 1, 5, 200)
    assert state.at("a", 0) is None
    assert (state.revision, state.changed_at("a"), state.expiring) == (2, 2, 1)


@pytest.mark.parametrize("records", [
    [Sealed(5), Sealed(4)],
    [put("a", time=5), put("b", time=4)],
    [Expiry(1, "a")],
    [Transaction(b"", 0, 0, 0, 1, (Write(DELETE, "a"),), (1,))],
    [Transaction(b"", 0, 0, 0, 1, (Write(TOUCH, "a"),), (1,))],
    [put("a"), Transaction(b"", 0, 0, 0, 1, (Write(EXPIRE, "a"),), (1,))],
    [put("a"), Transaction(b"", 0, 0, 0, 1, (Write(DELETE, "a"), Write(DELETE, "a")), (1, 1))],
    [put("a")._replace(session=SID)],
    [SessionEnded(SID, 1)],
    [EpochBegun(2, 1), EpochBegun(2, 1)],
    [EpochBegun(2, 1), EpochBegun(1, 1)],
    [SettingChanged("colour", 1)],
    [("no", "record")],
])
def test_a_record_that_cannot_follow_is_damage(records: list[Any]) -> None:
    state = State(UUID)
    for record in records[:-1]:
        state.apply(record)
    with pytest.raises(ValueError, match=r"\w"):
        state.apply(records[-1])


def test_an_epoch_that_took_no_revision_leaves_no_trace() -> None:
    state = State(UUID)
    assert (state.epoch, state.epoch_of(0), state.last_of(1)) == (0, 0, 0)
    for epoch in (1, 2, 5):
        state.apply(EpochBegun(epoch, 1))
    assert state.epochs == [(5, 1)]
    state.apply(put("a"))
    state.apply(EpochBegun(6, 1))
    state.apply(put("a"))
    assert state.epochs == [(5, 1), (6, 2)]
    assert [state.epoch_of(r) for r in (1, 2, 3)] == [5, 6, 6]
    assert [state.last_of(e) for e in (4, 5, 6, 7)] == [0, 1, 2, 2]


def test_outcomes_are_kept_until_low_passes() -> None:
    table = SessionState(1, "n")
    outcome = Outcome(1, 1, 1, ())
    table.outcomes = dict.fromkeys(range(1, 11), (0, outcome))
    table.advance(4)
    assert sorted(table.outcomes) == [4, 5, 6, 7, 8, 9, 10]
    table.advance(2)
    assert table.low == 4, "low never goes back"
    table.advance(2**63)
    assert table.outcomes == {}


def test_the_last_reservation_of_time_counts_and_is_no_time_of_a_record() -> None:
    state = State(UUID)
    state.apply(TimeReserved(50))
    state.apply(TimeReserved(40))
    assert (state.reserved, state.time) == (40, 0)


def test_an_accepted_loss_keeps_the_greatest_claim_of_its_epoch() -> None:
    state = State(UUID)
    state.apply(LossAccepted())
    assert state.accepted == {}
    for revision in (9, 7):
        state.apply(LossSuspected(4, revision))
        assert state.loss == (4, revision)
        state.apply(LossAccepted())
    assert (state.loss, state.accepted) == (None, {4: 9})


def test_expiries_are_told_in_order_and_rewrites_do_not_grow_the_heap() -> None:
    state = State(UUID)
    assert state.next_expiry() is None
    for i in range(5_000):
        state.apply(put("a", expires_at=10_000 - i))
    assert len(state._expiries) < 2_000
    state.apply(put("b", expires_at=3_000))
    state.apply(put("c", expires_at=9_000))
    assert state.due(2_999) == []
    assert state.due(5_001) == ["b", "a"]
    assert state.due(99_999) == ["b", "a", "c"]
    assert state.due(99_999, 2) == ["b", "a"]
    assert state.next_expiry() == 3_000


def test_the_digest_tells_visible_states_apart() -> None:
    seen = set()
    state = State(UUID)
    for record in (put("a"), put("a"), put("b", b"w"), put("b", b"w", expires_at=5)):
        state.apply(record)
        seen.add(state.digest())
    assert len(seen) == 4


# --- floor, trimming, pointers ----------------------------------------------------------------


def bounded(revisions: int, versions: int = 0) -> State:
    state = State(UUID)
    state.apply(SettingChanged("history_revisions", revisions))
    state.apply(SettingChanged("history_versions", versions))
    return state


def test_the_floor_rises_one_by_one_and_takes_what_no_cut_needs() -> None:
    state = bounded(2)
    for i in range(1, 6):
        state.apply(put("a", b"%d" % i, i))
        assert state.floor == max(0, i - 2)
    assert [*map(since_of, state.older["a"])] == [3, 4]
    assert [state.at("a", r).value for r in (3, 4, 5)] == [b"3", b"4", b"5"]  # type: ignore[union-attr]
    assert state.floor_time == state.time_of(3) == 3
    assert state.time_of(4) == 4


def test_history_keeps_some_versions_below_the_floor_and_touches_do_not_push_them_out() -> None:
    state = bounded(1, versions=2)
    for i in range(1, 4):
        state.apply(put("a", b"%d" % i, i))
    for i in range(4, 20):
        state.apply(Transaction(b"", 0, 0, 0, i, (Write(TOUCH, "a", expires_at=i + 99),), (1,)))
    shown = [(since_of(past), unpack_version(kept).value) for past in state.older["a"]
             if (kept := version_of(past)) is not None]
    assert shown[:2] == [(2, b"2"), (3, b"3")]
    assert len(shown) <= 4


def test_without_a_display_a_quiet_key_keeps_its_present_alone() -> None:
    state = bounded(1, versions=0)
    for key in ("a", "a", "b", "b"):
        state.apply(put(key))
    assert list(state.older) == ["b"]
    assert list(state.keys.under("")) == ["a", "b"]


def test_a_key_that_was_gone_at_the_floor_leaves_nothing_behind() -> None:
    state = bounded(2, versions=8)
    for _ in range(3):
        state.apply(put("a"))
    wrote(state, DELETE, "a")
    assert list(state.past_keys.under("")) == ["a"]
    state.apply(put("b"))
    state.apply(put("b"))
    assert "a" not in state.older
    assert list(state.past_keys.under("")) == []


def test_a_key_that_came_back_above_the_floor_keeps_only_its_new_life() -> None:
    state = bounded(3, versions=8)
    state.apply(put("a", b"old"))
    wrote(state, DELETE, "a")
    state.apply(put("a", b"new"))
    state.apply(put("a", b"newer"))
    state.apply(put("b"))
    assert state.floor == 2
    assert [*map(since_of, state.older["a"])] == [3]


@pytest.mark.parametrize("name", ["history_revisions", "history_bytes"])
def test_a_bound_below_zero_keeps_nothing_and_breaks_nothing(name: str) -> None:
    state = State(UUID)
    state.apply(SettingChanged(name, -1))
    for _ in range(3):
        state.apply(put("a"))
    assert (state.floor, state.revision, len(state.ring)) == (3, 3, 0)
    assert everything(through_a_snapshot(state)) == everything(state)


def test_a_bound_in_bytes_counts_values() -> None:
    state = State(UUID)
    state.apply(SettingChanged("history_bytes", 10_000))
    for _ in range(10):
        state.apply(put("a", bytes(4_000)))
    assert len(state.ring) == 2
    state.apply(put("a", bytes(20_000)))
    assert (len(state.ring), state.floor, state.ring.bytes) == (0, 11, 0)


def test_a_pipeline_that_was_quiet_since_the_floor_has_no_pointer() -> None:
    state = bounded(2)
    state.apply(put("quiet/a"))
    state.apply(put("busy/a"))
    assert state.pointers == {"quiet": 1, "busy": 2}
    state.apply(put("busy/a"))
    assert state.pointers == {"busy": 3}, "what a watcher missed there is below the floor"


# --- replay and snapshots ---------------------------------------------------------------------

@settings(max_examples=300, deadline=None)
@given(st.lists(STEPS, min_size=8, max_size=60))
def test_replay_and_snapshots_arrive_at_the_very_state_that_served(
        steps: list[tuple[Any, ...]]) -> None:
    store, users = Store(history_revisions=4, history_versions=2), {}
    second, reached = State(UUID), 0
    for step in [("begin",), *steps]:
        play(store, users, step)
        for record in store.log[reached:]:
            second.apply(record)
        reached = len(store.log)
        if step[0] == "snapshot":
            second = through_a_snapshot(second)
        assert second.revision == store.state.revision
    assert everything(second) == everything(store.state)
    assert everything(through_a_snapshot(store.state)) == everything(store.state)
    assert everything(store.replayed()) == everything(store.state)


def test_a_snapshot_holds_many_blocks_and_every_kind_of_section() -> None:
    store = Store(history_revisions=3)
    user = store.user("name")
    user.commit(*(Put(f"k/{i}", b"v", SECOND * 99) for i in range(2_500)))
    user.lease("l", SECOND * 50)
    for _ in range(4):
        user.commit(Touch("k/1", SECOND * 77))
        user.put("k/2")
    user.commit(Delete("k/3"))
    store.machine.execute(user.request(Transact((), ()), epoch=9))
    sections = [section for section, _ in store.state.dump()]
    assert sections == sorted(sections)
    assert set(sections) == {0, 1, 2, 3, 4, 5}
    assert sections.count(2) == 3, "1,000 rows a block"
    assert everything(through_a_snapshot(store.state)) == everything(store.state)
    assert store.state.loss == (9, 0)


def test_an_empty_state_and_one_that_ends_with_its_cut_can_be_loaded() -> None:
    assert everything(through_a_snapshot(State(UUID))) == everything(State(UUID))
    store = Store(history_revisions=0)
    store.user().put("a")
    blocks = [(section, rows) for section, rows in store.state.dump() if section <= 2]
    loaded = State.load(blocks)
    assert list(loaded.keys.under("")) == ["a"]
    assert loaded.floor == loaded.revision == 1


@pytest.mark.parametrize("blocks", [
    [(0, [[]])],
    [(0, [[UUID, 0, 0, 0, 0, [], [], None, []]]), (6, [])],
    [(0, [[UUID, 0, 0, 0, 0, [], [], None, []]]), (3, []), (2, [])],
    [(0, [[UUID, 0, 0, 0, 0, [], [], None, []]]), (5, [[2, 1, 1, [], b"", 0, []]])],
    [(0, [[UUID, 0, 0, 0, 0, [], [], None, []]]), (4, [[SID]])],
    [(0, [])],
])
def test_blocks_that_no_dump_can_have_written_are_refused(blocks: list[Any]) -> None:
    with pytest.raises((ValueError, TypeError, IndexError)):
        State.load(blocks)


def test_opening_and_ending_a_session_leaves_the_state_as_it_was_but_for_the_time() -> None:
    state = State(UUID)
    before = everything(state)
    state.apply(SessionOpened(SID, 4, "name"))
    assert state.sessions[SID].name == "name"
    state.apply(SessionEnded(SID, 5))
    assert everything(state) == {**before, "time": 5}

