"""What the parts of the suite share: the store under test, skipping, waiting."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from typing import Any, TypeVar

import pytest

from ckptmesh.backends.base import Capability

PATIENCE = 10.0  # seconds: the bound of every wait; none should come near it
BRIEF = 0.2  # seconds: a TTL that a test waits out

Store = Any  # a `ckptmesh.Client` or a `StateBackend`, or anything with its names
Connect = Callable[[], Store]
_Test = TypeVar("_Test", bound=Callable[..., None])


def needs(*capabilities: Capability) -> Callable[[_Test], _Test]:
    """Skip a test on stores that do not declare these."""
    def marked(test: _Test) -> _Test:
        test.needs = capabilities  # type: ignore[attr-defined]
        return test

    return marked


class Base:
    """Fixtures. `connect` has to be given by the subclass; `prefix_bytes` is what a prefix of its
    own takes from the length of every key."""

    prefix_bytes = 0

    @pytest.fixture(autouse=True)
    def _declared(self, request: pytest.FixtureRequest, store: Store) -> None:
        wanted = getattr(request.function, "needs", ())
        missing = [each.value for each in wanted if each not in store.capabilities]
        if missing:
            pytest.skip(f"not declared: {', '.join(missing)}")

    @pytest.fixture
    def connect(self) -> Connect:
        raise NotImplementedError("a subclass gives a `connect` fixture")

    @pytest.fixture
    def another(self, connect: Connect) -> Iterator[Connect]:
        """Makes one more client of the same store, closed in the end."""
        with ExitStack() as stack:
            yield lambda: stack.enter_context(_entered(connect()))

    @pytest.fixture
    def store(self, another: Connect) -> Store:
        """A client of a store that holds nothing yet."""
        return another()


def _entered(store: Store) -> Any:
    """A context that closes it: its own, where it has one."""
    return store if hasattr(store, "__exit__") else closing(store)


def until(holds: Callable[[], object], what: str) -> None:
    """Wait until it is so. Fails after `PATIENCE` seconds."""
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline, f"in {PATIENCE} s it never came true that {what}"
        time.sleep(0.01)
