"""What disk and processors of this machine do, without a mesh and beside one.

Rule 1: the disk is tried in a folder of its own, which goes again however that ends.
Rule 2: what the system does not tell is None, never a guess.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ckptmesh.disk import RealDisk
from ckptmesh.limits import KIB, MIB
from ckptmesh.lock import file_system
from ckptmesh.process import uninterrupted
from ckptmesh.spare import allocate
from ckptmesh.stats import Histogram

PREFIX = "ckptmesh-bench-"
_BLOCK = 4 * KIB  # bytes with each sync: a page, and more than the frame of a small commit
_FILE = 16 * MIB  # bytes of the preallocated file; the appends begin anew when it is full
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class Syncs:
    """Appends with a sync each, of one process: `latency` in microseconds, `seconds` in all.
    `kind`: of the file system, "" where it cannot be told."""

    directory: str
    kind: str
    seconds: float = 0.0
    latency: Histogram = field(default_factory=Histogram)

    @property
    def rate(self) -> float:
        """Syncs a second."""
        return self.latency.count / self.seconds


def try_disk(directory: str, seconds: float) -> Syncs:
    """Append 4 KiB to a preallocated file and `fdatasync`, over and over, as the log does it.

    Raises `OSError`, `OutOfSpace`.
    """
    disk = RealDisk()
    with _folder(directory) as folder:
        found = Syncs(directory, file_system(folder))
        path = f"{folder}/synced"
        allocate(disk, path, _FILE)
        block = os.urandom(_BLOCK)
        handle = disk.open(path, "write")
        try:
            began = now = time.perf_counter()
            while now - began < seconds:
                disk.pwrite(handle, block, found.latency.count * _BLOCK % _FILE)
                disk.fdatasync(handle)
                last, now = now, time.perf_counter()
                found.latency.add(round((now - last) * 1e6))
            found.seconds = now - began
        finally:
            disk.close(handle)
    return found


@contextlib.contextmanager
def _folder(directory: str) -> Iterator[str]:
    folder = tempfile.mkdtemp(prefix=PREFIX, dir=os.path.abspath(directory))
    try:
        yield folder
    finally:
        with uninterrupted():
            shutil.rmtree(folder, ignore_errors=True)


# --- processors -------------------------------------------------------------------------------


class Processors:
    """How busy the processors were since this was made, and the first thread of a process.

    `pid`: 0 for no process. It counts only if it is one of ckptmesh, since a store behind an
    address of this machine may live in a container, where its number means another process.
    """

    def __init__(self, pid: int = 0) -> None:
        self._began = time.monotonic()
        self._pid = pid if pid and _is_ours(pid) else 0
        self._busy = _system_seconds()
        self._thread = _thread_seconds(self._pid)

    def busy(self) -> float | None:
        """Share of the time of all processors, 0 to 1, that something used."""
        now = _system_seconds()
        if self._busy is None or now is None or now[1] <= self._busy[1]:
            return None
        return (now[0] - self._busy[0]) / (now[1] - self._busy[1])

    def thread(self) -> float | None:
        """Share of the time, 0 to 1, in which the thread ran: of a store, the one that serves."""
        now = _thread_seconds(self._pid)
        if self._thread is None or now is None:
            return None
        return min(1.0, (now - self._thread) / (time.monotonic() - self._began))


def _system_seconds() -> tuple[float, float] | None:
    """(busy, all) of the time of all processors, since the system's start; see proc(5)."""
    try:
        words = Path("/proc/stat").read_text().splitlines()[0].split()
    except (OSError, IndexError):
        return None
    # user nice system idle iowait irq softirq steal; what follows is contained in the first two.
    ticks = [int(word) for word in words[1:9]]
    return (sum(ticks) - sum(ticks[3:5])) / _TICKS, sum(ticks) / _TICKS


def _thread_seconds(pid: int) -> float | None:
    """Processor time of a process's first thread; None without one. To the nanosecond, where
    /proc/PID/stat counts ticks: a window may be as short as a few of them."""
    try:
        return int(Path(f"/proc/{pid}/task/{pid}/schedstat").read_text().split()[0]) / 1e9
    except (OSError, IndexError):
        return None


def _is_ours(pid: int) -> bool:
    try:
        return b"ckptmesh" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
