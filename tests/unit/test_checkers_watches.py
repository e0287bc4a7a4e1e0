"""Watches: what a watcher was given, against what was committed."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from played import CHANCES, Game, Play

from ckptmesh.testing.checkers import Change, Commit, Seen, check_watch, seen_of
from ckptmesh.views import Mark

KEYS = ("a", "a/b", "ab", "b")
COMMITS = [Commit(revision, tuple(Change(key, "put", revision) for key in keys))
           for revision, keys in enumerate([("a", "b"), ("a/b",), ("ab", "a", "b"), ("b",)], 1)]
ALL = [Seen(commit.revision, change) for commit in COMMITS for change in commit.changes]
UNDER_A = [seen for seen in ALL if seen.change.key in ("a", "a/b")]


def rules(seen: list[Seen], **about: object) -> list[str]:
    return [violation.rule for violation in check_watch(seen, COMMITS, **about)]


def test_all_of_it_in_order_is_right() -> None:
    assert rules(ALL) == rules(ALL, complete_to=4) == []
    assert rules(UNDER_A, prefix="a", complete_to=4) == []
    assert rules([], since=4, complete_to=4) == []


def test_a_watch_goes_on_in_the_middle_of_a_revision() -> None:
    assert rules(ALL[4:], since=Mark(3, 0), complete_to=4) == []
    assert rules(ALL[5:], since=Mark(3, 0), complete_to=4) == ["missed"]
    assert rules(ALL[3:], since=Mark(3, 0), complete_to=4) == ["outside"]


@pytest.mark.parametrize("lost", range(len(ALL) - 1))
def test_one_that_is_missing_is_missed(lost: int) -> None:
    assert rules(ALL[:lost] + ALL[lost + 1:]) == ["missed"]


def test_the_end_is_missed_only_where_it_was_claimed() -> None:
    assert rules(ALL[:-1]) == []
    assert rules(ALL[:-1], complete_to=3) == []
    assert rules(ALL[:-1], complete_to=4) == ["missed"]


@pytest.mark.parametrize("at", range(len(ALL)))
def test_one_that_comes_again_comes_twice(at: int) -> None:
    assert rules(ALL[:at + 1] + ALL[at:]) == ["twice"]
    assert rules([*ALL, ALL[at]]) == ["twice"]


@pytest.mark.parametrize("at", range(len(ALL) - 1))
def test_two_that_change_places_are_out_of_order(at: int) -> None:
    assert rules([*ALL[:at], ALL[at + 1], ALL[at], *ALL[at + 2:]]) == ["order"]


def test_what_was_never_committed_is_a_phantom() -> None:
    assert rules([*ALL, Seen(5, Change("a", "put", 5))]) == ["phantom"]
    assert rules([*ALL[:2], Seen(2, Change("b", "put", 2)), *ALL[2:]]) == ["phantom"]


def test_another_value_or_kind_than_was_committed_is_told() -> None:
    other = ALL[0]._replace(change=Change("a", "put", 7))
    gone = ALL[0]._replace(change=Change("a", "delete"))
    assert rules([other, *ALL[1:]]) == rules([gone, *ALL[1:]]) == ["content"]


def test_a_sibling_is_outside_of_a_prefix() -> None:
    assert rules([*UNDER_A[:2], ALL[3], UNDER_A[2]], prefix="a") == ["outside"]


def test_a_violation_names_revision_and_key() -> None:
    found = check_watch(ALL[1:], COMMITS)
    assert str(found[0]) == "missed: the change of 'a' at revision 1 was never given"


@settings(deadline=None)
@given(CHANCES, st.data())
def test_any_cut_of_any_history_is_right_and_without_any_of_it_wrong(
        chance: random.Random, data: st.DataObject) -> None:
    commits = Play(chance, Game(size=30, keys=4, several=0.5)).commits
    every = [Seen(commit.revision, change) for commit in commits for change in commit.changes]
    marks = [Mark(commit.revision, index) for commit in commits
             for index in range(len(commit.changes))]
    begin = data.draw(st.integers(0, len(every)))
    mark = marks[begin - 1] if begin else Mark(0)
    seen = every[begin:]
    head = len(commits)
    assert check_watch(seen, commits, since=mark, complete_to=head) == []
    if seen:
        del seen[data.draw(st.integers(0, len(seen) - 1))]
        found = check_watch(seen, commits, since=mark, complete_to=head)
        assert [violation.rule for violation in found] == ["missed"]


def test_events_show_what_was_seen() -> None:
    event = SimpleNamespace(revision=3, key="a", kind="put", checkpoint=SimpleNamespace(value=5))
    gone = SimpleNamespace(revision=4, key="a", kind="expire", checkpoint=None)
    assert seen_of([event, gone]) == [Seen(3, Change("a", "put", 5)),
                                      Seen(4, Change("a", "expire"))]
