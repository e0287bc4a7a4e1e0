"""The four steps over a log in a list: what is durable before what leaves, what stops it all."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from histories import MUTATIONS, WHEN
from hypothesis import given, settings
from hypothesis import strategies as st
from machines import START, UUID, everything

from ckptmesh import bundles, commands, limits, protocol
from ckptmesh.engine import Engine
from ckptmesh.errors import (
    CompactionFailed,
    Conflict,
    InvalidRequest,
    LeaseLost,
    Misuse,
    OtherStore,
    OutOfSpace,
    Poisoned,
    Unsupported,
)
from ckptmesh.facts import EpochBegun, Record, Sealed, SettingChanged, TimeReserved
from ckptmesh.limits import SECOND
from ckptmesh.messages import (
    Command,
    Compact,
    Delete,
    Exists,
    Get,
    Hello,
    Increment,
    KeepAlive,
    Open,
    Outcome,
    Publication,
    Put,
    Setting,
    Status,
    Touch,
    Transact,
)
from ckptmesh.opening import open_engine
from ckptmesh.records import encode_records
from ckptmesh.state import State


class Clock:
    """A store clock that the test turns."""

    def __init__(self) -> None:
        self.time = START

    def now(self) -> int:
        return self.time


class ListLog:
    """A log in a list, as strict as the real one about room and order, that fails on demand."""

    verdict = "CLEAN"
    needs_copy_forward = False

    def __init__(self, clock: Clock, state: State | None = None) -> None:
        self.state = state or State(UUID)
        self.space_low = False
        self.frames: list[list[Record]] = []
        self.durable: list[Record] = []
        self.begun = 0
        self.room = 2**40  # of the disk
        self.asked = 0
        self.failing: dict[str, BaseException] = {}
        self.slow = 0  # microseconds that a sync takes
        self.held = True
        self.closed = False
        self.looks = 0
        self._clock = clock
        self._next = self.state.revision + 1

    def begin(self) -> None:
        self.begun += 1

    def ensure_room(self, nbytes: int, **urgent: bool) -> None:
        if nbytes > self.room:
            raise OutOfSpace("no room")
        self.asked = nbytes

    def append(self, records: Sequence[Record], first_revision: int) -> None:
        if "append" in self.failing:
            raise self.failing["append"]
        if len(encode_records(records)) > self.asked or first_revision != self._next:
            raise Misuse("no room was made, or a revision is missing")
        self.frames.append(list(records))

    def sync(self) -> None:
        if "sync" in self.failing:
            raise self.failing["sync"]
        self._clock.time += self.slow
        self.durable += self.frames[-1]
        self._next = self.state.revision + 1

    def check_space(self) -> bool:
        self.looks += 1
        return self.space_low

    def holds_lock(self) -> bool:
        return self.held

    def status(self) -> dict[str, Any]:
        return {"frames": len(self.frames)}

    def close(self) -> None:
        self.closed = True


class Compactor:
    """A compaction that is done when the test says so."""

    def __init__(self, log: ListLog) -> None:
        self.log = log
        self.started: list[tuple[int | None, int]] = []  # (retain, records durable by then)
        self.running = False
        self.report: dict[str, Any] | None = None
        self.failing: Exception | None = None
        self.wanted = False

    def due(self) -> bool:
        return self.wanted

    def start(self, retain: int | None, *, due: bool = False) -> None:
        if self.failing:
            raise self.failing
        self.started.append((retain, len(self.log.durable)))
        self.running = True

    def poll(self) -> dict[str, Any] | None:
        if self.failing:
            self.running = False
            raise self.failing
        if self.report is not None:
            self.running = False
        return self.report

    def close(self) -> None:
        self.running = False


class Site:
    """An engine with its log and clock, and one session to ask in."""

    def __init__(self, *, serve: bool = True, compacts: bool = True,
                 state: State | None = None) -> None:
        self.clock = Clock()
        self.log = ListLog(self.clock, state)
        self.compactor = Compactor(self.log)
        self.ids = 0
        self.engine: Engine[Any] = Engine(
            self.log, self.clock,  # type: ignore[arg-type]
            compactor=self.compactor if compacts else None, fresh_id=self.fresh_id)
        self.number = 0
        self.session = b""
        if serve:
            self.engine.serve()
            self.session = self.ask(Open("test")).session

    def fresh_id(self) -> bytes:
        self.ids += 1
        return self.ids.to_bytes(16, "big")

    def payload(self, command: Command, uuid: bytes = b"") -> bytes:
        op, body = commands.pack_command(command)
        self.number += 1
        inside = op in commands.IN_SESSION
        return protocol.encode_request(
            op, body, session=self.session if inside else b"", number=self.number,
            low=self.number if inside else 0, uuid=uuid,
            epoch=self.engine.state.epoch if inside else 0)

    def batch(self, *commands: Command) -> list[Any]:
        """Results or errors of one batch."""
        answers = self.engine.process([("way", self.payload(c)) for c in commands])[0]
        replies = [protocol.decode_reply(payload)[1] for _, payload in answers]
        return [reply.error or reply.result for reply in replies]

    def ask(self, command: Command) -> Any:
        [answer] = self.batch(command)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def commit(self, *mutations: Any) -> Any:
        return self.ask(Transact((), mutations))

    def value(self, key: str) -> bytes | None:
        row = self.ask(Get((key,))).found[0]
        return row.version.value if row else None


def put(key: str, value: bytes = b"\x01", ttl: int | None = None, lease: bool = False) -> Transact:
    return Transact((), (Put(key, value, ttl, lease),))


# --- one batch --------------------------------------------------------------------------------


def test_a_batch_is_one_frame_and_later_commands_see_earlier_ones() -> None:
    site = Site()
    frames = len(site.log.frames)
    one, two, refused, read = site.batch(
        put("a"), Transact((Exists("a"),), (Increment("a", 1),)), Transact((Exists("x"),), ()),
        Get(("a",)))
    assert (one.revision, two.revision, two.results) == (1, 2, (2,))
    assert isinstance(refused, Conflict)
    assert read.found[0].version.value == b"\x02"
    assert len(site.log.frames) == frames + 1


def test_a_batch_without_records_writes_and_syncs_nothing() -> None:
    site = Site()
    frames = len(site.log.frames)
    site.batch(Get(("a",)), Hello(), Status(), Transact((Exists("a"),), (Put("b", b"\x01"),)))
    assert len(site.log.frames) == frames
    assert site.engine.process([]) == ([], [])


@pytest.mark.fault(45)
def test_a_malformed_request_is_answered_and_disturbs_nobody() -> None:
    site = Site()
    good = site.payload(put("a"))
    unknown = protocol.encode_request(200, b"\x90", number=7)
    answers = dict(site.engine.process([("x", b"\xc1"), ("y", good), ("z", unknown)])[0])
    assert sorted(answers) == ["x", "y", "z"]
    decoded = {way: protocol.decode_reply(payload) for way, payload in answers.items()}
    assert isinstance(decoded["x"][1].error, InvalidRequest)
    assert isinstance(decoded["y"][1].result, Outcome)
    assert isinstance(decoded["z"][1].error, Unsupported)
    assert (decoded["z"][0], decoded["z"][1].number) == (200, 7)
    assert site.engine.counts["malformed"] == 2


def test_serving_begins_an_epoch_durably_once_and_logs_the_wanted_settings() -> None:
    site = Site(serve=False)
    site.engine.wanted_settings = {"history_versions": 3, "history_revisions": 100_000}
    site.engine.serve()
    site.engine.serve()
    assert site.log.begun == 1
    assert site.log.durable == [EpochBegun(1, START), SettingChanged("history_versions", 3)]


def test_an_embedded_store_writes_nothing_until_its_first_write() -> None:
    site = Site(serve=False)
    assert site.value("a") is None
    site.batch(Hello(), Status())
    assert (site.log.begun, site.log.frames) == (0, [])
    site.session = site.ask(Open("test")).session
    assert site.log.begun == 1
    assert type(site.log.durable[0]) is EpochBegun


def test_what_is_durable_replays_to_the_state_that_served() -> None:
    site = Site()
    site.batch(put("a", ttl=SECOND), put("b"), put("l", ttl=SECOND, lease=True))
    site.clock.time += 2 * SECOND
    site.engine.tick()
    site.commit(Delete("b"))
    again = State(UUID)
    for record in site.log.durable:
        again.apply(record)
    assert everything(again) == everything(site.engine.state)
    assert again.entries == {}


# --- what stops it all ------------------------------------------------------------------------


@pytest.mark.fault(14)
@pytest.mark.fault(15)
@pytest.mark.parametrize("where", ["append", "sync"])
@pytest.mark.parametrize("error", [Poisoned("gone"), OSError(5, "EIO")])
def test_after_a_failed_write_or_sync_nothing_is_answered_ever_again(
        where: str, error: Exception) -> None:
    site = Site()
    site.log.failing[where] = error
    with pytest.raises(Poisoned):
        site.batch(Get(("a",)), put("a"))
    site.log.failing.clear()
    for call in (site.engine.tick, lambda: site.batch(Get(("a",)))):
        with pytest.raises(Poisoned):
            call()  # type: ignore[operator]
    assert site.engine.counts["commits"] == 0


@pytest.mark.parametrize("error", [RuntimeError("a bug"), KeyboardInterrupt(), MemoryError()])
def test_a_batch_that_is_cut_short_anywhere_poisons_since_memory_is_ahead_of_the_log(
        error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    site = Site()
    durable = len(site.log.durable)

    def finish() -> None:
        raise error

    monkeypatch.setattr(site.engine.machine, "finish", finish)
    with pytest.raises(Poisoned if isinstance(error, Exception) else KeyboardInterrupt):
        site.batch(put("a"))
    monkeypatch.undo()
    with pytest.raises(Poisoned, match="cut short"):
        site.batch(Get(("a",)))
    assert len(site.log.durable) == durable
    assert site.engine.poisoned is not None
    assert site.engine.poisoned.__cause__ is None or isinstance(error, Exception)


@pytest.mark.fault(10)
def test_a_store_whose_lock_was_taken_away_stops() -> None:
    site = Site()
    site.log.held = False
    with pytest.raises(Poisoned, match="LOCK"):
        site.engine.tick()
    with pytest.raises(Poisoned):
        site.batch(put("a"))


def test_a_closed_store_says_so() -> None:
    site = Site()
    site.compactor.running = True
    site.engine.close()
    assert site.log.closed
    assert not site.compactor.running
    with pytest.raises(Poisoned, match="closed"):
        site.batch(Hello())
    site.engine.close()


# --- room -------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.tuples(st.lists(MUTATIONS, min_size=1, max_size=4,
                                            unique_by=lambda m: m.key),
                                   st.lists(WHEN, max_size=1)), min_size=1, max_size=6),
                min_size=1, max_size=6), st.sampled_from([1, SECOND, 30 * SECOND]))
def test_the_room_that_is_made_is_enough_for_whatever_is_decided(
        batches: list[list[Any]], micros: int) -> None:
    site = Site()
    for batch in batches:
        site.batch(*(Transact(tuple(when), tuple(
            m._replace(ttl=m.ttl or SECOND) if type(m) is Put and m.lease else m
            for m in mutations)) for mutations, when in batch))  # a Misuse would poison
        site.clock.time += micros


@pytest.mark.parametrize("ttl", [None, SECOND])
def test_the_largest_transactions_fit_the_room_made_for_them(ttl: int | None) -> None:
    site = Site()
    count = limits.TRANSACTION_MUTATIONS
    keys = [f"{i}" for i in range(count)]
    site.commit(*(Increment(key, 2**40, ttl) for key in keys))
    assert site.log.asked < 64 * limits.KIB * 20
    site.clock.time += 2 * SECOND
    site.batch(*(Transact((), tuple(Increment(key, 1, ttl) for key in keys)) for _ in range(4)))
    site.commit(*(Touch(key, 1) for key in keys))
    assert site.engine.poisoned is None


@pytest.mark.parametrize("lease", [False, True])
def test_so_does_a_mass_expiry_of_the_longest_keys(lease: bool) -> None:
    site = Site()
    keys = [f"{i:0{limits.KEY_BYTES}}" for i in range(limits.EXPIRIES)]
    site.commit(*(Put(key, b"\x01", SECOND, lease) for key in keys))
    site.clock.time += SECOND
    site.engine.process([])
    assert site.engine.poisoned is None
    assert site.engine.state.entries == {}


@pytest.mark.fault(17)
def test_a_batch_for_which_there_is_no_room_is_refused_but_for_what_frees_space() -> None:
    site = Site()
    site.batch(put("a"), put("b"))
    site.log.room = 80 * limits.KIB
    big, freed, opened, read = site.batch(
        put("c", bytes(limits.MIB)), Transact((), (Delete("a"),)), Open("x"), Get(("b",)))
    assert isinstance(big, OutOfSpace)
    assert freed.results == (1,)
    assert opened.session
    assert read.found[0] is not None
    site.commit(Put("c", b"\x01"))


@pytest.mark.fault(17)
def test_where_not_even_that_fits_reads_go_on_and_nothing_is_written() -> None:
    site = Site()
    site.batch(put("a", ttl=SECOND), put("b"))
    durable = len(site.log.durable)
    site.log.room = 0
    site.clock.time += 60 * SECOND
    refused, read = site.batch(Transact((), (Delete("b"),)), Get(("a", "b")))
    assert isinstance(refused, OutOfSpace)
    assert [row is None for row in read.found] == [True, False]
    assert "OutOfSpace" in type(site.batch(Open("x"))[0]).__name__
    site.engine.tick()
    site.engine.tick()
    assert len(site.log.durable) == durable
    assert site.engine.status()["read_only"]
    site.log.room = 2**40
    assert site.commit(Delete("b")).results == (1,)
    assert site.engine.status()["read_only"] == ""


def test_below_the_watermark_the_store_is_read_only_until_there_is_room_again() -> None:
    site = Site()
    site.log.space_low = True
    with pytest.raises(OutOfSpace):
        site.commit(Put("a", b"\x01"))
    assert "nearly full" in site.engine.status()["read_only"]
    site.log.space_low = False
    site.commit(Put("a", b"\x01"))


# --- of its own accord ------------------------------------------------------------------------


def test_a_quiet_frame_is_sealed_once_and_the_seal_needs_no_seal() -> None:
    site = Site()
    site.commit(Put("a", b"\x01"))
    site.engine.tick()
    assert type(site.log.durable[-1]) is not Sealed
    assert site.engine.wait() == pytest.approx(0.1)
    site.clock.time += 100_000
    site.engine.tick()
    assert site.log.durable[-1] == Sealed(site.clock.time)
    frames = len(site.log.frames)
    for _ in range(5):
        site.clock.time += 100_000
        site.engine.tick()
    assert len(site.log.frames) == frames
    assert site.engine.wait() == 1.0


def test_a_frame_that_reserves_time_beside_a_commit_is_sealed_too() -> None:
    site = Site()
    site.commit(Put("a", b"\x01", 60 * SECOND))
    assert TimeReserved in map(type, site.log.frames[-1])
    site.clock.time += 100_000
    site.engine.tick()
    assert site.log.durable[-1] == Sealed(site.clock.time)


@pytest.mark.fault(17)
def test_a_seal_that_finds_no_room_is_left_out() -> None:
    site = Site()
    site.commit(Put("a", b"\x01"))
    site.log.room = 0
    site.clock.time += 200_000
    site.engine.tick()
    assert type(site.log.durable[-1]) is not Sealed
    assert site.engine.wait() > 0, "and the loop does not spin"
    site.log.room = 2**40
    site.clock.time += 200_000
    site.engine.tick()
    assert type(site.log.durable[-1]) is Sealed


def test_expiries_come_with_the_tick_that_the_wait_names() -> None:
    site = Site()
    site.batch(put("a", ttl=300_000), put("l", ttl=700_000, lease=True))
    ended = []
    for _ in range(12):
        site.clock.time += round(site.engine.wait() * SECOND)
        ended += [(site.clock.time - START, p.pipeline, p.commit.session)
                  for p in site.engine.tick()[1]]
    assert ended == [(300_000, "a", b""), (700_000, "l", b"")]
    assert site.engine.counts["expired"] == 2
    assert site.engine.counts["commits"] == 2, "an expiry takes a revision, but is nobody's commit"
    assert site.engine.revision == 4


def test_the_free_space_is_looked_at_once_a_second() -> None:
    site = Site()
    for _ in range(30):
        site.clock.time += 100_000
        site.engine.tick()
    assert site.log.looks == 3


@pytest.mark.fault(28)
def test_a_slow_sync_moves_the_deadlines_of_leases() -> None:
    site = Site()
    site.commit(Put("l", b"\x01", SECOND, True))
    site.log.slow = 5 * SECOND
    site.commit(Put("a", b"\x01"))
    site.log.slow = 0
    site.clock.time += SECOND - 1
    site.engine.tick()
    assert site.value("l") is not None
    site.clock.time += 1
    site.engine.tick()
    assert site.value("l") is None


@pytest.mark.fault(44)
def test_a_loop_that_comes_back_late_moves_the_deadlines_of_leases() -> None:
    site = Site()
    site.commit(Put("l", b"\x01", 2 * SECOND, True))
    site.engine.wait()
    site.clock.time += 30 * SECOND  # said: at most 0.1 s
    site.engine.tick()
    assert site.value("l") is not None
    site.clock.time += 30 * SECOND  # sending what the tick gave took as long
    site.engine.wait()
    site.engine.tick()
    assert site.value("l") is not None
    for _ in range(21):
        site.clock.time += int(site.engine.wait() * SECOND) + 100_000
        site.engine.tick()
    assert site.value("l") is None


def slowly(site: Site, call: Callable[..., Any]) -> Callable[..., Any]:
    """The same call; it takes half a minute."""
    def called(*arguments: Any, **named: Any) -> Any:
        site.clock.time += 30 * SECOND
        return call(*arguments, **named)

    return called


def left(site: Site) -> int:
    """Microseconds until the lease "l" ends, of a loop that comes when it said it would."""
    started = site.clock.time
    while site.value("l") is not None:
        site.clock.time += max(1, round(site.engine.wait() * SECOND))
        site.engine.tick()
    return site.clock.time - started


@pytest.mark.fault(28)
def test_a_slow_start_leaves_recovered_leases_their_full_time() -> None:
    before = Site()
    before.commit(Put("l", b"\x01", SECOND, True))
    site = Site(serve=False, state=before.log.state)
    site.log.begin = slowly(site, site.log.begin)  # type: ignore[method-assign]
    site.engine.serve()
    site.clock.time += SECOND - 1
    site.engine.tick()
    assert site.value("l") is not None
    site.clock.time += 1
    site.engine.tick()
    assert site.value("l") is None


@pytest.mark.fault(28)
def test_a_slow_start_of_a_compaction_moves_the_deadlines_of_leases() -> None:
    site = Site()
    site.commit(Put("l", b"\x01", SECOND, True))
    site.engine.wait()
    site.compactor.start = slowly(  # type: ignore[method-assign]
        site, site.compactor.start)
    site.batch(Compact())
    assert left(site) == SECOND


@pytest.mark.fault(28)
@pytest.mark.parametrize("asked", [True, False])
def test_a_slow_rotation_moves_the_deadlines_of_leases_whenever_the_loop_was_due(
        asked: bool) -> None:
    site = Site()
    site.commit(Put("l", b"\x01", 2 * SECOND, True))
    waited = round(site.engine.wait() * SECOND)
    usual = site.log.ensure_room
    site.log.ensure_room = slowly(site, usual)  # type: ignore[method-assign]
    if asked:  # sooner than the loop was due
        waited = 0
        site.commit(Put("a", b"\x01"))
    else:  # it is the idle seal that has to make room
        site.clock.time += waited
        site.engine.tick()
    site.log.ensure_room = usual  # type: ignore[method-assign]
    assert left(site) == 2 * SECOND - waited


def test_a_loop_that_comes_back_a_little_late_each_time_prolongs_no_lease() -> None:
    site = Site()
    site.commit(Put("l", b"\x01", 2 * SECOND, True))
    granted = site.clock.time
    while site.clock.time - granted < 2 * SECOND:
        site.clock.time += round(site.engine.wait() * SECOND) + limits.STALL
        site.engine.tick()
    assert site.value("l") is None


@pytest.mark.fault(11)
def test_without_a_loop_a_silent_holders_lease_ends_all_the_same() -> None:
    site = Site()
    token = site.commit(Put("l", b"\x01", SECOND, True))
    site.clock.time += 30 * SECOND
    site.batch()
    assert site.value("l") is None
    answer = site.batch(KeepAlive("l", token.epoch, token.revision))[0]
    assert type(answer).__name__ == "LeaseLost"


# --- publications -----------------------------------------------------------------------------


def test_there_is_one_publication_for_each_revision_and_pipeline_with_their_pointers() -> None:
    site = Site()
    items = [("way", site.payload(c)) for c in (
        put("a/1"), Transact((), (Put("a/2", b"\x01"), Put("b", b"\x01"), Put("a/3", b"\x01"))),
        put("b"))]
    found: list[Publication] = site.engine.process(items)[1]
    assert [(p.commit.revision, p.pipeline, p.previous, p.store_previous, p.part, p.parts,
             [c.key for c in p.commit.changes]) for p in found] == [
        (1, "a", 0, 0, 0, 1, ["a/1"]), (2, "a", 1, 1, 0, 2, ["a/2", "a/3"]),
        (2, "b", 0, 1, 1, 2, ["b"]), (3, "b", 2, 2, 0, 1, ["b"])]
    assert all(p.uuid == UUID for p in found)


def test_where_nobody_subscribes_nothing_is_published_but_heartbeats_still_know() -> None:
    site = Site()
    site.engine.publishing = False
    assert site.engine.process([("way", site.payload(put("a/1")))])[1] == []
    beat = site.engine.heartbeat()
    assert (beat.uuid, beat.epoch, beat.revision, beat.previous) == (UUID, 1, 1, 0)
    assert beat.recent == (("a", 1),)
    assert site.engine.heartbeat()[4:] == (1, ())


def test_a_heartbeat_says_many_when_too_many_pipelines_committed() -> None:
    site = Site()
    site.commit(*(Put(f"p{i}", b"\x01") for i in range(limits.HEARTBEAT_PIPELINES + 1)))
    assert site.engine.heartbeat().recent is None
    assert site.engine.heartbeat().recent == ()


def test_listeners_hear_of_each_durable_change_until_they_leave() -> None:
    site = Site()
    heard: list[int] = []
    leave = site.engine.subscribe(lambda: heard.append(len(site.log.durable)))
    site.commit(Put("a", b"\x01"))
    assert heard == [len(site.log.durable)]
    site.batch(Get(("a",)))
    leave()
    site.commit(Put("a", b"\x01"))
    assert len(heard) == 1
    assert site.engine.revision == 2


# --- compaction, status -----------------------------------------------------------------------


def test_a_compaction_begins_after_its_batch_is_durable_and_answers_when_it_is_done() -> None:
    site = Site()
    assert len(site.batch(put("a"), Compact(0), Compact(None))) == 1
    assert site.compactor.started == [(0, len(site.log.durable))]
    assert site.engine.wait() == pytest.approx(0.02)
    assert site.engine.tick()[0] == []
    site.compactor.report = {"revision": 1}
    answers = site.engine.tick()[0]
    assert [protocol.decode_reply(p)[1].result for _, p in answers] == [{"revision": 1}] * 2


def test_who_asks_while_a_compaction_is_under_way_gets_one_that_began_after() -> None:
    site = Site()
    site.batch(Compact(None))
    site.commit(Put("a", b"\x01"))
    assert site.batch(Compact(0)) == []
    site.compactor.report = {"revision": 0}
    assert len(site.engine.tick()[0]) == 1
    site.compactor.report = None
    site.batch(Hello())
    assert [retain for retain, _ in site.compactor.started] == [None, 0]
    assert site.compactor.started[-1][1] == len(site.log.durable)
    site.compactor.report = {"revision": 1}
    [(_, payload)] = site.engine.tick()[0]
    assert protocol.decode_reply(payload)[1].result == {"revision": 1}


def test_a_compaction_that_cannot_start_or_fails_tells_so() -> None:
    site = Site()
    site.compactor.failing = CompactionFailed("no")
    [(_, payload)] = site.engine.process([("way", site.payload(Compact(None)))])[0]
    assert isinstance(protocol.decode_reply(payload)[1].error, CompactionFailed)
    site.compactor.failing = None
    assert site.batch(Compact(None)) == []
    site.compactor.failing = CompactionFailed("died")
    [(_, payload)] = site.engine.tick()[0]
    assert isinstance(protocol.decode_reply(payload)[1].error, CompactionFailed)
    with pytest.raises(InvalidRequest):
        Site(compacts=False).ask(Compact(None))


@pytest.mark.fault(15)
def test_a_log_that_fails_during_a_compaction_stops_the_store() -> None:
    for asked in (True, False):
        site = Site()
        if not asked:
            site.batch(Compact(None))
        site.compactor.failing = Poisoned("fsync failed")
        with pytest.raises(Poisoned):
            site.batch(Compact(None)) if asked else site.engine.tick()
        with pytest.raises(Poisoned):
            site.batch(Hello())


def test_a_due_compaction_starts_by_itself_and_a_failure_of_it_is_told() -> None:
    site = Site()
    told: list[str] = []
    site.engine.tell = told.append
    site.engine.tick()
    assert site.compactor.started == []
    site.compactor.wanted = True
    site.engine.tick()
    assert [retain for retain, _ in site.compactor.started] == [None]
    site.compactor.failing = CompactionFailed("killed")
    site.engine.tick()
    assert len(told) == 1
    assert "killed" in told[0]
    site = Site(compacts=False)
    assert site.engine.tick() == ([], [])


def test_the_space_that_a_compaction_frees_is_seen_at_once() -> None:
    site = Site()
    site.batch(Compact(0))
    site.engine.tick()
    looks = site.log.looks
    site.compactor.report = {"revision": 1}
    assert len(site.engine.tick()[0]) == 1
    assert site.log.looks == looks + 1


def test_an_embedded_store_finishes_a_due_compaction_before_it_closes() -> None:
    site = Site()
    site.engine.embedded = True
    site.compactor.wanted = True
    site.compactor.report = {"revision": 0}
    site.engine.close()
    assert len(site.compactor.started) == 1
    assert not site.compactor.running
    for site in (Site(), Site(compacts=False)):
        site.engine.embedded = True
        site.engine.close()
        assert site.compactor.started == []


def test_compaction_and_status_look_at_the_stamp_of_the_store() -> None:
    site = Site()
    for command in (Compact(0), Status()):
        [(_, payload)] = site.engine.process([("way", site.payload(command, b"o" * 16))])[0]
        assert isinstance(protocol.decode_reply(payload)[1].error, OtherStore)
    assert site.compactor.started == []
    [(_, payload)] = site.engine.process([("way", site.payload(Status(), UUID))])[0]
    assert protocol.decode_reply(payload)[1].result["uuid"] == UUID.hex()


def test_status_tells_plain_facts() -> None:
    site = Site()
    site.commit(Put("a", b"\x01", SECOND), Put("l", b"\x01", SECOND, True))
    status = site.ask(Status())
    assert (status["epoch"], status["revision"], status["keys"], status["expiring"],
            status["leases"], status["sessions"]) == (1, 1, 2, 1, 1, 1)
    assert status["counts"]["commits"] == 1
    assert status["log"]["frames"] == len(site.log.frames)
    assert status["read_only"] == ""
    site.batch(Open("x", UUID, 9, 9))
    assert "data loss" in site.engine.status()["read_only"]


# --- embedded ---------------------------------------------------------------------------------


def test_what_is_over_ends_before_a_caller_in_this_process_is_served() -> None:
    site = Site()
    [granted] = site.engine.handle([site.payload(put("l", ttl=SECOND, lease=True))])
    revision = protocol.decode_reply(granted)[1].result.revision
    site.clock.time += SECOND  # nobody calls `tick` here
    [refused, gone] = site.engine.handle(
        [site.payload(KeepAlive("l", 1, revision)), site.payload(Get(("l",)))])
    assert isinstance(protocol.decode_reply(refused)[1].error, LeaseLost)
    assert protocol.decode_reply(gone)[1].result.found == (None,)


def test_callers_in_this_process_get_their_replies_in_the_order_of_their_requests() -> None:
    site = Site()
    payloads = [site.payload(put("a")), b"\xc1", site.payload(Get(("a",)))]
    one, two, three = (protocol.decode_reply(p)[1] for p in site.engine.handle(payloads))
    assert isinstance(one.result, Outcome)
    assert isinstance(two.error, InvalidRequest)
    assert three.result.found[0].version.revision == 1


def test_threads_that_wait_for_one_compaction_each_get_their_own_reply() -> None:
    site = Site()
    site.compactor.report = None
    answers: dict[int, list[int]] = {}
    payloads = {i: [site.payload(Compact(None)), site.payload(Hello())] for i in range(4)}

    def wait(i: int) -> None:
        answers[i] = [protocol.decode_reply(p)[1].number for p in site.engine.handle(payloads[i])]

    threads = [threading.Thread(target=wait, args=(i,)) for i in payloads]
    for thread in threads:
        thread.start()
    while len(site.engine._compact_waiters + site.engine._compacting) < len(threads):
        threading.Event().wait(0.001)
    site.compactor.report = {"revision": 0}
    for thread in threads:
        thread.join(10)
    assert answers == {i: [bundles.peek(p)[2][0] for p in payloads[i]] for i in payloads}


def test_a_store_in_memory_serves() -> None:
    engine = open_engine(None)
    op, body = commands.pack_command(Setting("history_versions", 3))
    [payload] = engine.handle([protocol.encode_request(op, body, number=1)])
    assert protocol.decode_reply(payload)[1].error is None
    assert engine.state.settings["history_versions"] == 3
    assert [type(r) for r in engine.machine.records] != [TimeReserved]
    engine.close()


def test_ticks_without_requests_do_not_count_as_batches() -> None:
    engine = open_engine(None)
    op, body = commands.pack_command(Setting("history_versions", 3))
    engine.handle([protocol.encode_request(op, body, number=n) for n in range(1, 4)])
    for _ in range(10):
        engine.tick()
    assert engine.status()["batch_requests_p50"] == 3
    engine.close()
