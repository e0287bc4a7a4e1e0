"""Savepoints: named revisions that stay readable until they are dropped.

Rule 1: a name is given once; who would give it to another revision is told what it stands for.
Rule 2: a copy of a request gets the answer that the first one got, as long as this store lives;
        after a restart a second `Pin` is told that the name is taken, and at which revision.

What a savepoint keeps, and what for, is `retention.py`'s to say; that it is durable, the log's.
"""

from __future__ import annotations

from typing import Any

from ckptmesh.commands import op_of
from ckptmesh.errors import (
    Conflict,
    Error,
    FutureRevision,
    InvalidRequest,
    Poisoned,
    QuotaExceeded,
)
from ckptmesh.limits import SAVEPOINTS
from ckptmesh.log import Log
from ckptmesh.messages import Pin, Pins, Reply, Request, Savepoint, Unpin
from ckptmesh.protocol import encode_reply

_REMEMBERED = 1_000  # answers


class Savepoints:
    """The savepoints of one log. For the thread that owns it, between two batches. `asked`:
    requests with their routes, to be executed when their batch is durable."""

    def __init__(self, log: Log) -> None:
        self.asked: list[tuple[Any, Request]] = []
        self._log = log
        self._answers: dict[tuple[int, int], Any] = {}  # by number and digest of the request

    def answers(self, now: int, epoch: int) -> list[tuple[Any, bytes]]:
        """The packed answers to all that was asked. Raises `Poisoned`."""
        asked, self.asked = self.asked, []
        found: list[tuple[Any, bytes]] = []
        for route, request in asked:
            reply = Reply(request.session, request.number, epoch)
            try:
                reply = reply._replace(result=self.execute(request, now))
            except Poisoned:
                raise
            except Error as error:
                reply = reply._replace(error=error)
            found.append((route, encode_reply(op_of(request.command), reply)))
        return found

    def execute(self, request: Request, now: int) -> Any:
        """The answer to `Pin`, `Unpin` or `Pins`; durable when this returns. `now`: store time.

        Raises `Conflict` (the name is taken), `FutureRevision`, `Compacted` (the revision is kept
        nowhere any more), `QuotaExceeded`, `InvalidRequest` (nothing was ever committed),
        `OutOfSpace`, `Poisoned`.
        """
        command = request.command
        if isinstance(command, Pins):
            return tuple(sorted(self._log.savepoints, key=_place))
        assert isinstance(command, Pin | Unpin)  # the engine asks for nothing else
        copy = request.number, request.digest
        if copy not in self._answers:
            done = self._pin(command, now) if isinstance(command, Pin) else self._unpin(command)
            if len(self._answers) >= _REMEMBERED:
                del self._answers[next(iter(self._answers))]
            self._answers[copy] = done
        return self._answers[copy]

    def _pin(self, command: Pin, now: int) -> Savepoint:
        head, held = self._log.state.revision, self._log.savepoints
        revision = head if command.revision is None else command.revision
        for each in held:
            if each.name == command.name:
                raise Conflict(
                    f"savepoint {each.name!r} stands for revision {each.revision:,}",
                    hint="choose another name, or drop that one first", revision=each.revision)
        if revision > head:
            raise FutureRevision(f"revision {revision} is beyond the head, {head}", revision=head)
        if not revision:
            raise InvalidRequest("nothing was committed yet, so there is nothing to keep")
        if len(held) >= SAVEPOINTS:
            raise QuotaExceeded(f"there are {SAVEPOINTS:,} savepoints", limit=SAVEPOINTS,
                                hint="drop what is not needed any more: mesh.drop_savepoint(name)")
        made = Savepoint(command.name, revision, now, command.reason)
        self._log.pin(made)
        return made

    def _unpin(self, command: Unpin) -> bool:
        found = any(each.name == command.name for each in self._log.savepoints)
        if found:
            self._log.unpin(command.name)
        return found


def _place(savepoint: Savepoint) -> tuple[int, str]:
    return savepoint.revision, savepoint.name
