"""One suite over every way to reach a store."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import Any

import pytest

from ckptmesh.aio import connect_async
from ckptmesh.backends import StateBackend
from ckptmesh.client import connect
from ckptmesh.testing.blocking import blocking
from ckptmesh.testing.conformance import BackendConformance, StoreConformance
from ckptmesh.testing.conformance.base import Connect
from tests.cluster import Cluster

_numbers = count()


def _fresh_prefix() -> str:
    """Tests on one store keep apart by this."""
    return f"t{next(_numbers):06}"


PREFIX_BYTES = len("t000000/")


class Plain(StoreConformance):
    """Through `Client`."""

    @pytest.fixture
    def connect(self, where: dict[str, Any]) -> Connect:
        return lambda: connect(**where)


class Asyncio(StoreConformance):
    """Through `AsyncClient`."""

    @pytest.fixture
    def connect(self, where: dict[str, Any]) -> Connect:
        return lambda: blocking(lambda: connect_async(**where))


class Memory:
    @pytest.fixture
    def where(self) -> dict[str, Any]:
        return {"url": f"memory://{_fresh_prefix()}"}


class File:
    @pytest.fixture
    def where(self, tmp_path: Path) -> dict[str, Any]:
        return {"url": f"file://{tmp_path}/store"}


class Broker:
    prefix_bytes = PREFIX_BYTES

    @pytest.fixture
    def where(self, cluster: Cluster) -> dict[str, Any]:
        return {"url": cluster.url, "prefix": _fresh_prefix()}


class Direct:
    prefix_bytes = PREFIX_BYTES

    @pytest.fixture
    def where(self, cluster: Cluster) -> dict[str, Any]:
        return {"url": cluster.direct, "prefix": _fresh_prefix()}


class Bare:
    """What `StateBackend` names, and nothing else: no `with`, for one."""

    def __init__(self, store: StateBackend) -> None:
        self.capabilities = store.capabilities
        for name in ("get", "put", "delete", "scan", "transact", "close"):
            setattr(self, name, getattr(store, name))


class TestBare(BackendConformance):
    @pytest.fixture
    def connect(self) -> Connect:
        url = f"memory://{_fresh_prefix()}"
        return lambda: Bare(connect(url))


class TestMemory(Memory, Plain): ...


class TestFile(File, Plain): ...


class TestBroker(Broker, Plain): ...


class TestDirect(Direct, Plain): ...


class TestAsyncMemory(Memory, Asyncio): ...


class TestAsyncFile(File, Asyncio): ...


class TestAsyncBroker(Broker, Asyncio): ...


class TestAsyncDirect(Direct, Asyncio): ...
