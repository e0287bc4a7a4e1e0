"""What a store ought to hold: dicts that know nothing of the store's code.

The model takes the records that became durable, in their order, and works out for itself what each
of them must have done; it answers for every revision there ever was.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgpack

from ckptmesh.facts import (
    ContractChanged,
    EpochBegun,
    Expiry,
    Record,
    SessionEnded,
    SessionOpened,
    Transaction,
)
from ckptmesh.limits import pipeline_of, under
from ckptmesh.messages import (
    DELETE,
    EXPIRE,
    PUT,
    TOUCH,
    Change,
    Commit,
    Condition,
    Delete,
    Exists,
    Increment,
    Mutation,
    Outcome,
    Publication,
    Put,
    RevisionIs,
    Row,
    Rules,
    TokenIs,
    Touch,
    Transact,
    Unchanged,
    Version,
)
from ckptmesh.state import State
from ckptmesh.testing.simulation.world import Broken

HISTORY = 15
"""Revisions that the simulated store keeps in memory (its setting `history_revisions`)."""


class Entry(NamedTuple):
    """A key as it stands; `epoch` is that of its version's revision."""

    version: Version
    epoch: int

    def row(self, key: str) -> Row:
        """As a reply shows it."""
        return Row(key, self.epoch, self.version)


class Model:
    """`facts` are all durable revisions in order, from 1; `sessions` the outcomes that each open
    session may still ask for, by number."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        self.facts: list[Commit] = []
        self.sessions: dict[bytes, dict[int, Outcome]] = {}
        self.opened: dict[bytes, tuple[int, int]] = {}  # session → (epoch, revision) at its opening
        self.used: dict[bytes, int] = {}  # session → store time of its last known use
        self.epoch = 0
        self.time = 0
        self.contracts: list[tuple[int, str, Rules]] = []  # (head then, prefix, contract)
        self._versions: dict[str, list[tuple[int, Entry | None]]] = {}

    @property
    def head(self) -> int:
        """The last durable revision."""
        return len(self.facts)

    # --- what becomes durable --------------------------------------------------------------------

    def take(self, record: Record) -> None:
        """Take a record that is no transaction."""
        match record:
            case Expiry(time, key):
                if key not in self.entries:
                    raise Broken(f"revision {self.head + 1}: {key} expired and was not there")
                self._commit(time, (self._change(0, EXPIRE, key, None),))
            case EpochBegun(epoch):
                if epoch <= self.epoch:
                    raise Broken(f"epoch {epoch} follows {self.epoch}")
                self.epoch = epoch
            case SessionOpened(session, time):
                self.sessions[session] = {}
                self.opened[session] = (self.epoch, self.head)
                self.used[session] = time
            case ContractChanged(_, prefix, contract):
                self.contracts.append((self.head, prefix, contract))
            case SessionEnded(session):
                if self.sessions.pop(session, None) is None:
                    raise Broken(f"session {session.hex()} ends, which was not open")
        time = getattr(record, "time", self.time)
        if time < self.time:
            raise Broken(f"store time went back from {self.time} to {time}")
        self.time = time

    def transaction(self, record: Transaction, command: Transact, part: int = 0) -> Commit:
        """Take the transaction that a command became. Raises `Broken` for any difference.

        `part`: which of its puts, where each has a revision of its own.
        """
        revision = self.head + 1
        for condition in command.conditions if part == 0 else ():
            if not self.holds(condition, record.time):
                raise Broken(f"revision {revision} was committed though {condition} did not "
                             f"hold; {condition[0]} is {self.entries.get(condition[0])}")
        mutations = command.mutations[part : part + 1] if command.each else command.mutations
        for mutation in mutations:
            for contract in self.contracts_of(mutation.key, self.head):
                rule = self.broken(mutation, contract, self.alive(mutation.key, record.time))
                if rule:
                    raise Broken(f"revision {revision}: {mutation} breaks {rule} of {contract}")
        expected = [self._effect(mutation, record.time) for mutation in mutations]
        if tuple(result for _, result in expected) != record.results:
            raise Broken(f"revision {revision}: results {record.results}, expected {expected}")
        written = [effect for effect, _ in expected if effect is not None]
        if [(w.kind, w.key) for w in record.writes] != [(kind, key) for kind, key, _ in written]:
            raise Broken(f"revision {revision} writes {record.writes}, expected {written}")
        outcomes = self.sessions.get(record.session)
        if outcomes is None:
            raise Broken(f"revision {revision} is of a session that is not open")
        for number in [number for number in outcomes if number < record.low]:
            del outcomes[number]
        changes = tuple(self._change(index, *effect) for index, effect in enumerate(written))
        commit = self._commit(record.time, changes, record.session, record.number, record.results)
        before = outcomes[record.number].results if part else ()
        outcomes[record.number] = outcome_of(commit)._replace(results=before + commit.results)
        self.used[record.session] = record.time
        return commit

    def _commit(self, time: int, changes: tuple[Change, ...], session: bytes = b"",
                number: int = 0, results: tuple[int, ...] = ()) -> Commit:
        commit = Commit(self.head + 1, self.epoch, time, changes, session, number, results)
        self.facts.append(commit)
        self.time = max(self.time, time)
        return commit

    def _change(self, index: int, kind: int, key: str, entry: Entry | None) -> Change:
        if entry is None:
            self.entries.pop(key, None)
        else:
            self.entries[key] = entry
        self._versions.setdefault(key, []).append((self.head + 1, entry))
        return Change(index, kind, key, entry.version if entry else None)

    def _effect(self, mutation: Mutation, time: int) -> tuple[
            tuple[int, str, Entry | None] | None, int]:
        """((kind, key, what it becomes) or None where nothing is to do, result)."""
        key = mutation.key
        standing = self.alive(key, time)
        if isinstance(mutation, Put | Increment) and mutation.ttl is None:
            given = [c.ttl for c in self.contracts_of(key, self.head) if c.ttl is not None]
            if given and (isinstance(mutation, Put) or standing is None):
                mutation = mutation._replace(ttl=given[0])
        match mutation:
            case Put(_, value, ttl, lease, position, head, sources):
                expires = time + ttl if ttl is not None and not lease else None
                entry = self._next(key, value, time, Version(
                    value, 0, 0, 0, 0, expires, ttl if lease else None, position, head, sources))
                return (PUT, key, entry), entry.version.version
            case Delete():
                return ((DELETE, key, None), 1) if standing else (None, 0)
            case Touch(_, ttl):
                if standing is None:
                    return None, 0
                expires = None if ttl is None else time + ttl
                touched = standing.version._replace(expires_at=expires)
                return (TOUCH, key, standing._replace(version=touched)), 1
            case Increment(_, by, ttl):
                count = (msgpack.unpackb(standing.version.value) if standing else 0) + by
                expires = time + ttl if ttl is not None else (
                    standing.version.expires_at if standing else None)
                value = msgpack.packb(count)
                return (PUT, key, self._next(key, value, time, Version(
                    value, 0, 0, 0, 0, expires))), count

    def _next(self, key: str, value: bytes, time: int, version: Version) -> Entry:
        standing, revision = self.alive(key, time), self.head + 1
        created, count = ((standing.version.create_revision, standing.version.version)
                          if standing else (revision, 0))
        return Entry(version._replace(revision=revision, create_revision=created,
                                      version=count + 1, time=time), self.epoch)

    def contracts_of(self, key: str, head: int) -> list[Rules]:
        """The contracts that covered a key when the head was there, the longest prefix first."""
        last = {prefix: contract for at, prefix, contract in self.contracts if at <= head}
        return [last[prefix] for prefix in sorted(last, key=len, reverse=True)
                if covers(prefix, key)]

    @staticmethod
    def broken(mutation: Mutation, contract: Rules, standing: Entry | None) -> str:
        """The rule that a mutation breaks; "": none."""
        if not isinstance(mutation, Put | Increment):
            return ""
        new = getattr(mutation, "position", None)
        old = standing.version.position if standing else None
        fails = {
            "required": contract.required and new is None,
            "monotonic": contract.monotonic and old is not None and (new is None or new < old),
            "max_step": contract.max_step is not None and old is not None and new is not None
            and new - old > contract.max_step,
            "max_bytes": contract.max_bytes is not None and isinstance(mutation, Put)
            and len(mutation.value) > contract.max_bytes,
        }
        return next((rule for rule, failed in fails.items() if failed), "")

    def same(self, state: State, where: str) -> None:
        """Whether a state is what is durable: keys, versions, sessions, the floor."""
        if state.entries.keys() != self.entries.keys():
            raise Broken(f"{where}: other keys than were durable: "
                         f"{sorted(state.entries.keys() ^ self.entries.keys())}")
        for key, entry in self.entries.items():
            if state.entries[key] != entry.version:
                raise Broken(f"{where}: {key} is {state.entries[key]}; durable was "
                             f"{entry.version}")
        sessions = {sid: {number: outcome for number, (_, outcome) in table.outcomes.items()}
                    for sid, table in state.sessions.items()}
        if sessions != self.sessions:
            raise Broken(f"{where}: sessions are {sessions}; durable were {self.sessions}")
        if (state.epoch, state.floor) != (self.epoch, self.floor()):
            raise Broken(f"{where}: epoch {state.epoch}, floor {state.floor}; they are "
                         f"{self.epoch}, {self.floor()}")

    # --- questions -------------------------------------------------------------------------------

    def floor(self, revision: int | None = None) -> int:
        """The oldest cut that memory holds, at the head or at an earlier revision."""
        return max(0, (self.head if revision is None else revision) - HISTORY)

    def alive(self, key: str, time: int) -> Entry | None:
        """The key as a reader at this store time must find it."""
        return unexpired(self.entries.get(key), time)

    def at(self, key: str, revision: int) -> Entry | None:
        """The key as it stood after a revision, TTLs not considered."""
        for since, entry in reversed(self._versions.get(key, ())):
            if since <= revision:
                return entry
        return None

    def holds(self, condition: Condition, time: int) -> bool:
        """Whether a condition holds at the head."""
        match condition:
            case RevisionIs(key, revision):
                entry = self.alive(key, time)
                return (entry.version.revision if entry else 0) == revision
            case TokenIs(key, epoch, revision):
                return self.held(key, epoch, revision, self.head)
            case Exists(key):
                return self.alive(key, time) is not None
            case Unchanged(prefix, since):
                return not self.changed(prefix, since) and not any(
                    under(prefix, key) and self.alive(key, time) is None for key in self.entries)

    def held(self, key: str, epoch: int, revision: int, at: int) -> bool:
        """Whether this very lease stood after revision `at`."""
        entry = self.at(key, at)
        return (entry is not None and entry.version.lease is not None
                and (entry.epoch, entry.version.revision) == (epoch, revision))

    def changed(self, prefix: str, since: int) -> bool:
        """Whether anything under a prefix changed after a revision, touches not counted."""
        return any(change.kind != TOUCH and under(prefix, change.key)
                   for fact in self.facts[since:] for change in fact.changes)

    def keys(self, prefix: str, after: str, revision: int, time: int) -> list[str]:
        """The keys that a scan of that cut shows, in order."""
        return sorted(key for key in self._versions if key > after and under(prefix, key)
                      and unexpired(self.at(key, revision), time))

    def written(self, key: str, head: int) -> list[Entry]:
        """All versions that were put under a key up to a revision, newest first. A touched one
        is as its last touch left it."""
        versions = {entry.version.revision: entry for since, entry in self._versions.get(key, ())
                    if entry is not None and since <= head}
        return list(reversed(versions.values()))

    def not_later(self, time: int, head: int) -> int:
        """The last revision up to `head` whose time is not later."""
        return min(head, bisect_right(self.facts, time, key=lambda fact: fact.time))

    def pointers(self, pipeline: str, revision: int) -> range:
        """What may be published as the revision before this one in that pipeline: where memory no
        longer holds it, anything from there up to the floor."""
        last = next((fact.revision for fact in reversed(self.facts[: revision - 1])
                     if any(pipeline_of(change.key) == pipeline for change in fact.changes)), 0)
        return range(last, max(last, self.floor(revision - 1)) + 1)

    def publications(self, uuid: bytes, after: int) -> list[Publication]:
        """What is to be published of the revisions after this one, with the highest pointers that
        it may have."""
        found = []
        for fact in self.facts[after:]:
            pipelines = list(dict.fromkeys(pipeline_of(change.key) for change in fact.changes))
            for part, pipeline in enumerate(pipelines):
                changes = tuple(change for change in fact.changes
                                if pipeline_of(change.key) == pipeline)
                found.append(Publication(
                    pipeline, uuid, self.pointers(pipeline, fact.revision)[-1], fact.revision - 1,
                    part, len(pipelines), fact._replace(changes=changes)))
        return found

    def recent(self, after: int) -> dict[str, int]:
        """The last revision of every pipeline that changed after this one."""
        return {pipeline_of(change.key): fact.revision for fact in self.facts[after:]
                for change in fact.changes}

    def events(self, prefix: str, after: int) -> list[tuple[Commit, Change]]:
        """All events under a prefix after a revision."""
        return [(fact, change) for fact in self.facts[after:]
                for change in fact.changes if under(prefix, change.key)]


def outcome_of(commit: Commit) -> Outcome:
    """What its client is to be told of a commit, however often it asks."""
    return Outcome(commit.revision, commit.epoch, commit.time, commit.results)


def revisions_of(command: Transact, outcome: Outcome) -> Sequence[int]:
    """The revision that each mutation of an accepted command took."""
    count, last = len(command.mutations), outcome.revision
    return range(last - count + 1, last + 1) if command.each else (last,) * count


def covers(prefix: str, key: str) -> bool:
    """Whether a contract on a prefix is one on a key: not on the store's own keys below it."""
    return under(prefix, key) and "/_" not in key.removeprefix(prefix)


