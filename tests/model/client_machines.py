"""The public machines over each way to reach a store of our own."""

from __future__ import annotations

import shutil
import tempfile
from itertools import count
from pathlib import Path
from typing import Any

from hypothesis.stateful import rule

from ckptmesh.aio import connect_async
from ckptmesh.backends import open_backend
from ckptmesh.client import connect
from ckptmesh.testing.blocking import blocking
from ckptmesh.testing.stateful import BackendMachine, StoreMachine
from tests.cluster import Cluster

_examples = count()


class MemoryMachine(StoreMachine):
    def connect(self) -> Any:
        return connect("memory://")


class AsyncMemoryMachine(StoreMachine):
    def connect(self) -> Any:
        return blocking(lambda: connect_async("memory://"))


class SmallInterfaceMachine(BackendMachine):
    """What the small interface alone promises."""

    def connect(self) -> Any:
        return open_backend("memory://")


class FileMachine(StoreMachine):
    """A directory, which is left and opened again."""

    def __init__(self) -> None:
        self.folder = tempfile.mkdtemp()
        super().__init__()

    def connect(self) -> Any:
        return connect(f"file://{self.folder}/store")

    def teardown(self) -> None:
        super().teardown()
        shutil.rmtree(self.folder)

    @rule()
    def leave_and_come_back(self) -> None:
        self.played["returns"] += 1
        self.follow()
        self.end_watch()
        self.store.close()
        self.store = self.connect()
        self.begin_watch()


class ClusterMachine(StoreMachine):
    """A broker and a store as processes, which many examples share under prefixes of their own, by
    each way in turn. Subclass it with a `cluster`."""

    cluster: Cluster

    def connect(self) -> Any:
        number = next(_examples)
        where = {"url": self.cluster.direct if number % 2 else self.cluster.url,
                 "prefix": f"example-{number:06}"}
        if number % 4 < 2:
            return connect(**where)
        return blocking(lambda: connect_async(**where))

    @rule()
    def kill_the_store(self) -> None:
        """The watch goes on where it was; leases and what is acknowledged stay."""
        self.played["kills"] += 1
        self.cluster.kill(self.cluster.store)
        self.cluster.start_store()


def cluster_machine(folder: Path, stack: Any) -> type[ClusterMachine]:
    """A machine over a cluster that lives as long as the stack."""
    running = stack.enter_context(Cluster(folder, direct=True))
    return type("ClusterMachine", (ClusterMachine,), {"cluster": running})
