"""Disks that fail, that end the process, and that forget what was not synced."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import NamedTuple

from ckptmesh.disk import Disk, Mode


class Killed(BaseException):
    """The process ended at this call."""


class FaultyDisk:
    """A disk in front of another. Before each call `meet(count, operation, path)` may raise;
    `calls` lists all of them. Handles that are still open can be given back with `abandon`."""

    def __init__(self, inner: Disk) -> None:
        self.inner = inner
        self.calls: list[tuple[str, str]] = []
        self.meet: Callable[[int, str, str], None] = lambda count, operation, path: None
        self._paths: dict[int, str] = {}

    def fail(self, operation: str, code: int, path: str = "", after: int = 0) -> None:
        """Let the calls of `operation` on paths that contain `path` fail once with `code`, but for
        the first `after` of them."""
        seen = 0

        def meet(count: int, called: str, place: str) -> None:
            nonlocal seen
            if called == operation and path in place:
                seen += 1
                if seen == after + 1:
                    raise OSError(code, errno.errorcode[code])

        self.meet = meet

    def fail_always(self, operation: str, code: int, path: str = "") -> None:
        """As `fail`, but every time."""

        def meet(count: int, called: str, place: str) -> None:
            if called == operation and path in place:
                raise OSError(code, errno.errorcode[code])

        self.meet = meet

    def heal(self) -> None:
        """No more faults."""
        self.meet = lambda count, operation, path: None

    def abandon(self) -> None:
        """Close what a killed process would have left open."""
        for handle in list(self._paths):
            with suppress(OSError):
                self.inner.close(handle)
        self._paths.clear()

    def _call(self, operation: str, path: str) -> None:
        self.calls.append((operation, path))
        self.meet(len(self.calls), operation, path)

    def open(self, path: str, mode: Mode) -> int:
        self._call("open" if mode == "read" else mode, path)
        handle = self.inner.open(path, mode)
        self._paths[handle] = path
        return handle

    def close(self, handle: int) -> None:
        path = self._paths.pop(handle)
        self.inner.close(handle)
        self._call("close", path)

    def pread(self, handle: int, size: int, offset: int) -> bytes:
        self._call("pread", self._paths[handle])
        return self.inner.pread(handle, size, offset)

    def pwrite(self, handle: int, data: bytes, offset: int) -> None:
        self._call("pwrite", self._paths[handle])
        self.inner.pwrite(handle, data, offset)

    def zero_fill(self, handle: int, size: int) -> None:
        self._call("zero_fill", self._paths[handle])
        self.inner.zero_fill(handle, size)

    def truncate(self, handle: int, size: int) -> None:
        self._call("truncate", self._paths[handle])
        self.inner.truncate(handle, size)

    def size(self, handle: int) -> int:
        return self.inner.size(handle)

    def fdatasync(self, handle: int) -> None:
        self._call("fdatasync", self._paths[handle])
        self.inner.fdatasync(handle)

    def sync_directory(self, path: str) -> None:
        self._call("sync_directory", path)
        self.inner.sync_directory(path)

    def rename(self, old: str, new: str) -> None:
        self._call("rename", new)
        self.inner.rename(old, new)
        for handle, path in self._paths.items():
            if path == old:
                self._paths[handle] = new

    def unlink(self, path: str) -> None:
        self._call("unlink", path)
        self.inner.unlink(path)

    def mkdir(self, path: str) -> None:
        self._call("mkdir", path)
        self.inner.mkdir(path)

    def listdir(self, path: str) -> list[str]:
        return self.inner.listdir(path)

    def file_size(self, path: str) -> int | None:
        return self.inner.file_size(path)

    def free_bytes(self, path: str) -> int:
        self._call("free_bytes", path)
        return self.inner.free_bytes(path)


class File:
    """A file of a `MemoryDisk`: its bytes as processes see them (`data`), as they are on the disk
    for certain (`durable`), and what was done since, oldest first: (offset, bytes written), or
    (size, None) for a cut."""

    __slots__ = ("data", "durable", "unsynced")

    def __init__(self, data: bytes = b"") -> None:
        self.data = bytearray(data)
        self.durable = bytes(data)
        self.unsynced: list[tuple[int, bytes | None]] = []


Tree = dict[str, File | None]
"""path → file, None for a directory"""


class Change(NamedTuple):
    """One change of names: "create", "mkdir", "rename" (to `new`) or "unlink". `file` is what gets
    the name, None for a directory. `synced`: its directory was synced since, but that directory's
    own name may not last yet."""

    operation: str
    path: str
    new: str = ""
    file: File | None = None
    synced: bool = False

    def within(self, directory: str) -> bool:
        return directory in (_parent_of(self.path), _parent_of(self.new or self.path))

    def possible(self, names: Tree) -> bool:
        """Whether the directory that it goes into is there."""
        return _parent_of(self.new or self.path) in names

    def redo(self, names: Tree) -> None:
        """Bring it to a tree that has not seen it, nor perhaps what came before it; nothing happens
        where its directory is not there."""
        if not self.possible(names):
            return
        if self.operation in ("rename", "unlink"):
            names.pop(self.path, None)
        if self.operation != "unlink":
            names[self.new or self.path] = self.file


class MemoryDisk:
    """A file system in memory that knows what a power failure may take away: bytes not synced,
    and names whose directory was not synced. `power_failure` draws one of the disks that may be
    found then; `images.Images` lists all of them."""

    SECTOR = 512

    def __init__(self) -> None:
        self.names: Tree = {"/": None}
        self.durable: Tree = {"/": None}
        self.pending: list[Change] = []
        self._open: dict[int, File] = {}
        self._next = 3

    @classmethod
    def holding(cls, contents: Mapping[str, bytes | None]) -> MemoryDisk:
        """A disk on which exactly these files (path → bytes) and directories (path → None) stand,
        all of them durable."""
        disk = cls()
        for path, data in contents.items():
            disk.names[path] = None if data is None else File(data)
        disk.durable = dict(disk.names)
        return disk

    def power_failure(self, source: random.Random, *, all_lost: bool = False) -> MemoryDisk:
        """What may be found afterwards: of each change that was not synced, nothing or some."""
        names = dict(self.durable)
        for change in self.pending:
            if change.synced or (not all_lost and source.random() < 0.5):
                change.redo(names)
        images = {id(file): self._image(file, source, all_lost)
                  for file in names.values() if file is not None}
        return self.holding({path: None if file is None else images[id(file)]
                             for path, file in names.items()})

    def killed(self) -> MemoryDisk:
        """The same disk for the next process: the page cache has survived this one."""
        self._open.clear()
        return self

    def _image(self, file: File, source: random.Random, all_lost: bool) -> bytes:
        old, new = file.durable, bytes(file.data)
        if all_lost or old == new:
            return old
        size = source.choice((len(old), len(new)))
        sectors = []
        for at in range(0, size, self.SECTOR):
            before = old[at : at + self.SECTOR].ljust(self.SECTOR, b"\0")
            now = new[at : at + self.SECTOR].ljust(self.SECTOR, b"\0")
            torn = (before, now, bytes(self.SECTOR), source.randbytes(self.SECTOR))
            sectors.append(before if before == now else source.choice(torn))
        return b"".join(sectors)[:size]

    # --- the protocol --------------------------------------------------------------------------

    def open(self, path: str, mode: Mode) -> int:
        if mode == "create":
            if path in self.names:
                raise FileExistsError(errno.EEXIST, path)
            self._parent(path)
            self.names[path] = created = File()
            self.pending.append(Change("create", path, file=created))
        file = self._file(path)
        self._next += 1
        self._open[self._next] = file
        return self._next

    def close(self, handle: int) -> None:
        del self._open[handle]

    def pread(self, handle: int, size: int, offset: int) -> bytes:
        return bytes(self._open[handle].data[offset : offset + size])

    def pwrite(self, handle: int, data: bytes, offset: int) -> None:
        file = self._open[handle]
        file.data.extend(bytes(max(0, offset - len(file.data))))
        file.data[offset : offset + len(data)] = data
        file.unsynced.append((offset, bytes(data)))

    def zero_fill(self, handle: int, size: int) -> None:
        self.pwrite(handle, bytes(size), 0)

    def truncate(self, handle: int, size: int) -> None:
        file = self._open[handle]
        del file.data[size:]
        file.unsynced.append((size, None))

    def size(self, handle: int) -> int:
        return len(self._open[handle].data)

    def fdatasync(self, handle: int) -> None:
        file = self._open[handle]
        file.durable = bytes(file.data)
        file.unsynced.clear()

    def sync_directory(self, path: str) -> None:
        rest = []
        for change in self.pending:
            synced = change.synced or change.within(path)
            if synced and change.possible(self.durable):
                change.redo(self.durable)
            else:  # what is synced within a directory without a durable name lasts once that does
                rest.append(change._replace(synced=synced))
        self.pending = rest

    def rename(self, old: str, new: str) -> None:
        self._parent(new)
        self.names[new] = file = self._file(old)
        del self.names[old]
        self.pending.append(Change("rename", old, new, file))

    def unlink(self, path: str) -> None:
        self._file(path)
        del self.names[path]
        self.pending.append(Change("unlink", path))

    def mkdir(self, path: str) -> None:
        if path not in self.names:
            self._parent(path)
            self.names[path] = None
            self.pending.append(Change("mkdir", path))

    def listdir(self, path: str) -> list[str]:
        if path not in self.names:
            raise FileNotFoundError(errno.ENOENT, path)
        return sorted(name.rpartition("/")[2] for name in self.names
                      if name != "/" and _parent_of(name) == path)

    def file_size(self, path: str) -> int | None:
        file = self.names.get(path)
        return None if file is None else len(file.data)

    def free_bytes(self, path: str) -> int:
        return 2**40

    def _file(self, path: str) -> File:
        file = self.names.get(path)
        if file is None:
            raise FileNotFoundError(errno.ENOENT, path)
        return file

    def _parent(self, path: str) -> None:
        if _parent_of(path) not in self.names:
            raise FileNotFoundError(errno.ENOENT, path)


def _parent_of(path: str) -> str:
    return path.rpartition("/")[0] or "/"
