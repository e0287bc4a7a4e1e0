"""Target: users' values, as any client may have written them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from ckptmesh.errors import InvalidPayload, InvalidValue, TooLarge
from ckptmesh.values import pack, register, unpack


@register
class FuzzColour(Enum):
    """An Enum that values may hold."""

    RED = 1
    BLUE = 2


@register
@dataclass(frozen=True)
class FuzzPoint:
    """A dataclass that values may hold."""

    x: object
    y: object = 0


def values(data: bytes) -> None:
    """Stored bytes: a value, or `InvalidPayload` or `TooLarge`. A value that can be packed comes
    back equal, and its bytes stay the same from then on."""
    try:
        value = unpack(data)
    except (InvalidPayload, TooLarge):
        return
    try:
        packed = pack(value)
    except (InvalidValue, TooLarge):  # deeper than what is written, though not than what is read
        return
    again = unpack(packed)
    assert again == value
    assert type(again) is type(value)
    assert pack(again) == packed
