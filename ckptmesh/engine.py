"""The store's loop without its sockets: receive, decide, persist, release.

The store actor feeds it what came over ZeroMQ; an embedded store feeds it from its own process.
Either way one call of `process` is one batch:

1. receive   the payloads are decoded; what is malformed is answered and goes no further
2. decide    each command against the state, in order, giving records or a refusal
3. persist   one frame, one write, one fdatasync for the whole batch, none without records
4. release   replies, then publications, in revision order

Rule 1: nothing leaves before step 3 is over, replies of reads and refusals not either.
Rule 2: if step 3 fails, nothing of the batch is answered and nothing more is ever served.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Generic, NoReturn, TypeVar

from ckptmesh import bundles, commands, limits, protocol
from ckptmesh.answers import Caller, pack_answers
from ckptmesh.clock import StoreClock, iso
from ckptmesh.errors import Compacted, Error, InvalidRequest, OutOfSpace, Poisoned
from ckptmesh.facts import Sealed, TimeReserved
from ckptmesh.limits import pipeline_of, pipelines_of
from ckptmesh.log import Compactor, Log, Past
from ckptmesh.machine import Committed, Machine
from ckptmesh.messages import (
    AcceptLoss,
    Change,
    Close,
    Compact,
    Get,
    Heartbeat,
    Open,
    Pin,
    Pins,
    Publication,
    Reply,
    Request,
    Scan,
    SetContract,
    Setting,
    Status,
    Transact,
    Unpin,
)
from ckptmesh.release import RELEASE
from ckptmesh.savepoints import Savepoints
from ckptmesh.state import State
from ckptmesh.stats import Histogram
from ckptmesh.timeline import Block, commit_of, session_of
from ckptmesh.transactions import most_bytes

_IDLE_SEAL = 100_000  # microseconds of quiet after which the last frame is proven by another
_SPACE_CHECK = 1_000_000  # microseconds between two looks at the free space of the disk
_COMPACT_BEFORE_CLOSE = 10_000_000  # microseconds that closing waits at most for a due compaction
_FRAME_SPARE = 64 * limits.KIB  # room for a frame's header and for records of the store's own
_OWN_ROOM = 1 * limits.KIB  # the same where there are no records of others: an epoch, a seal
_EXPIRY_ROOM = limits.KEY_BYTES + 32  # the same for the end of one TTL or lease

Route = TypeVar("Route")


class Engine(Generic[Route]):
    """One store: a machine, its log, its clock. `Route` is whatever the caller needs to find the
    way back for a reply; it is returned beside it, unread."""

    def __init__(self, log: Log, clock: StoreClock, *, compactor: Compactor | None = None,
                 fresh_id: Callable[[], bytes] = lambda: os.urandom(16)) -> None:
        self.log = log
        self.clock = clock
        self.compactor = compactor
        self.machine = Machine(log.state, fresh_id, release=RELEASE, now=clock.now())
        self.archive: Past | None = None  # answers reads below the floor, where there are files
        self.poisoned: Poisoned | None = None
        self.sockets: dict[str, Any] = {}  # the store actor's own figures, for `status`
        self.batches = Histogram()  # requests a batch
        self.counts = {"requests": 0, "refused": 0, "malformed": 0, "commits": 0, "expired": 0,
                       "syncs": 0}
        self.wanted_settings: dict[str, int] = {}  # logged when serving begins, if they differ
        self.tell: Callable[[str], object] = lambda line: None  # what nobody asked for
        self.embedded = False  # no loop calls `tick`, `handle` and `close` look after the store
        self.publishing = True  # the store actor turns it off while nobody subscribes
        self._lock = threading.RLock()
        self._serving = False
        self._expected: int | None = None  # when the loop said that it would be back
        self._unproven = False  # the last frame holds something and no later frame proves it
        self._last_write = 0
        self._last_space_check = 0
        self._savepoints = Savepoints(log)
        self._compact_waiters: list[tuple[Route, Request]] = []
        self._compacting: list[tuple[Route, Request]] = []  # those that the running one is for
        self._arrived: dict[Caller, list[tuple[int, bytes]]] = {}  # for callers of `handle`
        self._listeners: list[Callable[[], None]] = []
        self._beat_head = log.state.revision
        self._recent: dict[str, int] = {}

    # --- life ----------------------------------------------------------------------------------

    @property
    def state(self) -> State:
        """The state, to be read only."""
        return self.machine.state

    def serve(self) -> None:
        """Begin a new epoch, durably. Must come before anybody is answered.

        An embedded store does so at its first write, since opening one to read writes nothing.
        """
        with self._lock:
            if self._serving:
                return
            started = self.clock.now()
            self.log.begin()
            self.log.ensure_room(_OWN_ROOM, urgent=True)
            self.machine.stalled(self.clock.now() - started)  # nobody could renew a lease yet
            with self._whole_or_poisoned():
                self.machine.writable = True
                self.machine.begin(self.clock.now())
                first = self.state.revision + 1
                self.machine.begin_epoch()
                for name, value in self.wanted_settings.items():
                    self.machine.set(name, value)
                self._persist(first)
            self._serving = True

    def close(self) -> None:
        """Seal the log and give the directory back. Nothing is served afterwards."""
        with self._lock:
            if self._serving and self.poisoned is None:
                if self.embedded:
                    self._compact_if_due()
                self._give_back_time()
            if self.compactor is not None:
                self.compactor.close()
            if self.archive is not None:
                self.archive.close()
            if self.poisoned is None:
                self.poisoned = Poisoned("this store is closed", hint="connect again")
            self.log.close()

    # --- the four steps ------------------------------------------------------------------------

    def process(self, items: Sequence[tuple[Route, bytes]]) -> tuple[
            list[tuple[Route, bytes]], list[Publication]]:
        """One batch: (replies with their routes, publications), all of it durable.

        Raises `Poisoned` when the log failed: then nothing of the batch may be answered.
        """
        with self._lock:
            self._check_usable()
            if self._expected is not None:
                self._notice_stall(self.clock.now())
            replies, requests = self._receive(items)
            if not self._serving and any(type(r.command) in _WRITES for _, r in requests):
                self.serve()
            try:
                self._make_room(requests)
                self._begin()
                first = self.state.revision + 1
                if requests:  # what a tick finds due is no batch of requests
                    self.batches.add(len(requests))
                decided = self._decide(requests)
                self.machine.finish()
                commits = self.machine.commits
                self._persist(first)
                self._rest()  # what takes long from here on shows when the loop is back
                replies += self._start_compaction()
                if self._savepoints.asked:
                    replies += self._savepoints.answers(self.machine.now, self.state.epoch)
                if self.archive is not None and self.archive.waiting:
                    replies += self.archive.poll()
            except BaseException as error:
                self._cut_short(error)
            replies += pack_answers(decided)
            return replies, self._publications(commits)

    @contextmanager
    def _whole_or_poisoned(self) -> Iterator[None]:
        """Around what changes the state and the log."""
        try:
            yield
        except BaseException as error:
            self._cut_short(error)

    def _cut_short(self, error: BaseException) -> NoReturn:
        """Whatever ends steps 2 and 3 early (a failed sync, a bug, Ctrl-C in an embedding program)
        leaves in memory what is not on disk, so nothing more may be served."""
        if isinstance(error, Poisoned):
            self.poisoned = error
            raise error
        self.poisoned = Poisoned(f"a batch was cut short: {type(error).__name__}: {error}")
        if isinstance(error, Exception):
            raise self.poisoned from error
        raise error

    def _receive(self, items: Sequence[tuple[Route, bytes]]) -> tuple[
            list[tuple[Route, bytes]], list[tuple[Route, Request]]]:
        refused: list[tuple[Route, bytes]] = []
        requests: list[tuple[Route, Request]] = []
        for route, payload in items:
            for request in bundles.decode_requests(payload):
                if isinstance(request, Request):
                    requests.append((route, request))
                    continue
                self.counts["malformed"] += 1
                told = request.details
                reply = Reply(told.get("session", b""), told.get("number", 0), self.state.epoch,
                              None, request)
                refused.append((route, protocol.encode_reply(told.get("op", 0), reply)))
        return refused, requests

    def _make_room(self, requests: Sequence[tuple[Route, Request]]) -> None:
        """Make sure that the frame of this batch fits, whatever is decided. What there is no room
        for is refused before it changes anything."""
        machine = self.machine
        machine.out_of_space = _space_error() if self.log.space_low else None
        if not self._serving:
            return
        machine.writable = True
        ending = (min(self.state.expiring, limits.EXPIRIES)
                  + min(len(self.state.leases), limits.EXPIRIES))
        room = _FRAME_SPARE + ending * _EXPIRY_ROOM
        try:
            self.log.ensure_room(room + most_bytes([request for _, request in requests]))
            return
        except OutOfSpace as error:
            machine.out_of_space = error
        try:  # what is let through on a full disk is small: the rest of the segment may do
            self.log.ensure_room(room + most_bytes([request for _, request in requests
                                                    if machine.frees(request)]), urgent=True)
        except OutOfSpace:
            machine.writable = False

    def _begin(self) -> None:
        now = self.clock.now()
        if self._expected is not None:
            self._notice_stall(now)
        self.machine.begin(now)

    def _decide(self, requests: Sequence[tuple[Route, Request]]) -> list[
            tuple[Route, Request, Reply]]:
        decided: list[tuple[Route, Request, Reply]] = []
        execute, refused = self.machine.execute, 0
        for route, request in requests:
            kind = type(request.command)
            if kind not in _OWN or request.uuid not in (b"", self.state.uuid):
                reply = execute(request)
                if reply.error is not None:
                    if self._left_to_archive(route, request, reply.error):
                        continue
                    refused += 1
            elif kind is Status:
                reply = Reply(request.session, request.number, self.state.epoch, self.status())
            else:  # begins when the batch is durable
                later = self._compact_waiters if kind is Compact else self._savepoints.asked
                later.append((route, request))
                continue
            decided.append((route, request, reply))
        self.counts["requests"] += len(requests)
        self.counts["refused"] += refused
        return decided

    def _left_to_archive(self, route: Route, request: Request, refusal: Error) -> bool:
        """Whether the archive answers this, a read of what memory does not hold any more."""
        archive = self.archive
        if archive is None or type(refusal) is not Compacted or type(request.command) not in _CUTS:
            return False
        archive.ask(route, request._replace(epoch=self.state.epoch))  # the answer's epoch
        return True

    def _persist(self, first_revision: int) -> None:
        records = self.machine.records
        if not records:
            return
        started = self.clock.now()
        self.log.append(records, first_revision)
        self.log.sync()
        took = self.clock.now() - started
        if took > limits.STALL:  # nobody could renew a lease meanwhile
            self.machine.stalled(took)
            if self._expected is not None:
                self._expected += took
        self.counts["syncs"] += 1
        for _, made, _ in self.machine.commits:
            if type(made) is Block:
                self.counts["commits"] += made.size
            else:
                self.counts["commits" if session_of(made) else "expired"] += 1
        self._last_write = self.machine.now
        self._unproven = not _PROVES.issuperset(map(type, records))

    def _publications(self, commits: Sequence[Committed]) -> list[Publication]:
        """One message per (revision, pipeline), in revision order."""
        found: list[Publication] = []
        uuid, recent = self.state.uuid, self._recent
        for revision, made, before in commits:
            if type(made) is Block:
                found += self._publications_of(revision, made, before)
                continue
            for pipeline in before:
                recent[pipeline] = revision
            if not self.publishing:
                continue
            commit = commit_of(revision, made)
            if len(before) == 1:  # by far the most: nothing has to be sorted by pipeline
                [(pipeline, previous)] = before.items()
                found.append(Publication(pipeline, uuid, previous, revision - 1, 0, 1, commit))
                continue
            by_pipeline: dict[str, list[Change]] = {}
            for change in commit.changes:
                by_pipeline.setdefault(pipeline_of(change.key), []).append(change)
            for part, (pipeline, changes) in enumerate(by_pipeline.items()):
                found.append(Publication(
                    pipeline, uuid, before[pipeline], commit.revision - 1, part,
                    len(by_pipeline), commit._replace(changes=tuple(changes))))
        if commits:
            for listener in tuple(self._listeners):
                listener()
        return found

    def _publications_of(self, first: int, block: Block, before: dict[str, int]
                         ) -> list[Publication]:
        """The same for puts with a revision each. `before` becomes the pointers after them."""
        found: list[Publication] = []
        if not self.publishing:
            self._recent.update(zip(pipelines_of(block.keys), range(first, first + block.size),
                                    strict=True))
            return found
        for at, key in enumerate(block.keys):
            pipeline, revision = pipeline_of(key), first + at
            found.append(Publication(pipeline, self.state.uuid, before[pipeline], revision - 1, 0,
                                     1, commit_of(revision, block.row(at))))
            self._recent[pipeline] = before[pipeline] = revision
        return found

    # --- what the store does of its own accord -------------------------------------------------

    def tick(self) -> tuple[list[tuple[Route, bytes]], list[Publication]]:
        """Expiries, the idle seal, free space, compaction: what is due now. As `process`."""
        with self._lock:
            self._check_usable()
            if not self.log.holds_lock():
                self.poisoned = Poisoned(
                    "the LOCK file of the data directory was removed or replaced",
                    hint="make sure that no other store uses this directory, then start again")
                raise self.poisoned
            now = self.clock.now()
            self._notice_stall(now)
            if now - self._last_space_check >= _SPACE_CHECK:
                self._last_space_check = now
                self.log.check_space()
            with self._whole_or_poisoned():
                self._seal_if_idle(now)
            past = [] if self.archive is None else self.archive.poll()
            replies, publications = self.process(())
            with self._whole_or_poisoned():
                return past + replies + self._poll_compaction(), publications

    def _seal_if_idle(self, now: int) -> None:
        if self._unproven and now - self._last_write >= _IDLE_SEAL:
            self._seal(now)

    def _seal(self, now: int) -> None:
        try:
            self.log.ensure_room(_OWN_ROOM, urgent=True)
        except OutOfSpace:
            self._last_write = now  # later, perhaps; the log is whole without
            return
        self.machine.writable = True
        self.machine.begin(now)
        self.machine.seal()
        self._persist(self.state.revision + 1)

    def wait(self) -> float:
        """Seconds until `tick` has something to do, at most one."""
        now = self.clock.now()
        self._notice_stall(now)
        due = self.machine.next_due()
        wait = 1_000_000 if due is None else due - now
        if self._unproven:
            wait = min(wait, self._last_write + _IDLE_SEAL - now)
        if self.compactor is not None and self.compactor.running:
            wait = min(wait, 20_000)
        if self.archive is not None and self.archive.waiting:
            wait = min(wait, self.archive.pause())
        wait = max(0, min(wait, 1_000_000))
        self._expected = now + wait
        return wait / 1_000_000

    def heartbeat(self) -> Heartbeat:
        """The head, and who has committed since the last heartbeat."""
        state = self.state
        recent = None
        if len(self._recent) <= limits.HEARTBEAT_PIPELINES:
            recent = tuple(self._recent.items())
        beat = Heartbeat(state.uuid, state.epoch, state.revision, self.clock.now(),
                         self._beat_head, recent)
        self._beat_head = state.revision
        self._recent = {}
        return beat

    def _notice_stall(self, now: int) -> None:
        """Only a loop can stall, one that said in `wait` when it would be back: where nobody calls
        an embedded store, its leases must end all the same."""
        if self._expected is None:
            return
        late = now - self._expected
        if late > limits.STALL:
            self.machine.stalled(late)
        if late > limits.STALL or late < 0:  # a request came early: what takes long counts from now
            self._expected = now

    def _rest(self) -> None:
        if self._expected is not None:
            self._expected = self.clock.now()

    def _check_usable(self) -> None:
        if self.poisoned is not None:
            raise self.poisoned.with_traceback(None)  # else each raise would make it longer

    # --- compaction ----------------------------------------------------------------------------

    def _start_compaction(self) -> list[tuple[Route, bytes]]:
        """Start what was asked for, unless one is under way: it seals the segment, so the batch
        must be in it. The reply comes from `tick`; here only that it cannot be started."""
        if not self._compact_waiters or (self.compactor is not None and self.compactor.running):
            return []
        _, request = self._compact_waiters[0]
        try:
            if self.compactor is None:
                raise InvalidRequest("this store has no log to compact")
            # Something new for it, always: files go only when a second snapshot stands behind the
            # newest, so whoever asks twice in a row must get two.
            self._seal(self.clock.now())
            self.compactor.start(request.command.retain)  # type: ignore[union-attr]
        except Poisoned:
            raise
        except Error as error:
            self._compacting, self._compact_waiters = self._compact_waiters, []
            return self._answer_waiters(None, error)
        self._compacting, self._compact_waiters = self._compact_waiters, []
        return []

    def _answer_waiters(self, report: dict[str, Any] | None,
                        failure: Error | None) -> list[tuple[Route, bytes]]:
        waiters, self._compacting = self._compacting, []
        return [(route, protocol.encode_reply(_op(request), Reply(
            request.session, request.number, self.state.epoch, report, failure)))
            for route, request in waiters]

    def _poll_compaction(self) -> list[tuple[Route, bytes]]:
        if self.compactor is None:
            return []
        report, failure = None, None
        try:
            if not self.compactor.running:
                if self.compactor.due():
                    self.compactor.start(None, due=True)
                return []
            report = self.compactor.poll()
        except Poisoned:
            raise
        except Error as error:
            failure = error
        if report is None and failure is None:
            return []
        self.log.check_space()
        if failure is not None and not self._compacting:
            self.tell(f"{failure.message}; the log is whole, it will be tried again")
        return self._answer_waiters(report, failure)

    def _give_back_time(self) -> None:
        with suppress(Error), self._whole_or_poisoned():
            self.log.ensure_room(_OWN_ROOM, urgent=True)
            self.machine.begin(self.clock.now())
            self.machine.give_back_time()
            self._persist(self.state.revision + 1)

    def _compact_if_due(self) -> None:
        """Before an embedded store closes: its processes may be too short-lived to compact beside
        their work, so one in many waits for it here."""
        compactor = self.compactor
        if compactor is None or self.log.space_low or not (compactor.running or compactor.due()):
            return
        until = self.clock.now() + _COMPACT_BEFORE_CLOSE
        with suppress(Error):  # the log is whole without; the next one tries again
            compactor.start(None, due=True)
            while compactor.running and compactor.poll() is None and self.clock.now() < until:
                time.sleep(0.005)

    # --- embedded use --------------------------------------------------------------------------

    def handle(self, payloads: Sequence[bytes], owner: Caller | None = None) -> list[bytes]:
        """One batch for callers in this process: the replies to all payloads, in their order. Waits
        for a compaction that it asks for; several threads may wait, and each gets its own. What
        the archive is asked is answered later, to `late` of the same `owner`."""
        mine = Caller() if owner is None else owner
        found: list[tuple[int, bytes]] = []
        items: Any = [((mine, i), payload) for i, payload in enumerate(payloads)]
        with self._lock:
            end = self.machine.next_end()
            if self._serving and end is not None and end <= self.clock.now():
                self.process(())  # no loop has: a lease that is over must not be renewed first
            self._deliver(self.process(items)[0])
        while True:
            with self._lock:
                found += self._arrived.pop(mine, ())
                waiters: Any = self._compact_waiters + self._compacting
                if not any(route[0] is mine for route, _ in waiters):
                    return [reply for _, reply in sorted(found, key=_place)]
            time.sleep(0.005)
            with self._lock:
                self._deliver(self.tick()[0])

    def expects(self, owner: Caller) -> bool:
        """Whether `late` may have something for this caller, now or soon."""
        return owner in self._arrived or (self.archive is not None and self.archive.waiting)

    def late(self, owner: Caller) -> list[bytes]:
        """What the archive has answered to this caller."""
        with self._lock:
            if self.archive is not None:
                self._deliver(self.archive.poll())
            return [reply for _, reply in self._arrived.pop(owner, ())]

    def leave(self, owner: Caller) -> None:
        """This caller comes no more: what is still answered to it is dropped."""
        with self._lock:
            owner.gone = True
            self._arrived.pop(owner, None)

    def _deliver(self, answers: Any) -> None:
        for (owner, place), reply in answers:
            if not owner.gone:
                self._arrived.setdefault(owner, []).append((place, reply))

    def subscribe(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call `listener` after each durable batch that changed something; returns the undoing."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    @property
    def revision(self) -> int:
        """The head."""
        return self.state.revision

    def status(self) -> dict[str, Any]:
        """Facts for `ckptmesh status` and `info`: plain numbers and text, nested one level."""
        state = self.state
        return {
            "uuid": state.uuid.hex(), "release": RELEASE, "pid": os.getpid(),
            "epoch": state.epoch, "revision": state.revision, "floor": state.floor,
            "time": iso(self.machine.now), "keys": len(state.entries),
            "expiring": state.expiring, "leases": len(state.leases),
            "sessions": len(state.sessions), "history_revisions": len(state.ring),
            "history_bytes": state.ring.bytes,
            "read_only": self._read_only(), "publish": self.machine.publish,
            "counts": dict(self.counts), "settings": dict(state.settings),
            "batch_requests_p50": self.batches.percentile(50), "log": self.log.status(),
            "sockets": dict(self.sockets),
            "compacting": self.compactor is not None and self.compactor.running,
            "archive": {} if self.archive is None else self.archive.status(),
        }

    def _read_only(self) -> str:
        if self.state.loss is not None:
            return "data loss suspected: see `ckptmesh wal accept-loss`"
        if self.machine.out_of_space is not None:
            return str(self.machine.out_of_space.message)
        return ""


_CUTS = frozenset({Get, Scan})  # what the archive can answer below the floor
_OWN = frozenset({Status, Compact, Pin, Unpin, Pins})  # what the machine knows nothing of
_WRITES = frozenset({
    Open, Close, Transact, Setting, SetContract, AcceptLoss, Compact, Pin, Unpin})
_PROVES = frozenset({Sealed, TimeReserved})


def _place(answer: tuple[int, bytes]) -> int:
    return answer[0]


def _op(request: Request) -> int:
    return commands.op_of(request.command)


def _space_error() -> OutOfSpace:
    return OutOfSpace("the store's disk is nearly full, so the store is read-only")
