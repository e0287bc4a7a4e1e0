"""Short lives of a store on a disk in memory, shown call by call, and what is asked of each disk
that a power failure may leave.

A life is told by steps: see `STEPS`. While it goes on, `watch` is called for every state that the
disk has been in (after each write, cut, sync, rename, unlink, creation), with what the store's
users had been told when the next change of the disk began.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

from ckptmesh.compaction import Compaction
from ckptmesh.facts import EpochBegun, Record, Transaction, Write
from ckptmesh.messages import PUT
from ckptmesh.state import State
from ckptmesh.testing.disks import FaultyDisk, Killed, MemoryDisk
from ckptmesh.wal import WalOptions
from tests.crash.stores import START, Store
from tests.crash.test_compaction_crashes import Inline

PLACE = "/store"
TINY = WalOptions(segment_bytes=4_096, spare="none", retain_seconds=0)
STEPS = ("commit", "batch", "rotation", "compaction", "reopen")
"""commit: one transaction, one sector. batch: three at once, one frame of three sectors.
rotation, compaction: asked for. reopen: a clean end and the next start."""

CHANGES = frozenset(("create", "pwrite", "zero_fill", "truncate", "fdatasync", "sync_directory",
                     "rename", "unlink", "mkdir"))
_ROOM = 450  # bytes of one record of a batch, at most
_SIZES = {"commit": (100,), "batch": (400, 410, 420)}

Sizes = tuple[int, ...]
"""What was committed, revision by revision: the size of each value tells all."""


def transaction(revision: int, size: int) -> Transaction:
    """What takes this revision: one of three keys put."""
    value = (f"{revision}:{size}:".encode() * size)[:size]
    return Transaction(b"", 0, 0, 0, START + revision,
                       (Write(PUT, f"orders/{revision % 3}", value),), (1,))


@functools.lru_cache(maxsize=10_000)
def digest_of(sizes: Sizes) -> str:
    """The digest of the state after these revisions: a model without any disk."""
    state = State(b"model")
    for revision, size in enumerate(sizes, 1):
        state.apply(transaction(revision, size))
    return state.digest()


class Told(NamedTuple):
    """What may be found after a crash: one of these numbers of `sizes`, and of these epochs."""

    sizes: Sizes = ()
    revisions: tuple[int, ...] = (0,)
    epochs: tuple[int, ...] = (0,)


NOTHING = Told()


class Point(NamedTuple):
    """A state of the disk. `doing`: which part of the store had changed it last, by `call`;
    `told`: what may be found now."""

    doing: str
    call: str
    told: Told


Watch = Callable[[Point], None]
"""Is shown a point. It may raise `Killed`: the process ends there."""


def look_away(point: Point) -> None:
    """Watches nothing."""


class Watched:
    """A disk whose states are shown to `watch`. `doing` names the part of the store at work."""

    def __init__(self, disk: FaultyDisk, watch: Watch, told: Callable[[], Told]) -> None:
        self.disk = disk
        self.doing = ""
        self.watch = watch
        self._told = told
        self._last: tuple[str, str] | None = None
        self._ended = False
        disk.meet = self._meet

    def _meet(self, count: int, operation: str, path: str) -> None:
        if self._ended:
            raise Killed
        if operation in CHANGES:
            self.show()
            self._last = (self.doing, f"{operation} {path}")

    def show(self) -> None:
        """Show the state after the last change, if it has not been shown."""
        if self._last is None:
            return
        last, self._last = self._last, None
        try:
            self.watch(Point(*last, self._told()))
        except Killed:
            self._ended = True
            raise


class Life(Store):
    """A store and its users. `told` is what they know: what is acknowledged, and what may have
    become of the batch that is under way."""

    def __init__(self, disk: FaultyDisk, watch: Watch = look_away, told: Told = NOTHING, *,
                 options: WalOptions = TINY, seed: int = 1) -> None:
        self.told = told
        self.watched = Watched(disk, watch, lambda: self.told)
        self.options = options
        self.seed = seed
        self.start()

    def start(self) -> None:
        """Open, make durable what was found, begin an epoch."""
        self.watched.doing = "recovery" if self.told.epochs != (0,) else "creation"
        disk = self.watched.disk
        disk.inner.mkdir(PLACE)  # as the lock does
        super().__init__(PLACE, disk, self.options, seed=self.seed)
        self.seed += 1
        wrong = _compare(self, self.told)
        if wrong:
            raise AssertionError(wrong)
        self.wal.begin()
        # From here on readers see it.
        revision, epoch = self.state.revision, self.state.epoch
        self.told = Told(self.told.sizes[:revision], (revision,), (epoch, epoch + 1))
        self.write([EpochBegun(epoch + 1, self.state.time)])
        self.told = self.told._replace(epochs=(epoch + 1,))

    def live(self, steps: tuple[str, ...]) -> Life:
        """One step after the other."""
        for step in steps:
            if step in _SIZES:
                self._commit(_SIZES[step])
            elif step == "rotation":
                self.watched.doing = "rotation"
                self.wal.rotate()
            elif step == "compaction":
                self._compact()
            else:
                self.end()
                self.start()
        self.watched.show()
        return self

    def end(self) -> None:
        """As a process that ends of itself."""
        self.watched.doing = "close"
        self.wal.close()

    def write(self, records: list[Record]) -> None:
        """One batch. `told` has to allow for it already."""
        doing = self.watched.doing
        if doing == "commit":
            self.watched.doing = "rotation"
        self.wal.ensure_room(_ROOM * len(records))
        self.watched.doing = doing
        self.wal.append(records, self.state.revision + 1)
        self.wal.sync()
        for record in records:
            self.state.apply(record)

    def _commit(self, sizes: Sizes) -> None:
        self.watched.doing = "commit"
        before = len(self.told.sizes)
        after = before + len(sizes)
        self.told = Told(self.told.sizes + sizes, (before, after), self.told.epochs)
        self.write([transaction(before + n, size) for n, size in enumerate(sizes, 1)])
        self.told = self.told._replace(revisions=(after,))

    def _compact(self) -> None:
        self.watched.doing = "compaction"
        compaction = Compaction(self.wal, disk=self.watched.disk, clock=lambda: START,
                                elapsed=lambda: 0, spawn=self._spawn)
        compaction.start(None)
        if compaction.poll() is None:
            raise AssertionError("a compactor that has ended is still running")

    def _spawn(self, directory: str, segment: int, epoch: int, *hurry: str) -> Inline:
        self.watched.doing = "snapshot"
        try:
            return Inline(self.watched.disk, directory, segment, epoch)
        finally:
            self.watched.doing = "compaction"


def fresh() -> MemoryDisk:
    """An empty disk with the store's directory on it, whose name is not durable yet."""
    disk = MemoryDisk()
    disk.mkdir(PLACE)
    return disk


