"""Every disk that a power failure may leave, at each change that a store makes to its disk: all are
recovered and held against a model.

First a fixed plan, in full: every history of up to three steps (tests/crash/lives.py) with each
change of its last step; and a restore and a repair of every one of these. With it, for histories of
up to two steps, the next start after a kill or a power failure at each change, cut short at each of
its own changes; of the few disks with too many images a sample. What comes after the plan has no
end: longer histories, with crashes one after another, drawn from the case's number, and of each
disk a sample.

Every image is recovered by `Wal.open`, as a store starts. It has to be CLEAN or TORN, with all that
was acknowledged, the batch under way whole or absent, and the model's digest. Some (`served`) then
serve: a commit, an end, another start, nothing missing and nothing left over.

A case that begins in time is finished. Two processes share the work where one begins far behind the
plan (--start 1000000).

    python -m tests.campaign.crash_images --start 0 --seconds 60
"""

from __future__ import annotations

import functools
import itertools
import random
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from ckptmesh.testing.disks import FaultyDisk, Killed, MemoryDisk
from ckptmesh.testing.images import BOUND, Images
from tests.campaign.shares import Share, main, numbers
from tests.crash.copies import repaired, restored
from tests.crash.lives import NOTHING, STEPS, TINY, Life, Point, Told, Watch, fresh, judge

Front = Callable[[MemoryDisk], FaultyDisk]
"""What stands between a store and its disk: a place for disks that lie."""

Judge = Callable[[MemoryDisk, Told, bool], str]

_FULL = 100_000  # images of one point in the plan, but of what follows a crash: none has more
_SAMPLE = 48  # images of one point, beyond the plan
_ENOUGH = 20  # wrong images of one case
_POWER_FAILURES = 2  # of each point of a short history, for the next start to begin on
_SERVED = 8  # one in so many images is served, and all of a point with few


class Case(NamedTuple):
    """`kind`: life, restore, repair, crash (what the next start does). `change`: of a crash, the
    number of the change that it comes after; `seed` 0: a kill, else a power failure. Beyond the
    plan `seed` decides everything and `steps` is empty."""

    kind: str
    steps: tuple[str, ...] = ()
    change: int = 0
    seed: int = 0
    random: bool = False


@functools.cache
def plan() -> tuple[Case, ...]:
    """The cases that every campaign begins with, short histories first."""
    cases = []
    for length in range(4):
        for steps in itertools.product(STEPS, repeat=length):
            cases += [Case("life", steps), Case("restore", steps), Case("repair", steps)]
        for steps in itertools.product(STEPS, repeat=length) if length < 3 else ():
            cases += [Case("crash", steps, change, seed) for change in range(1, _changes(steps) + 1)
                      for seed in range(_POWER_FAILURES + 1)]
    return tuple(cases)


def case(number: int) -> Case:
    """The case of this number."""
    if number < len(plan()):
        return plan()[number]
    kind = ("life", "crash", "restore", "repair", "crash")[number % 5]
    return Case(kind, seed=number, random=True)


def _changes(steps: tuple[str, ...]) -> int:
    """How often the last step changes the disk."""
    seen = 0

    def watch(point: Point) -> None:
        nonlocal seen
        seen += 1

    _last_step(FaultyDisk(fresh()), steps, watch)
    return seen


def _last_step(disk: FaultyDisk, steps: tuple[str, ...], watch: Watch) -> Life:
    """Live these steps, the last of them watched; without any, the making of the store."""
    if not steps:
        return Life(disk, watch).live(())
    life = Life(disk).live(steps[:-1])
    life.watched.watch = watch
    return life.live(steps[-1:])


class _Enough(Exception):
    """More of the same would tell nothing new."""


