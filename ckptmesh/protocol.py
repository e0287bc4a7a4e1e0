"""The wire: messages to bytes and back, with every check that a stranger's bytes need.

Rule 1: whatever arrives, decoding gives a message or raises an error of the catalogue.
Rule 2: memory spent on a refused payload is bounded before it is spent.
Rule 3: user values stay opaque `bin`; only the envelope is unpacked.

Request   [1, op, session, number, low, uuid, epoch, body]
Reply     [1, op, session, number, epoch, status, body]      status 0, or an error's code
Published messages are in `publications.py`.

`body` is a `bin` that holds msgpack again, so that the digest of a request can be taken over its
command's bytes as they came, whichever copy they came in. docs/protocol.md states all of this in
MUST and SHOULD. Times are microseconds, revisions count from 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import blake2b
from itertools import repeat
from typing import Any

import msgpack

from ckptmesh import limits
from ckptmesh.entries import MANY, SMALL, are_all
from ckptmesh.envelope import TINY, array, binary, integer, key_of, optional, text, unpack, walk
from ckptmesh.errors import BY_CODE, Error, InvalidRequest, TooLarge, Unsupported
from ckptmesh.limits import INTEGER_MAX, POSITION_MAX, POSITION_MIN
from ckptmesh.messages import (
    AcceptLoss,
    At,
    Change,
    Close,
    Command,
    Commit,
    Compact,
    Condition,
    Delete,
    Events,
    Exists,
    Find,
    Get,
    Hello,
    History,
    Increment,
    KeepAlive,
    Mutation,
    Open,
    Opened,
    Outcome,
    PlainPuts,
    Put,
    Reply,
    Request,
    RevisionIs,
    Row,
    Rows,
    Scan,
    Setting,
    Since,
    Status,
    TokenIs,
    Touch,
    Transact,
    Unchanged,
    Version,
    Welcome,
    tuple_of,
)

VERSION = 1


OPS: tuple[type[Command], ...] = (
    Hello, Open, Close, KeepAlive, Transact, Get, Scan, History, Since, Status, Find, Compact,
    Setting, AcceptLoss,
)
"""Index = op. Only ever append."""
_OP_OF = {cls: op for op, cls in enumerate(OPS)}
_TRANSACT = _OP_OF[Transact]
IN_SESSION = frozenset(_OP_OF[cls] for cls in (Close, Transact, Find))
"""Ops that carry a session; all others travel with an empty one and may be executed again."""

_CONDITIONS: tuple[type[Condition], ...] = (RevisionIs, TokenIs, Exists, Unchanged)
_MUTATIONS: tuple[type[Mutation], ...] = (Put, Delete, Touch, Increment)
_CONDITION_TAG = {cls: tag for tag, cls in enumerate(_CONDITIONS)}
_MUTATION_TAG = {cls: tag for tag, cls in enumerate(_MUTATIONS)}
_PUT_TAG = _MUTATION_TAG[Put]

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
            and row[0] == _PUT_TAG else _mutation(row) for row in mutations])
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
    if not (are_all(tuple, rows) and are_all(int, tags) and tags.count(_PUT_TAG) == len(rows)
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
}
_LONG_LISTS = {_OP_OF[Transact]: 2, _OP_OF[Get]: 1}
"""How many of the first elements of a body may be long lists: see `envelope.unpack`."""


def _trimmed(mutation: Mutation) -> tuple[Any, ...]:
    """A mutation as its array, without trailing fields that say nothing."""
    if type(mutation) is Put and mutation[2:] == _PUT_REST:
        return (_PUT_TAG, mutation[0], mutation[1])
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
            [*zip(repeat(_PUT_TAG), mutations.keys, mutations.values, strict=False)]
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


def encode_request(
    op: int, body: bytes, *, session: bytes = b"", number: int, low: int = 0, uuid: bytes = b"",
    epoch: int = 0,
) -> bytes:
    """One copy of a request, stamped as of now."""
    return pack((VERSION, op, session, number, low, uuid, epoch, body))


class PutEncoder:
    """Encodes requests of one put and nothing else, as `encode_request` of `pack_command` does. It
    keeps one packer, so it is not for two threads at once."""

    def __init__(self) -> None:
        self._pack = msgpack.Packer().pack

    def encode(self, key: str, value: bytes, session: bytes, number: int, uuid: bytes,
               epoch: int) -> bytes:
        """The request, with `number` as its `low` too. Key and value are checked already."""
        pack = self._pack
        body = pack(((), ((_PUT_TAG, key, value),)))
        request: bytes = pack((VERSION, _TRANSACT, session, number, number, uuid, epoch, body))
        return request


def header(payload: bytes) -> tuple[Any, ...]:
    """The eight elements of a request, of any types. Raises as `decode_request`."""
    if len(payload) > limits.REQUEST_BYTES:
        raise TooLarge(
            f"the request has {len(payload):,} bytes; the limit is {limits.REQUEST_BYTES:,}",
            size=len(payload), limit=limits.REQUEST_BYTES,
        )
    fields = unpack(payload)
    if not fields or type(fields[0]) is not int:
        raise InvalidRequest("a request is an array that begins with its version")
    if fields[0] != VERSION:
        raise Unsupported(f"protocol version {fields[0]} is not spoken here; this is version "
                          f"{VERSION}", hint="use a client of this release")
    return fields if len(fields) == 8 else array(fields, "a request", 8, 8)


def decode_request(payload: bytes) -> Request:
    """A request with its command, every field checked.

    Raises `InvalidRequest`, `InvalidKey`, `TooLarge` or `Unsupported`; where the header could be
    read, the error's `details` hold `op`, `session` and `number`, so that it can be answered.
    """
    return single_request(header(payload), len(payload))


def single_request(fields: tuple[Any, ...], size: int) -> Request:
    """The request of a header that was read. Raises as `decode_request`."""
    check_header(fields, bytes)
    return request_of(fields, fields[3], fields[7], size)


def plain_commit_in(payload: bytes) -> Request | None:
    """The request of a transaction of one put and nothing else, by far the most, read and checked
    in one step; None: it is something else, or something is wrong with it."""
    if len(payload) > TINY:
        return None
    try:
        fields = msgpack.unpackb(payload, use_list=False, raw=False)
        version, op, session, number, low, uuid, epoch, body = fields
        if (op != _TRANSACT or version != VERSION or tuple(map(type, fields)) != _HEADER_TYPES
                or len(session) != 16 or len(uuid) not in _ID_SIZES or number < 0 or low < 0
                or not 0 <= epoch <= POSITION_MAX):
            return None
        command = _plain_commit(body)
    except Exception:  # whatever it is, it will be told by whoever looks closer
        return None
    if command is None:
        return None
    request: Request = tuple_of(Request, (session, number, low, uuid, epoch, command, _digest(body),
                                      len(payload), False))
    return request


_HEADER_TYPES = (int, int, bytes, int, int, bytes, int, bytes)


def check_header(fields: tuple[Any, ...], body: type) -> None:
    """Refuse a header with a wrong field, or with another type of body. Raises `InvalidRequest`."""
    _, op, session, number, low, uuid, epoch, _ = fields
    if tuple(map(type, fields)) != (int, int, bytes, int, int, bytes, int, body) or not (
            0 <= op <= 255 and len(session) in _ID_SIZES and number >= 0 and low >= 0
            and len(uuid) in _ID_SIZES and 0 <= epoch <= POSITION_MAX):
        raise _bad_header(fields)


_ID_SIZES = frozenset({0, 16})


def _bad_header(fields: tuple[Any, ...]) -> InvalidRequest:
    """Which field of a header is wrong; what can be told of the request stands in `details`."""
    _, op, session, number, low, uuid, epoch, _ = fields
    echo: dict[str, Any] = {}
    try:
        echo = {"op": integer(op, "op", 0, 255), "session": binary(session, "session", 0, 16),
                "number": integer(number, "number")}
        integer(low, "low")
        binary(uuid, "uuid", 0, 16)
        integer(epoch, "epoch", 0, POSITION_MAX)
        error = InvalidRequest("a body is binary, that of a bundle an array")
    except InvalidRequest as found:
        error = found
    error.details.update(echo)
    return error


def request_of(fields: tuple[Any, ...], number: int, body: bytes, size: int,
               bundled: bool = False) -> Request:
    """The request of a checked header, with this number and body. Raises as `decode_request`."""
    _, op, session, _, low, uuid, epoch, _ = fields
    op = _TRANSACT if bundled else op
    try:
        command = _command(op, session, body, bundled)
    except Error as error:
        error.details.update(op=op, session=session, number=number)
        raise
    request: Request = tuple_of(Request, (
        session, number, low, uuid, epoch, command, _digest(body), size, bundled))
    return request


def _command(op: int, session: bytes, body: bytes, bundled: bool) -> Command:
    if op >= len(OPS):
        raise Unsupported(f"operation {op} is unknown here")
    if (op in IN_SESSION) != bool(session):
        raise InvalidRequest(f"operation {op} "
                             f"{'needs a' if op in IN_SESSION else 'takes no'} session")
    if bundled and (plain := _plain_commit(body)) is not None:  # a single one was tried before
        return plain
    content = unpack(body, _LONG_LISTS.get(op, 0))
    count, build = _SHAPES[OPS[op]]
    if len(content) != count:
        array(content, "a body", count, count + (op == _TRANSACT))
    return build(content)


def _plain_commit(body: bytes) -> Transact | None:
    """A transaction of one put and nothing else, by far the most, read in one step; None: it is
    something else, or something is wrong with it."""
    if len(body) > TINY:
        return None
    try:
        conditions, (row,) = msgpack.unpackb(body, use_list=False, raw=False)
        if conditions != () or tuple(map(type, row)) != _PLAIN_PUT or row[0] != _PUT_TAG:
            return None
    except Exception:  # whatever it is, it will be told by whoever looks closer
        return None
    command: Transact = tuple_of(Transact, ((), (_plain_put(row),), False))
    return command


def _digest(body: bytes) -> int:
    return int.from_bytes(blake2b(body, digest_size=8).digest(), "big")


# --- replies ----------------------------------------------------------------------------------


def encode_reply(op: int, reply: Reply) -> bytes:
    """The bytes of a reply, result or error."""
    status = 0
    result = reply.result
    if reply.error is not None:
        error = reply.error
        status = error.code
        result = (error.message, error.hint, {name: value for name, value in error.details.items()
                                              if name not in ("op", "session", "number")})
    return pack((VERSION, op, reply.session, reply.number, reply.epoch, status, pack(result)))


def _version(row: Any) -> Version:
    *plain, sources = row
    return Version._make((*plain, tuple((key, revision) for key, revision in sources)))


def _row(row: Any) -> Row | None:
    return None if row is None else Row(row[0], row[1], _version(row[2]))


def _rows(page: Any) -> Rows:
    revision, time, found, more = page
    return Rows(revision, time, tuple(map(_row, found)), more)


def change_of(row: Any) -> Change:
    """A change as it travels, in commits and publications."""
    index, kind, key, version = row
    return Change(index, kind, key, None if version is None else _version(version))


def _commit(row: Any) -> Commit:
    revision, epoch, time, changes, *request = row
    return Commit(revision, epoch, time, tuple(map(change_of, changes)), *request)


_RESULTS: dict[type[Command], Callable[[Any], Any]] = {
    Hello: lambda r: Welcome(*r),
    Open: lambda r: Opened(*r),
    Find: lambda r: None if r is None else Outcome(*r),
    Get: _rows,
    Scan: _rows,
    History: _rows,
    Since: lambda r: Events(tuple(map(_commit, r[0])), r[1], r[2]),
}


def _error(status: int, content: Any) -> Error:
    message, hint, details = content
    if type(message) is not str or type(hint) is not str:
        raise InvalidRequest("not a reply: an error's message and hint are text")
    if "row" in details:
        details["row"] = _row(details["row"])
    return BY_CODE.get(status, Error)(message, hint=hint or None, **details)


def _unpack(data: bytes) -> Any:
    walk(data)
    return msgpack.unpackb(data, use_list=False)


def outcome_in(payload: bytes, session: bytes, number: int, epoch: int) -> Outcome | None:
    """The outcome of this very transaction, told in this epoch; None for whatever else it is."""
    if len(payload) > TINY:
        return None
    try:
        fields = msgpack.unpackb(payload, use_list=False)
        if fields[:6] != (VERSION, _TRANSACT, session, number, epoch, 0):
            return None
        content = msgpack.unpackb(fields[6], use_list=False)
        if len(content) != 4:
            return None
    except Exception:  # `decode_reply` will say what is wrong with it
        return None
    outcome: Outcome = tuple_of(Outcome, content)
    return outcome


_ECHO = (int, bytes, int, int, int)  # op, session, number, epoch, status: used as they come


def decode_reply(payload: bytes) -> tuple[int, Reply]:
    """(op, reply), the result typed as `messages.py` says.

    Raises `InvalidRequest` for bytes that are no reply, `Unsupported` for another version.
    """
    try:
        fields = _unpack(payload)
        version, op, session, number, epoch, status, body = fields
        if version != VERSION:
            raise Unsupported(f"the store speaks protocol version {version}, this client "
                              f"{VERSION}", hint="use the same release on both sides")
        if tuple(map(type, fields[1:6])) != _ECHO:
            raise InvalidRequest("not a reply: a field of the header has a wrong type")
        content = _unpack(body)
        if status:
            return op, Reply(session, number, epoch, None, _error(status, content))
        if op == _TRANSACT:
            result: Any = Outcome(*content)
        else:
            decode = _RESULTS.get(OPS[op]) if 0 <= op < len(OPS) else None
            result = decode(content) if decode else content
        reply: Reply = tuple_of(Reply, (session, number, epoch, result, None))
        return op, reply
    except Error:
        raise
    except Exception as exc:
        raise InvalidRequest(f"not a reply: {type(exc).__name__}") from None
