"""Commits: what one key is promised."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest

from ckptmesh.errors import Conflict, InvalidKey, InvalidValue, Misuse, TooLarge
from ckptmesh.limits import KEY_BYTES, VALUE_BYTES
from ckptmesh.testing.conformance.base import Base, Connect, Store
from ckptmesh.values import register
from ckptmesh.views import Receipt


@register
class Phase(enum.Enum):
    """An Enum that reader and writer know."""

    RUNNING = "running"
    DONE = "done"


@register
@dataclass(frozen=True)
class Span:
    """A dataclass that reader and writer know."""

    start: int
    end: int


VALUES: list[Any] = [
    None, True, False, 0, -1, 2**63 - 1, -(2**63), 2**64 - 1, 0.0, 1.5, -1e300, math.inf,
    "", "text", "ünïcödé 🦆", b"", b"\x00\xff", [], [1, [2, [3]]], {}, {"a": {"b": [None]}},
    (), (1, "two", (3,)), set(), {1, "two"}, frozenset({(1, 2)}),
    datetime(2024, 5, 1, 10, 30, 0, 123456, tzinfo=UTC),
    datetime(2024, 5, 1, 10, 30, tzinfo=timezone(timedelta(hours=-5, minutes=-30))),
    date(2024, 2, 29), time(23, 59, 59, 999999), Decimal("1.10"), Decimal("-Infinity"),
    UUID("00112233-4455-6677-8899-aabbccddeeff"), Phase.RUNNING, Span(1, 2),
]


def _name(value: Any) -> str:
    """The same in every process, as the names of tests have to be: sets have no order."""
    return "{" + ", ".join(sorted(map(repr, value))) + "}" if isinstance(value, set) else (
        repr(value))


class Committing(Base):
    """Commit, get, expect, create, delete, pop, update, increment; keys and values."""

    def test_a_key_that_was_never_written_is_none(self, store: Store) -> None:
        assert store.get("orders") is None
        assert store.value("orders") is None
        assert store.value("orders", default=0) == 0

    def test_a_commit_can_be_read_back_with_its_receipt(self, store: Store) -> None:
        receipt = store.commit("orders", {"offset": 42}, position=42, head=50)
        found = store.get("orders")
        assert isinstance(receipt, Receipt)
        assert (found.key, found.value) == ("orders", {"offset": 42})
        assert (found.position, found.head) == (42, 50)
        assert (found.revision, found.epoch, found.version, found.time) == (
            receipt.revision, receipt.epoch, receipt.version, receipt.time)
        assert found.create_revision == found.revision
        assert store.value("orders") == {"offset": 42}

    def test_revisions_grow_over_all_keys(self, store: Store) -> None:
        revisions = [store.commit(key, i).revision for i, key in enumerate(["a", "b", "a", "c/d"])]
        assert revisions == sorted(set(revisions))
        assert revisions[0] > 0

    def test_versions_count_the_writes_of_one_key_and_begin_anew_after_a_deletion(
        self, store: Store,
    ) -> None:
        first = store.commit("a", 1)
        assert [store.commit("a", n).version for n in (2, 3)] == [2, 3]
        assert store.get("a").create_revision == first.revision
        store.delete("a")
        assert store.commit("a", 4).version == 1
        assert store.get("a").create_revision > first.revision

    def test_a_commit_expecting_what_was_read_goes_through(self, store: Store) -> None:
        receipt = store.commit("a", 1, expect=None)
        receipt = store.commit("a", 2, expect=receipt)
        receipt = store.commit("a", 3, expect=store.get("a"))
        store.commit("a", 4, expect=receipt.revision)
        assert store.value("a") == 4

    def test_a_commit_expecting_something_else_is_refused_and_tells_what_stands_there(
        self, store: Store,
    ) -> None:
        old = store.commit("a", 1)
        new = store.commit("a", 2)
        with pytest.raises(Conflict) as caught:
            store.commit("a", 3, expect=old)
        assert caught.value.current == store.get("a")
        assert caught.value.details["revision"] == new.revision
        assert store.value("a") == 2

    @pytest.mark.parametrize("expect", [7, None])
    def test_expecting_what_is_not_so_is_a_conflict(self, store: Store, expect: Any) -> None:
        if expect is None:
            store.commit("a", 1)
        before = store.get("a")
        with pytest.raises(Conflict) as caught:
            store.commit("a", 2, expect=expect)
        assert caught.value.current == before == store.get("a")

    def test_a_deleted_key_is_expected_as_none_not_at_its_old_revision(self, store: Store) -> None:
        receipt = store.commit("a", 1)
        store.delete("a")
        with pytest.raises(Conflict):
            store.commit("a", 2, expect=receipt)
        store.commit("a", 2, expect=None)

    def test_a_refused_commit_leaves_no_trace(self, store: Store) -> None:
        before = store.commit("a", 1)
        with pytest.raises(Conflict):
            store.commit("a", 2, expect=None)
        assert store.commit("b", 1).revision == before.revision + 1

    def test_a_checkpoint_of_another_key_is_no_expectation(self, store: Store) -> None:
        receipt = store.commit("a", 1)
        with pytest.raises(Misuse):
            store.commit("b", 1, expect=receipt)

    def test_create_is_for_keys_that_do_not_exist(self, store: Store) -> None:
        receipt = store.create("a", 1)
        with pytest.raises(Conflict) as caught:
            store.create("a", 2)
        assert caught.value.current.revision == receipt.revision
        store.delete("a")
        assert store.create("a", 3).version == 1

    def test_delete_tells_whether_there_was_something(self, store: Store) -> None:
        store.commit("a", 1)
        assert store.delete("a") is True
        assert store.get("a") is None
        assert store.delete("a") is False

    def test_delete_under_an_expectation(self, store: Store) -> None:
        old = store.commit("a", 1)
        new = store.commit("a", 2)
        with pytest.raises(Conflict):
            store.delete("a", expect=old)
        assert store.delete("a", expect=new) is True

    def test_pop_gives_what_it_removes(self, store: Store) -> None:
        store.commit("a", [1])
        assert store.pop("a").value == [1]
        assert store.get("a") is None
        assert store.pop("a") is None

    def test_increment_counts_from_nothing(self, store: Store) -> None:
        assert store.increment("n") == 1
        assert store.increment("n", 41) == 42
        assert store.increment("n", -50) == -8
        assert store.value("n") == -8

    @pytest.mark.parametrize("value", ["1", 1.0, None, True, [1], {"n": 1}])
    def test_only_an_integer_can_be_incremented(self, store: Store, value: Any) -> None:
        store.commit("n", value)
        with pytest.raises(InvalidValue):
            store.increment("n")
        assert store.value("n") == value

    def test_an_increment_beyond_64_bits_is_refused(self, store: Store) -> None:
        store.commit("n", 2**64 - 1)
        with pytest.raises(InvalidValue):
            store.increment("n")
        assert store.value("n") == 2**64 - 1

    def test_update_changes_what_stands_there(self, store: Store) -> None:
        store.update("seen", lambda seen: [*seen, 1], default=[])
        receipt = store.update("seen", lambda seen: [*seen, 2], default=[])
        assert store.get("seen").value == [1, 2]
        assert receipt.version == 2

    def test_update_is_done_again_when_somebody_was_faster(
        self, store: Store, another: Connect,
    ) -> None:
        other, seen = another(), []

        def change(value: Any) -> Any:
            seen.append(value)
            if len(seen) < 3:
                other.commit("n", len(seen) * 10)
            return value + 1

        store.update("n", change, default=0)
        assert seen == [0, 10, 20]
        assert store.value("n") == 21

    def test_many_commits_in_flight_all_take_effect_in_order(self, store: Store) -> None:
        futures = [store.submit("a", n) for n in range(100)]
        store.flush()
        receipts = [future.result(10) for future in futures]
        assert [receipt.version for receipt in receipts] == list(range(1, 101))
        assert store.value("a") == 99

    # --- values and keys ---

    @pytest.mark.parametrize("value", VALUES, ids=_name)
    def test_every_type_of_value_comes_back_as_it_was(self, store: Store, value: Any) -> None:
        store.commit("a", value)
        found = store.value("a")
        assert found == value
        assert type(found) is type(value)

    @pytest.mark.parametrize(("value", "place"), [
        ({"rows": [0, math.nan]}, r"value\['rows'\]\[1\]"), ([2**64], r"value\[0\]"),
        ({"m": {1: 2}}, r"value\['m'\]"), ([datetime(2024, 1, 1)], r"value\[0\]"),
        ({"f": object()}, r"value\['f'\]")])
    def test_what_cannot_be_stored_is_refused_with_its_place(
        self, store: Store, value: Any, place: str,
    ) -> None:
        with pytest.raises(InvalidValue, match=place):
            store.commit("a", value)
        assert store.get("a") is None

    @pytest.mark.parametrize("key", [
        "a", "orders/partition/3", "größe/数/🦆", "a b", "A/a", "orders/_lock/a", "a.b-c_d"])
    def test_keys_are_text_in_segments(self, store: Store, key: str) -> None:
        store.commit(key, key)
        assert store.get(key).key == key
        assert [found.key for found in store.list(key)] == [key]

    @pytest.mark.parametrize("letter", ["x", "é", "🦆"])
    def test_a_key_has_up_to_512_bytes(self, store: Store, letter: str) -> None:
        room = KEY_BYTES - self.prefix_bytes
        key = letter * (room // len(letter.encode()))
        store.commit(key, 1)
        assert store.get(key).key == key
        with pytest.raises(TooLarge):
            store.commit(key + letter, 1)

    def test_keys_that_look_alike_are_different_keys(self, store: Store) -> None:
        keys = ["é", "e\u0301", "a", "A", "1", "01", "1.0", "True"]  # composed and decomposed
        for key in keys:
            store.commit(key, key)
        assert [store.value(key) for key in keys] == keys

    @pytest.mark.parametrize("key", [
        "", "/a", "a/", "a//b", "a\nb", "a\x00b", "\x7f", "a\u2028b", "\ud800"])
    def test_what_is_no_key_is_refused(self, store: Store, key: str) -> None:
        with pytest.raises(InvalidKey):
            store.commit(key, 1)
        with pytest.raises(InvalidKey):
            store.get(key)

    def test_a_value_at_its_limit_is_stored_and_beyond_it_is_too_large(self, store: Store) -> None:
        store.commit("a", b"x" * (VALUE_BYTES - 5))
        assert len(store.value("a")) == VALUE_BYTES - 5
        with pytest.raises(TooLarge):
            store.commit("a", b"x" * VALUE_BYTES)

    @pytest.mark.parametrize("position", ["1", 1.0, True, 2**63])
    def test_a_position_is_an_integer(self, store: Store, position: Any) -> None:
        with pytest.raises(Misuse):
            store.commit("a", 1, position=position)

    def test_sources_name_what_a_commit_was_made_from(self, store: Store) -> None:
        source = store.commit("orders", 1)
        store.commit("totals", 1, sources=[source, ("orders", source.revision)])
        assert store.get("totals").sources == (("orders", source.revision),) * 2
