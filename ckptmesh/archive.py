"""The archive, the store's side: questions below the floor, passed to a process that reads files.

    ask     a read that memory cannot answer any more waits in a queue of bounded length
    poll    at each turn of the store's loop: hand the archivist one question, take its answer

Rule 1: no call here waits for the archivist; the store goes on serving.
Rule 2: one question is with the archivist at a time, so an answer can be no other question's.
Rule 3: the archivist is there on demand: started by a question, it ends when nobody asks. One that
        dies is replaced, and its question asked once more; after that it is refused.
"""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from ckptmesh import limits
from ckptmesh.archivist import LENGTH, framed
from ckptmesh.clock import boot_micros
from ckptmesh.commands import op_of, pack_command
from ckptmesh.errors import ArchiveUnavailable, Error, TooManyInFlight
from ckptmesh.messages import Reply, Request
from ckptmesh.process import helper
from ckptmesh.protocol import encode_reply, encode_request

_TRIES = 2  # archivists that one question may see die
_MOST = limits.SOCKET_BYTES  # bytes of an answer: a page
_AT_ONCE = 4 * limits.MIB  # bytes taken from an archivist in one turn: some milliseconds
_SOON, _LATER = 2_000, 20_000  # microseconds between two looks for an answer …
_PROMPT = 100_000  # … while it can still come from a state at hand, and after that


class Archivist(Protocol):
    """What is needed of an archivist process."""

    @property
    def pid(self) -> int:
        """Its process id."""

    def send(self, payload: bytes) -> None:
        """Take a question along. Raises `OSError` when the process is gone."""

    def receive(self) -> bytes | None:
        """Its answer, once it is whole. Raises `OSError` when the process is gone, `ValueError` for
        what is no answer."""

    def ended(self) -> bool:
        """Whether the process has ended."""

    def close(self) -> None:
        """End it, if it has not."""


