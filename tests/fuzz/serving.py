"""Targets: a store that is asked by a stranger, before a session is open and in one.

Rule 1: every payload gets one reply, which echoes it and is a result or an error of the catalogue.
Rule 2: what is refused leaves the state as it was. (Only doubt does not: a claim to have seen more
        than the store holds is recorded, and refused with `DataLoss`.)
Rule 3: what is accepted is in the records: a second state that takes them is the same.
Each input meets the same store: one that has changed is made anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import msgpack

from ckptmesh import bundles, commands, protocol, publications
from ckptmesh.engine import Engine
from ckptmesh.errors import DataLoss, Error
from ckptmesh.facts import Record
from ckptmesh.limits import SECOND
from ckptmesh.machine import Machine
from ckptmesh.memory_log import MemoryLog
from ckptmesh.messages import Delete, Open, Outcome, Put, Touch, Transact
from ckptmesh.records import decode_records, encode_records
from ckptmesh.release import RELEASE
from ckptmesh.state import State
from tests.fuzz.taking import Taker

UUID = b"u" * 16
START = 1_700_000_000 * SECOND
SESSIONS = (b"\1".rjust(16, b"\0"), b"\2".rjust(16, b"\0"))  # open once `_with_sessions` has run


def dump(state: State) -> bytes:
    """All that a state holds, as a snapshot would keep it."""
    packed: bytes = msgpack.packb(list(state.dump()))
    return packed


class Clock:
    """A store clock that moves only when told to."""

    def __init__(self) -> None:
        self.time = START

    def now(self) -> int:
        return self.time


class KeptLog(MemoryLog):
    """A log in memory that keeps what was appended, and begins with a given state."""

    def __init__(self, state: State) -> None:
        super().__init__(state.uuid)
        self.state = state
        self.records: list[Record] = []

    def append(self, records: Sequence[Record], first_revision: int) -> None:
        self.records += records


class Site:
    """A served store over the state that some bytes hold, and what it looked like at first."""

    def __init__(self, packed: bytes) -> None:
        self.begun_with = packed
        self.log = KeptLog(_load(packed))
        self.clock = Clock()
        ids = iter(range(100, 1 << 30))
        self._fresh_id = lambda: next(ids).to_bytes(16, "big")
        self.engine: Engine[int] = Engine(self.log, self.clock, fresh_id=self._fresh_id)
        self.engine.serve()
        self.forget()
        self.engine.tick()
        self.fresh = self.looks = dump(self.engine.state)

    def batch(self, payloads: Sequence[bytes]) -> list[protocol.Reply]:
        """One batch, held to rules 1 and 2. Returns the replies."""
        before = len(self.log.records)
        found, published = self.engine.process(list(enumerate(payloads)))
        assert {route for route, _ in found} == set(range(len(payloads)))
        replies = [_checked(payloads[route], reply) for route, reply in sorted(found)]
        frames = list(publications.encode_publications(published))
        told = [message for frame in frames for message in publications.decode_publications(frame)]
        assert list(publications.encode_publications(told)) == frames  # type: ignore[arg-type]
        if all(reply.error is not None for reply in replies):
            doubted = any(type(reply.error) is DataLoss for reply in replies)
            assert doubted or len(self.log.records) == before, "a refusal was logged"
            assert doubted or dump(self.engine.state) == self.looks, "a refusal changed the state"
        if len(self.log.records) != before:
            self.looks = dump(self.engine.state)
        return replies

    def pass_time(self, micros: int) -> None:
        """Let time go by, and end what ends."""
        if not micros:
            return
        self.clock.time += micros
        while self.engine.tick() and self.looks != dump(self.engine.state):
            self.looks = dump(self.engine.state)

    def check_replay(self) -> None:
        """Rule 3."""
        state = _load(self.begun_with)
        for record in decode_records(encode_records(self.log.records)):
            state.apply(record)
        assert dump(state) == dump(self.engine.state), "the records make another state"
        assert state.digest() == self.engine.state.digest()

    def forget(self) -> None:
        """Forget, as a restart does, what the machine knows beyond its state; but tell no later
        time than before, so that there is nothing to record."""
        self.engine.machine = Machine(self.engine.state, self._fresh_id, release=RELEASE)
        self.engine.machine.now = self.clock.time
        self.log.savepoints = ()


def _load(packed: bytes) -> State:
    return State.load(msgpack.unpackb(packed, use_list=False))


def _checked(payload: bytes, packed: bytes) -> protocol.Reply:
    op, reply = protocol.decode_reply(packed)
    try:
        asked, session, numbers = bundles.peek(payload)
    except Error:
        asked, session, numbers = 0, b"", range(1)
    if op != bundles.BUNDLE:
        assert (op, reply.session) == (asked, session), "a reply to another request"
    assert reply.number in numbers, "a reply to another request"
    assert type(reply.error) is not Error, "an error that is not in the catalogue"
    return reply


# --- before the handshake ---------------------------------------------------------------------


_kept: dict[Callable[[], bytes], Site] = {}


@contextmanager
def _site(packed: Callable[[], bytes]) -> Iterator[Site]:
    """The store that this state makes: the one of the input before, where that kept its promises
    and changed nothing."""
    site = _kept.pop(packed, None) or Site(packed())
    site.forget()
    yield site
    if site.looks is not site.fresh:
        site.check_replay()
    elif site.clock.time == START:
        _kept[packed] = site


@cache
def _without_sessions() -> bytes:
    return dump(State(UUID))


def handshake(data: bytes) -> None:
    """Any bytes to a store in which no session is open; the first byte says how many payloads
    make the batch (of which each but the last begins with its length)."""
    take = Taker(data)
    payloads = [take.counted() for _ in range(take.byte() % 3)]
    with _site(_without_sessions) as site:
        site.batch([*payloads, take.rest()])


# --- in a session -----------------------------------------------------------------------------


KEYS = ("a", "a/b", "lease", "brief", "gone", "b/_lock/x", "new", "")


@cache
def _with_sessions() -> bytes:
    """A store with a past: two sessions, plain keys, a lease, a TTL, a touched and a gone key."""
    log, ids = KeptLog(State(UUID)), iter(SESSIONS)
    engine: Engine[int] = Engine(log, Clock(), fresh_id=lambda: next(ids))
    engine.serve()
    engine.handle([request(Open("one"), 1), request(Open("two"), 2)])
    for number, mutations in enumerate((
        (Put("a", b"\x05"), Put("a/b", b"\xa1v", None, False, 4, 9, (("raw", 3),))),
        (Put("lease", b"\x01", 10 * SECOND, True), Put("brief", b"\x02", 20 * SECOND)),
        (Put("gone", b"\x03"),), (Delete("gone"), Touch("a/b", 30 * SECOND)), (Put("a", b"\x06"),),
    ), start=1):
        [reply] = engine.handle([request(Transact((), mutations), number, SESSIONS[0], low=number)])
        assert protocol.decode_reply(reply)[1].error is None
    return dump(engine.state)


def request(command: Any, number: int, session: bytes = b"", *, low: int = 0,
            epoch: int = 1) -> bytes:
    """A request as the library would send it."""
    return protocol.encode_request(*commands.pack_command(command), session=session, number=number,
                                   low=low, uuid=UUID, epoch=epoch)


def session(data: bytes) -> None:
    """Requests in an open session, built from the bytes: fields of the right type and others, any
    stamps, raw bodies, batches, time that goes by, every accepted transaction sent once more."""
    take = Taker(data)
    steps = 0
    with _site(_with_sessions) as site:
        while take and steps < 6:
            steps += 1
            payloads = [_payload(take, site.engine.state.epoch)]
            while take and steps < 6 and take.byte() & 1:
                steps += 1
                payloads.append(_payload(take, site.engine.state.epoch))
            replies = site.batch(payloads)
            if type(replies[-1].result) is Outcome:
                _once(site, payloads[-1], replies[-1])
            site.pass_time(take.pick((0, 0, 0, 0, 0, SECOND, 11 * SECOND, 3_700 * SECOND)))


def _once(site: Site, payload: bytes, first: protocol.Reply) -> None:
    """A late copy has no effect; it gets the first answer, or none that says it happened anew."""
    before = site.looks
    [second] = site.batch([payload])
    assert dump(site.engine.state) == before, "a second copy had an effect"
    assert second.error is not None or second.result == first.result


INTEGERS = (0, 1, 2, 3, 5, 6, 7, 8, -1, 100, 1_024, 1_030, SECOND, 10 * SECOND, 20 * SECOND,
            2**31 - 1, 2**31, 2**40, 2**40 + 1, 2**63 - 1, 2**63, 2**64 - 1, -(2**63), START)
STRANGE = (None, True, False, 1.5, float("nan"), b"", b"\x07", "text", (), ((),), {}, {"a": 1},
           float("inf"), msgpack.ExtType(5, b""), msgpack.Timestamp(1))


def _integer(take: Taker) -> Any:
    choice = take.byte()
    return take.pick(STRANGE) if choice == 255 else INTEGERS[choice % len(INTEGERS)]


def _key(take: Taker) -> Any:
    choice = take.byte()
    if choice < 240:
        return KEYS[choice % len(KEYS)]
    return take.pick(STRANGE) if choice > 250 else take.counted().decode("utf-8", "replace")


def _time(take: Taker) -> Any:
    return _integer(take) if take.byte() & 1 else None


def _list(take: Taker, build: Callable[[Taker], Any]) -> Any:
    choice = take.byte()
    return take.pick(STRANGE) if choice == 255 else [build(take) for _ in range(choice % 5)]


def _value(take: Taker) -> bytes:
    return take.pick((b"\x01", b"\x05", b"\xcf" + b"\xff" * 8, b"\xa1v", b"", b"v" * 300))


def _source(take: Taker) -> Any:
    return [_key(take), _integer(take)]


def _mutation(take: Taker) -> Any:
    match take.byte() % 8:
        case 0 | 4:
            return [0, _key(take), _value(take)]
        case 5:
            return [0, _key(take), _value(take), _integer(take), bool(take.byte() & 1),
                    _time(take), _time(take), _list(take, _source)]
        case 1:
            return [1, _key(take)]
        case 2:
            return [2, _key(take), _time(take)]
        case 3:
            return [3, _key(take), _integer(take)]
        case 6:
            return [3, _key(take), _integer(take), _time(take)]
    return [take.byte(), _list(take, _integer)] if take.byte() & 1 else take.pick(STRANGE)


def _condition(take: Taker) -> Any:
    match take.byte() % 5:
        case 0:
            return [0, _key(take), _integer(take)]
        case 1:
            return [1, _key(take), _integer(take), _integer(take)]
        case 2:
            return [2, _key(take)]
        case 3:
            return [3, _key(take), _integer(take)]
    return take.pick(STRANGE)


def _at(take: Taker) -> Any:
    return [_time(take), _time(take)] if take.byte() & 1 else None


def _name(take: Taker) -> Any:
    return take.pick(("before", "a.b-c_9", "7", "n" * 129, "", 7))


CONTRACTS = tuple([monotonic, required, step, size, ttl, history, schema] for (
    monotonic, required, step, size, ttl, history, schema) in (
    (True, False, None, None, None, None, ""), (False, True, 5, 100, SECOND, 3, "ab" * 32),
    (False, False, None, None, None, None, ""), (1, False, None, None, None, None, ""),
    (True, False, -1, None, None, None, ""), (True, False, None, None, None, None, "x")))

_FIELDS: tuple[tuple[Callable[[Taker], Any], ...], ...] = (
    (), (lambda t: t.pick(("name", "n" * 257, 7)), lambda t: t.pick((b"", UUID, b"x")), _integer,
         _integer),
    (), (_key, _integer, _integer),
    (lambda t: _list(t, _condition), lambda t: _list(t, _mutation)),
    (lambda t: _list(t, _key), _at, _integer), (_key, _key, _integer, _at),
    (_key, _integer, _integer), (_integer, _integer, _key, _integer), (),
    (lambda t: t.pick((*SESSIONS, b"")), _integer, _integer), (_time,),
    (lambda t: t.pick(("history_revisions", "history_bytes", "history_versions", "other")),
     _integer), (),
    (_key, lambda t: t.pick(CONTRACTS)), (),
    (_name, _time, lambda t: t.pick(("", "why", "r" * 1_025, 7))), (_name,), (),
)
"""Index = op: what each field of a body is built by."""
_LATER = 14  # the first op that came after the corpus had begun: only the highest choices take it


def _payload(take: Taker, epoch: int) -> bytes:
    """One request. Most stamps are right, so that most requests are decided."""
    choice = take.byte()
    if choice == 255:
        return take.counted()
    op = choice % 18  # a transaction most often: there is most to get wrong
    op = op if op < _LATER else 4
    if choice >= 250:
        op = _LATER + choice % (len(_FIELDS) - _LATER)
    if take.byte() >= 240:
        body = take.counted()
    else:
        body = msgpack.packb([field(take) for field in _FIELDS[op]])
    stamps = take.byte()
    sid = SESSIONS[stamps >> 4 & 1] if op in commands.IN_SESSION else b""
    if stamps & 15 == 15:
        sid = take.pick((b"", b"x" * 16, *SESSIONS))
    return protocol.encode_request(
        op, body, session=sid, number=(6 + take.byte() % 4 if stamps & 3 else _number(take)),
        low=(6 if stamps & 12 else _number(take)), uuid=(UUID if stamps & 32 else b""),
        epoch=epoch + (take.pick((-1, 0, 0, 1)) if stamps & 192 == 192 else 0))


def _number(take: Taker) -> int:
    return abs(INTEGERS[take.byte() % len(INTEGERS)])
