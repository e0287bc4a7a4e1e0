"""Commands as bytes: the body of a request, with every check that a stranger's bytes need.

Rule 1: whatever arrives, decoding gives a command or raises an error of the catalogue.
Rule 2: memory spent on a refused body is bounded before it is spent.
Rule 3: user values stay opaque `bin`.

The header around it is in `protocol.py`, the format of each command in docs/protocol.md. A mutation
travels without trailing fields that have their default.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import repeat
from typing import Any

import msgpack

from ckptmesh import limits
from ckptmesh.entries import MANY, SMALL, are_all
from ckptmesh.envelope import TINY, array, binary, integer, key_of, optional, text, unpack
from ckptmesh.errors import InvalidRequest, TooLarge, Unsupported
from ckptmesh.limits import INTEGER_MAX, POSITION_MAX, POSITION_MIN
from ckptmesh.messages import (
    AcceptLoss,
    At,
    Close,
    Command,
    Compact,
    Condition,
    Delete,
    Exists,
    Find,
    Get,
    Hello,
    History,
    Increment,
    KeepAlive,
    ListContracts,
    Mutation,
    Open,
    Pin,
    Pins,
    PlainPuts,
    Put,
    RevisionIs,
    Rules,
    Scan,
    SetContract,
    Setting,
    Since,
    Status,
    TokenIs,
    Touch,
    Transact,
    Unchanged,
    Unpin,
    tuple_of,
)

OPS: tuple[type[Command], ...] = (
    Hello, Open, Close, KeepAlive, Transact, Get, Scan, History, Since, Status, Find, Compact,
    Setting, AcceptLoss, SetContract, ListContracts,
    Pin, Unpin, Pins,
)
"""Index = op. Only ever append."""
_OP_OF = {cls: op for op, cls in enumerate(OPS)}
TRANSACT = _OP_OF[Transact]
IN_SESSION = frozenset(_OP_OF[cls] for cls in (Close, Transact, Find))
"""Ops that carry a session; all others travel with an empty one and may be executed again."""

_CONDITIONS: tuple[type[Condition], ...] = (RevisionIs, TokenIs, Exists, Unchanged)
_MUTATIONS: tuple[type[Mutation], ...] = (Put, Delete, Touch, Increment)
_CONDITION_TAG = {cls: tag for tag, cls in enumerate(_CONDITIONS)}
_MUTATION_TAG = {cls: tag for tag, cls in enumerate(_MUTATIONS)}
PUT_TAG = _MUTATION_TAG[Put]

# --- commands ---------------------------------------------------------------------------------


def _ttl(value: object) -> int | None:
    return optional(value, "a TTL (microseconds)", 1, limits.TTL_MAX)


_PUT_REST = tuple(Put("", b""))[2:]  # what trailing fields mean when they are left out


_PLAIN_PUT = (int, str, bytes)


def _plain_put(row: tuple[Any, ...]) -> Put:
    """The put of a row `[0, key, value]` with these very types."""
    limits.check_key(row[1])
    if len(row[2]) > limits.VALUE_BYTES:
        limits.check_value(row[2])
    put: Put = tuple_of(Put, row[1:] + _PUT_REST)
    return put


def _put(row: tuple[Any, ...]) -> Put:
    array(row, "put", 3, 8)
    key, value = key_of(row[1]), row[2]
    if type(value) is not bytes:
        raise InvalidRequest("a value is binary")
    limits.check_value(value)
    ttl, lease, position, head, sources = row[3:] + _PUT_REST[len(row) - 3:]
    if type(lease) is not bool or (lease and ttl is None):
        raise InvalidRequest("a lease needs a TTL")
    return Put(
        key, value, _ttl(ttl), lease,
        optional(position, "position", POSITION_MIN, POSITION_MAX),
        optional(head, "head", POSITION_MIN, POSITION_MAX),
        tuple(
            (key_of(array(pair, "a source", 2, 2)[0]), integer(pair[1], "a source's revision"))
            for pair in array(sources, "sources", 0, limits.SOURCES)
        ),
    )


def _tag(value: object) -> int:
    # True and 1.0 equal 1 in Python, not on the wire; nothing hostile is shown in the message,
    # since the repr of a deep nest would be a RecursionError.
    if type(value) is not int:
        raise InvalidRequest("a mutation or condition begins with its tag, an integer")
    return value


def _mutation(row: object) -> Mutation:
    row = array(row, "a mutation", 2, 8)
    match tag := _tag(row[0]):
        case 0:
            return _put(row)
        case 1:
            return Delete(key_of(array(row, "delete", 2, 2)[1]))
        case 2:
            return Touch(key_of(array(row, "touch", 3, 3)[1]), _ttl(row[2]))
        case 3:
            array(row, "increment", 3, 4)
            by = integer(row[2], "by", limits.INTEGER_MIN, INTEGER_MAX)
            return Increment(key_of(row[1]), by, _ttl(row[3] if len(row) > 3 else None))
    raise InvalidRequest(f"unknown mutation {tag}")


def _condition(row: object) -> Condition:
    row = array(row, "a condition", 2, 4)
    match tag := _tag(row[0]):
        case 0:
            return RevisionIs(key_of(array(row, "revision", 3, 3)[1]), integer(row[2], "revision"))
        case 1:
            array(row, "token", 4, 4)
            return TokenIs(key_of(row[1]), integer(row[2], "epoch"), integer(row[3], "revision"))
        case 2:
            return Exists(key_of(array(row, "exists", 2, 2)[1]))
        case 3:
            prefix = text(array(row, "unchanged", 3, 3)[1], "a prefix", limits.KEY_BYTES)
            limits.check_prefix(prefix)
            return Unchanged(prefix, integer(row[2], "since"))
    raise InvalidRequest(f"unknown condition {tag}")


def _transact(body: tuple[Any, ...]) -> Transact:
    conditions, mutations, *rest = body
    each = bool(rest and rest[0])
    if rest and type(rest[0]) is not bool:
        raise InvalidRequest("each is a boolean")
    if type(mutations) is not tuple:
        raise InvalidRequest("mutations are an array")
    count, most = len(mutations), limits.COMMIT_MANY if each else limits.TRANSACTION_MUTATIONS
    if count > most:
        raise TooLarge(
            f"the transaction has {count:,} mutations; the limit is {most:,}",
            hint="commit in several transactions", size=count, limit=most,
        )
    checked: tuple[Condition, ...] = ()
    if conditions != ():
        checked = tuple(map(
            _condition, array(conditions, "conditions", 0, limits.TRANSACTION_CONDITIONS)))
    settled: Sequence[Mutation] | None = _plain_puts(mutations) if count >= MANY else None
    if settled is None:
        settled = tuple([
            _plain_put(row) if type(row) is tuple and tuple(map(type, row)) == _PLAIN_PUT
            and row[0] == PUT_TAG else _mutation(row) for row in mutations])
    if each:
        if not count or (type(settled) is not PlainPuts
                         and any(type(mutation) is not Put for mutation in settled)):
            raise InvalidRequest("revisions of their own are for puts, one or more")
    elif count > 1 and len(_keys_of(settled)) != count:
        raise InvalidRequest("a transaction names each key in at most one mutation")
    command: Transact = tuple_of(Transact, (checked, settled, each))
    return command


def _plain_puts(rows: tuple[Any, ...]) -> PlainPuts | None:
    """The puts of these rows by columns. None: one is something else, or something is wrong."""
    try:
        tags, keys, values = zip(*rows, strict=True)
    except (TypeError, ValueError):
        return None
    if not (are_all(tuple, rows) and are_all(int, tags) and tags.count(PUT_TAG) == len(rows)
            and are_all(str, keys) and are_all(bytes, values)
            and max(map(len, values)) <= SMALL):
        return None
    limits.check_keys(keys)
    return PlainPuts(keys, values)


def _keys_of(mutations: Sequence[Mutation]) -> set[str]:
    if type(mutations) is PlainPuts:
        return {*mutations.keys}
    return {mutation[0] for mutation in mutations}


def _at(value: object) -> At | None:
    if value is None:
        return None
    revision, time = array(value, "at", 2, 2)
    if (revision is None) == (time is None):
        raise InvalidRequest("at names either a revision or a time")
    return At(optional(revision, "revision", 0, INTEGER_MAX),
              optional(time, "time", 0, POSITION_MAX))


def _get(body: tuple[Any, ...]) -> Get:
    keys, at, start = body
    found = tuple(map(key_of, array(keys, "keys", 0, limits.GET_KEYS)))
    return Get(found, _at(at), integer(start, "start", 0, len(found)))


def _scan(body: tuple[Any, ...]) -> Scan:
    prefix, after, limit, at = body
    limits.check_prefix(text(prefix, "a prefix", limits.KEY_BYTES))
    return Scan(prefix, text(after, "after", limits.KEY_BYTES),
                integer(limit, "limit", 1, limits.SCAN_LIMIT), _at(at))


def _since(body: tuple[Any, ...]) -> Since:
    revision, index, pipeline, limit = body
    limits.check_prefix(text(pipeline, "a pipeline", limits.KEY_BYTES))
    if "/" in pipeline:
        raise InvalidRequest("since takes a pipeline, not a longer prefix")
    return Since(integer(revision, "revision"), integer(index, "index", -1, 2**31 - 1),
                 pipeline, integer(limit, "limit", 1, limits.SINCE_LIMIT))


def _set_contract(prefix: object, fields: object) -> SetContract:
    prefix = text(prefix, "a prefix", limits.KEY_BYTES)
    limits.check_prefix(prefix)
    monotonic, required, max_step, max_bytes, ttl, history, schema = array(
        fields, "a contract", 7, 7)
    if type(monotonic) is not bool or type(required) is not bool:
        raise InvalidRequest("monotonic and required are booleans")
    if not _DIGEST(text(schema, "a schema's digest", 64)):
        raise InvalidRequest("a schema's digest is text of 64 hexadecimal digits, or empty")
    return SetContract(prefix, Rules(
        monotonic, required, optional(max_step, "max_step", 0, INTEGER_MAX),
        optional(max_bytes, "max_bytes", 0, limits.VALUE_BYTES), _ttl(ttl),
        optional(history, "history", 0, limits.CONTRACT_HISTORY), schema))


_DIGEST = re.compile("(?:[0-9a-f]{64})?").fullmatch

def _savepoint(name: object) -> str:
    found = text(name, "a savepoint's name", limits.SAVEPOINT_NAME)
    limits.check_savepoint(found)
    return found


_SHAPES: dict[type[Command], tuple[int, Callable[[tuple[Any, ...]], Command]]] = {
    Hello: (0, lambda b: Hello()),
    Open: (4, lambda b: Open(
        text(b[0], "a session's name", limits.SESSION_NAME_BYTES),
        binary(b[1], "uuid", 0, 16), integer(b[2], "epoch", 0, POSITION_MAX),
        integer(b[3], "revision"))),
    Close: (0, lambda b: Close()),
    KeepAlive: (3, lambda b: KeepAlive(key_of(b[0]), integer(b[1], "epoch"),
                                       integer(b[2], "revision"))),
    Transact: (2, _transact),
    Get: (3, _get),
    Scan: (4, _scan),
    History: (3, lambda b: History(key_of(b[0]), integer(b[1], "limit", 1, limits.SCAN_LIMIT),
                                   integer(b[2], "before"))),
    Since: (4, _since),
    Status: (0, lambda b: Status()),
    Find: (3, lambda b: Find(binary(b[0], "session", 16), integer(b[1], "number"),
                             integer(b[2], "after"))),
    Compact: (1, lambda b: Compact(optional(b[0], "retain", 0, POSITION_MAX))),
    Setting: (2, lambda b: Setting(text(b[0], "a setting", 64), integer(b[1], "value"))),
    AcceptLoss: (0, lambda b: AcceptLoss()),
    SetContract: (2, lambda b: _set_contract(*b)),
    ListContracts: (0, lambda b: ListContracts()),
    Pin: (3, lambda b: Pin(_savepoint(b[0]), optional(b[1], "revision", 1, INTEGER_MAX),
                           text(b[2], "a reason", limits.SAVEPOINT_REASON))),
    Unpin: (1, lambda b: Unpin(_savepoint(b[0]))),
    Pins: (0, lambda b: Pins()),
}
_LONG_LISTS = {_OP_OF[Transact]: 2, _OP_OF[Get]: 1}
"""How many of the first elements of a body may be long lists: see `envelope.unpack`."""


def _trimmed(mutation: Mutation) -> tuple[Any, ...]:
    """A mutation as its array, without trailing fields that say nothing."""
    if type(mutation) is Put and mutation[2:] == _PUT_REST:
        return (PUT_TAG, mutation[0], mutation[1])
    return (_MUTATION_TAG[type(mutation)], *mutation)


def pack(content: object) -> bytes:
    """Plain content as msgpack."""
    packed: bytes = msgpack.packb(content)
    return packed


def pack_command(command: Command) -> tuple[int, bytes]:
    """(op, body): packed once, however many copies of the request are sent. Raises `TooLarge`."""
    fields: Any = command
    if type(command) is Transact:
        conditions, mutations, each = command
        fields = (
            [(_CONDITION_TAG[type(c)], *c) for c in conditions],
            [*zip(repeat(PUT_TAG), mutations.keys, mutations.values, strict=False)]
            if type(mutations) is PlainPuts else [_trimmed(m) for m in mutations],
            *((True,) if each else ()),
        )
    body = pack(tuple(fields))
    if len(body) > limits.REQUEST_BYTES - limits.KIB:
        raise TooLarge(
            f"the request has {len(body):,} bytes; the limit is {limits.REQUEST_BYTES:,}",
            hint="commit in several transactions", size=len(body), limit=limits.REQUEST_BYTES,
        )
    return _OP_OF[type(command)], body


def op_of(command: Command) -> int:
    """The op of a command."""
    return _OP_OF[type(command)]


def command_of(op: int, session: bytes, body: bytes, bundled: bool) -> Command:
    if op >= len(OPS):
        raise Unsupported(f"operation {op} is unknown here")
    if (op in IN_SESSION) != bool(session):
        raise InvalidRequest(f"operation {op} "
                             f"{'needs a' if op in IN_SESSION else 'takes no'} session")
    if bundled and (plain := plain_commit(body)) is not None:  # a single one was tried before
        return plain
    content = unpack(body, _LONG_LISTS.get(op, 0))
    count, build = _SHAPES[OPS[op]]
    if len(content) != count:
        array(content, "a body", count, count + (op == TRANSACT))
    return build(content)


def plain_commit(body: bytes) -> Transact | None:
    """A transaction of one put and nothing else, by far the most, read in one step; None: it is
    something else, or something is wrong with it."""
    if len(body) > TINY:
        return None
    try:
        conditions, (row,) = msgpack.unpackb(body, use_list=False, raw=False)
        if conditions != () or tuple(map(type, row)) != _PLAIN_PUT or row[0] != PUT_TAG:
            return None
    except Exception:  # whatever it is, it will be told by whoever looks closer
        return None
    command: Transact = tuple_of(Transact, ((), (_plain_put(row),), False))
    return command
