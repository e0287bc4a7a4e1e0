"""An asyncio client as plain code sees it, so that one test serves both kinds of client.

    with blocking(lambda: ckptmesh.connect_async("memory://")) as store:
        store.commit("orders", 1)

Each has an event loop in a thread of its own; whatever is given to it as a callback runs there.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Awaitable, Callable, Iterator
from functools import cache
from typing import Any

PATIENCE = 60.0  # seconds: a call that takes longer is taken for stuck


def blocking(make: Callable[[], Awaitable[Any]]) -> Any:
    """What `make` gives, with every call awaited and every async block and iteration plain."""
    loop = _Loop()
    try:
        return _Plain(loop, loop.run(make), owner=True)
    except BaseException:
        loop.stop()
        raise


class _Loop:
    """An event loop in a thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, call: Callable[[], Any], timeout: float | None = PATIENCE) -> Any:
        """Call it there and await what it gives, if that can be awaited."""
        async def there() -> Any:
            result = call()
            # A future is handed on: what was submitted is waited for by `result()`.
            awaited = inspect.isawaitable(result) and not asyncio.isfuture(result)
            return await result if awaited else result

        return asyncio.run_coroutine_threadsafe(there(), self._loop).result(timeout)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE)
        self._loop.close()


class _Plain:
    """Stands for an object that lives in an event loop."""

    def __init__(self, loop: _Loop, target: Any, owner: bool = False) -> None:
        self._loop = loop
        self._target = target
        self._owner = owner

    def __getattr__(self, name: str) -> Any:
        found = self._loop.run(lambda: getattr(self._target, name))
        if not callable(found):
            return found
        return lambda *args, **named: self._plain(
            self._loop.run(lambda: found(*args, **named)))

    def __enter__(self) -> Any:
        return self._plain(self._loop.run(self._target.__aenter__))

    def __exit__(self, *error: object) -> None:
        try:
            self._loop.run(lambda: self._target.__aexit__(*error))
        finally:
            if self._owner:
                self._loop.stop()

    def __iter__(self) -> Iterator[Any]:
        while True:
            try:
                yield self._loop.run(self._target.__anext__)
            except StopAsyncIteration:
                return

    def result(self, timeout: float | None = None) -> Any:
        """The result of a submitted commit."""
        async def wait() -> Any:
            return await asyncio.wait_for(asyncio.shield(self._target), timeout)

        return self._loop.run(wait)

    def _plain(self, result: Any) -> Any:
        if result is self._target:
            return self
        lives_there = asyncio.isfuture(result) or _has_coroutines(type(result))  # type: ignore[arg-type]
        return _Plain(self._loop, result) if lives_there else result


@cache
def _has_coroutines(kind: type) -> bool:
    """Whether objects of a class are to be awaited, entered or iterated in a loop."""
    return any(name in ("__aenter__", "__anext__")
               or inspect.iscoroutinefunction(getattr(kind, name, None)) for name in dir(kind))
