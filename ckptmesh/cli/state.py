"""`ckptmesh state`: read and write checkpoints."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from itertools import islice
from typing import Any

import click

from ckptmesh import values
from ckptmesh.cli.cleanup import cleanup
from ckptmesh.cli.common import (
    DURATION,
    NotFound,
    Read,
    Use,
    client_options,
    confirm,
    dry_run_option,
    yes_option,
)
from ckptmesh.cli.completion import complete_keys
from ckptmesh.cli.diff import diff
from ckptmesh.cli.forms import (
    bare,
    compact,
    indented,
    key_and_revision,
    kind_of,
    revision_of,
    to_json,
    value_of,
)
from ckptmesh.cli.lag import lag
from ckptmesh.cli.output import Rows
from ckptmesh.cli.rewind import reason_of, rewind
from ckptmesh.cli.text import preview, size_text, span_text
from ckptmesh.cli.transfer import AT, digest, export, import_
from ckptmesh.cli.update import update
from ckptmesh.cli.validate import repair, validate
from ckptmesh.cli.watch import watch
from ckptmesh.clock import from_datetime, iso
from ckptmesh.errors import Compacted, InvalidPayload, InvalidValue, Misuse
from ckptmesh.features.workers import PipelineInfo
from ckptmesh.limits import POSITION_MAX, POSITION_MIN, VALUE_BYTES
from ckptmesh.views import Checkpoint

KEY = click.argument("key", shell_complete=complete_keys)


@click.group("state")
def state() -> None:
    """Read and write checkpoints.

    \b
    Examples:
      ckptmesh state set orders 42
      ckptmesh state get orders
      ckptmesh state list
    """


# --- reading ----------------------------------------------------------------------------------


@state.command("get", short_help="Print a value, and nothing else.")
@KEY
@AT
@click.option("--default", metavar="VALUE", help="Print this when there is no such key.")
@click.option("--raw", is_flag=True, help="Write a bytes value as its bytes, nothing added.")
@client_options
def get(use: Use, key: str, at: int | datetime | str | None, default: str | None, raw: bool
        ) -> None:
    """Print the value of KEY, and nothing else.

    A string is printed as it is, anything else as JSON. KEY@REVISION names a version. With --json:
    the whole checkpoint. Exit code 3 when there is no such key.

    \b
    Examples:
      ckptmesh state get orders
      ckptmesh state get orders@7
      ckptmesh state get orders --at 10m
      offset=$(ckptmesh state get orders --default 0)
    """
    found = _find(use, key, at)
    if found is None and default is not None:
        use.out.text(default, {"key": key, "value": to_json(value_of(default)), "default": True})
        return
    if found is None:
        raise _absent(key, at)
    if raw:
        _write_raw(found)
    else:
        use.out.text(bare(found.value), document_of(found))


@state.command("show", short_help="Print all that is known about keys.")
@click.argument("key", nargs=-1, required=True, shell_complete=complete_keys)
@AT
@client_options
def show(use: Use, key: tuple[str, ...], at: int | datetime | str | None) -> None:
    """Print all that is known about each KEY: value, revisions, times, position.

    \b
    Examples:
      ckptmesh state show orders
      ckptmesh state show orders@7 --json
    """
    missing = []
    for number, name in enumerate(key):
        found = _find(use, name, at)
        if found is None:
            missing.append(name)
        elif use.out.as_json:
            use.out.line(document_of(found))
        else:
            if number:
                click.echo()
            use.out.facts({}, _facts(found))
    if missing:
        raise _absent(missing[0], at)


@state.command("list", short_help="List checkpoints under a prefix.")
@click.argument("prefix", default="", shell_complete=complete_keys)
@AT
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Stop after so many.")
@click.option("--active", is_flag=True,
              help="Instead, the pipelines at which somebody is at work: workers, runs, locks.")
@client_options
def list_(use: Use, prefix: str, at: int | datetime | str | None, limit: int | None, active: bool
          ) -> None:
    """List checkpoints under PREFIX (whole segments: orders is not orders2), in key order.

    \b
    Examples:
      ckptmesh state list
      ckptmesh state list orders --limit 20
      ckptmesh state list --active
      ckptmesh state list --json | jq -r .key
    """
    with use.connect(reading=True) as mesh:
        if active:
            _list_active(use, islice(mesh.pipelines(), limit), prefix)
            return
        now = datetime.now(UTC)
        # Packed, so that one value that nobody can read hides no other key.
        found = mesh.list(prefix, packed=True) if at is None else mesh.list(
            prefix, at=at, packed=True)
        count = use.out.table(
            ("key", ">revision", ">version", ">size", ">age", "expires in", "value"),
            _rows(use, map(_readable, islice(found, limit)), lambda each: _list_row(each, now)),
        )
    if not count and not use.out.as_json:
        use.out.note(f"no keys under {prefix}" if prefix else "no keys yet")


def _list_active(use: Use, found: Iterable[PipelineInfo], prefix: str) -> None:
    rows = (({"pipeline": each.name, "workers": each.workers, "locks": each.locks},
             (each.name, str(each.workers), str(each.locks)))
            for each in found if prefix in ("", each.name))
    if not use.out.table(("pipeline", ">workers", ">locks"), rows) and not use.out.as_json:
        use.out.note("nobody is at work" + (f" at {prefix}" if prefix else ""))


@state.command("history", short_help="List the versions of a key, newest first.")
@KEY
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True, metavar="N",
              help="Stop after so many.")
@client_options
def history(use: Use, key: str, limit: int) -> None:
    """List the versions of KEY that the store still keeps, newest first.

    \b
    Examples:
      ckptmesh state history orders
      ckptmesh state history orders --limit 1 --json
    """
    with use.connect(reading=True) as mesh:
        now = datetime.now(UTC)
        found = [*map(_readable, islice(mesh.history(key, packed=True), limit))]
        if not found:
            raise _absent(key, None)
        columns = (">revision", ">version", "time", ">age", ">position", "value")
        reasons = {each.revision: reason_of(mesh, each) for each in found if each.rewind}
        use.out.table(
            (*columns, "rewound because") if reasons else columns,
            _rows(use, found, lambda each: (
                *_history_row(each, now), *([reasons.get(each.revision, "")] if reasons else ()))))


# --- writing ----------------------------------------------------------------------------------


class _Negative(click.Command):
    """A command that takes a negative number for a value and not for an option."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.ignore_unknown_options = any(map(_NEGATIVE.fullmatch, args))
        return super().parse_args(ctx, args)


