"""Compaction, the store's side: a small state machine that the store's loop polls.

    start   seal the log so far; spawn the compactor, which reads sealed files only
    poll    while it runs: nothing. When it has ended well: its file becomes part of the store
            (`Wal.install_snapshot`: rename, sync, manifest), and what retention no longer needs
            goes. When it failed or was killed: the old state stands, and the error says why

Rule 1: no call here waits for the compactor; the store goes on serving.
Rule 2: the commit point is the manifest that names the snapshot. A crash before it gives the old
        state, one after it the new; an unfinished `snap.*.tmp` is removed by the next compaction
        or the next start.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple, Protocol

from ckptmesh.clock import boot_micros, wall_micros
from ckptmesh.compactor import temporary_name
from ckptmesh.disk import Disk, RealDisk
from ckptmesh.errors import BY_CODE, CompactionFailed, Error, OutOfSpace
from ckptmesh.limits import MIB, SECOND
from ckptmesh.manifest import SNAPSHOT_DIRECTORY, Manifest, SnapshotEntry, snapshot_file
from ckptmesh.process import helper
from ckptmesh.retention import RetentionPlan, awaiting_snapshot, plan
from ckptmesh.wal import EMBEDDED, Wal

DUE_BYTES = 256 * MIB  # replaying as much takes some seconds
DUE_SEGMENTS = 64  # an embedded store has many small ones
_RETRY_AFTER = 60 * SECOND  # after a failure; doubled by each further one, up to an hour
_RETRY_MOST = 3_600 * SECOND
_PAUSE = 0.02  # seconds between two looks, for those who wait
_LONGEST = 3_600 * SECOND  # a compactor that takes longer hangs, and is killed
_GENTLE = 60 * SECOND  # one that waits for idle processors gets so long; then another one hurries


class Process(Protocol):
    """What is needed of a compactor process: of `subprocess.Popen`."""

    pid: int
    returncode: int

    def poll(self) -> int | None:
        """Its exit code once it has ended, minus the number of the signal that killed it."""

    def kill(self) -> None:
        """End it, if it has not."""

    def communicate(self) -> tuple[bytes, bytes | None]:
        """What it has written, once it has ended."""


def spawn(directory: str, segment: int, epoch: int, *hurry: str) -> Process:
    """Start a compactor; see `compactor.py`. Raises `CompactionFailed`."""
    try:
        return helper("ckptmesh.compactor", directory, str(segment), str(epoch), str(os.getpid()),
                      *hurry, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    except OSError as error:
        raise CompactionFailed(f"the compactor cannot be started: {error.strerror}") from error


class _Running(NamedTuple):
    """A compaction under way. `process` is None when there is nothing new to write."""

    process: Process | None
    segment: int
    retain_seconds: float
    bytes_before: int
    started: int
    hurried: bool = False


class Compaction:
    """Compaction of one log. `due_bytes` and `due_segments`: how much sealed log since the last
    snapshot makes the next one due. `clock` gives microseconds of wall time, `elapsed` such of a
    clock that only runs forward. For the thread that owns the log."""

    def __init__(self, wal: Wal, due_bytes: int = DUE_BYTES, due_segments: int = DUE_SEGMENTS, *,
                 disk: Disk | None = None, clock: Callable[[], int] = wall_micros,
                 elapsed: Callable[[], int] = boot_micros,
                 spawn: Callable[..., Process] = spawn) -> None:
        self._wal = wal
        self._due_bytes = due_bytes
        self._due_segments = due_segments
        self._disk = RealDisk() if disk is None else disk
        self._clock = clock
        self._elapsed = elapsed
        self._spawn = spawn
        self._running: _Running | None = None
        self._failures = 0
        self._not_before = 0

    @property
    def running(self) -> bool:
        """Whether one is under way."""
        return self._running is not None

    def due(self) -> bool:
        """Whether the log has grown enough for a compaction of its own accord; not soon after one
        that failed."""
        manifest = self._wal.manifest
        if self.running or manifest.active is None:
            return False
        covered = _covered(manifest)
        pinned = awaiting_snapshot(manifest)
        sizes = [segment.size for segment in manifest.sealed if segment.number > covered]
        if not pinned and len(sizes) < self._due_segments and sum(sizes) < self._due_bytes:
            return False
        return self._failures == 0 or self._elapsed() >= self._not_before

    def start(self, retain: int | None = None, *, due: bool = False) -> None:
        """Seal the log so far and have a snapshot made of it; where this is `due` and a savepoint
        waits for its snapshot, of that. `retain` in seconds overrides the setting for this once.
        Nothing happens when one is under way.

        Raises `OutOfSpace`, `Poisoned` as `Wal.rotate` does, `CompactionFailed`.
        """
        if self._running is not None:
            return
        wal = self._wal
        before = wal.bytes_on_disk
        try:
            sealed = wal.rotate()
            self._remove_leftovers()
            pinned = awaiting_snapshot(wal.manifest) if due else 0
            segment = pinned or (sealed.number if sealed else 0)
            new = bool(pinned) or segment > _covered(wal.manifest)
            process = self._spawn(wal.directory, segment, wal.state.epoch) if new else None
        except Error:
            self._failed()
            raise
        seconds = wal.options.retain_seconds if retain is None else float(retain)
        self._running = _Running(process, segment, seconds, before, self._elapsed())

    def poll(self) -> dict[str, Any] | None:
        """None while it runs; then once the report, as plain values:

        `revision` and `snapshot` (its file) that recovery now begins with, `made` (whether it is
        new), `removed` (files), `kept` (file → reason), `bytes_before`, `bytes_after`, `seconds`,
        `oldest_revision` and `oldest_time` (from there on every cut can be restored), `size_won`.

        Raises `CompactionFailed`, `OutOfSpace`, `Corrupt` (what was read is damaged); then the old
        state stands. `Poisoned` where the log could not go on.
        """
        running = self._running
        if running is None:
            return None
        process = running.process
        if process is not None and process.poll() is None:
            age = self._elapsed() - running.started
            if age >= _GENTLE and not running.hurried:
                self._hurry(running)
                return None
            if age < _LONGEST:
                return None
            process.kill()
        try:
            report = self._finish(running)
        except Error:
            self._failed()
            raise
        finally:
            self._running = None
            self._remove_leftovers()
        self._failures = 0
        return report

    def _hurry(self, running: _Running) -> None:
        """No processor was idle for so long: begin again, with a share of its own."""
        process = running.process
        assert process is not None  # it is running
        _end(process)
        self._remove_leftovers()
        wal = self._wal
        try:
            again = self._spawn(wal.directory, running.segment, wal.state.epoch, "hurry")
        except Error:
            self._running = None
            self._failed()
            raise
        self._running = running._replace(process=again, hurried=True)

    def close(self) -> None:
        """End what is under way; the old state stands. May be called twice."""
        running, self._running = self._running, None
        if running is not None and running.process is not None:
            _end(running.process)
            self._remove_leftovers()

    # --- steps ---------------------------------------------------------------------------------

    def _finish(self, running: _Running) -> dict[str, Any]:
        wal = self._wal
        decided: list[RetentionPlan] = []

        def keep(manifest: Manifest) -> Manifest:
            decided.append(plan(manifest, self._clock(), running.retain_seconds,
                                wal.options.retain_bytes))
            kept = set(decided[-1].keep)
            return manifest._replace(
                sealed=tuple(item for item in manifest.sealed if item.file in kept),
                snapshots=tuple(item for item in manifest.snapshots if item.file in kept),
            )

        if running.process is not None:
            temporary, entry = self._made(running, running.process)
            wal.install_snapshot(temporary, entry, keep)
        else:
            wal.change_manifest(keep)
        retention = decided[-1]
        self._unlink_now(retention)
        newest = wal.manifest.snapshots[-1] if wal.manifest.snapshots else None
        return {
            "revision": newest.revision if newest else 0,
            "snapshot": newest.file if newest else "", "made": running.process is not None,
            "removed": list(retention.unlink), "kept": dict(retention.reasons),
            "bytes_before": running.bytes_before, "bytes_after": wal.bytes_on_disk,
            "seconds": (self._elapsed() - running.started) / SECOND,
            "oldest_revision": retention.oldest_revision, "oldest_time": retention.oldest_time,
            "size_won": retention.size_won,
        }

    def _made(self, running: _Running, process: Process) -> tuple[str, SnapshotEntry]:
        """The file that the compactor has made, and what the manifest is to say of it."""
        output = _end(process)
        facts = _parse(output)
        if process.returncode < 0:
            raise CompactionFailed(f"the compactor was killed by signal {-process.returncode}")
        if "error" in facts:
            cls = BY_CODE.get(facts["error"], CompactionFailed)
            cls = CompactionFailed if cls is Error else cls
            raise cls(f"compaction failed: {facts['message']}", **facts["details"])
        expected = {"file": temporary_name(self._wal.state.epoch, process.pid),
                    "segment": running.segment}
        if process.returncode or any(facts.get(name) != value for name, value in expected.items()):
            raise CompactionFailed(f"the compactor ended with exit code {process.returncode} and "
                                   "no report of its snapshot")
        sealed = next(item for item in self._wal.manifest.sealed if item.number == running.segment)
        path = f"{self._wal.directory}/{facts['file']}"
        if facts["revision"] != sealed.last_revision or facts["size"] != self._disk.file_size(path):
            raise CompactionFailed("the compactor made another snapshot than was asked for")
        return path, SnapshotEntry(
            snapshot_file(sealed.last_revision, sealed.number), sealed.last_revision,
            sealed.number, facts["size"], bytes.fromhex(facts["digest"]), sealed.sealed_at,
        )

    def _unlink_now(self, retention: RetentionPlan) -> None:
        """Files go once two manifests do without them; so write the second one right away."""
        if retention.unlink:
            with suppress(OutOfSpace):  # then they go with the next manifest
                self._wal.change_manifest(lambda manifest: manifest)

    def _remove_leftovers(self) -> None:
        """Unfinished snapshots of compactors that have ended, killed perhaps."""
        folder = f"{self._wal.directory}/{SNAPSHOT_DIRECTORY}"
        with suppress(OSError):  # the next compaction, or the next start, tries again
            for name in self._disk.listdir(folder):
                if name.startswith("snap.") and name.endswith(".tmp"):
                    self._disk.unlink(f"{folder}/{name}")

    def _failed(self) -> None:
        wait = min(_RETRY_AFTER * 2 ** min(self._failures, 10), _RETRY_MOST)
        self._failures += 1
        self._not_before = self._elapsed() + wait


def _covered(manifest: Manifest) -> int:
    """The last segment that the newest snapshot covers."""
    return manifest.snapshots[-1].segment if manifest.snapshots else 0


def _end(process: Process) -> bytes:
    """What a compactor has said, once it has ended; it is killed if it has not."""
    process.kill()
    output, _ = process.communicate()
    return output


def _parse(output: bytes) -> dict[str, Any]:
    try:
        facts = json.loads(output)
    except ValueError:
        return {}
    return facts if isinstance(facts, dict) else {}


def compact_directory(
    directory: str, retain: int | None = None, *, lock_timeout: float = EMBEDDED.lock_timeout
) -> dict[str, Any]:
    """Compact a store that nobody serves just now, and wait for it. `lock_timeout`: seconds to wait
    for another process. Returns what `Compaction.poll` does; raises as it and `Wal.open` do."""
    wal = Wal.open(directory, EMBEDDED._replace(lock_timeout=lock_timeout))
    compaction = Compaction(wal)
    try:
        wal.begin()
        compaction.start(retain)
        while (report := compaction.poll()) is None:
            time.sleep(_PAUSE)
        return report
    finally:
        compaction.close()
        wal.close()
