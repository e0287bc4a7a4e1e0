"""Requests on their way: the facts that the session core keeps about each, and their numbers.

Rule 1: nothing here decides; `session.py` does.
Rule 2: in one lane a number is given once, and `low` never goes back.
"""

from __future__ import annotations

import copy
import heapq
from collections.abc import Iterator
from typing import Any, NamedTuple

from ckptmesh.errors import Error, OutcomeUnknown
from ckptmesh.limits import IN_FLIGHT_BYTES, IN_FLIGHT_REQUESTS
from ckptmesh.messages import Close, Command, Outcome, Put, Rows, Transact, Welcome

NEVER = float("inf")


class Call:
    """One request on its way, from asking to settling.

    `result` and `error` are set once, with `settled`. `started` and `deadline` are in the session's
    time; `size` is bytes of the body; `owner` is the shell's to use.
    """

    # What most calls never change stands in the class: there is one call for each request.
    command: Command | None  # None once settled
    op: int
    body: bytes
    size: int
    started: float
    deadline: float
    order: int
    internal: bool  # the session's own: opening, asking whether a store is there
    held: bool  # counts against what one client may have in flight
    kind: str  # for figures: "get", "put", "transaction", …
    number: int = 0  # 0: not numbered yet
    lane: Lane | None = None
    attempt: int = 0  # copies sent under this number
    copies: int = 0  # of them, those not known to be refused
    stamp: int = 0  # epoch in which the last copy went out
    wake: float = NEVER  # when the session looks at it again
    ready: bool = False  # stands in the queue of the next `copies`
    parked: bool = False  # held until a store is there
    after: int = 0  # head known when it was first sent
    settled: bool = False
    epoch: int = 0  # of the store, as it answered
    result: Any = None
    error: Error | None = None
    owner: Any = None

    def __init__(self, command: Command, op: int, body: bytes, started: float, deadline: float,
                 order: int, *, internal: bool = False) -> None:
        self.command = command
        self.op = op
        self.body = body
        self.size = len(body)
        self.started = started
        self.deadline = deadline
        self.order = order
        self.internal = internal
        kind = type(command)
        self.held = not internal and (kind is Transact or kind is Close)
        self.kind = kind_of(command)

    @property
    def what(self) -> str:
        """The request in the words of who asked for it."""
        command = self.command
        if not isinstance(command, Transact):
            return f"the request ({type(command).__name__.lower()})" if command else "the request"
        if not command.mutations:
            return "the check"
        others = len(command.mutations) - 1
        return f"the commit of {command.mutations[0].key!r}" + (f" and {others} more"
                                                                if others else "")

    def answer(self) -> tuple[Any, Error | None]:
        """(result, error), the error once: whoever raises it must not stay tied to it, by a ring of
        frames that waits for the collector."""
        error, self.error = self.error, None
        return self.result, error

    def release(self) -> None:
        """Let go of what may be megabytes: a settled call may be referred to for long."""
        self.command, self.body = None, b""


class Copy(NamedTuple):
    """One copy of a request to be encoded and sent now, with the stamps of this moment."""

    call: Call
    op: int
    body: bytes
    session: bytes
    number: int
    low: int
    uuid: bytes
    epoch: int


class Lane:
    """The numbered requests of one session (b"": those that need none), and the bound on them."""

    def __init__(self, session: bytes, first: int = 1) -> None:
        self.session = session
        self.open: dict[int, Call] = {}
        self.next = first
        self.low = first  # lowest number neither answered nor given up
        self.bytes = 0

    def fits(self, call: Call) -> bool:
        """Whether the store would take one more now: a window of numbers, and of bytes."""
        return self.next < self.low + IN_FLIGHT_REQUESTS and (
            not self.open or self.bytes + call.size <= IN_FLIGHT_BYTES
        )

    def add(self, call: Call) -> None:
        """Give the next number to a call."""
        call.lane, call.number = self, self.next
        self.open[self.next] = call
        self.next += 1
        self.bytes += call.size

    def remove(self, call: Call) -> None:
        """The call is answered or given up; `low` moves on as far as it can."""
        del self.open[call.number]
        self.bytes -= call.size
        if not self.open:
            self.low = self.next
        elif call.number == self.low:
            while self.low not in self.open:
                self.low += 1


class Timetable:
    """When the session has to look at which call again. Most calls settle long before: their
    entries go stale, and are dropped once they are the greater part."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Call]] = []
        self._expected: list[Call] = []
        self._entries = 0  # ever made: ties are broken by age
        self._bound = 64

    def set(self, call: Call, wake: float) -> None:
        """Look at this call at this time instead of the one set before; `NEVER`: not at all."""
        if wake == call.wake:
            return
        call.wake = wake
        if wake == NEVER:
            return
        self._entries += 1
        heapq.heappush(self._heap, (wake, self._entries, call))
        if len(self._heap) > self._bound:
            self._heap = [entry for entry in self._heap if _current(entry)]
            heapq.heapify(self._heap)
            self._bound = 64 + 4 * len(self._heap)

    def expect(self, call: Call) -> None:
        """This call is likely to be sent in this turn, and then to have another time than its
        deadline: see `settle_expected`."""
        self._expected.append(call)

    def settle_expected(self) -> None:
        """Of those expected calls that were not sent, the deadlines count."""
        if self._expected:
            for call in self._expected:
                if call.wake == NEVER and not call.settled:
                    self.set(call, call.deadline)
            self._expected.clear()

    def due(self, now: float) -> Iterator[Call]:
        """The calls whose time has come, each once, earliest first."""
        while self._heap and self._heap[0][0] <= now:
            entry = heapq.heappop(self._heap)
            if _current(entry):
                yield entry[2]

    def next(self) -> float:
        """The earliest time set; `NEVER` when there is none."""
        heap = self._heap
        while heap:
            wake, _, call = heap[0]
            if call.wake == wake and not call.settled:
                return wake
            heapq.heappop(heap)
        return NEVER

    def __len__(self) -> int:
        return len(self._heap)


def _current(entry: tuple[float, int, Call]) -> bool:
    return not entry[2].settled and entry[2].wake == entry[0]


def kind_of(command: Command) -> str:
    """What figures call a command: its name, or that of its only mutation."""
    if not isinstance(command, Transact):
        return type(command).__name__.lower()
    if len(command.mutations) == 1:
        kind = type(command.mutations[0])
        return "put" if kind is Put else kind.__name__.lower()
    return "transaction"


def head_told(command: Command | None, result: Any) -> int | None:
    """The head of the store at the moment it answered, where the answer tells it."""
    if isinstance(result, Rows):
        return None if getattr(command, "at", None) is not None else result.revision
    if isinstance(result, Outcome) and isinstance(command, Transact):
        return result.revision
    return result.revision if isinstance(result, Welcome) else None


def order_of(call: Call) -> int:
    """The order of asking."""
    return call.order


def unknown_session(call: Call) -> OutcomeUnknown:
    """What is left to say about a transaction whose session the store has ended."""
    return OutcomeUnknown(
        f"the store has ended the session that request {call.number} was sent in, so nobody can "
        "tell any more whether it happened",
        hint="read the key and compare before trying again", number=call.number,
    )


def fresh(error: Exception) -> Error:
    """An error of one's own: an exception that two threads raise mixes up their tracebacks."""
    return copy.copy(error) if isinstance(error, Error) else Error(f"the store says: {error}")
