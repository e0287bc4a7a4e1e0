"""The client's own connection: messages, restarts, waiting, and its end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import os
import resource
import socket
import threading
import time
from pathlib import Path

import pytest

import ckptmesh
from ckptmesh import errors, sockets, zmtp
from ckptmesh.aio import AsyncClient
from ckptmesh.limits import IN_FLIGHT_BYTES, MIB, QUEUE
from ckptmesh.stream import LOOK, StreamTransport
from tests.cluster import Cluster
from tests.integration.peers import WAIT, short_folder, until
from tests.integration.streams import Dial, Echo, Peer, ask, hear, say, url_of

# --- messages ---------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 255, 256, 65_536, MIB, 16 * MIB])
def test_a_message_of_any_size_goes_and_comes_back(dial: Dial, echo: Echo, size: int) -> None:
    transport = dial(echo.url)
    payload = os.urandom(size)
    for _ in range(2):
        assert ask(transport, payload) == payload


def test_many_messages_of_all_sizes_keep_their_order(dial: Dial, echo: Echo) -> None:
    transport = dial(echo.url)
    sent = [os.urandom(n * 37 % 1_000) + bytes(n % 50 == 0) * 200_000 for n in range(3_000)]
    found: list[bytes] = []
    say(transport, sent[0])
    for payload in sent[1:]:
        while not transport.send(payload):
            found += transport.receive(WAIT)
        if len(payload) % 7 == 0:
            found += transport.receive(0.0)
    found += hear(transport, len(sent) - len(found))
    assert found == sent


def test_payloads_received_at_once_are_given_out_in_portions(
    dial: Dial, listener: socket.socket
) -> None:
    transport = dial(url_of(listener))
    with Peer(listener, transport) as peer:
        peer.socket.sendall(zmtp.head(0) * 5_000)
        time.sleep(2 * LOOK)
        assert transport.send(b"x"), "which looks, after so long, and keeps what it finds"
        sizes = [len(transport.receive(WAIT)) for _ in range(5)]
        assert sizes == [1_024] * 4 + [904]
        assert not transport.pending()


def test_a_message_of_several_frames_is_dropped(dial: Dial, echo: Echo) -> None:
    transport = dial(echo.url)
    assert ask(transport, b"a") == b"a"
    echo.say += [[b"b", b"c"], [b"d", bytes(100_000), b"e"], [b"f"]]
    assert hear(transport) == [b"f"]


def test_a_ping_is_answered(dial: Dial, listener: socket.socket) -> None:
    transport = dial(url_of(listener))
    with Peer(listener, transport) as peer:
        peer.socket.sendall(zmtp.command(b"PING", b"\0\x64there?"))
        assert transport.receive(0.2) == []
        pong = zmtp.command(b"PONG", b"there?")
        assert peer.hear(len(pong)) == pong


# --- a peer that does not read ----------------------------------------------------------------


def test_a_peer_that_does_not_read_leads_to_refusal_in_bounded_memory_and_loses_nothing(
    dial: Dial, listener: socket.socket
) -> None:
    transport = dial(url_of(listener))
    with Peer(listener, transport) as peer:
        sent = b""
        for number in range(1_000):
            payload = bytes((number % 256,)) * MIB
            if not transport.send(payload):
                break
            sent += zmtp.head(MIB) + payload
            transport.receive(0.0)
        assert IN_FLIGHT_BYTES / 2 < transport._out_bytes <= IN_FLIGHT_BYTES + MIB
        assert sum(map(len, transport._out)) <= transport._out_bytes < len(sent)
        assert not transport.pending(), "still full"
        assert transport.receive(0.05) == []
        reader = threading.Thread(target=peer.hear, args=(len(sent),), daemon=True)
        reader.start()
        began = time.monotonic()
        assert transport.receive(WAIT) == []
        assert time.monotonic() - began < WAIT, "told that a send may be tried again"
        assert transport.send(b"last")
        assert not transport.pending()
        reader.join(WAIT)
        assert peer.hear(len(sent) + 6) == sent + b"\0\4last"


def test_small_messages_are_bounded_by_their_number(
    dial: Dial, listener: socket.socket
) -> None:
    transport = dial(url_of(listener))
    with Peer(listener, transport) as peer:
        sent = 0
        while transport.send(b"x"):
            sent += 1
        assert sent == QUEUE
        transport.receive(0.0)
        assert peer.hear(3 * QUEUE) == b"\0\1x" * QUEUE


# --- connections that come and go -------------------------------------------------------------


def test_a_send_is_refused_until_the_handshake_is_done(
    dial: Dial, listener: socket.socket
) -> None:
    transport = dial(url_of(listener))
    assert not transport.send(b"early")
    connection, _ = listener.accept()
    with connection:
        transport.receive(0.05)
        connection.sendall(zmtp.GREETING)
        transport.receive(0.05)
        assert not transport.send(b"early")
        connection.sendall(zmtp.READY.replace(b"DEALER", b"ROUTER"))
        began = time.monotonic()
        assert transport.receive(WAIT) == []
        assert time.monotonic() - began < WAIT / 2, "told at once that a send may be tried"
        assert transport.send(b"now")
        transport.receive(0.0)
        connection.settimeout(WAIT)
        heard = b""
        while not heard.endswith(b"\0\3now"):
            heard += connection.recv(1_000)
        assert heard == zmtp.GREETING + zmtp.READY + b"\0\3now"


@pytest.mark.parametrize("scheme", ["tcp", "ipc"])
def test_it_connects_again_after_a_restart_and_brings_nothing_old_along(
    dial: Dial, scheme: str
) -> None:
    with short_folder() as folder:
        first = Echo(f"ipc://{folder}/x" if scheme == "ipc" else "tcp://127.0.0.1:*")
        transport = dial(first.url)
        for turn in range(3):
            assert ask(transport, b"%d" % turn) == b"%d" % turn
            assert transport.send(b"lost" * 5), "there is a connection"
            first.close()
            until(lambda: transport.receive(0.01) or not transport._ready, "it is noticed")
            first = Echo(first.url)
            assert ask(transport, b"new") == b"new"
            assert b"lost" * 5 not in first.seen
        first.close()


def test_what_waited_for_a_broken_connection_never_reaches_the_next(
    dial: Dial, listener: socket.socket
) -> None:
    transport = dial(url_of(listener))
    with Peer(listener, transport):
        assert transport.send(b"old" * 5_000_000), "more than the kernel takes"
        transport.receive(0.0)
        assert transport._out
    until(lambda: transport.receive(0.01) or not transport._ready, "it is lost")
    with Peer(listener, transport) as second:
        assert transport.send(b"new")
        transport.receive(0.0)
        assert second.hear(5) == b"\0\3new"


def test_an_idle_client_notices_before_it_sends_that_its_broker_is_another(dial: Dial) -> None:
    first = Echo()
    transport = dial(first.url)
    assert ask(transport, b"a") == b"a"
    first.close()
    with Echo(first.url):
        time.sleep(0.1)
        assert not transport.send(b"b"), "into a connection that has ended"
        assert ask(transport, b"b") == b"b"


def test_attempts_come_again_and_again_and_ever_more_rarely(
    dial: Dial, listener: socket.socket
) -> None:
    transport = dial(url_of(listener))
    times = []
    for _ in range(8):
        def accepted() -> bool:
            listener.settimeout(0.0)
            with contextlib.suppress(BlockingIOError):
                listener.accept()[0].close()
                return True
            return bool(transport.receive(0.005))

        until(accepted, "another attempt")
        times.append(time.monotonic())
    pauses = [after - before for before, after in itertools.pairwise(times)]
    assert pauses[0] < 0.2
    assert all(pause < 1.5 for pause in pauses)
    assert pauses[-1] > 0.4, "half of RECONNECT_MAX at least"


def test_a_loop_is_told_when_to_connect_again_and_needs_no_request_for_that() -> None:
    """An asyncio client that asks nothing is connected again soon after a restart."""
    async def work() -> None:
        first = Echo()
        transport = StreamTransport(first.url)
        client = AsyncClient(transport)
        try:
            async with asyncio.timeout(WAIT):
                while not transport._ready:
                    await asyncio.sleep(0.01)
                await asyncio.to_thread(first.close)
                while transport._ready:
                    await asyncio.sleep(0.01)
                again = await asyncio.to_thread(Echo, first.url)
                while not transport._ready:
                    await asyncio.sleep(0.01)
                await asyncio.to_thread(again.close)
        finally:
            await client.close()

    asyncio.run(work())


# --- waiting and waking -----------------------------------------------------------------------


def test_wake_ends_a_wait_from_another_thread_and_before_it(dial: Dial, echo: Echo) -> None:
    transport = dial(echo.url)
    assert ask(transport, b"x") == b"x"
    for turn in range(20):
        began = time.monotonic()
        if turn % 2:
            transport.wake()
            assert transport.receive(WAIT) == []
        else:
            timer = threading.Timer(0.01, transport.wake)
            timer.start()
            assert transport.receive(WAIT) == []
            timer.join()
        assert time.monotonic() - began < WAIT / 2
    began = time.monotonic()
    assert transport.receive(0.1) == []
    assert time.monotonic() - began >= 0.1, "no wake is left over"


def test_the_descriptor_is_readable_when_something_is_to_do_and_only_then(
    dial: Dial, echo: Echo
) -> None:
    transport = dial(echo.url)
    descriptor = transport.descriptor()
    assert descriptor is not None
    assert ask(transport, b"x") == b"x"
    assert sockets.poll([descriptor], 0.05) == []
    assert transport.send(b"y")
    assert not transport.pending()
    assert sockets.poll([descriptor], WAIT) == [descriptor]
    assert transport.receive(0.0) == [b"y"]
    assert sockets.poll([descriptor], 0.05) == []
    transport.wake()
    assert sockets.poll([descriptor], WAIT) == [descriptor]
    assert transport.receive(0.0) == []
    assert sockets.poll([descriptor], 0.05) == []


def test_a_trickle_does_not_prolong_a_wait(dial: Dial, listener: socket.socket) -> None:
    transport = dial(url_of(listener))
    with Peer(listener, transport) as peer:
        end = threading.Event()

        def trickle() -> None:
            peer.socket.sendall(zmtp.head(10_000))
            while not end.wait(0.01):
                peer.socket.sendall(b"x")

        thread = threading.Thread(target=trickle, daemon=True)
        thread.start()
        began = time.monotonic()
        assert transport.receive(0.3) == []
        assert 0.25 < time.monotonic() - began < 2
        end.set()
        thread.join()


def test_an_interrupt_between_two_steps_costs_the_connection_and_tears_no_message(
    dial: Dial, echo: Echo, monkeypatch: pytest.MonkeyPatch
) -> None:
    transport = dial(echo.url)
    assert ask(transport, b"x") == b"x"

    def interrupted(data: bytes) -> list[bytes]:
        raise KeyboardInterrupt

    monkeypatch.setattr(transport._wire, "feed", interrupted)
    assert transport.send(b"y")
    with pytest.raises(KeyboardInterrupt):
        transport.receive(WAIT)
    assert not transport.send(b"z"), "what was read is lost: nothing more may be read there"
    assert ask(transport, b"z") == b"z"

    def torn(sent: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(transport, "_written", torn)
        assert transport.send(b"w")
        with pytest.raises(KeyboardInterrupt):
            transport.receive(WAIT)
    assert not transport.send(b"v"), "nobody knows how much of it was written"
    assert ask(transport, b"v") == b"v"


# --- the end ----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [10, 8 * MIB])
def test_what_was_sent_leaves_although_it_is_closed(echo: Echo, size: int) -> None:
    transport = StreamTransport(echo.url)
    assert ask(transport, b"x") == b"x"
    payload = os.urandom(size)
    assert transport.send(payload)
    transport.close()
    transport.close()
    until(lambda: payload in echo.seen, "it arrives")


def test_closing_takes_bounded_time_where_nobody_reads(listener: socket.socket) -> None:
    transport = StreamTransport(url_of(listener))
    with Peer(listener, transport):
        while transport.send(bytes(MIB)):
            transport.receive(0.0)
        began = time.monotonic()
        transport.close()
        assert 0.4 < time.monotonic() - began < 2


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_connections_leave_no_descriptor_behind(listener: socket.socket) -> None:
    before = descriptors()
    transport = StreamTransport(url_of(listener))
    for _ in range(200):
        with Peer(listener, transport):
            assert transport._ready
        until(lambda: not transport._ready or transport.receive(0.01), "it is noticed")
        assert descriptors() <= before + 3, "an epoll, an alarm, perhaps the next attempt"
    transport.close()
    assert descriptors() == before


def test_a_transport_that_is_dropped_without_close_leaves_nothing_behind(echo: Echo) -> None:
    before = descriptors()
    for _ in range(20):
        transport = StreamTransport(echo.url)
        assert ask(transport, b"x") == b"x"
    del transport
    gc.collect()
    until(lambda: descriptors() <= before, "the other ends are closed too")


def test_without_a_descriptor_left_it_says_so(echo: Echo) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    before = descriptors()
    highest = max(map(int, os.listdir("/proc/self/fd")))  # listing takes one too: before the limit
    try:
        for spare in range(3):
            resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1 + spare, hard))
            held = []
            with contextlib.suppress(OSError):
                while len(held) < 10_000:
                    held.append(os.dup(0))
            for descriptor in held[:spare]:
                os.close(descriptor)
            try:
                with pytest.raises(errors.Unavailable, match="no file descriptor is left"):
                    StreamTransport(echo.url)
            finally:
                for descriptor in held[spare:]:
                    os.close(descriptor)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert descriptors() == before


def test_a_fork_is_refused_and_harms_nothing(tmp_path: Path) -> None:
    with Cluster(tmp_path) as cluster, ckptmesh.connect(cluster.url) as mesh:
        mesh.commit("a", 1)
        child = os.fork()
        if child == 0:
            try:
                mesh.get("a")
            except errors.Closed:
                mesh.close()
                del mesh
                gc.collect()
                os._exit(7)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        for value in range(10):
            mesh.commit("a", value)
        assert mesh.value("a") == 9
