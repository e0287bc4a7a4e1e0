"""A real broker and a real store as processes, to be killed and started again by tests.

Both keep their addresses over restarts, so that clients find them again.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from ckptmesh import sockets

READY = 30.0  # seconds until a process must serve; a busy machine may need many


def free_port() -> int:
    """A TCP port that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class NotStarted(RuntimeError):
    """A process that did not come to serve. `code`: its exit code; a signal's number below 0."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class Cluster:
    """Broker and store on loopback; `flags` go to the store. `direct` adds a direct address."""

    def __init__(self, folder: Path, *flags: str, direct: bool = False) -> None:
        self.data = folder / "data"
        self.log = folder / "cluster.log"
        self.url = f"tcp://127.0.0.1:{free_port()}"
        self.publish = f"tcp://127.0.0.1:{free_port()}"
        self.direct = f"tcp://127.0.0.1:{free_port()}" if direct else ""
        self.flags = [*flags, *(("--direct", self.direct) if direct else ())]
        self.broker: subprocess.Popen[bytes] | None = None
        self.store: subprocess.Popen[bytes] | None = None
        self.wrap: list[str] = []  # a command before the store's, such as strace

    def _spawn(self, *args: str, wrap: list[str] | None = None) -> subprocess.Popen[bytes]:
        child, read = self._begin(*args, wrap=wrap)
        try:
            if not sockets.poll((read,), READY):
                child.kill()
            elif os.read(read, 64):
                return child
            code = child.wait(READY)  # nobody has the pipe any more, so it is about to end
            raise NotStarted(f"{args[0]} did not start: {self.log.read_text()[-2000:]}", code)
        finally:
            os.close(read)

    def _begin(self, *args: str, wrap: list[str] | None = None,
               ) -> tuple[subprocess.Popen[bytes], int]:
        """A process that is about to start, and the pipe on which it will say that it serves."""
        read, write = os.pipe()
        env = {**os.environ, "CKPTMESH_READY_FD": str(write)}
        with self.log.open("ab") as log:
            child = subprocess.Popen(
                [*(wrap or []), sys.executable, "-m", "ckptmesh", *args, "--data", str(self.data)],
                stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=env, pass_fds=(write,),
            )
        os.close(write)
        return child, read

    def start_broker(self) -> None:
        """Start the broker and wait until it serves."""
        self.broker = self._spawn("broker", "--bind", self.url, "--publish", self.publish)

    def start_store(self) -> None:
        """Start the store and wait until it serves."""
        self.store = self._spawn("store", *self.flags, wrap=self.wrap)

    def kill_while_starting(self, after: float) -> bool:
        """Start the store and SIGKILL it so many seconds later, or as soon as it serves; whether it
        did. Raises `NotStarted` when it ended by itself before."""
        child, read = self._begin("store", *self.flags, wrap=self.wrap)
        told = bool(sockets.poll((read,), after))
        served = told and bool(os.read(read, 64))
        os.close(read)
        if told and not served:
            raise NotStarted(f"store ended: {self.log.read_text()[-2000:]}", child.wait(READY))
        self.kill(child)
        return served

    def kill(self, child: subprocess.Popen[bytes] | None) -> None:
        """SIGKILL, at once."""
        if child is not None and child.poll() is None:
            child.send_signal(signal.SIGKILL)
            child.wait()

    def stop(self, child: subprocess.Popen[bytes] | None) -> int | None:
        """SIGTERM, and its exit code."""
        if child is None:
            return None
        if child.poll() is None:
            child.terminate()
        try:
            return child.wait(20)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
            raise

    def __enter__(self) -> Self:
        self.start_broker()
        self.start_store()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        for child in (self.store, self.broker):
            self.kill(child)


def wait_until(holds: object, seconds: float = 20.0, what: str = "condition") -> None:
    """Call `holds` until it is true. Raises `TimeoutError`."""
    deadline = time.monotonic() + seconds
    while not holds():  # type: ignore[operator]
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} not reached in {seconds} s")
        time.sleep(0.01)
