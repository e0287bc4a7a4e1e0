"""Export and import: checkpoints into a file, and out of it into any store.

    mesh.export("orders.jsonl.gz", "orders")
    other.import_("orders.jsonl.gz")

Rule 1: an export is one cut: all of it as of one revision.
Rule 2: an import looks at the whole file and at all that stands where it would write before it
        writes anything. A damaged file leaves nothing.
Rule 3: what stands is never overwritten unseen: each write expects what was read there.
Rule 4: an import that was interrupted is run again: what is there already is passed over.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import IO, Any

from ckptmesh.api import Moment
from ckptmesh.clock import from_datetime
from ckptmesh.disk import RealDisk
from ckptmesh.errors import Conflict, InvalidPayload, InvalidValue, Misuse
from ckptmesh.features.pages import (
    FilePages,
    Pages,
    Progress,
    StorePages,
    cut_of,
    each_of,
    same,
    store_time,
)
from ckptmesh.features.portable import Header, Reader, Writer
from ckptmesh.flows import Flow, settled
from ckptmesh.limits import check_key, check_prefix
from ckptmesh.views import Checkpoint

PathOrFile = str | os.PathLike[str] | IO[bytes]
CHOICES = ("refuse", "skip", "replace")
_LOSSES = 100  # of one batch to other writers, before it is told


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What was exported: `keys` checkpoints as of `revision`, with `past` earlier versions."""

    keys: int
    past: int
    revision: int
    sha256: str


@dataclass(frozen=True, slots=True)
class ImportReport:
    """What an import did, or with `dry_run` would have done. `keys`: checkpoints in the file that
    were asked for. `written`: new ones; `replaced`: written over another; `same`: there already;
    `skipped`: left as they were, being another; `expired`: over since the export."""

    keys: int
    written: int
    replaced: int
    same: int
    skipped: int
    expired: int
    dry_run: bool = False


# --- export -----------------------------------------------------------------------------------


def export(store: Any, target: PathOrFile, prefix: str, at: Moment | None, history: bool,
           squeezed: bool | None, progress: Progress | None) -> Flow[ExportReport]:
    """Write an export. Raises as `Client.export`."""
    check_prefix(prefix)
    if squeezed is None:
        squeezed = str(getattr(target, "name", target)).endswith(".gz")
    revision = yield from cut_of(store, at)
    hello = yield store.hello
    header = Header(hello.uuid.hex(), hello.epoch, revision, hello.time, prefix, history)
    pages = StorePages(store, prefix, revision)
    with _written(target) as stream:
        writer = Writer(stream, header, squeezed)
        while page := (yield from pages.page()):
            for found in page:
                writer.put(found)
                if history:
                    yield from _past(store, found, writer)
            if progress is not None:
                progress("exported", writer.rows - writer.past, None)
        digest = writer.end()
    return ExportReport(writer.rows - writer.past, writer.past, revision, digest)


def _past(store: Any, found: Checkpoint, writer: Writer) -> Flow[None]:
    """The versions since it was created that the store still keeps, newest first."""
    if found.version == 1:
        return
    for step in each_of(store.history(found.key, packed=True)):
        earlier = yield step
        if earlier is None:
            return
        if earlier.create_revision < found.create_revision:
            return
        if earlier.revision < found.revision and not earlier.is_lease:
            writer.put(earlier, past=True)


