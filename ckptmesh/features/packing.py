"""Columns of many numbers or texts as few bytes: what features keep that counts by the million.

Each item is told by what differs from the one before, as msgpack: neighbouring numbers take one to
three bytes, texts with a common beginning only their end. (Delta and front coding, as inverted
indexes use them: Witten, Moffat and Bell, Managing Gigabytes, 1999.)

A reader gets `ValueError` or `TypeError` for bytes that were not made here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgpack

_HALF, _WHOLE = 2**63, 2**64


def pack_integers(numbers: Sequence[int]) -> bytes:
    """Integers of 64 bits, signed, in any order; smallest where they are sorted."""
    before, deltas = 0, []
    for number in numbers:
        deltas.append((number - before + _HALF) % _WHOLE - _HALF)  # wraps round: 64 bits are enough
        before = number
    packed: bytes = msgpack.packb(deltas)
    return packed


def unpack_integers(data: bytes) -> list[int]:
    """What `pack_integers` was given."""
    before, numbers = 0, []
    for delta in _list(data):
        if type(delta) is not int:
            raise ValueError("not a column of numbers")
        before = (before + delta + _HALF) % _WHOLE - _HALF
        numbers.append(before)
    return numbers


def pack_texts(texts: Sequence[bytes]) -> bytes:
    """Strings of bytes in any order; smallest where they are sorted."""
    before, parts = b"", list[int | bytes]()
    for text in texts:
        shared = _shared(before, text)
        parts += (shared, text[shared:])
        before = text
    packed: bytes = msgpack.packb(parts)
    return packed


def unpack_texts(data: bytes) -> list[bytes]:
    """What `pack_texts` was given."""
    before, texts = b"", []
    parts: Iterator[Any] = iter(_list(data))
    for shared, rest in zip(parts, parts, strict=True):
        if type(shared) is not int or type(rest) is not bytes or not 0 <= shared <= len(before):
            raise ValueError("not a column of texts")
        before = before[:shared] + rest
        texts.append(before)
    return texts


def _shared(one: bytes, other: bytes) -> int:
    count = 0
    for left, right in zip(one, other, strict=False):
        if left != right:
            break
        count += 1
    return count


def _list(data: bytes) -> list[Any]:
    found = msgpack.unpackb(data)
    if type(found) is not list:
        raise ValueError("not a column")
    return found
