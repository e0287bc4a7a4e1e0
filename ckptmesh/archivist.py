"""The archivist: a process that reads the state at a revision of the past from a store's files.

    python -m ckptmesh.archivist DIRECTORY PARENT

Rule 1: it only reads, without the lock: see `cuts.py`. The store may compact meanwhile.
Rule 2: it answers with the code that the store answers with (`queries.py`), from a state that the
        store's own replay made. Whatever it cannot make exactly is an error, never a guess.
Rule 3: it dies with PARENT, the store's process id, and ends when nobody has asked for a while. It
        gives way to the store: low priority, and the first that a system short of memory ends.

Standard input is a stream socket. On it come requests of the wire (`protocol.py`), each behind its
length (4 bytes, big-endian), and replies go back likewise, one for each, in order. A reply carries
the epoch that its request was stamped with.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from struct import Struct
from typing import TypeVar

from ckptmesh import limits, queries
from ckptmesh.commands import op_of
from ckptmesh.cuts import reading, revision_at, state_at
from ckptmesh.disk import Disk, RealDisk
from ckptmesh.errors import Error, InvalidRequest
from ckptmesh.manifest import Manifest
from ckptmesh.messages import At, Get, Reply, Request, Rows, Scan
from ckptmesh.process import end_with, resident_bytes
from ckptmesh.protocol import decode_request, encode_reply
from ckptmesh.state import State

LENGTH = Struct(">I")
_NICE = 10
_ORPHANED = 3
_T = TypeVar("_T")
_MOMENTS = 1_000  # times whose revision is remembered


class Shelf:
    """States of the past, the few that were asked for last.

    Each answers for all revisions that it holds a true cut of, as a store's memory does: from its
    floor to its head. `resident` gives the bytes of memory that this process holds.
    """

    def __init__(self, disk: Disk, directory: str, *,
                 resident: Callable[[], int] = resident_bytes) -> None:
        self._disk = disk
        self._directory = directory
        self._resident = resident
        self._states: list[State] = []  # the one used last comes last
        self._moments: dict[int, int] = {}  # time → the last revision that is not later

    def answer(self, command: Get | Scan) -> Rows:
        """A read at a moment of the past.

        Raises `Compacted` naming the oldest cut that is left, `FutureRevision`, `Corrupt`,
        `Unsupported`.
        """
        at = command.at
        if at is None:
            raise InvalidRequest("the present is not in the archive")
        revision = self._revision(at.time or 0) if at.revision is None else at.revision
        state = self.state(revision)
        asked = command._replace(at=At(revision))
        now = state.time_of(revision)
        return (queries.get(state, asked, now) if isinstance(asked, Get)
                else queries.scan(state, asked, now))

    def state(self, revision: int) -> State:
        """A state that holds this cut. Raises as `answer`."""
        for state in self._states:
            if state.floor <= revision <= state.revision:
                break
        else:
            self._make_room()
            state = self._read(lambda manifest: state_at(
                self._disk, self._directory, manifest, revision))
            self._states.append(state)
        self._states.remove(state)
        self._states.append(state)
        return state

    def _revision(self, time: int) -> int:
        """The last revision that is not later than `time`. Raises as `answer`."""
        for state in self._states:
            if state.floor_time <= time:
                found = state.ring.not_later(time)
                if state.floor <= found < state.revision:  # what follows a head is not known here
                    return found
        found_at = self._moments.get(time)
        if found_at is None:
            found_at = self._read(lambda manifest: revision_at(
                self._disk, self._directory, manifest, time))
            if len(self._moments) >= _MOMENTS:
                self._moments.clear()
            self._moments[time] = found_at
        return found_at

    def _make_room(self) -> None:
        """Let go of the states that were not used for the longest time, before another is made."""
        while self._states and (len(self._states) >= limits.ARCHIVE_STATES
                                or self._resident() > limits.ARCHIVE_BYTES):
            del self._states[0]

    def _read(self, work: Callable[[Manifest], _T]) -> _T:
        return reading(self._disk, self._directory, work)


def reply_to(shelf: Shelf, request: Request) -> bytes:
    """The reply to a request, whatever comes of it."""
    command = request.command
    reply = Reply(b"", request.number, request.epoch)
    try:
        if not isinstance(command, Get | Scan):
            raise InvalidRequest(f"{type(command).__name__.lower()} does not ask the archive")
        reply = reply._replace(result=shelf.answer(command))
    except Error as error:
        reply = reply._replace(error=error)
    return encode_reply(op_of(command), reply)


def serve(shelf: Shelf, questions: Iterable[bytes], answer: Callable[[bytes], object]) -> None:
    """Answer each question in its turn. What is no request ends this: the store sends no such."""
    for payload in questions:
        answer(reply_to(shelf, decode_request(payload)))


def framed(payload: bytes) -> bytes:
    """A message as it goes over the socket."""
    return LENGTH.pack(len(payload)) + payload


def messages(receive: Callable[[int], bytes]) -> Iterable[bytes]:
    """The messages in a stream, until it ends. `receive` gives at most so many bytes, b"" at the
    end; a message that is cut short is none."""
    pending = bytearray()
    while True:
        while len(pending) < LENGTH.size or len(pending) < (
                size := LENGTH.size + LENGTH.unpack_from(pending)[0]):
            chunk = receive(limits.MIB)
            if not chunk:
                return
            pending += chunk
        yield bytes(pending[LENGTH.size:size])
        del pending[:size]


def main(arguments: list[str]) -> int:
    """Run as the program that the module docstring tells of; returns the exit code."""
    directory, parent = arguments
    if not end_with(int(parent), signal.SIGKILL):
        return _ORPHANED
    os.nice(_NICE)
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:
        score.write("1000")
    with socket.socket(fileno=os.dup(0)) as store:
        store.settimeout(limits.ARCHIVE_IDLE)
        with suppress(TimeoutError, ConnectionError):  # nobody asks, or the store has let go
            serve(Shelf(RealDisk(), directory), messages(store.recv),
                  lambda reply: store.sendall(framed(reply)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
