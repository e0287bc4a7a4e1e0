"""Every ZeroMQ socket of the package: what kind, with which options, and why.

Rule 1: nothing else in the package imports zmq; others take `Socket` and `Context` from here.
Rule 2: one socket belongs to one thread, one context to one process (`Owner` tells a fork).
Rule 3: nothing that a peer sends, or fails to read, blocks or ends a process.

Options that hold everywhere, by `_socket`:

- MAXMSGSIZE, per frame; `receive` counts frames and bytes, which libzmq does not.
- LINGER bounded, so that closing a context ends in bounded time.
- IMMEDIATE=1 where a queue must not outlive its connection: on a client's DEALER (a request queued
  for a broker that is gone would reach the next one late) and on the store's XPUB (it forgets the
  subscriptions that came through a broker that is gone). Never where messages of several frames
  are received: libzmq 4.3.5 drops such a connection between two frames, and aborts the process
  ("!_more", fq.cpp) at the next read.
- BACKLOG and HANDSHAKE_IVL: after a restart everybody comes at once; what does not speak is cut
  off. Out of descriptors, a tcp listener waits (and spins), an ipc listener aborts the process:
  servers raise their limit when they start (`process.raise_descriptor_limit`).
- No ZMTP heartbeats: a reader with a full queue does not see them and is cut off, and then
  libzmq 4.3.5 may abort its process ("_input_stopped"). Liveness is an application matter; TCP
  keep-alive and TCP_MAXRT find hosts that vanished.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import math
import os
import re
import select
import stat
import struct
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, NamedTuple

import zmq
import zmq.backend

from ckptmesh.config import IPC_PATH_BYTES
from ckptmesh.errors import AddressInUse, Closed, InvalidUrl, Unavailable
from ckptmesh.limits import PUBLISH_QUEUE, QUEUE, SOCKET_BYTES, SUBSCRIPTIONS

Socket = zmq.Socket[bytes]
Context = zmq.Context[zmq.Socket[bytes]]
ContextEnded = zmq.ContextTerminated

LINGER = 500  # milliseconds that a closing socket goes on sending what it holds
RECONNECT = 50  # milliseconds before the first attempt to connect again …
RECONNECT_MAX = 1_000  # … doubled up to this
HANDSHAKE = 5_000  # milliseconds for a new connection to speak ZMTP; else its descriptor goes
KEEPALIVE = (10, 5, 3)  # TCP: seconds idle, seconds between probes, probes
UNACKNOWLEDGED = 30_000  # milliseconds that TCP data may stay unacknowledged (half-open peers)
BACKLOG = 1_024  # connections waiting to be accepted: after a restart everybody comes at once

STORE_PARTS = 3  # frames at a store: two identities through the broker (one directly), payload
CLIENT_PARTS = 1  # frames at a client: the payload

_CANNOT = ("name an address of this machine (0.0.0.0: all of them) with a port from 1024 on, or a "
           "path in a directory that can be written")
_TAKEN = ("is another broker or store running? Stop it, or choose other addresses "
          "(--bind, --publish, --direct) or another directory (--data)")

EXHAUSTED = "close clients that are no longer used, or raise `ulimit -n`"

_HOST = re.compile(r"[\w.-]{1,255}|\[[\w.:%-]+\]", re.ASCII)
_SCHEMES = "tcp://HOST:PORT or ipc://PATH"

# pyzmq's own methods under its public ones, with plain integers as flags: each message passes here,
# and the public layer took as long again (its enums' arithmetic most of all).
_receive: Callable[[Socket, int], bytes] = zmq.backend.Socket.recv
_send: Callable[[Socket, bytes, int], object] = zmq.backend.Socket.send
_get: Callable[[Socket, int], Any] = zmq.backend.Socket.get
_DONTWAIT, _DONTWAIT_MORE = int(zmq.DONTWAIT), int(zmq.DONTWAIT | zmq.SNDMORE)
_MORE, _EVENTS, _IN = int(zmq.RCVMORE), int(zmq.EVENTS), int(zmq.POLLIN)


class _Context(zmq.Context[zmq.Socket[bytes]]):
    def __del__(self) -> None:
        """Nothing. pyzmq's would wait here for sockets of a client that was dropped without
        `close`, for ever, in whatever code the garbage collector interrupts."""


def context() -> Context:
    """A new context for this process. One I/O thread: `Peers` relies on the order of its events.

    Never shared with a forked child: there a send succeeds and no reply ever comes (`Owner`).
    """
    return _Context(io_threads=1)


class Owner:
    """Remembers which process made a context, and refuses any other."""

    def __init__(self) -> None:
        self._pid = os.getpid()

    def check(self, what: str = "client") -> None:
        """Raises `Closed` in any process but the one that made this."""
        pid = os.getpid()
        if pid != self._pid:
            raise Closed(
                f"this {what} was made in process {self._pid} and is used in its fork {pid}",
                hint="connect again in the child, or start children with 'spawn'",
                pid=pid, owner=self._pid,
            )


# --- factories --------------------------------------------------------------------------------


def _socket(
    ctx: Context, kind: int, *, send: int, receive: int, immediate: bool = False,
    linger: int = LINGER,
) -> Socket:
    """A socket with the options that hold everywhere. `send`, `receive`: hwm, messages a peer."""
    try:
        socket = ctx.socket(kind)
    except zmq.ZMQError as error:
        if error.errno == errno.EMFILE:
            raise Unavailable(
                "no file descriptor is left for another socket", hint=EXHAUSTED
            ) from error
        raise
    socket.setsockopt(zmq.SNDHWM, send)
    socket.setsockopt(zmq.RCVHWM, receive)
    socket.setsockopt(zmq.LINGER, linger)
    socket.setsockopt(zmq.MAXMSGSIZE, SOCKET_BYTES)
    socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE)
    socket.setsockopt(zmq.BACKLOG, BACKLOG)
    idle, interval, probes = KEEPALIVE
    socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
    socket.setsockopt(zmq.TCP_KEEPALIVE_IDLE, idle)
    socket.setsockopt(zmq.TCP_KEEPALIVE_INTVL, interval)
    socket.setsockopt(zmq.TCP_KEEPALIVE_CNT, probes)
    socket.setsockopt(zmq.RECONNECT_IVL, RECONNECT)
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, RECONNECT_MAX)
    socket.setsockopt(zmq.IMMEDIATE, int(immediate))
    if kind in (zmq.ROUTER, zmq.DEALER):
        # Not on publication paths: a watcher may well leave its window closed for a minute.
        socket.setsockopt(zmq.TCP_MAXRT, UNACKNOWLEDGED)
    return socket


def broker_frontend(ctx: Context) -> Socket:
    """The broker's ROUTER, where clients connect.

    No MANDATORY: a reply to a client that left would end the proxy. HANDOVER stays 0: with 1 a
    peer could take another's identity and receive its replies.
    """
    socket = _socket(ctx, zmq.ROUTER, send=QUEUE, receive=QUEUE)
    socket.setsockopt(zmq.ROUTER_MANDATORY, 0)
    socket.setsockopt(zmq.ROUTER_HANDOVER, 0)
    return socket


def broker_backend(ctx: Context) -> Socket:
    """The broker's DEALER, where the store connects."""
    return _socket(ctx, zmq.DEALER, send=QUEUE, receive=QUEUE)


