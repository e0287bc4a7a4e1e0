"""The compactor's process: the real work, done at one moment of virtual time."""

from __future__ import annotations

import json

from ckptmesh.compactor import attempt, temporary_name
from ckptmesh.testing.disks import FaultyDisk, Killed
from ckptmesh.testing.simulation.world import World

_TAKES = (5_000, 300_000)  # microseconds, least and most


class Compactor:
    """A compactor process: it does its work at one moment, and has ended after it."""

    def __init__(self, world: World, disk: FaultyDisk, directory: str, segment: int, epoch: int,
                 pid: int) -> None:
        self.pid = pid
        self.returncode = 0
        self._world = world
        self._disk = disk
        self._work = (directory, segment, temporary_name(epoch, pid))
        self._chance = world.chance(f"compactor {pid}")
        self._ended = False
        self._output = b""
        disk.meet = self._meet
        self._kill_in = 0
        world.after(self._chance.randint(*_TAKES), self._run)

    def _meet(self, count: int, operation: str, path: str) -> None:
        if self._kill_in and count >= self._kill_in:
            self._world.fault(f"compactor killed at {operation}")
            raise Killed(operation)

    def _run(self) -> None:
        if self._ended:
            return
        self._ended = True
        try:
            report, self.returncode = attempt(self._disk, *self._work, self._chance.randbytes(16))
        except Killed:
            self.returncode = -9
            return
        self._output = json.dumps(report).encode()
        self._world.tell(f"compactor ends with {self.returncode}")

    def kill_at(self, calls: int) -> None:
        if calls:
            self._kill_in = calls
        else:
            self._world.fault("compactor killed")
            self.kill()

    def poll(self) -> int | None:
        return self.returncode if self._ended else None

    def kill(self) -> None:
        if not self._ended:
            self._ended, self.returncode = True, -9

    def communicate(self) -> tuple[bytes, bytes | None]:
        return self._output, None
