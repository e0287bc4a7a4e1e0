"""Processes that commit are killed, and what they acknowledged is counted.

Rule 1: a kill comes at a random moment of a start, or of the work after a random number of commits;
        so it is in the middle of things on a slow disk as on a fast one.
Rule 2: after each kill, before anybody else writes, the store is recovered and compared with the
        model: every acknowledged commit is there, no commit stands twice, nothing else is there.
Rule 3: what failed once is evidence: nothing goes on in that store.
"""

from __future__ import annotations

import random
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ckptmesh.certification.model import Model
from ckptmesh.certification.nursery import Nursery
from ckptmesh.certification.worker import PATIENCE
from ckptmesh.disk import Disk
from ckptmesh.errors import Error
from ckptmesh.recovery import CLEAN, recover

LEAST = 5  # kills, however short the time is
_A_STORE = 1_000  # commits; then a new store, since every start replays all of the old one
_STARTING = 0.3  # part of the kills that come during a start
_MOST_COMMITS = 120  # before a kill during the work


@dataclass
class Kills:
    """What was done and what came of it.

    `starting`: kills before a process had its first commit acknowledged. `clean`, `torn`: verdicts
    of the recoveries. Commits: `acknowledged`; `beyond`, whole on the disk although their process
    died before it could say so; `lost`, acknowledged but not given out by a recovery; `twice`,
    taking effect again. `wrong`: revisions that hold what nobody committed.
    """

    kills: int = 0
    starting: int = 0
    stores: int = 0
    acknowledged: int = 0
    beyond: int = 0
    clean: int = 0
    torn: int = 0
    lost: int = 0
    twice: int = 0
    wrong: int = 0
    failures: list[str] = field(default_factory=list)


class Killing:
    """Kills in stores under a folder, until a time; `found` is what came of it."""

    def __init__(self, folder: Path, nursery: Nursery, disk: Callable[[], Disk], seed: int) -> None:
        self.found = Kills()
        self._folder = folder
        self._nursery = nursery
        self._disk = disk
        self._chance = random.Random(seed)
        self._start = 0.05  # seconds that a start takes, as of the last one
        self._in_store = 0  # commits acknowledged in the present store

    def run(self, deadline: float, progress: Callable[[], None]) -> Kills:
        """Go on until a monotonic time, with `LEAST` kills at least, or until something fails."""
        found = self.found
        while not found.failures and (time.monotonic() < deadline or found.kills < LEAST):
            seed = self._chance.randrange(2**31)
            directory = self._folder / f"store-{found.stores + 1}"
            found.stores += 1
            self._nursery.begin()
            self._in_store = 0
            model, head = Model(seed), 0
            while not found.failures and head < _A_STORE and (
                time.monotonic() < deadline or found.kills < LEAST
            ):
                head = self._round(directory, seed, model, head)
                progress()
            if not found.failures:
                shutil.rmtree(directory, ignore_errors=True)  # the kill may have come before it
        return found

    def _round(self, directory: Path, seed: int, model: Model, head: int) -> int:
        """One process, one kill, one look. The store's revision now."""
        nursery, found = self._nursery, self.found
        found.kills += 1
        nursery.acknowledged = head
        nursery.start(directory, seed)
        self._work(head)
        code = nursery.kill()
        found.starting += nursery.acknowledged == head
        found.acknowledged += nursery.acknowledged - head
        self._in_store += nursery.acknowledged - head
        if nursery.error:
            self._fail(f"a store did not go on: {nursery.error}")
        elif code != -signal.SIGKILL:
            self._fail(f"a store ended by itself, with exit code {code}")
        return self._judge(directory, model, nursery.acknowledged)

    def _work(self, head: int) -> None:
        """Wait for the moment of the kill."""
        nursery, chance = self._nursery, self._chance
        began = time.monotonic()
        if chance.random() < _STARTING:
            end = began + chance.uniform(0, 1.2 * self._start)
            while (left := end - time.monotonic()) > 0 and not nursery.error:
                nursery.look(left)
            return
        goal = head + chance.randint(1, _MOST_COMMITS)
        reached, heard = head, began
        while nursery.acknowledged < goal and not nursery.error:
            nursery.look(PATIENCE)
            now = time.monotonic()
            if nursery.acknowledged > reached:
                self._start = now - began if reached == head else self._start
                reached, heard = nursery.acknowledged, now
            elif now - heard > PATIENCE:
                self._fail(f"after commit {reached:,} nothing was heard for {PATIENCE:.0f} s")
                return
        time.sleep(chance.uniform(0, 0.003))  # somewhere within a batch

    def _judge(self, directory: Path, model: Model, acknowledged: int) -> int:
        found = self.found
        try:
            recovered = recover(self._disk(), str(directory))
        except (OSError, Error) as error:
            found.lost += self._in_store
            what = error.message if isinstance(error, Error) else error
            self._fail(f"the store cannot be recovered: {what}")
            return acknowledged
        if recovered.verdict == CLEAN:
            found.clean += 1
        else:
            found.torn += 1
        state = recovered.state
        for problem in model.problems(state):
            found.twice += problem.twice
            found.wrong += not problem.twice
            self._fail(problem.text)
        if state.revision < acknowledged:
            found.lost += min(acknowledged - state.revision, self._in_store)
            self._fail(f"commits {state.revision + 1:,} to {acknowledged:,} were acknowledged and "
                       "are gone")
        else:
            found.beyond += state.revision - acknowledged
        return state.revision

    def _fail(self, what: str) -> None:
        found = self.found
        found.failures.append(f"kill {found.kills:,}, store {found.stores:,}: {what}")
