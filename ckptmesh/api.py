"""What users ask for, as commands; what the store answers, as what users hold. For both shells.

Rule 1: nothing here sends or waits. An operation is a generator: it yields a command, is sent the
        result, and returns what the user gets. `client.py` and `aio.py` drive it.
Rule 2: arguments are checked here, once, before anything travels.
Rule 3: keys carry the client's prefix on the way out and lose it on the way back, here only.
"""

from __future__ import annotations

import builtins
import math
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from enum import Enum
from typing import Any, Final, Literal, Protocol, TypeVar

from ckptmesh import messages, values
from ckptmesh.clock import Seconds, from_datetime, to_datetime, ttl_micros
from ckptmesh.entries import MANY, SMALL
from ckptmesh.errors import (
    Conflict,
    Error,
    InvalidPayload,
    LeaseLost,
    Misuse,
    SavepointNotFound,
    TooLarge,
)
from ckptmesh.limits import (
    COMMIT_MANY,
    GET_KEYS,
    INTEGER_MAX,
    INTEGER_MIN,
    POSITION_MAX,
    POSITION_MIN,
    SAVEPOINT_REASON,
    SCAN_LIMIT,
    SOURCES,
    check_key,
    check_keys,
    check_prefix,
    check_savepoint,
    pipeline_of,
)
from ckptmesh.messages import (
    SCHEMAS,
    At,
    Command,
    Compact,
    Condition,
    Delete,
    Get,
    Hello,
    History,
    Increment,
    KeepAlive,
    Mutation,
    Outcome,
    Pin,
    Pins,
    PlainPuts,
    Put,
    RevisionIs,
    Row,
    Rows,
    Scan,
    Status,
    TokenIs,
    Touch,
    Transact,
    Unpin,
    Welcome,
    tuple_of,
)
from ckptmesh.views import Checkpoint, Receipt, Receipts, Savepoint

T = TypeVar("T")
Default = TypeVar("Default")
Steps = Generator[Command, Any, T]
"""One operation: yields commands, is sent their results, returns what the user gets."""


class Blind(Enum):
    """The type of `BLIND`."""

    BLIND = "blind"

    def __repr__(self) -> str:
        return "BLIND"


BLIND: Final = Blind.BLIND
"""`expect=` left out: the commit takes whatever stands there. A worker that was replaced meanwhile
would overwrite its successor: give `expect=` wherever two could write."""

Expected = Checkpoint | Receipt | int | None
Expectation = Expected | Literal[Blind.BLIND]
Moment = Checkpoint | Receipt | Savepoint | int | datetime | str
Source = Checkpoint | Receipt | tuple[str, int]

# Of a `pop` that loses to writers. Losing this often means that something is wrong.
POP_ATTEMPTS = 10_000
LIST_PAGE = 1_000  # checkpoints asked for at a time by the lazy iterators


def seconds(timeout: Seconds | None, default: Default, what: str = "a timeout"
            ) -> float | Default:
    """A length of time in seconds; None: the default. Raises `Misuse`."""
    if timeout is None:
        return default
    found = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
    if isinstance(found, bool) or not isinstance(found, int | float) or not found >= 0:
        raise Misuse(f"{what} is a number of seconds from 0 up or a timedelta, not "
                     f"{timeout!r:.80}")
    return float(found)


class Holder(Protocol):
    """What holds a lease, as a lock does."""

    @property
    def lease(self) -> Receipt:
        """The receipt of its grant. Raises `LeaseLost` when it is lost."""


class SchemaLike(Protocol):
    """What values are checked with before they travel, as a `Schema` does."""

    @property
    def digest(self) -> str:
        """SHA-256 of what `document` says, in hex."""

    @property
    def document(self) -> Any:
        """What is kept of it in the store, for people."""

    def check(self, value: Any) -> None:
        """Refuse a value that does not fit. Raises `InvalidValue`."""


