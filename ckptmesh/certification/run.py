"""The course of a certification: look, measure, damage, kill; then the verdict.

Rule 1: nothing is touched but one new folder, and no process is left, however it ends.
Rule 2: the kills take what time is left, so that the whole is bounded on a slow machine, too.
Rule 3: only what was seen to go wrong is a failure; what cannot be seen here is told as not proven.
"""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ckptmesh.certification.damage import Damage, try_damage
from ckptmesh.certification.kills import Killing, Kills
from ckptmesh.certification.nursery import Nursery, NurseryFailed
from ckptmesh.certification.place import Place, Syncs, look, measure
from ckptmesh.certification.worker import disk_layer
from ckptmesh.disk import NO_SPACE
from ckptmesh.errors import OutOfSpace
from ckptmesh.process import uninterrupted

PASS, WARN, FAIL = "PASS", "WARN", "FAIL"
SECONDS = 75.0
NOT_PROVEN = ("Killed processes do not prove power loss: whatever they had written, the system's "
              "page cache still held. That a sync reaches the medium cannot be seen from here.")
ADVICE = ("Pull the plug of such a machine while it commits, and see whether all is there. Use "
          "disks with power-loss protection, or turn their write cache off (hdparm -W 0); give a "
          "virtual disk a cache mode that passes flushes on (not `unsafe`).")

_SYNC_PART, _DAMAGE_END = 0.04, 0.5  # of the time: for the syncs; until when damage may go on
_LONGEST_SYNCS = 3.0  # seconds
_COMMITS_A_SECOND, _FEWEST, _MOST = 2.0, 12, 160  # commits in the log that is damaged

Show = Callable[[float, str], None]
"""Told the part of the whole that is done (0 to 1), and what is under way."""


@dataclass(frozen=True)
class Options:
    """What to do: in which directory, for about how many seconds, over which disk ("": the
    system's; see `worker.disk_layer`), with which chances."""

    directory: str
    seconds: float = SECONDS
    disk: str = ""
    seed: int = 0


@dataclass
class Result:
    """What was found. `folder`: where all of it happened. What did not come to pass is None."""

    options: Options
    folder: Path
    place: Place
    syncs: Syncs | None = None
    damage: Damage | None = None
    kills: Kills | None = None
    seconds: float = 0.0
    trouble: list[str] = field(default_factory=list)  # that ended a part early

    @property
    def failures(self) -> list[str]:
        """What was seen to go wrong."""
        return [*self.place.failures, *(self.damage.failures if self.damage else ()),
                *(self.kills.failures if self.kills else ()), *self.trouble]

    @property
    def warnings(self) -> list[str]:
        """What makes the result worth less."""
        found = list(self.place.warnings)
        if self.damage and self.damage.left_out:
            found.append(f"{self.damage.left_out:,} damages were left out, there was no time; "
                         "give it more --seconds")
        return found

    @property
    def verdict(self) -> str:
        """FAIL, WARN or PASS."""
        return FAIL if self.failures else WARN if self.warnings else PASS

    def document(self) -> dict[str, Any]:
        """All of it, for programs: counts; units are in the names."""
        return {
            "verdict": self.verdict, "directory": self.options.directory,
            "folder": str(self.folder), "disk": self.options.disk or None,
            "seed": self.options.seed, "seconds": round(self.seconds, 1),
            "file_system": self.place.kind or None, "device": self.place.device or None,
            "write_cache": self.place.write_cache or None, "free_bytes": self.place.free,
            "sync": self.syncs.as_dict() if self.syncs else None,
            "damage": _without_failures(self.damage), "kills": _without_failures(self.kills),
            "failures": self.failures, "warnings": self.warnings,
            "proves_power_loss": False, "not_proven": NOT_PROVEN, "advice": ADVICE,
        }


def _without_failures(part: Damage | Kills | None) -> dict[str, Any] | None:
    if part is None:
        return None
    return {name: value for name, value in asdict(part).items() if name != "failures"}


def certify_place(options: Options, folder: Path, show: Show) -> Result:
    """Try a place out, in a folder of `place.new_folder`, which is left as it is then.

    Raises `OutOfSpace`, `Misuse` for an unknown disk, `NurseryFailed`. A failing disk is a result.
    """
    began = time.monotonic()
    disk = disk_layer(options.disk)
    show(0.0, "looking at the place")
    result: Result | None = None
    try:
        result = Result(options, folder, look(options.directory, folder, disk()))
        _work(result, began, show)
    except OSError as error:
        if error.errno in NO_SPACE:
            raise OutOfSpace(
                f"{options.directory} became full meanwhile; nothing is certified",
                hint="make room, or name a directory on another disk") from error
        if result is None:
            raise
        result.trouble.append(f"the disk failed: {error.strerror or error}")
    result.seconds = time.monotonic() - began
    return result


def _work(result: Result, began: float, show: Show) -> None:
    options, folder = result.options, result.folder
    disk, total = disk_layer(options.disk), options.seconds
    chance = random.Random(options.seed)
    result.syncs = measure(
        result.place, folder, disk(), min(_LONGEST_SYNCS, _SYNC_PART * total),
        lambda part: show(part * _SYNC_PART, "syncs"))
    nursery = Nursery(folder / "workers.txt", options.disk)
    try:
        commits = max(_FEWEST, min(_MOST, int(_COMMITS_A_SECOND * total)))
        result.damage = try_damage(
            folder / "damaged", nursery, disk, chance.randrange(2**31), commits,
            began + _DAMAGE_END * total,
            lambda part: show(_part(began, total), f"damage, {part:.0%}"))
        killing = Killing(folder, nursery, disk, chance.randrange(2**31))
        result.kills = killing.found
        killing.run(began + total, lambda: show(
            _part(began, total), f"kills: {killing.found.kills:,}, "
            f"commits: {killing.found.acknowledged:,}"))
    finally:
        with uninterrupted():
            nursery.close()


def _part(began: float, total: float) -> float:
    return min(1.0, (time.monotonic() - began) / total)


def remove(folder: Path) -> None:
    """Remove the folder of a certification, with all that is in it."""
    with uninterrupted():
        shutil.rmtree(folder, ignore_errors=True)


__all__ = ["NurseryFailed", "Options", "Result", "Show", "certify_place", "remove"]
