"""Peers for tests of the broker: one in a thread or a process, a store that echoes, clients."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ckptmesh import commands, protocol, sockets
from ckptmesh.broker import Broker
from ckptmesh.config import BrokerConfig, arguments
from ckptmesh.messages import Hello, Reply

WAIT = 10.0  # seconds: the bound of every wait below; none should come near it


def until(check: Callable[[], object], what: str, wait: float = WAIT) -> None:
    """Wait until `check()` is true."""
    deadline = time.monotonic() + wait
    while not check():
        assert time.monotonic() < deadline, f"in {wait} s it never came true that {what}"
        time.sleep(0.005)


@contextlib.contextmanager
def short_folder() -> Iterator[Path]:
    """A folder whose path leaves room for a Unix socket's name (pytest's own may not)."""
    folder = tempfile.mkdtemp(prefix="ckpt-")
    try:
        yield Path(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def settings(folder: Path) -> BrokerConfig:
    """A broker whose four addresses are Unix sockets, the same after a restart."""
    return BrokerConfig(
        bind=f"ipc://{folder}/public", publish=f"ipc://{folder}/publish", data=f"{folder}/data"
    )


class RunningBroker:
    """A broker in a thread of this process."""

    def __init__(self, config: BrokerConfig) -> None:
        self.config = config
        self.lines: list[str] = []
        self.broker = Broker(config, tell=self.lines.append)
        self._thread = threading.Thread(target=self.broker.run, daemon=True)
        self._thread.start()
        assert self.broker.ready.wait(WAIT)

    def told(self, part: str) -> bool:
        return any(part in line for line in self.lines)

    def stop(self) -> float:
        """Stop it; how many seconds that took."""
        began = time.monotonic()
        self.broker.stop()
        self._thread.join(WAIT)
        assert not self._thread.is_alive(), "the broker does not end"
        return time.monotonic() - began

    def __enter__(self) -> RunningBroker:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class BrokerProcess:
    """A broker in a process of its own, with its stderr."""

    def __init__(self, config: BrokerConfig, **options: object) -> None:
        self.config = config
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, "-m", "ckptmesh", "broker", *arguments(config)],
            stderr=self._log, stdin=subprocess.DEVNULL, **options,  # type: ignore[call-overload]
        )
        until(lambda: "serving at" in self.log() or self.process.poll() is not None,
              "the broker serves")

    def log(self) -> str:
        self._log.seek(0)
        return self._log.read()

    def cpu_seconds(self) -> float:
        """Processor time that it used so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def __enter__(self) -> BrokerProcess:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(WAIT)
        self._log.close()


class EchoStore:
    """Stands in for a store: answers each request with the same bytes after `name`."""

    def __init__(self, config: BrokerConfig, name: bytes = b"echo") -> None:
        self.name = name
        self.seen: list[bytes] = []
        self.dropped = 0
        self.topics: set[bytes] = set()
        self.reading = threading.Event()  # cleared: it reads no requests for a while
        self.reading.set()
        self._ctx = sockets.context()
        self._outbox: list[bytes] = []
        self._config = config
        self._end = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def publish(self, frame: bytes) -> None:
        self._outbox.append(frame)

    def _run(self) -> None:
        requests = sockets.store_requests(self._ctx)
        publications = sockets.store_publications(self._ctx)
        sockets.connect(requests, self._config.backend)
        sockets.connect(publications, self._config.backend_publish)
        while not self._end:
            self.reading.wait(WAIT)
            sockets.poll([requests, publications], 0.01)
            while (frames := sockets.receive(requests, sockets.STORE_PARTS)) is not None:
                if frames:
                    self.seen.append(frames[-1])
                    sockets.send(requests, [*frames[:-1], self.name + frames[-1]])
                else:
                    self.dropped += 1
            for added, topic in sockets.subscription_changes(publications, 100_000)[0]:
                (self.topics.add if added else self.topics.discard)(topic)
            while self._outbox:
                assert sockets.send(publications, [self._outbox.pop(0)])
        requests.close()
        publications.close()

    def close(self) -> None:
        self._end = True
        self._thread.join(WAIT)
        assert not self._thread.is_alive()
        self._ctx.term()

    def __enter__(self) -> EchoStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Client:
    """A DEALER that waits for its answers."""

    def __init__(self, url: str, *, wait: bool = True) -> None:
        self._ctx = sockets.context()
        self.socket = sockets.client_requests(self._ctx)
        sockets.connect(self.socket, url)
        if wait:
            try:
                until(lambda: sockets.writable(self.socket), "the client is connected")
            except BaseException:
                self.close()
                raise

    def send(self, payload: bytes) -> None:
        until(lambda: sockets.send(self.socket, [payload]), "the request is sent")

    def answer(self, wait: float = WAIT) -> bytes:
        """The next reply."""
        assert sockets.poll([self.socket], wait), f"no reply in {wait} s"
        frames = sockets.receive(self.socket, sockets.CLIENT_PARTS)
        assert frames
        return frames[0]

    def ask(self, payload: bytes) -> bytes:
        self.send(payload)
        return self.answer()

    def close(self) -> None:
        self.socket.close(0)
        self._ctx.term()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Watcher:
    """A SUB that collects."""

    def __init__(self, url: str, *topics: bytes) -> None:
        self._ctx = sockets.context()
        self.socket = sockets.watcher(self._ctx)
        for topic in topics:
            sockets.subscribe(self.socket, topic)
        sockets.connect(self.socket, url)

    def next(self, wait: float = WAIT) -> bytes:
        assert sockets.poll([self.socket], wait), f"no publication in {wait} s"
        frames = sockets.receive(self.socket, 1)
        assert frames
        return frames[0]

    def close(self) -> None:
        self.socket.close(0)
        self._ctx.term()

    def __enter__(self) -> Watcher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def hello(number: int) -> bytes:
    """A well-formed request."""
    op, body = commands.pack_command(Hello())
    return protocol.encode_request(
        op, body, session=b"", number=number, low=0, uuid=b"", epoch=0
    )


def reply_of(payload: bytes) -> Reply:
    return protocol.decode_reply(payload)[1]
