"""What the clients of a simulation saw, as a history that knows nothing of the store: for the
black-box checkers of `ckptmesh.testing.checkers`.

Left out are keys whose value may go by itself (a TTL, its own or of a contract; a lease), and scans
and time travel: a register has neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import msgpack

from ckptmesh.errors import Conflict, OutcomeUnknown
from ckptmesh.messages import (
    Delete,
    Exists,
    Get,
    Increment,
    Mutation,
    Put,
    RevisionIs,
    SetContract,
    Touch,
    Transact,
    Version,
)
from ckptmesh.testing import checkers
from ckptmesh.testing.checkers import ANYTHING, Found, Ok, Refused, Unknown
from ckptmesh.testing.simulation.answers import Operation
from ckptmesh.testing.simulation.model import covers, revisions_of


def history_of(operations: Sequence[Operation]) -> list[checkers.Operation]:
    """The operations on keys that stay until somebody deletes them."""
    ending = [operation.command.prefix for operation in operations
              if isinstance(operation.command, SetContract)
              and operation.command.contract.ttl is not None]
    together = [[mutation.key for mutation in part.command.mutations]
                for operation in operations for part in _parts(operation)
                if isinstance(part.command, Transact)]
    volatile = {mutation.key for operation in operations
                if isinstance(operation.command, Transact)
                for mutation in operation.command.mutations
                if isinstance(mutation, Touch) or getattr(mutation, "ttl", None) is not None
                or any(covers(prefix, mutation.key) for prefix in ending)}
    while more := {key for keys in together if not volatile.isdisjoint(keys)
                   for key in keys} - volatile:  # what is left out is left out whole
        volatile |= more
    found = (_seen(part, volatile) for operation in operations for part in _parts(operation))
    return [operation for operation in found if operation is not None]


def _parts(operation: Operation) -> list[Operation]:
    """Puts with a revision each are operations of their own, under the conditions that name their
    keys; of several under one key only the last can be seen. That nothing else comes between them
    is left to the judge."""
    command, result = operation.command, operation.result
    if not isinstance(command, Transact) or not command.each:
        return [operation]
    refused = operation.error is not None and not isinstance(operation.error, OutcomeUnknown)
    told = [result] * len(command.mutations) if result is None else [
        result._replace(revision=revision, results=(count,)) for revision, count in zip(
            revisions_of(command, result), result.results, strict=True)]
    parts = []
    for key, at in {mutation.key: at for at, mutation in enumerate(command.mutations)}.items():
        conditions = tuple(named for named in command.conditions if named[0] == key)
        if conditions or not refused:
            parts.append(replace(operation, result=told[at], command=Transact(
                conditions, (command.mutations[at],))))
    return parts


def _seen(operation: Operation, volatile: set[str]) -> checkers.Operation | None:
    command, absent = operation.command, operation.absent
    expect: list[tuple[str, int]] = []
    if isinstance(command, Get) and command.at is None:
        steps: list[Any] = [checkers.Get(key) for key in dict.fromkeys(command.keys)
                            if key not in volatile]
    elif isinstance(command, Transact):
        steps = [_step(mutation) for mutation in command.mutations]
        for condition in command.conditions:
            if isinstance(condition, RevisionIs):
                expect.append((condition.key, condition.revision))
            elif isinstance(condition, Exists):
                expect.append((condition.key, ANYTHING))
    else:
        return None
    if not steps or any(step.key in volatile for step in steps):
        return None
    outcome = _outcome(operation, expect, volatile)
    if isinstance(outcome, Unknown) and absent:
        return None  # it asked later, and was told so
    returned = None if isinstance(outcome, Unknown) else operation.answered
    return checkers.Operation(operation.client, tuple(steps), operation.asked, returned, outcome,
                              tuple(expect))


def _step(mutation: Mutation) -> Any:
    match mutation:
        case Put(key, value):
            return checkers.Put(key, _plain(value))
        case Delete(key):
            return checkers.Delete(key)
        case Increment(key, by):
            return checkers.Increment(key, by)
        case Touch(key):
            return checkers.Touch(key)


def _outcome(operation: Operation, expect: list[tuple[str, int]], volatile: set[str]
             ) -> checkers.history.Outcome:
    error, result, command = operation.error, operation.result, operation.command
    if operation.answered is None or isinstance(error, OutcomeUnknown):
        return Unknown()
    if isinstance(error, Conflict) and expect:
        row = error.details.get("row")
        stands = _found(row.version) if row else None
        return Refused("Conflict", ((error.details["key"], stands),))
    if error is not None:
        return Refused("for another reason")
    if isinstance(command, Get):
        rows = {key: _found(row.version) if row else None
                for key, row in zip(command.keys, result.found, strict=True)
                if key not in volatile}
        return Ok(result.revision, tuple(rows.values()))
    assert isinstance(command, Transact)
    return Ok(result.revision, tuple(
        _result(mutation, told)
        for mutation, told in zip(command.mutations, result.results, strict=True)))


def _result(mutation: Mutation, told: int) -> Any:
    match mutation:
        case Put():
            return None
        case Increment():
            return told
    return bool(told)


def _found(version: Version) -> Found:
    return Found(_plain(version.value), version.revision)


def _plain(value: bytes) -> Any:
    return msgpack.unpackb(value)