class Examination:
    """Runs one case and adds up what it meets."""

    def __init__(self, number: int, front: Front = FaultyDisk) -> None:
        self.case = case(number)
        self.counts: Counter[str] = Counter()
        self.findings: list[str] = []
        self.exhaustive = True
        self._number = number
        self._front = front
        self._chance = random.Random(number)
        self._stale = self.case.random and self._chance.random() < 0.5
        self._options = TINY

    def run(self) -> Examination:
        """Run it; whatever goes wrong is a finding."""
        if self.case.random:
            self._options = TINY._replace(
                segment_bytes=self._chance.choice((4_096, 8_192)),
                spare=self._chance.choice(("none", "inline")))
        try:
            getattr(self, f"_{self.case.kind}")()
        except _Enough:
            pass
        except Exception as error:
            self._found(f"{type(error).__name__}: {error}")
        self.counts["exhaustive_cases" if self.exhaustive else "sampled_cases"] += 1
        return self

    def _found(self, what: str) -> None:
        self.counts["wrong"] += 1
        if self.counts["wrong"] <= 3:
            steps = " ".join(self.case.steps) or "-"
            self.findings.append(
                f"case {self._number} ({self.case.kind} of {steps}): {what}; "
                f"python -m tests.campaign.crash_images --start {self._number} --seconds 0")
        if self.counts["wrong"] == _ENOUGH:
            raise _Enough

    # --- kinds of cases ------------------------------------------------------------------------

    def _steps(self, least: int, most: int) -> tuple[str, ...]:
        if not self.case.random:
            return self.case.steps
        return tuple(self._chance.choices(STEPS, (5, 3, 2, 2, 2),
                                          k=self._chance.randint(least, most)))

    def _life(self) -> None:
        disk = fresh()
        watch = functools.partial(self._examine, disk, self._judge)
        if self.case.random:
            Life(self._front(disk), watch, options=self._options).live(self._steps(4, 16))
        else:
            _last_step(self._front(disk), self.case.steps, watch)

    def _crash(self) -> None:
        """The next start, after a kill or a power failure; beyond the plan some of them, each with
        a life of its own."""
        disk, told, seed = fresh(), NOTHING, 1
        if not self.case.random:
            disk, told = self._crashed(disk, told, seed, self.case.change, self.case.seed)
        for _ in range(self._chance.randint(1, 4) if self.case.random else 0):
            power = self._chance.randrange(3)
            disk, told = self._crashed(disk, told, seed, self._chance.randint(1, 60), power)
            seed += 100
        watch = functools.partial(self._examine, disk, self._judge)
        steps = self._steps(1, 6) if self.case.random else ("commit",)
        Life(self._front(disk), watch, told, options=self._options, seed=seed + 50).live(steps)

    def _crashed(self, disk: MemoryDisk, told: Told, seed: int, change: int, power: int,
                 ) -> tuple[MemoryDisk, Told]:
        """The disk and what is known after a life that ends after so many changes of the disk (or
        by itself, where it has fewer): as the next process finds it, or after a power failure."""
        left = change

        def watch(point: Point) -> None:
            nonlocal left, told
            left, told = left - 1, point.told
            if left == 0:
                raise Killed

        try:
            if self.case.random:
                life = Life(self._front(disk), watch, told, options=self._options, seed=seed)
                told = life.live(self._steps(1, 5)).told
            else:
                _last_step(self._front(disk), self.case.steps, watch)
        except Killed:
            pass
        if power == 0:
            return disk.killed(), told
        return disk.power_failure(random.Random(self._number), all_lost=power == 1), told

    def _judge(self, image: MemoryDisk, told: Told, serve: bool) -> str:
        return judge(image, told, serve=serve, options=self._options)

    def _restore(self) -> None:
        self._copy("restore")

    def _repair(self) -> None:
        self._copy("repair")

    def _copy(self, kind: str) -> None:
        disk = fresh()
        life = Life(self._front(disk), options=self._options).live(self._steps(4, 12))
        copy = (restored if kind == "restore" else repaired)(life, disk, self._chance)
        copy.make(self._front, functools.partial(self._examine, copy.disk, copy.judge))

    # --- images --------------------------------------------------------------------------------

    def _examine(self, disk: MemoryDisk, judge: Judge, point: Point) -> None:
        """Judge every image of a disk as it is now."""
        bound = BOUND if self.case.kind == "crash" else _FULL
        images = Images(disk, bound=_SAMPLE if self.case.random else bound, seed=self._number,
                        garbage=_stale_sectors(disk) if self._stale else None)
        few = images.combinations <= 4 * _SERVED
        served = 0
        for at, image in enumerate(images):
            serve = few or at % _SERVED == 0
            served += serve
            wrong = judge(image, point.told, serve)
            if wrong:
                self._found(f"image {at} after {point.call} ({point.doing}): {wrong}")
        self.exhaustive &= images.exhaustive
        self.counts[f"images_{point.doing}"] += images.distinct
        self.counts["images"] += images.distinct
        self.counts["equal"] += images.equal
        self.counts["served"] += served
        self.counts["crash_points"] += 1


def _stale_sectors(disk: MemoryDisk) -> Callable[[int], bytes] | None:
    """Garbage that other files have held: what a block shows that is given to a file anew."""
    size = disk.SECTOR
    pool = [bytes(file.durable[at : at + size]) for _, file in sorted(disk.names.items())
            if file is not None and not file.unsynced
            for at in range(0, len(file.durable) - size + 1, size)]
    pool = [sector for sector in pool if sector.strip(b"\0")]
    return (lambda at: pool[at * 7_919 % len(pool)]) if pool else None


def share(start: int, seconds: float, front: Front = FaultyDisk) -> Share:
    """At least one case. `front`: see `Front`."""
    counts: Counter[str] = Counter()
    findings: list[str] = []
    for number in numbers(start, seconds):
        done = Examination(number, front).run()
        counts.update(done.counts)
        findings += done.findings
    return Share(number + 1, dict(counts), findings)


if __name__ == "__main__":
    main(share, __doc__)
