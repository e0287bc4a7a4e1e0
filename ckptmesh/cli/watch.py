"""`ckptmesh watch`: every commit as it happens, as redis-cli MONITOR shows commands.

A directory (file:./state) is not held while nothing happens: it is opened again and again for a
look, so that the process whose commits are watched can have it.
"""

from __future__ import annotations

import importlib
import time

import click

from ckptmesh.cli import named
from ckptmesh.cli.common import DURATION, Read, Use, client_options, yes_option
from ckptmesh.cli.completion import complete_keys
from ckptmesh.cli.events import LOOK, Events, begun, nothing, show, stream, waiting
from ckptmesh.cli.execute import WAIT
from ckptmesh.cli.forms import mark_of
from ckptmesh.errors import Compacted, DirectoryInUse, Misuse
from ckptmesh.views import Event, Mark


@click.command("watch", short_help="Print every commit as it happens.")
@click.argument("prefix", default="", shell_complete=complete_keys)
@click.option("--since", type=Read(mark_of, "mark"), metavar="REV",
              help="Begin after this revision, or after what an event gave as `resume`.")
@click.option("--count", type=click.IntRange(1), metavar="N", help="End after so many events.")
@click.option("--idle", type=DURATION, metavar="DURATION",
              help="Give up, with exit code 5, when nothing comes for so long.")
@click.option("--name", metavar="NAME",
              help="Keep the place under this name, and go on there the next time.")
@click.option("--wait", type=WAIT, metavar="DURATION",
              help="With --name: how long to wait for another who has it; default: until he ends.")
@click.option("--list", "listing", is_flag=True, help="List the names: how far behind each is.")
@click.option("--drop", is_flag=True, help="With --name: forget its place.")
@yes_option
@client_options
def watch(use: Use, prefix: str, since: Mark | None, count: int | None, idle: float | None,
          name: str | None, wait: float | None, listing: bool, drop: bool, yes: bool) -> None:
    """Print every commit under PREFIX (a pipeline, or any key and what is under it), as it happens.

    None is missed and none comes twice, also over restarts of the store. Without PREFIX:
    everything. An event's `resume` (with --json) or revision is what --since takes, so a script
    can go on where it stopped. Ctrl-C ends it, with exit code 130.

    With --name the store keeps the place: an event is done once it is printed, and the next one
    with this name goes on after it; what was not committed when it was killed comes again. One at a
    time has a name. ckptmesh's own keys (with a segment that begins with `_`) are left out then.

    \b
    Examples:
      ckptmesh watch
      ckptmesh watch orders --since 120
      ckptmesh watch orders --json | jq -c '[.key, .value]'
      ckptmesh watch orders --count 1 --idle 30s && echo "orders has moved"
      ckptmesh watch orders --name billing
      ckptmesh watch --list orders
    """
    if listing:
        named.tell(use, prefix)
        return
    if drop and name is None:
        raise Misuse("which one is to be forgotten?", hint="--name, as `watch --list` shows it")
    if drop:
        named.drop(use, prefix, name or "", yes)
        return
    embedded = (use.url or "").startswith(("file:", "memory:"))
    if name is not None:
        wanted = named.Wanted(prefix, name, since, count, idle, wait)
        (named.follow_by_looks if embedded else named.follow)(use, wanted)
        return
    events = _looks(use, prefix, since, idle) if embedded else _served(use, prefix, since, idle)
    done = 0
    try:
        for event in events:
            show(use, event)
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
        yield from stream(use, mesh, events, prefix, idle)


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
                    found += waiting(use, events)
                mark = max([head, mark, *(event.resume for event in found)])
        except DirectoryInUse as error:
            if not told:
                use.out.note(f"{error.message}; waiting for it")
        else:
            pause = max(LOOK, 10 * (time.monotonic() - began))
            if not told:
                begun(use, prefix)
        told = True
        yield from found
        now = time.monotonic()
        last = now if found else last
        if idle is not None and now - last >= idle:
            raise nothing(idle)
        time.sleep(pause if idle is None else min(pause, max(0.0, last + idle - now)))
