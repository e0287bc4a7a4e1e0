"""The client's brain against a small store over a bad network: nothing twice, nothing in the dark.

The store here is the table of docs/protocol.md 5 in forty lines, written for this test alone. The
network drops, duplicates, delays and reorders both ways; the store restarts, goes away and comes
back; the broker goes away; sessions are evicted. All from one seed, with a simulated clock.
"""

from __future__ import annotations

import heapq
import random
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ckptmesh import errors
from ckptmesh.calls import Call
from ckptmesh.commands import pack_command
from ckptmesh.limits import IN_FLIGHT_REQUESTS
from ckptmesh.messages import (
    Command,
    Find,
    Get,
    Hello,
    Open,
    Opened,
    Outcome,
    Put,
    Reply,
    Request,
    Rows,
    Transact,
    Welcome,
)
from ckptmesh.session import Session

UUID = b"u" * 16


@dataclass
class SmallStore:
    """What a store does about requests, and nothing else. Every transaction is accepted."""

    epoch: int = 1
    revision: int = 0
    opened: int = 0
    sessions: dict[bytes, int] = field(default_factory=dict)  # id → low
    outcomes: dict[tuple[bytes, int], tuple[Command, Outcome]] = field(default_factory=dict)
    log: list[tuple[str, bytes, int]] = field(default_factory=list)  # (key, session, number)

    def execute(self, request: Request) -> Reply:
        session, number = request.session, request.number
        try:
            if session:
                self.admit(request)
            return Reply(session, number, self.epoch, self.decide(request))
        except errors.Error as error:
            return Reply(session, number, self.epoch, None, error)

    def admit(self, request: Request) -> None:
        session, number = request.session, request.number
        if request.epoch < self.epoch:
            raise errors.EpochChanged("restarted")
        assert request.epoch == self.epoch, "a stamp from the future"
        if session not in self.sessions:
            raise errors.SessionExpired("evicted")
        self.sessions[session] = low = max(self.sessions[session], request.low)
        if number < low:
            raise errors.Superseded("settled")
        assert number < low + IN_FLIGHT_REQUESTS

    def decide(self, request: Request) -> Any:
        command, place = request.command, (request.session, request.number)
        if isinstance(command, Hello):
            return Welcome(UUID, self.epoch, self.revision, 0, 0, "", "")
        if isinstance(command, Open):
            assert command.revision <= self.revision, "seen more than there is"
            self.opened += 1
            fresh = self.opened.to_bytes(16, "big")
            self.sessions[fresh] = 1
            return Opened(fresh, self.epoch, self.revision)
        if isinstance(command, Find):
            assert command.number < self.sessions[request.session], "not final yet"
            found = [i for i, entry in enumerate(self.log, 1)
                     if entry[1:] == (command.session, command.number)]
            assert all(revision > command.after for revision in found)
            return Outcome(found[0], 1, 0, (1,)) if found else None
        if isinstance(command, Transact):
            if place in self.outcomes:
                first, result = self.outcomes[place]
                assert first == command, "a number was used twice"
                return result
            self.revision += 1
            self.log.append((command.mutations[0].key, *place))
            self.outcomes[place] = command, Outcome(self.revision, self.epoch, 0, (1,))
            return self.outcomes[place][1]
        return Rows(self.revision, 0, (None,), False)


class Weather(NamedTuple):
    """How bad the network is, as probabilities, and seconds."""

    seed: int
    drop: float
    duplicate: float
    delay: float
    unrest: float  # chance a second that something restarts or goes away
    evict: float


class World:
    """One client and one store, with everything between them going wrong by a seed."""

    def __init__(self, weather: Weather) -> None:
        self.weather = weather
        self.random = random.Random(weather.seed)
        self.now = 0.0
        self.store = SmallStore()
        self.session = Session("test", pack=pack_command, jitter=self.random.random)
        self.wire: list[tuple[float, int, bool, int, Any]] = []  # (time, tie, request?, op, what)
        self.ties = 0
        self.broker = self.connected = True
        self.calm = False
        self.asked: dict[str, Call] = {}

    def carry(self, request: bool, op: int, what: Any) -> None:
        chance, weather = self.random.random, self.weather
        if not self.calm and chance() < weather.drop:
            return
        copies = 2 if not self.calm and chance() < weather.duplicate else 1
        for _ in range(copies):
            late = 0.001 if self.calm else self.random.expovariate(1 / weather.delay)
            self.ties += 1
            heapq.heappush(self.wire, (self.now + late, self.ties, request, op, what))

    def unrest(self) -> None:
        kind = self.random.randrange(5)
        if kind == 0:
            self.store.epoch += 1
        elif kind == 1:
            self.connected = not self.connected
        elif kind == 2:
            self.broker = not self.broker
        elif self.random.random() < self.weather.evict and self.store.sessions:
            del self.store.sessions[self.random.choice(list(self.store.sessions))]

    def ask(self, command: Command, timeout: float) -> Call:
        return self.session.call(command, self.now, self.now + timeout)

    def commit(self, timeout: float) -> None:
        key = f"k{len(self.asked)}"
        self.asked[key] = self.ask(Transact((), (Put(key, b"v"),)), timeout)

    def deliver(self) -> None:
        _, _, request, op, what = heapq.heappop(self.wire)
        if not request:
            self.session.receive(op, what, self.now)
        elif self.connected:
            self.carry(False, op, self.store.execute(what))
        else:
            missing = errors.Unavailable("no store is connected")
            self.carry(False, op, Reply(what.session, what.number, 0, None, missing))

    def send(self) -> None:
        for copy in self.session.copies(self.now):
            if not self.broker:
                self.session.unsent(copy)
                continue
            command = copy.call.command
            assert command is not None
            self.carry(True, copy.op, Request(copy.session, copy.number, copy.low, copy.uuid,
                                              copy.epoch, command))

    def run(self, until: float) -> None:
        """Let everything happen up to a time."""
        while self.now < until:
            self.send()
            due = [self.session.wake_at(), until]
            if self.wire:
                due.append(self.wire[0][0])
            # A step of at most 50 ms: an unsent copy is tried again when the transport can send.
            step = min(self.now + 0.05, *due)
            if not self.calm and self.random.random() < self.weather.unrest * (step - self.now):
                self.unrest()
            self.now = max(self.now, step)
            while self.wire and self.wire[0][0] <= self.now:
                self.deliver()

    def calm_down(self) -> None:
        self.broker = self.connected = self.calm = True


