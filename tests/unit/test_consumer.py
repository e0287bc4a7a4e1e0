"""Write, then acknowledge: nothing is acknowledged before the offset that covers it is stored.

Every flow runs through both shells, over a checkpoint store and over a plain storage.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptmesh.consumer import AsyncConsumer, Consumer, Delivery, Stored
from ckptmesh.errors import (
    Conflict,
    InvalidKey,
    InvalidPayload,
    LeaseLost,
    Misuse,
    OutcomeUnknown,
    OutOfSpace,
    Poisoned,
    Unavailable,
)
from ckptmesh.views import Checkpoint, Receipt

KEY = "orders/0"


class Mesh:
    """The two calls of a `StateBackend` that the helper makes, with a log of them."""

    capabilities = frozenset[str]()

    def __init__(self) -> None:
        self.log: list[Any] = []
        self.now: Checkpoint | None = None
        self.revision = 0
        self.fail: BaseException | None = None
        self.after: BaseException | None = None  # raised once the commit has taken effect

    def get(self, key: str) -> Checkpoint | None:
        self.log.append("get")
        return self.now

    def put(self, key: str, value: Any, *, position: int, expect: int) -> Receipt:
        self.log.append(("put", value, expect))
        if self.fail is not None:
            raise self.fail
        if expect != (self.now.revision if self.now else 0):
            raise Conflict("somebody else was first", key=key)
        receipt = self.put_by_hand(value, position)
        if self.after is not None:
            raise self.after
        return receipt

    def put_by_hand(self, value: Any, position: int | None = None) -> Receipt:
        self.revision += 1
        version = self.now.version + 1 if self.now else 1
        self.now = Checkpoint(KEY, value, self.revision, 1, version, 1, 1000 + self.revision,
                              position=position)
        return Receipt(KEY, self.revision, 1, version, 1000 + self.revision)

    def offset(self) -> Any:
        return self.now.value if self.now else 0


class Plain:
    """Any storage with `put` and `get`."""

    def __init__(self) -> None:
        self.log: list[Any] = []
        self.kept: dict[str, Any] = {}
        self.fail: BaseException | None = None
        self.after: BaseException | None = None
        self.answer: Any = True

    def get(self, key: str) -> Any:
        self.log.append("get")
        return self.kept.get(key)

    def put(self, key: str, value: bytes) -> Any:
        self.log.append(("put", value))
        if self.fail is not None:
            raise self.fail
        if self.answer is True:
            self.kept[key] = value
        if self.after is not None:
            raise self.after
        return self.answer


class AsyncStorage:
    """The same storage behind coroutines."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.get, self.put = self._awaited(inner.get), self._awaited(inner.put)
        if hasattr(inner, "capabilities"):
            self.capabilities = inner.capabilities

    @staticmethod
    def _awaited(call: Callable[..., Any]) -> Callable[..., Any]:
        async def later(*args: Any, **named: Any) -> Any:
            await asyncio.sleep(0)
            return call(*args, **named)

        return later


class Driven:
    """An `AsyncConsumer` that a test calls as it calls a `Consumer`."""

    def __init__(self, storage: Any, key: str, ack: Any) -> None:
        async def later(ids: Any, receipt: Any) -> None:
            await asyncio.sleep(0)
            ack(ids, receipt)

        self.inner = AsyncConsumer(AsyncStorage(storage), key, ack=later)

    @property
    def offset(self) -> int:
        async def read() -> int:
            return await self.inner.offset

        return asyncio.run(read())

    @property
    def refusal(self) -> Any:
        return self.inner.refusal

    def process(self, batch: Any, handler: Any) -> bool:
        async def later(records: Any) -> None:
            await asyncio.sleep(0)
            handler(records)

        return asyncio.run(self.inner.process(batch, later))

    def acknowledge(self, batch: Any, receipt: Any) -> None:
        asyncio.run(self.inner.acknowledge(batch, receipt))


class Bench:
    """A storage, a consumer on it, and what the source and the handler were told."""

    def __init__(self, storage: Any, make: Any) -> None:
        self.storage = storage
        self.make = make
        self.acked: list[tuple[list[Any], Any]] = []
        self.handled: list[Any] = []
        self.ack_fails: BaseException | None = None
        self.consumer = self.fresh()

    def fresh(self) -> Any:
        return self.make(self.storage, KEY, ack=self.ack)

    def ack(self, ids: list[Any], receipt: Any) -> None:
        if self.ack_fails is not None:
            raise self.ack_fails
        self.storage.log.append("ack")
        self.acked.append((ids, receipt))

    def process(self, *offsets: int) -> bool:
        done: bool = self.consumer.process([(n, f"r{n}") for n in offsets], self.handle)
        return done

    def handle(self, records: list[Any]) -> None:
        self.storage.log.append("handle")
        self.handled += records


