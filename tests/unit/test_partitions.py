"""Partitions: the same everywhere, all of them listed, nothing outside of them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptmesh import InvalidKey, Misuse, TooLarge, partitions
from ckptmesh.limits import check_key

ROOT = Path(__file__).parent.parent.parent
NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


@pytest.mark.parametrize(("item", "told"), [  # by b2sum -l 64 of GNU coreutils
    ("customer-17", 0xDC08544B35D13A11), ("", 0xE4A6A0577479B2B4), ("Zürich", 0x707438FAA779D508),
    (17, 0x20398D138E4D7BB4), ("17", 0x20398D138E4D7BB4), (b"17", 0x20398D138E4D7BB4),
])
def test_the_hash_is_what_another_program_makes_of_the_same_bytes(
    item: str | bytes | int, told: int
) -> None:
    assert partitions.hash_of(item) == told


@pytest.mark.parametrize("seed", ["0", "1", "random"])
def test_the_hash_does_not_depend_on_the_process(seed: str) -> None:
    found = subprocess.run(
        [sys.executable, "-c", "from ckptmesh import partitions; "
         "print(partitions.by_hash('orders', 32).of('customer-17'))"],
        env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}, cwd=ROOT,
        capture_output=True, text=True, timeout=60, check=True)
    assert found.stdout.strip() == "orders/partition/17"


@given(st.integers(1, 200), st.text() | st.binary() | st.integers())
def test_everything_has_one_partition_and_it_is_listed(count: int, item: str | bytes | int) -> None:
    parts = partitions.by_hash("orders", count)
    assert parts.of(item) in parts.names
    assert len(parts) == len(set(parts)) == count
    assert parts.names == tuple(f"orders/partition/{n}" for n in range(count))
    for name in parts:
        check_key(name)


def test_items_are_spread_evenly() -> None:
    parts = partitions.by_hash("orders", 32)
    sizes = Counter(parts.of(n) for n in range(32_000))
    assert len(sizes) == 32
    assert 850 < min(sizes.values()) <= max(sizes.values()) < 1_150, "1,000 each, within 5 sigma"


def test_steps_and_a_function_of_ones_own_name_their_partitions() -> None:
    steps = partitions.by_step("nightly", ["extract", "load"])
    assert steps.of("load") == "nightly/partition/load"
    assert [*steps] == ["nightly/partition/extract", "nightly/partition/load"]
    regions = partitions.by("orders", ["eu", "us"], lambda row: row["region"])
    assert regions.of({"region": "us"}) == regions.name("us") == "orders/partition/us"
    shards = partitions.by("orders/raw", range(4), lambda number: number // 100)
    assert shards.of(399) == shards.name(3) == shards.name("3") == "orders/raw/partition/3"


@pytest.mark.parametrize("wrong", [
    lambda: partitions.by_hash("orders", 32).name(32),
    lambda: partitions.by_hash("orders", 32).name(-1),
    lambda: partitions.by_hash("orders", 32).name("03"),
    lambda: partitions.by_hash("orders", 32).of(1.5),
    lambda: partitions.by_hash("orders", 32).of(True),
    lambda: partitions.by_hash("orders", 32).of(None),
    lambda: partitions.by_hash("orders", 0), lambda: partitions.by_hash("orders", True),
    lambda: partitions.by_hash("orders", 2.0),
    lambda: partitions.by_step("orders", []), lambda: partitions.by_step("orders", ["a", "a"]),
    lambda: partitions.by_step("orders", "abc"), lambda: partitions.by_step("orders", ["a/b"]),
    lambda: partitions.by_step("orders", ["a"]).of("b"),
    lambda: partitions.by("orders", [1, "1"], str), lambda: partitions.by("orders", [None], str),
    lambda: partitions.by("orders", range(4), lambda number: number // 100).of(400),
    lambda: partitions.by_window("orders", 0), lambda: partitions.by_window("orders", -1),
    lambda: partitions.by_window("orders", "1h"),
    lambda: partitions.by_window("orders", HOUR, origin=datetime(2026, 1, 1)),
    lambda: partitions.by_window("orders", HOUR, origin=7),
    lambda: partitions.by_window("orders", HOUR).of(datetime(2026, 1, 1)),
    lambda: partitions.by_window("orders", HOUR).of(1_700_000_000),
    lambda: partitions.by_window("orders", HOUR).of("2026-11-21T12:00:00Z"),
    lambda: partitions.by_window("orders", HOUR).between(NOON, NOON - HOUR),
    lambda: partitions.by_window("orders", timedelta(days=7)).of(datetime(1, 1, 1, tzinfo=UTC)),
])
def test_what_is_no_partition_is_refused(wrong: Callable[[], object]) -> None:
    with pytest.raises(Misuse):
        wrong()


def test_a_refusal_names_the_bounds() -> None:
    with pytest.raises(Misuse, match=r"no partition 32 \(they are 0 to 31, 32 in all\)"):
        partitions.by_hash("orders", 32).name(32)
    with pytest.raises(TooLarge, match="65,537 partitions; the limit is 65,536"):
        partitions.by_hash("orders", 65_537)
    with pytest.raises(TooLarge, match="100,000 partitions"):
        partitions.by_window("orders", 1).between(NOON, NOON + timedelta(seconds=100_000))
    assert len(partitions.by_hash("orders", 65_536)) == 65_536


@pytest.mark.parametrize("make", [
    lambda: partitions.by_hash("_orders", 4), lambda: partitions.by_hash("", 4),
    lambda: partitions.by_step("orders", [""]), lambda: partitions.by_step("orders", ["a\n"]),
    lambda: partitions.by_window("a//b", 60)])
def test_what_would_be_no_key_is_refused(make: Callable[[], object]) -> None:
    with pytest.raises(InvalidKey):
        make()


def test_a_window_has_the_name_of_its_first_moment_in_utc() -> None:
    hours = partitions.by_window("orders", HOUR)
    name = "orders/partition/2026-11-21T12:00:00.000000Z"
    berlin = timezone(HOUR)
    assert hours.of(NOON) == hours.of(NOON + HOUR - timedelta(microseconds=1)) == name
    assert hours.of(datetime(2026, 11, 21, 13, 30, tzinfo=berlin)) == name
    assert hours.of(NOON + HOUR) != name
    assert hours.bounds(name) == (NOON, NOON + HOUR)
    weeks = partitions.by_window("orders", timedelta(days=7),
                                 origin=datetime(2026, 11, 16, tzinfo=UTC))  # a Monday
    assert weeks.of(NOON) == "orders/partition/2026-11-16T00:00:00.000000Z"
    assert weeks.of(datetime(1969, 12, 31, tzinfo=UTC)) == (
        "orders/partition/1969-12-29T00:00:00.000000Z")


moments = st.datetimes(datetime(1900, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))
widths = st.timedeltas(timedelta(microseconds=1), timedelta(days=400))


@given(moments, widths, moments)
def test_each_moment_is_within_its_window_and_windows_do_not_overlap(
    moment: datetime, width: timedelta, origin: datetime
) -> None:
    windows = partitions.by_window("orders", width, origin=origin)
    start, end = windows.bounds(windows.of(moment))
    assert start <= moment < end == start + width
    assert windows.width == width
    assert windows.of(start) == windows.of(end - timedelta(microseconds=1)) == windows.of(moment)
    assert windows.of(end) > windows.of(moment), "keys in order are moments in order"


@given(moments, widths, st.integers(0, 20), st.fractions(0, 1))
def test_all_windows_between_two_moments_are_listed(
    start: datetime, width: timedelta, count: int, part: float
) -> None:
    windows = partitions.by_window("orders", width)
    end = start + width * count + width * float(part)
    expected = sorted({windows.of(start + width * n) for n in range(count + 1)
                       if start + width * n < end}
                      | ({windows.of(end - timedelta(microseconds=1))} if end > start else set()))
    assert windows.between(start, end) == expected


@pytest.mark.parametrize("name", [
    "", "orders", "orders/partition/3", "other/partition/2026-11-21T12:00:00.000000Z",
    "orders/partition/2026-11-21T12:00:00Z", "orders/partition/2026-11-21T12:00:00.000000",
    "orders/partition/2026-11-21T12:30:00.000000Z", "orders/partition/9999-13-01"])
def test_what_is_no_window_has_no_bounds(name: str) -> None:
    with pytest.raises(Misuse, match="is no window of 'orders'"):
        partitions.by_window("orders", HOUR).bounds(name)
