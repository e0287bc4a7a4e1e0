"""The store's machine: disk, clocks, and the store process while there is one.

Engine, log, compaction and recovery are the real ones; here are the loop of `store_actor.py` on
virtual time, and everything that can go wrong under it.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial

from ckptmesh import limits, publications
from ckptmesh.clock import StoreClock
from ckptmesh.compaction import Compaction
from ckptmesh.engine import Engine
from ckptmesh.errors import ClockSuspect, Error
from ckptmesh.facts import Puts, Record
from ckptmesh.manifest import read_manifest
from ckptmesh.messages import Publication
from ckptmesh.records import one_by_one
from ckptmesh.recovery import recover
from ckptmesh.state import State
from ckptmesh.testing.disks import FaultyDisk, Killed, MemoryDisk
from ckptmesh.testing.simulation.broker import PUBLISH, Broker
from ckptmesh.testing.simulation.compactor import Compactor
from ckptmesh.testing.simulation.judge import Judge
from ckptmesh.testing.simulation.model import HISTORY
from ckptmesh.testing.simulation.network import Network
from ckptmesh.testing.simulation.world import SECOND, Turn, World
from ckptmesh.wal import Wal, WalOptions

PLACE = "/store"
BIRTH = 1_800_000_000 * SECOND  # the store's wall clock at the world's beginning
OPTIONS = WalOptions(segment_bytes=160 * limits.KIB, spare="inline", retain_seconds=20,
                     retain_bytes=2 * limits.MIB, watermark_bytes=limits.MIB)
_SETTINGS = {"history_revisions": HISTORY, "history_bytes": limits.MIB}
_SYNC = (80, 400)  # microseconds of a sync, least and most, on a healthy disk
_RESTARTS = (30_000, 1_500_000)  # microseconds until a process that ended is started again
_TICK = 100_000
_TURN = 30  # microseconds that a turn of the loop takes at least
_LEAVES = 1_100_000  # microseconds that a loop may mean to be away at most: the rest is a stall

Route = tuple[int, str]  # (life of the broker, name of the client)
Released = tuple[list[tuple[Route, bytes]], list[Publication]]


class Machine:
    """`kill_in`: the process is killed at that disk call from now, counted from 1. `fail`: the next
    call of that name fails with that errno. `full`: the disk has no room. `slow`: microseconds that
    the sync after `slow_after` more takes."""

    def __init__(self, world: World, network: Network, broker: Broker, judge: Judge) -> None:
        self._world = world
        self._network = network
        self._broker = broker
        self._judge = judge
        judge.clock = self.boot
        self._chance = world.chance("store")
        self._media = MemoryDisk()
        self._media.mkdir(PLACE)
        self._media.sync_directory("/")
        self.life = 0
        self.engine: Engine[Route] | None = None
        self.kill_in = 0
        self.power_goes = False
        self.fail: tuple[str, int] | None = None
        self.full = False
        self.slow = self.slow_after = 0
        self.wall_shift = 0
        self.halted = ""  # why no process may be started again
        self._lag = 0  # microseconds that the turn under way has taken so far
        self._busy = False
        self._inbox: list[tuple[Route, bytes]] = []
        self._turn = Turn(world, self._serve)
        self._next_tick = self._next_beat = 0
        self._phase = "idle"
        self._compactor: Compactor | None = None
        self._accept_clock = False
        self._killed_at = ""
        self._failed = self._unreadable = False  # a call to the disk, in this life; a read
        self._begun = 0  # true time at which this life began
        self._stopped_at: int | None = None
        self._busy_until = 0
        self._asleep = 0  # microseconds in all
        self._waited = False  # once the loop has waited it can tell that it is late
        self._stalls: list[tuple[int, int]] = []  # in the turn under way: begun, microseconds

    # --- clocks ----------------------------------------------------------------------------------

    def boot(self) -> int:
        return self._here() + self._asleep

    def _here(self) -> int:
        """The time of the world, as far as the turn under way has come."""
        return self._world.now + self._lag

    def sleep(self, micros: int) -> None:
        """The machine was suspended for so long, which passes for the others in no time."""
        self._world.fault("machine suspended", f"{micros / SECOND:,.0f} s")
        if self.engine is not None and self._waited:
            self._judge.stalled(self.boot(), micros - _LEAVES)
        self._asleep += micros

    def wall(self) -> int:
        return BIRTH + self.boot() + self.wall_shift

    # --- life of the process ---------------------------------------------------------------------

    def start(self) -> None:
        """Start a store process, if none runs."""
        if self.engine is not None or self.halted:
            return
        self.life += 1
        self._phase = "start"
        self._failed = self._unreadable = self._waited = False
        self._lag = 0
        self._busy = False
        self._inbox = []
        self._turn = Turn(self._world, self._serve)
        self._begun, self._stopped_at = self.boot(), None
        self._stalls.clear()
        self._world.tell(f"store {self.life} starts")
        try:
            engine = self._open(MachineDisk(self, self._media))
            engine.serve()
        except Killed:
            self._end(f"{self._dies} at {self._killed_at}")
            return
        except Error as error:
            self._ended_by(error)
            return
        self._judge.serves(engine.state, self._begun)
        self._tell_stall()
        self.engine = engine
        self._phase = "serving"
        self._world.tell(f"store {self.life} serves epoch {engine.state.epoch} from revision "
                         f"{engine.state.revision}")
        engine.machine.publish = PUBLISH
        engine.publishing = False
        self._next_beat = self._next_tick = self._world.now
        self._rejoin(self.life)
        self._busy, self._busy_until = True, self._here()
        self._world.after(self._lag, self._leave, self.life, [])

    def _open(self, disk: MachineDisk) -> Engine[Route]:
        source = self._world.chance(f"store {self.life} ids")
        wal = JudgedWal.open(PLACE, OPTIONS, disk, lock=_no_lock, clock=self.wall,
                             random=source.randbytes)
        assert isinstance(wal, JudgedWal)
        self._judge.recovered(wal.state)
        wal.judge = self._judge
        clock = StoreClock(max(wal.state.time, wal.state.reserved), wall=self.wall,
                           boot=self.boot, accept_jump=self._accept_clock)
        self._judge.starts(clock.now() - self.boot())
        compaction = Compaction(wal, 200 * limits.KIB, 4, disk=disk, clock=self.wall,
                                elapsed=self.boot, spawn=self._spawn)
        engine: Engine[Route] = Engine(wal, clock, compactor=compaction,
                                       fresh_id=partial(source.randbytes, 16))
        engine.wanted_settings = _SETTINGS
        return engine

    def _rejoin(self, life: int) -> None:
        """Connect to the broker, and again whenever it is another one."""
        if self.engine is None or life != self.life:
            return
        self._broker.store_joins(life, partial(self._request, life), self._set_publishing)
        known = self._broker.life

        def look() -> None:
            if life != self.life or self.engine is None:
                return
            if self._broker.alive and self._broker.life != known:
                self._rejoin(life)
            else:
                self._world.after(50_000, look)

        self._world.after(50_000, look)

    def _set_publishing(self, publishing: bool) -> None:
        if self.engine is not None:
            self.engine.publishing = publishing

    def kill(self, *, power: bool = False) -> None:
        """End the process now; `power`: with the machine, so that its page cache is gone too."""
        if self.engine is None:
            return
        self.power_goes = power
        self._world.sites["power lost" if power else "store killed"] += 1
        self._end(self._dies)

    def stop(self) -> None:
        """End the process in good order."""
        engine = self.engine
        if engine is None or self._busy:
            return
        self._phase = "stop"
        try:
            engine.close()
        except Killed:
            self._end(f"{self._dies} at {self._killed_at}")
        except Error as error:
            self._ended_by(error)
        else:
            self._world.sites["store stopped and started"] += 1
            self._end("stops")

    @property
    def _dies(self) -> str:
        return "loses power" if self.power_goes else "is killed"

    def _ended_by(self, error: Error) -> None:
        if isinstance(error, ClockSuspect):
            self._world.fault("clock suspected at a start")
            self._accept_clock = True  # an operator has looked at it
        if self.engine is not None:
            with suppress(Error, Killed):
                self.engine.close()
        self._judge.store_failed(error, failed=self._failed, unreadable=self._unreadable)
        self._world.sites[f"store ended: {type(error).__name__}"] += 1
        self._end(f"ends by itself: {type(error).__name__}: {error.message}")

    def _end(self, how: str) -> None:
        self._world.tell(f"store {self.life} {how}{self._judge.unsynced}")
        self.engine = None
        self._turn.end()
        self._inbox = []
        self.kill_in = 0
        self.fail = None
        self._lag = 0
        if self._compactor is not None:
            self._compactor.kill()
            self._compactor = None
        if self.power_goes:
            self.power_goes = False
            self._media = self._media.power_failure(self._chance)
        else:
            self._media = self._media.killed()
        self._broker.store_leaves(self.life)
        self._world.after(self._chance.randint(*_RESTARTS), self.start)

    def without_newest_snapshot(self) -> State | None:
        """What a start would find now, if the newest snapshot were damaged; None where none is."""
        contents = {path: None if file is None else bytes(file.data)
                    for path, file in self._media.names.items()}
        manifest = read_manifest(MemoryDisk.holding(contents), PLACE)
        if manifest is None or not manifest.snapshots:
            return None
        path = f"{PLACE}/{manifest.snapshots[-1].file}"
        whole = contents[path] or b""
        contents[path] = bytes(len(whole) // 2) + whole[len(whole) // 2 :]
        return recover(MemoryDisk.holding(contents), PLACE).state

    # --- the loop --------------------------------------------------------------------------------

    def pause(self, stopped: bool) -> None:
        """SIGSTOP and SIGCONT."""
        if self.engine is None:
            return
        if self._stopped_at is not None and not stopped:
            begun = max(self._stopped_at, self._busy_until)  # a disk goes on meanwhile
            self._judge.stalled(begun + self._asleep, max(0, self._world.now - begun - _LEAVES))
        self._stopped_at = self._world.now if stopped else None
        self._turn.hold(stopped)

    def _request(self, life: int, broker_life: int, client: str, payload: bytes) -> None:
        if life == self.life and self.engine is not None:
            self._inbox.append(((broker_life, client), payload))
            self._turn.ask()

    def _serve(self) -> None:
        """One turn of the loop: see `StoreActor.run`."""
        engine = self.engine
        if engine is None or self._busy:
            return
        batch, self._inbox = (self._inbox[: limits.BATCH_REQUESTS],
                              self._inbox[limits.BATCH_REQUESTS:])
        out: list[Released] = []
        self._lag += _TURN
        try:
            if batch:
                self._batch(out, partial(engine.process, batch))
            if not batch or self._world.now >= self._next_tick:
                self._batch(out, engine.tick)
                self._next_tick = self._here() + _TICK
        except Killed:
            self._end(f"{self._dies} at {self._killed_at}")
            return
        except Error as error:
            self._ended_by(error)
            return
        self._busy, self._busy_until = True, self._here()
        self._world.after(self._lag, self._leave, self.life, out)

    def _batch(self, out: list[Released], work: Callable[[], Released]) -> None:
        engine, begun = self.engine, self.boot()
        assert engine is not None
        self._judge.read_only = engine.log.space_low
        out.append(work())
        self._judge.batch_over(engine.state, engine.machine.now, begun)
        self._judge.published(out[-1][1], heard=engine.publishing)
        self._tell_stall()

    def _tell_stall(self) -> None:
        for begun, micros in self._stalls:
            self._judge.stalled(begun, micros)
        self._stalls.clear()

    def _leave(self, life: int,
               out: list[Released]) -> None:
        engine = self.engine
        if life != self.life or engine is None:
            return
        self._lag = 0
        self._busy = False
        send = self._network.send
        for replies, published in out:
            for (broker_life, client), reply in replies:
                send("store", "broker", reply, partial(self._broker.reply, broker_life, client))
            for frame in publications.encode_publications(published):
                send("store", "broker", frame, self._broker.publication)
        now = self._world.now
        if now >= self._next_beat:
            self._next_beat = now + int(limits.HEARTBEAT * SECOND)
            beat = engine.heartbeat()
            self._judge.heartbeat(beat)
            send("store", "broker", publications.encode_publication(beat), self._broker.publication)
        self._waited = True
        wait = max(1, round(engine.wait() * SECOND))
        self._turn.ask(0 if self._inbox else min(wait, self._next_beat - now))

    # --- what goes wrong -------------------------------------------------------------------------

    def meet(self, count: int, operation: str, path: str) -> None:
        """What happens at a call to the disk, before it is done."""
        if self.kill_in:
            self.kill_in -= 1
            if not self.kill_in:
                site = f"{operation} while {self._doing()}"
                self._killed_at = site
                self._world.sites[f"killed at {site}"] += 1
                raise Killed(operation)
        if self.fail is not None and self.fail[0] == operation:
            code, self.fail = self.fail[1], None
            self._failed, self._unreadable = True, operation in ("open", "pread")
            self._world.fault(f"{operation} fails while {self._doing()}", errno.errorcode[code])
            if code == errno.ENOSPC:
                self.lacks_space()
            raise OSError(code, errno.errorcode[code])
        # Whatever is in place already can be written over: it has its room.
        if self.full and (operation == "zero_fill" or (
                operation == "pwrite" and not path.endswith(".seg"))):
            self._world.fault(f"no space for {operation}")
            self.lacks_space()
            raise OSError(errno.ENOSPC, "ENOSPC")
        if operation == "fdatasync":
            self._lag += self._chance.randint(*_SYNC)
            if self.slow and self.slow_after:
                self.slow_after -= 1
            elif self.slow:
                self._lag += self.slow
                self._world.fault("slow sync", f"{self.slow / SECOND:.3f} s")
                if self.slow > limits.STALL:
                    self._stalls.append((self.boot() - self.slow, self.slow))
                self.slow = 0

    def lacks_space(self) -> None:
        """The store has seen that its disk is full."""
        self._judge.no_space_at = self._here()
        self._failed = True

    def _doing(self) -> str:
        if self._phase == "serving" and self._compactor is not None:
            return "compacting"
        return self._phase

    # --- compaction ------------------------------------------------------------------------------

    def _spawn(self, directory: str, segment: int, epoch: int, *hurry: str) -> Compactor:
        pid = self._chance.randint(2, 4_000_000)
        self._compactor = Compactor(self._world, FaultyDisk(self._media), directory, segment,
                                    epoch, pid)
        self._world.tell(f"compactor of segments to {segment} starts")
        return self._compactor

    def kill_compactor(self, after_calls: int) -> None:
        """End the compactor, if one runs, at that disk call of its own; 0: now."""
        if self._compactor is not None:
            self._compactor.kill_at(after_calls)


class MachineDisk(FaultyDisk):
    """The machine's disk, as one process reaches it."""

    def __init__(self, machine: Machine, media: MemoryDisk) -> None:
        super().__init__(media)
        self.meet = machine.meet
        self._machine = machine

    def free_bytes(self, path: str) -> int:
        free = super().free_bytes(path)
        if self._machine.full:
            self._machine.lacks_space()
            return 0
        return free


class JudgedWal(Wal):
    """A log whose frames the judge sees, before and after their sync."""

    judge: Judge

    def append(self, records: Sequence[Record | Puts], first_revision: int) -> None:
        self.judge.written(one_by_one(records), first_revision)
        super().append(records, first_revision)

    def sync(self) -> None:
        super().sync()
        self.judge.synced()


class _NoLock:
    def still_ours(self) -> bool:
        return True

    def release(self) -> None:
        pass


def _no_lock(directory: str, timeout: float) -> _NoLock:
    return _NoLock()

