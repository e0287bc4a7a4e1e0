"""Disk layers that lie, for `ckptmesh certify --disk tests.cli.lying_disks:…`."""

from __future__ import annotations

import errno
import os
import random

from ckptmesh.disk import Mode, RealDisk


class Keeping(RealDisk):
    """A sync that returns before anything left the process: what was written since the file was
    opened goes to the system when it is closed, and is lost when the process dies before."""

    def __init__(self) -> None:
        self._kept: dict[int, list[tuple[int, bytes]]] = {}

    def pwrite(self, handle: int, data: bytes, offset: int) -> None:
        self._kept.setdefault(handle, []).append((offset, bytes(data)))

    def size(self, handle: int) -> int:
        ends = [offset + len(data) for offset, data in self._kept.get(handle, ())]
        return max([super().size(handle), *ends])

    def truncate(self, handle: int, size: int) -> None:
        self._hand_over(handle)
        super().truncate(handle, size)

    def close(self, handle: int) -> None:
        self._hand_over(handle)
        super().close(handle)

    def _hand_over(self, handle: int) -> None:
        for offset, data in self._kept.pop(handle, ()):
            super().pwrite(handle, data, offset)


class Flipping(RealDisk):
    """Flips a bit of what is written, now and then."""

    def pwrite(self, handle: int, data: bytes, offset: int) -> None:
        if random.random() < 0.1:
            damaged = bytearray(data)
            damaged[random.randrange(len(data))] ^= 1 << random.randrange(8)
            data = bytes(damaged)
        super().pwrite(handle, data, offset)


class Losing(RealDisk):
    """Loses a whole write, now and then."""

    def pwrite(self, handle: int, data: bytes, offset: int) -> None:
        if random.random() >= 0.1:
            super().pwrite(handle, data, offset)


class Late(RealDisk):
    """Does renames when the process ends, which a killed one never does, and hides that from its
    own process: what has the new name already stands under another until then."""

    def __init__(self) -> None:
        self._real: dict[str, str] = {}  # by the name that it should have
        self._count = 0

    def rename(self, old: str, new: str) -> None:
        self._count += 1
        hidden = f"{new}.late{os.getpid()}-{self._count}"
        super().rename(self._where(old), hidden)
        self._real.pop(old, None)
        self._real[new] = hidden

    def open(self, path: str, mode: Mode) -> int:
        return super().open(self._where(path), mode)

    def file_size(self, path: str) -> int | None:
        return super().file_size(self._where(path))

    def unlink(self, path: str) -> None:
        super().unlink(self._where(path))
        self._real.pop(path, None)

    def listdir(self, path: str) -> list[str]:
        hidden = {os.path.basename(name) for name in self._real.values()}
        shown = {os.path.basename(name) for name in self._real if os.path.dirname(name) == path}
        return sorted({*super().listdir(path), *shown} - hidden)

    def _where(self, path: str) -> str:
        return self._real.get(path, path)


class Broken(RealDisk):
    """The syncs of its logs fail after a while."""

    def __init__(self) -> None:
        self._logs: set[int] = set()
        self._left = 10

    def open(self, path: str, mode: Mode) -> int:
        handle = super().open(path, mode)
        if mode == "write":
            self._logs.add(handle)
        return handle

    def fdatasync(self, handle: int) -> None:
        self._left -= handle in self._logs
        if self._left < 0:
            raise OSError(errno.EIO, "Input/output error")
        super().fdatasync(handle)


class Sleeping(RealDisk):
    """Syncs do nothing at all; writes reach the system. A power loss would show it, a kill never
    does: this is the lie that `certify` cannot see."""

    def fdatasync(self, handle: int) -> None:
        pass

    def sync_directory(self, path: str) -> None:
        pass


class Full(RealDisk):
    """Honest, but there is no room for a log."""

    def zero_fill(self, handle: int, size: int) -> None:
        if size < 1 << 20:  # what is measured has room
            raise OSError(errno.ENOSPC, "No space left on device")
        super().zero_fill(handle, size)
