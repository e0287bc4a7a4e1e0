"""One operation of a client under way: its next question, until it has its value."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

from ckptmesh.api import Api, Steps
from ckptmesh.errors import Error, OutcomeUnknown
from ckptmesh.messages import Command

T = TypeVar("T")


class Operation(Generic[T]):
    """One operation under way: `command` is what to ask next, until `done` with its `value`."""

    def __init__(self, api: Api, steps: Steps[T]) -> None:
        self._api = api
        self._steps = steps
        self.command: Command | None = None
        self.done = False
        self.value: Any = None
        try:
            self.command = next(steps)
        except StopIteration as end:
            self._end(end.value)

    def settle(self, result: Any, error: Error | None) -> None:
        """Go on after an answer. Raises what the operation raises.

        After `OutcomeUnknown` the operation stands still where it was: `resolve` may go on with
        what the store then says.
        """
        try:
            if error is None:
                self.command = self._steps.send(result)
                return
            self._api.localize(error)
            if isinstance(error, OutcomeUnknown):
                raise error
            self.command = self._steps.throw(error)
        except StopIteration as end:
            self._end(end.value)
        finally:
            del error  # its traceback holds this frame: a ring for the collector

    def absent(self) -> None:
        """The store said that it never happened: there is nothing to go on with."""
        self._steps.close()
        self._end(None)

    def _end(self, value: Any) -> None:
        self.command, self.done, self.value = None, True, value
