"""By commit order and once: right histories pass, each planted fault is found under its name."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from played import CHANCES, Game, Play

from ckptmesh.testing.checkers import (
    ANYTHING,
    Change,
    Commit,
    Delete,
    Found,
    Get,
    Increment,
    Ok,
    Operation,
    Put,
    Refused,
    Unknown,
    Violation,
    check_counters,
    check_once,
    check_order,
)

History = list[Operation]
Commits = list[Commit]


def rules(found: list[Violation]) -> set[str]:
    """The names of what was found."""
    return {violation.rule for violation in found}


GAMES = st.builds(Game, size=st.integers(1, 60), clients=st.integers(1, 6), keys=st.integers(1, 4),
                  values=st.sampled_from([0, 0, 2]), silent=st.sampled_from([0, 0.2]),
                  named=st.booleans())


@settings(deadline=None, max_examples=100)
@given(CHANCES, GAMES)
def test_a_right_history_breaks_no_rule(chance: random.Random, game: Game) -> None:
    play = Play(chance, game)
    assert check_order(play.history, play.commits) == []
    assert check_once(play.history, play.commits) == []


@settings(deadline=None, max_examples=60)
@given(CHANCES, GAMES)
def test_nor_does_one_that_was_told_no_revisions(chance: random.Random, game: Game) -> None:
    play = Play(chance, game)
    untold = [dataclasses.replace(o, outcome=Ok(None, o.outcome.results))
              if isinstance(o.outcome, Ok) else o for o in play.history]
    assert check_order(untold, play.commits) == []
    assert check_once(untold, play.commits) == []


@settings(deadline=None, max_examples=60)
@given(CHANCES, st.integers(0, 30))
def test_a_right_history_may_begin_anywhere(chance: random.Random, first: int) -> None:
    play = Play(chance, Game(size=40, clients=1, silent=0, cuts=1))
    before, history = play.history[:first], play.history[first:]
    start = max((o.outcome.revision or 0 for o in before if isinstance(o.outcome, Ok)), default=0)
    standing: dict[str, Found] = {}
    for commit in play.commits[:start]:
        for key, kind, value in commit.changes:
            standing.pop(key, None)
            if kind == "put":
                standing[key] = Found(value, commit.revision)
    commits = play.commits[start:]
    for check in (check_order, check_once):
        assert check(history, commits, start=start, standing=standing) == []
        if start and commits:
            assert rules(check(history, commits)) == {"dense"}


# --- planted in random histories -----------------------------------------------------------------


def _lose_the_last(chance: random.Random, history: History, commits: Commits) -> bool:
    commits.pop()
    return any(isinstance(o.outcome, Ok) and o.outcome.revision == len(commits) + 1
               for o in history)


def _cut_out(chance: random.Random, history: History, commits: Commits) -> bool:
    del commits[chance.randrange(len(commits) - 1)]
    return True


def _commit_twice(chance: random.Random, history: History, commits: Commits) -> bool:
    puts = [o.outcome.revision for o in history if o.kind == "put" and isinstance(o.outcome, Ok)]
    again = commits[(chance.choice(puts) or 0) - 1]
    commits.append(again._replace(revision=len(commits) + 1))
    return True


def _count_twice(chance: random.Random, history: History, commits: Commits) -> bool:
    for asked in history:
        if isinstance(asked.outcome, Ok) and asked.kind == "increment":
            stands = next((change for commit in reversed(commits) for change in commit.changes
                           if change.key == asked.keys[0]), None)
            if stands and stands.kind == "put":
                step = asked.steps[0]
                assert isinstance(step, Increment)
                twice = Change(stands.key, "put", stands.value + step.by)
                commits.append(Commit(len(commits) + 1, (twice,), asked.request))
                return True
    return False


def _invent(chance: random.Random, history: History, commits: Commits) -> bool:
    commits.append(Commit(len(commits) + 1, (Change("x", "put", "nobody's"),)))
    return True


def _execute_a_refused(chance: random.Random, history: History, commits: Commits) -> bool:
    for asked in history:
        if isinstance(asked.outcome, Refused) and asked.kind == "put":
            step = asked.steps[0]
            assert isinstance(step, Put)
            commits.append(Commit(len(commits) + 1, (Change(step.key, "put", step.value),),
                                  asked.request))
            return True
    return False


def _swap(chance: random.Random, history: History, commits: Commits) -> bool:
    """The next write is told the revision of the one before it, and the other way round."""
    for at, (first, second) in enumerate(pairwise(commits)):
        a, b = (next((o for o in history if isinstance(o.outcome, Ok) and o.kind == "put"
                      and not o.expect and o.outcome.revision == commit.revision), None)
                for commit in (first, second))
        if a and b and a.returned_at is not None and a.returned_at < b.invoked_at:
            for asked, revision in ((a, second.revision), (b, first.revision)):
                history[history.index(asked)] = dataclasses.replace(asked, outcome=Ok(revision))
            commits[at] = second._replace(revision=first.revision)
            commits[at + 1] = first._replace(revision=second.revision)
            return True
    return False


def _read_the_past(chance: random.Random, history: History, commits: Commits) -> bool:
    """A read names a cut that was overtaken before it was invoked, and tells truly what was."""
    for at, asked in enumerate(history):
        bound = max((o.outcome.revision or 0 for o in history if isinstance(o.outcome, Ok)
                     and o.returned_at is not None and o.returned_at < asked.invoked_at), default=0)
        if asked.reads and bound > 1:
            cut = chance.randrange(bound)
            stood: dict[str, Found | None] = {}
            for commit in commits[:cut]:
                for key, kind, value in commit.changes:
                    stood[key] = Found(value, commit.revision) if kind == "put" else None
            results = tuple(stood.get(key) for key in asked.keys)
            history[at] = dataclasses.replace(asked, outcome=Ok(cut, results),
                                              returned_at=asked.returned_at or 9_999)
            return True
    return False


def _read_what_is_not(chance: random.Random, history: History, commits: Commits) -> bool:
    for at, asked in enumerate(history):
        if asked.reads and isinstance(asked.outcome, Ok):
            results = tuple(Found("nobody's", 1) for _ in asked.steps)
            history[at] = dataclasses.replace(asked, outcome=asked.outcome._replace(
                results=results))
            return True
    return False


def _count_wrong(chance: random.Random, history: History, commits: Commits) -> bool:
    for at, asked in enumerate(history):
        if asked.kind == "increment" and isinstance(asked.outcome, Ok):
            wrong = asked.outcome._replace(results=(asked.results[0] + 1,))
            history[at] = dataclasses.replace(asked, outcome=wrong)
            return True
    return False


def _condition(chance: random.Random, history: History, commits: Commits) -> bool:
    """What was acknowledged expected another revision."""
    for at, asked in enumerate(history):
        if asked.kind == "put" and isinstance(asked.outcome, Ok):
            history[at] = dataclasses.replace(asked, expect=((asked.keys[0], 999),))
            return True
    return False


def _refuse(chance: random.Random, history: History, commits: Commits) -> bool:
    for at, asked in enumerate(history):
        if isinstance(asked.outcome, Refused) and asked.outcome.reason == "Conflict":
            history[at] = dataclasses.replace(asked, expect=(), outcome=Refused("Conflict"))
            return True
    return False


PLANTED: dict[str, tuple[Callable[[random.Random, History, Commits], bool], set[str]]] = {
    "a lost write": (_lose_the_last, {"lost"}),
    "a revision that is missing": (_cut_out, {"dense"}),
    "a commit made twice": (_commit_twice, {"twice"}),
    "an increment counted twice": (_count_twice, {"twice"}),
    "a commit of nobody": (_invent, {"phantom"}),
    "a refused one that took effect": (_execute_a_refused, {"refused"}),
    "two in the wrong order": (_swap, {"order"}),
    "a stale read": (_read_the_past, {"stale"}),
    "a read of what never was": (_read_what_is_not, {"read"}),
    "a wrong count": (_count_wrong, {"result"}),
    "a condition that did not hold": (_condition, {"condition"}),
    "a refusal for nothing": (_refuse, {"refusal"}),
}
IN_ORDER_ONLY = {"order", "stale", "read", "refusal"}


@pytest.mark.parametrize(("plant", "names"), PLANTED.values(), ids=PLANTED)
def test_a_planted_fault_is_found(plant: Callable[[random.Random, History, Commits], bool],
                                  names: set[str]) -> None:
    planted = 0
    for seed in range(40):
        chance = random.Random(seed)
        play = Play(chance, Game(size=50, silent=0, cuts=1, named=seed % 2 == 0))
        if plant(chance, play.history, play.commits):
            planted += 1
            found = check_order(play.history, play.commits)
            assert rules(found) & names, (seed, found)
            assert all(violation.message for violation in found)
            if not names <= IN_ORDER_ONLY:
                assert rules(check_once(play.history, play.commits)) & names, seed
    assert planted >= 10


# --- by hand -------------------------------------------------------------------------------------


def put(at: int, until: int | None, value: object, revision: int | None = None, key: str = "k",
        request: str | None = None) -> Operation:
    """A put that was acknowledged, or never answered."""
    outcome = Unknown() if until is None else Ok(revision)
    return Operation("c", (Put(key, value),), at, until, outcome, request=request)


def committed(*values: object, key: str = "k") -> Commits:
    """One put after the other."""
    return [Commit(revision, (Change(key, "put", value),))
            for revision, value in enumerate(values, 1)]


@pytest.mark.fault(2)
def test_an_unanswered_write_takes_effect_once_or_never_but_not_twice() -> None:
    asked = [put(1, None, "v"), put(2, 3, "w", 1)]
    assert check_order(asked, committed("w")) == []
    assert check_order(asked, committed("w", "v")) == []
    assert rules(check_order(asked, committed("w", "v", "v"))) == {"twice"}


def test_two_unanswered_alike_explain_two_commits_and_not_three() -> None:
    asked = [put(1, None, "v"), put(2, None, "v")]
    assert check_once(asked, committed("v", "v")) == []
    assert rules(check_once(asked, committed("v", "v", "v"))) == {"twice"}


def test_no_assignment_is_overlooked() -> None:
    """The first commit could be either's; the second only the first one's."""
    either = Operation("a", (Increment("k", 2),), 1)
    first = put(2, None, 2)
    assert check_once([either, first], committed(2, 4)) == []
    assert check_once([first, either], committed(2, 4)) == []
    assert rules(check_once([either, first], committed(2, 4, 6))) == {"twice"}


def test_what_was_acknowledged_comes_before_what_never_was() -> None:
    """Both would explain the only commit; the acknowledged one has to."""
    asked = [put(1, None, "v"), put(2, 3, "v")]
    assert check_once(asked, committed("v")) == []
    assert rules(check_once([put(1, 2, "v"), put(3, 4, "v")], committed("v"))) == {"lost"}


def test_a_delete_without_a_commit_had_nothing_to_do_at_some_time() -> None:
    gone = Operation("d", (Delete("k"),), 3, 4, Ok())
    assert check_once([put(1, 2, "v", 1), gone], committed("v")) == []
    if_there = dataclasses.replace(gone, steps=(Delete("l"),), expect=(("k", 1),))
    assert check_once([put(1, 2, "v", 1), if_there], committed("v")) == []
    told = dataclasses.replace(gone, outcome=Ok(None, (True,)))
    assert rules(check_once([put(1, 2, "v", 1), told], committed("v"))) == {"lost"}


def test_an_unanswered_write_takes_no_effect_before_it_is_asked() -> None:
    asked = [put(1, 2, "a", 2), put(3, None, "v")]
    assert check_once(asked, committed("v", "a")) == []
    assert rules(check_order(asked, committed("v", "a"))) == {"twice"}


def test_a_request_is_known_by_its_name() -> None:
    named = [Commit(1, (Change("k", "put", "v"),), "s/1")]
    assert check_once([put(1, 2, "v", 1, request="s/1")], named) == []
    assert rules(check_once([put(1, 2, "v", 1, request="s/2")], named)) == {"lost", "phantom"}


def test_what_had_nothing_to_do_owns_no_revision() -> None:
    asked = [put(1, 2, "v", 1), Operation("d", (Delete("x"),), 3, 4, Ok(1, (False,)))]
    assert check_order(asked, committed("v")) == []
    asked[1] = dataclasses.replace(asked[1], outcome=Ok(1, (True,)))
    assert rules(check_order(asked, committed("v"))) == {"lost"}


def test_two_may_not_be_told_the_same_revision() -> None:
    assert rules(check_order([put(1, 5, "v", 1), put(2, 6, "v", 1)], committed("v"))) == {"shared"}


def test_what_expires_needs_nobody() -> None:
    commits = [*committed("v"), Commit(2, (Change("k", "expire"),))]
    read = Operation("d", (Get("k"),), 3, 4, Ok(2, (None,)))
    assert check_order([put(1, 2, "v", 1), read], commits) == []


def test_reads_never_go_back() -> None:
    """Neither names its cut; the first has shown that revision 2 was reached."""
    reads = [Operation("r", (Get("k"),), at, at + 1, Ok(None, (found,)))
             for at, found in ((10, Found("b", 2)), (12, Found("a", 1)))]
    asked = [put(1, 20, "a", 1), put(2, 21, "b", 2)]
    found = check_order([*asked, *reads], committed("a", "b"))
    assert rules(found) == {"stale"}
    assert "what stood at revision 1, and no longer at 2" in found[0].message
    assert found[0].operations == tuple(reads)
    assert check_order([*asked, *reversed(reads)], committed("a", "b")) == found
    swapped = [dataclasses.replace(reads[1], invoked_at=1, returned_at=3), reads[0]]
    assert check_order([*asked, *swapped], committed("a", "b")) == []


def test_a_cut_beyond_the_head_is_of_the_future() -> None:
    read = Operation("r", (Get("k"),), 3, 4, Ok(2, (Found("v", 1),)))
    assert rules(check_order([put(1, 2, "v", 1), read], committed("v"))) == {"future"}


def test_a_refusal_that_names_what_stands_there_must_be_right() -> None:
    refused = Operation("d", (Put("k", 1),), 3, 4, Refused("Conflict", (("k", None),)),
                        (("k", ANYTHING),))
    assert rules(check_order([put(1, 2, "v", 1), refused], committed("v"))) == {"stale"}
    assert check_order([refused, put(1, 9, "v", 1)], committed("v")) == []


def test_a_violation_reads_as_a_sentence_with_its_operations() -> None:
    found = check_order([put(1, 2, "v", 2), put(3, 4, "w", 1)], committed("w", "v"))
    assert list(map(str, found)) == [
        "order: c's put of k was acknowledged at revision 1, although 2 had been reached before it "
        "was invoked\n"
        '  c [1, 2] put("k", "v") → ok at revision 2\n'
        '  c [3, 4] put("k", "w") → ok at revision 1']


# --- counters ------------------------------------------------------------------------------------


def _add(by: int, outcome: object) -> Operation:
    return Operation("c", (Increment("n", by),), 1, None if outcome == Unknown() else 2,
                     outcome)  # type: ignore[arg-type]


@pytest.mark.parametrize(("final", "right"), [(6, True), (16, True), (106, True), (116, True),
                                              (7, False), (126, False), (0, False)])
def test_a_counter_is_what_was_acknowledged_and_some_of_the_unanswered(final: int, right: bool
                                                                       ) -> None:
    asked = [_add(5, Ok()), _add(1, Ok()), _add(10, Unknown()), _add(100, Unknown()),
             _add(1_000, Refused("OutOfSpace"))]
    found = check_counters(asked, {"n": final})
    assert rules(found) == (set() if right else {"sum"})
    assert rules(check_counters(asked, {"n": final + 3}, begun={"n": 3})) == rules(found)


def test_a_counter_that_was_also_put_has_no_sum() -> None:
    with pytest.raises(ValueError, match="not only incremented"):
        check_counters([_add(1, Ok()), put(1, 2, 5, key="n")], {"n": 6})