@pytest.fixture(params=[Mesh, Plain], ids=["mesh", "plain"])
def storage(request: Any) -> Any:
    return request.param()


@pytest.fixture(params=[Consumer, Driven], ids=["sync", "async"])
def bench(request: Any, storage: Any) -> Bench:
    return Bench(storage, request.param)


@pytest.fixture(params=[Consumer, Driven], ids=["sync", "async"])
def mesh(request: Any) -> Bench:
    return Bench(Mesh(), request.param)


@pytest.fixture(params=[Consumer, Driven], ids=["sync", "async"])
def plain(request: Any) -> Bench:
    return Bench(Plain(), request.param)


def test_the_offset_is_zero_when_there_is_none_and_reading_it_writes_nothing(bench: Bench) -> None:
    assert bench.consumer.offset == 0
    assert bench.storage.log == ["get"]


def test_a_batch_is_processed_then_committed_then_acknowledged(bench: Bench) -> None:
    assert bench.process(1, 2, 3) is True
    kinds = [entry if isinstance(entry, str) else entry[0] for entry in bench.storage.log]
    assert kinds == ["get", "handle", "put", "ack"]
    assert bench.handled == ["r1", "r2", "r3"]
    assert [ids for ids, _ in bench.acked] == [[1, 2, 3]]
    assert bench.consumer.offset == 3


def test_the_commit_is_made_under_the_revision_that_was_read(mesh: Bench) -> None:
    mesh.process(1)
    mesh.process(2)
    assert [entry for entry in mesh.storage.log if entry[0] == "put"] == [
        ("put", 1, 0), ("put", 2, 1)]


def test_ack_gets_the_receipt_of_that_very_commit(mesh: Bench) -> None:
    mesh.process(1, 2)
    mesh.process(3)
    assert mesh.acked[0][1] == Receipt(KEY, 1, 1, 1, 1001)
    assert mesh.acked[1][1] == Receipt(KEY, 2, 1, 2, 1002)


def test_a_plain_storage_that_says_true_gives_what_it_confirmed(plain: Bench) -> None:
    plain.process(1, 2)
    assert plain.acked == [([1, 2], Stored(KEY, 2))]
    assert plain.storage.kept[KEY] == b'{"offset": 2, "crc32": 450215437}'


def test_what_comes_again_is_acknowledged_without_being_processed(bench: Bench) -> None:
    bench.process(1, 2, 3)
    assert bench.process(2, 3, 4) is True
    assert bench.handled == ["r1", "r2", "r3", "r4"]
    assert bench.acked[1][0] == [2, 3, 4]


def test_a_batch_that_comes_again_whole_writes_nothing(bench: Bench) -> None:
    bench.process(1, 2)
    bench.storage.log.clear()
    bench.consumer = bench.fresh()  # a restarted worker
    assert bench.process(1, 2) is True
    assert bench.storage.log == ["get", "ack"]
    assert bench.acked[1] == bench.acked[0]  # the same receipt: of the commit that covers them


def test_a_record_twice_in_a_batch_is_processed_once_and_acknowledged_twice(bench: Bench) -> None:
    batch = [Delivery(1, "first", "tag-a"), Delivery(1, "again", "tag-b"),
             Delivery(2, "x", "tag-c")]
    assert bench.consumer.process(batch, bench.handle) is True
    assert bench.handled == ["first", "x"]
    assert bench.acked[0][0] == ["tag-a", "tag-b", "tag-c"]


def test_an_empty_batch_touches_nothing(bench: Bench) -> None:
    assert bench.process() is True
    assert bench.storage.log == []


def test_a_handler_that_raises_leaves_everything_as_it_was(bench: Bench) -> None:
    def broken(records: list[Any]) -> None:
        raise RuntimeError("bad record")

    with pytest.raises(RuntimeError, match="bad record"):
        bench.consumer.process([(1, "r1")], broken)
    assert bench.storage.log == ["get"]
    assert bench.acked == []
    assert bench.consumer.offset == 0


@pytest.mark.parametrize("error", [
    Conflict("first"), LeaseLost("gone"), OutOfSpace("full"), Unavailable("away")])
