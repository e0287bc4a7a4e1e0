"""`ckptmesh state diff`: what differs between two moments, stores or exports."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import click

from ckptmesh.cli.common import Use, client_options
from ckptmesh.cli.forms import compact, cut_of, to_json
from ckptmesh.cli.output import Rows
from ckptmesh.cli.text import preview
from ckptmesh.errors import Misuse
from ckptmesh.features.differences import Difference, differences, rows_in, rows_of
from ckptmesh.features.portable import Reader
from ckptmesh.views import Checkpoint

DIFFERENT = 1
_SHOWN = 40  # characters of each value in the table


@click.command("diff", short_help="What differs between two moments, stores or exports.")
@click.argument("before")
@click.argument("after", default="now")
@click.option("--prefix", default="", metavar="PREFIX", help="Only what is under this.")
@client_options
@click.pass_context
def diff(ctx: click.Context, use: Use, before: str, after: str, prefix: str) -> None:
    """Print what differs between BEFORE and AFTER: keys added, removed, changed. By value, position
    and head; leases do not count.

    Each is a revision (7), a time (2024-05-01T10:30Z), how long ago (1h), a savepoint or `now`, of
    the store at --url; or the URL of another store; or an export's file. Without AFTER: now.
    Exit code 0 when nothing differs, 1 when something does.

    \b
    Examples:
      ckptmesh state diff 1h
      ckptmesh state diff 120 130 --prefix orders
      ckptmesh state diff backup.jsonl.gz --json | jq -r 'select(.change == "removed") | .key'
      ckptmesh state diff file:./old tcp://store:7701
    """
    counts = {"added": 0, "removed": 0, "changed": 0}
    with contextlib.ExitStack() as stack:
        sides = _Sides(use, stack, prefix)
        use.out.table(("change", "key", "before", "after"),
                      _rows(differences(sides.rows(before), sides.rows(after)), counts))
    use.out.note(", ".join(f"{count:,} {kind}" for kind, count in counts.items() if count)
                 or "nothing differs")
    if any(counts.values()):
        ctx.exit(DIFFERENT)


class _Sides:
    """What the arguments name; the store at --url is opened once for both, since a directory is
    held by one at a time."""

    def __init__(self, use: Use, stack: contextlib.ExitStack, prefix: str) -> None:
        self._use, self._stack, self._prefix = use, stack, prefix
        self._store: Any = None

    def rows(self, text: str) -> Iterator[Checkpoint]:
        """The checkpoints that an argument names. Raises `Misuse`, and what reading them raises."""
        if "://" in text or text.startswith("file:"):
            other = Use(text, self._use.timeout, self._use.out)
            return rows_of(self._stack.enter_context(other.connect(existing=True)), self._prefix)
        if os.path.isfile(text):
            stream = self._stack.enter_context(open(text, "rb"))  # noqa: SIM115
            for _ in Reader(stream, text):  # all of it is checked before a line is believed
                pass
            return rows_in(Reader(stream, text), self._prefix)
        if os.sep in text:
            raise Misuse(f"there is no file {text}",
                         hint="a store is named by its URL: file:./state")
        at = None if text == "now" else cut_of(text)
        if self._store is None:
            self._store = self._stack.enter_context(self._use.connect(existing=True))
        return rows_of(self._store, self._prefix, at=at)


def _rows(found: Iterator[Difference], counts: dict[str, int]) -> Rows:
    for each in found:
        counts[each.kind] += 1
        document = {"change": each.kind, "key": each.key, "before": document_of(each.before),
                    "after": document_of(each.after)}
        yield document, (each.kind, each.key, _cell(each.before), _cell(each.after))


def document_of(found: Checkpoint | None) -> dict[str, Any] | None:
    """A checkpoint, whose value is `Packed`, as JSON."""
    if found is None:
        return None
    return {"value": shown(found), "revision": found.revision, "position": found.position,
            "head": found.head}


def shown(found: Checkpoint) -> Any:
    """Its value for people, `Packed` or not."""
    return to_json(found.value)


def _cell(found: Checkpoint | None) -> str:
    if found is None:
        return ""
    place = "" if found.position is None else f" at {found.position}"
    head = "" if found.head is None else f" of {found.head}"
    return preview(compact(shown(found)), _SHOWN) + place + head
