"""Checkers of recorded histories."""

from ckptmesh.testing.checkers.findings import Violation
from ckptmesh.testing.checkers.history import (
    ANYTHING,
    Change,
    Commit,
    Delete,
    Found,
    Get,
    Increment,
    Ok,
    Operation,
    Put,
    Recorder,
    Refused,
    Touch,
    Unknown,
    commits_of,
    dump,
    load,
)

__all__ = [
    "ANYTHING",
    "Change",
    "Commit",
    "Delete",
    "Found",
    "Get",
    "Increment",
    "Ok",
    "Operation",
    "Put",
    "Recorder",
    "Refused",
    "Touch",
    "Unknown",
    "Violation",
    "commits_of",
    "dump",
    "load",
]
