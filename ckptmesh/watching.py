"""The watcher's brain: every revision once, in order, over a path that loses messages.

Rule 1: nothing here reads a clock, sends, or waits; `feed.py` does, and tells what it got.
Rule 2: `complete_to` is the one fact kept: all that is watched, up to this revision, was given out.
Rule 3: a message that does not join on to `complete_to` is dropped and the store is asked; what it
        held comes with the answer, for the store publishes only what it can answer for.

What joins on (docs/protocol.md; each publication carries two pointers):

  watch of          message               joins on when
  one pipeline      its publication       `previous` <= complete_to
  everything        all parts of one      `store_previous` <= complete_to
                    revision
  either            heartbeat             its `previous` <= complete_to and `recent` names no newer
                                          revision of what is watched: complete_to grows for free

A revision at or below complete_to is a duplicate. All else is a gap: `request` then says what to
ask. So without losses a watcher asks once, when it begins, and never again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

from ckptmesh.errors import DataLoss, OtherStore
from ckptmesh.limits import HEARTBEAT_LOST, pipeline_of, under
from ckptmesh.messages import LAST_INDEX, Commit, Events, Heartbeat, Publication, Since
from ckptmesh.views import Mark


@dataclass(slots=True)
class WatchStats:
    """What a watch has done so far: publications received, of these those it had already; times
    something was missing; heartbeats; and, counted by `feed.py`, messages that could not be read,
    questions to the store, and sockets taken."""

    received: int = 0
    duplicates: int = 0
    gaps: int = 0
    heartbeats: int = 0
    malformed: int = 0
    since_requests: int = 0
    sockets: int = 0


class Watching:
    """One watch, from `mark` on, of the keys under `prefix` ("": everything).

    `uuid` and `epoch` are of the store that the mark was taken from, `now` is seconds of any
    monotonic clock. Feed it with `publication`, `heartbeat` and `events`; the first and the last
    return the commits to give out. Whenever `request` says so, ask the store and feed the answer.
    """

    def __init__(self, prefix: str, mark: Mark, *, uuid: bytes, epoch: int, now: float) -> None:
        self.prefix = prefix
        self.pipeline = pipeline_of(prefix)
        self.stats = WatchStats()
        self._uuid = uuid
        self._epoch = epoch  # in which complete_to was learned
        # A mark inside a revision: the revision is not complete, its first events are.
        inside = mark.revision > 0 and mark.index < LAST_INDEX
        self.complete_to = mark.revision - 1 if inside else mark.revision
        self._mark = mark
        self._behind = True  # the subscription may reach the store later than it commits
        self._heard = now
        self._doubts = 0
        self._parts: dict[int, Publication] = {}

    # --- what to do next ---

    def request(self) -> Since | None:
        """What to ask the store now, or None when nothing is missing."""
        if not self._behind:
            return None
        if self.complete_to < self._mark.revision:
            return Since(self._mark.revision, self._mark.index, self.pipeline)
        return Since(self.complete_to, LAST_INDEX, self.pipeline)

    @property
    def silent_at(self) -> float:
        """When a new socket is needed, because no heartbeat came for so long."""
        return self._heard + HEARTBEAT_LOST

    def catch_up(self, now: float) -> None:
        """Something may be missing, so ask; and count silence from now (a new socket listens)."""
        self._heard = now
        self._behind = True

    # --- what arrives ---

    def publication(self, publication: Publication) -> list[Commit]:
        """Take a publication. Raises `OtherStore` and `DataLoss`."""
        if self.pipeline not in ("", publication.pipeline):
            return []
        self._check_store(publication.uuid)
        self.stats.received += 1
        commit = publication.commit
        if commit.revision <= self.complete_to:
            if commit.epoch > self._epoch:
                self._lost(commit.revision, commit.epoch)
            self.stats.duplicates += 1
            return []
        before = publication.previous if self.pipeline else publication.store_previous
        if before > self.complete_to:
            self._gap()
            return []
        if self.pipeline or publication.parts == 1:
            return self._deliver(commit)
        return self._collect(publication)

    def heartbeat(self, beat: Heartbeat, now: float) -> None:
        """Take a heartbeat. Raises `OtherStore` and `DataLoss`."""
        self._check_store(beat.uuid)
        self.stats.heartbeats += 1
        self._heard = now
        if beat.epoch < self._epoch or self._behind:
            return  # an old one, or a question is open anyway
        if beat.revision < self.complete_to:
            self._doubt(beat)
            return
        self._doubts = 0
        if beat.revision == self.complete_to:
            return
        if beat.recent is None or beat.previous > self.complete_to:
            self._gap()
            return
        last = max((revision for pipeline, revision in beat.recent
                    if self.pipeline in ("", pipeline)), default=0)
        if last > self.complete_to:
            self._gap()
        else:
            self._advance(beat.revision, beat.epoch)

    def events(self, events: Events, epoch: int) -> list[Commit]:
        """Take the answer to `request`; `epoch` is that of the store that answered."""
        found: list[Commit] = []
        for commit in events.commits:
            if commit.revision > self.complete_to:
                found += self._deliver(commit)
        self._advance(max(self.complete_to, events.complete_to), max(self._epoch, epoch))
        self._behind = events.more
        self._doubts = 0
        return found

    # --- inside ---

    def _collect(self, part: Publication) -> list[Commit]:
        if any(other.commit.revision != part.commit.revision for other in self._parts.values()):
            self._parts.clear()
        self._parts[part.part] = part
        if len(self._parts) < part.parts:
            return []
        changes = sorted((change for piece in self._parts.values()
                          for change in piece.commit.changes), key=lambda change: change.index)
        return self._deliver(part.commit._replace(changes=tuple(changes)))

    def _deliver(self, commit: Commit) -> list[Commit]:
        first = self._mark.index + 1 if commit.revision == self._mark.revision else 0
        changes = tuple(change for change in commit.changes
                        if change.index >= first and under(self.prefix, change.key))
        self._advance(commit.revision, commit.epoch)
        return [commit._replace(changes=changes)] if changes else []

    def _advance(self, revision: int, epoch: int) -> None:
        self.complete_to = revision
        self._epoch = max(self._epoch, epoch)
        self._parts.clear()

    def _gap(self) -> None:
        if not self._behind:
            self.stats.gaps += 1
        self._behind = True

    def _doubt(self, beat: Heartbeat) -> None:
        # In the epoch of complete_to this is most likely a heartbeat that waited in the queue
        # while the store was asked. The second in a row is not: the store itself shall say.
        if beat.epoch > self._epoch:
            self._lost(beat.revision, beat.epoch)
        self._doubts += 1
        if self._doubts > 1:
            self._behind = True

    def _lost(self, revision: int, epoch: int) -> NoReturn:
        raise DataLoss(
            f"the store, now in epoch {epoch}, is at revision {revision}, but this watch has seen "
            f"revision {self.complete_to} in epoch {self._epoch}",
            revision=revision, epoch=epoch, seen=self.complete_to,
        )

    def _check_store(self, uuid: bytes) -> None:
        if uuid != self._uuid:
            raise OtherStore(
                f"a message came from store {uuid.hex()}; this watch is of {self._uuid.hex()}",
                uuid=uuid.hex(), expected=self._uuid.hex(),
            )
