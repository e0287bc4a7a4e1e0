"""The store's brain: what each command does, decided against the state, in order.

Rule 1: nothing here reads a clock, a socket or a file; `now` and fresh ids are arguments.
Rule 2: a refusal adds no record. What a command changes is records first, then `State.apply`.
Rule 3: a request is admitted, or answered, by the checks of `_admit` in exactly their order.
Rule 4: nothing that `execute` returns may leave before the batch's records are durable.

A batch is `begin(now)`, any number of `execute(request)`, `finish()`; the records that gathered in
`records` then go to the log as one frame. Everything that a restart may forget (deadlines of
leases, refusals, `low` as last heard) lives here; everything that it may not lives in the state.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

from ckptmesh import limits, queries
from ckptmesh.bulk import counts, take_puts
from ckptmesh.contracts import NO_RULE
from ckptmesh.entries import count_of, unpack_version
from ckptmesh.errors import (
    DataLoss,
    EpochChanged,
    Error,
    InvalidRequest,
    OtherStore,
    OutcomeUnknown,
    OutOfSpace,
    QuotaExceeded,
    RequestReused,
    SessionExpired,
    Superseded,
    TooLarge,
    TooManyInFlight,
    Unavailable,
    Unsupported,
)
from ckptmesh.facts import (
    ContractChanged,
    EpochBegun,
    Expiry,
    LossAccepted,
    LossSuspected,
    PlainWrites,
    Puts,
    Record,
    Sealed,
    SessionEnded,
    SessionOpened,
    SettingChanged,
    TimeReserved,
    Transaction,
    Write,
)
from ckptmesh.leases import Deadlines
from ckptmesh.limits import pipelines_of
from ckptmesh.messages import (
    AcceptLoss,
    Close,
    Delete,
    Find,
    Get,
    Hello,
    History,
    KeepAlive,
    ListContracts,
    Mutation,
    Open,
    Opened,
    Outcome,
    PlainPuts,
    Put,
    Reply,
    Request,
    Scan,
    SetContract,
    Setting,
    Since,
    Touch,
    Transact,
    Welcome,
    tuple_of,
)
from ckptmesh.state import SETTINGS, State
from ckptmesh.timeline import Block, Row, weight
from ckptmesh.transactions import check, effect, held, not_beyond_head, put, under_contract

Committed = tuple[int, Row | Block, dict[str, int]]
"""A revision of this batch, its row, and the pointers of its pipelines as before it; or for many:
the first of them, their block, and the pointers before all."""


_REMEMBERED = 1_000  # answers to what operators change


class _Visit:
    """What is known of a session beyond the log: forgotten on a restart, harmlessly."""

    __slots__ = ("low", "refusals", "used")

    def __init__(self, now: int, low: int = 1) -> None:
        self.low = low
        self.used = now
        self.refusals: dict[int, tuple[int, Error | Outcome]] = {}  # number → (digest, answer)

    def advance(self, low: int) -> None:
        """Forget the answers below `low`."""
        if low > self.low:
            self.low = low
            if self.refusals:
                self.refusals = {n: kept for n, kept in self.refusals.items() if n >= low}


class Machine:
    """Decides. `fresh_id` gives 16 unpredictable bytes at each call; `release` and `publish` are
    told to clients in `Welcome`."""

    def __init__(self, state: State, fresh_id: Callable[[], bytes], *, release: str = "",
                 now: int = 0) -> None:
        self.state = state
        self.records: list[Record | Puts] = []
        self.commits: list[Committed] = []
        self.now = max(now, state.time, state.reserved)  # reads may have told the time up to there
        self.out_of_space: OutOfSpace | None = None  # set by the engine while the disk is full
        self.writable = False  # set by the engine: there is a log, with room for a frame
        self._changes: dict[tuple[int, int], int | None] = {}  # (number, digest) → answer
        self._ahead = limits.SECOND // 2  # how far ahead time was reserved last
        self.publish = ""
        self.release = release
        self._fresh_id = fresh_id
        # Least recently used first; a dict would walk over all that has been moved to its end.
        self._visits = OrderedDict(
            (sid, _Visit(self.now, table.low)) for sid, table in state.sessions.items())
        self._deadlines = Deadlines()
        for key in state.leases:
            self._lease_changed(key)

    # --- the batch -----------------------------------------------------------------------------

    def begin(self, now: int) -> None:
        """Start a batch at store time `now`, which never runs back."""
        self.now = max(now, self.now, self.state.time)
        self.records = []
        self.commits = []
        if self.writable and self.state.expiring and self.now > self.state.reserved:
            self._reserve()

    def execute(self, request: Request) -> Reply:
        """Decide one request. Never raises for what a peer sent: a refusal is a reply."""
        session, number = request.session, request.number
        try:
            self._admit(request)
            result = self._known(request) if session else None
            if result is None:
                result = self._decide(request)
        except Error as error:
            # A refusal is remembered: its traceback would hold the frames, and so the request.
            result = error.with_traceback(None)
        reply: Reply = tuple_of(Reply, (
            (session, number, self.state.epoch, None, result) if isinstance(result, Error)
            else (session, number, self.state.epoch, result, None)))
        return reply

    def finish(self) -> None:
        """End the batch: record what has expired, evict idle sessions, reserve time."""
        if not self.writable:
            return
        now = self.now
        for key in self.state.due(now, limits.EXPIRIES):
            self._record(Expiry(now, key))
        for key in self._deadlines.ended(now, limits.EXPIRIES):
            self._record(Expiry(now, key))
        for _ in range(limits.EXPIRIES):
            idlest = next(iter(self._visits.items()), None)
            if idlest is None or idlest[1].used + limits.SESSION_IDLE > now:
                break
            self._end_session(idlest[0])
        if self.state.expiring and now > self._reserve_again_at():
            self._reserve()

    def begin_epoch(self) -> None:
        """Record the next epoch: above all that anybody claims to have seen, since tokens must not
        repeat. To be durable before anybody is served."""
        state = self.state
        lost = 0 if state.loss is None else state.loss[0]
        epoch = max(state.epoch, lost, *state.accepted)
        self._record(EpochBegun(epoch + 1, self.now))

    def seal(self) -> None:
        """Record that nothing happened, so that the frame before is known to have been durable."""
        self._record(Sealed(self.now))

    def give_back_time(self) -> None:
        """Record that no time beyond now was told. The last thing before a store closes; else one
        that is opened often would run ahead of the clock by its reserve each time."""
        if self.state.reserved > self.now:
            self._record(TimeReserved(self.now))

    def stalled(self, micros: int) -> None:
        """Move every lease's deadline by the length of a pause in which nobody could renew."""
        self._deadlines.shift(micros)

    def next_due(self) -> int | None:
        """When something of its own accord will be due, store time; None: nothing ever."""
        end = self.next_end()
        if end is None or not self.state.expiring:
            return end
        return min(end, self._reserve_again_at())

    def next_end(self) -> int | None:
        """When the next lease or key ends, store time; None: never."""
        ends = (self._deadlines.next(), self.state.next_expiry())
        return min((end for end in ends if end is not None), default=None)

    def frees(self, request: Request) -> bool:
        """Whether a request is decided even while the disk is full."""
        command = request.command
        if type(command) is Transact:
            return _only_deletes(command)
        return type(command) is not SetContract

    def _record(self, record: Record) -> None:
        state = self.state
        self._check_begun()
        keys: Sequence[str] = ()
        if type(record) is Transaction:
            writes = record.writes
            keys = (writes.keys if type(writes) is PlainWrites
                    else [write[1] for write in writes])
        elif type(record) is Expiry:
            keys = (record.key,)
        before = self._pointers(keys)
        row = state.take(record)
        self.records.append(record)
        if row is not None:
            self.commits.append((state.revision, row, before))
            if state.leases or self._deadlines:
                for key in keys:
                    self._lease_changed(key)

    def _record_puts(self, puts: Puts) -> None:
        """Record plain puts over plain ones, with a revision for each."""
        self._check_begun()
        before = self._pointers(puts.keys)
        first = self.state.revision + 1
        block = take_puts(self.state, puts)
        assert block is not None  # of one request, admitted, at a time that never runs back
        self.records.append(puts)
        self.commits.append((first, block, before))

    def _check_begun(self) -> None:
        if not self.writable:
            raise self.out_of_space or Unavailable("this store has not begun to serve")

    def _pointers(self, keys: Sequence[str]) -> dict[str, int]:
        """The last revision of the pipeline of each of these keys, as it can be known."""
        pointers, floor = self.state.pointers, self.state.ring.first - 1
        return {pipeline: pointers.get(pipeline, floor)
                for pipeline in dict.fromkeys(pipelines_of(keys))}

    def _reserve(self) -> None:
        # A little at first: a store that is killed soon, again and again, must not run ahead.
        self._ahead = min(2 * self._ahead, limits.CLOCK_RESERVE)
        self._record(TimeReserved(self.now + self._ahead))

    def _reserve_again_at(self) -> int:
        return self.state.reserved - self._ahead // 2

    # --- admission, each check in its order ----------------------------------------------------

    def _admit(self, request: Request) -> None:
        session, number, low, uuid, epoch = request[:5]
        state = self.state
        if uuid and uuid != state.uuid:
            raise OtherStore(f"this is store {state.uuid.hex()}, not {uuid.hex()}")
        if not session:
            return
        if epoch < state.epoch:
            raise EpochChanged(f"the store is in epoch {state.epoch}")
        if epoch > state.epoch:
            raise self._lost(epoch, 0)
        visit = self._visits.get(session)
        if visit is None:
            raise SessionExpired("this session is not open here")
        self._visits.move_to_end(session)
        visit.used = self.now
        visit.advance(low)
        if number < visit.low:
            raise Superseded(f"request {number} was settled before")
        if number >= visit.low + limits.IN_FLIGHT_REQUESTS:
            raise TooManyInFlight(
                f"request {number} is {limits.IN_FLIGHT_REQUESTS:,} or more beyond the oldest "
                f"unsettled one, {visit.low}", limit=limits.IN_FLIGHT_REQUESTS)

    def _known(self, request: Request) -> Outcome | Error | None:
        kept: tuple[int, Outcome | Error] | None
        kept = self.state.sessions[request.session].outcomes.get(request.number)
        if kept is None:
            kept = self._visits[request.session].refusals.get(request.number)
        if kept is None:
            return None
        if kept[0] != request.digest:
            raise RequestReused(f"request {request.number} came before with another content")
        return kept[1]

    def _lost(self, epoch: int, revision: int) -> DataLoss:
        """Stop writing: somebody has seen more than this store holds."""
        if self.state.loss is None and self.writable:
            self._record(LossSuspected(epoch, revision))
        return DataLoss(
            f"a client has seen epoch {epoch}, revision {revision}; this store is in epoch "
            f"{self.state.epoch} at revision {self.state.revision}",
            epoch=epoch, revision=revision, head=self.state.revision)

    # --- decide --------------------------------------------------------------------------------

    def _decide(self, request: Request) -> Any:
        command = request.command
        if type(command) is Transact:  # by far the most
            return self._transact(request, command)
        match command:
            case Get():
                return queries.get(self.state, command, self.now)
            case Scan():
                return queries.scan(self.state, command, self.now)
            case History():
                return queries.history(self.state, command, self.now)
            case Since():
                return queries.since(self.state, command)
            case Hello():
                return self._welcome()
            case Open():
                return self._open(command)
            case Close():
                self._end_session(request.session)
                return None
            case KeepAlive():
                return self._keep_alive(command)
            case Find():
                return self._find(request, command)
            case Setting() | SetContract() | AcceptLoss():
                return self._change(request)
            case ListContracts():
                return tuple(self.state.contracts)
        raise Unsupported(f"{type(command).__name__.lower()} is not available on this store")

    def _welcome(self) -> Welcome:
        state = self.state
        return Welcome(state.uuid, state.epoch, state.revision, state.floor, self.now,
                       self.publish, self.release)

    def _open(self, command: Open) -> Opened:
        name, uuid, epoch, revision = command
        state = self.state
        if uuid == state.uuid and self._unheard_of(epoch, revision):
            raise self._lost(epoch, revision)
        if len(state.sessions) >= limits.SESSIONS:
            self._end_session(next(iter(self._visits)))
        sid = self._fresh_id()
        self._record(SessionOpened(sid, self.now, name))
        self._visits[sid] = _Visit(self.now)
        return Opened(sid, state.epoch, state.revision)

    def _unheard_of(self, epoch: int, revision: int) -> bool:
        if epoch > self.state.epoch:
            return True
        # A claim from an epoch in which a loss was accepted tells nothing new: whatever is lost
        # again would take the acceptance with it.
        return (epoch > max(self.state.accepted, default=0)
                and revision > self.state.last_of(epoch))

    def _end_session(self, sid: bytes) -> None:
        self._record(SessionEnded(sid, self.now))
        self._visits.pop(sid)

    def _find(self, request: Request, command: Find) -> Outcome | None:
        session, number, after = command
        if session != request.session or number >= self._visits[session].low:
            raise InvalidRequest("find asks for a request of its own session, below its low")
        not_beyond_head(self.state, after)
        if after < self.state.floor:
            raise OutcomeUnknown(
                f"the request was sent after revision {after}; memory goes back to "
                f"{self.state.floor} only", hint="read the key and compare")
        found: Outcome | None = None
        for commit in self.state.ring.after(after):
            if commit.number == number and commit.session == session:
                results = commit.results if found is None else found.results + commit.results
                found = Outcome(commit.revision, commit.epoch, commit.time, results)
        return found

    def _change(self, request: Request) -> int | None:
        """Execute what an operator changes, or give a copy of it the first answer again: a late one
        would undo what was changed since. As long as this store lives; no session remembers it."""
        copy = request.number, request.digest
        if copy not in self._changes:
            done = None
            match request.command:
                case Setting(name, value):
                    self.set(name, value)
                case SetContract() as command:
                    done = self._set_contract(command)
                case AcceptLoss():
                    self._accept_loss()
            if len(self._changes) >= _REMEMBERED:
                del self._changes[next(iter(self._changes))]
            self._changes[copy] = done
        return self._changes[copy]

    def _accept_loss(self) -> None:
        if self.state.loss is not None:
            self._record(LossAccepted())
            self.begin_epoch()  # what was lost belongs to the epochs before it

    def set(self, name: str, value: int) -> None:
        """Record a setting, if it differs. Raises `InvalidRequest` for an unknown one."""
        if name not in SETTINGS:
            raise InvalidRequest(f"there is no setting {name!r}; there are {', '.join(SETTINGS)}")
        if value > 2**40:
            raise InvalidRequest(f"{name} is at most {2**40}")
        if self.state.settings[name] != value:
            self._record(SettingChanged(name, value))

    def _set_contract(self, command: SetContract) -> int:
        prefix, contract = command
        self._check_writable(frees=False)
        contracts = self.state.contracts
        standing = contracts.get(prefix)
        if contract != (standing.contract if standing else NO_RULE):
            if standing is None and len(contracts) >= limits.CONTRACTS:
                raise QuotaExceeded(f"{limits.CONTRACTS:,} contracts stand",
                                    limit=limits.CONTRACTS)
            self._record(ContractChanged(self.now, prefix, contract))
        standing = contracts.get(prefix)
        return standing.version if standing else 0

    # --- transactions --------------------------------------------------------------------------

    def _transact(self, request: Request, command: Transact) -> Outcome:
        answer: Outcome | Error
        try:
            answer = self._commit(request, command)
            if answer.revision and request.number in (
                    self.state.sessions[request.session].outcomes):
                return answer
        except Error as error:
            answer = error
        # Refusals, and transactions that had nothing to do, are remembered here only: after a
        # restart the epoch stamp keeps every older copy out.
        self._visits[request.session].refusals[request.number] = (request.digest, answer)
        if isinstance(answer, Error):
            raise answer
        return answer

    def _commit(self, request: Request, command: Transact) -> Outcome:
        state, now = self.state, self.now
        if command.mutations:
            self._check_writable(_only_deletes(command))
        for condition in command.conditions:
            check(state, condition, now)
        mutations = command.mutations
        if state.contracts:
            mutations = under_contract(state, mutations, now)
        if type(mutations) is PlainPuts:
            found = counts(state, mutations.keys)
            if found is not None:
                return self._put_plain(request, mutations, found, command.each)
        if not command.each:
            return self._settle(request, mutations)
        return self._settle_each(request, mutations)

    def _put_plain(self, request: Request, puts: PlainPuts, results: list[int],
                   each: bool) -> Outcome:
        """Plain puts over plain ones, or over nothing: there is nothing to look at one by one."""
        session, number = request[:2]
        low, digest, now, count = self._visits[session].low, request.digest, self.now, len(results)
        if each:
            self._record_puts(Puts(
                (session,) * count, (number,) * count, (low,) * count, (digest,) * count,
                (now,) * count, puts.keys, puts.values, [(result,) for result in results]))
        else:
            self._record(Transaction(session, number, low, digest, now,
                                     PlainWrites(puts.keys, puts.values), tuple(results)))
        return self.state.sessions[session].outcomes[number][1]

    def _settle_each(self, request: Request, puts: Sequence[Any]) -> Outcome:
        """Puts that take a revision each, one right after the other: what is over under their keys
        comes before all."""
        self._check_leases(sum([each.lease for each in puts]))
        entries = self.state.entries
        for key in dict.fromkeys([each.key for each in puts]):
            if key in entries and queries.alive(entries[key], self.now) is None:
                self._record(Expiry(self.now, key))
        for each in puts:
            outcome = self._settle(request, (each,))
        return outcome

    def _settle(self, request: Request, mutations: Sequence[Mutation]) -> Outcome:
        """Mutations that take one revision."""
        state, now = self.state, self.now
        overdue: list[str] = []
        carried = request.size  # bytes of the values that the changes will carry
        granted = 0
        writes: list[Write] = []
        results: list[int] = []
        packed_of = state.entries.packed.get
        for mutation in mutations:
            key = mutation[0]
            packed = packed_of(key)
            if type(mutation) is Put and type(packed) is not tuple:
                # By far the most: over nothing, or over a version that has no TTL. So no version
                # has to be made to see whether it is over.
                writes.append(put(mutation, now))
                results.append(1 if packed is None else count_of(packed) + 1)
                granted += mutation[3]
                continue
            entry = None if packed is None else unpack_version(packed)
            standing = queries.alive(entry, now)
            if entry is not None and standing is None:
                overdue.append(key)
            if type(mutation) is Touch and standing is not None:
                carried += weight(standing)
            effected, result = effect(mutation, standing, now)
            results.append(result)
            if effected is not None:
                writes.append(effected)
                granted += effected.lease is not None and key not in state.leases
        if not writes:
            return Outcome(state.revision, state.epoch, now, tuple(results))
        if carried > limits.REQUEST_BYTES:  # a revision is published, and caught up with, whole
            raise TooLarge(
                f"the values under the touched keys make {carried:,} bytes; the limit is "
                f"{limits.REQUEST_BYTES:,}", hint="touch them in several transactions",
                size=carried, limit=limits.REQUEST_BYTES)
        self._check_leases(granted)
        for key in overdue:  # expiries that are due come first for the keys a command names
            self._record(Expiry(now, key))
        session, number = request[:2]
        self._record(tuple_of(Transaction, (
            session, number, self._visits[session].low, request.digest, now, tuple(writes),
            tuple(results))))
        return state.sessions[session].outcomes[number][1]

    def _check_leases(self, granted: int) -> None:
        if granted and len(self.state.leases) + granted > limits.LEASES:
            raise QuotaExceeded(f"{limits.LEASES:,} leases are held", limit=limits.LEASES)

    def _check_writable(self, frees: bool) -> None:
        if self.state.loss is not None:
            epoch, revision = self.state.loss
            raise DataLoss(f"the store is read-only: a client has seen epoch {epoch}, revision "
                           f"{revision}, which it does not hold", epoch=epoch, revision=revision)
        if self.out_of_space is not None and not frees:
            raise self.out_of_space

    # --- leases --------------------------------------------------------------------------------

    def _lease_changed(self, key: str) -> None:
        if key in self.state.leases:
            self._deadlines.grant(key, self.now + (self.state.entries[key].lease or 0))
        else:
            self._deadlines.drop(key)

    def _keep_alive(self, command: KeepAlive) -> int:
        ttl = held(self.state, *command).lease or 0
        self._deadlines.renew(command.key, self.now + ttl)
        return ttl


def _only_deletes(command: Transact) -> bool:
    return all(type(mutation) is Delete for mutation in command.mutations)
