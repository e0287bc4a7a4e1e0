"""Transactions, piece by piece: whether a condition holds, and what a mutation writes.

Rule 1: functions of the state, the command and `now`; nothing here changes the state.
Rule 2: a refusal is raised before anything is recorded, so that refused means absent.
Rule 3: a key at or past its expiry does not exist, whether or not the expiry is recorded yet; a
        lease exists until its end is recorded.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgpack

from ckptmesh import limits, queries
from ckptmesh.errors import (
    Compacted,
    Conflict,
    ContractBroken,
    DataLoss,
    InvalidRequest,
    InvalidValue,
    LeaseLost,
)
from ckptmesh.facts import Write
from ckptmesh.limits import pipeline_of, under
from ckptmesh.messages import (
    DELETE,
    PUT,
    REWINDS,
    SCHEMAS,
    TOUCH,
    Condition,
    Contracted,
    Delete,
    Exists,
    Increment,
    Mutation,
    Put,
    Request,
    RevisionIs,
    Row,
    TokenIs,
    Touch,
    Transact,
    Unchanged,
    Version,
    tuple_of,
)
from ckptmesh.state import State


def not_beyond_head(state: State, revision: int) -> None:
    """Refuse what builds on a revision that this store does not have. Raises `DataLoss`."""
    if revision > state.revision:  # "nothing since" would be true, and a lie
        raise DataLoss(f"the request builds on revision {revision}; the head here is "
                       f"{state.revision}", revision=revision, head=state.revision)


def _alive(state: State, key: str, now: int) -> Version | None:
    return queries.alive(state.entries.get(key), now)


def check(state: State, condition: Condition, now: int) -> None:
    """Refuse a condition that does not hold at `now`.

    Raises `Conflict` naming what stands there, `LeaseLost`, and for `Unchanged` `Compacted` and
    `DataLoss` where the store cannot tell.
    """
    match condition:
        case RevisionIs(key, revision):
            standing = _alive(state, key, now)
            found = standing.revision if standing else 0
            if found != revision:
                expected = f"revision {revision}" if revision else "nothing"
                raise _conflict(
                    state, f"{key!r} is at revision {found}, not {expected}" if found
                    else f"{key!r} does not exist; expected {expected}", key, revision, standing)
        case TokenIs(key, epoch, revision):
            held(state, key, epoch, revision)
        case Exists(key):
            if _alive(state, key, now) is None:
                raise _conflict(state, f"{key!r} does not exist", key, -1, None)
        case Unchanged(prefix, since):
            _unchanged(state, prefix, since, now)


def _conflict(state: State, message: str, key: str, expected: int,
              standing: Version | None) -> Conflict:
    row = None
    if standing is not None:
        row = Row(key, state.epoch_of(standing.revision), standing)
    return Conflict(message, key=key, expected=expected,
                    revision=standing.revision if standing else 0, row=row)


def held(state: State, key: str, epoch: int, revision: int) -> Version:
    """The lease that stands under this very token. Raises `LeaseLost`."""
    entry: Version | None = state.entries.get(key)
    if (entry is None or entry.lease is None or entry.revision != revision
            or state.epoch_of(revision) != epoch):
        raise LeaseLost(f"the lease on {key!r} is not held under token "
                        f"({epoch}, {revision})", key=key)
    return entry


def _unchanged(state: State, prefix: str, since: int, now: int) -> None:
    not_beyond_head(state, since)
    if since < state.floor:
        raise Compacted(f"what changed under {prefix!r} after revision {since} is not known: "
                        f"memory goes back to {state.floor}", floor=state.floor,
                        resume_from=state.floor)
    for key in state.due(now):
        if under(prefix, key):
            raise _conflict(state, f"{key!r} has expired", key, since, None)
    if prefix and state.pointers.get(pipeline_of(prefix), 0) <= since:
        return
    for commit in state.ring.after(since):
        for change in commit.changes:
            if change.kind != TOUCH and under(prefix, change.key):
                raise _conflict(
                    state, f"{change.key!r} changed at revision {commit.revision}, after {since}",
                    change.key, since, _alive(state, change.key, now))


# --- contracts --------------------------------------------------------------------------------


def under_contract(state: State, mutations: Sequence[Mutation], now: int) -> Sequence[Mutation]:
    """The mutations as the contracts over their keys make them: with the TTL that one gives.

    Raises `ContractBroken` for the first that breaks a rule.
    """
    covering = [state.contracts.of(mutation[0]) for mutation in mutations]
    if not any(covering):
        return mutations
    records = {mutation.key for mutation in mutations
               if type(mutation) is Put and REWINDS in mutation.key}
    held_to = list(mutations)
    positions: dict[str, int | None] = {}  # of what this request puts before
    for at, (mutation, contracts) in enumerate(zip(mutations, covering, strict=True)):
        if not contracts or not isinstance(mutation, Put | Increment):
            continue
        key = mutation.key
        standing = _alive(state, key, now)
        if not isinstance(mutation, Put) or records.isdisjoint(dict(mutation.sources)):
            before = positions.get(key, standing.position if standing else None)
            for contracted in contracts:
                _hold(contracted, mutation, before)
        positions[key] = mutation.position if isinstance(mutation, Put) else None
        ttl = next((c.contract.ttl for c in contracts if c.contract.ttl is not None), None)
        if mutation.ttl is None and (isinstance(mutation, Put) or standing is None):
            held_to[at] = mutation._replace(ttl=ttl)
    return tuple(held_to)


def _hold(contracted: Contracted, mutation: Put | Increment, before: int | None) -> None:
    """Hold what is put to one contract; `before`: the position that it replaces."""
    rules = contracted.contract
    position = mutation.position if isinstance(mutation, Put) else None
    if rules.required and position is None:
        raise _broken(contracted, mutation.key, "required", "it carries no position")
    if rules.monotonic and before is not None and (position is None or position < before):
        raise _broken(contracted, mutation.key, "monotonic",
                      f"position {position} follows {before}" if position is not None
                      else f"it carries no position, and {before} stands there")
    if (rules.max_step is not None and before is not None and position is not None
            and position - before > rules.max_step):
        raise _broken(contracted, mutation.key, "max_step",
                      f"from position {before} to {position} it is {position - before:,}, more "
                      f"than {rules.max_step:,}")
    if rules.max_bytes is not None and isinstance(mutation, Put) and (
            len(mutation.value) > rules.max_bytes):
        raise _broken(contracted, mutation.key, "max_bytes",
                      f"its value has {len(mutation.value):,} bytes packed, more than "
                      f"{rules.max_bytes:,}")
    if rules.schema and not (isinstance(mutation, Put) and any(
            source.endswith(SCHEMAS + rules.schema) for source, _ in mutation.sources)):
        raise _broken(contracted, mutation.key, "schema",
                      f"it does not name schema {rules.schema[:16]}… as a source")


def _broken(contracted: Contracted, key: str, rule: str, what: str) -> ContractBroken:
    prefix, _, version, _ = contracted
    return ContractBroken(
        f"a commit of {key!r} breaks rule {rule} of the contract on {prefix!r}: {what}", key=key,
        rule=rule, contract=prefix, version=version)


# --- mutations --------------------------------------------------------------------------------

_NOTHING_ELSE = Put("", b"")[2:]
_PLAIN = Write(PUT, "")[3:]


def put(mutation: Put, now: int) -> Write:
    """What a put writes, whatever stands there."""
    plain: Write
    if mutation[2:] == _NOTHING_ELSE:
        plain = tuple_of(Write, (PUT, *mutation[:2], *_PLAIN))
        return plain
    key, value, ttl, lease, position, head, sources = mutation
    expires_at = None if ttl is None or lease else now + ttl
    write: Write = tuple_of(Write, (PUT, key, value, expires_at, ttl if lease else None, position,
                                head, sources))
    return write


def effect(mutation: Mutation, standing: Version | None, now: int) -> tuple[Write | None, int]:
    """What a mutation writes (None: nothing to do) and its element of the results."""
    match mutation:
        case Put():
            return put(mutation, now), standing.version + 1 if standing else 1
        case Delete(key):
            return (Write(DELETE, key), 1) if standing else (None, 0)
        case Touch(key, ttl):
            if standing is None:
                return None, 0
            _no_lease(key, standing)
            return Write(TOUCH, key, expires_at=None if ttl is None else now + ttl), 1
        case Increment(key, by, ttl):
            return _increment(key, by, ttl, standing, now)
    raise TypeError(f"no mutation: {mutation!r:.80}")


def _increment(key: str, by: int, ttl: int | None, standing: Version | None,
               now: int) -> tuple[Write, int]:
    count = 0
    expires_at = None if ttl is None else now + ttl
    if standing is not None:
        _no_lease(key, standing)
        count = _integer(key, standing.value)
        if ttl is None:
            expires_at = standing.expires_at
    count += by
    if not limits.INTEGER_MIN <= count <= limits.INTEGER_MAX:
        raise InvalidValue(f"{key!r} would become {count}, beyond 64 bits", key=key)
    return Write(PUT, key, msgpack.packb(count), expires_at), count


def _no_lease(key: str, standing: Version) -> None:
    if standing.lease is not None:
        raise InvalidRequest(f"{key!r} is a lease: renew it with keepalive", key=key)


def _integer(key: str, value: bytes) -> int:
    """The packed integer under a key: the one case in which the store looks into a value."""
    count = None
    if len(value) <= 9:
        try:
            count = msgpack.unpackb(value)
        except Exception:  # msgpack raises a dozen kinds for what is no single value
            count = None
    if type(count) is not int:
        raise InvalidValue(f"{key!r} holds no integer, so it cannot be incremented", key=key)
    return count


def most_bytes(requests: Sequence[Request]) -> int:
    """Bytes that the records of requests can have at most, packed."""
    size = sum([request.size for request in requests])
    count = sum([len(request.command.mutations) for request in requests
                 if type(request.command) is Transact])
    alone = sum([len(request.command.mutations) for request in requests
                 if type(request.command) is Transact and request.command.each])
    # Times, leases and results take up to 9 bytes each where the request said less; and each key
    # may come once more, in the record of an expiry that comes first. What takes a revision of its
    # own has a record of its own.
    return (size + 256 * len(requests) + 64 * count + 96 * alone
            + min(size, limits.KEY_BYTES * count))
