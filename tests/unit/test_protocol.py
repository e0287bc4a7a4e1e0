"""The wire: every message goes through its bytes and back, and version 1 stays as it was."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptmesh import bundles, commands, limits, protocol, publications
from ckptmesh.entries import MANY
from ckptmesh.errors import (
    BY_CODE,
    Conflict,
    ContractBroken,
    Error,
    Unavailable,
)
from ckptmesh.messages import (
    PUT,
    AcceptLoss,
    At,
    BrokerBeat,
    Change,
    Close,
    Command,
    Commit,
    Compact,
    Contracted,
    Delete,
    Events,
    Exists,
    Find,
    Get,
    Heartbeat,
    Hello,
    History,
    Increment,
    KeepAlive,
    ListContracts,
    Open,
    Opened,
    Outcome,
    Pin,
    Pins,
    PlainPuts,
    Publication,
    Put,
    Reply,
    RevisionIs,
    Row,
    Rows,
    Rules,
    Savepoint,
    Scan,
    SetContract,
    Setting,
    Since,
    Status,
    TokenIs,
    Touch,
    Transact,
    Unchanged,
    Unpin,
    Version,
    Welcome,
)

SID, UUID = b"s" * 16, b"u" * 16
GOLDEN = Path(__file__).parent.parent / "golden" / "protocol-1.txt"


# --- what may travel --------------------------------------------------------------------------

KEY = st.sampled_from(["orders", "orders/1", "orders/_lock/a", "é", "日本/x", "a b", "k" * 512,
                       *(f"k/{i}" for i in range(9))])
WORD = st.integers(0, 2**64 - 1)
SIGNED = st.integers(-(2**63), 2**63 - 1)
TTL = st.integers(1, limits.TTL_MAX)
SOURCES = st.lists(st.tuples(KEY, WORD), max_size=3).map(tuple)
PUTS = st.one_of(
    st.builds(Put, KEY, st.binary(max_size=40), st.none(), st.just(False), st.none(), st.none(),
              st.just(())),
    st.builds(Put, KEY, st.binary(max_size=40), TTL, st.booleans(), st.none() | SIGNED,
              st.none() | SIGNED, SOURCES))
MUTATIONS = st.one_of(PUTS, st.builds(Delete, KEY), st.builds(Touch, KEY, st.none() | TTL),
                      st.builds(Increment, KEY, st.integers(-(2**63), 2**64 - 1), st.none() | TTL))
CONDITIONS = st.one_of(st.builds(RevisionIs, KEY, WORD), st.builds(TokenIs, KEY, WORD, WORD),
                       st.builds(Exists, KEY), st.builds(Unchanged, st.just("") | KEY, WORD))
ATS = st.one_of(st.none(), st.builds(At, WORD, st.none()),
                st.builds(At, st.none(), st.integers(0, 2**63 - 1)))
KEYS = st.lists(KEY, max_size=5).map(tuple)
PAGE = st.integers(1, limits.SCAN_LIMIT)
COMMANDS: st.SearchStrategy[Command] = st.one_of(
    st.just(Hello()), st.just(Close()), st.just(Status()), st.just(AcceptLoss()),
    st.builds(Open, st.text(max_size=20), st.sampled_from([b"", UUID]), st.integers(0, 2**63 - 1),
              WORD),
    st.builds(KeepAlive, KEY, WORD, WORD),
    st.builds(Transact, st.lists(CONDITIONS, max_size=3).map(tuple),
              st.lists(MUTATIONS, max_size=4, unique_by=lambda m: m.key).map(tuple),
              st.just(False)),
    st.builds(Transact, st.lists(CONDITIONS, max_size=3).map(tuple),
              st.lists(PUTS, min_size=1, max_size=12).map(tuple), st.just(True)),
    st.builds(Transact, st.just(()), st.builds(
        PlainPuts, st.lists(KEY, min_size=MANY, max_size=12).map(tuple),
        st.just((b"v",) * 12)).map(lambda puts: PlainPuts(puts.keys, puts.values[:len(puts)])),
              st.just(True)),
    KEYS.flatmap(lambda keys: st.builds(Get, st.just(keys), ATS, st.integers(0, len(keys)))),
    st.builds(Scan, st.just("") | KEY, st.text(max_size=9), PAGE, ATS),
    st.builds(History, KEY, PAGE, WORD),
    st.builds(Since, WORD, st.integers(-1, 2**31 - 1), st.sampled_from(["", "orders"]), PAGE),
    st.builds(Find, st.just(SID), WORD, WORD),
    st.builds(Compact, st.none() | st.integers(0, 2**63 - 1)),
    st.builds(Setting, st.text(max_size=9), WORD),
)
VERSIONS = st.builds(Version, st.binary(max_size=20), WORD, WORD, WORD, WORD, st.none() | WORD,
                     st.none() | WORD, st.none() | SIGNED, st.none() | SIGNED, SOURCES)
ROWS = st.builds(Row, KEY, WORD, VERSIONS)
CHANGES = st.builds(Change, WORD, st.integers(0, 3), KEY, st.none() | VERSIONS)
COMMITS = st.builds(Commit, WORD, WORD, WORD, st.lists(CHANGES, max_size=3).map(tuple),
                    st.sampled_from([b"", SID]), WORD, st.lists(SIGNED, max_size=3).map(tuple))
OUTCOMES = st.builds(Outcome, WORD, WORD, WORD, st.lists(SIGNED, max_size=3).map(tuple))
PAGES = st.builds(Rows, WORD, WORD, st.lists(st.none() | ROWS, max_size=3).map(tuple),
                  st.booleans())
RESULTS: dict[type[Command], st.SearchStrategy[Any]] = {
    Hello: st.builds(Welcome, st.just(UUID), WORD, WORD, WORD, WORD, st.text(max_size=9),
                     st.text(max_size=9)),
    Open: st.builds(Opened, st.just(SID), WORD, WORD),
    KeepAlive: WORD, Transact: OUTCOMES, Find: st.none() | OUTCOMES,
    Get: PAGES, Scan: PAGES, History: PAGES,
    Since: st.builds(Events, st.lists(COMMITS, max_size=3).map(tuple), WORD, st.booleans()),
    Status: st.dictionaries(st.text(max_size=5), WORD | st.text(max_size=5), max_size=3),
    Compact: st.dictionaries(st.text(max_size=5), WORD, max_size=3),
    Close: st.none(), Setting: st.none(), AcceptLoss: st.none(),
}


def session_for(command: Command) -> bytes:
    return SID if commands.op_of(command) in commands.IN_SESSION else b""


@given(COMMANDS, WORD, WORD, st.sampled_from([b"", UUID]), st.integers(0, 2**63 - 1))
def test_a_request_goes_through_its_bytes_and_back(
        command: Command, number: int, low: int, uuid: bytes, epoch: int) -> None:
    op, body = commands.pack_command(command)
    session = session_for(command)
    payload = protocol.encode_request(op, body, session=session, number=number, low=low,
                                      uuid=uuid, epoch=epoch)
    request = protocol.decode_request(payload)
    assert request[:6] == (session, number, low, uuid, epoch, command)
    assert type(request.command) is type(command)
    assert request.size == len(payload)
    assert bundles.peek(payload) == (op, session, range(number, number + 1))


@given(COMMANDS, COMMANDS)
def test_the_digest_covers_the_command_and_nothing_else(one: Command, two: Command) -> None:
    def digest(command: Command, number: int, **stamps: Any) -> int:
        op, body = commands.pack_command(command)
        return protocol.decode_request(protocol.encode_request(
            op, body, session=session_for(command), number=number, **stamps)).digest

    assert digest(one, 1) == digest(one, 2, low=1, uuid=UUID, epoch=9)
    if commands.pack_command(one)[1] != commands.pack_command(two)[1]:
        assert digest(one, 1) != digest(two, 1)


@given(st.sampled_from(list(RESULTS)).flatmap(
    lambda kind: st.tuples(st.just(kind), RESULTS[kind])), WORD, WORD)
def test_a_reply_goes_through_its_bytes_and_back(
        drawn: tuple[type[Command], Any], number: int, epoch: int) -> None:
    kind, result = drawn
    op = commands.OPS.index(kind)
    reply = Reply(SID, number, epoch, result)
    assert protocol.decode_reply(protocol.encode_reply(op, reply)) == (op, reply)


@pytest.mark.parametrize("kind", sorted(BY_CODE.values(), key=lambda c: c.code))
def test_every_error_of_the_catalogue_travels_with_its_message_hint_and_facts(
        kind: type[Error]) -> None:
    row = Row("a", 1, Version(b"v", 1, 1, 1, 1))
    sent = kind("told", hint="do this", key="a", row=row, floor=7, op=3, session=SID, number=9)
    op, reply = protocol.decode_reply(protocol.encode_reply(4, Reply(SID, 9, 2, None, sent)))
    error = reply.error
    assert (op, reply.session, reply.number, reply.epoch, reply.result) == (4, SID, 9, 2, None)
    assert type(error) is kind
    assert (error.message, error.hint, error.details) == (
        "told", "do this", {"key": "a", "row": row, "floor": 7})


def test_errors_of_the_future_arrive_as_the_root() -> None:
    future = msgpack.packb([1, 4, SID, 9, 2, 9_999, msgpack.packb(["new", "", {}])])
    error = protocol.decode_reply(future)[1].error
    assert type(error) is Error
    assert str(error) == "new"


def test_a_conflict_without_a_row_has_none() -> None:
    sent = Conflict("no", key="a", expected=1, revision=0, row=None)
    error = protocol.decode_reply(protocol.encode_reply(4, Reply(SID, 1, 1, None, sent)))[1].error
    assert isinstance(error, Conflict)
    assert error.details["row"] is None


@given(st.sampled_from(["orders", "é"]), COMMITS, WORD, WORD, st.integers(0, 9))
def test_a_publication_goes_through_its_bytes_and_back_under_its_topic(
        pipeline: str, commit: Commit, previous: int, store_previous: int, part: int) -> None:
    commit = commit._replace(results=())  # they are for the one who asked
    message = Publication(pipeline, UUID, previous, store_previous, part, part + 1, commit)
    frame = publications.encode_publication(message)
    assert frame.startswith(publications.topic_of(pipeline))
    assert publications.decode_publications(frame) == [message]


@given(st.lists(st.tuples(st.sampled_from(["a", "b"]), st.integers(0, 40_000)), max_size=12))
def test_neighbours_of_one_pipeline_share_a_frame_and_arrive_in_order(
        published: list[tuple[str, int]]) -> None:
    messages = [
        Publication(pipeline, UUID, n, n, 0, 1, Commit(n + 1, 1, n, (
            Change(0, PUT, f"{pipeline}/k", Version(bytes(size), n + 1, 1, 1, n)),)))
        for n, (pipeline, size) in enumerate(published)]
    frames = list(publications.encode_publications(messages))
    told = [publications.decode_publications(frame) for frame in frames]
    assert [message for group in told for message in group] == messages
    for frame, group in zip(frames, told, strict=True):
        assert {message.pipeline for message in group} == {group[0].pipeline}  # type: ignore[union-attr]
        assert len(group) == 1 or len(frame) <= limits.PUBLICATION_BYTES + 100
    for group, after in itertools.pairwise(told):  # no frame is made without need
        small = sum(map(len, map(publications.encode_publication, (*group, after[0]))))
        assert (group[0].pipeline != after[0].pipeline  # type: ignore[union-attr]
                or small > limits.PUBLICATION_BYTES)


def test_a_topic_selects_one_pipeline_or_everything() -> None:
    assert publications.topic_of("") == b""
    assert publications.topic_of("orders") == b"orders/"
    assert not publications.topic_of("orders2").startswith(publications.topic_of("orders"))


@pytest.mark.parametrize("message", [
    Heartbeat(UUID, 1, 2, 3, 4, (("a", 5), ("b", 6))), Heartbeat(UUID, 1, 2, 3, 4, None),
    BrokerBeat(1, "0.1", 1, 2, 3.5)])
def test_heartbeats_go_through_their_bytes_and_back(message: Any) -> None:
    frame = publications.encode_publication(message)
    assert frame.startswith((publications.HEARTBEAT_TOPIC, publications.BROKER_TOPIC))
    assert publications.decode_publications(frame) == [message]


# --- golden bytes -----------------------------------------------------------------------------

V = Version(b"\xa2on", 7, 5, 3, 1_700_000_000_000_000, None, 5_000_000, 42, 50, (("raw", 3),))
CONTRACT = Rules(True, False, 10_000, 4_096, 60_000_000, 30, "0f" * 32)
REQUESTS: dict[str, tuple[Command, int, int, int]] = {  # command, number, low, epoch
    "hello": (Hello(), 1, 0, 0),
    "open": (Open("host:1:worker", UUID, 2, 99), 2, 0, 0),
    "close": (Close(), 9, 8, 3),
    "keepalive": (KeepAlive("orders/_lock/a", 2, 77), 3, 0, 0),
    "transact": (Transact(
        (RevisionIs("orders", 0), TokenIs("orders/_lock/a", 2, 77), Exists("a"),
         Unchanged("", 70)),
        (Put("orders", b"\x2a"), Put("a", b"\xc0", 60_000_000, True, -1, 5, (("raw", 3),)),
         Delete("b/c"), Touch("d", None), Increment("n", -1, 1_000))), 5, 4, 3),
    "get": (Get(("a", "b"), At(7), 1), 4, 0, 0),
    "scan": (Scan("orders", "orders/1", 100, At(None, 1_700_000_000_000_000)), 5, 0, 0),
    "history": (History("orders", 8, 0), 6, 0, 0),
    "since": (Since(12, 2**31 - 1, "orders", 1_000), 7, 0, 0),
    "status": (Status(), 8, 0, 0),
    "find": (Find(SID, 4, 70), 6, 6, 3),
    "compact": (Compact(None), 9, 0, 0),
    "setting": (Setting("history_versions", 3), 10, 0, 0),
    "accept-loss": (AcceptLoss(), 11, 0, 0),
    "set-contract": (SetContract("orders", CONTRACT), 12, 0, 0),
    "set-contract to none": (SetContract("", Rules()), 13, 0, 0),
    "list-contracts": (ListContracts(), 14, 0, 0),
    "pin": (Pin("before-migration", 99, "on Friday"), 15, 0, 0),
    "pin the head": (Pin("now"), 16, 0, 0),
    "unpin": (Unpin("now"), 17, 0, 0),
    "pins": (Pins(), 18, 0, 0),
}
REPLIES: dict[str, tuple[type[Command], Reply]] = {
    "welcome": (Hello, Reply(b"", 1, 3, Welcome(UUID, 3, 99, 0, 1_700_000_000_000_000,
                                                "tcp://h:1", "0.1.0"))),
    "opened": (Open, Reply(b"", 2, 3, Opened(SID, 3, 99))),
    "closed": (Close, Reply(SID, 9, 3, None)),
    "kept": (KeepAlive, Reply(b"", 3, 3, 5_000_000)),
    "outcome": (Transact, Reply(SID, 5, 3, Outcome(100, 3, 1_700_000_000_000_000, (1, 0, -5)))),
    "rows": (Get, Reply(b"", 4, 3, Rows(7, 1_700_000_000_000_000,
                                        (Row("a", 3, V), None), True))),
    "events": (Since, Reply(b"", 7, 3, Events((Commit(
        7, 3, 1_700_000_000_000_000, (Change(0, 0, "a", V), Change(1, 1, "b", None)), SID, 5,
        (3, 1)),), 9, False))),
    "conflict": (Transact, Reply(SID, 5, 3, None, Conflict(
        "'a' is at revision 7, not 6", key="a", expected=6, revision=7, row=Row("a", 3, V)))),
    "unavailable": (Get, Reply(b"", 4, 0, None, Unavailable("no store"))),
    "contract set": (SetContract, Reply(b"", 12, 3, 2)),
    "contracts": (ListContracts, Reply(b"", 14, 3, (
        Contracted("orders", CONTRACT, 2, 1_700_000_000_000_000),))),
    "contract broken": (Transact, Reply(SID, 5, 3, None, ContractBroken(
        "a commit of 'orders' breaks rule required of the contract on 'orders': it carries no "
        "position", key="orders", rule="required", contract="orders", version=2))),
    "pinned": (Pin, Reply(b"", 15, 3, Savepoint(
        "before-migration", 99, 1_700_000_000_000_000, "on Friday"))),
    "unpinned": (Unpin, Reply(b"", 17, 3, True)),
    "savepoints": (Pins, Reply(b"", 18, 3, (
        Savepoint("before-migration", 99, 1_700_000_000_000_000, "on Friday"),))),
}
PUBLISHED: dict[str, Publication | Heartbeat | BrokerBeat] = {
    "publication": Publication("orders", UUID, 3, 6, 0, 1, Commit(
        7, 3, 1_700_000_000_000_000, (Change(0, 0, "orders/1", V),), SID, 5)),
    "heartbeat": Heartbeat(UUID, 3, 99, 1_700_000_000_000_000, 90, (("orders", 99),)),
    "broker": BrokerBeat(4_711, "0.1.0", 1, 2, 60.5),
}


def golden_bytes() -> dict[str, bytes]:
    """All messages above as their bytes, by name."""
    made = {}
    for name, (command, number, low, epoch) in REQUESTS.items():
        op, body = commands.pack_command(command)
        made[f"request {name}"] = protocol.encode_request(
            op, body, session=session_for(command), number=number, low=low, uuid=UUID,
            epoch=epoch)
    for name, (kind, reply) in REPLIES.items():
        made[f"reply {name}"] = protocol.encode_reply(commands.OPS.index(kind), reply)
    made |= {f"published {name}": publications.encode_publication(message)
             for name, message in PUBLISHED.items()}
    return made


def golden_file() -> dict[str, bytes]:
    """The file: a line with a name, then indented lines of hex."""
    found: dict[str, str] = {}
    name = ""
    for line in GOLDEN.read_text().splitlines():
        if line.startswith(" "):
            found[name] += line
        elif line and not line.startswith("#"):
            name = line
            found[name] = ""
    return {name: bytes.fromhex(text) for name, text in found.items()}


def test_messages_of_version_1_have_the_bytes_that_they_always_had() -> None:
    assert golden_bytes() == golden_file()


def test_bytes_of_version_1_are_read_as_they_always_were() -> None:
    golden = golden_file()
    for name, (command, number, low, epoch) in REQUESTS.items():
        request = protocol.decode_request(golden[f"request {name}"])
        assert request[:6] == (session_for(command), number, low, UUID, epoch, command)
    for name, (kind, reply) in REPLIES.items():
        op, read = protocol.decode_reply(golden[f"reply {name}"])
        assert op == commands.OPS.index(kind)
        assert read[:4] == reply[:4]
        if isinstance(reply.error, Error):
            assert isinstance(read.error, type(reply.error))
            assert vars(read.error) | {"hint": ""} == vars(reply.error) | {"hint": ""}
    for name, message in PUBLISHED.items():
        assert publications.decode_publications(golden[f"published {name}"]) == [message]