def publications_frontend(ctx: Context) -> Socket:
    """The broker's XPUB, where watchers subscribe. A watcher that does not read loses messages
    beyond its hwm and repairs the gap; it never holds up the others."""
    return _socket(ctx, zmq.XPUB, send=PUBLISH_QUEUE, receive=SUBSCRIPTIONS)


def publications_backend(ctx: Context) -> Socket:
    """The broker's XSUB, where the store's XPUB connects. It repeats all subscriptions to a new
    store at once; those beyond its send hwm would be lost without an error."""
    return _socket(ctx, zmq.XSUB, send=SUBSCRIPTIONS, receive=PUBLISH_QUEUE)


def no_store_router(ctx: Context) -> Socket:
    """The broker's own ROUTER that answers while there is no store (inproc only)."""
    return _socket(ctx, zmq.ROUTER, send=QUEUE, receive=QUEUE)


def store_requests(ctx: Context) -> Socket:
    """The store's ROUTER: connects to the broker and may bind a direct address.

    No IMMEDIATE (see above). So a reply may wait for a broker that is gone; the next broker does
    not know its receiver and drops it.

    MANDATORY, so that an unroutable reply is seen and counted. Only ever used through `send`,
    which never waits: with MANDATORY alone a peer that does not read would block the actor.
    """
    socket = _socket(ctx, zmq.ROUTER, send=QUEUE, receive=QUEUE)
    socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
    socket.setsockopt(zmq.ROUTER_HANDOVER, 0)
    return socket


def store_publications(ctx: Context) -> Socket:
    """The store's XPUB: connects to the broker, which passes its watchers' subscriptions on."""
    return _socket(ctx, zmq.XPUB, send=PUBLISH_QUEUE, receive=SUBSCRIPTIONS, immediate=True)


