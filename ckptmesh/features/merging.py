"""Mergeable state: many processes merge into one key at once, and nothing is lost.

    receipt = mesh.merge("totals", rows=merge.Add(3), seen=merge.Union(ids), peak=merge.Max(x))
    mesh.merged("totals")                        # {"peak": 17, "rows": 3, "seen": {…}}

Each merge is an `update`: read, join, commit if nobody was faster, else again after a pause. What
the fields are, and how they join, is in `merge.py`.

Rule 1: a merge is one commit: all its fields, or none.
Rule 2: a merge whose outcome is unknown is never repeated here: it raises `OutcomeUnknown`, and
        only its `resolve()` knows whether a counter has counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from ckptmesh.errors import Misuse
from ckptmesh.features.merge import Merge, PerKey, read, written
from ckptmesh.flows import Flow
from ckptmesh.views import Receipt


@dataclass(frozen=True, slots=True)
class MergeReceipt(Receipt):
    """The receipt of a merge. `attempts`: how many times it was tried, 1 when nobody was faster."""

    attempts: int = 1


def parts_of(fields: Mapping[str, Merge] | None, named: Mapping[str, Merge]) -> PerKey:
    """The fields of one merge, as a mapping and by name. Raises `Misuse`."""
    if fields is not None and not isinstance(fields, Mapping):
        raise Misuse(f"fields are a mapping or named, not {fields!r:.80}",
                     hint='mesh.merge(key, rows=merge.Add(3)), or mesh.merge(key, {"rows": …})')
    given = fields or {}
    twice = given.keys() & named.keys()
    if twice or not (given or named):
        raise Misuse(f"field {min(twice)!r} is given twice" if twice else "a merge of no field",
                     hint="mesh.merge(key, rows=merge.Add(3))")
    return PerKey({**given, **named})


def merge(store: Any, key: str, parts: PerKey, **options: Any) -> Flow[MergeReceipt]:
    """Merge into a key; `options` as of `update`. Raises as `Client.merge`."""
    attempts = 0

    def change(standing: Any) -> dict[str, Any]:
        nonlocal attempts
        attempts += 1
        return written(parts.join(({}, {}) if standing is ... else read(standing, key), ""))

    # The default stands for nothing: no checkpoint can hold it.
    receipt: Receipt = yield partial(store.update, key, change, ..., **options)
    return MergeReceipt(receipt.key, receipt.revision, receipt.epoch, receipt.version,
                        receipt.micros, attempts)


def merged(store: Any, key: str, **options: Any) -> Flow[dict[str, Any]]:
    """The fields of a key; `options` as of `get`. Raises as `Client.merged`."""
    found = yield partial(store.get, key, **options)
    return {} if found is None else read(found.value, key)[0]
