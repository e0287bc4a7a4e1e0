"""The search for an order: every verdict against one that tries all orders, stories, bounds."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from played import CHANCES, Game, Play, explained

from ckptmesh.testing.checkers import (
    Bounds,
    Delete,
    Found,
    Get,
    Inconclusive,
    Increment,
    Linearizable,
    NotLinearizable,
    Ok,
    Operation,
    Put,
    Refused,
    Unknown,
    check_linearizable,
    check_order,
)
from ckptmesh.testing.checkers.linearizability import groups


def put(client: str, at: int, until: int | None, value: object, revision: int | None = None,
        key: str = "k", expect: int | None = None) -> Operation:
    """A put that was acknowledged, or never answered."""
    return Operation(client, (Put(key, value),), at, until,
                     Unknown() if until is None else Ok(revision),
                     () if expect is None else ((key, expect),))


def get(client: str, at: int, until: int, *found: object, key: str = "k") -> Operation:
    """A read: of nothing, of a value, or of a value with its revision."""
    return Operation(client, (Get(key),), at, until, Ok(None, (Found(*found) if found else None,)))


RIGHT = {
    "reads while a write is under way may see it or not": [
        put("a", 1, 9, "new"), get("b", 2, 3), get("b", 4, 5, "new")],
    "what was never answered may take effect late": [
        put("a", 1, None, "old"), put("b", 2, 3, "new"), get("c", 4, 5, "new"),
        get("c", 6, 7, "old")],
    "or never": [put("a", 1, None, "new"), get("b", 2, 3), get("b", 8, 9)],
    "a read learns the revision of a write that was never answered": [
        put("a", 1, None, "v"), get("b", 2, 3, "v", 7), put("b", 4, 5, "w", 8, expect=7)],
    "a write that changes nothing now may be needed later": [
        put("a", 1, 2, 0), put("b", 3, 9, 1), put("c", 4, 8, 0), get("d", 10, 11, 1),
        put("a", 12, 20, 5), get("b", 13, 14, 5)],
    "increments count in any order": [
        Operation("a", (Increment("k", 2),), 1, 9, Ok(None, (3,))),
        Operation("b", (Increment("k", 1),), 2, 8, Ok(None, (1,)))],
    "one and true are two values": [put("a", 1, 2, True), get("b", 3, 4, True)],
    "a refusal for another reason says nothing": [
        put("a", 1, 2, 5), Operation("b", (Put("k", 6),), 3, 4, Refused("OutOfSpace")),
        get("b", 5, 6, 5)],
}
WRONG = {
    "a stale read": [put("a", 1, 2, "old"), put("a", 3, 4, "new"), get("b", 5, 6, "old")],
    "a read of what nobody wrote": [put("a", 1, 2, "v"), get("b", 3, 4, "w")],
    "a lost write": [put("a", 1, 2, "v"), get("b", 3, 4)],
    "new, then old again": [
        put("a", 1, 2, "old"), put("a", 3, 9, "new"), get("b", 4, 5, "new"),
        get("c", 6, 7, "old")],
    "two who both expected the same": [
        put("a", 1, 2, "v", 1), put("a", 3, 8, "w", 2, expect=1),
        put("b", 4, 9, "x", 3, expect=1), get("c", 10, 11, "x", 3)],
    "the effect of what was never answered, undone": [
        put("a", 1, None, "v"), get("b", 2, 3, "v"), get("b", 4, 5)],
    "one increment, counted twice": [
        Operation("a", (Increment("k"),), 1, 2, Ok(None, (1,))), get("b", 3, 4, 2)],
    "a refused write that took effect": [
        put("a", 1, 2, "v", 1),
        Operation("b", (Put("k", "w"),), 3, 4, Refused("Conflict"), (("k", 9),)),
        get("a", 5, 6, "w")],
    "a refusal where nothing stood in its way": [
        put("a", 1, 2, "v", 1),
        Operation("b", (Put("k", "w"),), 3, 4, Refused("Conflict"), (("k", 1),))],
    "a refusal that tells what never stood there": [
        put("a", 1, 2, "v", 1),
        Operation("b", (Put("k", "w"),), 3, 4, Refused("Conflict", (("k", Found("x", 2)),)),
                  (("k", 7),))],
    "a delete of nothing that found something": [
        Operation("a", (Delete("k"),), 1, 2, Ok(None, (True,)))],
    "half a transaction": [
        Operation("a", (Put("k", 1), Put("l", 1)), 1, 2, Ok(1)), get("b", 3, 4, 1),
        get("b", 5, 6, key="l")],
    "one where true stood": [put("a", 1, 2, True), get("b", 3, 4, 1)],
    "another version under a revision that was told": [
        put("a", 1, 2, "v", 5), put("b", 3, None, "v"), put("c", 4, 6, "w", 7, expect=5),
        get("c", 8, 9, "v", 5)],
}


@pytest.mark.parametrize("history", RIGHT.values(), ids=RIGHT)
def test_is_linearizable(history: list[Operation]) -> None:
    assert isinstance(check_linearizable(history), Linearizable)
    assert explained(history)


@pytest.mark.parametrize("history", WRONG.values(), ids=WRONG)
def test_is_not_linearizable(history: list[Operation]) -> None:
    assert isinstance(check_linearizable(history), NotLinearizable)
    assert not explained(history)


# --- against all orders --------------------------------------------------------------------------


def small(chance: random.Random) -> list[Operation]:
    """A small history of a right store, of a kind that has a bit of everything."""
    game = Game(size=chance.randint(2, 6), clients=chance.randint(2, 4),
                keys=chance.choice([1, 1, 2]), values=chance.choice([0, 2]),
                silent=chance.choice([0, 0.3]))
    return Play(chance, game).history


def spoilt(chance: random.Random, history: list[Operation]) -> list[Operation]:
    """With one answer changed; to another one, to none, or to a wrong one."""
    at = chance.randrange(len(history))
    asked = history[at]
    outcome: Ok | Refused | Unknown = asked.outcome
    if isinstance(outcome, Ok) and asked.reads:
        seen = [found for other in history if other.reads for found in other.results]
        seen += [Found(chance.randrange(3), chance.randrange(1, 5)), None]
        outcome = Ok(None, tuple(chance.choice(seen) for _ in asked.steps))
    elif isinstance(outcome, Ok):
        outcome = chance.choice([
            Refused("Conflict"), Unknown(), Ok(None, outcome.results),
            outcome._replace(results=tuple(_other(result) for result in outcome.results))])
    elif isinstance(outcome, Refused):
        outcome = Ok(chance.randrange(1, 9))
    returned = None if isinstance(outcome, Unknown) else asked.returned_at or 1_000
    new = dataclasses.replace(asked, outcome=outcome, returned_at=returned)
    return [*history[:at], new, *history[at + 1:]]


def _other(result: object) -> object:
    if type(result) is bool:
        return not result
    return result + 1 if isinstance(result, int) else result


def test_every_verdict_is_that_of_a_search_through_all_orders() -> None:
    verdicts: Counter[bool] = Counter()
    for seed in range(1_500):
        chance = random.Random(seed)
        history = small(chance)
        for trial in (history, *(spoilt(chance, history) for _ in range(3))):
            if len(groups(trial)) > 1 and any(o.returned_at is None for o in trial):
                continue  # the search through all orders names versions over all keys at once
            verdict = check_linearizable(trial)
            expected = explained(trial)
            assert isinstance(verdict, Linearizable) == expected, (seed, list(map(str, trial)))
            assert isinstance(verdict, Linearizable | NotLinearizable)
            verdicts[expected] += 1
    assert verdicts[True] > 1_000
    assert verdicts[False] > 1_000


def test_what_keeps_the_commit_order_is_linearizable() -> None:
    """The two know nothing of each other; but the order of the commits would be an order."""
    passed = failed = 0
    for seed in range(600):
        chance = random.Random(seed)
        play = Play(chance, Game(size=12, clients=3, keys=2, silent=0.1, cuts=0.5))
        trial = spoilt(chance, play.history)
        if any(isinstance(o.outcome, Ok) and o.outcome.revision is None and not o.reads
               for o in trial):
            continue  # placed wherever it fits
        if check_order(trial, play.commits):
            failed += 1
        else:
            passed += 1
            assert isinstance(check_linearizable(trial), Linearizable), seed
    assert passed > 100
    assert failed > 100


@settings(deadline=None, max_examples=60)
@given(CHANCES, st.integers(1, 6))
def test_what_a_right_store_answers_is_linearizable(chance: random.Random, keys: int) -> None:
    play = Play(chance, Game(size=60, clients=4, keys=keys, silent=0.03))
    assume(sum(o.returned_at is None for o in play.history) <= Bounds().unknown)
    assert isinstance(check_linearizable(play.history), Linearizable)


def test_the_story_ends_at_the_shortest_beginning_that_no_order_explains() -> None:
    found = 0
    for seed in range(400):
        chance = random.Random(seed)
        history = spoilt(chance, Play(chance, Game(size=6, keys=1, silent=0)).history)
        verdict = check_linearizable(history)
        if not isinstance(verdict, NotLinearizable):
            continue
        found += 1
        end = verdict.operation.returned_at
        assert end is not None
        assert not explained(list(verdict.prefix))
        shorter = [operation for operation in verdict.prefix if operation.invoked_at < end]
        shorter.remove(verdict.operation)
        returned = [o if o.returned_at is not None and o.returned_at < end else _open(o)
                    for o in shorter]
        assert explained(returned), verdict
    assert found > 30


def _open(operation: Operation) -> Operation:
    return dataclasses.replace(operation, outcome=Unknown(), returned_at=None)


# --- stories and bounds --------------------------------------------------------------------------


def test_the_story_names_the_answer_and_what_could_have_stood_there() -> None:
    history = [put("a", 1, 2, [1]), put("a", 3, 4, "new"), put("b", 5, 9, "late"),
               get("c", 6, 7, [1])]
    verdict = check_linearizable(history)
    assert isinstance(verdict, NotLinearizable)
    assert verdict.operation == history[3]
    assert verdict.around == (history[2],)
    assert verdict.before == (history[0], history[1])
    assert verdict.possible == ('k: "new"',)
    assert str(verdict) == "\n".join([
        "Not linearizable: no order of the 4 operations on k up to then explains what c's get of "
        "k was told.",
        '  c [6, 7] get("k") → found [1]',
        "Without it there could have been:", '  k: "new"',
        "Under way at the time:", '  b [5, 9] put("k", "late") → ok',
        "Returned last before it was invoked:", '  a [1, 2] put("k", [1]) → ok',
        '  a [3, 4] put("k", "new") → ok'])
    assert verdict.violation.rule == "linearizability"


def test_keys_are_checked_apart_unless_an_operation_names_both() -> None:
    apart = [put("a", 1, 2, 1, key="x"), put("a", 3, 4, 1, key="y")]
    assert [keys for keys, _ in groups(apart)] == [("x",), ("y",)]
    both = Operation("b", (Get("x"), Get("y")), 5, 6, Ok(None, (Found(1), Found(1))))
    assert [keys for keys, _ in groups([*apart, both])] == [("x", "y")]
    expecting = put("b", 5, 6, 1, key="x")
    expecting = dataclasses.replace(expecting, expect=(("y", 1),))
    assert [keys for keys, _ in groups([*apart, expecting])] == [("x", "y")]


def test_a_history_begins_with_what_stood_there() -> None:
    history = [get("a", 1, 2, "v", 7), put("a", 3, 4, "w", 8, expect=7)]
    assert isinstance(check_linearizable(history), NotLinearizable)
    assert isinstance(check_linearizable(history, standing={"k": Found("v", 7)}), Linearizable)


@pytest.mark.parametrize(("bounds", "reason"), [
    (Bounds(operations=3), "4 operations; the bound is 3"),
    (Bounds(clients=1), "2 operations at once; the bound is 1"),
    (Bounds(unknown=0), "1 operations were never answered; the bound is 0"),
    (Bounds(steps=3), "not settled within 3 steps"),
])
def test_beyond_a_bound_nobody_knows(bounds: Bounds, reason: str) -> None:
    history = [put("a", 1, 5, 1), put("b", 2, 4, 2), put("c", 3, None, 3), get("d", 6, 7, 1)]
    assert isinstance(check_linearizable(history), Linearizable)
    verdict = check_linearizable(history, bounds=bounds)
    assert isinstance(verdict, Inconclusive)
    assert reason in verdict.reason


def test_only_a_history_with_an_order_is_true() -> None:
    assert check_linearizable([])
    assert not check_linearizable([get("a", 1, 2, "never written")])
    assert not check_linearizable([put("a", 1, 2, 1)], bounds=Bounds(operations=0))


def test_a_key_that_is_settled_hides_none_that_nobody_knows() -> None:
    apart = [put("a", 1, 2, 1, key="x"), put("a", 3, 4, 1, key="y"), put("a", 5, 6, 2, key="y")]
    verdict = check_linearizable(apart, bounds=Bounds(operations=1))
    assert isinstance(verdict, Inconclusive)
    assert verdict.reason.startswith("y: 2 operations")


def test_what_is_wrong_on_one_key_is_found_beside_one_that_nobody_knows() -> None:
    many = [put("a", at, at + 1, at, key="x") for at in range(1, 20, 2)]
    wrong = [get("b", 30, 31, "never written", key="y")]
    bounds = Bounds(operations=5)
    assert isinstance(check_linearizable(many, bounds=bounds), Inconclusive)
    assert isinstance(check_linearizable([*many, *wrong], bounds=bounds), NotLinearizable)


def test_a_thousand_operations_of_eight_clients_are_settled() -> None:
    play = Play(random.Random(1), Game(size=1_000, clients=8, keys=1, silent=0.01))
    verdict = check_linearizable(play.history)
    assert isinstance(verdict, Linearizable)
    assert verdict.operations == 1_000
