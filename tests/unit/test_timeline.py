"""The ring of commits and the index of keys, against lists and sorted sets."""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptmesh.entries import SMALL, pack_version
from ckptmesh.limits import under
from ckptmesh.messages import DELETE, PUT, Change, Commit, Version
from ckptmesh.timeline import Block, KeyIndex, Ring, commit_of, cost


def commit(revision: int, time: int = 0, value: bytes = b"v") -> Commit:
    version = Version(value, revision, revision, 1, time)
    return Commit(revision, 1, time, (Change(0, PUT, "key", version),))


def fields_of(commit: Commit) -> list[Any]:
    """What a ring is given of a commit."""
    fields: list[Any] = [commit.time, commit.epoch, commit.session, commit.number, commit.results]
    for _, kind, key, version in commit.changes:
        fields += (kind, key, None if version is None else pack_version(version))
    return fields


VERSIONS = st.builds(
    Version, st.binary(max_size=5) | st.just(bytes(SMALL + 1)), st.integers(1, 2**62),
    st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**62),
    *[st.none() | st.integers(0, 9)] * 4,
    st.sampled_from([(), (("a", 1), ("b", 2))]))
COMMITS = st.builds(
    Commit, st.just(1), st.integers(0, 9), st.integers(0, 9),
    st.lists(st.tuples(st.sampled_from("ab"), st.none() | VERSIONS), max_size=3).map(
        lambda drawn: tuple(Change(i, PUT if version else DELETE, key, version)
                            for i, (key, version) in enumerate(drawn))),
    st.binary(max_size=2), st.integers(0, 9), st.sampled_from([(), (1,), (2, 3)]))


@given(COMMITS)
def test_a_commit_comes_back_from_a_ring_as_it_was_and_costs_the_same(commit: Commit) -> None:
    ring = Ring()
    row = ring.append(fields_of(commit))
    assert commit_of(1, row) == ring[1] == commit
    assert ring.bytes == row[0] == cost(commit)
    assert all(type(change.version) in (Version, type(None)) for change in ring[1].changes)


def block_of(commits: list[Commit]) -> Block:
    """Commits of one plain put each, by columns."""
    changes = [commit.changes[0] for commit in commits]
    return Block(
        commits[0].revision, [commit.time for commit in commits],
        [commit.epoch for commit in commits], [commit.session for commit in commits],
        [commit.number for commit in commits], [commit.results for commit in commits],
        [change.key for change in changes],
        [pack_version(change.version) for change in changes])  # type: ignore[misc,arg-type]


@given(st.lists(st.integers(0, 8), max_size=60), st.integers(1, 5), st.sampled_from([0, 8, 64]))
def test_a_ring_is_a_list_that_loses_its_head(steps: list[int], first: int, few: int) -> None:
    ring, model = Ring(first), [commit(0)][:0]
    ring._FEW = few  # blocks behind rows behind blocks, or most of them rows
    revision = first
    for step in steps:
        if step in (0, 1) and model:
            dropped_time, dropped_keys = ring.popleft()
            assert (dropped_time, *dropped_keys) == (model.pop(0).time, "key")
        elif step in (2, 3) and model:  # so many commits, and then the bytes of half of them
            count = len(model) - step
            size = ring.bytes if step == 2 else ring.bytes // 2
            dropped = []
            while model and (len(model) > count or sum(map(cost, model)) > size):
                dropped.append(model.pop(0))
            keys, time = ring.cut(count, size)
            assert keys == ["key"] * len(dropped)
            assert time == (dropped[-1].time if dropped else None)
        elif step < 6:
            model.append(commit(revision, revision * 10))
            assert commit_of(revision, ring.append(fields_of(model[-1]))) == model[-1]
            revision += 1
        else:
            many = [commit(at, at * 10) for at in range(revision, revision + step)]
            ring.extend(block_of(many))
            model += many
            revision += step
        assert len(ring) == len(model)
        assert ring.bytes == sum(map(cost, model))
        assert list(ring.after(ring.first - 1)) == model
        assert ring.first == revision - len(model)
    for have in model:
        assert ring[have.revision] == have
        assert list(ring.after(have.revision)) == [c for c in model if c.revision > have.revision]
    for time in range(0, revision * 10 + 10, 5):
        assert ring.not_later(time) == max(
            (c.revision for c in model if c.time <= time), default=ring.first - 1)


def test_a_ring_cuts_off_what_it_dropped_once_that_is_the_greater_part() -> None:
    ring = Ring()
    for revision in range(1, 3_001):
        ring.append(fields_of(commit(revision, revision)))
    for revision in range(1, 2_501):
        assert ring.popleft() == (revision, ("key",))
        assert ring[revision + 1].revision == revision + 1
    assert [c.revision for c in ring.after(2_995)] == [2_996, 2_997, 2_998, 2_999, 3_000]
    assert ring.not_later(2_700) == 2_700
    assert ring.not_later(2_400) == 2_500, "the floor: nothing in the ring is as old"


