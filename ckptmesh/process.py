"""What a long-running process owes the system around it: signals, readiness, its parent, lines.

Rule 1: SIGTERM and SIGINT mean "end cleanly", and call a function that only wakes a loop.
Rule 2: what a parent hands down (variables, a descriptor) is taken once and not passed on.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

PARENT = "CKPTMESH_PARENT"  # pid of the supervisor that started this process
READY_FD = "CKPTMESH_READY_FD"  # descriptor that a supervisor reads "READY=1" from
NOTIFY_SOCKET = "NOTIFY_SOCKET"  # systemd's

_PR_SET_PDEATHSIG = 1
_COLLECTOR = (10_000, 20, 50)  # new objects to a collection, collections to one of the next age, …

Tell = Callable[[str], None]


def teller(who: str) -> Tell:
    """A function that writes a line about this process to stderr, as `ckptmesh broker: …`."""

    def tell(line: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # stderr may be gone; that ends nothing
            print(f"ckptmesh {who}: {line}", file=sys.stderr, flush=True)

    return tell


def quieten_collector() -> None:
    """For a process whose objects live as long as it does, once they are there: leave all of them
    out of the garbage collector's walks, and let it walk less often over what comes after.

    What a store holds and what passes through it makes no cycles, so counting references frees it.
    """
    gc.freeze()
    gc.set_threshold(*_COLLECTOR)


@contextlib.contextmanager
def on_stop_signals(stop: Callable[[], None]) -> Iterator[None]:
    """While the block runs, SIGTERM and SIGINT call `stop` in the main thread.

    Elsewhere than in the main thread Python can install no handlers, and this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: FrameType | None) -> None:
        stop()

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """While the block runs, Ctrl-C and SIGTERM do nothing. For an end that is bounded in time."""
    stops = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, signal.SIG_IGN) for number in stops]
    try:
        yield
    finally:
        for number, handler in zip(stops, before, strict=True):
            signal.signal(number, handler)


def own_environment() -> dict[str, str]:
    """Variables for a child that is to find this very package and no one else's settings."""
    root = str(Path(__file__).resolve().parent.parent)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CKPTMESH_")}
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH", ""))))
    return kept | {"PYTHONPATH": path, "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1"}


def helper(module: str, *arguments: str, stdin: int, stdout: int) -> subprocess.Popen[bytes]:
    """Start a Python process for this one, which runs a module of ckptmesh. Raises `OSError`."""
    paths = [path or os.getcwd() for path in sys.path]  # it imports what this process imports
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments], stdin=stdin, stdout=stdout,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        process_group=0,  # a Ctrl-C at the terminal is for this process, which then ends it
    )


def resident_bytes() -> int:
    """Memory that this process holds, in bytes; 0 where the system does not tell."""
    try:
        with open("/proc/self/statm", "rb") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def leave_signals_to_main_thread() -> None:
    """Called in a helper thread: stop signals are never delivered to it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})


def die_with_parent() -> None:
    """When a supervisor started this process, end (cleanly, by SIGTERM) as soon as it is gone.

    Set by the child itself: a function run between fork and exec is unsafe beside threads.
    """
    parent = os.environ.pop(PARENT, "")
    if parent.isdigit() and not end_with(int(parent), signal.SIGTERM):
        os.kill(os.getpid(), signal.SIGTERM)


def end_with(parent: int, number: int) -> bool:
    """Have the system send this process a signal when its parent ends. False when the parent has
    ended already. Where the system cannot do that (it is not Linux), nothing happens then."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
    return os.getppid() == parent  # asked last: it may have ended before the line above


def notify_ready() -> None:
    """Tell whoever started this process that it serves: `ckptmesh up`, or systemd.

    Does nothing where nobody asked. A supervisor that does not listen disturbs nothing.
    """
    descriptor = os.environ.pop(READY_FD, "")
    if descriptor.isdigit():
        with contextlib.suppress(OSError):
            os.write(int(descriptor), b"READY=1\n")
    address = os.environ.pop(NOTIFY_SOCKET, "")
    if address:
        if address[0] == "@":
            address = "\0" + address[1:]
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notify,
        ):
            notify.settimeout(1.0)
            notify.sendto(b"READY=1\n", address)


def keep_readiness_private() -> None:
    """Keep children of this process from inheriting the descriptor that tells readiness; its end
    tells the supervisor that this process is gone."""
    descriptor = os.environ.get(READY_FD, "")
    if descriptor.isdigit():
        with contextlib.suppress(OSError):
            os.set_inheritable(int(descriptor), False)


def raise_descriptor_limit() -> int:
    """Allow as many open files as the system lets us: each connection takes one. The new limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = hard
    return soft


def begin(role: str) -> Tell:
    """What every process of ckptmesh does first. The function that tells about it."""
    keep_readiness_private()
    die_with_parent()
    raise_descriptor_limit()
    return teller(role)
