"""The watch's shells over a real engine and a real publication socket that the tests can starve."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from ckptmesh import commands, protocol, publications, sockets, values
from ckptmesh.api import Api
from ckptmesh.errors import (
    Closed,
    Compacted,
    DataLoss,
    Error,
    InvalidKey,
    InvalidPayload,
    Misuse,
    OtherStore,
    Unavailable,
)
from ckptmesh.feed import WatchSource
from ckptmesh.messages import Command, Delete, Open, Publication, Put, Reply, Touch, Transact
from ckptmesh.opening import open_engine
from ckptmesh.views import Checkpoint, Event, Mark, Receipt
from ckptmesh.watch import AsyncWatch, Watch
from tests.integration.peers import short_folder, until


class Stand:
    """A store in this process: an engine in memory and, if `publishing`, its XPUB."""

    def __init__(self, folder: Path, publishing: bool) -> None:
        self.engine: Any = open_engine(None)
        self.engine.serve()
        self.uuid = self.engine.state.uuid
        self.context = sockets.context()
        self.number = 0
        self.asked: list[Command] = []
        self.away = False
        self.xpub: Any = None
        self.topics: set[bytes] = set()
        if publishing:
            self.xpub = sockets.store_publications(self.context)
            self.bound = sockets.bind(self.xpub, f"ipc://{folder}/pub")
            self.engine.machine.publish = self.bound.url
        self.session = self.call(Open("test")).result.session

    def call(self, command: Command, session: bytes = b"", number: int = 0) -> Reply:
        op, body = commands.pack_command(command)
        stamp = (self.uuid, self.engine.state.epoch) if session else (b"", 0)
        payload = protocol.encode_request(op, body, session=session, number=number, low=number,
                                          uuid=stamp[0], epoch=stamp[1])
        replies, publications = self.engine.process([(None, payload)])
        self.made: list[Publication] = publications
        reply: Reply = protocol.decode_reply(replies[0][1])[1]
        if reply.error is not None:
            raise reply.error
        return reply

    def commit(self, *mutations: Any, lose: bool = False) -> int:
        """Commit puts of these keys (or these mutations) and publish, unless it gets lost."""
        wanted = tuple(Put(m, values.pack(m)) if isinstance(m, str) else m for m in mutations)
        self.number += 1
        outcome = self.call(Transact((), wanted), self.session, self.number).result
        if not lose:
            self.publish(*self.made)
        return int(outcome.revision)

    def publish(self, *messages: Any) -> None:
        if self.xpub is not None:
            for message in messages:
                assert sockets.send(self.xpub, (publications.encode_publication(message),))

    def beat(self) -> None:
        self.publish(self.engine.heartbeat())

    def ask(self, command: Command, timeout: float) -> tuple[Any, int]:
        self.asked.append(command)
        if self.away:
            raise Unavailable("no store")
        reply = self.call(command)
        return reply.result, reply.epoch

    async def ask_async(self, command: Command, timeout: float) -> tuple[Any, int]:
        await asyncio.sleep(0)
        return self.ask(command, timeout)

    def subscribed(self, *topics: bytes) -> None:
        """Wait until these subscriptions have arrived."""
        def arrived() -> bool:
            for on, topic in sockets.subscription_changes(self.xpub)[0]:
                (self.topics.add if on else self.topics.discard)(topic)
            return set(topics) <= self.topics

        until(arrived, f"{topics} are subscribed")

    def close(self) -> None:
        if self.xpub is not None:
            self.xpub.close()
            self.bound.release()
        self.context.term()
        self.engine.close()


class Driven:
    """An `AsyncWatch` that a test calls as it calls a `Watch`."""

    def __init__(self, source: WatchSource, *args: Any, **named: Any) -> None:
        self.loop = asyncio.new_event_loop()
        self.inner = AsyncWatch(source, *args, **named)
        try:
            self.loop.run_until_complete(self.inner.__aenter__())
        except BaseException:
            self.loop.close()
            raise

    @property
    def stats(self) -> Any:
        return self.inner.stats

    def get(self, timeout: Any = None) -> Event | None:
        return self.loop.run_until_complete(self.inner.get(timeout))

    def __iter__(self) -> Iterator[Event]:
        while True:
            try:
                yield self.loop.run_until_complete(self.inner.__anext__())
            except StopAsyncIteration:
                return

    def close(self) -> None:
        if not self.loop.is_closed():
            self.loop.run_until_complete(self.inner.close())
            self.loop.close()


@pytest.fixture(params=["subscribed", "asking"])
def stand(request: Any) -> Iterator[Stand]:
    with short_folder() as folder:
        made = Stand(folder, request.param == "subscribed")
        yield made
        made.close()


@pytest.fixture
def short_queues(monkeypatch: Any) -> None:
    """Queues of 100 messages on both ends; has to come before the fixture that makes them."""
    monkeypatch.setattr(sockets, "PUBLISH_QUEUE", 100)


@pytest.fixture
def publishing() -> Iterator[Stand]:
    with short_folder() as folder:
        made = Stand(folder, True)
        yield made
        made.close()


@pytest.fixture(params=["sync", "async"])
def watch(request: Any) -> Iterator[Any]:
    """Makes watches of one kind on a stand; closes them in the end."""
    made: list[Any] = []

    def make(stand: Stand, key: str = "orders", *, prefix: str = "", **named: Any) -> Any:
        plain = request.param == "sync"
        source = WatchSource(
            stand.ask if plain else stand.ask_async, Api(prefix), "ipc:///nowhere",
            (lambda: stand.context) if stand.xpub is not None else None,
            None if stand.xpub is not None else stand.engine.subscribe)
        made.append((Watch if plain else Driven)(source, key, **named))
        return made[-1]

    yield make
    for one in made:
        one.close()


def keys(events: list[Event | None]) -> list[str]:
    return [event.key for event in events if event is not None]


def test_events_come_in_order_with_all_that_they_tell(stand: Stand, watch: Any) -> None:
    events = watch(stand)
    stand.commit(Put("orders/1", values.pack({"n": 1}), ttl=60_000_000, position=7))
    stand.commit("other")
    stand.commit(Touch("orders/1", 90_000_000), "orders/2")
    stand.commit(Delete("orders/1"))
    stand.beat()
    got = [events.get(5) for _ in range(4)]
    assert [(e.kind, e.key, e.revision, e.resume) for e in got] == [
        ("put", "orders/1", 1, Mark(1, 0)), ("touch", "orders/1", 3, Mark(3, 0)),
        ("put", "orders/2", 3, Mark(3, 1)), ("delete", "orders/1", 4, Mark(4, 0))]
    put, touch, _, delete = got
    assert put.checkpoint.value == {"n": 1}
    assert (put.checkpoint.position, put.checkpoint.revision, put.checkpoint.version) == (7, 1, 1)
    assert put.time == put.checkpoint.time
    assert touch.checkpoint.expires_at - touch.time == timedelta(seconds=90)
    assert delete.checkpoint is None
    assert events.get(0) is None


def test_a_watch_begins_now_unless_told_otherwise(stand: Stand, watch: Any) -> None:
    stand.commit("orders/old")
    events = watch(stand)
    stand.commit("orders/new")
    stand.beat()
    assert events.get(5).key == "orders/new"


@pytest.mark.parametrize("since", ["number", "mark", "receipt", "checkpoint", "event"])
def test_a_watch_begins_after_whatever_it_is_given(stand: Stand, watch: Any, since: str) -> None:
    stand.commit("orders/a", "orders/b")
    stand.commit("orders/c")
    mark = {
        "number": 1, "mark": Mark(1, 0), "receipt": Receipt("orders/b", 1, 1, 1, 1),
        "checkpoint": Checkpoint("orders/b", 0, 1, 1, 1, 1, 1),
        "event": Event("put", "orders/a", None, 1, 1, 1, Mark(1, 0)),
    }[since]
    events = watch(stand, since=mark)
    expected = ["orders/b", "orders/c"] if since in ("mark", "event") else ["orders/c"]
    assert keys([events.get(5) for _ in expected]) == expected
    assert events.get(0) is None


@pytest.mark.parametrize("since", [True, -1, "1", 1.5])
def test_a_start_that_is_no_place_in_the_order_is_refused(
    publishing: Stand, watch: Any, since: Any,
) -> None:
    with pytest.raises(Misuse, match="since is a"):
        watch(publishing, since=since)


def test_only_a_prefix_can_be_watched(publishing: Stand, watch: Any) -> None:
    with pytest.raises(InvalidKey):
        watch(publishing, "orders/")


def test_a_watch_on_everything_sees_each_revision_whole(stand: Stand, watch: Any) -> None:
    events = watch(stand, "")
    stand.commit("a/1", "b/1", "a/2")
    stand.commit("c")
    stand.beat()
    assert keys([events.get(5) for _ in range(4)]) == ["a/1", "b/1", "a/2", "c"]


def test_keys_come_without_the_clients_own_prefix(stand: Stand, watch: Any) -> None:
    events = watch(stand, "orders", prefix="team")
    everything = watch(stand, "", prefix="team")
    stand.commit("team/orders/1", "team/other", "orders/2")
    stand.beat()
    assert events.get(5).key == "orders/1"
    assert keys([everything.get(5), everything.get(5)]) == ["orders/1", "other"]
    assert events.get(0) is everything.get(0) is None


@pytest.mark.fault(35)
def test_lost_publications_are_asked_for_and_nothing_comes_twice(
    publishing: Stand, watch: Any,
) -> None:
    events = watch(publishing)
    assert events.get(0) is None
    publishing.subscribed(publications.topic_of("orders"), publications.HEARTBEAT_TOPIC)
    for i in range(30):
        publishing.commit(f"orders/{i}", lose=i % 3 != 0)
        if i % 6 == 0:
            publishing.publish(*publishing.made)  # a second time
    publishing.beat()
    assert keys([events.get(5) for _ in range(30)]) == [f"orders/{i}" for i in range(30)]
    assert events.get(0.05) is None
    assert events.stats.gaps > 0


def test_without_losses_a_watch_asks_once(publishing: Stand, watch: Any) -> None:
    events = [watch(publishing) for _ in range(20)]
    for one in events:
        assert one.get(0) is None
    publishing.subscribed(publications.topic_of("orders"), publications.HEARTBEAT_TOPIC)
    time.sleep(0.1)  # one arrived; the others of the same topic are not told to the publisher
    for i in range(20):
        publishing.commit(f"orders/{i}")
        publishing.commit("other")
        publishing.beat()
    for one in events:
        assert keys([one.get(5) for _ in range(20)]) == [f"orders/{i}" for i in range(20)]
        assert one.get(0.02) is None
        assert (one.stats.since_requests, one.stats.gaps, one.stats.sockets) == (1, 0, 1)


@pytest.mark.fault(35)
def test_a_reader_slower_than_its_queue_still_sees_everything_once(
    short_queues: None, publishing: Stand, watch: Any,
) -> None:
    events = watch(publishing)
    assert events.get(0) is None
    publishing.subscribed(publications.topic_of("orders"), publications.HEARTBEAT_TOPIC)
    body = values.pack(b"x" * 4_096)
    for i in range(3_000):
        publishing.commit(Put(f"orders/{i}", body))
    seen = []
    while len(seen) < 3_000:
        publishing.beat()
        event = events.get(5)
        assert event is not None
        seen.append(event.key)
    assert seen == [f"orders/{i}" for i in range(3_000)]
    assert events.stats.gaps > 0, "nothing was lost: this test has proved nothing"


def test_silence_brings_a_new_socket_and_what_was_missed(
    publishing: Stand, watch: Any, monkeypatch: Any,
) -> None:
    monkeypatch.setattr("ckptmesh.watching.HEARTBEAT_LOST", 0.2)
    events = watch(publishing)
    assert events.get(0) is None
    publishing.commit("orders/lost", lose=True)
    assert events.get(5).key == "orders/lost"  # no heartbeat tells of it
    assert events.stats.sockets == 2


def test_a_store_that_is_away_is_waited_for(
    stand: Stand, watch: Any, monkeypatch: Any,
) -> None:
    monkeypatch.setattr("ckptmesh.feed.ASK_AGAIN", 0.02)
    events = watch(stand)
    stand.away = True
    stand.commit("orders/1", lose=True)
    assert events.get(0.1) is None
    assert len(stand.asked) > 2
    stand.away = False
    assert events.get(5).key == "orders/1"


def test_a_start_that_is_compacted_tells_from_where_to_go_on(stand: Stand, watch: Any) -> None:
    stand.engine.state.settings["history_revisions"] = 10
    for i in range(40):
        stand.commit(f"orders/{i}")
    events = watch(stand, since=1)
    for _ in range(2):
        with pytest.raises(Compacted) as caught:
            events.get(5)
    again = watch(stand, since=caught.value.resume_from)
    first = again.get(5)
    assert first.revision == caught.value.resume_from + 1
    rest = [again.get(5).revision for _ in range(40 - first.revision)]
    assert rest == list(range(first.revision + 1, 41))


def test_a_start_beyond_the_head_is_data_loss(stand: Stand, watch: Any) -> None:
    with pytest.raises(DataLoss):
        watch(stand, since=5).get(5)


def test_another_store_ends_the_watch(publishing: Stand, watch: Any) -> None:
    events = watch(publishing)
    assert events.get(0) is None
    publishing.subscribed(publications.topic_of("orders"), publications.HEARTBEAT_TOPIC)
    publishing.publish(publishing.engine.heartbeat()._replace(uuid=b"x" * 16))
    for _ in range(2):
        with pytest.raises(OtherStore):
            events.get(5)


def test_a_value_that_cannot_be_read_raises_once_and_the_watch_goes_on(
    stand: Stand, watch: Any,
) -> None:
    events = watch(stand)
    stand.commit(Put("orders/bad", b"\xc1"), "orders/good")
    stand.beat()
    with pytest.raises(InvalidPayload, match="orders/bad") as caught:
        events.get(5)
    assert caught.value.details["resume"] == Mark(1, 0)
    assert events.get(5).key == "orders/good"


@pytest.mark.fault(45)
def test_a_publication_that_cannot_be_read_is_dropped_and_made_up_for(
    publishing: Stand, watch: Any,
) -> None:
    events = watch(publishing)
    assert events.get(0) is None
    publishing.subscribed(publications.topic_of("orders"), publications.HEARTBEAT_TOPIC)
    publishing.commit("orders/1", lose=True)
    for frames in ((b"orders/\0\xc1",), (b"orders/\0",), (b"orders/",), (b"orders/\0", b"two")):
        assert sockets.send(publishing.xpub, frames)
    publishing.commit("orders/2")
    assert keys([events.get(5), events.get(5)]) == ["orders/1", "orders/2"]
    assert events.stats.malformed == 3


def test_an_iteration_ends_when_the_watch_is_closed_from_elsewhere(stand: Stand) -> None:
    source = WatchSource(stand.ask, Api(None), "ipc:///nowhere",
                    (lambda: stand.context) if stand.xpub is not None else None)
    events = Watch(source, "orders")
    seen: list[str] = []
    reader = threading.Thread(target=lambda: seen.extend(event.key for event in events))
    reader.start()
    stand_lock = time.monotonic()
    events.close()
    reader.join(5)
    assert not reader.is_alive()
    assert time.monotonic() - stand_lock < 2
    assert seen == []
    with pytest.raises(Closed):
        events.get(0)
    events.close()


def test_an_async_iteration_ends_when_the_watch_is_closed(stand: Stand) -> None:
    source = WatchSource(stand.ask_async, Api(None), "ipc:///nowhere",
                    (lambda: stand.context) if stand.xpub is not None else None)

    async def run() -> list[str]:
        async with AsyncWatch(source, "orders") as events:
            stand.commit("orders/1")

            async def read() -> list[str]:
                return [event.key async for event in events]

            reader = asyncio.create_task(read())
            await asyncio.sleep(0.05)
            await events.close()
            return await asyncio.wait_for(reader, 5)

    assert asyncio.run(run()) == ["orders/1"]


def test_a_cancelled_get_loses_nothing(publishing: Stand) -> None:
    source = WatchSource(publishing.ask_async, Api(None), "ipc:///nowhere",
                         lambda: publishing.context)

    async def run() -> list[str]:
        async with AsyncWatch(source, "orders") as events:
            found = []
            for i in range(50):
                publishing.commit(f"orders/{i}", lose=i % 2 == 0)
                publishing.beat()
                waiting = asyncio.create_task(events.get())
                for _ in range(i % 7):
                    await asyncio.sleep(0)
                if not waiting.cancel():
                    found.append((await waiting).key)
                else:
                    with contextlib.suppress(asyncio.CancelledError):
                        found.append((await waiting).key)
            while (event := await events.get(0.5)) is not None:
                found.append(event.key)
            return found

    assert asyncio.run(run()) == [f"orders/{i}" for i in range(50)]


def test_an_async_watch_that_nobody_reads_costs_no_turns(publishing: Stand) -> None:
    source = WatchSource(publishing.ask_async, Api(None), "ipc:///nowhere",
                         lambda: publishing.context)

    async def run() -> float:
        async with AsyncWatch(source, "orders") as events:
            assert await events.get(0) is None
            publishing.subscribed(publications.topic_of("orders"))
            publishing.commit("orders/1")
            began = time.process_time()
            await asyncio.sleep(0.3)
            spent = time.process_time() - began
            event = await events.get(5)
            assert event is not None
            return spent

    assert asyncio.run(run()) < 0.15


def test_a_watch_in_a_forked_child_is_refused(publishing: Stand, monkeypatch: Any) -> None:
    source = WatchSource(publishing.ask, Api(None), "ipc:///nowhere", lambda: publishing.context)
    with Watch(source, "orders") as events:
        monkeypatch.setattr(events._owner, "_pid", -1)
        with pytest.raises(Closed, match="fork"):
            events.get(0)


def test_a_failure_to_begin_leaves_nothing_open(publishing: Stand) -> None:
    def refuse(command: Command, timeout: float) -> Any:
        raise Unavailable("no broker")

    with pytest.raises(Unavailable):
        Watch(WatchSource(refuse, Api(None)), "orders")
    assert issubclass(Unavailable, Error)


def test_an_embedded_store_wakes_its_watches_at_once(
    watch: Any, monkeypatch: Any,
) -> None:
    monkeypatch.setattr("ckptmesh.feed.POLL", 60.0)
    with short_folder() as folder:
        stand = Stand(folder, False)
        events = watch(stand)
        threading.Timer(0.05, lambda: stand.commit("orders/1")).start()
        began = time.monotonic()
        assert events.get(10).key == "orders/1"
        assert time.monotonic() - began < 5
        stand.close()
