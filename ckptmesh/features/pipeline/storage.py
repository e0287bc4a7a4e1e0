"""Outputs by reference: files in a folder that all processes of a run share.

    with run.writing("rows.csv") as file:
        file.write(…)
    return run.file("rows.csv")          # a FileRef: name, size, SHA-256

Rule 1: a file has its name only once its bytes are on disk: temporary file, fsync, rename, fsync of
        the folder. What a crash leaves has another name.
Rule 2: a reference says what was written; what is there is compared with it before a stage gets it
        and when it is opened.
Rule 3: names are relative to the storage: another host may have it at another path.

The seam for other kinds of storage (object stores) is `Storage`: make a name durable, and find the
path of a reference again.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path, PurePosixPath
from typing import IO, Any, BinaryIO

from ckptmesh.errors import Misuse, OutputLost
from ckptmesh.features.pipeline.places import check_segment
from ckptmesh.values import register


@register
@dataclass(frozen=True, slots=True)
class FileRef:
    """A file that a stage has left: what a stage returns instead of the data, alone or anywhere in
    its output.

    `name`: relative to `storage`, the folder that all share, as this process knows it. `size` in
    bytes; `host`: who wrote it.
    """

    name: str
    size: int
    sha256: str
    host: str
    storage: str

    @property
    def path(self) -> Path:
        """Where it is."""
        return Path(self.storage, self.name)

    def open(self) -> BinaryIO:
        """The file, to read its bytes, once it was compared with what was written. Raises
        `OutputLost`, `OSError`."""
        self.verify()
        return self.path.open("rb")

    def verify(self, stage: str = "") -> None:
        """Compare what is there with what was written: size and SHA-256. Raises `OutputLost`."""
        of = f"the output of stage {stage!r}, " if stage else ""
        try:
            size, found = _look(self.path)
        except OSError as error:
            raise OutputLost(
                f"{of}the file {self.name!r} that {self.host} wrote, cannot be read in "
                f"{self.storage!r}: {error.strerror}", stage=stage, path=str(self.path),
                host=self.host) from None
        if (size, found) != (self.size, self.sha256):
            raise OutputLost(
                f"{of}the file {self.path} is not what {self.host} wrote: it has {size:,} bytes "
                f"with SHA-256 {found[:12]}…, written were {self.size:,} with {self.sha256[:12]}…",
                hint='make it again with resume="never"', stage=stage, path=str(self.path),
                host=self.host)


class Storage:
    """The files of one stage of one run: `folder` under `root`. `check` raises where the run is
    another's by now: a process that stood still must not replace what that has written."""

    def __init__(self, root: str | Path | None, folder: str,
                 check: Callable[[], object] = lambda: None) -> None:
        self._root = None if root is None else Path(root).absolute()
        self._folder, self._check = folder, check

    @property
    def folder(self) -> Path:
        """The stage's own folder; it is made. Raises `Misuse` where there is no storage."""
        if self._root is None:
            raise Misuse("this run has no storage for outputs by reference",
                         hint='nightly.run(mesh, …, storage="/shared/nightly"): a folder that all '
                              "processes of the run can reach")
        found = self._root / self._folder
        _make(found)
        return found

    @contextmanager
    def writing(self, name: str, mode: str = "wb") -> Iterator[IO[Any]]:
        """A file to write, bytes or with mode "w" text; it has its name after the block. One that
        had it is replaced; an error in the block leaves that as it was. Raises `LeaseLost`."""
        check_segment(name, "a file's name")
        if mode not in ("wb", "w"):
            raise Misuse(f'mode is "wb" or "w", not {mode!r:.20}')
        folder = self.folder
        draft = folder / f"_{secrets.token_hex(4)}-{name}"[:200]
        try:
            with draft.open(mode, encoding=None if mode == "wb" else "utf-8") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            self._check()
            draft.rename(folder / name)
        except BaseException:
            with suppress(OSError):
                draft.unlink()
            raise
        _sync(folder)

    def save(self, source: bytes | str | Path, name: str | None) -> FileRef:
        """Keep bytes under a name, or a copy of a file (a path, a text or a `Path`)."""
        if isinstance(source, bytes | bytearray | memoryview):
            if name is None:
                raise Misuse("bytes need a name", hint='run.save(data, "rows.bin")')
            with self.writing(name) as file:
                file.write(source)
        else:
            name = name or Path(source).name
            with Path(source).open("rb") as found, self.writing(name) as file:
                shutil.copyfileobj(found, file, 1 << 20)
        return self.file(name)

    def file(self, name: str) -> FileRef:
        """The reference to a file that was written. Raises `OSError`."""
        path = self.folder / check_segment(name, "a file's name")
        size, found = _look(path)
        return FileRef(str(PurePosixPath(self._folder, name)), size, found, socket.gethostname(),
                       str(self._root))


def _look(path: Path) -> tuple[int, str]:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
        return file.tell(), found


def _make(folder: Path) -> None:
    """Make a folder and those above it, so that they are there after a power failure."""
    if not folder.is_dir():
        _make(folder.parent)
        folder.mkdir(exist_ok=True)
        _sync(folder.parent)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# --- references in an output ------------------------------------------------------------------


def references(output: Any) -> list[FileRef]:
    """The files that an output names, anywhere inside."""
    found: list[FileRef] = []

    def note(ref: FileRef) -> FileRef:
        found.append(ref)
        return ref

    _each(output, note)
    return found


def by_content(output: Any) -> Any:
    """An output whose files are told by their own name and content, wherever they are."""
    return _each(output, lambda ref: replace(ref, name=PurePosixPath(ref.name).name, host="",
                                             storage=""))


def rebased(output: Any, root: str | Path | None) -> Any:
    """An output whose files are looked for in the storage of this process (None: where they were
    written). Raises `OutputLost` for a name that leads out of it."""
    def here(ref: FileRef) -> FileRef:
        parts = PurePosixPath(ref.name).parts
        if not parts or ".." in parts or parts[0] == "/":
            raise OutputLost(f"{ref.name!r:.80} is not the name of a file in a storage", hint="")
        return ref if root is None else replace(ref, storage=str(Path(root).absolute()))

    return _each(output, here)


def _each(value: Any, change: Callable[[FileRef], FileRef]) -> Any:
    """The value with every reference in it changed; as it is where there is none."""
    kind = type(value)
    if kind is FileRef:
        return change(value)
    if kind is dict:
        return {key: _each(item, change) for key, item in value.items()}
    if kind in (list, tuple):
        return kind(_each(item, change) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        changed = {each.name: _each(getattr(value, each.name), change) for each in fields(value)
                   if each.init}
        return replace(value, **changed) if any(
            changed[name] is not getattr(value, name) for name in changed) else value
    return value
