"""The client's own connection before what is no broker, and on its way to one."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time

import pytest

import ckptmesh
from ckptmesh import errors, sockets, zmtp
from ckptmesh.places import Places
from ckptmesh.stream import StreamTransport
from tests.integration.peers import WAIT, until
from tests.integration.streams import Dial, Echo, Peer, ask, url_of

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