@contextlib.contextmanager
def _written(target: PathOrFile) -> Iterator[IO[bytes]]:
    """Where to write: a stream as it is, or a file that has its name only once it is whole."""
    if not isinstance(target, str | os.PathLike):
        yield target
        return
    path = os.path.abspath(target)
    folder, name = os.path.split(path)
    try:
        handle, part = tempfile.mkstemp(prefix=f".{name}.", suffix=".part", dir=folder)
    except OSError as error:  # told by the name that the user knows
        raise type(error)(error.errno, error.strerror, path) from None
    try:
        with os.fdopen(handle, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(handle)
        os.rename(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(part)
        raise
    RealDisk().sync_directory(folder)


# --- import -----------------------------------------------------------------------------------


def import_(store: Any, source: PathOrFile, prefix: str, onto: str, on_conflict: str,
            dry_run: bool, progress: Progress | None) -> Flow[ImportReport]:
    """Write what a file holds. Raises as `Client.import_`."""
    check_prefix(prefix)
    with opened(source) as stream:
        def pages() -> Pages:
            return FilePages(Reader(stream, name_of(source)), prefix)

        report = yield from load(store, pages, onto, on_conflict, dry_run, progress)
    return report


def name_of(source: PathOrFile) -> str:
    """How errors name a file."""
    name = source if isinstance(source, str | os.PathLike) else getattr(source, "name", None)
    return str(name) if isinstance(name, str | os.PathLike) else "the export"


@contextlib.contextmanager
def opened(source: PathOrFile) -> Iterator[IO[bytes]]:
    """A stream that can be read more than once; what a pipe gives is kept on disk meanwhile."""
    if isinstance(source, str | os.PathLike):
        with open(source, "rb") as stream:
            yield stream
        return
    if source.seekable():
        yield source
        return
    with tempfile.TemporaryFile() as kept:
        shutil.copyfileobj(source, kept)
        yield kept


def load(store: Any, pages: Callable[[], Pages], onto: str, on_conflict: str, dry_run: bool,
         progress: Progress | None) -> Flow[ImportReport]:
    """Write checkpoints into a store. `pages`: gives them from the start, each time it is called.

    Raises `Conflict` before the first write where something else stands (`on_conflict="refuse"`);
    what `pages` raises, before the first write too.
    """
    check_prefix(onto)
    if on_conflict not in CHOICES:
        raise Misuse(f"on_conflict is one of {', '.join(CHOICES)}, not {on_conflict!r:.80}")
    loading = _Loading(store, onto, on_conflict, (yield from store_time(store)))
    source = pages()
    while page := (yield from source.page()):
        yield from loading.look(page)
        if progress is not None:
            progress("checked", loading.keys, None)
    loading.refuse()
    if not dry_run:
        source, done = pages(), 0
        while page := (yield from source.page()):
            yield from loading.write(page)
            done += len(page)
            if progress is not None:
                progress("written", done, loading.keys)
    return loading.report(dry_run)


class _Loading:
    """One import: what is new, what is there, what is in the way."""

    def __init__(self, store: Any, onto: str, on_conflict: str, now: int) -> None:
        self._store, self._on_conflict, self._now = store, on_conflict, now
        self._start, self._began = now, time.monotonic()
        self._front = f"{onto}/" if onto else ""
        self.keys = 0
        self._first: dict[str, str] = {}  # key of each kind
        self.found = {"new": 0, "same": 0, "other": 0, "lease": 0, "expired": 0}  # before writing
        self.done = {"new": 0, "other": 0}

    def look(self, page: list[Checkpoint]) -> Flow[None]:
        """Count what a page would do."""
        for kind, key, _, _ in (yield from self._compared(page)):
            self.found[kind] += 1
            self._first.setdefault(kind, key)
        self.keys += len(page)

    def refuse(self) -> None:
        """Raise `Conflict` where something is in the way, before anything is written."""
        for kind, what, always in (("lease", "leases", True), ("other", "something else", False)):
            if self.found[kind] and (self._on_conflict == "refuse"
                                     or (always and self._on_conflict == "replace")):
                key = self._first[kind]
                raise Conflict(
                    f"{self.found[kind]:,} of {self.keys:,} keys stand there with {what}, first "
                    f"{key!r}; nothing was written", key=key,
                    hint="leave what stands with skip, write over it with replace (never over a "
                         "lease), or import it onto another prefix")

    def write(self, page: list[Checkpoint]) -> Flow[None]:
        """Write a page as one transaction, anew as long as others are faster. Raises `Conflict`."""
        for loss in range(_LOSSES):
            skip = ("lease", "other") if self._on_conflict == "skip" else ()
            wanted = [each for each in (yield from self._compared(page))
                      if each[0] not in ("same", "expired", *skip)]
            if not wanted:
                return
            transaction = self._store.transaction()
            for kind, key, found, standing in wanted:
                if kind == "lease" or (kind == "other" and self._on_conflict == "refuse"):
                    raise Conflict(f"{key!r} was committed by somebody else meanwhile", key=key,
                                   hint="what was written before it stays; run it again to go on")
                ttl = (None if found.expires_at is None
                       else (from_datetime(found.expires_at) - self._now) / 1e6)
                try:
                    transaction.put(key, found.value, expect=standing, ttl=ttl,
                                    position=found.position, head=found.head)
                except InvalidValue as damage:
                    raise InvalidPayload(
                        f"{found.key!r}: {damage.message}", key=found.key,
                        hint=f"`ckptmesh state repair {found.key} --to NEW_KEY` saves the last "
                             "version that can be read; delete the other, and run this again",
                    ) from None
            try:
                yield from settled(transaction.commit)
            except Conflict:
                if loss == _LOSSES - 1:
                    raise
                continue
            for kind, *_ in wanted:
                self.done[kind] += 1
            return

    def _compared(self, page: list[Checkpoint]
                  ) -> Flow[list[tuple[str, str, Checkpoint, Checkpoint | None]]]:
        """(kind, key there, what is to be written, what stands there) of each."""
        keys = [self._front + found.key for found in page]
        for key in keys:
            check_key(key)
        standing = yield partial(self._store.get_many, keys, packed=True)
        self._now = self._start + int((time.monotonic() - self._began) * 1e6)
        return [(self._kind(found, standing[key]), key, found, standing[key])
                for key, found in zip(keys, page, strict=True)]

    def _kind(self, found: Checkpoint, standing: Checkpoint | None) -> str:
        if found.expires_at is not None and from_datetime(found.expires_at) <= self._now:
            return "expired"
        if standing is None:
            return "new"
        if standing.is_lease:
            return "lease"
        return "same" if same(found, standing) else "other"

    def report(self, dry_run: bool) -> ImportReport:
        """What was done, or would be."""
        done = self.found if dry_run else self.done
        expired, skipped, replaced = self.found["expired"], 0, done["other"]
        if self._on_conflict == "skip":
            skipped, replaced = self.found["other"] + self.found["lease"], 0
        rest = self.keys - done["new"] - replaced - expired - skipped
        return ImportReport(self.keys, done["new"], replaced, rest, skipped, expired, dry_run)
