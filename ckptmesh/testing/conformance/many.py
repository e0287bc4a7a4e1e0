"""Many commits in one call: each as it would be alone, all of them or none."""

from __future__ import annotations

from typing import Any

import pytest

from ckptmesh.backends.base import Capability
from ckptmesh.errors import Conflict, InvalidKey, InvalidValue, LeaseLost, Misuse, TooLarge
from ckptmesh.limits import COMMIT_MANY
from ckptmesh.testing.conformance.base import BRIEF, Base, Store, needs, until
from ckptmesh.testing.conformance.following import take

PAIRS = [(f"{'ab'[n % 2]}/{n % 8}", n) for n in range(20)]  # eight keys, again and again
VERSIONS = [n // 8 + 1 for n in range(20)]


class Many(Base):
    """`commit_many`."""

    @pytest.mark.parametrize("count", [1, 3, 20])
    def test_each_of_many_commits_has_a_revision_of_its_own_in_their_order(
            self, store: Store, count: int) -> None:
        before = store.commit("before", 0)
        receipts = store.commit_many(PAIRS[:count])
        assert [each.key for each in receipts] == [key for key, _ in PAIRS[:count]]
        assert [each.version for each in receipts] == VERSIONS[:count]
        assert [each.revision for each in receipts] == [
            receipts[0].revision + n for n in range(count)]
        assert receipts[0].revision > before.revision
        assert {(each.epoch, each.time) for each in receipts} == {
            (before.epoch, receipts[0].time)}
        assert store.commit("after", 0).revision > receipts[-1].revision
        last = {key: (value, receipt.revision, receipt.version)
                for (key, value), receipt in zip(PAIRS, receipts, strict=False)}
        assert {each.key: (each.value, each.revision, each.version)
                for each in store.list() if "/" in each.key} == last

    def test_receipts_of_many_commits_are_a_sequence_of_them(self, store: Store) -> None:
        receipts = store.commit_many(PAIRS)
        listed = [*receipts]
        assert receipts == listed
        assert len(receipts) == 20
        assert receipts[-1] == receipts[19] == listed[-1]
        assert receipts[3:9:2] == listed[3:9:2]
        assert receipts[::-1] == listed[::-1] == [*reversed(receipts)]
        assert receipts != listed[1:]
        assert listed[7] in receipts
        for wrong in (20, -21):
            with pytest.raises(IndexError):
                receipts[wrong]
        found = store.commit(PAIRS[19][0], "next", expect=receipts[19])
        assert found.version == receipts[19].version + 1

    def test_many_commits_go_on_where_others_were(self, store: Store) -> None:
        keys = [f"k{n}" for n in range(12)]
        for again in range(1, 4):
            assert [each.version for each in store.commit_many(dict.fromkeys(keys, again))] == (
                [2 * again - 1] * 12)
            assert store.commit("k3", "alone").version == 2 * again
            for key in {*keys} - {"k3"}:
                store.commit(key, "alone")
        store.delete("k5")
        store.commit("k6", "x" * 5_000, position=9)
        assert [each.version for each in store.commit_many([(key, 0) for key in keys])] == [
            7, 7, 7, 7, 7, 1, 8, 7, 7, 7, 7, 7]
        assert store.get("k6").position is None

    def test_values_of_every_kind_and_size_can_be_committed_together(self, store: Store) -> None:
        values = [None, True, -1, 2**63 - 1, 1.5, "é", b"\x00", [1, [2]], {"a": {"b": None}}, "",
                  "x" * 1_100, bytes(100_000), (1, 2), {3}]
        keys = [f"k{n}" for n in range(len(values))]
        store.commit_many(zip(keys, values, strict=True))
        assert [each.value for each in store.get_many(keys).values()] == values

    def test_no_commits_at_all_change_nothing(self, store: Store) -> None:
        last = store.commit("a", 1)
        nothings: list[Any] = [{}, [], iter(())]
        for nothing in nothings:
            receipts = store.commit_many(nothing)
            assert receipts == []
            assert len(receipts) == 0
        assert store.commit("a", 2).revision == last.revision + 1

    def test_an_expectation_of_many_commits_is_looked_at_once_before_the_first(
            self, store: Store) -> None:
        first = store.commit_many(PAIRS, expect={"a/0": None, "elsewhere": None})
        again = store.commit_many(PAIRS, expect={"a/0": first[16], "b/1": first[17].revision})
        for expect in ({"a/0": None}, {"a/0": again[0]}, {"b/1": again[17], "elsewhere": 1}):
            with pytest.raises(Conflict):
                store.commit_many(PAIRS, expect=expect)
        assert store.commit("last", 0).revision == again[-1].revision + 1, "nothing was written"

    @needs(Capability.LEASES)
    def test_many_commits_under_a_lease_that_is_gone_are_refused(self, store: Store) -> None:
        lease = store.create("lock", "me", ttl=60, lease=True)
        held = store.commit_many(PAIRS, guard=lease)
        store.delete("lock", guard=lease)
        with pytest.raises(LeaseLost):
            store.commit_many(PAIRS, guard=lease)
        assert store.get(PAIRS[-1][0]).revision == held[-1].revision

    def test_more_commits_than_a_request_holds_are_too_large(self, store: Store) -> None:
        pairs = [(f"k/{n % 700}", n) for n in range(COMMIT_MANY + 1)]
        with pytest.raises(TooLarge) as caught:
            store.commit_many(pairs)
        assert caught.value.details["limit"] == COMMIT_MANY
        assert store.get("k/0") is None
        receipts = store.commit_many(pairs[:-1])
        assert receipts[-1].revision - receipts[0].revision == COMMIT_MANY - 1
        assert store.value("k/0") == 700

    @pytest.mark.parametrize("wrong", [
        None, 5, "ab", ["ab"], ["a", "b"], [("a",)], [("a", 1, 2)], [("a", 1), None], [5], b"ab"])
    def test_what_is_no_pairs_is_misuse(self, store: Store, wrong: Any) -> None:
        with pytest.raises(Misuse):
            store.commit_many(wrong)

    @pytest.mark.parametrize("at", [0, 10, 19])
    def test_one_that_cannot_be_committed_undoes_the_others(self, store: Store, at: int) -> None:
        for key in ("", "/a", "a//b", "_a", 5, None):
            with pytest.raises(InvalidKey):
                store.commit_many([*PAIRS[:at], (key, 1), *PAIRS[at:]])
        with pytest.raises(TooLarge):
            store.commit_many([*PAIRS[:at], ("k" * 600, 1), *PAIRS[at:]])
        for value, path in ((object(), "value"), ({"a": [1, object()]}, "value['a'][1]"),
                            (2**64, "value"), ("\ud800", "value")):
            with pytest.raises(InvalidValue) as caught:
                store.commit_many([*PAIRS[:at], ("a/0", value), *PAIRS[at:]])
            assert caught.value.details["path"] == path
        assert [*store.list()] == []

    def test_many_commits_end_the_ttl_of_what_they_replace(self, store: Store) -> None:
        keys = [f"k{n}" for n in range(10)]
        for key in keys[:5]:
            store.commit(key, "brief", ttl=BRIEF)
        store.commit_many(dict.fromkeys(keys, "stays"))
        store.commit("other", 1, ttl=BRIEF)
        until(lambda: store.get("other") is None, "a TTL ended")
        assert [each.value for each in store.get_many(keys).values()] == ["stays"] * 10
        receipts = store.commit_many([("other", 2), *dict.fromkeys(keys, "again").items()])
        assert [each.version for each in receipts] == [1] + [3] * 5 + [2] * 5

    @needs(Capability.HISTORY, Capability.TIME_TRAVEL)
    def test_each_of_many_commits_is_a_part_of_the_past(self, store: Store) -> None:
        receipts = store.commit_many(PAIRS)
        assert [each.value for each in store.history("a/0")] == [16, 8, 0]
        for at in (0, 7, 8, 19):
            assert store.get(PAIRS[at][0], at=receipts[at]).value == at
            assert [each.revision for each in store.list(at=receipts[at])] == sorted_revisions(
                receipts[: at + 1])

    @needs(Capability.WATCH)
    def test_a_watch_sees_each_of_many_commits_once_and_in_order(self, store: Store) -> None:
        with store.watch("") as events, store.watch("b") as some:
            wanted = [store.commit("b/alone", 0)]
            for _ in range(3):
                wanted += store.commit_many(PAIRS)
                wanted.append(store.commit("a/alone", 1))
                store.delete("a/alone")
            last = store.commit("b/last", 1)
            found = take(events, len(wanted) + 4)
            puts = [each for each in found if each.kind == "put"]
            assert [(each.key, each.revision) for each in puts] == [
                (each.key, each.revision) for each in [*wanted, last]]
            revisions = [each.revision for each in found]
            assert revisions == sorted({*revisions})
            concerned = [each.revision for each in [*wanted, last] if each.key[0] == "b"]
            assert [each.revision for each in take(some, len(concerned))] == concerned
            assert events.get(timeout=0.05) is None
            assert some.get(timeout=0.05) is None

    @needs(Capability.WATCH)
    def test_a_watch_may_begin_in_the_midst_of_many_commits(self, store: Store) -> None:
        receipts = store.commit_many(PAIRS)
        for at in (0, 9, 18):
            with store.watch("a", since=receipts[at]) as events:
                wanted = [each.revision for each in receipts[at + 1 :] if each.key[0] == "a"]
                assert [each.revision for each in take(events, len(wanted))] == wanted


def sorted_revisions(receipts: Any) -> list[int]:
    """The revision of the newest of each key, by key."""
    newest = {each.key: each.revision for each in receipts}
    return [newest[key] for key in sorted(newest)]