Held = Checkpoint | Receipt | Holder
"""A lease: what `guard=` takes."""


def token_of(held: Held) -> tuple[str, tuple[int, int]]:
    """(key, fencing token) of a lease. Raises `Misuse`, and what a `Holder` raises."""
    found = held if isinstance(held, Checkpoint | Receipt) else getattr(held, "lease", None)
    if not isinstance(found, Checkpoint | Receipt):
        raise Misuse(f"a lease is a lock, or the Receipt or Checkpoint of a grant, not "
                     f"{held!r:.80}")
    return found.key, found.token


class Api:
    """The operations of one client. `prefix` stands before every key on the wire ("": none)."""

    def __init__(self, prefix: str | None) -> None:
        check_prefix(prefix or "")
        self.prefix = prefix or ""
        self._front = f"{prefix}/" if prefix else ""

    # --- keys ---------------------------------------------------------------------------------

    def key(self, key: str) -> str:
        """A user's key as the store knows it. Raises `InvalidKey`, `TooLarge`."""
        check_key(key)
        if not self._front:
            return key
        full = self._front + key
        check_key(full)
        return full

    def under(self, prefix: str) -> str:
        """A user's prefix as the store knows it; "" selects everything of this client."""
        return self.key(prefix) if prefix else self.prefix

    def keys(self, keys: Sequence[str]) -> Sequence[str]:
        """Many of a user's keys as the store knows them. Raises as `key`."""
        check_keys(keys)
        if not self._front:
            return keys
        full = [self._front + key for key in keys]
        check_keys(full)
        return full

    def bare(self, key: str) -> str:
        """A key of the store as the user knows it."""
        return key.removeprefix(self._front)

    # --- what came back -----------------------------------------------------------------------

    def checkpoint(self, row: Row | None, packed: bool = False) -> Checkpoint | None:
        """A row as users hold it. Raises `InvalidPayload` when its value cannot be read."""
        return None if row is None else self._checkpoint(row, packed)

    def _checkpoint(self, row: Row, packed: bool = False) -> Checkpoint:
        version, key = row.version, self.bare(row.key)
        try:
            value = values.Packed(version.value) if packed else values.unpack(version.value)
        except InvalidPayload as damage:
            raise InvalidPayload(f"{key!r}: {damage.message}", hint=damage.hint, key=key) from None
        return Checkpoint(
            key, value, version.revision, row.epoch, version.version, version.create_revision,
            version.time,
            None if version.expires_at is None else to_datetime(version.expires_at),
            version.position, version.head,
            tuple((self.bare(source), revision) for source, revision in version.sources),
            version.lease is not None,
        )

    def receipt(self, key: str, outcome: Outcome, index: int) -> Receipt:
        """The receipt of one put of a transaction; only an answer of the store makes one."""
        return Receipt(key, outcome.revision, outcome.epoch, outcome.results[index], outcome.time)

    def localize(self, error: Error) -> Error:
        """An error as this client's user knows keys; a conflict with what stands there."""
        details = error.details
        if isinstance(details.get("key"), str):
            details["key"] = self.bare(details["key"])
        if self._front:
            error.message = error.message.replace(f"'{self._front}", "'")
            error.args = (error.message,)
        if isinstance(error, Conflict) and "row" in details:
            details["current"] = self.checkpoint(details.pop("row"))
        return error

    # --- arguments ----------------------------------------------------------------------------

    def at(self, moment: Moment | None) -> At | None:
        """A point in time travel. Raises `Misuse`, for a naive datetime too."""
        if moment is None:
            return None
        if isinstance(moment, datetime):
            return At(time=from_datetime(moment))
        if isinstance(moment, Checkpoint | Receipt | Savepoint):
            return At(revision=moment.revision)
        if isinstance(moment, bool) or not isinstance(moment, int) or moment < 0:
            raise Misuse(f"at is a revision, an aware datetime, a Checkpoint, a Receipt or a "
                         f"savepoint, not {moment!r:.80}")
        return At(revision=moment)

    def cut(self, moment: Moment) -> Steps[At | None]:
        """The same, where the moment may be a savepoint's name. Raises `SavepointNotFound` too."""
        if not isinstance(moment, str):
            return self.at(moment)
        check_savepoint(moment)
        for each in (yield from self.savepoints()):
            if each.name == moment:
                return At(revision=each.revision)
        raise SavepointNotFound(f"there is no savepoint {moment!r}", name=moment)

    def expectation(self, key: str, expect: Expected) -> RevisionIs:
        """The condition that a key is at what was read. `key` as the user knows it.

        Raises `Misuse` for a checkpoint or receipt of another key, or anything else.
        """
        if expect is None:
            return RevisionIs(self.key(key), 0)
        if isinstance(expect, Checkpoint | Receipt):
            if expect.key != key:
                raise Misuse(f"expect= is of {expect.key!r}, the commit of {key!r}",
                             hint="pass what was read from or committed to the same key")
            return RevisionIs(self.key(key), expect.revision)
        if isinstance(expect, bool) or not isinstance(expect, int) or expect < 0:
            raise Misuse(f"expect= is a Checkpoint, a Receipt, a revision or None (must not exist),"
                         f" not {expect!r:.80}")
        return RevisionIs(self.key(key), expect)

    def held(self, lease: Held) -> TokenIs:
        """The condition that a lease is still held. Raises `Misuse`."""
        key, (epoch, revision) = token_of(lease)
        return TokenIs(self.key(key), epoch, revision)

    def conditions(self, key: str, expect: Expectation, guard: Held | None
                   ) -> tuple[Condition, ...]:
        """The conditions of a single-key operation."""
        found: tuple[Condition, ...] = ()
        if expect is not BLIND:
            found += (self.expectation(key, expect),)
        if guard is not None:
            found += (self.held(guard),)
        return found

    def put(
        self, key: str, value: Any, ttl: Seconds | None = None, lease: bool = False,
        position: int | None = None, head: int | None = None, sources: Iterable[Source] = (),
        schema: SchemaLike | None = None,
    ) -> Put:
        """A put, checked. Raises `InvalidKey`, `InvalidValue`, `TooLarge`, `Misuse`."""
        if lease and ttl is None:
            raise Misuse("a lease needs a ttl", hint="commit(key, value, lease=True, ttl=30)")
        if schema is not None:
            schema.check(value)
            sources = (*sources, (schema_key(key, schema), 0))
        put: Put = tuple_of(Put, (
            self.key(key), values.pack(value), None if ttl is None else ttl_micros(ttl),
            bool(lease), _place(position, "position"), _place(head, "head"),
            () if sources == () else self._sources(sources),
        ))
        return put

    def _sources(self, sources: Iterable[Source]) -> tuple[tuple[str, int], ...]:
        if isinstance(sources, Checkpoint | Receipt | str):
            raise Misuse(f"sources= is a list of sources, not {sources!r:.80}",
                         hint="write sources=[checkpoint]")
        pairs = [(source.key, source.revision) if isinstance(source, Checkpoint | Receipt)
                 else source for source in sources]
        if len(pairs) > SOURCES:
            raise TooLarge(f"{len(pairs):,} sources; the limit is {SOURCES}",
                           size=len(pairs), limit=SOURCES)
        for pair in pairs:
            if (not isinstance(pair, tuple) or len(pair) != 2
                    or type(pair[1]) is not int or not 0 <= pair[1] <= INTEGER_MAX):
                raise Misuse(
                    f"a source is a Checkpoint, a Receipt or (key, revision), not {pair!r:.80}")
        return tuple((self.key(key), revision) for key, revision in pairs)

    def puts(self, keys: Sequence[str], what: Sequence[Any]) -> Sequence[Put]:
        """Puts of values and nothing else, checked. Raises as `put`."""
        full, packed = self.keys(keys), values.pack_all(what)
        if len(packed) >= MANY and max(map(len, packed)) <= SMALL:
            return PlainPuts(full, packed)
        return tuple(map(Put, full, packed))

    def increment_of(self, key: str, by: int, ttl: Seconds | None) -> Increment:
        """An increment, checked."""
        if type(by) is not int or not INTEGER_MIN <= by <= INTEGER_MAX:
            raise Misuse(f"increment takes an integer of 64 bits, not {by!r:.80}")
        return Increment(self.key(key), by, None if ttl is None else ttl_micros(ttl))

    def touch_of(self, key: str, ttl: Seconds | None) -> Touch:
        """A touch, checked. `ttl` None: it never expires."""
        return Touch(self.key(key), None if ttl is None else ttl_micros(ttl))

    # --- operations: reads --------------------------------------------------------------------

    def hello(self) -> Steps[Welcome]:
        """Who are you?"""
        welcome: Welcome = yield Hello()
        return welcome

    def get(self, key: str, at: Moment | None = None, packed: bool = False
            ) -> Steps[Checkpoint | None]:
        """One checkpoint."""
        rows: Rows = yield Get((self.key(key),), None if at is None else (yield from self.cut(at)))
        return self.checkpoint(rows.found[0], packed)

    def revision(self, at: Moment | None) -> Steps[int]:
        """The revision of a cut."""
        cut = None if at is None else (yield from self.cut(at))
        rows: Rows = yield Get((self.key("revision"),), cut)  # any key: the cut is told
        return rows.revision

    def value(self, key: str, default: Any, at: Moment | None) -> Steps[Any]:
        """One value."""
        found = yield from self.get(key, at)
        return default if found is None else found.value

    def get_many(self, keys: Iterable[str], at: Moment | None, packed: bool = False
                 ) -> Steps[dict[str, Checkpoint | None]]:
        """Many keys as of one revision, in the order asked."""
        asked = list(dict.fromkeys(_several(keys)))
        full = [self.key(key) for key in asked]
        cut = None if at is None else (yield from self.cut(at))
        found: list[Row | None] = []
        while len(found) < len(full):
            chunk = tuple(full[len(found):len(found) + GET_KEYS])
            rows: Rows = yield Get(chunk, cut)
            found.extend(rows.found)
            cut = At(revision=rows.revision)
        return {key: self.checkpoint(row, packed) for key, row in zip(asked, found, strict=True)}

    def scan(self, prefix: str, after: str, limit: int, at: Moment | None, packed: bool = False
             ) -> Steps[list[Checkpoint]]:
        """One page under a prefix, in key order."""
        if type(limit) is not int or not 1 <= limit <= SCAN_LIMIT:
            raise Misuse(f"limit is from 1 to {SCAN_LIMIT:,}, not {limit!r}")
        cut = None if at is None else (yield from self.cut(at))
        rows: Rows = yield Scan(self.under(prefix), self.key(after) if after else "", limit, cut)
        return [self._checkpoint(row, packed) for row in rows.found if row is not None]

    def list(self, prefix: str, at: Moment | None, packed: bool = False) -> Listing:
        """All under a prefix, page by page, as of one revision."""
        command = Scan(self.under(prefix), "", LIST_PAGE)
        if isinstance(at, str):
            return Listing(self, command, packed=packed, savepoint=at)
        return Listing(self, command._replace(at=self.at(at)), packed=packed)

    def history(self, key: str, limit: int | None, packed: bool = False) -> Listing:
        """The versions of a key, newest first, page by page."""
        if limit is not None and (type(limit) is not int or limit < 1):
            raise Misuse(f"limit is a number from 1 up, not {limit!r}")
        return Listing(self, History(self.key(key), min(limit or LIST_PAGE, LIST_PAGE)), limit,
                       packed)

    def status(self) -> Steps[dict[str, Any]]:
        """Facts about the store."""
        found: dict[str, Any] = yield Status()
        return found

    # --- operations: writes -------------------------------------------------------------------

    def commit(self, key: str, value: Any, *, expect: Expectation = BLIND,
               guard: Held | None = None, **options: Any) -> Steps[Receipt]:
        """One put under conditions; `options` as of `put`."""
        mutation = self.put(key, value, **options)
        outcome: Outcome = yield tuple_of(
            Transact, (self.conditions(key, expect, guard), (mutation,), False))
        return self.receipt(key, outcome, 0)

    def commit_many(self, puts: Mapping[str, Any] | Iterable[tuple[str, Any]],
                    expect: Mapping[str, Expected], guard: Held | None) -> Steps[Receipts]:
        """Puts with a revision for each; all of them, or none."""
        keys, what = _columns(puts)
        if len(keys) > COMMIT_MANY:
            raise TooLarge(f"{len(keys):,} commits at once; the limit is {COMMIT_MANY:,}",
                           hint="commit in several calls", size=len(keys), limit=COMMIT_MANY)
        conditions: tuple[Condition, ...] = tuple(
            self.expectation(key, expected) for key, expected in expect.items())
        if guard is not None:
            conditions += (self.held(guard),)
        mutations = self.puts(keys, what)
        if not mutations:
            return Receipts((), 0, 0, (), 0)
        outcome: Outcome = yield Transact(conditions, mutations, True)
        revision, epoch, time, versions = outcome
        return Receipts(keys, revision - len(keys) + 1, epoch, versions, time)

    def delete(self, key: str, expect: Expectation, guard: Held | None) -> Steps[bool]:
        """Whether the key existed."""
        outcome: Outcome = yield Transact(self.conditions(key, expect, guard),
                                          (Delete(self.key(key)),))
        return outcome.results[0] == 1

    def pop(self, key: str) -> Steps[Checkpoint | None]:
        """Read and delete as one step, by compare-and-set."""
        for _ in range(POP_ATTEMPTS):
            found = yield from self.get(key)
            if found is None:
                return None
            try:
                yield from self.delete(key, found, None)
            except Conflict as conflict:
                lost = conflict
            else:
                return found
        raise lost

    def touch(self, key: str, ttl: Seconds | None) -> Steps[bool]:
        """Whether the key existed."""
        outcome: Outcome = yield Transact((), (self.touch_of(key, ttl),))
        return outcome.results[0] == 1

    def increment(self, key: str, by: int, ttl: Seconds | None) -> Steps[int]:
        """The new count."""
        outcome: Outcome = yield Transact((), (self.increment_of(key, by, ttl),))
        return outcome.results[0]

    def transact(self, puts: Mapping[str, Any], deletes: Iterable[str],
                 expect: Mapping[str, Expected]) -> Steps[int]:
        """Puts and deletes under expectations, all or nothing; the revision."""
        mutations: Sequence[Mutation] = self.puts([*puts], [*puts.values()])
        gone = [Delete(self.key(key)) for key in dict.fromkeys(_several(deletes))]
        conditions = tuple(self.expectation(key, expected) for key, expected in expect.items())
        outcome: Outcome = yield Transact(conditions, (*mutations, *gone) if gone else mutations)
        return outcome.revision

    def keepalive(self, lease: Held) -> Steps[float]:
        """Seconds granted anew, counted by the holder from the moment of asking."""
        key, token = token_of(lease)
        try:
            granted: int = yield KeepAlive(self.key(key), *token)
        except LeaseLost as lost:
            lost.details.setdefault("key", key)
            raise
        return granted / 1_000_000

    def savepoint(self, name: str, at: Moment | None, reason: str) -> Steps[Savepoint]:
        """Name a revision and keep it."""
        check_savepoint(name)
        if not isinstance(reason, str) or len(reason.encode("utf-8", "replace")
                                              ) > SAVEPOINT_REASON:
            raise Misuse(f"reason= is text of at most {SAVEPOINT_REASON:,} bytes")
        cut = None if at is None else (yield from self.cut(at))
        revision = None if cut is None else cut.revision
        if cut is not None and cut.time is not None:  # whatever is read then tells the revision
            rows: Rows = yield Get((name,), cut)
            revision = rows.revision
        made: messages.Savepoint = yield Pin(name, revision, reason)
        return Savepoint(*made)

    def savepoints(self) -> Steps[builtins.list[Savepoint]]:
        """All of them, in the order of their revisions."""
        found: Sequence[messages.Savepoint] = yield Pins()
        return [Savepoint(*each) for each in found]

    def drop_savepoint(self, name: str) -> Steps[bool]:
        """Whether there was one."""
        check_savepoint(name)
        dropped: bool = yield Unpin(name)
        return dropped

    def compact(self, retain: Seconds | None) -> Steps[dict[str, Any]]:
        """The report of a compaction."""
        kept = None if retain is None else math.ceil(seconds(retain, 0.0))
        report: dict[str, Any] = yield Compact(kept)
        return report


