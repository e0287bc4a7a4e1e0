"""What a watch does next: ask the store, read its socket, take a new one, or wait.

Rule 1: `Feed` decides for the sync and the async watch alike; `watch.py` asks and waits for it.
Rule 2: a store that is away is waited for. A watch ends only by `close`, or by an error that no
        wait can mend (`Compacted`, `DataLoss`, `OtherStore`), which is then raised each time.

Where there is no address to subscribe at (an embedded store), it asks the store instead: at each
change that it is told of, and every `POLL` seconds.
"""

from __future__ import annotations

import contextlib
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, NamedTuple

from ckptmesh import publications, sockets
from ckptmesh.api import Api
from ckptmesh.errors import Closed, Error, InvalidPayload, Unavailable
from ckptmesh.messages import (
    KINDS,
    PUT,
    Change,
    Command,
    Commit,
    Heartbeat,
    Hello,
    Publication,
    Row,
)
from ckptmesh.sockets import Context, Socket
from ckptmesh.views import Event, Mark, Since, mark_of
from ckptmesh.watching import Watching, WatchStats

POLL = 0.2  # seconds between two questions where nothing is published
ASK_LEAST, ASK_MOST = 0.5, 5.0  # seconds that a question may take; longer: the store is away
ASK_AGAIN = 1.0  # seconds between two questions to a store that is away
_DRAIN = 1_000  # messages read in one go, so that an event loop gets its turn


@dataclass(frozen=True, slots=True)
class WatchSource:
    """What a watch needs of its client.

    `ask(command, seconds)` returns (result, epoch of the store), awaitable for an `AsyncWatch`;
    `api` knows keys and values as the user does; `url` is where the client asks; `context` gives
    the context for a socket, None without sockets; `on_change`, where there is one, calls back,
    from any thread, after each change, and returns what undoes it. `clock` gives seconds.
    """

    ask: Callable[[Command, float], Any]
    api: Api
    url: str = ""
    context: Callable[[], Context] | None = None
    on_change: Callable[[Callable[[], None]], Callable[[], None]] | None = None
    clock: Callable[[], float] = time.monotonic