class Helper:
    """An archivist over a stream socket, of which this end never waits."""

    def __init__(self, process: subprocess.Popen[bytes], ours: socket.socket) -> None:
        self.pid = process.pid
        self._process = process
        self._socket = ours
        self._out = b""
        self._in = bytearray()

    def send(self, payload: bytes) -> None:
        """See `Archivist`."""
        self._out += framed(payload)
        self._flush()

    def _flush(self) -> None:
        while self._out:
            try:
                self._out = self._out[self._socket.send(self._out):]
            except BlockingIOError:
                return

    def receive(self) -> bytes | None:
        """See `Archivist`."""
        self._flush()
        for _ in range(_AT_ONCE // limits.MIB):
            try:
                chunk = self._socket.recv(limits.MIB)
            except BlockingIOError:
                break
            if not chunk:
                raise ConnectionResetError("the archivist has ended")
            self._in += chunk
        if len(self._in) < LENGTH.size:
            return None
        [size] = LENGTH.unpack_from(self._in)
        if size > _MOST or len(self._in) > LENGTH.size + size:
            raise ValueError("this is no answer of an archivist")
        if len(self._in) < LENGTH.size + size:
            return None
        answer = bytes(self._in[LENGTH.size:])
        self._in.clear()
        return answer

    def ended(self) -> bool:
        """See `Archivist`."""
        return self._process.poll() is not None

    def close(self) -> None:
        """See `Archivist`."""
        self._socket.close()
        self._process.kill()
        self._process.wait()


def spawn(directory: str) -> Archivist:
    """Start an archivist; see `archivist.py`. Raises `OSError`."""
    ours, theirs = socket.socketpair()
    try:
        ours.setblocking(False)
        process = helper("ckptmesh.archivist", directory, str(os.getpid()), stdin=theirs.fileno(),
                         stdout=subprocess.DEVNULL)
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
    return Helper(process, ours)


class _Question(NamedTuple):
    """A read that waits. `heard`: when its last copy came, microseconds."""

    route: Any
    request: Request
    heard: int
    tries: int = 0


class Archive:
    """Questions about the past of one directory. `elapsed` gives microseconds of a clock that only
    runs forward. For the thread that owns the log."""

    def __init__(self, directory: str, *, spawn: Callable[[str], Archivist] = spawn,
                 elapsed: Callable[[], int] = boot_micros) -> None:
        self._directory = directory
        self._spawn = spawn
        self._elapsed = elapsed
        self._archivist: Archivist | None = None
        self._questions: dict[tuple[int, int], _Question] = {}  # by number and digest, in order
        self._bytes = 0
        self._answers: list[tuple[Any, bytes]] = []
        self._asked: tuple[int, int] | None = None  # the one that is with the archivist
        self._since = 0  # when it was handed over
        self._counts = {"asked": 0, "answered": 0, "refused": 0, "deaths": 0}

    @property
    def waiting(self) -> bool:
        """Whether somebody waits for an answer."""
        return bool(self._questions or self._answers)

    def ask(self, route: Any, request: Request) -> None:
        """Take a read that names a moment below the floor; its answer comes from `poll`.

        A copy of one that waits already is not taken again, but the answer goes the way that the
        newest copy came.
        """
        key, now = (request.number, request.digest), self._elapsed()
        known = self._questions.get(key)
        if known is not None:
            self._questions[key] = known._replace(route=route, heard=now)
            return
        if (len(self._questions) >= limits.ARCHIVE_QUESTIONS
                or self._bytes + request.size > limits.ARCHIVE_QUESTION_BYTES):
            self._answers.append((route, self._refusal(request, TooManyInFlight(
                f"{len(self._questions)} questions about the past are waiting already",
                limit=limits.ARCHIVE_QUESTIONS))))  # clients wait and ask again
            return
        self._counts["asked"] += 1
        self._bytes += request.size
        self._questions[key] = _Question(route, request, now)

    def poll(self) -> list[tuple[Any, bytes]]:
        """The answers that are there, with their routes."""
        answers, self._answers = self._answers, []
        while self._questions:
            key = self._asked or self._next()
            if key is None:
                break
            try:
                answer = self._step(key)
            except Error as error:
                answer = self._refusal(self._questions[key].request, error)
            except (OSError, ValueError) as trouble:
                answer = self._died(key, trouble)
                if answer is None:
                    continue
            if answer is None:
                break
            answers.append((self._settle(key).route, answer))
        if not self._questions and self._archivist is not None and self._archivist.ended():
            self._end()
        return answers

    def pause(self) -> int:
        """Microseconds until `poll` is worth a call, while somebody waits."""
        return _SOON if self._elapsed() - self._since < _PROMPT else _LATER

    def status(self) -> dict[str, Any]:
        """Facts for `status`: counts since the start, and the process id, 0 without a process."""
        return {"waiting": len(self._questions),
                "pid": 0 if self._archivist is None else self._archivist.pid, **self._counts}

    def close(self) -> None:
        """End the archivist; nobody is answered any more. May be called twice."""
        self._questions.clear()
        self._bytes = 0
        self._end()

    # --- steps ---------------------------------------------------------------------------------

    def _next(self) -> tuple[int, int] | None:
        """The question that comes next: the oldest that somebody still waits for. Whoever waits
        sends copies, at least every `session.RESEND_MAX` seconds."""
        now = self._elapsed()
        for key, question in list(self._questions.items()):
            if now - question.heard <= limits.ARCHIVE_FORGET:
                return key
            self._settle(key)
        return None

    def _step(self, key: tuple[int, int]) -> bytes | None:
        """Hand a question over, or look for its answer. Raises `OSError` and `ValueError` where
        the archivist failed, `ArchiveUnavailable` where the answer takes too long."""
        now = self._elapsed()
        if self._asked is None:
            if self._archivist is None or self._archivist.ended():
                self._end()
                self._archivist = self._spawn(self._directory)
            self._asked, self._since = key, now
            request = self._questions[key].request
            op, body = pack_command(request.command)
            self._archivist.send(encode_request(
                op, body, number=request.number, epoch=request.epoch))
        assert self._archivist is not None  # it has the question
        answer = self._archivist.receive()
        if answer is None and now - self._since > limits.ARCHIVE_TIME:
            self._end()
            raise ArchiveUnavailable(
                f"reading the past took longer than {limits.ARCHIVE_TIME // limits.SECOND} s")
        if answer is not None:
            self._counts["answered"] += 1
        return answer

    def _died(self, key: tuple[int, int], trouble: Exception) -> bytes | None:
        """The archivist failed: None where the question may be asked once more."""
        self._counts["deaths"] += 1
        self._end()
        question = self._questions[key]
        self._questions[key] = question._replace(tries=question.tries + 1)
        if question.tries + 1 < _TRIES:
            return None
        return self._refusal(question.request, ArchiveUnavailable(
            f"the process that reads the past ended before it had answered: {trouble}"))

    def _refusal(self, request: Request, error: Error) -> bytes:
        self._counts["refused"] += 1
        return encode_reply(op_of(request.command), Reply(
            b"", request.number, request.epoch, None, error))

    def _settle(self, key: tuple[int, int]) -> _Question:
        question = self._questions.pop(key)
        self._bytes -= question.request.size
        if self._asked == key:
            self._asked = None
        return question

    def _end(self) -> None:
        archivist, self._archivist, self._asked = self._archivist, None, None
        if archivist is not None:
            archivist.close()
