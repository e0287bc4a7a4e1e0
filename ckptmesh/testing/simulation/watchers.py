"""A watcher's machine: the real feed and the real watcher's brain, on virtual time."""

from __future__ import annotations

from collections import deque
from functools import partial
from typing import Any

from ckptmesh import values
from ckptmesh.api import Api
from ckptmesh.calls import Call
from ckptmesh.errors import Compacted, Error, Unavailable
from ckptmesh.feed import Ask, Feed, Flow, WatchSource
from ckptmesh.messages import KINDS, LAST_INDEX, Change, Commit
from ckptmesh.testing.simulation.broker import Broker
from ckptmesh.testing.simulation.clients import Client
from ckptmesh.testing.simulation.judge import Judge
from ckptmesh.testing.simulation.network import Network
from ckptmesh.testing.simulation.world import SECOND, Broken, Turn, World
from ckptmesh.views import Event, Mark

_URL = "tcp://simulated:7701"
_QUEUE = 3  # publications that a watcher's socket holds; what comes then is lost
_READS = 2_000  # microseconds that a watcher takes for an event, at most


class Subscription:
    """A SUB socket of the simulated network."""

    def __init__(self, world: World, broker: Broker, name: str, turn: Turn,
                 topics: tuple[bytes, ...]) -> None:
        self._world = world
        self._broker = broker
        self._name = name
        self._turn = turn
        self._queue: deque[bytes] = deque()
        broker.subscribe(name, topics, self._arrive)

    def _arrive(self, frame: bytes) -> None:
        if len(self._queue) >= _QUEUE:
            self._world.fault("publication overflow", self._name)
            return
        self._queue.append(frame)
        self._turn.ask()

    def receive(self) -> list[bytes] | None:
        return [self._queue.popleft()] if self._queue else None

    def close(self) -> None:
        self._broker.unsubscribe(self._name)


class SimulatedFeed(Feed):
    """The feed, with another kind of socket."""

    def __init__(self, watcher: Watcher, source: WatchSource, since: Mark) -> None:
        super().__init__(source, watcher.prefix, since)
        self._watcher = watcher

    def listen(self, topics: tuple[bytes, ...]) -> Any:
        return self._watcher.subscription(topics)

    def receive(self, socket: Any) -> list[bytes] | None:
        frames: list[bytes] | None = socket.receive()
        return frames


