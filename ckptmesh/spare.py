"""Segments made ahead: zero-filled files, so that no commit ever has to ask the disk for space.

Rule 1: `wal/spare` is a file of zeroes that was synced before it got this name, and it loses the
        name, durably, before anything is written to it. So whatever has this name is all zeroes.
Rule 2: a spare that could not be made is no failure of the store: it was asked for ahead of need.
"""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import Literal

from ckptmesh.disk import NO_SPACE, Disk
from ckptmesh.errors import OutOfSpace
from ckptmesh.manifest import LOG_DIRECTORY

SPARE = f"{LOG_DIRECTORY}/spare"

Keeping = Literal["none", "inline", "thread"]
"""Whether a spare is kept, and who makes it: the caller of `Spare.want`, or a helper thread."""

_WAIT = 60.0  # seconds for a spare under way; zero-filling 64 MiB takes 150 ms on a healthy disk


def allocate(disk: Disk, path: str, size: int) -> None:
    """A new file of zeroes, synced, replacing what had the name.

    Raises `OutOfSpace` and leaves nothing behind when there is no room; `OSError` otherwise.
    """
    if disk.file_size(path) is not None:
        disk.unlink(path)
    handle = disk.open(path, "create")
    try:
        try:
            disk.zero_fill(handle, size)
            disk.fdatasync(handle)
        finally:
            disk.close(handle)
    except OSError as error:
        with suppress(OSError):
            disk.unlink(path)
        if error.errno in NO_SPACE:
            raise OutOfSpace(f"no space for {size:,} bytes at {path}") from error
        raise


class Spare:
    """Keeps one spare segment of at least `size` bytes in a store's directory.

    A helper thread starts with the first `want`; `close` ends it.
    """

    def __init__(self, disk: Disk, directory: str, size: int, keeping: Keeping) -> None:
        self._disk = disk
        self._folder = f"{directory}/{LOG_DIRECTORY}"
        self._path = f"{directory}/{SPARE}"
        self._size = size
        self._keeping = keeping
        self._changed = threading.Condition()
        self._wanted = False
        self._closing = False
        self._thread: threading.Thread | None = None

    def ready(self) -> bool:
        """Whether there is one now."""
        try:
            return (self._disk.file_size(self._path) or 0) >= self._size
        except OSError:
            return False

    def want(self) -> None:
        """Have one made if there is none; returns at once where a helper thread makes it."""
        if self._keeping == "none" or self.ready():
            return
        if self._keeping == "inline":
            self._make()
            return
        with self._changed:
            if self._thread is None:
                thread = threading.Thread(
                    target=self._run, name="ckptmesh-spare-segment", daemon=True
                )
                try:
                    thread.start()
                except RuntimeError:  # the system has no thread left; asked again when needed
                    return
                self._thread = thread
            self._wanted = True
            self._changed.notify_all()

    def _settle(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._wanted, _WAIT)

    def pending(self) -> int:
        """Bytes that the next spare will still take from the disk."""
        return 0 if self._keeping == "none" or self.ready() else self._size

    def check_replaceable(self) -> None:
        """Make sure that after the next `take` there will be a spare again, since a store that is
        killed needs one to start on a full disk. Raises `OutOfSpace`, `OSError`."""
        if self._keeping == "none":
            return
        self._settle()
        need = self._size + self.pending()
        free = self._disk.free_bytes(self._folder)
        if free < need:
            raise OutOfSpace(f"{free:,} bytes are free in {self._folder}; another segment and a "
                             f"spare one need {need:,}")

    def take(self, target: str, size: int) -> None:
        """Make the spare, or a new file, the file `target` of at least `size` zeroes, durably.

        Raises `OutOfSpace` with nothing left behind, `OSError`.
        """
        self._settle()
        if (self._disk.file_size(self._path) or 0) >= size:
            self._disk.rename(self._path, target)
        else:
            allocate(self._disk, target, size)
        self._disk.sync_directory(self._folder)

    def close(self) -> None:
        """End the helper thread, waiting for a file under way. The spare stays for the next
        start."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(_WAIT)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._wanted or self._closing)
                if self._closing:
                    self._wanted = False
                    return
            try:
                self._make()
            finally:  # whoever waits in `take` goes on without a spare
                with self._changed:
                    self._wanted = False
                    self._changed.notify_all()

    def _make(self) -> None:
        # Whatever goes wrong here is met again, and told, by whoever needs the space.
        with suppress(OSError, OutOfSpace):
            temporary = f"{self._path}.tmp"
            allocate(self._disk, temporary, self._size)
            self._disk.rename(temporary, self._path)
            self._disk.sync_directory(self._folder)
