"""The helpers of sockets.py on real sockets: nothing blocks, nothing is stolen, nothing is lost."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckptmesh import sockets
from ckptmesh.errors import AddressInUse, InvalidUrl
from ckptmesh.limits import QUEUE
from ckptmesh.sockets import Context
from tests.integration.peers import WAIT, EchoStore, RunningBroker, settings, short_folder, until


@pytest.fixture
def ctx() -> Iterator[Context]:
    context = sockets.context()
    yield context
    context.destroy(linger=0)


def test_a_peer_that_does_not_read_is_counted_and_blocks_nobody(ctx: Context) -> None:
    router, lazy = sockets.store_requests(ctx), sockets.client_requests(ctx)
    where = sockets.bind(router, "tcp://127.0.0.1:*").url
    sockets.connect(lazy, where)
    until(lambda: sockets.send(lazy, [b"hello"]), "it is connected")
    assert sockets.poll([router], WAIT) == [router]
    frames = sockets.receive(router, 2)
    assert frames
    began, sent = time.monotonic(), 0
    while sent <= 10 * QUEUE and sockets.send(router, [frames[0], bytes(1_000)]):
        sent += 1
    assert QUEUE <= sent <= 10 * QUEUE, "a full queue refuses"
    assert time.monotonic() - began < WAIT


@pytest.mark.fault(39)
def test_a_reply_to_nobody_is_counted_and_not_fatal(ctx: Context) -> None:
    router = sockets.store_requests(ctx)
    sockets.bind(router, "tcp://127.0.0.1:*")
    assert not sockets.send(router, [b"\0nobody", b"reply"])


def test_a_request_is_not_queued_for_a_broker_that_is_not_there(ctx: Context) -> None:
    with short_folder() as folder:
        client = sockets.client_requests(ctx)
        sockets.connect(client, f"ipc://{folder}/x")
        assert not sockets.send(client, [b"late"])
        assert not sockets.writable(client)


def test_a_message_of_too_many_frames_or_bytes_is_read_away_whole(ctx: Context) -> None:
    router, client = sockets.store_requests(ctx), sockets.client_requests(ctx)
    sockets.connect(client, sockets.bind(router, "tcp://127.0.0.1:*").url)
    until(lambda: sockets.send(client, [b"1"]), "it is connected")
    for frames in ([b"a", b"b", b"c"], [bytes(9 << 20), bytes(9 << 20)], [b"2"]):
        assert sockets.send(client, frames)
    got: list[list[bytes]] = []
    while len(got) < 4:
        assert sockets.poll([router], WAIT), f"only {len(got)} came"
        got.append(sockets.receive(router, 3) or [])
    assert [frames[1:] for frames in got] == [[b"1"], [], [], [b"2"]]
    assert sockets.receive(router, 3) is None


@pytest.mark.fault(9)
def test_a_live_unix_address_is_not_stolen_and_a_dead_one_is_taken_over(ctx: Context) -> None:
    with short_folder() as folder:
        url = f"ipc://{folder}/x"
        first, second = sockets.broker_backend(ctx), sockets.broker_backend(ctx)
        bound = sockets.bind(first, url)
        with pytest.raises(AddressInUse) as caught:
            sockets.bind(second, url)
        assert caught.value.details["url"] == url
        assert Path(folder, "x").is_socket()
        first.close()
        bound.release()
        assert not Path(folder, "x").exists()
        Path(folder, "x.lock").unlink()  # nor does a lock file have to be there
        again = sockets.bind(second, url)
        second.close()
        again.release()


def test_a_file_that_is_no_socket_is_never_replaced(ctx: Context) -> None:
    with short_folder() as folder:
        Path(folder, "data").write_text("precious")
        with pytest.raises(InvalidUrl, match="no socket"):
            sockets.bind(sockets.broker_backend(ctx), f"ipc://{folder}/data")
        assert Path(folder, "data").read_text() == "precious"


def test_what_cannot_be_bound_or_dialled_says_why(ctx: Context) -> None:
    socket = sockets.broker_backend(ctx)
    for url in ("tcp://192.0.2.1:7701", "ipc:///no/such/folder/x", "tcp://no-such-host.invalid:1"):
        with pytest.raises(InvalidUrl, match="cannot bind"):
            sockets.bind(socket, url)
    for url in ("tcp://*:7701", "tcp://127.0.0.1:0", "ipc://*"):
        with pytest.raises(InvalidUrl, match="wildcard"):
            sockets.connect(socket, url)


def test_localhost_can_be_bound_by_its_name(ctx: Context) -> None:
    bound = sockets.bind(sockets.broker_frontend(ctx), "tcp://localhost:*")
    assert bound.url.startswith("tcp://127.0.0.1:")


def test_peers_counts_connections_of_a_client_too(ctx: Context) -> None:
    router, client = sockets.broker_frontend(ctx), sockets.client_requests(ctx)
    ours, theirs = sockets.Peers(ctx, client), sockets.Peers(ctx, router)
    sockets.connect(client, sockets.bind(router, "tcp://127.0.0.1:*").url)
    until(lambda: (ours.read(), theirs.read()) == (1, 1), "both see one peer")
    theirs.close()
    router.close()
    until(lambda: ours.read() == 0, "the client sees that nobody is there")
    ours.close()


def test_a_reply_that_waited_for_a_broker_that_is_gone_reaches_nobody_else(ctx: Context) -> None:
    with short_folder() as folder:
        config = settings(folder)
        with EchoStore(config) as store:
            first = RunningBroker(config)
            asking = [sockets.client_requests(ctx) for _ in range(50)]
            for client in asking:
                sockets.connect(client, config.bind)
            until(lambda: first.broker._seen_stores == 1, "the store is seen")
            store.reading.clear()
            for client in asking:
                until(lambda c=client: sockets.send(c, [b"old"]), "it is sent")
            time.sleep(0.2)  # so that all have passed the broker
            first.stop()
            for client in asking:
                client.close()
            store.reading.set()
            until(lambda: len(store.seen) == 50, "the store answers all")
            with RunningBroker(config) as second:
                fresh = [sockets.client_requests(ctx) for _ in range(50)]
                for client in fresh:
                    sockets.connect(client, config.bind)
                until(lambda: second.broker._seen_stores == 1, "the store is back")
                for client in fresh:
                    until(lambda c=client: sockets.send(c, [b"new"]), "it is sent")
                for client in fresh:
                    assert sockets.poll([client], WAIT)
                    assert sockets.receive(client, 1) == [b"echonew"]
                assert sockets.poll(fresh, 0.2) == []


def test_a_descriptor_becomes_readable_for_an_event_loop(ctx: Context) -> None:
    router, client = sockets.broker_frontend(ctx), sockets.client_requests(ctx)
    sockets.connect(client, sockets.bind(router, "tcp://127.0.0.1:*").url)
    until(lambda: sockets.send(client, [b"1"]), "it is connected")
    until(lambda: sockets.readable(router), "it arrived")
    frames = sockets.receive(router, 2)
    assert frames
    assert not sockets.readable(client)
    assert sockets.send(router, [frames[0], b"2"])
    assert os.fstat(sockets.descriptor(client))
    assert sockets.poll([sockets.descriptor(client)], WAIT)
    until(lambda: sockets.readable(client), "the reply is there")
