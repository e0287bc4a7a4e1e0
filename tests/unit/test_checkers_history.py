"""Histories of operations: what they refuse, how they read, and their way through a file."""

from __future__ import annotations

import doctest
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptmesh import messages
from ckptmesh.testing import checkers
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
    Recorder,
    Refused,
    Touch,
    Unknown,
    commits_of,
    dump,
    load,
)
from ckptmesh.testing.checkers.history import Asked, dumps, loads

VALUES = st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=3),
                      lambda inner: st.lists(inner, max_size=2), max_leaves=3)
FOUND = st.none() | st.builds(Found, VALUES, st.none() | st.integers(1, 9))
KEYS = st.lists(st.sampled_from("abc"), min_size=1, max_size=3, unique=True)


@st.composite
def operations(draw: st.DrawFn) -> Operation:
    """Any operation that does not contradict itself."""
    keys = draw(KEYS)
    reads = draw(st.booleans())
    if reads:
        steps = [Get(key) for key in keys]
    else:
        steps = [draw(st.sampled_from([Put(key, draw(VALUES)), Delete(key), Touch(key),
                                       Increment(key, draw(st.integers(-3, 3)))]))
                 for key in keys]
    results = tuple(draw(FOUND if reads else st.none() | st.integers()) for _ in keys)
    outcome = draw(st.sampled_from([
        Unknown(), Ok(draw(st.none() | st.integers(0, 9)), draw(st.sampled_from([(), results]))),
        Refused("Conflict", ((keys[0], draw(FOUND)),)), Refused("OutOfSpace")]))
    invoked = draw(st.integers(0, 99))
    returned = None if outcome == Unknown() else invoked + draw(st.integers(0, 9))
    expect = draw(st.sampled_from([(), ((keys[0], ANYTHING),), (("c", 3), ("a", 0))]))
    return Operation("c1", tuple(steps), invoked, returned, outcome, expect,
                     draw(st.none() | st.just("s/1")))


@given(operations())
def test_an_operation_comes_back_from_its_line_as_it_was(operation: Operation) -> None:
    line = dumps(operation)
    assert "\n" not in line
    assert loads(line) == operation
    assert str(loads(line)) == str(operation)


def test_histories_of_several_files_are_put_together_in_the_order_asked(tmp_path: Path) -> None:
    first, second, third = (Operation(f"c{at}", (Get("k"),), at) for at in (1, 2, 3))
    dump([first, third], tmp_path / "one")
    dump([second], tmp_path / "two")
    assert load(tmp_path / "one", tmp_path / "two") == [first, second, third]


@pytest.mark.parametrize("wrong", [
    lambda: Operation("c", (), 1),
    lambda: Operation("c", (Put("k", 1), Delete("k")), 1),
    lambda: Operation("c", (Get("k"), Put("l", 1)), 1),
    lambda: Operation("c", (Get("k"),), 1, 2),
    lambda: Operation("c", (Get("k"),), 1, None, Ok()),
    lambda: Operation("c", (Get("k"),), 2, 1, Ok()),
    lambda: Operation("c", (Get("k"),), 1, 2, Ok(None, (None, None))),
])
def test_an_operation_that_contradicts_itself_is_refused(wrong: object) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # each has a message of its own
        wrong()  # type: ignore[operator]


@pytest.mark.parametrize(("asked", "told", "says"), [
    (lambda r: r.invoke("c", messages.Put("k", 1)), None, "a step is a Get, Put, .* not Put"),
    (lambda r: r.invoke("c", Put("k", 1), expect={"k": None}), None, "0 where nothing"),
    (lambda r: r.invoke("c", Put("k", 1), expect={"k": Found(1, 7)}), None, "at a revision"),
    (lambda r: r.invoke("c", Put("k", 1), expect={"k": -2}), None, "not at -2"),
    (lambda r: r.invoke("c", Get("k")), 10, "Found.* or None, not 10"),
])
def test_what_a_recorder_cannot_understand_is_told_where_it_is_given(
    asked: Callable[[Recorder], Asked], told: object, says: str
) -> None:
    recorder = Recorder()
    with pytest.raises(ValueError, match=says):
        recorder.ok(asked(recorder), told)
    assert all(operation.outcome == Unknown() for operation in recorder.history())


