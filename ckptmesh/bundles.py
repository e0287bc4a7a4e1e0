"""Bundles: several transactions of one session in one message, and their outcomes in one.

Rule 1: a bundle is a way to travel and nothing else. Each request in it has its own number and is
        admitted, decided, remembered, answered and repeated as if it had come alone.
Rule 2: whatever arrives, reading gives a request or an error for each number that it names.

Request   [1, BUNDLE, session, number, low, uuid, epoch, [body, …]]   numbers count up from `number`
Reply     [1, BUNDLE, session, number, epoch, 0, body]                of those that were accepted

The bodies are those of single transactions; the body of the reply is a bin that holds
`[[number, revision, epoch, time, results], …]`. A refusal is a reply of its own.

Many in flight cost little this way: what a message costs in the client, the broker and the store is
paid once for up to `limits.BUNDLE_REQUESTS` commits.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgpack

from ckptmesh import commands, protocol
from ckptmesh.calls import Copy
from ckptmesh.envelope import array, binary, integer
from ckptmesh.errors import Error, InvalidRequest, TooLarge
from ckptmesh.limits import BUNDLE_BYTES, BUNDLE_REQUESTS, KIB
from ckptmesh.messages import Outcome, Reply, Request, Transact, tuple_of

BUNDLE = 255
"""The op of a bundle: no command of its own."""
_TRANSACT = commands.op_of(Transact((), ()))
_MARK = msgpack.packb(BUNDLE)  # where the op stands, after one byte each of array and version


# --- requests ---------------------------------------------------------------------------------


def gather(copies: Sequence[Copy]) -> Iterable[Sequence[Copy]]:
    """The copies in their order, in groups that may travel together: transactions of one session
    with consecutive numbers and the same stamps, within the bounds of a bundle."""
    if len(copies) > 1:
        return _groups(copies)
    return (copies,) if copies else ()


def _groups(copies: Sequence[Copy]) -> Iterator[Sequence[Copy]]:
    start = size = 0
    follows: tuple[Any, ...] = ()  # what a copy must be in all but its body to travel along
    for i, (_, op, body, session, number, *stamps) in enumerate(copies):
        size += len(body)
        if ((op, session, number, stamps) != follows or size > BUNDLE_BYTES
                or i - start >= BUNDLE_REQUESTS):
            if i > start:
                yield copies[start:i]
            start, size = i, len(body)
        follows = (op, session, number + 1, stamps) if op == _TRANSACT else ()
    yield copies[start:]


def encode_requests(copies: Sequence[Copy]) -> bytes:
    """One message for a group of `gather`."""
    _, op, body, session, number, low, uuid, epoch = copies[0]
    if len(copies) == 1:
        return protocol.encode_request(op, body, session=session, number=number, low=low,
                                       uuid=uuid, epoch=epoch)
    packed: bytes = msgpack.packb((protocol.VERSION, BUNDLE, session, number, low, uuid, epoch,
                                   [copy.body for copy in copies]))
    return packed


def decode_requests(payload: bytes) -> list[Request | Error]:
    """What one message asks: a request, or the error to answer, for each number. The error's
    `details` hold `op`, `session` and `number` as far as they could be read."""
    plain = protocol.plain_commit_in(payload)
    if plain is not None:
        return [plain]
    try:
        fields = protocol.header(payload)
        if fields[1] != BUNDLE:
            return [protocol.single_request(fields, len(payload))]
        protocol.check_header(fields, tuple)
        if len(payload) > BUNDLE_BYTES + 16 * KIB:
            raise TooLarge(f"the bundle has {len(payload):,} bytes; the limit is {BUNDLE_BYTES:,}",
                           size=len(payload), limit=BUNDLE_BYTES)
        bodies = array(fields[7], "a bundle", 1, BUNDLE_REQUESTS)
    except Error as error:
        return [error]
    return [_request(fields, number, body) for number, body in enumerate(bodies, fields[3])]


def _request(fields: tuple[Any, ...], number: int, body: Any) -> Request | Error:
    try:
        if type(body) is not bytes:
            raise InvalidRequest("a body is binary", op=_TRANSACT, session=fields[2],
                                 number=number)
        return protocol.request_of(fields, number, body, len(body), bundled=True)
    except Error as error:
        return error


def count(payload: bytes) -> int:
    """How many requests a message holds, read without taking it apart; 1 for what is no bundle."""
    if payload[2:4] != _MARK:
        return 1
    unpacker = msgpack.Unpacker(None, max_buffer_size=len(payload))
    unpacker.feed(payload)
    try:
        unpacker.read_array_header()
        for _ in range(7):
            unpacker.skip()
        return max(1, int(unpacker.read_array_header()))
    except Exception:  # msgpack raises a dozen kinds; `decode_requests` will say what is wrong
        return 1


def peek(payload: bytes) -> tuple[int, bytes, Sequence[int]]:
    """(op, session, numbers) of a message, for answers without executing it.

    Raises `InvalidRequest`, `TooLarge` or `Unsupported`.
    """
    _, op, session, number, *_, body = protocol.header(payload)
    op, first = integer(op, "op", 0, 255), integer(number, "number")
    held = 1
    if op == BUNDLE and type(body) is tuple and 1 <= len(body) <= BUNDLE_REQUESTS:
        op, held = _TRANSACT, len(body)
    return op, binary(session, "session", 0, 16), range(first, first + held)


# --- replies ----------------------------------------------------------------------------------


def encode_outcomes(replies: Sequence[Reply]) -> bytes:
    """One message with the outcomes of transactions of one session that came in a bundle."""
    session, number, epoch, *_ = replies[0]
    outcomes = msgpack.packb([(reply[1], *reply[3]) for reply in replies])
    packed: bytes = msgpack.packb((protocol.VERSION, BUNDLE, session, number, epoch, 0, outcomes))
    return packed


def decode_replies(payload: bytes) -> list[tuple[int, Reply]]:
    """(op, reply) for each request that one message answers. Raises as `protocol.decode_reply`."""
    op, reply = protocol.decode_reply(payload)
    if op != BUNDLE or reply.error is not None:
        return [(op, reply)]
    session, _, epoch, outcomes, _ = reply
    try:
        return [(_TRANSACT, tuple_of(Reply, (session, number, epoch, tuple_of(
            Outcome, (revision, began, time, results)), None)))
            for number, revision, began, time, results in outcomes]
    except (TypeError, ValueError):
        raise InvalidRequest("not a reply: a bundle holds something else") from None
