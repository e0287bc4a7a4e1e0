"""What a store ought to hold, as plain dicts: the model that stores are compared with.

Rule 1: to be checked by reading. No files, no bounds but the floor, every past state kept whole.
Rule 2: a refusal raises the error that a store raises, and changes nothing.
Rule 3: nothing here knows the time: `now` is store time, an argument, in microseconds.

Writes are those of the one mutating command, a transaction: a create is a put under the condition
that nothing stands there, a release of a lease a delete under its token, and so on.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from ckptmesh.errors import (
    Compacted,
    Conflict,
    DataLoss,
    FutureRevision,
    InvalidRequest,
    InvalidValue,
    LeaseLost,
)
from ckptmesh.limits import INTEGER_MAX, INTEGER_MIN, under
from ckptmesh.messages import (
    Condition,
    Delete,
    Exists,
    Increment,
    Mutation,
    Put,
    RevisionIs,
    TokenIs,
    Touch,
    Unchanged,
)


class Entry(NamedTuple):
    """What stands under a key. `ends`: when its TTL, or its lease if nobody renews it, is over;
    `lease`: its full TTL if it is a lease. Times in microseconds."""

    value: Any
    revision: int
    create_revision: int
    version: int
    epoch: int
    ends: int | None = None
    lease: int | None = None
    position: int | None = None
    head: int | None = None

    def alive(self, now: int) -> bool:
        """Whether a read at `now` finds it. A lease is there until its end is recorded."""
        return self.lease is not None or self.ends is None or self.ends > now


class Happened(NamedTuple):
    """A change of one key: "put", "delete", "expire" or "touch". `entry` is None where it went."""

    revision: int
    kind: str
    key: str
    entry: Entry | None


class Model:
    """A store for one who has all the memory in the world.

    `entries`: the present, with keys whose expiry is due and not recorded yet. `cuts`: for each
    revision its time and all that stood there after it. `events`: all changes, in order. `depth`:
    how many revisions can be read back; below `floor` the answer is `Compacted`.
    """

    def __init__(self, depth: int | None = None) -> None:
        self.entries: dict[str, Entry] = {}
        self.revision = 0
        self.cuts: dict[int, tuple[int, dict[str, Entry]]] = {0: (0, {})}
        self.events: list[Happened] = []
        self.depth = depth
        self.floor = 0

    # --- reads --------------------------------------------------------------------------------

    def get(self, key: str, now: int) -> Entry | None:
        """What a read at `now` finds under a key."""
        entry = self.entries.get(key)
        return entry if entry is not None and entry.alive(now) else None

    def scan(self, prefix: str, now: int) -> dict[str, Entry]:
        """All under a prefix (whole segments), in key order."""
        return _standing(self.entries, prefix, now)

    def at(self, revision: int, prefix: str = "") -> dict[str, Entry]:
        """As `scan`, as it stood after a revision, at that revision's time.

        Raises `Compacted` below the floor, `FutureRevision` beyond the head.
        """
        if revision > self.revision:
            raise FutureRevision("beyond the head", revision=self.revision)
        if revision < self.floor:
            raise Compacted("below the floor", floor=self.floor)
        time, entries = self.cuts[max(r for r in self.cuts if r <= revision)]
        return _standing(entries, prefix, time)

    def history(self, key: str) -> list[Entry]:
        """Every version that was ever written to a key, newest first."""
        versions = {event.entry.revision: event.entry for event in self.events
                    if event.key == key and event.entry is not None}
        return [versions[revision] for revision in sorted(versions, reverse=True)]

    def since(self, revision: int, prefix: str = "") -> list[Happened]:
        """What a watch from this revision on has to see."""
        return [event for event in self.events
                if event.revision > revision and under(prefix, event.key)]

    def due(self, now: int) -> list[str]:
        """Keys, leases among them, whose time is over by `now` and whose end is not recorded."""
        return [key for key, entry in sorted(self.entries.items())
                if entry.ends is not None and entry.ends <= now]

    # --- writes -------------------------------------------------------------------------------

    def transact(self, conditions: Iterable[Condition], mutations: Sequence[Mutation], now: int, *,
                 epoch: int = 1, revision: int | None = None) -> tuple[int, ...]:
        """All or nothing: what each mutation tells (put: the version; delete and touch: 1 where
        the key existed; increment: the count). `revision`: the one that the store took, where it
        does not just take the next.

        Raises `Conflict`, `LeaseLost`, `InvalidRequest`, `InvalidValue`, `Compacted`, `DataLoss`.
        """
        for condition in conditions:
            self.check(condition, now)
        overdue = [each.key for each in mutations
                   if each.key in self.entries and self.get(each.key, now) is None]
        taken = self.revision + len(overdue) + 1 if revision is None else revision
        effects = [_effect(each, self.get(each.key, now), now, epoch, taken) for each in mutations]
        changes = [change for change, _ in effects if change is not None]
        if changes:  # expiries that are due come first for the keys that it names
            self.expire(overdue, now)
            self._take(taken, now, changes)
        return tuple(result for _, result in effects)

    def check(self, condition: Condition, now: int) -> None:
        """Whether a condition holds. Raises as `transact` when it does not."""
        match condition:
            case RevisionIs(key, revision):
                entry = self.get(key, now)
                if (entry.revision if entry else 0) != revision:
                    raise Conflict(f"{key!r}: {entry}, not {revision}", key=key, current=entry)
            case Exists(key):
                if self.get(key, now) is None:
                    raise Conflict(f"{key!r} does not exist", key=key, current=None)
            case TokenIs(key, epoch, revision):
                entry = self.entries.get(key)
                if entry is None or entry.lease is None or (
                        entry.epoch, entry.revision) != (epoch, revision):
                    raise LeaseLost(f"{key!r}: {entry}", key=key)
            case Unchanged(prefix, since):
                self._unchanged(prefix, since, now)

    def _unchanged(self, prefix: str, since: int, now: int) -> None:
        if since > self.revision:
            raise DataLoss("beyond the head", revision=since)
        if since < self.floor:
            raise Compacted("below the floor", floor=self.floor)
        over = [key for key in self.due(now)
                if under(prefix, key) and self.entries[key].lease is None]
        changed = [event.key for event in self.since(since, prefix) if event.kind != "touch"]
        if over or changed:
            raise Conflict(f"changed after {since}: {over + changed}", key=(over + changed)[0])

    def keepalive(self, key: str, epoch: int, revision: int, now: int) -> int:
        """Renew a lease by its full TTL, which is returned. Raises `LeaseLost`."""
        self.check(TokenIs(key, epoch, revision), now)
        ttl = self.entries[key].lease or 0
        self.entries[key] = self.entries[key]._replace(ends=now + ttl)
        return ttl

    def move_leases(self, end: int | None = None, by: int = 0) -> None:
        """Deadlines of leases are volatile: after a restart at `end` each has its full TTL again,
        after a stall of the store all end later `by` so much."""
        for key, entry in self.entries.items():
            if entry.lease is not None and entry.ends is not None:
                ends = entry.ends + by if end is None else end + entry.lease
                self.entries[key] = entry._replace(ends=ends)

    def expire(self, keys: Iterable[str], now: int, revision: int | None = None) -> None:
        """The recorded end of keys, in this order; each takes a revision of its own."""
        for key in keys:
            taken = self.revision + 1 if revision is None else revision
            self._take(taken, now, [("expire", key, None)])

    def _take(self, revision: int, now: int, changes: Iterable[tuple[str, str, Entry | None]]
              ) -> None:
        for kind, key, entry in changes:
            if entry is None:
                del self.entries[key]
            else:
                self.entries[key] = entry
            self.events.append(Happened(revision, kind, key, entry))
        self.revision = revision
        self.cuts[revision] = (now, dict(self.entries))
        self.bound(self.depth)

    def bound(self, depth: int | None) -> None:
        """Keep so many revisions to be read back from now on."""
        self.depth = depth
        if depth is not None:
            self.floor = max(self.floor, self.revision - depth)


def _standing(entries: dict[str, Entry], prefix: str, now: int) -> dict[str, Entry]:
    return {key: entry for key, entry in sorted(entries.items())
            if under(prefix, key) and entry.alive(now)}


def _effect(mutation: Mutation, entry: Entry | None, now: int, epoch: int, revision: int
            ) -> tuple[tuple[str, str, Entry | None] | None, int]:
    """What becomes of a key (None: nothing) and what is told about it."""
    key = mutation.key
    created, version = (entry.create_revision, entry.version + 1) if entry else (revision, 1)
    match mutation:
        case Put(_, value, ttl, lease, position, head):
            new = Entry(value, revision, created, version, epoch, now + ttl if ttl else None,
                        ttl if lease else None, position, head)
            return ("put", key, new), version
        case Delete():
            return ("delete", key, None) if entry else None, int(entry is not None)
        case Touch(_, ttl):
            if entry is None:
                return None, 0
            _no_lease(key, entry)
            return ("touch", key, entry._replace(ends=now + ttl if ttl else None)), 1
        case Increment(_, by, ttl):
            _no_lease(key, entry)
            count = _count(key, entry) + by
            ends = now + ttl if ttl else entry.ends if entry else None
            return ("put", key, Entry(_within(key, count), revision, created, version, epoch,
                                      ends)), count


def _no_lease(key: str, entry: Entry | None) -> None:
    if entry is not None and entry.lease is not None:
        raise InvalidRequest(f"{key!r} is a lease", key=key)


def _count(key: str, entry: Entry | None) -> int:
    count = 0 if entry is None else entry.value
    if type(count) is not int:
        raise InvalidValue(f"{key!r} holds no integer", key=key)
    return count


def _within(key: str, count: int) -> int:
    if not INTEGER_MIN <= count <= INTEGER_MAX:
        raise InvalidValue(f"{key!r} beyond 64 bits", key=key)
    return count
