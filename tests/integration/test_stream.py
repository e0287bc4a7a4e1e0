"""The client's own connection against real ROUTERs, and against what is none."""

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
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import ckptmesh
from ckptmesh import errors, sockets, zmtp
from ckptmesh.aio import AsyncClient
from ckptmesh.limits import IN_FLIGHT_BYTES, MIB, QUEUE
from ckptmesh.stream import Places, StreamTransport
from tests.cluster import Cluster
from tests.integration.peers import WAIT, short_folder, until

Dial = Callable[[str], StreamTransport]
READY = zmtp.READY.replace(b"DEALER", b"ROUTER")


class Echo:
    """A ROUTER in a thread, which answers each message with itself, unless it is told not to."""

    def __init__(self, url: str = "tcp://127.0.0.1:*") -> None:
        self._ctx = sockets.context()
        self._socket = sockets.store_requests(self._ctx)
        self._bound = sockets.bind(self._socket, url)
        self.url = self._bound.url
        self.seen: list[bytes] = []
        self.reading = threading.Event()
        self.reading.set()
        self.say: list[list[bytes]] = []  # to whoever asked last, as frames
        self._end = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        waiting: list[list[bytes]] = []
        route = b""
        while not self._end:
            self.reading.wait(WAIT)
            sockets.poll([self._socket], 0.005)
            while self.reading.is_set() and (frames := sockets.receive(self._socket, 2)):
                route = frames[0]
                self.seen.append(frames[1])
                waiting.append(frames)
            while waiting and sockets.send(self._socket, waiting[0]):
                waiting.pop(0)
            while self.say:
                sockets.send(self._socket, [route, *self.say.pop(0)])
        self._socket.close(0)
        self._bound.release()

    def close(self) -> None:
        self._end = True
        self.reading.set()
        self._thread.join(WAIT)
        assert not self._thread.is_alive()
        self._ctx.term()

    def __enter__(self) -> Echo:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@pytest.fixture
def dial() -> Iterator[Dial]:
    """Makes transports, closed in the end."""
    with contextlib.ExitStack() as stack:
        def make(url: str) -> StreamTransport:
            made = StreamTransport(url)
            stack.callback(made.close)
            return made
        yield make


@pytest.fixture
def echo() -> Iterator[Echo]:
    with Echo() as running:
        yield running


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """Something at an address that is no broker."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(WAIT)
        yield listening


def url_of(listening: socket.socket) -> str:
    return f"tcp://127.0.0.1:{listening.getsockname()[1]}"


def say(transport: StreamTransport, payload: bytes, wait: float = WAIT) -> None:
    """Send as soon as there is a connection."""
    until(lambda: transport.send(payload) or transport.receive(0.05), "it is sent", wait)


def hear(transport: StreamTransport, count: int = 1, wait: float = WAIT) -> list[bytes]:
    """The next payloads."""
    found: list[bytes] = []
    deadline = time.monotonic() + wait
    while len(found) < count:
        left = deadline - time.monotonic()
        assert left > 0, f"{len(found)} of {count} came"
        found += transport.receive(left)
    return found


def ask(transport: StreamTransport, payload: bytes) -> bytes:
    say(transport, payload)
    [found] = hear(transport)
    return found


class Peer:
    """The other end of a connection, with its handshake done, in plain bytes."""

    def __init__(self, listening: socket.socket, transport: StreamTransport) -> None:
        """Accepts a connection of the transport, which connects only while it is used."""
        listening.settimeout(0.0)

        def accepted() -> bool:
            with contextlib.suppress(BlockingIOError):
                self.socket, _ = listening.accept()
                return True
            return bool(transport.receive(0.002))

        until(accepted, "it connects")
        self.socket.settimeout(WAIT)
        self.socket.sendall(zmtp.GREETING + READY)
        self.heard = b""
        transport.send(b"")  # refused, so that `receive` tells when it would not be
        until(lambda: transport.receive(0.002) or transport._ready, "the handshake")

    def hear(self, size: int) -> bytes:
        """Exactly so many bytes, after the handshake."""
        size += len(zmtp.GREETING + zmtp.READY)
        while len(self.heard) < size:
            piece = self.socket.recv(1_000_000)
            assert piece, "closed"
            self.heard += piece
        assert self.heard.startswith(zmtp.GREETING + zmtp.READY)
        return self.heard[len(zmtp.GREETING + zmtp.READY) :]

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()


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


def test_payloads_received_at_once_are_given_out_in_portions(dial: Dial, echo: Echo) -> None:
    transport = dial(echo.url)
    for _ in range(5_000):
        say(transport, b"")
    transport.receive(0.0)
    until(lambda: len(echo.seen) == 5_000, "all arrive")
    time.sleep(0.1)
    largest, total = 0, 0
    while total < 5_000:
        found = len(transport.receive(WAIT))
        assert found > 0
        largest, total = max(largest, found), total + found
    assert 1 < largest <= 1_024
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


# --- what is no broker ------------------------------------------------------------------------


def test_a_listener_that_never_speaks_is_left_and_tried_again(
    dial: Dial, listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sockets, "HANDSHAKE", 200)
    transport = dial(url_of(listener))
    began = time.monotonic()
    silent, _ = listener.accept()
    with silent:
        until(lambda: transport.receive(0.05) or "no handshake within 200 ms" in transport.trouble,
              "it is left")
        assert 0.15 < time.monotonic() - began < 2
        with Peer(listener, transport):
            assert transport.send(b"x")


@pytest.mark.parametrize(
    ("rubbish", "told"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "does not speak ZMTP"),
        (zmtp.GREETING[:10] + b"\1\5", "older ZMTP"),
        (zmtp.GREETING + zmtp.READY, "not a ROUTER"),
        (zmtp.GREETING + zmtp.command(b"ERROR", b"\4full"), "full"),
        (b"\0" * 500, "does not speak ZMTP"),
    ],
)
def test_one_that_speaks_rubbish_is_told_to_whoever_connects(
    listener: socket.socket, rubbish: bytes, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                connection.sendall(rubbish)
                connection.recv(1_000)
                connection.close()

    server = threading.Thread(target=serve, daemon=True)
    server.start()
    with pytest.raises(errors.Unavailable) as caught:
        ckptmesh.connect(url_of(listener), timeout=0.4)
    assert "no broker at tcp://127.0.0.1:" in str(caught.value)
    assert told in str(caught.value)
    listener.shutdown(socket.SHUT_RDWR)
    server.join(WAIT)


def test_one_that_breaks_the_protocol_later_is_dropped_and_tried_again(
    dial: Dial, listener: socket.socket
) -> None:
    transport = dial(url_of(listener))
    with Peer(listener, transport) as peer:
        peer.socket.sendall(b"\2" + b"\xff" * 8)
        until(lambda: not transport._ready or transport.receive(0.05), "it is dropped")
        assert "the limit is" in transport.trouble
    with Peer(listener, transport):
        assert transport.trouble == ""


def test_a_port_where_nobody_listens_is_not_connected_to_itself(dial: Dial) -> None:
    """A client's own port may be the very one that it connects to."""
    with socket.socket() as own:
        own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        own.bind(("127.0.0.1", 0))
        place = own.getsockname()
        own.connect(place)
        assert own.getpeername() == place, "such a thing exists"
    transport = dial(f"tcp://127.0.0.1:{place[1]}")
    for _ in range(5):
        transport.receive(0.05)
        assert not transport.send(b"x")