def test_a_commit_known_to_be_absent_gives_false_and_acknowledges_nothing(
    bench: Bench, error: Exception,
) -> None:
    bench.process(1)
    bench.storage.fail = error
    assert bench.process(1, 2) is False
    assert bench.consumer.refusal is error
    assert len(bench.acked) == 1
    assert bench.consumer.offset == 1
    bench.storage.fail = None
    assert bench.process(1, 2) is True
    assert bench.consumer.refusal is None
    assert bench.handled == ["r1", "r2", "r2"]


def test_a_worker_that_was_replaced_while_processing_acknowledges_nothing(mesh: Bench) -> None:
    def overtaken(records: list[Any]) -> None:
        mesh.storage.put_by_hand(9)

    assert mesh.consumer.process([(1, "r1")], overtaken) is False
    assert isinstance(mesh.consumer.refusal, Conflict)
    assert mesh.acked == []
    assert mesh.consumer.offset == 9


def test_a_put_that_says_false_gives_false_and_acknowledges_nothing(plain: Bench) -> None:
    plain.storage.answer = False
    assert plain.process(1) is False
    assert plain.consumer.refusal is None
    assert plain.acked == []
    assert plain.consumer.offset == 0


@pytest.mark.parametrize("answer", [None, 1, "ok", object()])
def test_a_put_that_says_neither_true_nor_false_is_misuse(plain: Bench, answer: Any) -> None:
    plain.storage.answer = answer
    with pytest.raises(Misuse, match="True or False"):
        plain.process(1)
    assert plain.acked == []


@pytest.mark.parametrize("landed", [True, False])
def test_an_unknown_outcome_is_raised_and_acknowledges_nothing(bench: Bench, landed: bool) -> None:
    error = OutcomeUnknown("no answer")
    bench.storage.after, bench.storage.fail = (error, None) if landed else (None, error)
    with pytest.raises(OutcomeUnknown):
        bench.process(1, 2)
    assert bench.acked == []
    bench.storage.after = bench.storage.fail = None
    assert bench.process(1, 2) is True  # delivered again
    assert bench.handled == ["r1", "r2"] * (1 if landed else 2)
    assert bench.acked[0][0] == [1, 2]


@pytest.mark.parametrize("error", [
    Poisoned("the log failed"), OSError("disk"), KeyboardInterrupt()])
def test_any_other_failure_of_the_write_goes_on_and_acknowledges_nothing(
    bench: Bench, error: BaseException,
) -> None:
    bench.storage.fail = error
    with pytest.raises(type(error)):
        bench.process(1)
    assert bench.acked == []


def test_an_ack_that_raises_leaves_the_offset_committed(bench: Bench) -> None:
    bench.ack_fails = OSError("queue away")
    with pytest.raises(OSError, match="queue away"):
        bench.process(1, 2)
    assert bench.consumer.offset == 2
    bench.ack_fails = None
    bench.consumer = bench.fresh()
    assert bench.process(1, 2) is True
    assert bench.handled == ["r1", "r2"]
    assert [ids for ids, _ in bench.acked] == [[1, 2]]


@pytest.mark.parametrize("receipt", [
    None, True, 2, (1, 1), Stored(KEY, 3), Receipt("orders/1", 1, 1, 1, 1001),
    Receipt(KEY, 2, 1, 1, 1002)])
def test_nothing_is_acknowledged_without_the_receipt_of_the_newest_commit(
    bench: Bench, receipt: Any,
) -> None:
    bench.process(1, 2)
    with pytest.raises(Misuse):
        bench.consumer.acknowledge([(1, None)], receipt)
    assert len(bench.acked) == 1


def test_a_receipt_acknowledges_no_more_than_its_commit_covers(bench: Bench) -> None:
    bench.process(1, 2)
    receipt = bench.acked[0][1]
    with pytest.raises(Misuse, match="stands at 2"):
        bench.consumer.acknowledge([(2, None), (3, None)], receipt)
    bench.consumer.acknowledge([(1, None)], receipt)
    assert bench.acked[1] == ([1], receipt)
    bench.process(3)
    with pytest.raises(Misuse, match="newest"):
        bench.consumer.acknowledge([(1, None)], receipt)


@pytest.mark.parametrize("result", [None, True, Receipt("orders/1", 1, 1, 1, 1)])
def test_a_store_that_returns_no_receipt_of_this_key_acknowledges_nothing(
    mesh: Bench, result: Any, monkeypatch: Any,
) -> None:
    monkeypatch.setattr(Mesh, "put", lambda *args, **named: result)
    consumer = mesh.fresh()
    with pytest.raises(Misuse, match="not the receipt"):
        consumer.process([(1, "r")], mesh.handle)
    assert mesh.acked == []


