"""`ckptmesh demo`: a real cluster, killed at random; nothing is lost, nothing is doubled."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import click

import ckptmesh
from ckptmesh.cli.common import DURATION, json_option
from ckptmesh.cli.output import Output
from ckptmesh.cli.text import plain
from ckptmesh.config import run_folder
from ckptmesh.demonstration.run import Demo, DemoFailed, Options, Progress, Result, Show

PACKAGE_LOG = Path("/var/log/dpkg.log")
INVENTED = 5_000  # orders, where there is no package log
RECORDS = 100_000  # default: more would not pass through in a minute on a slow machine
COLOURS = {"SIGKILL": "red", "resumed": "green", "ended with": "yellow"}  # of lines on a terminal
PLAIN_EVERY = 2.0  # seconds between two lines about progress where there is no terminal


@click.command("demo", epilog="Exit code 0: every record was counted exactly once. 1: it was not.")
@click.option("--input", "source", metavar="FILE",
              type=click.Path(exists=True, dir_okay=False, readable=True, path_type=Path),
              help="Text file with a record a line.  [default: /var/log/dpkg.log, else invented "
                   "orders]")
@click.option("--naive", is_flag=True,
              help="Run the pipeline that most people would write first, and see it fail.")
@click.option("--kills", type=click.IntRange(0, 200), default=12, show_default=True,
              help="How many times to kill something; --naive adds some until it shows.")
@click.option("--seconds", type=DURATION, default=18.0, metavar="SECONDS",
              help="How long the producer takes for its records; a second for each kill at "
                   "least.  [default: 18]")
@click.option("--records", type=click.IntRange(min=1), default=RECORDS, show_default=True,
              help="Take no more records than this from the input.")
@click.option("--seed", type=int, default=None,
              help="Choose the same kills as another run did.  [default: by chance]")
@click.option("--keep", is_flag=True, help="Keep the directory with log, sinks and outputs.")
@json_option
def demo(source: Path | None, naive: bool, kills: int, seconds: float, records: int,
         seed: int | None, keep: bool, out: Output) -> None:
    """Run a real cluster, kill it at random, and show that nothing is lost.

    A producer appends records to a log. A pipeline adds them up in SQLite and commits its
    checkpoint; a second pipeline starts whenever that commit is published; a monitor follows all
    publications. Broker, store and pipelines are real processes; they are killed with SIGKILL at
    random moments and started again. At the end, the input is counted again, independently.

    \b
      ckptmesh demo                       about 20 seconds
      ckptmesh demo --naive               the same kills, without the two rules that help: it fails
      ckptmesh demo --seconds 5 --kills 4
      ckptmesh demo --input orders.csv --keep
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does
    seed = random.SystemRandom().randrange(1_000_000) if seed is None else seed
    folder = Path(tempfile.mkdtemp(prefix="ckptmesh-demo-"))
    try:
        count, what = take_input(source, folder / "input.txt", records)
        out.note(f"input: {what}; seed {seed}")
        with shown(out) as show:
            result = Demo(Options(folder, count, seconds, kills, seed, naive), show).run()
    except (KeyboardInterrupt, click.UsageError):
        _leave(folder, keep, out)
        raise
    except DemoFailed as failure:
        raise click.ClickException(f"{failure}; everything is in {folder}") from None
    # What fails unexpectedly is kept, so that it can be found out.
    keep = keep or not (naive or result.ok)
    report(result, out, what=what, seed=seed, naive=naive, kept=folder if keep else None)
    _leave(folder, keep, out)
    if not result.ok:
        raise click.exceptions.Exit(1)


def _leave(folder: Path, keep: bool, out: Output) -> None:
    if keep:
        out.note(f"kept: {folder}")
    else:
        # The sockets are elsewhere where the path of the folder is too long for one.
        for path in (run_folder(str(folder / "store")), folder):
            shutil.rmtree(path, ignore_errors=True)


# --- the input --------------------------------------------------------------------------------


def take_input(source: Path | None, target: Path, most: int) -> tuple[int, str]:
    """Copy the records, since a log may grow while the demo runs. (how many, in words)."""
    if source is None and os.access(PACKAGE_LOG, os.R_OK) and PACKAGE_LOG.stat().st_size:
        source = PACKAGE_LOG
    if source is None:
        invented = min(INVENTED, most)
        target.write_text("".join(order(number) for number in range(invented)))
        return invented, f"{invented:,} invented orders"
    count = 0
    with source.open("rb") as lines, target.open("wb") as copy:
        for line in islice(lines, most):
            copy.write(line)
            count += 1
        more = bool(lines.read(1))
    if not count:
        raise click.UsageError(f"{source} is empty: there are no records in it")
    first = f"the first {count:,} records of" if more else f"{count:,} records of"
    return count, f"{first} {source}"


def order(number: int) -> str:
    """An invented order, as a line."""
    chance = random.Random(number)
    article = chance.choice(["apples", "bread", "cheese", "dates", "eggs"])
    return f"2025-01-01 {article} {chance.randint(1, 12)} for customer {chance.randint(1, 999)}\n"


# --- while it runs ----------------------------------------------------------------------------


class PlainShow:
    """Lines, each with the seconds since the start, on stderr."""

    def __init__(self, out: Output) -> None:
        self._out = out
        self._began = time.monotonic()
        self._next = self._began + PLAIN_EVERY

    def tell(self, line: str) -> None:
        self._out.note(f"{time.monotonic() - self._began:5.1f} s  {line}")

    def progress(self, now: Progress) -> None:
        if time.monotonic() >= self._next:
            self._next += PLAIN_EVERY
            self.tell(f"{percent(now):3.0f} %  {figures(now)}")


