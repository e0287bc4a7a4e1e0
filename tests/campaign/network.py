"""A network that breaks in every way it can, under clients that commit and watchers that follow.

Every client, the watchers' subscriptions and the store's own link to its broker go through a
proxy. In each round some of them are delayed, throttled, split, partitioned, swallowed, forgotten,
cut in the middle of a frame or reset, and healed. Each client commits 1, 2, 3, … to its own key
with `expect=`; half of them are hasty: they give a commit up soon and ask what became of it.

In the end all is healed, and then: every client ends, every acknowledged commit is there, once and
in order, what was called absent is absent, and every watcher was given every revision once.

A number of a share is a seed: one run on a fresh cluster. The faults come from it, their meeting
with the traffic does not.

    python -m tests.campaign.network --start 0 --seconds 60
"""

from __future__ import annotations

import random
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import ckptmesh
from ckptmesh import sockets
from ckptmesh.config import StoreConfig
from ckptmesh.testing.chaos import ChaosProxy, Way
from tests.campaign.shares import Share, main, numbers
from tests.cluster import Cluster

CLIENTS, WATCHERS = 4, 2
ROUNDS = 12  # of one run
LONGEST = 0.5  # seconds that a fault stands
HASTY = 0.15  # seconds after which a hasty client gives a commit up
PATIENCE = 60.0  # seconds in which everything must have ended once all is healed

Event = tuple[int, str, int]
"""(revision, key, value) as a watcher was given it."""


class Worker(threading.Thread):
    """Commits counts to one key. `acknowledged`: (revision, count) of each."""

    def __init__(self, url: str, key: str, hasty: bool) -> None:
        super().__init__(daemon=True)
        self.key = key
        self.acknowledged: list[tuple[int, int]] = []
        self.counts: Counter[str] = Counter()
        self.error: BaseException | None = None
        self.ending = False
        self._timeout = HASTY if hasty else 2 * PATIENCE
        self._mesh = ckptmesh.connect(url, timeout=2 * PATIENCE)

    def run(self) -> None:
        try:
            with self._mesh as mesh:
                revision = 0
                while not self.ending:
                    count = len(self.acknowledged) + 1
                    found = self._commit(mesh, count, revision)
                    if found:
                        revision = found
                        self.acknowledged.append((found, count))
                self.counts["retries"] = mesh.stats()["retries"]
        except BaseException as error:
            self.error = error

    def _commit(self, mesh: ckptmesh.Client, count: int, revision: int) -> int:
        """The revision of the commit; 0 when it certainly did not happen."""
        try:
            return mesh.commit(self.key, count, expect=revision or None,
                               timeout=self._timeout).revision
        except ckptmesh.OutcomeUnknown as doubt:
            self.counts["doubts"] += 1
            found = _until_known(doubt)
            self.counts["absent"] += found is None
            return 0 if found is None else int(found.revision)
        except ckptmesh.Unavailable:
            return 0  # never sent


def _until_known(doubt: ckptmesh.OutcomeUnknown) -> Any:
    until = time.monotonic() + PATIENCE
    while True:
        try:
            return doubt.resolve()
        except ckptmesh.Unavailable:
            if time.monotonic() > until:
                raise


