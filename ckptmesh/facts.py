"""What the log holds: the durable facts from which a state is made.

Rule 1: immutable tuples; what they do to a state is in `state.py`, their bytes are in `records.py`.
Rule 2: field order is format. A new field goes to the end, with a default.
Rule 3: all times are integer microseconds since 1970-01-01 UTC (see `clock.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ckptmesh.messages import PUT, Columns, Rules


class Write(NamedTuple):
    """The settled effect on one key inside a logged transaction: an increment has become a PUT of
    its result, a TTL an absolute time. Everything else about a version is derived by `apply`."""

    kind: int
    key: str
    value: bytes = b""
    expires_at: int | None = None
    lease: int | None = None
    position: int | None = None
    head: int | None = None
    sources: tuple[tuple[str, int], ...] = ()


class PlainWrites(Columns[Write]):
    """Writes that put a value of at most `entries.SMALL` bytes, and nothing else."""

    __slots__ = ()

    @staticmethod
    def element(key: str, value: bytes) -> Write:
        """What one pair stands for."""
        return Write(PUT, key, value)


class Transaction(NamedTuple):
    """An accepted transaction; takes the next revision. Its idempotency key (session, number) and
    its results stand in the same record, so that they can never part. Records with the same key,
    which then follow each other, are one request that put each of its keys with a revision of its
    own."""

    session: bytes
    number: int
    low: int
    digest: int
    time: int
    writes: Sequence[Write]
    results: tuple[int, ...]


class Expiry(NamedTuple):
    """A key's TTL or lease ended; takes the next revision."""

    time: int
    key: str


class SessionOpened(NamedTuple):
    """The store opened a session."""

    session: bytes
    time: int
    name: str


class SessionEnded(NamedTuple):
    """A session was closed or evicted."""

    session: bytes
    time: int


class EpochBegun(NamedTuple):
    """A store incarnation began; its first revision is the next one taken."""

    epoch: int
    time: int


class Sealed(NamedTuple):
    """Nothing happened; but this frame proves that the one before it was durable."""

    time: int


class TimeReserved(NamedTuple):
    """Until this time the store may tell time without logging it; a restart begins beyond it. A
    store that closes gives back what it did not use, by a lower one."""

    until: int


class SettingChanged(NamedTuple):
    """A setting that `apply` depends on."""

    name: str
    value: int


class LossSuspected(NamedTuple):
    """A client has seen (epoch, revision) acknowledged, and this store does not hold it."""

    epoch: int
    revision: int


class LossAccepted(NamedTuple):
    """An operator accepted the suspected loss."""


class ContractChanged(NamedTuple):
    """A contract was put on a prefix, or, without a rule, taken away."""

    time: int
    prefix: str
    contract: Rules


Record = (
    Transaction | Expiry | SessionOpened | SessionEnded | EpochBegun | Sealed | TimeReserved
    | SettingChanged | LossSuspected | LossAccepted | ContractChanged
)

RECORD_TYPES: tuple[type[Record], ...] = (
    Transaction, Expiry, SessionOpened, SessionEnded, EpochBegun, Sealed, TimeReserved,
    SettingChanged, LossSuspected, LossAccepted, ContractChanged,
)
"""Index = the tag in the log. Only ever append."""

TAKES_REVISION: tuple[type[Record], ...] = (Transaction, Expiry)


class Puts(NamedTuple):
    """Plain puts: transactions of one put each, which has a key and a small value and nothing else;
    by columns. In the log they are a record each."""

    sessions: tuple[bytes, ...]
    numbers: tuple[int, ...]
    lows: tuple[int, ...]
    digests: tuple[int, ...]
    times: tuple[int, ...]
    keys: Sequence[str]
    values: Sequence[bytes]
    results: Sequence[tuple[int, ...]]
