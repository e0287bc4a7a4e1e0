"""Records of runs and keys, by the page, whatever state they are in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from ckptmesh import values
from ckptmesh.clock import from_datetime, iso
from ckptmesh.errors import Error, InvalidPayload, RunNotFound, Unsupported
from ckptmesh.features.pipeline.places import (
    Places,
    asked_of,
    exec_of,
    past_of,
    records_of,
)
from ckptmesh.features.pipeline.records import RunRecord, read
from ckptmesh.limits import check_key
from ckptmesh.views import Checkpoint

_PAGE = 500  # checkpoints in one round trip
Gone = Callable[[Checkpoint], bool]
"""Whether the holder of a ticket, which it is given, is known to be dead."""


@dataclass(frozen=True, slots=True)
class Unread:
    """A record that cannot be read. `newer`: by this ckptmesh; else by nobody."""

    key: str
    revision: int
    newer: bool
    text: str


@dataclass(frozen=True, slots=True)
class Run:
    """A record, and the checkpoint that it stands in. `past`: another run has taken its place."""

    record: RunRecord
    found: Checkpoint
    past: bool = False

    @property
    def exact(self) -> bool:
        """Whether all classes in it are known here, so that digests of its parts can be told."""
        return is_exact(self.found)


def is_exact(found: Checkpoint) -> bool:
    """Whether a value, which is `Packed`, would be packed into the same bytes here: it would not if
    it had a dataclass or an Enum that this process does not know."""
    try:
        data: bytes = found.value.data
        return values.pack(values.unpack(data)) == data
    except Error:
        return False


def each_under(mesh: Any, prefix: str) -> Iterator[Checkpoint]:
    """All under a prefix, leases too, in key order; values are `Packed`."""
    after = ""
    while page := mesh.scan(prefix, after=after, limit=_PAGE, packed=True):
        yield from page
        after = page[-1].key


def unpacked(found: Checkpoint) -> Checkpoint:
    """The same with its value. Raises `InvalidPayload`."""
    return replace(found, value=values.unpack(found.value.data))


def run_of(found: Checkpoint, asked: str = "") -> Run | Unread:
    """What stands in the checkpoint of a record, whose value is `Packed`."""
    try:
        return Run(read(unpacked(found), asked), found, "/_runs/past/" in found.key)
    except (Unsupported, InvalidPayload) as error:
        return Unread(found.key, found.revision, isinstance(error, Unsupported), error.message)


def each_run(mesh: Any, pipeline: str, *, past: bool = True, commands: bool = True
             ) -> Iterator[Run | Unread]:
    """The records of a pipeline, in the order of their keys: those of today, then with `past` the
    earlier ones, with `commands` those of `ckptmesh exec`."""
    check_key(pipeline)
    asked = {each.key.rpartition("/")[2]: _ask_in(each)
             for each in each_under(mesh, asked_of(pipeline))}
    for found in each_under(mesh, records_of(pipeline)):
        yield run_of(found, asked.get(found.key.rpartition("/")[2], ""))
    for prefix, wanted in ((past_of(pipeline), past), (exec_of(pipeline), commands)):
        for found in each_under(mesh, prefix) if wanted else ():
            yield run_of(found)


def _ask_in(found: Checkpoint) -> str:
    try:
        value = unpacked(found).value
    except Error:
        return ""
    what = value.get("ask") if isinstance(value, dict) else None
    return what if what in ("pause", "cancel") else ""


def one_run(mesh: Any, pipeline: str, key: str) -> Run | Unread:
    """The run of a pipeline under a key, or a command under `exec` of that time. Raises
    `RunNotFound`."""
    places = Places(pipeline, key)
    found = mesh.get_many([places.record, places.asked], packed=True)
    record, asked = found[places.record], found[places.asked]
    if record is None:
        record = mesh.get(f"{exec_of(pipeline)}/{key}", packed=True)
    if record is None:
        raise RunNotFound(f"there is no run {key!r} of {pipeline!r}",
                          hint=f"ckptmesh run list {pipeline}", pipeline=pipeline, key=key)
    return run_of(record, _ask_in(asked) if asked else "")


def newest_run(mesh: Any, pipeline: str) -> Run:
    """The one that was created last, of those that can be read. Raises `RunNotFound`."""
    newest: Run | None = None
    for each in each_run(mesh, pipeline, past=False):
        if isinstance(each, Run) and (newest is None
                                      or each.record.created >= newest.record.created):
            newest = each
    if newest is None:
        raise RunNotFound(f"{pipeline!r} has no run that can be read", hint="ckptmesh run list",
                          pipeline=pipeline)
    return newest


def moment(time: datetime | None) -> str | None:
    """A time as ISO-8601, UTC."""
    return None if time is None else iso(from_datetime(time))