@pytest.mark.parametrize("by", ["one by one", "at once", "in bytes", "in turns"])
def test_a_ring_of_rows_and_blocks_in_turns_loses_its_head_wherever_that_is(by: str) -> None:
    ring, model = Ring(), [commit(0)][:0]
    # A block behind nothing, behind a block, behind rows that were partly dropped, and one too
    # small for that; rows behind each.
    for kind, count in [("block", 3), ("rows", 40), ("block", 64), ("block", 100), ("rows", 1_100),
                        ("block", 63), ("rows", 2), ("block", 64), ("rows", 7)]:
        begin = len(model) + 1
        many = [commit(at, at * 10) for at in range(begin, begin + count)]
        if kind == "block":
            ring.extend(block_of(many))
        else:
            for each in many:
                ring.append(fields_of(each))
        model += many
        if begin == 4:
            assert [ring.popleft() for _ in range(5)] == [
                (at * 10, [*keys]) if at < 4 else (at * 10, tuple(keys))
                for at, keys in ((at, ["key"]) for at in range(1, 6))]
    left = model[5:]
    one = cost(model[0])
    while left:
        assert [ring[at].revision for at in (left[0].revision, left[-1].revision)] == [
            left[0].revision, left[-1].revision]
        for at in {left[0].revision - 1, left[len(left) // 2].revision, left[-1].revision}:
            assert [c.revision for c in ring.after(at)] == [*range(at + 1, len(model) + 1)]
        count = {"one by one": 1, "at once": 97, "in bytes": 41}.get(by, len(left) % 90 + 1)
        count = min(count, len(left))
        if by == "one by one":
            ring.popleft()
        elif by == "in bytes":
            assert ring.cut(10**6, one * (len(left) - count)) == (
                ["key"] * count, left[count - 1].time)
        else:
            assert ring.cut(len(left) - count, 2**40)[1] == left[count - 1].time
        left = left[count:]
        assert (len(ring), ring.bytes) == (len(left), one * len(left))
    assert ring.first == len(model) + 1
    assert ring.cut(0, 0) == ([], None)
    ring.extend(block_of([commit(at) for at in range(ring.first, ring.first + 9)]))
    assert [c.revision for c in ring.after(ring.first)] == [*range(ring.first + 1, ring.first + 9)]


def test_what_a_ring_dropped_holds_no_memory() -> None:
    ring = Ring()
    tracemalloc.start()
    try:
        for revision in range(1, 101):
            ring.append(fields_of(commit(revision, revision, bytes(100_000))))
        full = tracemalloc.get_traced_memory()[0]
        for _ in range(90):
            ring.popleft()
        left = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert left < full / 5, "values wait for no list to be cut"


@pytest.mark.parametrize(("changes", "least"), [(1, 500), (4_096, 1_500_000)])
def test_the_cost_of_a_commit_counts_each_change_and_not_its_bytes_alone(
        changes: int, least: int) -> None:
    many = Commit(1, 1, 1, tuple(
        Change(i, PUT, f"k{i}", Version(b"", 1, 1, 1, 1)) for i in range(changes)))
    assert least < cost(many) < 2 * least


def test_the_cost_of_a_commit_counts_sources_and_values() -> None:
    sources = tuple(("source/key", i) for i in range(256))
    plain = Commit(1, 1, 1, (Change(0, PUT, "k", Version(b"", 1, 1, 1, 1)),))
    rich = Commit(1, 1, 1, (Change(0, PUT, "k", Version(b"x" * 1_000, 1, 1, 1, 1,
                                                        sources=sources)),))
    gone = Commit(1, 1, 1, (Change(0, DELETE, "k", None),))
    assert cost(rich) >= cost(plain) + 1_000 + 256 * 100
    assert cost(gone) == cost(plain), "no value, no difference"


KEYS = st.sampled_from([
    "a", "a-b", "a/b", "a/b/c", "a/c", "a0", "ab", "b", "b/a", "b/é", "b/\U0001f600", "c"])


@given(st.lists(st.tuples(st.booleans(), KEYS, st.booleans()), max_size=40), KEYS, KEYS,
       st.frozensets(KEYS), st.sampled_from([0, 2, 64]), st.sampled_from([0, 1, 3, 99]))
def test_an_index_of_keys_is_a_sorted_set(
        steps: list[tuple[bool, str, bool]], prefix: str, after: str, begin: frozenset[str],
        few: int, fresh: int) -> None:
    index, model = KeyIndex(), set(begin)
    index._FEW, index._FRESH = few, fresh  # every way of settling, with few keys
    index.fill(begin)
    for add, key, ask in steps:
        if add and key not in model:
            index.add(key)
            model.add(key)
        elif not add and key in model:
            index.remove(key)
            model.discard(key)
        if ask:
            assert list(index.under("")) == sorted(model)
    for start in ("", after):
        assert list(index.under(prefix, start)) == sorted(
            key for key in model if under(prefix, key) and key > start)


def test_an_index_that_nobody_reads_holds_no_more_than_its_keys() -> None:
    index = KeyIndex()
    for number in range(50_000):
        index.add(f"k{number}")
        if number >= 10:
            index.remove(f"k{number - 10}")
    assert len(index._sorted) + len(index._fresh) + len(index._gone) < 30_000
    assert list(index.under("")) == [f"k{number}" for number in range(49_990, 50_000)]