@pytest.mark.parametrize("damage", [
    b"", b"\xff\xfe", b"3", b"null", b"[]", b"{}", b'{"offset": 1}', b'{"offset": 4, "crc32": 1}',
    b'{"offset": 2, "crc32": 450215437, "x": 1}', b'{"offset": 3, "crc32": 450215437}',
    b'{"offset": "2", "crc32": 450215437}', b'{"offset": true, "crc32": 2212294583}', 7, [1],
    b"[" * 100_000])
def test_a_damaged_payload_is_a_clear_error(plain: Bench, damage: Any) -> None:
    plain.storage.kept[KEY] = damage
    with pytest.raises(InvalidPayload, match="orders/0") as caught:
        _ = plain.consumer.offset
    assert caught.value.details["key"] == KEY
    with pytest.raises(InvalidPayload):
        plain.process(1)
    assert (plain.handled, plain.acked, plain.storage.kept[KEY]) == ([], [], damage)


@pytest.mark.parametrize("damage", [None, "3", 3.0, True, -1, {"offset": 3}])
def test_a_checkpoint_that_is_not_an_offset_is_a_clear_error(mesh: Bench, damage: Any) -> None:
    mesh.storage.put_by_hand(damage)
    with pytest.raises(InvalidPayload, match="orders/0"):
        _ = mesh.consumer.offset
    with pytest.raises(InvalidPayload):
        mesh.process(1)
    assert (mesh.handled, mesh.acked) == ([], [])


def test_stored_bytes_that_are_no_value_at_all_name_the_key(mesh: Bench, monkeypatch: Any) -> None:
    def damaged(self: Any, key: str) -> Any:
        raise InvalidPayload("the stored bytes are not a value: NaN, at 0")

    monkeypatch.setattr(Mesh, "get", damaged)
    with pytest.raises(InvalidPayload, match="orders/0") as caught:
        _ = mesh.fresh().offset
    assert caught.value.details["key"] == KEY


@pytest.mark.parametrize(("offsets", "tip"), [
    ([0], "offset \\+ 1"), ([-1], "from 1"), ([True], "from 1"), ([1.0], "from 1"),
    ([2**63], "from 1"), ([2, 1], "in order")])
def test_offsets_that_would_lose_records_are_refused(
    bench: Bench, offsets: list[Any], tip: str,
) -> None:
    with pytest.raises(Misuse, match=tip):
        bench.process(*offsets)
    assert bench.storage.log == []


def test_a_coroutine_function_is_refused_by_the_plain_consumer() -> None:
    async def handler(records: Any) -> None: ...

    bench = Bench(Mesh(), Consumer)
    with pytest.raises(Misuse, match="AsyncConsumer"):
        bench.consumer.process([(1, "r")], handler)
    assert bench.acked == []


def test_the_key_is_checked_at_once() -> None:
    with pytest.raises(InvalidKey):
        Consumer(Mesh(), "/orders", ack=print)


FATES = st.sampled_from(["ok", "ok", "refused", "lost before", "lost after", "ack fails",
                         "handler fails", "restart"])


@given(st.lists(st.tuples(FATES, st.integers(1, 4)), max_size=30), st.booleans())
@settings(max_examples=200, deadline=None)
def test_whatever_fails_nothing_is_acknowledged_that_is_not_committed_and_nothing_is_skipped(
    steps: list[tuple[str, int]], over_mesh: bool,
) -> None:
    storage: Any = Mesh() if over_mesh else Plain()
    bench = Bench(storage, Consumer)
    acknowledged = 0
    for fate, size in steps:
        storage.fail = {"refused": OutOfSpace("full"), "lost before": OutcomeUnknown("?")}.get(fate)
        storage.after = OutcomeUnknown("?") if fate == "lost after" else None
        bench.ack_fails = OSError() if fate == "ack fails" else None
        if fate == "restart":
            bench.consumer = bench.fresh()
        handled, count = len(bench.handled), len(bench.acked)
        batch = [(n, n) for n in range(acknowledged + 1, acknowledged + size + 1)]
        try:
            if fate == "handler fails":
                done = bench.consumer.process(batch, lambda records: 1 / 0)
            else:
                done = bench.consumer.process(batch, bench.handle)
        except (OutcomeUnknown, OSError, ZeroDivisionError):
            done = False
        storage.fail = storage.after = bench.ack_fails = None
        committed = bench.fresh().offset
        if done:
            acknowledged += size
            assert bench.acked[-1][0] == [n for n, _ in batch]
        else:
            assert len(bench.acked) == count
        assert acknowledged <= committed
        assert bench.handled[handled:] == sorted(bench.handled[handled:])
    assert set(range(1, bench.fresh().offset + 1)) <= set(bench.handled)
