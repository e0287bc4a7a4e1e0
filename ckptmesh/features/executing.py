"""A command under a pipeline's lock, with its checkpoint: `ckptmesh exec`.

    code = Execution(place, "nightly", ["./load.sh"], forms, note, timeout=7200, wait=600).run()

It takes the lock, hands out the checkpoint, runs the command, and commits what the command has left
as the next checkpoint, if it ended with 0. The commit is guarded by the lock and expects what was
handed out, so that neither a successor nor anybody without a lock is overwritten.

Each run is recorded under `nightly/_runs/exec/`, at a key that begins with its start, with success
in the same transaction as the checkpoint. The last `limits.EXEC_RUNS` are kept.

Rule 1: what did not come into the store is never told as 0.
Rule 2: whoever gets an exit code is told on stderr whose it is.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from ckptmesh.errors import Error, InvalidValue, LeaseLost, OutcomeUnknown, Unavailable
from ckptmesh.features.children import Ended, Interrupted, Passes, Signals, run
from ckptmesh.features.holding import Directory, Served, ServedLock
from ckptmesh.features.locks import holder_name
from ckptmesh.limits import EXEC_RUNS, EXEC_VARIABLE, VALUE_BYTES
from ckptmesh.views import Checkpoint

CHECKPOINT, CHECKPOINT_FILE, NEXT_FILE = (
    "CKPTMESH_CHECKPOINT", "CKPTMESH_CHECKPOINT_FILE", "CKPTMESH_NEXT_FILE")
RUNS = "_runs/exec"
REFUSED, UNREACHABLE, TIMED_OUT = 4, 5, 124


class Forms(NamedTuple):
    """How a value is written for a command, and read from what it wrote."""

    write: Callable[[Any], str]
    read: Callable[[str], Any]


class _Began(NamedTuple):
    """When a run began: for people, and to count from."""

    at: datetime
    clock: float

    def record(self, program: str, ended: Ended, *, committed: bool = False,
               failed: bool = False, error: str = "") -> dict[str, Any]:
        """What is kept of a run. Of the command only the program: arguments may be secrets."""
        result = "ok" if not failed else "failed" if ended.reason == "ended" else ended.reason
        found: dict[str, Any] = {
            "started": self.at, "seconds": round(time.monotonic() - self.clock, 3),
            "holder": holder_name(), "program": program, "result": result,
            "code": ended.code, "committed": committed}
        return {**found, "error": error} if error else found


class _Nothing:
    """Stands for a next checkpoint where the command has written none."""


_NOTHING = _Nothing()


class Execution:
    """One run of a command. `checkpoint`: whether it is about one, or about the lock alone.
    `note` tells people, a line each. Seconds: `timeout` of the command, `ttl` and `wait` of the
    lock. `environ` is added to the environment. `lock`: one that is held already."""

    def __init__(self, place: Served | Directory, name: str, command: Sequence[str], forms: Forms,
                 note: Callable[[str], object], *, timeout: float | None = None, ttl: float = 30,
                 wait: float | None = 0, shared: bool = False, checkpoint: bool = True,
                 environ: Mapping[str, str] | None = None,
                 lock: ServedLock | None = None) -> None:
        self._place, self._name, self._command = place, name, command
        self._forms, self._note, self._timeout = forms, note, timeout
        self._checkpoint = checkpoint
        self._environ = {**os.environ, **(environ or {})}
        for variable in (CHECKPOINT, CHECKPOINT_FILE, NEXT_FILE):  # of an exec around this one
            self._environ.pop(variable, None)
        self._lock = lock or place.lock(name, shared=shared, ttl=ttl, wait=wait)
        self.committed = False  # whether a next checkpoint was

    def run(self) -> int:
        """The exit code. Everything else that matters is told by `note`."""
        with Signals() as signals:
            try:
                self._lock.acquire()
            except Interrupted as error:
                return self._own(error.code, f"{error} came before the command was started")
            except Error as error:
                return self._not_started(error)
            signals.hold()
            try:
                code = self.under_lock(signals)
            finally:
                self._release()
            return code

    def under_lock(self, signals: Passes) -> int:
        """What `run` does while the lock is held; for who holds it, and gave it as `lock`."""
        if not self._checkpoint:
            return self._told(self._child(signals))
        try:
            with self._place.open() as store:
                found: Checkpoint | None = store.get(self._name)
        except Error as error:
            return self._not_started(error)
        began = _Began(datetime.now(UTC), time.monotonic())
        with tempfile.TemporaryDirectory(prefix="ckptmesh-exec-",
                                         ignore_cleanup_errors=True) as folder:
            self._hand_out(found, Path(folder))
            ended = self._child(signals)
            if ended.reason != "ended" or ended.code != 0:
                self._record(began, ended, ended.tail)
                return self._told(ended)
            try:
                self._commit(found, self._next(Path(folder)), began, ended)
            except Error as error:
                self._record(began, ended, f"not committed: {error.message}")
                return self._refused(error)
        return 0

    def _child(self, signals: Passes) -> Ended:
        return run(self._command, signals, lost=self._lock.lost, timeout=self._timeout,
                   environ=self._environ, files=self._lock.files)

    # --- the checkpoint -----------------------------------------------------------------------

    def _hand_out(self, found: Checkpoint | None, folder: Path) -> None:
        text = "" if found is None else self._forms.write(found.value)
        file = folder / "checkpoint.json"
        file.write_text(text)
        self._environ |= {CHECKPOINT_FILE: str(file), NEXT_FILE: str(folder / "next")}
        if len(text.encode()) <= EXEC_VARIABLE:
            self._environ[CHECKPOINT] = text
        else:
            self._note(f"the checkpoint is too long for a variable: {CHECKPOINT} is not set, "
                       f"{CHECKPOINT_FILE} names a file with it")

    def _next(self, folder: Path) -> Any:
        """What the command has left. Raises `InvalidValue`."""
        try:
            with (folder / "next").open("rb") as file:
                data = file.read(4 * VALUE_BYTES + 1)  # JSON may be longer than it packs into
        except FileNotFoundError:
            return _NOTHING
        except OSError as error:
            raise InvalidValue(f"{NEXT_FILE} cannot be read: {error.strerror}") from None
        if len(data) > 4 * VALUE_BYTES:
            raise InvalidValue(f"{NEXT_FILE} has more than {4 * VALUE_BYTES:,} bytes",
                               hint="keep the data elsewhere and commit its address")
        try:
            text = data.decode().removesuffix("\n")
        except UnicodeDecodeError as error:
            raise InvalidValue(f"{NEXT_FILE} is not UTF-8 text: byte {error.start}") from None
        if not text.strip():  # `query | jq . > "$CKPTMESH_NEXT_FILE"` whose query has failed
            raise InvalidValue(f"{NEXT_FILE} is empty, which would lose the checkpoint",
                               hint='write "" for an empty string, or no file to keep the value')
        return self._forms.read(text)

    def _commit(self, found: Checkpoint | None, value: Any, began: _Began, ended: Ended) -> None:
        with self._open_settled() as (store, tx):
            tx.guard(self._lock)
            kept = isinstance(value, _Nothing)
            if not kept:
                tx.expect(self._name, found)
                tx.put(self._name, value)
            self._put_run(store, tx, began.record(self._command[0], ended, committed=not kept))
        self.committed = not kept

    def _record(self, began: _Began, ended: Ended, why: str) -> None:
        """Record a failure, as well as can be: it changes no exit code."""
        try:
            with self._open_settled() as (store, tx):
                self._put_run(store, tx, began.record(
                    self._command[0], ended, failed=True, error=why))
        except Error as error:
            self._note(f"the failure could not be recorded: {error.message}")

    def _put_run(self, store: Any, tx: Any, record: dict[str, Any]) -> None:
        folder = f"{self._name}/{RUNS}"
        for old in store.scan(folder)[:-EXEC_RUNS + 1]:
            tx.delete(old.key)
        began = record["started"].strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        tx.put(f"{folder}/{began}", record)

    @contextmanager
    def _open_settled(self) -> Iterator[tuple[Any, Any]]:
        """The store and a transaction, which is committed at the end; where no answer comes, the
        store is asked what became of it."""
        with self._place.open() as store:
            tx = store.transaction()
            yield store, tx
            try:
                tx.commit()
            except OutcomeUnknown as error:
                if error.resolve() is None:
                    raise Unavailable("the store did not get the commit in time", hint="") from None

    # --- the end ------------------------------------------------------------------------------

    def _release(self) -> None:
        try:
            self._lock.release()
        except LeaseLost:
            pass  # whatever was not committed for that has been told
        except Error as error:
            self._note(f"the lock is not given back, it ends by itself: {error.message}")

    def _told(self, ended: Ended) -> int:
        """The exit code of a command that has ended, told."""
        if ended.reason == "lost":
            return self._own(REFUSED, "the lock was lost while the command ran, so it was ended")
        if ended.reason == "timeout":
            return self._own(TIMED_OUT, f"the command was ended after {self._timeout:g} s")
        if ended.reason == "not started":
            return self._own(ended.code, ended.tail)
        if ended.code:
            self._note(f"exit code {ended.code} is the command's")
        return ended.code

    def _not_started(self, error: Error) -> int:
        self._explain(error)
        return self._own(error.exit_code, "the command was not started")

    def _refused(self, error: Error) -> int:
        self._explain(error)
        return self._own(UNREACHABLE if error.exit_code == UNREACHABLE else REFUSED,
                         "the command ended with 0, but its checkpoint was not committed")

    def _explain(self, error: Error) -> None:
        self._note(f"{error.message}" + (f" ({error.hint})" if error.hint else ""))

    def _own(self, code: int, why: str) -> int:
        self._note(f"{why}; exit code {code} is ckptmesh's")
        return code