def client_requests(ctx: Context) -> Socket:
    """A DEALER as a client in another language has it: never REQ, which would wedge when a reply is
    lost. Our own clients speak ZMTP themselves (`stream.py`)."""
    return _socket(ctx, zmq.DEALER, send=QUEUE, receive=QUEUE, immediate=True)


def watcher(ctx: Context) -> Socket:
    """A watcher's SUB: a bounded queue, which drops; the pointers in publications tell.

    After the broker restarts it subscribes again when its thread next touches it.
    """
    return _socket(ctx, zmq.SUB, send=QUEUE, receive=PUBLISH_QUEUE, linger=0)


def publisher(ctx: Context) -> Socket:
    """A PUB for the broker's own health beats (inproc only)."""
    return _socket(ctx, zmq.PUB, send=PUBLISH_QUEUE, receive=QUEUE, linger=0)


# --- addresses --------------------------------------------------------------------------------


class Address(NamedTuple):
    """A parsed URL: tcp has host and port ("0" or "*": any free one), ipc has a path as host."""

    scheme: str
    host: str
    port: str

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.host}" + (f":{self.port}" if self.scheme == "tcp" else "")


def address(url: str) -> Address:
    """The parts of a URL of a socket. Relative ipc paths are made absolute, because a peer may
    stand in another directory. Raises `InvalidUrl`, which tells what is known."""
    scheme, separator, rest = url.partition("://")
    if not separator or not rest or scheme not in ("tcp", "ipc"):
        raise InvalidUrl(f"{url!r} is not an address of ckptmesh: write {_SCHEMES}", url=url)
    if scheme == "ipc":
        path = rest if rest[0] in "@*" else os.path.abspath(rest)
        if len(os.fsencode(path)) > IPC_PATH_BYTES:
            raise InvalidUrl(
                f"the path of {url!r} has {len(os.fsencode(path))} bytes; a Unix socket's path "
                f"has at most {IPC_PATH_BYTES}",
                hint="choose a shorter folder, or a tcp:// address", url=url,
            )
        return Address("ipc", path, "")
    host, _, port = rest.rpartition(":")
    number = int(port) if port.isascii() and port.isdigit() and len(port) <= 5 else -1
    if not host or (port != "*" and not 0 <= number <= 65_535):
        raise InvalidUrl(
            f"{url!r} needs a host and a port from 1 to 65535, as in tcp://127.0.0.1:7701", url=url
        )
    if ":" in host and not (host[0] == "[" and host[-1] == "]"):
        raise InvalidUrl(f"{url!r}: write an IPv6 address in brackets, tcp://[::1]:7701", url=url)
    return Address("tcp", host, port)


class Bound:
    """A bound address. `url` is the real one (a wildcard port is known now).

    `release()` removes an ipc address and gives up the lock that guards it; call it once the
    socket is closed.
    """

    def __init__(self, url: str, lock: int | None) -> None:
        self.url = url
        self._lock = lock

    def release(self) -> None:
        if self._lock is not None:
            with contextlib.suppress(OSError):  # libzmq leaves it behind
                os.unlink(self.url.removeprefix("ipc://"))
            os.close(self._lock)
            self._lock = None


def bind(socket: Socket, url: str) -> Bound:
    """Bind a socket to a tcp or ipc URL.

    An ipc bind silently steals the address of a live process, so a lock file beside it
    (`PATH.lock`) guards it. Raises `InvalidUrl`, or `AddressInUse` when somebody stands there.
    """
    where = address(url)
    if where.scheme == "tcp" and where.host == "localhost":
        where = where._replace(host="127.0.0.1")  # libzmq resolves no names when it binds
    lock = _lock_ipc(where, url) if where.scheme == "ipc" and where.host[0] not in "@*" else None
    try:
        _allow_ipv6(socket, where)
        socket.bind(where.url)
    except zmq.ZMQError as error:
        if lock is not None:
            os.close(lock)
        if error.errno == errno.EADDRINUSE:
            raise AddressInUse(
                f"{url} is taken by another process",
                hint=_TAKEN, url=url,
            ) from error
        raise InvalidUrl(f"cannot bind {url}: {error.strerror}", hint=_CANNOT, url=url) from error
    return Bound(socket.getsockopt_string(zmq.LAST_ENDPOINT), lock)


