"""The course of the demo: work, kills at random moments, the end, the verdict.

Rule 1: a moment is a record's number, drawn from the seed: so every kill comes in the middle of
        the work, on a slow machine as on a fast one.
Rule 2: a process is killed when it is at work, not while it starts.
Rule 3: some strikes kill the store or the broker, wait until the pipeline has written to its sink
        and cannot commit, and kill the pipeline there: the worst place, and the one that a
        pipeline without the place in its sink does not survive.
Rule 4: everything is bounded in time; what is not done by then is lost, and is told as lost.
"""

from __future__ import annotations

import contextlib
import json
import random
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

from ckptmesh.client import connect
from ckptmesh.demonstration import judge
from ckptmesh.demonstration.cluster import Cluster, DemoFailed
from ckptmesh.errors import Error
from ckptmesh.process import uninterrupted

KINDS = ("pipeline", "downstream", "store", "broker")  # what is killed
FIRST_STRIKES = (("store", "pipeline"), ("broker",), ("downstream",), ("pipeline",), ("store",))
STRIKES = (*((kind,) for kind in KINDS), ("store", "pipeline"), ("broker", "pipeline"))
DOWN = (0.1, 0.8)  # seconds for which what was killed stays away
SPAN = (0.04, 0.85)  # part of the records in which the kills are
PER_KILL = 1.0  # seconds of work for each kill at least, so that all of them come during the work
GRACE = 30.0  # seconds beyond the producer's time until everything must be done
TICK = 0.05  # seconds between two looks


@dataclass(frozen=True, slots=True)
class Options:
    """What to do. `folder` exists, is empty, and holds `input.txt` with `records` lines."""

    folder: Path
    records: int
    seconds: float
    kills: int
    seed: int
    naive: bool = False


@dataclass(slots=True)
class Progress:
    """Where the demo stands."""

    records: int  # in the input
    totals: int = 0  # of them, up to where the first pipeline is
    sizes: int = 0  # and the second
    revision: int = 0  # as the monitor has seen it
    kills: int = 0
    resumes: int = 0  # starts that went on in the middle
    mended: int = 0  # of them, with the sink ahead of the checkpoint


class Show(Protocol):
    """Whoever tells people."""

    def tell(self, line: str) -> None:
        """Something happened."""

    def progress(self, now: Progress) -> None:
        """Called about twenty times a second."""


@dataclass(frozen=True, slots=True)
class Strike:
    """Kill these, one after the other, once the first pipeline has reached a record."""

    record: int
    targets: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Result:
    """The verdict, and how it came about."""

    progress: Progress
    kills: dict[str, int]
    totals: judge.Found
    sizes: judge.Found
    monitor: judge.Seen
    seconds: float
    failure: str = ""

    @property
    def lost(self) -> int:
        """Records lost, in the pipeline that lost more."""
        return max(self.totals.lost, self.sizes.lost)

    @property
    def doubled(self) -> int:
        """Records counted too often, in the pipeline that did so more."""
        return max(self.totals.doubled, self.sizes.doubled)

    @property
    def ok(self) -> bool:
        """Whether every record was counted exactly once and every revision was seen once."""
        return not self.failure and self.totals.clean and self.sizes.clean and self.monitor.clean


def plan(chance: random.Random, kills: int, records: int) -> list[Strike]:
    """So many kills at random records, each kind among them once there are enough."""
    targets: list[tuple[str, ...]] = [*FIRST_STRIKES] if kills > 1 else [("pipeline",)]
    while sum(map(len, targets)) < kills:
        targets.append(chance.choice(STRIKES))
    chosen: list[tuple[str, ...]] = []
    for some in targets:
        left = kills - sum(map(len, chosen))
        if left > 0:
            chosen.append(some[:left])
    chance.shuffle(chosen)
    first, last = (int(records * part) for part in SPAN)
    moments = sorted(chance.randint(first, last) for _ in chosen)
    return [Strike(*pair) for pair in zip(moments, chosen, strict=True)]


