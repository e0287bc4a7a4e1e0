"""Versions as memory holds them: packed, since a store holds millions.

Rule 1: `pack_version` is the only form of a version; equal versions are packed alike.
Rule 2: nothing that is held here for long is an object that the garbage collector walks over: it
        leaves bytes alone, and exact tuples of plain values, but never instances of a NamedTuple.

A plain version of a small value is bytes: 32 bytes of revision, creating revision, count and time,
then the value. Any other version is the exact tuple of its fields: its value, which may be large,
is not copied. Measured with a value of 100 bytes: 165 bytes instead of the 329 of a Version with
its value and integers; a full garbage collection over a million keys 0.03 s instead of 0.29 s.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, MutableMapping
from struct import Struct
from typing import Any

from ckptmesh.messages import Version, tuple_of

Packed = bytes | tuple[Any, ...]
Past = bytes | tuple[int, Packed | None]
"""What stood under a key: a plain version that came to stand at its own revision, as it is packed;
or (the revision at which this came to stand, the version or None for a deletion)."""

_HEAD = Struct("<QQQQ")  # revision, create_revision, version, time
HEAD_BYTES = _HEAD.size
pack_head, unpack_head = _HEAD.pack, _HEAD.unpack_from
revision_in = Struct("<Q").unpack_from
SMALL = 1_024  # bytes of a value: up to here a copy costs less than the objects that it saves
MANY = 8  # from so many of a kind on, columns cost less than one after the other


def pack_fields(
    value: bytes, revision: int, created: int, count: int, time: int, expires_at: int | None,
    lease: int | None, position: int | None, head: int | None,
    sources: tuple[tuple[str, int], ...],
) -> Packed:
    """The version with these fields, as it is kept."""
    if (expires_at is None and lease is None and position is None and head is None
            and not sources and len(value) <= SMALL):
        return pack_head(revision, created, count, time) + value
    return (value, revision, created, count, time, expires_at, lease, position, head, sources)


def pack_version(version: tuple[Any, ...]) -> Packed:
    """A version, or the tuple of its fields, as it is kept."""
    return pack_fields(*version)


def unpack_version(packed: Packed) -> Version:
    """The version that was packed."""
    if type(packed) is bytes:
        revision, created, count, time = unpack_head(packed)
        packed = (packed[HEAD_BYTES:], revision, created, count, time, None, None, None, None, ())
    version: Version = tuple_of(Version, packed)
    return version


def past_of(since: int, packed: Packed | None) -> Past:
    """What came to stand at a revision, as it is kept when it stands no more."""
    if isinstance(packed, bytes) and revision_in(packed)[0] == since:
        return packed
    return since, packed


def since_of(past: Past) -> int:
    """The revision at which this came to stand."""
    since: int = revision_in(past)[0] if isinstance(past, bytes) else past[0]
    return since


def version_of(past: Past) -> Packed | None:
    """The version that stood there, packed; None for a deletion."""
    return past if isinstance(past, bytes) else past[1]


def is_shown(past: Past) -> bool:
    """Whether a display of history shows this: neither a deletion nor what a touch left."""
    return isinstance(past, bytes) or (past[1] is not None and revision_of(past[1]) == past[0])


def are_all(kind: type, values: Iterable[Any]) -> bool:
    """Whether the values are of exactly this type: what a column is checked with. (Counting takes
    two thirds of the time that a set of the types takes.)"""
    types = [*map(type, values)]
    return types.count(kind) == len(types)


def revision_of(packed: Packed) -> int:
    """The revision of a packed version."""
    revision: int = unpack_head(packed)[0] if type(packed) is bytes else packed[1]
    return revision


def count_of(packed: Packed) -> int:
    """The count of writes (`version`) of a packed version."""
    count: int = unpack_head(packed)[2] if type(packed) is bytes else packed[3]
    return count


def created_and_count(old: Packed | None, revision: int) -> tuple[int, int]:
    """`create_revision` and `version` of what is put at a revision in place of `old`."""
    if old is None:
        return revision, 1
    if isinstance(old, bytes):
        _, created, count, _ = unpack_head(old)
    else:
        created, count = old[2], old[3]
    return created, count + 1


class Entries(MutableMapping[str, Version]):
    """Key → current version, over `packed`, the dict that holds them packed."""

    __slots__ = ("packed",)

    def __init__(self) -> None:
        self.packed: dict[str, Packed] = {}

    def get(self, key: str, default: Any = None) -> Any:
        """The version under a key."""
        packed = self.packed.get(key)
        return default if packed is None else unpack_version(packed)

    def __getitem__(self, key: str) -> Version:
        return unpack_version(self.packed[key])

    def __setitem__(self, key: str, version: Version) -> None:
        self.packed[key] = pack_version(version)

    def __delitem__(self, key: str) -> None:
        del self.packed[key]

    def __contains__(self, key: object) -> bool:
        return key in self.packed

    def __iter__(self) -> Iterator[str]:
        return iter(self.packed)

    def __len__(self) -> int:
        return len(self.packed)
