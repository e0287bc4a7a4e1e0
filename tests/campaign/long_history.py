"""One key, a million commits: times within `retain`, restored, equal a model; and how fast a log of
that length is replayed, and a snapshot of a million keys loaded.

The log is written through the engine with many requests a batch, so that a million commits take a
minute and not an hour; every one is a transaction of its own with a revision of its own.

    python -m tests.campaign.long_history --commits 1000000
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import resource
import tempfile
import time
from pathlib import Path

import msgpack

from ckptmesh import commands, protocol
from ckptmesh.disk import RealDisk
from ckptmesh.engine import Engine
from ckptmesh.facts import EpochBegun, SessionOpened, Transaction, Write
from ckptmesh.messages import PUT, Open, Put, Transact
from ckptmesh.opening import open_engine
from ckptmesh.restore import restore
from ckptmesh.snapshots import load_snapshot, write_snapshot
from ckptmesh.state import State
from ckptmesh.wal import EMBEDDED, Wal

_BATCH = 200


def fill(engine: Engine[None], commits: int, key: str = "the-key") -> list[int]:
    """Commit 1 … `commits` under one key; the time of each, microseconds."""
    op, body = commands.pack_command(Open("filler"))
    _, reply = protocol.decode_reply(engine.handle(
        [protocol.encode_request(op, body, number=1)])[0])
    session, epoch = reply.result.session, reply.result.epoch
    times: list[int] = []
    for first in range(1, commits + 1, _BATCH):
        payloads = []
        for n in range(first, min(first + _BATCH, commits + 1)):
            op, body = commands.pack_command(Transact((), (Put(key, msgpack.packb(n)),)))
            payloads.append(protocol.encode_request(op, body, session=session, number=n,
                                                    low=first, epoch=epoch))
        for payload in engine.handle(payloads):
            _, reply = protocol.decode_reply(payload)
            times.append(reply.result.time)
    return times


def run(folder: Path, commits: int, points: int = 20, seed: int = 1) -> dict[str, object]:
    """Run the campaign; its figures. Raises `AssertionError` where a cut differs from the model."""
    chance = random.Random(seed)
    directory = str(folder / "store")
    engine = open_engine(directory)
    started = time.perf_counter()
    times = fill(engine, commits)
    wrote = time.perf_counter() - started
    engine.close()
    restored = []
    for point in range(points):
        at = times[0] + chance.randrange(times[-1] - times[0])
        expected = sum(moment <= at for moment in times)
        target = str(folder / f"restored-{point}")
        begun = time.perf_counter()
        restore(directory, target, time=at)
        restored.append(time.perf_counter() - begun)
        wal = Wal.open(target, EMBEDDED)
        found = msgpack.unpackb(wal.state.entries["the-key"].value)
        wal.close()
        assert found == expected, f"at {at}: {found}, the model says {expected}"
    gc.collect()
    begun = time.perf_counter()
    wal = Wal.open(directory, EMBEDDED)
    replay = time.perf_counter() - begun
    assert wal.state.revision == commits
    wal.close()
    return {"commits": commits, "written_per_second": round(commits / wrote),
            "restored": points, "restore_seconds_median": sorted(restored)[points // 2],
            "replayed_per_second": round(commits / replay), **_snapshot(folder, commits)}


def _snapshot(folder: Path, keys: int) -> dict[str, object]:
    """Start-up from a snapshot of many keys, and memory a key."""
    state = State(b"u" * 16)
    state.apply(EpochBegun(1, 1))
    state.apply(SessionOpened(b"s" * 16, 1, "x"))
    for n in range(1, keys + 1):
        write = Write(PUT, f"key/{n:07}", bytes(100))
        state.apply(Transaction(b"s" * 16, n, n, 0, n, (write,), (1,)))
    path = str(folder / "big.snap")
    write_snapshot(RealDisk(), path, state, segment=1, salt=bytes(16))
    del state
    gc.collect()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begun = time.perf_counter()
    loaded, _ = load_snapshot(RealDisk(), path)
    took = time.perf_counter() - begun
    assert len(loaded.entries) == keys
    return {"snapshot_keys": keys, "snapshot_load_seconds": round(took, 2),
            "snapshot_bytes": Path(path).stat().st_size, "rss_before_kib": before}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--commits", type=int, default=1_000_000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(run(Path(folder), args.commits)))


if __name__ == "__main__":
    main()
