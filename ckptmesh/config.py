"""Settings of the processes: one table a process, from which flags and variables follow.

Rule 1: each setting stands once, with its default, its variable, its bounds and its help; the
command line makes its flags from these fields (`backend_publish` → `--backend-publish`).
Rule 2: a flag wins over the environment, the environment over the default.
Rule 3: a setting that cannot be read is refused by name; nothing is guessed.

Addresses are checked where they are bound or connected (`sockets.py`).
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from ckptmesh import limits
from ckptmesh.errors import InvalidDirectory, Misuse

DEFAULT_DATA = "./ckptmesh-data"
DEFAULT_URL = "tcp://127.0.0.1:7701"
DEFAULT_PUBLISH = "tcp://127.0.0.1:7702"

IPC_PATH_BYTES = 107  # what a Unix socket address holds
_REQUESTS, _PUBLICATIONS = "requests.ipc", "publications.ipc"

_SIZE = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,9})?)\s*([A-Za-z]*)")
_SIZE_UNITS = {
    "": 1, "b": 1, "kib": 1024, "mib": 1024**2, "gib": 1024**3, "tib": 1024**4,
    "kb": 1000, "mb": 1000**2, "gb": 1000**3, "tb": 1000**4,
}
_DURATION_UNITS = {
    "": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0, "w": 604_800.0,
}


# --- how a setting is read --------------------------------------------------------------------


def size(text: str) -> int:
    """Bytes from `64MiB`, `1.5GiB`, `500MB` or a bare number. Raises `Misuse`."""
    number, unit = _amount(text, _SIZE_UNITS, "a size, as in 64MiB or 4GiB")
    return int(number * unit)


def duration(text: str) -> float:
    """Seconds from `7d`, `12h`, `90m`, `30s`, `250ms` or a bare number. Raises `Misuse`."""
    number, unit = _amount(text, _DURATION_UNITS, "a duration, as in 7d, 12h or 30s")
    return number * unit


def switch(text: str) -> bool:
    """Yes or no, as environment variables say it. Raises `Misuse`."""
    known = {"1": True, "true": True, "yes": True, "on": True,
             "": False, "0": False, "false": False, "no": False, "off": False}
    try:
        return known[text.strip().lower()]
    except KeyError:
        raise Misuse(f"{text!r} is neither yes nor no", hint="write 1 or 0") from None


def count(text: str) -> int:
    """A whole number, `100_000` or `100000`. Raises `Misuse`."""
    if not re.fullmatch(r"[0-9][0-9_]{0,17}", text.strip()):
        raise Misuse(f"{text!r} is not a whole number")
    return int(text)


def _amount(text: str, units: Mapping[str, float], what: str) -> tuple[float, float]:
    match = _SIZE.fullmatch(text.strip())
    unit = units.get(match[2].lower()) if match else None
    if match is None or unit is None:
        raise Misuse(f"{text!r} is not {what}", hint=f"units: {', '.join(filter(None, units))}")
    return float(match[1]), unit


def _setting(
    default: object,
    env: str,
    help: str,
    read: Callable[[str], object] = str,
    least: float | None = None,
    most: float | None = None,
) -> Any:
    return field(default=default, metadata={
        "env": env, "help": help, "read": read, "least": least, "most": most,
    })


# --- the tables -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BrokerConfig:
    """Settings of `ckptmesh broker`. `data` only tells where the default backend addresses are."""

    bind: str = _setting(DEFAULT_URL, "CKPTMESH_BIND", "address where clients connect")
    publish: str = _setting(DEFAULT_PUBLISH, "CKPTMESH_PUBLISH", "address where watchers subscribe")
    data: str = _setting(DEFAULT_DATA, "CKPTMESH_DATA", "directory of the store")
    backend: str = _setting(
        "", "CKPTMESH_BACKEND",
        "address where broker and store meet for requests (default: in DATA/run)",
    )
    backend_publish: str = _setting(
        "", "CKPTMESH_BACKEND_PUBLISH",
        "address where broker and store meet for publications (default: in DATA/run)",
    )

    def __post_init__(self) -> None:
        _settle(self)


@dataclass(frozen=True, slots=True)
class StoreConfig:
    """Settings of `ckptmesh store`."""

    data: str = _setting(DEFAULT_DATA, "CKPTMESH_DATA", "directory of the store")
    backend: str = _setting(
        "", "CKPTMESH_BACKEND",
        "address where broker and store meet for requests (default: in DATA/run)",
    )
    backend_publish: str = _setting(
        "", "CKPTMESH_BACKEND_PUBLISH",
        "address where broker and store meet for publications (default: in DATA/run)",
    )
    direct: str = _setting(
        "", "CKPTMESH_DIRECT", "address where trusted clients on this host may skip the broker "
        "(a stranger there can use up the store's descriptors)",
    )
    segment_bytes: int = _setting(
        limits.SEGMENT_BYTES, "CKPTMESH_SEGMENT_BYTES", "size of a log file", size,
        limits.MIB, 4 * limits.GIB,
    )
    snapshot_bytes: int = _setting(
        256 * limits.MIB, "CKPTMESH_SNAPSHOT_BYTES",
        "log written since the last snapshot that starts the next compaction", size,
        limits.MIB, 1024 * limits.GIB,
    )
    retain: float = _setting(
        limits.RETAIN_SECONDS, "CKPTMESH_RETAIN",
        "how long compacted log files stay on disk for restores", duration, 0, 100 * 365 * 86_400,
    )
    retain_bytes: int = _setting(
        limits.RETAIN_BYTES, "CKPTMESH_RETAIN_BYTES",
        "and how many bytes of them; the smaller wins", size, 0, 2**60,
    )
    history_revisions: int = _setting(
        limits.HISTORY_REVISIONS, "CKPTMESH_HISTORY_REVISIONS",
        "revisions kept in memory for time travel and watches", count, 0, 10**9,
    )
    history_bytes: int = _setting(
        limits.HISTORY_BYTES, "CKPTMESH_HISTORY_BYTES",
        "and how many bytes of them; the smaller wins", size, 0, 2**60,
    )
    space_watermark: int = _setting(
        limits.SPACE_WATERMARK, "CKPTMESH_SPACE_WATERMARK",
        "free space (beside 1.25 times the last snapshot) below which the store is read-only",
        size, 0, 2**60,
    )
    accept_clock: bool = _setting(
        False, "CKPTMESH_ACCEPT_CLOCK",
        "start although the clock is days ahead of the log: what has a TTL expires", switch,
    )

    def __post_init__(self) -> None:
        _settle(self)


@dataclass(frozen=True, slots=True)
class UpConfig:
    """Settings of `ckptmesh up`: those of the broker and of the store it starts."""

    broker: BrokerConfig
    store: StoreConfig


Config = TypeVar("Config", BrokerConfig, StoreConfig)


def load(
    table: type[Config], given: Mapping[str, object], environ: Mapping[str, str] = os.environ
) -> Config:
    """Settings from flags (`given` by field name; None: not given), environment, defaults.

    Raises `Misuse` naming the setting that cannot be read or is out of bounds.
    """
    values: dict[str, Any] = {}
    for f in fields(table):
        value, source = given.get(f.name), flag(f)
        if value is None and environ.get(f.metadata["env"]):
            value, source = environ[f.metadata["env"]], f.metadata["env"]
        if value is None:
            continue
        try:
            values[f.name] = f.metadata["read"](value) if isinstance(value, str) else value
        except Misuse as error:
            raise Misuse(f"{source}: {error.message}", hint=error.hint) from None
    return table(**values)


def load_up(given: Mapping[str, object]) -> UpConfig:
    """Settings of `ckptmesh up`, read as `load` does."""
    return UpConfig(load(BrokerConfig, given), load(StoreConfig, given))


def flag(setting: Field[Any]) -> str:
    """The command line flag of a setting."""
    return "--" + setting.name.replace("_", "-")


def arguments(config: BrokerConfig | StoreConfig) -> list[str]:
    """The flags that give another process these settings, every one of them."""
    found: list[str] = []
    for f in fields(config):
        value = getattr(config, f.name)
        if isinstance(value, bool):
            found += [flag(f)] if value else []
        elif value != "":
            found += [flag(f), str(value)]
    return found


def _settle(config: BrokerConfig | StoreConfig) -> None:
    """Check the bounds, and fill in the addresses that follow from the data directory."""
    for f in fields(config):
        value, least, most = getattr(config, f.name), f.metadata["least"], f.metadata["most"]
        if least is not None and not least <= value <= most:
            raise Misuse(f"{flag(f)} is {value:,}; it may be from {least:,} to {most:,}")
    if not config.data:
        raise Misuse("--data is empty", hint="name the directory of the store")
    folder = run_folder(config.data)
    if not config.backend:
        object.__setattr__(config, "backend", f"ipc://{folder / _REQUESTS}")
    if not config.backend_publish:
        object.__setattr__(config, "backend_publish", f"ipc://{folder / _PUBLICATIONS}")


# --- where broker and store meet --------------------------------------------------------------


def run_folder(data: str) -> Path:
    """The folder of the default backend addresses: `run` in the data directory, or a folder in
    the system's temporary directory, named after the data directory, where the path of a socket
    would be too long for the system."""
    real = os.path.realpath(data)
    folder = Path(real, "run")
    if len(os.fsencode(folder / _PUBLICATIONS)) <= IPC_PATH_BYTES:
        return folder
    key = hashlib.sha256(os.fsencode(real)).hexdigest()[:16]
    return Path(tempfile.gettempdir(), f"ckptmesh-{os.getuid()}-{key}")


def make_run_folder(data: str) -> Path:
    """Make `run_folder(data)`, and the data directory if it is missing, for this user alone.

    Raises `InvalidDirectory` when a parent is missing, or the folder is not ours or is open to
    others: whoever can write there could stand in for the store.
    """
    folder = run_folder(data)
    try:
        if folder.name == "run":
            folder.parent.mkdir(mode=0o700, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise InvalidDirectory(
            f"cannot make {folder}: {error.strerror}",
            hint="name a directory that can be written, with --data") from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise InvalidDirectory(
            f"{folder} must be a folder of this user alone (mode 0700)",
            hint=f"remove it, or `chmod 700 {folder}`",
        )
    return folder
