"""Backends by URL: the small interface, and what meets it."""

from __future__ import annotations

from pathlib import Path

import pytest

from ckptmesh import errors
from ckptmesh.backends import Capability, StateBackend, open_backend


@pytest.fixture(params=["memory", "file"])
def state(request: pytest.FixtureRequest, tmp_path: Path) -> StateBackend:
    return open_backend("memory://" if request.param == "memory" else f"file://{tmp_path}/state")


def test_a_backend_keeps_what_is_put_under_an_expectation(state: StateBackend) -> None:
    first = state.put("orders", 1, expect=None, position=1)
    with pytest.raises(errors.Conflict):
        state.put("orders", 2, expect=None)
    second = state.put("orders", 2, expect=first)
    found = state.get("orders")
    assert found is not None
    assert (found.value, found.revision) == (2, second.revision)
    assert state.delete("orders", expect=second) is True
    assert state.delete("orders") is False
    state.close()


def test_a_backend_scans_in_pages_and_transacts_all_or_nothing(state: StateBackend) -> None:
    state.transact(put={f"a/{n}": n for n in range(5)})
    page = state.scan("a", limit=3)
    assert [c.value for c in page] == [0, 1, 2]
    assert [c.value for c in state.scan("a", after=page[-1].key, limit=3)] == [3, 4]
    with pytest.raises(errors.Conflict):
        state.transact(put={"a/9": 9}, delete=["a/0"], expect={"a/1": None})
    assert len(state.scan("a")) == 5
    state.close()


def test_a_backend_declares_what_it_can_do(state: StateBackend) -> None:
    assert isinstance(state, StateBackend)
    assert {Capability.WATCH, Capability.LEASES, Capability.HISTORY} <= state.capabilities
    assert Capability.PROCESSES not in state.capabilities
    state.close()


def test_an_unknown_scheme_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(errors.InvalidUrl, match="memory"):
        open_backend("carrier-pigeon://x")
