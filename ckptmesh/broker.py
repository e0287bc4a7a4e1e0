"""The broker: the only public addresses, and nothing else that a client could wait for.

Rule 1: no Python per message. Both paths run in libzmq's own proxy, in threads, without the GIL.
Rule 2: a socket of a proxy belongs to its thread, which closes it once the context has ended;
any other order leaves the end of the context waiting for ever.
Rule 3: while no store is connected, the broker answers `Unavailable` itself. A request left
waiting would make the proxy spin at full speed, and would reach the next store when its client
has long given up.

Requests      clients ─▶ ROUTER ══ proxy ══ DEALER ◀─ store, or else `NoStore`
Publications  watchers ─▶ XPUB ══ proxy ══ XSUB ◀─ store, and the broker's own beat

The backend addresses are trusted: whoever connects there is served requests as a store is. That
is why they are Unix sockets in a folder of this user alone unless told otherwise.

A store learns the public publication address from the broker: the broker holds a subscription to
`publications.ANNOUNCE` + address, and subscriptions are forwarded to every store that connects.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time

from ckptmesh import sockets
from ckptmesh.bundles import peek
from ckptmesh.config import BrokerConfig, make_run_folder, run_folder
from ckptmesh.errors import Error, Unavailable
from ckptmesh.limits import HEARTBEAT, QUEUE
from ckptmesh.messages import BrokerBeat, Reply
from ckptmesh.process import (
    Tell,
    leave_signals_to_main_thread,
    notify_ready,
    on_stop_signals,
)
from ckptmesh.protocol import encode_reply
from ckptmesh.publications import ANNOUNCE, encode_publication
from ckptmesh.release import RELEASE
from ckptmesh.sockets import Bound, Context, Peers, Socket

_ANSWERS = 1_000  # requests answered in a row before the broker looks at its connections again


class NoStore:
    """Stands in for the store while there is none: answers each request with `Unavailable`.

    A ROUTER beside the store's own connections at the backend DEALER. It is made once and then
    attached and detached, so that a lack of descriptors cannot keep it from coming back.
    """

    def __init__(self, ctx: Context, backend: Socket) -> None:
        self.socket = sockets.no_store_router(ctx)
        self.attached = False
        self.answered = 0
        self.dropped = 0  # malformed requests, and answers to clients that left
        self._message = "the broker is up, but no store is connected to it"
        sockets.bind_inside(backend, "no-store")

    def attach(self) -> None:
        """Take part in the proxy's traffic."""
        if not self.attached:
            sockets.connect_inside(self.socket, "no-store")
            self.attached = True

    def detach(self) -> None:
        """Answer what is waiting, then take no more part.

        A request that the proxy hands over between these two is lost, as it would be with a
        store that dies; its client sends it again.
        """
        if self.attached:
            for _ in range(2 * QUEUE // _ANSWERS):
                if not self.answer():
                    break
            sockets.disconnect_inside(self.socket, "no-store")
            self.attached = False

    def answer(self) -> bool:
        """Answer some of the waiting requests. Whether more may be waiting."""
        for _ in range(_ANSWERS):
            frames = sockets.receive(self.socket, sockets.STORE_PARTS)
            if frames is None:
                return False
            if len(frames) == sockets.STORE_PARTS and self._refuse(frames):
                self.answered += 1
            else:
                self.dropped += 1
        return True

    def _refuse(self, frames: list[bytes]) -> bool:
        try:
            op, session, numbers = peek(frames[-1])
        except Error:
            return False  # whom to answer, and what, only a well-formed request tells
        refusal = Unavailable(self._message, hint="start one with `ckptmesh up`, or wait for it")
        sent = [sockets.send(self.socket, (*frames[:-1], encode_reply(
            op, Reply(session, number, 0, error=refusal)))) for number in numbers]
        return all(sent)

    def close(self) -> None:
        self.socket.close()


class _Proxy(threading.Thread):
    """One path: passes messages both ways until the context ends, then closes its sockets."""

    def __init__(self, name: str, front: Socket, back: Socket, broker: Broker) -> None:
        super().__init__(name=f"ckptmesh-{name}", daemon=True)
        self._front, self._back, self._broker = front, back, broker

    def run(self) -> None:
        leave_signals_to_main_thread()
        try:
            sockets.proxy(self._front, self._back)
        except sockets.ContextEnded:
            pass
        except Exception as error:
            self._broker.fail(f"the {self.name} path ended: {error}")
        finally:
            self._front.close()
            self._back.close()


class Broker:
    """One broker process's life. `run()` binds, serves until a stop signal or `stop()`, and ends.

    `url` and `publish_url` are the real public addresses once `ready` is set.
    """

    def __init__(self, config: BrokerConfig, *, tell: Tell) -> None:
        self.url = ""
        self.publish_url = ""
        self.ready = threading.Event()
        self._config = config
        self._tell = tell
        self._stopping = False
        self._failure = ""
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._bound: list[Bound] = []
        self._seen_stores = 0

    def stop(self) -> None:
        """End soon. Callable from any thread and from a signal handler."""
        self._stopping = True
        with contextlib.suppress(BlockingIOError, OSError):
            os.write(self._wake_write, b"x")

    def fail(self, why: str) -> None:
        """End with an error. Called by a path that ended by itself."""
        self._failure = why
        self.stop()

    def run(self) -> None:
        """Serve until told to stop.

        Raises `AddressInUse`, `InvalidUrl`, `InvalidDirectory`; `Unavailable` when a path ended
        by itself, which is a bug or a lack of memory.
        """
        ctx = sockets.context()
        try:
            with on_stop_signals(self.stop):
                try:
                    self._open(ctx)
                except BaseException:
                    ctx.destroy(linger=0)  # no thread runs yet, so everything is ours to close
                    raise
                try:
                    self._serve()
                finally:
                    self._close(ctx)
        finally:
            for bound in self._bound:
                bound.release()
            os.close(self._wake_read)
            os.close(self._wake_write)
        if self._failure:
            raise Unavailable(self._failure, hint="start the broker again")

    # --- start --------------------------------------------------------------------------------

    def _open(self, ctx: Context) -> None:
        config = self._config
        if str(run_folder(config.data)) in config.backend + config.backend_publish:
            make_run_folder(config.data)

        requests, backend = sockets.broker_frontend(ctx), sockets.broker_backend(ctx)
        watchers, stores = sockets.publications_frontend(ctx), sockets.publications_backend(ctx)
        self._clients, self._stores = Peers(ctx, requests), Peers(ctx, backend)
        self._no_store = NoStore(ctx, backend)
        self._no_store.attach()  # before any client can come

        sockets.bind_inside(watchers, "watchers")
        sockets.bind_inside(stores, "beats")
        self._bind(backend, config.backend)
        self._bind(stores, config.backend_publish)
        self.publish_url = self._bind(watchers, config.publish)
        self._announcer = sockets.watcher(ctx)
        sockets.connect_inside(self._announcer, "watchers")
        sockets.subscribe(self._announcer, ANNOUNCE + self.publish_url.encode())
        self._beats = sockets.publisher(ctx)
        sockets.connect_inside(self._beats, "beats")
        self.url = self._bind(requests, config.bind)

        self._proxies = [
            _Proxy("requests", requests, backend, self),
            _Proxy("publications", watchers, stores, self),
        ]
        for proxy in self._proxies:
            proxy.start()

    def _bind(self, socket: Socket, url: str) -> str:
        bound = sockets.bind(socket, url)
        self._bound.append(bound)
        return bound.url

    # --- life ---------------------------------------------------------------------------------

    def _serve(self) -> None:
        self._tell(f"serving at {self.url}, publishing at {self.publish_url}; no store yet")
        self.ready.set()
        notify_ready()
        began = next_beat = time.monotonic()
        sources = (
            self._wake_read, self._clients.socket, self._stores.socket, self._no_store.socket
        )
        more = False
        while not self._stopping:
            now = time.monotonic()
            if now >= next_beat:
                self._beat(now - began)
                next_beat = max(next_beat + HEARTBEAT, now)
            sockets.poll(sources, 0 if more else next_beat - now)
            self._clients.read()
            self._follow_stores()
            more = self._no_store.attached and self._no_store.answer()
        self._tell("stopping")

    def _follow_stores(self) -> None:
        """Attach or detach the stand-in, and tell what changed."""
        stores = self._stores.read()
        before = self._seen_stores
        if stores == before:
            return
        if stores:
            self._no_store.detach()
        else:
            self._no_store.attach()
        self._seen_stores = stores
        if stores > 1:
            self._tell(
                f"UNHEALTHY: {stores} stores are connected and would be served in turn; "
                "stop all but one"
            )
        elif stores == 1:
            self._tell("a store is connected" + (", one only: healthy again" if before else ""))
        else:
            self._tell("the store is gone; until it is back, requests are answered `Unavailable`")

    def _beat(self, uptime: float) -> None:
        beat = BrokerBeat(os.getpid(), RELEASE, self._stores.count, self._clients.count, uptime)
        sockets.send(self._beats, [encode_publication(beat)])

    # --- end ----------------------------------------------------------------------------------

    def _close(self, ctx: Context) -> None:
        for owned in (self._clients, self._stores, self._no_store, self._announcer, self._beats):
            owned.close()
        ctx.term()  # ends the proxies, which close their sockets; LINGER bounds it
        for proxy in self._proxies:
            proxy.join()
        self._tell("stopped")
