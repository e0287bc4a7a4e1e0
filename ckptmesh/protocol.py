"""The wire: requests and replies to bytes and back, with every check that a stranger's bytes need.

Rule 1: whatever arrives, decoding gives a message or raises an error of the catalogue.
Rule 2: memory spent on a refused payload is bounded before it is spent.
Rule 3: user values stay opaque `bin`; only the envelope is unpacked.

Request   [1, op, session, number, low, uuid, epoch, body]
Reply     [1, op, session, number, epoch, status, body]      status 0, or an error's code
What stands in the body of a request is in `commands.py`; published messages are in
`publications.py`.

`body` is a `bin` that holds msgpack again, so that the digest of a request can be taken over its
command's bytes as they came, whichever copy they came in. docs/protocol.md states all of this in
MUST and SHOULD. Times are microseconds, revisions count from 1.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b
from typing import Any

import msgpack

from ckptmesh import limits
from ckptmesh.commands import OPS, PUT_TAG, TRANSACT, command_of, pack, plain_commit
from ckptmesh.envelope import TINY, array, binary, integer, unpack, walk
from ckptmesh.errors import BY_CODE, Error, InvalidRequest, TooLarge, Unsupported
from ckptmesh.limits import POSITION_MAX
from ckptmesh.messages import (
    Change,
    Command,
    Commit,
    Contracted,
    Events,
    Find,
    Get,
    Hello,
    History,
    ListContracts,
    Open,
    Opened,
    Outcome,
    Pin,
    Pins,
    Reply,
    Request,
    Row,
    Rows,
    Rules,
    Savepoint,
    Scan,
    Since,
    Version,
    Welcome,
    tuple_of,
)

VERSION = 1


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
        body = pack(((), ((PUT_TAG, key, value),)))
        request: bytes = pack((VERSION, TRANSACT, session, number, number, uuid, epoch, body))
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
        if (op != TRANSACT or version != VERSION or tuple(map(type, fields)) != _HEADER_TYPES
                or len(session) != 16 or len(uuid) not in _ID_SIZES or number < 0 or low < 0
                or not 0 <= epoch <= POSITION_MAX):
            return None
        command = plain_commit(body)
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
    op = TRANSACT if bundled else op
    try:
        command = command_of(op, session, body, bundled)
    except Error as error:
        error.details.update(op=op, session=session, number=number)
        raise
    request: Request = tuple_of(Request, (
        session, number, low, uuid, epoch, command, _digest(body), size, bundled))
    return request


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
    ListContracts: lambda r: tuple(
        Contracted(prefix, Rules(*contract), *rest) for prefix, contract, *rest in r),
    Since: lambda r: Events(tuple(map(_commit, r[0])), r[1], r[2]),
    Pin: lambda r: Savepoint(*r),
    Pins: lambda r: tuple(Savepoint(*each) for each in r),
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
        if fields[:6] != (VERSION, TRANSACT, session, number, epoch, 0):
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
        if op == TRANSACT:
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
