"""The asyncio client: what `await ckptmesh.connect_async(…)` returns. `Client`, awaited.

Rule 1: what is asked and what answers mean stands in `api.py` and `session.py`; here is only how
        tasks wait. Every name, argument and result is that of `client.py`, where it is described.
Rule 2: a cancelled task gives its call up and leaves the client as it was.
Rule 3: one event loop owns a client. Calls made in one turn of the loop go out together.
"""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, TypeVar, overload
from weakref import WeakSet

from ckptmesh import contracting
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
from ckptmesh.consumer import AsyncConsumer
from ckptmesh.errors import Closed, Error, Misuse, OutcomeUnknown
from ckptmesh.features.named import AsyncNamedWatch
from ckptmesh.features.offered import AsyncOffered
from ckptmesh.flows import run_async, update
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
from ckptmesh.messages import Close, Command, Welcome
from ckptmesh.operation import Operation
from ckptmesh.tasks import TaskPump
from ckptmesh.transaction import TransactionBase
from ckptmesh.transport import Transport
from ckptmesh.urls import open_transport
from ckptmesh.views import Checkpoint, Contract, Receipt, Receipts, Savepoint, Since
from ckptmesh.watch import AsyncWatch

T = TypeVar("T")


class AsyncTransaction(TransactionBase):
    """A transaction of an `AsyncClient`: leave the `async with` block to commit, raise to drop."""

    def __init__(self, client: AsyncClient, api: Api, timeout: Seconds | None) -> None:
        super().__init__(api)
        self._client = client
        self._timeout = timeout

    async def commit(self) -> int:
        """Commit now; the revision (0 when there was nothing to do). Raises as
        `AsyncClient.commit`; then nothing of it took effect."""
        return await self._client._run(self._steps(), self._timeout)

    async def __aenter__(self) -> AsyncTransaction:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None,
                        trace: TracebackType | None) -> None:
        if kind is None and not self._used:
            await self.commit()


