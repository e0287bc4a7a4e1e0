"""The processes that are killed: `python -m ckptmesh.certification.worker`.

This process opens nothing. For each order, a line of JSON on stdin, it forks a child that opens the
store and commits until it is killed: so a start costs milliseconds, and hundreds of them die in a
minute. `end` has the child killed and waited for; the end of stdin does so, too.

Lines on stdout: `started`, then from the child N (commit N was acknowledged), `done` (all that was
ordered) or `error NAME: …`, then `ended CODE` from here: nothing of the child comes after that.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import signal
import sys
from collections.abc import Callable
from typing import Any

from ckptmesh.certification.model import before, key_of, value_of
from ckptmesh.client import Client
from ckptmesh.disk import Disk, RealDisk
from ckptmesh.errors import Error, Misuse
from ckptmesh.opening import open_engine
from ckptmesh.process import end_with
from ckptmesh.transport import EngineTransport
from ckptmesh.wal import WalOptions

# Small segments, so that rotations and manifests are under way, too, when the kill comes.
OPTIONS = WalOptions(segment_bytes=256 * 1024, spare="none", watermark_bytes=0)
BATCHES = (1, 1, 1, 2, 8, 32)  # commits with one sync
PATIENCE = 30.0  # seconds for one commit; a disk that takes longer does not work


def disk_layer(name: str) -> Callable[[], Disk]:
    """What makes the disk of this name, `module:Class`; "" is the operating system's.

    Raises `Misuse` where there is no such class, or what it makes without arguments is no disk.
    """
    if not name:
        return RealDisk
    module, _, attribute = name.partition(":")
    try:
        made: Callable[[], Disk] = getattr(importlib.import_module(module), attribute)
        disk = made()
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise Misuse(f"there is no disk layer {name!r}: {error}",
                     hint="write MODULE:CLASS; the module is found on PYTHONPATH") from error
    lacking = [name for name in vars(Disk) if name[0] != "_" and not hasattr(disk, name)]
    if lacking:
        raise Misuse(f"{name!r} is no disk layer: it has no {', '.join(lacking)}",
                     hint="see `ckptmesh.disk.Disk`")
    return made


def commit(directory: str, disk: Disk, seed: int, until: int, most: int, seal: bool) -> None:
    """Go on with the run's commits, up to number `until`, telling each that is acknowledged.

    `most`: of them with one sync, so in one frame. `seal`: close the store at the end; else wait
    there to be killed.
    """
    engine = open_engine(directory, PATIENCE, options=OPTIONS, disk=disk)
    where = f"file:{directory}"
    mesh = Client(EngineTransport(where, engine.handle, engine.close, engine), timeout=PATIENCE)
    number = mesh.hello().revision
    chance = random.Random(seed + number)
    while number < until:
        batch = range(number + 1, min(until, number + min(most, chance.choice(BATCHES))) + 1)
        futures = [mesh.submit(key_of(n), value_of(seed, n), expect=before(n)) for n in batch]
        for number, future in zip(batch, futures, strict=True):
            revision = future.result().revision
            if revision != number:
                raise RuntimeError(f"commit {number} became revision {revision}")
            _tell(str(number))
    if seal:
        mesh.close()
    _tell("done")
    signal.pause()


def _tell(line: str) -> None:
    os.write(1, f"{line}\n".encode())  # one write to a pipe, whole or not at all


def _child(order: dict[str, Any]) -> None:
    """Carry out an order. Never returns."""
    end_with(os.getppid(), signal.SIGKILL)
    try:
        commit(order["directory"], disk_layer(order["disk"])(), order["seed"], order["until"],
               order["most"], order["seal"])
    except BaseException as error:
        text = error.message if isinstance(error, Error) else str(error)
        _tell(f"error {type(error).__name__}: {text}".replace("\n", " ")[:2_000])
    os._exit(1)


def main() -> None:
    """Carry out orders until stdin ends."""
    child = 0
    for line in sys.stdin:
        if line.strip() == "end":
            os.kill(child, signal.SIGKILL)
            _tell(f"ended {os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}")
            child = 0
            continue
        order = json.loads(line)
        child = os.fork()
        if child == 0:
            _child(order)
        _tell("started")
    if child:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


if __name__ == "__main__":
    main()
