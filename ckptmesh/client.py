"""The synchronous client: what `ckptmesh.connect` returns.

Rule 1: what is asked and what answers mean stands in `api.py` and `session.py`; here is only how
        threads wait. `aio.py` waits in its own way and is otherwise the same.
Rule 2: waiting is the pump's (`pump.py`): no background thread, any number of users' threads.
"""

from __future__ import annotations

import builtins
import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from types import TracebackType
from typing import Any, TypeVar, overload
from weakref import WeakSet

from ckptmesh import contracting, values
from ckptmesh.api import (
    BLIND,
    Api,
    Expectation,
    Expected,
    Held,
    Listing,
    Moment,
    SchemaLike,
    Source,
    Steps,
    seconds,
)
from ckptmesh.backends.base import Capability
from ckptmesh.calls import Call
from ckptmesh.clock import Seconds
from ckptmesh.consumer import Consumer
from ckptmesh.errors import Error, Misuse, OutcomeUnknown
from ckptmesh.features.named import NamedWatch
from ckptmesh.features.offered import Offered
from ckptmesh.flows import run, update
from ckptmesh.link import (
    CLOSE_TIMEOUT,
    COMPACT_TIMEOUT,
    CONNECT_TIMEOUT,
    Link,
    capabilities_of,
    check_name,
    explained,
    url_or_default,
    watch_source,
)
from ckptmesh.messages import Close, Command, Outcome, Welcome
from ckptmesh.operation import Operation
from ckptmesh.pump import Pump
from ckptmesh.transaction import TransactionBase
from ckptmesh.transport import Transport
from ckptmesh.urls import open_transport
from ckptmesh.views import Checkpoint, Contract, Receipt, Receipts, Savepoint, Since
from ckptmesh.watch import Watch

T = TypeVar("T")


class Transaction(TransactionBase):
    """A transaction of a `Client`: leave the `with` block to commit, raise to drop it."""

    def __init__(self, client: Client, api: Api, timeout: Seconds | None) -> None:
        super().__init__(api)
        self._client = client
        self._timeout = timeout

    def commit(self) -> int:
        """Commit now; the revision (0 when there was nothing to do). Raises as `Client.commit`;
        then nothing of it took effect."""
        return self._client._run(self._steps(), self._timeout)

    def __enter__(self) -> Transaction:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        if kind is None and not self._used:
            self.commit()