def unexpired(entry: Entry | None, time: int) -> Entry | None:
    """The entry, None once its TTL is over at this store time."""
    if entry is None or (entry.version.expires_at is not None
                         and entry.version.expires_at <= time):
        return None
    return entry


class Place(NamedTuple):
    """How far a log has come: its last revision, epoch, time, and the time that it reserved."""

    revision: int
    epoch: int
    time: int
    reserved: int


def behind(place: Place, records: Sequence[Record]) -> Place:
    """The place after these records."""
    revision, epoch, time, reserved = place
    for record in records:
        revision += isinstance(record, Transaction | Expiry)
        epoch = record.epoch if isinstance(record, EpochBegun) else epoch
        time = getattr(record, "time", time)
        reserved = getattr(record, "until", reserved)
    return Place(revision, epoch, time, reserved)


def details(state: State) -> dict[str, Any]:
    """All that a state knows, by name, in an order of its own."""
    plain = ("uuid", "revision", "floor", "floor_time", "time", "reserved", "epochs", "settings",
             "entries", "touched", "older", "pointers", "leases", "expiring", "loss", "accepted")
    return {
        **{name: getattr(state, name) for name in plain},
        "contracts": [*state.contracts],
        "sessions": {sid: (table.time, table.name, table.low, table.outcomes)
                     for sid, table in state.sessions.items()},
        "commits": [*state.ring.after(state.floor)],
        "due": sorted(state.due(2**62)),
        "keys": [*state.keys.under("")],
        "past keys": [*state.past_keys.under("")],
    }
