"""What one batch answers at most: small requests may ask for gigabytes of values."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

import ckptmesh
from ckptmesh import commands, limits, protocol
from ckptmesh.engine import Engine
from ckptmesh.errors import Conflict, TooManyInFlight
from ckptmesh.messages import (
    Command,
    Get,
    Hello,
    History,
    Increment,
    Open,
    Outcome,
    Put,
    RevisionIs,
    Rows,
    Scan,
    Since,
    Status,
    Transact,
)
from ckptmesh.opening import open_engine

PAGE = 8_000  # bytes of the values under "big"


class Store:
    """An engine whose batches answer with little, and one session to ask in."""

    def __init__(self) -> None:
        self.engine: Engine[Any] = open_engine(None)
        self.engine.serve()
        self.session, self.number = b"", 0
        self.session = self.ask(("x", Open("test")))[0].session
        self.ask(("x", Transact((), (Put("big/1", bytes(PAGE)),))))

    def ask(self, *asked: tuple[Any, Command]) -> list[Any]:
        """Results or errors of one batch, for (route, command) each."""
        replies, _ = self.engine.process([(route, self._payload(cmd)) for route, cmd in asked])
        assert [route for route, _ in replies] == [route for route, _ in asked]
        found = [protocol.decode_reply(payload)[1] for _, payload in replies]
        return [reply.error or reply.result for reply in found]

    def _payload(self, command: Command) -> bytes:
        op, body = commands.pack_command(command)
        if not isinstance(command, Transact):
            return protocol.encode_request(op, body, session=b"", number=1, low=0, uuid=b"",
                                           epoch=0)
        self.number += 1
        return protocol.encode_request(
            op, body, session=self.session, number=self.number, low=1,
            uuid=self.engine.state.uuid, epoch=self.engine.state.epoch)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setattr(limits, "ANSWER_BYTES", 2 * PAGE)
    monkeypatch.setattr(limits, "BATCH_ANSWER_BYTES", 5 * PAGE)
    found = Store()
    yield found
    found.engine.close()


CONFLICT = Transact((RevisionIs("big/1", 99),), (Put("big/1", b"\x01"),))


@pytest.mark.fault(54)
@pytest.mark.parametrize("command", [
    Scan("big"), Get(("big/1",)), History("big/1"), Since(0, 0, "big"), CONFLICT,
])
def test_a_batch_answers_a_client_with_so_many_bytes_and_has_it_ask_again_for_the_rest(
    store: Store, command: Command
) -> None:
    answers = store.ask(*[("hot", command)] * 20, ("other", command))
    kinds = [type(answer) is TooManyInFlight for answer in answers]
    assert kinds == [False] * 2 + [True] * 18 + [False], "the other has a bound of its own"
    assert answers[2].details["limit"] == 2 * PAGE
    again = store.ask(("hot", command))[0]
    assert type(again) is type(answers[0])


@pytest.mark.fault(54)
@pytest.mark.fault(52)
def test_a_batch_answers_all_clients_together_with_so_many_bytes(store: Store) -> None:
    answers = store.ask(*[(f"client {n}", Scan("big")) for n in range(100)])
    assert sum(type(answer) is Rows for answer in answers) == 5
    assert sum(type(answer) is TooManyInFlight for answer in answers) == 95


def test_what_was_done_is_answered_however_much_was_answered_before(store: Store) -> None:
    done = Transact((), (Increment("count", 1),))
    answers = store.ask(*[("hot", Scan("big"))] * 9, ("hot", done), ("hot", Hello()),
                        ("hot", Status()), ("hot", Scan("big")))
    assert type(answers[8]) is type(answers[12]) is TooManyInFlight
    assert type(answers[9]) is Outcome
    assert not any(isinstance(answer, Exception) for answer in answers[9:12])


def test_a_refusal_that_was_deferred_is_the_same_refusal_when_it_is_asked_for_again(
    store: Store,
) -> None:
    """A deferred answer is no decision: what stood in the way may be gone by then."""
    payloads = [store._payload(CONFLICT) for _ in range(4)]
    first = store.engine.process([("hot", payload) for payload in payloads])[0]
    assert type(protocol.decode_reply(first[3][1])[1].error) is TooManyInFlight
    store.ask(("x", Transact((), (Put("big/1", bytes(9)),))))
    again = store.engine.process([("hot", payloads[3])])[0]
    error = protocol.decode_reply(again[0][1])[1].error
    assert type(error) is Conflict
    assert error.details["revision"] == 1, "as it was decided first"


def test_clients_ask_again_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "BATCH_ANSWER_BYTES", 5 * PAGE)

    async def work() -> None:
        async with await ckptmesh.connect_async("memory://") as mesh:
            await mesh.commit("big", bytes(PAGE))
            found = await asyncio.gather(*(mesh.get("big") for _ in range(60)))
            assert {len(each.value) for each in found if each} == {PAGE}
            assert len(found) == 60
            assert mesh.stats()["retries"] > 0, "nothing was deferred: nothing was shown"

    asyncio.run(work())
