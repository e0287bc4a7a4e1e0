"""Opening a store: from settings or a directory to an engine over the right log.

Rule 1: opening to read writes nothing, unless the last user of the directory was killed: what was
        left then is made durable before it is shown to anybody.
"""

from __future__ import annotations

import os
from typing import Any

from ckptmesh.archive import Archive
from ckptmesh.clock import StoreClock
from ckptmesh.compaction import Compaction
from ckptmesh.config import StoreConfig
from ckptmesh.disk import Disk
from ckptmesh.engine import Engine
from ckptmesh.log import Compactor, Log
from ckptmesh.memory_log import MemoryLog
from ckptmesh.wal import EMBEDDED, Wal, WalOptions


def _engine(log: Log, compactor: Compactor | None, accept_clock: bool = False) -> Engine[Any]:
    try:
        clock = StoreClock(max(log.state.time, log.state.reserved), accept_jump=accept_clock)
        return Engine(log, clock, compactor=compactor)
    except BaseException:
        log.close()
        raise


def open_store(config: StoreConfig) -> Engine[Any]:
    """The engine of a served store, ready for `serve`.

    Raises `DirectoryInUse`, `InvalidDirectory`, `Corrupt`, `Unsupported`, `OutOfSpace`,
    `ClockSuspect`.
    """
    wal = Wal.open(config.data, WalOptions(
        segment_bytes=config.segment_bytes, retain_seconds=config.retain,
        retain_bytes=config.retain_bytes, watermark_bytes=config.space_watermark))
    engine = _engine(wal, Compaction(wal, config.snapshot_bytes), config.accept_clock)
    engine.archive = Archive(wal.directory)
    engine.wanted_settings = {"history_revisions": config.history_revisions,
                              "history_bytes": config.history_bytes}
    return engine


def open_engine(directory: str | None, lock_timeout: float = 5.0, *,
                options: WalOptions = EMBEDDED, disk: Disk | None = None) -> Engine[Any]:
    """The engine of an embedded store: in a directory, or (None) in memory alone.

    Opening one to read writes nothing, unless its last user was killed: what was left then is made
    durable before it is shown. `lock_timeout`: seconds to wait for another process (those of
    `options` do not count). `disk`: the file system, for who tries another one.
    Raises as `open_store` does.
    """
    if directory is None:
        return _engine(MemoryLog(os.urandom(16)), None)
    wal = Wal.open(directory, options._replace(lock_timeout=lock_timeout), disk)
    engine = _engine(wal, Compaction(wal))
    engine.archive = Archive(wal.directory)
    engine.embedded = True
    engine.publishing = False  # watches in this process are told that there is news, and ask
    if wal.needs_copy_forward:
        try:
            engine.serve()
        except BaseException:
            engine.close()
            raise
    return engine
