"""Reads: cuts at any revision and time, pages, histories and events, against plain models."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import pytest
from histories import KEYS, STEPS, play
from hypothesis import given, settings
from hypothesis import strategies as st
from machines import START, UUID, Store

from ckptmesh import limits, queries
from ckptmesh.errors import Compacted, DataLoss, FutureRevision
from ckptmesh.limits import SECOND, pipeline_of, under
from ckptmesh.messages import (
    LAST_INDEX,
    At,
    Commit,
    Delete,
    Events,
    Get,
    History,
    Increment,
    Put,
    Row,
    Scan,
    Since,
    Touch,
    Version,
)
from ckptmesh.state import State
from ckptmesh.timeline import cost

Cuts = dict[int, tuple[int, dict[str, Version]]]


def cuts_of(store: Store) -> Cuts:
    """Every revision there ever was: its time, and what a reader found at that moment."""
    state = State(UUID)
    cuts: Cuts = {0: (0, {})}
    for record in store.log:
        commit = state.apply(record)
        if commit is not None:
            cuts[commit.revision] = (commit.time, {
                key: version for key, version in state.entries.items()
                if version.expires_at is None or version.expires_at > commit.time})
    return cuts


def scan_all(store: Store, prefix: str, at: At | None, limit: int) -> tuple[int, list[Row]]:
    """All pages of a scan, each beginning behind the one before, at its cut."""
    rows: list[Row] = []
    revision, after = 0, ""
    while True:
        page = store.ask(Scan(prefix, after, limit, at))
        assert len(page.found) <= limit
        assert not revision or page.revision == revision, "one cut"
        rows += page.found
        revision = page.revision
        if not page.more:
            return revision, rows
        after, at = page.found[-1].key, at and At(revision)


@settings(max_examples=150, deadline=None)
@given(st.lists(STEPS, min_size=8, max_size=40), st.sampled_from(["", "a", "b", "a/b"]),
       st.integers(1, 4))
def test_time_travel_finds_at_every_revision_above_the_floor_what_stood_there(
        steps: list[tuple[Any, ...]], prefix: str, limit: int) -> None:
    store, users = Store(history_revisions=5, history_versions=1), {}
    for step in steps:
        play(store, users, step)
    state, cuts = store.state, cuts_of(store)
    for revision, (time, model) in cuts.items():
        at = At(revision)
        if revision < state.floor:
            with pytest.raises(Compacted) as too_old:
                store.ask(Get(tuple(KEYS), at))
            assert too_old.value.resume_from == state.floor
            continue
        got = store.ask(Get(tuple(KEYS), at))
        assert (got.revision, got.time, got.more) == (revision, time, False)
        assert [row and row.version for row in got.found] == [model.get(key) for key in KEYS]
        cut, rows = scan_all(store, prefix, at, limit)
        assert cut == revision
        assert [(row.key, row.version) for row in rows] == sorted(
            (key, version) for key, version in model.items() if under(prefix, key))
        assert all(row.epoch == state.epoch_of(row.version.revision) for row in rows)
    with pytest.raises(FutureRevision):
        store.ask(Get(("a",), At(state.revision + 1)))


@settings(max_examples=80, deadline=None)
@given(st.lists(STEPS, min_size=8, max_size=30))
def test_travel_to_a_time_finds_the_last_revision_not_later(steps: list[tuple[Any, ...]]) -> None:
    store, users = Store(history_revisions=5), {}
    for step in steps:
        play(store, users, step)
    cuts = cuts_of(store)
    for moment in {t + d for t, _ in cuts.values() for d in (-1, 0, 1)} | {START, store.now}:
        if not 0 <= moment <= store.now:
            continue
        expected = max(revision for revision, (time, _) in cuts.items() if time <= moment)
        if expected < store.state.floor:
            with pytest.raises(Compacted):
                store.ask(Get(("a",), At(None, moment)))
        else:
            assert store.ask(Get(("a",), At(None, moment))).revision == expected


@settings(max_examples=150, deadline=None)
@given(st.lists(STEPS, min_size=8, max_size=40), st.integers(0, 30), st.sampled_from(
    [-1, 0, 1, LAST_INDEX]), st.sampled_from(["", "a", "b", "c"]), st.integers(1, 3),
    st.integers(1, 5))
def test_events_after_a_mark_come_whole_in_order_and_without_a_gap(
        steps: list[tuple[Any, ...]], mark: int, index: int, pipeline: str, limit: int,
        scanned: int) -> None:
    store, users, commits = Store(history_revisions=9), {}, []
    for step in steps:
        play(store, users, step)
    state = State(UUID)
    commits = [c for record in store.log if (c := state.apply(record)) is not None]
    mark = min(mark, state.revision)
    expected: list[Commit] = []
    for commit in commits:
        changes = tuple(c for c in commit.changes
                        if (commit.revision, c.index) > (mark, index)
                        and pipeline in ("", pipeline_of(c.key)))
        if changes:
            expected.append(commit._replace(changes=changes))
    first = max(mark, 1) if index < LAST_INDEX else mark + 1
    command = Since(mark, index, pipeline, limit)
    if first <= state.floor:
        with pytest.raises(Compacted):
            store.ask(command)
        return
    found: list[Commit] = []
    with patch.object(queries, "_SCANNED", scanned):
        while True:
            events: Events = store.ask(command)
            assert len(events.commits) <= limit
            assert all(c.revision <= events.complete_to for c in events.commits)
            found += events.commits
            if not events.more:
                break
            assert events.complete_to >= command.revision
            command = command._replace(revision=events.complete_to, index=LAST_INDEX)
    assert found == expected
    assert events.complete_to == state.revision


def test_events_beyond_the_head_are_a_loss_of_data() -> None:
    store = Store()
    store.user().put("a")
    with pytest.raises(DataLoss):
        store.ask(Since(2, -1))
    assert store.state.loss is None, "another watcher's doubt does not stop the store"


@pytest.mark.parametrize("settle", [0, 1])
def test_a_read_at_its_expiry_finds_nothing_before_and_after_the_record_of_it(settle: int) -> None:
    store = Store()
    user = store.user()
    user.put("a", ttl=SECOND)
    store.now += SECOND - 1
    assert store.get("a") is not None
    store.now += 1
    if settle:
        store.batch()
    assert store.get("a") is None
    assert store.ask(Scan("")).found == ()
    assert user.commit(Delete("a")).results == (0,)
    assert store.ask(Get(("a",), At(1))).found[0].version.value == b"\x01", "at revision 1 it stood"


def test_a_page_of_a_reply_ends_at_its_bytes_or_after_one_item(
        monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store()
    user = store.user()
    for key in "abcde":
        user.put(key, bytes(1_000), sources=(("s", 1),))
    user.put("f", bytes(9_000))
    monkeypatch.setattr(limits, "REPLY_BYTES", 2_500)
    page = store.ask(Get(tuple("abcdefx")))
    assert ([row.key for row in page.found], page.more) == (["a", "b"], True)
    page = store.ask(Get(tuple("abcdefx"), None, 5))
    assert ([row.key for row in page.found], page.more) == (["f"], True), "one item, if larger"
    page = store.ask(Get(tuple("abcdefx"), None, 6))
    assert (page.found, page.more) == ((None,), False)
    assert [row.key for row in scan_all(store, "", None, 10)[1]] == list("abcdef")
    events = store.ask(Since(0, LAST_INDEX))
    assert [c.revision for c in events.commits] == [1]
    assert (events.complete_to, events.more) == (1, True)
    assert store.ask(History("a")).more is False


def test_the_bytes_of_a_page_of_events_are_bounded_by_what_they_cost(
        monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store()
    user = store.user()
    for _ in range(6):
        user.put("a", bytes(100))
    one = cost(next(store.state.ring.after(0)))
    monkeypatch.setattr(limits, "REPLY_BYTES", one * 2)
    assert len(store.ask(Since(0, LAST_INDEX)).commits) == 2


def test_a_quiet_pipeline_is_answered_without_a_look_at_the_ring() -> None:
    store = Store()
    user = store.user()
    user.put("quiet/a")
    for _ in range(5):
        user.put("busy/a")
    with patch.object(type(store.state.ring), "rows_after", side_effect=AssertionError):
        events = store.ask(Since(1, LAST_INDEX, "quiet"))
    assert events == Events((), 6, False)
    assert len(store.ask(Since(1, -1, "quiet")).commits) == 1


def values(store: Store, command: History) -> list[bytes]:
    return [row.version.value for row in store.ask(command).found]


def test_a_history_shows_what_was_written_newest_first_and_in_pages() -> None:
    store = Store()
    user = store.user()
    for value in (b"1", b"2", b"3"):
        user.put("a", value)
    user.commit(Touch("a", SECOND))
    assert values(store, History("a")) == [b"3", b"2", b"1"]
    assert store.ask(History("a")).found[0].version.expires_at == store.now + SECOND
    page = store.ask(History("a", 2))
    assert (len(page.found), page.more) == (2, True)
    assert values(store, History("a", 2, page.found[-1].version.revision)) == [b"1"]
    assert values(store, History("none")) == []


def test_a_history_shows_a_key_that_is_gone_and_both_its_lives() -> None:
    store = Store()
    user = store.user()
    user.put("a", b"1")
    user.commit(Delete("a"))
    assert values(store, History("a")) == [b"1"]
    user.put("a", b"\x05")
    user.commit(Increment("a", 2))
    assert values(store, History("a")) == [b"\x07", b"\x05", b"1"]


def test_a_history_is_the_same_just_before_and_after_the_record_of_an_expiry() -> None:
    store = Store()
    store.user().put("a", b"1", ttl=SECOND)
    store.now += SECOND
    before = values(store, History("a"))
    store.batch()
    assert before == values(store, History("a")) == [b"1"]


def test_a_touched_version_is_one_version_in_a_history_even_when_its_put_is_forgotten() -> None:
    store = Store(history_revisions=2, history_versions=0)
    user = store.user()
    user.put("a", b"1")
    user.commit(Touch("a", SECOND))
    user.commit(Touch("a", None))
    user.put("a", b"2")
    assert values(store, History("a")) == [b"2", b"1"]


def test_a_time_beyond_all_calendars_is_in_the_future_and_no_crash() -> None:
    store = Store()
    for moment in (store.now + 1, 2**63 - 1):
        with pytest.raises(FutureRevision, match="is in the future"):
            store.ask(Get(("a",), At(None, moment)))


def test_an_old_cut_shows_keys_that_are_gone_now_in_their_place() -> None:
    store = Store()
    user = store.user()
    user.commit(*(Put(key, b"v") for key in ("a/1", "a/2", "a-1", "b")))
    user.commit(Delete("a/1"), Delete("b"))
    user.put("a/3")
    assert [row.key for row in store.ask(Scan("a", "", 9, At(1))).found] == ["a/1", "a/2"]
    assert [row.key for row in store.ask(Scan("a")).found] == ["a/2", "a/3"]
    assert [row.key for row in store.ask(Scan("", "a/1", 9, At(1))).found] == ["a/2", "b"]


def test_a_long_run_of_other_pipelines_ends_a_page_so_that_one_reader_delays_nobody() -> None:
    store = Store()
    user = store.user()
    for key in ("a", *"bbbbbbb", "a"):
        user.put(key)
    pages, mark = [], 1
    with patch.object(queries, "_SCANNED", 3):
        while True:
            events = store.ask(Since(mark, LAST_INDEX, "a"))
            pages.append((len(events.commits), events.complete_to))
            mark = events.complete_to
            if not events.more:
                break
    assert pages == [(0, 5), (1, 9)]
