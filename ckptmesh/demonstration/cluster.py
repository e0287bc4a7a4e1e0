"""The demo's processes: broker, store, producer, two pipelines and a monitor, for real.

Rule 1: a process that ends is started again, whoever ended it: that is all that a pipeline needs
        of the world around it.
Rule 2: none outlives the demo (`process.die_with_parent`), and none hears its Ctrl-C: they are
        ended in order.
Rule 3: what a process prints goes to its own file, and is read from there.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from ckptmesh.process import PARENT, own_environment
from ckptmesh.supervisor import FINAL, describe

STOP_WAIT = 5.0  # seconds that a process may take to end cleanly before it is killed
AGAIN = 0.3  # seconds until a process that ended by itself is started again
ENDS = 20  # of one process by itself; then something is wrong that starting again does not mend
NEVER = float("inf")


class DemoFailed(Exception):
    """The demo could not be carried through; the message says what to look at."""


class Part:
    """One process of the demo.

    `ready` is in the line that it prints when it is at work. `lasting`: it is started again when
    it ends; the producer alone may come to an end.
    """

    def __init__(self, name: str, command: Sequence[str], log: Path, *, ready: str,
                 lasting: bool = True) -> None:
        self.name = name
        self.log = log
        self.at_work = False
        self.starts = 0
        self.kills = 0
        self.ends = 0  # by itself
        self.due = NEVER  # monotonic time of the next start
        self._command = list(command)
        self._ready = ready
        self._lasting = lasting
        self._process: subprocess.Popen[bytes] | None = None
        self._reader: BinaryIO | None = None
        self._half = b""

    @property
    def running(self) -> bool:
        """Whether there is such a process now."""
        return self._process is not None and self._process.poll() is None

    def start(self, environ: dict[str, str]) -> None:
        """Start it. Called in the main thread: the process ends with the thread that starts it."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environ,
                process_group=0,  # Ctrl-C at the terminal reaches the demo alone
            )
        self.due, self.at_work = NEVER, False
        self.starts += 1

    def kill(self) -> bool:
        """SIGKILL: it gets no chance to do anything about it. Whether it was there to be killed."""
        if self._process is None or self._process.poll() is not None:
            return False
        self._process.kill()
        self._process.wait()
        self._process, self.at_work = None, False
        self.kills += 1
        return True

    def ended(self) -> str:
        """How it ended by itself, if it did since it was asked last; else "".

        Raises `DemoFailed` when starting it again cannot help.
        """
        code = self._process.poll() if self._process else None
        if code is None:
            return ""
        self._process, self.at_work = None, False
        if code == 0 and not self._lasting:
            return ""
        self.ends += 1
        how = f"the {self.name} {describe(128 - code if code < 0 else code)}: {self.last_words()}"
        if code in FINAL or self.ends > ENDS:
            raise DemoFailed(f"{how} (all of it: {self.log})")
        self.due = time.monotonic() + AGAIN
        return f"{how}; starting it again"

    def news(self) -> list[str]:
        """The lines that it has printed since the last call."""
        if self._reader is None:
            self._reader = self.log.open("rb")
        *lines, self._half = (self._half + self._reader.read()).split(b"\n")
        found = [line.decode("utf-8", "replace") for line in lines]
        self.at_work = self.at_work or (self.running and any(self._ready in s for s in found))
        return found

    def last_words(self) -> str:
        """The last line that it printed."""
        lines = self.log.read_text("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else "without a word"

    def ask_to_end(self) -> None:
        """SIGTERM."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()

    def wait_for_end(self, deadline: float) -> None:
        """Wait until it has ended; from the deadline on, kill it."""
        if self._process is not None:
            try:
                self._process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
        self.due, self.at_work = NEVER, False
        if self._reader is not None:
            self._reader.close()
            self._reader = None


class Cluster:
    """All processes of the demo, in one folder, on free ports of this machine.

    `records`, `seconds`: the producer appends so many records in about so much time.
    """

    def __init__(self, folder: Path, *, records: int, seconds: float, naive: bool) -> None:
        self.folder = folder
        self.output = folder / "output"
        self.output.mkdir()
        self.input = folder / "input.txt"
        self.totals, self.sizes = folder / "totals.db", folder / "sizes.db"
        requests, publications = free_ports(2)
        self.url = f"tcp://127.0.0.1:{requests}"
        self._environ = self._environment()
        # A batch is a fifth of a second's records: hundreds of commits, and what has piled up
        # while something was dead is soon worked off, on a slow disk too.
        rate = records / seconds
        batch = ("--batch", str(max(5, round(rate / 5))))
        data = str(folder / "store")
        follow = folder / "orders.log"
        self.parts = {part.name: part for part in (
            self._own("broker", "--data", data, "--bind", self.url,
                      "--publish", f"tcp://127.0.0.1:{publications}"),
            self._own("store", "--data", data),
            self._part("monitor", "demo.monitor", "--json", "--since", "0", ready="watching"),
            self._part("producer", "demo.producer", "--input", str(self.input),
                       "--log", str(follow), "--rate", str(rate), ready="appending"),
            self._part("pipeline", "demo.naive" if naive else "demo.pipeline", "--key", "orders",
                       "--log", str(follow), "--sink", str(self.totals), *batch,
                       ready="at record"),
            self._part("downstream", "demo.downstream", "--follow", "orders", "--key", "sizes",
                       "--source", str(self.totals), "--sink", str(self.sizes), *batch,
                       ready="at record"),
        )}

    def _own(self, name: str, *flags: str) -> Part:
        command = [sys.executable, "-m", "ckptmesh", name, *flags]
        return Part(name, command, self.output / f"{name}.txt", ready="serving")

    def _part(self, name: str, module: str, *flags: str, ready: str) -> Part:
        command = [sys.executable, "-m", "ckptmesh.demonstration.child", module, *flags]
        return Part(name, command, self.output / f"{name}.txt", ready=ready,
                    lasting=name != "producer")

    def _environment(self) -> dict[str, str]:
        """What the processes find: this very package and its `demo`, and this store."""
        return own_environment() | {"CKPTMESH_URL": self.url, PARENT: str(os.getpid())}

    def start(self, name: str) -> None:
        """Start one of the parts."""
        self.parts[name].start(self._environ)

    def tend(self) -> list[tuple[str, str]]:
        """Start again what is due. (part, line) for what was printed or happened meanwhile."""
        found: list[tuple[str, str]] = []
        for name, part in self.parts.items():
            if not part.starts:
                continue
            how = part.ended()
            found += ((name, line) for line in part.news())
            if how:
                found.append(("", how))
            if part.due <= time.monotonic():
                self.start(name)
        return found

    def stop(self) -> None:
        """End all processes, those first that use the others; what does not end is killed."""
        deadline = time.monotonic() + STOP_WAIT
        users = [part for name, part in self.parts.items() if name not in ("broker", "store")]
        for group in (users, [self.parts["store"]], [self.parts["broker"]]):
            for part in group:
                part.ask_to_end()
            for part in group:
                part.wait_for_end(deadline)


def free_ports(count: int) -> list[int]:
    """TCP ports on which nobody listens just now."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()
