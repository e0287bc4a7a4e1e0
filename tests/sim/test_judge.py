"""Every promise that the judge holds the store to can be broken: a bug planted for it is found."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from ckptmesh import compaction, errors, feed, limits, machine, queries, retention, transactions
from ckptmesh.calls import Call
from ckptmesh.clock import StoreClock
from ckptmesh.engine import Engine
from ckptmesh.leases import Deadlines
from ckptmesh.machine import Machine
from ckptmesh.manifest import Manifest
from ckptmesh.messages import (
    LAST_INDEX,
    Change,
    Commit,
    Events,
    Heartbeat,
    History,
    Opened,
    Outcome,
    Publication,
    Request,
    Rows,
    Scan,
    Since,
    Welcome,
)
from ckptmesh.retention import RetentionPlan
from ckptmesh.session import Session
from ckptmesh.state import State
from ckptmesh.testing.simulation import shrink, simulate
from ckptmesh.views import Event, Mark
from ckptmesh.wal import Wal
from tests.sim.test_simulation import first_broken

begin = Machine.begin
check = transactions.check
dump = State.dump
find = Machine._find
grant = Deadlines.grant
heartbeat = Engine.heartbeat
history = queries.history
known = Machine._known
make_event = feed.Feed._event
publications = Engine._publications
scan = queries.scan
since = queries.since
welcome = Machine._welcome


def refuse(state: State, condition: Any, now: int) -> None:
    check(state, condition, now)
    if state.revision > 5:
        raise transactions._conflict(state, "no reason", condition[0], 0, None)


def lost(state: State, key: str, epoch: int, revision: int) -> None:
    raise errors.LeaseLost(f"the lease on {key!r} is not held", key=key)


def full(self: Machine, request: Request) -> None:
    if self.out_of_space is not None:
        raise self.out_of_space
    admit(self, request)


admit = Machine._admit


def told_anew(self: Machine, request: Request) -> Any:
    """A retry is told the present time and epoch instead of those of its commit."""
    answer = known(self, request)
    if isinstance(answer, Outcome):
        return answer._replace(epoch=self.state.epoch, time=self.now)
    return answer


def without_sessions(self: State) -> Iterator[Any]:
    return (block for block in dump(self) if block[0] != 4)


def head_as_pointer(self: Engine[Any], commits: Any) -> list[Publication]:
    return [p._replace(previous=p.store_previous) for p in publications(self, commits)]


def quiet_heartbeat(self: Engine[Any]) -> Heartbeat:
    return heartbeat(self)._replace(recent=())


def mark_of_revision(self: feed.Feed, commit: Commit, change: Change) -> Event:
    event = make_event(self, commit, change)
    object.__setattr__(event, "resume", Mark(event.revision))
    return event


def rest_skipped(state: State, command: Since) -> Events:
    return since(state, command._replace(index=LAST_INDEX))


def without_the_newest(state: State, command: History, now: int) -> Rows:
    rows = history(state, command, now)
    return rows._replace(found=rows.found[1:])


def from_the_beginning(state: State, command: Scan, now: int) -> Rows:
    return scan(state, command._replace(after=""), now)


def below_the_floor(state: State, at: Any, now: int) -> tuple[int, int]:
    try:
        return resolve(state, at, now)
    except errors.Compacted:
        return state.floor, state.floor_time


resolve = queries.resolve


def behind_welcome(self: Machine) -> Welcome:
    return welcome(self)._replace(floor=0)


def fails(self: Session, call: Call, error: errors.Error, now: float) -> None:
    self._settle(call, error=error)


def full_for_ever(self: Wal) -> bool:
    self.space_low = self.space_low or check_space(self)
    return self.space_low


check_space = Wal.check_space


def opened_elsewhere(self: Machine, command: Any) -> Opened:
    return open_session(self, command)._replace(revision=0)


open_session = Machine._open


def without_reserve(self: State, row: Any) -> None:
    load_facts(self, row)
    self.reserved = 0


load_facts = State._load_facts


def newest_only(manifest: Manifest, plan: RetentionPlan) -> RetentionPlan:
    """Nothing but what recovery begins with, if nothing is damaged."""
    if not manifest.snapshots:
        return plan
    covered = manifest.snapshots[-1].segment
    keep = (manifest.snapshots[-1].file, *(
        segment.file for segment in manifest.sealed if segment.number >= covered))
    return plan._replace(keep=keep)


plan = retention.plan


def behind_the_reserve(self: StoreClock, floor: int, **named: Any) -> None:
    """As if no time had been reserved beyond the last that was logged."""
    begin_clock(self, max(0, floor - limits.CLOCK_RESERVE), **named)


begin_clock = StoreClock.__init__


def copies(call: Call, count: int) -> Call:
    call.copies = count
    return call


expired = Session._expired


def in_no_time(self: Engine[Any]) -> Any:
    answers = start_compaction(self)
    self._rest()
    return answers


start_compaction = Engine._start_compaction


def half(self: Machine, now: int) -> None:
    begin(self, now // 2)


def without_the_last(self: Machine, request: Request, puts: Any) -> Outcome:
    return settle_each(self, request, puts[:-1] or puts)


settle_each = Machine._settle_each


def parted(self: Machine, request: Request, mutations: Any) -> Outcome:
    """A record of the store's own before each one of a transaction's."""
    self.seal()
    return settle(self, request, mutations)


settle = Machine._settle


def counted_apart(state: State, keys: Any) -> list[int] | None:
    """As if no key came again."""
    found = counts(state, keys)
    return None if found is None else [found[keys.index(key)] for key in keys]


counts = machine.counts


def pointers_at_rest(self: Engine[Any], first: int, block: Any, before: Any) -> list[Publication]:
    found = publications_of(self, first, block, {**before})
    return [each._replace(previous=before[each.pipeline]) for each in found]


publications_of = Engine._publications_of


def told_the_first(self: Machine, request: Request, puts: Any, results: Any,
                   each: bool) -> Outcome:
    outcome = put_plain(self, request, puts, results, each)
    return outcome._replace(revision=outcome.revision - len(puts) + 1) if each else outcome


put_plain = Machine._put_plain


BUGS: dict[str, tuple[Any, str, Any]] = {
    "a commit is refused for no reason": (machine, "check", refuse),
    "a lease is said to be lost that is held": (machine, "held", lost),
    "reads are refused while the disk is full": (Machine, "_admit", full),
    "a full disk is never seen to have room again": (Wal, "check_space", full_for_ever),
    "a retry is told another outcome": (Machine, "_known", told_anew),
    "a client fails while no store is there": (Session, "_store_missing", fails),
    "find finds nothing": (Machine, "_find", lambda self, request, command: None),
    "store time runs at half its speed": (
        StoreClock, "now", lambda self: self._boot() // 2 + self._offset),
    "a batch is decided at an older time": (Machine, "begin", half),
    "a store serves in the epoch before": (Machine, "begin_epoch", lambda self: None),
    "sessions are not in snapshots": (State, "dump", without_sessions),
    "sessions end soon": (limits, "SESSION_IDLE", 2 * limits.SECOND),
    "leases never end": (
        Deadlines, "grant", lambda self, key, deadline: grant(self, key, deadline + 10**9)),
    "a stall moves no deadline": (Machine, "stalled", lambda self, micros: None),
    "a lease is kept that nobody holds": (machine, "held", lambda state, key, *token: (
        state.entries[key] if key in state.leases else lost(state, key, *token))),
    "a pipeline's pointer is the head": (Engine, "_publications", head_as_pointer),
    "a heartbeat names no pipeline": (Engine, "heartbeat", quiet_heartbeat),
    "an event resumes behind its revision": (feed.Feed, "_event", mark_of_revision),
    "the rest of a revision is skipped": (queries, "since", rest_skipped),
    "history lacks the newest version": (queries, "history", without_the_newest),
    "a scan begins from the beginning": (queries, "scan", from_the_beginning),
    "a cut below the floor is guessed": (queries, "resolve", below_the_floor),
    "a welcome tells a floor that is none": (Machine, "_welcome", behind_welcome),
    "an opened session is told another head": (Machine, "_open", opened_elsewhere),
    "a full disk is written to": (Machine, "_check_writable", lambda self, command: None),
    "a store stops for no reason": (Deadlines, "drop", lambda self, key: None),
    "a snapshot forgets what is reserved": (State, "_load_facts", without_reserve),
    "the snapshot before the newest is dropped": (
        compaction, "plan", lambda manifest, now, seconds, most: newest_only(
            manifest, plan(manifest, now, seconds, most))),
    "what may have happened is asked for again in a new session": (
        Session, "_expired", lambda self, call: expired(self, copies(call, 1))),
    "what was sent once is said to be in doubt": (
        Session, "_expired", lambda self, call: expired(self, copies(call, 2))),
    "a stall while a compaction begins is overlooked": (Engine, "_start_compaction", in_no_time),
    "time begins again where the log ends": (StoreClock, "__init__", behind_the_reserve),
    "the last of many commits is left out": (Machine, "_settle_each", without_the_last),
    "something comes between the commits of one request": (Machine, "_settle", parted),
    "a key that comes again is counted once": (machine, "counts", counted_apart),
    "pointers stand still within one request": (Engine, "_publications_of", pointers_at_rest),
    "many commits are told the first one's revision": (Machine, "_put_plain", told_the_first),
}


@pytest.mark.parametrize("bug", BUGS)
def test_a_promise_of_the_judge_can_be_broken(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(*BUGS[bug])
    assert first_broken(400) is not None


def test_a_story_shrinks_to_what_breaks_the_same_promise(monkeypatch: pytest.MonkeyPatch) -> None:
    """And tells what went wrong by injection, beside what was asked and told."""
    monkeypatch.setattr(*BUGS["find finds nothing"])
    plan = first_broken(400)
    assert plan is not None
    report = shrink(plan)
    assert "was said to be absent; it is revision" in simulate(plan).violation
    assert "was said to be absent; it is revision" in report.violation
    assert len(report.plan.steps) <= len(plan.steps) // 4
    assert not report.plan.watched
    assert any("  ! " in line for line in report.story)
