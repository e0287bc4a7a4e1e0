"""Events on the command line: how they come, and how they are shown."""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import TYPE_CHECKING, Any

from ckptmesh.cli.common import Use
from ckptmesh.cli.forms import bare, compact, kind_of, mark_text, to_json
from ckptmesh.cli.output import width
from ckptmesh.cli.text import preview
from ckptmesh.clock import from_datetime, iso
from ckptmesh.errors import InvalidPayload, Unavailable
from ckptmesh.limits import HEARTBEAT_LOST
from ckptmesh.views import Event

if TYPE_CHECKING:
    from ckptmesh.client import Client
    from ckptmesh.features.named import NamedWatch
    from ckptmesh.watch import Watch

Events = Generator[Event, None, None]

QUIET = HEARTBEAT_LOST + 1  # seconds without any sign of a store until it is asked for one
LOOK = 1.0  # seconds between two looks into a directory, or ten times what one costs if longer

_COLOURS = {"put": "green", "delete": "red", "expire": "yellow", "touch": "cyan"}


def stream(use: Use, mesh: Client, events: Watch | NamedWatch, prefix: str, idle: float | None
           ) -> Events:
    """What a watch of a mesh gives, for ever. Raises `Unavailable` after `idle` seconds without
    an event."""
    begun(use, prefix)
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
            raise nothing(idle)
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


def waiting(use: Use, events: Watch | NamedWatch) -> Events:
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


def begun(use: Use, prefix: str) -> None:
    """Say that it goes on until somebody ends it."""
    use.out.note(f"watching {prefix or 'everything'}; Ctrl-C ends")


def nothing(idle: float | None) -> Unavailable:
    """Why it was given up."""
    return Unavailable(f"nothing came for {idle:g} s", hint="")


def show(use: Use, event: Event) -> None:
    """Print an event."""
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
