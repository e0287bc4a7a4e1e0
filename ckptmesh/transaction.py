"""Several conditions and mutations as one: what both shells' transactions gather.

Rule 1: nothing travels before the end; then all of it does, as one revision with one sync.
Rule 2: a transaction is used once.
"""

from __future__ import annotations

from typing import Any

from ckptmesh.api import BLIND, Api, Expectation, Held, SchemaLike, Steps
from ckptmesh.clock import Seconds
from ckptmesh.errors import Misuse, TooLarge
from ckptmesh.limits import TRANSACTION_MUTATIONS
from ckptmesh.messages import (
    Condition,
    Delete,
    Exists,
    Increment,
    Mutation,
    Outcome,
    Put,
    Transact,
    Unchanged,
)
from ckptmesh.views import Checkpoint, Receipt


class TransactionBase:
    """Gathers conditions and mutations; all of them take effect together, or none.

    After it is committed: `revision`, `receipts` of what was put, `results` of the rest (delete
    and touch: whether the key existed; increment: the new count), all by key.
    """

    def __init__(self, api: Api) -> None:
        self._api = api
        self._conditions: list[Condition] = []
        self._mutations: dict[str, Mutation] = {}
        self._used = False
        self.revision = 0
        self._receipts: dict[str, Receipt] = {}
        self._outcome: Outcome | None = None  # until somebody asks for receipts
        self.results: dict[str, bool | int] = {}

    @property
    def receipts(self) -> dict[str, Receipt]:
        """The receipts of what was put, by key; empty before the commit."""
        outcome, self._outcome = self._outcome, None
        if outcome is not None:
            self._receipts = {
                key: self._api.receipt(key, outcome, index)
                for index, (key, mutation) in enumerate(self._mutations.items())
                if isinstance(mutation, Put)}
        return self._receipts

    @property
    def receipt(self) -> Receipt:
        """The receipt of the first put. Raises `Misuse` when there is none (yet)."""
        for receipt in self.receipts.values():
            return receipt
        raise Misuse("this transaction has put nothing, or is not committed")

    # --- conditions ---------------------------------------------------------------------------

    def expect(self, key: str | Checkpoint | Receipt, expected: Expectation = BLIND) -> None:
        """The key must be at what was read: `tx.expect(checkpoint)`, `tx.expect(key, revision)`,
        `tx.expect(key, None)` (must not exist). Else the commit raises `Conflict`."""
        if isinstance(key, Checkpoint | Receipt):
            if expected is not BLIND:
                raise Misuse("expect() takes a checkpoint, or a key and what is expected there")
            self._condition(self._api.expectation(key.key, key))
        elif expected is BLIND:
            raise Misuse(f"what is expected at {key!r:.80}?", hint="tx.expect(key, None): nothing")
        else:
            self._condition(self._api.expectation(key, expected))

    def exists(self, key: str) -> None:
        """The key must exist."""
        self._condition(Exists(self._api.key(key)))

    def unchanged(self, prefix: str, since: Checkpoint | Receipt | int) -> None:
        """Nothing under the prefix was written, deleted or expired after revision `since`."""
        revision = since.revision if isinstance(since, Checkpoint | Receipt) else since
        if type(revision) is not int or revision < 0:
            raise Misuse(f"since is a Checkpoint, a Receipt or a revision, not {since!r:.80}")
        self._condition(Unchanged(self._api.under(prefix), revision))

    def guard(self, lease: Held) -> None:
        """This lease, or lock, must still be held under this very token. Else `LeaseLost`."""
        self._condition(self._api.held(lease))

    # --- mutations ----------------------------------------------------------------------------

    def put(
        self, key: str, value: Any, *, expect: Expectation = BLIND, ttl: Seconds | None = None,
        lease: bool = False, position: int | None = None, head: int | None = None,
        sources: Any = (), schema: SchemaLike | None = None,
    ) -> None:
        """Write a value; arguments as of `Client.commit`."""
        self._expecting(key, expect)
        self._mutation(key, self._api.put(key, value, ttl, lease, position, head, sources,
                                            schema))

    def delete(self, key: str, *, expect: Expectation = BLIND) -> None:
        """Remove a key."""
        self._expecting(key, expect)
        self._mutation(key, Delete(self._api.key(key)))

    def touch(self, key: str, *, ttl: Seconds | None) -> None:
        """Set a new expiry (None: never)."""
        self._mutation(key, self._api.touch_of(key, ttl))

    def increment(self, key: str, by: int = 1, *, ttl: Seconds | None = None) -> None:
        """Add to an integer."""
        self._mutation(key, self._api.increment_of(key, by, ttl))

    # --- inside -------------------------------------------------------------------------------

    def _expecting(self, key: str, expect: Expectation) -> None:
        if expect is not BLIND:
            self.expect(key, expect)

    def _condition(self, condition: Condition) -> None:
        self._open()
        self._conditions.append(condition)

    def _mutation(self, key: str, mutation: Mutation) -> None:
        self._open()
        if key in self._mutations:
            raise Misuse(f"the transaction names {key!r} twice",
                         hint="one mutation a key: the last would win unseen")
        if len(self._mutations) >= TRANSACTION_MUTATIONS:
            raise TooLarge(f"a transaction has at most {TRANSACTION_MUTATIONS:,} mutations",
                           hint="commit in several transactions", limit=TRANSACTION_MUTATIONS)
        self._mutations[key] = mutation

    def _open(self) -> None:
        if self._used:
            raise Misuse("this transaction is over", hint="begin another one")

    def _steps(self) -> Steps[int]:
        """The commit of what was gathered, as an operation; its revision."""
        self._open()
        self._used = True
        if not self._conditions and not self._mutations:
            return 0
        outcome: Outcome = yield Transact(tuple(self._conditions),
                                          tuple(self._mutations.values()))
        self.revision, self._outcome = outcome.revision, outcome
        for (key, mutation), result in zip(self._mutations.items(), outcome.results, strict=True):
            if type(mutation) is not Put:
                self.results[key] = result if isinstance(mutation, Increment) else result == 1
        return self.revision
