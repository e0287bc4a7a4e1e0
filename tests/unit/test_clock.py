"""Time: the store's one clock over faked ones, and the conversions at the edge."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptmesh import clock
from ckptmesh.clock import StoreClock, from_datetime, iso, to_datetime, ttl_micros
from ckptmesh.errors import ClockSuspect, Misuse
from ckptmesh.limits import CLOCK_JUMP, SECOND, TTL_MAX

YEAR = 365 * 86_400 * SECOND
NOW = 1_700_000_000 * SECOND


class Machine:
    """A wall clock that anybody may set, and time since boot, which runs on."""

    def __init__(self) -> None:
        self.wall = NOW
        self.boot = 5 * SECOND

    def pass_time(self, micros: int) -> None:
        self.wall += micros
        self.boot += micros

    def start(self, floor: int, **options: Any) -> StoreClock:
        return StoreClock(floor, wall=lambda: self.wall, boot=lambda: self.boot, **options)


def test_a_new_store_begins_at_wall_time_and_runs_with_the_machine() -> None:
    machine = Machine()
    store = machine.start(0)
    assert store.now() == NOW
    machine.pass_time(7)
    assert store.now() == NOW + 7


@pytest.mark.fault(40)
@pytest.mark.parametrize("step", [YEAR, -YEAR, SECOND])
def test_a_wall_clock_that_is_set_while_the_store_runs_changes_nothing(step: int) -> None:
    machine = Machine()
    store = machine.start(NOW - 5)
    machine.wall += step
    machine.pass_time(3)
    assert store.now() == NOW + 3


@pytest.mark.fault(44)
def test_time_goes_on_while_the_machine_is_suspended() -> None:
    machine = Machine()
    store = machine.start(NOW)
    machine.pass_time(3_600 * SECOND)
    assert store.now() == NOW + 3_600 * SECOND


@pytest.mark.fault(41)
def test_a_start_with_the_wall_behind_the_log_goes_on_from_the_log() -> None:
    machine = Machine()
    machine.wall -= YEAR
    store = machine.start(NOW)
    assert store.now() == NOW
    machine.pass_time(9)
    assert store.now() == NOW + 9


@pytest.mark.fault(40)
def test_a_start_far_ahead_of_the_log_is_refused_unless_it_is_accepted() -> None:
    machine = Machine()
    machine.start(NOW - CLOCK_JUMP)
    with pytest.raises(ClockSuspect) as suspect:
        machine.start(NOW - CLOCK_JUMP - 1)
    assert suspect.value.details == {"wall": NOW, "logged": NOW - CLOCK_JUMP - 1}
    assert machine.start(NOW - YEAR, accept_jump=True).now() == NOW


def test_the_machines_own_clocks_run_forward() -> None:
    assert clock.wall_micros() > NOW
    first = clock.boot_micros()
    assert 0 < first <= clock.boot_micros()
    assert abs(StoreClock(0).now() - clock.wall_micros()) < 60 * SECOND


@given(st.integers(-62_135_596_800_000_000, 253_402_300_799_999_999))
def test_store_time_and_datetimes_go_back_and_forth(micros: int) -> None:
    moment = to_datetime(micros)
    assert moment.tzinfo is UTC
    assert from_datetime(moment) == micros
    east = moment.astimezone(timezone(timedelta(hours=1))) if 0 < micros < NOW else moment
    assert from_datetime(east) == micros
    assert datetime.fromisoformat(iso(micros)) == moment


def test_a_naive_datetime_is_refused_with_what_to_write_instead() -> None:
    with pytest.raises(Misuse, match=r"timezone\.utc"):
        from_datetime(datetime(2024, 1, 1))


@pytest.mark.parametrize("micros", [2**63 - 1, -(2**63), 253_402_300_800_000_000])
def test_a_time_beyond_the_calendar_is_told_as_a_number(micros: int) -> None:
    assert iso(micros) == f"{micros} µs after 1970"


@pytest.mark.parametrize(("ttl", "micros"), [
    (1, SECOND), (0.5, SECOND // 2), (timedelta(minutes=1), 60 * SECOND), (1e-9, 1),
    (timedelta(microseconds=1), 1), (TTL_MAX / SECOND, TTL_MAX)])
def test_a_ttl_is_seconds_or_a_timedelta(ttl: Any, micros: int) -> None:
    assert ttl_micros(ttl) == micros


@pytest.mark.parametrize("ttl", [0, -1, float("nan"), float("inf"), TTL_MAX / SECOND + 1,
                                 timedelta(0), timedelta(days=-1), True, "5", None])
def test_what_is_no_ttl_is_refused(ttl: Any) -> None:
    with pytest.raises(Misuse):
        ttl_micros(ttl)
