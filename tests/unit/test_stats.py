"""Counters: bounded memory, honest percentiles."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ckptmesh.errors import Conflict
from ckptmesh.stats import Histogram, OperationStats


@given(st.lists(st.integers(0, 10**12), min_size=1, max_size=200),
       st.sampled_from([1, 50, 99, 100]))
def test_a_percentile_is_never_below_the_true_one_and_at_most_an_eighth_above(
    values: list[int], percent: int
) -> None:
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    ordered = sorted(values)
    true = ordered[max(1, -(-len(values) * percent // 100)) - 1]
    assert true <= histogram.percentile(percent) <= true * 1.125


def test_small_numbers_are_exact() -> None:
    for value in range(16):
        histogram = Histogram()
        histogram.add(value)
        histogram.add(1_000)
        assert histogram.percentile(50) == value


def test_an_empty_histogram_says_zero() -> None:
    assert Histogram().percentile(99) == 0
    assert Histogram().mean == 0


def test_memory_stays_bounded_whatever_comes() -> None:
    histogram = Histogram()
    for power in range(200):
        histogram.add(2**power)
    histogram.add(-5)
    assert len(histogram._buckets) <= 8 * 62
    assert histogram.count == 201


def test_operations_are_counted_by_kind_with_their_errors() -> None:
    stats = OperationStats()
    stats.add("get", 0.001, None)
    stats.add("get", 0.003, None)
    stats.add("put", 0.002, Conflict("no"))
    found = stats.as_dict()
    assert found["operations"]["get"]["count"] == 2
    assert found["operations"]["get"]["max_ms"] == 3.0
    assert found["operations"]["put"]["errors"] == 1
    assert found["errors"] == {"Conflict": 1}
