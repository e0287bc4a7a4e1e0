"""The catalogue of errors, and the checks that stand beside the limits."""

from __future__ import annotations

import copy
import pickle
import unicodedata
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptmesh import errors, limits
from ckptmesh.errors import BY_CODE, Compacted, Conflict, Error, InvalidKey, TooLarge
from ckptmesh.limits import check_key, check_keys, check_prefix, check_value, pipeline_of, under

CLASSES = [cls for cls in vars(errors).values()
           if isinstance(cls, type) and issubclass(cls, Error)]


def test_every_error_has_a_code_of_its_own_and_is_found_by_it() -> None:
    assert sorted(cls.code for cls in CLASSES) == sorted(BY_CODE)
    assert len(BY_CODE) == len(CLASSES)
    assert all(BY_CODE[cls.code] is cls for cls in CLASSES)
    assert 0 not in BY_CODE, "0 is success"


@pytest.mark.parametrize("cls", CLASSES)
def test_every_error_says_what_it_means_and_keeps_its_facts_over_pickle_and_copy(
        cls: type[Error]) -> None:
    assert cls.__doc__
    assert cls.exit_code in range(1, 8)
    error = cls("what happened", hint="what to do", key="k", number=7)
    for again in (error, pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(again) is cls
        assert (again.message, again.hint, again.details) == (
            "what happened", "what to do", {"key": "k", "number": 7})
        assert str(again) == "what happened (what to do)"
    assert cls("told").hint == cls.hint


def test_errors_are_also_what_python_calls_them() -> None:
    for cls, builtin in [(errors.Unavailable, ConnectionError),
                         (errors.OutcomeUnknown, TimeoutError), (errors.InvalidKey, ValueError),
                         (errors.Misuse, TypeError), (errors.MissingExtra, ImportError)]:
        assert issubclass(cls, builtin)
    assert str(Error("plain")) == "plain"


def test_facts_that_programs_ask_for_have_names() -> None:
    assert Compacted("old", floor=4).resume_from == 4
    assert Compacted("old", floor=4, resume_from=7).resume_from == 7
    assert Compacted("old").resume_from == 0
    assert Conflict("no").current is None
    assert Conflict("no", current="x").current == "x"


def test_an_unknown_outcome_asks_its_client_or_says_that_it_is_gone() -> None:
    error = errors.OutcomeUnknown("no answer")
    with pytest.raises(errors.OutcomeUnknown, match="its client is gone"):
        error.resolve()
    error._resolver = lambda timeout: ("asked", timeout)
    assert error.resolve(3.0) == ("asked", 3.0)


# --- keys -------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [
    "a", "orders", "orders/partition/3", "a/_lock/b", "k" * 512, "é" * 256, "日本/語", "a b", "a.b",
    "1", "a/1.0", "-", "a\u00a0b", "a\u3000b"])
def test_a_key_is_clean_text_in_segments(key: str) -> None:
    check_key(key)
    check_prefix(key)


@pytest.mark.fault(64)
@pytest.mark.fault(49)
@pytest.mark.parametrize("key", [
    "", "/", "/a", "a/", "a//b", "_a", "_lock/a", "a\nb", "a\r", "\0", "a\x1b[31m", "a\x7f",
    "a\x9f",
    "a\u2028", "a\u2029", "a\ud800", None, 1, 1.0, True, b"a", ("a",)])
def test_what_is_no_key_is_refused(key: Any) -> None:
    with pytest.raises(InvalidKey):
        check_key(key)
    if key != "":
        with pytest.raises(InvalidKey):
            check_prefix(key)


NO_KEYS = ["", "/a", "a/", "a//b", "_a", "a\nb", "a\x7f", "a\x9f", "a\u2028", "a\ud800", "k" * 513,
           "é" * 257, None, 1, 1.0, True, b"a", ("a",), ["a"], {}]


@pytest.fixture
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    known: set[str] = set()
    monkeypatch.setattr(limits, "_good", known)
    return known


