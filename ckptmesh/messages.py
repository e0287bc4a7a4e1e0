"""The nouns: what clients ask for, what the store answers and publishes.

Rule 1: every message is an immutable tuple of plain values; nothing here does anything.
Rule 2: values are opaque packed bytes here; what users hold is in `views.py`.
Rule 3: all times are integer microseconds since 1970-01-01 UTC (see `clock.py`).

Field order is format: the wire writes these tuples as msgpack arrays in this order.
A new field goes to the end, with a default.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar, overload

from ckptmesh.errors import Error

T = TypeVar("T")

tuple_of: Callable[..., Any] = tuple.__new__
"""`tuple_of(Version, fields)`: the NamedTuple of these fields, all of them, in a fifth of the time
that its own Python-level constructor takes. For what is made for each request."""

REWINDS = "/_rewinds/"
"""In the key of the record that a rewind leaves. A put that names this record among its sources, in
the transaction that writes it, goes back to an earlier value and is not held to contracts."""
SCHEMAS = "/_schemas/"
"""In the key of a schema, before its digest. A put names the schema of its value as a source."""

# --- what a transaction asks ------------------------------------------------------------------


class RevisionIs(NamedTuple):
    """Holds when the key's current revision is this one; 0: when the key does not exist."""

    key: str
    revision: int


class TokenIs(NamedTuple):
    """Holds when the key is a lease held under exactly this fencing token."""

    key: str
    epoch: int
    revision: int


class Exists(NamedTuple):
    """Holds when the key exists."""

    key: str


class Unchanged(NamedTuple):
    """Holds when no key under the prefix was put, deleted or expired after revision `since`."""

    prefix: str
    since: int


Condition = RevisionIs | TokenIs | Exists | Unchanged


class Put(NamedTuple):
    """Write a value. `ttl` in microseconds; `lease`: the TTL is a lease's. `sources`: (key,
    revision) pairs that this commit was made from."""

    key: str
    value: bytes
    ttl: int | None = None
    lease: bool = False
    position: int | None = None
    head: int | None = None
    sources: tuple[tuple[str, int], ...] = ()


class Delete(NamedTuple):
    """Remove a key; nothing happens when it does not exist."""

    key: str


class Touch(NamedTuple):
    """Set a new expiry, `ttl` microseconds from now (None: never); value, revision, version and
    history stay. Nothing happens when the key does not exist."""

    key: str
    ttl: int | None


class Increment(NamedTuple):
    """Add `by` to a packed integer (a missing key counts from 0). A `ttl` is set anew; without
    one an existing expiry stays."""

    key: str
    by: int
    ttl: int | None = None


Mutation = Put | Delete | Touch | Increment


class Columns(Sequence[T]):
    """Pairs of a key and a small value, by columns, which read as a sequence of what each pair
    stands for. Thousands cost little this way, as long as nobody asks for one of them."""

    __slots__ = ("keys", "values")

    def __init__(self, keys: Sequence[str], values: Sequence[bytes]) -> None:
        self.keys = keys
        self.values = values

    @staticmethod
    def element(key: str, value: bytes) -> T:
        """What one pair stands for."""
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self.keys)

    @overload
    def __getitem__(self, at: int) -> T: ...

    @overload
    def __getitem__(self, at: slice) -> tuple[T, ...]: ...

    def __getitem__(self, at: int | slice) -> T | tuple[T, ...]:
        if isinstance(at, slice):
            return tuple(self)[at]
        return self.element(self.keys[at], self.values[at])

    def __iter__(self) -> Iterator[T]:
        return map(self.element, self.keys, self.values)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, tuple | Columns) and tuple(self) == tuple(other)

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return repr(tuple(self))


class PlainPuts(Columns[Put]):
    """Puts of a key and a value of at most `entries.SMALL` bytes, and of nothing else."""

    __slots__ = ()

    @staticmethod
    def element(key: str, value: bytes) -> Put:
        """What one pair stands for."""
        return Put(key, value)


# --- commands ---------------------------------------------------------------------------------


class At(NamedTuple):
    """A point in time travel: exactly one of revision and time (microseconds)."""

    revision: int | None = None
    time: int | None = None


class Hello(NamedTuple):
    """Who are you? Answered with `Welcome`; needs no session, changes nothing."""


