"""What users hold: checkpoints, receipts, savepoints, events, marks.

Rule 1: immutable values; nothing here asks a store anything.
Rule 2: a `Receipt` is made from a store's reply alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple, overload

from ckptmesh.clock import to_datetime
from ckptmesh.errors import Misuse
from ckptmesh.messages import LAST_INDEX, REWINDS


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Saved progress under a key: the value with its revisions, times and position.

    `revision` is what `expect=` compares; `token` is the fencing token when it is a lease.
    """

    key: str
    value: Any
    revision: int
    epoch: int
    version: int
    create_revision: int
    micros: int
    expires_at: datetime | None = None
    position: int | None = None
    head: int | None = None
    sources: tuple[tuple[str, int], ...] = ()
    is_lease: bool = False

    @property
    def time(self) -> datetime:
        """When it was committed: store time, aware, UTC."""
        return to_datetime(self.micros)

    @property
    def rewind(self) -> str | None:
        """The key of the record of the rewind that wrote it; None where no rewind did."""
        return next((key for key, _ in self.sources if REWINDS in key), None)

    @property
    def token(self) -> tuple[int, int]:
        """(epoch, revision): grows with every grant, over restarts and restores too."""
        return (self.epoch, self.revision)


@dataclass(frozen=True, slots=True)
class Receipt:
    """Proof that a commit is on disk: only the store's reply makes one.

    `revision` is 0 < r; `version` counts the writes of this key since it was created.
    """

    key: str
    revision: int
    epoch: int
    version: int
    micros: int

    @property
    def time(self) -> datetime:
        """When it was committed: store time, aware, UTC."""
        return to_datetime(self.micros)

    @property
    def token(self) -> tuple[int, int]:
        """(epoch, revision): the fencing token, when the commit granted a lease."""
        return (self.epoch, self.revision)


@dataclass(frozen=True, slots=True)
class Savepoint:
    """A named revision of the whole store, kept until it is dropped. `at=` takes it, or its name.
    `micros`: when it was named."""

    name: str
    revision: int
    micros: int
    reason: str = ""

    @property
    def time(self) -> datetime:
        """When it was named: store time, aware, UTC."""
        return to_datetime(self.micros)


class Receipts(Sequence[Receipt]):
    """The receipts of commits that were made together, in their order; each is made when it is
    asked for."""

    __slots__ = ("_epoch", "_first", "_keys", "_micros", "_versions")

    def __init__(self, keys: Sequence[str], first: int, epoch: int, versions: Sequence[int],
                 micros: int) -> None:
        self._keys, self._first, self._epoch = keys, first, epoch
        self._versions, self._micros = versions, micros

    def __len__(self) -> int:
        return len(self._keys)

    @overload
    def __getitem__(self, at: int) -> Receipt: ...

    @overload
    def __getitem__(self, at: slice) -> list[Receipt]: ...

    def __getitem__(self, at: int | slice) -> Receipt | list[Receipt]:
        if isinstance(at, slice):
            return [self[each] for each in range(*at.indices(len(self)))]
        place = range(len(self))[at]
        return Receipt(self._keys[place], self._first + place, self._epoch, self._versions[place],
                       self._micros)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Receipts | list) and [*self] == [*other]

    __hash__ = None  # type: ignore[assignment]  # as lists have none

    def __repr__(self) -> str:
        return f"Receipts({[*self]!r})"


@dataclass(frozen=True, slots=True)
class Contract:
    """What the store demands of whatever is committed under a prefix ("": everything); a rule asks
    nothing where it is False, None or "". `version` counts how often it was changed.

    `monotonic`: a position never falls; `required`: each commit has one; `max_step`: it grows by at
    most so much; `max_bytes`: of a packed value; `ttl`: seconds, given to what has none; `history`:
    versions kept for display; `schema`: the digest of the schema of values, SHA-256 in hex.
    """

    prefix: str
    version: int
    micros: int
    monotonic: bool = False
    required: bool = False
    max_step: int | None = None
    max_bytes: int | None = None
    ttl: float | None = None
    history: int | None = None
    schema: str = ""

    @property
    def time(self) -> datetime:
        """When it was changed last: store time, aware, UTC."""
        return to_datetime(self.micros)


class Mark(NamedTuple):
    """A place in the store's order: up to event `index` of `revision`. What `watch(since=…)`
    takes and what each event carries."""

    revision: int
    index: int = LAST_INDEX  # type: ignore[assignment]  # hides tuple.index, which nobody calls


@dataclass(frozen=True, slots=True)
class Event:
    """One change as a watcher sees it. `kind` is "put", "rewind" (a put by a rewind), "delete",
    "expire" or "touch"; `checkpoint` is None where the key is gone; `resume` goes on after it."""

    kind: str
    key: str
    checkpoint: Checkpoint | None
    revision: int
    epoch: int
    micros: int
    resume: Mark

    @property
    def time(self) -> datetime:
        """When it was committed: store time, aware, UTC."""
        return to_datetime(self.micros)


Since = Receipt | Checkpoint | Event | Mark | int | None
"""Where a watch begins: after what was committed or read, an event, a mark or a revision; None:
from now on."""


def mark_of(since: Receipt | Checkpoint | Event | Mark | int) -> Mark:
    """The place that `since=` names. Raises `Misuse`."""
    if isinstance(since, Mark):
        return since
    if isinstance(since, Event):
        return since.resume
    if isinstance(since, Receipt | Checkpoint):
        return Mark(since.revision)
    if isinstance(since, int) and not isinstance(since, bool) and since >= 0:
        return Mark(since)
    raise Misuse(f"since is a Receipt, Checkpoint, Event, Mark or revision, not {since!r:.80}")
