"""What `ckptmesh doctor` looks at, one function a subject. Each yields what it found.

Rule 1: a check changes nothing that stays: its only file has no name and goes with its descriptor.
Rule 2: whatever is not right comes with what to do about it.
Rule 3: "fail" is what keeps a store from working or from keeping its promises; "warn" is what may.
"""

from __future__ import annotations

import difflib
import errno
import os
import resource
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import fields
from datetime import UTC, datetime
from importlib import metadata
from typing import NamedTuple

from ckptmesh import limits, sockets
from ckptmesh.certification.place import SYNC_TOO_FAST
from ckptmesh.cli.health import HEALTHY, READ_ONLY, Health
from ckptmesh.cli.text import many, size_text, span_text
from ckptmesh.clock import from_datetime, iso, wall_micros
from ckptmesh.config import BrokerConfig, StoreConfig, run_folder
from ckptmesh.disk import RealDisk
from ckptmesh.errors import ClockSuspect, Error
from ckptmesh.lock import (
    FORGETFUL,
    LOCK,
    NETWORK,
    QUARANTINE_DIRECTORY,
    RUN_DIRECTORY,
    file_system,
)
from ckptmesh.manifest import LOG_DIRECTORY, SNAPSHOT_DIRECTORY, Manifest, read_manifest

OK, WARN, FAIL = "ok", "warn", "fail"

SYNCS = 32  # syncs measured; some milliseconds on a good disk
SYNC_LONGEST = 2.0  # seconds after which the measuring ends early
SYNC_SLOW = 0.020  # seconds: fifty commits a second from a worker that waits for each
FILES = 4_096  # open files below which a few thousand clients are turned away
CLOCK_APART = 5.0  # seconds between this machine's clock and the store's

_OTHER_VARIABLES = frozenset((
    "CKPTMESH_URL", "CKPTMESH_TIMEOUT", "CKPTMESH_REQUIRE_SERVERS", "CKPTMESH_PARENT",
    "CKPTMESH_READY_FD",
))


class Finding(NamedTuple):
    """One line of the doctor. `advice`: what to do about it, "" where all is well."""

    subject: str
    level: str
    text: str
    advice: str = ""


Findings = Iterator[Finding]


# --- this installation ------------------------------------------------------------------------


def installation() -> Findings:
    """Python, the libraries, the speed of CRC32C."""
    version = ".".join(map(str, sys.version_info[:3]))
    yield Finding("python", OK, f"{version}, {sys.executable}")
    found = []
    for name in ("ckptmesh", "pyzmq", "msgpack", "click", "google-crc32c"):
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            if name != "ckptmesh":  # it runs from its source, which is fine
                yield Finding("libraries", FAIL, f"{name} is not installed",
                              f"install it: pip install {name}")
    yield Finding("libraries", OK, ", ".join(found))
    import google_crc32c

    if google_crc32c.implementation != "c":
        yield Finding("crc32c", WARN, "CRC32C is computed in Python, some hundred times slower",
                      "install google-crc32c for this platform")


def variables(environ: dict[str, str]) -> Findings:
    """Variables that look like settings and are none: a slip of the finger goes unnoticed."""
    known = _OTHER_VARIABLES | {
        each.metadata["env"] for table in (BrokerConfig, StoreConfig) for each in fields(table)}
    for name in sorted(environ):
        if name.startswith("CKPTMESH_") and name not in known:
            near = difflib.get_close_matches(name, known, 1)
            yield Finding("environment", WARN, f"{name} is no setting of ckptmesh",
                          f"did you mean {near[0]}?" if near else "remove it")


