"""Partitions: which part of a pipeline something belongs to, and the key where that part is kept.

    from ckptmesh import partitions
    parts = partitions.by_hash("orders", 32)
    parts.of("customer-17")                      # "orders/partition/17", here and everywhere
    parts.names                                  # all 32

Rule 1: the same thing is in the same partition in every process, on every machine, in every version
        of Python; nothing here reads a clock, chance or Python's own `hash`.
Rule 2: a name is a key: what is kept of a partition is committed there, and locked by that name.
Rule 3: there are no partitions but those that were declared; anything else is `Misuse`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from ckptmesh.clock import Seconds, from_datetime, iso, to_datetime, ttl_micros
from ckptmesh.errors import Misuse, TooLarge
from ckptmesh.limits import PARTITIONS, check_key

__all__ = ["Partitions", "Windows", "by", "by_hash", "by_step", "by_window", "hash_of"]

SEGMENT = "partition"  # of a key, between a pipeline's name and that of the partition


class Partitions:
    """A fixed number of partitions. Made by `by_hash`, `by_step` and `by`.

    `names`: all of them, in the order in which they were declared.
    """

    def __init__(self, pipeline: str, labels: Iterable[str | int], choose: Callable[[Any], Any]
                 ) -> None:
        self.pipeline, self._choose = pipeline, choose
        found = [_label(label) for label in labels]
        if not found or len({*found}) < len(found):
            raise Misuse("partitions have names, each of its own" if found else
                         "there is at least one partition")
        _bounded(len(found))
        self._names = {label: _name(pipeline, label) for label in found}
        self.names = tuple(self._names.values())

    def name(self, label: str | int) -> str:
        """The key of one partition, given its number or what it is called. Raises `Misuse` where
        there is none."""
        name = self._names.get(_label(label))
        if name is None:
            known = [*self._names]
            raise Misuse(f"{self.pipeline!r} has no partition {label!r:.80}",
                         hint=f"they are {known[0]} to {known[-1]}, {len(known)} in all")
        return name

    def of(self, item: Any) -> str:
        """The key of the partition that something belongs to. Raises `Misuse`, and what a function
        of your own raises."""
        return self.name(self._choose(item))

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)


class Windows:
    """Partitions of time: each has the length `width` and the name of its first moment, in UTC.
    Made by `by_window`. Names in order are moments in order."""

    def __init__(self, pipeline: str, width: Seconds, origin: datetime) -> None:
        self.pipeline = pipeline
        self._width, self._origin = ttl_micros(width), from_datetime(origin)
        _name(pipeline, iso(0))

    @property
    def width(self) -> timedelta:
        """How long each is."""
        return timedelta(microseconds=self._width)

    def of(self, moment: datetime) -> str:
        """The key of the window that holds an aware datetime. Raises `Misuse` for a naive one."""
        return self._named(self._start(moment))

    def between(self, start: datetime, end: datetime) -> list[str]:
        """The keys of all windows that hold a moment from `start` up to, and without, `end`. Raises
        `Misuse`; `TooLarge` for more than 65,536."""
        first, last = self._start(start), from_datetime(_moment(end))
        if last < from_datetime(start):
            raise Misuse(f"from {start.isoformat()} to {end.isoformat()} time runs backwards")
        if last == from_datetime(start):
            return []
        starts = range(first, last, self._width)
        _bounded(len(starts))
        return [self._named(each) for each in starts]

    def bounds(self, name: str) -> tuple[datetime, datetime]:
        """The first moment of a window, given its key, and the first one after it; aware, UTC.
        Raises `Misuse` where there is none of this name."""
        front, _, label = name.rpartition("/")
        try:
            start = from_datetime(datetime.fromisoformat(label))
            if front == f"{self.pipeline}/{SEGMENT}" and self._named(self._floor(start)) == name:
                return to_datetime(start), to_datetime(start + self._width)
        except (ValueError, OverflowError, Misuse):
            pass
        raise Misuse(f"{name!r:.80} is no window of {self.pipeline!r}",
                     hint=f"one is {self.of(to_datetime(self._origin))}")

    def _start(self, moment: datetime) -> int:
        return self._floor(from_datetime(_moment(moment)))

    def _floor(self, micros: int) -> int:
        return micros - (micros - self._origin) % self._width

    def _named(self, start: int) -> str:
        try:
            to_datetime(start)
        except OverflowError:
            raise Misuse("the window begins before the year 1") from None
        return _name(self.pipeline, iso(start))


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def by_hash(pipeline: str, count: int) -> Partitions:
    """`count` partitions, 0 to `count` - 1, among which items are spread by `hash_of`. Another
    count spreads them anew. Raises `Misuse`, `TooLarge` beyond 65,536, `InvalidKey`."""
    if type(count) is not int or count < 1:
        raise Misuse(f"a number of partitions is an integer from 1 up, not {count!r:.80}")
    _bounded(count)
    return Partitions(pipeline, range(count), lambda item: hash_of(item) % count)


def by_step(pipeline: str, steps: Iterable[str]) -> Partitions:
    """A partition for each step, called as it is. Raises as `by_hash`."""
    return by(pipeline, steps, lambda step: step)


def by(pipeline: str, labels: Iterable[str | int], choose: Callable[[Any], str | int]
       ) -> Partitions:
    """Partitions called `labels`, each a string without "/" or an integer, among which `choose`
    decides: it is given an item and returns a label. Raises as `by_hash`."""
    if isinstance(labels, str):  # its characters would be taken for labels
        raise Misuse(f"several partitions are declared, not the one {labels!r:.80}",
                     hint="write them as a list: [label]")
    return Partitions(pipeline, labels, choose)


def by_window(pipeline: str, width: Seconds, *, origin: datetime = _EPOCH) -> Windows:
    """Partitions of time, `width` long (seconds or timedelta, to the microsecond, up to a century).

    `origin`: an aware datetime at which one begins, and so all others: 1970-01-01 UTC, a Thursday,
    unless told. A day is 24 hours in UTC, whatever clocks on walls show. Raises `Misuse`,
    `InvalidKey`.
    """
    return Windows(pipeline, width, _moment(origin))


def hash_of(item: str | bytes | int) -> int:
    """A hash of 64 bits: BLAKE2b (RFC 7693) with a digest of 8 bytes, read big-endian, of the
    bytes, of the text in UTF-8, or of the decimal digits; so 17, "17" and b"17" are the same.
    `printf 17 | b2sum -l 64` tells it too. Raises `Misuse` for anything else."""
    if isinstance(item, bool) or not isinstance(item, str | bytes | int):
        raise Misuse(f"a hash is of a string, bytes or an integer, not {type(item).__name__}",
                     hint="write str(item), if it is the same text everywhere")
    data = item if isinstance(item, bytes) else str(item).encode(errors="surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")


def _label(label: Any) -> str:
    if isinstance(label, bool) or not isinstance(label, str | int):
        raise Misuse(f"a partition is called by a string or an integer, not {label!r:.80}")
    return str(label)


def _name(pipeline: str, label: str) -> str:
    if "/" in label:
        raise Misuse(f"{label!r:.80} cannot be the name of a partition: it holds a '/'")
    name = f"{pipeline}/{SEGMENT}/{label}"
    check_key(name)
    return name


def _moment(moment: Any) -> datetime:
    if not isinstance(moment, datetime):
        raise Misuse(f"a window holds aware datetimes, not {moment!r:.80}",
                     hint="use datetime.now(timezone.utc) or moment.astimezone()")
    return moment


def _bounded(count: int) -> None:
    if count > PARTITIONS:
        raise TooLarge(f"{count:,} partitions; the limit is {PARTITIONS:,}", size=count,
                       limit=PARTITIONS)
