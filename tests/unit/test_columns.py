"""Many plain puts in one request: by columns and one by one are the same, whatever stands there."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from machines import Store, User, everything, through_a_snapshot
from test_bulk import HEADER, as_rows, logged, one_by_one
from test_engine import Site

from ckptmesh import commands, limits, machine, records
from ckptmesh.entries import MANY, SMALL
from ckptmesh.errors import (
    Conflict,
    DataLoss,
    Error,
    OutcomeUnknown,
    OutOfSpace,
    QuotaExceeded,
    RequestReused,
)
from ckptmesh.facts import TAKES_REVISION, Expiry, PlainWrites, Puts, Transaction
from ckptmesh.framing import SegmentScan
from ckptmesh.limits import SECOND
from ckptmesh.messages import (
    AcceptLoss,
    Condition,
    Delete,
    Find,
    Open,
    Outcome,
    PlainPuts,
    Publication,
    Put,
    Reply,
    Request,
    RevisionIs,
    Rules,
    SetContract,
    Setting,
    TokenIs,
    Touch,
    Transact,
)
from ckptmesh.replay import replay
from ckptmesh.state import State
from ckptmesh.timeline import Block

KEYS = [f"{pipeline}/{n}" for pipeline in "abc" for n in range(4)]

RULES = [Rules(), Rules(), Rules(history=0), Rules(history=1), Rules(history=5), Rules(ttl=3),
         Rules(ttl=1, history=30), Rules(required=True, max_bytes=1), Rules(max_bytes=1),
         Rules(monotonic=True, max_step=2)]

_key = st.sampled_from(KEYS)
_user = st.integers(0, 1)
_conditions = st.sampled_from([(), (), (), (RevisionIs("a/0", 0),), (RevisionIs("a/0", 5),)])
_several = st.lists(st.tuples(_key, st.sampled_from([b"", b"\x01", b"v" * SMALL])),
                    min_size=MANY, max_size=3 * MANY)
_many = st.tuples(st.just("many"), _user, _several, _conditions, st.booleans())
_steps = st.one_of(
    _many, _many, _many,
    st.tuples(st.just("copy"), _user, st.booleans()),
    st.tuples(st.just("find"), _user),
    st.tuples(st.just("one"), _user, st.one_of(
        st.builds(lambda key, size: Put(key, b"v" * size), _key,
                  st.sampled_from([1, SMALL, SMALL + 1])),
        st.builds(lambda key, *rest: Put(key, b"v", *rest), _key, st.integers(1, 5),
                  st.booleans(), st.none() | st.just(7)),
        st.builds(Touch, _key, st.none() | st.integers(1, 5)), st.builds(Delete, _key))),
    st.tuples(st.just("time"), st.integers(1, 4)),
    st.tuples(st.just("setting"), st.sampled_from([
        ("history_revisions", 0), ("history_revisions", 3), ("history_revisions", 20),
        ("history_revisions", -1), ("history_bytes", 0), ("history_bytes", 9_000),
        ("history_bytes", 2**28), ("history_versions", 0), ("history_versions", -1),
        ("history_versions", 2)])),
    st.tuples(st.just("contract"), st.sampled_from(["", "a", "a", "a/0", "b", "c/1"]),
              st.sampled_from(RULES)),
    st.tuples(st.sampled_from(["restart", "snapshot", "full", "room", "lost", "accepted"])),
)


class Way:
    """A store that gets many puts by columns, or the same ones as a tuple."""

    def __init__(self, by_columns: bool) -> None:
        self.store = Store()
        self.users = [self.store.user("one"), self.store.user("two")]
        self.last: list[tuple[int, Transact, int] | None] = [None, None]
        self.by_columns = by_columns
        self.changes = 0

    def command(self, pairs: list[tuple[str, bytes]], when: tuple[Condition, ...],
                each: bool) -> Transact:
        if not each:
            pairs = [*dict(pairs).items()]  # names each key once
        return Transact(when, puts(pairs, self.by_columns), each)

    def send(self, user: int, command: Transact, number: int | None = None,
             low: int | None = None) -> Reply:
        asker = self.users[user]
        request = asker.request(command, number=number, low=low)
        if number is None:
            self.last[user] = (request.number, command, self.store.state.revision)
        return self.store.batch(request)[0]

    def take(self, step: tuple[Any, ...]) -> Any:
        store = self.store
        match step:
            case ("many", user, pairs, when, each):
                return told(self.send(user, self.command(pairs, when, each)))
            case ("copy", user, other) if self.last[user]:
                number, command, _ = self.last[user]  # type: ignore[misc]
                if other:
                    command = command._replace(conditions=(RevisionIs("b/1", 99),))
                return told(self.send(user, command, number))
            case ("find", user) if self.last[user]:
                number, _, after = self.last[user]  # type: ignore[misc]
                asker = self.users[user]
                asker.number = max(asker.number, number)
                found = asker.request(Find(asker.session, number, after))
                return told(store.batch(found)[0])
            case ("one", user, mutation):
                return told(self.send(user, Transact((), (mutation,))))
            case ("time", micros):
                store.pass_time(micros)
            case ("setting", setting):
                store.ask(Setting(*setting))
            case ("contract", prefix, rules):
                self.changes += 1
                return told(store.batch(Request(
                    b"", -self.changes, 0, b"", 0, SetContract(prefix, rules)))[0])
            case ("restart",):
                store.restart()
            case ("snapshot",):
                store.machine = store._start(through_a_snapshot(store.state))
            case ("full",):
                store.machine.out_of_space = OutOfSpace("no room")
            case ("room",):
                store.machine.out_of_space = None
            case ("lost",):
                state = store.state
                claim = Open("other", state.uuid, state.epoch + 1, 0)
                return told(store.batch(self.users[0].request(claim)._replace(
                    session=b"", number=1))[0])
            case ("accepted",):
                store.ask(AcceptLoss())
        return None


def puts(pairs: list[tuple[str, bytes]], by_columns: bool) -> Any:
    """Puts by columns, as many as are worth it, or as a tuple."""
    if by_columns and len(pairs) >= MANY:
        return PlainPuts([key for key, _ in pairs], [value for _, value in pairs])
    return tuple(Put(key, value) for key, value in pairs)


def told(reply: Reply) -> tuple[Any, ...]:
    """A reply, comparable: its error by what it says."""
    error = reply.error
    return (*reply[:4], None if error is None else (
        type(error), error.message, error.details))


def rows_of(commits: list[machine.Committed]) -> list[tuple[int, Any]]:
    """The revisions of a batch, with their rows."""
    found: list[tuple[int, Any]] = []
    for revision, made, _ in commits:
        if isinstance(made, Block):
            found += [(revision + at, made.row(at)) for at in range(made.size)]
        else:
            found.append((revision, made))
    return found


@settings(max_examples=300, deadline=None)
@given(st.lists(_steps, min_size=2, max_size=14), st.integers(0, 80),
       st.lists(st.sampled_from([1, 5, 40]), min_size=1, max_size=3))
def test_puts_by_columns_are_the_same_puts_one_by_one(
        steps: list[tuple[Any, ...]], until: int, sizes: list[int]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "LEASES", 2)
        one, other = Way(True), Way(False)
        for step in steps:
            assert one.take(step) == other.take(step)
            assert everything(one.store.state) == everything(other.store.state)
            assert rows_of(one.store.machine.commits) == rows_of(other.store.machine.commits)
            assert one.store.machine.next_end() == other.store.machine.next_end()
            assert everything(through_a_snapshot(one.store.state)) == everything(one.store.state)
    log = [*records.one_by_one(one.store.log)]
    assert log == [*records.one_by_one(other.store.log)]
    assert records.decode_records(records.encode_records(one.store.log)) == log
    assert records.count_of(one.store.log) == len(log)
    assert records.taken_by(one.store.log) == sum(type(r) in TAKES_REVISION for r in log)
    assert as_rows(one.store.state) == as_rows(other.store.state)
    again = one.store.replayed()
    assert everything(again) == everything(one.store.state)
    in_the_midst(log, sizes, until)


def in_the_midst(log: list[Any], sizes: list[int], until: int) -> None:
    """A recovery up to a revision ends there, also inside a request."""
    expected, refused = one_by_one(log, until)
    assert refused is None
    state = State(HEADER.uuid)
    whole = replay(SegmentScan(logged(log, sizes), HEADER), "x.seg", state, until)
    assert whole or state.revision == until
    assert everything(state) == everything(expected)


# --- that it goes by columns, and where it does not -----------------------------------------------

PAIRS = [(f"{'ab'[n % 2]}/{n % 5}", b"%d" % n) for n in range(20)]  # ten keys, each of them twice
COUNTS = (1,) * 10 + (2,) * 10


@pytest.fixture
def store() -> Store:
    return Store()


def many(pairs: list[tuple[str, bytes]] = PAIRS, *when: Condition, each: bool = True) -> Transact:
    return Transact(when, puts(pairs, True), each)


def test_plain_puts_over_plain_ones_are_one_element_of_the_log_and_a_record_each(
        store: Store) -> None:
    user = store.user()
    for _ in range(3):
        outcome = user.ask(many())
        [made] = store.machine.records
        assert isinstance(made, Puts)
        log = records.one_by_one([made])
        assert len(log) == len(PAIRS) == records.count_of([made]) == records.taken_by([made])
        assert [each.writes[0].key for each in log] == [key for key, _ in PAIRS]  # type: ignore[union-attr]
        assert {(each.session, each.number) for each in log} == {  # type: ignore[union-attr]
            (user.session, user.number)}
        assert records.decode_records(records.encode_records([made])) == log
    assert outcome.revision == store.state.revision == 60
    assert outcome.results == tuple(4 + count for count in COUNTS)


def test_without_each_they_are_one_record_whose_writes_are_columns(store: Store) -> None:
    user = store.user()
    pairs = [*dict(PAIRS * 2).items()] + [(f"c/{n}", b"v") for n in range(4)]
    outcome = user.ask(many(pairs, each=False))
    [made] = store.machine.records
    assert isinstance(made, Transaction)
    assert isinstance(made.writes, PlainWrites)
    assert (outcome.revision, outcome.results) == (1, (1,) * len(pairs))
    assert records.decode_records(records.encode_records([made])) == [made]


@pytest.mark.parametrize("other", [
    Put("a/0", b"v", 5), Put("a/0", b"v", 5, True), Put("a/0", b"v", None, False, 3),
    Put("a/0", b"v" * (SMALL + 1))])
def test_what_is_over_something_else_is_decided_one_by_one(store: Store, other: Put) -> None:
    user = store.user()
    user.commit(other)
    user.ask(many())
    assert {type(record) for record in store.machine.records} == {Transaction}
    assert store.get("a/0").version == 3  # type: ignore[union-attr]
    assert not store.state.leases
    assert not store.state.expiring
    user.ask(many())
    assert {type(record) for record in store.machine.records} == {Puts}, "now all are plain"


@pytest.mark.parametrize("each", [True, False])
def test_what_is_over_under_their_keys_comes_before_all_of_them(store: Store, each: bool) -> None:
    user = store.user()
    user.put("a/2", ttl=5)
    user.put("b/1", ttl=5)
    pairs = PAIRS if each else [*dict(PAIRS).items()]
    store.now += 5  # and no batch has looked at it yet
    outcome = user.ask(many(pairs, each=each))
    kinds = [type(record) for record in store.machine.records if type(record) in TAKES_REVISION]
    assert kinds[:2] == [Expiry, Expiry]
    assert set(kinds[2:]) == {Transaction}
    assert outcome.revision == store.state.revision
    assert outcome.results[2] == 1, "what is over does not count"
    user.number += 1
    assert user.find(user.number - 1, 2) == outcome
    assert everything(store.replayed()) == everything(store.state)


def test_a_refused_condition_lets_nothing_be_written_and_the_copy_is_refused_too(
        store: Store) -> None:
    user = store.user()
    user.put("lock")
    before = everything(store.state)
    for condition in (RevisionIs("lock", 0), TokenIs("lock", 1, 1)):
        request = user.request(many(PAIRS, condition))
        for _ in range(2):
            [reply] = store.batch(request)
            assert isinstance(reply.error, Error)
            assert not store.machine.records
            assert not store.machine.commits
    assert everything(store.state) == before
    with pytest.raises(Conflict):
        user.ask(many(PAIRS, RevisionIs("a/0", 1)))
    assert user.ask(many(PAIRS, RevisionIs("a/0", 0))).revision == 21, "checked before the first"


def test_the_copy_of_a_request_has_its_outcome_and_another_content_is_refused(
        store: Store) -> None:
    user = store.user()
    command = many()
    first = user.ask(command)
    number = user.number
    assert user.ask(command, number=number) == first
    assert store.state.revision == 20
    store.restart()
    assert user.ask(command, number=number) == first
    store.machine = store._start(through_a_snapshot(store.state))
    assert user.ask(command, number=number) == first
    for changed in (many(PAIRS[:-1]), many([*PAIRS[:-1], ("a/0", b"other")])):
        with pytest.raises(RequestReused):
            user.ask(changed, number=number)
    assert store.state.revision == 20


@pytest.mark.parametrize("history", [0, 1, 7, 19, 20])
def test_the_outcome_is_whole_though_memory_goes_back_to_its_midst_only(
        history: int) -> None:
    store = Store(history_revisions=history)
    user = store.user()
    command = many()
    outcome = user.ask(command)
    assert store.state.floor == 20 - history
    assert outcome == Outcome(20, 1, store.now, COUNTS)
    store.restart()
    store.machine = store._start(through_a_snapshot(store.state))
    assert user.ask(command, number=user.number) == outcome
    lost, user.number = user.number, user.number + 1
    if history == 20:
        assert user.find(lost, 0) == outcome
    else:
        with pytest.raises(OutcomeUnknown):  # never a part of it
            user.find(lost, 0)


def test_each_finds_the_whole_outcome_among_those_of_others(store: Store) -> None:
    one, two = store.user("one"), store.user("two")
    store.batch(one.request(many()), two.request(many()), one.request(Transact((), (
        Put("a/0", b"w"),))))
    outcomes = [one.find(1, 0), two.find(1, 0)]
    two.number += 1
    for at, found in enumerate(outcomes):
        assert isinstance(found, Outcome)
        assert found.revision == 20 * (at + 1)
        assert found.results == tuple(2 * at + count for count in COUNTS)
    assert two.find(two.number, 0) is None


def test_a_store_that_is_full_or_has_lost_something_takes_none_of_them(store: Store) -> None:
    user = store.user()
    user.ask(many())
    store.machine.out_of_space = OutOfSpace("no room")
    before = everything(store.state)
    with pytest.raises(OutOfSpace):
        user.ask(many())
    assert not store.machine.frees(user.request(many()))
    store.machine.out_of_space = None
    assert everything(store.state) == before
    store.batch(user.request(many(), epoch=store.state.epoch + 1))
    with pytest.raises(DataLoss):
        user.ask(many())
    assert store.state.revision == 20


def test_leases_beyond_the_quota_are_refused_before_the_first_is_written(
        store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "LEASES", 4)
    user = store.user()
    leases = tuple(Put(f"l/{n}", b"v", SECOND, True) for n in range(5))
    with pytest.raises(QuotaExceeded):
        user.ask(Transact((), (*leases, Put("a", b"v")), True))
    assert store.state.revision == 0
    outcome = user.ask(Transact((), (Put("a", b"v"), *leases[:4]), True))
    assert (outcome.revision, outcome.results) == (5, (1,) * 5)
    assert store.state.leases == {f"l/{n}" for n in range(4)}
    assert user.keep_alive("l/3", (1, 5)) == SECOND, "each has a token of its own"
    user.ask(Transact((), tuple(Put(f"l/{n}", b"v") for n in range(4)) * 2, True))
    assert not store.state.leases
    assert store.machine.next_end() is None


def test_a_replay_of_many_requests_at_once_remembers_the_whole_outcome_of_each(
        store: Store) -> None:
    one, two = store.user("one"), store.user("two")
    outcomes = [user.ask(many(), low=1) for user in (one, two, one)]
    log = records.one_by_one(store.log)
    state = State(HEADER.uuid)
    assert replay(SegmentScan(logged(log, [len(log)]), HEADER), "x.seg", state, None)
    assert [state.sessions[user.session].outcomes[number][1] for user, number in (
        (one, 1), (two, 1), (one, 2))] == outcomes
    assert [len(outcome.results) for outcome in outcomes] == [20] * 3
    assert everything(state) == everything(store.state)


def test_a_recovery_can_end_at_each_revision_of_a_request(store: Store) -> None:
    user: User = store.user()
    user.put("a/0")
    user.ask(many())
    user.put("b/0")
    log = records.one_by_one(store.log)
    for until in range(store.state.revision + 1):
        in_the_midst(log, [len(log)], until)


# --- what is published ----------------------------------------------------------------------------

_asked = st.lists(st.tuples(st.lists(st.tuples(_key, st.sampled_from([b"\x01", b"v" * SMALL])),
                                     min_size=1, max_size=2 * MANY),
                            st.booleans(), st.booleans()), min_size=1, max_size=5)


def asked_of(site: Site, batches: list[Any], history: int) -> tuple[list[Any], list[Publication]]:
    """All replies and all publications; the requests of a batch go together."""
    replies: list[Any] = [site.ask(Setting("history_revisions", history))]
    published: list[Publication] = []
    for pairs, each, twice in batches:
        command = Transact((), puts(pairs if each else [*dict(pairs).items()], True), each)
        items = [("way", site.payload(command)) for _ in range(1 + twice)]
        answers, found = site.engine.process([*items, ("other", site.payload(Transact((), (
            Put("a/0", b"x"),))))])
        replies += answers
        published += found
        replies.append(dict(site.engine.heartbeat().recent or ()))
    return replies, published


@settings(max_examples=100, deadline=None)
@given(_asked, st.sampled_from([0, 1, 5, 20, 1_000]))
def test_what_is_published_of_many_puts_is_what_is_published_of_each(
        batches: list[Any], history: int) -> None:
    one, other = Site(), Site()
    replies, published = asked_of(one, batches, history)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(commands, "_plain_puts", lambda rows: None)
        replies_apart, apart = asked_of(other, batches, history)
    assert replies == replies_apart
    assert everything(one.engine.state) == everything(other.engine.state)
    assert one.engine.status()["counts"] == other.engine.status()["counts"]
    assert one.engine.counts["commits"] == one.engine.revision
    last: dict[str, int] = {}  # pipeline → its last revision
    for found, alone in zip(published, apart, strict=True):
        revision, pipeline = found.commit.revision, found.pipeline
        assert found._replace(previous=0) == alone._replace(previous=0)
        before = last.get(pipeline, 0)
        floor = max(before, revision - 1 - history)  # of what memory has forgotten, this is enough
        assert before <= found.previous <= alone.previous <= floor
        assert found.store_previous == revision - 1
        if found.part == found.parts - 1:
            last |= dict.fromkeys((key.partition("/")[0] for key in keys_of(published, revision)),
                                  revision)


def keys_of(published: list[Publication], revision: int) -> list[str]:
    """The keys that a revision changed."""
    return [change.key for found in published if found.commit.revision == revision
            for change in found.commit.changes]


def test_a_store_that_nobody_listens_to_tells_in_its_heartbeat_who_committed() -> None:
    site = Site()
    site.engine.publishing = False
    answers, published = site.engine.process([("way", site.payload(many()))])
    assert len(answers) == 1
    assert published == []
    assert dict(site.engine.heartbeat().recent or ()) == {"a": 19, "b": 20}
    site.engine.publishing = True
    _, published = site.engine.process([("way", site.payload(many()))])
    assert [(found.pipeline, found.previous) for found in published[:4]] == [
        ("a", 19), ("b", 20), ("a", 21), ("b", 22)]
    assert dict(site.engine.heartbeat().recent or ()) == {"a": 39, "b": 40}


@pytest.mark.parametrize("ttl", [None, limits.TTL_MAX])
def test_there_is_room_for_what_many_puts_log_however_small_they_are(ttl: int | None) -> None:
    """The log of these tests refuses a frame larger than what was asked for. `ttl`: given to all of
    them by a contract, so that each has more to log than was asked."""
    site = Site()
    site.ask(SetContract("", Rules(ttl=ttl)))
    most = limits.COMMIT_MANY
    for keys, value in ((["k"], b""), ([f"k{n}" for n in range(most)], b"\x01"),
                        (["k" * limits.KEY_BYTES], b"v" * SMALL)):
        pairs = [(keys[n % len(keys)], value) for n in range(most)]
        site.ask(many(pairs))
        site.ask(Transact((), tuple(Put(key, value, 1 + n) for n, (key, value) in enumerate(pairs)),
                          True))
        site.clock.time += SECOND  # all of that is over now
        site.ask(many(pairs))
    assert site.engine.revision > 9 * most
