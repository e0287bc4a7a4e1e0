"""What every workload is given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.servers import Server
from tests.cluster import Cluster


@dataclass(frozen=True)
class Context:
    """`folder`: for data, on one file system with that of the peers. `servers`: by name, running.
    `cluster`: ckptmesh's own, running. `keys`: of a large store. `tell` shows progress."""

    folder: Path
    servers: dict[str, Server]
    cluster: Cluster
    rounds: int
    seconds: float
    keys: int
    tell: Callable[[str], None]
