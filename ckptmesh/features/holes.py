"""What is done and what is claimed of a range of numbers, and how that is kept."""

from __future__ import annotations

from typing import Any, NamedTuple

from ckptmesh.errors import InvalidPayload, Misuse, TooLarge
from ckptmesh.features.spans import Spans
from ckptmesh.limits import INTERVAL_CLAIMS, POSITION_MAX, POSITION_MIN, VALUE_BYTES
from ckptmesh.views import Checkpoint, Receipt

_FORMAT = 1
_ROOM = 512 * 1024  # bytes of a stored value beside what is done: 10,000 claims, 38 bytes each


class Interval(NamedTuple):
    """The numbers from `start` up to, and without, `end`."""

    start: int
    end: int

    @property
    def numbers(self) -> range:
        """They, one by one."""
        return range(self.start, self.end)


class Claim(NamedTuple):
    start: int
    end: int
    worker: str


class State:
    """What one checkpoint holds."""

    def __init__(self, key: str, start: int) -> None:
        self.key, self.start = key, start
        self.done = Spans()
        self.claims: list[Claim] = []
        self.stands: Checkpoint | None = None

    @property
    def low(self) -> int:
        """All from the start up to here is done."""
        return self.done.gap(self.start)[0]

    @property
    def proof(self) -> Receipt | None:
        """The receipt of what stands there."""
        found = self.stands
        return None if found is None else Receipt(found.key, found.revision, found.epoch,
                                                  found.version, found.micros)

    def free(self, size: int, last: int) -> Interval | None:
        """The first numbers before `last` that are neither done nor claimed, at most `size`."""
        busy = self.done.copy()
        for claim in self.claims:
            busy.add(claim.start, claim.end)
        start, end = busy.gap(self.start)
        end = min(start + size, last if end is None else min(end, last))
        return Interval(start, end) if start < end else None

    def unclaim(self, start: int, end: int, worker: str | None = None) -> bool:
        """End the claims, of one worker or of all, on these numbers; whether there were any."""
        before, self.claims = self.claims, []
        for claim in before:
            left = Spans([claim.start, claim.end])
            if worker in (None, claim.worker):
                left.discard(start, end)
            self.claims += (Claim(*each, claim.worker) for each in left)
        return before != self.claims

    def dump(self) -> dict[str, Any]:
        """What is committed. Raises `TooLarge`."""
        done = self.done.dump()
        if len(done) > VALUE_BYTES - _ROOM:
            raise TooLarge(
                f"{self.key!r}: what is done is in {len(self.done):,} pieces, {len(done):,} bytes; "
                f"the limit is {VALUE_BYTES - _ROOM:,}",
                hint="let workers claim, which leaves few holes; finish larger intervals at a "
                     "time; or split the range over several keys",
                key=self.key, size=len(done), limit=VALUE_BYTES - _ROOM)
        if len(self.claims) > INTERVAL_CLAIMS:
            raise TooLarge(f"{self.key!r}: {len(self.claims):,} claims at once; the limit is "
                           f"{INTERVAL_CLAIMS:,}", hint="finish some, or claim larger intervals",
                           key=self.key, size=len(self.claims), limit=INTERVAL_CLAIMS)
        return {"intervals": _FORMAT, "start": self.start, "low_mark": self.low,
                "count": self.done.total, "done": done,
                "claims": [[*claim] for claim in self.claims]}

    def load(self, found: Checkpoint) -> None:
        """Take up what was committed. Raises `InvalidPayload`, `Misuse`."""
        stored = found.value
        try:
            if stored["intervals"] != _FORMAT:
                raise ValueError(f"format {stored['intervals']!r:.20} is not known here")
            start, done = stored["start"], Spans.load(stored["done"])
            claims = [Claim(*claim) for claim in stored["claims"]]
            if any(not claim.start < claim.end for claim in claims):
                raise ValueError("a claim on nothing")
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise InvalidPayload(f"what is stored under {self.key!r} is no set of intervals: "
                                 f"{error!s:.200}", key=self.key) from error
        if start != self.start:
            raise Misuse(f"{self.key!r} was begun with start={start!r:.30}, not {self.start}",
                         hint="use another key for another range; its end may change")
        self.done, self.claims, self.stands = done, claims, found


def number_of(found: Any, what: str) -> int:
    """An integer that a set can hold. Raises `Misuse`."""
    if type(found) is not int or not POSITION_MIN <= found <= POSITION_MAX:
        raise Misuse(f"{what} is an integer of 64 bits, signed, not {found!r:.80}")
    return found
