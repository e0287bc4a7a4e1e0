"""Bytes as choices: what a fuzzer mutates decides what a target builds.

Rule: the same bytes give the same choices everywhere, with atheris or without. Bytes that have run
out are zeroes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

T = TypeVar("T")


class Taker:
    """Takes choices from the front of some bytes."""

    __slots__ = ("_at", "_data")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        return self._at < len(self._data)

    def byte(self) -> int:
        """The next byte."""
        at = self._at
        self._at = at + 1
        return self._data[at] if at < len(self._data) else 0

    def pick(self, choices: Sequence[T]) -> T:
        """One of these."""
        return choices[self.byte() % len(choices)]

    def take(self, size: int) -> bytes:
        """The next bytes, fewer where the end comes first."""
        at = self._at
        self._at = at + size
        return self._data[at : self._at]

    def counted(self, width: int = 1) -> bytes:
        """Bytes whose length comes first, in `width` bytes."""
        return self.take(int.from_bytes(self.take(width), "big"))

    def rest(self) -> bytes:
        """All that is left."""
        return self.take(len(self._data))


def counted(data: bytes, width: int = 1) -> bytes:
    """What `Taker.counted` takes as these bytes."""
    return len(data).to_bytes(width, "big") + data


def refused(target: Any, *expected: type[BaseException]) -> Any:
    """What `target()` returns, or None where it raised an error that its page promises."""
    try:
        return target()
    except expected:
        return None
