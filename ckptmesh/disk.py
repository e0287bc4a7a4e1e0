"""The one door to the file system for everything that must survive a crash.

Rule 1: log, snapshots and manifest touch files only through a `Disk`, so that a simulated one can
        list every write, sync, rename and unlink, and make each crash image that they allow.
Rule 2: nothing here is durable until its sync is called by name: `fdatasync` for a file's bytes and
        size, `sync_directory` for names made, renamed or removed in it.
Rule 3: a short write is continued; every other trouble surfaces as the `OSError` that it is.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable
from contextlib import suppress
from typing import Literal, Protocol

Mode = Literal["read", "write", "create"]

_FLAGS: dict[str, int] = {
    "read": os.O_RDONLY,
    "write": os.O_RDWR,
    "create": os.O_RDWR | os.O_CREAT | os.O_EXCL,
}
_ZEROES = bytes(1 << 20)
_SYNC_EACH = 1 << 20  # bytes of a new file: with more, a sync of the log would wait behind them
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
"""The `OSError`s that say: nothing is broken, there is only no room."""


class Disk(Protocol):
    """What the store needs of a file system. Paths are absolute or relative to the process; sizes
    and offsets are bytes; every method may raise `OSError`."""

    def open(self, path: str, mode: Mode) -> int:
        """A handle: "read" and "write" need the file to be there, "create" needs it not to be."""

    def close(self, handle: int) -> None:
        """Give the handle back; it is gone even when this raises."""

    def pread(self, handle: int, size: int, offset: int) -> bytes:
        """The bytes there; fewer than `size` only at the end of the file."""

    def pwrite(self, handle: int, data: bytes, offset: int) -> None:
        """Write all of `data`; short writes are continued."""

    def zero_fill(self, handle: int, size: int) -> None:
        """Write zeroes from offset 0 to `size`, so that later writes need no new space."""

    def truncate(self, handle: int, size: int) -> None:
        """Cut the file to `size`."""

    def size(self, handle: int) -> int:
        """Size of the open file."""

    def fdatasync(self, handle: int) -> None:
        """Make the file's bytes and size durable."""

    def sync_directory(self, path: str) -> None:
        """Make the names in a directory durable."""

    def rename(self, old: str, new: str) -> None:
        """Give a file another name, replacing what had it."""

    def unlink(self, path: str) -> None:
        """Remove a file's name."""

    def mkdir(self, path: str) -> None:
        """Make a directory; nothing happens when it is there. Its parent must exist."""

    def listdir(self, path: str) -> list[str]:
        """The names in a directory, sorted."""

    def file_size(self, path: str) -> int | None:
        """Size of a regular file by name, None when there is none of that name."""

    def free_bytes(self, path: str) -> int:
        """Bytes that this process may still use on the file system of `path`."""


class RealDisk:
    """The operating system's file system."""

    def open(self, path: str, mode: Mode) -> int:
        return os.open(path, _FLAGS[mode] | os.O_CLOEXEC, 0o600)

    def close(self, handle: int) -> None:
        os.close(handle)

    def pread(self, handle: int, size: int, offset: int) -> bytes:
        # One call reads at most 2 GiB; a signal may end it early.
        parts = []
        while size > 0:
            part = os.pread(handle, size, offset)
            if not part:
                break
            parts.append(part)
            size -= len(part)
            offset += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def pwrite(self, handle: int, data: bytes, offset: int) -> None:
        written = os.pwrite(handle, data, offset)
        while written < len(data):
            rest = memoryview(data)[written:]
            count = os.pwrite(handle, rest, offset + written)
            if count == 0:
                raise OSError(errno.EIO, "the disk accepts no more bytes")
            written += count

    def zero_fill(self, handle: int, size: int) -> None:
        for offset in range(0, size, len(_ZEROES)):
            self.pwrite(handle, _ZEROES[: min(len(_ZEROES), size - offset)], offset)

    def truncate(self, handle: int, size: int) -> None:
        os.ftruncate(handle, size)

    def size(self, handle: int) -> int:
        return os.fstat(handle).st_size

    def fdatasync(self, handle: int) -> None:
        os.fdatasync(handle)

    def sync_directory(self, path: str) -> None:
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def rename(self, old: str, new: str) -> None:
        os.rename(old, new)

    def unlink(self, path: str) -> None:
        os.unlink(path)

    def mkdir(self, path: str) -> None:
        if not os.path.isdir(path):
            os.mkdir(path, 0o700)

    def listdir(self, path: str) -> list[str]:
        return sorted(os.listdir(path))

    def file_size(self, path: str) -> int | None:
        try:
            found = os.stat(path)
        except FileNotFoundError:
            return None
        return found.st_size if stat.S_ISREG(found.st_mode) else None

    def free_bytes(self, path: str) -> int:
        found = os.statvfs(path)
        return found.f_bavail * found.f_frsize


def read_file(disk: Disk, path: str) -> bytes:
    """All bytes of a file. Raises `OSError`."""
    handle = disk.open(path, "read")
    try:
        return disk.pread(handle, disk.size(handle), 0)
    finally:
        disk.close(handle)


def write_file(disk: Disk, path: str, pieces: Iterable[bytes]) -> None:
    """A new file with these bytes, synced; its name is durable once the directory is. On an error
    the unfinished file is removed again. Raises `OSError`, `FileExistsError` when it is there."""
    handle = disk.open(path, "create")
    try:
        try:
            offset = synced = 0
            for piece in pieces:
                disk.pwrite(handle, piece, offset)
                offset += len(piece)
                if offset - synced >= _SYNC_EACH:
                    disk.fdatasync(handle)
                    synced = offset
            disk.fdatasync(handle)
        finally:
            disk.close(handle)
    except OSError:
        with suppress(OSError):  # the first error tells whether only room was missing
            disk.unlink(path)
        raise
