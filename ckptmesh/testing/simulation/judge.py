"""The judge: sees what becomes durable, what clients were told, and what watchers were given.

It has a model of its own, a dict, which knows nothing of the store's code. It looks at every step:

    written, synced     the records of a frame, before and after their sync
    recovered           what a start found: each synced frame, and the unsynced one whole or not
    asked, answered     the life of a request, as its client saw it
    given               an event that a watcher gave out

Every broken promise is a `Broken`, raised where it shows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgpack

from ckptmesh.errors import (
    Compacted,
    CompactionFailed,
    Conflict,
    Corrupt,
    DataLoss,
    Error,
    LeaseLost,
    OutcomeUnknown,
    OutOfSpace,
    QuotaExceeded,
    Unavailable,
    Unsupported,
)
from ckptmesh.facts import TAKES_REVISION, EpochBegun, Expiry, Record, Transaction
from ckptmesh.limits import under
from ckptmesh.messages import (
    DELETE,
    EXPIRE,
    PUT,
    TOUCH,
    Command,
    Condition,
    Delete,
    Exists,
    Get,
    Increment,
    KeepAlive,
    Mutation,
    Outcome,
    Put,
    RevisionIs,
    Rows,
    Scan,
    TokenIs,
    Touch,
    Transact,
    Unchanged,
)
from ckptmesh.state import State
from ckptmesh.testing.simulation.world import Broken, World

_REFUSALS = (Conflict, LeaseLost, OutOfSpace, QuotaExceeded, Compacted, Unavailable)
_HONEST = (*_REFUSALS, OutcomeUnknown, CompactionFailed)


_Frame = tuple[Sequence[Record], int]  # records, first revision


@dataclass(slots=True, eq=False)
class Operation:
    """One thing that a client asked for. `ids`: the (session, number) pairs its copies carried."""

    client: str
    what: str
    command: Command
    asked: int
    floor: int  # highest revision that anybody had seen acknowledged when it was asked
    ids: list[tuple[bytes, int]] = field(default_factory=list)
    answered: int | None = None
    result: Any = None
    error: Error | None = None
    absent: bool = False  # somebody was told that it has not happened, and never will
    revision: int = 0  # at which it took effect


class Entry(NamedTuple):
    """A key as it stands."""

    value: bytes
    revision: int
    create_revision: int
    version: int
    epoch: int
    expires_at: int | None
    lease: int | None


class Fact(NamedTuple):
    """What became durable at one revision: (kind, key, value) of each change."""

    revision: int
    time: int
    changes: tuple[tuple[int, str, bytes | None], ...]


class Judge:
    """See the module. `facts` are all durable revisions in order, from 1."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.entries: dict[str, Entry] = {}
        self.facts: list[Fact] = []
        self.operations: list[Operation] = []
        self._versions: dict[str, list[tuple[int, Entry | None]]] = {}
        self._by_id: dict[tuple[bytes, int], Operation] = {}
        self._applied: dict[tuple[bytes, int], int] = {}
        self._pending: _Frame | None = None  # written, its sync not yet returned
        self._left: list[_Frame] = []  # by processes that ended meanwhile
        self._epoch = 0
        self._time = 0
        self.acknowledged = 0  # highest revision that anybody was told
        self.clock: Callable[[], int] = lambda: world.now  # true time, as the store has it
        self._held_until: dict[tuple[str, int], int] = {}  # (lease, its revision) → true time
        self._expired: dict[tuple[str, int], int] = {}  # likewise: when it expired

    @property
    def head(self) -> int:
        return len(self.facts)

    # --- the log ---------------------------------------------------------------------------------

    def written(self, records: Sequence[Record], first_revision: int) -> None:
        """A frame goes to the disk."""
        if self._pending is not None:
            raise Broken("a frame is written while the one before it is not durable")
        self._pending = (tuple(records), first_revision)

    def synced(self) -> None:
        """The sync of that frame returned."""
        assert self._pending is not None
        pending, self._pending = self._pending, None
        left, self._left = self._left, []
        for frame in (*left, pending):
            self._durable(*frame)

    def recovered(self, state: State) -> None:
        """A start found this state. Frames that were written and not synced may be in it, the
        first of them first; they are durable only once this start has synced a frame of its own."""
        left = [*self._left, *([self._pending] if self._pending else [])]
        self._pending = None
        here = (self.head, self._epoch, self._time)
        wanted = (state.revision, state.epoch, state.time)
        found = 0 if here == wanted else None
        for number, (records, _) in enumerate(left, 1):
            here = _behind(here, records)
            if here == wanted:
                found = number
        if found is None:
            raise Broken(f"revision {self.head} of epoch {self._epoch} was durable, revision "
                         f"{state.revision} of epoch {state.epoch} is recovered")
        self._left = left[:found]

    def settled_batch(self, state: State) -> None:
        """A batch is over: what the store shows from now on is what is durable."""
        if state.revision != self.head:
            raise Broken(f"the store shows revision {state.revision}; {self.head} are durable")

    def same(self, state: State, where: str) -> None:
        """Whether the state is what is durable, key by key."""
        if state.entries.keys() != self.entries.keys():
            raise Broken(f"{where}: other keys than were durable: "
                         f"{sorted(state.entries.keys() ^ self.entries.keys())}")
        for key, entry in self.entries.items():
            found = state.entries[key]
            got = (found.value, found.revision, found.create_revision, found.version,
                   found.expires_at, found.lease)
            if got != entry._replace(epoch=0)[:4] + entry[5:]:
                raise Broken(f"{where}: {key} is {got}; durable was {entry}")

    def store_failed(self, error: Error, *, unreadable: bool) -> None:
        """A store ended by itself; `unreadable`: the disk failed to read, which is damage."""
        if not unreadable and isinstance(error, Corrupt | DataLoss | Unsupported):
            raise Broken(f"the store ended, though nothing was damaged: {error}")

    # --- what becomes durable --------------------------------------------------------------------

    def _durable(self, records: Sequence[Record], first_revision: int) -> None:
        if first_revision != self.head + 1:
            raise Broken(f"revision {first_revision} follows {self.head}")
        for record in records:
            if type(record) is Transaction:
                self._transaction(record)
            elif type(record) is Expiry:
                self._expiry(record)
            elif type(record) is EpochBegun:
                if record.epoch <= self._epoch:
                    raise Broken(f"epoch {record.epoch} follows {self._epoch}")
                self._epoch = record.epoch
            self._runs_on(getattr(record, "time", self._time))

    def _runs_on(self, time: int) -> None:
        if time < self._time:
            raise Broken(f"store time went back from {self._time} to {time}")
        self._time = time

    def _transaction(self, record: Transaction) -> None:
        revision = self.head + 1
        identity = (record.session, record.number)
        if identity in self._applied:
            raise Broken(f"request {record.number} took effect at revisions "
                         f"{self._applied[identity]} and {revision}")
        self._applied[identity] = revision
        operation = self._by_id.get(identity)
        if operation is None:
            raise Broken(f"revision {revision} is of a request that nobody sent")
        if operation.absent:
            raise Broken(f"{operation.what} of {operation.client} was said to be absent, and "
                         f"took effect at revision {revision}")
        if operation.revision:
            raise Broken(f"{operation.what} of {operation.client} took effect at revisions "
                         f"{operation.revision} and {revision}")
        operation.revision = revision
        command = operation.command
        assert isinstance(command, Transact)
        for condition in command.conditions:
            if not self.holds(condition, record.time):
                raise Broken(f"revision {revision} was committed though {condition} did not "
                             f"hold; {condition[0]} is {self.entries.get(condition[0])}")
        expected = [self._effect(mutation, record.time) for mutation in command.mutations]
        if tuple(result for _, result in expected) != record.results:
            raise Broken(f"revision {revision}: results {record.results}, expected {expected}")
        changes: list[tuple[int, str, bytes | None]] = []
        for change, _ in expected:
            if change is not None:
                changes.append(self._take(revision, *change))
        written = tuple((w.kind, w.key) for w in record.writes)
        if written != tuple((kind, key) for kind, key, _ in changes):
            raise Broken(f"revision {revision} writes {written}, expected {changes}")
        self.facts.append(Fact(revision, record.time, tuple(changes)))

    def _effect(self, mutation: Mutation, time: int) -> tuple[
            tuple[int, str, Entry | None] | None, int]:
        """((kind, key, what it becomes) or None where nothing is to do, result)."""
        revision, key = self.head + 1, mutation.key
        standing = self.alive(key, time)
        created = standing.create_revision if standing else revision
        version = standing.version + 1 if standing else 1
        match mutation:
            case Put(_, value, ttl, lease):
                expires = time + ttl if ttl is not None and not lease else None
                return (PUT, key, Entry(value, revision, created, version, self._epoch, expires,
                                        ttl if lease else None)), version
            case Delete():
                return ((DELETE, key, None), 1) if standing else (None, 0)
            case Touch(_, ttl):
                if standing is None:
                    return None, 0
                expires = None if ttl is None else time + ttl
                return (TOUCH, key, standing._replace(expires_at=expires)), 1
            case Increment(_, by, ttl):
                count = (msgpack.unpackb(standing.value) if standing else 0) + by
                expires = time + ttl if ttl is not None else (
                    standing.expires_at if standing else None)
                return (PUT, key, Entry(msgpack.packb(count), revision, created, version,
                                        self._epoch, expires, None)), count

    def _take(self, revision: int, kind: int, key: str,
              entry: Entry | None) -> tuple[int, str, bytes | None]:
        if entry is None:
            self.entries.pop(key, None)
        else:
            self.entries[key] = entry
        self._versions.setdefault(key, []).append((revision, entry))
        return kind, key, entry.value if entry else None

    def _expiry(self, record: Expiry) -> None:
        revision = self.head + 1
        entry = self.entries.get(record.key)
        if entry is None:
            raise Broken(f"revision {revision}: {record.key} expired and was not there")
        if entry.lease is not None:
            until = self._held_until.get((record.key, entry.revision), 0)
            if self.clock() < until:
                raise Broken(f"the lease {record.key} of revision {entry.revision} ended "
                             f"{until - self.clock()} µs before its holder's time")
            self._expired[(record.key, entry.revision)] = self.clock()
        elif entry.expires_at is None or record.time < entry.expires_at:
            raise Broken(f"{record.key} expired at {record.time}; due {entry.expires_at}")
        change = self._take(revision, EXPIRE, record.key, None)
        self.facts.append(Fact(revision, record.time, (change,)))

    # --- questions to the model ------------------------------------------------------------------

    def alive(self, key: str, time: int) -> Entry | None:
        """The key as a reader at this store time must find it."""
        return _unexpired(self.entries.get(key), time)

    def holds(self, condition: Condition, time: int) -> bool:
        """Whether a condition holds at the head."""
        match condition:
            case RevisionIs(key, revision):
                entry = self.alive(key, time)
                return (entry.revision if entry else 0) == revision
            case TokenIs(key, epoch, revision):
                entry = self.entries.get(key)
                return (entry is not None and entry.lease is not None
                        and (entry.epoch, entry.revision) == (epoch, revision))
            case Exists(key):
                return self.alive(key, time) is not None
            case Unchanged(prefix, since):
                return not any(kind != TOUCH and under(prefix, key)
                               for fact in self.facts[since:] for kind, key, _ in fact.changes)

    def _at(self, key: str, revision: int) -> Entry | None:
        for at, entry in reversed(self._versions.get(key, ())):
            if at <= revision:
                return entry
        return None

    # --- clients ---------------------------------------------------------------------------------

    def asked(self, client: str, what: str, command: Command) -> Operation:
        """A client asks for something."""
        operation = Operation(client, what, command, self._world.now, self.acknowledged)
        self.operations.append(operation)
        return operation

    def sent(self, operation: Operation, session: bytes, number: int) -> None:
        """A copy of it was sent under this number."""
        identity = (session, number)
        other = self._by_id.setdefault(identity, operation)
        if other is not operation:
            raise Broken(f"{operation.what} has the number of {other.what}")
        if identity not in operation.ids:
            operation.ids.append(identity)

    def answered(self, operation: Operation, result: Any, error: Error | None) -> None:
        """Its client was told this."""
        operation.answered, operation.result, operation.error = self._world.now, result, error
        command = operation.command
        if error is not None:
            if not isinstance(error, _HONEST):
                raise Broken(f"{operation.client} was told, of {operation.what}: "
                             f"{type(error).__name__}: {error}")
            if isinstance(error, _REFUSALS) and isinstance(command, Transact):
                self.gone(operation)
        elif isinstance(command, Transact):
            self._committed(operation, result)
        elif isinstance(result, Rows):
            self._read(operation, command, result)
        elif isinstance(command, KeepAlive):
            self._kept(command.key, command.revision, operation.asked + result)

    def gone(self, operation: Operation) -> None:
        """Somebody was told that this has not happened, and never will."""
        operation.absent = True
        if operation.revision:
            raise Broken(f"{operation.what} of {operation.client} was said to be absent; it is "
                         f"revision {operation.revision}")

    def found(self, operation: Operation, outcome: Outcome | None) -> None:
        """What became of an operation whose client was left in doubt, as it asked later."""
        if outcome is None:
            self.gone(operation)
        elif outcome.revision != operation.revision:
            raise Broken(f"{operation.what} is said to be revision {outcome.revision}; it is "
                         f"{operation.revision}")

    def left_in_doubt(self, error: Error) -> None:
        """A client asked what became of an operation, and was not told."""
        if not isinstance(error, OutcomeUnknown | Unavailable | Compacted):
            raise Broken(f"asking later was answered {type(error).__name__}: {error}")

    def _committed(self, operation: Operation, outcome: Outcome) -> None:
        if outcome.revision > self.head:
            raise Broken(f"revision {outcome.revision} was told; {self.head} are durable")
        if operation.revision:
            if outcome.revision != operation.revision:
                raise Broken(f"{operation.what} was told revision {outcome.revision}; it is "
                             f"{operation.revision}")
            if outcome.revision <= operation.floor:
                raise Broken(f"{operation.what} took effect at {outcome.revision}, though "
                             f"{operation.floor} was acknowledged before it was asked")
        elif any(outcome.results):
            raise Broken(f"{operation.what} was acknowledged and is not durable: {outcome}")
        self.acknowledged = max(self.acknowledged, outcome.revision)
        for mutation in operation.command.mutations:  # type: ignore[union-attr]
            if isinstance(mutation, Put) and mutation.lease:
                self._kept(mutation.key, outcome.revision, operation.asked + (mutation.ttl or 0))

    def _kept(self, key: str, revision: int, until: int) -> None:
        """The holder of a lease counts on having it until then."""
        lease = (key, revision)
        ended = self._expired.get(lease)
        if ended is not None and ended < until:
            raise Broken(f"the lease {key} of revision {revision} ended {until - ended} µs "
                         "before its holder's time")
        self._held_until[lease] = max(until, self._held_until.get(lease, 0))

    def _read(self, operation: Operation, command: Command, rows: Rows) -> None:
        at = getattr(command, "at", None)
        if rows.revision > self.head:
            raise Broken(f"a read shows revision {rows.revision}; {self.head} are durable")
        if at is None and rows.revision < operation.floor:
            raise Broken(f"{operation.what} is stale: it shows revision {rows.revision}; "
                         f"{operation.floor} was acknowledged before it was asked")
        if isinstance(command, Get):
            for key, row in zip(command.keys, rows.found, strict=False):
                self._shown(operation, key, rows, row)
        elif isinstance(command, Scan):
            keys = [row.key for row in rows.found if row is not None]
            wanted = sorted(key for key in self._versions if under(command.prefix, key)
                            and _unexpired(self._at(key, rows.revision), rows.time))
            if keys != wanted[: len(keys)] or (not rows.more and len(keys) != len(wanted)):
                raise Broken(f"{operation.what} shows {keys}; at {rows.revision} there are "
                             f"{wanted}")
            for row in rows.found:
                if row is not None:
                    self._shown(operation, row.key, rows, row)
        if at is None:
            self.acknowledged = max(self.acknowledged, rows.revision)

    def _shown(self, operation: Operation, key: str, rows: Rows, row: Any) -> None:
        entry = _unexpired(self._at(key, rows.revision), rows.time)
        shown = None if row is None else (row.version.value, row.version.revision, row.epoch)
        wanted = None if entry is None else (entry.value, entry.revision, entry.epoch)
        if shown != wanted:
            raise Broken(f"{operation.what} shows {key} as {shown} at revision "
                         f"{rows.revision}; it is {wanted}")

    # --- watchers --------------------------------------------------------------------------------

    def events(self, prefix: str, after: int) -> list[tuple[int, int, str, bytes | None]]:
        """All (revision, kind, key, value) under a prefix after a revision."""
        return [(fact.revision, *change) for fact in self.facts[after:]
                for change in fact.changes if under(prefix, change[1])]


def _behind(place: tuple[int, int, int], records: Sequence[Record]) -> tuple[int, int, int]:
    """(revision, epoch, time) after these records."""
    revision, epoch, time = place
    for record in records:
        revision += type(record) in TAKES_REVISION
        epoch = record.epoch if type(record) is EpochBegun else epoch
        time = getattr(record, "time", time)
    return revision, epoch, time


def _unexpired(entry: Entry | None, time: int) -> Entry | None:
    if entry is None or (entry.expires_at is not None and entry.expires_at <= time):
        return None
    return entry
