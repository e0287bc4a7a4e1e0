"""Rewinds: what stood somewhere at an earlier moment stands there again, as a new commit.

    plan = mesh.rewind("nightly", to=last_night, reason="bad feed")
    print(plan)
    plan.apply()

Rule 1: nothing is overwritten or taken back: a rewind is one more revision, and its own undo is
        another rewind, to the revision before it.
Rule 2: a plan is a promise: `apply` does what it shows or, where anything has moved since, nothing.
Rule 3: nobody is at work meanwhile: it holds the locks, and is refused where somebody else does.
Rule 4: why it was done stands beside what it did, at PIPELINE/_rewinds, and is never rewound.

Each checkpoint that a rewind writes names two sources: the version that it is again, and the record
of the rewind. By the second it is known as one (`Checkpoint.rewind`), and passes contracts.
"""

from __future__ import annotations

import getpass
import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, TypeVar

from ckptmesh import values
from ckptmesh.api import Moment
from ckptmesh.errors import (
    Conflict,
    Error,
    InvalidPayload,
    LockTimeout,
    Misuse,
    RewindRefused,
    TooLarge,
    Unsupported,
)
from ckptmesh.features.consumers import Consumption, consumers
from ckptmesh.features.differences import difference
from ckptmesh.features.locks import LOCKS, covers
from ckptmesh.features.pages import StorePages, each_of
from ckptmesh.features.pipeline import records
from ckptmesh.features.tickets import is_ticket
from ckptmesh.flows import Flow, run, run_async, settled
from ckptmesh.limits import REQUEST_BYTES, REWIND_KEYS, check_key, pipeline_of
from ckptmesh.messages import REWINDS, SCHEMAS
from ckptmesh.shape import check_shape
from ckptmesh.values import Packed
from ckptmesh.views import Checkpoint

LOCK_TTL = 30.0  # seconds; of a rewind that dies, after which others go on
_ATTEMPTS = 20  # of a rewind, while others draw tickets for its lock
_NAMED = 100  # keys that are gone, named in the record
_STAYS = (REWINDS, SCHEMAS, "/_watches/", "/_workers/")  # in keys that no rewind changes
_RUN = "/_runs/run/"
NOTHING: Any = object()  # no value was given: None is one
P = TypeVar("P", bound="_Plan")


class Change(NamedTuple):
    """What a rewind does to one key. `before`: what stands there now, `after`: what will stand
    there; None: nothing. Their values are `Packed`."""

    key: str
    before: Checkpoint | None
    after: Checkpoint | None

    @property
    def kind(self) -> str:
        """ "change", "delete" or "restore"."""
        if self.after is None:
            return "delete"
        return "restore" if self.before is None else "change"

    @property
    def again(self) -> int | None:
        """How much will be done again, in units of the key's position; None where unknown."""
        one, other = (found.position if found else None for found in (self.after, self.before))
        return None if one is None or other is None else other - one


@dataclass(frozen=True)
class Rewound:
    """A rewind that was done: `revision` is its own, `to` the one that stands again, `at` the one
    that it was planned at, to which another rewind would take it back."""

    key: str
    revision: int
    to: int
    at: int
    reason: str
    by: str
    changed: int
    deleted: int