class Watcher:
    """Watches a prefix from a revision on, and hands the judge what it is given."""

    def __init__(self, world: World, network: Network, broker: Broker, judge: Judge, name: str,
                 prefix: str) -> None:
        self._world = world
        self._broker = broker
        self._judge = judge
        self.name = name
        self.prefix = prefix
        self._client = Client(world, network, broker, judge, name)
        self._chance = world.chance(f"{name} reads")
        self._sockets = 0
        self._turn = Turn(world, self._wake)
        self._mark = Mark(0)  # of the last event that was given out
        self._wanted: deque[tuple[Commit, Change]] = deque()
        self._restarts_in = 0  # events; 0: not
        self._seen = 0  # the judge's facts up to here are in `_wanted`, or were
        self._begin()

    # --- life ------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Watch from the mark on."""
        self._life = object()
        # A context that gives nothing: all it says is that there is an address to subscribe at.
        source = WatchSource(lambda command, seconds: None, Api(None), _URL,
                             lambda: None,  # type: ignore[arg-type, return-value]
                             clock=self._client.now)
        self._feed = SimulatedFeed(self, source, self._mark)
        self._flow: Flow = self._feed.next(None)
        self._waiting = True
        self._turn.ask()

    def restart(self, after_events: int = 0) -> None:
        """The process is killed, now or once it was given so many more events, which may be inside
        a revision; the next one goes on behind the last event that was given out."""
        self._restarts_in = after_events
        if after_events:
            return
        self._world.fault("watcher killed", self.name)
        self._feed.close_socket()
        self._client.restart()
        self._turn.end()
        self._turn = Turn(self._world, self._wake)
        self._begin()

    def pause(self, stopped: bool) -> None:
        """SIGSTOP and SIGCONT; what is published meanwhile queues up, and overflows."""
        self._turn.hold(stopped)
        self._client.pause(stopped)

    def subscription(self, topics: tuple[bytes, ...]) -> Subscription:
        self._sockets += 1
        return Subscription(self._world, self._broker, f"{self.name}/{self._sockets}",
                            self._turn, topics)

    # --- the flow --------------------------------------------------------------------------------

    def _wake(self) -> None:
        if self._waiting:
            self._waiting = False
            self._go_on(None)

    def _go_on(self, answer: Any, error: Exception | None = None) -> None:
        """Run the flow until it has to wait for something."""
        while True:
            try:
                step = self._flow.throw(error) if error else self._flow.send(answer)
            except StopIteration as end:
                self._take(end.value)
                self._flow = self._feed.next(None)
                self._waiting = True
                self._turn.ask(self._chance.randint(0, _READS))
                return
            except Compacted as behind:
                self._compacted(behind)
                return
            except Unavailable:  # no store was there while it began; whoever watches tries again
                self._begin()
                return
            except Error as failure:
                raise Broken(f"the watch {self.name} ended: "
                             f"{type(failure).__name__}: {failure}") from failure
            if isinstance(step, Ask):
                self._client.call(type(step.command).__name__.lower(), step.command,
                                  step.timeout, partial(self._told, self._life))
                return
            answer, error = None, None
            self._waiting = True
            self._turn.ask(max(1, int(step.seconds * SECOND)))
            return

    def _told(self, life: object, call: Call) -> None:
        if life is self._life:
            self._go_on((call.result, call.epoch), call.error)

    def _compacted(self, error: Compacted) -> None:
        """It was away for longer than the store remembers: it is told from where to go on."""
        resume = error.details["resume_from"]
        self._judge.behind_floor(self.name, self._mark, self._mark.index < LAST_INDEX, resume)
        self._world.fault("watcher behind the floor", f"{self.name} goes on at {resume}")
        self._feed.close_socket()
        self._mark = Mark(resume)
        self._wanted.clear()
        self._seen = resume
        self._begin()

    # --- the judge's side ------------------------------------------------------------------------

    @property
    def behind(self) -> int:
        """How many durable events it has not been given."""
        self._refill()
        return len(self._wanted)

    def _refill(self) -> None:
        self._wanted.extend(self._judge.model.events(self.prefix, self._seen))
        self._seen = max(self._seen, self._judge.head)

    def _take(self, event: Event) -> None:
        self._refill()
        self._world.tell(f"{self.name} is given {event.kind} {event.key}@{event.revision}")
        if not self._wanted:
            raise Broken(f"{self.name} was given {event}, and nothing was due to it")
        commit, change = self._wanted.popleft()
        given, wanted = _facts(event), (
            KINDS[change.kind], change.key, commit.revision, commit.epoch, commit.time,
            Mark(commit.revision, change.index), _checkpoint(change))
        if given != wanted:
            raise Broken(f"{self.name} was given {given}; next is {wanted}")
        self._mark = event.resume
        if self._restarts_in:
            self._restarts_in -= 1
            if not self._restarts_in:
                self.restart()


def _facts(event: Event) -> tuple[Any, ...]:
    shown = event.checkpoint
    return (event.kind, event.key, event.revision, event.epoch, event.micros, event.resume,
            None if shown is None else (shown.value, shown.revision, shown.version,
                                        shown.create_revision, shown.position, shown.head,
                                        shown.sources, shown.is_lease))


def _checkpoint(change: Change) -> tuple[Any, ...] | None:
    version = change.version
    return None if version is None else (
        values.unpack(version.value), version.revision, version.version, version.create_revision,
        version.position, version.head, version.sources, version.lease is not None)
