"""Running a plan: the whole system in one thread, judged at every step."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from ckptmesh.messages import Get, Put, Transact
from ckptmesh.testing.simulation.answers import Operation
from ckptmesh.testing.simulation.broker import Broker
from ckptmesh.testing.simulation.clients import Client
from ckptmesh.testing.simulation.judge import Judge
from ckptmesh.testing.simulation.network import Network
from ckptmesh.testing.simulation.plan import Plan, Step
from ckptmesh.testing.simulation.store import Machine
from ckptmesh.testing.simulation.watchers import Watcher
from ckptmesh.testing.simulation.world import SECOND, Broken, World

PATIENCE = 60 * SECOND  # after everything healed: by then all must be answered and watched
_EVENTS = 200_000  # of a simulation; more means that something spins


@dataclass
class Report:
    """What became of one plan. `violation` is "" when every promise was kept. `trace` is the hash
    of all that happened; `story` its lines, where they were kept; `operations` what clients asked,
    which `history_of` makes a history of for black-box checkers."""

    plan: Plan
    violation: str = ""
    trace: str = ""
    seconds: float = 0.0  # of the world
    events: int = 0
    revisions: int = 0
    operations: list[Operation] = field(default_factory=list)
    sites: Counter[str] = field(default_factory=Counter)
    story: list[str] = field(default_factory=list)


class Simulation:
    """One world with everybody in it."""

    def __init__(self, plan: Plan, *, keep: bool = False) -> None:
        self.plan = plan
        self.world = World(plan.seed, keep=keep)
        self.network = Network(self.world)
        self.judge = Judge(self.world)
        self.broker = Broker(self.world, self.network)
        self.store = Machine(self.world, self.network, self.broker, self.judge)
        self.clients = {f"c{n + 1}": Client(self.world, self.network, self.broker, self.judge,
                                            f"c{n + 1}") for n in range(plan.clients)}
        self.watchers = {f"w{n + 1}": Watcher(self.world, self.network, self.broker, self.judge,
                                              f"w{n + 1}", prefix)
                         for n, prefix in enumerate(plan.watched)}

    def run(self) -> Report:
        """Run to the end. Never raises for a broken promise: the report tells it."""
        world = self.world
        report = Report(self.plan)
        try:
            self._live()
            self._heal()
            self._settle()
        except Broken as broken:
            report.violation = str(broken)
        except Exception as crash:  # a bug of the code under test, or of the simulation
            report.violation = f"{type(crash).__name__}: {crash}"
            report.story.append(_place_of(crash))
        world.tell(report.violation or "all promises were kept")
        report.trace, report.seconds, report.events = world.trace, world.seconds, world.events
        report.revisions = self.judge.head
        report.operations = self.judge.operations
        report.sites = world.sites
        report.story = world.story + report.story
        return report

    # --- three parts -----------------------------------------------------------------------------

    def _live(self) -> None:
        """The plan, with its faults."""
        self.network.weather = self.plan.weather
        for step in self.plan.steps:
            self.world.at(step.at, self._do, step)
        self.world.after(0, self.store.start)
        self._until(self.plan.length)

    def _heal(self) -> None:
        """No more faults; whoever was stopped goes on, whoever was killed starts."""
        self.world.tell("everything heals")
        self.network.calm()
        store = self.store
        store.kill_in, store.fail, store.full, store.slow = 0, None, False, 0
        self.broker.start()
        store.pause(False)
        for client in self.clients.values():
            client.pause(False)
        for watcher in self.watchers.values():
            watcher.pause(False)

    def _settle(self) -> None:
        """Then everything that was asked is answered, everybody can commit, and every watcher
        is given what it has not had."""
        end = self.world.now + PATIENCE
        self._until(self.world.now + 20 * SECOND)  # longer than any timeout or backoff
        engine = self.store.engine
        if engine is not None:
            self.judge.at_rest(engine.machine.now)
        for name, client in self.clients.items():
            client.ask("resolve", "")
            client.request("the last put", Transact((), (Put(f"c/_last/{name}", b"\xc3"),)))
            client.request("the last get", Get(("a/0", "a/1", "b/0", "b/count0")))
        self._until(end, self._quiet)
        for operation in self.judge.operations:
            if operation.what.startswith("the last") and (
                    operation.answered is None or operation.error is not None):
                raise Broken(f"after all was well again {operation.client} was told, of "
                             f"{operation.what}: {operation.error or 'nothing'}")
        for client in self.clients.values():
            if client.open:
                raise Broken(f"{client.open} requests of {client.name} were never answered")
        for watcher in self.watchers.values():
            if watcher.behind:
                raise Broken(f"{watcher.name} was never given its last {watcher.behind} events")
        if self.store.engine is None:
            raise Broken("the store does not run, though all is well")
        self.judge.model.same(self.store.engine.state, "the end")
        spare = self.store.without_newest_snapshot()
        if spare is not None:
            self.judge.as_replayed(spare)

    def _quiet(self) -> bool:
        return not any(client.open for client in self.clients.values()) and not any(
            watcher.behind for watcher in self.watchers.values())

    def _until(self, time: int, enough: object = None) -> None:
        world = self.world
        while world.step(time):
            if world.events > _EVENTS:
                raise Broken(f"{_EVENTS:,} events, and no end")
            if callable(enough) and enough():
                return

    # --- the plan's steps ------------------------------------------------------------------------

    def _do(self, step: Step) -> None:
        who = step.who
        if step.what in ("cut", "join"):
            self._reach(step)
        elif who == "store":
            self._do_to_store(step)
        elif who == "broker":
            self.broker.kill() if step.what == "kill" else self.broker.start()
        elif step.what in ("pause", "go on"):
            if step.what == "pause":
                self.world.fault(f"{'watcher' if who in self.watchers else 'client'} stopped", who)
            (self.clients.get(who) or self.watchers[who]).pause(step.what == "pause")
        elif step.what == "restart":
            (self.clients.get(who) or self.watchers[who]).restart(*step.arguments)
        else:
            self.clients[who].ask(step.what, step.key, *step.arguments)

    def _reach(self, step: Step) -> None:
        if step.what == "cut":
            self.world.fault("place cut off", step.who)
            self.network.cut(step.who)
        else:
            self.network.join(step.who)

    def _do_to_store(self, step: Step) -> None:
        store, what = self.store, step.what
        match what:
            case "kill" | "power":
                store.kill(power=what == "power")
            case "stop":
                store.stop()
            case "kill in" | "power in":
                store.kill_in, store.power_goes = step.arguments[0], what == "power in"
            case "fail":
                store.fail = (step.key, step.arguments[0])
            case "full" | "room":
                store.full = what == "full"
            case "slow":
                store.slow, store.slow_after = step.arguments
            case "pause" | "go on":
                if what == "pause":
                    self.world.fault("store stopped")
                store.pause(what == "pause")
            case "kill compactor":
                store.kill_compactor(step.arguments[0])
            case "sleep":
                store.sleep(step.arguments[0])
            case "clock":
                self.world.fault("wall clock jumps", f"{step.arguments[0] / SECOND:+,.0f} s")
                store.wall_shift += step.arguments[0]


def _place_of(crash: BaseException) -> str:
    trace = crash.__traceback__
    place = ""
    while trace is not None:
        code = trace.tb_frame.f_code
        place = f"at {code.co_filename.rpartition('/')[2]}:{trace.tb_lineno} in {code.co_name}"
        trace = trace.tb_next
    return place


def simulate(plan: Plan, *, keep: bool = False) -> Report:
    """Run one plan. `keep`: keep the lines of the story."""
    return Simulation(plan, keep=keep).run()