class Target:
    """What is to stand again under a prefix: what stood there after a revision; or, at one key,
    this very version or value."""

    def __init__(self, prefix: str, revision: int, again: Checkpoint | None = None) -> None:
        self.prefix, self.revision, self._again = prefix, revision, again

    @property
    def name(self) -> str:
        """What it is, for people."""
        by_hand = self._again is not None and not self.revision
        return "a value given by hand" if by_hand else f"revision {self.revision}"

    def changes(self, store: Any, now: int) -> Flow[list[Change]]:
        """What differs from it at a revision, in key order. Raises `TooLarge`, and as `get`."""
        if self._again is not None:
            return (yield from self._of_one(store, self._again, now))
        found: list[Change] = []
        size = 0
        then, there = _Rows(store, self.prefix, self.revision), _Rows(store, self.prefix, now)
        one, other = (yield from then.next()), (yield from there.next())
        while one is not None or other is not None:
            differs, left, right = difference(one, other)
            if differs is not None and not any(each in differs.key for each in _STAYS):
                found.append(Change(differs.key, differs.after, differs.before))
                size += len(differs.before.value.data) if differs.before else 0
                if len(found) > REWIND_KEYS or size > REQUEST_BYTES:
                    what = (f"more than {REWIND_KEYS:,} keys differ" if size <= REQUEST_BYTES else
                            f"what stood there is more than {REQUEST_BYTES:,} bytes")
                    raise TooLarge(
                        f"{what}, too much for one revision",
                        hint="rewind the pipelines, or parts of one, one by one",
                        limit=REWIND_KEYS if size <= REQUEST_BYTES else REQUEST_BYTES)
            if left:
                one = yield from then.next()
            if right:
                other = yield from there.next()
        return found

    def _of_one(self, store: Any, again: Checkpoint, now: int) -> Flow[list[Change]]:
        before = yield partial(store.get, self.prefix, at=now, packed=True)
        if before is not None and before.is_lease:
            raise Misuse(f"{self.prefix!r} is a lease, which only its holder changes")
        differs, _, _ = difference(again, before)
        return [] if differs is None else [Change(self.prefix, before, again)]


class _Rows:
    """The checkpoints under a prefix at a revision, one by one."""

    def __init__(self, store: Any, prefix: str, revision: int) -> None:
        self._pages = StorePages(store, prefix, revision)
        self._page: Iterator[Checkpoint] = iter(())

    def next(self) -> Flow[Checkpoint | None]:
        """The next one; None at the end."""
        found = next(self._page, None)
        if found is None:
            self._page = iter((yield from self._pages.page()))
            found = next(self._page, None)
        return found


class _Plan:
    """What a rewind will do. `revision`: as of which; `to`: the revision that will stand again;
    `changes`, by key; `redo`: what will be done again, a line each; `consumers`: who has taken
    what will be gone; `holders`: who is at work there, and lets `apply` be refused."""

    def __init__(self, store: Any, target: Target, reason: str, by: str, revision: int,
                 changes: list[Change], redo: list[str], taken: list[Consumption],
                 holders: list[str]) -> None:
        self._store, self._target, self.reason, self.by = store, target, reason, by
        self.prefix, self.to, self.revision, self.changes = (
            target.prefix, target.revision, revision, changes)
        self.redo, self.consumers, self.holders = redo, taken, holders
        self.applied: Rewound | None = None

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        what = self.prefix or "everything"
        yield (f"rewind {what} to {self._target.name}, as of revision {self.revision}: "
               f"{self.reason}")
        if not self.changes:
            yield "  nothing differs"
        for change in self.changes:
            yield (f"  {change.kind:8}{change.key}  {_place(change.before)} → "
                   f"{_place(change.after)}")
        yield from (f"  again   {line}" for line in self.redo)
        yield from (f"  taken   {each.key}@{each.revision} by {each.kind} {each.name}"
                    for each in self.consumers)
        yield from (f"  held    {line}" for line in self.holders)

    def _applying(self, force: bool) -> Flow[Rewound | None]:
        if self.applied is not None:
            raise Misuse("this rewind is done", hint="plan another one")
        if not self.changes:
            return None
        held: list[Any] = []
        try:
            if not force:
                yield from self._hold(held)
            self.applied = yield from self._commit(held, force)
            return self.applied
        finally:
            for lock in reversed(held):
                with suppress(Error):  # it ends by itself; what was done is done
                    yield lock.release

    def _hold(self, held: list[Any]) -> Flow[None]:
        for name in _locks_of(self.prefix, self.changes):
            lock = self._store.lock(name, ttl=LOCK_TTL, wait=0, holder=f"rewind by {self.by}")
            try:
                yield lock.acquire
            except LockTimeout as error:
                raise RewindRefused(
                    f"{error.details.get('held', name)!r} is held by "
                    f"{error.details.get('holder', 'somebody')}, who is at work there", key=name,
                ) from None
            held.append(lock)

    def _commit(self, held: list[Any], force: bool) -> Flow[Rewound]:
        for _ in range(_ATTEMPTS):
            seen = yield from _head(self._store)
            now = yield from self._target.changes(self._store, seen)
            _not_moved(now, self.changes, self.revision)
            try:
                return (yield from self._once(held, seen, force))
            except Conflict as conflict:  # perhaps only by somebody who waits for our lock
                lost = conflict
        raise lost

    def _once(self, held: list[Any], seen: int, force: bool) -> Flow[Rewound]:
        """One attempt. `seen`: the revision since which nothing may have changed; with `force`, of
        what is changed here."""
        tx = self._store.transaction()
        for lock in held:
            tx.guard(lock)
        pipelines = sorted({pipeline_of(change.key) for change in self.changes})
        if not force:
            for prefix in [self.prefix] if self.prefix else pipelines:
                tx.unchanged(prefix, seen)
        gone = [change.key for change in self.changes if change.after is None]
        changed = len(self.changes) - len(gone)
        for pipeline in pipelines:
            tx.put(_record_of(pipeline, seen), {
                "to": self.to, "at": self.revision, "prefix": self.prefix, "reason": self.reason,
                "by": self.by, "changed": changed, "deleted": len(gone), "gone": gone[:_NAMED],
            }, expect=None)
        for change in self.changes:
            _write(tx, change, _record_of(pipeline_of(change.key), seen))
        yield from settled(tx.commit)
        return Rewound(self.prefix, tx.revision, self.to, self.revision, self.reason, self.by,
                       changed, len(gone))


