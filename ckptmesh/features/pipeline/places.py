"""Where a run is kept. All keys of a run begin with PIPELINE/_runs.

    nightly/_runs/run/2026-11-21               its record
    nightly/_runs/kept/2026-11-21/extract      the output of a stage
    nightly/_runs/place/2026-11-21/extract     how far a stage is that has not ended
    nightly/_runs/asked/2026-11-21             a pause or an end that somebody has asked for
    nightly/_runs/past/2026-11-21/4f1c…        the record of an earlier run under that key
    nightly/_runs/exec/2026-11-21T01:00:00…Z   the record of a command under `ckptmesh exec`

Records stand apart from outputs, so that a list of runs reads no output.
"""

from __future__ import annotations

from typing import Any

from ckptmesh.errors import Misuse
from ckptmesh.limits import check_key

RUNS = "_runs"
EXEC = f"/{RUNS}/exec/"


def check_segment(name: Any, what: str) -> str:
    """A name that can be one segment of a key, and is nobody else's. Raises `Misuse`, `InvalidKey`,
    `TooLarge`."""
    if (not isinstance(name, str) or not name or "/" in name or name[0] == "_"
            or name in (".", "..")):  # which lead elsewhere, as the name of a file
        raise Misuse(f"{what} is a text without '/' that does not begin with '_', and is not '.' "
                     f"or '..'; not {name!r:.80}")
    check_key(name)
    return name


class Places:
    """The keys of one run."""

    def __init__(self, pipeline: str, key: str) -> None:
        self.pipeline, self.key = pipeline, check_segment(key, "a run's key")
        self._front = f"{pipeline}/{RUNS}"
        check_key(self.record)
        self.lock = f"{pipeline}/{key}"  # covered by a lock on the whole pipeline

    @property
    def record(self) -> str:
        """The record."""
        return f"{self._front}/run/{self.key}"

    @property
    def asked(self) -> str:
        """What somebody has asked for."""
        return f"{self._front}/asked/{self.key}"

    def kept(self, stage: str) -> str:
        """A stage's output."""
        return f"{self._front}/kept/{self.key}/{stage}"

    def place(self, stage: str) -> str:
        """How far a stage is."""
        return f"{self._front}/place/{self.key}/{stage}"

    def past(self, run_id: str = "") -> str:
        """The record of an earlier run; without an id, what is before all of them."""
        return f"{self._front}/past/{self.key}" + (f"/{run_id}" if run_id else "")

    def folders(self) -> list[str]:
        """The prefixes of all that goes with the record."""
        return [f"{self._front}/kept/{self.key}", f"{self._front}/place/{self.key}"]


def records_of(pipeline: str) -> str:
    """The prefix of the records of all keys."""
    return f"{pipeline}/{RUNS}/run"


def past_of(pipeline: str) -> str:
    """The prefix of the records of all earlier runs."""
    return f"{pipeline}/{RUNS}/past"


def asked_of(pipeline: str) -> str:
    """The prefix of all that was asked for."""
    return f"{pipeline}/{RUNS}/asked"


def exec_of(pipeline: str) -> str:
    """The prefix of the records of commands."""
    return f"{pipeline}{EXEC}"[:-1]


def is_record(key: str) -> bool:
    """Whether a key is that of the record of a run, an earlier one or a command."""
    _, found, rest = key.partition(f"/{RUNS}/")
    kind, _, name = rest.partition("/")
    return bool(found and name) and (
        (kind in ("run", "exec") and "/" not in name) or (kind == "past" and name.count("/") == 1))
