"""`ckptmesh state update`: change fields of a map, and nothing else."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import click

from ckptmesh import values
from ckptmesh.cli.common import NotFound, Use, client_options
from ckptmesh.cli.completion import complete_keys
from ckptmesh.cli.forms import compact, from_json, kind_of, to_json, value_of
from ckptmesh.clock import iso
from ckptmesh.errors import Conflict, InvalidValue, Misuse
from ckptmesh.views import Checkpoint, Receipt

_FIELD = re.compile(r"([^=:]+)(:?=)(.*)", re.S)


@click.command("update", short_help="Change fields of a map, by compare-and-set.")
@click.argument("key", shell_complete=complete_keys)
@click.argument("field", nargs=-1, metavar="NAME=TEXT|NAME:=JSON…")
@click.option("--remove", multiple=True, metavar="NAME", help="Remove this field; may be repeated.")
@click.option("--create", is_flag=True, help="Begin with an empty map where there is no KEY.")
@client_options
def update(use: Use, key: str, field: tuple[str, ...], remove: tuple[str, ...], create: bool
           ) -> None:
    """Set fields of the map that KEY holds: NAME=TEXT to a string, NAME:=JSON to a value. All else
    stays as it is, position and expiry too. Prints KEY@REVISION.

    It is read, changed and committed only if nobody was faster, else again. Exit code 3 when there
    is no KEY, 2 when it holds no map.

    \b
    Examples:
      ckptmesh state update orders status=done count:=3
      ckptmesh state update orders 'tags:=["eu", "late"]' --remove error
    """
    changes = dict(map(_change, field))
    twice = changes.keys() & set(remove)
    if twice or not (changes or remove):
        raise Misuse(f"{min(twice)} is both set and removed" if twice else "change which field?",
                     hint="ckptmesh state update KEY NAME=TEXT NAME:=JSON --remove NAME")

    def changed(found: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in {**found, **changes}.items() if name not in remove}

    receipt, value = _updated(use, key, changed, create)
    use.out.text(f"{key}@{receipt.revision}", {
        "key": key, "revision": receipt.revision, "version": receipt.version,
        "time": iso(receipt.micros), "value": to_json(value)})
    use.out.note(compact(to_json(value)))


def _change(text: str) -> tuple[str, Any]:
    found = _FIELD.fullmatch(text)
    if found is None:
        raise Misuse(f"{text!r} is no change of a field", hint="write NAME=TEXT, or NAME:=JSON")
    name, sign, rest = found.groups()
    if sign == "=":
        return name, rest
    value = value_of(rest)
    if type(value) is str and not rest.lstrip().startswith('"'):
        raise Misuse(f"{rest!r} is no JSON", hint=f"write {name}={rest} for a string")
    return name, from_json(to_json(value))


def _updated(use: Use, key: str, changed: Callable[[dict[str, Any]], dict[str, Any]], create: bool
             ) -> tuple[Receipt, dict[str, Any]]:
    """Read, change, commit, as often as somebody else is faster and there is time."""
    until = time.monotonic() + use.timeout
    while True:
        with use.connect(reading=not create) as mesh:
            found = mesh.get(key, packed=True)
            if found is None and not create:
                raise NotFound(f"there is no {key}", hint="add --create to make it")
            value = changed(_map_of(key, found))
            try:
                receipt = use.settled(lambda: mesh.commit(  # called at once
                    key, value, expect=found, **_kept(found)))  # noqa: B023
                return receipt, value
            except Conflict:
                if time.monotonic() >= until:
                    raise


def _map_of(key: str, found: Checkpoint | None) -> dict[str, Any]:
    """The map that stands there. Raises `InvalidValue` where it is none, or cannot be kept."""
    if found is None:
        return {}
    if found.is_lease:
        raise InvalidValue(f"{key} is a lease, which only its holder changes")
    value = values.unpack(found.value.data)
    if type(value) is not dict:
        kind = kind_of(value)
        raise InvalidValue(f"{key} holds no map but {'an' if kind[0] in 'aeiou' else 'a'} {kind}",
                           hint="ckptmesh state set KEY VALUE writes all of it")
    if values.pack(value) != found.value.data:  # a member of an Enum, a dataclass
        raise InvalidValue(f"{key} holds values of classes that the command line does not know",
                           hint="change it from the program that they belong to")
    return value


def _kept(found: Checkpoint | None) -> dict[str, Any]:
    """What a commit must name so that it stays."""
    if found is None:
        return {}
    left = (None if found.expires_at is None
            else max(0.001, (found.expires_at - datetime.now(UTC)).total_seconds()))
    return {"position": found.position, "head": found.head, "ttl": left, "sources": found.sources}
