"""Peers for tests of the client's own connection: a real ROUTER, and one in plain bytes."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable

from ckptmesh import sockets, zmtp
from ckptmesh.stream import StreamTransport
from tests.integration.peers import WAIT, until

Dial = Callable[[str], StreamTransport]
READY = zmtp.READY.replace(b"DEALER", b"ROUTER")


class Echo:
    """A ROUTER in a thread, which answers each message with itself."""

    def __init__(self, url: str = "tcp://127.0.0.1:*") -> None:
        self._ctx = sockets.context()
        self._socket = sockets.store_requests(self._ctx)
        self._bound = sockets.bind(self._socket, url)
        self.url = self._bound.url
        self.seen: list[bytes] = []
        self.say: list[list[bytes]] = []  # to whoever asked last, as frames
        self._end = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        route = b""
        while not self._end:
            sockets.poll([self._socket], 0.005)
            while frames := sockets.receive(self._socket, 2):
                route = frames[0]
                self.seen.append(frames[1])
                sockets.send(self._socket, frames)  # in vain, where its connection is gone
            while self.say:
                sockets.send(self._socket, [route, *self.say.pop(0)])
        self._socket.close(0)
        self._bound.release()

    def close(self) -> None:
        self._end = True
        self._thread.join(WAIT)
        assert not self._thread.is_alive()
        self._ctx.term()

    def __enter__(self) -> Echo:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def url_of(listening: socket.socket) -> str:
    return f"tcp://127.0.0.1:{listening.getsockname()[1]}"


def say(transport: StreamTransport, payload: bytes, wait: float = WAIT) -> None:
    """Send as soon as there is a connection."""
    deadline = time.monotonic() + wait
    while not transport.send(payload):
        assert time.monotonic() < deadline, f"not sent in {wait} s"
        assert transport.receive(0.05) == []


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
