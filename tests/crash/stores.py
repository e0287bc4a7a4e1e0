"""A store over a log, as the engine is one, with records that are the same in every run."""

from __future__ import annotations

import random
from collections.abc import Callable

from ckptmesh.disk import Disk
from ckptmesh.facts import EpochBegun, Record, Transaction, Write
from ckptmesh.manifest import Manifest, SnapshotEntry, snapshot_file
from ckptmesh.messages import PUT
from ckptmesh.snapshots import verify_snapshot, write_snapshot
from ckptmesh.state import State
from ckptmesh.wal import Wal, WalOptions

SMALL = WalOptions(segment_bytes=8_192, spare="none")
START = 1_700_000_000_000_000


class NoLock:
    """The lock of a directory that only one test knows."""

    held = True

    def still_ours(self) -> bool:
        return self.held

    def release(self) -> None:
        pass


def no_lock(directory: str, timeout: float) -> NoLock:
    return NoLock()


def commit_of(revision: int, size: int = 300) -> Transaction:
    """The transaction that takes this revision; some are larger than a sector."""
    value = (f"{revision}:".encode() * 4 * size)[: size if revision % 3 else 4 * size]
    return Transaction(b"", 0, 0, 0, START + revision,
                       (Write(PUT, f"orders/{revision % 5}", value),), (1,))


def digest_at(revision: int) -> str:
    """The digest of the state after this revision: what every recovery is compared with."""
    state = State(b"model")
    for taken in range(1, revision + 1):
        state.apply(commit_of(taken))
    return state.digest()


class Store:
    """Opens a log and commits to it. `acknowledged` is the last revision whose sync returned."""

    def __init__(self, directory: str, disk: Disk | None = None, options: WalOptions = SMALL, *,
                 locked: bool = False, seed: int = 1) -> None:
        source = random.Random(seed)
        extra = {} if locked else {"lock": no_lock}
        self.wal = Wal.open(directory, options, disk, clock=lambda: START,
                            random=source.randbytes, **extra)  # type: ignore[arg-type]
        self.disk = disk
        self.acknowledged = 0
        self.source = source

    @property
    def state(self) -> State:
        return self.wal.state

    def serve(self) -> Store:
        """As a starting store does: copy forward, then an epoch of its own."""
        self.wal.begin()
        self.write([EpochBegun(self.state.epoch + 1, self.state.time)])
        return self

    def write(self, records: list[Record]) -> None:
        first = self.state.revision + 1
        self.wal.ensure_room(2_000 * len(records))
        self.wal.append(records, first)
        self.wal.sync()
        for record in records:
            self.state.apply(record)
        self.acknowledged = self.state.revision

    def commit(self, count: int = 1) -> Store:
        """So many batches of one commit each."""
        for _ in range(count):
            self.write([commit_of(self.state.revision + 1)])
        return self

    def snapshot(self, plan: Callable[[Manifest], Manifest] = lambda manifest: manifest,
                 ) -> SnapshotEntry:
        """What a compaction does, without its process."""
        disk = self.wal._disk
        segment = self.wal.rotate()
        assert segment is not None
        temporary = f"{self.wal.directory}/snap/snap.1.1.tmp"
        write_snapshot(disk, temporary, self.state, segment=segment.number,
                       salt=self.source.randbytes(16))
        info = verify_snapshot(disk, temporary)
        file = snapshot_file(self.state.revision, segment.number)
        entry = SnapshotEntry(file, self.state.revision, segment.number, info.size, info.digest,
                              START)
        self.wal.install_snapshot(temporary, entry, plan)
        return entry


def keep_two(manifest: Manifest) -> Manifest:
    """A retention as short as recovery allows: two snapshots, and the log since the first."""
    snapshots = manifest.snapshots[-2:]
    first = snapshots[0].segment if len(snapshots) == 2 else 0
    return manifest._replace(
        snapshots=snapshots,
        sealed=tuple(s for s in manifest.sealed if s.number > first) or manifest.sealed[-1:],
    )
