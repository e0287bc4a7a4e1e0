"""ZMTP 3.1 as a client speaks it: bytes ↔ greeting, READY, messages of one frame. No sockets.

Source: RFC 37 (https://rfc.zeromq.org/spec/37), which is RFC 23 (ZMTP 3.0) with PING and PONG;
NULL mechanism, our end a DEALER, the other a ROUTER.

    greeting    10 bytes of signature, 2 of version, 20 of mechanism, 1 as-server, 31 filler
    frame       flags, size in 1 byte (LONG: in 8, big-endian), body
    command     a frame whose body is the length of a name, the name, and what belongs to it

Rule 1: whatever the other end sends, `Wire.feed` holds at most `limits.SOCKET_BYTES` of it beyond
        what it was given, works in time linear in it, and raises nothing but `PeerError`.
Rule 2: a message of several frames is dropped whole, as `sockets.receive` drops it.
"""

from __future__ import annotations

from ckptmesh.limits import SOCKET_BYTES

MORE, LONG, COMMAND = 1, 2, 4  # flags; the other bits are reserved, and 0
COMMAND_BYTES = 65_536  # of a command: libzmq sends 40, with a long identity 300
PING_CONTEXT_BYTES = 16  # RFC 37
PONGS = 16  # answers held at once; a flood of PINGs gets no more

_SIGNATURE = b"\xff\0\0\0\0\0\0\0\0\x7f"
_MECHANISM = b"NULL".ljust(20, b"\0")
GREETING = (_SIGNATURE + b"\3\1" + _MECHANISM).ljust(64, b"\0")

_SHORT = tuple(bytes((0, size)) for size in range(256))  # heads of short frames


class PeerError(Exception):
    """What answers does not speak ZMTP 3, or not as a ROUTER; or it refused us, with a reason."""


def head(size: int) -> bytes:
    """What stands before a payload of `size` bytes that is a whole message."""
    return _SHORT[size] if size < 256 else b"\2" + size.to_bytes(8, "big")


def command(name: bytes, data: bytes) -> bytes:
    """A command frame. `data`: at most 240 bytes."""
    body = bytes((len(name),)) + name + data
    return bytes((COMMAND, len(body))) + body


def _property(name: bytes, value: bytes) -> bytes:
    return bytes((len(name),)) + name + len(value).to_bytes(4, "big") + value


READY = command(b"READY", _property(b"Socket-Type", b"DEALER") + _property(b"Identity", b""))


