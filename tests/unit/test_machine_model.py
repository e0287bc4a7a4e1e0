"""The machine against a dict, over a network that copies, delays and reorders, with restarts.

The model decides each request once, when its first copy is let in. Clients behave as `session.py`
does: they stamp each copy anew, discard replies from an epoch that they know to be over, and move
`low` on when a request is answered or given up.
"""

from __future__ import annotations

from random import Random
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from machines import Store, digest_of, everything

from ckptmesh.errors import (
    EpochChanged,
    Error,
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
from ckptmesh.testing.model import Entry, Model

KEYS = ("a", "b", "c")
NOT_DECIDED = (EpochChanged, SessionExpired, Superseded, TooManyInFlight)


def decide(model: Model, request: Request, now: int, epoch: int) -> tuple[int, ...] | type[Error]:
    """The results of the model, or the class of its refusal."""
    assert isinstance(request.command, Transact)
    mutations = [each._replace(value=msgpack.unpackb(each.value)) if type(each) is Put else each
                 for each in request.command.mutations]
    try:
        return model.transact(request.command.conditions, mutations, now, epoch=epoch)
    except Error as refused:
        return type(refused)


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
        self.model.expire(self.model.due(self.store.now), self.store.now)
        if self.random.random() < 0.8:
            self.replies.append((client, reply))

    def decided(self, request: Request, reply: Reply) -> None:
        expected = decide(self.model, request, self.store.now, self.store.state.epoch)
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
        self.model.expire(self.model.due(self.store.now), self.store.now)

    def restart(self) -> None:
        self.store.now = max(self.store.now, self.store.state.reserved)
        self.store.restart(self.random.choice((0, SECOND, 20 * SECOND)))
        self.model.move_leases(end=self.store.now)
        self.model.expire(self.model.due(self.store.now), self.store.now)

    def keep_alive(self) -> None:
        key = self.random.choice(KEYS)
        entry = self.model.entries.get(key)
        if entry is not None and entry.lease is not None:
            assert self.store.ask(KeepAlive(key, entry.epoch, entry.revision)) == entry.lease
            self.model.keepalive(key, entry.epoch, entry.revision, self.store.now)
            self.model.expire(self.model.due(self.store.now), self.store.now)

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
            self.model.expire(self.model.due(self.store.now), self.store.now)
            if found is None:
                client.told[number] = "absent"

    # --- what must always be so ----------------------------------------------------------------

    def the_store_is_its_model(self) -> None:
        state, now = self.store.state, self.store.now
        assert state.revision == self.model.revision
        found = {key: Entry(msgpack.unpackb(v.value), v.revision, v.create_revision, v.version,
                            state.epoch_of(v.revision), None, v.lease)
                 for key, v in state.entries.items()}
        assert found == {key: e._replace(ends=None) for key, e in self.model.entries.items()}
        for key, entry in self.model.entries.items():
            assert (alive(state.entries[key], now) is not None) == entry.alive(now)

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