# --- addresses --------------------------------------------------------------------------------


def test_ipv6_abstract_and_named_addresses_lead_there(dial: Dial) -> None:
    for url, where in (
        ("tcp://[::1]:*", ""), (f"ipc://@ckptmesh-{os.getpid()}", ""),
        ("tcp://127.0.0.1:*", "localhost"), ("tcp://127.0.0.1:*", socket.gethostname()),
    ):
        if where and not named(where):
            continue
        with Echo(url) as echo:
            reached = echo.url.replace("127.0.0.1", where) if where else echo.url
            transport = dial(reached)
            assert ask(transport, b"x") == b"x"


def named(host: str) -> bool:
    """Whether a name of this machine leads to its loopback here."""
    with contextlib.suppress(OSError):
        return socket.gethostbyname(host).startswith("127.0.0.1")
    return False


def test_a_name_is_looked_up_beside_the_loop_and_its_places_are_tried_in_turn(
    dial: Dial, echo: Echo, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = int(echo.url.rpartition(":")[2])
    asked: list[str] = []
    hold = threading.Event()

    def look_up(host: str, service: str, type: int = 0, flags: int = 0) -> list[object]:
        if flags & socket.AI_NUMERICHOST:
            raise socket.gaierror("a name")
        asked.append(host)
        assert hold.wait(WAIT)
        return [(socket.AF_INET6, type, 6, "", ("::1", port, 0, 0)),
                (socket.AF_INET, type, 6, "", ("127.0.0.2", port)),
                (socket.AF_INET, type, 6, "", ("127.0.0.1", port))]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    began = time.monotonic()
    transport = dial(f"tcp://mesh.example:{port}")
    assert not transport.send(b"x")
    assert transport.receive(0.05) == []
    assert time.monotonic() - began < WAIT / 2, "nothing waited for the look-up"
    assert asked == ["mesh.example"]
    hold.set()
    assert ask(transport, b"x") == b"x"
    assert asked == ["mesh.example"], "its three places were tried after one look-up"


def test_a_name_that_is_nowhere_is_looked_up_again_at_the_pace_of_attempts(
    dial: Dial, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0

    def look_up(*_: object, **flags: int) -> list[object]:
        nonlocal asked
        asked += not flags["flags"] & socket.AI_NUMERICHOST
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    transport = dial("tcp://nowhere.example:1")
    began = time.monotonic()
    while time.monotonic() - began < 1.0:
        transport.receive(0.1)
    assert 2 <= asked <= 8  # after 0, 50, 150, 350, 750 ms, or half of each
    assert transport.trouble == "Name or service not known"


def test_places_of_an_address_need_no_look_up() -> None:
    for host, expected in (
        ("127.0.0.1", (socket.AF_INET, ("127.0.0.1", 7))),
        ("[::1]", (socket.AF_INET6, ("::1", 7, 0, 0))),
        ("localhost", (socket.AF_INET, ("127.0.0.1", 7))),
    ):
        places = Places(sockets.Address("tcp", host, "7"))
        assert places.next() == places.next() == expected
    assert Places(sockets.address("ipc://@x")).next() == (socket.AF_UNIX, "\0x")


@pytest.mark.parametrize(
    "url", ["tcp://*:1", "tcp://a:*", "ipc://*", "tcp://a b:1", "tcp://é:1", "tcp://a:0"]
)
def test_what_cannot_be_connected_to_is_refused_at_once(url: str) -> None:
    with pytest.raises(errors.InvalidUrl):
        StreamTransport(url)


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
    try:
        for spare in range(3):
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd")))
                                                        + spare, hard))
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