class Client(Offered):
    """Reads and commits checkpoints. Made by `ckptmesh.connect`; may be shared among threads.

    Every call takes `timeout=` (seconds or timedelta), else the client's. Every call may raise
    `Unavailable` (nothing happened), and those that write `OutcomeUnknown` (nobody knows yet).
    """

    def __init__(self, transport: Transport, *, prefix: str | None = None, timeout: Seconds = 30,
                 name: str | None = None) -> None:
        self._api = Api(prefix)
        self._timeout = seconds(timeout, 30.0)
        self._link = Link(transport, name)
        self._pump = Pump(self._link, self._settle)
        self._watches: WeakSet[Watch] = WeakSet()
        self._closed = False

    @property
    def capabilities(self) -> frozenset[Capability]:
        """What this store can do; one in a directory or in memory serves one process."""
        return capabilities_of(self._link.transport)

    # --- reads --------------------------------------------------------------------------------

    def get(self, key: str, *, at: Moment | None = None, packed: bool = False,
            timeout: Seconds | None = None) -> Checkpoint | None:
        """The checkpoint of a key, or None. `at`: a revision, an aware datetime, a Checkpoint, a
        Receipt, a savepoint or its name: as it stood then; what memory holds no more is read from
        files, which may take a while. `packed`: with its value as `values.Packed`, not looked into.
        Raises `Compacted`, `FutureRevision`, `ArchiveUnavailable`, `SavepointNotFound`,
        `InvalidKey`, `InvalidPayload`."""
        return self._run(self._api.get(key, at, packed), timeout)

    def value(self, key: str, default: Any = None, *, at: Moment | None = None,
              timeout: Seconds | None = None) -> Any:
        """The value of a key, or `default` when there is none. `at` and errors as of `get`."""
        return self._run(self._api.value(key, default, at), timeout)

    def get_many(self, keys: Iterable[str], *, at: Moment | None = None, packed: bool = False,
                 timeout: Seconds | None = None) -> dict[str, Checkpoint | None]:
        """Many keys as of one revision, in the order asked; None where there is nothing. `at`,
        `packed` and errors as of `get`; `Misuse` for one string instead of several."""
        return self._run(self._api.get_many(keys, at, packed), timeout)

    def revision(self, *, at: Moment | None = None, timeout: Seconds | None = None) -> int:
        """The newest revision, or that of the store as it was then: what `at=` takes to read the
        same cut again. `at` and errors as of `get`."""
        return self._run(self._api.revision(at), timeout)

    def list(self, prefix: str = "", *, at: Moment | None = None, packed: bool = False,
             timeout: Seconds | None = None) -> Iterator[Checkpoint]:
        """All checkpoints under a prefix (whole segments), in key order, as of one revision.
        Lazy; `timeout` counts for each page. `packed` and errors as of `get`, while it is
        iterated."""
        return self._pages(self._api.list(prefix, at, packed), timeout)

    def scan(self, prefix: str = "", *, after: str = "", limit: int = 1_000,
             at: Moment | None = None, packed: bool = False, timeout: Seconds | None = None
             ) -> builtins.list[Checkpoint]:
        """One page of `list`: at most `limit` (1 to 10,000) checkpoints with keys after `after`;
        fewer where they would be more than 8 MiB. `packed` and errors as of `get`; `Misuse`."""
        return self._run(self._api.scan(prefix, after, limit, at, packed), timeout)

    def history(self, key: str, *, limit: int | None = None, packed: bool = False,
                timeout: Seconds | None = None) -> Iterator[Checkpoint]:
        """The versions of a key that memory keeps, newest first, at most `limit`. As `list`;
        `packed` as of `get`."""
        return self._pages(self._api.history(key, limit, packed), timeout)

    # --- commits ------------------------------------------------------------------------------

    def commit(
        self, key: str, value: Any, *, expect: Expectation = BLIND, guard: Held | None = None,
        ttl: Seconds | None = None, lease: bool = False, position: int | None = None,
        head: int | None = None, sources: Iterable[Source] = (),
        schema: SchemaLike | None = None, timeout: Seconds | None = None,
    ) -> Receipt:
        """Write a checkpoint; returns once it is on disk.

        `expect`: what must stand there, as a Checkpoint, Receipt or revision that was read, or
        None (nothing); left out: whatever stands there is replaced. `guard`: a lease that must
        still be held. `ttl`: it goes by itself after so long; with `lease=True` it is a lease,
        which `keepalive` extends. `position` and `head`: where this commit and the source stand,
        integers in one unit. `sources`: what it was made from. `schema`: what the value is checked
        with, named as a source too.

        Raises `Conflict` (its `.current` is what stands there), `LeaseLost`, `InvalidKey`,
        `InvalidValue`, `TooLarge`, `OutOfSpace`, `ContractBroken`; then nothing was written.
        """
        if (expect is BLIND and guard is None and ttl is None and lease is False
                and position is None and head is None and sources == () and schema is None):
            return self._commit(key, value, timeout)
        return self._run(self._api.commit(
            key, value, expect=expect, guard=guard, ttl=ttl, lease=lease, position=position,
            head=head, sources=sources, schema=schema), timeout)

    def _commit(self, key: str, value: Any, timeout: Seconds | None) -> Receipt:
        """A put of a value and nothing else, by the short way where it is clear."""
        self._link.owner.check()
        deadline = self._deadline(timeout)
        found = self._pump.commit(self._api.key(key), values.pack(value), deadline)
        if type(found) is Outcome:
            return self._api.receipt(key, found, 0)
        operation: Operation[Receipt] = Operation(self._api, self._api.commit(key, value))
        if isinstance(found, Call):
            self._settle(operation, found)
        return self._drive(operation, deadline)

    def put(self, key: str, value: Any, *, expect: Expectation = BLIND,
            ttl: Seconds | None = None, position: int | None = None,
            timeout: Seconds | None = None) -> Receipt:
        """`commit` under the name that every `StateBackend` has. Arguments and errors as there."""
        return self._run(self._api.commit(key, value, expect=expect, ttl=ttl, position=position),
                         timeout)

    def create(self, key: str, value: Any, *, ttl: Seconds | None = None, lease: bool = False,
               position: int | None = None, timeout: Seconds | None = None) -> Receipt:
        """Write a checkpoint that must not exist yet. Raises `Conflict` when it does; else
        arguments and errors as of `commit`."""
        return self._run(self._api.commit(key, value, expect=None, ttl=ttl, lease=lease,
                                          position=position), timeout)

    def update(self, key: str, change: Callable[[Any], Any], default: Any = None, *,
               guard: Held | None = None, ttl: Seconds | None = None,
               position: int | None = None, timeout: Seconds | None = None) -> Receipt:
        """Commit `change(value)`, again with the new value whenever somebody else was faster, after
        a pause that grows with the losses.

        `change` gets a copy of `default` when there is no value, and may be called many times.
        Raises what `change` raises, `Conflict` when others were faster until `timeout`, else as
        `commit`.
        """
        return run(update(self, key, change, default, self._deadline(timeout), time.sleep,
                          guard=guard, ttl=ttl, position=position))

    def pop(self, key: str, *, timeout: Seconds | None = None) -> Checkpoint | None:
        """Remove a key and return what stood there, as one step; None when there was nothing.
        Raises `InvalidKey`."""
        return self._run(self._api.pop(key), timeout)

    def delete(self, key: str, *, expect: Expectation = BLIND, guard: Held | None = None,
               timeout: Seconds | None = None) -> bool:
        """Remove a key. Returns whether it existed. `expect` and `guard` as of `commit`. Raises
        `Conflict`, `LeaseLost`, `InvalidKey`."""
        return self._run(self._api.delete(key, expect, guard), timeout)

    def touch(self, key: str, *, ttl: Seconds | None, timeout: Seconds | None = None) -> bool:
        """Set a new expiry, `ttl` (seconds or timedelta) from now (None: never); revision and value
        stay. Returns whether the key existed. Raises `InvalidKey`, `Misuse`, `OutOfSpace`."""
        return self._run(self._api.touch(key, ttl), timeout)

    def increment(self, key: str, by: int = 1, *, ttl: Seconds | None = None,
                  timeout: Seconds | None = None) -> int:
        """Add to an integer (0 when there is none) and return it; `ttl` as of `commit`. Raises
        `InvalidValue` when something else stands there or 64 bits are too few, `InvalidKey`."""
        return self._run(self._api.increment(key, by, ttl), timeout)

    def keepalive(self, lease: Held, *, timeout: Seconds | None = None) -> float:
        """Extend a lease by its full TTL; returns it in seconds, to be counted from the moment of
        this call. Raises `LeaseLost`."""
        return self._run(self._api.keepalive(lease), timeout)

    def transaction(self, *, timeout: Seconds | None = None) -> Transaction:
        """Several conditions and mutations as one revision with one sync:
        `with mesh.transaction() as tx: tx.put(…); tx.delete(…)`."""
        self._link.owner.check()
        return Transaction(self, self._api, timeout)

    def transact(self, *, put: Mapping[str, Any] | None = None, delete: Iterable[str] = (),
                 expect: Mapping[str, Expected] | None = None, timeout: Seconds | None = None
                 ) -> int:
        """All or nothing, as every `StateBackend` has it; returns the revision. Raises as
        `commit`; `Misuse` for one string instead of several keys."""
        return self._run(self._api.transact(put or {}, delete, expect or {}), timeout)

    def commit_many(self, puts: Mapping[str, Any] | Iterable[tuple[str, Any]], *,
                    expect: Mapping[str, Expected] | None = None, guard: Held | None = None,
                    timeout: Seconds | None = None) -> Receipts:
        """Up to 1,024 commits in one round trip, each with a revision of its own, in their order:
        what a loop of `commit` would make, but all of it or nothing. A key may come again.
        Returns their receipts.

        `puts`: values by key, or pairs of key and value. `expect` and `guard` as of `commit`; they
        are looked at once, before the first. Raises as `commit`; then nothing was written.
        """
        return self._run(self._api.commit_many(puts, expect or {}, guard), timeout)

    # --- many in flight -----------------------------------------------------------------------

    def submit(
        self, key: str, value: Any, *, expect: Expectation = BLIND, guard: Held | None = None,
        ttl: Seconds | None = None, position: int | None = None, head: int | None = None,
        timeout: Seconds | None = None,
    ) -> Future[Receipt]:
        """`commit` without waiting: many in flight from one thread, sharing syncs.

        Waits only while 1,024 are in flight. They go out in order; after a lost connection later
        ones may take effect before earlier ones, so give `expect=` where the order matters. While
        some are on their way up to 63 more gather, to travel together: whatever is held back goes
        out with the next call of this client that comes a millisecond later or that waits.
        `flush()` waits for all. An embedded store commits them when it is waited for, or 256 at
        a time. There is no thread behind it: wait with `result()` or `flush()`, since
        `concurrent.futures.wait` and `as_completed` wait without doing anything. Raises `Misuse`,
        `InvalidKey`, `InvalidValue`, `TooLarge` at once, all else from the future.
        """
        self._link.owner.check()
        deadline = self._deadline(timeout)
        return self._pump.submit(Operation(self._api, self._api.commit(
            key, value, expect=expect, guard=guard, ttl=ttl, position=position, head=head)),
            deadline)

    def flush(self) -> None:
        """Wait until every submitted commit is settled, each at most its own timeout. Raises the
        first error of those whose future nobody has asked."""
        self._link.owner.check()
        self._pump.flush()

    # --- following and consuming --------------------------------------------------------------

    @overload
    def watch(self, prefix: str = "", *, name: None = None, since: Since = None) -> Watch: ...

    @overload
    def watch(self, prefix: str = "", *, name: str, since: Since = None, every: int = 100,
              within: Seconds = 1, auto: bool = True, wait: Seconds | None = None,
              ttl: Seconds = 30) -> NamedWatch: ...

    def watch(self, prefix: str = "", *, name: str | None = None, since: Since = None,
              **options: Any) -> Watch | NamedWatch:
        """Every change under a prefix, in order, none missed: `with mesh.watch("orders") as
        events: for event in events: …`. `since`: a Receipt, Checkpoint, Event, mark or revision
        to go on after; None: from now on.

        `name`: it keeps its own place in the store, and the next process with this name goes on
        after the last event that was done, which an event is when the next one is asked for, or
        with `auto=False` when `events.done(event)` says so. The place is committed every `every`
        events or `within` seconds, before waiting, and when the block ends without an error.
        `since` then begins a new name, or moves a place forward. One process at a time: others
        wait for `wait` seconds (None: as long as it takes), then raise `LockTimeout`; `ttl` is how
        long a dead one keeps them out.
        """
        self._link.owner.check()
        if name is not None:
            return self._named_watch(prefix, name, since=since, **options)
        if options:
            raise Misuse(f"{', '.join(options)}: of a named watch only", hint="say name= too")
        source = watch_source(self._link, self._api, self._ask_for_watch)
        watch = Watch(source, prefix, since=since)
        self._watches.add(watch)
        return watch

    def consumer(self, key: str, *, ack: Callable[[builtins.list[Any], Any], object]) -> Consumer:
        """Process batches, commit their offset under `key`, and only then acknowledge them."""
        return Consumer(self, key, ack=ack)

    # --- the store ----------------------------------------------------------------------------

    def hello(self, *, timeout: Seconds | None = None) -> Welcome:
        """Who answers (UUID, epoch, revision, release, …): one round trip."""
        return self._run(self._api.hello(), timeout)

    # --- contracts ----------------------------------------------------------------------------

    def contract(self, prefix: str, *, monotonic: bool = False, required: bool = False,
                 max_step: int | None = None, max_bytes: int | None = None,
                 ttl: Seconds | None = None, history: int | None = None,
                 schema: SchemaLike | None = None, timeout: Seconds | None = None
                 ) -> Contract:
        """Put a contract on a prefix ("": everything): rules that the store itself holds every
        later commit to. `ContractBroken` names the rule, and nothing is written. It replaces any
        contract that stood there; `drop_contract` takes it away.

        `monotonic`: a position never falls, nor goes missing again. `required`: each commit has a
        position. `max_step`: it grows by at most so much. `max_bytes`: of a packed value. `ttl`:
        given to what has none. `history`: versions kept for display. `schema`: each commit has to
        be made with `schema=`. Deleting is free, and ckptmesh's own keys are not covered.
        """
        return self._run(contracting.put(
            self._api, prefix, monotonic=monotonic, required=required, max_step=max_step,
            max_bytes=max_bytes, ttl=ttl, history=history, schema=schema), timeout)

    def contracts(self, *, timeout: Seconds | None = None) -> builtins.list[Contract]:
        """All contracts, by prefix."""
        return self._run(contracting.standing(self._api), timeout)

    def drop_contract(self, prefix: str, *, timeout: Seconds | None = None) -> bool:
        """Take away the contract on this very prefix; whether there was one."""
        return self._run(contracting.drop(self._api, prefix), timeout)

    def status(self, *, timeout: Seconds | None = None) -> dict[str, Any]:
        """Facts about the store: plain numbers and text. Sizes in bytes; latencies of the latest
        syncs in ms; `sockets` as of the last second.

        `counts` are since the store's start: `requests` (every copy that could be read, reads
        too), `malformed` (those that could not), `refused` (answered with an error), `commits`
        (of clients; each took a revision), `expired` (keys and leases whose time was over; each
        took a revision), `syncs` (one for each batch that wrote).
        """
        return self._run(self._api.status(), timeout)

    def savepoint(self, name: str, *, at: Moment | None = None, reason: str = "",
                  timeout: Seconds | None = None) -> Savepoint:
        """Name a revision over all pipelines, the present one or that of `at`, and keep it readable
        until it is dropped, beyond `retain`. `name`: a letter, then letters, digits, `-_.`, up to
        128; `reason` is for people, up to 1 KiB.

        Returns once it is durable. Raises `Conflict` where the name is taken, `Compacted` where
        that revision is kept nowhere any more, `FutureRevision`, `QuotaExceeded`, `OutOfSpace`,
        `InvalidKey`; `InvalidRequest` before the first commit. In memory alone a name keeps
        nothing: reading it is `Compacted` once memory has let go of its revision.
        """
        return self._run(self._api.savepoint(name, at, reason), timeout)

    def savepoints(self, *, timeout: Seconds | None = None) -> builtins.list[Savepoint]:
        """All savepoints, in the order of their revisions."""
        return self._run(self._api.savepoints(), timeout)

    def drop_savepoint(self, name: str, *, timeout: Seconds | None = None) -> bool:
        """Let go of a savepoint; whether there was one. What only it needed leaves the disk with
        the next compaction."""
        return self._run(self._api.drop_savepoint(name), timeout)

    def compact(self, *, retain: Seconds | None = None, timeout: Seconds | None = None
                ) -> dict[str, Any]:
        """Write a snapshot and drop what it covers; returns a report. `retain` overrides for this
        once how long old log files stay (seconds or timedelta). `timeout`: 600 s when left out.
        Raises `CompactionFailed`, `OutOfSpace`; `InvalidRequest` in memory without a log."""
        return self._run(self._api.compact(retain),
                         COMPACT_TIMEOUT if timeout is None else timeout)

    def stats(self) -> dict[str, Any]:
        """What this client has done since it connected. Asks nobody.

        `operations` by kind of request (an `update` is a get and a put or more), each with
        `count`, `errors` and latencies in ms from asking to settling: `mean_ms` and `max_ms`
        exact, `p50_ms` and `p99_ms` at most an eighth too high. `errors` by name. `hits` and
        `misses`: keys that gets found or did not. `bytes_in`, `bytes_out`: payloads of requests
        and replies, without watches. `retries`: copies sent again. `discarded`: replies that
        nobody waited for. `in_flight`, `in_flight_bytes`: now. `memory_bytes`: of this process.
        Raises `Closed` in a forked child.
        """
        self._link.owner.check()  # in a fork the pump's lock may be held by nobody that lives
        return self._pump.figures()

    # --- life ---------------------------------------------------------------------------------

    def close(self) -> None:
        """Wait for what was submitted, end the session, let go of the connection.

        Raises as `flush` does. Harmless when repeated. In a forked child it only closes the
        child's copy.
        """
        if self._closed:
            return
        self._closed = True
        try:
            self._link.owner.check()
        except Error:
            self._link.session.close()
            return
        for watch in builtins.list(self._watches):
            watch.close()
        try:
            self.flush()
        finally:
            self._dispose()

    def _dispose(self) -> None:
        if self._link.session.session:
            with contextlib.suppress(Error):
                self._pump.ask(Close(), time.monotonic() + CLOSE_TIMEOUT)
        self._pump.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        try:
            self.close()
        except Error:
            if kind is None:
                raise

    # --- driving an operation -----------------------------------------------------------------

    def _deadline(self, timeout: Seconds | None) -> float:
        return time.monotonic() + (
            self._timeout if timeout is None else seconds(timeout, self._timeout))

    def _run(self, steps: Steps[T], timeout: Seconds | None) -> T:
        self._link.owner.check()
        deadline = self._deadline(timeout)
        return self._drive(Operation(self._api, steps), deadline)

    def _drive(self, operation: Operation[T], deadline: float) -> T:
        while operation.command is not None:
            call = self._pump.ask(operation.command, deadline)
            self._settle(operation, call)
        return operation.value  # type: ignore[no-any-return]

    def _settle(self, operation: Operation[Any], call: Call) -> None:
        try:
            operation.settle(*call.answer())
        except OutcomeUnknown as unknown:
            unknown._resolver = lambda timeout=None: self._resolve(operation, call, timeout)
            raise

    def _resolve(self, operation: Operation[T], lost: Call, timeout: Seconds | None) -> T | None:
        """What became of a commit that was given up: see `OutcomeUnknown.resolve`."""
        self._link.owner.check()
        if operation.done:
            return operation.value  # type: ignore[no-any-return]
        deadline = self._deadline(timeout)
        answer = self._pump.ask(lambda: self._link.find(lost, deadline), deadline)
        if answer.error is not None:
            raise self._api.localize(answer.error)
        if answer.result is None:
            operation.absent()
            return None
        operation.settle(answer.result, None)
        return self._drive(operation, deadline)

    def _pages(self, listing: Listing, timeout: Seconds | None) -> Iterator[Checkpoint]:
        while not listing.done:
            yield from self._run(listing.page(), timeout)

    def _ask_for_watch(self, command: Command, within: float) -> tuple[Any, int]:
        """One question of a watch: (result, epoch)."""
        call = self._pump.ask(command, time.monotonic() + within)
        if call.error is not None:
            raise self._api.localize(call.error)
        return call.result, call.epoch


def connect(url: str | None = None, *, prefix: str | None = None, timeout: Seconds = 30,
            name: str | None = None) -> Client:
    """A client for a store: `tcp://host:7701` or `ipc://path` (a broker), `file:./state` (a
    directory), `memory://`. Without a URL: `CKPTMESH_URL`, else the local broker.

    `prefix` stands before every key, unseen. `timeout`: seconds or timedelta for each call that
    names none, and for a directory that another process holds. `name` tells people who this is.

    Makes one round trip, within 5 s. Raises `Unavailable` saying whether the broker or the store
    is missing, `InvalidUrl`, and for a directory `DirectoryInUse`, `InvalidDirectory`, `Corrupt`.
    """
    where = url_or_default(url)
    patience = seconds(timeout, 30.0)
    Api(prefix)  # a wrong prefix is told before anything is opened
    check_name(name)
    client = Client(open_transport(where, patience), prefix=prefix, timeout=timeout, name=name)
    try:
        client.hello(timeout=min(CONNECT_TIMEOUT, patience))
    except BaseException as error:
        client.close()
        raise explained(error, client._link.transport) from None
    return client
