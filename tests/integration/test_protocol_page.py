"""A client written from docs/protocol.md alone: msgpack, a DEALER and a SUB, nothing of ckptmesh.

What this file must know and the page does not tell is missing from the page.
"""

from __future__ import annotations

import itertools
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zmq

ROOT = Path(__file__).parent.parent.parent
WAIT = 20.0  # seconds until an answer must be there, over a restart of the store too
HELLO, OPEN, CLOSE, KEEPALIVE, TRANSACT, GET, SCAN, HISTORY, SINCE, STATUS, FIND = range(11)
SET_CONTRACT, LIST_CONTRACTS, PIN, UNPIN, PINS = range(14, 19)
CONTRACT_BROKEN = 23
CONFLICT, UNSUPPORTED, EPOCH_CHANGED, SUPERSEDED, UNAVAILABLE = 10, 18, 41, 43, 50
REUSED = 45
ALL_OF_IT = 2_147_483_647  # the index that stands for all of a revision


class Refused(Exception):
    """A reply whose status is not 0."""

    def __init__(self, status: int, content: list[Any]) -> None:
        self.status, (self.message, self.hint, self.details) = status, content
        super().__init__(f"{status}: {self.message}")


class RawClient:
    """Sections 1 to 5 of the page, one request at a time."""

    def __init__(self, context: zmq.Context[Any], url: str) -> None:
        self.socket = context.socket(zmq.DEALER)
        self.socket.set(zmq.IMMEDIATE, 1)
        self.socket.set(zmq.LINGER, 0)
        self.socket.set(zmq.MAXMSGSIZE, 17 * 2**20)
        self.socket.connect(url)
        self.uuid, self.epoch, self.session = b"", 0, b""
        self.echo = itertools.count(secrets.randbits(52))  # numbers of requests without a session
        self.numbers = itertools.count(1)  # numbers within the session
        self.low = 1

    def copy(self, op: int, session: bytes, number: int, body: bytes) -> tuple[int, int, Any]:
        """Send one copy, stamped as of now: (status, epoch, content) of the reply to it."""
        low, epoch = (self.low, self.epoch) if session else (0, 0)
        self.socket.send(msgpack.packb([1, op, session, number, low, self.uuid, epoch, body]))
        while self.socket.poll(2_000):
            version, reply_op, *echo, epoch, status, content = msgpack.unpackb(self.socket.recv())
            if (version, reply_op, *echo) == (1, op, session, number) and (
                    epoch == 0 or epoch >= self.epoch):
                self.epoch = max(self.epoch, epoch)
                return status, epoch, msgpack.unpackb(content)
        return UNAVAILABLE, 0, ["no answer", "", {}]

    def request(self, op: int, body: list[Any], number: int = 0) -> Any:
        """The result, sending copies until there is one. `number`: of the session, else none."""
        packed, session = msgpack.packb(body), self.session if number else b""
        number = number or next(self.echo)
        deadline = time.monotonic() + WAIT
        while True:
            status, epoch, content = self.copy(op, session, number, packed)
            again = status == EPOCH_CHANGED or (status == UNAVAILABLE and epoch == 0)
            if not again or time.monotonic() > deadline:
                break
            time.sleep(0.05)
        if status:
            raise Refused(status, content)
        return content

    def begin(self) -> list[Any]:
        """Greet the store and open a session; what `hello` told."""
        welcome: list[Any] = self.request(HELLO, [])
        self.uuid = welcome[0]
        self.session, self.epoch, _ = self.request(OPEN, ["raw", b"", 0, 0])
        return welcome

    def transact(self, conditions: list[Any], mutations: list[Any]) -> Any:
        """One new transaction; settled when this returns or raises."""
        number = next(self.numbers)
        try:
            return self.request(TRANSACT, [conditions, mutations], number)
        finally:
            self.low = number + 1


class Served:
    """`ckptmesh up` in a process group of its own."""

    def __init__(self, folder: Path) -> None:
        ports = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
        self.url, self.publish = (f"tcp://127.0.0.1:{p.getsockname()[1]}" for p in ports)
        for port in ports:
            port.close()
        command = ["up", "--bind", self.url, "--publish", self.publish, "--data", str(folder / "d")]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "ckptmesh", *command], cwd=folder, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": str(ROOT)})

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        finally:
            self.process.kill()  # broker and store end with it
            self.process.wait()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    running = Served(tmp_path_factory.mktemp("page"))
    yield running
    running.stop()


@pytest.fixture
def context() -> Iterator[zmq.Context[Any]]:
    made: zmq.Context[Any] = zmq.Context()
    yield made
    made.destroy(linger=0)


@pytest.fixture
def raw(served: Served, context: zmq.Context[Any]) -> RawClient:
    client = RawClient(context, served.url)
    client.begin()
    return client


def put(key: str, value: object) -> list[Any]:
    return [0, key, msgpack.packb(value)]