_NEGATIVE = re.compile(r"-[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?")


@state.command("set", cls=_Negative, short_help="Store a value, on disk.")
@KEY
@click.argument("value")
@click.option("--string", is_flag=True, help="VALUE is a string, whatever it looks like.")
@click.option("--raw", is_flag=True, help="Store the bytes of stdin as they are; VALUE is -.")
@click.option("--expect", type=Read(revision_of, "revision"), metavar="REV",
              help="Only if KEY stands at this revision; 0: only if there is none. Else exit 4.")
@click.option("--ttl", type=DURATION, metavar="DURATION",
              help="It goes by itself after this: 90s, 1h.")
@click.option("--position", type=click.IntRange(POSITION_MIN, POSITION_MAX), metavar="N",
              help="Progress as a number, beside the value.")
@client_options
def set_(use: Use, key: str, value: str, string: bool, raw: bool, expect: int | None,
         ttl: float | None, position: int | None) -> None:
    """Store VALUE under KEY and wait until it is on disk. Prints KEY@REVISION.

    VALUE is JSON if it parses, else a string; the type is told on stderr. "-" reads stdin. What
    JSON lacks: {"$bytes": "aGk="}, {"$datetime": "2024-05-01T10:30:00+02:00"}, {"$decimal":
    "1.50"}, {"$uuid": …}, {"$date": …}, {"$time": …}, {"$tuple": […]}, {"$set": […]},
    {"$float": "Infinity"}; a plain map of that look: {"$map": {…}}.

    \b
    Examples:
      ckptmesh state set orders 42
      ckptmesh state set orders '{"offset": 42}' --position 42 --ttl 7d
      rev=$(ckptmesh state set orders 43)
      ckptmesh state set orders 44 --expect "$rev"
      date | ckptmesh state set orders/date - --string
    """
    stored = _value_from(value, string, raw)
    size = len(values.pack(stored))  # what cannot be stored is told before a store is looked for
    options: dict[str, Any] = {"ttl": ttl, "position": position}
    if expect is not None:
        options["expect"] = expect
    with use.connect() as mesh:
        receipt = use.settled(lambda: mesh.commit(key, stored, **options))
    use.out.text(f"{receipt.key}@{receipt.revision}", {
        "key": receipt.key, "revision": receipt.revision, "epoch": receipt.epoch,
        "version": receipt.version, "time": iso(receipt.micros), "type": kind_of(stored),
        "size": size,
    })
    use.out.note(f"stored: {kind_of(stored)}, {size_text(size)}, version {receipt.version}")


