"""What answers and refusals must say, held against the model.

A request is decided at one moment between asking and being answered. So an answer is right when
some revision between the durable head when it was asked and the one when it was answered, at some
time that the store can have had meanwhile, explains all of it; and so is a refusal, which needs a
reason too: a store that refuses for none keeps every other promise.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ckptmesh.errors import (
    Compacted,
    CompactionFailed,
    Conflict,
    ContractBroken,
    Error,
    FutureRevision,
    LeaseLost,
    OutcomeUnknown,
    OutOfSpace,
    Unavailable,
)
from ckptmesh.limits import SECOND
from ckptmesh.messages import (
    Close,
    Command,
    Compact,
    Condition,
    Exists,
    Get,
    Hello,
    History,
    KeepAlive,
    Outcome,
    Put,
    Row,
    Rows,
    Rules,
    Scan,
    SetContract,
    TokenIs,
    Transact,
    Unchanged,
    Version,
    Welcome,
)
from ckptmesh.testing.simulation.model import Entry, Model, covers, outcome_of, unexpired
from ckptmesh.testing.simulation.world import Broken

_SPACE_NOTICED = 12 * SECOND  # true time until a store sees that there is room again: it looks once
# a second, unless it is stopped, or waits for its disk


@dataclass(slots=True, eq=False)
class Operation:
    """One thing that a client asked for. `asked`, `deadline`, `answered`: true time."""

    client: str
    what: str
    command: Command
    asked: int
    deadline: float
    floor: int  # highest revision that anybody had seen acknowledged when it was asked
    head: int  # the durable one, then
    answered: int | None = None
    result: Any = None
    error: Error | None = None
    absent: bool = False  # somebody was told that it has not happened, and never will
    copies: int = 0  # of a transaction, that were sent
    revision: int = 0  # at which it took effect; the last, while more of them may follow
    taken: int = 0  # revisions, of those that it takes


# --- answers --------------------------------------------------------------------------------------


def check_answer(model: Model, operation: Operation, result: Any, *, told: int,
                 uuid: bytes) -> None:
    """Hold an answer against the model; `told`: the latest store time there was."""
    command = operation.command
    match command:
        case Transact():
            check_outcome(model, operation, result)
        case Get() | Scan() | History():
            _check_rows(model, operation, command, result, told)
        case KeepAlive(key, epoch, revision):
            if not any(model.held(key, epoch, revision, at)
                       for at in range(operation.head, model.head + 1)):
                raise Broken(f"{operation.what}: the lease was kept, and was not held")
            entry = model.at(key, revision)
            if entry is None or result != entry.version.lease:
                raise Broken(f"{operation.what} is told {result} µs; the lease is {entry}")
        case Hello():
            _check_welcome(model, operation, result, told, uuid)


def check_outcome(model: Model, operation: Operation, outcome: Outcome) -> None:
    """What a client was told, at first or later, of a transaction that was accepted."""
    revision = outcome.revision
    if not operation.floor <= revision <= model.head:
        raise Broken(f"{operation.what} was told revision {revision}; {operation.floor} was "
                     f"acknowledged before it was asked, {model.head} are durable")
    if operation.revision:
        facts = model.facts[operation.revision - operation.taken : operation.revision]
        wanted = outcome_of(facts[-1])._replace(
            results=tuple(result for fact in facts for result in fact.results))
        if outcome != wanted:
            raise Broken(f"{operation.what} was told {outcome}; it is {wanted}")
        return
    assert isinstance(operation.command, Transact)
    standing = [mutation.key for mutation in operation.command.mutations
                if unexpired(model.at(mutation.key, revision), outcome.time)]
    unmet = [condition for condition in operation.command.conditions
             if isinstance(condition, Exists)
             and not unexpired(model.at(condition.key, revision), outcome.time)]
    if any(outcome.results) or standing or unmet:
        raise Broken(f"{operation.what} was acknowledged and is not durable: {outcome}, "
                     f"{standing} stood there, {unmet} did not hold")


def _check_rows(model: Model, operation: Operation, command: Get | Scan | History, rows: Rows,
                told: int) -> None:
    if rows.revision > model.head:
        raise Broken(f"a read shows revision {rows.revision}; {model.head} are durable")
    at = None if isinstance(command, History) else command.at
    if at is None:
        if rows.revision < operation.floor:
            raise Broken(f"{operation.what} is stale: it shows revision {rows.revision}; "
                         f"{operation.floor} was acknowledged before it was asked")
        # The time of a cut of the present: not before its newest fact, nor in the future.
        least, most = _time_of(model, rows.revision), told
    else:
        heads = range(operation.head, model.head + 1)
        if (at.time is not None and rows.revision not in {
                model.not_later(at.time, head) for head in heads}) or (
                at.revision is not None and rows.revision != at.revision):
            raise Broken(f"{operation.what} asks for {at}, and is shown revision {rows.revision}")
        least = most = _time_of(model, rows.revision)
    if not least <= rows.time <= most:
        raise Broken(f"{operation.what} shows time {rows.time}, not {least} to {most}")
    wanted, more = _wanted(model, command, rows)
    if list(rows.found) != wanted or rows.more != more:
        raise Broken(f"{operation.what} shows {rows}; there is {wanted}")


def _time_of(model: Model, revision: int) -> int:
    return model.facts[revision - 1].time if revision else 0


def _wanted(model: Model, command: Get | Scan | History, rows: Rows) -> tuple[
        list[Row | None], bool]:
    """The page that answers a read at that revision and time, and whether there is more."""
    def row(key: str) -> Row | None:
        entry = unexpired(model.at(key, rows.revision), rows.time)
        return entry.row(key) if entry else None

    match command:
        case Get(keys):
            return [row(key) for key in keys], False
        case Scan(prefix, after, limit):
            found = [row(key) for key in model.keys(prefix, after, rows.revision, rows.time)]
            return found[:limit], len(found) > limit
    # How much it shows beyond the floor depends on when versions were trimmed; and of those there
    # are no touches: the expiry may be the one that was put.
    written = [entry.row(command.key) for entry in model.written(command.key, rows.revision)]
    sure = [row for row in written if row.version.revision > model.floor(rows.revision)]
    shown: list[Row | None] = [*written[: max(len(rows.found), min(len(sure), command.limit))]]
    for index, (true, told) in enumerate(zip(shown, rows.found, strict=False)):
        if index >= len(sure) and true is not None and told is not None:
            shown[index] = true._replace(version=true.version._replace(
                expires_at=told.version.expires_at))
    return shown, rows.more if len(sure) <= command.limit else True


def _check_welcome(model: Model, operation: Operation, welcome: Welcome, told: int,
                   uuid: bytes) -> None:
    revision = welcome.revision
    if not operation.floor <= revision <= model.head or (
            welcome.uuid, welcome.floor) != (uuid, model.floor(revision)) or (
            not _time_of(model, revision) <= welcome.time <= told) or (
            welcome.epoch > model.epoch or (revision and welcome.epoch < model.facts[
                revision - 1].epoch)):
        raise Broken(f"{operation.what} is told {welcome}; the head is {model.head} of epoch "
                     f"{model.epoch}, {operation.floor} was acknowledged before it was asked")


# --- refusals -------------------------------------------------------------------------------------


def check_error(model: Model, operation: Operation, error: Error, *, told: int,
                no_space_at: float, session_over: bool) -> None:
    """Whether there was a reason to tell a client this instead of an answer."""
    command = operation.command
    assert operation.answered is not None
    match error:
        case OutcomeUnknown() if session_over and operation.copies > 1:
            reason = True  # with the session went all that tells a late copy from a new request
        case OutcomeUnknown() | Unavailable():
            # A client does not fail because a store is away, and knows what it can know: only its
            # own deadline makes it give up.
            reason = operation.answered >= operation.deadline and (
                isinstance(command, Transact) or isinstance(error, Unavailable))
        case Conflict():
            reason = isinstance(command, Transact) and any(
                _conflicts(model, operation, condition, error, told)
                for condition in command.conditions)
        case LeaseLost():
            reason = any(not model.held(token.key, token.epoch, token.revision, at)
                         for token in (command, *getattr(command, "conditions", ()))
                         if isinstance(token, KeepAlive | TokenIs)
                         for at in range(operation.head, model.head + 1))
        case ContractBroken():
            reason = isinstance(command, Transact) and _breaks(model, operation, command, told)
        case Compacted():
            reason = _below_floor(model, command)
        case FutureRevision():  # where nothing has a TTL, time may run back in a restart
            at = getattr(command, "at", None)
            reason = at is not None and (at.time or 0) > _time_of(model, operation.head)
        case OutOfSpace():
            reason = (isinstance(command, Transact | SetContract | Close | Compact)
                      and no_space_at >= operation.asked - _SPACE_NOTICED)
        case _:
            reason = isinstance(error, CompactionFailed) and isinstance(command, Compact)
    if not reason:
        raise Broken(f"{operation.client} was told, of {operation.what}, for no reason: "
                     f"{type(error).__name__}: {error}")


def _conflicts(model: Model, operation: Operation, condition: Condition, error: Conflict,
               told: int) -> bool:
    """Whether a condition did not hold at some moment, and the error says what stood there."""
    key, revision, row = (error.details[name] for name in ("key", "revision", "row"))
    if isinstance(condition, Unchanged):
        since = condition.since
        return model.changed(condition.prefix, since) or any(
            found is None for at in range(operation.head, model.head + 1)
            for found in _standing(model, key, at, told) if model.at(key, at) is not None)
    if isinstance(condition, TokenIs) or condition.key != key:
        return False
    for at in range(operation.head, model.head + 1):
        for entry in _standing(model, key, at, told):
            shown = (entry.version.revision, entry.row(key)) if entry else (0, None)
            fails = entry is None if isinstance(condition, Exists) else (
                shown[0] != condition.revision)
            if fails and (revision, row) == shown:
                return True
    return False


def _breaks(model: Model, operation: Operation, command: Transact, told: int) -> bool:
    """Whether a mutation broke a rule at some moment since it was asked for. What the same request
    puts before, under the same key, stands there too."""
    for at in range(operation.head, model.head + 1):
        before: dict[str, Entry] = {}
        for mutation in command.mutations:
            key = mutation.key
            standing = [before[key]] if key in before else [*_standing(model, key, at, told)]
            if any(model.broken(mutation, contract, entry) for entry in standing
                   for contract in _in_force(model, key, operation.head)):
                return True
            if isinstance(mutation, Put):
                before[key] = Entry(Version(mutation.value, 0, 0, 0, 0, None, None,
                                            mutation.position), 0)
    return False


def _in_force(model: Model, key: str, head: int) -> list[Rules]:
    """The contracts that covered a key at some moment since the head was there."""
    later = [contract for then, prefix, contract in model.contracts
             if then >= head and covers(prefix, key)]
    return model.contracts_of(key, head - 1) + later


def _standing(model: Model, key: str, revision: int, told: int) -> Iterator[Entry | None]:
    """What may have stood under a key after a revision, at any time up to `told`."""
    entry = model.at(key, revision)
    yield entry
    if entry is not None and unexpired(entry, told) is None:
        yield None


def _below_floor(model: Model, command: Command) -> bool:
    if isinstance(command, Transact):
        return any(isinstance(condition, Unchanged) and condition.since < model.floor()
                   for condition in command.conditions)
    at = getattr(command, "at", None)
    if at is None:
        return False
    if at.revision is not None:
        return bool(at.revision < model.floor())
    return bool(model.not_later(at.time, model.head) < model.floor())