def descriptors() -> Findings:
    """How many files a process may have open: each client takes one in broker and store."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < FILES:
        yield Finding("open files", WARN, f"at most {hard:,} a process, and each client takes one",
                      f"raise the limit: ulimit -Hn {FILES}, LimitNOFILE= of a systemd unit")
    else:
        most = "without limit" if hard == resource.RLIM_INFINITY else f"up to {hard:,}"
        yield Finding("open files", OK, f"{most} a process")


# --- the data directory -----------------------------------------------------------------------


def directory(path: str) -> Findings:
    """Whether a store can live there, and whether one does."""
    if not os.path.lexists(path):
        parent = os.path.dirname(os.path.abspath(path))
        if not os.path.isdir(parent):
            yield Finding("directory", FAIL, f"{path}: its parent {parent} does not exist",
                          f"make it: mkdir -p {parent}")
        elif not os.access(parent, os.W_OK | os.X_OK):
            yield Finding("directory", FAIL, f"{path} cannot be made: {parent} is not writable",
                          "choose another with --data, or see who owns it")
        else:
            yield Finding("directory", OK, f"{path} is not there yet; the store makes it")
        return
    if not os.path.isdir(path):
        yield Finding("directory", FAIL, f"{path} is not a directory", "name one with --data")
        return
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        yield Finding("directory", FAIL, f"{path} cannot be read and written by this user",
                      f"see who owns it: ls -ld {path}")
        return
    mode = os.stat(path).st_mode & 0o777
    if mode & 0o022:
        yield Finding("directory", WARN, f"others may write in {path} (mode {mode:o})",
                      f"chmod 700 {path}")
    else:
        yield Finding("directory", OK, os.path.realpath(path))
    yield from _store(path)
    yield from _sockets(path)


def _store(path: str) -> Findings:
    try:
        manifest = read_manifest(RealDisk(), path)
    except Error as error:
        yield Finding("store", FAIL, error.message, error.hint)
        return
    except OSError as error:
        yield Finding("store", FAIL, f"the manifest in {path} cannot be read: {error.strerror}",
                      f"see who owns it: ls -l {path}")
        return
    if manifest is None:
        names = sorted(set(os.listdir(path)) - {
            LOCK, RUN_DIRECTORY, "lost+found", LOG_DIRECTORY, SNAPSHOT_DIRECTORY})
        if names:
            yield Finding("store", FAIL, f"{path} holds something else ({names[0]}) and no store",
                          "name an empty directory")
        else:
            yield Finding("store", OK, f"none in {path} yet")
        return
    size = sum(each.size for each in manifest.sealed) + sum(
        each.size for each in manifest.snapshots)
    yield Finding("store", OK, f"UUID {manifest.uuid.hex()}, "
                  f"{many(len(manifest.sealed), 'sealed segment')}, "
                  f"{many(len(manifest.snapshots), 'snapshot')}, {size_text(size)}")
    if manifest.lossy:
        yield Finding("store", WARN, f"it was repaired with a loss: {manifest.lossy}",
                      "nothing to do, if that is known and accepted")
    yield from _leftovers(path)


def _leftovers(path: str) -> Findings:
    torn = [name for name in _names(path, LOG_DIRECTORY) if ".torn" in name]
    if torn:
        yield Finding("torn tails", WARN, f"{len(torn)} kept beside the log ({torn[0]}): writes "
                      "that a crash cut short, and that nobody was answered",
                      "remove them once nobody wants to look at them")
    strange = _names(path, QUARANTINE_DIRECTORY)
    if strange:
        yield Finding("quarantine", WARN, f"{len(strange)} files that are not part of the store "
                      f"({strange[0]})",
                      f"look where they come from: ls {path}/{QUARANTINE_DIRECTORY}")


def _names(path: str, folder: str) -> list[str]:
    """The names in a folder of a store; none where it cannot be read."""
    try:
        return os.listdir(os.path.join(path, folder))
    except OSError:
        return []


def _sockets(path: str) -> Findings:
    folder = run_folder(path)
    try:
        found = folder.lstat()
    except OSError:
        return
    if found.st_mode & 0o077 or found.st_uid != os.getuid():
        yield Finding("sockets", FAIL, f"{folder} must belong to this user alone",
                      f"chmod 700 {folder}")


def file_systems(path: str) -> Findings:
    """What kind of file system the data is on."""
    kind = file_system(_existing(path))
    if kind in NETWORK:
        yield Finding("file system", FAIL, f"{kind} is a network file system: its locks and syncs "
                      "cannot be relied on", "put the data on a local disk, and serve it")
    elif kind in ("btrfs", "zfs"):
        yield Finding("file system", WARN, f"{kind} copies on write: space taken in advance is "
                      "not really taken, so a full disk can stop the store",
                      f"watch its free space well{'; chattr +C DIR' if kind == 'btrfs' else ''}")
    elif kind in FORGETFUL:
        yield Finding("file system", WARN, f"{kind} is {FORGETFUL[kind]}",
                      "mount a disk there, or choose another place with --data")
    else:
        yield Finding("file system", OK, kind or "of a kind that cannot be told")


def free_space(path: str, watermark: int) -> Findings:
    """Whether the log has room. `watermark`: of the store, without what its snapshot adds."""
    place = _existing(path)
    free = shutil.disk_usage(place).free
    needed = watermark + _snapshot_size(path) * 5 // 4
    text = f"{size_text(free)} free, read-only below {size_text(needed)}"
    if free < needed:
        yield Finding("space", FAIL, text, "free some, or run `ckptmesh compact`")
    elif free < 2 * needed + limits.SEGMENT_BYTES:
        yield Finding("space", WARN, text, "free some soon, or run `ckptmesh compact`")
    else:
        yield Finding("space", OK, text)
    nodes = os.statvfs(place)
    if nodes.f_files and nodes.f_favail < 100:
        yield Finding("inodes", FAIL, f"only {nodes.f_favail} files can still be made",
                      "remove some files")


def _snapshot_size(path: str) -> int:
    manifest = _manifest(path)
    return manifest.snapshots[-1].size if manifest and manifest.snapshots else 0


def _manifest(path: str) -> Manifest | None:
    try:
        return read_manifest(RealDisk(), path) if os.path.isdir(path) else None
    except (Error, OSError):
        return None  # told by `directory`


def sync_latency(path: str) -> Findings:
    """How long the disk takes to make a small write durable: what each lone commit waits for."""
    place = _existing(path)
    try:
        took = measure_syncs(place)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return  # told by `directory`
        yield Finding("sync", FAIL, f"{place}: {error.strerror}", "look at the disk: dmesg")
        return
    middle, worst = sorted(took)[len(took) // 2], max(took)
    text = (f"{middle * 1_000:.2f} ms median, {worst * 1_000:.2f} ms at worst: about "
            f"{1 / max(middle, 1e-6):,.0f} lone commits a second")
    if middle > SYNC_SLOW:
        yield Finding("sync", WARN, text, "a faster disk, or many commits in flight (mesh.submit)")
    elif middle < SYNC_TOO_FAST and file_system(place) not in FORGETFUL:
        yield Finding("sync", WARN, text + "; faster than a disk can be",
                      "make sure that this disk does not lie about fsync")
    else:
        yield Finding("sync", OK, text)


def measure_syncs(place: str) -> list[float]:
    """Seconds of some small writes with `fdatasync`, in a file without a name. Raises `OSError`."""
    handle = _nameless(place)
    try:
        block = os.urandom(limits.SECTOR)
        os.pwrite(handle, bytes(SYNCS * limits.SECTOR), 0)
        os.fsync(handle)
        took: list[float] = []
        for index in range(SYNCS):
            began = time.perf_counter()
            os.pwrite(handle, block, index * limits.SECTOR)
            os.fdatasync(handle)
            took.append(time.perf_counter() - began)
            if sum(took) > SYNC_LONGEST:
                break
        return took
    finally:
        os.close(handle)


def _nameless(place: str) -> int:
    try:
        return os.open(place, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT):
            raise
    handle, name = tempfile.mkstemp(prefix=".ckptmesh-doctor-", dir=place)
    os.unlink(name)
    return handle


def _existing(path: str) -> str:
    """The path, or the nearest folder above it that is there."""
    place = os.path.realpath(path)
    while not os.path.isdir(place):
        place = os.path.dirname(place)
    return place


# --- addresses, clock, store ------------------------------------------------------------------


def addresses(urls: list[str], health: Health | None) -> Findings:
    """Whether the addresses of `ckptmesh up` are free, unless the broker has them already."""
    if health is not None and health.broker is not None and health.url in urls[:1]:
        yield Finding("addresses", OK, f"{', '.join(urls)}: the broker has them")
        return
    for url in urls:
        where = sockets.address(url)
        if where.scheme != "tcp" or not where.port.strip("0").isdigit():
            continue  # a socket file is guarded by a lock; a wildcard port is always free
        try:
            free = _is_free(where.host.strip("[]"), int(where.port))
        except (OSError, ValueError) as error:
            yield Finding("addresses", FAIL, f"{url} cannot be bound: {error}",
                          "name an address of this machine")
            continue
        if free:
            yield Finding("addresses", OK, f"{url} is free")
        else:
            yield Finding("addresses", FAIL, f"{url} is taken by something that is no broker here",
                          f"see what it is: ss -ltnp 'sport = :{where.port}'")


def _is_free(host: str, port: int) -> bool:
    name = "" if host == "*" else host
    family = socket.AF_INET6 if ":" in name else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((name, port))
            probe.listen(1)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return False
            raise
    return True


def clock(path: str, health: Health | None) -> Findings:
    """Whether this machine's clock can be right."""
    now = wall_micros()
    manifest = _manifest(path)
    times = [each.sealed_at for each in manifest.sealed] if manifest else []
    logged = max(times, default=0)
    if now < from_datetime(datetime(2024, 1, 1, tzinfo=UTC)):
        yield Finding("clock", FAIL, f"it is not {iso(now)}", "set the clock")
    elif logged > now:
        yield Finding("clock", WARN, f"the log is ahead of the clock: {iso(logged)}; store time "
                      "stands still until the clock is there", "set the clock; keep it with NTP")
    elif logged and now - logged > limits.CLOCK_JUMP and (health is None or not health.store):
        hint = ClockSuspect.hint
        yield Finding("clock", WARN, "the newest sealed segment is "
                      f"{span_text((now - logged) / 1e6)} old; if nothing newer is in the log, the "
                      "store will ask for --accept-clock", hint)
    elif health is not None and health.store is not None:
        apart = abs(now - from_datetime(datetime.fromisoformat(health.store["time"]))) / 1e6
        level = WARN if apart > CLOCK_APART else OK
        yield Finding("clock", level, f"{iso(now)}, {apart:.1f} s from the store's",
                      "TTLs follow the store's clock; keep both with NTP" if level == WARN else "")
    else:
        yield Finding("clock", OK, iso(now))


def reachable(health: Health, asked_for: bool) -> Findings:
    """Whether a store answers. `asked_for`: whether the user named the URL, and so expects one."""
    if health.verdict == HEALTHY:
        trip = f", {health.round_trip * 1_000:.2f} ms a round trip" if health.round_trip else ""
        yield Finding("store answers", OK, f"{health.url}{trip}")
    elif health.store is not None and health.verdict == READ_ONLY:
        yield Finding("store answers", FAIL, f"{health.url}: {health.verdict}", health.advice)
    else:
        # Nothing need be running before `ckptmesh up`.
        level = FAIL if asked_for or health.broker is not None else WARN
        yield Finding("store answers", level, f"{health.url}: {health.verdict}", health.advice)
