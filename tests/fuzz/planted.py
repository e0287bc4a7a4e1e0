"""Targets that break their promises, to show that the fuzzer tells of it."""

from __future__ import annotations

import time

_hoard: list[bytearray] = []


def crashes(data: bytes) -> None:
    """Raises for some inputs, as a decoder that forgot a case."""
    if data[:1] == b"\x91":
        {}[data[0]]


def hangs(data: bytes) -> None:
    """Never returns for some inputs."""
    while data[:1] == b"\x91":
        time.sleep(0.01)


def hoards(data: bytes) -> None:
    """Keeps more and more memory."""
    if data:
        _hoard.append(bytearray(b"x" * (8 << 20)))
