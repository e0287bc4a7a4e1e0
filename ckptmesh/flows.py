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

import contextlib
import copy
import inspect
import random
import time
from collections.abc import Callable, Generator
from functools import partial
from typing import Any, TypeVar

from ckptmesh.errors import Conflict, Error, Misuse, OutcomeUnknown, Unavailable
from ckptmesh.limits import PAUSE_MAX
from ckptmesh.views import Receipt

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


def settled(commit: Callable[[], Any]) -> Flow[Any]:
    """What a commit gives; where no answer came, ask what became of it. Raises `Unavailable` where
    it is known never to have happened, `OutcomeUnknown` where even that cannot be learned."""
    try:
        return (yield commit)
    except OutcomeUnknown as error:
        try:
            found = yield error.resolve
        except Unavailable:  # nobody could be asked: it is as unknown as before
            raise error from None
        if found is None:
            raise Unavailable("the store did not get a commit in time; nothing of it was done",
                              hint="try again") from None
        return found


def firmly(flow: Callable[[], Flow[None]]) -> Flow[None]:
    """Make the calls of a flow; where that is cancelled or interrupted, once more from the
    beginning, so that nothing is left half done. Raises what it raises, and the cancellation."""
    try:
        yield from flow()
    except (Exception, GeneratorExit):
        raise
    except BaseException:
        with contextlib.suppress(Error):
            yield from flow()
        raise


def update(store: Any, key: str, change: Callable[[Any], Any], default: Any, until: float,
           sleep: Callable[[float], Any], **options: Any) -> Flow[Receipt]:
    """Read, change, commit if nobody was faster, else again. `options` as of `commit`.

    Who loses waits before the next attempt: as long as chance says, up to the time an attempt
    takes, doubled with each loss. All of n writers at once would make n attempts for one success.
    (Exponential backoff with full jitter, as M. Brooker describes it in the AWS Architecture Blog,
    2015.) Raises what the store raises; the last `Conflict` when there is no time left: `until`, on
    the monotonic clock.
    """
    losses = 0
    while True:
        began = time.monotonic()
        standing = yield partial(store.get, key, timeout=max(0.0, until - began))
        value = change(standing.value if standing else copy.deepcopy(default))
        left = max(0.0, until - time.monotonic())
        try:
            receipt: Receipt = yield partial(store.commit, key, value, expect=standing,
                                             timeout=left, **options)
            return receipt
        except Conflict:
            now = time.monotonic()
            losses += 1
            pause = random.uniform(0, min((now - began) * 2.0 ** min(losses, 64), PAUSE_MAX))
            if now + pause >= until:
                raise
        yield partial(sleep, pause)