class Reached:
    """Reads from a sink how far it is, as long as the demo runs. Works for the naive one too."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._db: sqlite3.Connection | None = None
        self._last = 0

    def record(self) -> int:
        """The highest record in the ledger; 0 while there is none."""
        with contextlib.suppress(sqlite3.Error):  # not there yet, or just being recovered
            if self._db is None and self._path.exists():
                self._db = sqlite3.connect(self._path, timeout=1.0)
                self._db.execute("PRAGMA query_only = ON")
            if self._db is not None:
                self._last = self._db.execute("SELECT max(seq) FROM ledger").fetchone()[0] or 0
        return self._last

    def doubled(self) -> int:
        """Rows of the ledger beyond one a record."""
        with contextlib.suppress(sqlite3.Error):
            if self._db is not None:
                rows = self._db.execute("SELECT count(*) - count(DISTINCT seq) FROM ledger")
                return int(rows.fetchone()[0])
        return 0

    def close(self) -> None:
        """Let go of the file."""
        if self._db is not None:
            self._db.close()
            self._db = None


class OutOfTime(Exception):
    """The demo is not done, and its time is over."""


@dataclass
class Demo:
    """One run. `run()` gives the result; whatever happens, no process is left."""

    options: Options
    show: Show
    progress: Progress = field(init=False)

    def __post_init__(self) -> None:
        given = self.options
        self._seconds = max(given.seconds, PER_KILL * given.kills)
        self.progress = Progress(given.records)
        self._chance = random.Random(given.seed)
        self._strikes = plan(self._chance, given.kills, given.records)
        self._cluster = Cluster(given.folder, records=given.records, seconds=self._seconds,
                                naive=given.naive)
        self._parts = self._cluster.parts
        self._totals = Reached(self._cluster.totals)
        self._sizes = Reached(self._cluster.sizes)
        self._head = 0

    def run(self) -> Result:
        """Carry it through and count. Raises `DemoFailed` when the cluster cannot be run."""
        began = time.monotonic()
        self._deadline = began + self._seconds + GRACE
        failure = ""
        try:
            self._start()
            self._work()
            self._finish()
        except OutOfTime:
            waiting = [name for name in (*KINDS, "monitor") if not self._at_work(name)]
            failure = (f"not done after {self._seconds + GRACE:.0f} s"
                       + (f"; not at work: {', '.join(waiting)}" if waiting else ""))
        except Error as error:
            failure = f"the store could not be asked at the end: {error}"
        finally:
            with uninterrupted():
                self._totals.close()
                self._sizes.close()
                self._cluster.stop()
        return self._verdict(time.monotonic() - began, failure)

    # --- the course ---------------------------------------------------------------------------

    def _start(self) -> None:
        """Broker and store first, then the watchers, so that they see everything; then work."""
        for group in (("broker", "store"), ("monitor", "downstream"), ("pipeline", "producer")):
            for name in group:
                self._cluster.start(name)
            self._until(partial(self._at_work, *group))
        self.show.tell("broker, store, producer, two pipelines and a monitor are at work, "
                       f"at {self._cluster.url}")

    def _work(self) -> None:
        for strike in self._strikes:
            self._until(partial(self._has_reached, strike.record))
            self._strike(strike.targets)
        while self.options.naive and self.progress.totals < self.options.records:
            # What a crash has doubled shows when the pipeline is back and has gone on a little.
            self._until(partial(self._at_work, "store", "pipeline"))
            self._until(partial(self._has_reached, self._totals.record() + 1), at_most=2.0)
            if self._totals.doubled():
                break
            self._strike(("store", "pipeline"))

    def _strike(self, targets: tuple[str, ...]) -> None:
        self._until(partial(self._at_work, *targets))
        for number, name in enumerate(targets):
            if number:  # the first of the two is dead: now the pipeline comes to where it waits
                self._until(partial(self._has_reached, self._totals.record() + 1), at_most=1.0)
            self._until(lambda: False, at_most=self._chance.uniform(0.0, 0.2))
            if self._parts[name].kill():
                self.progress.kills += 1
                self.show.tell(f"SIGKILL to the {name} at record {self._totals.record():,}")
        for name in targets:
            self._parts[name].due = time.monotonic() + self._chance.uniform(*DOWN)

    def _finish(self) -> None:
        """Wait until both pipelines have reached the end and committed it, and all is seen."""
        total = self.options.records
        self._until(lambda: self.progress.totals >= total and self.progress.sizes >= total
                    and self._at_work(*KINDS, "monitor"))
        with connect(self._cluster.url) as mesh:
            def committed() -> bool:
                with contextlib.suppress(Error):
                    found = mesh.get_many(["orders", "sizes"])
                    return all(ck and ck.position == total for ck in found.values())
                return False
            self._until(committed)
            self._head = mesh.status()["revision"]
        self._until(lambda: self.progress.revision >= self._head)

    def _at_work(self, *names: str) -> bool:
        return all(self._parts[name].at_work for name in names)

    def _has_reached(self, record: int) -> bool:
        return self.progress.totals >= record

    # --- looking ------------------------------------------------------------------------------

    def _until(self, holds: Callable[[], bool], at_most: float = float("inf")) -> None:
        """Tend the cluster until something holds, or so many seconds. Raises `OutOfTime`."""
        end = time.monotonic() + at_most
        while True:
            self._look()
            if holds():
                return
            now = time.monotonic()
            if now >= self._deadline:
                raise OutOfTime
            if now >= end:
                return
            time.sleep(min(TICK, end - now))

    def _look(self) -> None:
        now = self.progress
        for name, line in self._cluster.tend():
            if name == "monitor" and line.startswith("{"):
                now.revision = json.loads(line)["revision"]
            elif name in ("pipeline", "downstream") and "at record" in line:
                now.resumes += line.startswith("resumed")
                now.mended += "mended" in line
                self.show.tell(f"{name}: {line}")
            elif name in ("broker", "store") and " serving " in line:
                self.show.tell(f"{name}: {line.removeprefix(f'ckptmesh {name}: ')}")
            elif not name:
                self.show.tell(line)
        now.totals, now.sizes = self._totals.record(), self._sizes.record()
        self.show.progress(now)

    def _verdict(self, seconds: float, failure: str) -> Result:
        cluster = self._cluster
        lines = judge.read_lines(cluster.input)
        return Result(
            self.progress, {kind: self._parts[kind].kills for kind in KINDS},
            judge.check_sink(cluster.totals, lines, judge.word_of),
            judge.check_sink(cluster.sizes, lines, judge.size_of),
            judge.check_monitor(self._parts["monitor"].log, self._head or self.progress.revision),
            seconds, failure,
        )


__all__ = ["Demo", "DemoFailed", "Options", "Progress", "Result", "Show"]