@state.command("delete", short_help="Remove a key.")
@KEY
@click.option("--expect", type=Read(revision_of, "revision"), metavar="REV",
              help="Only if KEY stands at this revision. Else exit 4.")
@yes_option
@dry_run_option
@client_options
def delete(use: Use, key: str, expect: int | None, yes: bool, dry_run: bool) -> None:
    """Remove KEY. Asks first; what is removed is shown.

    Without --expect it is removed only as it was when you were asked. Exit code 3 when there is no
    such key, 4 when somebody else has changed it.

    \b
    Examples:
      ckptmesh state delete orders
      ckptmesh state delete orders --yes --expect 7
    """
    with use.connect() as mesh:
        found = mesh.get(key)
    if found is None:
        raise _absent(key, None)
    shown = f"{key}@{found.revision} ({kind_of(found.value)}: {preview(bare(found.value))})"
    document = {"key": key, "revision": found.revision, "deleted": not dry_run}
    if dry_run:
        use.out.text(f"would delete {key}@{found.revision}", document)
        return
    confirm(f"Delete {shown}?", yes)
    wanted = found.revision if expect is None else expect
    with use.connect() as mesh:  # not held while the user thinks
        use.settled(lambda: mesh.delete(key, expect=wanted))
    use.out.text(f"{key}@{found.revision}", document)
    use.out.note(f"deleted {shown}")


for _command in (watch, export, import_, digest, diff, update, cleanup, validate, repair, rewind,
                 lag):
    state.add_command(_command)


# --- values in and out ------------------------------------------------------------------------


def _value_from(text: str, string: bool, raw: bool) -> Any:
    if string and raw:
        raise Misuse("--string and --raw exclude each other")
    if raw and text != "-":
        raise Misuse("--raw reads stdin: write - for VALUE")
    if text != "-":
        return text if string else value_of(text)
    data = sys.stdin.buffer.read(4 * VALUE_BYTES)  # JSON may be longer than what it packs into
    if raw:
        return data
    try:
        found = data.decode()
    except UnicodeDecodeError as error:
        raise InvalidValue(f"stdin is not UTF-8 text: byte {error.start}",
                           hint="store bytes with --raw") from None
    found = found.removesuffix("\n")  # `echo 42 |` and files end with one that nobody means
    return found if string else value_of(found)


def _write_raw(found: Checkpoint) -> None:
    if type(found.value) is not bytes:
        raise Misuse(f"{found.key} holds no bytes but a value of type {kind_of(found.value)}",
                     hint="leave --raw away")
    sys.stdout.flush()
    sys.stdout.buffer.write(found.value)
    sys.stdout.buffer.flush()


