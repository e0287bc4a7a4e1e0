"""All targets by name, with what their fuzzing needs.

A target is a function of bytes that returns when every promise was kept and raises when one was
broken. `python -m tests.fuzz NAME` fuzzes one; tests/fuzz/test_corpus.py replays what was found.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ckptmesh.zmtp import head
from tests.fuzz import files, serving, users, wire
from tests.fuzz.taking import counted

CORPUS = Path(__file__).parent / "corpus"


class Target(NamedTuple):
    """`longest`: bytes of an input, while fuzzing. `memory`: bytes that the target may take at most
    for each byte of an input, beyond one MiB. `carrying(payload)`: the input that brings a msgpack
    payload to the innermost reader."""

    run: Callable[[bytes], None]
    longest: int
    memory: int
    carrying: Callable[[bytes], bytes]


def _in_frame(payload: bytes) -> bytes:
    """A segment with one whole DATA frame of this payload."""
    frame = files.FrameWriter(files.HEADER).data(payload, 1, 1)
    return b"\x01" + frame


def _in_block(payload: bytes) -> bytes:
    """A snapshot with one block of these rows."""
    head, foot = files.encode(files.EMPTY, ())
    block = files.block(0, 1, payload)
    return b"\x02" + head + block + foot


TARGETS: dict[str, Target] = {
    "envelope": Target(wire.envelope, 512, 8, bytes),
    "body": Target(wire.body, 512, 8, lambda payload: b"\x04" + payload),
    "replies": Target(wire.replies, 512, 96, lambda payload: b"\x01\x05\x00" + payload),
    "handshake": Target(serving.handshake, 512, 8, lambda payload: b"\x00" + payload),
    "session": Target(serving.session, 256, 8, lambda payload: b"\xff" + counted(payload[:200])),
    "segment": Target(files.segment, 2_048, 40, _in_frame),
    "records": Target(files.records, 512, 40, bytes),
    "snapshot": Target(files.snapshot, 2_048, 40, _in_block),
    "manifest": Target(files.manifest, 1_024, 40, lambda payload: b"\x01" + payload),
    "names": Target(files.names, 64, 8, bytes),
    "peer": Target(wire.peer, 512, 16, lambda payload: b"\1\xff" + head(len(payload)) + payload),
    "values": Target(users.values, 512, 240, bytes),
}
"""A store's memory before a stranger is bounded tightly, that of who reads its own files or its
own store's replies by what the smallest honest objects take."""


def name_of(data: bytes) -> str:
    """The file name of an input in the corpus."""
    return hashlib.sha1(data).hexdigest()


def corpus(target: str) -> list[bytes]:
    """The committed inputs of a target, in the order of their names."""
    return [path.read_bytes() for path in sorted((CORPUS / target).iterdir())]
