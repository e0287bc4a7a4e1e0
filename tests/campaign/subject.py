"""The process that has faults injected into its system calls: a store embedded in a script.

It says on its standard output what it is about to do and what came of it, one line each and
unbuffered, so that a judge knows whatever happens to it:

    phase NAME            where in its run it is
    try N                 operation N goes to the store
    done N REVISION       it was acknowledged
    refused N ERROR       it was refused: it must never be there
    failed N ERROR        the log failed while it was under way: whole or absent
    compaction RESULT     "made" or the name of an error
    ended ERROR           the end, with "-" or the name of the error that its exit code tells

Operation N writes two keys as one transaction, so that half of one would show (`applied`).

    python -m tests.campaign.subject fresh|used|compact|compactor|leave DIRECTORY
    python -m tests.campaign.subject -m MODULE ARGUMENTS     (another module, with its short writes)

`SUBJECT_SHORT=N:BYTES` makes the N-th `pwrite` of the process an honest short write: the system is
asked for so many bytes only (a negative number: all but so many) and its answer is passed on.
`SUBJECT_COMPACTOR` is the program that the first compaction of `compactor` runs for Python.
"""

from __future__ import annotations

import itertools
import os
import runpy
import signal
import sys
from typing import Any

import ckptmesh
from ckptmesh.errors import Error, OutOfSpace
from ckptmesh.wal import Wal

SEGMENT_BYTES = 256 * 1024
LARGE = 40_000  # bytes of a value; five of them fill a segment
KEYS = 3


def value(number: int, size: int = 0) -> dict[str, Any]:
    """What operation `number` writes."""
    return {"n": number, "pad": "x" * size}


def applied(state: dict[str, Any], number: int) -> dict[str, Any]:
    """The state after operation `number`: key → value, without padding."""
    state = {**state, "last": value(number)}
    if number % 7 == 6:
        state.pop(f"k{number % KEYS}", None)
    else:
        state[f"k{number % KEYS}"] = value(number)
    return state


def operate(store: Any, number: int, size: int = 0, **options: Any) -> int:
    """Do operation `number` on a client. Returns its revision."""
    key = f"k{number % KEYS}"
    if number % 7 == 6:
        return int(store.transact(put={"last": value(number)}, delete=[key], **options))
    return int(store.transact(put={key: value(number, size), "last": value(number)}, **options))


def say(*words: object) -> None:
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


class Subject:
    """The script: what it does to the store in a directory, and what it says about it."""

    def __init__(self, directory: str, first: int) -> None:
        self.directory = directory
        self.numbers = itertools.count(first)
        self.error: Error | None = None
        self.mesh: Any = None

    def phase(self, name: str) -> None:
        say("phase", name)

    def operations(self, count: int, size: int = 0) -> None:
        for number in itertools.islice(self.numbers, count):
            say("try", number)
            try:
                say("done", number, operate(self.mesh, number, size))
            except OutOfSpace as error:
                say("refused", number, type(error).__name__)
            except Error as error:
                self.error = error
                say("failed", number, type(error).__name__)

    def compaction(self) -> None:
        try:
            self.mesh.compact(retain=0)
            say("compaction", "made")
        except Error as error:
            say("compaction", type(error).__name__)

    def run(self, scenario: str) -> None:
        self.phase("start")
        self.mesh = ckptmesh.connect(f"file:{self.directory}")
        self.operations(1)
        self.phase("commit")
        self.operations(3)
        if scenario in ("fresh", "leave"):
            self.phase("rotation")
            self.operations(6, LARGE)
        if scenario in ("compact", "compactor", "leave"):
            self.phase("compaction")
            python, sys.executable = sys.executable, os.environ.get("SUBJECT_COMPACTOR",
                                                                    sys.executable)
            self.compaction()
            sys.executable = python
            self.operations(1)
            self.compaction()
        if scenario == "leave":  # for others to begin with: killed in the middle of its work
            self.operations(2)
            os.kill(os.getpid(), signal.SIGKILL)
        self.phase("close")
        self.mesh.close()


def shorten(number: int, size: int) -> None:
    """Make the `number`-th write of this process a short one of `size` bytes."""
    real, calls = os.pwrite, itertools.count(1)

    def pwrite(handle: int, data: Any, offset: int) -> int:
        if next(calls) != number:
            return real(handle, data, offset)
        asked = min(size, len(data)) if size > 0 else max(1, len(data) + size)
        written = real(handle, memoryview(data)[:asked], offset)
        os.write(2, f"shortened {len(data)} to {written}\n".encode())
        return written

    os.pwrite = pwrite


def main(arguments: list[str]) -> int:
    if "SUBJECT_SHORT" in os.environ:
        number, _, size = os.environ["SUBJECT_SHORT"].partition(":")
        shorten(int(number), int(size))
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        return 0
    real = Wal.open
    Wal.open = lambda directory, options, *more: real(  # type: ignore[method-assign, assignment]
        directory, options._replace(segment_bytes=SEGMENT_BYTES), *more)
    scenario, directory = arguments
    subject = Subject(directory, 0 if scenario in ("fresh", "leave") else 100)
    try:
        subject.run(scenario)
    except Error as error:
        subject.error = error
    say("ended", type(subject.error).__name__ if subject.error else "-")
    return subject.error.exit_code if subject.error else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
