"""A TCP proxy that breaks connections: between a client and a broker, or a broker and its store.

    with ChaosProxy("tcp://127.0.0.1:7701", seed=1) as proxy:
        mesh = ckptmesh.connect(proxy.url)
        proxy.partition()        # both ends believe that they are connected; nothing passes
        proxy.heal()             # what waited passes now, as after a real partition
        proxy.reset_all()        # every connection is reset; what was under way is lost

It works below ZMTP, so it loses connections, never single messages: a TCP stream with a hole is
no stream any more. What a cut loses is whatever was under way, up to the middle of a frame; the
ZeroMQ sockets at both ends connect again by themselves, and the programs above ask again.

Rule 1: one thread, the proxy's own, does all the work; methods may be called from any other, and
        return once the fault stands.
Rule 2: a fault stands for the connections that there are and for those that come, until `heal`.
Rule 3: chance comes from `seed` alone. What the network itself does (where a read ends) is not
        in its hands, so a seed gives the same faults, not the same bytes in each piece.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import threading
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, cast

from ckptmesh import sockets

T = TypeVar("T")

Way = Literal["up", "down", "both"]
"""up: from whoever connected to the target; down: from the target; both."""

HELD = 256 * 1_024  # bytes kept for each way of a connection; beyond it the sender has to wait
PATIENCE = 10.0  # seconds until a call into the proxy's thread counts as stuck
_GAP = 0.001  # seconds between two pieces that are to arrive alone


def pieces(data: bytes, most: int, chance: random.Random) -> list[bytes]:
    """`data` in pieces of 1 to `most` bytes, as chance has it; whole for 0."""
    if not most:
        return [data]
    found, at = [], 0
    while at < len(data):
        size = chance.randint(1, most)
        found.append(data[at : at + size])
        at += size
    return found


@dataclass
class _Fault:
    """What happens one way."""

    delay: float = 0.0
    jitter: float = 0.0
    rate: float = 0.0  # bytes a second; 0: no bound
    most: int = 0  # bytes in one piece; 0: as they come
    held: bool = False
    swallowed: bool = False
    left: int | None = None  # bytes that each connection may still pass before it is cut


class ChaosProxy:
    """Listens on a free loopback port (`url`) and connects each that comes to `target`, a
    tcp:// or ipc:// URL. A context manager; listens from `__enter__` to `__exit__`.

    `counts` tells what happened so far: `accepted` connections, those `cut` (by `reset_all`,
    `cut_after`, or by `heal` after a black hole) and those `refused`; bytes passed `up` and `down`.

    Raises `InvalidUrl` for a target that is neither, `ValueError` where a way is asked for that is
    none, and `RuntimeError` for a fault outside of the `with` block.
    """

    def __init__(self, target: str, *, seed: int = 0) -> None:
        self._target = sockets.address(target)
        self._chance = random.Random(seed)
        self._faults = {"up": _Fault(), "down": _Fault()}
        self._refusing = False
        self._pairs: set[_Pair] = set()
        self.counts: Counter[str] = Counter()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._server: asyncio.Server | None = None
        self.url = ""

    # --- life ---------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(
            self._loop.create_server(lambda: _Pair(self).front, "127.0.0.1", 0), self._loop
        ).result(PATIENCE)
        self.url = f"tcp://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._run(self._end)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE)
        self._loop.close()

    @property
    def connections(self) -> int:
        """Connections that stand now, as whoever connected sees it."""
        return self._run(lambda: len(self._pairs))

    @property
    def waiting(self) -> int:
        """Bytes that were accepted and have not passed yet, both ways together."""
        return self._run(lambda: sum(pair.front.bytes + pair.back.bytes for pair in self._pairs))

    # --- faults -------------------------------------------------------------------------------

    def partition(self, way: Way = "both") -> None:
        """Let nothing pass that way, and lose nothing: the bytes wait until `heal`. New connections
        are accepted and reach nobody. An end that closes is not heard of at the other one."""
        self._set(way, held=True)

    def black_hole(self, way: Way = "both") -> None:
        """Accept everything that way and forward nothing, ever: a half-open connection, whose
        other end has vanished. `heal` cuts the connections that lost bytes to it."""
        self._set(way, swallowed=True)

    def forget(self) -> None:
        """As `black_hole`, but only for the connections that there are: a firewall on the way has
        forgotten them, and new ones pass."""
        def change() -> None:
            for pair in self._pairs:
                pair.forgotten = True

        self._run(change)

    def delay(self, seconds: float, jitter: float = 0.0, way: Way = "both") -> None:
        """Let each piece arrive `seconds` later, and up to `jitter` seconds more; in order."""
        self._set(way, delay=seconds, jitter=jitter)

    def throttle(self, bytes_per_second: float, way: Way = "both") -> None:
        """Let no more than so many bytes a second pass on each connection; 0: as many as come."""
        self._set(way, rate=bytes_per_second)

    def split(self, most: int = 1, way: Way = "both") -> None:
        """Send pieces of 1 to `most` bytes, a millisecond or more apart; 0: as they come."""
        self._set(way, most=most)

    def cut_after(self, count: int, way: Way = "both") -> None:
        """Reset each connection once `count` more bytes have passed it that way: with a count that
        ends inside a frame, the frame is cut in its middle. New connections count from their
        beginning."""
        self._set(way, left=count)

    def refuse(self) -> None:
        """Reset new connections at once. Those that there are stay."""
        self._run(lambda: setattr(self, "_refusing", True))

    def reset_all(self) -> int:
        """Reset every connection, at both ends; how many there were. What they had not yet passed
        is lost."""
        return self._run(lambda: sum(pair.cut() for pair in list(self._pairs)))

    def heal(self) -> None:
        """End every fault. Bytes that waited pass; connections with a hole are cut."""
        self._run(self._heal)

    # --- inside, in the proxy's thread ---------------------------------------------------------

    def _run(self, call: Callable[[], T]) -> T:
        if not self._loop.is_running():
            raise RuntimeError("a ChaosProxy works inside its `with` block only")

        async def there() -> T:
            return call()

        return asyncio.run_coroutine_threadsafe(there(), self._loop).result(PATIENCE)

    def _set(self, way: Way, **changes: Any) -> None:
        if way not in ("up", "down", "both"):
            raise ValueError(f"a way is 'up', 'down' or 'both', not {way!r}")

        def change() -> None:
            for name in ("up", "down") if way == "both" else (way,):
                for field, value in changes.items():
                    setattr(self._faults[name], field, value)
            for pair in list(self._pairs):
                if "left" in changes:
                    pair.front.passed = pair.back.passed = 0
                pair.turn()

        self._run(change)

    def _heal(self) -> None:
        self._refusing = False
        self._faults.update(up=_Fault(), down=_Fault())
        for pair in list(self._pairs):
            if pair.holed:
                pair.cut()
                continue
            pair.forgotten = False
            pair.front.release()
            pair.back.release()
            pair.turn()

    def _end(self) -> None:
        if self._server is not None:
            self._server.close()
        for pair in list(self._pairs):
            pair.cut()


class _Pair:
    """Two connections, one to each end, and what is on its way between them."""

    def __init__(self, proxy: ChaosProxy) -> None:
        self.proxy = proxy
        self.forgotten = False
        self.holed = False  # it lost bytes, so it can never go on
        self.front, self.back = _End(self, "up"), _End(self, "down")
        self._dialling: asyncio.Task[None] | None = None

    def opened(self) -> None:
        """Whoever connects is there."""
        proxy = self.proxy
        proxy.counts["accepted"] += 1
        if proxy._refusing:
            proxy.counts["refused"] += 1
            self.front.reset()
            return
        proxy._pairs.add(self)
        self.turn()

    def turn(self) -> None:
        """Go on with whatever may go on now."""
        if self._dialling is None and self.front.open_way:
            self._dialling = self.proxy._loop.create_task(self._dial())
        for end in (self.front, self.back):
            end.forward()

    async def _dial(self) -> None:
        where, loop = self.proxy._target, self.proxy._loop
        try:
            if where.scheme == "ipc":
                await loop.create_unix_connection(lambda: self.back, where.host)
            else:
                await loop.create_connection(lambda: self.back, where.host, int(where.port))
        except OSError:
            self.reset()  # nobody listens there: told as the system would tell it
        else:
            self.turn()

    def cut(self) -> int:
        """Reset both ends as a fault; 1, or 0 when they were already gone."""
        if self not in self.proxy._pairs:
            return 0
        self.proxy.counts["cut"] += 1
        self.reset()
        return 1

    def reset(self) -> None:
        """Close both ends at once."""
        self.proxy._pairs.discard(self)
        if self._dialling is not None:
            self._dialling.cancel()
        self.front.reset()
        self.back.reset()

    def finish(self) -> None:
        """Both ends have closed, and all that they sent has passed."""
        self.proxy._pairs.discard(self)
        for end in (self.front, self.back):
            if end.transport is not None:
                end.transport.close()


class _End(asyncio.Protocol):
    """One end: what is read here goes to the other one; `way` says in which direction."""

    def __init__(self, pair: _Pair, way: Literal["up", "down"]) -> None:
        self.pair = pair
        self.way: Literal["up", "down"] = way
        self.transport: asyncio.Transport | None = None
        self.passed = 0  # bytes, since `cut_after` was asked for
        self._proxy = pair.proxy
        self._waiting: deque[tuple[float, bytes]] = deque()  # (when it may leave, bytes)
        self.bytes = 0  # of all that waits
        self._last = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._ended = self._broken = False  # its peer sends no more; and not by closing properly
        self._writable = True

    @property
    def fault(self) -> _Fault:
        """What happens to what is read here."""
        return self._proxy._faults[self.way]

    @property
    def open_way(self) -> bool:
        """Whether anything passes at all."""
        return not self.fault.held and not self._swallows

    @property
    def _swallows(self) -> bool:
        return self.fault.swallowed or self.pair.forgotten

    @property
    def other(self) -> _End:
        return self.pair.back if self is self.pair.front else self.pair.front

    # --- what asyncio calls ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        with contextlib.suppress(OSError):  # an ipc target has no such option
            self.transport.get_extra_info("socket").setsockopt(
                socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self is self.pair.front:
            self.pair.opened()

    def data_received(self, data: bytes) -> None:
        fault = self.fault
        if self._swallows:
            self.pair.holed = True
            return
        now = self._proxy._loop.time()
        for piece in pieces(data, fault.most, self._proxy._chance):
            due = now + fault.delay + fault.jitter * self._proxy._chance.random()
            due = max(due, self._last + (_GAP if fault.most else 0.0))
            self._last = due + (len(piece) / fault.rate if fault.rate else 0.0)
            self._waiting.append((self._last, piece))
            self.bytes += len(piece)
        self.forward()

    def eof_received(self) -> bool:
        self._ended = True
        self.forward()
        return True  # stays open for the way back, until that has ended too

    def connection_lost(self, error: Exception | None) -> None:
        self.transport = None
        self._ended = True
        self._broken = self._broken or error is not None
        self.forward()

    def pause_writing(self) -> None:
        self._writable = False

    def resume_writing(self) -> None:
        self._writable = True
        self.other.forward()

    # --- what the pair calls ---

    def forward(self) -> None:
        """Pass on what is due, as far as the faults of this way allow."""
        if self.open_way and self.pair in self._proxy._pairs:
            now = self._proxy._loop.time()
            while self._waiting and self._waiting[0][0] <= now and self._can_pass():
                if not self._pass(self._waiting.popleft()[1]):
                    return
            self._come_back(now)
            if self._broken:
                self.pair.reset()
            elif self._ended and not self._waiting:
                self._pass_the_end()
        self._bound()

    def release(self) -> None:
        """Nothing that waits has to wait any longer."""
        self._waiting = deque((0.0, piece) for _, piece in self._waiting)
        self._last = 0.0

    def reset(self) -> None:
        """Close at once, with a reset, so that the peer hears of it."""
        transport, self.transport = self.transport, None
        self._waiting.clear()
        self.bytes = 0
        self._come_back(0.0)
        if transport is not None:
            with contextlib.suppress(OSError):
                transport.get_extra_info("socket").setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            transport.abort()

    # --- inside ---

    def _can_pass(self) -> bool:
        return self.other.transport is not None and self.other._writable

    def _pass(self, piece: bytes) -> bool:
        """Write one piece. False when that was where the connection is to be cut."""
        self.bytes -= len(piece)
        left = self.fault.left
        if left is not None:
            piece = piece[: max(0, left - self.passed)]
        assert self.other.transport is not None
        self.other.transport.write(piece)
        self.passed += len(piece)
        self._proxy.counts[self.way] += len(piece)
        if left is not None and self.passed >= left:
            self.pair.cut()
            return False
        return True

    def _come_back(self, now: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None
        if self._waiting and self._waiting[0][0] > now:
            self._timer = self._proxy._loop.call_at(self._waiting[0][0], self.forward)

    def _bound(self) -> None:
        """Read on only while not too much waits: the sender is held back as by a real network."""
        if self.transport is not None and not self._ended:
            if self.bytes >= HELD:
                self.transport.pause_reading()
            else:
                self.transport.resume_reading()

    def _pass_the_end(self) -> None:
        other = self.other
        if other._ended and not other._waiting:
            self.pair.finish()
        elif other.transport is not None and not other.transport.is_closing():
            other.transport.write_eof()
