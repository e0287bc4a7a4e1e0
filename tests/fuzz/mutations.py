"""Random changes of inputs, seeded: a small fuzzer for where atheris is not installed."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

_BYTES = bytes((0x00, 0x01, 0x7F, 0x80, 0x90, 0x91, 0xA0, 0xC0, 0xC1, 0xC4, 0xC7, 0xCF, 0xD4, 0xDC,
                0xDD, 0xDE, 0xDF, 0xFF))  # heads of msgpack, ends of ranges


def mutated(chance: Random, corpus: Sequence[bytes]) -> bytes:
    """An input of the corpus with one to four changes."""
    data = bytearray(chance.choice(corpus))
    for _ in range(chance.randint(1, 4)):
        _change(chance, data, corpus)
    return bytes(data)


def _change(chance: Random, data: bytearray, corpus: Sequence[bytes]) -> None:
    at = chance.randint(0, len(data))
    match chance.randrange(7):
        case 0 if at < len(data):
            data[at] ^= 1 << chance.randrange(8)
        case 1 if at < len(data):
            data[at] = chance.choice(_BYTES)
        case 2:
            data[at:at] = chance.randbytes(chance.randint(1, 4))
        case 3:
            del data[at : at + chance.randint(1, 8)]
        case 4:
            data[at:at] = data[at : at + chance.randint(1, 32)]
        case 5:
            del data[at:]
        case 6:
            other = chance.choice(corpus)
            data[at:] = other[chance.randint(0, len(other)) :]
