"""What both shells share: a session, a transport, and the figures of what went through.

Rule 1: nothing here waits; `client.py` and `aio.py` do, each in its own way.
Rule 2: not thread-safe. Whoever calls it holds the client's lock.
"""

from __future__ import annotations

import os
import random
import secrets
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

from ckptmesh import bundles, commands, protocol
from ckptmesh.api import Api
from ckptmesh.backends.base import Capability
from ckptmesh.calls import Call, Lane
from ckptmesh.config import DEFAULT_URL
from ckptmesh.errors import Closed, Error, Misuse, Unavailable, Unsupported
from ckptmesh.express import ExpressSession
from ckptmesh.feed import SharedContext, WatchSource
from ckptmesh.limits import SESSION_NAME_BYTES
from ckptmesh.messages import Command, Outcome, Put, Rows, Transact
from ckptmesh.process import resident_bytes
from ckptmesh.sockets import Owner
from ckptmesh.stats import OperationStats
from ckptmesh.stream import StreamTransport
from ckptmesh.transport import Transport

FOREVER = float("inf")
SHORT_WAIT = 0.02  # seconds that the short way of a commit keeps other threads from the link
CONNECT_TIMEOUT = 5.0  # seconds for the first round trip: a wrong address is told soon
COMPACT_TIMEOUT = 600.0  # seconds for `compact`, which writes the whole state once
CLOSE_TIMEOUT = 1.0  # seconds to end a session; one that is left behind ends by itself, later


class Link:
    """One client's way to its store: requests in, settled calls out."""

    def __init__(self, transport: Transport, name: str | None) -> None:
        self.transport = transport
        self.session = ExpressSession(
            name or default_name(), pack=commands.pack_command, jitter=random.random,
            where=transport.url, first=1 + secrets.randbits(52))
        self.owner = Owner()
        self._encoder = protocol.PutEncoder()
        self.context = SharedContext()
        self.stats = OperationStats()
        self.garbled = 0  # payloads that were no reply
        self._since = time.monotonic()

    def call(self, command: Command, deadline: float) -> Call:
        """Ask for a command; `deadline` in `time.monotonic()`. Raises `Closed`, `TooLarge`."""
        return self.session.call(command, time.monotonic(), deadline)

    def commit(self, key: str, value: bytes, deadline: float) -> Outcome | Call | None:
        """The short way of a put of a packed value and nothing else: its outcome, or the call that
        it has become because it takes longer. None: the way is not clear, nothing was asked.

        Nobody else may use this link meanwhile.
        """
        session, transport = self.session, self.transport
        lane, now = session.clear(), time.monotonic()
        if lane is None or deadline <= now:
            return None
        number = lane.next
        payload = self._encoder.encode(key, value, lane.session, number, session.uuid,
                                       session.epoch)
        if not transport.send(payload):
            return None
        self.stats.bytes_out += len(payload)
        payloads: list[bytes] = []
        broken: Error | None = None
        try:
            payloads = transport.receive(min(SHORT_WAIT, deadline - now))
        except Error as error:
            broken = error
        except BaseException:  # KeyboardInterrupt above all
            session.give_up(self._adopt(lane, key, value, now, deadline))
            raise
        outcome = None
        if len(payloads) == 1:
            outcome = protocol.outcome_in(payloads[0], lane.session, number, session.epoch)
        if outcome is None or not session.landed(lane, outcome):
            call = self._adopt(lane, key, value, now, deadline)
            if broken is not None:
                session.fail(broken)
            self.feed(payloads)
            return call
        self.stats.bytes_in += len(payloads[0])
        self.stats.add("put", time.monotonic() - now, None)
        return outcome

    def _adopt(self, lane: Lane, key: str, value: bytes, now: float, deadline: float) -> Call:
        return self.session.adopt(lane, Transact((), (Put(key, value),)), now, deadline)

    def find(self, lost: Call, deadline: float) -> Call:
        """Ask what became of a transaction that was given up."""
        return self.session.find(lost, time.monotonic(), deadline)

    def send(self) -> None:
        """Send what is due, and settle what is overdue."""
        session, transport = self.session, self.transport
        for group in bundles.gather(session.copies(time.monotonic())):
            payload = bundles.encode_requests(group)
            if transport.send(payload):
                self.stats.bytes_out += len(payload)
            else:
                for copy in group:
                    session.unsent(copy)

    def expire(self) -> None:
        """Settle what is overdue, without sending anything."""
        self.session.expire(time.monotonic())

    def feed(self, payloads: list[bytes]) -> None:
        """Take in what arrived."""
        now = time.monotonic()
        for payload in payloads:
            self.stats.bytes_in += len(payload)
            try:
                replies = bundles.decode_replies(payload)
            except Unsupported as error:
                self.session.fail(error)  # it will not speak our version later either
            except Error:
                self.garbled += 1
            else:
                for op, reply in replies:
                    self.session.receive(op, reply, now)

    def settled(self) -> list[Call]:
        """The calls that have settled since the last time, counted."""
        done = self.session.settled()
        if not done:
            return done
        now, add = time.monotonic(), self.stats.add
        for call in done:
            add(call.kind, now - call.started, call.error)
            if call.kind == "get" and isinstance(call.result, Rows):
                found = sum([row is not None for row in call.result.found])
                self.stats.hits += found
                self.stats.misses += len(call.result.found) - found
        return done

    def wait(self, until: float = FOREVER) -> float:
        """Seconds until `send` has something to do, even if nothing arrives, or until `until` in
        `time.monotonic()`; maybe infinity."""
        wake = self.session.wake_at()
        return max(0.0, (wake if wake < until else until) - time.monotonic())

    def figures(self) -> dict[str, Any]:
        """What `stats()` tells: plain numbers."""
        return self.stats.as_dict() | {
            "retries": self.session.retries,
            "discarded": self.session.discarded + self.garbled,
            "in_flight": self.session.live,
            "in_flight_bytes": self.session.live_bytes,
            "memory_bytes": resident_bytes(),
            "connected_seconds": round(time.monotonic() - self._since, 3),
            "url": self.transport.url,
        }

    def close(self) -> None:
        """Settle everything and let go of the transport. In a fork, touch nothing of it."""
        self.session.close()
        try:
            self.owner.check()
        except Closed:
            return
        self.transport.close()
        self.context.close()