# --- judging ------------------------------------------------------------------------------------


def judge(image: MemoryDisk, told: Told, *, place: str = PLACE, serve: bool = False,
          options: WalOptions = TINY) -> str:
    """What is wrong with the store on this disk, "" for nothing. `serve`: it has to go on, too."""
    spare = image.names.get(f"{place}/wal/spare")
    if spare is not None and spare.data.strip(b"\0"):
        return "the spare is not all zeroes"
    try:
        image.mkdir(place)  # as the lock does
        store = Store(place, image, options, seed=77)
        wrong = _compare(store, told)
        if not wrong and serve:
            wrong = _go_on(store, image, place, options, told)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return wrong


def _compare(store: Store, told: Told) -> str:
    wal, state = store.wal, store.state
    if state.revision not in told.revisions:
        return f"revision {state.revision} is there, not one of {told.revisions}"
    if state.epoch not in told.epochs:
        return f"epoch {state.epoch} is there, not one of {told.epochs}"
    if state.digest() != digest_of(told.sizes[: state.revision]):
        return f"the state at revision {state.revision} is not the model's"
    if wal.verdict not in ("CLEAN", "TORN"):
        return f"the verdict is {wal.verdict}"
    strays = [note for note in wal.notes if "not part of the store" in note]
    return strays[0] if strays else ""


def _go_on(store: Store, image: MemoryDisk, place: str, options: WalOptions, told: Told) -> str:
    """Serve, commit, end (by a kill or of itself), start again: nothing missing, nothing left."""
    revision, epoch = store.state.revision, store.state.epoch
    sizes = (*told.sizes[:revision], 123)
    store.serve().write([transaction(revision + 1, sizes[-1])])
    if revision % 2:
        store.wal.close()
    again = Store(place, image.killed(), options, seed=78)
    wrong = _compare(again, Told(sizes, (revision + 1,), (epoch + 1,)))
    if wrong or again.wal.verdict != "CLEAN":
        return f"after going on: {wrong or again.wal.verdict}"
    again.wal.begin()
    manifest = again.wal.manifest
    known = {f"{place}/{file}" for file in (*manifest.files(), *manifest.needed_before)}
    left = [path for path, file in image.names.items() if file is not None
            and path.startswith((f"{place}/wal/", f"{place}/snap/")) and path not in known
            and not path.endswith((".torn", "/spare"))]
    return f"left over for ever: {left}" if left else ""
