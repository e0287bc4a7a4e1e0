"""The machine against a dict, over a network that copies, delays and reorders, with restarts.

The model knows keys with values, TTLs and leases, and decides each request once, when its first
copy is let in. Clients behave as `session.py` does: they stamp each copy anew, discard replies from
an epoch that they know to be over, and move `low` on when a request is answered or given up.
"""

from __future__ import annotations

from random import Random
from typing import Any, NamedTuple

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from machines import Store, digest_of, everything

from ckptmesh.errors import (
    Conflict,
    EpochChanged,
    Error,
    InvalidRequest,
    InvalidValue,
    LeaseLost,
    SessionExpired,
    Superseded,
    TooManyInFlight,
)
from ckptmesh.facts import Transaction
from ckptmesh.limits import SECOND
from ckptmesh.messages import (
    Condition,
    Delete,
    Exists,
    Find,
    Increment,
    KeepAlive,
    Mutation,
    Open,
    Outcome,
    Put,
    Reply,
    Request,
    RevisionIs,
    TokenIs,
    Touch,
    Transact,
)
from ckptmesh.queries import alive

KEYS = ("a", "b", "c")
NOT_DECIDED = (EpochChanged, SessionExpired, Superseded, TooManyInFlight)


class Entry(NamedTuple):
    """A key of the model. `ends` is when its TTL or its lease is over."""

    value: bytes
    revision: int
    version: int
    epoch: int
    ends: int | None = None
    lease: int | None = None


class Refused(Exception):
    """The model refuses, with this class of error."""


