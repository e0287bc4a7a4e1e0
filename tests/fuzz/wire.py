"""Targets: what a store reads of a stranger, and what a client reads of a store."""

from __future__ import annotations

from ckptmesh import bundles, commands, protocol, publications, zmtp
from ckptmesh.errors import Error, InvalidRequest, Unsupported
from ckptmesh.messages import BrokerBeat, Heartbeat, Publication, Reply, Request
from tests.fuzz.taking import Taker

SESSION = b"s" * 16
_REFUSAL_BYTES = 8 * 1024  # of an encoded refusal: bounded whatever was refused


def envelope(data: bytes) -> None:
    """Any bytes as a request: a `Request` that encodes to the same command again, or an error of
    the catalogue whose facts are bounded and can be answered with."""
    for request in bundles.decode_requests(data):
        if isinstance(request, Error):
            _check_refusal(data, request)
        else:
            _check_request(data, request)


def _check_request(data: bytes, request: Request) -> None:
    packed = commands.pack_command(request.command)
    again = protocol.decode_request(protocol.encode_request(
        *packed, session=request.session, number=request.number, low=request.low,
        uuid=request.uuid, epoch=request.epoch))
    assert again[:5] == request[:5], "the header changed on its way"
    assert commands.pack_command(again.command) == packed, "the command changed on its way"
    op, session, numbers = bundles.peek(data)
    assert (op, session) == (packed[0], request.session)
    assert request.number in numbers


def _check_refusal(data: bytes, error: Error) -> None:
    details = error.details
    op, session, number = (details.get(name, default) for name, default in (
        ("op", 0), ("session", b""), ("number", 0)))
    reply = protocol.encode_reply(op, Reply(session, number, 1, None, error))
    assert len(reply) <= _REFUSAL_BYTES, f"a refusal of {len(reply):,} bytes"
    echo, found = protocol.decode_reply(reply)
    assert (echo, found.session, found.number) == (op, session, number)
    assert type(found.error) is type(error)
    if "op" in details:
        asked, owner, numbers = bundles.peek(data)
        assert (asked, owner) == (op, session)
        assert number in numbers
    else:
        try:
            bundles.peek(data)
        except Error:
            return
        raise AssertionError("a header that can be read is not echoed")


def body(data: bytes) -> None:
    """A whole request around a body of any bytes; the first byte is the op."""
    take = Taker(data)
    op = take.byte()
    envelope(protocol.encode_request(
        op, take.rest(), session=SESSION if op in commands.IN_SESSION else b"", number=7, low=3,
        epoch=1))


_TOPICS = (b"", publications.HEARTBEAT_TOPIC, publications.BROKER_TOPIC, b"orders/\0")


def replies(data: bytes) -> None:
    """Any bytes of a store: a reply whose error can be shown, a publication, or a refusal to read
    them. The first byte says as what they come."""
    take = Taker(data)
    kind = take.byte() % 6
    try:
        if kind >= 2:
            for message in publications.decode_publications(_TOPICS[kind - 2] + take.rest()):
                assert type(message) in (Publication, Heartbeat, BrokerBeat)
            return
        if kind:  # a whole header around any body
            payload = commands.pack((1, take.byte(), SESSION, 7, 1, take.byte(), take.rest()))
        else:
            payload = take.rest()
        _, reply = protocol.decode_reply(payload)
    except (InvalidRequest, Unsupported):
        return
    assert type(reply) is Reply
    if reply.error is not None:
        assert isinstance(reply.error, Error)
        str(reply.error)


OPENING = zmtp.GREETING + zmtp.READY.replace(b"DEALER", b"ROUTER")


def peer(data: bytes) -> None:
    """Any bytes as the other end of a client's connection, from its first or after its handshake;
    the second byte cuts them into pieces, which changes nothing."""
    take = Taker(data)
    opening = take.pick((b"", OPENING))
    step = 1 + take.byte()
    rest = take.rest()
    found = _heard(opening, [rest])
    assert _heard(opening, [rest[at : at + step] for at in range(0, len(rest), step)]) == found
    if found is not None:
        messages, answers = found
        assert sum(map(len, messages)) <= len(rest)
        assert sum(map(len, answers)) <= len(rest) + len(zmtp.READY)
        again = b"".join(zmtp.head(len(message)) + message for message in messages)
        assert _heard(OPENING, [again]) == (messages, [])


def _heard(opening: bytes, pieces: list[bytes]) -> tuple[list[bytes], list[bytes]] | None:
    """The messages and what is to be answered; None where the connection was dropped."""
    peer = zmtp.Wire()
    assert peer.feed(opening) == []
    assert peer.ready == bool(opening)
    peer.answers.clear()
    found: list[bytes] = []
    try:
        for piece in pieces:
            found += peer.feed(piece)
    except zmtp.PeerError:
        return None
    return found, peer.answers
