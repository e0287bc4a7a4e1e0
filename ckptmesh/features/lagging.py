"""How far pipelines are behind their sources: read from what their commits carry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ckptmesh.features.pages import StorePages, cut_of, store_time
from ckptmesh.features.pipeline.places import RUNS
from ckptmesh.flows import Flow
from ckptmesh.limits import check_prefix
from ckptmesh.views import Checkpoint


@dataclass(frozen=True, slots=True)
class Lag:
    """Of one key: `position` and `head` as its last commit gave them, in the unit of its source;
    `age`: seconds since that commit, by the store's clock."""

    key: str
    position: int | None
    head: int | None
    age: float
    revision: int

    @property
    def records(self) -> int | None:
        """How many are left; None where one of the two was not given."""
        if self.head is None or self.position is None:
            return None
        return self.head - self.position


def lag(store: Any, prefix: str = "") -> Flow[list[Lag]]:
    """Of all keys under a prefix that carry a position or head, the records of runs among them, in
    key order. Raises as `Client.lag`."""
    check_prefix(prefix)
    pages, found = StorePages(store, prefix, (yield from cut_of(store, None))), []
    now = yield from store_time(store)
    while page := (yield from pages.page()):
        found += [Lag(each.key, each.position, each.head, max(0.0, (now - each.micros) / 1e6),
                      each.revision)
                  for each in page
                  if (each.position, each.head) != (None, None) and _counts(each, prefix)]
    return found


def _counts(found: Checkpoint, prefix: str) -> bool:
    """Whether a key is a user's, or the record of a run; what else is ckptmesh's own repeats what
    stands there, or counts something of its own."""
    key = found.key
    return "/_" not in key[len(prefix):] or key.split("/")[1:3] == [RUNS, "run"]