def test_hello_open_transact_get_and_since(raw: RawClient) -> None:
    uuid, epoch, head, floor, _, publish, release = raw.request(HELLO, [])
    assert len(uuid) == 16
    assert epoch >= 1
    assert head >= floor
    assert publish.startswith("tcp://")
    assert release
    first = raw.transact([[0, "first", 0]], [put("first", {"offset": 1}), [3, "first/n", 5]])
    revision, epoch, at, results = first
    assert results == [1, 5]
    cut, _, (row, missing), more = raw.request(GET, [["first", "nothing"], None, 0])
    assert (cut >= revision, missing, more) == (True, None, False)
    key, row_epoch, version = row
    assert (key, row_epoch) == ("first", epoch)
    assert version == [msgpack.packb({"offset": 1}), revision, revision, 1, at,
                       None, None, None, None, []]
    commits, complete_to, more = raw.request(SINCE, [revision - 1, ALL_OF_IT, "first", 100])
    assert complete_to >= revision
    assert more is False
    (commit,) = [c for c in commits if c[0] == revision]
    assert commit[1:3] == [epoch, at]
    assert [change[:3] for change in commit[3]] == [[0, 0, "first"], [1, 0, "first/n"]]
    assert commit[4:] == [raw.session, 1, results]


def test_scan_and_history_go_page_by_page_over_one_cut(raw: RawClient) -> None:
    for n in range(3):
        raw.transact([], [put("pages/a", n), put(f"pages/b{n}", n)])
    names, after, at, more = [], "", None, True
    while more:
        cut, _, rows, more = raw.request(SCAN, ["pages", after, 2, at])
        names += [key for key, _, _ in rows]
        after, at = names[-1], [cut, None]
    assert names == ["pages/a", "pages/b0", "pages/b1", "pages/b2"]
    values, before, more = [], 0, True
    while more:
        _, _, rows, more = raw.request(HISTORY, ["pages/a", 2, before])
        values += [msgpack.unpackb(version[0]) for _, _, version in rows]
        before = rows[-1][2][1]
    assert values == [2, 1, 0]


def test_a_conflict_tells_what_stands_there(raw: RawClient) -> None:
    revision, *_ = raw.transact([], [put("contested", "theirs")])
    with pytest.raises(Refused) as refused:
        raw.transact([[0, "contested", 0]], [put("contested", "mine")])
    assert refused.value.status == CONFLICT
    details = refused.value.details
    assert (details["key"], details["expected"], details["revision"]) == ("contested", 0, revision)
    key, _, version = details["row"]
    assert (key, version[0]) == ("contested", msgpack.packb("theirs"))


def test_a_copy_of_a_request_takes_effect_once_over_a_kill_of_the_store(raw: RawClient) -> None:
    number = next(raw.numbers)
    body = [[], [[3, "once", 1]]]
    first = raw.request(TRANSACT, body, number)
    assert raw.request(TRANSACT, body, number) == first
    with pytest.raises(Refused) as refused:
        raw.request(TRANSACT, [[], [[3, "once", 2]]], number)
    assert refused.value.status == REUSED

    before = raw.epoch
    os.kill(raw.request(STATUS, [])["pid"], signal.SIGKILL)
    assert raw.request(TRANSACT, body, number) == first, "its first copy was stamped before"
    assert raw.epoch == before + 1
    _, _, (row,), _ = raw.request(GET, [["once"], None, 0])
    assert msgpack.unpackb(row[2][0]) == 1

    raw.low = number + 1
    status, _, _ = raw.copy(TRANSACT, raw.session, number, msgpack.packb(body))
    assert status == SUPERSEDED


def test_find_tells_what_became_of_a_request_that_was_given_up(raw: RawClient) -> None:
    head = raw.request(HELLO, [])[2]
    done, never = next(raw.numbers), next(raw.numbers)
    outcome = raw.request(TRANSACT, [[], [put("given-up", 1)]], done)
    raw.low = never + 1
    for number, expected in ((done, outcome), (never, None)):
        assert raw.request(FIND, [raw.session, number, head], next(raw.numbers)) == expected


def test_a_lease_is_kept_alive_by_its_token_and_a_session_closes(raw: RawClient) -> None:
    ttl = 5_000_000
    revision, epoch, _, _ = raw.transact(
        [], [[0, "lease", msgpack.packb("me"), ttl, True, None, None, []]])
    assert raw.request(KEEPALIVE, ["lease", epoch, revision]) == ttl
    raw.transact([[1, "lease", epoch, revision]], [[1, "lease"]])
    assert raw.request(CLOSE, [], next(raw.numbers)) is None