def schema_key(key: str, schema: SchemaLike) -> str:
    """The key that a schema's document has, for whatever is in the pipeline of this key."""
    if not key:
        raise Misuse("a schema is for a pipeline or a part of one",
                     hint='contract("orders", schema=…)')
    return f"{pipeline_of(key)}{SCHEMAS}{schema.digest}"


class Listing:
    """A lazy list: `page()` is the operation that fetches the next page, until `done`."""

    def __init__(self, api: Api, command: Scan | History, limit: int | None = None,
                 packed: bool = False, savepoint: str | None = None) -> None:
        self._api, self._packed = api, packed
        self._command = command
        self._savepoint = savepoint  # whose revision is to be asked for first
        self._left = math.inf if limit is None else limit
        self.done = False

    def page(self) -> Steps[list[Checkpoint]]:
        """The next checkpoints; perhaps none."""
        if self._savepoint is not None and isinstance(self._command, Scan):
            cut = yield from self._api.cut(self._savepoint)
            self._command, self._savepoint = self._command._replace(at=cut), None
        rows: Rows = yield self._command
        found = [row for row in rows.found if row is not None]
        if rows.more and found:
            if isinstance(self._command, Scan):
                # Later pages show the same cut, whatever is committed meanwhile.
                self._command = self._command._replace(
                    after=found[-1].key, at=At(revision=rows.revision))
            else:
                self._command = self._command._replace(before=found[-1].version.revision)
        wanted = found[:int(min(self._left, len(found)))]
        page = [self._api._checkpoint(row, self._packed) for row in wanted]
        self._left -= len(page)
        self.done = not rows.more or not found or self._left <= 0
        return page


def _columns(puts: Mapping[str, Any] | Iterable[tuple[str, Any]]) -> tuple[list[str], list[Any]]:
    """Keys and values of what is to be put. Raises `Misuse`."""
    if isinstance(puts, Mapping):
        return [*puts], [*puts.values()]
    pairs: list[Any] = [*puts] if isinstance(puts, Iterable) else [puts]
    with suppress(TypeError, ValueError):
        if str not in map(type, pairs):  # a key alone, whose characters would be taken for a pair
            return [key for key, _ in pairs], [value for _, value in pairs]
    raise Misuse("commits are a mapping, or pairs of a key and a value",
                 hint="commit_many([(key, value), …])")


def _several(keys: Iterable[str]) -> Iterable[str]:
    if isinstance(keys, str):  # its characters would be taken for keys
        raise Misuse(f"several keys are asked for, not the one {keys!r:.80}",
                     hint="write them as a list: [key]")
    return keys


def _place(number: int | None, name: str) -> int | None:
    if number is not None and (type(number) is not int
                               or not POSITION_MIN <= number <= POSITION_MAX):
        raise Misuse(f"{name} is an integer of 64 bits, signed, not {number!r:.80}")
    return number
