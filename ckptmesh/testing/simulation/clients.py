"""A client's machine: the real session core and the real codecs, on virtual time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import msgpack

from ckptmesh import bundles, commands
from ckptmesh.calls import NEVER, Call
from ckptmesh.entries import MANY, SMALL
from ckptmesh.errors import Error, OutcomeUnknown
from ckptmesh.limits import under
from ckptmesh.messages import (
    At,
    Close,
    Command,
    Compact,
    Delete,
    Exists,
    Get,
    Hello,
    History,
    Increment,
    KeepAlive,
    Opened,
    PlainPuts,
    Put,
    RevisionIs,
    Rows,
    Rules,
    Scan,
    SetContract,
    TokenIs,
    Touch,
    Transact,
    Unchanged,
)
from ckptmesh.session import Session
from ckptmesh.testing.simulation.answers import Operation
from ckptmesh.testing.simulation.broker import Broker
from ckptmesh.testing.simulation.judge import Judge
from ckptmesh.testing.simulation.model import revisions_of
from ckptmesh.testing.simulation.network import Network
from ckptmesh.testing.simulation.world import SECOND, Turn, World

Told = Callable[[Call], object]


_CONTRACTS = (Rules(), Rules(monotonic=True), Rules(max_step=9), Rules(max_bytes=18),
              Rules(ttl=2 * SECOND), Rules(required=True), Rules(history=1),
              Rules(True, False, 30, 200, 3 * SECOND, 3))


class Client:
    """One client over many lives of its process; each life has a session core of its own."""

    def __init__(self, world: World, network: Network, broker: Broker, judge: Judge,
                 name: str) -> None:
        self._world = world
        self._network = network
        self._broker = broker
        self._judge = judge
        self.name = name
        self.open = 0  # operations that have not settled
        self._life = 0
        self._turn = Turn(world, self._pump)
        self._origin = world.chance(name).random() * 1e6  # of its monotonic clock, in seconds
        self._known: dict[str, int] = {}  # key → revision, as last read or committed
        self._tokens: dict[str, tuple[int, int]] = {}  # leases that it believes to hold
        self._doubts: list[tuple[Call, Operation]] = []
        self._time = 0  # latest store time that it was told
        self._count = 0
        self._session: Session = self._fresh()

    # --- life ------------------------------------------------------------------------------------

    def _fresh(self) -> Session:
        self._life += 1
        self.open = 0
        self._arrived: list[bytes] = []
        self._turn.end()
        self._turn = Turn(self._world, self._pump)
        chance = self._world.chance(f"{self.name} jitter")
        session = Session(f"{self.name}:{self._life}", pack=commands.pack_command,
                          jitter=chance.random, where="the simulated store",
                          first=chance.getrandbits(52))
        self._broker.join(self.name, self._deliver_to(self._life))
        return session

    def restart(self) -> None:
        """The process is killed, and another one begins: it knows nothing."""
        self._world.fault("client killed", self.name)
        self._known.clear()
        self._tokens.clear()
        self._doubts.clear()
        self._session = self._fresh()

    def pause(self, stopped: bool) -> None:
        """SIGSTOP and SIGCONT."""
        self._turn.hold(stopped)

    # --- asking ----------------------------------------------------------------------------------

    def ask(self, what: str, key: str, *arguments: int) -> None:
        """Do one step of the plan."""
        if what == "resolve":
            self._resolve()
            return
        command = self._command(what, key, arguments)
        if command is not None:
            seconds = arguments[-1] if what == "hurried" else 0
            self.request(f"{what} {key}", command, seconds / 1_000 if seconds else NEVER)

    def request(self, what: str, command: Command, timeout: float = NEVER) -> None:
        """Ask for a command; the judge hears of it. `timeout` in seconds."""
        deadline = self._world.now + timeout * SECOND
        operation = self._judge.asked(self.name, what, command, deadline)
        self.call(what, command, timeout, partial(self._told, operation)).owner[0] = operation

    def call(self, what: str, command: Command, timeout: float, told: Told) -> Call:
        """Ask for a command; `told` is called with it once it has settled."""
        now = self.now()
        call = self._session.call(command, now, now + timeout)
        call.owner = [None, told]
        self.open += 1
        self._world.tell(f"{self.name} asks {what}")
        self._turn.ask()
        return call

    def _value(self, more: int = 0) -> bytes:
        self._count += 1
        packed: bytes = msgpack.packb(f"{self.name}.{self._life}.{self._count}" + "." * more)
        return packed

    def _since(self, prefix: str) -> int:
        """The highest revision that it knows of under a prefix."""
        return max((revision for key, revision in self._known.items() if under(prefix, key)),
                   default=0)

    def _command(self, what: str, key: str, arguments: tuple[int, ...]) -> Command | None:
        if what == "contract":
            return SetContract(key, _CONTRACTS[arguments[0]])
        known = self._known.get(key, 0)
        token = self._tokens.get(key)
        match what:
            case "put" | "hurried" | "large":
                more = arguments[0] if what == "large" else 0
                return Transact((), (Put(key, self._value(more)),))
            case "expect":
                return Transact((RevisionIs(key, known),), (Put(
                    key, self._value(), None, False, self._count, self._count + 9,
                    ((key, known),)),))
            case "create":
                return Transact((RevisionIs(key, 0),), (Put(key, self._value()),))
            case "unchanged":
                return Transact((Unchanged(key, self._since(key)),), (Put(
                    key if "/" in key else f"{key}/0", self._value()),))
            case "ttl":
                return Transact((), (Put(key, self._value(), arguments[0]),))
            case "touch":
                return Transact((Exists(key),), (Touch(key, arguments[0]),))
            case "delete":
                return Transact((), (Delete(key),))
            case "increment":
                return Transact((), (Increment(key, *arguments),))
            case "several":
                return Transact((), (Put("a/several", self._value()), Delete(key),
                                     Put(f"c/{arguments[0]}", self._value())))
            case "many" | "many expect" | "many kinds":
                keys = _around(key, *arguments)
                return Transact((RevisionIs(key, known),) if what == "many expect" else (),
                                self._kinds(keys) if what == "many kinds" else self._plain(keys),
                                True)
            case "wholesale":
                return Transact((), self._plain([
                    f"{'abc'[n % 3]}/w{n // 3}" for n in range(*arguments)]))
            case "acquire" | "seize":  # whoever holds it
                return Transact((RevisionIs(key, 0),) if what == "acquire" else (),
                                (Put(key, self._value(), arguments[0], True),))
            case "renew":
                return KeepAlive(key, *token) if token else None
            case "release":
                return Transact((TokenIs(key, *token),), (Delete(key),)) if token else None
            case "fenced":
                return Transact((TokenIs(key, *token),),
                                (Put("a/fenced", self._value()),)) if token else None
            case "get":
                return Get((key, *(f"a/{n}" for n in range(arguments[0]))))
            case "get at":
                return Get((key,), At(revision=max(0, self._judge.acknowledged - arguments[0])))
            case "get at time":
                return Get((key,), At(time=max(0, self._time - arguments[0])))
            case "scan":
                return Scan(key.partition("/")[0], limit=arguments[0])
            case "scan on":
                return Scan(key.partition("/")[0], key, arguments[0])
            case "scan at":
                return Scan(key.partition("/")[0], "", arguments[0], At(
                    revision=max(0, self._judge.acknowledged - arguments[0])))
            case "history":
                return History(key, arguments[0])
            case "hello":
                return Hello()
            case "compact":
                return Compact(arguments[0])
            case "close":
                return Close() if self._session.session else None
        raise ValueError(what)

    def _plain(self, keys: Sequence[str]) -> Sequence[Put]:
        """Puts of small values and nothing else, as `Client.commit_many` makes them."""
        values = [self._value() for _ in keys]
        return PlainPuts(keys, values) if len(keys) >= MANY else tuple(map(Put, keys, values))

    def _kinds(self, keys: Sequence[str]) -> Sequence[Put]:
        """Puts of all kinds."""
        puts: list[Put] = []
        for at, key in enumerate(keys):
            value = self._value(SMALL if at % 4 == 1 else 0)
            if at % 6 == 2:
                puts.append(Put("a/_lock/0", value, 2 * SECOND, True))
            elif at % 3 == 2:
                puts.append(Put(key, value, SECOND))
            else:
                puts.append(Put(key, value, None, False, at if at % 2 else None))
        return tuple(puts)

    def _resolve(self) -> None:
        """Ask what became of what was left in doubt."""
        for lost, operation in self._doubts:
            if lost.attempt and lost.lane is not None:
                call = self._session.find(lost, self.now())
                call.owner = [None, partial(self._found, operation, lost.after)]
                self.open += 1
        self._doubts.clear()
        self._turn.ask()

    # --- sending and receiving -------------------------------------------------------------------

    def now(self) -> float:
        return self._origin + self._world.now / SECOND

    def _deliver_to(self, life: int) -> Callable[[bytes], None]:
        def deliver(payload: bytes) -> None:
            if life == self._life:
                self._arrived.append(payload)
                self._turn.ask()
        return deliver

    def _pump(self) -> None:
        session, now = self._session, self.now()
        arrived, self._arrived = self._arrived, []
        for payload in arrived:
            for op, reply in bundles.decode_replies(payload):
                if isinstance(reply.result, Opened):
                    self._judge.opened(reply.result)
                session.receive(op, reply, now)
        for group in bundles.gather(session.copies(now)):
            if self.name not in self._broker.connected:
                for copy in group:
                    session.unsent(copy)
                continue
            for copy in group:
                owner = copy.call.owner
                if owner and owner[0] is not None:
                    self._judge.sent(owner[0], copy.session, copy.number)
            self._network.send(self.name, "broker", bundles.encode_requests(group), self._request)
        for call in session.settled():
            self.open -= 1
            call.owner[1](call)
        wake = session.wake_at()
        if wake != NEVER:
            self._turn.ask(int((wake - now) * SECOND) + 1)

    def _request(self, payload: bytes) -> None:
        self._broker.request(self.name, payload)

    def _told(self, operation: Operation, call: Call) -> None:
        result, error = call.result, call.error
        self._world.tell(f"{self.name} is told of {operation.what}: "
                         f"{_short(result) if error is None else _named(error)}")
        self._judge.answered(operation, result, error)
        command = operation.command
        if isinstance(error, OutcomeUnknown):
            self._doubts.append((call, operation))
        self._time = max(self._time, getattr(result, "time", 0))
        if error is None and isinstance(command, Transact):
            for mutation, revision in zip(command.mutations, revisions_of(command, result),
                                          strict=True):
                self._known[mutation.key] = revision
                if isinstance(mutation, Put) and mutation.lease:
                    self._tokens[mutation.key] = (result.epoch, revision)
        elif isinstance(result, Rows):
            for row in result.found:
                if row is not None:
                    self._known[row.key] = row.version.revision

    def _found(self, operation: Operation, after: int, call: Call) -> None:
        if call.error is None:
            self._world.tell(f"{self.name} finds {operation.what}: {_short(call.result)}")
            self._judge.found(operation, call.result)
        else:
            self._judge.left_in_doubt(operation, after, call.error)


def _around(key: str, count: int) -> list[str]:
    """So many keys, this one first, in two pipelines; of more than seven some come again."""
    return ([key, "a/m0", "b/m0", "a/m1", "b/m1", "a/m2", "b/m2"] * 3)[:count]


def _named(error: Error) -> str:
    return f"{type(error).__name__}: {error.message}"


def _short(result: Any) -> str:
    told = result.get("revision") if isinstance(result, dict) else getattr(
        result, "revision", result)
    return f"{type(result).__name__} {told}"