class Open(NamedTuple):
    """Open a session, presenting the (uuid, epoch, revision) last seen acknowledged, if any."""

    name: str
    uuid: bytes = b""
    epoch: int = 0
    revision: int = 0


class Close(NamedTuple):
    """End the session that the request carries."""


class KeepAlive(NamedTuple):
    """Move the deadline of a held lease by its full TTL. Not logged, takes no revision."""

    key: str
    epoch: int
    revision: int


class Transact(NamedTuple):
    """All conditions, then all mutations, or nothing: one revision, one sync. With `each` the
    mutations are puts, and each of them takes a revision of its own, in their order."""

    conditions: tuple[Condition, ...]
    mutations: Sequence[Mutation]
    each: bool = False


class Get(NamedTuple):
    """One cut over some keys; `start` is the index of the first key wanted of a later page."""

    keys: tuple[str, ...]
    at: At | None = None
    start: int = 0


class Scan(NamedTuple):
    """Checkpoints under a prefix in key order, those after `after`, at most `limit`."""

    prefix: str
    after: str = ""
    limit: int = 1_000
    at: At | None = None


class History(NamedTuple):
    """Versions of a key, newest first, those with a revision below `before` (0: all)."""

    key: str
    limit: int = 100
    before: int = 0


LAST_INDEX = 2**31 - 1
"""The index that stands for all of a revision."""


class Since(NamedTuple):
    """Events after the mark (revision, index), of one pipeline or ("") of all. `index` is the
    index of the last event of `revision` already had; -1: none, `LAST_INDEX`: all of them."""

    revision: int
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody calls
    pipeline: str = ""
    limit: int = 1_000


class Status(NamedTuple):
    """Facts about the store, as a map."""


class Find(NamedTuple):
    """What became of request `number` of `session`, sent when the head was `after`? To be asked
    only in that session, with `low` beyond the number, so that the answer is final."""

    session: bytes
    number: int
    after: int


class Compact(NamedTuple):
    """Make a snapshot now and drop what it covers; `retain` in seconds overrides the setting for
    this once (None: the setting). The reply comes when it is done."""

    retain: int | None = None


class Setting(NamedTuple):
    """Change a setting that `apply` depends on. Logged."""

    name: str
    value: int


class Rules(NamedTuple):
    """Rules for what is put under a prefix; each asks nothing where it is False, None or "".

    `monotonic`: a position never falls, nor goes missing again; `required`: each commit has one;
    `max_step`: it grows by at most so much; `max_bytes`: of a packed value; `ttl`: microseconds,
    given to what has none; `history`: versions kept for display; `schema`: the digest of the schema
    that a commit has to name as a source, in hex.
    """

    monotonic: bool = False
    required: bool = False
    max_step: int | None = None
    max_bytes: int | None = None
    ttl: int | None = None
    history: int | None = None
    schema: str = ""


class Contracted(NamedTuple):
    """A contract as it stands on a prefix ("": everything), changed `version` times, at `time` the
    last time."""

    prefix: str
    contract: Rules
    version: int
    time: int


class SetContract(NamedTuple):
    """Put a contract on a prefix; one without rules takes it away. Logged, takes no revision.
    Answered with the contract's version (0: none)."""

    prefix: str
    contract: Rules


class ListContracts(NamedTuple):
    """Answered with all contracts that stand, as `Contracted`s, by prefix."""


class AcceptLoss(NamedTuple):
    """End the read-only state that a `DataLoss` began. Logged."""


class Pin(NamedTuple):
    """Name a revision (None: the head), and keep on disk what it takes to read it, beyond `retain`,
    until it is dropped. `reason` is for people."""

    name: str
    revision: int | None = None
    reason: str = ""


class Unpin(NamedTuple):
    """Drop a savepoint; whether there was one of this name."""

    name: str


class Pins(NamedTuple):
    """All savepoints."""


Command = (
    Hello | Open | Close | KeepAlive | Transact | Get | Scan | History | Since | Status | Find
    | Compact | Setting | AcceptLoss | SetContract | ListContracts
    | Pin | Unpin | Pins
)

# --- requests and replies ---------------------------------------------------------------------


class Request(NamedTuple):
    """One copy of a request as it arrived. `session` is b"" where none is needed; `digest` covers
    the command alone, so that every copy of a request has the same."""

    session: bytes
    number: int
    low: int
    uuid: bytes
    epoch: int
    command: Command
    digest: int = 0
    size: int = 0
    bundled: bool = False  # it came in one message with others, and may be answered likewise


