"""One store that a machine plays with: the engine over a disk that forgets, beside its model.

It starts, is asked in batches, dies and starts again; whatever it tells is compared. A batch that
nobody was answered for is whole or absent; which of the two, the recovered store tells, and the
model follows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import count
from random import Random
from typing import Any

import pytest
from hypothesis.stateful import RuleBasedStateMachine

from ckptmesh import commands, protocol
from ckptmesh.clock import StoreClock
from ckptmesh.compaction import Compaction
from ckptmesh.engine import Engine
from ckptmesh.errors import ClockSuspect, Error
from ckptmesh.limits import CLOCK_JUMP, KIB
from ckptmesh.messages import (
    KINDS,
    Command,
    Commit,
    Condition,
    Mutation,
    Open,
    Outcome,
    Put,
    Reply,
    Row,
    Transact,
    Version,
)
from ckptmesh.testing.disks import FaultyDisk, Killed
from ckptmesh.testing.model import Entry, Model
from ckptmesh.values import pack, unpack
from ckptmesh.wal import Wal
from tests.crash.stores import SMALL, START, no_lock
from tests.crash.test_compaction_crashes import PLACE, Inline, fresh

OPTIONS = SMALL._replace(segment_bytes=80 * KIB, retain_seconds=10**9)


def ending_at(call: int) -> Callable[[int, str, str], None]:
    """What ends the process at that call, before it does anything."""
    calls = count(1)

    def meet(_: int, operation: str, path: str) -> None:
        if operation not in ("open", "pread", "close", "free_bytes") and next(calls) == call:
            raise Killed(operation)

    return meet


def result_of(reply: Reply) -> Any:
    """What was answered. Raises the refusal."""
    if reply.error is not None:
        raise reply.error
    return reply.result


class Sent:
    """A transaction that was sent: what it asks, and what it was first answered."""

    def __init__(self, number: int, conditions: Sequence[Condition], mutations: Sequence[Mutation]
                 ) -> None:
        self.number = number
        self.conditions = tuple(conditions)
        self.mutations = tuple(mutations)  # values as users know them
        self.epoch = 0  # in which it was decided
        self.answer: Outcome | type[Error] | None = None
        self.lasting = False  # it took a revision, so its outcome outlives the store

    @property
    def command(self) -> Transact:
        return Transact(self.conditions, tuple(
            each._replace(value=pack(each.value)) if type(each) is Put else each
            for each in self.mutations))

    def decide(self, model: Model, now: int, epoch: int) -> None:
        self.epoch, before = epoch, model.revision
        try:
            results = model.transact(self.conditions, self.mutations, now, epoch=epoch)
        except Error as refused:
            self.answer = type(refused)
        else:
            self.answer = Outcome(model.revision, epoch, now, results)
            self.lasting = model.revision > before


class EngineStore(RuleBasedStateMachine):
    """One store, from its first start over every end to the last. `played` counts what came."""

    def __init__(self) -> None:
        super().__init__()
        self.played: Counter[str] = Counter()
        self.disk = fresh()
        self.wall, self.boot = START, 0
        self.source = Random(1)
        self.ids = count(1)
        self.model = Model()
        self.pending: list[Sent] | None = None  # of a batch that nobody was answered for yet
        self.died: tuple[int, int] | None = None  # (time, epoch) of the store before this one
        self.oldest = 0  # the oldest revision that can be restored
        self.unsure = 0  # perhaps not below this one: a compaction was cut short
        self.copies = count(1)
        self.open()
        self.new_session()

    # --- life and death -----------------------------------------------------------------------

    def open(self) -> None:
        """Start a store over what is on the disk; compare what it has recovered."""
        self.faulty = FaultyDisk(self.disk)
        self.faulty.meet = self.meet
        wal = Wal.open(PLACE, OPTIONS, self.faulty, clock=lambda: self.wall, lock=no_lock,
                       random=self.source.randbytes)
        clock = self.clock_over(max(wal.state.time, wal.state.reserved))
        compaction = Compaction(wal, disk=self.faulty, clock=lambda: self.wall,
                                elapsed=lambda: self.boot, spawn=partial(Inline, self.faulty))
        engine: Engine[int] = Engine(wal, clock, compactor=compaction,
                                     fresh_id=lambda: next(self.ids).to_bytes(16, "big"))
        engine.serve()
        # Not before: what was read from the page cache after a kill may be lost with the power.
        self.engine = engine
        self.recovered()

    meet: Callable[[int, str, str], None] = staticmethod(lambda count, operation, path: None)

    def clock_over(self, floor: int) -> StoreClock:
        """A clock; one that is far ahead of the log has to be accepted."""
        clock = partial(StoreClock, floor, wall=lambda: self.wall, boot=lambda: self.boot)
        if not floor or self.wall - floor <= CLOCK_JUMP:
            return clock()
        with pytest.raises(ClockSuspect):
            clock()
        return clock(accept_jump=True)

    def recovered(self) -> None:
        """Everything acknowledged is there; what was not is whole or absent."""
        state, pending = self.engine.state, self.pending or []
        self.pending = None
        if state.revision > self.model.revision:
            assert self.died is not None
            self.played["whole"] += 1
            self.happened(pending, *self.died, list(state.ring.after(self.model.revision)))
        elif pending:
            self.played["absent"] += 1
            self.unanswered += [sent for sent in pending if sent.answer is None]
        assert state.revision == self.model.revision, "what was acknowledged is lost"
        self.model.move_leases(end=self.engine.machine.now)

    def dies(self, how: str, call: int, act: Callable[[], object], again: Sequence[int] = ()
             ) -> None:
        """End at that call of `act`, or right after it; then start, ended at each of `again`."""
        for action, at in zip([act, *[self.open] * len(again)], (call, *again), strict=True):
            self.faulty.meet = self.meet = ending_at(at)
            try:
                action()
            except Killed:
                self.played["ends"] += 1
            self.died = (self.engine.machine.now, self.engine.state.epoch)
            self.disk = (self.disk.killed() if how == "kill"
                         else self.disk.power_failure(self.source, all_lost=how == "all lost"))
        self.meet = type(self).meet
        self.open()

    # --- one batch ----------------------------------------------------------------------------

    def new_session(self) -> None:
        self.sent: list[Sent] = []
        self.unanswered: list[Sent] = []
        self.numbers = count(1)
        self.low = 1
        self.session = result_of(self.ask(Open("machine"))).session

    def time(self) -> int:
        """Store time of the next batch."""
        return max(self.engine.clock.now(), self.engine.machine.now)

    def ask(self, command: Command) -> Reply:
        """One command without a session, in a batch of its own."""
        op, body = commands.pack_command(command)
        return self.process([protocol.encode_request(op, body, number=1)])[0]

    def copy_of(self, sent: Sent, epoch: int | None = None, command: Command | None = None
                ) -> bytes:
        """A copy of a request as a client sends it now."""
        op, body = commands.pack_command(command or sent.command)
        return protocol.encode_request(
            op, body, session=self.session, number=sent.number, low=self.low,
            epoch=self.engine.state.epoch if epoch is None else epoch)

    def process(self, payloads: Sequence[bytes], new: Sequence[Sent] = ()) -> list[Reply]:
        """One batch, in the model too; `new` are the transactions that are decided in it."""
        self.pending = list(new)
        replies, publications = self.engine.process(list(enumerate(payloads)))
        self.happened(new, self.engine.machine.now, self.engine.state.epoch,
                      [publication.commit for publication in publications])
        self.pending = None
        return [protocol.decode_reply(reply)[1] for _, reply in sorted(replies)]

    def happened(self, new: Iterable[Sent], now: int, epoch: int, commits: Sequence[Commit]
                 ) -> None:
        """Let the model do what was done; compare it with what was told of it."""
        mark = len(self.model.events)
        for sent in new:
            sent.decide(self.model, now, epoch)
            self.sent.append(sent)
        expired = [change.key for commit in commits for change in commit.changes
                   if commit.revision > self.model.revision]
        assert sorted(expired) == self.model.due(now), f"the model does not expire {expired}"
        self.model.expire(expired, now)
        self.tells(commits, mark)

    def tells(self, commits: Sequence[Commit], mark: int) -> None:
        """Commits as in the model, from event number `mark` on."""
        told = sorted((commit.revision, change.index, KINDS[change.kind], change.key,
                       self.entry(change.version)) for commit in commits
                      for change in commit.changes)
        wanted = [(event.revision, event.kind, event.key, event.entry and self.plain(event.entry))
                  for event in self.model.events[mark:]]
        found = [(revision, *rest) for revision, _, *rest in told]
        assert found == wanted, f"{found}, the model has {wanted}"

    def answers(self, sents: Sequence[Sent], replies: Sequence[Reply]) -> None:
        for sent, reply in zip(sents, replies, strict=True):
            assert (reply.session, reply.number) == (self.session, sent.number)
            told = type(reply.error) if reply.error else reply.result
            assert told == sent.answer, f"{told} ({reply.error}), the model has {sent.answer}"

    # --- comparing ----------------------------------------------------------------------------

    def same(self, rows: Sequence[Row | None], entries: Iterable[tuple[str, Entry]]) -> None:
        found = [(row.key, row.epoch, self.entry(row.version)) for row in rows if row]
        wanted = [(key, entry.epoch, self.plain(entry)) for key, entry in entries]
        assert found == wanted, f"{found}, the model has {wanted}"

    def entry(self, version: Version | None) -> tuple[Any, ...] | None:
        """A version as it is compared."""
        if version is None:
            return None
        return (pack(unpack(version.value)), version.revision, version.create_revision,
                version.version, version.time, version.expires_at, version.lease, version.position,
                version.head)

    def plain(self, entry: Entry) -> tuple[Any, ...]:
        """An entry as it is compared; deadlines of leases are nobody's but the store's."""
        return (pack(entry.value), entry.revision, entry.create_revision, entry.version,
                self.model.cuts[entry.revision][0], None if entry.lease else entry.ends,
                entry.lease, entry.position, entry.head)