class Wire:
    """One connection, as seen from the bytes that arrive. Send `GREETING` first.

    `ready`: the handshake is done, messages may be sent. `answers`: what is to be sent as soon as
    may be (READY, PONG); whoever sends it empties it.
    """

    def __init__(self) -> None:
        self.ready = False
        self.answers: list[bytes] = []
        self._greeted = False
        self._held = bytearray()  # the beginning of a greeting or a frame …
        self._need = 0  # … and how many bytes tell more
        self._dropping = False  # inside a message of several frames

    @property
    def missing(self) -> int:
        """Bytes that the frame or greeting under way still lacks; 0 when none is."""
        return max(0, self._need - len(self._held)) if self._held else 0

    def feed(self, data: bytes) -> list[bytes]:
        """Take in what arrived; the messages that are whole now. Raises `PeerError`: then drop the
        connection, and this."""
        if self._held:
            self._held += data
            if len(self._held) < self._need:
                return []
            data = bytes(self._held)
            self._held = bytearray()
        at = 0
        if not self._greeted:
            at = self._greet(data)
        found: list[bytes] = []
        end = len(data)
        while at < end:
            flags = data[at]
            if flags > LONG or self._dropping or not self.ready:
                self._judge(flags)
            if flags & LONG:
                begin = stop = at + 9
                if begin <= end:
                    stop += int.from_bytes(data[at + 1 : begin], "big")
                    self._bound(flags, stop - begin)
            else:
                begin = stop = at + 2
                if begin <= end:
                    stop += data[at + 1]
            if stop > end:
                self._held += data[at:] if at else data
                self._need = stop - at
                break
            if flags & ~LONG or self._dropping:
                self._aside(flags, data[begin:stop])
            else:
                found.append(data[begin:stop])
            at = stop
        return found

    # --- the greeting -------------------------------------------------------------------------

    def _greet(self, data: bytes) -> int:
        """Check what there is of the greeting, so that a stranger is known by its first byte.
        Returns where the greeting ends, or the end of the data where it is not whole."""
        if data[:1] not in (b"", b"\xff") or (len(data) > 9 and not data[9] & 1):
            raise PeerError(f"it does not speak ZMTP 3: it began with {data[:20]!r}")
        if len(data) > 10 and data[10] < 3:
            raise PeerError(f"it speaks an older ZMTP than 3.0 (revision {data[10]})")
        mechanism = data[12:32]
        if mechanism != _MECHANISM[: len(mechanism)]:
            name = mechanism.rstrip(b"\0")
            raise PeerError(f"it asks for the security mechanism {name!r}, not for NULL")
        if len(data) < len(GREETING):
            self._held += data
            self._need = len(self._held) + 1  # each byte may tell a stranger
            return len(data)
        self._greeted = True
        self.answers.append(READY)
        return len(GREETING)

    # --- frames -------------------------------------------------------------------------------

    def _judge(self, flags: int) -> None:
        """Refuse flags that cannot be right here."""
        if flags & ~(MORE | LONG | COMMAND) or (flags & COMMAND and flags & MORE):
            raise PeerError(f"it sent a frame with flags {flags:#04x}")
        if not self.ready and not flags & COMMAND:
            raise PeerError("it sent a message before its READY")

    def _bound(self, flags: int, size: int) -> None:
        limit = COMMAND_BYTES if flags & COMMAND else SOCKET_BYTES
        if size > limit:
            raise PeerError(f"it sent a frame of {size:,} bytes; the limit is {limit:,}")

    def _aside(self, flags: int, body: bytes) -> None:
        """A frame that is no message of its own."""
        if flags & COMMAND:
            self._obey(body)
        else:
            self._dropping = bool(flags & MORE)

    # --- commands -----------------------------------------------------------------------------

    def _obey(self, body: bytes) -> None:
        length = body[0] if body else 0
        name, data = body[1 : 1 + length], body[1 + length :]
        if not length or len(name) < length:
            raise PeerError(f"it sent a malformed command: {body[:20]!r}")
        if name == b"ERROR":
            raise PeerError(f"it refused the connection: {data[1:256]!r}")
        if not self.ready:
            if name != b"READY":
                raise PeerError(f"it sent the command {name[:20]!r} before its READY")
            self._meet(data)
        elif name == b"PING":
            if not 2 <= len(data) <= 2 + PING_CONTEXT_BYTES:
                raise PeerError(f"it sent a PING of {len(data)} bytes")
            if len(self.answers) < PONGS:
                self.answers.append(command(b"PONG", data[2:]))
        # Others are not for a DEALER, or of a version to come.

    def _meet(self, metadata: bytes) -> None:
        """The other end's READY: properties of a name (1 byte of length) and a value (4)."""
        at = 0
        kind = b""
        while at < len(metadata):
            colon = at + 1 + metadata[at]
            begin = colon + 4
            stop = begin + int.from_bytes(metadata[colon:begin], "big")
            if colon == at + 1 or begin > len(metadata) or stop > len(metadata):
                raise PeerError("it sent a READY whose properties are malformed")
            if metadata[at + 1 : colon].lower() == b"socket-type":
                kind = metadata[begin:stop]
            at = stop
        if kind != b"ROUTER":
            raise PeerError(f"it is a {kind[:20]!r}, not a ROUTER as a broker or a store is")
        self.ready = True
