"""A command as a child process: its time, its signals, its stderr, its end.

    with Signals() as signals:                        # SIGTERM ends what is waited for here
        ended = run(["./load.sh"], signals, lost=lock.lost, timeout=7200)
    ended.code, ended.reason, ended.tail

It runs in a session and process group of its own, so that a signal reaches all that it has started
and nothing else. Its stderr is passed on as it comes, and the end of it is kept.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from types import FrameType, TracebackType
from typing import Any, Literal, NamedTuple, Protocol

from ckptmesh.limits import EXEC_LINES, EXEC_TAIL

GRACE = 10.0  # seconds between SIGTERM and SIGKILL: what most programs need to end in order
_TICK = 0.1  # seconds between two looks whether time is over or the lock is lost
_DRAIN = 1.0  # seconds for the last of stderr, where somebody that was left behind keeps it open
_PASSED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1,
           signal.SIGUSR2)
NOT_FOUND, NOT_EXECUTABLE, SIGNALLED = 127, 126, 128  # as a shell tells of it

Reason = Literal["ended", "timeout", "lost", "not started"]


class Ended(NamedTuple):
    """How a command ended. `code`: as a shell has it, 128 + n after signal n, 126 or 127 where it
    could not be started. `tail`: the last lines of its stderr, or why it was not started."""

    reason: Reason
    code: int
    tail: str


class Interrupted(BaseException):
    """A signal came while there was no command to pass it on to. `code`: 128 + its number."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.code = SIGNALLED + number


class Passes(Protocol):
    """What learns which process group is to get signals."""

    def pass_to(self, group: int | None) -> None:
        """The group of the command that runs; None: there is none."""


class Signals:
    """What becomes of signals, in the main thread, while this is entered.

    At first one raises `Interrupted`. From `hold` on they are kept; while a command runs it gets
    them, and those that were kept. One that was ignored before stays so, for the command as well.
    """

    def __init__(self) -> None:
        self._before: dict[int, Any] = {}
        self._holding = False
        self._kept: list[int] = []
        self._group: int | None = None

    def hold(self) -> None:
        """From here on nothing is interrupted any more."""
        self._holding = True

    def pass_to(self, group: int | None) -> None:
        """The process group that gets them; None: they are kept."""
        self._group = group
        while group is not None and self._kept:
            send(group, self._kept.pop(0))

    def _take(self, number: int, frame: FrameType | None) -> None:
        if self._group is not None:
            send(self._group, number)
        elif self._holding:
            self._kept.append(number)
        else:
            raise Interrupted(number)

    def __enter__(self) -> Signals:
        for number in _PASSED:
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._take)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)


def send(group: int, number: int) -> bool:
    """Send a signal to a process group; whether there is one."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    except PermissionError:  # one of it has become another user's
        return True
    return True


class _Stderr(threading.Thread):
    """Passes on what comes out of a pipe, and keeps the end of it."""

    def __init__(self, pipe: int, onto: int) -> None:
        super().__init__(daemon=True, name="ckptmesh-stderr")
        self._pipe, self._onto, self._kept = pipe, onto, b""

    def run(self) -> None:
        while data := os.read(self._pipe, 65_536):
            self._kept = (self._kept + data)[-EXEC_TAIL:]
            with contextlib.suppress(OSError):  # nobody reads ours any more: the command goes on
                while data:
                    data = data[os.write(self._onto, data):]

    def tail(self) -> str:
        """The last lines."""
        lines = self._kept.decode(errors="replace").splitlines()
        return "\n".join(lines[-EXEC_LINES:])


def run(command: Sequence[str], signals: Passes, *, lost: threading.Event,
        timeout: float | None = None, environ: Mapping[str, str] | None = None,
        files: Sequence[int] = (), stderr: int = 2, grace: float = GRACE) -> Ended:
    """Run a command to its end. SIGTERM, and SIGKILL after `grace` seconds, when `timeout` seconds
    are over or `lost` is set. `files`: descriptors that it inherits beside its standard ones.
    """
    try:
        child = subprocess.Popen(command, env=environ, stderr=subprocess.PIPE, pass_fds=files,
                                 start_new_session=True)
    except OSError as error:
        code = NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_EXECUTABLE
        return Ended("not started", code, f"{command[0]}: {error.strerror}")
    assert child.stderr is not None
    output = _Stderr(child.stderr.fileno(), stderr)
    output.start()
    signals.pass_to(child.pid)
    try:
        reason = _wait(child, lost, time.monotonic() + (float("inf") if timeout is None
                                                        else timeout), grace)
    finally:
        signals.pass_to(None)
    output.join(_DRAIN)
    if not output.is_alive():
        child.stderr.close()
    code = child.returncode
    return Ended(reason, code if code >= 0 else SIGNALLED - code, output.tail())


def _wait(child: subprocess.Popen[bytes], lost: threading.Event, end: float, grace: float
          ) -> Reason:
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(_TICK)
            return "ended"
        if lost.is_set() or time.monotonic() >= end:
            break
    reason: Reason = "lost" if lost.is_set() else "timeout"
    _stop(child, grace)
    return reason


def _stop(child: subprocess.Popen[bytes], grace: float) -> None:
    """End a command and all that it has started."""
    send(child.pid, signal.SIGTERM)
    end = time.monotonic() + grace
    while time.monotonic() < end:
        if child.poll() is not None and not send(child.pid, 0):
            return
        time.sleep(_TICK)
    send(child.pid, signal.SIGKILL)
    child.wait()
