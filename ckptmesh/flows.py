"""One flow for both kinds of client: what a feature does, without how it waits.

    def flow(store) -> Flow[int]:
        found = yield lambda: store.get("orders")
        receipt = yield lambda: store.put("orders", found.value + 1, expect=found)
        return receipt.revision

    run(flow(client))                    # a plain client
    await run_async(flow(async_client))  # one of asyncio

Rule 1: a flow yields what is to be called, is sent what the call gave, and has thrown into it what
        the call raised. It waits for nothing else.
Rule 2: whatever is called may be a plain function or, with `run_async`, a coroutine function: a
        user's too.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator
from typing import Any, TypeVar

from ckptmesh.errors import Misuse

T = TypeVar("T")
Flow = Generator[Callable[[], Any], Any, T]
"""Yields calls, is sent their results, returns what the user gets."""


def run(flow: Flow[T]) -> T:
    """Make the calls of a flow. Raises what it raises; `Misuse` where a call has to be awaited."""
    try:
        call = next(flow)
        while True:
            try:
                answer = call()
                if inspect.isawaitable(answer):
                    getattr(answer, "close", lambda: None)()
                    raise Misuse("a coroutine function was given to a plain client",
                                 hint="use AsyncClient or AsyncConsumer")
            except BaseException as error:
                call = flow.throw(error)
            else:
                call = flow.send(answer)
    except StopIteration as end:
        found: T = end.value
        return found


async def run_async(flow: Flow[T]) -> T:
    """Make the calls of a flow, and await those that ask for it. Raises what it raises."""
    try:
        call = next(flow)
        while True:
            try:
                answer = call()
                if inspect.isawaitable(answer):
                    answer = await answer
            except BaseException as error:
                call = flow.throw(error)
            else:
                call = flow.send(answer)
    except StopIteration as end:
        found: T = end.value
        return found
