"""Who is there, and are they well: what `status` and `doctor` ask a broker and its store.

Two ways are heard at once, because each tells what the other cannot: the request path tells
whether somebody accepts the connection and whether a store answers; the broker's own beat on the
publication path tells how many stores are connected to it.
"""

from __future__ import annotations

import contextlib
import time
from typing import Any, NamedTuple

from ckptmesh import commands, protocol, publications, sockets
from ckptmesh.cli.common import Use
from ckptmesh.errors import Error, InvalidUrl, Unavailable
from ckptmesh.messages import BrokerBeat, Command, Hello, Reply, Status, Welcome
from ckptmesh.stream import StreamTransport
from ckptmesh.transport import Transport

BEAT = 1.5  # seconds to listen for the broker's beat, which comes once a second
ANSWER = 1.5  # seconds for an answer; a local one takes 0.2 ms, and the clock runs from the start

HEALTHY, NO_BROKER, NO_STORE, TWO_STORES, READ_ONLY, SILENT = (
    "healthy", "no broker", "broker without store", "several stores", "read-only", "no answer")

EXIT = {HEALTHY: 0, NO_BROKER: 5, NO_STORE: 5, SILENT: 5, TWO_STORES: 4}


class Health(NamedTuple):
    """What was found. `round_trip`: seconds of a question to the store; `advice`: what to do."""

    verdict: str
    url: str
    publish: str
    broker: BrokerBeat | None
    store: dict[str, Any] | None
    round_trip: float | None
    advice: str

    @property
    def exit_code(self) -> int:
        """5 unreachable, 4 two where one should be, 6 loss, 7 no space."""
        if self.verdict == READ_ONLY:
            assert self.store is not None  # it says so itself
            return 6 if "loss" in self.store["read_only"] else 7
        return EXIT[self.verdict]


def examine(use: Use, url: str, publish: str) -> Health:
    """Look at the store behind a URL. `publish`: the broker's publication address, "" to guess.

    Takes at most about two seconds. Raises `InvalidUrl`, and for a directory what opening it does.
    """
    if url.startswith(("file:", "memory:")):
        return _embedded(use, url)
    patience = min(ANSWER, use.timeout)
    transport = StreamTransport(url)
    context = sockets.context()
    beats = sockets.watcher(context)
    try:
        sockets.subscribe(beats, publications.BROKER_TOPIC)
        heard_at = publish or _guess(url)
        if heard_at:
            sockets.connect(beats, heard_at)
        began = time.monotonic()
        probe = Probe(transport, patience)
        welcome = _result(probe.ask(Hello()))
        if isinstance(welcome, Welcome) and not publish:
            announced = sockets.dialable(welcome.publish, url)
            if announced and announced != heard_at:
                heard_at = announced
                sockets.connect(beats, announced)
        store, round_trip = None, None
        if isinstance(welcome, Welcome):
            asked = time.monotonic()
            found = _result(probe.ask(Status()))
            round_trip = time.monotonic() - asked
            store = found if isinstance(found, dict) else None
        direct = isinstance(welcome, Welcome) and not welcome.publish
        wait = began + min(BEAT, use.timeout) - time.monotonic()
        beat = _hear(beats, 0.0 if direct and not publish else max(wait, 0.0))
    finally:
        beats.close()
        context.term()
        transport.close()
    verdict, advice = _verdict(url, welcome, probe.connected, beat, store)
    return Health(verdict, url, heard_at, beat, store, round_trip, advice)


class Probe:
    """Asks one thing at a time, without the retries of a client."""

    def __init__(self, transport: Transport, patience: float) -> None:
        self._transport = transport
        self._patience = patience
        self._number = 0
        self.connected = False

    def ask(self, command: Command) -> Reply | None:
        """The reply; None when none came within `patience` seconds. For commands that need no
        session."""
        self._number += 1
        op, body = commands.pack_command(command)
        payload = protocol.encode_request(op, body, session=b"", number=self._number, low=0,
                                          uuid=b"", epoch=0)
        deadline = time.monotonic() + self._patience
        sent = False
        while (left := deadline - time.monotonic()) > 0:
            if not sent:
                sent = self._transport.send(payload)
                self.connected = self.connected or sent
            for reply in self._transport.receive(min(left, 0.05)):
                with contextlib.suppress(Error):
                    _, answer = protocol.decode_reply(reply)
                    if answer.number == self._number:
                        return answer
        return None


def _result(answer: Reply | None) -> Any:
    """What came: a result, or the error instead of one; None when nothing came."""
    if answer is None:
        return None
    return answer.result if answer.error is None else answer.error


def _hear(beats: sockets.Socket, seconds: float) -> BrokerBeat | None:
    """The broker's next beat, if one comes in time."""
    deadline = time.monotonic() + seconds
    while True:
        frames = sockets.receive(beats, 1)
        if frames:
            with contextlib.suppress(Error):
                beat = publications.decode_publications(frames[0])[0]
                if isinstance(beat, BrokerBeat):
                    return beat
        left = deadline - time.monotonic()
        if left <= 0:
            return None
        if frames is None:
            sockets.poll((beats,), left)


def _guess(url: str) -> str:
    """The publication address beside a request address, as `ckptmesh up` has them by default."""
    where = sockets.address(url)
    if where.scheme != "tcp" or not where.port.isdigit() or int(where.port) == 65_535:
        return ""
    return where._replace(port=str(int(where.port) + 1)).url


def _verdict(
    url: str, welcome: Any, connected: bool, beat: BrokerBeat | None, store: dict[str, Any] | None
) -> tuple[str, str]:
    if beat is not None and beat.stores > 1:
        return TWO_STORES, f"{beat.stores} stores are connected to the broker: stop all but one"
    if store is not None:
        if store.get("read_only"):
            return READ_ONLY, str(store["read_only"])
        return HEALTHY, ""
    without = isinstance(welcome, Unavailable) or (beat is not None and beat.stores == 0)
    if without:
        return NO_STORE, "start the store, or look at why it stopped: it tells so on stderr"
    if connected and isinstance(welcome, Error):
        return SILENT, f"{url} answers with an error: {welcome.message}"
    if connected:
        return SILENT, (f"something accepts connections at {url} but does not answer: is it a "
                        "ckptmesh broker, is its store stopped or busy?")
    return NO_BROKER, "start one with `ckptmesh up`, or name another with --url"


def _embedded(use: Use, url: str) -> Health:
    with use.connect(reading=True) as mesh:
        began = time.monotonic()
        store = mesh.status()
        took = time.monotonic() - began
    read_only = store.get("read_only")
    return Health(READ_ONLY if read_only else HEALTHY, url, "", None, store, took,
                  str(read_only or ""))


def is_address(url: str) -> bool:
    """Whether a URL is one of a broker or a store, not of a directory."""
    try:
        sockets.address(url)
    except InvalidUrl:
        return False
    return True
