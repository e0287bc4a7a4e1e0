"""What is published, as bytes: topics, commits, heartbeats.

    topic NUL [1, …] [1, …] …      one frame; messages of one topic, back to back, in their order

Rule 1: whatever arrives, decoding gives messages or raises an error of the catalogue.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgpack

from ckptmesh import limits
from ckptmesh.commands import pack
from ckptmesh.errors import Error, InvalidRequest, Unsupported
from ckptmesh.messages import BrokerBeat, Commit, Heartbeat, Publication
from ckptmesh.protocol import VERSION, change_of

HEARTBEAT_TOPIC = b"_heartbeat\0"
BROKER_TOPIC = b"_broker\0"
ANNOUNCE = b"_announce/"
"""A broker subscribes to this + its publication address; so every store learns the address."""


def topic_of(pipeline: str) -> bytes:
    """What to subscribe to for one pipeline; for "" everything."""
    return f"{pipeline}/".encode() if pipeline else b""


def encode_publication(message: Publication | Heartbeat | BrokerBeat) -> bytes:
    """One frame, topic first."""
    if type(message) is Publication:
        return topic_of(message.pipeline) + b"\0" + _published(message)
    topic = HEARTBEAT_TOPIC if type(message) is Heartbeat else BROKER_TOPIC
    return topic + pack((VERSION, *message))


def encode_publications(messages: Sequence[Publication]) -> Iterator[bytes]:
    """Frames for what one batch publishes, in its order. Neighbours of one pipeline share a frame,
    up to `limits.PUBLICATION_BYTES`: what a frame costs is paid once for each of its watchers."""
    pieces: list[bytes] = []
    size, pipeline = 0, ""
    for message in messages:
        piece = _published(message)
        if pieces and (message.pipeline != pipeline
                       or size + len(piece) > limits.PUBLICATION_BYTES):
            yield b"".join(pieces)
            pieces = []
        if not pieces:
            pipeline, size = message.pipeline, 0
            pieces.append(topic_of(pipeline) + b"\0")
        pieces.append(piece)
        size += len(piece)
    if pieces:
        yield b"".join(pieces)


def _published(message: Publication) -> bytes:
    _, uuid, previous, store_previous, part, parts, commit = message
    return pack((
        VERSION, uuid, commit.epoch, commit.revision, commit.time, previous, store_previous, part,
        parts, commit.changes, commit.session, commit.number,
    ))


def decode_publications(frame: bytes) -> list[Publication | Heartbeat | BrokerBeat]:
    """The messages of one frame, one or more. Raises `InvalidRequest` or `Unsupported`."""
    try:
        topic, _, payload = frame.partition(b"\0")
        return [_publication(topic, message) for message in _unpack_all(payload)]
    except Error:
        raise
    except Exception as exc:
        raise InvalidRequest(f"not a publication: {type(exc).__name__}") from None


def _publication(topic: bytes, message: Any) -> Publication | Heartbeat | BrokerBeat:
    version, *fields = message
    if version != VERSION:
        raise Unsupported(f"the store publishes protocol version {version}, this client "
                          f"reads {VERSION}")
    if topic + b"\0" == HEARTBEAT_TOPIC:
        return Heartbeat(*fields)
    if topic + b"\0" == BROKER_TOPIC:
        return BrokerBeat(*fields)
    (uuid, epoch, revision, time, previous, store_previous, part, parts, changes, session,
     number) = fields
    commit = Commit(revision, epoch, time, tuple(map(change_of, changes)), session, number)
    return Publication(topic[:-1].decode(), uuid, previous, store_previous, part, parts, commit)


def _unpack_all(data: bytes) -> list[Any]:
    """Msgpack values back to back, at least one. The walk comes first: see `envelope.walk`."""
    walker = msgpack.Unpacker(None, max_buffer_size=len(data) or 1)
    walker.feed(data)
    found: list[Any] = []
    start = 0
    while start < len(data) or not found:
        walker.skip()
        end = walker.tell()
        found.append(msgpack.unpackb(data[start:end], use_list=False))
        start = end
    return found
