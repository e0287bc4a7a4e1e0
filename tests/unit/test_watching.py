"""The watcher's brain against scripted messages: lost, repeated, reordered, from another life."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptmesh.errors import DataLoss, OtherStore
from ckptmesh.limits import pipeline_of
from ckptmesh.messages import (
    LAST_INDEX,
    PUT,
    Change,
    Commit,
    Events,
    Heartbeat,
    Publication,
    Since,
    Version,
)
from ckptmesh.views import Mark
from ckptmesh.watching import Watching

UUID = b"u" * 16


class Store:
    """A model of the publishing side: commits, their publications, heartbeats, answers."""

    def __init__(self) -> None:
        self.commits: list[Commit] = []
        self.pointers: dict[str, int] = {}
        self.epoch = 1
        self.beaten = 0

    @property
    def revision(self) -> int:
        return len(self.commits)

    def commit(self, *keys: str) -> list[Publication]:
        revision, before = self.revision + 1, self.revision
        changes = tuple(
            Change(i, PUT, key, Version(b"\x01", revision, revision, 1, revision))
            for i, key in enumerate(keys))
        self.commits.append(Commit(revision, self.epoch, revision, changes))
        names = list(dict.fromkeys(map(pipeline_of, keys)))
        made = []
        for part, name in enumerate(names):
            own = tuple(c for c in changes if pipeline_of(c.key) == name)
            made.append(Publication(
                name, UUID, self.pointers.get(name, 0), before, part, len(names),
                self.commits[-1]._replace(changes=own)))
            self.pointers[name] = revision
        return made

    def beat(self, many: bool = False) -> Heartbeat:
        recent = tuple((name, last) for name, last in self.pointers.items() if last > self.beaten)
        beat = Heartbeat(UUID, self.epoch, self.revision, self.revision, self.beaten,
                         None if many else recent)
        self.beaten = self.revision
        return beat

    def since(self, ask: Since, page: int = 1_000) -> Events:
        start = ask.revision + 1 if ask.index >= LAST_INDEX else ask.revision
        found: list[Commit] = []
        for commit in self.commits[start - 1:]:
            changes = tuple(
                c for c in commit.changes
                if ask.pipeline in ("", pipeline_of(c.key))
                and (commit.revision > ask.revision or c.index > ask.index))
            if changes:
                if len(found) == page:
                    return Events(tuple(found), commit.revision - 1, True)
                found.append(commit._replace(changes=changes))
        return Events(tuple(found), self.revision, False)


class Watcher:
    """The brain with a store to ask: what `watch.py` does, without sockets and clocks."""

    def __init__(self, store: Store, prefix: str = "orders", mark: Mark | None = None) -> None:
        self.store = store
        self.brain = Watching(prefix, mark or Mark(store.revision), uuid=UUID, epoch=store.epoch,
                              now=0.0)
        self.seen: list[tuple[int, int, str]] = []
        self.asked: list[Since] = []

    def settle(self, page: int = 1_000) -> None:
        while (ask := self.brain.request()) is not None:
            self.asked.append(ask)
            self.take(self.brain.events(self.store.since(ask, page), self.store.epoch))

    def take(self, commits: list[Commit]) -> None:
        self.seen += [(commit.revision, change.index, change.key)
                      for commit in commits for change in commit.changes]

    def feed(self, *messages: Publication | Heartbeat) -> None:
        for message in messages:
            if isinstance(message, Heartbeat):
                self.brain.heartbeat(message, 0.0)
            else:
                self.take(self.brain.publication(message))

    def revisions(self) -> list[int]:
        return [revision for revision, _, _ in self.seen]


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def watcher(store: Store) -> Watcher:
    watcher = Watcher(store)
    watcher.settle()
    return watcher


def test_a_watch_asks_once_when_it_begins_and_never_again_without_losses(
    store: Store, watcher: Watcher,
) -> None:
    for i in range(50):
        watcher.feed(*store.commit(f"orders/{i}"))
        store.commit("other")  # not subscribed to: never arrives
        if i % 7 == 0:
            watcher.feed(store.beat())
        watcher.settle()
    assert watcher.asked == [Since(0, LAST_INDEX, "orders")]
    assert watcher.revisions() == list(range(1, 100, 2))
    assert watcher.brain.stats.gaps == 0


def test_a_heartbeat_that_names_no_newer_revision_completes_without_a_request(
    store: Store, watcher: Watcher,
) -> None:
    for _ in range(10):
        store.commit("other/a")
    watcher.feed(store.beat())
    assert watcher.brain.request() is None
    assert watcher.brain.complete_to == 10


def test_a_lost_publication_shows_in_the_next_one(store: Store, watcher: Watcher) -> None:
    store.commit("orders")
    watcher.feed(*store.commit("orders"))
    assert watcher.seen == []
    watcher.settle()
    assert watcher.revisions() == [1, 2]
    assert watcher.asked[1:] == [Since(0, LAST_INDEX, "orders")]


@pytest.mark.fault(4)
def test_a_lost_last_publication_shows_in_the_heartbeat(store: Store, watcher: Watcher) -> None:
    store.commit("orders")
    watcher.feed(store.beat())
    watcher.settle()
    assert watcher.revisions() == [1]


def test_a_lost_heartbeat_leads_to_a_request_only_when_something_may_be_missing(
    store: Store, watcher: Watcher,
) -> None:
    store.commit("other")
    store.beat()  # lost
    watcher.feed(*store.commit("orders"))  # its own pointer says that nothing was missed
    watcher.feed(store.beat())
    assert watcher.brain.request() is None
    store.commit("other")
    store.beat()  # lost, and nothing of ours since
    store.commit("other")
    watcher.feed(store.beat())
    assert watcher.brain.request() == Since(2, LAST_INDEX, "orders")


def test_a_heartbeat_that_says_many_leads_to_a_request(store: Store, watcher: Watcher) -> None:
    store.commit("other")
    watcher.feed(store.beat(many=True))
    assert watcher.brain.request() is not None
    watcher.settle()
    assert watcher.brain.complete_to == 1
    watcher.feed(store.beat(many=True))
    assert watcher.brain.request() is None


def test_duplicates_are_counted_and_dropped(store: Store, watcher: Watcher) -> None:
    one = store.commit("orders")
    watcher.feed(*one, *one, *store.commit("orders"), *one)
    assert watcher.revisions() == [1, 2]
    assert watcher.brain.stats.duplicates == 2


def test_what_arrives_while_a_question_is_open_comes_with_the_answer(
    store: Store, watcher: Watcher,
) -> None:
    store.commit("orders")
    for _ in range(5):
        watcher.feed(*store.commit("orders"))
    assert watcher.seen == []
    watcher.settle(page=2)
    assert watcher.revisions() == [1, 2, 3, 4, 5, 6]
    assert [ask.revision for ask in watcher.asked] == [0, 0, 2, 4]


def test_what_joins_on_is_taken_while_a_question_is_open_and_not_again_from_the_answer(
    store: Store, watcher: Watcher,
) -> None:
    watcher.brain.catch_up(0.0)
    ask = watcher.brain.request()
    assert ask is not None
    watcher.feed(*store.commit("orders"), *store.commit("orders"))
    watcher.take(watcher.brain.events(store.since(ask), 1))
    assert watcher.revisions() == [1, 2]


def test_an_answer_older_than_what_was_taken_meanwhile_takes_nothing_back(
    store: Store, watcher: Watcher,
) -> None:
    watcher.brain.catch_up(1.0)
    ask = watcher.brain.request()
    assert ask is not None
    answer = store.since(ask)
    watcher.feed(*store.commit("orders"))
    watcher.take(watcher.brain.events(answer, store.epoch))
    assert watcher.brain.complete_to == 1
    watcher.feed(*store.commit("orders"))
    watcher.settle()
    assert watcher.revisions() == [1, 2]


def test_a_siblings_commit_never_causes_a_request(store: Store) -> None:
    watcher = Watcher(store, "orders/a")
    watcher.settle()
    for _ in range(5):
        watcher.feed(*store.commit("orders/b"))
        watcher.feed(*store.commit("orders/a/1", "orders/ab", "orders/a"))
        watcher.feed(store.beat())
        watcher.settle()
    assert len(watcher.asked) == 1
    assert watcher.seen[:2] == [(2, 0, "orders/a/1"), (2, 2, "orders/a")]


def test_a_watch_on_everything_gives_a_revision_whole(store: Store) -> None:
    watcher = Watcher(store, "")
    watcher.settle()
    first, second = store.commit("a/1", "b/1", "a/2")
    watcher.feed(second, second)
    assert watcher.seen == []
    watcher.feed(first)
    assert watcher.seen == [(1, 0, "a/1"), (1, 1, "b/1"), (1, 2, "a/2")]


def test_a_missing_part_is_a_gap_for_a_watch_on_everything(store: Store) -> None:
    watcher = Watcher(store, "")
    watcher.settle()
    first, _ = store.commit("a", "b")
    watcher.feed(first, *store.commit("c"))
    watcher.settle()
    assert watcher.seen == [(1, 0, "a"), (1, 1, "b"), (2, 0, "c")]
    _, second = store.commit("a", "b")
    watcher.feed(second, store.beat())
    watcher.settle()
    assert watcher.seen[3:] == [(3, 0, "a"), (3, 1, "b")]


def test_a_mark_inside_a_revision_goes_on_with_the_rest_of_it(store: Store) -> None:
    store.commit("orders/a", "orders/b", "orders/c")
    store.commit("orders/d")
    watcher = Watcher(store, mark=Mark(1, 0))
    watcher.settle()
    assert watcher.asked == [Since(1, 0, "orders")]
    assert watcher.seen == [(1, 1, "orders/b"), (1, 2, "orders/c"), (2, 0, "orders/d")]


def test_a_mark_inside_a_revision_that_is_published_late(store: Store) -> None:
    publication = store.commit("orders/a", "orders/b")
    watcher = Watcher(store, mark=Mark(1, 0))
    watcher.brain.events(Events((), 0, False), 1)
    watcher.feed(*publication)
    assert watcher.seen == [(1, 1, "orders/b")]


def test_silence_calls_for_a_new_socket_and_a_question(store: Store, watcher: Watcher) -> None:
    watcher.brain.heartbeat(store.beat(), 10.0)
    assert watcher.brain.silent_at == 13.0
    watcher.brain.catch_up(13.0)
    assert watcher.brain.silent_at == 16.0
    assert watcher.brain.request() == Since(0, LAST_INDEX, "orders")


def test_another_store_is_refused(store: Store, watcher: Watcher) -> None:
    publication = store.commit("orders")[0]
    with pytest.raises(OtherStore):
        watcher.feed(publication._replace(uuid=b"x" * 16))
    with pytest.raises(OtherStore):
        watcher.feed(store.beat()._replace(uuid=b"x" * 16))


def test_a_store_that_came_back_shorter_is_data_loss(store: Store, watcher: Watcher) -> None:
    watcher.feed(*store.commit("orders"), *store.commit("orders"))
    store.epoch = 2
    del store.commits[1:]
    with pytest.raises(DataLoss):
        watcher.feed(store.beat())


def test_a_revision_used_again_in_a_later_epoch_is_data_loss(
    store: Store, watcher: Watcher,
) -> None:
    watcher.feed(*store.commit("orders"), *store.commit("orders"))
    store.epoch = 2
    del store.commits[1:]
    with pytest.raises(DataLoss):
        watcher.feed(*store.commit("orders"))


def test_a_heartbeat_that_waited_in_the_queue_is_not_taken_for_loss(
    store: Store, watcher: Watcher,
) -> None:
    old = store.beat()
    store.commit("orders")
    watcher.feed(store.beat())
    watcher.settle()
    watcher.feed(old)
    assert watcher.brain.request() is None
    watcher.feed(old)  # a second one in a row may be true: the store itself shall say
    assert watcher.brain.request() == Since(1, LAST_INDEX, "orders")


def test_two_old_heartbeats_with_a_newer_one_between_them_raise_no_doubt(
    store: Store, watcher: Watcher,
) -> None:
    old = store.beat()
    store.commit("orders")
    watcher.feed(store.beat())
    watcher.settle()
    watcher.feed(old, store.beat(), old)
    assert watcher.brain.request() is None


def test_heartbeats_of_an_earlier_epoch_mean_nothing(store: Store, watcher: Watcher) -> None:
    old = store.beat()
    store.epoch = 2
    watcher.feed(*store.commit("orders"))
    watcher.feed(old, old, old)
    assert watcher.brain.request() is None


KEYS = ["orders/1", "orders/2", "orders", "sales/1", "other"]
STEPS = st.lists(
    st.one_of(
        st.lists(st.sampled_from(KEYS), min_size=1, max_size=4, unique=True),
        st.sampled_from(["beat", "many", "settle", "restart", "socket"]),
    ),
    max_size=60,
)


@given(STEPS, st.sampled_from(["", "orders", "orders/1", "sales"]), st.data())
@settings(max_examples=300, deadline=None)
def test_whatever_is_lost_repeated_or_late_every_event_is_seen_once_and_in_order(
    steps: list[Any], prefix: str, data: Any,
) -> None:
    store = Store()
    fate = st.sampled_from(["come", "come", "come", "lost", "twice", "late"])
    watcher = Watcher(store, prefix)
    late: list[Any] = []
    for step in steps:
        made: list[Any] = []
        if step == "settle":
            watcher.settle(page=data.draw(st.integers(1, 3)))
        elif step == "restart":
            store.epoch += 1
        elif step == "socket":
            watcher.brain.catch_up(0.0)
        elif isinstance(step, list):
            made = list(store.commit(*step))
        else:
            made = [store.beat(many=step == "many")]
        for message in made:
            chance = data.draw(fate)
            watcher.feed(*[message] * {"come": 1, "lost": 0, "twice": 2, "late": 0}[chance])
            if chance == "late":
                late.append(message)
        if late and data.draw(st.booleans()):
            watcher.feed(late.pop(0))
    watcher.feed(store.beat())
    watcher.settle()
    expected = [
        (commit.revision, change.index, change.key)
        for commit in store.commits for change in commit.changes
        if not prefix or change.key == prefix or change.key.startswith(prefix + "/")
    ]
    assert watcher.seen == expected
    assert watcher.brain.complete_to == store.revision


@given(st.lists(st.lists(st.sampled_from(KEYS), min_size=1, max_size=3, unique=True), max_size=40),
       st.sampled_from(["", "orders", "orders/1", "sales"]), st.data())
@settings(max_examples=100, deadline=None)
def test_without_losses_no_second_request_is_ever_made(
    commits: list[list[str]], prefix: str, data: Any,
) -> None:
    store = Store()
    watcher = Watcher(store, prefix)
    watcher.settle()
    for keys in commits:
        for publication in store.commit(*keys):
            if prefix == "" or publication.pipeline == pipeline_of(prefix):
                watcher.feed(publication)
        if data.draw(st.booleans()):
            watcher.feed(store.beat())
        watcher.settle()
    assert len(watcher.asked) == 1
