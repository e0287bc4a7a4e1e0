"""The campaign of histories: a short share of it, and that it finds what is broken on purpose."""

from __future__ import annotations

import time
from collections.abc import Iterable
from itertools import count
from typing import Any

import pytest

import ckptmesh
from tests.campaign import linearizability


@pytest.mark.fault(2)
@pytest.mark.fault(3)
def test_histories_of_real_clients_are_linearizable_in_order_and_once() -> None:
    done = linearizability.share(0, 3)
    assert done.findings == []
    assert done.next == done.counts["histories_checked"] >= 8
    assert done.counts["overlapping"] > done.counts["operations"] / 20
    assert done.counts["inconclusive"] <= done.counts["histories_checked"] / 10
    assert done.counts["served_operations"] > 100


class _Broken:
    """An embedded client, but for what a test breaks."""

    def __init__(self) -> None:
        self._mesh = ckptmesh.connect("memory://")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._mesh, name)


class _Stale(_Broken):
    """Every tenth read is answered as the one of these keys before it."""

    def __init__(self) -> None:
        super().__init__()
        self._reads = count(1)
        self._before: dict[tuple[str, ...], Any] = {}

    def get_many(self, keys: Iterable[str]) -> Any:
        asked = tuple(keys)
        found = self._mesh.get_many(asked)
        before = self._before.get(asked, found)
        self._before[asked] = found
        return before if next(self._reads) % 10 == 0 else found


class _Twice(_Broken):
    """Before every tenth transaction the counter is raised by itself."""

    def __init__(self) -> None:
        super().__init__()
        self._transactions = count(1)

    def transaction(self, **options: Any) -> Any:
        number = next(self._transactions)
        if number % 10 == 0:
            self._mesh.increment("h0/n")
        return self._mesh.transaction(**options)


@pytest.mark.parametrize(("broken", "rules"), [
    (_Stale, ("stale", "linearizability")), (_Twice, ("phantom", "twice", "sum"))])
def test_a_store_that_is_broken_on_purpose_is_found(broken: type[_Broken], rules: tuple[str, ...],
                                                    tmp_path: Any,
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))  # where histories are kept
    source = linearizability.Source("broken")
    mesh = broken()
    scene = linearizability.Scene(lambda: mesh, shared=True)  # type: ignore[arg-type, return-value]
    source.run(count(), time.monotonic() + 30, scene, 20, 0, lambda chance: None, most=3)
    scene.close()
    assert any(rule in finding for finding in source.findings for rule in rules)
    assert list(tmp_path.glob("*/broken-*.jsonl"))
