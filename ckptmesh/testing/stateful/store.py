"""The whole of `ckptmesh.Client` against the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import Bundle, invariant, precondition, rule

from ckptmesh.backends.base import Capability
from ckptmesh.clock import from_datetime
from ckptmesh.errors import Error
from ckptmesh.limits import SECOND
from ckptmesh.messages import (
    Condition,
    Delete,
    Exists,
    Increment,
    Put,
    RevisionIs,
    TokenIs,
    Touch,
    Unchanged,
)
from ckptmesh.testing.model import Happened
from ckptmesh.testing.stateful.backend import BackendMachine, micros, told, wanted_of
from ckptmesh.testing.stateful.drawing import (
    ALL_PREFIXES,
    EXPECTATIONS,
    KEYS,
    LONG,
    LONG_OR_NONE,
    POSITIONS,
    PREFIXES,
    TTLS,
    VALUES,
)


def needs(capability: Capability) -> Callable[[Any], Any]:
    """A rule for stores that declare this."""
    return precondition(lambda machine: capability in machine.store.capabilities)


class StoreMachine(BackendMachine):
    """The whole of `ckptmesh.Client`; what its capabilities leave out is not played."""

    leases = Bundle("leases")

    def __init__(self) -> None:
        super().__init__()
        self.followed = 0  # events that `watch` has given
        self.watch: Any = None
        self.begin_watch()

    def teardown(self) -> None:
        self.end_watch()
        super().teardown()

    def begin_watch(self) -> None:
        """Watch everything, from now on."""
        if Capability.WATCH in self.store.capabilities:
            self.watch = self.store.watch().__enter__()

    def end_watch(self) -> None:
        """Leave the watch."""
        if self.watch is not None:
            self.watch.__exit__(None, None, None)

    # --- writes -------------------------------------------------------------------------------

    @rule(target=BackendMachine.receipts, key=KEYS, value=VALUES, kind=EXPECTATIONS, ttl=TTLS,
          position=POSITIONS, head=POSITIONS)
    def commit(self, key: str, value: Any, kind: str, ttl: int | None, position: int | None,
               head: int | None) -> Any:
        revision = self.expected(key, kind)
        return self.putting(
            (RevisionIs(key, revision),), Put(key, value, micros(ttl), False, position, head),
            lambda: self.store.commit(key, value, expect=self.as_read(key, kind, revision),
                                      ttl=ttl, position=position, head=head))

    @rule(target=BackendMachine.receipts, key=KEYS, value=VALUES, ttl=TTLS)
    def create(self, key: str, value: Any, ttl: int | None) -> Any:
        return self.putting((RevisionIs(key, 0),), Put(key, value, micros(ttl)),
                            lambda: self.store.create(key, value, ttl=ttl))

    @rule(key=KEYS)
    def pop(self, key: str) -> None:
        entry = self.model.get(key, self.now)
        found = self.store.pop(key)
        self.same({key: found} if found else {}, {key: entry} if entry else {})
        self.model.transact((), [Delete(key)], self.now, revision=self.head())

    @rule(key=KEYS, by=st.integers(-3, 3) | st.just(2**64 - 1), ttl=TTLS)
    def increment(self, key: str, by: int, ttl: int | None) -> None:
        mutation = Increment(key, by, micros(ttl))
        agreed = self.agree((), [mutation], lambda: self.store.increment(key, by, ttl=ttl),
                            lambda count: self.learn([mutation]))
        assert agreed is None or agreed[0] == agreed[1][0]

    @rule(key=KEYS, ttl=TTLS)
    def touch(self, key: str, ttl: int | None) -> None:
        mutation = Touch(key, micros(ttl))
        agreed = self.agree((), [mutation], lambda: self.store.touch(key, ttl=ttl),
                            lambda there: self.learn([mutation]) if there else None)
        assert agreed is None or agreed[0] is bool(agreed[1][0])

    @rule(keys=st.lists(KEYS, min_size=1, max_size=3, unique=True), data=st.data())
    def transaction(self, keys: Sequence[str], data: st.DataObject) -> None:
        conditions = data.draw(st.lists(st.builds(self.condition, KEYS, st.sampled_from(
            ["right", "right", "older", "exists", "unchanged"])), max_size=3))
        mutations = [data.draw(st.one_of(
            st.builds(partial(Put, key, sources=()), VALUES, LONG_OR_NONE, st.just(False),
                      st.none(), st.none()),
            st.just(Delete(key)), st.just(Touch(key, None)),
            st.builds(partial(Increment, key), st.integers(-2, 2), st.none()))) for key in keys]
        changes = any(type(each) in (Put, Increment) or each.key in self.model.entries
                      for each in mutations)
        agreed = self.agree(conditions, mutations, lambda: self.together(conditions, mutations),
                            lambda tx: self.learn(mutations, tx.revision) if changes else None)
        if agreed is not None:
            tx, results = agreed
            told = [tx.receipts[each.key].version if type(each) is Put else tx.results[each.key]
                    for each in mutations]
            assert told == list(results)

    # --- reads --------------------------------------------------------------------------------

    @rule()
    def list(self) -> None:
        for prefix in ALL_PREFIXES:
            self.same({found.key: found for found in self.store.list(prefix)},
                      self.model.scan(prefix, self.now))

    @rule(keys=st.lists(KEYS, unique=True))
    def get_many(self, keys: Sequence[str]) -> None:
        found = self.store.get_many(keys)
        assert [*found] == keys
        self.same({key: each for key, each in sorted(found.items()) if each is not None},
                  {key: entry for key, entry in self.model.scan("", self.now).items()
                   if key in keys})

    @needs(Capability.TIME_TRAVEL)
    @rule(receipt=BackendMachine.receipts, prefix=PREFIXES)
    def list_as_it_was(self, receipt: Any, prefix: str) -> None:
        self.same({found.key: found for found in self.store.list(prefix, at=receipt)},
                  self.model.at(receipt.revision, prefix))

    @needs(Capability.HISTORY)
    @rule(key=KEYS, limit=st.none() | st.integers(1, 3))
    def history(self, key: str, limit: int | None) -> None:
        found = list(self.store.history(key, limit=limit))
        wanted = [wanted_of(key, entry) for entry in self.model.history(key)[:limit]]
        assert [told(each) for each in found] == wanted, f"{found}, not {wanted}"

    # --- leases -------------------------------------------------------------------------------

    @needs(Capability.LEASES)
    @rule(target=leases, key=KEYS, holder=VALUES)
    def acquire(self, key: str, holder: Any) -> Any:
        return self.putting((RevisionIs(key, 0),), Put(key, holder, LONG * SECOND, True),
                            lambda: self.store.create(key, holder, ttl=LONG, lease=True))

    @needs(Capability.LEASES)
    @rule(key=KEYS, holder=VALUES)
    def acquire_and_let_it_expire(self, key: str, holder: Any) -> None:
        self.putting((), Put(key, holder, micros(self.brief), True),
                     lambda: self.store.commit(key, holder, ttl=self.brief, lease=True))
        self.ends(key)

    @needs(Capability.LEASES)
    @rule(lease=leases)
    def keepalive(self, lease: Any) -> None:
        try:
            granted = self.store.keepalive(lease)
        except Error as refused:
            self.refuses(refused, [TokenIs(lease.key, *lease.token)], [])
        else:
            epoch, revision = lease.token
            assert granted == self.model.keepalive(lease.key, epoch, revision, self.now) / SECOND

    @needs(Capability.LEASES)
    @rule(lease=leases)
    def release(self, lease: Any) -> None:
        self.removing([TokenIs(lease.key, *lease.token)], lease.key,
                      lambda: self.store.delete(lease.key, guard=lease))

    @needs(Capability.LEASES)
    @rule(lease=leases, key=KEYS, value=VALUES, released=st.booleans())
    def commit_under(self, lease: Any, key: str, value: Any, released: bool) -> None:
        if released:
            self.release(lease)
        self.putting([TokenIs(lease.key, *lease.token)], Put(key, value),
                     lambda: self.store.commit(key, value, guard=lease))

    # --- watches ------------------------------------------------------------------------------

    @needs(Capability.WATCH)
    @rule()
    def follow(self) -> None:
        """All that happened since, in order, each change once."""
        self.receive(self.watch, self.model.events[self.followed:])
        self.followed = len(self.model.events)

    @needs(Capability.WATCH)
    @rule(receipt=BackendMachine.receipts, prefix=PREFIXES)
    def watch_from_a_mark(self, receipt: Any, prefix: str) -> None:
        with self.store.watch(prefix, since=receipt) as events:
            self.receive(events, self.model.since(receipt.revision, prefix))

    def receive(self, events: Any, wanted: Sequence[Happened]) -> None:
        """These events, and no others."""
        for happened in wanted:
            event = events.get(timeout=self.patience)
            assert event is not None, f"it never came: {happened}"
            found, entry = event.checkpoint, happened.entry
            assert (event.kind, event.key, found and told(found)) == (
                happened.kind, happened.key, entry and wanted_of(happened.key, entry)
            ), f"{event} came, not {happened}"
        more = events.get(timeout=0)
        assert more is None, f"it never happened: {more}"

    # --- for rules ----------------------------------------------------------------------------

    @invariant()
    def the_head_never_goes_back(self) -> None:
        assert self.head() >= self.model.revision

    def head(self) -> int:
        welcome = self.store.hello()
        assert welcome.revision >= self.told, f"{welcome.revision} comes after {self.told}"
        self.told = welcome.revision
        return self.told

    def ends(self, key: str) -> None:
        super().ends(key)
        if self.watch is not None:  # the order of what else happens then is known
            self.follow()

    def learn(self, mutations: Sequence[Any], revision: int | None = None) -> int | None:
        """What was told about a change: its revision where it is known, and when it was, from the
        versions that it has left."""
        for mutation in mutations:
            found = self.store.get(mutation.key)
            if type(mutation) is Touch:
                if found is not None and mutation.ttl is not None:
                    self.passed(from_datetime(found.expires_at) - mutation.ttl)
            elif type(mutation) is not Delete:
                self.passed(found.micros)
                revision = found.revision
        return revision if revision is None else self.taken(revision)

    def condition(self, key: str, kind: str) -> Condition:
        """A condition of a transaction; some hold."""
        if kind == "exists":
            return Exists(key)
        if kind == "unchanged":
            return Unchanged(key, max(0, self.model.revision - len(self.model.entries)))
        return RevisionIs(key, self.expected(key, kind))

    def together(self, conditions: Sequence[Any], mutations: Sequence[Any]) -> Any:
        """A transaction of the store; it, when it is through."""
        with self.store.transaction() as tx:
            for condition in conditions:
                match condition:
                    case RevisionIs(key, revision):
                        tx.expect(key, revision or None)
                    case Exists(key):
                        tx.exists(key)
                    case Unchanged(prefix, since):
                        tx.unchanged(prefix, since)
            for mutation in mutations:
                match mutation:
                    case Put(key, value, ttl):
                        tx.put(key, value, ttl=None if ttl is None else ttl / SECOND)
                    case Delete(key):
                        tx.delete(key)
                    case Touch(key):
                        tx.touch(key, ttl=None)
                    case Increment(key, by):
                        tx.increment(key, by)
        return tx
