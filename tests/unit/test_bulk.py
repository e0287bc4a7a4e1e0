"""Replaying by the thousand is replaying one by one: the same state, the same refusals."""

from __future__ import annotations

import copy
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from machines import UUID, everything, through_a_snapshot

from ckptmesh.bulk import take_puts
from ckptmesh.entries import SMALL
from ckptmesh.errors import Corrupt
from ckptmesh.facts import (
    TAKES_REVISION,
    EpochBegun,
    Expiry,
    LossAccepted,
    LossSuspected,
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
from ckptmesh.framing import FrameWriter, SegmentHeader, SegmentScan, Verdict, encode_header
from ckptmesh.messages import DELETE, EXPIRE, PUT, TOUCH
from ckptmesh.records import encode_records, puts_of, records_of, steps_of, unpack_rows
from ckptmesh.replay import replay
from ckptmesh.state import State

HEADER = SegmentHeader(UUID, 0, 1, 1, bytes(32), b"s" * 16)
SESSIONS = [b"a" * 16, b"b" * 16]
KEYS = ["a", "a/b", "a/c", "b", "b/x", "c"]
FIRST = [SessionOpened(session, 0, "n") for session in SESSIONS]

_keys = st.sampled_from(KEYS)
_writes = st.one_of(
    st.builds(lambda key, value: Write(PUT, key, value), _keys,
              st.sampled_from([b"", b"v", b"v" * (SMALL + 1)])),
    st.builds(lambda key, *rest: Write(PUT, key, b"v", *rest), _keys,
              st.sampled_from([None, 50, 10**6]), st.sampled_from([None, 7]),
              st.sampled_from([None, 5]), st.none(), st.sampled_from([(), (("a", 1),)])),
    st.builds(lambda key: Write(DELETE, key), _keys),
    st.builds(lambda key, expires_at: Write(TOUCH, key, b"", expires_at), _keys,
              st.sampled_from([None, 60, 10**6])),
)
_puts = st.tuples(
    st.just("puts"), st.lists(st.tuples(st.sampled_from(KEYS), st.sampled_from([b"v", b"w"])),
                              min_size=8, max_size=30),
    st.sampled_from(SESSIONS), st.integers(0, 3))
_others = st.one_of(
    st.builds(Sealed, st.just(0)), st.builds(TimeReserved, st.integers(0, 99)),
    st.builds(EpochBegun, st.integers(1, 9), st.just(0)),
    *[st.builds(Expiry, st.just(0), _keys)] * 3,
    st.builds(SettingChanged, st.sampled_from(["history_revisions", "history_versions"]),
              st.integers(-1, 12)),
    st.builds(SettingChanged, st.just("history_bytes"), st.sampled_from([-1, 0, 2_000, 2**28])),
    st.builds(SessionEnded, st.sampled_from(SESSIONS), st.just(0)),
    st.builds(SessionOpened, st.sampled_from(SESSIONS), st.just(0), st.just("again")),
    st.builds(LossSuspected, st.integers(0, 3), st.integers(0, 9)), st.just(LossAccepted()),
)
_steps = st.one_of(
    _puts, _puts,
    st.tuples(st.just("transaction"),
              st.lists(_writes, min_size=1, max_size=3, unique_by=lambda write: write.key),
              st.sampled_from([b"", *SESSIONS]), st.integers(0, 3)),
    st.tuples(st.just("record"), _others),
    st.tuples(st.just("wrong"), st.sampled_from([
        {"time": 0}, {"session": b"?" * 16}, {"low": 10**6}, {"low": 0}, {"number": 0},
        {"writes": (Write(DELETE, "nothing"),)}, {"writes": (Write(EXPIRE, "a"),)}])),
)


class _Log:
    """Makes records of steps. All of them can follow, but for what "wrong" asks for."""

    def __init__(self) -> None:
        self.records: list[Record] = list(FIRST)
        self.time = 1
        self.epoch = 0
        self.numbers = dict.fromkeys(SESSIONS, 0)
        self.open = set(SESSIONS)
        self.live: set[str] = set()
        self.wrong: dict[str, Any] = {}

    def add(self, step: tuple[Any, ...]) -> None:
        match step:
            case ("puts", puts, session, behind):
                for key, value in puts:
                    self._commit([Write(PUT, key, value)], session, behind)
            case ("transaction", writes, session, behind):
                self._commit(writes, session, behind)
            case ("record", record):
                self._record(record)
            case ("wrong", what):
                self.wrong = what

    def _record(self, record: Record) -> None:
        match record:
            case Expiry(_, key) if key not in self.live:
                return
            case Expiry(_, key):
                self.live.discard(key)
            case EpochBegun(more, _):
                self.epoch += more
                record = record._replace(epoch=self.epoch)
            case SessionEnded(session, _) if session not in self.open:
                return
            case SessionEnded(session, _):
                self.open.discard(session)
            case SessionOpened(session, _, _):
                self.open.add(session)
        self.time += 3
        fields = {"time": self.time} if "time" in record._fields else {}
        self.records.append(record._replace(**fields))

    def _commit(self, writes: list[Write], session: bytes, behind: int) -> None:
        written = []
        for write in writes:
            if write.kind == PUT or write.key in self.live:
                (self.live.discard if write.kind == DELETE else self.live.add)(write.key)
                written.append(write)
        if not written:
            return
        if session and session not in self.open:
            self._record(SessionOpened(session, 0, "again"))
        self.time += 2
        number = self.numbers[session] = self.numbers.get(session, 0) + 1
        fields = {"session": session, "number": number, "low": max(1, number - behind),
                  "digest": number * 7, "time": self.time, "writes": tuple(written),
                  "results": (1,) * len(written)} | self.wrong
        self.wrong = {}
        self.records.append(Transaction(**fields))


def one_by_one(records: list[Record], until: int | None = None) -> tuple[State, int | None]:
    """The state, and the index of the record that was refused."""
    state = State(UUID)
    for at, record in enumerate(records):
        if until is not None and state.revision >= until:
            break
        try:
            state.apply(record)
        except ValueError:
            return state, at
    return state, None


def logged(records: list[Record], sizes: list[int]) -> bytes:
    """A segment with these records, in frames of these sizes, over and over."""
    writer, data = FrameWriter(HEADER), [encode_header(HEADER)]
    revision, begin = 1, 0
    while begin < len(records):
        size = sizes[writer.number % len(sizes)]
        batch = records[begin : begin + size]
        data.append(writer.data(encode_records(batch), revision, len(batch)))
        revision += sum(type(record) in TAKES_REVISION for record in batch)
        begin += size
    return b"".join(data)


@settings(max_examples=400, deadline=None)
@given(st.lists(_steps, min_size=1, max_size=14),
       st.lists(st.sampled_from([1, 3, 20, 100]), min_size=1, max_size=4),
       st.tuples(st.sampled_from([0, 1, 5, 20, 60, 1_000]), st.integers(0, 4)),
       st.sampled_from([None] * 4 + [0, 3, 60, 150]),
       st.sampled_from([1, 10, 50, 1_000]))
def test_a_replayed_log_is_what_its_records_make_one_by_one(
        steps: list[tuple[Any, ...]], sizes: list[int], history: tuple[int, int],
        until: int | None, together: int) -> None:
    log = _Log()
    log.records += [SettingChanged("history_revisions", history[0]),
                    SettingChanged("history_versions", history[1])]
    for step in steps:
        log.add(step)
    expected, refused = one_by_one(log.records, until)
    state = State(UUID)
    scan = SegmentScan(logged(log.records, sizes), HEADER)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ckptmesh.replay._TOGETHER", together)
        if refused is None:
            whole = replay(scan, "x.seg", state, until)
            assert whole or state.revision == until
            assert everything(state) == everything(expected)
            assert as_rows(state) == as_rows(expected)
            assert everything(through_a_snapshot(state)) == everything(expected)
        else:
            with pytest.raises(Corrupt, match="cannot be replayed") as caught:
                replay(scan, "x.seg", state, until)
            assert caught.value.details["revision"] == expected.revision + 1
            assert caught.value.details["offset"] == frame_of(log.records, sizes, refused)


def as_rows(state: State) -> list[tuple[int, list[bytes]]]:
    """All that a snapshot of a state would hold; keys and pointers come in any order."""
    sections: dict[int, list[str]] = {}
    for section, rows in state.dump():
        sections.setdefault(section, []).extend(map(repr, rows))
    return [(section, sorted(rows)) for section, rows in sections.items()]


def frame_of(records: list[Record], sizes: list[int], index: int) -> int:
    """The offset of the frame that holds a record."""
    scan = SegmentScan(logged(records, sizes), HEADER)
    begin = 0
    for frame in scan:
        begin += frame.records
        if index < begin:
            return frame.offset
    raise AssertionError(index)


# --- that the fast way is taken, and where it may not be ------------------------------------------

def puts(count: int, **changes: Any) -> list[Record]:
    """Plain puts of one session; `changes` to the last of them."""
    made = [Transaction(SESSIONS[0], n, n, n, n, (Write(PUT, f"k{n % 7}", b"v"),), (1,))
            for n in range(1, count + 1)]
    return [*made[:-1], made[-1]._replace(**changes)]


def columns(records: list[Record]) -> Puts:
    found = puts_of(unpack_rows(encode_records(records)))
    assert found is not None
    return found


def test_plain_puts_are_columns_and_come_back_as_they_were() -> None:
    records = puts(20)
    assert list(records_of(columns(records))) == records
    assert [type(step) for step in steps_of(unpack_rows(encode_records(records)))] == [Puts]


def test_what_stands_out_parts_the_runs_before_and_after_it() -> None:
    plain = puts(20)
    rich = plain[0]._replace(writes=(Write(PUT, "a", b"v", expires_at=9),))  # type: ignore[union-attr]
    steps = steps_of(unpack_rows(encode_records([*plain, rich, Sealed(1), *plain, *plain[:3]])))
    assert [type(step) for step in steps] == [Puts, Transaction, Sealed, Puts]
    assert steps[1] == rich
    short = steps_of(unpack_rows(encode_records([*plain[:3], rich, *plain[:3]])))
    assert {type(step) for step in short} == {Transaction}


@pytest.mark.parametrize("changes", [
    {"time": 3}, {"session": b"?" * 16}, {"session": b""}, {"low": 1}, {"low": 21},
])
def test_what_might_be_refused_is_left_to_apply_and_nothing_is_changed(
        changes: dict[str, Any]) -> None:
    state = State(UUID)
    state.apply(FIRST[0])
    before = everything(state)
    assert not take_puts(state, columns(puts(20, **changes)))
    assert everything(state) == before
    assert take_puts(state, columns(puts(20)))
    assert state.revision == 20


def _row(**changes: Any) -> tuple[Any, ...]:
    fields = {"session": SESSIONS[0], "number": 1, "low": 1, "digest": 1, "time": 1,
              "writes": ((PUT, "k", b"v"),), "results": (1,)} | changes
    return (0, *fields.values())


@pytest.mark.parametrize("row", [
    _row(session="text"), _row(number=True), _row(low=1.0), _row(digest=None), _row(time=b""),
    _row(time=True), _row(writes=[]), _row(writes=()), _row(writes=b"x"), _row(writes=(b"abc",)),
    _row(writes=((PUT, "k", b"v"),) * 2), _row(writes=((PUT, "k"),)),
    _row(writes=((PUT, "k", b"v", 5),)), _row(writes=((False, "k", b"v"),)),
    _row(writes=((DELETE, "k", b"v"),)), _row(writes=((PUT, b"k", b"v"),)),
    _row(writes=((PUT, "k", "v"),)), _row(writes=((PUT, "k", bytes(SMALL + 1)),)),
    _row(results=5), _row(results=(True,)), _row(results=("1",)), _row(results="ab"),
    (False, *_row()[1:]), (1, *_row()[1:]), _row()[:-1], (*_row(), 0), (), b"12345678", 5, None,
])
def test_no_other_row_passes_for_a_plain_put(row: Any) -> None:
    assert puts_of([_row(), _row()]) is not None
    assert puts_of([_row(), row]) is None
    assert puts_of([row]) is None


def test_a_damaged_frame_behind_whole_ones_leaves_these_applied() -> None:
    data = logged([*FIRST, *puts(600)], [100])
    flipped = bytearray(data)
    flipped[data.rindex(b"CkFr") + 100] ^= 1
    state = State(UUID)
    scan = SegmentScan(bytes(flipped), HEADER)
    assert replay(scan, "x.seg", state, None)
    assert scan.verdict is Verdict.TORN
    assert state.revision == 598, "what the frames before it hold"


# --- snapshots ------------------------------------------------------------------------------------

def dumped(state: State) -> list[tuple[int, list[list[Any]]]]:
    """The blocks of a snapshot, to be changed."""
    found: list[tuple[int, list[list[Any]]]] = msgpack.unpackb(msgpack.packb([*state.dump()]))
    return found


def plain_state(history: int) -> State:
    state = State(UUID)
    state.apply(FIRST[0])
    state.apply(SettingChanged("history_revisions", history))
    for record in puts(20):
        state.apply(record)
    return state


@pytest.mark.parametrize("history", [0, 3, 15, 100])
def test_a_snapshot_of_plain_puts_is_loaded_by_columns(history: int) -> None:
    state = plain_state(history)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ckptmesh.state._version", None)
        patch.setattr(State, "_install", None)
        loaded = State.load(dumped(state)[:1] + [
            block for block in dumped(state) if block[0] > 1])  # 1: shown below the floor
    wanted = State.load([block for block in dumped(state) if block[0] != 1])
    assert everything(loaded) == everything(wanted)


CUT, COMMITS = 2, 5


@pytest.mark.parametrize(("section", "change"), [
    (CUT, lambda row: row.__setitem__(1, row[1] + 1)), (CUT, lambda row: row.__setitem__(1, 10**9)),
    *[(CUT, lambda row, at=at, wrong=wrong: row.__setitem__(at, wrong))
      for at in range(12) for wrong in (None, "5", True, -1, b"x", [], 1.0)],
    (CUT, lambda row: row.pop()), (CUT, lambda row: row.append(1)),
    (CUT, lambda row: row.__setitem__(2, bytes(SMALL + 1))),
    (CUT, lambda row: row.__setitem__(11, [["a", 1]])),
    (COMMITS, lambda row: row.pop()), (COMMITS, lambda row: row[3].append(row[3][0])),
    *[(COMMITS, lambda row, at=at, wrong=wrong: row[3][0].__setitem__(at, wrong))
      for at in range(4) for wrong in (None, DELETE, EXPIRE, TOUCH, "5", True, [])],
    *[(COMMITS, lambda row, at=at, wrong=wrong: row[3][0][3].__setitem__(at, wrong))
      for at in range(10) for wrong in (None, "5", True, -1, b"x", [], 1.0)],
    (COMMITS, lambda row: row.__setitem__(0, row[0] + 1)),
])
def test_rows_by_columns_are_refused_and_taken_as_they_are_one_by_one(
        section: int, change: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = dumped(plain_state(10))
    rows = next(rows for found, rows in blocks if found == section)
    change(rows[len(rows) // 2])

    def outcome() -> Any:
        try:
            return everything(State.load(copy.deepcopy(blocks)))
        except (ValueError, TypeError, IndexError, KeyError, AttributeError):
            return "refused"

    by_columns = outcome()
    monkeypatch.setattr("ckptmesh.bulk.take_cut", lambda state, rows: False)
    monkeypatch.setattr("ckptmesh.bulk.take_commits", lambda state, rows: False)
    assert by_columns == outcome()
