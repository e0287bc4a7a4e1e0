"""`ckptmesh watch --name`: events after the last one that was printed under this name; and the list
of such names."""

from __future__ import annotations

import importlib
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from ckptmesh.cli.common import NotFound, Use, confirm
from ckptmesh.cli.events import LOOK, begun, nothing, show, stream, waiting
from ckptmesh.cli.output import Rows
from ckptmesh.cli.text import span_text
from ckptmesh.clock import from_datetime, iso
from ckptmesh.errors import DirectoryInUse, LockTimeout
from ckptmesh.views import Mark

if TYPE_CHECKING:
    from ckptmesh.client import Client
    from ckptmesh.features.named import NamedWatch
    from ckptmesh.features.watches import WatchInfo


class Wanted(NamedTuple):
    """What is to be followed, and how long."""

    prefix: str
    name: str
    since: Mark | None
    most: int | None
    idle: float | None
    wait: float | None


def follow(use: Use, wanted: Wanted) -> None:
    """Print events; each is done once it is printed. Raises `LockTimeout`, `Unavailable`."""
    with use.connect() as mesh, _opened(use, mesh, wanted) as events:
        for done, event in enumerate(stream(use, mesh, events, wanted.prefix, wanted.idle), 1):
            show(use, event)
            if done == wanted.most:
                break  # the end of the block commits


def _opened(use: Use, mesh: Client, wanted: Wanted) -> NamedWatch:
    """The watch, not yet entered. Says who is at work where that has to be waited for."""
    for info in mesh.watches(wanted.prefix) if wanted.prefix else mesh.watches("ckptmesh"):
        if info.name == wanted.name and info.holder is not None and wanted.wait != 0:
            use.out.note(f"{wanted.name} is at work in {info.holder}; waiting for its end")
    return mesh.watch(wanted.prefix, name=wanted.name, since=wanted.since, wait=wanted.wait)


def follow_by_looks(use: Use, wanted: Wanted) -> None:
    """The same in a directory, which is held for a moment each."""
    left, seen, told, since = wanted.most, -1, False, wanted.since
    importlib.import_module("ckptmesh.client")  # here, so that no look is timed with it
    pause, last = LOOK, time.monotonic()
    while True:
        began = time.monotonic()
        try:
            with use.connect() as mesh:
                if mesh.revision() != seen:
                    with mesh.watch(wanted.prefix, name=wanted.name, since=since,
                                    wait=wanted.wait) as events:
                        since = None  # its place is there now
                        for event in waiting(use, events):
                            show(use, event)
                            last = time.monotonic()
                            left = None if left is None else left - 1
                            if left == 0:
                                return
                    seen = mesh.revision()
        except DirectoryInUse as error:
            if not told:
                use.out.note(f"{error.message}; waiting for it")
        else:
            pause = max(LOOK, 10 * (time.monotonic() - began))
            if not told:
                begun(use, wanted.prefix)
        told = True
        if wanted.idle is not None and time.monotonic() - last >= wanted.idle:
            raise nothing(wanted.idle)
        time.sleep(pause if wanted.idle is None
                   else min(pause, max(0.0, last + wanted.idle - time.monotonic())))


def tell(use: Use, pipeline: str) -> None:
    """List the named watches of a pipeline, or of all."""
    with use.connect(reading=True) as mesh:
        found = mesh.watches(pipeline)
    count = use.out.table(("name", "watches", ">place", ">behind", ">oldest", ">committed",
                           "at work"), _rows(found))
    if not count and not use.out.as_json:
        use.out.note(f"{pipeline or 'the store'} has no named watch")


def _rows(found: list[WatchInfo]) -> Rows:
    now = datetime.now(UTC)
    for each in found:
        oldest = ("not in memory" if each.compacted else
                  "" if each.seconds is None else span_text(each.seconds))
        yield _document(each), (
            each.name, each.prefix or "everything", str(each.mark.revision), str(each.behind),
            oldest, span_text((now - each.committed).total_seconds()), each.holder or "")


def _document(each: WatchInfo) -> dict[str, Any]:
    return {"name": each.name, "pipeline": each.pipeline, "prefix": each.prefix,
            "revision": each.mark.revision, "behind": each.behind, "seconds": each.seconds,
            "compacted": each.compacted, "committed": iso(from_datetime(each.committed)),
            "holder": each.holder}


def drop(use: Use, prefix: str, name: str, yes: bool) -> None:
    """Forget a place. Raises `NotFound`, and `LockTimeout` while somebody is at work there."""
    confirm(f"forget the place of the watch {name}?", yes)
    with use.connect() as mesh:
        try:
            found = mesh.drop_watch(prefix, name)
        except LockTimeout as error:
            error.hint = "end that process first"
            raise
    if not found:
        raise NotFound(f"{prefix or 'the store'} has no watch {name}",
                       hint="ckptmesh watch --list")
    use.out.text(f"dropped {name}", {"name": name, "prefix": prefix})