def play(weather: Weather, commits: int = 40) -> World:
    """Forty commits and some reads with timeouts from short to long; then calm, until all is
    quiet and every late packet has arrived."""
    world = World(weather)
    for _ in range(commits):
        world.commit(world.random.choice((0.3, 2.0, 8.0, 60.0)))
        if world.random.random() < 0.3:
            world.ask(Get(("k",)), 5.0)
        world.run(world.now + world.random.random())
    world.calm_down()
    world.run(world.now + 70)
    return world


def check(world: World) -> None:
    keys = [entry[0] for entry in world.store.log]
    assert len(keys) == len(set(keys)), "something was executed twice"
    places = [entry[1:] for entry in world.store.log]
    assert len(places) == len(set(places))
    assert world.session.live == 0, "every call settles"
    for key, call in world.asked.items():
        assert call.settled
        if call.error is None:
            assert world.store.log[call.result.revision - 1][0] == key
        elif isinstance(call.error, errors.Unavailable):
            assert key not in keys, "called absent, and it is there"
        else:
            assert isinstance(call.error, errors.OutcomeUnknown), call.error


bad_weather = st.builds(
    Weather,
    seed=st.integers(0, 2**32),
    drop=st.sampled_from((0.0, 0.1, 0.4)),
    duplicate=st.sampled_from((0.0, 0.3)),
    delay=st.sampled_from((0.001, 0.2, 2.0)),
    unrest=st.sampled_from((0.0, 0.2, 1.0)),
    evict=st.just(0.0),
)


@pytest.mark.fault(30)
@pytest.mark.fault(31)
@pytest.mark.fault(32)
@pytest.mark.fault(38)
@settings(max_examples=60, deadline=None)
@given(bad_weather)
@example(Weather(348697, 0.1, 0.3, 0.2, 1.0, 0.0))  # an outcome older than what was seen since
def test_nothing_happens_twice_and_every_call_settles_in_any_weather(weather: Weather) -> None:
    check(play(weather))


@settings(max_examples=40, deadline=None)
@given(bad_weather)
@example(Weather(3155, 0.1, 0.3, 0.2, 1.0, 0.0))  # likewise
def test_what_was_unknown_can_be_found_out_afterwards_for_good(weather: Weather) -> None:
    world = play(weather)
    unknown = {key: call for key, call in world.asked.items()
               if isinstance(call.error, errors.OutcomeUnknown)}
    found = {key: world.session.find(call, world.now, world.now + 10)
             for key, call in unknown.items()}
    world.run(world.now + 30)
    keys = [entry[0] for entry in world.store.log]
    for key, answer in found.items():
        assert answer.error is None, answer.error
        assert (answer.result is not None) == (key in keys)
        if answer.result is not None:
            assert world.store.log[answer.result.revision - 1][0] == key


@settings(max_examples=60, deadline=None)
@given(bad_weather)
def test_an_evicted_session_executes_nothing_twice(weather: Weather) -> None:
    # TCP duplicates nothing. With a network that did, "sent exactly once" would mean nothing.
    check(play(weather._replace(duplicate=0.0, evict=1.0, unrest=0.5)))


def test_the_weather_is_bad_enough_to_mean_something() -> None:
    world = play(Weather(7, 0.3, 0.3, 0.5, 1.0, 0.0), commits=120)
    errors_seen = {type(call.error) for call in world.asked.values()}
    assert errors_seen == {type(None), errors.OutcomeUnknown, errors.Unavailable}
    assert world.store.epoch > 3
    assert world.session.retries > 50
    assert world.session.discarded > 20
