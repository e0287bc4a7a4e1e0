"""`ckptmesh watch`: every commit as it happens, as redis-cli MONITOR shows commands.

A directory (file:./state) is not held while nothing happens: it is opened again and again for a
look, so that the process whose commits are watched can have it.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Generator
from typing import TYPE_CHECKING, Any

import click

from ckptmesh.cli.common import DURATION, Read, Use, client_options
from ckptmesh.cli.completion import complete_keys
from ckptmesh.cli.forms import bare, compact, kind_of, mark_of, mark_text, to_json
from ckptmesh.cli.output import width
from ckptmesh.cli.text import preview
from ckptmesh.clock import from_datetime, iso
from ckptmesh.errors import Compacted, DirectoryInUse, InvalidPayload, Unavailable
from ckptmesh.limits import HEARTBEAT_LOST
from ckptmesh.views import Event, Mark

if TYPE_CHECKING:
    from ckptmesh.client import Client
    from ckptmesh.watch import Watch

Events = Generator[Event, None, None]

QUIET = HEARTBEAT_LOST + 1  # seconds without any sign of a store until it is asked for one
LOOK = 1.0  # seconds between two looks into a directory, or ten times what one costs if longer

_COLOURS = {"put": "green", "delete": "red", "expire": "yellow", "touch": "cyan"}


@click.command("watch", short_help="Print every commit as it happens.")
@click.argument("prefix", default="", shell_complete=complete_keys)
@click.option("--since", type=Read(mark_of, "mark"), metavar="REV",
              help="Begin after this revision, or after what an event gave as `resume`.")
@click.option("--count", type=click.IntRange(1), metavar="N", help="End after so many events.")
@click.option("--idle", type=DURATION, metavar="DURATION",
              help="Give up, with exit code 5, when nothing comes for so long.")
@client_options
def watch(use: Use, prefix: str, since: Mark | None, count: int | None, idle: float | None) -> None:
    """Print every commit under PREFIX (a pipeline, or any key and what is under it), as it happens.

    None is missed and none comes twice, also over restarts of the store. Without PREFIX:
    everything. An event's `resume` (with --json) or revision is what --since takes, so a script
    can go on where it stopped. Ctrl-C ends it, with exit code 130.

    \b
    Examples:
      ckptmesh watch
      ckptmesh watch orders --since 120
      ckptmesh watch orders --json | jq -c '[.key, .value]'
      ckptmesh watch orders --count 1 --idle 30s && echo "orders has moved"
    """
    embedded = (use.url or "").startswith(("file:", "memory:"))
    events = _looks(use, prefix, since, idle) if embedded else _served(use, prefix, since, idle)
    done = 0
    try:
        for event in events:
            _print(use, event)
            done += 1
            if done == count:
                break
    except Compacted as error:
        again = " ".join(filter(None, ("ckptmesh watch", prefix, f"--since {error.resume_from}")))
        error.hint = f"the oldest place to start from is {error.resume_from}: {again}"
        raise
    finally:
        events.close()


def _served(use: Use, prefix: str, since: Mark | None, idle: float | None) -> Events:
    with use.connect(reading=True) as mesh, mesh.watch(prefix, since=since) as events:
        _begun(use, prefix)
        last, beats, away = time.monotonic(), 0, False
        while True:
            left = QUIET if idle is None else last + idle - time.monotonic()
            try:
                event = events.get(max(0.0, min(QUIET, left)))
            except InvalidPayload as error:  # its value cannot be read; the next one can
                use.out.note(f"skipped: {error.message}")
                continue
            if event is not None:
                yield event
                last = time.monotonic()
            elif idle is not None and time.monotonic() >= last + idle:
                raise _nothing(idle)
            elif beats == events.stats.heartbeats:
                away = _tell_whether_away(use, mesh, away)
            beats = events.stats.heartbeats


def _tell_whether_away(use: Use, mesh: Client, before: bool) -> bool:
    """Whether the store is away, told once when it goes and once when it is back."""
    try:
        mesh.hello(timeout=1)
    except Unavailable:
        if not before:
            use.out.note("the store is away; waiting for it, nothing will be missed")
        return True
    if before:
        use.out.note("the store is back")
    return False


def _looks(use: Use, prefix: str, since: Mark | None, idle: float | None) -> Events:
    """Events of a directory, by looks that hold it for a moment each."""
    mark, told, pause = since, False, LOOK
    importlib.import_module("ckptmesh.client")  # here, so that no look is timed with it
    last = time.monotonic()
    while True:
        began = time.monotonic()
        found: list[Event] = []
        try:
            with use.connect(reading=True) as mesh:
                head = Mark(int(mesh.status()["revision"]))
                mark = head if mark is None else mark
                with mesh.watch(prefix, since=mark) as events:
                    found += _waiting(use, events)
                mark = max([head, mark, *(event.resume for event in found)])
        except DirectoryInUse as error:
            if not told:
                use.out.note(f"{error.message}; waiting for it")
        else:
            pause = max(LOOK, 10 * (time.monotonic() - began))
            if not told:
                _begun(use, prefix)
        told = True
        yield from found
        now = time.monotonic()
        last = now if found else last
        if idle is not None and now - last >= idle:
            raise _nothing(idle)
        time.sleep(pause if idle is None else min(pause, max(0.0, last + idle - now)))


def _waiting(use: Use, events: Watch) -> Events:
    """What is there already."""
    while True:
        try:
            event = events.get(0)
        except InvalidPayload as error:
            use.out.note(f"skipped: {error.message}")
            continue
        if event is None:
            return
        yield event


def _begun(use: Use, prefix: str) -> None:
    use.out.note(f"watching {prefix or 'everything'}; Ctrl-C ends")


def _nothing(idle: float | None) -> Unavailable:
    return Unavailable(f"nothing came for {idle:g} s", hint="")


def _print(use: Use, event: Event) -> None:
    if use.out.as_json:
        use.out.line(document_of(event))
        return
    value = ""
    if event.checkpoint is not None and event.kind == "put":
        value = bare(event.checkpoint.value)
        if "\n" in value or use.out.terminal:  # one event, one line
            value = compact(to_json(event.checkpoint.value))
    elif event.checkpoint is not None and event.checkpoint.expires_at is not None:
        value = f"until {iso(from_datetime(event.checkpoint.expires_at))}"
    head, kind = f"{iso(event.micros)} {event.revision}", event.kind.ljust(6)
    if use.out.terminal:
        room = width() - len(head) - len(kind) - len(event.key) - 3
        value = preview(value, max(room, 20))
    use.out.styled((head, ""), (kind, _COLOURS.get(event.kind, "")), (event.key, ""), (value, ""))


def document_of(event: Event) -> dict[str, Any]:
    """An event as JSON."""
    found = event.checkpoint
    document: dict[str, Any] = {
        "kind": event.kind, "key": event.key, "revision": event.revision, "epoch": event.epoch,
        "time": iso(event.micros), "resume": mark_text(event.resume),
    }
    if found is not None:
        document |= {
            "value": to_json(found.value), "type": kind_of(found.value),
            "version": found.version, "position": found.position, "head": found.head,
            "expires_at": iso(from_datetime(found.expires_at)) if found.expires_at else None,
            "lease": found.is_lease,
        }
    return document