@pytest.mark.parametrize("wrong", NO_KEYS)
@pytest.mark.parametrize("at", [0, 5, 9])
@pytest.mark.parametrize("others", [["a", "b/c"], ["é", "日本/語"]])
def test_among_many_keys_the_wrong_one_is_refused_as_it_is_alone(
        wrong: Any, at: int, others: list[str], nothing_known: set[str]) -> None:
    keys: list[Any] = others * 5
    for _ in range(2):
        check_keys(keys)  # and now they are known
        mixed = [*keys[:at], wrong, *keys[at:], "/another", None]
        with pytest.raises((InvalidKey, TooLarge)) as alone:
            check_key(wrong)
        with pytest.raises(type(alone.value)) as among:
            check_keys(mixed)
        assert (among.value.message, among.value.details) == (
            alone.value.message, alone.value.details), "the first of them"
    assert nothing_known <= {*others}


def test_many_keys_are_taken_and_none_as_well(nothing_known: set[str]) -> None:
    check_keys([])
    check_keys(("a", "a/b", "é" * 256, "k" * 512))
    check_keys(["a", "a"])
    assert nothing_known == {"a"}, "only what is told at one look is remembered"


def test_what_is_remembered_of_keys_stays_bounded(nothing_known: set[str]) -> None:
    for size in (1, 1_000, 4_096, limits._GOOD, limits._GOOD + 1, 100_000):
        for begin in range(0, 5 * size, size):
            check_keys([f"k{number}" for number in range(begin, begin + size)])
            assert len(nothing_known) <= limits._GOOD
    with pytest.raises(InvalidKey):
        check_keys([f"k{number}" for number in range(100_000)] + ["/"])


def test_the_empty_prefix_is_everything() -> None:
    check_prefix("")


@pytest.mark.parametrize("key", ["k" * 513, "é" * 257, "日" * 171])
def test_a_key_that_is_too_long_is_too_large_in_bytes(key: str) -> None:
    with pytest.raises(TooLarge) as large:
        check_key(key)
    assert large.value.details == {"size": len(key.encode()), "limit": limits.KEY_BYTES}


@pytest.mark.fault(46)
def test_a_hostile_nest_for_a_key_is_refused_and_not_shown() -> None:
    nest: Any = ()
    for _ in range(50_000):
        nest = (nest,)
    with pytest.raises(InvalidKey, match="not tuple"):
        check_key(nest)
    while nest:  # take it apart without recursion
        [nest] = nest


@given(st.text(max_size=30) | st.text("a_/ .~\x1f\x7f\u00e9\u2028", max_size=8)
       | st.text("k/", min_size=509, max_size=515))
def test_any_text_is_a_key_unless_something_about_it_is_not_clean(key: str) -> None:
    clean = (all(unicodedata.category(c) not in ("Cc", "Cs", "Zl", "Zp") for c in key)
             and all(key.split("/")) and key[0] != "_" and len(key.encode()) <= 512)
    try:
        check_key(key)
    except (InvalidKey, TooLarge):
        assert not clean
    else:
        assert clean


def test_a_value_over_its_limit_is_refused() -> None:
    check_value(bytes(limits.VALUE_BYTES))
    with pytest.raises(TooLarge):
        check_value(bytes(limits.VALUE_BYTES + 1))


def test_a_prefix_selects_whole_segments() -> None:
    assert [key for key in ("orders", "orders/1", "orders2", "order", "orders-1/x")
            if under("orders", key)] == ["orders", "orders/1"]
    assert under("", "anything")
    assert (pipeline_of("orders/1/2"), pipeline_of("orders")) == ("orders", "orders")


# --- the limits among themselves --------------------------------------------------------------


def test_the_limits_fit_into_each_other() -> None:
    assert limits.VALUE_BYTES <= limits.REPLY_BYTES < limits.REQUEST_BYTES < limits.SOCKET_BYTES
    assert limits.BATCH_BYTES + limits.REQUEST_BYTES < limits.SEGMENT_BYTES
    elements = (limits.TRANSACTION_MUTATIONS * 11 + limits.TRANSACTION_CONDITIONS * 5
                + limits.TRANSACTION_MUTATIONS * 4 * 16)
    assert elements < limits.REQUEST_ITEMS, "a full transaction, each put with 16 sources"
    assert limits.STALL < limits.CLOCK_RESERVE < limits.CLOCK_JUMP
    assert limits.HEARTBEAT_LOST > 2 * limits.HEARTBEAT