class Watcher(threading.Thread):
    """Follows everything. `seen` is what it was given; it stops once it has seen `last`."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self.seen: list[Event] = []
        self.last = 0
        self.stats: Any = None
        self.error: BaseException | None = None
        self._mesh = ckptmesh.connect(url, timeout=2 * PATIENCE)
        self._events = self._mesh.watch(since=0)  # while all is well: it waits 5 s only

    def run(self) -> None:
        try:
            with self._mesh, self._events as events:
                while not self.last or not self.seen or self.seen[-1][0] < self.last:
                    event = events.get(0.2)
                    if event is not None:
                        self.seen.append((event.revision, event.key, event.checkpoint.value))
                self.stats = events.stats
        except BaseException as error:
            self.error = error


# --- faults -----------------------------------------------------------------------------------


def _faults(chance: random.Random) -> list[Callable[[ChaosProxy], object]]:
    """What may befall a proxy now."""
    ways: list[Way] = ["up", "down", "both"]
    way = chance.choice(ways)
    return [
        lambda proxy: proxy.partition(way),
        lambda proxy: proxy.black_hole(way),
        lambda proxy: proxy.forget(),
        lambda proxy: proxy.delay(chance.uniform(0, 0.1), chance.uniform(0, 0.1), way),
        lambda proxy: proxy.throttle(chance.uniform(5_000, 100_000), way),
        lambda proxy: proxy.split(chance.randint(1, 40), way),
        lambda proxy: proxy.cut_after(chance.randint(1, 4_000), way),
        lambda proxy: (proxy.refuse(), proxy.reset_all()),
        lambda proxy: proxy.reset_all(),
    ]


def _break(proxies: list[ChaosProxy], chance: random.Random, rounds: int) -> Counter[str]:
    counts: Counter[str] = Counter()
    for _ in range(rounds):
        for proxy in chance.sample(proxies, chance.randint(1, len(proxies))):
            chance.choice(_faults(chance))(proxy)
            counts["network_faults"] += 1
        time.sleep(chance.uniform(0.02, LONGEST))
        for proxy in proxies:
            if chance.random() < 0.8:  # else it meets the next round as it is
                proxy.heal()
        time.sleep(chance.uniform(0, 0.2))
        counts["network_rounds"] += 1
    for proxy in proxies:
        proxy.heal()
    return counts


@contextmanager
def _subscribed_through(proxy: ChaosProxy) -> Iterator[None]:
    """Let every watch of this process subscribe at the proxy instead of the broker."""
    usual = sockets.dialable
    sockets.dialable = lambda publish, request: proxy.url  # type: ignore[assignment]
    try:
        yield
    finally:
        sockets.dialable = usual


# --- a run ------------------------------------------------------------------------------------


def run(folder: Path, seed: int, rounds: int = ROUNDS) -> Counter[str]:
    """One run; its counts. Raises `AssertionError` when a promise is broken."""
    chance = random.Random(seed)
    with ExitStack() as stack:
        cluster = Cluster(folder)
        addresses = StoreConfig(data=str(cluster.data))
        targets = [addresses.backend, addresses.backend_publish, cluster.publish,
                   *[cluster.url] * (CLIENTS + 1)]
        proxies = [stack.enter_context(ChaosProxy(target, seed=chance.randrange(2**32)))
                   for target in targets]
        cluster.flags = ["--backend", proxies[0].url, "--backend-publish", proxies[1].url]
        stack.enter_context(cluster)
        stack.enter_context(_subscribed_through(proxies[2]))
        workers = [Worker(proxy.url, f"k{i}", hasty=i % 2 == 1)
                   for i, proxy in enumerate(proxies[4:])]
        watchers = [Watcher(proxies[3].url) for _ in range(WATCHERS)]
        judging = stack.enter_context(ckptmesh.connect(cluster.url, timeout=PATIENCE))
        for thread in (*workers, *watchers):
            thread.start()
        counts = _break(proxies, chance, rounds)
        for worker in workers:
            worker.ending = True
        _join(workers)
        head = max((revision for worker in workers for revision, _ in worker.acknowledged),
                   default=0)
        for watcher in watchers:
            watcher.last = head
        _join(watchers)
        final = {worker.key: judging.value(worker.key, 0) for worker in workers}
        for proxy in proxies:
            counts["connections"] += proxy.counts["accepted"]
            counts["connections_cut"] += proxy.counts["cut"]
    judge({worker.key: worker.acknowledged for worker in workers},
          [watcher.seen for watcher in watchers], final)
    counts["gaps_mended"] = sum(watcher.stats.gaps for watcher in watchers)
    counts["acknowledged"] = sum(len(worker.acknowledged) for worker in workers)
    return sum((worker.counts for worker in workers), counts)


def _join(threads: list[Any]) -> None:
    until = time.monotonic() + PATIENCE
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))
        if thread.error is not None:
            raise AssertionError(f"{type(thread).__name__}: {thread.error!r}") from thread.error
        assert not thread.is_alive(), f"a {type(thread).__name__} did not end once all was healed"


def judge(acknowledged: dict[str, list[tuple[int, int]]], seen: list[list[Event]],
          final: dict[str, int]) -> None:
    """Raises `AssertionError` unless each watcher was given every acknowledged commit, each
    revision once and in order, and each key's counts once and in order, up to `final`."""
    for events in seen:
        revisions = [revision for revision, _, _ in events]
        assert revisions == list(range(1, len(revisions) + 1)), (
            "a watcher missed, repeated or reordered a revision")
        given = set(events)
        for key, commits in acknowledged.items():
            counts = [value for _, name, value in events if name == key]
            assert counts == list(range(1, len(counts) + 1)), f"{key} was applied twice, or lost"
            lost = [commit for commit in commits if (commit[0], key, commit[1]) not in given]
            assert not lost, f"{key}: acknowledged and lost: {lost[:3]}"
    for key, commits in acknowledged.items():
        assert final[key] == len(commits), (
            f"{key} stands at {final[key]}; {len(commits)} commits were acknowledged")


def share(start: int, seconds: float, rounds: int = ROUNDS) -> Share:
    """Runs from seed `start` on, at least one."""
    counts: Counter[str] = Counter()
    findings: list[str] = []
    for seed in numbers(start, seconds):
        with tempfile.TemporaryDirectory() as folder:
            try:
                counts += run(Path(folder), seed, rounds)
            except AssertionError as error:
                findings.append(f"{error}: python -m tests.campaign.network --start {seed} "
                                "--seconds 1")
        counts["network_runs"] += 1
    return Share(seed + 1, dict(counts), findings)


if __name__ == "__main__":
    main(share, __doc__)
