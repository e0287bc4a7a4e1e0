"""The segment that is being written: one file, one frame after another, then a footer.

Rule 1: a file gets its final name only when its first bytes are durable, so a name ending in `.seg`
        always has a whole header.
Rule 2: nothing here asks the disk for space: frames go to preallocated zeroes.
"""

from __future__ import annotations

from contextlib import suppress

from ckptmesh.disk import Disk
from ckptmesh.framing import FrameWriter, SegmentHeader, encode_header, frame_size
from ckptmesh.manifest import ActiveSegment, SealedSegment

FOOTER_PAYLOAD = 8


def bytes_for(payload: int, sector: int, content: int = 0) -> int:
    """Size that a segment needs for `content` bytes of frames, one frame with a payload of this
    size, and its footer."""
    return sector + content + frame_size(payload, sector) + frame_size(FOOTER_PAYLOAD, sector)


class SegmentFile:
    """An open segment. `path` is its file, `frames` counts what it holds, `capacity` is its
    preallocated size and `place` what the manifest says of it. Every method may raise `OSError`."""

    __slots__ = ("_disk", "_handle", "_header", "_offset", "_reserve", "_writer", "capacity",
                 "path", "place")

    def __init__(self, disk: Disk, directory: str, temporary: str, header: SegmentHeader,
                 writer: FrameWriter, frames: bytes = b"") -> None:
        """Make the preallocated file `temporary` this segment, durably. `frames` are those that
        `writer` has encoded so far. The path of the temporary file is in the same folder."""
        self.place = ActiveSegment(header.number, header.first_revision, header.previous)
        self.path = f"{directory}/{self.place.file}"
        self._disk = disk
        self._header = header
        self._writer = writer
        self._reserve = frame_size(FOOTER_PAYLOAD, header.sector)
        content = encode_header(header) + frames
        self._offset = len(content)
        self._handle = disk.open(temporary, "write")
        try:
            self.capacity = disk.size(self._handle)
            disk.pwrite(self._handle, content, 0)
            disk.fdatasync(self._handle)
            disk.rename(temporary, self.path)
            disk.sync_directory(self.path.rpartition("/")[0])
        except OSError:
            with suppress(OSError):  # the first error tells; the handle is nobody else's to close
                self.close()
            raise

    @property
    def frames(self) -> int:
        """How many frames it holds."""
        return self._writer.number

    def fits(self, payload_bytes: int) -> bool:
        """Whether one more frame with a payload of this size fits, and then the footer."""
        size = frame_size(payload_bytes, self._header.sector)
        return self._offset + size + self._reserve <= self.capacity

    def write(self, payload: bytes, first_revision: int, records: int) -> int:
        """Write a DATA frame, in one write. Returns its size in bytes."""
        frame = self._writer.data(payload, first_revision, records)
        self._disk.pwrite(self._handle, frame, self._offset)
        self._offset += len(frame)
        return len(frame)

    def sync(self) -> None:
        """Make what was written durable."""
        self._disk.fdatasync(self._handle)

    def seal(self, sealed_at: int, next_revision: int) -> SealedSegment:
        """Write the footer, cut the file to its content, make both durable, close the file."""
        footer = self._writer.footer(sealed_at, next_revision)
        self._disk.pwrite(self._handle, footer, self._offset)
        self._offset += len(footer)
        # One sync for both: until then the file ends in whole frames either way.
        self._disk.truncate(self._handle, self._offset)
        self._disk.fdatasync(self._handle)
        self.close()
        header = self._header
        return SealedSegment(header.number, header.first_revision, next_revision - 1,
                             self._offset, header.previous, self._writer.digest, sealed_at)

    def close(self) -> None:
        """Close the file as it is. May be called twice."""
        if self._handle >= 0:
            handle, self._handle = self._handle, -1
            self._disk.close(handle)
