"""Every place where a simulation can inject a fault, by the name that `World.fault` counts."""

from __future__ import annotations

from collections.abc import Container

CALLS = ("open", "create", "write", "close", "pread", "pwrite", "zero_fill", "truncate",
         "fdatasync", "sync_directory", "rename", "unlink", "mkdir", "free_bytes")
"""The calls to a disk, as `FaultyDisk` names them."""

PHASES = ("start", "serving", "compacting", "stop")

SITES = (
    # the network
    "message lost", "message doubled", "message late", "message cut off", "place cut off",
    "request for a dead store", "reply by an old route", "reply to another client",
    "publication overflow", "watcher behind the floor",
    # processes
    "store killed", "power lost", "store stopped", "store stopped and started", "broker killed",
    "client killed", "client stopped", "watcher killed", "watcher stopped", "compactor killed",
    *(f"compactor killed at {call}" for call in ("open", "create", "close", "pread", "pwrite",
                                                  "fdatasync")),
    *(f"killed at {call} while {phase}" for call in CALLS for phase in PHASES),
    # the disk
    *(f"{call} fails while {phase}" for call in CALLS if call != "close" for phase in PHASES),
    "no space for zero_fill", "no space for pwrite", "slow sync",
    # the clock
    "machine suspended", "wall clock jumps", "clock suspected at a start",
)


def never_fired(fired: Container[str]) -> list[str]:
    """The sites that are not in `fired`. Some cannot fire: not every phase makes every call."""
    return [site for site in SITES if site not in fired]
