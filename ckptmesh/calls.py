"""Requests on their way: the facts that the session core keeps about each, and their numbers.

Rule 1: nothing here decides; `session.py` does.
Rule 2: in one lane a number is given once, and `low` never goes back.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, NamedTuple

from ckptmesh.errors import Error, OutcomeUnknown
from ckptmesh.limits import IN_FLIGHT_BYTES, IN_FLIGHT_REQUESTS
from ckptmesh.messages import Command, Transact

NEVER = float("inf")


@dataclass(slots=True, eq=False)
class Call:
    """One request on its way, from asking to settling.

    `result` and `error` are set once, with `settled`. `started` and `deadline` are in the session's
    time; `size` is bytes of the body; `owner` is the shell's to use.
    """

    command: Command | None  # None once settled
    op: int
    body: bytes
    size: int
    started: float
    deadline: float
    order: int
    internal: bool = False  # the session's own: opening, asking whether a store is there
    number: int = 0  # 0: not numbered yet
    lane: Lane | None = None
    attempt: int = 0  # copies sent under this number
    copies: int = 0  # of them, those not known to be refused
    stamp: int = 0  # epoch in which the last copy went out
    wake: float = NEVER  # when the session looks at it again
    ready: bool = False  # stands in the queue of the next `copies`
    parked: bool = False  # held until a store is there
    after: int = 0  # head known when it was first sent
    kind: str = ""  # for figures: "get", "put", "transaction", …
    settled: bool = False
    epoch: int = 0  # of the store, as it answered
    result: Any = None
    error: Error | None = None
    owner: Any = None

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

    def __init__(self, session: bytes) -> None:
        self.session = session
        self.open: dict[int, Call] = {}
        self.next = 1
        self.low = 1  # lowest number neither answered nor given up
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
        while self.low < self.next and self.low not in self.open:
            self.low += 1


def kind_of(command: Command) -> str:
    """What figures call a command: its name, or that of its only mutation."""
    if not isinstance(command, Transact):
        return type(command).__name__.lower()
    if len(command.mutations) == 1:
        return type(command.mutations[0]).__name__.lower()
    return "transaction"


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