class Version(NamedTuple):
    """One state of one key, as the store keeps it and as replies and events carry it.

    `revision` is the compare-and-set token, `version` counts the writes since `create_revision`.
    `expires_at` is absolute; `lease` is the full TTL of a lease, None for plain data.
    """

    value: bytes
    revision: int
    create_revision: int
    version: int
    time: int
    expires_at: int | None = None
    lease: int | None = None
    position: int | None = None
    head: int | None = None
    sources: tuple[tuple[str, int], ...] = ()


class Row(NamedTuple):
    """A version with its key and the epoch of its revision: what a reply carries."""

    key: str
    epoch: int
    version: Version


class Outcome(NamedTuple):
    """What an accepted transaction did. `results`: put → version count; delete and touch → 1 when
    the key existed, else 0; increment → the new integer. `revision` is the head where nothing
    had to change, and the last one where each mutation took its own."""

    revision: int
    epoch: int
    time: int
    results: tuple[int, ...]


class Welcome(NamedTuple):
    """Answer to `Hello`. `publish` is the address to subscribe at, "" where there is none."""

    uuid: bytes
    epoch: int
    revision: int
    floor: int
    time: int
    publish: str
    release: str


class Opened(NamedTuple):
    """Answer to `Open`."""

    session: bytes
    epoch: int
    revision: int


class Savepoint(NamedTuple):
    """A named revision that is kept until it is dropped: answer to `Pin`, and, in order of their
    revisions, to `Pins`. `made_at`: when it was named."""

    name: str
    revision: int
    made_at: int = 0
    reason: str = ""


class Rows(NamedTuple):
    """A page: `found` holds a Row or None per key (get), or Rows (scan, history). `revision` is
    the cut, to be passed as `at` for the next page; `more` tells whether there is one."""

    revision: int
    time: int
    found: tuple[Row | None, ...]
    more: bool


PUT, DELETE, EXPIRE, TOUCH = 0, 1, 2, 3
KINDS = ("put", "delete", "expire", "touch")


class Change(NamedTuple):
    """What happened to one key: `kind` is PUT, DELETE, EXPIRE or TOUCH; `version` is None where the
    key is gone. `index` counts within the revision, over all pipelines."""

    index: int  # type: ignore[assignment]  # likewise
    kind: int
    key: str
    version: Version | None


class Commit(NamedTuple):
    """All changes of one revision: an element of the event ring, and of a reply to `Since`.
    `session` and `number` name the request that made it (b"", 0: an expiry), `results` are those
    of its `Outcome`."""

    revision: int
    epoch: int
    time: int
    changes: tuple[Change, ...]
    session: bytes = b""
    number: int = 0
    results: tuple[int, ...] = ()


class Events(NamedTuple):
    """Answer to `Since`: whole revisions in order; all that there is up to `complete_to`."""

    commits: tuple[Commit, ...]
    complete_to: int
    more: bool


class Reply(NamedTuple):
    """What goes back: the echo of session and number, the store's epoch, and exactly one of a
    result (an answer tuple, an int, or a map for `Status`) and an error."""

    session: bytes
    number: int
    epoch: int
    result: Any = None
    error: Error | None = None


# --- publications -----------------------------------------------------------------------------


class Publication(NamedTuple):
    """The changes of one revision in one pipeline. `previous` is the pipeline's published revision
    before this one, `store_previous` the store's: a watcher that has all up to there has missed
    nothing. A revision over several pipelines has `parts` of them, `part` counts from 0."""

    pipeline: str
    uuid: bytes
    previous: int
    store_previous: int
    part: int
    parts: int
    commit: Commit


class Heartbeat(NamedTuple):
    """Head of the store, once a second. `recent` holds (pipeline, last revision) of those that
    committed after `previous` (the head of the heartbeat before), None when too many did."""

    uuid: bytes
    epoch: int
    revision: int
    time: int
    previous: int
    recent: tuple[tuple[str, int], ...] | None


class BrokerBeat(NamedTuple):
    """The broker's own health, once a second, on the publication path. `stores` counts connected
    stores; `clients` connected peers of the request address."""

    pid: int
    release: str
    stores: int
    clients: int
    uptime: float
