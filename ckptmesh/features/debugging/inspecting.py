"""One checkpoint in full, with all that can be verified about it.

    found = inspect(mesh, "orders@120")
    found.verdicts; found.sources; found.consumers; found.history
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from ckptmesh import values
from ckptmesh.errors import Compacted, Error, Misuse
from ckptmesh.features.debugging.reading import Run, each_under, run_of
from ckptmesh.features.debugging.verifying import (
    GOOD,
    MISSING,
    UNKNOWN,
    UNREADABLE,
    Output,
    Verdict,
    file_verdict,
    outputs,
    provenance,
)
from ckptmesh.features.locks import covers
from ckptmesh.features.pipeline.digests import sha256
from ckptmesh.features.pipeline.places import RUNS, Places, is_record
from ckptmesh.features.pipeline.storage import references
from ckptmesh.features.tickets import Ticket, tickets
from ckptmesh.limits import DEBUG_CONSUMERS, DEBUG_KEYS, pipeline_of, under
from ckptmesh.views import Checkpoint, Contract


@dataclass(frozen=True, slots=True)
class Source:
    """What a checkpoint was made from. `state`: "current", "replaced" (a newer stands there),
    "deleted", or "never there"; `now`: the revision that stands there."""

    key: str
    revision: int
    state: str
    now: int | None


@dataclass(frozen=True, slots=True)
class Consumer:
    """A checkpoint that says it was made from the one that is looked at, `used` is its revision
    that was used."""

    key: str
    revision: int
    used: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """What is known about one checkpoint; `found` has its value `Packed`.

    `newest`: the revision that stands under the key now, None where it is deleted. `looked_at`:
    keys among which consumers were looked for; `all_looked_at`: whether these were all. `run`: the
    record that stands in it, if it is one, with the `outputs` of its stages.
    """

    found: Checkpoint
    newest: int | None
    sha256: str
    size: int
    verdicts: tuple[Verdict, ...]
    history: tuple[Checkpoint, ...]
    sources: tuple[Source, ...]
    consumers: tuple[Consumer, ...]
    looked_at: int
    all_looked_at: bool
    contracts: tuple[Contract, ...]
    locks: tuple[Ticket, ...]
    run: Run | None
    outputs: tuple[Output, ...]

    @property
    def good(self) -> bool:
        """Whether nothing was found to be wrong."""
        return all(each.state in (GOOD, UNKNOWN) for each in self.every_verdict)

    @property
    def every_verdict(self) -> Iterator[Verdict]:
        """All of them, those on outputs too."""
        yield from self.verdicts
        for each in self.outputs:
            yield from each.verdicts


def inspect(mesh: Any, key: str, revision: int | None = None, *,
            storage: str | Path | None = None, everywhere: bool = False) -> Inspection | None:
    """Look at a key, or at one version of it; None where there is none. `storage`: where files of
    outputs are. Consumers are looked for among `limits.DEBUG_KEYS` keys, with `everywhere` among
    all. Raises `Compacted` for a version that is kept no more."""
    now = mesh.get(key, packed=True)
    found = now if revision is None else mesh.get(key, at=revision, packed=True)
    if found is None:
        return None
    if revision is not None and found.revision != revision:
        raise Misuse(f"{key!r} has no version {revision}",
                     hint=f"the one before is {key}@{found.revision}")
    verdicts = [*_value(found, storage)]
    run: Run | None = None
    kept: tuple[Output, ...] = ()
    if is_record(key):
        read = run_of(found)
        if isinstance(read, Run):
            run = read
            verdicts += provenance(run)
            kept = () if run.past else tuple(outputs(mesh, run.record, storage))
        else:
            verdicts.append(Verdict("the record", UNREADABLE, read.text))
    elif now is found:
        verdicts += _as_recorded(mesh, found, storage)
    consumers, looked_at, whole = _consumers(mesh, key, everywhere)
    return Inspection(
        found=found, newest=now.revision if now else None, sha256=sha256(found.value.data),
        size=len(found.value.data), verdicts=tuple(verdicts),
        history=tuple(mesh.history(key, packed=True)), sources=tuple(_sources(mesh, found)),
        consumers=consumers, looked_at=looked_at, all_looked_at=whole,
        contracts=tuple(each for each in mesh.contracts() if _holds_for(each, key)),
        locks=tuple(each for each in tickets(mesh, pipeline_of(key))
                    if covers(each.name, _locked_as(key))),
        run=run, outputs=kept)


def _value(found: Checkpoint, storage: str | Path | None) -> Iterator[Verdict]:
    try:
        value = values.unpack(found.value.data)
    except Error as error:
        yield Verdict("the value", UNREADABLE, error.message)
        return
    yield Verdict("the value", GOOD)
    for ref in references(value):
        yield file_verdict(ref, storage)


def _as_recorded(mesh: Any, found: Checkpoint, storage: str | Path | None) -> Iterator[Verdict]:
    """Where it is the kept output of a stage: whether the record of its run says the same."""
    pipeline, _, rest = found.key.partition(f"/{RUNS}/kept/")
    key, _, stage = rest.partition("/")
    if not stage or "/" in stage:
        return
    record = mesh.get(Places(pipeline, key).record, packed=True)
    read = None if record is None else run_of(record)
    if not isinstance(read, Run):
        yield Verdict("the record of its run", MISSING if read is None else UNREADABLE,
                      "" if read is None else read.text)
        return
    for each in outputs(mesh, read.record, storage, files=False):
        if each.stage == stage:
            yield from each.verdicts


def _sources(mesh: Any, found: Checkpoint) -> Iterator[Source]:
    for key, revision in found.sources:
        now = mesh.get(key, packed=True)
        there: bool | None = revision < found.revision
        if there and (now is None or now.revision != revision):
            try:
                then = mesh.get(key, at=revision, packed=True)
                there = then is not None and then.revision == revision
            except Compacted:
                there = None
        state = ("never there" if there is False else "deleted" if now is None else
                 "current" if now.revision == revision else "replaced")
        yield Source(key, revision, state, now.revision if now else None)


def _consumers(mesh: Any, key: str, everywhere: bool) -> tuple[tuple[Consumer, ...], int, bool]:
    """Those of the same pipeline first, then of all others."""
    found: list[Consumer] = []
    looked_at, most = 0, None if everywhere else DEBUG_KEYS
    own = pipeline_of(key)
    for prefix in (own, ""):
        for each in islice(each_under(mesh, prefix), most and most - looked_at):
            if not prefix and under(own, each.key):
                continue
            looked_at += 1
            found += (Consumer(each.key, each.revision, used) for name, used in each.sources
                      if name == key)
            if len(found) >= DEBUG_CONSUMERS:
                return tuple(found[:DEBUG_CONSUMERS]), looked_at, False
    return tuple(found), looked_at, most is None or looked_at < most


def _holds_for(contract: Contract, key: str) -> bool:
    """Whether a contract covers a key: ckptmesh's own keys below its prefix are not."""
    return under(contract.prefix, key) and "/_" not in key[len(contract.prefix):]


def _locked_as(key: str) -> str:
    """The name under which what stands at a key is locked."""
    pipeline, found, rest = key.partition(f"/{RUNS}/")
    if not found:
        return key
    parts = rest.split("/")
    return f"{pipeline}/{parts[1]}" if len(parts) > 1 and parts[0] != "exec" else pipeline