class RichShow:
    """A bar at the foot of the terminal, and the lines above it."""

    def __init__(self, bar: Any, task: Any) -> None:
        self._bar, self._task = bar, task
        self._began = time.monotonic()

    def tell(self, line: str) -> None:
        colour = next((colour for word, colour in COLOURS.items() if word in line), "default")
        # As plain text: what a process prints must be read neither as markup nor as commands.
        self._bar.console.print(f"{time.monotonic() - self._began:5.1f} s  {plain(line)}",
                                markup=False, highlight=False, style=colour)

    def progress(self, now: Progress) -> None:
        self._bar.update(self._task, completed=min(now.totals, now.sizes),
                         total=now.records, figures=figures(now))


@contextlib.contextmanager
def shown(out: Output) -> Iterator[Show]:
    """Rich on a terminal, where it is installed; plain lines elsewhere."""
    if sys.stderr.isatty():
        try:
            from rich.console import Console
            from rich.progress import BarColumn, TaskProgressColumn
            from rich.progress import Progress as Bar
        except ImportError:
            pass
        else:
            columns = (BarColumn(), TaskProgressColumn(), "{task.fields[figures]}")
            with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
                yield RichShow(bar, bar.add_task("", total=None, figures=""))
            return
    yield PlainShow(out)


def percent(now: Progress) -> float:
    """How much is through both pipelines."""
    return 100 * min(now.totals, now.sizes) / now.records


def figures(now: Progress) -> str:
    """`2,112 of 4,891 records, revision 431, 5 kills, 3 resumes`"""
    return (f"{min(now.totals, now.sizes):,} of {now.records:,} records, revision "
            f"{now.revision:,}, {now.kills} kills, {now.resumes} resumes")


# --- the end ----------------------------------------------------------------------------------


def report(result: Result, out: Output, *, what: str, seed: int, naive: bool,
           kept: Path | None) -> None:
    """The table, the verdict, and what to look at next."""
    if out.as_json:
        out.document(document(result, what, seed, naive, kept))
        return
    now, totals, sizes = result.progress, result.totals, result.sizes
    kinds = ", ".join(f"{kind} {count}" for kind, count in result.kills.items() if count)
    rows = [
        ("kills", f"{now.kills}", kinds or "none"),
        ("resumes", f"{now.resumes}",
         f"{now.mended} with the sink ahead of its checkpoint, which was mended"),
        ("revisions", f"{now.revision:,}",
         f"the monitor missed {result.monitor.missed:,}, saw {result.monitor.twice:,} twice"),
        ("records", f"{now.records:,}", what),
        ("lost", f"{result.lost:,}", f"{totals.lost:,} in totals.db, {sizes.lost:,} in sizes.db"),
        ("doubled", f"{result.doubled:,}",
         f"{totals.doubled:,} in totals.db, {sizes.doubled:,} in sizes.db"),
    ]
    if totals.wrong or sizes.wrong:
        rows.append(("wrong", f"{totals.wrong + sizes.wrong:,}", "rows that match no record"))
    out.table(("what", ">count", "in detail"), [({}, row) for row in rows])
    out.text("")
    out.text(verdict(result, naive))
    out.text("")
    out.text("What to look at next:")
    for line in next_steps(naive, result.ok, seed, kept):
        out.text(f"  {line}")


def verdict(result: Result, naive: bool) -> str:
    """One sentence."""
    found = (f"{result.progress.records:,} records, {result.progress.kills} kills in "
             f"{result.seconds:.0f} s: {result.lost:,} lost, {result.doubled:,} doubled")
    if result.failure:
        return f"FAILED: {found}; {result.failure}."
    if naive:
        return f"{found}." + (" This time it was lucky." if result.ok else
                              " That is what the naive way does.")
    return f"{found}." if result.ok else f"FAILED: {found}."


def next_steps(naive: bool, ok: bool, seed: int, kept: Path | None) -> list[str]:
    """Commands and files, each with a word about it."""
    code = Path(ckptmesh.__file__).resolve().parent.parent / "demo"
    steps = [(f"ckptmesh demo --seed {seed}{' --naive' if naive else ''}", "the same kills again")]
    if naive:
        steps += [("ckptmesh demo", "the pipeline that survives them"),
                  (f"diff {code / 'naive.py'} {code / 'pipeline.py'}", "what it does better")]
    elif ok:
        steps += [(f"less {code / 'pipeline.py'}", "the pipeline that did this, made to be copied"),
                  ("ckptmesh demo --naive", "the same without its rules: records are doubled"),
                  ("ckptmesh up", "a store of your own; then try `python -m demo.producer`")]
    if kept:
        steps += [(f"ls {kept / 'output'}", "what each process has printed"),
                  (f"ckptmesh wal verify {kept / 'store'}", "check the log")]
    else:
        steps.append(("ckptmesh demo --keep", "leaves log, sinks and outputs behind"))
    width = max(len(command) for command, _ in steps if len(command) <= 50)  # paths may be long
    return [f"{command:{width}}  {why}" for command, why in steps]


def document(result: Result, what: str, seed: int, naive: bool, kept: Path | None
             ) -> dict[str, Any]:
    """The result for programs."""
    now = result.progress
    return {
        "ok": result.ok, "naive": naive, "seed": seed, "input": what, "records": now.records,
        "lost": result.lost, "doubled": result.doubled,
        "wrong": result.totals.wrong + result.sizes.wrong,
        "kills": {"total": now.kills, **result.kills},
        "resumes": now.resumes, "mended": now.mended, "revisions": now.revision,
        "monitor": {"missed": result.monitor.missed, "twice": result.monitor.twice},
        "seconds": round(result.seconds, 1), "failure": result.failure or None,
        "directory": str(kept) if kept else None,
    }