class Model:
    """What a store should do, for one who has all the time in the world."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        self.revision = 0

    def alive(self, key: str, now: int) -> Entry | None:
        entry = self.entries.get(key)
        if entry and entry.lease is None and entry.ends is not None and entry.ends <= now:
            return None
        return entry

    def expire(self, now: int) -> None:
        for key, entry in sorted(self.entries.items()):
            if entry.ends is not None and entry.ends <= now:
                del self.entries[key]
                self.revision += 1

    def holds(self, condition: Condition, now: int) -> type[Error] | None:
        entry = self.alive(condition.key, now)  # type: ignore[union-attr]
        match condition:
            case RevisionIs(_, revision):
                return None if (entry.revision if entry else 0) == revision else Conflict
            case Exists():
                return None if entry else Conflict
            case TokenIs(_, epoch, revision):
                held = entry and entry.lease and (entry.epoch, entry.revision) == (epoch, revision)
                return None if held else LeaseLost
        raise AssertionError(condition)

    def decide(self, request: Request, now: int, epoch: int) -> tuple[int, ...] | type[Error]:
        """The results, or the class of the refusal."""
        assert isinstance(request.command, Transact)
        try:
            return self.transact(request.command, now, epoch)
        except Refused as refused:
            error: type[Error] = refused.args[0]
            return error

    def transact(self, command: Transact, now: int, epoch: int) -> tuple[int, ...]:
        """The results, or `Refused`. All or nothing."""
        for condition in command.conditions:
            if error := self.holds(condition, now):
                raise Refused(error)
        writes: dict[str, Entry | None] = {}
        results, overdue = [], 0
        for mutation in command.mutations:
            entry = self.alive(mutation.key, now)
            overdue += mutation.key in self.entries and entry is None
            results.append(self.effect(mutation, entry, writes, now, epoch))
        if writes:
            for mutation in command.mutations:
                if self.alive(mutation.key, now) is None:
                    self.entries.pop(mutation.key, None)
            self.revision += overdue + 1
            for key, new in writes.items():
                if new is None:
                    del self.entries[key]
                else:
                    self.entries[key] = new._replace(revision=new.revision or self.revision)
        return tuple(results)

    def effect(self, mutation: Mutation, entry: Entry | None, writes: dict[str, Entry | None],
               now: int, epoch: int) -> int:
        version = entry.version + 1 if entry else 1
        match mutation:
            case Put(key, value, ttl, lease):
                writes[key] = Entry(value, 0, version, epoch, now + ttl if ttl else None,
                                    ttl if lease else None)
                return version
            case Delete(key):
                if entry:
                    writes[key] = None
                return int(entry is not None)
            case Touch(key, ttl):
                if entry and entry.lease:
                    raise Refused(InvalidRequest)
                if entry:
                    writes[key] = entry._replace(ends=now + ttl if ttl else None)
                return int(entry is not None)
            case Increment(key, by, ttl):
                if entry and entry.lease:
                    raise Refused(InvalidRequest)
                count = msgpack.unpackb(entry.value) if entry else 0
                if not isinstance(count, int):
                    raise Refused(InvalidValue)
                ends = now + ttl if ttl else entry.ends if entry else None
                writes[key] = Entry(msgpack.packb(count + by), 0, version, epoch, ends)
                return int(count + by)
        raise AssertionError(mutation)


class Client:
    """One session as its client sees it."""

    def __init__(self, session: bytes, epoch: int) -> None:
        self.session = session
        self.epoch = epoch
        self.open: dict[int, Transact] = {}
        self.next = 1
        self.low = 1
        self.told: dict[int, Any] = {}  # number → outcome, or class of the refusal
        self.given_up: set[int] = set()

    def settle(self, number: int) -> None:
        del self.open[number]
        while self.low < self.next and self.low not in self.open:
            self.low += 1


class World:
    """Two clients, a network, a store that dies, and one seed that decides what happens next."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.store = Store()
        self.model = Model()
        self.first: dict[tuple[bytes, int], Outcome] = {}  # of what was accepted
        self.clients = [Client(self.store.ask(Open(name)).session, 1) for name in "xy"]
        self.copies: list[tuple[Client, Request]] = []  # that may still arrive, again and again
        self.replies: list[tuple[Client, Reply]] = []  # under way
        self.steps = {self.ask: 20, self.send_again: 5, self.deliver: 40, self.arrive: 30,
                      self.give_up: 2, self.time_passes: 8, self.restart: 1, self.keep_alive: 3,
                      self.find: 3}

    def step(self) -> None:
        """Whatever comes next; then everything must be as it must."""
        [act] = self.random.choices(list(self.steps), list(self.steps.values()))
        act()
        self.the_store_is_its_model()
        self.nothing_takes_effect_twice_or_after_it_was_refused()

    # --- what clients do -----------------------------------------------------------------------

    def any_client(self) -> Client:
        return self.random.choice(self.clients)

    def ask(self) -> None:
        client, choice = self.any_client(), self.random.choice
        mutations = [self.mutation(key)
                     for key in self.random.sample(KEYS, choice((1, 1, 1, 2)))]
        conditions = [self.condition((choice(("revision", "none", "token", "exists")),
                                      choice(KEYS), choice((0, 0, 1))))
                      for _ in range(choice((0, 1, 1)))]
        client.open[client.next] = Transact(tuple(conditions), tuple(mutations))
        client.next += 1
        self.send(client, client.next - 1)

    def mutation(self, key: str) -> Mutation:
        choice = self.random.choice
        ttl = choice((None, SECOND, 5 * SECOND))
        return choice((
            Put(key, choice((msgpack.packb(1), msgpack.packb("text"))), ttl),
            Put(key, msgpack.packb(2), 5 * SECOND, True),
            Delete(key), Touch(key, ttl), Increment(key, choice((-2, 1)), ttl)))

    def condition(self, drawn: tuple[str, str, int]) -> Condition:
        kind, key, back = drawn
        entry = self.model.entries.get(key)
        match kind:
            case "revision":
                return RevisionIs(key, max(0, (entry.revision if entry else 0) - back))
            case "none":
                return RevisionIs(key, 0)
            case "token":
                return TokenIs(key, entry.epoch if entry else 1, entry.revision if entry else 1)
        return Exists(key)

    def send(self, client: Client, number: int) -> None:
        command = client.open[number]
        self.copies.append((client, Request(client.session, number, client.low, b"", client.epoch,
                                            command, digest_of(command))))

    def send_again(self) -> None:
        client = self.any_client()
        if client.open:
            self.send(client, self.random.choice(sorted(client.open)))

    def give_up(self) -> None:
        client = self.any_client()
        if client.open:
            number = self.random.choice(sorted(client.open))
            client.given_up.add(number)
            client.settle(number)

    # --- what the network does -----------------------------------------------------------------

    def deliver(self) -> None:
        """Any copy, at any time; and it may come once more."""
        if not self.copies:
            return
        newest = self.random.random() < 0.5
        index = -1 if newest else self.random.randrange(len(self.copies))
        client, request = self.copies[index]
        if self.random.random() < 0.5:
            del self.copies[index]
        known = (request.session, request.number) in self.first
        refusals = self.store.machine._visits[request.session].refusals
        remembered = request.number in refusals
        reply = self.store.batch(request)[0]
        assert (reply.session, reply.number) == (request.session, request.number)
        if not isinstance(reply.error, NOT_DECIDED) and not known and not remembered:
            self.decided(request, reply)
        elif reply.error is None and known:
            assert reply.result == self.first[request.session, request.number]
        self.model.expire(self.store.now)
        if self.random.random() < 0.8:
            self.replies.append((client, reply))

    def decided(self, request: Request, reply: Reply) -> None:
        expected = self.model.decide(request, self.store.now, self.store.state.epoch)
        if isinstance(expected, type):
            assert type(reply.error) is expected
            return
        assert reply.error is None
        assert reply.result.results == expected
        assert reply.result.revision == self.model.revision
        if any(type(record) is Transaction for record in self.store.machine.records):
            self.first[request.session, request.number] = reply.result

    def arrive(self) -> None:
        if not self.replies:
            return
        client, reply = self.replies.pop(self.random.randrange(len(self.replies)))
        if reply.epoch < client.epoch:
            return  # of an old epoch: discarded
        client.epoch = reply.epoch
        assert not isinstance(reply.error, SessionExpired)
        if reply.number not in client.open or isinstance(reply.error, NOT_DECIDED):
            return
        client.told[reply.number] = type(reply.error) if reply.error else reply.result
        client.settle(reply.number)

    # --- what the store goes through -----------------------------------------------------------

    def time_passes(self) -> None:
        if self.random.random() < 0.5:  # the next batch comes before any record of an expiry
            self.store.now += self.random.choice((1, SECOND))
            return
        self.store.pass_time(self.random.choice((1, SECOND, 4 * SECOND)))
        self.model.expire(self.store.now)

    def restart(self) -> None:
        self.store.now = max(self.store.now, self.store.state.reserved)
        self.store.restart(self.random.choice((0, SECOND, 20 * SECOND)))
        for key, entry in self.model.entries.items():
            if entry.lease is not None:
                self.model.entries[key] = entry._replace(ends=self.store.now + entry.lease)
        self.model.expire(self.store.now)

    def keep_alive(self) -> None:
        key = self.random.choice(KEYS)
        entry = self.model.entries.get(key)
        if entry is not None and entry.lease is not None:
            assert self.store.ask(KeepAlive(key, entry.epoch, entry.revision)) == entry.lease
            self.model.entries[key] = entry._replace(ends=self.store.now + entry.lease)
            self.model.expire(self.store.now)

    def find(self) -> None:
        """What was given up is either in the log now, or never will be."""
        client = self.any_client()
        asked = [number for number in client.given_up if number < client.low]
        for number in asked:
            command = Find(client.session, number, 0)
            request = Request(client.session, client.next, client.low, b"",
                              self.store.state.epoch, command, 1)
            found = self.store.batch(request)[0].result
            assert found == self.first.get((client.session, number))
            self.model.expire(self.store.now)
            if found is None:
                client.told[number] = "absent"

    # --- what must always be so ----------------------------------------------------------------

    def the_store_is_its_model(self) -> None:
        state, now = self.store.state, self.store.now
        assert state.revision == self.model.revision
        found = {key: Entry(v.value, v.revision, v.version, state.epoch_of(v.revision), None,
                            v.lease) for key, v in state.entries.items()}
        assert found == {key: e._replace(ends=None) for key, e in self.model.entries.items()}
        for key, entry in self.model.entries.items():
            assert (alive(state.entries[key], now) is not None) == (
                entry.lease is not None or entry.ends is None or entry.ends > now)

    def nothing_takes_effect_twice_or_after_it_was_refused(self) -> None:
        done = [(r.session, r.number) for r in self.store.log if type(r) is Transaction]
        assert len(done) == len(set(done))
        assert set(done) == set(self.first)
        for client in self.clients:
            for number, told in client.told.items():
                if isinstance(told, Outcome):
                    assert self.first.get((client.session, number), told) == told
                else:
                    assert (client.session, number) not in self.first


@pytest.mark.fault(32)
@pytest.mark.fault(38)
@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32))
def test_over_any_network_and_any_restarts_the_machine_is_its_model(seed: int) -> None:
    world = World(seed)
    for _ in range(400):
        world.step()
    assert everything(world.store.replayed()) == everything(world.store.state)
