"""Restores and repairs of short lives, call by call: what each disk must hold that a power failure
may leave meanwhile.

The source is as it was. The new directory is no store yet, or a whole one that equals the model;
once it was told that it is made, it is there.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from ckptmesh.errors import Compacted, Corrupt
from ckptmesh.framing import DATA
from ckptmesh.manifest import MANIFEST, parse_segment_file
from ckptmesh.repair import repair
from ckptmesh.restore import restore
from ckptmesh.survey import open_anywhere
from ckptmesh.testing.disks import FaultyDisk, MemoryDisk
from tests.crash.lives import PLACE, Life, Told, Watch, Watched, judge
from tests.crash.stores import START, NoLock, Store

TARGET = "/new"


class Copy:
    """A new store that is made in `TARGET` out of `PLACE` by `work`, which gets the disk and the
    settings that it shares with every other run. `revision`: what the model says of it."""

    def __init__(self, doing: str, disk: MemoryDisk, source: Told, sizes: tuple[int, ...],
                 revision: int, work: Callable[..., Any]) -> None:
        self.disk = MemoryDisk.holding(_contents(disk))
        self._before = _contents(disk)
        self._doing = doing
        self._source = source
        self._work = work
        twin = MemoryDisk.holding(self._before)
        report = self._run(FaultyDisk(twin))
        self._made = Told(sizes[:revision], (revision,), (report.store.epoch,))
        self._done = False
        if report.revision != revision:
            raise AssertionError(f"{doing} kept revision {report.revision}, not {revision}")

    def _run(self, disk: FaultyDisk) -> Any:
        def lock(directory: str, timeout: float) -> NoLock:
            disk.mkdir(directory)
            return NoLock()

        return self._work(PLACE, TARGET, disk=disk, clock=lambda: START,
                          random=random.Random(5).randbytes, lock=lock)

    def make(self, front: Callable[[MemoryDisk], FaultyDisk], watch: Watch) -> None:
        """Make it, watched."""
        watched = Watched(front(self.disk), watch, lambda: self._made)
        watched.doing = self._doing
        self._run(watched.disk)
        self._done = True
        watched.show()

    def judge(self, image: MemoryDisk, told: Told, serve: bool) -> str:
        """What is wrong with an image, "" for nothing."""
        found = _contents(image)
        if any(found.get(path, b"-") != data for path, data in self._before.items()):
            return "the source was changed"
        if len(found) - sum(path.startswith(TARGET) for path in found) != len(self._before):
            return "something was added to the source"
        if f"{TARGET}/{MANIFEST}" in found:
            return judge(image, told, place=TARGET, serve=serve)
        if self._done:
            return "the new store was made, and is gone"
        return _nothing(image)


def _contents(disk: MemoryDisk) -> dict[str, bytes | None]:
    return {path: None if file is None else bytes(file.data)
            for path, file in disk.names.items()}


def _nothing(image: MemoryDisk) -> str:
    """A directory without a manifest must not be taken for a store that holds anything."""
    image.mkdir(TARGET)
    try:
        store = Store(TARGET, image)
    except Corrupt:
        return ""
    return f"revision {store.state.revision} without a manifest" if store.state.revision else ""


def restored(life: Life, disk: MemoryDisk, chance: random.Random) -> Copy:
    """A restore of the head, or of a revision before it that is left."""
    sizes = life.told.sizes
    revision = chance.randint(0, len(sizes))

    def copy(at: int) -> Copy:
        def work(old: str, new: str, **how: Any) -> Any:
            return restore(old, new, revision=at, **how)

        return Copy("restore", disk, life.told, sizes, at, work)

    try:
        return copy(revision)
    except Compacted:
        return copy(len(sizes))


def repaired(life: Life, disk: MemoryDisk, chance: random.Random) -> Copy:
    """A repair of a store with one bit of one frame flipped."""
    frames = []
    for name in disk.listdir(f"{PLACE}/wal"):
        place = parse_segment_file(name)
        if place is not None:
            _, scan = open_anywhere(disk, PLACE, f"wal/{name}", sealed=False)
            frames += [(place[0], name, frame) for frame in scan if frame.kind == DATA]
    number, name, frame = chance.choice(frames)
    snapshots = life.wal.manifest.snapshots
    covered = bool(snapshots) and number <= snapshots[-1].segment
    revision = len(life.told.sizes) if covered else frame.first_revision - 1
    file = disk.names[f"{PLACE}/wal/{name}"]
    if file is None:
        raise AssertionError(f"{name} is a directory")
    file.data[chance.randrange(frame.offset, frame.offset + 70)] ^= 1 << chance.randrange(8)
    return Copy("repair", disk, life.told, life.told.sizes, revision, repair)