def check_name(name: str | None) -> None:
    """Refuse, before anything is opened, what cannot be a client's name. Raises `Misuse`."""
    if name is not None and (not isinstance(name, str) or len(name.encode("utf-8", "replace"))
                             > SESSION_NAME_BYTES):
        raise Misuse(f"name= is text of at most {SESSION_NAME_BYTES} bytes, not {name!r:.80}")


def default_name() -> str:
    """Who opens a session, for people: host, process, program."""
    program = os.path.basename(sys.argv[0]) or "python"
    name = f"{socket.gethostname()}:{os.getpid()}:{program}"
    return name.encode("ascii", "replace")[:SESSION_NAME_BYTES].decode()


def url_or_default(url: str | None) -> str:
    """Where to connect: the argument, else `CKPTMESH_URL`, else the local broker."""
    return url or os.environ.get("CKPTMESH_URL") or DEFAULT_URL


def explained(error: BaseException, transport: Transport) -> BaseException:
    """The error of a first round trip, in the words of somebody who just wrote a URL."""
    if not isinstance(error, Unavailable):
        return error
    url, missing = transport.url, error.details.get("missing")
    if missing == "broker":
        trouble = getattr(transport, "trouble", "")
        return Unavailable(f"no broker at {url}" + (f": {trouble}" if trouble else ""),
                           missing=missing,
                           hint="run `ckptmesh up`, or connect('file:./state')")
    if missing == "store":
        return Unavailable(f"a broker answers at {url}, but no store is connected to it",
                           hint="start the store, or look why it stopped", missing=missing)
    return Unavailable(f"something accepts connections at {url}, but no store answers",
                       hint="is it a ckptmesh broker? Is the store overloaded or stopped?",
                       missing=missing)


def capabilities_of(transport: Transport) -> frozenset[Capability]:
    """What a store behind this transport can do."""
    served = isinstance(transport, StreamTransport)
    return frozenset(Capability) - (frozenset() if served else {Capability.PROCESSES})


def watch_source(link: Link, api: Api, ask: Callable[[Command, float], Any]) -> WatchSource:
    """What a watch needs of a client."""
    transport = link.transport
    if isinstance(transport, StreamTransport):
        return WatchSource(ask, api, transport.url, link.context.get)
    engine = getattr(transport, "engine", None)
    return WatchSource(ask, api, on_change=None if engine is None else engine.subscribe)
