"""The system calls of a commit: the sync stands between the write of the frame and the reply."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import ckptmesh
from tests.cluster import Cluster
from tests.tools import tool

_CALL = re.compile(r"^(\d+)\s+(?:<\.\.\. )?(pwrite64|fdatasync|sendto|sendmsg|write)\b(.*)$")
# A reply to a transaction: array of 7, version 1, op 4, a session of 16 bytes; as strace prints it.
_REPLY = re.compile(r"\\227\\1\\4\\304\\0?20")


def calls(trace: Path) -> list[str]:
    """Names of the calls that matter, in order: frame (a write to the log), synced, reply."""
    found = []
    for line in trace.read_text(errors="replace").splitlines():
        match = _CALL.match(line)
        if match is None:
            continue
        name, rest = match[2], match[3]
        if name == "pwrite64" and "CkFr" in rest:
            found.append("frame")
        elif name == "fdatasync" and rest.rstrip().endswith("= 0"):
            found.append("synced")
        elif name in ("sendto", "sendmsg", "write") and _REPLY.search(rest):
            found.append("reply")
    return found


def test_no_reply_leaves_before_the_sync_of_its_frame(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    cluster = Cluster(tmp_path)
    cluster.wrap = [tool("strace"), "-f", "-s", "4096", "-o", str(trace), "-e",
                    "trace=pwrite64,fdatasync,sendto,sendmsg,write"]
    with cluster:
        with ckptmesh.connect(cluster.url) as mesh:
            for count in range(50):
                mesh.commit("orders", count)
        assert cluster.store is not None
        pid = cluster.store.pid  # strace's, which leaves signals to the store
        (store,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        os.kill(int(store), signal.SIGTERM)
        assert cluster.store.wait(30) == 0
    seen = calls(trace)
    assert seen.count("frame") >= 50
    assert seen.count("reply") >= 50
    pending = False
    for call in seen:
        if call == "frame":
            pending = True
        elif call == "synced":
            pending = False
        else:
            assert not pending, "a reply left while its frame was not synced"
