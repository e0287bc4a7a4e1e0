"""Where a command's lock is kept while the command runs: a served mesh, or a directory by moments.

    place = Directory("./state", connect)      # or Served(client)
    with place.lock("nightly", wait=0) as lock:
        with place.open() as mesh: …           # the store, for a few operations
        run(command, pass_fds=lock.files)      # nobody holds the directory meanwhile
        with place.open() as mesh: mesh.commit("nightly", value, guard=lock.lease)

A lease in a directory that nobody serves neither ends nor can be renewed: each opening grants it
its whole time again. So in a directory a ticket stands as long as a file of its name is locked by
the system (`flock`), which the holder and the command that it runs have open: until both are gone,
also by SIGKILL, and no moment longer. Whoever looks at the queue ends the tickets of the dead.

Rule 1: the file is locked before its ticket can be seen.
Rule 2: a ticket without such a file, of a client of a served store, is never judged dead here.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from ckptmesh.errors import Compacted, Conflict, Misuse
from ckptmesh.features.keeper import Kept
from ckptmesh.features.locks import Acquisition, acquire, holder_name
from ckptmesh.flows import run
from ckptmesh.views import Checkpoint, Receipt

ALIVE = "alive"  # marks the value of a ticket that stands by a locked file
_FILES = "run"  # the folder of a data directory for what does not outlive a process
_LOOK = 0.5  # seconds between two looks of who waits, or ten times what one costs if longer


class Served:
    """A mesh: its client stays connected, and renews the lease."""

    def __init__(self, client: Any) -> None:
        self._client = client

    @contextlib.contextmanager
    def open(self) -> Iterator[Any]:
        """The store, for a few operations."""
        yield self._client

    def lock(self, name: str, *, shared: bool = False, ttl: float = 30, wait: float | None = None
             ) -> ServedLock:
        """The lock of this name, not yet taken; arguments as of `Client.lock`."""
        return ServedLock(self._client.lock(name, shared=shared, ttl=ttl, wait=wait))


class ServedLock:
    """`Lock`, as `DirectoryLock` has it; or a worker's `Part`, which is held."""

    files: tuple[int, ...] = ()

    def __init__(self, lock: Any) -> None:
        self._lock = lock
        self.lost = lock.lost

    @property
    def lease(self) -> Receipt:
        """What `guard=` compares. Raises `LeaseLost`, `Misuse`."""
        lease: Receipt = self._lock.lease
        return lease

    def acquire(self) -> None:
        """As `Lock.acquire`."""
        self._lock.acquire()

    def release(self) -> None:
        """As `Lock.release`."""
        self._lock.release()


class Directory:
    """A data directory that is held only for the operations. `connect` gives a client of it."""

    def __init__(self, directory: str, connect: Callable[[], Any]) -> None:
        self._directory = os.path.realpath(directory)
        self._connect = connect

    @contextlib.contextmanager
    def open(self) -> Iterator[Any]:
        """The store, for a few operations. Raises `DirectoryInUse` where somebody keeps it."""
        with contextlib.closing(self._connect()) as client:
            yield client

    def lock(self, name: str, *, shared: bool = False, ttl: float = 30, wait: float | None = None
             ) -> DirectoryLock:
        """The lock of this name, not yet taken. `ttl`: what is left of it where the directory is
        served while the command runs; nobody renews it then."""
        return DirectoryLock(_Moments(self, self._directory), name, shared, ttl, wait)


class DirectoryLock:
    """A lock on a name in a directory, among all who use it by moments. `files`: descriptors that
    the command is to inherit. `lost` is never set: nothing ends it but an operator, whom the
    guard of a commit meets."""

    def __init__(self, moments: _Moments, name: str, shared: bool, ttl: float,
                 wait: float | None) -> None:
        self._moments, self._wait = moments, wait
        self._way = Acquisition(moments, name, shared, ttl, holder_name())
        self.lost = threading.Event()

    @property
    def files(self) -> tuple[int, ...]:
        """What the command has to inherit, so that the lock stands as long as it runs."""
        return tuple(self._moments.files)

    @property
    def lease(self) -> Receipt:
        """What `guard=` compares. Raises `Misuse` when it is not held."""
        if self._way.ticket is None or not self._moments.files:
            raise Misuse(f"the lock on {self._way.name!r} is not held")
        return self._way.ticket

    def acquire(self) -> None:
        """Wait until it is had. Raises `LockTimeout`, and what opening the directory raises."""
        try:
            run(acquire(self._way, self._wait, _never_due))
        except BaseException:
            self._moments.let_go(self._way.key)
            raise

    def release(self) -> None:
        """Give it back. Raises `LeaseLost` where an operator has ended it."""
        try:
            run(self._way.give_back())
        finally:
            self._moments.let_go(self._way.key)


def _never_due(ticket: Receipt, asked: float) -> Kept:
    return Kept(ticket, math.inf, asked, lambda: None)


class _Moments:
    """A directory as the store of one acquisition: each call holds it for that moment only."""

    def __init__(self, place: Directory, directory: str) -> None:
        self._place, self._directory = place, directory
        self.files: list[int] = []
        self.cost = 0.0  # seconds that the last look took

    def commit(self, key: str, value: dict[str, Any], **options: Any) -> Receipt:
        with self._place.open() as store:  # which makes the directory, or refuses it
            path = file_of(self._directory, key)
            os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
            handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDONLY | os.O_CLOEXEC, 0o644)
            self.files.append(handle)
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            receipt: Receipt = store.commit(key, {**value, ALIVE: True}, **options)
            return receipt

    def delete(self, key: str, *, guard: Receipt) -> bool:
        with self._place.open() as store:
            return bool(store.delete(key, guard=guard))

    def scan(self, prefix: str, **options: Any) -> list[Checkpoint]:
        """A page of what is there, once the tickets of the dead in it are ended."""
        began = time.monotonic()
        with self._place.open() as store:
            while True:
                page: list[Checkpoint] = store.scan(prefix, **options)
                dead = [each for each in page if is_dead(self._directory, each)]
                for each in dead:
                    with contextlib.suppress(Conflict):
                        store.delete(each.key, expect=each)
                    _remove(file_of(self._directory, each.key))
                if not dead:
                    self.cost = time.monotonic() - began
                    return page

    def watch(self, prefix: str, *, since: object = None) -> _Pause:
        return _Pause(self)

    def let_go(self, key: str) -> None:
        """Unlock the file of a ticket, which is given back or was never drawn."""
        if self.files:
            _remove(file_of(self._directory, key))
        while self.files:
            os.close(self.files.pop())


class _Pause:
    """Stands for a watch, where nobody publishes: after a pause all has to be looked at anew."""

    def __init__(self, moments: _Moments) -> None:
        self._moments = moments

    def get(self, timeout: float) -> None:
        if timeout > 0:
            time.sleep(min(timeout, max(_LOOK, 10 * self._moments.cost)))
            raise Compacted("nothing tells what has happened in a directory")

    def close(self) -> None:
        pass


def file_of(directory: str, key: str) -> str:
    """The file that is locked as long as the holder of this ticket lives."""
    return os.path.join(directory, _FILES, f"ticket-{key.rpartition('/')[2]}")


def is_dead(directory: str, ticket: Checkpoint) -> bool:
    """Whether a ticket stands by a file that nobody has locked any more."""
    if not (isinstance(ticket.value, dict) and ticket.value.get(ALIVE) is True):
        return False
    try:
        handle = os.open(file_of(directory, ticket.key), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    except OSError:  # another user's, say: nothing is known
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return False
    else:
        return True
    finally:
        os.close(handle)


def _remove(path: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)


