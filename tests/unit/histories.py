"""Random histories: strategies of hypothesis for what may happen to a store, and how to play it."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from machines import Store, User

from ckptmesh.limits import SECOND
from ckptmesh.messages import (
    AcceptLoss,
    Close,
    Delete,
    Exists,
    Increment,
    Put,
    RevisionIs,
    Setting,
    Touch,
    Transact,
)

KEYS = ["a", "a/b", "a/c", "b", "b/_lock/x"]
MUTATIONS = st.one_of(
    st.builds(Put, st.sampled_from(KEYS), st.sampled_from([b"\x01", b"\xc4\x00", b"x" * 300]),
              st.sampled_from([None, SECOND, 20 * SECOND]), st.booleans(),
              st.sampled_from([None, 5]), st.none(), st.sampled_from([(), (("a", 1),)])),
    st.builds(Delete, st.sampled_from(KEYS)),
    st.builds(Touch, st.sampled_from(KEYS), st.sampled_from([None, SECOND, 30 * SECOND])),
    st.builds(Increment, st.sampled_from(KEYS), st.integers(-3, 3),
              st.sampled_from([None, SECOND])),
)
WHEN = st.one_of(st.builds(Exists, st.sampled_from(KEYS)),
                 st.builds(RevisionIs, st.sampled_from(KEYS), st.integers(0, 3)))
STEPS = st.one_of(
    st.tuples(st.just("commit"), st.integers(0, 2),
              st.lists(MUTATIONS, min_size=1, max_size=3, unique_by=lambda m: m.key),
              st.lists(WHEN, max_size=1)),
    st.tuples(st.just("wait"), st.sampled_from([1, SECOND, 40 * SECOND, 3_700 * SECOND])),
    st.tuples(st.just("restart"), st.sampled_from([0, SECOND])),
    st.tuples(st.just("set"), st.sampled_from(["history_revisions", "history_versions"]),
              st.integers(0, 6)),
    st.tuples(st.just("set"), st.just("history_bytes"), st.sampled_from([0, 2_000, 2**30])),
    st.tuples(st.just("close"), st.integers(0, 2)),
    st.tuples(st.just("loss"), st.integers(0, 3)),
    st.tuples(st.just("accept"),),
    st.tuples(st.just("snapshot"),),
)


def play(store: Store, users: dict[int, User], step: tuple[Any, ...]) -> None:
    """One step of a random history; refusals are part of it."""
    match step:
        case ("commit", who, mutations, when):
            user = users.get(who) or users.setdefault(who, store.user())
            mutations = [m._replace(ttl=m.ttl or SECOND) if type(m) is Put and m.lease else m
                         for m in mutations]
            request = user.request(Transact(tuple(when), tuple(mutations)))
            if type(store.batch(request)[0].error).__name__ == "SessionExpired":
                del users[who]
        case ("wait", micros):
            store.pass_time(micros)
        case ("restart", micros):
            store.restart(micros)
        case ("set", name, value):
            store.ask(Setting(name, value))
        case ("close", who) if who in users:
            store.batch(users.pop(who).request(Close()))
        case ("loss", epochs) if 0 in users:
            store.batch(users[0].request(Transact((), ()), epoch=store.state.epoch + epochs))
        case ("accept",):
            store.ask(AcceptLoss())
