"""A store on a disk that is full: it starts, serves reads, refuses commits with `OutOfSpace`,
compacts, and accepts again. Needs root, for a small tmpfs.

    python -m tests.campaign.disk_full
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

import ckptmesh
from ckptmesh.errors import OutOfSpace
from ckptmesh.spare import SPARE
from tests.cluster import Cluster, wait_until

_FLAGS = ("--segment-bytes", "4MiB", "--space-watermark", "8MiB", "--retain", "0",
          "--snapshot-bytes", "1GiB", "--history-bytes", "1MiB")


def run(folder: Path, megabytes: int = 64) -> dict[str, object]:
    """Run the campaign on a tmpfs mounted at `folder`; its figures."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)],
                   check=True)
    try:
        return _fill(folder)
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def _fill(folder: Path) -> dict[str, object]:
    figures: dict[str, object] = {}
    value = bytes(200_000)
    with Cluster(folder, *_FLAGS) as cluster:
        mesh = ckptmesh.connect(cluster.url)
        commits, refused = 0, False
        for _ in range(2_000):
            try:
                mesh.commit("big", value)
                commits += 1
            except OutOfSpace:
                refused = True
                break
        assert refused, "the disk never filled"
        # Made beside the commits, and by it a store starts on a disk without a free byte.
        wait_until((folder / "data" / SPARE).exists, what="the spare segment")
        figures["commits_until_full"] = commits
        assert mesh.get("big").version == commits
        cluster.kill(cluster.store)
        ballast = folder / "ballast"
        with suppress(OSError), ballast.open("wb") as file:  # the disk, to the last block
            while file.write(bytes(4_096)):
                file.flush()
        cluster.start_store()  # a full disk can still start
        assert mesh.get("big").version == commits, "reads are served"
        try:
            mesh.commit("big", value)
            raise AssertionError("a commit was accepted on a full disk")
        except OutOfSpace:
            pass
        ballast.unlink(missing_ok=True)
        report = [mesh.compact(), mesh.compact()]
        figures["compactions"] = report
        figures["after"] = mesh.commit("big", value).version
        assert figures["after"] == commits + 1
        mesh.close()
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(run(Path(folder)), default=str))


if __name__ == "__main__":
    main()
