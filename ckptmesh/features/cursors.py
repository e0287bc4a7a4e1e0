"""A place in a source that is loaded again and again, safe where values are equal or come late.

    with mesh.cursor("orders", by="updated_at", id="id") as cur:
        load(cur.new(fetch(since=cur.floor)))         # WHERE updated_at >= :since

A row is known by its value and its id together: a row that was changed has another value and is
taken again. What is kept, and why nothing is lost or repeated, stands in `taken.py`.

Rule 1: progress is committed by compare-and-set against what was read on entering: of two copies of
        one job the slower gets `Conflict`, and its progress is dropped.
Rule 2: an exception leaves progress as it was. So the block stores what it takes before it ends, in
        a way that bears repeating: a crash between the two repeats the batch.
Rule 3: a batch in any order is committed only when it was read to its end, since a row that was not
        read could lie below the highest. With `ordered=True` rows ascend, which is checked, and
        what was read so far may be committed.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, Generic, TypeVar

from ckptmesh.api import Held
from ckptmesh.errors import Misuse
from ckptmesh.features.taken import Taken
from ckptmesh.flows import Flow, run, run_async
from ckptmesh.limits import check_key
from ckptmesh.views import Checkpoint, Receipt

Row = TypeVar("Row")
Field = str | Callable[[Any], Any]
"""A name in a row, which is a mapping or an object, or what takes it out of one."""

_FEW = 10_000  # rows remembered before it is worth a sweep to forget some


def _getter(field: Field, what: str) -> Callable[[Any], Any]:
    if callable(field):
        return field
    if not isinstance(field, str):
        raise Misuse(f"{what}= is a name or a function of a row, not {field!r:.80}")
    name = field
    # Rows of most database drivers have keys() without being a Mapping.
    return lambda row: row[name] if hasattr(row, "keys") else getattr(row, name)


class _Batch:
    """One iterable of rows on its way through a cursor."""

    def __init__(self, core: _Core) -> None:
        self._core, self._taken = core, core.taken
        self._last: Any = None
        core.unread += 1

    def takes(self, row: Any) -> bool:
        """Whether the row is new; it counts as taken from then on."""
        core, taken = self._core, self._taken
        if taken is not core.taken:
            raise Misuse(f"the cursor {core.key!r} was left while its rows were read")
        value, found = taken.value_of(core.by(row)), taken.id_of(core.id(row))
        if core.ordered:
            self._ascends(value)
        if taken.below(value):
            if core.strict:
                raise taken.late_error(value)
            core.skipped += 1
            return False
        if core.ordered and len(taken) >= core.sweep_at:
            taken.settle()
            core.sweep_at = 2 * len(taken) + _FEW
        return taken.take(value, found)

    def _ascends(self, value: Any) -> None:
        if self._last is not None and value < self._last:
            raise Misuse(f"{self._core.key!r}: rows do not ascend, as ordered=True promises",
                         hint="ORDER BY the value, or leave ordered= out")
        self._last = value

    def end(self) -> None:
        """All was read."""
        self._core.unread -= 1


class _Core:
    """What a cursor does, as flows."""

    def __init__(self, store: Any, key: str, by: Field, id: Field, late: Any, on_late: str,
                 ordered: bool, guard: Held | None) -> None:
        check_key(key)
        if on_late not in ("skip", "raise"):
            raise Misuse(f'on_late is "skip" or "raise", not {on_late!r:.80}')
        self._store, self.key, self._late, self._guard = store, key, late, guard
        self.by, self.id = _getter(by, "by"), _getter(id, "id")
        self.strict, self.ordered = on_late == "raise", ordered
        self._taken: Taken | None = None
        self._stands: Checkpoint | Receipt | None = None
        self.pending = False  # something is to be committed on leaving
        self.unread = self.skipped = self.sweep_at = 0

    @property
    def taken(self) -> Taken:
        """The progress of this block. Raises `Misuse` outside one."""
        if self._taken is None:
            raise Misuse(f"the cursor {self.key!r} is not open", hint="with mesh.cursor(…) as cur:")
        return self._taken

    def open(self) -> Flow[None]:
        """Read where it stands."""
        self.close()
        found: Checkpoint | None = yield lambda: self._store.get(self.key)
        taken = Taken(self.key, self._late)
        if found is not None:
            taken.load(found.value)
        self._taken, self._stands = taken, found
        self.pending, self.unread, self.skipped = True, 0, 0
        self.sweep_at = 2 * len(taken) + _FEW

    def commit(self) -> Flow[Receipt]:
        """Write what was taken."""
        taken = self.taken
        if self.unread and not self.ordered:
            raise Misuse(
                f"{self.key!r}: rows given to new() were not read to their end, so some below the "
                "highest may be left", hint="read them all; or, where they come in ascending "
                "order, say ordered=True: then the rest comes next time")
        taken.settle()
        value, place = taken.dump(), taken.position
        store, expect = self._store, self._stands
        options = {} if self._guard is None else {"guard": self._guard}
        write = store.commit if options else store.put  # which every StateBackend has
        receipt: Receipt = yield lambda: write(self.key, value, expect=expect, position=place,
                                               **options)
        self._stands, self.pending = receipt, False
        return receipt

    def leave(self, failed: bool) -> Flow[None]:
        """Commit what is left, unless the block failed."""
        try:
            if not failed and self.pending:
                yield from self.commit()
        finally:
            self.close()

    def close(self) -> None:
        """Progress is known no more."""
        self._taken = None


class _New(Generic[Row]):
    """The rows of an iterable, plain or asynchronous, that are new."""

    def __init__(self, core: _Core, rows: Iterable[Row] | AsyncIterable[Row]) -> None:
        self._core, self._rows = core, rows

    def __iter__(self) -> Iterator[Row]:
        rows = self._rows
        if not isinstance(rows, Iterable):
            raise Misuse("these rows come asynchronously", hint="async for row in cur.new(rows)")
        batch = _Batch(self._core)
        for row in rows:
            if batch.takes(row):
                self._core.pending = True
                yield row
        batch.end()

    async def __aiter__(self) -> AsyncIterator[Row]:
        rows = self._rows
        if not isinstance(rows, AsyncIterable):
            for row in self:
                yield row
            return
        batch = _Batch(self._core)
        async for row in rows:
            if batch.takes(row):
                self._core.pending = True
                yield row
        batch.end()


class _Handle:
    """What both kinds know without waiting."""

    def __init__(self, store: Any, key: str, *, by: Field, id: Field, late: Any = None,
                 on_late: str = "skip", ordered: bool = False, guard: Held | None = None) -> None:
        self._core = _Core(store, key, by, id, late, on_late, ordered, guard)

    @property
    def key(self) -> str:
        """Where progress is kept."""
        return self._core.key

    @property
    def floor(self) -> Any:
        """Where to fetch from, inclusive: the highest value taken, less `late`; None before the
        first commit. As committed last; with `ordered=True` it may be ahead of that."""
        return self._core.taken.floor

    @property
    def skipped(self) -> int:
        """Rows of this block that were older than the floor, and so not given on: they were taken
        before, or came later than `late` allows; nobody can tell which."""
        return self._core.skipped


class Cursor(_Handle):
    """A cursor of a plain client: a context manager, for one thread. Made by `Client.cursor`."""

    def new(self, rows: Iterable[Row]) -> Iterator[Row]:
        """The rows not taken before, each once, in their order. A row counts as taken when it is
        given out.

        Raises `Misuse` for a value or id that cannot be kept (a naive datetime, a float), and
        outside the block; `TooLarge` where more rows than 1,000,000 would have to be remembered;
        `InvalidValue` for one below the floor where `on_late="raise"`.
        """
        return iter(_New(self._core, rows))

    def commit(self) -> Receipt:
        """Commit what was taken so far; leaving the block does that too.

        Raises `Conflict` where another copy of the job was faster, `LeaseLost` where the lock of
        `guard=` is lost, `TooLarge`, `Misuse` for a batch that was not read to its end, and what
        the store raises.
        """
        return run(self._core.commit())

    def __enter__(self) -> Cursor:
        run(self._core.open())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        run(self._core.leave(kind is not None))


class AsyncCursor(_Handle):
    """`Cursor` for asyncio: `async with`, `await cur.commit()`."""

    def new(self, rows: Iterable[Row] | AsyncIterable[Row]) -> _New[Row]:
        """As `Cursor.new`, for `for` and for `async for`, of rows that come either way."""
        return _New(self._core, rows)

    async def commit(self) -> Receipt:
        """As `Cursor.commit`."""
        return await run_async(self._core.commit())

    async def __aenter__(self) -> AsyncCursor:
        await run_async(self._core.open())
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None,
                        trace: TracebackType | None) -> None:
        await run_async(self._core.leave(kind is not None))
