"""A log that keeps nothing: the store of `memory://`, for tests and for trying things out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ckptmesh.errors import Compacted
from ckptmesh.facts import Puts, Record
from ckptmesh.messages import Savepoint
from ckptmesh.state import State


class MemoryLog:
    """Meets `log.Log` without a disk; everything is gone with the process."""

    space_low = False
    needs_copy_forward = False
    verdict = "MEMORY"
    notes: Sequence[str] = ()
    savepoints: Sequence[Savepoint] = ()

    def __init__(self, uuid: bytes) -> None:
        self.state = State(uuid)
        self._frames = 0

    def begin(self) -> None:
        """Nothing to make durable."""

    def ensure_room(self, nbytes: int, *, urgent: bool = False) -> None:
        """There is room as long as there is memory."""

    def append(self, records: Sequence[Record | Puts], first_revision: int) -> None:
        """Count the frame; the state already holds what it says."""
        self._frames += 1

    def sync(self) -> None:
        """Nothing to sync."""

    def check_space(self) -> bool:
        """Never low."""
        return False

    def holds_lock(self) -> bool:
        """Nobody else can reach this memory."""
        return True

    def status(self) -> dict[str, Any]:
        """Facts for `status`."""
        return {"kind": "memory", "frames": self._frames}

    def pin(self, savepoint: Savepoint) -> None:
        """A name and nothing else: the revision goes when memory lets go of it."""
        if savepoint.revision < self.state.floor:
            raise Compacted(f"revision {savepoint.revision} is not in memory any more, and this "
                            "store has no files", floor=self.state.floor)
        self.savepoints = (*self.savepoints, savepoint)

    def unpin(self, name: str) -> None:
        """Forget a name."""
        self.savepoints = tuple(each for each in self.savepoints if each.name != name)

    def close(self) -> None:
        """Nothing to give back."""
