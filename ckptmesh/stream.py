"""The way to a broker or a store: ZMTP over a plain socket, in the thread of whoever waits.

Rule 1: no thread of its own. It connects, and connects again, inside `receive` and, where that is
        long ago, `send`; an event loop calls `receive` when `descriptor` says so, and at `due`.
Rule 2: nothing queued for a connection outlives it, so `send` refuses while there is none.
Rule 3: what another end does wrong costs its connection, and `trouble` says what it was.

A round trip is one send, one wait and one recv, and wakes this process once. libzmq's I/O thread
costs two more wake-ups, which are most of what a round trip costs: docs/adr/0011.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import select
import socket
import time
import weakref
from collections import deque
from itertools import islice
from typing import Any

from ckptmesh import sockets, zmtp
from ckptmesh.errors import Unavailable
from ckptmesh.limits import IN_FLIGHT_BYTES, QUEUE
from ckptmesh.places import Places

DRAIN = 1_024  # payloads taken at once, so that whoever waits for the first is served soon
CHUNK = 65_536  # bytes read at once; malloc keeps such a piece, a larger one it maps each time
CHUNKS = 256  # pieces read before others have their turn
JOIN = 16_384  # bytes of a payload up to which copying it behind its head is less than two pieces
PIECES = 1_024  # pieces written at once: what Linux takes (IOV_MAX)
LOOK = 0.05  # seconds without a sign of the other end after which `send` looks whether it is there
NEVER = float("inf")
HOUR = 3_600.0  # seconds: the longest single wait that is asked of the kernel
ASKING = 0.01  # seconds between two looks whether a name has been looked up
_KIND = socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC


class StreamTransport:
    """A connection to a broker, or to a store's direct address; see `transport.Transport`. It
    connects by itself, again and again; payloads queued for a connection that breaks are lost, and
    the session asks again."""

    def __init__(self, url: str) -> None:
        """Raises `InvalidUrl`, and `Unavailable` where no descriptor is left; whether anybody is
        there shows in `send`."""
        self.url = url
        self.trouble = ""  # why there is no connection, unless nobody is there
        self._places = Places(sockets.reachable(url))
        self._out: deque[bytes | memoryview] = deque()
        self._out_bytes = 0
        self._spare: list[bytes] = []  # received beyond DRAIN, or when only looking
        self._wire = zmtp.Wire()
        self._linked = False  # connected, …
        self._ready = False  # … and the handshake is done
        self._writing = False  # the kernel is asked to tell when it takes more
        self._blocked = False  # a send was refused, and nobody told since that it may be tried
        self._woken = False
        self._failures = 0  # since the last handshake
        self._due = 0.0  # when to connect; while that is under way: when to give it up
        self._looked = 0.0  # when it would last have been noticed that the other end is gone
        self._socket: socket.socket | None = None
        self._held: list[Any] = []
        try:
            self._alarm = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        except OSError as error:
            raise _unavailable() from error
        # For a client that is dropped without close().
        self._abandon = weakref.finalize(self, _release, self._held, self._alarm)
        self._abandon.atexit = False
        try:
            self._epoll = select.epoll()
            self._held.append(self._epoll)
            self._epoll.register(self._alarm, select.EPOLLIN)
            self._dial(time.monotonic())
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                self._abandon()
                raise _unavailable() from error
            self._drop(_told(error))

    # --- Transport ----------------------------------------------------------------------------

    def send(self, payload: bytes) -> bool:
        """See `Transport`."""
        if not self._out:
            now = time.monotonic()
            if now - self._looked > LOOK and not self._spare:
                self._looked = now
                found = self._receive_now()
                self._spare[:0] = found
        size = len(payload)
        self._blocked = not self._ready or not self._room(size)
        if self._blocked:
            return False
        head = zmtp.head(size)
        if size <= JOIN:
            self._out.append(head + payload)
        else:
            self._out.extend((head, payload))  # in one step: a signal finds both or neither
        self._out_bytes += len(head) + size
        return True

    def receive(self, timeout: float) -> list[bytes]:
        """See `Transport`."""
        if self._out:
            self._flush()
        if timeout <= 0 or self._spare:
            return self._receive_now()
        now = self._looked = time.monotonic()
        until = now + timeout
        while not (self._blocked and self._may_send_again()):
            found: list[bytes] = []
            woken = False
            wait = max(0.0, min(until, self._due, now + HOUR) - now)
            for descriptor, event in self._epoll.poll(wait):
                if descriptor == self._alarm:
                    self._calm()
                    woken = True
                else:
                    found = self._happened(event)
            if found or woken:
                return found
            now = time.monotonic()
            if now >= self._due:
                self._keep_time(now)
            if now >= until:
                break
        return []

    def pending(self) -> bool:
        """See `Transport`."""
        if self._out:
            self._flush()
        return bool(self._spare) or (self._blocked and self._may_send_again())

    def due(self) -> float:
        """See `Transport`."""
        return self._due

    def wake(self) -> None:
        """See `Transport`."""
        with contextlib.suppress(OSError):  # it is awake already, or closed
            os.eventfd_write(self._alarm, 1)
        self._woken = True

    def descriptor(self) -> int | None:
        """See `Transport`. An epoll: one for life, whatever becomes of connections."""
        return self._epoll.fileno()

    def close(self) -> None:
        """See `Transport`."""
        if self._abandon.alive:
            self._linger()
            self._alarm = -1
            self._abandon()

    # --- sending ------------------------------------------------------------------------------

    def _room(self, size: int) -> bool:
        out = self._out
        return not out or (len(out) < QUEUE and self._out_bytes + size <= IN_FLIGHT_BYTES)

    def _may_send_again(self) -> bool:
        """Whether a refused send would be taken now; told once."""
        if not self._ready or self._out:
            return False
        self._blocked = False
        return True

    def _flush(self) -> None:
        """Write what is queued, as far as the kernel takes it; the rest once it takes more."""
        out, connection = self._out, self._socket
        if connection is None:
            return
        try:
            while out:
                if len(out) == 1:
                    sent = connection.send(out[0])
                else:
                    sent = connection.sendmsg(islice(out, PIECES))
                self._written(sent)
            self._out_bytes = 0
            if self._writing:
                self._write_later(connection, False)
        except BlockingIOError:
            if not self._writing:
                self._write_later(connection, True)
        except OSError as error:
            self._drop(_told(error))
        except BaseException:  # KeyboardInterrupt above all: who knows what was written?
            self._drop("interrupted")
            raise

    def _written(self, sent: int) -> None:
        out = self._out
        self._out_bytes -= sent
        while sent:
            piece = out.popleft()
            sent -= len(piece)
            if sent < 0:
                out.appendleft(memoryview(piece)[sent:])
                return

    def _write_later(self, connection: socket.socket, later: bool) -> None:
        self._writing = later
        self._epoll.modify(connection, select.EPOLLIN | (select.EPOLLOUT if later else 0))

    # --- receiving ----------------------------------------------------------------------------

    def _receive_now(self) -> list[bytes]:
        """What is there, without waiting."""
        if self._woken:
            self._calm()
        if self._spare:
            found, self._spare = self._spare[:DRAIN], self._spare[DRAIN:]
            return found
        if self._ready:
            return self._read()
        found = []
        for descriptor, event in self._epoll.poll(0):
            if descriptor != self._alarm:
                found = self._happened(event)
        now = time.monotonic()
        if now >= self._due:
            self._keep_time(now)
        return found

    def _calm(self) -> None:
        self._woken = False
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._alarm)

    def _happened(self, event: int) -> list[bytes]:
        """The kernel has something to tell about the connection."""
        if not self._linked:
            self._link()
            return []
        if event & select.EPOLLOUT:
            self._flush()
        return self._read() if event & ~select.EPOLLOUT else []

    def _read(self) -> list[bytes]:
        """Read until nothing more is there, as far as one recv tells, or enough is."""
        connection, wire = self._socket, self._wire
        found: list[bytes] = []
        if connection is None:
            return found
        try:
            for _ in range(CHUNKS):
                data = connection.recv(CHUNK)
                if not data:
                    self._drop("the other end closed the connection")
                    return found
                found += wire.feed(data)
                if len(data) < CHUNK or len(found) >= DRAIN:
                    break
        except BlockingIOError:
            pass
        except (OSError, zmtp.PeerError) as error:
            self._drop(_told(error))
            return found
        except BaseException:  # KeyboardInterrupt above all: something may have been read and lost
            self._drop("interrupted")
            raise
        if wire.answers:
            self._answer(wire)
        if wire.ready and not self._ready and self._socket is connection:
            self._begin()
        if len(found) > DRAIN:
            self._spare = found[DRAIN:]
            del found[DRAIN:]
        return found

    def _answer(self, wire: zmtp.Wire) -> None:
        """Send what the protocol itself asks for."""
        if len(self._out) < QUEUE:
            self._out.extend(wire.answers)
        wire.answers.clear()
        self._flush()

    def _begin(self) -> None:
        """The handshake is done."""
        self._ready = True
        self._due = NEVER
        self._failures = 0
        self.trouble = ""
        self._places.found()

    # --- connecting ---------------------------------------------------------------------------

    def _keep_time(self, now: float) -> None:
        """What is due: another attempt, or the end of one that takes too long."""
        if self._socket is not None:
            self._drop(f"no handshake within {sockets.HANDSHAKE} ms")
            return
        try:
            self._dial(now)
        except OSError as error:
            self._drop(_told(error))

    def _dial(self, now: float) -> None:
        """Begin to connect. Raises `OSError`."""
        place = self._places.next()
        if place is None:
            self._due = now + ASKING
            return
        self._due = now + sockets.HANDSHAKE / 1_000
        self._wire = zmtp.Wire()
        family, address = place
        connection = socket.socket(family, _KIND)
        self._socket = connection
        self._held.append(connection)
        if family != socket.AF_UNIX:
            _set_options(connection)
        problem = connection.connect_ex(address)
        if problem not in (0, errno.EINPROGRESS):
            raise OSError(problem, os.strerror(problem))
        self._epoll.register(connection, select.EPOLLIN | select.EPOLLOUT)

    def _link(self) -> None:
        """The attempt to connect has ended, well or not."""
        connection = self._socket
        assert connection is not None  # it had an event
        try:
            problem = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if problem:
                raise OSError(problem, os.strerror(problem))
            if connection.family != socket.AF_UNIX \
                    and connection.getsockname() == connection.getpeername():
                # Where nobody listens, a port of the range for clients may be given to ourselves.
                raise OSError(errno.ECONNREFUSED, "connected to itself")
            self._write_later(connection, False)
        except OSError as error:
            self._drop(_told(error))
        else:
            self._linked = True
            self._out.append(zmtp.GREETING)
            self._flush()

    def _drop(self, trouble: str) -> None:
        """The connection is over, or could not be made; plan the next attempt."""
        self.trouble = trouble
        connection, self._socket = self._socket, None
        if connection is not None:
            with contextlib.suppress(OSError, ValueError):
                # Closing alone would not do, where a fork holds a copy.
                self._epoll.unregister(connection)
            self._held.remove(connection)
            connection.close()
        self._out.clear()
        self._out_bytes = 0
        self._linked = self._ready = self._writing = False
        most = min(sockets.RECONNECT * 2 ** min(self._failures, 20), sockets.RECONNECT_MAX) / 1_000
        self._failures += 1
        self._due = time.monotonic() + most * (0.5 + random.random() / 2)

    def _linger(self) -> None:
        """Write what is queued, for a while; read meanwhile, since the other end may wait for that,
        and since closing over unread bytes would take back what was written."""
        until = time.monotonic() + sockets.LINGER / 1_000
        while self._ready:
            self._flush()
            self._read()
            left = until - time.monotonic()
            if not self._out or left <= 0:
                return
            self._epoll.poll(left)


def _set_options(connection: socket.socket) -> None:
    """As `sockets` has libzmq set them."""
    idle, interval, probes = sockets.KEEPALIVE
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        (socket.TCP_NODELAY, 1), (socket.TCP_USER_TIMEOUT, sockets.UNACKNOWLEDGED),
        (socket.TCP_KEEPIDLE, idle), (socket.TCP_KEEPINTVL, interval),
        (socket.TCP_KEEPCNT, probes),
    ):
        connection.setsockopt(socket.IPPROTO_TCP, option, value)


def _told(error: Exception) -> str:
    """For `trouble`; nothing where nobody is there at all, which is what everybody expects."""
    if isinstance(error, ConnectionRefusedError | FileNotFoundError):
        return ""
    return getattr(error, "strerror", None) or str(error)


def _unavailable() -> Unavailable:
    return Unavailable("no file descriptor is left for another socket", hint=sockets.EXHAUSTED)


def _release(held: list[Any], alarm: int) -> None:
    """Close what nobody can reach any more, or what is closed."""
    for thing in held:
        thing.close()
    os.close(alarm)