def test_another_version_is_told_so(raw: RawClient) -> None:
    raw.socket.send(msgpack.packb([2, HELLO, "whatever comes with version 2"]))
    assert raw.socket.poll(10_000)
    _, op, session, number, _, status, content = msgpack.unpackb(raw.socket.recv())
    assert (op, session, number, status) == (0, b"", 0, UNSUPPORTED)
    assert len(msgpack.unpackb(content)) == 3


def test_a_subscription_joins_on_by_publications_heartbeats_and_since(
        raw: RawClient, context: zmq.Context[Any]) -> None:
    uuid, _, _, _, _, publish, _ = raw.request(HELLO, [])
    complete_to, *_ = raw.transact([], [put("watched/a", "before the watch")])
    expected = [(raw.transact([], [put("watched/a", n)])[0], n) for n in range(3)]  # all missed
    watch = context.socket(zmq.SUB)
    for topic in (b"watched/", b"_heartbeat\0", b"_broker\0"):
        watch.subscribe(topic)
    watch.connect(publish)
    seen: list[tuple[int, object]] = []

    def deliver(revision: int, changes: list[Any]) -> None:
        seen.extend((revision, msgpack.unpackb(version[0])) for _, _, _, version in changes)

    def ask() -> int:
        to = complete_to
        more = True
        while more:
            commits, to, more = raw.request(SINCE, [to, ALL_OF_IT, "watched", 100])
            for commit in commits:
                deliver(commit[0], commit[3])
        return to

    kinds, later = set(), iter((3, 4))
    deadline = time.monotonic() + WAIT
    while (len(seen) < 5 or len(kinds) < 3) and time.monotonic() < deadline:
        if not watch.poll(3_000):
            continue
        topic, _, payload = watch.recv().partition(b"\0")
        version, *fields = msgpack.unpackb(payload)
        assert version == 1
        kinds.add(topic)
        if topic == b"_broker":
            pid, _, stores, clients, uptime = fields
            assert (pid > 0, stores, clients >= 1, uptime > 0) == (True, 1, True, True)
        elif topic == b"_heartbeat":
            assert fields[0] == uuid
            _, _, revision, _, previous, recent = fields
            if revision > complete_to:
                last = dict(recent or ()).get("watched", 0)
                if recent is not None and complete_to >= previous and last <= complete_to:
                    complete_to = revision
                else:
                    complete_to = ask()
            if (n := next(later, None)) is not None:  # the path is open now: these arrive
                expected.append((raw.transact([], [put("watched/b", n)])[0], n))
        else:
            assert (topic, fields[0]) == (b"watched/", uuid)
            _, _, revision, _, previous, _, part, parts, changes, session, _ = fields
            assert (part, parts, session) == (0, 1, raw.session)
            if previous <= complete_to < revision:
                deliver(revision, changes)
                complete_to = revision
            elif revision > complete_to:
                complete_to = ask()
    assert kinds == {b"watched/", b"_heartbeat", b"_broker"}
    assert seen == expected, "each once, in order, none missed"


def test_contracts_hold_until_they_are_taken_away(raw: RawClient) -> None:
    monotonic = [True, False, None, 3, None, None, ""]
    number, body = next(raw.echo), msgpack.packb(["page", monotonic])
    assert raw.copy(SET_CONTRACT, b"", number, body)[2] == 1
    [[prefix, contract, version, _]] = raw.request(LIST_CONTRACTS, [])
    assert (prefix, contract, version) == ("page", monotonic, 1)
    raw.transact([], [[*put("page/k", 1), None, False, 5]])
    for rule, refused in (("monotonic", [*put("page/k", 1), None, False, 4]),
                          ("max_bytes", [*put("page/k", "long"), None, False, 6])):
        with pytest.raises(Refused) as caught:
            raw.transact([], [refused])
        assert caught.value.status == CONTRACT_BROKEN
        assert caught.value.details == {
            "key": "page/k", "rule": rule, "contract": "page", "version": 1}
    raw.transact([], [put("page/_own", "long")])
    assert raw.request(SET_CONTRACT, ["page", [False, False, None, None, None, None, ""]]) == 0
    assert raw.copy(SET_CONTRACT, b"", number, body)[2] == 1, "a late copy: without effect"
    assert raw.request(LIST_CONTRACTS, []) == []
    raw.transact([], [put("page/k", "long")])


def test_savepoints_are_made_and_dropped(raw: RawClient) -> None:
    revision = raw.transact([], [put("page/s", 1)])[0]
    name, pinned, _, reason = made = raw.request(PIN, ["v1", None, "why"])
    assert (name, pinned, reason) == ("v1", revision, "why")
    assert raw.request(PINS, []) == [made]
    with pytest.raises(Refused) as caught:
        raw.request(PIN, ["v1", None, ""])
    assert (caught.value.status, caught.value.details["revision"]) == (CONFLICT, revision)
    assert raw.request(UNPIN, ["v1"]) is True
    assert raw.request(UNPIN, ["v1"]) is False
    assert raw.request(PINS, []) == []
