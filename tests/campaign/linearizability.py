"""Concurrent histories of real stores, each judged by every checker of `ckptmesh.testing.checkers`.

Two sources. *Threads*: short histories of threads that share an embedded store, many a second.
*Served*: longer ones of clients of a real broker and a real store, each with its own connection;
in every third or so the store is killed with SIGKILL and started again, and half of the calls give
up early, so that nobody knows what became of some. Of these half ask later, the others stay
unknown.

Each history has keys of its own. When it is over, what a watch from the beginning was given is
taken for the commits, and asked is: could any store that does one thing at a time have answered
this (linearizability); was the one order kept; did everything take effect once; do the counters sum
up; did the watch miss nothing.

A number of a share is a history; what its clients ask comes from it, how they meet does not. Of a
history that is found wrong the operations are kept as a file of JSON lines.

    python -m tests.campaign.linearizability --start 0 --seconds 60
"""

from __future__ import annotations

import random
import sys
import tempfile
import threading
import time
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

import ckptmesh
from ckptmesh.testing.checkers import (
    Bounds,
    Change,
    Commit,
    Delete,
    Found,
    Get,
    Inconclusive,
    Increment,
    NotLinearizable,
    Operation,
    Put,
    Recorder,
    Refused,
    Unknown,
    Violation,
    check_counters,
    check_linearizable,
    check_order,
    check_watch,
    commits_of,
    dump,
    seen_of,
)
from tests.campaign.shares import Share, main
from tests.cluster import Cluster

CLIENTS = 5
SHORT, LONG = 8, 40  # operations of one client in a history: of threads, of served clients
HASTY = 0.5  # of 1, how many calls to a served store give up soon
SOON = 0.15  # seconds
PATIENCE = 60.0  # seconds until everything else must have been answered
SETTLED = (ckptmesh.Conflict, ckptmesh.InvalidValue, ckptmesh.Unavailable)
STEPS = 200_000  # of a search: about a second
PAIR = ("a", "b")  # keys that transactions name together


class Client(threading.Thread):
    """Asks for so many random things, one after the other, and notes each with its answer."""

    def __init__(self, name: str, mesh: ckptmesh.Client, recorder: Recorder, prefix: str,
                 seed: int, size: int, hasty: float, together: threading.Barrier) -> None:
        super().__init__(name=name, daemon=True)
        self.error: BaseException | None = None
        self._mesh, self._recorder, self._prefix = mesh, recorder, prefix
        self._chance = random.Random(f"{seed} {name}")
        self._size, self._hasty, self._together = size, hasty, together
        self._last: dict[str, int] = {}  # what it knows to have stood under each key
        self._values = count(1)

    def run(self) -> None:
        try:
            self._together.wait(PATIENCE)
            for _ in range(self._size):
                self._ask()
        except BaseException as error:
            self.error = error

    def _key(self, names: str = "abcd") -> str:
        return f"{self._prefix}/{self._chance.choice(names)}"

    def _ask(self) -> None:
        chance = self._chance
        kind = chance.choices(["get", "several", "put", "delete", "count", "pair"],
                              [30, 5, 30, 10, 10, 15])[0]
        if kind == "get":
            self._read(self._key())
        elif kind == "several":
            self._read(*(f"{self._prefix}/{name}" for name in PAIR))
        elif kind == "put":
            self._write(Put(self._key(), self._value()))
        elif kind == "delete":
            self._write(Delete(self._key()))
        elif kind == "count":
            self._write(Increment(f"{self._prefix}/n", chance.choice([1, 10, 100])))
        else:
            first, second = (f"{self._prefix}/{name}" for name in chance.sample(PAIR, 2))
            self._write(Put(first, self._value()), chance.choice([Delete(second),
                                                                  Put(second, self._value())]))

    def _value(self) -> str:
        return f"{self.name}-{next(self._values)}"

    def _read(self, *keys: str) -> None:
        asked = self._recorder.invoke(self.name, *map(Get, keys))
        found = self._mesh.get_many(keys)
        told = [Found(found[key].value, found[key].revision) if found[key] else None
                for key in keys]
        self._recorder.ok(asked, *told)
        self._last.update({key: place.revision if place else 0
                           for key, place in zip(keys, told, strict=True)})

    def _write(self, *steps: Any) -> None:
        expect = {}
        if self._chance.random() < 0.5 and not isinstance(steps[0], Increment):
            expect = {steps[0].key: self._last.get(steps[0].key, 0)}
        hasty = self._chance.random() < self._hasty
        asked = self._recorder.invoke(self.name, *steps, expect=expect)
        try:
            with self._mesh.transaction(timeout=SOON if hasty else PATIENCE) as tx:
                for key, revision in expect.items():
                    tx.expect(key, revision)
                for step in steps:
                    _add(tx, step)
            revision = tx.revision
        except SETTLED as refusal:
            self._recorder.refused(asked, type(refusal).__name__, _stands(refusal))
            return
        except ckptmesh.OutcomeUnknown as doubt:
            if self._chance.random() < 0.5:
                self._resolve(asked, doubt)
            return
        self._recorder.ok(asked, *(tx.results.get(step.key) for step in steps), revision=revision)
        self._last.update({step.key: 0 if isinstance(step, Delete) else revision
                           for step in steps})

    def _resolve(self, asked: Any, doubt: ckptmesh.OutcomeUnknown) -> None:
        with suppress(ckptmesh.OutcomeUnknown, ckptmesh.Unavailable):
            revision = doubt.resolve(PATIENCE)
            if revision is None:
                self._recorder.refused(asked, "Absent")
            else:
                self._recorder.ok(asked, revision=revision)


