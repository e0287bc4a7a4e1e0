"""A whole store, or a prefix of it, into another store: one cut, compared key by key afterwards.

Rule 1: the source is only read, at one revision; it may go on meanwhile.
Rule 2: the target must be empty, or hold nothing but what the source holds, as a migration leaves
        it that was interrupted; with `replace` anything.
Rule 3: it is done when every key was read back and compared, and the digests are equal.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from ckptmesh.api import Moment
from ckptmesh.clock import from_datetime
from ckptmesh.errors import Conflict, Misuse
from ckptmesh.features.pages import Digester, Progress, StorePages, cut_of, same, store_time
from ckptmesh.features.transfer import ImportReport, load
from ckptmesh.flows import Flow


@dataclass(frozen=True, slots=True)
class MigrationReport:
    """What a migration did. `revision`: of the source; `verified`: keys that were compared;
    `sha256`: the digest of both, "" with `dry_run`."""

    revision: int
    loaded: ImportReport
    verified: int
    sha256: str


def migrate(source: Any, target: Any, *, prefix: str = "", at: Moment | None = None,
            replace: bool = False, dry_run: bool = False, progress: Progress | None = None
            ) -> Flow[MigrationReport]:
    """Copy all checkpoints of one client's store into another's; run it with `flows.run`, or with
    `run_async` for two clients of asyncio.

    Raises `Conflict` where the target holds something else (nothing is written then), or where
    somebody wrote into it meanwhile; `Compacted` when the source has moved on by more than it
    keeps: run it again.
    """
    here, there = (yield source.hello), (yield target.hello)
    if here.uuid == there.uuid:
        raise Misuse("both are the same store", hint="migrate into another one")
    revision = yield from cut_of(source, at)

    def pages() -> StorePages:
        return StorePages(source, prefix, revision)

    if not replace:
        yield from _nothing_else(source, target, revision, progress)
    loaded = yield from load(target, pages, "", "replace" if replace else "refuse", dry_run,
                             progress)
    if dry_run:
        return MigrationReport(revision, loaded, 0, "")
    verified, digest = yield from _verified(pages(), target, loaded.keys, progress)
    return MigrationReport(revision, loaded, verified, digest)


def _nothing_else(source: Any, target: Any, revision: int, progress: Progress | None) -> Flow[None]:
    """Raise `Conflict` where the target holds a key that the source lacks."""
    held, done = StorePages(target, "", (yield from cut_of(target, None))), 0
    while page := (yield from held.page()):
        known = yield partial(source.get_many, [each.key for each in page], at=revision,
                              packed=True)
        for key, found in known.items():
            if found is None:
                raise Conflict(f"the target is not empty: it holds {key!r}, which the source lacks;"
                               " nothing was written", key=key,
                               hint="migrate into an empty store; --replace leaves such keys, and "
                                    "writes over those that both have")
        done += len(page)
        if progress is not None:
            progress("looked at in the target", done, None)


def _verified(pages: StorePages, target: Any, total: int, progress: Progress | None
              ) -> Flow[tuple[int, str]]:
    """How many keys are equal in both, and the digest of both. Raises `Conflict`."""
    now = yield from store_time(target)
    ours, theirs = Digester(), Digester()
    different: list[str] = []
    while page := (yield from pages.page()):
        standing = yield partial(target.get_many, [each.key for each in page], packed=True)
        for found in page:
            there = standing[found.key]
            if (there is None and found.expires_at is not None
                    and from_datetime(found.expires_at) <= now):
                continue  # over meanwhile, in both
            ours.add(found)
            if there is not None:
                theirs.add(there)
            if there is None or not same(found, there):
                different.append(found.key)
        if progress is not None:
            progress("verified", ours.keys, total)
    one, other = ours.digest(0), theirs.digest(0)
    if different or one.sha256 != other.sha256:
        raise Conflict(
            f"{len(different):,} of {ours.keys:,} keys differ in the target, first "
            f"{different[0] if different else ''!r}: somebody else writes there",
            hint="stop whoever writes into the target, and run it again", key=different[:1])
    return ours.keys, one.sha256
