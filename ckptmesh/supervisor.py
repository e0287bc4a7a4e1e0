"""What `ckptmesh up` runs: broker and store as child processes that are kept alive.

Rule 1: a child that dies is started again, after a pause that doubles while it keeps dying.
Rule 2: exit codes 2, 4 and 6 are final (usage, in use, corruption): starting again cannot help,
so the other child is stopped and the supervisor ends with that code.
Rule 3: no child outlives the supervisor, however that one ends (`process.die_with_parent`).

A child tells that it serves through a pipe; the end of that pipe tells that the child is gone.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

from ckptmesh.config import UpConfig, arguments
from ckptmesh.process import (
    NOTIFY_SOCKET,
    PARENT,
    READY_FD,
    Tell,
    notify_ready,
    on_stop_signals,
)

FINAL = (2, 4, 6)  # exit codes of a child after which nothing is started again
FIRST_PAUSE = 0.1  # seconds before a dead child is started again …
LONGEST_PAUSE = 10.0  # … doubled up to this …
SETTLED = 30.0  # … and back to the first once it has lived this long
STOP_WAIT = 10.0  # seconds that a child may take to end cleanly before it is killed


class Child:
    """One program that is to be kept alive."""

    def __init__(self, name: str, command: Sequence[str]) -> None:
        self.name = name
        self.command = list(command)
        self.process: subprocess.Popen[bytes] | None = None
        self.pipe: int | None = None
        self.ready = False
        self.due = 0.0  # monotonic time of the next start
        self._began = 0.0
        self._pause = FIRST_PAUSE

    def start(self, now: float) -> int:
        """Start it; the descriptor to read its readiness from."""
        read, write = os.pipe()
        environ = {k: v for k, v in os.environ.items() if k != NOTIFY_SOCKET}
        environ |= {READY_FD: str(write), PARENT: str(os.getpid())}
        try:
            # A process group of its own: Ctrl-C reaches the supervisor alone, which passes it on.
            self.process = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, env=environ, pass_fds=(write,),
                process_group=0,
            )
        except BaseException:
            os.close(read)
            raise
        finally:
            os.close(write)
        self.pipe, self._began = read, now
        return read

    def ended(self) -> int | None:
        """Its exit code (128 + n where signal n killed it), None while it runs."""
        code = self.process.poll() if self.process else None
        return 128 - code if code is not None and code < 0 else code

    def plan_restart(self, now: float) -> float:
        """Forget the dead process; seconds until the next start."""
        self._pause = FIRST_PAUSE if now - self._began >= SETTLED else self._pause
        pause, self._pause = self._pause, min(LONGEST_PAUSE, self._pause * 2)
        self.process, self.ready, self.due = None, False, now + pause
        return pause

    def signal(self, number: int) -> None:
        """Send a signal, if it still runs."""
        if self.process and self.process.poll() is None:
            self.process.send_signal(number)


class Supervisor:
    """Keeps some programs alive until a stop signal. `run()` gives the exit code.

    Children are started in the order given and stopped in the opposite order.
    """

    def __init__(self, children: Sequence[Child], *, greeting: str, tell: Tell):
        self._children = list(children)
        self._greeting = greeting
        self._tell = tell
        self._stops = 0
        self._greeted = False
        self._selector = selectors.DefaultSelector()

    def run(self) -> int:
        """Run until told to stop (0), or until a child ended for good (its code)."""
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._selector.register(self._wake_read, selectors.EVENT_READ, None)
        try:
            with on_stop_signals(self.stop):
                try:
                    return self._keep_alive()
                finally:
                    self._end_all()
        finally:
            self._selector.close()
            os.close(self._wake_read)
            os.close(self._wake_write)

    def stop(self) -> None:
        """End soon; a second call kills what has not ended yet."""
        self._stops += 1
        with contextlib.suppress(OSError):
            os.write(self._wake_write, b"x")

    def _keep_alive(self) -> int:
        while not self._stops:
            now = time.monotonic()
            for child in self._children:
                if child.process is None and child.due <= now:
                    self._selector.register(child.start(now), selectors.EVENT_READ, child)
                code = child.ended()
                if code is None:
                    continue
                how = describe(code)
                if code in FINAL:
                    self._tell(f"the {child.name} {how}: starting it again cannot help")
                    return code
                pause = child.plan_restart(now)
                self._forget_pipe(child)
                self._tell(f"the {child.name} {how}; starting it again in {pause:.1f} s")
            self._wait(now)
        return 0

    def _wait(self, now: float) -> None:
        """Sleep until something happens. Each second at least: a child may close its pipe early."""
        dues = [child.due - now for child in self._children if child.process is None]
        for key, _ in self._selector.select(max(0.0, min([1.0, *dues]))):
            child = key.data
            if child is None:
                with contextlib.suppress(BlockingIOError):
                    os.read(key.fd, 64)
            elif os.read(key.fd, 64):
                child.ready = True
                self._greet()
            else:
                self._forget_pipe(child)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.process.wait(1.0)  # its end of the pipe is closed: it is ending

    def _greet(self) -> None:
        if not self._greeted and all(child.ready for child in self._children):
            self._greeted = True
            self._tell(self._greeting)
            notify_ready()

    def _forget_pipe(self, child: Child) -> None:
        if child.pipe is not None:
            self._selector.unregister(child.pipe)
            os.close(child.pipe)
            child.pipe = None

    def _end_all(self) -> None:
        """Stop the children, the last first, so that a store can still answer what it has."""
        for child in reversed(self._children):
            child.signal(signal.SIGTERM)
            deadline = time.monotonic() + STOP_WAIT
            stops = self._stops
            while child.process and child.ended() is None:
                if time.monotonic() >= deadline or self._stops > max(stops, 1):
                    self._tell(f"the {child.name} did not end; killing it")
                    child.signal(signal.SIGKILL)
                    child.process.wait()
                    break
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.process.wait(0.1)
            self._forget_pipe(child)
        self._tell("stopped")


def describe(code: int) -> str:
    """How a program ended, for people."""
    if code > 128:
        with contextlib.suppress(ValueError):
            return f"was ended by {signal.Signals(code - 128).name}"
    return f"ended with exit code {code}"


def up(config: UpConfig, tell: Tell) -> int:
    """Run broker and store with these settings until a stop signal; the exit code."""
    program = [sys.executable, "-m", "ckptmesh"]
    return Supervisor(
        [
            Child("broker", [*program, "broker", *arguments(config.broker)]),
            Child("store", [*program, "store", *arguments(config.store)]),
        ],
        greeting=f"ready: clients connect to {config.broker.bind}, "
        f"the data is in {config.store.data}",
        tell=tell,
    ).run()