def _add(tx: Any, step: Any) -> None:
    if isinstance(step, Put):
        tx.put(step.key, step.value)
    elif isinstance(step, Delete):
        tx.delete(step.key)
    else:
        tx.increment(step.key, step.by)


def _stands(refusal: ckptmesh.Error) -> dict[str, Found | None]:
    """What a conflict says stands there."""
    if "current" not in refusal.details:
        return {}
    place = refusal.details["current"]
    return {refusal.details["key"]: Found(place.value, place.revision) if place else None}


class Scene:
    """A store with its clients, one history after the other. `counts` tells what was seen."""

    def __init__(self, connect: Callable[[], ckptmesh.Client], shared: bool) -> None:
        self.counts: Counter[str] = Counter()
        self.last: list[Operation] = []
        self._meshes = [connect()] * CLIENTS if shared else [connect() for _ in range(CLIENTS)]
        self._watching = connect()
        self._watch = self._watching.watch("", since=0).__enter__()
        self._start = 0
        self._standing: dict[str, Found] = {}
        self._open: list[Operation] = []  # of histories before, never answered

    def close(self) -> None:
        """Give the connections back."""
        self._watch.close()
        for mesh in {id(mesh): mesh for mesh in (*self._meshes, self._watching)}.values():
            mesh.close()

    def play(self, number: int, size: int, hasty: float, meanwhile: Callable[[], None]
             ) -> list[Violation]:
        """One history, `meanwhile` going on; what is wrong with it."""
        recorder = Recorder(time.monotonic_ns)
        together = threading.Barrier(CLIENTS)
        clients = [Client(f"c{i}", mesh, recorder, f"h{number}", number, size, hasty, together)
                   for i, mesh in enumerate(self._meshes)]
        for client in clients:
            client.start()
        meanwhile()
        for client in clients:
            client.join(4 * PATIENCE)
            if client.error is not None or client.is_alive():
                raise RuntimeError(f"{client.name} of history {number} failed") from client.error
        self.last = recorder.history()
        self.counts["histories_checked"] += 1
        self.counts["operations"] += len(self.last)
        self.counts["unknown"] += sum(isinstance(o.outcome, Unknown) for o in self.last)
        self.counts["overlapping"] += _overlapping(self.last)
        self.counts["refused"] += sum(isinstance(o.outcome, Refused) for o in self.last)
        return self._judge(self._events())

    def _events(self) -> list[Any]:
        """What the watch was given, up to the head."""
        head = self._watching.hello().revision
        events: list[Any] = []
        at = self._start
        while True:  # beyond the head too: more of its revision, or what came late
            event = self._watch.get(timeout=PATIENCE if at < head else 0)
            if event is None:
                break
            events.append(event)
            at = event.revision
        if at < head:
            raise RuntimeError(f"the watch stopped at revision {at}; the head is {head}")
        return events

    def _judge(self, events: list[Any]) -> list[Violation]:
        commits = commits_of(events)
        about: dict[str, Any] = {"start": self._start, "standing": dict(self._standing)}
        asked = [*self._open, *self.last]
        found = [*check_order(asked, commits, **about),  # with all that `check_once` asks
                 *check_watch(seen_of(events), commits, since=self._start)]
        for commit in commits:
            self._apply(commit)
        self._start += len(commits)
        self._open = [o for o in asked if isinstance(o.outcome, Unknown)]
        counter = next((key for o in self.last for key in o.keys if key.endswith("/n")), None)
        if counter is not None:
            value = self._standing[counter].value if counter in self._standing else 0
            found += check_counters(self.last, {counter: value})
        verdict = check_linearizable(self.last, bounds=Bounds(steps=STEPS))
        if isinstance(verdict, NotLinearizable):
            found.append(verdict.violation)
        self.counts["inconclusive"] += isinstance(verdict, Inconclusive)
        return found

    def _apply(self, commit: Commit) -> None:
        change: Change
        for change in commit.changes:
            if change.kind == "put":
                self._standing[change.key] = Found(change.value, commit.revision)
            else:
                self._standing.pop(change.key, None)


