"""`ckptmesh store`: one process, one actor, one thread that owns the state and the log.

Its ROUTER connects to the broker, and may bind a direct address beside; the reply path is whatever
frames stand before the last one, so the same code serves both. Its XPUB connects to the broker's
publication side, and hears there who subscribes and where the broker publishes.

Rule 1: the loop never waits but in `poll`; every send is DONTWAIT, and what cannot go is counted.
Rule 2: a batch is answered after its sync, published after its answers.
Rule 3: a failed log ends the process without an answer.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence

from ckptmesh import bundles, limits, publications, sockets
from ckptmesh.config import StoreConfig, make_run_folder, run_folder
from ckptmesh.engine import Engine
from ckptmesh.messages import Publication
from ckptmesh.opening import open_store
from ckptmesh.process import Tell, notify_ready, on_stop_signals, quieten_collector
from ckptmesh.sockets import Bound

Route = tuple[bytes, ...]

_TICK = 0.1  # seconds between two looks at what is due while requests keep coming


class Pace:
    """When to publish: at once while little is going on, and under load once in a while.

    What a frame costs is paid for each watcher. So where more than `PUBLICATION_FEW` publications
    come in `PUBLICATION_GAP` seconds, those of the next such time leave together at its end.
    """

    def __init__(self) -> None:
        self.until = 0.0  # end of the present time
        self._count = 0  # of publications in it, so far
        self._busy = False

    def now(self, now: float, count: int) -> bool:
        """Whether so many publications of a batch leave at once, with what was held back; else at
        `until`. `now` as of `time.monotonic`."""
        begins = now >= self.until
        if begins:
            self.turn(now)
        self._count += count
        return begins or not self._busy

    def turn(self, now: float) -> None:
        """Begin the next time: the one before is over, and nothing is held back from here on."""
        self._busy = (self._count > limits.PUBLICATION_FEW
                      and now < self.until + limits.PUBLICATION_GAP)  # else it was quiet since
        self._count = 0
        self.until = now + limits.PUBLICATION_GAP


class StoreActor:
    """The sockets around an engine."""

    def __init__(self, engine: Engine[Route], config: StoreConfig) -> None:
        self.engine = engine
        self.unroutable = 0
        self.dropped = 0
        self._stopping = False
        self._topics: set[bytes] = set()
        self._xpub_used = True  # so that its descriptor need not tell what it has heard
        self._next_beat = 0.0
        self._pace = Pace()
        self._held: list[Publication] = []  # durable, and to be published soon
        self._bound: Bound | None = None
        self._wake_out, self._wake_in = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._context = sockets.context()
        try:
            self._router = sockets.store_requests(self._context)
            self._xpub = sockets.store_publications(self._context)
            if config.direct:
                self._bound = sockets.bind(self._router, config.direct)
            sockets.connect(self._xpub, config.backend_publish)
            sockets.connect(self._router, config.backend)
        except BaseException:
            self._context.destroy(linger=0)
            self._let_go()
            raise
        self._tell_figures()

    @property
    def direct(self) -> str:
        """The direct address as bound, "" without one."""
        return self._bound.url if self._bound else ""

    def stop(self) -> None:
        """End the loop after the batch under way. Safe in a signal handler."""
        self._stopping = True
        with contextlib.suppress(BlockingIOError, OSError):
            os.write(self._wake_in, b"\0")

    def run(self) -> None:
        """Serve until `stop`. Raises `Poisoned` when the log fails."""
        engine = self.engine
        sleep = sockets.Sleep((self._router, self._xpub), self._wake_out).sleep
        next_tick = 0.0
        while not self._stopping:
            asked = sockets.readable(self._router)  # by those who came while a batch was synced
            if not asked:
                if self._xpub_used:
                    self._hear_subscriptions()
                until = min(self._next_beat, self._pace.until) if self._held else self._next_beat
                wait = min(engine.wait(), max(0.0, until - time.monotonic()))
                changed = sleep(0.0 if self._xpub_used else wait)
                if self._xpub in changed:
                    self._hear_subscriptions()
                asked = self._router in changed
            batch = self._drain() if asked else []
            if batch:
                self._release(*engine.process(batch))
            now = time.monotonic()
            if self._held and now >= self._pace.until:
                self._pace.turn(now)
                self._publish_held()
            if not batch or now >= next_tick:
                self._release(*engine.tick())
                next_tick = now + _TICK
            if now >= self._next_beat:
                self._beat(now)
        self._release(*engine.process(self._drain()))
        self._publish_held()

    def close(self) -> None:
        """Close the sockets, giving replies a moment to leave."""
        for socket in (self._router, self._xpub):
            socket.close()
        self._context.term()
        self._let_go()

    def _let_go(self) -> None:
        if self._bound:
            self._bound.release()
        os.close(self._wake_out)
        os.close(self._wake_in)

    def _drain(self) -> list[tuple[Route, bytes]]:
        """What is waiting, up to the bounds of a batch."""
        batch: list[tuple[Route, bytes]] = []
        size = count = 0
        while count < limits.BATCH_REQUESTS and size < limits.BATCH_BYTES:
            frames = sockets.receive(self._router, sockets.STORE_PARTS)
            if frames is None:
                break
            if len(frames) < 2:  # dropped by `receive`, or without a payload
                self.dropped += 1
                count += 1
                continue
            *route, payload = frames
            batch.append((tuple(route), payload))
            count += bundles.count(payload)
            size += len(payload)
            if len(batch) == 1 and not sockets.readable(self._router):
                break  # to find this out costs less than a read in vain, and one alone is usual
        return batch

    def _release(self, replies: Sequence[tuple[Route, bytes]],
                 published: Sequence[Publication]) -> None:
        for route, reply in replies:
            if not sockets.send(self._router, (*route, reply)):
                self.unroutable += 1  # its client is gone; if it lives, it asks again
        if published:
            self._held += published
            if self._pace.now(time.monotonic(), len(published)):
                self._publish_held()

    def _publish_held(self) -> None:
        held, self._held = self._held, []
        for frame in publications.encode_publications(held):
            self._publish(frame)

    def _beat(self, now: float) -> None:
        self._publish_held()  # a heartbeat names a head that watchers then expect to have
        self._next_beat = now + limits.HEARTBEAT
        self._publish(publications.encode_publication(self.engine.heartbeat()))
        self._tell_figures()

    def _publish(self, frame: bytes) -> None:
        sockets.send(self._xpub, (frame,))
        self._xpub_used = True

    def _tell_figures(self) -> None:
        self.engine.sockets = {
            "unroutable": self.unroutable, "dropped": self.dropped,
            "subscriptions": len(self._topics), "direct": self.direct,
        }

    def _hear_subscriptions(self) -> None:
        changes, self._xpub_used = sockets.subscription_changes(self._xpub)
        for subscribed, topic in changes:
            if topic.startswith(publications.ANNOUNCE):
                url = topic[len(publications.ANNOUNCE):].decode("utf-8", "replace")
                self.engine.machine.publish = url if subscribed else ""
            elif subscribed:
                self._topics.add(topic)
            else:
                self._topics.discard(topic)
        self.engine.publishing = bool(self._topics)


def run(config: StoreConfig, tell: Tell) -> None:
    """Be a store until SIGTERM or SIGINT.

    Raises whatever of the catalogue keeps it from starting (`DirectoryInUse`, `Corrupt`,
    `ClockSuspect`, `InvalidDirectory`, `AddressInUse`) or from going on (`Poisoned`).
    """
    if str(run_folder(config.data)) in config.backend + config.backend_publish:
        make_run_folder(config.data)
    engine: Engine[Route] = open_store(config)
    engine.tell = tell
    for note in engine.log.notes:
        tell(note)
    try:
        engine.serve()
        actor = StoreActor(engine, config)
    except BaseException:
        engine.close()
        raise
    state = engine.state
    tell(f"epoch {state.epoch}, revision {state.revision}, {len(state.entries):,} keys, "
         f"log {engine.log.verdict}; serving {config.data}")
    quieten_collector()
    notify_ready()
    try:
        with on_stop_signals(actor.stop):
            actor.run()
    finally:
        try:
            engine.close()
        finally:  # a log that cannot be sealed must not keep the direct address
            actor.close()
