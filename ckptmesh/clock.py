"""Time as integers, and the one place that reads the machine's clocks.

Rule 1: time inside the store is an integer count of microseconds since 1970-01-01 UTC.
Rule 2: nothing outside this module and the edges reads a clock; `now` is an argument.

The store's clock is wall time at its start, advanced by CLOCK_BOOTTIME (which goes on while the
machine is suspended and which nobody can set), and never behind the last time in the log. So a
stepped wall clock neither expires anything early nor brings anything back.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from ckptmesh.errors import ClockSuspect, Misuse
from ckptmesh.limits import CLOCK_JUMP, TTL_MAX

Seconds = float | timedelta

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_YEAR_1, _YEAR_10000 = -62_135_596_800_000_000, 253_402_300_800_000_000
_BOOTTIME = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def boot_micros() -> int:
    """Microseconds since boot, suspended time included. Only differences mean anything."""
    return time.clock_gettime_ns(_BOOTTIME) // 1_000


def wall_micros() -> int:
    """Microseconds since 1970-01-01 UTC by the machine's wall clock."""
    return time.time_ns() // 1_000


def to_datetime(micros: int) -> datetime:
    """Store time as an aware UTC datetime."""
    return _EPOCH + timedelta(microseconds=micros)


def from_datetime(moment: datetime) -> int:
    """An aware datetime as store time. Raises `Misuse` for a naive one."""
    if moment.tzinfo is None:
        raise Misuse(
            f"{moment.isoformat()} has no time zone",
            hint="use datetime.now(timezone.utc) or moment.astimezone()",
        )
    return (moment - _EPOCH) // timedelta(microseconds=1)


def iso(micros: int) -> str:
    """Store time as ISO-8601 UTC, for people and for JSON. Any integer: what lies beyond the years
    1 to 9999 (only a stranger's request asks for such) is told as a number."""
    if not _YEAR_1 <= micros < _YEAR_10000:
        return f"{micros} µs after 1970"
    return to_datetime(micros).isoformat(timespec="microseconds").replace("+00:00", "Z")


def ttl_micros(ttl: Seconds) -> int:
    """A TTL in seconds or as a timedelta, in microseconds (1 to `TTL_MAX`). Raises `Misuse`."""
    seconds = ttl.total_seconds() if isinstance(ttl, timedelta) else ttl
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise Misuse(f"a TTL is a number of seconds or a timedelta, not {type(ttl).__name__}")
    if not 0 < seconds * 1_000_000 <= TTL_MAX:
        raise Misuse(f"a TTL is more than 0 and at most a century of seconds, not {seconds!r}")
    return max(1, round(seconds * 1_000_000))


class StoreClock:
    """The one clock of a store: monotonic, never behind the log, immune to a stepped wall clock.

    `floor`: the last time in the log, microseconds (0 for a new store).
    Raises `ClockSuspect` when the wall is more than 7 days ahead of a log that has a time at all,
    unless `accept_jump`.
    """

    def __init__(
        self,
        floor: int,
        *,
        accept_jump: bool = False,
        wall: Callable[[], int] = wall_micros,
        boot: Callable[[], int] = boot_micros,
    ) -> None:
        start = wall()
        if floor and start - floor > CLOCK_JUMP and not accept_jump:
            raise ClockSuspect(
                f"the clock says {iso(start)}, the log's last time is {iso(floor)}",
                wall=start, logged=floor,
            )
        self._boot = boot
        self._offset = max(start, floor) - boot()

    def now(self) -> int:
        """Microseconds; never less than any earlier answer, in this process or in the log."""
        return self._boot() + self._offset
