"""What a corpus begins with: whole inputs that are accepted, so that a fuzzer starts from depth.

    python -m tests.fuzz.seeds     (writes them into tests/fuzz/corpus; fuzzing finds the rest)
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime, time
from decimal import Decimal
from pathlib import Path
from uuid import UUID

from ckptmesh import zmtp
from ckptmesh.commands import op_of, pack_command
from ckptmesh.framing import DATA, HEADER_BYTES, SegmentScan, decode_header
from ckptmesh.protocol import decode_request
from ckptmesh.publications import BROKER_TOPIC, HEARTBEAT_TOPIC
from ckptmesh.snapshots import FOOTER_BYTES
from ckptmesh.snapshots import HEADER_BYTES as SNAPSHOT_HEADER_BYTES
from ckptmesh.values import pack
from tests.fuzz.serving import INTEGERS, KEYS
from tests.fuzz.taking import counted
from tests.fuzz.targets import CORPUS, name_of
from tests.fuzz.users import FuzzColour, FuzzPoint
from tests.fuzz.wire import OPENING

GOLDEN = Path(__file__).parent.parent / "golden"


def seeds() -> Iterator[tuple[str, bytes]]:
    """(target, input): all that the golden files hold, in the form of each target."""
    yield from _wire_seeds()
    yield from _log_seeds()
    yield from _snapshot_seeds()
    manifest = (GOLDEN / "manifest-1.json").read_bytes()
    yield "manifest", b"\0" + manifest
    yield "manifest", b"\1" + manifest[: manifest.rindex(b',\n "crc32c"')]
    yield from _peer_seeds()
    yield "names", b"00000001-000000000001.seg"
    yield "names", "orders/é/_lock/x".encode()
    for value in VALUES:
        yield "values", pack(value)
    # Plain transactions in a session: a put, an increment, a delete, a touch, in turn.
    for mutation in (b"\0\0\0", b"\3\0\1", b"\1\3", b"\2\1\1\1"):
        yield "session", b"\4\0\0\1" + mutation + b"\x25\0"
    yield "session", b"\4\0\0\1\0\0\0\xe5\0\0"  # the same put, stamped in an older epoch
    # What came later: contracts set and listed, savepoints made, listed and dropped.
    for choice, fields in ((250, b"\0\0"), (251, b""), (252, b"\0\0\0"), (254, b""), (253, b"\0")):
        yield "session", bytes((choice, 0)) + fields + b"\x25\0"
    one, two = INTEGERS.index(1), INTEGERS.index(2)  # the token of the lease
    yield "session", bytes((3, 0, KEYS.index("lease"), one, two)) + b"\x25\0"


VALUES = (
    None, [1, -1, 2**64 - 1, 1.5, float("inf")], {"a": {"b": [b"c", "d"]}}, (1, (2,)), {1, 2},
    frozenset(("a", (1, 2))), Decimal("1.50"), UUID(int=7), date(2024, 5, 1), time(10, 30),
    datetime(2024, 5, 1, tzinfo=UTC), FuzzColour.RED, FuzzPoint(1, [FuzzColour.BLUE]),
)


def _golden_messages() -> Iterator[tuple[str, bytes]]:
    name, digits = "", ""
    for line in [*(GOLDEN / "protocol-1.txt").read_text().splitlines(), ""]:
        if line.startswith("    "):
            digits += line
        elif digits:
            yield name, bytes.fromhex(digits)
            digits = ""
        if line and line[0] not in " #":
            name = line.partition(" ")[0]


def _wire_seeds() -> Iterator[tuple[str, bytes]]:
    for kind, data in _golden_messages():
        if kind == "request":
            command = decode_request(data).command
            yield "envelope", data
            yield "handshake", b"\0" + data
            yield "body", bytes((op_of(command),)) + pack_command(command)[1]
        elif kind == "reply":
            yield "replies", b"\0" + data
        else:
            for choice, topic in enumerate((b"", HEARTBEAT_TOPIC, BROKER_TOPIC)):
                if data.startswith(topic):
                    yield "replies", bytes((2 + choice,)) + data[len(topic):]


def _peer_seeds() -> Iterator[tuple[str, bytes]]:
    ping = zmtp.command(b"PING", b"\0\1context")
    long = b"\2" + (3).to_bytes(8, "big") + b"abc"
    parts = b"\1\1a" + ping + b"\3" + (1).to_bytes(8, "big") + b"b" + b"\0\1c"
    for met, data in ((b"\0", OPENING), (b"\1", b"")):
        yield "peer", met + b"\6" + data + zmtp.head(2) + b"xy" + long
        yield "peer", met + b"\0" + data + parts + ping + zmtp.head(0)
    yield "peer", b"\0\4" + zmtp.GREETING + zmtp.command(b"ERROR", b"\2no")
    yield "peer", b"\0\4" + zmtp.GREETING[:10] + b"\1\5"
    yield "peer", b"\0\4HTTP/1.1 400 Bad Request"
    yield "peer", b"\1\4" + zmtp.command(b"OTHER", b"command") + b"\6" + bytes(6) + b"\2\0\0"


def _log_seeds() -> Iterator[tuple[str, bytes]]:
    data = (GOLDEN / "segment-1.seg").read_bytes()
    header = decode_header(data)
    yield "segment", b"\0" + data[:HEADER_BYTES]
    yield "segment", b"\4" + data[:HEADER_BYTES]
    history = b""
    for frame in SegmentScan(data, header):
        image = data[frame.offset : frame.end].rstrip(b"\0")
        yield "segment", b"\x1d" + image  # sealed again, chained, filled up to the sector
        yield "segment", b"\x02\0" + bytes((frame.kind * 2 - 1, frame.records)) + counted(
            frame.payload) + bytes((frame.first_revision - 1,))
        if frame.kind == DATA:
            yield "records", frame.payload
            history += frame.payload[1:]
            yield "records", b"\xdc\0" + bytes((_count(data, frame.number),)) + history


def _count(data: bytes, number: int) -> int:
    return sum(frame.records for frame in SegmentScan(data, decode_header(data))
               if frame.number <= number)


def _snapshot_seeds() -> Iterator[tuple[str, bytes]]:
    data = (GOLDEN / "snapshot-1.snap").read_bytes()
    yield "snapshot", b"\0" + data
    yield "snapshot", b"\6" + data
    at, built = SNAPSHOT_HEADER_BYTES, b"\1"
    while at < len(data) - FOOTER_BYTES:
        length, section, count = data[at], data[at + 4], data[at + 8]  # each below 256 here
        length += data[at + 1] << 8
        built += bytes((section, count)) + counted(data[at + 12 : at + 12 + length], 2)
        at += 16 + length
    yield "snapshot", built


def main() -> None:
    """Write the seeds into the corpus."""
    for target, data in seeds():
        folder = CORPUS / target
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name_of(data)).write_bytes(data)


if __name__ == "__main__":
    main()
