"""Flipped bits before the last frame, each found; the last frame cut at every byte, each TORN.

    python -m tests.campaign.bit_flips --flips 1000
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import tempfile
from collections import Counter
from pathlib import Path

import ckptmesh
from ckptmesh.disk import RealDisk
from ckptmesh.framing import SegmentScan, decode_header
from ckptmesh.survey import verify


def _segments(directory: Path) -> list[Path]:
    return sorted((directory / "wal").glob("*.seg"))


def _make(directory: Path, commits: int) -> None:
    """A store whose last segment is not sealed: its process was killed."""
    pid = os.fork()
    if pid == 0:
        mesh = ckptmesh.connect(f"file:{directory}")
        for i in range(commits):
            mesh.commit(f"k{i % 7}", {"i": i, "pad": "x" * (i % 400)})
        os._exit(0)
    os.waitpid(pid, 0)


def run(folder: Path, flips: int, commits: int = 300, seed: int = 1) -> dict[str, object]:
    """Run the campaign; its figures. Raises `AssertionError` when damage goes unseen."""
    chance = random.Random(seed)
    original = folder / "store"
    _make(original, commits)
    report = verify(str(original))
    assert report.verdict == "CLEAN", report
    last = _segments(original)[-1]
    start, end = last_frame(last)
    verdicts: Counter[str] = Counter()
    copy = folder / "copy"
    for _ in range(flips):
        shutil.copytree(original, copy)
        target = _segments(copy)[-1]
        with target.open("r+b") as file:
            place = chance.randrange(start)
            file.seek(place)
            byte = file.read(1)[0]
            file.seek(place)
            file.write(bytes([byte ^ 1 << chance.randrange(8)]))
        verdicts[verify(str(copy)).verdict] += 1
        shutil.rmtree(copy)
    assert set(verdicts) == {"CORRUPT"}, verdicts
    cuts: Counter[str] = Counter()
    for size in range(start + 1, end):
        shutil.copytree(original, copy)
        os.truncate(_segments(copy)[-1], size)
        cuts[verify(str(copy)).verdict] += 1
        shutil.rmtree(copy)
    assert set(cuts) == {"TORN"}, cuts
    return {"flips": dict(verdicts), "cuts": dict(cuts), "frame": [start, end]}


def last_frame(path: Path) -> tuple[int, int]:
    """(start, end) of the last frame's content in an unsealed segment, padding not counted."""
    disk = RealDisk()
    handle = disk.open(str(path), "read")
    try:
        data = disk.pread(handle, disk.size(handle), 0)
    finally:
        disk.close(handle)
    frames = list(SegmentScan(data, decode_header(data)))
    return frames[-1].offset, frames[-1].offset + 72 + -(-len(frames[-1].payload) // 4) * 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--flips", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(run(Path(folder), args.flips, seed=args.seed)))


if __name__ == "__main__":
    main()
