"""`ckptmesh certify`: real kills and damage on the user's own disk, and a verdict."""

from __future__ import annotations

import contextlib
import random
import signal
import sys
import threading
from collections.abc import Iterator
from textwrap import wrap

import click

from ckptmesh.certification.place import Syncs, new_folder
from ckptmesh.certification.run import (
    ADVICE,
    FAIL,
    NOT_PROVEN,
    SECONDS,
    NurseryFailed,
    Options,
    Result,
    Show,
    certify_place,
    remove,
)
from ckptmesh.certification.worker import disk_layer
from ckptmesh.cli.common import DURATION, json_option
from ckptmesh.cli.output import Output
from ckptmesh.cli.text import many, size_text

STEPS = 1_000  # of the bar
WIDTH = 84  # columns of the report's texts
TOLD = 5  # failures told to people; --json has all of them
DAMAGED = 6  # the exit code of corruption and loss


@click.command("certify", epilog="Exit code 0: PASS, or WARN. 6: FAIL, something was lost, or "
                                 "damage went unnoticed. 7: too little room.")
@click.argument("directory", type=click.Path(path_type=str), metavar="DIR")
@click.option("--seconds", type=DURATION, default=SECONDS, metavar="SECONDS",
              help=f"About how long to take; the kills fill it.  [default: {SECONDS:.0f}]")
@click.option("--keep", is_flag=True, help="Keep the folder with stores and logs; so does a FAIL.")
@click.option("--seed", type=int, default=None,
              help="Choose values, kills and bits as another run did.  [default: by chance]")
@click.option("--disk", default="", metavar="MODULE:CLASS",
              help="For who writes a disk layer: do it all over this `ckptmesh.disk.Disk`, made "
                   "without arguments.")
@json_option
def certify(directory: str, seconds: float, keep: bool, seed: int | None, disk: str,
            out: Output) -> None:
    """Try out a disk before anything of value is kept on it.

    In a new folder in DIR, which is removed again: how long syncs take; a log cut at and around
    every frame and with bits flipped in each, all of which must be told; and, most of the time,
    stores that commit and are killed with SIGKILL at random moments: every commit that they
    acknowledged must be there, once. Nothing else in DIR is touched; a store there may be in use.

    \b
    Examples:
      ckptmesh certify .
      ckptmesh certify /var/lib/ckptmesh --seconds 10m
      ckptmesh certify /mnt/new --json | jq -r .verdict

    Killed processes do not prove power loss: what they had written survives in the page cache of
    the system. The report says what can be done about that.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does
    seed = random.SystemRandom().randrange(1_000_000) if seed is None else seed
    disk_layer(disk)  # a wrong name is told before anything is made
    folder = new_folder(directory)
    kept = False
    try:
        with shown() as show:
            result = certify_place(Options(directory, seconds, disk, seed), folder, show)
        kept = keep or result.verdict == FAIL
        report(result, out, kept)
    except NurseryFailed as failure:
        raise click.ClickException(str(failure)) from None
    finally:
        if not kept:
            remove(folder)
            if folder.exists():  # a disk that fails may not even let it go
                out.note(f"could not be removed: {folder}")
    if result.verdict == FAIL:
        raise click.exceptions.Exit(DAMAGED)


@contextlib.contextmanager
def shown() -> Iterator[Show]:
    """A bar on stderr where that is a terminal; elsewhere nothing."""
    if not sys.stderr.isatty():
        yield lambda part, what: None
        return
    with click.progressbar(length=STEPS, file=sys.stderr, show_eta=False, show_percent=True,
                           item_show_func=lambda what: what or "") as bar:
        def show(part: float, what: str) -> None:
            bar.update(max(0, int(part * STEPS) - bar.pos), what)

        yield show


# --- the report -------------------------------------------------------------------------------


def report(result: Result, out: Output, kept: bool) -> None:
    """What was done, the figures, the verdict, and what it does not prove."""
    document = result.document() | {"folder": str(result.folder) if kept else None}
    told = [*lines(result), ("not proven", NOT_PROVEN), ("what to do", next_step(result))]
    out.facts(document, (
        ("" if number else name, line) for name, text in told for number, line in enumerate(
            wrap(text, WIDTH, break_on_hyphens=False, break_long_words=False))))
    if kept:
        out.note(f"kept: {result.folder}")


def next_step(result: Result) -> str:
    """What the user can do now."""
    if result.verdict == FAIL:
        return (f"Keep nothing of value on this disk. What was found is in {result.folder}: "
                "`ckptmesh wal verify` looks into each store there.")
    return ADVICE


def lines(result: Result) -> Iterator[tuple[str, str]]:
    """The report for people, but for its last sentences."""
    yield "verdict", result.verdict
    for failure in result.failures[:TOLD]:
        yield "failed", failure
    if len(result.failures) > TOLD:
        yield "", f"and {many(len(result.failures) - TOLD, 'failure')} more; --json has all"
    for warning in result.warnings:
        yield "warning", warning
    place = result.place
    device = f" on {place.device}" if place.device else ""
    cache = f", write cache: {place.write_cache}" if place.write_cache else ""
    yield "place", (f"{place.directory}: {place.kind or 'an unknown file system'}{device}{cache}, "
                    f"{size_text(place.free)} free")
    if result.syncs:
        yield "syncs", sync_text(result.syncs)
    if result.damage and result.damage.frames:
        found = result.damage
        yield "damage", (f"{many(found.frames, 'frame')}: {many(found.cuts, 'cut')}, "
                         f"{many(found.flips, 'flipped bit')}; {found.corrupt:,} called CORRUPT, "
                         f"{found.torn:,} TORN, {found.shorter:,} cut between two frames, "
                         f"{found.harmless:,} in zeroes")
    if result.kills:
        dead = result.kills
        yield "kills", (f"{dead.kills:,} with SIGKILL, {dead.starting:,} of them during a start, "
                        f"in {many(dead.stores, 'store')}; recovered {dead.clean:,} CLEAN, "
                        f"{dead.torn:,} TORN")
        yield "commits", (f"{dead.acknowledged:,} acknowledged, {dead.lost:,} lost, "
                          f"{dead.twice:,} twice, {dead.wrong:,} wrong")
    yield "took", f"{result.seconds:.0f} s; seed {result.options.seed}"


def sync_text(syncs: Syncs) -> str:
    """`0.21 ms median, 0.60 ms p99, 4.10 ms at worst, of 1,000`"""
    return (f"{syncs.median * 1e3:.2f} ms median, {syncs.p99 * 1e3:.2f} ms p99, "
            f"{syncs.worst * 1e3:.2f} ms at worst, of {syncs.count:,}")
