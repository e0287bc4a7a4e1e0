"""The broker in this process: both paths, with a store, without one, with two, with bad guests."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgpack
import pytest

from ckptmesh import bundles, commands, protocol, sockets
from ckptmesh.config import BrokerConfig
from ckptmesh.errors import AddressInUse, Unavailable
from ckptmesh.limits import MIB, SOCKET_BYTES
from ckptmesh.messages import BrokerBeat, Put, Transact
from ckptmesh.publications import ANNOUNCE, BROKER_TOPIC, decode_publications
from tests.integration.peers import (
    Client,
    EchoStore,
    RunningBroker,
    Watcher,
    hello,
    reply_of,
    settings,
    short_folder,
    until,
)


@pytest.fixture
def folder() -> Iterator[Path]:
    with short_folder() as path:
        yield path


@pytest.fixture
def config(folder: Path) -> BrokerConfig:
    return settings(folder)


def connected(broker: RunningBroker, stores: int = 1) -> None:
    until(lambda: broker.broker._seen_stores == stores, f"{stores} stores are seen")


def beat_of(watcher: Watcher) -> BrokerBeat:
    [beat] = decode_publications(watcher.next())
    assert isinstance(beat, BrokerBeat)
    return beat


def test_requests_and_replies_pass_both_ways_to_whom_they_belong(config: BrokerConfig) -> None:
    with RunningBroker(config) as broker, EchoStore(config):
        connected(broker)
        with Client(config.bind) as one, Client(config.bind) as other:
            for n in range(50):
                one.send(b"one %d" % n)
                other.send(b"other %d" % n)
            assert [one.answer() for _ in range(50)] == [b"echoone %d" % n for n in range(50)]
            assert [other.answer() for _ in range(50)] == [b"echoother %d" % n for n in range(50)]


def test_publications_reach_those_who_subscribed(config: BrokerConfig) -> None:
    with RunningBroker(config), EchoStore(config) as store:
        with Watcher(config.publish, b"orders/") as some, Watcher(config.publish, b"") as every:
            until(lambda: {b"orders/", b""} <= store.topics, "the store knows both")
            store.publish(b"other/\0x")
            store.publish(b"orders/\0y")
            assert some.next() == b"orders/\0y"
            got = [every.next() for _ in range(2)]
            assert [frame for frame in got if not frame.startswith(b"_")] == [
                b"other/\0x", b"orders/\0y",
            ][: len(got)]
        until(lambda: b"orders/" not in store.topics, "the store hears that nobody subscribes")


def test_without_a_store_every_request_is_answered_unavailable_at_once(
    config: BrokerConfig,
) -> None:
    with RunningBroker(config), Client(config.bind) as client:
        began = time.monotonic()
        for number in range(1, 101):
            reply = reply_of(client.ask(hello(number)))
            assert isinstance(reply.error, Unavailable)
            assert (reply.number, reply.epoch, reply.session) == (number, 0, b"")
        assert "broker is up, but no store" in str(reply.error)
        assert time.monotonic() - began < 2.0


def test_without_a_store_each_request_of_a_bundle_is_answered(config: BrokerConfig) -> None:
    body = commands.pack_command(Transact((), (Put("k", b"v"),)))[1]
    bundle = msgpack.packb((1, bundles.BUNDLE, b"s" * 16, 5, 1, b"", 1, [body] * 3))
    with RunningBroker(config), Client(config.bind) as client:
        client.send(bundle)
        replies = [protocol.decode_reply(client.answer()) for _ in range(3)]
        assert [(op, reply.number) for op, reply in replies] == [
            (commands.OPS.index(Transact), n) for n in (5, 6, 7)]
        assert all(isinstance(reply.error, Unavailable) for _, reply in replies)


def test_a_malformed_request_without_a_store_disturbs_nobody(config: BrokerConfig) -> None:
    with RunningBroker(config), Client(config.bind) as client:
        for bad in (b"", b"\xc1", b"\x97", bytes(100_000), hello(1)[:-1]):
            client.send(bad)
        assert reply_of(client.ask(hello(7))).number == 7


@pytest.mark.fault(7)
def test_a_store_comes_goes_and_comes_back(config: BrokerConfig) -> None:
    with RunningBroker(config) as broker, Client(config.bind) as client:
        for turn in range(3):
            assert isinstance(reply_of(client.ask(hello(turn))).error, Unavailable)
            with EchoStore(config):
                connected(broker)
                for n in range(20):
                    assert client.ask(b"%d" % n) == b"echo%d" % n
            connected(broker, 0)
        assert isinstance(reply_of(client.ask(hello(9))).error, Unavailable)


def test_what_waited_without_a_store_never_reaches_the_next_one(config: BrokerConfig) -> None:
    with RunningBroker(config) as broker, Client(config.bind) as client:
        for number in range(500):
            client.send(hello(number))
        for number in range(500):
            assert reply_of(client.answer()).number == number
        with EchoStore(config) as store:
            connected(broker)
            assert client.ask(b"new") == b"echonew"
            assert store.seen == [b"new"]


@pytest.mark.fault(33)
def test_a_connection_that_never_speaks_is_no_store(config: BrokerConfig) -> None:
    with RunningBroker(config) as broker, Client(config.bind) as client:
        silent = socket.socket(socket.AF_UNIX)
        silent.connect(config.backend.removeprefix("ipc://"))
        rude = socket.socket(socket.AF_UNIX)
        rude.connect(config.backend.removeprefix("ipc://"))
        rude.sendall(b"GET / HTTP/1.0\r\n\r\n" * 10)
        rude.close()
        time.sleep(0.1)
        for number in range(10):
            assert isinstance(reply_of(client.ask(hello(number))).error, Unavailable)
        with EchoStore(config):
            connected(broker)
            for _ in range(10):
                assert client.ask(b"x") == b"echox"
            silent.close()
            assert client.ask(b"y") == b"echoy"
            assert broker.broker._seen_stores == 1
        connected(broker, 0)
        assert isinstance(reply_of(client.ask(hello(2))).error, Unavailable)


def test_a_stranger_at_the_public_addresses_disturbs_nobody(config: BrokerConfig) -> None:
    with RunningBroker(config) as broker, EchoStore(config), Client(config.bind) as client:
        connected(broker)
        strangers = []
        half_greeting = b"\xff" + bytes(8) + b"\x7f\x03"
        for url in (config.bind, config.publish):
            for words in (b"GET / HTTP/1.0\r\n\r\n" * 9, half_greeting, bytes(99)):
                stranger = socket.socket(socket.AF_UNIX)
                stranger.connect(url.removeprefix("ipc://"))
                stranger.sendall(words)
                strangers.append(stranger)
        for n in range(20):
            assert client.ask(b"%d" % n) == b"echo%d" % n
        for stranger in strangers:
            stranger.close()
        assert client.ask(b"x") == b"echox"


def test_two_stores_are_told_as_unhealthy(config: BrokerConfig) -> None:
    with RunningBroker(config) as broker, Watcher(config.publish, BROKER_TOPIC) as monitor:
        assert beat_of(monitor).stores == 0
        with EchoStore(config):
            connected(broker)
            with EchoStore(config, b"second"):
                connected(broker, 2)
                assert broker.told("UNHEALTHY: 2 stores")
                until(lambda: beat_of(monitor).stores == 2, "the beat tells two stores")
            connected(broker, 1)
            assert broker.told("healthy again")
            until(lambda: beat_of(monitor).stores == 1, "the beat tells one store")


def test_the_beat_counts_clients(config: BrokerConfig) -> None:
    with RunningBroker(config), Watcher(config.publish, BROKER_TOPIC) as monitor:
        with Client(config.bind), Client(config.bind):
            until(lambda: beat_of(monitor).clients == 2, "two clients are told")
        until(lambda: beat_of(monitor).clients == 0, "none is told")


def test_every_store_learns_the_publication_address_and_a_restarted_one_again(
    folder: Path,
) -> None:
    config = replace(settings(folder), publish="tcp://127.0.0.1:*")
    with RunningBroker(config) as broker:
        expected = ANNOUNCE + broker.broker.publish_url.encode()
        assert not expected.endswith(b"*")
        for _ in range(3):
            with EchoStore(config) as store:
                until(lambda s=store: expected in s.topics, "the store heard the address")


@pytest.mark.fault(37)
def test_a_restarted_broker_gets_its_store_clients_and_subscriptions_back(
    config: BrokerConfig,
) -> None:
    with (
        EchoStore(config) as store,
        Watcher(config.publish, b"orders/") as watcher,
    ):
        first = RunningBroker(config)
        with Client(config.bind) as client:
            connected(first)
            assert client.ask(b"1") == b"echo1"
            until(lambda: b"orders/" in store.topics, "the store knows the watcher")
            first.stop()
            until(lambda: not store.topics, "the store forgot what came through the old broker")
            with RunningBroker(config) as second:
                connected(second)
                until(lambda: sockets.writable(client.socket), "the client is connected again")
                assert client.ask(b"2") == b"echo2"
                until(
                    # A SUB subscribes again when its thread touches it, as a watcher's does.
                    lambda: sockets.readable(watcher.socket) or b"orders/" in store.topics,
                    "the store knows the watcher again",
                )
                store.publish(b"orders/\0z")
                assert watcher.next() == b"orders/\0z"
                assert ANNOUNCE + config.publish.encode() in store.topics


@pytest.mark.fault(37)
def test_five_thousand_subscriptions_are_alive_again_after_the_store_restarts(
    config: BrokerConfig,
) -> None:
    topics = [b"pipeline-%d/" % n for n in range(5_000)]
    with RunningBroker(config), Watcher(config.publish, *topics) as watcher:
        for turn in range(2):
            with EchoStore(config) as store:
                until(lambda s=store: set(topics) <= s.topics, "all 5,000 arrived")
                for topic in topics:
                    store.publish(topic + b"\0%d" % turn)
                assert {watcher.next() for _ in topics} == {t + b"\0%d" % turn for t in topics}


@pytest.mark.fault(50)
def test_a_bomb_of_many_frames_ends_neither_proxy_nor_store(config: BrokerConfig) -> None:
    with RunningBroker(config) as broker, Client(config.bind) as good, Client(config.bind) as bad:
        bomb = [b"x" * 1_000] * 20_000
        bad.socket.send_multipart(bomb)  # to the stand-in
        assert reply_of(good.ask(hello(1))).number == 1
        until(lambda: broker.broker._no_store.dropped == 1, "the stand-in dropped it")
        with EchoStore(config) as store:
            connected(broker)
            bad.socket.send_multipart(bomb)
            bad.socket.send_multipart([b"", b"two frames"])
            assert good.ask(b"still here") == b"echostill here"
            until(lambda: store.dropped == 2, "the store dropped both")
            assert store.seen == [b"still here"]


@pytest.mark.fault(50)
def test_an_oversized_frame_cuts_off_its_sender_alone(config: BrokerConfig) -> None:
    with (
        RunningBroker(config) as broker, EchoStore(config) as store,
        Client(config.bind) as good, Client(config.bind) as bad,
    ):
        connected(broker)
        bad.send(bytes(SOCKET_BYTES + 1))
        assert good.ask(b"a") == b"echoa"
        big = bytes(16 * MIB)
        assert good.ask(big) == b"echo" + big
        assert (store.seen, store.dropped) == ([b"a", big], 0)
        until(lambda: sockets.writable(bad.socket), "the sender may come back")
        assert bad.ask(b"b") == b"echob"


def test_messages_of_a_hostile_subscriber_do_not_end_the_publications(
    config: BrokerConfig,
) -> None:
    ctx = sockets.context()
    with RunningBroker(config), EchoStore(config) as store, Watcher(config.publish, b"a/") as good:
        hostile = sockets.publications_backend(ctx)  # an XSUB may send anything upstream
        sockets.connect(hostile, config.publish)
        until(lambda: sockets.send(hostile, [b"\1" + bytes(100_000)]), "connected")
        for frames in ([b""], [b"\2x"], [b"\1a/", b"more", b""], [b"\0never subscribed"]):
            assert sockets.send(hostile, frames)
        until(lambda: b"a/" in store.topics and bytes(100_000) in store.topics, "all arrived")
        store.publish(b"a/\0x")
        assert good.next() == b"a/\0x"
        hostile.close(0)
    ctx.term()


@pytest.mark.fault(39)
def test_a_reply_to_a_client_that_left_is_dropped_and_the_proxy_goes_on(
    config: BrokerConfig,
) -> None:
    with (
        RunningBroker(config) as broker, EchoStore(config) as store, Client(config.bind) as good,
    ):
        connected(broker)
        store.reading.clear()
        with Client(config.bind) as gone:
            until(lambda: broker.broker._clients.count == 2, "both are connected")
            for n in range(100):
                gone.send(b"%d" % n)
            until(lambda: sockets.writable(gone.socket), "all is sent")
            time.sleep(0.2)
        until(lambda: broker.broker._clients.count == 1, "one has left")
        store.reading.set()
        assert good.ask(b"here") == b"echohere"
        assert b"99" in store.seen


def test_a_client_that_does_not_read_stops_nobody(config: BrokerConfig) -> None:
    with RunningBroker(config) as broker, EchoStore(config):
        connected(broker)
        with Client(config.bind) as lazy, Client(config.bind) as good:
            for _ in range(3_000):
                lazy.send(bytes(10_000))
            began = time.monotonic()
            assert good.ask(b"x") == b"echox"
            assert time.monotonic() - began < 5.0


def test_a_second_broker_on_the_same_addresses_is_refused_and_the_first_goes_on(
    config: BrokerConfig,
) -> None:
    from ckptmesh.broker import Broker

    with RunningBroker(config) as broker, EchoStore(config), Client(config.bind) as client:
        connected(broker)
        with pytest.raises(AddressInUse):
            Broker(config, tell=print).run()
        assert client.ask(b"x") == b"echox"
        with Client(config.bind) as late:
            assert late.ask(b"y") == b"echoy"


def test_stopping_takes_less_than_a_second_with_everybody_connected(config: BrokerConfig) -> None:
    broker = RunningBroker(config)
    with EchoStore(config), Client(config.bind) as client, Watcher(config.publish, b""):
        connected(broker)
        for n in range(1_000):
            client.send(b"%d" % n)
        assert broker.stop() < 1.0
