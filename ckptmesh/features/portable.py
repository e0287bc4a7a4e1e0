"""Checkpoints in a file that can be carried anywhere: JSON lines, each of them checked.

    header  {"format":"ckptmesh-export","version":1,"store":…,"epoch":…,"revision":…,"time":…,
             "prefix":…,"history":…,"crc":"…"}
    row     {"key":…,"value":… | "packed":…,"revision":…,…,"crc":"…"}     keys ascend
    end     {"end":rows,"past":earlier versions among them,"sha256":"…","crc":"…"}

The whole of it stands in docs/export-format.md. gzip around it, or not.

Rule 1: the CRC-32C at the end of a line goes on from that of the line before, so that a line which
        is changed, lost, doubled or moved is told by its number; SHA-256 over all makes sure.
Rule 2: nothing is read out of a line before its sum is right; a file without its end is no export.
Rule 3: memory is bounded by one line, whatever the file says.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import IO, Any, NamedTuple, NoReturn, TypeVar

import google_crc32c

from ckptmesh.clock import from_datetime, iso, to_datetime
from ckptmesh.errors import Error, ExportDamaged, ExportTruncated, InvalidPayload, Unsupported
from ckptmesh.features.readable import NOT_READABLE, from_json, readable
from ckptmesh.limits import EXPORT_LINE, EXPORT_READABLE, check_key
from ckptmesh.shape import check_shape
from ckptmesh.values import Packed, pack
from ckptmesh.views import Checkpoint

FORMAT, VERSION = "ckptmesh-export", 1
_SUM = len(',"crc":"01234567"}')
_GZIP = b"\x1f\x8b"
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Header:
    """What an export is of: `prefix` of the store `uuid` (hex), as it was at `revision` of `epoch`.
    `micros`: store time of writing it. `history`: whether earlier versions are in it."""

    uuid: str
    epoch: int
    revision: int
    micros: int
    prefix: str = ""
    history: bool = False


class Row(NamedTuple):
    """One line: a checkpoint, its value packed. `past`: it is an earlier version."""

    found: Checkpoint
    past: bool = False


class Writer:
    """Writes an export to a binary stream, `squeezed` with gzip or not. `rows` and `past` count."""

    def __init__(self, stream: IO[bytes], header: Header, squeezed: bool = False) -> None:
        self._stream: IO[bytes] = stream
        if squeezed:  # without a time, so that equal exports are equal files
            self._stream = gzip.GzipFile("", "wb", 6, stream, 0)  # type: ignore[assignment]
        self._squeezed = squeezed
        self._sum, self._whole = 0, hashlib.sha256()
        self.rows = self.past = 0
        self._write({"format": FORMAT, "version": VERSION, "store": header.uuid,
                     "epoch": header.epoch, "revision": header.revision,
                     "time": iso(header.micros), "prefix": header.prefix,
                     "history": header.history})

    def put(self, found: Checkpoint, past: bool = False) -> None:
        """A checkpoint, whose value is `Packed`. Raises `InvalidPayload` for a value that nobody
        can read."""
        self._write(_document_of(found, past))
        self.rows += 1
        self.past += past

    def end(self) -> str:
        """The last line. The stream is not closed. Returns the SHA-256, in hex."""
        digest = self._whole.hexdigest()
        self._write({"end": self.rows, "past": self.past, "sha256": digest})
        if self._squeezed:
            self._stream.close()  # of the squeezing alone
        return digest

    def _write(self, document: dict[str, Any]) -> None:
        text = json.dumps(document, separators=(",", ":"), allow_nan=False).encode()
        self._sum = google_crc32c.extend(self._sum, text[:-1])
        line = b'%s,"crc":"%08x"}\n' % (text[:-1], self._sum)
        self._whole.update(line)
        self._stream.write(line)


def _document_of(found: Checkpoint, past: bool) -> dict[str, Any]:
    data = found.value.data
    try:
        check_shape(data)
    except InvalidPayload as damage:
        raise InvalidPayload(
            f"{found.key!r} at revision {found.revision}: {damage.message}", key=found.key,
            hint=f"`ckptmesh state repair {found.key} --to NEW_KEY` saves an earlier version; then "
                 "delete it") from None
    document: dict[str, Any] = {"key": found.key}
    value = readable(data) if len(data) <= EXPORT_READABLE else NOT_READABLE
    if value is NOT_READABLE:
        document["packed"] = base64.b64encode(data).decode()
    else:
        document["value"] = value
    document |= {"revision": found.revision, "version": found.version,
                 "created": found.create_revision, "epoch": found.epoch, "time": iso(found.micros)}
    if found.expires_at is not None:
        document["expires_at"] = iso(from_datetime(found.expires_at))
    if found.position is not None:
        document["position"] = found.position
    if found.head is not None:
        document["head"] = found.head
    if found.sources:
        document["sources"] = [list(source) for source in found.sources]
    if past:
        document["past"] = True
    return document


class Reader:
    """Reads an export from a binary stream that can be sought; `header` is there at once, the rows
    come when it is iterated, and `digest` after the last of them.

    `name`: of the file, for errors. Raises, as iterating does, `ExportDamaged` with the line,
    `ExportTruncated` where the end is missing, `Unsupported` for a later version.
    """

    def __init__(self, stream: IO[bytes], name: str = "the export") -> None:
        self.name, self.line, self.digest = name, 0, ""
        self.rows = self.past = 0
        stream.seek(0)
        self.squeezed = stream.read(2) == _GZIP
        stream.seek(0)
        self._stream: IO[bytes] = stream
        if self.squeezed:
            self._stream = gzip.GzipFile("", "rb", 6, stream)  # type: ignore[assignment]
        self._sum, self._whole = 0, hashlib.sha256()
        self.header = self._header()

    def __iter__(self) -> Iterator[Row]:
        before = ""
        while True:
            document = self._next()
            if "end" in document:
                break
            row = self._row(document)
            key = row.found.key
            if (key <= before and not row.past) or (row.past and key != before):
                self._damaged("its key is out of order")
            before = key
            self.rows += 1
            self.past += row.past
            yield row
        self._end(document)

    # --- lines --------------------------------------------------------------------------------

    def _line(self) -> bytes:
        """The next line as it stands, with its end; b"" at the end of the file."""
        self.line += 1
        try:
            line: bytes = self._stream.readline(EXPORT_LINE + 1)
        except EOFError:
            self._truncated("the compressed file ends early")
        except (gzip.BadGzipFile, zlib.error) as error:
            self._damaged(f"it cannot be decompressed: {error}")
        if len(line) > EXPORT_LINE:
            self._damaged(f"it is longer than {EXPORT_LINE:,} bytes")
        return line

    def _next(self) -> dict[str, Any]:
        """The document of the next line, whose sum is right."""
        line = self._line()
        if not line:
            self._truncated("its end is missing")
        if line[-1:] != b"\n":
            self._truncated("the line ends early")
        return self._checked(line)

    def _checked(self, line: bytes) -> dict[str, Any]:
        text = line[:-1 - _SUM]
        self._sum = google_crc32c.extend(self._sum, text)
        if line[len(text):] != b',"crc":"%08x"}\n' % self._sum:
            self._damaged("its sum is wrong: it was changed, or one before it is missing")
        document = _loaded(line)
        if document is None:
            self._damaged("it is no JSON")
        if "end" not in document:
            self._whole.update(line)
        return document

    def _header(self) -> Header:
        line = self._line()
        if not line:
            self._truncated("it is empty")
        document = _loaded(line)
        if document is None or document.get("format") != FORMAT:
            if line[-1:] != b"\n" and line.startswith(b'{"format":"' + FORMAT.encode()):
                self._truncated("the line ends early")
            self._damaged("this is no export of ckptmesh")
        version = document.get("version")
        if type(version) is int and version > VERSION:  # before its sum, which may be another then
            raise Unsupported(
                f"{self.name}: line 1: an export of version {version}; this release reads up to "
                f"{VERSION}", hint="read it with the release that wrote it, or a later one",
                file=self.name, line=1, version=version)
        if line[-1:] != b"\n":
            self._truncated("the line ends early")
        self._checked(line)
        if version != VERSION:
            self._damaged(f"there is no version {version!r:.40}")
        try:
            return Header(_a(str, document["store"]), _number(document["epoch"]),
                          _number(document["revision"]), _time(document["time"]),
                          _a(str, document["prefix"]), document["history"] is True)
        except _WRONG as error:
            self._damaged(f"the header is not as the format says: {error}")

    def _row(self, document: dict[str, Any]) -> Row:
        try:
            key = document["key"]
            check_key(key)
            if "packed" in document:
                data = base64.b64decode(document["packed"], validate=True)
                check_shape(data)
            else:
                data = pack(from_json(document["value"]))
            expires = document.get("expires_at")
            return Row(Checkpoint(
                key, Packed(data), _number(document["revision"]), _number(document["epoch"]),
                _number(document["version"]), _number(document["created"]),
                _time(document["time"]), None if expires is None else to_datetime(_time(expires)),
                _place(document.get("position")), _place(document.get("head")),
                tuple((_a(str, source), _number(revision))
                      for source, revision in document.get("sources", ())),
            ), document.get("past") is True)
        except _WRONG as error:
            self._damaged(f"it is not as the format says: {error}")

    def _end(self, document: dict[str, Any]) -> None:
        self.digest = self._whole.hexdigest()
        if (document.get("end"), document.get("past"), document.get("sha256")) != (
                self.rows, self.past, self.digest):
            self._damaged("it does not fit what stands before it")
        if self._line():
            self._damaged("something comes after the end")

    # --- errors -------------------------------------------------------------------------------

    def _damaged(self, why: str) -> NoReturn:
        raise ExportDamaged(f"{self.name}: line {self.line}: {why}", file=self.name, line=self.line)

    def _truncated(self, why: str) -> NoReturn:
        raise ExportTruncated(f"{self.name}: line {self.line}: {why}", file=self.name,
                              line=self.line)


_WRONG = (Error, ValueError, TypeError, KeyError, OverflowError, RecursionError)


def _loaded(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _a(kind: type[T], found: Any) -> T:
    if type(found) is not kind:
        raise ValueError(f"{found!r:.40} is no {kind.__name__}")
    return found


def _number(found: Any) -> int:
    if _a(int, found) < 0:
        raise ValueError(f"{found} is below 0")
    return found  # type: ignore[no-any-return]


def _place(found: Any) -> int | None:
    return None if found is None else _a(int, found)


def _time(found: Any) -> int:
    return from_datetime(datetime.fromisoformat(_a(str, found)))
