"""One process at a time on a directory, and only on a directory that can hold a store.

Rule 1: `flock`, not `lockf`: closing any other descriptor of the file would release the latter.
Rule 2: the LOCK file is never removed; its content, the holder's pid, is for people only.
Rule 3: a directory of anything else is refused before a file is made in it.

`flock` is inherited over fork, so processes that share nothing else with a store are spawned.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterable
from typing import NamedTuple

from ckptmesh.errors import DirectoryInUse, InvalidDirectory
from ckptmesh.manifest import LOG_DIRECTORY, MANIFEST, MANIFEST_TMP, SNAPSHOT_DIRECTORY

LOCK = "LOCK"
QUARANTINE_DIRECTORY = "quarantine"
RUN_DIRECTORY = "run"  # sockets of a served store, made before the store starts

_OURS = frozenset((
    LOCK, MANIFEST, MANIFEST_TMP, LOG_DIRECTORY, SNAPSHOT_DIRECTORY, QUARANTINE_DIRECTORY,
    RUN_DIRECTORY, "lost+found",
))
NETWORK = frozenset((
    "nfs", "nfs4", "cifs", "smb3", "smbfs", "ncpfs", "afs", "coda", "ceph", "lustre", "gpfs",
    "beegfs", "glusterfs", "ocfs2", "gfs2", "fuse.sshfs", "fuse.glusterfs", "fuse.ceph",
    "fuse.s3fs", "fuse.rclone", "fuse.gcsfuse", "fuse.blobfuse2", "davfs", "fuse.davfs2",
))
FORGETFUL = {"tmpfs": "memory: all is gone after a restart of the machine",
             "ramfs": "memory: all is gone after a restart of the machine",
             "overlay": "a container's own layer: all is gone with the container"}
_RETRY = 0.02  # seconds between two attempts while waiting; a command holds a directory for ~50 ms


class DirectoryLock:
    """A held lock. `pid` is this process's; a forked child must not use it."""

    def __init__(self, path: str, handle: int) -> None:
        self._path = path
        self._handle = handle
        self.pid = os.getpid()

    def still_ours(self) -> bool:
        """Whether LOCK is still the file that was locked: if somebody removed or replaced it,
        another process can hold "the" lock as well, and this one must stop."""
        try:
            there, held = os.stat(self._path), os.fstat(self._handle)
        except OSError:
            return False
        return (there.st_dev, there.st_ino) == (held.st_dev, held.st_ino)

    def release(self) -> None:
        """Let the next process have the directory. May be called twice."""
        if self._handle >= 0:
            handle, self._handle = self._handle, -1
            os.close(handle)


def acquire(directory: str, timeout: float = 0.0) -> DirectoryLock:
    """Lock a directory, waiting up to `timeout` seconds; it is made if only its parent exists.

    Raises `DirectoryInUse` naming the holder's pid, `InvalidDirectory` saying what to do.
    """
    _check(directory)
    path = os.path.join(directory, LOCK)
    deadline = time.monotonic() + timeout
    while True:
        lock = _attempt(path)
        if lock is not None:
            return lock
        if time.monotonic() >= deadline:
            raise _in_use(directory, path)
        time.sleep(_RETRY)


def _attempt(path: str) -> DirectoryLock | None:
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise InvalidDirectory(
            f"{path} cannot be opened: {error.strerror}", hint="see who owns the directory"
        ) from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return None
        raise InvalidDirectory(
            f"{path} cannot be locked: {error.strerror}", hint="use a local file system"
        ) from error
    lock = DirectoryLock(path, handle)
    if not lock.still_ours():  # replaced between open and flock
        lock.release()
        return None
    try:
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{lock.pid}\n".encode(), 0)
    except OSError:
        pass  # for people only; a full disk must not keep the store from starting
    return lock


def _in_use(directory: str, path: str) -> DirectoryInUse:
    try:
        with open(path, encoding="ascii") as file:
            pid = int(file.read(32))
    except (OSError, ValueError):
        pid = 0
    holder = f"process {pid}" if pid else "another process"
    return DirectoryInUse(
        f"{directory} is in use by {holder}",
        hint="if a store serves it, connect to its address; else wait for that process, or end "
             f"it and share the directory by serving it: ckptmesh up --data {directory}",
        pid=pid, directory=directory,
    )


# --- directories that can hold a store --------------------------------------------------------


def _check(directory: str) -> None:
    """Make sure that the directory is there and may hold a store. Raises `InvalidDirectory`."""
    parent = os.path.dirname(os.path.abspath(directory))
    if not os.path.isdir(parent):
        raise InvalidDirectory(f"{directory}: its parent {parent} does not exist",
                               hint=f"make it first: mkdir -p {parent}")
    kind = file_system(parent if not os.path.exists(directory) else directory)
    if kind in NETWORK:
        raise InvalidDirectory(
            f"{directory} is on a network file system ({kind}), whose locks and syncs cannot be "
            "relied on", hint="keep the data on a local disk and share it by serving it: "
            "ckptmesh up --data DIR",
        )
    if not os.path.lexists(directory):
        _make(directory, parent)
    if not os.path.isdir(directory):
        raise InvalidDirectory(f"{directory} is not a directory", hint="name a directory")
    if not os.access(directory, os.R_OK | os.W_OK | os.X_OK):
        raise InvalidDirectory(
            f"{directory} cannot be written by this user (or is mounted read-only)",
            hint=f"see who owns it: ls -ld {directory}; to look without writing: "
                 f"ckptmesh wal dump {directory} --values",
        )
    names = os.listdir(directory)
    strange = sorted(set(names) - _OURS)
    if strange and MANIFEST not in names:
        raise InvalidDirectory(
            f"{directory} holds something else ({', '.join(strange[:3])}"
            f"{', …' if len(strange) > 3 else ''}) and no store", hint="name an empty directory",
        )


def _make(directory: str, parent: str) -> None:
    try:
        os.mkdir(directory, 0o700)
        handle = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except FileExistsError:
        pass  # another process was faster; the lock will tell who goes on
    except OSError as error:
        raise InvalidDirectory(f"{directory} cannot be made: {error.strerror}",
                               hint=f"see who owns its parent: ls -ld {parent}") from error


class Mount(NamedTuple):
    """A file system as it is mounted: its type ("ext4") and its options. Empty: cannot be told."""

    kind: str = ""
    options: frozenset[str] = frozenset()


def file_system(path: str, mounts: Iterable[str] | None = None) -> str:
    """The type of the file system that holds a path ("ext4"), "" where it cannot be told. `mounts`:
    as of `mount_of`."""
    return mount_of(path, mounts).kind


def mount_of(path: str, mounts: Iterable[str] | None = None) -> Mount:
    """The mounted file system that holds a path.

    `mounts`: lines as in /proc/self/mountinfo, which is read when they are not given.
    """
    if mounts is None:
        try:
            with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as file:
                mounts = file.readlines()
        except OSError:
            return Mount()
    real = os.path.realpath(path)
    best, found = "", Mount()
    for line in mounts:
        fields, _, rest = line.partition(" - ")
        place = fields.split(" ")[4].replace("\\040", " ").replace("\\134", "\\")
        inside = real == place or real.startswith(place.rstrip("/") + "/")
        if inside and len(place) >= len(best):  # a later mount covers an earlier one
            options = f"{fields.split(' ')[5]},{rest.split()[-1]}"
            best, found = place, Mount(rest.split(" ")[0], frozenset(options.split(",")))
    return found
