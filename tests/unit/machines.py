"""A machine to play with: its records kept as a log would, a clock to advance, restarts."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import Any

import msgpack

from ckptmesh.facts import Record
from ckptmesh.limits import SECOND
from ckptmesh.machine import Machine
from ckptmesh.messages import (
    Close,
    Command,
    Condition,
    Find,
    Get,
    KeepAlive,
    Mutation,
    Open,
    Outcome,
    Put,
    Reply,
    Request,
    Setting,
    Transact,
    Version,
)
from ckptmesh.records import decode_records, encode_records
from ckptmesh.state import State

UUID = b"u" * 16
START = 1_700_000_000 * SECOND


def everything(state: State) -> dict[str, Any]:
    """All that two equal states must agree on."""
    return {
        "uuid": state.uuid, "revision": state.revision, "time": state.time,
        "reserved": state.reserved, "epochs": state.epochs, "settings": state.settings,
        "entries": state.entries, "touched": state.touched, "older": state.older,
        "ring": list(state.ring.after(state.floor)), "bytes": state.ring.bytes,
        "floor": state.floor, "floor_time": state.floor_time, "pointers": state.pointers,
        "sessions": {sid: (table.time, table.name, table.low, table.outcomes)
                     for sid, table in state.sessions.items()},
        "leases": state.leases, "expiring": state.expiring, "loss": state.loss,
        "accepted": state.accepted, "contracts": [*state.contracts],
        "keys": list(state.keys.under("")), "past_keys": list(state.past_keys.under("")),
        "due": state.due(2**62), "digest": state.digest(),
    }


def through_a_snapshot(state: State) -> State:
    """What comes back after the state was dumped, packed, unpacked and loaded."""
    blocks = msgpack.packb(list(state.dump()))
    return State.load(msgpack.unpackb(blocks))


class Store:
    """A machine over a log in a list. `log` is what is durable; `restart` begins again from it."""

    def __init__(self, **settings: int) -> None:
        self.now = START
        self.log: list[Record] = []
        self.replies: list[Reply] = []
        self._ids = count(1)
        self._numbers = count(1)
        self.machine = self._start(State(UUID))
        for name, value in settings.items():
            self.ask(Setting(name, value))

    def _start(self, state: State) -> Machine:
        machine = Machine(state, self._fresh_id, release="test", now=self.now)
        machine.writable = True
        machine.begin(self.now)
        machine.begin_epoch()
        machine.finish()
        self.log += machine.records
        return machine

    def _fresh_id(self) -> bytes:
        return next(self._ids).to_bytes(16, "big")

    @property
    def state(self) -> State:
        return self.machine.state

    def replayed(self) -> State:
        """A second state, from the log alone, each record through its bytes."""
        state = State(UUID)
        for record in decode_records(encode_records(self.log)):
            state.apply(record)
        return state

    def restart(self, after: int = 0) -> None:
        """Die, and come back `after` microseconds later over the replayed log."""
        self.now += after
        self.machine = self._start(self.replayed())

    def batch(self, *requests: Request) -> list[Reply]:
        """One batch, durable at once."""
        self.machine.begin(self.now)
        replies = [self.machine.execute(request) for request in requests]
        self.machine.finish()
        self.log += self.machine.records
        return replies

    def pass_time(self, micros: int) -> list[Record]:
        """Advance the clock; a batch without requests. Returns what it recorded."""
        self.now += micros
        self.batch()
        return self.machine.records

    def ask(self, command: Command, *, uuid: bytes = b"") -> Any:
        """A command that needs no session: its result. Raises its refusal."""
        return answer(self.batch(Request(b"", next(self._numbers), 0, uuid, 0, command))[0])

    def get(self, key: str) -> Version | None:
        """What a read finds now."""
        row = self.ask(Get((key,))).found[0]
        return row.version if row else None

    def user(self, name: str = "test") -> User:
        """One client with a session of its own."""
        return User(self, self.ask(Open(name)).session)


def answer(reply: Reply) -> Any:
    """The result of a reply. Raises its error."""
    if reply.error is not None:
        raise reply.error
    return reply.result


def digest_of(command: Command) -> int:
    """Any function of the command alone will do here."""
    return hash(command) & 0xFFFF_FFFF


class User:
    """A client that is answered at once: numbers from 1, `low` right behind them."""

    def __init__(self, store: Store, session: bytes) -> None:
        self.store = store
        self.session = session
        self.number = 0

    def request(self, command: Command, *, number: int | None = None, low: int | None = None,
                epoch: int | None = None, uuid: bytes = b"") -> Request:
        """A copy of the request with this number (None: of a new one), stamped as of now."""
        if number is None:
            self.number += 1
            number = self.number
        return Request(self.session, number, number if low is None else low, uuid,
                       self.store.state.epoch if epoch is None else epoch, command,
                       digest_of(command))

    def ask(self, command: Command, **stamps: Any) -> Any:
        """Result of a command in this session. Raises its refusal."""
        return answer(self.store.batch(self.request(command, **stamps))[0])

    def commit(self, *mutations: Mutation, when: Sequence[Condition] = (),
               **stamps: Any) -> Outcome:
        """A transaction."""
        outcome: Outcome = self.ask(Transact(tuple(when), mutations), **stamps)
        return outcome

    def put(self, key: str, value: bytes = b"\x01", **fields: Any) -> Outcome:
        """A transaction of one put."""
        return self.commit(Put(key, value, **fields))

    def lease(self, key: str, ttl: int = 10 * SECOND, **stamps: Any) -> tuple[int, int]:
        """Put a lease, blindly. Returns its token."""
        outcome = self.commit(Put(key, b"\xa1h", ttl, True), **stamps)
        return outcome.epoch, outcome.revision

    def keep_alive(self, key: str, token: tuple[int, int]) -> int:
        """Renew a lease; returns its TTL."""
        ttl: int = self.store.ask(KeepAlive(key, *token))
        return ttl

    def find(self, number: int, after: int) -> Outcome | None:
        """What became of a request."""
        found: Outcome | None = self.ask(Find(self.session, number, after))
        return found

    def close(self) -> None:
        """End the session."""
        self.ask(Close())