@pytest.mark.parametrize(("operation", "text"), [
    (Operation("c1", (Put("k", "v"),), 1, 4, Ok(8), (("k", 7),)),
     'c1 [1, 4] put("k", "v") expecting k at revision 7 → ok at revision 8'),
    (Operation("c1", (Get("k"),), 1, 4, Ok(None, (Found(5, 3),))),
     'c1 [1, 4] get("k") → found 5 at revision 3'),
    (Operation("c1", (Get("k"),), 1, 4, Ok(9, (None,))),
     'c1 [1, 4] get("k") → found nothing at revision 9'),
    (Operation("c1", (Delete("k"),), 1, 4, Refused("Conflict", (("k", None),)), (("k", ANYTHING),)),
     'c1 [1, 4] delete("k") expecting k at something → refused, Conflict: k holds nothing'),
    (Operation("c1", (Increment("k", 2), Put("l", 1)), 1, None, Unknown(), (("l", 0),)),
     'c1 [1, …] increment("k", 2), put("l", 1) expecting l at nothing → no answer'),
    (Operation("c1", (Increment("k", 2),), 1, 3, Ok(4, (7,))),
     'c1 [1, 3] increment("k", 2) → ok at revision 4: 7'),
])
def test_an_operation_reads_as_a_line(operation: Operation, text: str) -> None:
    assert str(operation) == text


def test_kinds_are_those_of_single_steps_or_a_transaction() -> None:
    assert Operation("c", (Increment("k"),), 1).kind == "increment"
    assert Operation("c", (Put("k", 1), Delete("l")), 1).kind == "transaction"
    assert Operation("c", (Get("k"), Get("l")), 1).reads


def test_a_recorder_counts_events_and_leaves_open_what_was_never_answered() -> None:
    recorder = Recorder()
    first = recorder.invoke("a", Put("k", 1), expect={"k": 0}, request="s/1")
    second = recorder.invoke("b", Get("k"))
    third = recorder.invoke("c", Delete("k"), expect={"k": 9})
    recorder.ok(second, Found(1, 1), revision=1)
    recorder.refused(third, stands={"k": Found(1, 1)})
    assert recorder.history() == [
        Operation("a", (Put("k", 1),), 1, None, Unknown(), (("k", 0),), "s/1"),
        Operation("b", (Get("k"),), 2, 4, Ok(1, (Found(1, 1),))),
        Operation("c", (Delete("k"),), 3, 5, Refused("Conflict", (("k", Found(1, 1)),)),
                  (("k", 9),)),
    ]
    recorder.ok(first, revision=1)
    with pytest.raises(ValueError, match="returned before"):
        recorder.refused(first)


def test_threads_may_share_a_recorder() -> None:
    recorder = Recorder()

    def work(name: str) -> None:
        for i in range(500):
            recorder.ok(recorder.invoke(name, Put("k", i)), revision=i)

    threads = [threading.Thread(target=work, args=(f"t{i}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    history = recorder.history()
    times = [at for operation in history for at in (operation.invoked_at, operation.returned_at)]
    assert sorted(times) == list(range(1, 4_001))


def test_events_of_a_watch_become_commits() -> None:
    class Event:
        def __init__(self, revision: int, key: str, kind: str, value: object = None) -> None:
            self.revision, self.key, self.kind = revision, key, kind
            self.checkpoint = None if kind in ("delete", "expire") else Found(value, revision)

    seen = [Event(1, "a", "put", 5), Event(1, "b", "delete"), Event(2, "a", "touch", 5)]
    assert commits_of(seen) == [
        Commit(1, (Change("a", "put", 5), Change("b", "delete"))),
        Commit(2, (Change("a", "touch"),)),
    ]


def test_the_example_of_the_checkers_runs_as_it_is_printed() -> None:
    text = checkers.__doc__ or ""
    example = doctest.DocTestParser().get_doctest(text, {}, "checkers", None, None)
    told: list[str] = []
    assert doctest.DocTestRunner().run(example, out=told.append).attempted > 5
    assert not told, "".join(told)
