"""The state of a store, and the only thing that changes it.

Rule 1: `State.apply` is the one mutator; recovery replays it over the log, the serving store runs
        it over what it has just decided, and both arrive at the same state.
Rule 2: everything here follows from the records alone: no clock, no randomness, no I/O.
Rule 3: what is kept for time travel is bounded by settings, which are records too.

Memory holds the current version of every key (`entries`), the versions that came before it as far
as a cut at or above `floor` or the display of history needs them (`older`), and the newest commits
(`ring`). The state at `floor` is the oldest true cut.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha256
from heapq import heapify, heappop, heappush
from itertools import chain, islice, repeat
from typing import Any

import msgpack

from ckptmesh import bulk, limits
from ckptmesh.contracts import Contracts, contract_of
from ckptmesh.entries import (
    Entries,
    Packed,
    Past,
    created_and_count,
    is_shown,
    pack_fields,
    pack_version,
    past_of,
    revision_of,
    since_of,
    unpack_version,
    version_of,
)
from ckptmesh.facts import (
    ContractChanged,
    EpochBegun,
    Expiry,
    LossAccepted,
    LossSuspected,
    PlainWrites,
    Record,
    Sealed,
    SessionEnded,
    SessionOpened,
    SettingChanged,
    TimeReserved,
    Transaction,
    Write,
)
from ckptmesh.messages import (
    DELETE,
    EXPIRE,
    PUT,
    TOUCH,
    Commit,
    Contracted,
    Outcome,
    Version,
    tuple_of,
)
from ckptmesh.timeline import KeyIndex, Ring, Row, commit_of

SETTINGS = {
    "history_revisions": limits.HISTORY_REVISIONS,
    "history_bytes": limits.HISTORY_BYTES,
    "history_versions": limits.HISTORY_VERSIONS,
}
"""Settings that `apply` depends on, with their defaults."""


_EXPIRES_AT = Version._fields.index("expires_at")
_LEASE = Version._fields.index("lease")


class SessionState:
    """What the log knows of one session: the outcomes that its client may still ask for."""

    __slots__ = ("low", "name", "outcomes", "time")

    def __init__(self, time: int, name: str) -> None:
        self.time = time
        self.name = name
        self.low = 1
        self.outcomes: dict[int, tuple[int, Outcome]] = {}  # number → (digest, outcome)

    def advance(self, low: int) -> None:
        """Forget outcomes below `low`: their client has them, or has given up."""
        if low <= self.low:
            return
        if low - self.low > len(self.outcomes):
            self.outcomes = {n: kept for n, kept in self.outcomes.items() if n >= low}
        else:
            for number in range(self.low, low):
                self.outcomes.pop(number, None)
        self.low = low


class State:
    """All that a store knows. Read its attributes freely; change it through `apply` alone."""

    def __init__(self, uuid: bytes = b"") -> None:
        self.uuid = uuid
        self.revision = 0
        self.time = 0  # of the newest record, microseconds
        self.reserved = 0  # time may be told up to here without a record
        self.epochs: list[tuple[int, int]] = []  # (epoch, its first revision), ascending
        self.settings = dict(SETTINGS)
        self.contracts = Contracts()
        self.entries = Entries()
        self._packed = self.entries.packed
        self.touched: dict[str, int] = {}  # key → revision of its last touch, if after its put
        self.older: dict[str, list[Past]] = {}
        self.ring = Ring()
        self.floor_time = 0
        self.pointers: dict[str, int] = {}  # pipeline → its last revision, if above the floor
        self.sessions: dict[bytes, SessionState] = {}
        self.leases: set[str] = set()
        self.expiring = 0  # keys with a TTL (leases not counted)
        self.keys = KeyIndex()
        self.past_keys = KeyIndex()  # keys in `older` that do not exist now
        self.loss: tuple[int, int] | None = None  # (epoch, revision) that a client has seen
        self.accepted: dict[int, int] = {}  # epoch → revision up to which loss was accepted
        self._expiries: list[tuple[int, str]] = []  # heap; stale elements are skipped

    # --- facts ---------------------------------------------------------------------------------

    @property
    def epoch(self) -> int:
        """The newest epoch; 0 for a store that never served."""
        return self.epochs[-1][0] if self.epochs else 0

    @property
    def floor(self) -> int:
        """The oldest revision of which memory holds a true cut of the whole store."""
        return self.ring.first - 1

    def epoch_of(self, revision: int) -> int:
        """The epoch in which a revision was taken."""
        found = bisect_right(self.epochs, revision, key=lambda pair: pair[1])
        return self.epochs[max(0, found - 1)][0] if self.epochs else 0

    def last_of(self, epoch: int) -> int:
        """The last revision of an epoch, present or past (epochs without revisions included)."""
        found = bisect_left(self.epochs, (epoch + 1,))
        return self.epochs[found][1] - 1 if found < len(self.epochs) else self.revision

    def changed_at(self, key: str) -> int:
        """The revision at which the current version came to stand: its own, or of its touch."""
        return self.touched.get(key) or revision_of(self._packed[key])

    def at(self, key: str, revision: int) -> Version | None:
        """The version that stood after a revision at or above the floor, TTLs not considered."""
        if key in self._packed and self.changed_at(key) <= revision:
            return self.entries[key]
        for past in reversed(self.older.get(key, ())):
            if since_of(past) <= revision:
                packed = version_of(past)
                return None if packed is None else unpack_version(packed)
        return None

    def time_of(self, revision: int) -> int:
        """The time of a revision at or above the floor."""
        return self.floor_time if revision <= self.floor else self.ring.time_of(revision)

    def due(self, now: int, most: int | None = None) -> list[str]:
        """Keys whose TTL has ended by `now`, soonest first, up to `most`; leases are not among
        them."""
        found: dict[str, int] = {}
        while self._expiries and self._expiries[0][0] <= now and len(found) != most:
            expires_at, key = heappop(self._expiries)
            packed = self._packed.get(key)
            if type(packed) is tuple and packed[_EXPIRES_AT] == expires_at:
                found[key] = expires_at
        for key, expires_at in found.items():  # they leave by their record, not by being asked for
            heappush(self._expiries, (expires_at, key))
        return list(found)

    def next_expiry(self) -> int | None:
        """When the next TTL may end (never too late a time); None when no key has one."""
        return self._expiries[0][0] if self.expiring and self._expiries else None

    def digest(self) -> str:
        """SHA-256 over revision, keys and versions: equal for equal visible states."""
        whole = sha256(str(self.revision).encode())
        for key in sorted(self.entries):
            whole.update(msgpack.packb((key, self.entries[key])))
        return whole.hexdigest()

    # --- apply ---------------------------------------------------------------------------------

    def apply(self, record: Record) -> Commit | None:
        """Take one record. Returns the commit that it made, if it took a revision.

        Raises `ValueError` for a record that cannot follow: damage or a bug, never user error.
        """
        row = self.take(record)
        return None if row is None else commit_of(self.revision, row)

    def take(self, record: Record) -> Row | None:
        """What `apply` does, for those who need no `Commit`: `timeline.commit_of` makes one of the
        row, which takes a third of the time again."""
        kind = type(record)
        if kind is Transaction:
            return self._transaction(record)  # type: ignore[arg-type]
        if kind is Expiry:
            return self._expiry(record)  # type: ignore[arg-type]
        match record:
            case SessionOpened(session, time, name):
                self._past(time)
                self.sessions[session] = SessionState(time, name)
            case SessionEnded(session, time):
                self._past(time)
                if self.sessions.pop(session, None) is None:
                    raise ValueError("a session ends that was never opened")
            case EpochBegun(epoch, time):
                self._past(time)
                self._begin(epoch)
            case Sealed(time):
                self._past(time)
            case TimeReserved(until):
                self.reserved = until
            case SettingChanged(name, value):
                if name not in SETTINGS:
                    raise ValueError(f"unknown setting {name!r}")
                self.settings[name] = value
                self._bound()
            case ContractChanged(time, prefix, contract):
                self._past(time)
                self.contracts.change(prefix, contract, time)
            case LossSuspected(epoch, revision):
                self.loss = (epoch, revision)
            case LossAccepted():
                if self.loss is not None:
                    epoch, revision = self.loss
                    self.accepted[epoch] = max(revision, self.accepted.get(epoch, 0))
                self.loss = None
            case _:
                raise ValueError(f"unknown record {type(record).__name__}")
        return None

    def _past(self, time: int) -> None:
        if time < self.time:
            raise ValueError(f"time runs back from {self.time} to {time}")
        self.time = time

    def _begin(self, epoch: int) -> None:
        if epoch <= self.epoch:
            raise ValueError(f"epoch {epoch} follows {self.epoch}")
        if self.epochs and self.epochs[-1][1] == self.revision + 1:
            self.epochs.pop()  # it took no revision, so nothing refers to it
        self.epochs.append((epoch, self.revision + 1))

    def _transaction(self, record: Transaction) -> Row:
        session, number, low, digest, time, writes, results = record
        self._past(time)
        revision = self.revision + 1
        epoch = self.epochs[-1][0] if self.epochs else 0
        if session:
            table = self.sessions.get(session)
            if table is None:
                raise ValueError("a transaction of a session that was never opened")
            table.advance(low)
            known = table.outcomes.get(number)
            told = results if known is None else known[1][3] + results  # put with one of its own
            table.outcomes[number] = (digest, tuple_of(Outcome, (revision, epoch, time, told)))
        fields = [time, epoch, session, number, results]
        if type(writes) is PlainWrites:
            return self._put_all(fields, writes)
        for write in writes:
            kind, key = write[0], write[1]
            old = self._packed.get(key)
            new = _successor(write, old, revision, time)
            self.replace(key, old, new, revision, kind == TOUCH)
            fields += (kind, key, new)
        return self._install(fields)

    def _put_all(self, fields: list[Any], writes: PlainWrites) -> Row:
        keys, values = writes.keys, writes.values
        packed = bulk.put_all(self, keys, values, self.revision + 1, self.time)
        fields += chain.from_iterable(zip(repeat(PUT), keys, packed, strict=False))
        self.revision += 1
        row = self.ring.append_plain(fields, sum(map(len, keys)) + sum(map(len, values)))
        self._bound()
        return row

    def _expiry(self, record: Expiry) -> Row:
        time, key = record
        self._past(time)
        old = self._packed.get(key)
        if old is None:
            raise ValueError(f"key {key!r} expires but does not exist")
        self.replace(key, old, None, self.revision + 1, False)
        return self._install([time, self.epoch, b"", 0, (), EXPIRE, key, None])

    def replace(
        self, key: str, old: Packed | None, new: Packed | None, revision: int, touch: bool
    ) -> None:
        """Make `new` the current version of a key instead of `old`; one of them is there. A part of
        `apply`."""
        self.pointers[key.partition("/")[0]] = revision  # `pipeline_of`, without the call
        if old is not None:
            since = self.touched.pop(key, None) if self.touched else None
            kept: Past = old if since is None and type(old) is bytes else (
                since or revision_of(old), old)
            past = self.older.get(key)
            if past is None:
                self.older[key] = past = [kept]
            else:
                past.append(kept)
            if type(old) is tuple:
                self.expiring -= old[_EXPIRES_AT] is not None
                if old[_LEASE] is not None:
                    self.leases.discard(key)
            if new is None:
                past.append((revision, None))
                del self._packed[key]
                self.keys.remove(key)
                self.past_keys.add(key)
                return
        else:
            self.keys.add(key)
            if key in self.older:
                self.past_keys.remove(key)
        self._packed[key] = new  # type: ignore[assignment]  # None returned above
        if touch:
            self.touched[key] = revision
        if type(new) is tuple:
            self._note(key, new)

    def _install(self, fields: list[Any]) -> Row:
        """The next commit, whose versions are the current ones by now, becomes the newest of the
        past."""
        self.revision += 1
        row = self.ring.append(fields)
        self._bound()
        return row

    def _note(self, key: str, new: tuple[Any, ...]) -> None:
        """Remember what a version that is not plain asks for: to expire, or to be a lease."""
        expires_at = new[_EXPIRES_AT]
        if expires_at is not None:
            self.expiring += 1
            heappush(self._expiries, (expires_at, key))
            if len(self._expiries) > 2 * self.expiring + 1_024:
                self._rebuild_expiries()
        if new[_LEASE] is not None:
            self.leases.add(key)

    def _rebuild_expiries(self) -> None:
        """Drop the stale elements that touches and rewrites have left behind."""
        self._expiries = [(packed[_EXPIRES_AT], key) for key, packed in self._packed.items()
                          if type(packed) is tuple and packed[_EXPIRES_AT] is not None]
        heapify(self._expiries)

    # --- the floor -----------------------------------------------------------------------------

    def _bound(self) -> None:
        """Raise the floor until the ring is within its settings."""
        count, size = self.settings["history_revisions"], self.settings["history_bytes"]
        ring, older, pointers = self.ring, self.older, self.pointers
        while ring.beyond(count, size):
            floor = ring.first
            self.floor_time, keys = ring.popleft()
            for key in keys:
                if key in older:
                    self.trim(key, floor)
                pipeline = key.partition("/")[0]
                if pointers.get(pipeline) == floor:
                    del pointers[pipeline]

    def trim(self, key: str, floor: int, sunk: int = 1) -> None:
        """Drop the versions of a key that no cut needs and no display of history shows. A part of
        `apply`. `sunk`: at most so many have come below the floor since it was last called."""
        past = self.older[key]
        shown = self.settings["history_versions"]
        if self.contracts:
            shown = self.contracts.history(key, shown)
        needed = shown + 1  # here a busy key has the floor: one version more than shown has sunk
        if not (0 < needed < len(past) and (
                since_of(past[needed]) == floor or (needed + 1 < len(past)
                and since_of(past[needed]) < floor < since_of(past[needed + 1])))):
            standing = key in self._packed and self.changed_at(key) <= floor
            needed = len(past) if standing else _through(past, floor) - 1
        if 0 <= needed < len(past) and version_of(past[needed]) is None:
            del past[: needed + 1]  # gone at the floor: nothing to cut there
        elif sunk == 1 and 0 < needed <= shown + 1 and is_shown(past[needed - 1]):
            if needed > shown:
                del past[0]
        elif needed > 0:
            kept: list[Past] = []
            for one in past[:needed]:
                if version_of(one) is None:
                    kept.clear()  # what was before it is gone, too
                elif is_shown(one):  # a touch must not push a version out
                    kept.append(one)
            past[:needed] = kept[max(0, len(kept) - shown):]
        if not past:
            del self.older[key]
            if key not in self._packed:
                self.past_keys.remove(key)

    # --- snapshots -----------------------------------------------------------------------------

    def dump(self) -> Iterator[tuple[int, list[tuple[Any, ...]]]]:
        """The whole state as (section, rows) blocks of at most 1,000 rows, sections ascending.

        Sections: 0 facts (contracts last, where there are any) · 1 versions shown by history, older
        than the floor · 2 the cut at the floor · 3 pointers · 4 sessions · 5 the commits above the
        floor. `load` takes it back.
        """
        facts: tuple[Any, ...] = (
            self.uuid, self.floor, self.floor_time, self.time, self.reserved, self.epochs,
            list(self.settings.items()), self.loss, list(self.accepted.items()))
        if self.contracts:
            facts += ([*self.contracts],)
        yield 0, [facts]
        yield from _blocks(1, self._dump_past())
        yield from _blocks(2, self._dump_cut())
        yield from _blocks(3, self.pointers.items())
        yield from _blocks(4, (
            (sid, table.time, table.name, table.low,
             [(number, *kept) for number, kept in table.outcomes.items()])
            for sid, table in self.sessions.items()
        ))
        yield from _blocks(5, self.ring.after(self.floor))

    def _dump_past(self) -> Iterator[tuple[Any, ...]]:
        floor = self.floor
        for key, past in self.older.items():
            standing = key in self._packed and self.changed_at(key) <= floor
            known = past if standing else past[: max(0, _through(past, floor) - 1)]
            for one in known:
                packed = version_of(one)
                yield (key, since_of(one), None if packed is None else unpack_version(packed))

    def _dump_cut(self) -> Iterator[tuple[Any, ...]]:
        floor = self.floor
        for key, packed in self._packed.items():
            if (since := self.touched.get(key) or revision_of(packed)) <= floor:
                yield (key, since, *unpack_version(packed))
        for key, past in self.older.items():
            if key in self._packed and self.changed_at(key) <= floor:
                continue
            found = _through(past, floor) - 1
            if found >= 0 and (version := version_of(past[found])) is not None:
                yield (key, since_of(past[found]), *unpack_version(version))

    @classmethod
    def load(cls, blocks: Iterable[tuple[int, Sequence[Any]]]) -> State:
        """The state that `dump` wrote. Rows may be lists or tuples.

        Raises `ValueError`, `TypeError` or `IndexError` for blocks that no dump can have written.
        """
        state = cls()
        pointers: dict[str, int] = {}
        reached = 0
        for section, rows in blocks:
            if section < reached:
                raise ValueError(f"section {section} follows {reached}")
            if reached <= 2 < section:
                state._index_cut()  # once, when the cut is whole and before commits change it
            reached = section
            match section:
                case 0:
                    state._load_facts(rows[0])
                case 1:
                    for key, since, version in rows:
                        if type(since) is not int:
                            raise TypeError(f"{key!r} was written at {since!r}")
                        kept = None if version is None else pack_version(_version(version))
                        state.older.setdefault(key, []).append(past_of(since, kept))
                case 2:
                    state._load_cut(rows)
                case 3:
                    pointers.update(rows)
                case 4:
                    for row in rows:
                        state._load_session(*row)
                case 5:
                    state._load_commits(rows)
                case _:
                    raise ValueError(f"unknown section {section}")
        if reached <= 2:
            state._index_cut()
        state.pointers = pointers
        return state

    def _load_facts(self, row: Sequence[Any]) -> None:
        (self.uuid, floor, self.floor_time, self.time, self.reserved, epochs, settings, loss,
         accepted, *more) = row
        for prefix, contract, version, time in more[0] if more else ():
            self.contracts.load(Contracted(prefix, contract_of(contract), version, time))
        self.revision = floor
        self.ring = Ring(floor + 1)
        self.epochs = [(epoch, first) for epoch, first in epochs]
        self.settings.update({name: int(value) for name, value in settings})
        self.loss = None if loss is None else (int(loss[0]), int(loss[1]))
        self.accepted = dict(accepted)

    def _load_cut(self, rows: Sequence[Any]) -> None:
        if bulk.take_cut(self, rows):
            return
        for key, since, *fields in rows:
            entry = _version(fields)
            packed = self._packed[key] = pack_version(entry)
            if not 0 < entry.revision <= since <= self.revision:  # which is the floor until commits
                raise ValueError(f"{key!r} stands since {since}, at revision {entry.revision}")
            if since != entry.revision:
                self.touched[key] = since
            if type(packed) is tuple:
                self._note(key, packed)

    def _index_cut(self) -> None:
        self.keys.fill(self._packed)
        self.past_keys.fill(key for key in self.older if key not in self._packed)

    def _load_session(self, sid: bytes, time: int, name: str, low: int,
                      outcomes: Sequence[Any]) -> None:
        table = self.sessions[sid] = SessionState(time, name)
        table.low = low
        for number, digest, (revision, epoch, when, results) in outcomes:
            table.outcomes[number] = (digest, Outcome(revision, epoch, when, tuple(results)))

    def _load_commits(self, rows: Sequence[Any]) -> None:
        if bulk.take_commits(self, rows):
            return
        for revision, epoch, time, changes, session, number, results in rows:
            if revision != self.revision + 1:
                raise ValueError(f"revision {revision} follows {self.revision}")
            fields = [time, epoch, session, number, tuple(results)]
            for _, kind, key, version in changes:
                old = self._packed.get(key)
                new = None if version is None else pack_version(_version(version))
                if old is None and new is None:
                    raise ValueError(f"key {key!r} goes, but does not exist")
                self.replace(key, old, new, revision, kind == TOUCH)
                fields += (kind, key, new)
            self._install(fields)


def _successor(write: Write, old: Packed | None, revision: int, time: int) -> Packed | None:
    """What a write makes of the version under its key; None for a deletion."""
    kind, key, value, expires_at, lease, position, head, sources = write
    if kind == PUT:
        created, count = created_and_count(old, revision)
        return pack_fields(value, revision, created, count, time, expires_at, lease, position,
                           head, sources)
    if old is None:
        raise ValueError(f"key {key!r} is deleted or touched but does not exist")
    if kind == DELETE:
        return None
    if kind == TOUCH:
        return pack_version(unpack_version(old)._replace(expires_at=expires_at))
    raise ValueError(f"unknown kind of write {kind}")


def _through(past: list[Past], revision: int) -> int:
    """How many of these came to stand at or before a revision."""
    return bisect_right(past, revision, key=since_of)


def _version(fields: Sequence[Any]) -> Version:
    *plain, sources = fields
    version = Version._make((*plain, tuple((key, revision) for key, revision in sources)))
    for count in version[1:5]:  # all order is by the first; they are kept in 64 bits each
        if type(count) is not int or not 0 <= count < 2**64:
            raise TypeError(f"a version has the revision, count or time {count!r}")
    return version


def _blocks(section: int, rows: Iterable[Any]) -> Iterator[tuple[int, list[tuple[Any, ...]]]]:
    rows = iter(rows)
    while block := list(islice(rows, 1_000)):
        yield section, block
