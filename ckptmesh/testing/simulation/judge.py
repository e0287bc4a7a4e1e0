"""The judge: sees what becomes durable, what clients were told, and what watchers were given.

It holds all of it against a `Model`, which knows nothing of the store's code, at every step:

    written, synced     the records of a frame, before and after their sync
    recovered, serves   what a start found: each synced frame, and the unsynced one whole or not;
                        a new epoch, and every lease with its full TTL again
    batch_over          store time runs as true time does; what is shown is what is durable;
                        what is published is that, all of it, with the right pointers
    asked, sent         the life of a request, as its client saw it;
    answered, found     what answers must say is in `answers.py`

Every broken promise is a `Broken`, raised where it shows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ckptmesh.calls import NEVER
from ckptmesh.errors import ClockSuspect, Corrupt, DataLoss, Error, OutcomeUnknown, Unsupported
from ckptmesh.facts import Expiry, Record, SessionEnded, Transaction
from ckptmesh.limits import SESSION_IDLE
from ckptmesh.messages import (
    DELETE,
    Close,
    Command,
    Heartbeat,
    KeepAlive,
    Opened,
    Outcome,
    Publication,
    Put,
    Rows,
    Transact,
    Welcome,
)
from ckptmesh.state import State
from ckptmesh.testing.simulation.answers import (
    Operation,
    check_answer,
    check_error,
    check_outcome,
)
from ckptmesh.testing.simulation.model import Model, Place, behind, details, revisions_of
from ckptmesh.testing.simulation.world import Broken, World

_REFUSED = ("Conflict", "LeaseLost", "ContractBroken", "OutOfSpace", "Compacted", "Unavailable")


class _Frame(NamedTuple):
    """`offset`: of the store time of the process that wrote it from true time."""

    records: tuple[Record, ...]
    first_revision: int
    offset: int


class _Lease(NamedTuple):
    key: str
    revision: int


class Judge:
    """See the module. `clock` tells true time, as the store has it (microseconds)."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.model = Model()
        self.operations: list[Operation] = []
        self.acknowledged = 0  # highest revision that anybody was told
        self.told = 0  # latest store time that anybody can have been told
        self.clock: Callable[[], int] = lambda: world.now
        self.no_space_at = -NEVER  # true time at which the disk was last seen without space
        self.read_only = False  # the store knew it before the batch under way
        self.uuid = b""
        self._told_with_ttl = 0  # that of the last batch, if any key had a TTL then
        self._offset = 0  # of store time from true time, in this life of the store
        self._by_id: dict[tuple[bytes, int], Operation] = {}
        self._closing: set[bytes] = set()  # sessions whose client asked to end them
        self._over: set[bytes] = set()  # sessions that have ended
        self._partly: Operation | None = None  # more revisions of it have to follow
        self._pending: _Frame | None = None  # written, its sync not yet returned
        self._left: list[_Frame] = []  # by processes that ended meanwhile
        self._replayed = State()  # all that was ever durable, replayed: no snapshot, no files
        self._served = 0  # epoch of the life before this one
        self._published = 0  # revisions of which it is judged whether they were published
        self._beat = 0  # head of the heartbeat before
        self._held_until: dict[_Lease, int] = {}  # true time that its holder counts on
        self._least: dict[_Lease, tuple[int, int]] = {}  # true times: granted, kept until at least
        self._ended: dict[_Lease, int] = {}  # true time at which it ended by itself

    @property
    def head(self) -> int:
        """The last durable revision."""
        return self.model.head

    # --- the log ---------------------------------------------------------------------------------

    def written(self, records: Sequence[Record], first_revision: int) -> None:
        """A frame goes to the disk."""
        if self._pending is not None:
            raise Broken("a frame is written while the one before it is not durable")
        self._pending = _Frame(tuple(records), first_revision, self._offset)

    def synced(self) -> None:
        """The sync of that frame returned."""
        assert self._pending is not None
        pending, self._pending = self._pending, None
        left, self._left = self._left, []
        for frame in (*left, pending):
            self._durable(frame)

    @property
    def unsynced(self) -> str:
        """What a kill leaves in doubt, for the story."""
        frame = self._pending
        return "" if frame is None else (
            f"; a frame of {', '.join(type(record).__name__ for record in frame.records)} from "
            f"revision {frame.first_revision} on was written and not synced")

    def recovered(self, state: State) -> None:
        """A start found this state. Frames that were written and not synced may be in it, the
        first of them first; they are durable only once this start has synced a frame of its own."""
        self._replayed.uuid = state.uuid
        left = [*self._left, *([self._pending] if self._pending else [])]
        self._pending = None
        here = Place(self.head, self.model.epoch, self.model.time, self._replayed.reserved)
        wanted = Place(state.revision, state.epoch, state.time, state.reserved)
        found = 0 if here == wanted else None
        for number, frame in enumerate(left, 1):
            here = behind(here, frame.records)
            if here == wanted:
                found = number
        if found is None:
            raise Broken(f"revision {self.head} of epoch {self.model.epoch} was durable, revision "
                         f"{state.revision} of epoch {state.epoch} is recovered")
        self._left = left[:found]

    def starts(self, offset: int) -> None:
        """A recovered store has taken its clock, so many microseconds ahead of true time. While
        keys have a TTL, it does not begin before what anybody may have been told."""
        self._offset = offset
        if self.clock() + offset < self._told_with_ttl:
            raise Broken(f"store time begins at {self.clock() + offset}; {self._told_with_ttl} was "
                         "told while keys had a TTL")

    def serves(self, state: State, since: int) -> None:
        """A store begins to serve, in an epoch of its own; it began at this true time."""
        self.model.same(state, "recovery")
        self.as_replayed(state)
        if state.epoch <= self._served:
            raise Broken(f"a store serves in epoch {state.epoch}, after epoch {self._served}")
        if self.uuid not in (b"", state.uuid):
            raise Broken(f"the store is now {state.uuid.hex()}; it was {self.uuid.hex()}")
        self.uuid, self._served = state.uuid, state.epoch
        self._published = self._beat = self.head
        for key, (version, _) in self.model.entries.items():
            if version.lease is not None:
                self._least[_Lease(key, version.revision)] = since, since + version.lease

    def as_replayed(self, state: State) -> None:
        """Whether a state is, to the last detail, what all records since the first one make: a
        snapshot forgets nothing, and the log continues it."""
        wanted = details(self._replayed)
        for name, found in details(state).items():
            if found != wanted[name]:
                raise Broken(f"{name} is recovered as {found}; durable was {wanted[name]}")

    def batch_over(self, state: State, now: int, begun: int) -> None:
        """A batch, begun at this true time, was decided at this store time; from now on the store
        shows what is durable."""
        if state.revision != self.head:
            raise Broken(f"the store shows revision {state.revision}; {self.head} are durable")
        if not begun <= now - self._offset <= self.clock():
            raise Broken(f"store time is {now}; by true time it is {begun + self._offset} to "
                         f"{self.clock() + self._offset}")
        if state.floor != self.model.floor():
            raise Broken(f"the floor is {state.floor} at revision {self.head}")
        self.told = max(self.told, now)
        self._told_with_ttl = now if any(
            version.expires_at is not None for version, _ in self.model.entries.values()) else 0

    def store_failed(self, error: Error, *, failed: bool, unreadable: bool) -> None:
        """A store ended by itself; `failed`: its disk has refused a call, or was full;
        `unreadable`: the disk failed to read, which is damage."""
        if not unreadable and isinstance(error, Corrupt | DataLoss | Unsupported):
            raise Broken(f"the store ended, though nothing was damaged: {error}")
        if not failed and not isinstance(error, ClockSuspect):
            raise Broken(f"the store ended by itself, for no reason: {error}")

    # --- what is published -----------------------------------------------------------------------

    def published(self, publications: Sequence[Publication], *, heard: bool) -> None:
        """All that batches have published; `heard`: somebody subscribes."""
        wanted = self.model.publications(self.uuid, self._published) if heard else []
        self._published = self.head
        # A pointer below the floor may be the true one or the floor: see `Model.pointers`.
        given = [found._replace(previous=due.previous) if found.previous in self.model.pointers(
                     due.pipeline, due.commit.revision) else found
                 for found, due in zip(publications, wanted, strict=False)]
        if given != wanted or len(publications) != len(wanted):
            raise Broken(f"published were {list(publications)}, due were {wanted}")

    def heartbeat(self, beat: Heartbeat) -> None:
        """A heartbeat goes out."""
        recent = None if beat.recent is None else dict(beat.recent)
        told = (beat.uuid, beat.epoch, beat.revision, beat.previous, recent)
        wanted = (self.uuid, self._served, self.head, self._beat, self.model.recent(self._beat))
        if told != wanted:
            raise Broken(f"a heartbeat tells {told}; it is {wanted}")
        self._beat = self.head

    # --- what becomes durable --------------------------------------------------------------------

    def _durable(self, frame: _Frame) -> None:
        if frame.first_revision != self.head + 1:
            raise Broken(f"revision {frame.first_revision} follows {self.head}")
        for record in frame.records:
            self._replayed.apply(record)
            if self._partly is not None:
                self._check_next(self._partly, record)
            if isinstance(record, Transaction):
                self._transaction(record, frame.offset)
                continue
            if isinstance(record, Expiry):
                self._expiry(record, record.time - frame.offset)
            elif isinstance(record, SessionEnded):
                self._session_ended(record)
            self.model.take(record)
        if self._partly is not None:
            raise Broken(f"{self._partly.what} is durable in part: {self._partly.taken} revisions")

    def _check_next(self, partly: Operation, record: Record) -> None:
        """The revisions of one request stand one right after the other."""
        if not isinstance(record, Transaction) or partly is not self._by_id.get(
                (record.session, record.number)):
            raise Broken(f"{partly.what} has taken {partly.taken} revisions when {record} follows")

    def _session_ended(self, record: SessionEnded) -> None:
        used = self.model.used.get(record.session, 0)
        if record.session not in self._closing and record.time < used + SESSION_IDLE:
            raise Broken(f"session {record.session.hex()} is ended; nobody asked for it, and it "
                         f"was used {record.time - used} µs ago")
        self._over.add(record.session)

    def _transaction(self, record: Transaction, offset: int) -> None:
        revision = self.head + 1
        operation = self._by_id.get((record.session, record.number))
        if operation is None:
            raise Broken(f"revision {revision} is of a request that nobody sent")
        if operation.absent:
            raise Broken(f"{operation.what} of {operation.client} was said to be absent, and "
                         f"took effect at revision {revision}")
        command, part = operation.command, operation.taken
        assert isinstance(command, Transact)
        if operation.revision and self._partly is not operation:
            raise Broken(f"{operation.what} of {operation.client} took effect at revisions "
                         f"{operation.revision} and {revision}")
        operation.revision = revision
        operation.taken += 1
        more = command.each and operation.taken < len(command.mutations)
        self._partly = operation if more else None
        if self.read_only and not all(write.kind == DELETE for write in record.writes):
            raise Broken(f"revision {revision} was written though the disk is nearly full")
        commit = self.model.transaction(record, command, part)
        self._world.tell(f"revision {revision} is durable: {operation.what} of {operation.client}")
        for change in commit.changes:
            if change.version is not None and change.version.lease is not None:
                granted = record.time - offset
                self._least[_Lease(change.key, revision)] = granted, granted + change.version.lease

    def _expiry(self, record: Expiry, now: int) -> None:
        entry = self.model.entries.get(record.key)
        if entry is None:
            return  # which the model will not have
        version, revision = entry.version, self.head + 1
        self._world.tell(f"revision {revision} is durable: the end of {record.key}")
        if version.lease is not None:
            lease = _Lease(record.key, version.revision)
            for until, whose in ((self._held_until.get(lease, 0), "its holder's"),
                                 (self._least.get(lease, (0, 0))[1], "its")):
                if now < until:
                    raise Broken(f"the lease {record.key} of revision {version.revision} ended "
                                 f"{until - now} µs before {whose} time")
            self._ended[lease] = now
        elif version.expires_at is None or record.time < version.expires_at:
            raise Broken(f"{record.key} expired at {record.time}; due {version.expires_at}")

    def stalled(self, begun: int, micros: int) -> None:
        """From then on the store heard nobody for so long: so much longer stands every lease that
        was granted before."""
        for lease, (granted, until) in self._least.items():
            if granted <= begun:
                self._least[lease] = granted, until + micros

    def at_rest(self, now: int) -> None:
        """Nobody has asked for anything for long: what was to end by itself has ended. `now` is
        store time."""
        for key, (version, _) in self.model.entries.items():
            if version.lease is not None:
                raise Broken(f"the lease {key} of revision {version.revision} never ends")
            if version.expires_at is not None and version.expires_at < now:
                raise Broken(f"{key} was to end at {version.expires_at}; it is {now}")

    # --- clients ---------------------------------------------------------------------------------

    def asked(self, client: str, what: str, command: Command,
              deadline: float = NEVER) -> Operation:
        """A client asks for something, and waits until then, true time."""
        operation = Operation(client, what, command, self._world.now, deadline,
                              self.acknowledged, self.head)
        self.operations.append(operation)
        return operation

    def sent(self, operation: Operation, session: bytes, number: int) -> None:
        """A copy of it was sent under this number."""
        if isinstance(operation.command, Close):
            self._closing.add(session)
            return
        if not isinstance(operation.command, Transact):
            return
        operation.copies += 1
        other = self._by_id.setdefault((session, number), operation)
        if other is not operation:
            raise Broken(f"{operation.what} has the number of {other.what}")

    def answered(self, operation: Operation, result: Any, error: Error | None) -> None:
        """Its client was told this."""
        operation.answered, operation.result, operation.error = self._world.now, result, error
        command = operation.command
        if error is not None:
            check_error(self.model, operation, error, told=self.told,
                        no_space_at=self.no_space_at, session_over=self._is_over(operation))
            if type(error).__name__ in _REFUSED and isinstance(command, Transact):
                self.gone(operation)
            return
        check_answer(self.model, operation, result, told=self.told, uuid=self.uuid)
        if isinstance(command, KeepAlive):
            self._kept(_Lease(command.key, command.revision), operation.asked + result)
        elif isinstance(command, Transact):
            for mutation, revision in zip(command.mutations, revisions_of(command, result),
                                          strict=True):
                if isinstance(mutation, Put) and mutation.lease:
                    self._kept(_Lease(mutation.key, revision),
                               operation.asked + (mutation.ttl or 0))
        if getattr(command, "at", None) is None and isinstance(result, Outcome | Rows | Welcome):
            self.acknowledged = max(self.acknowledged, result.revision)

    def opened(self, answer: Opened) -> None:
        """Somebody was told that a session was opened."""
        wanted = self.model.opened.get(answer.session)
        if (answer.epoch, answer.revision) != wanted:
            raise Broken(f"told was {answer}; it was opened at {wanted}")

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
        else:
            check_outcome(self.model, operation, outcome)

    def left_in_doubt(self, operation: Operation, after: int, error: Error) -> None:
        """A client asked what became of an operation, sent at the earliest after that revision,
        and was not told: its session is closed, or memory does not reach so far back."""
        if not isinstance(error, OutcomeUnknown) or (
                after >= self.model.floor() and not self._is_over(operation)):
            raise Broken(f"asking later for {operation.what} was answered "
                         f"{type(error).__name__}: {error}")

    def _is_over(self, operation: Operation) -> bool:
        """Whether a session that a copy of it was sent in has ended, or is about to."""
        return any(session in self._closing or session in self._over
                   for (session, _), other in self._by_id.items() if other is operation)

    def _kept(self, lease: _Lease, until: int) -> None:
        """The holder of a lease counts on having it until then."""
        ended = self._ended.get(lease)
        if ended is not None and ended < until:
            raise Broken(f"the lease {lease.key} of revision {lease.revision} ended "
                         f"{until - ended} µs before its holder's time")
        self._held_until[lease] = max(until, self._held_until.get(lease, 0))

    # --- watchers --------------------------------------------------------------------------------

    def behind_floor(self, watcher: str, mark: tuple[int, int], inside: bool, resume: int) -> None:
        """A watcher was told that memory does not reach back to its mark: go on at `resume`."""
        floor = self.model.floor()
        if mark[0] - inside >= floor or not mark[0] - inside < resume <= floor:
            raise Broken(f"{watcher}, at {mark}, is told to go on at {resume}; the floor is "
                         f"{floor}")

