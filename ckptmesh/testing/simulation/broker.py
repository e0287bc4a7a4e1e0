"""The broker, as a model: what libzmq's proxies do to messages, and what its Python answers.

The real broker passes frames on inside libzmq, so there is no code of ours to run here; the hazards
of it that were measured (docs/adr) are: requests in a queue when a store dies may reach the next
one; all that is on its way is lost with the broker; a reply may lead nowhere, or, by a route that
was given anew, to another peer; subscriptions come back only after a while.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from ckptmesh.bundles import peek
from ckptmesh.errors import Error, Unavailable
from ckptmesh.messages import Reply
from ckptmesh.protocol import encode_reply
from ckptmesh.testing.simulation.network import Network
from ckptmesh.testing.simulation.world import World

PUBLISH = "tcp://simulated:7702"
_NOTICES = 30_000  # microseconds until a broker has noticed that its store is gone, at most
_COMES_BACK = 100_000  # microseconds until a peer has connected to a new broker, at most
_MISROUTED = 0.3  # of replies to a broker that is gone, given to a peer of the next one

Deliver = Callable[[bytes], object]


class Broker:
    """One address over many brokers' lives. Places of the network: "broker", and its peers'."""

    def __init__(self, world: World, network: Network) -> None:
        self._world = world
        self._network = network
        self._chance = world.chance("broker")
        self.life = 1
        self.alive = True
        self.connected: dict[str, Deliver] = {}  # clients that have a connection
        self._peers: dict[str, Deliver] = {}  # clients that want one
        self._subscribers: dict[str, tuple[tuple[bytes, ...], Deliver]] = {}  # that want to be
        self._heard: dict[str, tuple[bytes, ...]] = {}  # subscriptions that have arrived
        self._store: Callable[[int, str, bytes], object] | None = None  # the one that is seen
        self._tell_store: Callable[[bool], object] = lambda publishing: None
        self._queued: list[tuple[str, bytes]] = []  # for a store that died unnoticed
        self._store_life = 0

    # --- life ------------------------------------------------------------------------------------

    def kill(self) -> None:
        """The process ends; what was on its way through it is lost."""
        if self.alive:
            self._world.fault("broker killed")
            self.alive = False
            self.connected.clear()
            self._heard.clear()
            self._queued.clear()
            self._store = None

    def start(self) -> None:
        """Another process takes the address; its peers connect to it in time."""
        if self.alive:
            return
        self.alive = True
        self.life += 1
        self._world.tell("broker starts")
        for name, deliver in self._peers.items():
            self._soon(self._connect, name, deliver)
        for name, (topics, _) in self._subscribers.items():
            self._soon(self._hear, name, topics)

    def _soon(self, action: Callable[..., object], *arguments: object) -> None:
        life = self.life

        def then() -> None:
            if self.alive and self.life == life:
                action(*arguments)

        self._world.after(self._chance.randint(100, _COMES_BACK), then)

    # --- clients and the store -------------------------------------------------------------------

    def join(self, name: str, deliver: Deliver) -> None:
        """A client (or its next life) wants a connection."""
        self._peers[name] = deliver
        self.connected.pop(name, None)
        if self.alive:
            self._soon(self._connect, name, deliver)

    def leave(self, name: str) -> None:
        self._peers.pop(name, None)
        self.connected.pop(name, None)

    def _connect(self, name: str, deliver: Deliver) -> None:
        if self._peers.get(name) is deliver:
            self.connected[name] = deliver
            self._world.tell(f"{name} connects")

    def store_joins(self, life: int, deliver: Callable[[int, str, bytes], object],
                    publishing: Callable[[bool], object]) -> None:
        """A store is there. What waited for the one before it reaches it: late copies."""
        if not self.alive:
            return
        self._store, self._store_life, self._tell_store = deliver, life, publishing
        queued, self._queued = self._queued, []
        for route, payload in queued:
            self._world.fault("request for a dead store", f"of {route} reaches the next")
            self._pass_on(route, payload)
        self._soon(self._tell_topics)

    def store_leaves(self, life: int) -> None:
        """The store of that life is gone; the broker notices a little later."""
        def notice() -> None:
            if self._store_life == life:
                self._store = None

        self._world.after(self._chance.randint(0, _NOTICES), notice)

    def request(self, source: str, payload: bytes) -> None:
        """A request has arrived from a client."""
        if not self.alive or source not in self.connected:
            return
        if self._store is not None:
            self._pass_on(source, payload)
        elif self._chance.random() < 0.1:
            self._queued.append((source, payload))
        else:
            self._refuse(source, payload)

    def _pass_on(self, source: str, payload: bytes) -> None:
        store, life = self._store, self.life
        if store is not None:
            self._network.send("broker", "store", payload, partial(store, life, source))

    def _refuse(self, source: str, payload: bytes) -> None:
        try:
            op, session, numbers = peek(payload)
        except Error:
            return
        for number in numbers:
            self.reply(self.life, source, encode_reply(op, Reply(
                session, number, 0, error=Unavailable("no store is connected to the broker"))))

    def reply(self, life: int, route: str, payload: bytes) -> None:
        """A reply has arrived from the store, for a peer of the broker of that life."""
        if not self.alive:
            return
        if life != self.life:
            self._world.fault("reply by an old route", route)
            others = sorted(self.connected)
            if not others or self._chance.random() >= _MISROUTED:
                return
            route = self._chance.choice(others)
            self._world.fault("reply to another client", route)
        deliver = self.connected.get(route)
        if deliver is not None:
            self._network.send("broker", route, payload, deliver)

    # --- publications ----------------------------------------------------------------------------

    def subscribe(self, name: str, topics: tuple[bytes, ...], deliver: Deliver) -> None:
        """A watcher wants these topics; the store learns it after a while."""
        self._subscribers[name] = (topics, deliver)
        if self.alive:
            self._soon(self._hear, name, topics)

    def unsubscribe(self, name: str) -> None:
        self._subscribers.pop(name, None)
        if self._heard.pop(name, None) is not None:
            self._tell_topics()

    def _hear(self, name: str, topics: tuple[bytes, ...]) -> None:
        if name in self._subscribers:
            self._heard[name] = topics
            self._tell_topics()

    def _tell_topics(self) -> None:
        if self._store is not None:
            self._tell_store(bool(self._heard))

    def publication(self, frame: bytes) -> None:
        """A publication has arrived from the store: to whoever's subscription has."""
        if not self.alive:
            return
        for name, topics in list(self._heard.items()):
            if frame.startswith(topics):
                deliver = self._subscribers[name][1]
                self._network.send("broker", name, frame, deliver)
