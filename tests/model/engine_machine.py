"""The engine over a disk that forgets, against the model: one client, many ends, a virtual clock.

What is played: batches, retries, late copies, ticks, compactions, stalls, steps of the wall clock,
passing time, restores; and the end of the process, by a kill or by a power failure, at any call to
the disk of any of these and of the recovery that follows.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any
from unittest.mock import patch

from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule

from ckptmesh import commands, protocol
from ckptmesh.errors import (
    Compacted,
    EpochChanged,
    LeaseLost,
    RequestReused,
    SessionExpired,
    Superseded,
)
from ckptmesh.limits import SECOND
from ckptmesh.messages import (
    LAST_INDEX,
    At,
    Compact,
    Condition,
    Delete,
    Exists,
    History,
    Increment,
    KeepAlive,
    Put,
    RevisionIs,
    Row,
    Scan,
    Setting,
    Since,
    TokenIs,
    Touch,
    Transact,
    Unchanged,
)
from ckptmesh.restore import restore
from ckptmesh.testing.disks import Killed
from ckptmesh.testing.stateful import KEYS, POSITIONS, PREFIXES, VALUES
from ckptmesh.wal import Wal
from tests.crash.stores import no_lock
from tests.crash.test_compaction_crashes import PLACE
from tests.model.engine_store import OPTIONS, EngineStore, Sent, result_of

DAY = 86_400 * SECOND

TTLS = st.sampled_from([None, None, SECOND, 20 * SECOND])
NOTHING = st.just(())
MUTATIONS = st.one_of(
    st.builds(Put, KEYS, VALUES, TTLS, st.just(False), POSITIONS, POSITIONS, NOTHING),
    st.builds(Put, KEYS, VALUES, st.sampled_from([SECOND, 20 * SECOND]), st.just(True), POSITIONS,
              POSITIONS, NOTHING),
    st.builds(Delete, KEYS), st.builds(Touch, KEYS, TTLS),
    st.builds(Increment, KEYS, st.integers(-2, 2), TTLS))
CONDITIONS = st.tuples(st.sampled_from(["revision", "revision", "token", "exists", "unchanged"]),
                       KEYS, st.sampled_from([0, 0, 1]))
TRANSACTIONS = st.tuples(
    st.lists(CONDITIONS, max_size=2),
    st.lists(MUTATIONS, min_size=1, max_size=3, unique_by=lambda mutation: mutation.key))
BATCHES = st.lists(TRANSACTIONS, min_size=1, max_size=3)
ENDS = st.sampled_from(["kill", "power", "power", "all lost"])
CALLS = st.integers(1, 20)
"""Which call to the disk, counted from now and of those that change something, never comes back."""


class EngineMachine(EngineStore):
    """One store, from its first start over every end to the last."""

    # --- rules: requests ----------------------------------------------------------------------

    @rule(batch=BATCHES)
    def commit(self, batch: Sequence[Any]) -> None:
        sents = self.prepared(batch)
        self.answers(sents, self.process([self.copy_of(sent) for sent in sents], sents))

    @rule(batch=BATCHES)
    def commit_while_the_disk_is_slow(self, batch: Sequence[Any]) -> None:
        """A sync that takes long ends no lease: nobody could renew it meanwhile."""
        sync, began = self.engine.log.sync, self.boot

        def slowly() -> None:
            sync()
            self.boot += 5 * SECOND

        with patch.object(self.engine.log, "sync", slowly):
            self.commit(batch)
        self.model.move_leases(by=self.boot - began)

    @precondition(lambda self: self.unanswered)
    @rule(data=st.data())
    def send_what_was_not_answered_again(self, data: st.DataObject) -> None:
        sent = data.draw(st.sampled_from(self.unanswered))
        self.unanswered.remove(sent)
        self.answers([sent], self.process([self.copy_of(sent)], [sent]))

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def send_a_copy_of_what_was_answered(self, data: st.DataObject) -> None:
        """The first outcome again, and never a second effect."""
        sent = data.draw(st.sampled_from(self.sent))
        epoch = self.engine.state.epoch
        if sent.number < self.low:
            assert type(self.process([self.copy_of(sent)])[0].error) is Superseded
        elif sent.lasting or sent.epoch == epoch:
            self.answers([sent], self.process([self.copy_of(sent)]))
            other = Transact((), (Put("other", b"\x01"),))
            reply = self.process([self.copy_of(sent, command=other)])[0]
            assert type(reply.error) is RequestReused
        if sent.epoch < epoch:
            late = self.copy_of(sent, epoch=sent.epoch)
            assert type(self.process([late])[0].error) is EpochChanged

    @rule(back=st.integers(0, 3))
    def settle(self, back: int) -> None:
        """The client needs no answer below this number any more."""
        open_ones = [sent.number for sent in self.unanswered]
        last = self.sent[-1].number + 1 if self.sent else 1
        self.low = max(self.low, min([last - back, *open_ones]))

    @rule(key=KEYS, back=st.sampled_from([0, 0, 1]))
    def keep_alive(self, key: str, back: int) -> None:
        entry = self.model.entries.get(key)
        token = (entry.epoch, entry.revision - back) if entry else (1, 1)
        try:
            expected: Any = self.model.keepalive(key, *token, self.time())
        except LeaseLost as lost:
            expected = type(lost)
        reply = self.ask(KeepAlive(key, *token))
        assert (type(reply.error) if reply.error else reply.result) == expected

    # --- drawn, and made what can be sent

    def prepared(self, batch: Sequence[Any]) -> list[Sent]:
        return [Sent(next(self.numbers), list(map(self.condition, conditions)), mutations)
                for conditions, mutations in batch]

    def condition(self, drawn: tuple[str, str, int]) -> Condition:
        kind, key, back = drawn
        entry = self.model.entries.get(key)
        revision = max(0, (entry.revision if entry else 0) - back)
        match kind:
            case "revision":
                return RevisionIs(key, revision)
            case "token":
                return TokenIs(key, entry.epoch if entry else 1, revision)
            case "exists":
                return Exists(key)
        return Unchanged(key, max(0, self.model.revision - 2 * back - 1))

    # --- rules: reads -------------------------------------------------------------------------

    @invariant()
    def everything_is_as_in_the_model(self) -> None:
        wanted = self.model.scan("", self.time())  # a lease that is due ends after the reads
        self.same(result_of(self.ask(Scan(""))).found, wanted.items())
        assert self.engine.state.revision == self.model.revision

    @rule(back=st.integers(0, 30), prefix=PREFIXES)
    def look_back(self, back: int, prefix: str) -> None:
        revision = max(0, self.model.revision - back)
        reply = self.ask(Scan(prefix, at=At(revision=revision)))
        if revision < self.model.floor:
            assert type(reply.error) is Compacted
        else:
            self.same(result_of(reply).found, self.model.at(revision, prefix).items())

    @rule(back=st.integers(0, 30), before=st.sampled_from([0, 1]))
    def look_back_to_a_time(self, back: int, before: int) -> None:
        """The last revision that is not later."""
        time = self.model.cuts[max(0, self.model.revision - back)][0] - before
        reply = self.ask(Scan("", at=At(time=max(0, time))))
        revision = self.last_by(time)
        if revision < self.model.floor:
            assert type(reply.error) is Compacted
        else:
            assert result_of(reply).revision == revision
            self.same(result_of(reply).found, self.model.at(revision).items())

    def last_by(self, time: int) -> int:
        return max((r for r, (when, _) in self.model.cuts.items() if when <= time), default=0)

    @rule(key=KEYS)
    def history(self, key: str) -> None:
        """All since the floor, and some versions from before it."""
        found = result_of(self.ask(History(key))).found
        wanted = self.model.history(key)
        needed = [entry for entry in wanted if entry.revision > self.model.floor]
        assert len(needed) <= len(found) <= len(wanted), f"{found}, not {wanted}"
        self.same(found, [(key, entry) for entry in wanted[:len(found)]])

    @rule(back=st.integers(0, 30))
    def events(self, back: int) -> None:
        revision = max(0, self.model.revision - back)
        reply = self.ask(Since(revision, LAST_INDEX))
        if revision < self.model.floor:
            assert type(reply.error) is Compacted
            return
        wanted = self.model.since(revision)
        assert result_of(reply).complete_to == self.model.revision
        self.tells(reply.result.commits, len(self.model.events) - len(wanted))

    # --- rules: what befalls the store --------------------------------------------------------

    @rule(how=ENDS, batch=BATCHES, call=st.integers(1, 3), again=st.lists(CALLS, max_size=2))
    def end_in_a_batch(self, how: str, batch: Any, call: int, again: list[int]) -> None:
        """Before the write, before the sync, or after both and the answers."""
        self.dies(how, call, partial(self.commit, batch), again)

    @rule(how=ENDS, batch=BATCHES, again=st.lists(CALLS, max_size=2))
    def end_between_sync_and_answer(self, how: str, batch: Any, again: list[int]) -> None:
        sync = self.engine.log.sync

        def last() -> None:
            sync()
            raise Killed

        with patch.object(self.engine.log, "sync", last):
            self.dies(how, 0, partial(self.commit, batch), again)

    @rule(how=ENDS, call=CALLS, again=st.lists(CALLS, max_size=2), act=st.sampled_from(
        ["tick", "compact_now", "compact_all", "close"]))
    def end_elsewhere(self, how: str, call: int, again: list[int], act: str) -> None:
        if act == "compact_all":
            self.unsure = self.model.revision
        self.dies(how, call, getattr(self, act), again)

    @rule()
    def stop_and_start(self) -> None:
        self.close()
        self.open()

    def close(self) -> None:
        self.engine.close()

    @rule()
    def tick(self) -> None:
        self.pending = []
        _, publications = self.engine.tick()
        self.happened((), self.engine.machine.now, self.engine.state.epoch,
                      [publication.commit for publication in publications])
        self.pending = None

    @rule(retain=st.sampled_from([None, None, 0]))
    def compact(self, retain: int | None) -> None:
        self.oldest = self.unsure = self.compact_now(retain)["oldest_revision"]

    def compact_all(self) -> None:
        self.compact_now(0)

    def compact_now(self, retain: int | None = None) -> dict[str, Any]:
        op, body = commands.pack_command(Compact(retain))
        assert self.process([protocol.encode_request(op, body, number=1)]) == []
        [(_, reply)] = self.engine.tick()[0]
        self.played["compactions"] += 1
        report: dict[str, Any] = result_of(protocol.decode_reply(reply)[1])
        return report

    @rule(revisions=st.sampled_from([15, 25, 100_000]))
    def keep_so_many_revisions(self, revisions: int) -> None:
        assert self.ask(Setting("history_revisions", revisions)).error is None
        self.model.bound(revisions)

    @rule(days=st.sampled_from([-400, -1, 1, 6, 400]))
    def step_the_wall_clock(self, days: int) -> None:
        """A running store does not notice; one that starts is not fooled backwards."""
        before = self.engine.clock.now()
        self.wall += days * DAY
        assert self.engine.clock.now() == before

    @rule(seconds=st.sampled_from([0.4, 1, 1, 5, 21]))
    def time_passes(self, seconds: float) -> None:
        self.wall += round(seconds * SECOND)
        self.boot += round(seconds * SECOND)

    @rule()
    def nobody_comes_for_two_hours(self) -> None:
        self.boot += 7_200 * SECOND
        self.tick()
        if self.sent:
            reply = self.process([self.copy_of(self.sent[-1])])[0]
            assert type(reply.error) is SessionExpired
        self.new_session()

    @rule(back=st.integers(0, 40), by_time=st.booleans())
    def restore(self, back: int, by_time: bool) -> None:
        """A copy in another directory holds what the store held then, without its leases."""
        revision = max(0, self.model.revision - back)
        at = {"revision": revision}
        if by_time and revision:
            at = {"time": self.model.cuts[revision][0]}
            revision = self.last_by(at["time"])
        place = f"/copy-{next(self.copies)}"
        self.disk.mkdir(place)
        copy = partial(restore, PLACE, place, disk=self.disk, **at,
                       clock=lambda: max(self.wall, self.time()), random=self.source.randbytes,
                       lock=no_lock)
        try:
            report = copy()
        except Compacted:
            assert revision < max(self.oldest, self.unsure)
            return
        assert revision >= self.oldest
        wal = Wal.open(place, OPTIONS, self.disk, clock=lambda: self.wall, lock=no_lock)
        standing = self.model.cuts[revision][1]
        kept = {key: entry for key, entry in standing.items() if entry.lease is None}
        self.same([Row(key, wal.state.epoch_of(version.revision), version)
                   for key, version in sorted(wal.state.entries.items())],
                  sorted(kept.items()))
        assert wal.state.revision == revision + len(standing) - len(kept)
        assert wal.state.uuid == report.store.uuid != self.engine.state.uuid
        assert wal.state.epoch > self.engine.state.epoch
        wal.close()
        self.played["restores"] += 1