class SharedContext:
    """The context for the sockets of one client's watches, made when the first is needed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._closed = False
        self._end: weakref.finalize[..., SharedContext] | None = None
        self._context: Context | None = None

    def get(self) -> Context:
        """The context. Raises `Closed`."""
        with self._lock:
            if self._closed:
                raise Closed("this client is closed", hint="connect again")
            if self._context is None:
                self._context = sockets.context()
                # For a client that is dropped without close().
                self._end = weakref.finalize(self, _abandon, sockets.Owner(), self._context)
                self._end.atexit = False
            return self._context

    def close(self) -> None:
        """End it: a watch that still waits is told `sockets.ContextEnded`. Waits until all sockets
        are closed."""
        with self._lock:
            self._closed = True
            context, self._context = self._context, None
        if context is not None and self._end is not None and self._end.detach():
            context.term()


def _abandon(owner: sockets.Owner, context: Context) -> None:
    """End a context that nobody can reach any more; not in a fork."""
    with contextlib.suppress(Closed, RuntimeError):  # a fork; an interpreter that ends
        owner.check()
        # In a thread: watches that are dropped too may be collected after this.
        threading.Thread(target=context.term, daemon=True).start()


class Ask(NamedTuple):
    """Step of a flow: ask the store, send the answer back into the flow."""

    command: Command
    timeout: float


class Wait(NamedTuple):
    """Step of a flow: wait until something arrives, at most so many seconds."""

    seconds: float


Flow = Generator[Ask | Wait, Any, Any]


class Feed:
    """One watch without its waiting: what to ask, what to read, when to take a new socket."""

    def __init__(self, source: WatchSource, key: str, since: Since) -> None:
        self._source = source
        self._clock = source.clock
        self._prefix = source.api.under(key)
        self._since = None if since is None else mark_of(since)
        self._brain: Watching | None = None
        self._publish = ""
        self._pending: deque[tuple[Commit, Change]] = deque()
        self._given = Mark(0)  # the last event that was given out
        self._ask_at = 0.0
        self._failed: Error | None = None
        self.socket: Socket | None = None
        self.closed = False

    @property
    def stats(self) -> WatchStats:
        return self._brain.stats if self._brain else WatchStats()

    @property
    def mark(self) -> Mark | None:
        """All up to here was given out; None before it is known where to begin."""
        if self._brain is None or self._pending:
            return self._given if self._brain else None
        return max(self._given, Mark(self._brain.complete_to))

    def open(self) -> Flow:
        """Learn what there is to subscribe at, subscribe, fix the place to begin at."""
        welcome, epoch = yield Ask(Hello(), ASK_MOST)
        now = self._clock()
        self._given = Mark(welcome.revision) if self._since is None else self._since
        brain = Watching(self._prefix, self._given, uuid=welcome.uuid, epoch=epoch, now=now)
        self._brain = brain
        if self._source.context is not None:
            self._publish = sockets.dialable(welcome.publish, self._source.url)
        if self._publish:
            self._subscribe(brain, now)

    def next(self, timeout: float | None) -> Flow:
        """The next event, or None when none came in time. Raises what ends the watch."""
        deadline = None if timeout is None else self._clock() + timeout
        self._check()
        if self._brain is None:
            yield from self.open()
        brain = self._brain
        assert brain is not None  # `open` made it or raised
        if self.socket is None and not self._pending:
            brain.catch_up(self._clock())
        while not self._pending:
            self._check()
            now = self._clock()
            command = brain.request()
            if command is not None and now >= self._ask_at:
                left = ASK_MOST if deadline is None else deadline - now
                yield from self._catch_up(brain, Ask(command, _within(left, ASK_LEAST, ASK_MOST)))
            elif self._drain(brain, now):
                if not self._pending:
                    yield Wait(0.0)
            elif deadline is not None and now >= deadline:
                return None
            elif self.socket is not None and now >= brain.silent_at:
                self._subscribe(brain, now)
            else:
                yield from self._rest(brain, now, deadline)
        commit, change = self._pending.popleft()
        self._given = Mark(commit.revision, change.index)
        return self._event(commit, change)

    def fail(self, error: Error) -> None:
        """End the watch with this error, if it is one that no wait can mend."""
        if not isinstance(error, Unavailable | InvalidPayload):
            self._failed = error

    def listen(self, topics: tuple[bytes, ...]) -> Socket:
        """A new socket, subscribed to these topics."""
        assert self._source.context is not None  # only with an address
        socket = sockets.watcher(self._source.context())
        try:
            sockets.connect(socket, self._publish)
            for topic in topics:
                sockets.subscribe(socket, topic)
        except BaseException:
            socket.close()
            raise
        return socket

    def receive(self, socket: Socket) -> list[bytes] | None:
        """The frames of one message; None: nothing waits; []: one was unfit and dropped."""
        return sockets.receive(socket, 1)

    def close_socket(self) -> None:
        if self.socket is not None:
            self.socket.close()
            self.socket = None

    # --- inside ---

    def _check(self) -> None:
        if self.closed:
            raise Closed("this watch is closed", hint="call watch() again")
        if self._failed is not None:
            raise self._failed

    def _catch_up(self, brain: Watching, ask: Ask) -> Flow:
        brain.stats.since_requests += 1
        try:
            events, epoch = yield ask
        except Unavailable:
            self._ask_at = self._clock() + ASK_AGAIN
        else:
            self._give(brain.events(events, epoch))

    def _rest(self, brain: Watching, now: float, deadline: float | None) -> Flow:
        until = now + POLL if self.socket is None else brain.silent_at
        if brain.request() is not None:
            until = min(until, self._ask_at)
        if deadline is not None:
            until = min(until, deadline)
        yield Wait(max(0.0, until - now))
        if self.socket is None:
            brain.catch_up(self._clock())

    def _drain(self, brain: Watching, now: float) -> bool:
        """Read until there is something to give out. False when nothing was there to read."""
        if self.socket is None:
            return False
        for count in range(_DRAIN):
            frames = self.receive(self.socket)
            if frames is None:
                return count > 0
            if frames:
                self._take(brain, frames[0], now)
            if self._pending or brain.request() is not None:
                break
        return True

    def _take(self, brain: Watching, frame: bytes, now: float) -> None:
        try:
            messages = publications.decode_publications(frame)
        except Error:  # whatever it held shows as missing, and is asked for
            brain.stats.malformed += 1
            return
        for message in messages:
            if isinstance(message, Heartbeat):
                brain.heartbeat(message, now)
            elif isinstance(message, Publication):
                self._give(brain.publication(message))

    def _give(self, commits: list[Commit]) -> None:
        self._pending.extend((commit, change) for commit in commits for change in commit.changes)

    def _subscribe(self, brain: Watching, now: float) -> None:
        self.close_socket()
        topics: tuple[bytes, ...] = (publications.topic_of(brain.pipeline),)
        if brain.pipeline:
            topics += (publications.HEARTBEAT_TOPIC,)
        self.socket = self.listen(topics)
        brain.stats.sockets += 1
        brain.catch_up(now)

    def _event(self, commit: Commit, change: Change) -> Event:
        api, mark = self._source.api, Mark(commit.revision, change.index)
        checkpoint = None
        if change.version is not None:
            try:
                checkpoint = api.checkpoint(Row(change.key, commit.epoch, change.version))
            except InvalidPayload as damage:
                damage.hint = "the watch goes on after it"
                damage.details["resume"] = mark
                raise
        kind = KINDS[change.kind]
        if change.kind == PUT and checkpoint is not None and checkpoint.rewind is not None:
            kind = "rewind"
        return Event(kind, api.bare(change.key), checkpoint, commit.revision, commit.epoch,
                     commit.time, mark)


def _within(number: float, least: float, most: float) -> float:
    return max(least, min(most, number))
