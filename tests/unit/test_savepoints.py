"""Savepoints as their users meet them, on both clients; and what a copy of a request is told."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

import ckptmesh
from ckptmesh import limits, protocol
from ckptmesh.errors import (
    Compacted,
    Conflict,
    FutureRevision,
    InvalidKey,
    InvalidRequest,
    Misuse,
    OutOfSpace,
    QuotaExceeded,
    SavepointNotFound,
)
from ckptmesh.memory_log import MemoryLog
from ckptmesh.messages import Pin, Pins, Request, Savepoint, Setting, Unpin
from ckptmesh.savepoints import Savepoints
from ckptmesh.testing.blocking import blocking


@pytest.fixture(params=["sync", "async"])
def mesh(request: pytest.FixtureRequest) -> Iterator[Any]:
    with (ckptmesh.connect("memory://") if request.param == "sync"
          else blocking(lambda: ckptmesh.connect_async("memory://"))) as found:
        yield found


def test_a_savepoint_names_the_present_or_a_moment_and_is_read_by_its_name(mesh: Any) -> None:
    early = mesh.commit("orders", 1)
    mesh.commit("invoices", 1)
    before = mesh.savepoint("before", reason="a new key")
    mesh.commit("orders", 2)
    mesh.savepoint("early", at=early)
    mesh.savepoint("timely", at=early.time)
    mesh.savepoint("again", at="before")
    assert (before.name, before.revision, before.reason) == ("before", 2, "a new key")
    assert abs(before.time - datetime.now(UTC)) < timedelta(minutes=10)
    assert [(each.name, each.revision) for each in mesh.savepoints()] == [
        ("early", 1), ("timely", 1), ("again", 2), ("before", 2)]
    for at in ("before", before, 2):
        assert mesh.get("orders", at=at).value == 1
        assert mesh.value("orders", at=at) == 1
        assert mesh.get_many(["orders"], at=at)["orders"].value == 1
        assert [each.key for each in mesh.scan(at=at)] == ["invoices", "orders"]
        assert [each.value for each in mesh.list(at=at)] == [1, 1]
    assert mesh.get("invoices", at="early") is None
    assert mesh.drop_savepoint("before") is True
    assert mesh.drop_savepoint("before") is False
    with pytest.raises(SavepointNotFound) as caught:
        mesh.get("orders", at="before")
    assert caught.value.exit_code == 3
    with pytest.raises(SavepointNotFound):
        list(mesh.list(at="before"))


def test_what_cannot_be_a_savepoint_is_refused(mesh: Any) -> None:
    with pytest.raises(InvalidRequest, match="nothing was committed"):
        mesh.savepoint("empty")
    mesh.commit("orders", 1)
    mesh.savepoint("taken")
    mesh.commit("orders", 2)
    with pytest.raises(Conflict, match="revision 1") as caught:
        mesh.savepoint("taken")
    assert caught.value.details["revision"] == 1
    with pytest.raises(FutureRevision):
        mesh.savepoint("ahead", at=9)
    for name in ("", "7", "10m", "2024-05-01", "a b", "a/b", "é", "-x", "x" * 129, None, 7):
        with pytest.raises(InvalidKey):
            mesh.savepoint(name)
        with pytest.raises(InvalidKey):
            mesh.drop_savepoint(name)
    with pytest.raises(Misuse):
        mesh.savepoint("long", reason="x" * 1_025)
    with pytest.raises(Misuse):
        mesh.savepoint("naive", at=datetime(2024, 5, 1))
    assert [each.name for each in mesh.savepoints()] == ["taken"]


def test_in_memory_a_name_holds_a_revision_as_long_as_memory_does() -> None:
    with ckptmesh.connect("memory://") as mesh:
        mesh.commit("orders", 1)
        mesh.savepoint("before")
        mesh._run(_set("history_revisions", 2), None)
        for count in range(5):
            mesh.commit("orders", count)
        with pytest.raises(Compacted):
            mesh.get("orders", at="before")
        with pytest.raises(Compacted, match="no files"):
            mesh.savepoint("late", at=1)
        assert [each.name for each in mesh.savepoints()] == ["before"]


def _set(name: str, value: int) -> Any:
    yield Setting(name, value)


# --- the store's side -------------------------------------------------------------------------


class Full(MemoryLog):
    """A log whose disk is full."""

    def pin(self, savepoint: Savepoint) -> None:
        raise OutOfSpace("no space for the manifest")


def asked(log: MemoryLog, number: int, command: Any, store: Savepoints) -> Any:
    """The result, or the error, of a request in a batch of its own."""
    store.asked.append(("way", Request(b"", number, 0, b"", 1, command, hash(command))))
    [(route, payload)] = store.answers(99, 3)
    assert (route, store.asked) == ("way", [])
    _, reply = protocol.decode_reply(payload)
    assert (reply.number, reply.epoch) == (number, 3)
    return reply.result if reply.error is None else reply.error


def log_at(revision: int, kind: type[MemoryLog] = MemoryLog) -> MemoryLog:
    log = kind(b"u" * 16)
    log.state.revision = revision
    return log


def test_a_copy_gets_the_first_answer_though_the_head_has_moved_on() -> None:
    log = log_at(4)
    store = Savepoints(log)
    made = asked(log, 1, Pin("here"), store)
    log.state.revision = 9
    assert asked(log, 1, Pin("here"), store) == made == Savepoint("here", 4, 99)
    assert isinstance(asked(log, 2, Pin("here"), store), Conflict), "another request"
    assert asked(log, 3, Unpin("here"), store) is True
    assert asked(log, 3, Unpin("here"), store) is True
    assert asked(log, 4, Unpin("here"), store) is False
    assert isinstance(asked(log_at(4), 1, Pin("here"), Savepoints(log_at(4))), Savepoint)


def test_after_a_restart_a_copy_is_told_what_the_name_stands_for() -> None:
    log = log_at(4)
    asked(log, 1, Pin("here"), Savepoints(log))
    log.state.revision = 9
    refused = asked(log, 1, Pin("here"), Savepoints(log))
    assert isinstance(refused, Conflict)
    assert refused.details["revision"] == 4


def test_a_refusal_changes_nothing_and_may_be_tried_again() -> None:
    log = log_at(4, Full)
    store = Savepoints(log)
    assert isinstance(asked(log, 1, Pin("here"), store), OutOfSpace)
    assert asked(log, 2, Pins(), store) == ()


def test_there_may_be_so_many_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ckptmesh.savepoints.SAVEPOINTS", 2)
    log = log_at(4)
    store = Savepoints(log)
    for number, name in enumerate(("a", "b")):
        asked(log, number, Pin(name), store)
    assert isinstance(asked(log, 9, Pin("c"), store), QuotaExceeded)
    assert limits.SAVEPOINTS == 1_000