class AsyncClient(AsyncOffered):
    """`Client` for asyncio: the same names, arguments and results, awaited. Made by
    `ckptmesh.connect_async`, inside the event loop that will use it."""

    def __init__(self, transport: Transport, *, prefix: str | None = None, timeout: Seconds = 30,
                 name: str | None = None) -> None:
        self._api = Api(prefix)
        self._timeout = seconds(timeout, 30.0)
        self._link = Link(transport, name)
        self._pump = TaskPump(self._link)
        self._watches: WeakSet[AsyncWatch] = WeakSet()
        self._closed = False

    @property
    def capabilities(self) -> frozenset[Capability]:
        """What this store can do; one in a directory or in memory serves one process."""
        return capabilities_of(self._link.transport)

    # --- reads --------------------------------------------------------------------------------

    async def get(self, key: str, *, at: Moment | None = None, packed: bool = False,
                  timeout: Seconds | None = None) -> Checkpoint | None:
        """As `Client.get`."""
        return await self._run(self._api.get(key, at, packed), timeout)

    async def value(self, key: str, default: Any = None, *, at: Moment | None = None,
                    timeout: Seconds | None = None) -> Any:
        """As `Client.value`."""
        return await self._run(self._api.value(key, default, at), timeout)

    async def get_many(self, keys: Iterable[str], *, at: Moment | None = None,
                       packed: bool = False, timeout: Seconds | None = None
                       ) -> dict[str, Checkpoint | None]:
        """As `Client.get_many`."""
        return await self._run(self._api.get_many(keys, at, packed), timeout)

    async def revision(self, *, at: Moment | None = None, timeout: Seconds | None = None) -> int:
        """As `Client.revision`."""
        return await self._run(self._api.revision(at), timeout)

    def list(self, prefix: str = "", *, at: Moment | None = None, packed: bool = False,
             timeout: Seconds | None = None) -> AsyncIterator[Checkpoint]:
        """As `Client.list`: `async for checkpoint in mesh.list("orders")`."""
        return self._pages(self._api.list(prefix, at, packed), timeout)

    async def scan(self, prefix: str = "", *, after: str = "", limit: int = 1_000,
                   at: Moment | None = None, packed: bool = False,
                   timeout: Seconds | None = None) -> builtins.list[Checkpoint]:
        """As `Client.scan`."""
        return await self._run(self._api.scan(prefix, after, limit, at, packed), timeout)

    def history(self, key: str, *, limit: int | None = None, packed: bool = False,
                timeout: Seconds | None = None) -> AsyncIterator[Checkpoint]:
        """As `Client.history`: `async for checkpoint in mesh.history("orders")`."""
        return self._pages(self._api.history(key, limit, packed), timeout)

    # --- commits ------------------------------------------------------------------------------

    async def commit(
        self, key: str, value: Any, *, expect: Expectation = BLIND, guard: Held | None = None,
        ttl: Seconds | None = None, lease: bool = False, position: int | None = None,
        head: int | None = None, sources: Iterable[Source] = (),
        schema: SchemaLike | None = None, timeout: Seconds | None = None,
    ) -> Receipt:
        """As `Client.commit`."""
        return await self._run(self._api.commit(
            key, value, expect=expect, guard=guard, ttl=ttl, lease=lease, position=position,
            head=head, sources=sources, schema=schema), timeout)

    async def put(self, key: str, value: Any, *, expect: Expectation = BLIND,
                  ttl: Seconds | None = None, position: int | None = None,
                  timeout: Seconds | None = None) -> Receipt:
        """As `Client.put`."""
        return await self._run(
            self._api.commit(key, value, expect=expect, ttl=ttl, position=position), timeout)

    async def create(self, key: str, value: Any, *, ttl: Seconds | None = None,
                     lease: bool = False, position: int | None = None,
                     timeout: Seconds | None = None) -> Receipt:
        """As `Client.create`."""
        return await self._run(self._api.commit(key, value, expect=None, ttl=ttl, lease=lease,
                                                position=position), timeout)

    async def update(self, key: str, change: Callable[[Any], Any], default: Any = None, *,
                     guard: Held | None = None, ttl: Seconds | None = None,
                     position: int | None = None, timeout: Seconds | None = None) -> Receipt:
        """As `Client.update`. `change` is a plain function."""
        return await run_async(update(self, key, change, default, self._deadline(timeout),
                                      asyncio.sleep, guard=guard, ttl=ttl, position=position))

    async def pop(self, key: str, *, timeout: Seconds | None = None) -> Checkpoint | None:
        """As `Client.pop`."""
        return await self._run(self._api.pop(key), timeout)

    async def delete(self, key: str, *, expect: Expectation = BLIND, guard: Held | None = None,
                     timeout: Seconds | None = None) -> bool:
        """As `Client.delete`."""
        return await self._run(self._api.delete(key, expect, guard), timeout)

    async def touch(self, key: str, *, ttl: Seconds | None, timeout: Seconds | None = None
                    ) -> bool:
        """As `Client.touch`."""
        return await self._run(self._api.touch(key, ttl), timeout)

    async def increment(self, key: str, by: int = 1, *, ttl: Seconds | None = None,
                        timeout: Seconds | None = None) -> int:
        """As `Client.increment`."""
        return await self._run(self._api.increment(key, by, ttl), timeout)

    async def keepalive(self, lease: Held, *, timeout: Seconds | None = None) -> float:
        """As `Client.keepalive`."""
        return await self._run(self._api.keepalive(lease), timeout)

    def transaction(self, *, timeout: Seconds | None = None) -> AsyncTransaction:
        """As `Client.transaction`: `async with mesh.transaction() as tx: tx.put(…)`."""
        self._link.owner.check()
        return AsyncTransaction(self, self._api, timeout)

    async def transact(self, *, put: Mapping[str, Any] | None = None, delete: Iterable[str] = (),
                       expect: Mapping[str, Expected] | None = None,
                       timeout: Seconds | None = None) -> int:
        """As `Client.transact`."""
        return await self._run(self._api.transact(put or {}, delete, expect or {}), timeout)

    async def commit_many(self, puts: Mapping[str, Any] | Iterable[tuple[str, Any]], *,
                          expect: Mapping[str, Expected] | None = None, guard: Held | None = None,
                          timeout: Seconds | None = None) -> Receipts:
        """As `Client.commit_many`."""
        return await self._run(self._api.commit_many(puts, expect or {}, guard), timeout)

    # --- many in flight -----------------------------------------------------------------------

    async def submit(
        self, key: str, value: Any, *, expect: Expectation = BLIND, guard: Held | None = None,
        ttl: Seconds | None = None, position: int | None = None, head: int | None = None,
        timeout: Seconds | None = None,
    ) -> asyncio.Future[Receipt]:
        """As `Client.submit`: `receipt = await (await mesh.submit(key, value))`."""
        self._link.owner.check()
        deadline = self._deadline(timeout)
        operation: Operation[Receipt] = Operation(self._api, self._api.commit(
            key, value, expect=expect, guard=guard, ttl=ttl, position=position, head=head))
        return await self._pump.submit(self._drive(operation, deadline))

    async def flush(self) -> None:
        """As `Client.flush`."""
        self._link.owner.check()
        await self._pump.flush()

    # --- following and consuming --------------------------------------------------------------

    @overload
    def watch(self, prefix: str = "", *, name: None = None, since: Since = None) -> AsyncWatch: ...

    @overload
    def watch(self, prefix: str = "", *, name: str, since: Since = None, every: int = 100,
              within: Seconds = 1, auto: bool = True, wait: Seconds | None = None,
              ttl: Seconds = 30) -> AsyncNamedWatch: ...

    def watch(self, prefix: str = "", *, name: str | None = None, since: Since = None,
              **options: Any) -> AsyncWatch | AsyncNamedWatch:
        """As `Client.watch`: `async with mesh.watch("orders") as events: async for event in …`."""
        self._link.owner.check()
        if name is not None:
            return self._named_watch(prefix, name, since=since, **options)
        if options:
            raise Misuse(f"{', '.join(options)}: of a named watch only", hint="say name= too")
        source = watch_source(self._link, self._api, self._ask_for_watch)
        watch = AsyncWatch(source, prefix, since=since)
        self._watches.add(watch)
        return watch

    def consumer(self, key: str, *, ack: Callable[[builtins.list[Any], Any], object]
                 ) -> AsyncConsumer:
        """As `Client.consumer`."""
        return AsyncConsumer(self, key, ack=ack)

    # --- the store ----------------------------------------------------------------------------

    async def hello(self, *, timeout: Seconds | None = None) -> Welcome:
        """As `Client.hello`."""
        return await self._run(self._api.hello(), timeout)

    # --- contracts ----------------------------------------------------------------------------

    async def contract(self, prefix: str, *, monotonic: bool = False, required: bool = False,
                       max_step: int | None = None, max_bytes: int | None = None,
                       ttl: Seconds | None = None, history: int | None = None,
                       schema: SchemaLike | None = None, timeout: Seconds | None = None
                       ) -> Contract:
        """As `Client.contract`."""
        return await self._run(contracting.put(
            self._api, prefix, monotonic=monotonic, required=required, max_step=max_step,
            max_bytes=max_bytes, ttl=ttl, history=history, schema=schema), timeout)

    async def contracts(self, *, timeout: Seconds | None = None) -> builtins.list[Contract]:
        """As `Client.contracts`."""
        return await self._run(contracting.standing(self._api), timeout)

    async def drop_contract(self, prefix: str, *, timeout: Seconds | None = None) -> bool:
        """As `Client.drop_contract`."""
        return await self._run(contracting.drop(self._api, prefix), timeout)

    async def status(self, *, timeout: Seconds | None = None) -> dict[str, Any]:
        """As `Client.status`."""
        return await self._run(self._api.status(), timeout)

    async def savepoint(self, name: str, *, at: Moment | None = None, reason: str = "",
                        timeout: Seconds | None = None) -> Savepoint:
        """As `Client.savepoint`."""
        return await self._run(self._api.savepoint(name, at, reason), timeout)

    async def savepoints(self, *, timeout: Seconds | None = None) -> builtins.list[Savepoint]:
        """As `Client.savepoints`."""
        return await self._run(self._api.savepoints(), timeout)

    async def drop_savepoint(self, name: str, *, timeout: Seconds | None = None) -> bool:
        """As `Client.drop_savepoint`."""
        return await self._run(self._api.drop_savepoint(name), timeout)

    async def compact(self, *, retain: Seconds | None = None, timeout: Seconds | None = None
                      ) -> dict[str, Any]:
        """As `Client.compact`."""
        return await self._run(self._api.compact(retain),
                               COMPACT_TIMEOUT if timeout is None else timeout)

    def stats(self) -> dict[str, Any]:
        """As `Client.stats`; not awaited, since it asks nobody."""
        self._link.owner.check()
        return self._link.figures()

    # --- life ---------------------------------------------------------------------------------

    async def close(self) -> None:
        """As `Client.close`."""
        if self._closed:
            return
        self._closed = True
        try:
            self._link.owner.check()
        except Closed:
            self._link.session.close()
            return
        for watch in builtins.list(self._watches):
            await watch.close()
        try:
            await self.flush()
        finally:
            if self._link.session.session:
                with contextlib.suppress(Error):
                    await self._pump.ask(Close(), time.monotonic() + CLOSE_TIMEOUT)
            await self._pump.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None,
                        trace: TracebackType | None) -> None:
        try:
            await self.close()
        except Error:
            if kind is None:
                raise

    # --- driving an operation -----------------------------------------------------------------

    def _deadline(self, timeout: Seconds | None) -> float:
        return time.monotonic() + seconds(timeout, self._timeout)

    async def _run(self, steps: Steps[T], timeout: Seconds | None) -> T:
        self._link.owner.check()
        deadline = self._deadline(timeout)
        return await self._drive(Operation(self._api, steps), deadline)

    async def _drive(self, operation: Operation[T], deadline: float) -> T:
        while operation.command is not None:
            call = await self._pump.ask(operation.command, deadline)
            try:
                operation.settle(*call.answer())
            except OutcomeUnknown as unknown:
                unknown._resolver = self._resolver(operation, call)
                raise
        return operation.value  # type: ignore[no-any-return]

    def _resolver(self, operation: Operation[Any], lost: Call) -> Callable[..., Awaitable[Any]]:
        async def resolve(timeout: Seconds | None = None) -> Any:
            """What became of a commit that was given up: see `OutcomeUnknown.resolve`."""
            self._link.owner.check()
            if operation.done:
                return operation.value
            deadline = self._deadline(timeout)
            answer = await self._pump.ask(lambda: self._link.find(lost, deadline), deadline)
            if answer.error is not None:
                raise self._api.localize(answer.error)
            if answer.result is None:
                operation.absent()
                return None
            operation.settle(answer.result, None)
            return await self._drive(operation, deadline)

        return resolve

    async def _pages(self, listing: Listing, timeout: Seconds | None
                     ) -> AsyncIterator[Checkpoint]:
        while not listing.done:
            for checkpoint in await self._run(listing.page(), timeout):
                yield checkpoint

    async def _ask_for_watch(self, command: Command, within: float) -> tuple[Any, int]:
        """One question of a watch: (result, epoch)."""
        call = await self._pump.ask(command, time.monotonic() + within)
        if call.error is not None:
            raise self._api.localize(call.error)
        return call.result, call.epoch


async def connect_async(url: str | None = None, *, prefix: str | None = None,
                        timeout: Seconds = 30, name: str | None = None) -> AsyncClient:
    """An asyncio client for a store; arguments and errors as of `connect`."""
    where = url_or_default(url)
    patience = seconds(timeout, 30.0)
    Api(prefix)  # a wrong prefix is told before anything is opened
    check_name(name)
    loop = asyncio.get_running_loop()
    transport = await loop.run_in_executor(None, open_transport, where, patience)
    client = AsyncClient(transport, prefix=prefix, timeout=timeout, name=name)
    try:
        await client.hello(timeout=min(CONNECT_TIMEOUT, patience))
    except BaseException as error:
        await client.close()
        raise explained(error, client._link.transport) from None
    return client
