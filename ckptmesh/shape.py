"""The shape of a packed value, checked before any object is made of it.

Rule 1: nothing is unpacked here: bytes are walked, so that a refusal costs no memory.
Rule 2: what passes is one whole msgpack value within `VALUE_DEPTH` and `VALUE_ITEMS`, with string
        keys, without NaN, with the extension codes of `values.py` alone.
"""

from __future__ import annotations

from struct import Struct
from typing import NoReturn

from ckptmesh.errors import InvalidPayload
from ckptmesh.limits import VALUE_DEPTH, VALUE_ITEMS

DATETIME, DATE, TIME, DECIMAL, UUID_CODE, TUPLE, SET, FROZENSET, ENUM, DATACLASS = range(1, 11)
"""The extension codes; their table is at the head of `values.py`."""

HOLDERS = frozenset((TUPLE, SET, FROZENSET, ENUM, DATACLASS))
"""Those whose payload is msgpack again."""
_CODES = frozenset(range(DATETIME, DATACLASS + 1))

_SCALAR, _BYTES, _TEXT, _ARRAY, _MAP, _EXT, _FLOAT, _NEVER = range(8)
_NUMBERS = {1: Struct(">B").unpack_from, 2: Struct(">H").unpack_from, 4: Struct(">I").unpack_from}
_DOUBLE, _SINGLE = Struct(">d").unpack_from, Struct(">f").unpack_from


def damaged(reason: str) -> NoReturn:
    """Raise `InvalidPayload`, saying why."""
    raise InvalidPayload(f"the stored bytes are not a value: {reason}")


def _heads() -> list[tuple[int, int, int]]:
    """For each first byte: (kind, width of the length that follows, length known from the byte)."""
    heads = [(_SCALAR, 0, 0)] * 256
    for low in range(16):
        heads[0x80 + low] = (_MAP, 0, low)
        heads[0x90 + low] = (_ARRAY, 0, low)
    for low in range(32):
        heads[0xA0 + low] = (_TEXT, 0, low)
    heads[0xC1] = (_NEVER, 0, 0)
    for power in range(3):
        heads[0xC4 + power] = (_BYTES, 1 << power, 0)
        heads[0xC7 + power] = (_EXT, 1 << power, 0)
        heads[0xD9 + power] = (_TEXT, 1 << power, 0)
    heads[0xCA], heads[0xCB] = (_FLOAT, 0, 4), (_FLOAT, 0, 8)
    for power in range(4):
        heads[0xCC + power] = heads[0xD0 + power] = (_SCALAR, 0, 1 << power)
    for power in range(5):
        heads[0xD4 + power] = (_EXT, 0, 1 << power)
    for power in range(2):
        heads[0xDC + power] = (_ARRAY, 2 << power, 0)
        heads[0xDE + power] = (_MAP, 2 << power, 0)
    return heads


_HEADS = _heads()


def check_shape(data: bytes) -> None:
    """Walk packed bytes without making objects: one whole value, within depth and items. Raises
    `InvalidPayload`.

    4 MiB of empty maps are 289 MB once unpacked, so this comes first. A holder's frame on the
    stack: [items to come, whether it is a map, where its payload ends (-1: no payload)].
    """
    at, items, end = 0, 0, len(data)
    stack: list[list[int]] = [[1, 0, end]]
    while stack:
        frame = stack[-1]
        if frame[0] == 0:
            if frame[2] not in (-1, at):
                damaged(f"bytes are left over at {at}")
            stack.pop()
            continue
        if at >= end:
            damaged(f"it ends early, at {at}")
        kind, width, size = _HEADS[data[at]]
        items += 1
        if frame[1] and frame[0] % 2 == 0 and kind != _TEXT:
            damaged(f"a map key is not a string, at {at}")
        frame[0] -= 1
        at += 1
        if width:
            if at + width > end:
                damaged(f"it ends early, at {at}")
            size = _NUMBERS[width](data, at)[0]
            at += width
        if kind in (_ARRAY, _MAP):
            stack.append([size * (kind - _ARRAY + 1), kind == _MAP, -1])
        elif kind == _EXT:
            at = _check_ext(data, at, size, stack)
        else:
            _check_leaf(data, at, size, kind)
            at += size
        if at > end:
            damaged(f"it ends early, at {end}")
        # A dataclass takes three frames for its one level; an Enum member at the bottom, two.
        if len(stack) > 3 * VALUE_DEPTH + 3:
            damaged(f"nested deeper than {VALUE_DEPTH} levels")
        if items > VALUE_ITEMS:
            damaged(f"more than {VALUE_ITEMS:,} items")


def _check_leaf(data: bytes, at: int, size: int, kind: int) -> None:
    if kind == _NEVER:
        damaged(f"a byte that msgpack never uses, at {at - 1}")
    if kind == _FLOAT and at + size <= len(data):
        number = (_DOUBLE if size == 8 else _SINGLE)(data, at)[0]
        if number != number:
            damaged(f"NaN, at {at - 1}")


def _check_ext(data: bytes, at: int, size: int, stack: list[list[int]]) -> int:
    """Where to go on: inside the payload of a holder, after that of anything else."""
    if at >= len(data) or data[at] not in _CODES:
        damaged(f"an unknown extension code, at {at} (written by a later ckptmesh?)")
    if data[at] not in HOLDERS:
        return at + 1 + size
    stack.append([1, 0, at + 1 + size])
    return at + 1