def reachable(url: str) -> Address:
    """The parts of a URL to connect to. Raises `InvalidUrl`, also for a wildcard."""
    where = address(url)
    if where.scheme == "tcp" and (where.port in ("*", "0") or where.host == "*"):
        raise InvalidUrl(f"{url!r} has a wildcard: to connect, name the host and port", url=url)
    if where.scheme == "ipc" and where.host == "*":
        raise InvalidUrl(f"{url!r} has a wildcard: to connect, name the path", url=url)
    if where.scheme == "tcp" and not _HOST.fullmatch(where.host):
        raise InvalidUrl(f"{url!r} names no host that there could be", url=url)
    return where


def connect(socket: Socket, url: str) -> None:
    """Connect a socket; libzmq does so in the background, again and again. Raises `InvalidUrl`."""
    where = reachable(url)
    try:
        _allow_ipv6(socket, where)
        socket.connect(where.url)
    except zmq.ZMQError as error:
        raise InvalidUrl(f"cannot connect to {url}: {error.strerror}", url=url) from error


def bind_inside(socket: Socket, name: str) -> None:
    """Make a socket reachable, under a name, for others of the same context."""
    socket.bind(f"inproc://{name}")


def connect_inside(socket: Socket, name: str) -> None:
    """Connect to what `bind_inside` made reachable. Also while another thread uses that one."""
    socket.connect(f"inproc://{name}")


def disconnect_inside(socket: Socket, name: str) -> None:
    """Undo `connect_inside`. What was sent still arrives; what was not yet read is lost."""
    socket.disconnect(f"inproc://{name}")


def dialable(publish_url: str, request_url: str) -> str:
    """The address to subscribe at, for a client that reached the broker at `request_url`.

    A broker bound to all interfaces announces a wildcard host: it stands for the host that the
    client itself connected to, and for this machine where that was a Unix socket.
    """
    if not publish_url:
        return ""
    publish, request = address(publish_url), address(request_url)
    if publish.scheme != "tcp" or publish.host not in ("*", "0.0.0.0", "[::]"):
        return publish.url
    host = request.host if request.scheme == "tcp" else "127.0.0.1"
    return publish._replace(host=host).url


def _allow_ipv6(socket: Socket, where: Address) -> None:
    if where.scheme == "tcp" and where.host[0] == "[":
        socket.setsockopt(zmq.IPV6, 1)