class RewindPlan(_Plan):
    """As of a plain client."""

    def apply(self, *, force: bool = False) -> Rewound | None:
        """Do it, as one revision; None where nothing differs. Raises `Conflict` where anything has
        moved since it was planned, `RewindRefused` where somebody is at work there; `force` does it
        all the same, and what they commit under their locks still counts."""
        return run(self._applying(force))


class AsyncRewindPlan(_Plan):
    """As of an asyncio client."""

    async def apply(self, *, force: bool = False) -> Rewound | None:
        """As `RewindPlan.apply`."""
        return await run_async(self._applying(force))


# --- making a plan ------------------------------------------------------------------------------


def plan(store: Any, kind: type[P], key: str, to: Moment | None, value: Any, position: int | None,
         reason: str) -> Flow[P]:
    """What a rewind would do. Raises as `Client.rewind`."""
    if not isinstance(reason, str) or not reason.strip():
        raise Misuse("a rewind needs a reason", hint='reason="bad feed"')
    revision = yield from _head(store)
    target = yield from _target(store, key, to, value, position, revision)
    changes = yield from target.changes(store, revision)
    for change in changes:
        _check(change)
    redo = [line for change in changes for line in _redo(change)]
    taken: list[Consumption] = []
    if changes:
        since = target.revision or (changes[0].before.revision - 1 if changes[0].before else 0)
        taken = yield from consumers(store, key, since)
    holders = yield from _holders(store, key, changes)
    return kind(store, target, reason, _who(), revision, changes, redo, taken, holders)


def rewound(store: Any, pipeline: str) -> Flow[list[Rewound]]:
    """The rewinds of a pipeline, oldest first."""
    check_key(pipeline)
    found: list[Rewound] = []
    pages = StorePages(store, f"{pipeline_of(pipeline)}{REWINDS.rstrip('/')}",
                       (yield from _head(store)))
    while page := (yield from pages.page()):
        for each in page:
            with suppress(InvalidPayload, KeyError, TypeError):
                said = values.unpack(each.value.data)
                found.append(Rewound(said["prefix"], each.revision, said["to"], said["at"],
                                     said["reason"], said["by"], said["changed"],
                                     said["deleted"]))
    return found


def _target(store: Any, key: str, to: Moment | None, value: Any, position: int | None,
            head: int) -> Flow[Target]:
    if (to is not None) + (value is not NOTHING) + (position is not None and value is NOTHING) != 1:
        raise Misuse("a rewind goes to one moment (to=), to a value (value=, position=) or to a "
                     "position (position=)")
    if key:
        check_key(key)
        if any(each in f"{key}/" for each in _STAYS):
            raise Misuse(f"{key!r} is ckptmesh's own, and no rewind changes it")
    elif to is None:
        raise Misuse("which key is to have it?", hint='rewind("orders", …)')
    if value is not NOTHING:
        return Target(key, 0, Checkpoint(key, Packed(values.pack(value)), 0, 0, 0, 0, 0,
                                         position=position))
    if position is None:
        revision: int = yield partial(store.revision, at=to)
        return Target(key, revision)
    for step in each_of(store.history(key, packed=True)):
        found = yield step
        if found is None:
            raise Misuse(f"no version of {key!r} that is kept has a position up to {position:,}",
                         hint=f"ckptmesh state history {key}")
        if found.revision <= head and found.position is not None and found.position <= position:
            return Target(key, found.revision, found)
    raise AssertionError("a listing ends with None")


