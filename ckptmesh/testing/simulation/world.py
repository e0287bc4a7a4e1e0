"""One thread, one heap of events, one virtual clock: the world that a simulation runs in.

Rule 1: everything that happens is an event of the heap; two events at one time keep the order in
        which they were asked for. Nothing reads a clock or rolls a die of the machine.
Rule 2: chance is split by name (`World.chance`), so that leaving out one thing that happens changes
        no other thing's chances more than it must: that is what makes a failing story shrink.
Rule 3: whatever happens is told (`World.tell`), whatever is sent is seen (`World.see`); the hash
        over all of that is the trace, and one seed has one trace, in every process.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Callable
from hashlib import blake2b
from typing import Any

SECOND = 1_000_000  # the world counts microseconds, from 0 at its beginning


class Broken(BaseException):
    """A promise was broken. Its text says which, and by what. No `Exception`, since it passes
    through code under test that makes an error of its own of any of these."""


class World:
    """Time, chance and what was told of one simulation. `keep`: keep the lines of the story."""

    def __init__(self, seed: int, *, keep: bool = False) -> None:
        self.seed = seed
        self.now = 0
        self.events = 0
        self.sites: Counter[str] = Counter()  # faults that were injected, by name
        self.story: list[str] = []
        self._keep = keep
        self._heap: list[tuple[int, int, Callable[..., object], tuple[Any, ...]]] = []
        self._asked = 0
        self._trace = blake2b(digest_size=16)
        self._chances: dict[str, random.Random] = {}

    @property
    def seconds(self) -> float:
        """The time in seconds."""
        return self.now / SECOND

    @property
    def trace(self) -> str:
        """The hash over all that was told and seen so far."""
        return self._trace.hexdigest()

    def chance(self, name: str) -> random.Random:
        """The source of chance of this name."""
        source = self._chances.get(name)
        if source is None:  # seeded by text: the same in every process, whatever its hash seed
            source = self._chances[name] = random.Random(f"{self.seed}/{name}")
        return source

    def after(self, delay: int, action: Callable[..., object], *arguments: Any) -> None:
        """Do something in so many microseconds."""
        self._asked += 1
        heapq.heappush(self._heap, (self.now + max(0, delay), self._asked, action, arguments))

    def at(self, time: int, action: Callable[..., object], *arguments: Any) -> None:
        """Do something at this time, at once when it has passed."""
        self.after(time - self.now, action, *arguments)

    def step(self, until: int) -> bool:
        """Let the next event happen, if it is due by then. False: there is none; it is `until`."""
        if not self._heap or self._heap[0][0] > until:
            self.now = max(self.now, until)
            return False
        self.now, _, action, arguments = heapq.heappop(self._heap)
        self.events += 1
        action(*arguments)
        return True

    def tell(self, line: str) -> None:
        """Put a line into the trace."""
        self._trace.update(b"%d %b\n" % (self.now, line.encode()))
        if self._keep:
            self.story.append(f"{self.now / SECOND:10.6f}  {line}")

    def see(self, payload: bytes) -> None:
        """Put bytes into the trace that are no line of the story."""
        self._trace.update(payload)

    def fault(self, site: str, whose: str = "") -> None:
        """Count an injected fault, and tell it; `whose` goes into the story alone."""
        self.sites[site] += 1
        self.tell(f"! {site}{whose and ': '}{whose}")


class Turn:
    """The next time that somebody looks at what there is to do: many ask for it, the earliest
    wins. Nobody's turn comes while `held` (a stopped process)."""

    def __init__(self, world: World, action: Callable[[], object]) -> None:
        self._world = world
        self._action = action
        self._due: int | None = None
        self._asked = 0
        self._held = False
        self._dead = False

    def ask(self, delay: int = 0) -> None:
        """Have a turn in so many microseconds at the latest."""
        due = self._world.now + max(0, delay)
        if self._dead or (self._due is not None and self._due <= due):
            return
        self._due = due
        self._asked += 1
        self._world.at(due, self._come, self._asked)

    def hold(self, held: bool) -> None:
        """Stop, or go on."""
        self._held = held
        if not held:
            self._due = None
            self.ask()

    def end(self) -> None:
        """No more turns."""
        self._dead = True

    def _come(self, asked: int) -> None:
        if self._dead or self._held or asked != self._asked:
            return
        self._due = None
        self._action()
