"""Transactions: several keys at once, all or none, under conditions."""

# ruff: noqa: PT012 - leaving the block of a transaction is what raises

from __future__ import annotations

from typing import Any

import pytest

from ckptmesh.errors import Conflict, InvalidValue, Misuse, TooLarge
from ckptmesh.limits import TRANSACTION_MUTATIONS
from ckptmesh.testing.conformance.base import Base, Connect, Store


class Transacting(Base):
    """All conditions of single keys and prefixes; every mutation."""

    def test_all_of_a_transaction_takes_effect_as_one_revision(self, store: Store) -> None:
        store.commit("old", 1)
        store.commit("kept", 1)
        before = store.increment("n", 5)
        with store.transaction() as tx:
            tx.put("a", 1, position=10)
            tx.put("b", 2)
            tx.delete("old")
            tx.delete("missing")
            tx.increment("n", 2)
        found = store.get_many(["a", "b", "old", "n"])
        assert [each and each.value for each in found.values()] == [1, 2, None, before + 2]
        assert {found[key].revision for key in ("a", "b", "n")} == {tx.revision}
        assert found["a"].position == 10
        assert tx.receipts["a"].revision == tx.receipts["b"].revision == tx.revision
        assert tx.receipts["b"].key == "b"
        assert tx.results == {"old": True, "missing": False, "n": before + 2}
        assert store.value("kept") == 1

    def test_nothing_of_a_refused_transaction_takes_effect(self, store: Store) -> None:
        last = store.commit("a", 1)
        with pytest.raises(Conflict) as caught, store.transaction() as tx:
            tx.put("b", 2)
            tx.delete("a")
            tx.expect("c", 99)
        assert caught.value.details["key"] == "c"
        assert store.get("b") is None
        assert store.get("a").revision == last.revision
        assert store.commit("d", 1).revision == last.revision + 1

    def test_a_mutation_that_cannot_be_done_undoes_the_others(self, store: Store) -> None:
        store.commit("text", "x")
        with pytest.raises(InvalidValue), store.transaction() as tx:
            tx.put("a", 1)
            tx.increment("text")
        assert store.get("a") is None

    def test_an_error_inside_the_block_commits_nothing(self, store: Store) -> None:
        with pytest.raises(RuntimeError, match="mine"), store.transaction() as tx:
            tx.put("a", 1)
            raise RuntimeError("mine")
        assert store.get("a") is None

    def test_a_transaction_may_only_look(self, store: Store) -> None:
        last = store.commit("a", 1)
        with store.transaction() as tx:
            tx.expect(last)
        with pytest.raises(Conflict), store.transaction() as tx:
            tx.expect("a", None)
        assert store.commit("b", 1).revision == last.revision + 1

    @pytest.mark.parametrize("form", ["checkpoint", "receipt", "revision", "none"])
    def test_an_expectation_holds_or_refuses(self, store: Store, form: str) -> None:
        def expectation() -> tuple[Any, ...]:
            if form == "none":
                return ("b", None)
            found = store.get("a")
            return {"checkpoint": (found,), "receipt": (receipt,),
                    "revision": ("a", receipt.revision)}[form]

        receipt = store.commit("a", 1)
        asked = expectation()
        with store.transaction() as tx:
            tx.expect(*asked)
            tx.put("out", 1)
        store.commit("a", 2)
        store.commit("b", 2)
        with pytest.raises(Conflict), store.transaction() as tx:
            tx.expect(*asked)
            tx.put("out", 2)
        assert store.value("out") == 1

    def test_a_mutation_may_carry_its_own_expectation(self, store: Store) -> None:
        receipt = store.commit("a", 1)
        with store.transaction() as tx:
            tx.put("a", 2, expect=receipt)
            tx.put("b", 1, expect=None)
        with pytest.raises(Conflict), store.transaction() as tx:
            tx.delete("b", expect=receipt.revision)
            tx.put("c", 1)
        assert store.get("c") is None

    def test_existence_can_be_demanded(self, store: Store) -> None:
        with pytest.raises(Conflict), store.transaction() as tx:
            tx.exists("a")
            tx.put("out", 1)
        store.commit("a", 1)
        with store.transaction() as tx:
            tx.exists("a")
            tx.put("out", 1)
        assert store.value("out") == 1

    def test_an_unchanged_prefix_can_be_demanded(self, store: Store) -> None:
        mark = store.commit("orders/1", 1)
        store.commit("orders2", 1)
        store.commit("other", 1)
        with store.transaction() as tx:
            tx.unchanged("orders", mark)
            tx.put("out", 1)
        mark = store.commit("orders/1/a", 1)
        with pytest.raises(Conflict), store.transaction() as tx:
            tx.unchanged("orders", mark.revision - 1)
            tx.put("out", 2)
        with store.transaction() as tx:
            tx.unchanged("orders", mark.revision)
            tx.unchanged("orders/1/b", 1 if mark.revision < 1 else mark.revision)
            tx.put("out", 3)
        store.delete("orders/1")
        with pytest.raises(Conflict), store.transaction() as tx:
            tx.unchanged("orders", mark)
            tx.put("out", 4)
        assert store.value("out") == 3

    def test_conditions_are_of_the_moment_of_the_commit(
        self, store: Store, another: Connect,
    ) -> None:
        receipt, other = store.commit("a", 1), another()
        with pytest.raises(Conflict), store.transaction() as tx:
            tx.expect(receipt)
            tx.put("a", 2)
            other.commit("a", "faster")
        assert store.value("a") == "faster"

    def test_a_key_is_named_once(self, store: Store) -> None:
        with pytest.raises(Misuse), store.transaction() as tx:
            tx.put("a", 1)
            tx.delete("a")
        assert store.get("a") is None

    def test_a_transaction_is_used_once(self, store: Store) -> None:
        with store.transaction() as tx:
            tx.put("a", 1)
        with pytest.raises(Misuse):
            tx.put("b", 1)

    def test_a_transaction_takes_4096_mutations_and_no_more(self, store: Store) -> None:
        with store.transaction() as tx:
            for n in range(TRANSACTION_MUTATIONS):
                tx.put(f"a/{n}", n)
        assert store.get(f"a/{TRANSACTION_MUTATIONS - 1}").revision == tx.revision
        with pytest.raises(TooLarge), store.transaction() as tx:
            for n in range(TRANSACTION_MUTATIONS + 1):
                tx.put(f"b/{n}", n)
        assert store.get("b/0") is None
