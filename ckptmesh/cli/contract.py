"""`ckptmesh contract`: rules that the store holds every commit under a prefix to."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import IO, Any

import click

from ckptmesh.cli.common import DURATION, NotFound, Use, client_options
from ckptmesh.cli.completion import complete_keys
from ckptmesh.cli.output import Rows
from ckptmesh.cli.text import span_text
from ckptmesh.clock import iso
from ckptmesh.errors import Misuse
from ckptmesh.views import Contract


@click.group("contract")
def contract() -> None:
    """Rules for commits, by prefix. The store itself refuses what breaks one, and writes nothing.

    \b
    Examples:
      ckptmesh contract set orders --monotonic --max-step 10000 --max-bytes 4096
      ckptmesh contract list
      ckptmesh contract delete orders
    """


@contract.command("set", short_help="Put rules on a prefix, in place of those it had.")
@click.argument("prefix", shell_complete=complete_keys)
@click.option("--monotonic", is_flag=True, help="A position never falls, nor goes missing again.")
@click.option("--required", is_flag=True, help="Each commit has a position.")
@click.option("--max-step", type=click.IntRange(0), help="A position grows by at most so much.")
@click.option("--max-bytes", type=click.IntRange(0), help="Of a value, packed.")
@click.option("--ttl", type=DURATION, metavar="DURATION", help="Given to what has no TTL.")
@click.option("--history", type=click.IntRange(0), help="Versions of a key kept for display.")
@click.option("--schema", type=click.File(), metavar="FILE",
              help="A JSON Schema: each commit has to be made with it. Needs ckptmesh[schema].")
@client_options
def set_(use: Use, prefix: str, schema: IO[str] | None, **rules: Any) -> None:
    """Put rules on PREFIX and all under it, in place of those it had; "" is everything.

    Checkpoints that stand there are left alone; from now on a commit that breaks a rule is refused
    with exit code 4. Locks, workers and runs, which are ckptmesh's own, are not covered; deleting
    is free; a rewind (`ckptmesh state rewind`) may go back. All contracts over a key hold.

    \b
    Examples:
      ckptmesh contract set orders --monotonic --required
      ckptmesh contract set sessions --ttl 30d --history 1
      ckptmesh contract set events --schema events.schema.json
    """
    if schema is None and all(rule is None or rule is False for rule in rules.values()):
        raise Misuse("a contract has at least one rule",
                     hint="--monotonic, --max-step 1000, …; to take it away: ckptmesh contract "
                          f"delete {prefix or repr('')}")
    with use.connect() as mesh:
        found = use.settled(lambda: mesh.contract(
            prefix, schema=None if schema is None else _schema(schema), **rules))
    use.out.text(f"contract {found.version} on {_name(found)}: {_words(found)}", _document(found))


@contract.command("list", short_help="The contracts that stand.")
@click.argument("prefix", default="", shell_complete=complete_keys)
@client_options
def list_(use: Use, prefix: str) -> None:
    """List the contracts on PREFIX and under it, and those above that cover it.

    \b
    Examples:
      ckptmesh contract list
      ckptmesh contract list orders --json | jq .monotonic
    """
    with use.connect(reading=True) as mesh:
        found = [each for each in mesh.contracts() if not prefix or _meet(prefix, each.prefix)]
    if not use.out.table(("prefix", ">version", "since", "rules"), _rows(found)) and (
            not use.out.as_json):
        use.out.note(f"no contract covers {prefix}" if prefix else "there are no contracts")


@contract.command("delete", short_help="Take the rules of a prefix away.")
@click.argument("prefix", shell_complete=complete_keys)
@client_options
def delete(use: Use, prefix: str) -> None:
    """Take the contract on PREFIX away. Exit code 3 when there is none.

    \b
    Example:
      ckptmesh contract delete orders
    """
    with use.connect() as mesh:
        if not use.settled(lambda: mesh.drop_contract(prefix)):
            raise NotFound(f"there is no contract on {prefix!r}", hint="ckptmesh contract list")
    use.out.text(f"no contract on {prefix}", {"prefix": prefix, "deleted": True})


def _schema(file: IO[str]) -> Any:
    from ckptmesh.features.schemas import Schema

    try:
        return Schema(json.load(file))
    except ValueError as error:
        raise Misuse(f"{file.name} is no JSON: {error}") from None


def _meet(prefix: str, other: str) -> bool:
    one, two = f"{prefix}/", f"{other}/"
    return not other or one.startswith(two) or two.startswith(one)


def _name(found: Contract) -> str:
    return found.prefix or "everything"


def _words(found: Contract) -> str:
    words = [name for name in ("monotonic", "required") if getattr(found, name)]
    words += [f"{name} {getattr(found, name):,}" for name in ("max_step", "max_bytes", "history")
              if getattr(found, name) is not None]
    if found.ttl is not None:
        words.append(f"ttl {span_text(found.ttl)}")
    if found.schema:
        words.append(f"schema {found.schema[:16]}…")
    return ", ".join(words)


def _rows(found: list[Contract]) -> Rows:
    for each in found:
        yield _document(each), (_name(each), str(each.version), iso(each.micros), _words(each))


def _document(found: Contract) -> dict[str, Any]:
    document = asdict(found)
    document["time"] = iso(document.pop("micros"))
    return document
