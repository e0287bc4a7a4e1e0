"""One exchange of bytes with a store: over a connection (`stream.py`), or with an engine in this
process. Links that need other means, such as encryption, get a transport of their own.

Rule 1: a transport carries payloads and knows nothing of what is in them, but how many requests.
Rule 2: `send` never waits; False means that the payload has not left and never will. What it took
        leaves in the next `receive` or `pending`, with whatever else was sent.
Rule 3: one thread at a time uses a transport; only `wake` may be called from any other.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from ckptmesh import bundles
from ckptmesh.errors import Error
from ckptmesh.limits import BATCH_BYTES, BATCH_REQUESTS

LATE = 0.01  # seconds between two looks for an answer that takes longer than its batch
GATHER = 256  # requests that an embedded store lets gather before it commits them unasked


class Transport(Protocol):
    """What both shells need of the way to a store."""

    @property
    def url(self) -> str:
        """Where the other end is, for messages."""

    def send(self, payload: bytes) -> bool:
        """Hand over one payload without waiting. False: not connected, or the queue is full."""

    def receive(self, timeout: float) -> list[bytes]:
        """What has arrived, about a thousand payloads at most; waits up to `timeout` seconds for
        the first.

        Returns early, perhaps with nothing, after `wake`, or when a refused `send` may be tried
        again. Raises an `Error` when the other end is broken for good.
        """

    def pending(self) -> bool:
        """Whether `receive` would do something without waiting that `descriptor` does not tell, or
        a refused `send` may be tried again."""

    def due(self) -> float:
        """When, in `time.monotonic()`, an event loop calls `receive` although `descriptor` tells
        nothing; maybe infinity."""

    def wake(self) -> None:
        """Make a `receive` that waits in another thread return."""

    def descriptor(self) -> int | None:
        """What an event loop watches for reading; None: `receive` works rather than waits, and
        belongs into a thread."""

    def close(self) -> None:
        """Let go. What was sent may still leave, within a bounded time."""


class Late(NamedTuple):
    """Answers to what takes longer than its batch: whether some may come, and those that came."""

    expected: Callable[[], bool]
    answers: Callable[[], list[bytes]]


class EngineTransport:
    """An engine in this process: what was sent becomes one batch, with one sync, in `receive`.

    So the commits of several threads, or many submitted by one, share a sync.
    """

    def __init__(
        self,
        url: str,
        handle: Callable[[Sequence[bytes]], list[bytes]],
        release: Callable[[], None],
        engine: Any = None,
        late: Late | None = None,
    ) -> None:
        self.url = url
        self.engine = engine  # for watches, which listen to it directly
        self._handle = handle
        self._release = release
        self._late = late
        self._outgoing: list[bytes] = []
        self._refusal: Error | None = None  # why a payload was not taken, until somebody is told
        self._woken = threading.Event()

    def send(self, payload: bytes) -> bool:
        """See `Transport`. False where the engine has failed, so that the request is known never to
        have reached it; `receive` then says why."""
        self._refusal = None if self.engine is None else self.engine.poisoned
        if self._refusal is not None:
            return False
        self._outgoing.append(payload)
        return True

    def receive(self, timeout: float) -> list[bytes]:
        """See `Transport`. With `timeout` 0 requests gather until `GATHER` wait for their sync."""
        if self._refusal is not None:
            refusal, self._refusal = self._refusal, None
            raise refusal.with_traceback(None)
        waiting = sum(map(bundles.count, self._outgoing))
        if not waiting or (timeout <= 0 and waiting < GATHER):
            expecting = self._expecting()
            late = self._late.answers() if self._late is not None and expecting else []
            if timeout > 0 and not late:  # another thread may bring a request
                self._woken.wait(min(timeout, LATE if expecting else threading.TIMEOUT_MAX))
                self._woken.clear()
            return late
        size = count = 0
        batch: list[bytes] = []
        for payload in self._outgoing:
            batch.append(payload)
            size += len(payload)
            count += bundles.count(payload)
            if size >= BATCH_BYTES or count >= BATCH_REQUESTS:
                break
        self._outgoing = self._outgoing[len(batch):]
        return self._handle(batch)

    def pending(self) -> bool:
        """See `Transport`."""
        return bool(self._outgoing) or self._refusal is not None or self._expecting()

    def _expecting(self) -> bool:
        """Whether something may still be answered that was asked in an earlier batch."""
        return self._late is not None and self._late.expected()

    def due(self) -> float:
        """See `Transport`."""
        return float("inf")

    def wake(self) -> None:
        """See `Transport`."""
        self._woken.set()

    def descriptor(self) -> int | None:
        """See `Transport`."""
        return None

    def close(self) -> None:
        """See `Transport`."""
        self._release()