def _head(store: Any) -> Flow[int]:
    revision: int = yield partial(store.revision)
    return revision


def _not_moved(now: list[Change], planned: list[Change], revision: int) -> None:
    """Raises `Conflict` where two lists of changes are not the same."""
    one, other = ({change.key: (change.before and change.before.revision,
                                change.after and change.after.revision)
                   for change in changes} for changes in (now, planned))
    moved = sorted(key for key in one.keys() | other.keys() if one.get(key) != other.get(key))
    if moved:
        raise Conflict(f"{moved[0]!r} has moved since this was planned, at revision {revision}; "
                       "nothing was changed", hint="plan the rewind again", key=moved[0])


def _record_of(pipeline: str, seen: int) -> str:
    """The key of the record of a rewind that is done after a revision: no other has it."""
    return f"{pipeline}{REWINDS}{seen:016d}"


def _write(tx: Any, change: Change, record: str) -> None:
    """Put or delete, expecting what the plan has seen."""
    before, after = change.before, change.after
    expect = None if before is None else before.revision
    if after is None:
        tx.delete(change.key, expect=expect)
        return
    ttl = None if after.expires_at is None else after.expires_at - after.time
    sources = [(record, 0)] if after.revision == 0 else [(change.key, after.revision), (record, 0)]
    tx.put(change.key, after.value, expect=expect, ttl=ttl, position=after.position,
           head=after.head, sources=sources)


def _locks_of(prefix: str, changes: list[Change]) -> list[str]:
    """The names that lock all that changes: of the part, or of the pipeline where it is one of
    ckptmesh's own."""
    if prefix and "/_" not in prefix:
        return [prefix]
    return sorted({pipeline_of(change.key) for change in changes})


def _holders(store: Any, prefix: str, changes: list[Change]) -> Flow[list[str]]:
    """Who has or awaits a lock that a rewind would need."""
    found = []
    for name in _locks_of(prefix, changes):
        queue = f"{pipeline_of(name)}/{LOCKS}"
        after = ""
        while page := (yield partial(store.scan, queue, after=after)):
            after = page[-1].key
            found += [f"{each.value['name']} by {each.value['holder']}" for each in page
                      if is_ticket(each) and covers(name, each.value["name"])]
    return found


def _check(change: Change) -> None:
    """Raises `InvalidPayload` where what stood there is damaged, and can be no commit."""
    after = change.after
    try:
        if after is not None:
            check_shape(after.value.data)
    except InvalidPayload as damage:
        raise InvalidPayload(
            f"what stood at {change.key!r} cannot stand there again: {damage.message}",
            hint="rewind what is beside it, or that key to a VALUE", key=change.key) from None


def _redo(change: Change) -> Iterator[str]:
    """What will be done again because of a change."""
    before, after = change.before, change.after
    if _RUN in change.key:
        yield from _redo_stages(change)
    elif change.again is not None and change.again > 0:
        assert before is not None
        assert after is not None
        yield (f"{change.key}: from position {after.position:,} to {before.position:,}, "
               f"{change.again:,} in all")
    elif after is None and before is not None and before.position is not None:
        yield f"{change.key}: all, up to position {before.position:,}"


def _redo_stages(change: Change) -> Iterator[str]:
    runs = []
    for found in (change.before, change.after):
        try:
            runs.append(None if found is None else records.read(
                replace(found, value=values.unpack(found.value.data))))
        except (InvalidPayload, Unsupported):
            return
    before, after = runs
    stages = [] if before is None else [
        name for name in before.completed if after is None or name not in after.completed]
    if before is not None and stages:
        yield f"run {before.key} of {before.pipeline}: {', '.join(stages)}"


def _place(found: Checkpoint | None) -> str:
    if found is None:
        return "nothing"
    where = f"@{found.revision}" if found.revision else "a value"
    return where if found.position is None else f"{where} (position {found.position:,})"


def _who() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container without a name for its user
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"
