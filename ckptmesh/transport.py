"""One exchange of bytes with a store: over ZeroMQ, or with an engine in this process.

Rule 1: a transport carries payloads and knows nothing of what is in them.
Rule 2: `send` never waits; False means that the payload has not left and never will.
Rule 3: one thread at a time uses a transport; only `wake` may be called from any other.
"""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from ckptmesh import sockets
from ckptmesh.errors import Closed, Error
from ckptmesh.limits import BATCH_BYTES, BATCH_REQUESTS

DRAIN = 1_024  # payloads taken at once, so that whoever waits for the first is served soon
GATHER = 256  # requests that an embedded store lets gather before it commits them unasked


class Transport(Protocol):
    """What both shells need of the way to a store."""

    @property
    def url(self) -> str:
        """Where the other end is, for messages."""

    def send(self, payload: bytes) -> bool:
        """Hand over one payload without waiting. False: not connected, or the queue is full."""

    def receive(self, timeout: float) -> list[bytes]:
        """What has arrived, at most `DRAIN` payloads; waits up to `timeout` seconds for the first.

        Returns early, perhaps with nothing, after `wake`, or when a refused `send` may be tried
        again. Raises an `Error` when the other end is broken for good.
        """

    def pending(self) -> bool:
        """Whether `receive` would do something without waiting, or a refused `send` may be tried
        again."""

    def wake(self) -> None:
        """Make a `receive` that waits in another thread return."""

    def descriptor(self) -> int | None:
        """What an event loop watches for reading; None: `receive` works rather than waits, and
        belongs into a thread."""

    def close(self) -> None:
        """Let go. What was sent may still leave, within a bounded time."""


class ZmqTransport:
    """A DEALER, connected to a broker or to a store's direct address. It connects by itself, again
    and again; payloads queued for a connection that breaks are lost, and the session asks again."""

    def __init__(self, url: str) -> None:
        """Raises `InvalidUrl`; whether anybody is there shows in `send`."""
        self.url = url
        self.context = sockets.context()
        try:
            self._socket = sockets.client_requests(self.context)
            sockets.connect(self._socket, url)
        except BaseException:
            self.context.destroy(linger=0)
            raise
        self._blocked = False
        self._wake_out, self._wake_in = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        # For a client that is dropped without close(). Left to the collector, a context could go
        # before its sockets, and would wait for them for ever.
        self._abandon = weakref.finalize(self, _abandon, sockets.Owner(), self._socket,
                                         self.context, self._wake_out, self._wake_in)
        self._abandon.atexit = False

    def send(self, payload: bytes) -> bool:
        """See `Transport`."""
        sent = sockets.send(self._socket, (payload,))
        self._blocked = not sent
        return sent

    def receive(self, timeout: float) -> list[bytes]:
        """See `Transport`."""
        found = self._drain()
        if found or timeout <= 0:
            return found
        woken = sockets.await_turn(self._socket, self._wake_out, self._blocked, timeout)
        self._blocked = False  # tried again by whoever has something to send
        if woken:
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake_out, 4_096)
        return self._drain()

    def _drain(self) -> list[bytes]:
        found: list[bytes] = []
        while len(found) < DRAIN:
            frames = sockets.receive(self._socket, sockets.CLIENT_PARTS)
            if frames is None:
                break
            found += frames
        return found

    def pending(self) -> bool:
        """See `Transport`."""
        if self._blocked and sockets.writable(self._socket):
            self._blocked = False
            return True
        return sockets.readable(self._socket)

    def wake(self) -> None:
        """See `Transport`."""
        with contextlib.suppress(BlockingIOError):  # full: it is awake already
            os.write(self._wake_in, b"\0")

    def descriptor(self) -> int | None:
        """See `Transport`."""
        return sockets.descriptor(self._socket)

    def close(self) -> None:
        """See `Transport`."""
        if self._abandon.detach() is None:
            return
        self._socket.close()
        self.context.term()
        os.close(self._wake_out)
        os.close(self._wake_in)


def _abandon(owner: sockets.Owner, socket: sockets.Socket, context: sockets.Context,
             *ends: int) -> None:
    """Close what nobody can reach any more."""
    with contextlib.suppress(Closed, RuntimeError):  # a fork; an interpreter that ends
        owner.check()
        socket.close(linger=0)
        # In a thread: sockets of watches that are dropped too may be collected after this.
        threading.Thread(target=context.term, daemon=True).start()
    for end in ends:
        os.close(end)


class EngineTransport:
    """An engine in this process: what was sent becomes one batch, with one sync, in `receive`.

    So the commits of several threads, or many submitted by one, share a sync.
    """

    def __init__(
        self,
        url: str,
        handle: Callable[[Sequence[bytes]], list[bytes]],
        release: Callable[[], None],
        engine: Any = None,
    ) -> None:
        self.url = url
        self.engine = engine  # for watches, which listen to it directly
        self._handle = handle
        self._release = release
        self._outgoing: list[bytes] = []
        self._refusal: Error | None = None  # why a payload was not taken, until somebody is told
        self._woken = threading.Event()

    def send(self, payload: bytes) -> bool:
        """See `Transport`. False where the engine has failed, so that the request is known never to
        have reached it; `receive` then says why."""
        self._refusal = None if self.engine is None else self.engine.poisoned
        if self._refusal is not None:
            return False
        self._outgoing.append(payload)
        return True

    def receive(self, timeout: float) -> list[bytes]:
        """See `Transport`. With `timeout` 0 requests gather until `GATHER` wait for their sync."""
        if self._refusal is not None:
            refusal, self._refusal = self._refusal, None
            raise refusal.with_traceback(None)
        waiting = len(self._outgoing)
        if not waiting or (timeout <= 0 and waiting < GATHER):
            # No reply comes by itself, but another thread may bring a request.
            if timeout > 0:
                self._woken.wait(min(timeout, threading.TIMEOUT_MAX))
                self._woken.clear()
            return []
        size = count = 0
        for payload in self._outgoing[:BATCH_REQUESTS]:
            size += len(payload)
            count += 1
            if size >= BATCH_BYTES:
                break
        batch, self._outgoing = self._outgoing[:count], self._outgoing[count:]
        return self._handle(batch)

    def pending(self) -> bool:
        """See `Transport`."""
        return bool(self._outgoing) or self._refusal is not None

    def wake(self) -> None:
        """See `Transport`."""
        self._woken.set()

    def descriptor(self) -> int | None:
        """See `Transport`."""
        return None

    def close(self) -> None:
        """See `Transport`."""
        self._release()
