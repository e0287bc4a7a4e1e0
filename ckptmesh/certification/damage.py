"""A log cut at and around every frame, and bits flipped in each: all of it must be told.

Rule 1: what must come of a damage follows from the undamaged file alone: where its frames end.
Rule 2: told is not enough: a state that recovery gives out is compared with the model.

Each damage is done to the log, looked at with a recovery, and undone by writing the file anew.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from ckptmesh.certification.model import Model, Problem
from ckptmesh.certification.nursery import Nursery
from ckptmesh.certification.worker import PATIENCE
from ckptmesh.disk import Disk, read_file
from ckptmesh.errors import Corrupt, Error, Unsupported
from ckptmesh.facts import TAKES_REVISION
from ckptmesh.framing import FRAME_HEADER_BYTES, HEADER_BYTES, SegmentScan, decode_header
from ckptmesh.manifest import LOG_DIRECTORY, read_manifest
from ckptmesh.recovery import CLEAN, TORN, recover
from ckptmesh.replay import frame_records

CORRUPT = "CORRUPT"  # what a recovery refuses
LEAST = 5.0  # seconds for the damages, however short the whole is to be


@dataclass
class Damage:
    """What was done and what came of it. `left_out`: damages that there was no time for.

    `shorter`: cuts between two frames of the open segment, which leave a whole log of before;
    `harmless`: cuts in the zeroes after its last frame.
    """

    frames: int = 0
    cuts: int = 0
    flips: int = 0
    corrupt: int = 0
    torn: int = 0
    shorter: int = 0
    harmless: int = 0
    left_out: int = 0
    failures: list[str] = field(default_factory=list)


class FrameAt(NamedTuple):
    """A frame in a file, and the revision after it. `padding`: where its zeroes begin."""

    offset: int
    padding: int
    end: int
    revision: int


class LogFile(NamedTuple):
    """A segment as it was made. `revision`: before its first frame."""

    path: Path
    data: bytes
    sealed: bool
    sector: int
    revision: int
    frames: list[FrameAt]


class Case(NamedTuple):
    """One damage: cut at byte `at`, or (`bit` 0 to 7) one bit of it flipped; and what must come of
    it: a verdict and, unless it is refused, a revision."""

    file: LogFile
    at: int
    bit: int | None
    verdict: str
    revision: int

    def data(self) -> bytes:
        """The file after the damage."""
        if self.bit is None:
            return self.file.data[: self.at]
        data = bytearray(self.file.data)
        data[self.at] ^= 1 << self.bit
        return bytes(data)

    def __str__(self) -> str:
        what = "cut" if self.bit is None else f"bit {self.bit} flipped"
        return f"{self.file.path.name} {what} at byte {self.at:,}"


class DamageFailed(Exception):
    """The log to be damaged could not even be made, or is not what was committed."""


def try_damage(folder: Path, nursery: Nursery, disk: Callable[[], Disk], seed: int, commits: int,
               deadline: float, progress: Callable[[float], None]) -> Damage:
    """Make a log of so many commits, damage it in every way, and count; see `Damage`.

    `deadline`: monotonic time at which it ends, all done or not, unless `LEAST` is later.
    `progress`: the part that is done.
    """
    found, model = Damage(), Model(seed)
    try:
        _make(folder, nursery, seed, commits)
        _check_whole(disk(), folder, model, commits)
        files = _read(disk(), folder)
    except DamageFailed as failure:
        found.failures.append(str(failure))
        return found
    except (Error, ValueError) as error:
        what = error.message if isinstance(error, Error) else error
        found.failures.append(f"a log that was just written cannot be read: {what}")
        return found
    cases = [case for file in files for case in plan(file, random.Random(seed))]
    random.Random(seed).shuffle(cases)  # where the time is short, some of each kind are left out
    found.frames = sum(len(file.frames) for file in files)
    deadline = max(deadline, time.monotonic() + LEAST)
    for done, case in enumerate(cases):
        if time.monotonic() > deadline:
            found.left_out = len(cases) - done
            break
        _try(case, folder, disk(), model, found)
        progress((done + 1) / len(cases))
    return found


# --- the log ----------------------------------------------------------------------------------


def _make(folder: Path, nursery: Nursery, seed: int, commits: int) -> None:
    """A log of two segments: one that is sealed, one whose writer was killed."""
    nursery.begin()
    for until, seal in ((commits // 2, True), (commits, False)):
        nursery.start(folder, seed, until, most=2, seal=seal)
        deadline = time.monotonic() + PATIENCE
        while not nursery.done and not nursery.error and time.monotonic() < deadline:
            nursery.look(1.0)
        nursery.kill()
        if nursery.error:
            raise DamageFailed(f"a store could not write its log: {nursery.error}")
        if nursery.acknowledged < until:
            raise DamageFailed(f"a store committed only {nursery.acknowledged:,} of {until:,} "
                               f"times in {PATIENCE:.0f} s")


def _read(disk: Disk, folder: Path) -> list[LogFile]:
    """The segments of the log. Raises `Corrupt`, `ValueError`."""
    manifest = read_manifest(disk, str(folder))
    sealed = {segment.file for segment in manifest.sealed} if manifest else set()
    found = []
    for name in disk.listdir(f"{folder}/{LOG_DIRECTORY}"):
        if not name.endswith(".seg"):
            continue
        data = read_file(disk, f"{folder}/{LOG_DIRECTORY}/{name}")
        header = decode_header(data)
        frames = []
        for frame in SegmentScan(data, header):
            taken = sum(type(record) in TAKES_REVISION for record in frame_records(frame))
            padding = frame.offset + FRAME_HEADER_BYTES + -(-len(frame.payload) // 4) * 4 + 4
            frames.append(FrameAt(frame.offset, padding, frame.end,
                                  frame.first_revision - 1 + taken))
        found.append(LogFile(folder / LOG_DIRECTORY / name, data,
                             f"{LOG_DIRECTORY}/{name}" in sealed, header.sector,
                             header.first_revision - 1, frames))
    return found


def _check_whole(disk: Disk, folder: Path, model: Model, commits: int) -> None:
    """Raise `DamageFailed` unless the undamaged log holds every commit."""
    state = recover(disk, str(folder)).state
    problems = model.problems(state)
    if state.revision != commits or problems:
        what = problems[0].text if problems else f"it ends at revision {state.revision:,}"
        raise DamageFailed(f"a log of {commits:,} acknowledged commits was written, and is not "
                           f"what is there: {what}")


# --- the damages ------------------------------------------------------------------------------


def plan(file: LogFile, chance: random.Random) -> Iterator[Case]:
    """Every damage to a segment: cuts at the end of header and frames, a byte before and after, and
    within each frame; a bit flipped in its header, payload and padding."""
    ends = [file.sector, *(frame.end for frame in file.frames)]
    middles = [(frame.offset + frame.end) // 2 for frame in file.frames]
    for at in sorted({*middles, *(end + step for end in ends for step in (-1, 0, 1))}):
        if at < len(file.data):
            yield _cut(file, at)
    areas = [(0, file.sector)]
    for frame in file.frames:
        areas += [(frame.offset, frame.offset + FRAME_HEADER_BYTES),
                  (frame.offset + FRAME_HEADER_BYTES, frame.padding), (frame.padding, frame.end)]
    areas.append((ends[-1], len(file.data)))  # the zeroes after the last frame, where there are any
    for first, end in areas:
        if first < end:
            yield _flip(file, chance.randrange(first, end), chance.randrange(8))


def _cut(file: LogFile, at: int) -> Case:
    if file.sealed or at < HEADER_BYTES:  # the rest of its sector holds nothing
        return Case(file, at, None, CORRUPT, 0)
    whole = [frame for frame in file.frames if frame.end <= at]
    last = whole[-1].end if whole else file.sector
    exact = at <= last or len(whole) == len(file.frames)
    return Case(file, at, None, CLEAN if exact else TORN,
                whole[-1].revision if whole else file.revision)


def _flip(file: LogFile, at: int, bit: int) -> Case:
    """In the open segment the last frame may be torn, its padding not; then come zeroes."""
    last = file.frames[-1]
    if file.sealed or at < last.offset or last.padding <= at < last.end:
        return Case(file, at, bit, CORRUPT, 0)
    before = file.frames[-2].revision if len(file.frames) > 1 else file.revision
    return Case(file, at, bit, TORN, before if at < last.end else last.revision)


def _try(case: Case, folder: Path, disk: Disk, model: Model, found: Damage) -> None:
    case.file.path.write_bytes(case.data())
    try:
        verdict, revision, problems = _outcome(disk, folder, model)
    finally:
        case.file.path.write_bytes(case.file.data)
    if case.bit is None:
        found.cuts += 1
    else:
        found.flips += 1
    if problems:
        found.failures.append(f"{case}: called {verdict}, but {problems[0].text}")
    elif (verdict, revision) != (case.verdict, case.revision):
        found.failures.append(f"{case}: called {verdict} at revision {revision:,}; it must be "
                              f"{case.verdict} at {case.revision:,}")
    else:
        _count(case, found)


def _count(case: Case, found: Damage) -> None:
    if case.verdict == CORRUPT:
        found.corrupt += 1
    elif case.verdict == TORN:
        found.torn += 1
    elif case.revision < case.file.frames[-1].revision:
        found.shorter += 1
    else:
        found.harmless += 1


def _outcome(disk: Disk, folder: Path, model: Model) -> tuple[str, int, list[Problem]]:
    """The verdict of a recovery, the revision that it gives out, what is wrong with its state."""
    try:
        recovered = recover(disk, str(folder))
    except (Corrupt, Unsupported):
        return CORRUPT, 0, []
    except (OSError, Error) as error:
        return f"a failure ({type(error).__name__})", 0, [Problem(str(error))]
    state = recovered.state
    return recovered.verdict, state.revision, model.problems(state)