def _find(use: Use, text: str, at: int | datetime | str | None) -> Checkpoint | None:
    """The checkpoint that a KEY or KEY@REVISION names."""
    key, revision = key_and_revision(text) if at is None else (text, None)
    with use.connect(reading=True) as mesh:
        if at is None and revision is None:
            return mesh.get(key)
        try:
            return mesh.get(key, at=revision if at is None else at)
        except Compacted:
            # Some versions of each key are kept for longer than cuts of the whole store.
            for each in mesh.history(key) if revision is not None else ():
                if each.revision == revision:
                    return each
            raise


def _absent(key: str, at: int | datetime | str | None) -> NotFound:
    when = "" if at is None else f" at {at}"
    return NotFound(f"there is no {key}{when}",
                    hint=f"list what there is: ckptmesh state list {key.partition('/')[0]}"
                    if "/" in key else "list what there is: ckptmesh state list")


# --- how a checkpoint is shown ----------------------------------------------------------------


def document_of(found: Checkpoint) -> dict[str, Any]:
    """A checkpoint as JSON."""
    return {
        "key": found.key, "value": to_json(found.value), "type": kind_of(found.value),
        "size": _size(found.value), "revision": found.revision, "epoch": found.epoch,
        "version": found.version, "create_revision": found.create_revision,
        "time": iso(found.micros),
        "expires_at": iso(from_datetime(found.expires_at)) if found.expires_at else None,
        "position": found.position, "head": found.head,
        "sources": [list(source) for source in found.sources], "lease": found.is_lease,
    }


def _rows(
    use: Use, found: Iterable[Checkpoint], cells: Callable[[Checkpoint], tuple[str, ...]]
) -> Rows:
    """What a table needs of each: a document or cells, not both."""
    for each in found:
        yield (document_of(each), ()) if use.out.as_json else ({}, cells(each))


def _readable(found: Checkpoint) -> Checkpoint:
    """With its value, or with its bytes where nobody can read them."""
    try:
        return replace(found, value=values.unpack(found.value.data))
    except InvalidPayload:
        return found


def _size(value: Any) -> int:
    return len(value.data if isinstance(value, values.Packed) else values.pack(value))


def _facts(found: Checkpoint) -> Iterator[tuple[str, str]]:
    now = datetime.now(UTC)
    shown = indented(to_json(found.value))
    yield "key", found.key
    if "\n" not in shown:
        yield "value", shown
    yield "type", f"{kind_of(found.value)}, {size_text(_size(found.value))}"
    yield "revision", f"{found.revision} of epoch {found.epoch}"
    yield "version", f"{found.version}, created at revision {found.create_revision}"
    yield "time", f"{iso(found.micros)}, {_age(found, now)} ago"
    if found.expires_at is not None:
        what = "lease until" if found.is_lease else "expires"
        yield what, f"{iso(from_datetime(found.expires_at))}, in {_left(found, now)}"
    if found.position is not None:
        yield "position", str(found.position)
    if found.head is not None:
        lag = "" if found.position is None else f", {found.head - found.position} to go"
        yield "head", f"{found.head}{lag}"
    if found.sources:
        yield "made from", ", ".join(f"{key}@{revision}" for key, revision in found.sources)
    if "\n" in shown:
        yield "value", ""
        for line in shown.split("\n"):
            yield "", line


def _list_row(found: Checkpoint, now: datetime) -> tuple[str, ...]:
    return (found.key, str(found.revision), str(found.version),
            size_text(_size(found.value)), _age(found, now), _left(found, now),
            preview(compact(to_json(found.value))))


def _history_row(found: Checkpoint, now: datetime) -> tuple[str, ...]:
    position = "" if found.position is None else str(found.position)
    return (str(found.revision), str(found.version), iso(found.micros), _age(found, now),
            position, preview(compact(to_json(found.value))))


def _age(found: Checkpoint, now: datetime) -> str:
    return span_text((now - found.time).total_seconds())


def _left(found: Checkpoint, now: datetime) -> str:
    return "" if found.expires_at is None else span_text(
        round((found.expires_at - now).total_seconds()))
