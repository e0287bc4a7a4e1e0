"""Stores with a lot in them, made in seconds.

Rule 1: the log writes itself (`wal.py`): frames, segments and seals are those of a served store;
        only the waiting for a million answers is left out.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from ckptmesh.compaction import compact_directory
from ckptmesh.disk import RealDisk
from ckptmesh.facts import (
    EpochBegun,
    Record,
    SessionOpened,
    SettingChanged,
    Transaction,
    Write,
)
from ckptmesh.limits import SECOND
from ckptmesh.messages import PUT
from ckptmesh.values import pack
from ckptmesh.wal import SERVED, Wal

FRAME = 16  # commits in each: as sixteen workers leave them
VALUE = 100  # bytes
_ROOM = 64 * 1024


class _Unsynced(RealDisk):
    """Nobody is told that what is made here is durable, so nothing waits for the disk."""

    def fdatasync(self, handle: int) -> None:
        pass


def key(number: int) -> str:
    """Keys of ten pipelines."""
    return f"orders{number % 10}/partition/{number:07d}"


def fill(directory: Path, commits: int, history: int | None = None) -> None:
    """A new store whose log holds so many commits, each of another key, by sixteen sessions.
    `history`: the setting `history_revisions`; None leaves the default."""
    wal = Wal.open(directory, SERVED._replace(spare="none"), _Unsynced())
    wal.begin()
    now = int(time.time() * SECOND) - commits
    sessions = [os.urandom(16) for _ in range(FRAME)]
    settings = [] if history is None else [SettingChanged("history_revisions", history)]
    opened = [SessionOpened(each, now, "bench") for each in sessions]
    _write(wal, [EpochBegun(1, now), *settings, *opened], 1)
    value = pack(os.urandom(VALUE))
    for first in range(0, commits, FRAME):
        number = first // FRAME + 1
        _write(wal, [
            Transaction(session, number, number, (first + each) * 0x9E3779B97F4A7C15 % 2**64,
                        now + first + each, (Write(PUT, key(first + each), value),), (1,))
            for each, session in enumerate(sessions[: commits - first])
        ], first + 1)
    wal.close()


def with_snapshot(directory: Path, keys: int, history: int | None = None) -> Path:
    """`fill`, then a compaction: the store starts from a snapshot. Returns the directory; what was
    made once is there the next time."""
    if not directory.exists():
        fill(directory, keys, history)
        compact_directory(str(directory), 0)
    return directory


def _write(wal: Wal, records: list[Record], first_revision: int) -> None:
    wal.ensure_room(_ROOM)
    wal.append(records, first_revision)
    wal.sync()
