"""What the engine needs of a log and of its compaction: a small seam, so that a log in memory, on a
disk, or one day on several hosts, can stand behind it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from ckptmesh.facts import Puts, Record
from ckptmesh.messages import Request, Savepoint
from ckptmesh.state import State


class Log(Protocol):
    """What the engine needs of a log. `wal.Wal` is one on a disk, `MemoryLog` one without."""

    @property
    def state(self) -> State:
        """The recovered state."""

    @property
    def verdict(self) -> str:
        """What recovery found: CLEAN or TORN."""

    @property
    def notes(self) -> Sequence[str]:
        """What recovery did, in sentences for people."""

    @property
    def needs_copy_forward(self) -> bool:
        """Whether `begin` must come before anything recovered is shown to anybody."""

    @property
    def space_low(self) -> bool:
        """Whether the disk is below its watermark, as of the last `check_space`."""

    def begin(self) -> None:
        """Make what was recovered durable and get ready to write. Once, before serving."""

    def ensure_room(self, nbytes: int, *, urgent: bool = False) -> None:
        """Make sure that a frame of this payload can be written without asking the disk for
        space; `urgent`: this is what a full disk must not stop. Raises `OutOfSpace`."""

    def append(self, records: Sequence[Record | Puts], first_revision: int) -> None:
        """Write one frame; `first_revision` is the next revision before these records."""

    def sync(self) -> None:
        """Make the frame durable. Raises `Poisoned` once and for ever when it cannot."""

    def check_space(self) -> bool:
        """Look at the free space again; whether it is low."""

    def holds_lock(self) -> bool:
        """Whether the directory is still this process's."""

    def status(self) -> dict[str, Any]:
        """Facts for `status`: sizes, counts, latency of syncs."""

    @property
    def savepoints(self) -> Sequence[Savepoint]:
        """The revisions that are kept until they are dropped."""

    def pin(self, savepoint: Savepoint) -> None:
        """Keep a revision, durably. Raises `Compacted`, `OutOfSpace`, `Poisoned`."""

    def unpin(self, name: str) -> None:
        """Drop a savepoint, durably. Raises `OutOfSpace`, `Poisoned`."""

    def close(self) -> None:
        """Seal what is open and give the directory back."""


class Past(Protocol):
    """What the engine needs of an archive: asked, then polled; it never blocks the loop."""

    @property
    def waiting(self) -> bool:
        """Whether somebody waits for an answer."""

    def ask(self, route: Any, request: Request) -> None:
        """Take a read below the floor; the answer comes from `poll`, a refusal too."""

    def poll(self) -> list[tuple[Any, bytes]]:
        """The answers that are there, packed, with their routes."""

    def pause(self) -> int:
        """Microseconds until `poll` is worth a call, while somebody waits."""

    def status(self) -> dict[str, Any]:
        """Facts for `status`."""

    def close(self) -> None:
        """Let go; nobody is answered any more."""


class Compactor(Protocol):
    """What the engine needs of compaction: started, then polled; it never blocks the loop."""

    def due(self) -> bool:
        """Whether the log has grown enough for a compaction of its own accord."""

    def start(self, retain: int | None, *, due: bool = False) -> None:
        """Begin; `retain` in seconds overrides the setting; `due`: do what `due` found. Raises
        `Error`."""

    @property
    def running(self) -> bool:
        """Whether one is under way."""

    def poll(self) -> dict[str, Any] | None:
        """The report once it is done. Raises `Error` when it failed."""

    def close(self) -> None:
        """End what is under way; the old state stays."""
