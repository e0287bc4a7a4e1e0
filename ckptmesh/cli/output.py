"""How commands speak: data on stdout, everything else on stderr.

Rule 1: stdout carries what was asked for and nothing else, so that it can be piped.
Rule 2: with `--json` it carries JSON: one document, or for streams one a line (NDJSON).
Rule 3: boxes, colours and movement appear on a terminal only; a pipe gets plain columns.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import click

from ckptmesh.cli.forms import compact, indented
from ckptmesh.cli.text import plain, preview

_CHUNK = 500  # rows whose widths are settled together, so that a long table flows
_GAP = "  "
_ELASTIC, _LEAST = "value", 8  # the column that is cut to what room is left, but not below
_TEXT = ("key", "remark", "why", "in detail")  # columns that may go over several lines

Rows = Iterable[tuple[dict[str, Any], Sequence[str]]]


class Output:
    """Where a command says what it has found. `as_json`: whether data is written as JSON."""

    def __init__(self, as_json: bool = False) -> None:
        self.as_json = as_json

    @property
    def terminal(self) -> bool:
        """Whether a person reads stdout, and wants it for the eye."""
        return sys.stdout.isatty() and not self.as_json

    def text(self, line: str, document: Any = None) -> None:
        """One piece of data: the line for people and scripts, the document with `--json`."""
        if self.as_json:
            self.document(document)
        else:
            _write(plain(line) if self.terminal else line)

    def styled(self, *parts: tuple[str, str]) -> None:
        """One line of data in parts, each (text, colour or ""). It leaves at once."""
        _write(" ".join(_colour(plain(text) if self.terminal else text, name)
                        for text, name in parts if text))
        sys.stdout.flush()

    def document(self, document: Any) -> None:
        """One JSON document: over several lines for a terminal, on one for a program."""
        _write(indented(document) if sys.stdout.isatty() else compact(document))

    def line(self, document: Any) -> None:
        """One JSON document of a stream, on one line; it leaves at once."""
        _write(compact(document))
        sys.stdout.flush()

    def note(self, line: str) -> None:
        """Something for people, on stderr."""
        with contextlib.suppress(OSError):
            click.echo(plain(line), err=True)

    def table(self, columns: Sequence[str], rows: Rows) -> int:
        """A table, or with `--json` a line for each row's document. How many rows there were.

        `columns`: their heads; one that begins with ">" is of numbers, and stands to the right.
        """
        done = 0
        if self.as_json:
            for document, _ in rows:
                _write(compact(document))
                done += 1
            return done
        found = iter(rows)
        while chunk := [list(map(plain, cells)) for _, cells in islice(found, _CHUNK)]:
            if not (self.terminal and _pretty_table(columns, chunk)):
                _plain_table(columns, chunk, head=done == 0)
            done += len(chunk)
        return done

    def facts(self, document: dict[str, Any], lines: Iterable[tuple[str, str]]) -> None:
        """Facts about one thing: names and values in two columns, or the document."""
        if self.as_json:
            self.document(document)
            return
        pairs = list(lines)
        width = max((len(name) for name, _ in pairs), default=0)
        for name, value in pairs:
            _write(f"{name.ljust(width)}{_GAP}{plain(value)}".rstrip())


def _write(text: str) -> None:
    sys.stdout.write(text + "\n")


# --- tables -----------------------------------------------------------------------------------


def _plain_table(columns: Sequence[str], rows: Sequence[Sequence[str]], head: bool) -> None:
    names = [column.lstrip(">").upper() for column in columns]
    widths = [max(map(len, column)) for column in zip(names, *rows, strict=True)]
    for row in [names, *rows] if head else rows:
        cells = (cell.rjust(width) if column[0] == ">" else cell.ljust(width)
                 for cell, width, column in zip(row, widths, columns, strict=True))
        _write(_GAP.join(cells).rstrip())


def _pretty_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> bool:
    """Whether rich was there to draw it."""
    try:
        from rich.box import SIMPLE_HEAD
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        return False
    console = Console(highlight=False)
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
    shown = [index for index in range(len(columns)) if any(row[index] for row in rows)]
    for index in shown:
        column = columns[index]
        table.add_column(column.lstrip(">"), justify="right" if column[0] == ">" else "left",
                         overflow="fold", no_wrap=column not in _TEXT)
    room = console.width - 3 * (len(shown) - 1) - sum(
        max(len(columns[index].lstrip(">")), *(len(row[index]) for row in rows))
        for index in shown if columns[index] != _ELASTIC)
    for row in rows:
        table.add_row(*(Text(preview(row[index], max(room, _LEAST))
                             if columns[index] == _ELASTIC else row[index]) for index in shown))
    console.print(table)
    return True


def width() -> int:
    """Columns of the terminal."""
    return shutil.get_terminal_size().columns


def _colour(text: str, name: str) -> str:
    if not name or os.environ.get("NO_COLOR") or not sys.stdout.isatty():
        return text
    return click.style(text, fg=name)


# --- progress ---------------------------------------------------------------------------------


@contextlib.contextmanager
def progress() -> Iterator[Callable[[str, int, int | None], None]]:
    """A function that shows how far something is, on a terminal: a bar with rich, else a line that
    is written over. It is called with (what is done, how many, of how many or None)."""
    if not sys.stderr.isatty():
        yield lambda what, done, total: None
        return
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    except ImportError:
        yield lambda what, done, total: click.echo(
            f"\r{what}: {done:,}" + (f" of {total:,}" if total else ""), nl=False, err=True)
        click.echo(err=True)
        return
    with Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
                  console=Console(stderr=True), transient=True) as bar:
        tasks: dict[str, Any] = {}

        def show(what: str, done: int, total: int | None) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done, total=total)

        yield show


# --- waiting ----------------------------------------------------------------------------------


@contextlib.contextmanager
def waiting(what: str) -> Iterator[None]:
    """While the block runs, show on a terminal that something is under way; elsewhere nothing."""
    if not sys.stderr.isatty():
        yield
        return
    try:
        from rich.console import Console
    except ImportError:
        click.echo(f"{what} …", err=True)
        yield
        return
    with Console(stderr=True).status(what):
        yield
