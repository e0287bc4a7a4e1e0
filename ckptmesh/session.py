"""The client's brain: request numbers, sessions, retries, deadlines.

Rule 1: nothing here reads a clock, rolls a die or touches a socket. `now` is an argument (seconds,
        from any origin that never goes back); `jitter` and `pack` are handed in.
Rule 2: the same (session, number) never carries another command.
Rule 3: a transaction that was ever sent is never called absent, unless the store itself said so.
Rule 4: every call settles: by an answer, by its deadline, by being given up, or by `close`.
Rule 5: not thread-safe, and never waits. Whoever uses it holds a lock and does the waiting.

How it is used, over and over, by `client.py` and `aio.py`:

    call = session.call(command, now, deadline)      any number of them
    for copy in session.copies(now): …               encode, send; `unsent(copy)` where that failed
    wait for a reply, or until session.wake_at()
    session.receive(op, reply, now)
    for call in session.settled(): …                 call.result or call.error

What happens to a request (docs/protocol.md 5, seen from the client):

    an answer or a refusal                        settle
    no answer for a while                         the same number again, with backoff and jitter
    EpochChanged                                  stamp anew, send again
    SessionExpired, sent exactly once             again under a new number in a new session
    SessionExpired, otherwise                     OutcomeUnknown
    a head behind what was seen before asking     DataLoss
    TooManyInFlight                               wait, send again
    Unavailable: a broker without a store         hold everything; one Hello asks until one answers
    Superseded, old epoch, unknown number         discard: nobody waits for it
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

from ckptmesh.calls import (
    NEVER,
    Call,
    Copy,
    Lane,
    Timetable,
    fresh,
    head_told,
    order_of,
    unknown_session,
)
from ckptmesh.errors import (
    Closed,
    DataLoss,
    EpochChanged,
    Error,
    OtherStore,
    OutcomeUnknown,
    SessionExpired,
    Superseded,
    TooManyInFlight,
    Unavailable,
)
from ckptmesh.limits import IN_FLIGHT_BYTES, IN_FLIGHT_REQUESTS, MIB
from ckptmesh.messages import (
    Close,
    Command,
    Find,
    Hello,
    Open,
    Opened,
    Outcome,
    Reply,
    Rows,
    Transact,
    Welcome,
    tuple_of,
)

# Seconds. A reply is lost only when a process on the way died, and a slow sync may take seconds:
# asking again soon would load a store that is merely slow.
RESEND_FIRST, RESEND_MAX = 0.5, 8.0
RESEND_RATE = 4 * MIB  # bytes a second that any link is trusted with: a large request takes longer
# After a refusal that costs its sender nothing: a store that starts is found again quickly.
REFUSED_FIRST, REFUSED_MAX = 0.02, 1.0


_PUT_BACK = (OtherStore, DataLoss)


class Session:
    """Decides what a client sends, until it is answered, and what each answer means.

    `name` tells people who opened the session; `pack` is `commands.pack_command`; `jitter` gives a
    number from 0 to 1 at each call; `where` names the other end in messages. `first`: the number of
    the first request that needs no session. The echo of that number is all that tells its answer
    from another client's, should a route ever lead to the wrong one: so let it be a random one.
    """

    def __init__(
        self,
        name: str,
        *,
        pack: Callable[[Command], tuple[int, bytes]],
        jitter: Callable[[], float],
        where: str = "the store",
        first: int = 1,
    ) -> None:
        self._name = name
        self._pack = pack
        self._jitter = jitter
        self._where = where
        self.uuid = b""
        self.epoch = 0
        self.seen = (0, 0)  # (epoch, revision) of the highest revision seen acknowledged
        self.retries = 0
        self.discarded = 0
        self._reads = Lane(b"", first)
        self._lane: Lane | None = None  # of the session that new transactions go to
        self._lanes: dict[bytes, Lane] = {b"": self._reads}
        self._waiting_reads: OrderedDict[int, Call] = OrderedDict()  # not numbered yet, by order
        self._waiting: OrderedDict[int, Call] = OrderedDict()  # likewise: transactions
        self._finds: list[tuple[int, Lane, Call]] = []  # (number asked about, its lane, call)
        self._ready: list[Call] = []
        self._times = Timetable()
        self._settled: list[Call] = []
        self._orders = 0
        self._live = 0  # calls of the user that have not settled
        self._held_calls = 0  # of those, transactions, and their bytes
        self._held_bytes = 0
        self._opening: Call | None = None
        self._missing: Unavailable | None = None  # set while the broker says: no store
        self._probe: Call | None = None
        self._unreachable = False
        self._closed = False

    # --- what the shells ask ------------------------------------------------------------------

    @property
    def session(self) -> bytes:
        """The id of the session in use; b"" before the first transaction and after an eviction."""
        return self._lane.session if self._lane else b""

    @property
    def live(self) -> int:
        """Calls that have not settled."""
        return self._live

    @property
    def live_bytes(self) -> int:
        """Bytes of transactions that have not settled."""
        return self._held_bytes

    @property
    def full(self) -> bool:
        """Whether one more transaction would only wait: who can, should wait before asking."""
        return self._held_calls >= IN_FLIGHT_REQUESTS or self._held_bytes >= IN_FLIGHT_BYTES

    def call(self, command: Command, now: float, deadline: float = NEVER) -> Call:
        """Ask for a command. It settles later; `copies` tells what to send for it.

        Raises `Closed` after `close`, and what `pack` raises.
        """
        if self._closed:
            raise Closed("this client is closed", hint="connect again")
        call = self._new(command, now, deadline)
        if call.held:
            self._held_calls += 1
            self._held_bytes += call.size
            self._waiting[call.order] = call
        else:
            self._waiting_reads[call.order] = call
        return call

    def find(self, lost: Call, now: float, deadline: float = NEVER) -> Call:
        """Ask what became of a transaction that was given up: result Outcome or None (absent).

        Settles with `OutcomeUnknown` when its session is gone. It is sent only when `low` is beyond
        the number, since only then is the answer final; requests before it delay it.
        """
        if self._closed:
            raise Closed("this client is closed", hint="read the key and compare")
        lane = lost.lane
        if lane is None or not lost.settled:
            raise Error("only a request that was sent and given up can be asked about")
        call = self._new(Find(lane.session, lost.number, lost.after), now, deadline)
        if self._lanes.get(lane.session) is lane:
            self._finds.append((lost.number, lane, call))
        else:
            self._settle(call, error=unknown_session(lost))
        return call

    def copies(self, now: float) -> list[Copy]:
        """All that is due to be sent now, in the order of asking. Also settles what is overdue.

        Each copy counts as sent, unless `unsent` says otherwise.
        """
        out = self._copies(now)
        self._times.settle_expected()
        return out

    def _copies(self, now: float) -> list[Copy]:
        self._turn(now)
        if self._missing is not None:
            return self._copies_while_missing(now)
        out: list[Copy] = []
        if self._ready:
            queue, self._ready = sorted(self._ready, key=order_of), []
            out.extend(self._emit(call, now) for call in queue if call.ready)
        if self._waiting_reads:
            out.extend(self._admit(self._waiting_reads, self._reads, now))
        if self._finds:
            out.extend(self._release_finds(now))
        if self._waiting and self._lane is not None:
            out.extend(self._admit(self._waiting, self._lane, now))
        if self._waiting and self._lane is None and self._opening is None:
            command = Open(self._name, self.uuid, *self.seen)
            self._opening = self._new(command, now, internal=True)
            out.append(self._number(self._opening, self._reads, now))
        return out

    def expire(self, now: float) -> None:
        """Settle what is overdue, without sending anything."""
        self._times.settle_expected()
        self._turn(now)

    def unsent(self, copy: Copy) -> None:
        """This copy could not be handed to the transport, so it never left; try again later."""
        call = copy.call
        self._unreachable = True
        if not call.settled:
            call.copies -= 1
            call.attempt -= 1
            if call.attempt:
                self.retries -= 1
            self._make_ready(call)

    def receive(self, op: int, reply: Reply, now: float) -> None:
        """Take in one reply: settle its call, send it again, or discard it."""
        lane = self._lanes.get(reply.session)
        call = lane.open.get(reply.number) if lane else None
        if call is not None and (call.op != op or call.attempt == 0):
            call = None  # no answer to anything that we sent
        error = reply.error
        if type(error) is Unavailable:  # not one of its kinds, which are about a single request
            if call is None:
                self.discarded += 1
            else:
                self._store_missing(call, error, now)
            return
        if not isinstance(error, _PUT_BACK):  # a store that was put back says so itself
            # Epoch 0 is said by what has none: the broker.
            if 0 < reply.epoch < self.epoch:
                self.discarded += 1
                return
            if reply.epoch > self.epoch:
                self._learn_epoch(reply.epoch, now)
        if self._missing is not None:
            self._store_back(answered=call)
        if call is None or isinstance(error, Superseded):
            self.discarded += 1
        elif error is None:
            call.epoch = reply.epoch
            self._answered(call, reply)
        else:
            self._refused(call, error, reply.epoch, now)

    def settled(self) -> list[Call]:
        """The calls that have settled since the last time, in that order."""
        done = self._settled
        if done:
            self._settled = []
        return done

    def wake_at(self) -> float:
        """When `copies` must be called again at the latest, even if nothing arrives."""
        self._times.settle_expected()
        return self._times.next()

    def give_up(self, call: Call, reason: str = "was cancelled") -> None:
        """Stop waiting for a call; `low` moves on. It settles with what is honest to say.

        A transaction of which a copy went out: `OutcomeUnknown`. Anything else: `Unavailable`.
        """
        if call.settled:
            return
        if call.attempt and isinstance(call.command, Transact):
            error: Error = OutcomeUnknown(
                f"{call.what} {reason}: it may or may not have happened; {self._trouble(call)[0]}",
                number=call.number)
        else:
            text, hint, missing = self._trouble(call)
            what = call.what if call.attempt else f"{call.what} was never sent and"
            error = Unavailable(f"{text}; {what} {reason}", hint=hint, missing=missing)
        self._settle(call, error=error)

    def fail(self, error: Error) -> None:
        """The way to the store is broken for good: settle everything that is open with this.

        A transaction of which a copy went out may have happened all the same: `OutcomeUnknown`.
        """
        calls = [call for lane in self._lanes.values() for call in lane.open.values()]
        calls += [*self._waiting_reads.values(), *(entry[-1] for entry in self._finds)]
        calls += self._waiting.values()
        for call in sorted(calls, key=order_of):
            if call.settled:
                continue
            if call.attempt and isinstance(call.command, Transact):
                unknown = OutcomeUnknown(
                    f"{call.what} may or may not have happened: {error.message}",
                    number=call.number)
                unknown.__cause__ = error
                self._settle(call, error=unknown)
            else:
                self._settle(call, error=fresh(error))

    def close(self) -> None:
        """Settle everything that is still open and take no more calls."""
        self._closed = True
        self.fail(Closed("this client was closed", hint="connect again"))

    # --- sending ------------------------------------------------------------------------------

    def _new(
        self, command: Command, now: float, deadline: float = NEVER, *, internal: bool = False
    ) -> Call:
        op, body = self._pack(command)
        self._orders += 1
        call = Call(command, op, body, now, deadline, self._orders, internal=internal)
        self._live += not internal
        if deadline <= now:
            self._schedule(call, deadline)
        else:
            self._times.expect(call)
        return call

    def _admit(self, waiting: OrderedDict[int, Call], lane: Lane, now: float) -> Iterator[Copy]:
        while waiting and lane.fits(call := next(iter(waiting.values()))):
            closing = isinstance(call.command, Close)
            if closing and lane.open:
                return  # a late copy of what is open would meet a session that has ended
            del waiting[call.order]
            yield self._number(call, lane, now)
            if closing:
                self._retire()
                return

    def _number(self, call: Call, lane: Lane, now: float) -> Copy:
        lane.add(call)
        return self._emit(call, now)

    def _emit(self, call: Call, now: float) -> Copy:
        lane = call.lane
        assert lane is not None  # only numbered calls come here
        call.ready = False
        self._unreachable = False
        if call.attempt:
            self.retries += 1
        else:  # before any copy: whatever becomes of the request happens after this revision
            call.after = self.seen[1]
        call.copies += 1
        call.stamp = self.epoch
        call.attempt += 1
        self._times.set(call, min(now + self._patience(call), call.deadline))
        stamps = (0, self.uuid, 0) if lane is self._reads else (lane.low, self.uuid, self.epoch)
        copy: Copy = tuple_of(Copy, (call, call.op, call.body, lane.session, call.number, *stamps))
        return copy

    def _copies_while_missing(self, now: float) -> list[Copy]:
        """Only the probe asks while no store is there; all else keeps its place."""
        for call in self._ready:
            call.ready = False
            if call is not self._probe:
                self._park(call)
        probing = [call for call in self._ready if call is self._probe]
        self._ready = []
        if self._live == 0:
            self._store_back(answered=None)  # nobody waits: the next call finds out by itself
            return []
        return [self._emit(call, now) for call in probing]

    def _release_finds(self, now: float) -> list[Copy]:
        out: list[Copy] = []
        later: list[tuple[int, Lane, Call]] = []
        for number, lane, call in self._finds:
            if call.settled:
                continue
            if self._lanes.get(lane.session) is not lane:
                self._settle(call, error=unknown_session(call))
            elif lane.low > number and lane.fits(call):
                out.append(self._number(call, lane, now))
            else:
                later.append((number, lane, call))
        self._finds = later
        return out

    def _turn(self, now: float) -> None:
        """Bring up everything whose time has come."""
        for call in self._times.due(now):
            if call.deadline <= now:
                self.give_up(call, f"waited {max(0.0, call.deadline - call.started):.3g} s")
            elif call is self._opening and not self._held_calls:
                self._settle(call)  # nobody waits for the session any more
            else:
                self._make_ready(call)
                self._schedule(call, NEVER)

    def _park(self, call: Call) -> None:
        """Until a store is there, only its deadline counts."""
        call.parked = True
        self._schedule(call, NEVER)

    def _make_ready(self, call: Call) -> None:
        if not call.ready:
            call.ready = True
            self._ready.append(call)

    def _schedule(self, call: Call, due: float) -> None:
        self._times.set(call, min(due, call.deadline))

    def _patience(self, call: Call) -> float:
        """Seconds to wait for an answer to a call's last copy until another one goes out."""
        return self._backoff(RESEND_FIRST, RESEND_MAX, call.attempt - 1) + call.size / RESEND_RATE

    def _backoff(self, first: float, maximum: float, attempt: int) -> float:
        """Seconds: exponential, bounded, spread over its upper half so that clients part."""
        most: float = min(first * 2.0 ** min(attempt, 20), maximum)
        return most * (0.5 + self._jitter() / 2)

    # --- what came back -----------------------------------------------------------------------

    def _answered(self, call: Call, reply: Reply) -> None:
        result = reply.result
        if isinstance(result, Welcome) and self.uuid and result.uuid != self.uuid:
            self._settle(call, error=OtherStore(
                f"another store answers at {self._where} than the one this client began with"))
            return
        head = head_told(call.command, result)
        if head is not None and head < call.after:
            self._lost(call, head)
            return
        if type(result) is Outcome:
            if result.revision > self.seen[1]:
                self._saw(result.epoch, result.revision)
        elif isinstance(result, Rows):
            self._saw(reply.epoch, result.revision)
        elif isinstance(result, Welcome):
            self.uuid = result.uuid
            self._saw(result.epoch, result.revision)
        elif isinstance(result, Opened):
            # The store was shown what we saw: if it has less, an operator accepted the loss.
            self.seen = min(self.seen, (result.epoch, result.revision), key=lambda seen: seen[1])
            self._saw(result.epoch, result.revision)
            if call is self._opening and result.session not in self._lanes:
                self._lane = self._lanes[result.session] = Lane(result.session)
        self._settle(call, result)

    def _refused(self, call: Call, error: Exception, epoch: int, now: float) -> None:
        if call.internal:
            if call is self._opening:
                for waiting in list(self._waiting.values()):
                    self._settle(waiting, error=fresh(error))
            self._settle(call)
        elif isinstance(error, EpochChanged):
            if call.stamp >= epoch:
                self.discarded += 1  # about an earlier copy; a newer one is on its way
                return
            if call.copies == 1:
                call.copies = 0  # its only copy is known to be refused
            self._make_ready(call)
        elif isinstance(error, TooManyInFlight):
            self._schedule(call, now + self._backoff(REFUSED_FIRST, REFUSED_MAX, call.attempt))
        elif isinstance(error, SessionExpired):
            self._expired(call)
        else:
            self._refuse(call, error)

    def _refuse(self, call: Call, error: Exception) -> None:
        if isinstance(error, OtherStore) and call.copies > 1 and isinstance(call.command, Transact):
            unknown = OutcomeUnknown(
                f"{call.what} was sent to the store that stood at {self._where} "
                "before; another one answers now", number=call.number)
            unknown.__cause__ = error
            self._settle(call, error=unknown)
        else:
            self._settle(call, error=fresh(error))

    def _expired(self, call: Call) -> None:
        """The session is gone: with it all that tells a late copy from a new request."""
        if call.lane is not None and call.lane is self._lane:
            self._retire()
        if isinstance(call.command, Close):
            self._settle(call)
        elif isinstance(call.command, Find) or call.copies != 1:
            self._settle(call, error=unknown_session(call))
        else:
            self._detach(call)
            call.number, call.copies, call.attempt, call.lane = 0, 0, 0, None
            self._schedule(call, NEVER)
            self._waiting[call.order] = call
            self._waiting = OrderedDict(sorted(self._waiting.items()))  # to its place

    def _lost(self, call: Call, head: int) -> None:
        """A head behind what was acknowledged before the question was sent: an older disk came
        back, or a log was cut. The next transaction opens a session, which shows the store."""
        epoch, revision = self.seen
        self._retire()
        self._settle(call, error=DataLoss(
            f"{self._where} stands at revision {head}, but this client has seen revision "
            f"{revision} of epoch {epoch} acknowledged", epoch=epoch, revision=revision, head=head))

    def _retire(self) -> None:
        """New transactions go to a new session; what is open in this one stays there."""
        lane, self._lane = self._lane, None
        if lane is not None and not lane.open:
            del self._lanes[lane.session]

    def _store_missing(self, call: Call, error: Unavailable, now: float) -> None:
        self._missing = error
        if call.attempt == 1:
            call.copies = 0  # its only copy is known to be refused
        if self._probe is None:
            self._probe = self._new(Hello(), now, internal=True)
            self._reads.add(self._probe)
            self._schedule(self._probe, now + self._backoff(REFUSED_FIRST, REFUSED_MAX, 0))
        if call is self._probe:
            delay = self._backoff(REFUSED_FIRST, REFUSED_MAX, call.attempt)
            self._schedule(call, now + delay)
        else:
            self._park(call)

    def _store_back(self, answered: Call | None) -> None:
        """A store answers, or nobody asks: all that was held back is due."""
        self._missing = None
        probe, self._probe = self._probe, None
        for lane in self._lanes.values():
            for call in lane.open.values():
                if call.parked:
                    call.parked = False
                    self._make_ready(call)
        if probe is not None and probe is not answered:
            self._settle(probe)

    def _learn_epoch(self, epoch: int, now: float) -> None:
        restarted, self.epoch = self.epoch > 0, epoch
        if not restarted:
            return
        # What was on its way to the incarnation before is lost, most likely; but not surely: a
        # refusal that comes now tells more than a second copy would.
        soon = now + self._backoff(RESEND_FIRST, RESEND_FIRST, 0)
        for lane in self._lanes.values():
            for call in lane.open.values():
                if soon < call.wake and call.attempt:
                    self._schedule(call, soon)

    def _saw(self, epoch: int, revision: int) -> None:
        # The first epoch in which a revision was seen says most about a store that lost it.
        if revision > self.seen[1]:
            self.seen = (epoch, revision)

    # --- settling -----------------------------------------------------------------------------

    def _detach(self, call: Call) -> None:
        lane = call.lane
        if lane is not None and lane.open.get(call.number) is call:
            lane.remove(call)
            if lane is not self._reads and lane is not self._lane and not lane.open:
                self._lanes.pop(lane.session, None)
        else:
            self._waiting.pop(call.order, None)
            self._waiting_reads.pop(call.order, None)
        call.ready = False

    def _settle(self, call: Call, result: Any = None, error: Error | None = None) -> None:
        self._detach(call)
        call.settled, call.result, call.error = True, result, error
        if call is self._opening:
            self._opening = None
        if not call.internal:
            self._live -= 1
            if call.held:
                self._held_calls -= 1
                self._held_bytes -= call.size
            self._settled.append(call)
        call.release()

    def _trouble(self, call: Call) -> tuple[str, str | None, str]:
        """Why there is no answer, as far as one can know: text, hint, and what is missing."""
        if self._unreachable:
            return f"no broker at {self._where}", None, "broker"
        if self._missing is not None:
            return (f"there is a broker at {self._where}, but no store behind it",
                    "start the store (`ckptmesh store`), or look why it stopped", "store")
        busy = "look whether the store is stopped or overloaded"
        if call.attempt or (self._opening is not None and self._opening.attempt):
            return f"no answer from {self._where}", busy, "answer"
        if self._live <= 1:
            return f"no time was left to ask {self._where}", "allow more: timeout=", "answer"
        return f"the requests before it are unanswered by {self._where}", busy, "answer"
