"""The small interface `StateBackend` against the model, and what every machine here stands on."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, multiple, rule

from ckptmesh.clock import from_datetime
from ckptmesh.errors import Conflict, Error
from ckptmesh.limits import SECOND
from ckptmesh.messages import Condition, Delete, Mutation, Put, RevisionIs, Unchanged
from ckptmesh.testing.model import Entry, Model
from ckptmesh.testing.stateful.drawing import EXPECTATIONS, KEYS, POSITIONS, PREFIXES, TTLS, VALUES
from ckptmesh.values import pack


class BackendMachine(RuleBasedStateMachine):
    """Whatever meets `StateBackend`. Give it `connect`. `brief`: seconds of a TTL that it waits
    out; larger for a store whose TTLs are coarse. `patience`: seconds after which a wait has
    failed, a bound that none should come near; smaller for a store that is being built, since a
    failing story is played again and again while it is shrunk."""

    brief = 0.01
    patience = 10.0
    receipts = Bundle("receipts")

    def __init__(self) -> None:
        super().__init__()
        self.model = Model()
        self.now = 0  # the latest store time that was told, microseconds
        self.told = 0  # the latest revision that was told
        self.epoch = 1
        self.played: Counter[str] = Counter()  # for subclasses that count what they do
        self.store: Any = self.connect()

    def connect(self) -> Any:
        """A client of a store that holds nothing yet."""
        raise NotImplementedError("a subclass of BackendMachine gives `connect`")

    def teardown(self) -> None:
        leave = getattr(self.store, "__exit__", None)
        if leave is None:
            self.store.close()
        else:  # of a client made by `blocking` this ends the event loop too
            leave(None, None, None)

    # --- rules --------------------------------------------------------------------------------

    @rule(target=receipts, key=KEYS, value=VALUES, position=POSITIONS, ttl=TTLS)
    def put(self, key: str, value: Any, position: int | None, ttl: int | None) -> Any:
        return self.putting((), Put(key, value, micros(ttl), position=position),
                            lambda: self.store.put(key, value, position=position, ttl=ttl))

    @rule(target=receipts, key=KEYS, value=VALUES, kind=EXPECTATIONS)
    def put_expecting(self, key: str, value: Any, kind: str) -> Any:
        revision = self.expected(key, kind)
        return self.putting(
            (RevisionIs(key, revision),), Put(key, value),
            lambda: self.store.put(key, value, expect=self.as_read(key, kind, revision)))

    @rule(target=receipts, receipt=receipts, value=VALUES)
    def put_expecting_what_was_written_once(self, receipt: Any, value: Any) -> Any:
        return self.putting((RevisionIs(receipt.key, receipt.revision),), Put(receipt.key, value),
                            lambda: self.store.put(receipt.key, value, expect=receipt))

    @rule(key=KEYS)
    def delete(self, key: str) -> None:
        self.removing((), key, lambda: self.store.delete(key))

    @rule(key=KEYS, kind=EXPECTATIONS)
    def delete_expecting(self, key: str, kind: str) -> None:
        revision = self.expected(key, kind)
        self.removing((RevisionIs(key, revision),), key, lambda: self.store.delete(
            key, expect=self.as_read(key, kind, revision)))

    @rule(puts=st.dictionaries(KEYS, VALUES, max_size=3), deletes=st.sets(KEYS, max_size=2),
          expect=st.dictionaries(KEYS, EXPECTATIONS, max_size=2))
    def transact(self, puts: dict[str, Any], deletes: set[str], expect: dict[str, str]) -> None:
        gone = sorted(deletes - set(puts))
        wanted = {key: self.expected(key, kind) for key, kind in expect.items()}
        conditions = [RevisionIs(key, revision) for key, revision in wanted.items()]
        mutations: list[Mutation] = [Put(key, value) for key, value in puts.items()]
        mutations += [Delete(key) for key in gone]
        if not mutations:
            return
        changes = bool(puts) or any(key in self.model.entries for key in gone)
        self.agree(conditions, mutations, lambda: self.store.transact(
            put=puts, delete=gone, expect={key: revision or None
                                           for key, revision in wanted.items()}),
            lambda revision: self.taken(revision) if changes else None)

    @rule(key=KEYS, value=VALUES)
    def put_and_let_it_expire(self, key: str, value: Any) -> None:
        self.putting((), Put(key, value, micros(self.brief)),
                     lambda: self.store.put(key, value, ttl=self.brief))
        self.ends(key)

    @rule(key=KEYS)
    def get(self, key: str) -> None:
        found, entry = self.store.get(key), self.model.get(key, self.now)
        self.same({key: found} if found else {}, {key: entry} if entry else {})

    @rule(prefix=PREFIXES, after=st.sampled_from(["", "a", "a/b", "b"]), limit=st.integers(1, 4))
    def scan(self, prefix: str, after: str, limit: int) -> None:
        there = [key for key in self.model.scan(prefix, self.now) if key > after]
        found = self.store.scan(prefix, after=after, limit=limit)
        assert [each.key for each in found] == there[:limit], f"{found}, not {there[:limit]}"

    # --- what must always be so ---------------------------------------------------------------

    @invariant()
    def everything_is_as_in_the_model(self) -> None:
        self.same({found.key: found for found in self.store.scan("")},
                  self.model.scan("", self.now))

    # --- for rules ----------------------------------------------------------------------------

    def expected(self, key: str, kind: str) -> int:
        """A revision to expect under a key: the right one, or not."""
        entry = self.model.get(key, self.now)
        right = entry.revision if entry else 0
        return {"right": right, "nothing": 0, "older": max(0, right - 1),
                "newer": right + 1}[kind]

    def as_read(self, key: str, kind: str, revision: int) -> Any:
        """An expectation as users have it: the checkpoint, None, or the revision."""
        return self.store.get(key) if kind == "right" else revision or None

    def agree(self, conditions: Sequence[Condition], mutations: Sequence[Mutation],
              call: Callable[[], Any], learn: Callable[[Any], int | None] = lambda answer: None,
              ) -> tuple[Any, tuple[int, ...]] | None:
        """Call the store, and do the same with the model: (answer, results of the model), None
        where both refuse. `learn` takes the answer of the store and gives the revision."""
        try:
            answer = call()
        except Error as refused:
            self.refuses(refused, conditions, mutations)
            return None
        revision = learn(answer)
        if revision is None:
            revision = self.head()
        try:
            return answer, self.model.transact(conditions, mutations, self.now, epoch=self.epoch,
                                               revision=revision)
        except Error as error:
            raise AssertionError(f"the store takes what has to be refused: {error}") from None

    def refuses(self, refused: Error, conditions: Sequence[Condition],
                mutations: Sequence[Mutation]) -> None:
        """The model has to refuse as well, for the same reason."""
        expected = self.refusal(conditions, mutations)
        assert type(refused) is type(expected), f"{refused!r}, not {expected!r}"
        if isinstance(refused, Conflict) and Unchanged not in map(type, conditions):
            key, found, entry = (expected.details["key"], refused.current,
                                 expected.details["current"])
            self.same({key: found} if found else {}, {key: entry} if entry else {})

    def refusal(self, conditions: Sequence[Condition], mutations: Sequence[Mutation]) -> Error:
        """How the model refuses what the store has refused."""
        try:
            self.model.transact(conditions, mutations, self.now)
        except Error as error:
            return error
        raise AssertionError("the store refuses what has to go through")

    def putting(self, conditions: Sequence[Condition], put: Put, call: Callable[[], Any]) -> Any:
        """A put on both sides; the receipt, for the bundle."""
        def learn(receipt: Any) -> int:
            self.passed(receipt.micros)
            self.epoch = receipt.epoch
            return self.taken(receipt.revision)

        agreed = self.agree(conditions, [put], call, learn)
        if agreed is None:
            return multiple()
        receipt, [version] = agreed
        assert (receipt.key, receipt.version) == (put.key, version)
        return receipt

    def removing(self, conditions: Sequence[Condition], key: str, call: Callable[[], Any]) -> None:
        """A deletion on both sides."""
        agreed = self.agree(conditions, [Delete(key)], call)
        assert agreed is None or agreed[0] is bool(agreed[1][0])

    def taken(self, revision: int) -> int:
        """A revision that the store says it took: beyond all before."""
        assert revision > self.told, f"revision {revision} comes after {self.told}"
        self.told = revision
        return revision

    def passed(self, micros: int) -> None:
        """A time that the store has told: not before any other."""
        assert micros >= self.now, f"{micros} comes after {self.now}"
        self.now = micros

    def head(self) -> int:
        """The revision after a change that told none. Here nobody will ever ask for it."""
        return self.model.revision

    def until(self, holds: Callable[[], object], what: str) -> None:
        """Wait until it is so, at most `patience` seconds."""
        deadline = time.monotonic() + self.patience
        while not holds():
            assert time.monotonic() < deadline, f"in {self.patience} s it never came true: {what}"
            time.sleep(0.001)

    def ends(self, key: str) -> None:
        """Wait until a key has expired, in the model too."""
        self.until(lambda: self.store.get(key) is None, f"{key!r} expired")
        self.model.expire([key], self.now, self.head())

    def same(self, found: Mapping[str, Any], entries: Mapping[str, Entry]) -> None:
        """Checkpoints as the model has them, in the same order."""
        there = [told(each) for each in found.values()]
        wanted = [wanted_of(key, entry) for key, entry in entries.items()]
        assert there == wanted, f"the store has {there}, the model {wanted}"


def micros(ttl: float | None) -> int | None:
    return None if ttl is None else round(ttl * SECOND)


def told(found: Any) -> tuple[Any, ...]:
    """A checkpoint as it is compared. Packed, 1 is not True and a list is no tuple."""
    return (found.key, pack(found.value), found.revision, found.create_revision, found.version,
            found.position, found.head, found.is_lease,
            None if found.expires_at is None else from_datetime(found.expires_at))


def wanted_of(key: str, entry: Entry) -> tuple[Any, ...]:
    return (key, pack(entry.value), entry.revision, entry.create_revision, entry.version,
            entry.position, entry.head, entry.lease is not None,
            None if entry.lease is not None else entry.ends)
