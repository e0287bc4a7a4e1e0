"""What lies in a store's directory and is no part of the store: torn tails, temporary files, files
that a crash kept from being removed, files of something else.

Rule 1: only what ckptmesh made and can place is removed; everything else goes to `quarantine/`.
Rule 2: evidence (a torn tail, a stray file) never overwrites earlier evidence.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ckptmesh.disk import Disk, read_file, write_file
from ckptmesh.errors import Corrupt, Unsupported
from ckptmesh.framing import SECTORS, SegmentHeader, decode_header
from ckptmesh.lock import QUARANTINE_DIRECTORY
from ckptmesh.manifest import (
    LOG_DIRECTORY,
    MANIFEST_TMP,
    SNAPSHOT_DIRECTORY,
    Manifest,
    parse_segment_file,
    snapshot_file,
)
from ckptmesh.snapshots import read_header


def header_of(disk: Disk, path: str) -> SegmentHeader | None:
    """The header of a segment, None where it cannot be told."""
    try:
        handle = disk.open(path, "read")
        try:
            return decode_header(disk.pread(handle, max(SECTORS), 0))
        finally:
            disk.close(handle)
    except (ValueError, Unsupported, OSError):
        return None


def sort_unknown(
    disk: Disk, directory: str, manifest: Manifest, listing: Mapping[str, Sequence[str]],
    known: frozenset[str], last: int,
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The files that are not `known`: (those of ours that can go, strays). All names are relative
    to the directory; `listing` holds the names in each folder, `last` is the last segment's number.

    Raises `Corrupt` for a segment of this store beyond the last: those between are missing.
    """
    removable, strays = [], []
    if disk.file_size(f"{directory}/{MANIFEST_TMP}") is not None:
        removable.append(MANIFEST_TMP)
    for folder, names in listing.items():
        for name in names:
            file = f"{folder}/{name}"
            if file in known or name.endswith(".torn"):
                continue
            ours = name.endswith(".tmp") or _superseded(disk, directory, file, manifest, last)
            if file in manifest.needed_before:
                continue  # goes with the next manifest
            if ours:
                removable.append(file)
            else:
                strays.append(file)
    return tuple(removable), tuple(strays)


def _superseded(disk: Disk, directory: str, file: str, manifest: Manifest, last: int) -> bool:
    """Whether a file is one of this store's own that no manifest needs (any more, or yet): a crash
    came between the manifest and the file's removal, or before the manifest."""
    path = f"{directory}/{file}"
    if file.startswith(SNAPSHOT_DIRECTORY):
        return file == _own_snapshot(disk, path, manifest.uuid)
    place = parse_segment_file(file.removeprefix(f"{LOG_DIRECTORY}/"))
    header = header_of(disk, path) if place is not None else None
    if header is None or (header.uuid, header.number, header.first_revision) != (
        manifest.uuid, *(place or ())
    ):
        return False
    if header.number > last:
        raise Corrupt(f"{path} is segment {header.number} of this store, but segment {last + 1} "
                      "before it is missing, or the one before that ends early",
                      file=path, offset=0)
    return header.number < (manifest.sealed[0].number if manifest.sealed else last)


def _own_snapshot(disk: Disk, path: str, uuid: bytes) -> str:
    """The name that a snapshot of this store must have, "" when it is not one."""
    try:
        found = read_header(disk, path)
    except (Corrupt, Unsupported):
        return ""
    return snapshot_file(found.revision, found.segment) if found.uuid == uuid else ""


def put_away(
    disk: Disk, directory: str, removable: Iterable[str], strays: Iterable[str]
) -> None:
    """Remove the ones, move the others to quarantine. Raises `OSError`."""
    folders: set[str] = set()
    for file in strays:
        disk.mkdir(f"{directory}/{QUARANTINE_DIRECTORY}")
        target = free_name(disk, f"{directory}/{QUARANTINE_DIRECTORY}/{file.replace('/', '-')}")
        disk.rename(f"{directory}/{file}", target)
        folders.update((f"{directory}/{QUARANTINE_DIRECTORY}", directory))
        folders.add(f"{directory}/{file}".rpartition("/")[0])
    for file in removable:
        disk.unlink(f"{directory}/{file}")
        folders.add(f"{directory}/{file}".rpartition("/")[0])
    for folder in sorted(folders):
        disk.sync_directory(folder)


def cut_tail(disk: Disk, path: str, offset: int) -> None:
    """Keep a segment's bytes from `offset` on beside it as `.torn`, durably, then cut them off.

    Raises `OSError`; before the copy is durable nothing is cut.
    """
    torn = read_file(disk, path)[offset:].rstrip(b"\0")
    temporary = f"{path}.torn.tmp"
    write_file(disk, temporary, (torn,))
    disk.rename(temporary, free_name(disk, path, ".torn"))
    disk.sync_directory(path.rpartition("/")[0])
    handle = disk.open(path, "write")
    try:
        disk.truncate(handle, offset)
        disk.fdatasync(handle)
    finally:
        disk.close(handle)


def free_name(disk: Disk, path: str, suffix: str = "") -> str:
    """`path` + `suffix`, or with the first number between them that makes a name not in use."""
    name, count = f"{path}{suffix}", 1
    while disk.file_size(name) is not None:
        count += 1
        name = f"{path}.{count}{suffix}"
    return name
