"""Watchers under forced drops: every revision once and in order all the same.

A watcher with a queue of a few messages, read slowly, over restarts of broker and store, while
transactions of thousands of keys over several pipelines are committed. Then 5,000 subscriptions
over a restart of the store, and 100 watchers of one pipeline without a drop, which must not ask.

    python -m tests.campaign.watch_drops --seconds 20
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import ckptmesh
from ckptmesh import publications, sockets
from ckptmesh.errors import Error
from ckptmesh.messages import Heartbeat
from tests.cluster import Cluster, wait_until

_PIPELINES = ("a", "b", "c")


class _Watcher(threading.Thread):
    """Reads a watch slowly, in its own thread; notes (revision, key) and stops at `last`."""

    def __init__(self, url: str, pipeline: str, pause: float) -> None:
        super().__init__(daemon=True)
        self.seen: list[tuple[int, str]] = []
        self.last: tuple[int, str] | None = None
        self.error: BaseException | None = None
        self.stats: Any = None
        self._pause, self._pipeline = pause, pipeline
        self._mesh = ckptmesh.connect(url, timeout=120)

    def run(self) -> None:
        try:
            with self._mesh.watch(self._pipeline, since=0) as events:
                stop = time.monotonic() + 200
                while self.last is None or self.seen[-1:] != [self.last]:
                    assert time.monotonic() < stop, "the watcher never got there"
                    event = events.get(timeout=0.5)
                    if event is not None:
                        self.seen.append((event.revision, event.key))
                        if len(self.seen) % 500 == 0:
                            time.sleep(self._pause)
                self.stats = events.stats
        except BaseException as error:
            self.error = error


def drops(folder: Path, seconds: float, seed: int = 1) -> dict[str, object]:
    """The first campaign; its figures. Raises `AssertionError` where a watcher missed something."""
    chance = random.Random(seed)
    expected: list[tuple[int, list[str]]] = []
    usual, sockets.PUBLISH_QUEUE = sockets.PUBLISH_QUEUE, 3
    try:
        with Cluster(folder) as cluster:
            watchers = [_Watcher(cluster.url, p, 0.2) for p in ("", *_PIPELINES)]
            for watcher in watchers:
                watcher.start()
            mesh = ckptmesh.connect(cluster.url, timeout=120)
            kills = {"store": 0, "broker": 0}
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                for _ in range(chance.randrange(1, 60)):
                    big = chance.random() < 0.05
                    count = 4_096 if big else chance.randrange(1, 6)
                    keys = [f"{chance.choice(_PIPELINES)}/{i}" for i in range(count)]
                    revision = _commit(mesh, keys)
                    expected.append((revision, keys))
                who = chance.choice(("store", "broker"))
                kills[who] += 1
                cluster.kill(getattr(cluster, who))
                getattr(cluster, f"start_{who}")()
            head = expected[-1][0]
            for watcher, pipeline in zip(watchers, ("", *_PIPELINES), strict=True):
                watcher.last = [(r, k) for r, keys in expected for k in keys
                                if not pipeline or k.startswith(pipeline + "/")][-1]
            for watcher in watchers:
                watcher.join(240)
                if watcher.error is not None:
                    raise watcher.error
                assert not watcher.is_alive()
            mesh.close()
    finally:
        sockets.PUBLISH_QUEUE = usual
    for watcher, pipeline in zip(watchers, ("", *_PIPELINES), strict=True):
        want = [(r, k) for r, keys in expected for k in keys
                if not pipeline or k.startswith(pipeline + "/")]
        seen = [pair for pair in watcher.seen if pair[0] <= head]
        first = next((i for i, pair in enumerate(zip(seen, want, strict=False))
                      if pair[0] != pair[1]), min(len(seen), len(want)))
        assert seen == want, (
            f"the watcher of {pipeline or 'everything'} missed, repeated or reordered at event "
            f"{first}: {seen[first:first + 4]}, expected {want[first:first + 4]}")
    return {"revisions": len(expected), "events": sum(len(k) for _, k in expected), "kills": kills,
            "gaps": {p or "*": w.stats.gaps for w, p in
                     zip(watchers, ("", *_PIPELINES), strict=True)},
            "missed": 0, "twice": 0}


def _commit(mesh: Any, keys: list[str]) -> int:
    """One transaction; retried through `resolve` until its revision is known."""
    values = dict.fromkeys(keys, 1)
    while True:
        try:
            return int(mesh.transact(put=values))
        except ckptmesh.OutcomeUnknown as doubt:
            found = doubt.resolve()
            if found is not None:
                return int(found)


def subscriptions(folder: Path, count: int = 5_000) -> dict[str, object]:
    """5,000 subscriptions, a restart of the store, then each gets its message again."""
    with Cluster(folder) as cluster:
        context = sockets.context()
        sub = sockets.watcher(context)
        sockets.connect(sub, cluster.publish)
        for i in range(count):
            sockets.subscribe(sub, publications.topic_of(f"p{i}"))
        cluster.kill(cluster.store)
        cluster.start_store()
        sockets.subscribe(sub, publications.HEARTBEAT_TOPIC)
        _until_heartbeat(sub)
        seen: set[str] = set()
        with ckptmesh.connect(cluster.url) as mesh:
            wait_until(lambda: mesh.status()["sockets"]["subscriptions"] >= count,
                       what="all subscriptions at the store")
            for first in range(0, count, 100):
                with mesh.transaction() as tx:
                    for i in range(first, min(first + 100, count)):
                        tx.put(f"p{i}", i)
                _collect(sub, seen, 0.05)
        stop = time.monotonic() + 20
        while len(seen) < count and time.monotonic() < stop:
            _collect(sub, seen, 0.5)
        sub.close()
        context.term()
    assert len(seen) == count, f"{len(seen)} of {count} subscriptions live"
    return {"subscriptions": count, "alive_after_restart": len(seen)}


def _until_heartbeat(sub: Any) -> None:
    stop = time.monotonic() + 30
    while time.monotonic() < stop:
        sockets.poll((sub,), 1.0)
        frames = sockets.receive(sub, 1)
        if frames and isinstance(publications.decode_publications(frames[0])[0], Heartbeat):
            return
    raise AssertionError("no heartbeat came")


def _collect(sub: Any, seen: set[str], wait: float) -> None:
    while sockets.poll((sub,), wait):
        frames = sockets.receive(sub, 1)
        if frames:
            seen.update(message.pipeline for message in publications.decode_publications(frames[0])
                        if not isinstance(message, Heartbeat))


def quiet(folder: Path, watchers: int = 100, commits: int = 300) -> dict[str, object]:
    """Many watchers of one pipeline's partitions, no drops: nobody asks `since` after its start."""
    with Cluster(folder) as cluster:
        asked, received = asyncio.run(_quiet(cluster.url, watchers, commits))
    assert asked == watchers, f"{asked - watchers} `since` requests without a drop"
    return {"watchers": watchers, "commits": commits, "since_requests_after_start": 0,
            "events": received}


