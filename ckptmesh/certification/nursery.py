"""This end of the processes that are killed; `worker.py` is the other.

Rule 1: all that a worker acknowledged before it died is read before anybody judges.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from ckptmesh.errors import OutOfSpace
from ckptmesh.process import own_environment

_LONGEST = 30.0  # seconds for the system to begin or to end a process; a stuck disk can hold it


class NurseryFailed(Exception):
    """The workers cannot be run here; the message says what to look at."""


class Nursery:
    """Starts workers, one at a time; none is left after `close`.

    `log`: a file for what the processes say on stderr. `acknowledged`: the last commit that was,
    since `begin`; `done` and `error`: what the worker said of itself. Every method may raise
    `NurseryFailed`, and `OutOfSpace` where a worker met a full disk.
    """

    def __init__(self, log: Path, disk: str) -> None:
        self._log = log
        self._disk = disk
        with log.open("ab") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "ckptmesh.certification.worker"], stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, stderr=stderr, env=own_environment(),
                process_group=0,  # Ctrl-C at the terminal reaches the command alone
            )
        self._half = b""
        self._started = False
        self._ended: int | None = None
        self.begin()

    def begin(self) -> None:
        """What follows is about another store."""
        self.acknowledged = 0
        self.done = False
        self.error = ""

    def start(self, directory: Path, seed: int, until: int = 2**31, *, most: int = 2**31,
              seal: bool = False) -> None:
        """Have a worker go on with a run's commits; see `worker.commit`."""
        self.done, self.error, self._started, self._ended = False, "", False, None
        self._order(json.dumps({"directory": str(directory), "disk": self._disk, "seed": seed,
                                "until": until, "most": most, "seal": seal}))
        self._wait(lambda: self._started)  # what is measured from here on is its own start

    def look(self, timeout: float) -> None:
        """Wait up to so many seconds for news of the worker."""
        self._read(timeout)

    def kill(self) -> int:
        """SIGKILL. Its exit code: -9, or another when it had ended before."""
        self._order("end")
        self._wait(lambda: self._ended is not None)
        return self._ended or 0

    def _wait(self, holds: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _LONGEST
        while not holds():
            left = deadline - time.monotonic()
            if left <= 0:
                raise NurseryFailed(f"a process has neither begun nor ended in {_LONGEST:.0f} s: "
                                    "does the disk still answer? (dmesg)")
            self._read(left)

    def _order(self, line: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            raise self._gone() from None

    def _read(self, timeout: float) -> None:
        assert self._process.stdout is not None
        pipe = self._process.stdout.fileno()
        if not select.select([pipe], [], [], max(0.0, timeout))[0]:
            return
        data = os.read(pipe, 1 << 16)
        if not data:
            raise self._gone()
        *lines, self._half = (self._half + data).split(b"\n")
        for line in lines:
            self._take(line.decode("utf-8", "replace"))

    def _take(self, line: str) -> None:
        word, _, rest = line.partition(" ")
        if word.isdigit():
            self.acknowledged = int(word)
        elif word == "started":
            self._started = True
        elif word == "done":
            self.done = True
        elif word == "error":
            if rest.startswith(OutOfSpace.__name__):
                raise OutOfSpace("the disk became full meanwhile; nothing is certified",
                                 hint="make room, or name a directory on another disk")
            self.error = rest
        elif word == "ended":
            self._ended = int(rest)

    def _gone(self) -> NurseryFailed:
        words = self._log.read_text("utf-8", "replace").strip().splitlines()
        return NurseryFailed("the process that starts workers has ended: "
                             f"{words[-1] if words else 'without a word'}")

    def close(self) -> None:
        """Kill what is left. Never raises."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()  # it kills its worker, and ends
        try:
            self._process.wait(_LONGEST)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
