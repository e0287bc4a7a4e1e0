"""Everything that can go wrong, as one catalogue with one root.

Rule 1: every error that ckptmesh raises on purpose is a `ckptmesh.Error`.
Rule 2: a class's docstring says when it is raised, whether a retry can help, and what to do.
Rule 3: a message names the key, the numbers and the next step; values are never shown.
Rule 4: an error that travels has a `code`; codes are part of the wire and are never reused.

`exit_code` is what the command line ends with: 1 error, 2 usage, 3 not found, 4 conflict or in
use, 5 unreachable or unknown, 6 corruption or loss, 7 out of space.
"""

from __future__ import annotations

from typing import Any, ClassVar


class Error(Exception):
    """The root of the catalogue. Never raised itself.

    `details` holds plain facts (numbers, keys) for programs; `hint` is the next step for people.
    """

    code: ClassVar[int] = 1
    exit_code: ClassVar[int] = 1
    retryable: ClassVar[bool] = False
    hint: str = ""

    def __init__(self, message: str, *, hint: str | None = None, **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.details = details
        if hint is not None:
            self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message

    def __reduce__(self) -> tuple[Any, ...]:
        # Keyword-only facts would be lost on the way to another process.
        return _revive, (type(self), self.message, self.hint, self.details)


def _revive(cls: type[Error], message: str, hint: str, details: dict[str, Any]) -> Error:
    return cls(message, hint=hint or None, **details)


# --- refusals: decided before the log, so nothing was written ---------------------------------


class Conflict(Error):
    """A condition did not hold: somebody else committed first. Read again, decide again.

    A blind retry cannot help. `details`: `key`, `expected`, `revision` (what stands there now,
    0 for nothing) and, where the command had one key, `current` (the checkpoint or None).
    """

    code = 10
    exit_code = 4
    hint = "read the key again and decide from what stands there now"

    @property
    def current(self) -> Any:
        """The checkpoint that stands there now, or None."""
        return self.details.get("current")


class LeaseLost(Error):
    """The lease is not held under this token any more: expired, released, or taken by another.

    A retry cannot help; stop the work that it guarded, then acquire anew. `details`: `key`.
    """

    code = 11
    exit_code = 4
    hint = "stop the guarded work and acquire the lease again"


class InvalidKey(Error, ValueError):
    """The key is outside the rules of `limits.check_key`. A retry cannot help; rename it."""

    code = 12
    exit_code = 2


class InvalidValue(Error, ValueError):
    """The value cannot be stored as it is (NaN, integer over 64 bits, an unknown type, or not an
    integer where `increment` needs one). The message names the path inside the value."""

    code = 13
    exit_code = 2


class TooLarge(Error, ValueError):
    """A key, value, transaction or request is over its limit in `limits.py`. Make it smaller, or
    keep the data elsewhere and commit its address. `details`: `size`, `limit`."""

    code = 14
    exit_code = 2


class InvalidRequest(Error, ValueError):
    """The request is malformed: wrong count, wrong type, hostile nesting, a contradiction. A retry
    cannot help. From the library's own client this is a bug; please report it."""

    code = 15
    exit_code = 2


class Compacted(Error):
    """The revision asked for is older than what memory can answer, or, for reads that the files of
    the log can answer, than what they hold. `details`: `floor`, the oldest revision that can be
    read; `resume_from`, where a watch may start again."""

    code = 16
    hint = "start from the current state, or restore a copy with `ckptmesh snapshot restore --at`"

    @property
    def resume_from(self) -> int:
        """The oldest revision from which a watch can go on."""
        return int(self.details.get("resume_from", self.details.get("floor", 0)))


class FutureRevision(Error, ValueError):
    """The revision or time asked for lies beyond the head of the store. `details`: `revision`."""

    code = 17
    hint = "ask for the head or less; `ckptmesh status` tells where it is"


class Unsupported(Error):
    """This store, back end, file or peer cannot do what was asked (an unknown format or protocol
    version, a capability that it does not declare). A retry cannot help."""

    code = 18


class OutOfSpace(Error):
    """The disk is nearly full, so the store is read-only but for deletes, releases and compaction.
    It goes on by itself once there is room."""

    code = 19
    exit_code = 7
    retryable = True
    hint = "free space on the store's disk, or run `ckptmesh compact`"


class QuotaExceeded(Error):
    """A declared quota (sessions, leases) is used up. A retry can help once others end."""

    code = 20
    retryable = True


class CompactionFailed(Error):
    """A snapshot could not be made: its process failed or was killed. Nothing is lost, the old
    snapshot and the whole log stand; a retry can help. The store's own log says more."""

    code = 21
    retryable = True
    hint = "nothing is lost; try again, and see the store's log if it fails again"


class ContractBroken(Error):
    """A commit breaks a rule that was put on its prefix; nothing was written. `details`: `key`,
    `rule`, `contract` (the prefix), `version` (of the contract). A retry cannot help."""

    code = 23
    exit_code = 4
    hint = "see the rules with `ckptmesh contract list`; `ckptmesh state rewind` may go back"


# --- doubt: the store will not go on as if nothing had happened -------------------------------


class DataLoss(Error):
    """The store lacks something that it once acknowledged (an older disk came back, a log was cut).

    The store is read-only until `ckptmesh wal accept-loss DIR`; a retry cannot help.
    """

    code = 30
    exit_code = 6
    hint = "restore the right disk, or accept the loss with `ckptmesh wal accept-loss DIR`"


class Corrupt(Error):
    """A file is damaged where damage cannot be a torn write. `details`: `file`, `offset`.

    The store refuses to start; only `ckptmesh wal repair`, into a new directory, goes on.
    """

    code = 31
    exit_code = 6
    hint = "inspect with `ckptmesh wal verify DIR`, mend with `ckptmesh wal repair DIR NEW_DIR`"


class Poisoned(Error):
    """A write or a sync of the log failed; nothing more is answered from this store process. What
    was in flight may or may not be on disk. Start the store again: recovery tells."""

    code = 32
    hint = "look at the disk (`dmesg`), then start the store again: recovery reads what is there"


# --- sessions: mechanics that clients settle among themselves and the store -------------------


class OtherStore(Error):
    """The answer comes from another store than the one this client began with (another UUID)."""

    code = 40
    exit_code = 6
    hint = "check the URL; a restored directory is another store: connect anew to accept it"


class EpochChanged(Error):
    """The store was restarted since this copy was stamped. Clients stamp anew and send again."""

    code = 41
    retryable = True


class SessionExpired(Error):
    """The session was evicted (an hour idle, or quota). A request that was sent exactly once is
    known to be absent and goes again in a new session; any other becomes `OutcomeUnknown`."""

    code = 42
    retryable = True


class Superseded(Error):
    """A late copy of a request that its client has already settled. Nobody waits for this."""

    code = 43


class TooManyInFlight(Error):
    """More requests are in flight in one session than the limit, or more is asked for at once than
    one batch answers. Clients wait and send again."""

    code = 44
    retryable = True


class RequestReused(Error):
    """A request number came again with another content. A client bug; nothing was executed."""

    code = 45


# --- the way there ----------------------------------------------------------------------------


class Unavailable(Error, ConnectionError):
    """No store could be reached in time, and the request is known not to have been executed (or
    was a read). A retry can help. The message tells a missing broker from a missing store."""

    code = 50
    exit_code = 5
    retryable = True
    hint = "start one with `ckptmesh up`, or work without a server: connect('file:./state')"


class OutcomeUnknown(Error, TimeoutError):
    """A commit was sent and no answer came within the timeout: it may or may not have happened.

    Never retry it blindly. `resolve()` asks the store; or read the key and compare.
    """

    code = 51
    exit_code = 5
    hint = "call resolve() on this error, or read the key and compare before trying again"

    _resolver: Any = None

    def resolve(self, timeout: float | None = None) -> Any:
        """Ask the store what became of the request.

        Returns what the call would have returned when it took effect, and None when it is known
        to be absent, now and for ever. On an `AsyncClient` the result is awaitable.
        Raises `OutcomeUnknown` again when the store cannot tell any more (the floor has passed
        it), `Unavailable` when no store answers.
        """
        if self._resolver is None:
            raise OutcomeUnknown("this outcome cannot be resolved: its client is gone",
                                 hint="read the key and compare")
        return self._resolver(timeout)


class ArchiveUnavailable(Unavailable):
    """A read of the past could not be answered now: the process that reads it from the store's
    files was ended, or took too long. Nothing was changed, all else goes on; a retry can help."""

    code = 22
    hint = "ask again; see the store's log and the machine's memory if it fails again"


class Closed(Error):
    """The client, store or watch was closed, or is used in a forked child. Connect again there."""

    code = 52


class LockTimeout(Error, TimeoutError):
    """A lock was not had within `wait` seconds. `details`: `key` (what was asked for), `held` and
    `holder` (the name and the holder of the first lock that is ahead)."""

    code = 53
    exit_code = 4
    retryable = True
    hint = "wait longer, or see `ckptmesh lock list` for who holds it"


# --- local: directories, clocks, installation -------------------------------------------------


class DirectoryInUse(Error):
    """Another process holds this directory. `details`: `pid`, `directory`."""

    code = 60
    exit_code = 4
    retryable = True
    hint = "share it among processes by serving it: `ckptmesh up --data DIR`, and connect to that"


class InvalidDirectory(Error):
    """The directory cannot hold a store: missing parent, read-only, a network file system, files
    of something else, or another store's files. The message says which."""

    code = 61
    exit_code = 2


class ClockSuspect(Error):
    """The machine's clock is more than 7 days ahead of the last logged time: with it, everything
    with a TTL would expire at once. Mend the clock or start with `--accept-clock`."""

    code = 62
    hint = "mend the clock, or start the store with --accept-clock if it is right"


class AddressInUse(Error):
    """An address to bind is taken. `details`: `url`."""

    code = 63
    exit_code = 4


class InvalidUrl(Error, ValueError):
    """The URL's scheme or form is not one that ckptmesh knows; the message lists those it does."""

    code = 64
    exit_code = 2


class InvalidPayload(Error, ValueError):
    """Stored bytes under this key are not what the helper that reads them wrote. `details`:
    `key`. Nothing was changed; look with `ckptmesh state get KEY --json`."""

    code = 65
    exit_code = 6


class SavepointNotFound(Error, LookupError):
    """There is no savepoint of this name: `mesh.savepoints()` lists them. `details`: `name`."""

    code = 68
    exit_code = 3
    hint = "see `ckptmesh snapshot pins`"


class MissingExtra(Error, ImportError):
    """An optional dependency is not installed. The message names the extra to install."""

    code = 66


class Misuse(Error, TypeError):
    """The library is called in a way that cannot be right (a naive datetime, a receipt of another
    commit). The message says what to write instead."""

    code = 67
    exit_code = 2


# --- pipelines --------------------------------------------------------------------------------


class PipelineChanged(Error):
    """The stages of a pipeline are not those that the run under this key was begun with, so it does
    not go on: which outputs still hold is the author's to say. Nothing was changed. `details`:
    `pipeline`, `key`, `changes` (what differs, a line each)."""

    code = 70
    exit_code = 4
    hint = ("give the pipeline another version, and the stages that are as they were keep their "
            'outputs; or begin anew with resume="never"')


class RunStopped(Error):
    """The run was paused or cancelled, by whoever asked for it, and nothing is lost: a paused one
    goes on after `ckptmesh run resume`. `details`: `pipeline`, `key`, `status` ("paused" or
    "cancelled"), `reason`."""

    code = 71
    exit_code = 4
    hint = "see `ckptmesh run show` for who asked; `ckptmesh run resume` lets it go on"


class RunNotFound(Error, LookupError):
    """There is no run under this key: nothing to resume, to pause or to show. `details`:
    `pipeline`, `key`."""

    code = 72
    exit_code = 3
    hint = "see `ckptmesh run list`"


class StageNotReady(Error):
    """A stage that alone was asked for needs others that are not completed. A retry can help, once
    somebody has done them. `details`: `pipeline`, `key`, `stage`, `needs`."""

    code = 73
    exit_code = 4
    retryable = True
    hint = "give wait=, or run the stages that it needs first"


class OutputLost(Error):
    """A file that a stage has left is not there, or is not what was written. `details`: `stage`,
    `path`, `host` (who wrote it)."""

    code = 74
    exit_code = 6
    hint = ("give all processes of a run one shared folder as storage=; a file that is gone for "
            'good is made again by a run with resume="never"')


class RewindRefused(Error):
    """Somebody is at work where a rewind would change things: a lock is held there. Nothing was
    changed. `details`: `key`, what is held. A retry can help, once they have ended."""

    code = 77
    exit_code = 4
    retryable = True
    hint = "stop the workers (`ckptmesh worker drain`, `run pause`), or insist: apply(force=True)"


# --- exports ----------------------------------------------------------------------------------


class ExportDamaged(Error, ValueError):
    """A file of exported checkpoints is not as it was written, or is no such file. Nothing of it
    was imported. `details`: `file`, `line`, from 1. Take another copy; a retry cannot help."""

    code = 75
    exit_code = 6
    hint = "nothing was imported; take another copy of the file, or export again"


class ExportTruncated(ExportDamaged):
    """A file of exported checkpoints ends early: it was cut, or its export never came to its end.
    Nothing of it was imported. `details`: `file`, `line`."""

    code = 76


def _catalogue(cls: type[Error]) -> dict[int, type[Error]]:
    found = {cls.code: cls}
    for sub in cls.__subclasses__():
        found.update(_catalogue(sub))
    return found


BY_CODE: dict[int, type[Error]] = _catalogue(Error)
"""Wire code → class. An unknown code is read as `Error` itself, so that old clients go on."""
