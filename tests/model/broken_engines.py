"""Faults planted in the store below the clients. Each is a patch of the package while it lasts; a
machine has to find it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any
from unittest.mock import patch

from ckptmesh.clock import StoreClock
from ckptmesh.leases import Deadlines
from ckptmesh.machine import Machine
from ckptmesh.segment import SegmentFile
from ckptmesh.state import State
from ckptmesh.wal import Wal

Fault = Callable[[], AbstractContextManager[Any]]


def acknowledges_before_the_sync() -> AbstractContextManager[Any]:
    return patch.object(SegmentFile, "sync", lambda self: None)


def does_a_copy_of_a_request_again() -> AbstractContextManager[Any]:
    return patch.object(Machine, "_known", lambda self, request: None)


def takes_copies_of_an_older_epoch() -> AbstractContextManager[Any]:
    admit = Machine._admit

    def lenient(self: Machine, request: Any) -> None:
        admit(self, request._replace(epoch=self.state.epoch) if request.session else request)

    return patch.object(Machine, "_admit", lenient)


def checks_conditions_after_the_log() -> AbstractContextManager[Any]:
    return patch("ckptmesh.machine.check", lambda state, condition, now: None)


def follows_the_wall_clock() -> AbstractContextManager[Any]:
    build = StoreClock.__init__

    def by_wall(self: Any, floor: int, *, wall: Any, boot: Any, **rest: Any) -> None:
        build(self, floor, wall=wall, boot=wall, **rest)

    return patch.object(StoreClock, "__init__", by_wall)


def ends_leases_while_its_disk_is_slow() -> AbstractContextManager[Any]:
    return patch.object(Deadlines, "shift", lambda self, micros: None)


def snapshots_without_sessions() -> AbstractContextManager[Any]:
    dump = State.dump

    def poorer(self: State) -> Iterator[Any]:
        return (block for block in dump(self) if block[0] != 4)

    return patch.object(State, "dump", poorer)


def expires_without_a_record() -> AbstractContextManager[Any]:
    return patch.object(State, "due", lambda self, now, most=None: [])


def begins_no_epoch_of_its_own() -> AbstractContextManager[Any]:
    begin = Machine.begin_epoch

    def first_only(self: Machine) -> None:
        if not self.state.epoch:
            begin(self)

    return patch.object(Machine, "begin_epoch", first_only)


@contextlib.contextmanager
def serves_what_the_page_cache_held() -> Iterator[None]:
    """No copy forward: what was read after a kill is taken for what is on the disk."""
    forward = Wal._copy_forward

    def lazily(self: Wal, tail: Any) -> None:
        fdatasync = self._disk.fdatasync
        self._disk.fdatasync = lambda handle: None  # type: ignore[method-assign]
        try:
            forward(self, tail)
        finally:
            self._disk.fdatasync = fdatasync  # type: ignore[method-assign]

    with patch.object(Wal, "_copy_forward", lazily):
        yield


FAULTS: tuple[Fault, ...] = (
    acknowledges_before_the_sync, does_a_copy_of_a_request_again, takes_copies_of_an_older_epoch,
    checks_conditions_after_the_log, follows_the_wall_clock, ends_leases_while_its_disk_is_slow,
    snapshots_without_sessions, expires_without_a_record, begins_no_epoch_of_its_own,
    serves_what_the_page_cache_held,
)
