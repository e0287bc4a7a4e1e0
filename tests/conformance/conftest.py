"""One broker and one store, as processes, for all conformance tests that go over sockets."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster import Cluster

pytest.register_assert_rewrite("ckptmesh.testing.conformance")


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("cluster"), direct=True) as running:
        yield running
