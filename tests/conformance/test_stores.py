"""One suite over every way to reach a store."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest

from ckptmesh.client import Client, connect
from ckptmesh.testing.conformance import StoreConformance
from tests.cluster import Cluster

_numbers = count()


def _fresh_prefix() -> str:
    """Tests on one store keep apart by this."""
    return f"t{next(_numbers):06}"


PREFIX_BYTES = len("t000000/")


class TestMemory(StoreConformance):
    @pytest.fixture
    def connect(self) -> Callable[[], Client]:
        name = _fresh_prefix()
        return lambda: connect(f"memory://{name}")


class TestFile(StoreConformance):
    @pytest.fixture
    def connect(self, tmp_path: Path) -> Callable[[], Client]:
        return lambda: connect(f"file://{tmp_path}/store")


class TestBroker(StoreConformance):
    prefix_bytes = PREFIX_BYTES

    @pytest.fixture
    def connect(self, cluster: Cluster) -> Callable[[], Client]:
        prefix = _fresh_prefix()
        return lambda: connect(cluster.url, prefix=prefix)


class TestDirect(StoreConformance):
    prefix_bytes = PREFIX_BYTES

    @pytest.fixture
    def connect(self, cluster: Cluster) -> Callable[[], Client]:
        prefix = _fresh_prefix()
        return lambda: connect(cluster.direct, prefix=prefix)