async def _quiet(url: str, count: int, commits: int) -> tuple[int, int]:
    mesh = await ckptmesh.connect_async(url)
    watches = [mesh.watch(f"orders/{i}") for i in range(count)]
    entered = [await watch.__aenter__() for watch in watches]
    # What is committed before a subscription is at the store is a drop: a heartbeat tells of it.
    while not all(watch.stats.heartbeats for watch in watches):
        await asyncio.gather(*(watch.get(timeout=0.2) for watch in entered))

    async def follow(i: int) -> int:
        got = 0
        while got < commits // count:
            event = await entered[i].get(timeout=30)
            assert event is not None
            assert event.key == f"orders/{i}"
            got += 1
        return got

    followers = [asyncio.create_task(follow(i)) for i in range(count)]
    for n in range(commits):
        await mesh.commit(f"orders/{n % count}", n)
        await mesh.commit(f"other/{n % 7}", n)
    received = sum(await asyncio.gather(*followers))
    for _ in range(4):  # heartbeats after the last commit
        await asyncio.sleep(0.6)
        await asyncio.gather(*(watch.get(timeout=0.01) for watch in entered))
    asked = sum(watch.stats.since_requests for watch in watches)
    for watch in watches:
        await watch.close()
    await mesh.close()
    return asked, received


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    for campaign in (lambda f: drops(f, args.seconds, args.seed), subscriptions, quiet):
        with tempfile.TemporaryDirectory() as folder:
            try:
                print(json.dumps(campaign(Path(folder))), flush=True)
            except Error as error:
                raise SystemExit(f"{type(error).__name__}: {error}") from error


if __name__ == "__main__":
    main()