def _overlapping(history: list[Operation]) -> int:
    """How many operations were under way when another was asked."""
    asked = sorted(o.invoked_at for o in history)
    return sum(bisect_right(asked, o.invoked_at) < bisect_left(asked, o.returned_at or sys.maxsize)
               for o in history)


class Source:
    """Where histories come from: `counts` over all of them, `findings` with their replay."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.counts: Counter[str] = Counter()
        self.findings: list[str] = []

    def run(self, numbers: Iterator[int], until: float, scene: Scene, size: int, hasty: float,
            meanwhile: Callable[[random.Random], None], most: int = sys.maxsize) -> None:
        """History after history on this scene, until the time is over or there are enough."""
        while time.monotonic() < until and scene.counts["histories_checked"] < most:
            number = next(numbers)
            chance = random.Random(number)
            found = scene.play(number, size, hasty, lambda: meanwhile(chance))  # noqa: B023
            if found:
                self.findings.append(self._finding(number, found, scene.last))
        self.counts.update(scene.counts)

    def _finding(self, number: int, found: list[Violation], history: list[Operation]) -> str:
        kept = Path(tempfile.mkdtemp(prefix="ckptmesh-history-")) / f"{self.name}-{number}.jsonl"
        dump(history, kept)
        return (f"history {number} ({self.name}): {found[0]}\n  and {len(found) - 1} more; "
                f"its operations: {kept}; again (they may meet otherwise): "
                f"python -m tests.campaign.linearizability --start {number} --seconds 10")


@contextmanager
def _scene(connect: Callable[[], ckptmesh.Client], shared: bool) -> Iterator[Scene]:
    scene = Scene(connect, shared)
    try:
        yield scene
    finally:
        scene.close()


def threads(numbers: Iterator[int], seconds: float) -> Source:
    """Histories of threads that share an embedded store, a new one every 200."""
    source, until = Source("threads"), time.monotonic() + seconds
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # so that threads meet even in what takes microseconds
    try:
        while time.monotonic() < until:
            mesh = ckptmesh.connect("memory://")
            with _scene(lambda: mesh, shared=True) as scene:  # noqa: B023  # called at once
                source.run(numbers, until, scene, SHORT, 0, lambda chance: None, most=200)
    finally:
        sys.setswitchinterval(usual)
    return source


def served(numbers: Iterator[int], seconds: float) -> Source:
    """Histories of clients of a broker and a store that is killed now and then."""
    source = Source("served")
    with tempfile.TemporaryDirectory() as folder, Cluster(Path(folder)) as cluster:
        def meanwhile(chance: random.Random) -> None:
            if chance.random() < 0.3:
                time.sleep(chance.uniform(0, 0.1))
                cluster.kill(cluster.store)
                source.counts["kills"] += 1
                cluster.start_store()

        with _scene(lambda: ckptmesh.connect(cluster.url, timeout=PATIENCE), False) as scene:
            source.run(numbers, time.monotonic() + seconds, scene, LONG, HASTY, meanwhile)
    return source


def share(start: int, seconds: float) -> Share:
    """As many histories as fit: half of the time threads, half of it served."""
    numbers = count(start)
    done = [threads(numbers, seconds / 2), served(numbers, seconds / 2)]
    counts = {f"{source.name}_{name}": value
              for source in done for name, value in source.counts.items()}
    for name in ("histories_checked", "inconclusive", "operations", "overlapping"):
        counts[name] = sum(source.counts[name] for source in done)
    return Share(next(numbers), counts, [line for source in done for line in source.findings])


if __name__ == "__main__":
    main(share, __doc__)
