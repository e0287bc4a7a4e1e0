"""Whether checkpoints are what they should be, and how an earlier one takes a damaged one's place.

A store keeps values as bytes and does not look into them. What a client of another language, a
program with a bug or a lost class has left shows here, before a pipeline stumbles over it. Damage
to the store's own files is told by the store, and by `ckptmesh wal verify`.

Rule 1: validating only reads.
Rule 2: a repair writes to a new key and changes nothing in place: what was damaged stays to be
        looked at, and the new checkpoint names in its `sources` which version it was made from.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from ckptmesh import values
from ckptmesh.api import Moment
from ckptmesh.errors import Compacted, Error, InvalidPayload, InvalidValue, MissingExtra, Misuse
from ckptmesh.features.pages import Progress, StorePages, cut_of, each_of
from ckptmesh.features.schemas import Schema
from ckptmesh.flows import Flow, settled
from ckptmesh.limits import check_prefix, pipeline_of, under
from ckptmesh.messages import SCHEMAS
from ckptmesh.views import Checkpoint, Receipt


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with a checkpoint. `kind`: "unreadable" (its value cannot be unpacked),
    "source" (what it says that it was made from was never there) or "schema" (its value does not
    fit the schema that a contract demands there now)."""

    key: str
    revision: int
    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class Validation:
    """Of `keys` checkpoints as of `revision`, what is wrong; `unknown`: sources that are older than
    what the store can still tell; `unchecked`: checkpoints under a schema that could not be had:
    `ckptmesh[schema]` is not installed, or its document is gone."""

    keys: int
    revision: int
    problems: tuple[Problem, ...]
    unknown: int
    unchecked: int = 0


@dataclass(frozen=True, slots=True)
class Repair:
    """`before`: the version that was asked about, with its `problem` ("" when it is good); `after`:
    the newest good one, up to it, that takes its place; `passed` others were no good either.
    `receipt` of the new key; None with `dry_run`."""

    before: Checkpoint
    problem: str
    after: Checkpoint
    passed: int
    receipt: Receipt | None


def problem_of(found: Checkpoint) -> str:
    """Why the value of a checkpoint, which is `Packed`, cannot be read; "" when it can."""
    try:
        values.unpack(found.value.data)
    except Error as error:
        return error.message
    return ""


def validate(store: Any, prefix: str, at: Moment | None, progress: Progress | None = None
             ) -> Flow[Validation]:
    """Look at every checkpoint under a prefix. Raises as `Client.validate`."""
    check_prefix(prefix)
    revision = yield from cut_of(store, at)
    problems: list[Problem] = []
    schemas = yield from _schemas(store)
    pages, keys, unknown, unchecked = StorePages(store, prefix, revision), 0, 0, 0
    while page := (yield from pages.page()):
        for found in page:
            problem = problem_of(found)
            if problem:
                problems.append(Problem(found.key, found.revision, "unreadable", problem))
            for schema in () if problem or "/_" in found.key else _over(found.key, schemas):
                unchecked += schema is None
                problem = "" if schema is None else _misfit(schema, found)
                if problem:
                    problems.append(Problem(found.key, found.revision, "schema", problem))
            for source, wanted in found.sources:
                known = yield from _was_there(store, source, wanted, found)
                unknown += known is None
                if known is False:
                    problems.append(Problem(
                        found.key, found.revision, "source",
                        f"it was made from {source}@{wanted}, which was never there"))
        keys += len(page)
        if progress is not None:
            progress("validated", keys, None)
    return Validation(keys, revision, tuple(problems), unknown, unchecked)


def _schemas(store: Any) -> Flow[list[tuple[str, Schema | None]]]:
    """The schemas that contracts demand, by prefix; None for one that cannot be had."""
    found: list[tuple[str, Schema | None]] = []
    if not hasattr(store, "contracts"):  # a backend without contracts
        return found
    for each in (yield store.contracts):
        if each.schema:
            key = f"{pipeline_of(each.prefix)}{SCHEMAS}{each.schema}"
            document = yield partial(store.value, key)
            found.append((each.prefix, _schema(document, each.schema)))
    return found


def _schema(document: Any, digest: str) -> Schema | None:
    try:
        schema = Schema(document)
    except (MissingExtra, Misuse):
        return None
    return schema if schema.digest == digest else None


def _over(key: str, schemas: list[tuple[str, Schema | None]]) -> list[Schema | None]:
    return [schema for prefix, schema in schemas if under(prefix, key)]


def _misfit(schema: Schema, found: Checkpoint) -> str:
    try:
        schema.check(values.unpack(found.value.data))
    except InvalidValue as error:
        return error.message
    return ""


def _was_there(store: Any, source: str, wanted: int, found: Checkpoint) -> Flow[bool | None]:
    """Whether a key had a version of that very revision; None where the store cannot tell. 0 stands
    for whatever is there, as a schema or the record of a rewind is named."""
    if wanted == 0:
        return True
    if wanted >= found.revision:
        return False
    try:
        earlier = yield partial(store.get, source, at=wanted, packed=True)
    except Compacted:
        return None
    return earlier is not None and earlier.revision == wanted


def repair(store: Any, key: str, to: str, revision: int | None, dry_run: bool) -> Flow[Repair]:
    """Write the newest good version of a key to another. Raises as `Client.repair`."""
    if to == key:
        raise Misuse("a repair changes nothing in place", hint="name a new key")
    before: Checkpoint | None = None
    passed = 0
    for step in each_of(store.history(key, packed=True)):
        found = yield step
        if found is None:
            break
        if revision is not None and found.revision > revision:
            continue
        before = before or found
        if problem_of(found):
            passed += found is not before
            continue
        receipt = None
        if not dry_run:
            receipt = yield from settled(partial(
                store.commit, to, found.value, expect=None, position=found.position,
                head=found.head, sources=[(key, found.revision)]))
        return Repair(before, problem_of(before), found, passed, receipt)
    if before is None:
        raise Misuse(f"there is no {key!r}" + (f" up to revision {revision}" if revision else ""),
                     hint="ckptmesh state history KEY")
    raise InvalidPayload(
        f"none of the {passed + 1:,} versions of {key!r} that the store still keeps can be read",
        hint="an older one may be in a snapshot: `ckptmesh snapshot restore DIR NEW --at TIME`",
        key=key)