def _lock_ipc(where: Address, url: str) -> int:
    path = where.host
    try:
        lock = os.open(path + ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise InvalidUrl(f"cannot bind {url}: {error.strerror}", url=url) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.lexists(path) and not stat.S_ISSOCK(os.lstat(path).st_mode):
            # libzmq would unlink it.
            raise InvalidUrl(f"cannot bind {url}: a file that is no socket stands there", url=url)
    except BlockingIOError:
        os.close(lock)
        raise AddressInUse(
            f"{url} is taken by another process",
            hint=_TAKEN, url=url,
        ) from None
    except BaseException:
        os.close(lock)
        raise
    return lock


# --- messages ---------------------------------------------------------------------------------


def receive(socket: Socket, most: int) -> list[bytes] | None:
    """One whole message without waiting: its frames, or None when nothing waits.

    An empty list stands for a message that was read and dropped, because it had more than `most`
    frames or more than `limits.SOCKET_BYTES` bytes: MAXMSGSIZE bounds a frame, not a message.
    """
    try:
        frame = _receive(socket, _DONTWAIT)
    except zmq.Again:
        return None
    if not _get(socket, _MORE):
        return [frame]
    frames = [frame]
    size = len(frame)
    fits = True
    more = True
    while more:
        frame = _receive(socket, _DONTWAIT)  # a message arrives whole
        size += len(frame)
        fits = fits and len(frames) < most and size <= SOCKET_BYTES
        if fits:
            frames.append(frame)
        more = _get(socket, _MORE)
    return frames if fits else []


def send(socket: Socket, frames: Sequence[bytes]) -> bool:
    """Send one message without waiting. False when it could not go: no such peer any more, no
    connection, or a peer that does not read. The caller counts that and goes on."""
    *first, last = frames
    try:
        for frame in first:  # libzmq takes a message whole, or refuses its first frame
            _send(socket, frame, _DONTWAIT_MORE)
        _send(socket, last, _DONTWAIT)
    except zmq.ZMQError as error:
        if error.errno in (errno.EAGAIN, errno.EHOSTUNREACH):
            return False
        raise
    return True


def poll(sources: Iterable[Socket | int], timeout: float | None) -> list[Socket | int]:
    """Those sockets and descriptors from which something can be read, after at most `timeout`
    seconds (None: for ever)."""
    wait = -1 if timeout is None else max(0, math.ceil(timeout * 1_000))
    return [ready for ready, _ in zmq.zmq_poll([(s, _IN) for s in sources], wait)]


class Sleep:
    """Waits for sockets and a descriptor on their descriptors alone. `poll` asks libzmq about each
    socket four times, and each time libzmq makes two system calls.

    A socket's descriptor tells changes only, so it must be asked for with `readable` (or read until
    nothing waits) after it was used and before each sleep.
    """

    def __init__(self, watched: Iterable[Socket], wake: int) -> None:
        self._sockets = {descriptor(socket): socket for socket in watched}
        self._poll = select.poll()
        for each in (*self._sockets, wake):
            self._poll.register(each, select.POLLIN)

    def sleep(self, timeout: float) -> list[Socket]:
        """The sockets in which something may have changed, after at most `timeout` seconds."""
        ready = self._poll.poll(max(0, math.ceil(timeout * 1_000)))
        return [self._sockets[each] for each, _ in ready if each in self._sockets]


def readable(socket: Socket) -> bool:
    """Whether a message waits. An event loop that watches `descriptor` asks this after every use
    of the socket too: the descriptor tells changes only, not that more is there."""
    return bool(_get(socket, _EVENTS) & _IN)


def writable(socket: Socket) -> bool:
    """Whether a message could be sent now. With IMMEDIATE=1 this needs a live connection."""
    return bool(int(socket.getsockopt(zmq.EVENTS)) & zmq.POLLOUT)


def descriptor(socket: Socket) -> int:
    """The descriptor for an event loop; becomes readable when the socket's state changes."""
    return int(socket.getsockopt(zmq.FD))


def subscribe(socket: Socket, topic: bytes) -> None:
    """Subscribe a SUB to all publications that begin with `topic`."""
    socket.setsockopt(zmq.SUBSCRIBE, topic)


def subscription_changes(xpub: Socket, most: int = 1_000) -> tuple[list[tuple[bool, bytes]], bool]:
    """What an XPUB heard of its subscribers: (True, topic) when the first subscribed, (False,
    topic) when the last left; and whether more may be waiting. At most `most` at once, without
    waiting. Anything else that a hostile subscriber sends upstream is dropped."""
    found: list[tuple[bool, bytes]] = []
    for _ in range(most):
        frames = receive(xpub, 1)
        if frames is None:
            return found, False
        if frames and frames[0][:1] in (b"\0", b"\1"):
            found.append((frames[0].startswith(b"\1"), frames[0][1:]))
    return found, True


def proxy(front: Socket, back: Socket) -> None:
    """Pass messages both ways, in libzmq, without the GIL, until the context ends."""
    zmq.proxy(front, back)


# --- who is connected -------------------------------------------------------------------------


class Peers:
    """Counts the peers that finished their handshake with a socket, from its monitor.

    A connection that never speaks ZMTP (a port scan, a half-open one) never counts. libzmq names
    the descriptor when it accepts and when it disconnects, but not when a handshake succeeds; a
    connection whose handshake failed is told by a failure right before its disconnection, and
    with one I/O thread these two come one after the other.

    Made by the thread that owns the socket, before it binds or connects; read by any one thread.
    """

    _FAILED: ClassVar[int] = (
        zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
        | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
        | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    )
    _OPENED: ClassVar[int] = zmq.EVENT_ACCEPTED | zmq.EVENT_CONNECTED

    def __init__(self, ctx: Context, socket: Socket) -> None:
        url = f"inproc://peers-{id(self):x}"
        events = self._OPENED | self._FAILED
        socket.monitor(url, events | zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)
        self.socket: Socket = ctx.socket(zmq.PAIR)
        # No bound: with one, libzmq's I/O thread would wait for us, and all traffic with it.
        self.socket.setsockopt(zmq.RCVHWM, 0)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.connect(url)
        self.count = 0
        self._open: set[int] = set()
        self._failed = False

    def read(self) -> int:
        """Take in what happened, without waiting; the number of peers now."""
        while (frames := receive(self.socket, 2)) is not None:
            if len(frames) == 2 and len(frames[0]) == 6:
                self._note(*struct.unpack("=HI", frames[0]))
        return self.count

    def _note(self, event: int, value: int) -> None:
        if event & self._OPENED:
            self._open.add(value)
        elif event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self.count += 1
        elif event & self._FAILED:
            self._failed = True
            return
        elif event == zmq.EVENT_DISCONNECTED:
            self._open.discard(value)
            if not self._failed:
                self.count -= 1
            self.count = max(0, min(self.count, len(self._open)))
        self._failed = False

    def close(self) -> None:
        """Stop listening."""
        self.socket.close()
