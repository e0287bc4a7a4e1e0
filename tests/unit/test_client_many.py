"""`commit_many` of both clients over an engine in memory: lost on the way, and under a prefix."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import test_client
from test_client import Way, resolved, unknown

import ckptmesh
from ckptmesh import errors
from ckptmesh.views import Receipts

way = test_client.way  # fixtures
client = test_client.client

PAIRS = [(f"{'ab'[n % 2]}/{n % 8}", n) for n in range(20)]
RICH = [*PAIRS, ("c", "x" * 2_000)]  # one of them is large, so the store takes them one by one
Make = Callable[..., Any]


def standing(mesh: Any, way: Way, receipts: Any) -> None:
    """Receipts tell what the newest commits of the store are."""
    assert [each.revision for each in receipts] == [
        *range(way.revision - len(receipts) + 1, way.revision + 1)]
    for key, revision in {each.key: each.revision for each in receipts}.items():
        assert mesh.get(key).revision == revision


@pytest.mark.fault(31)
@pytest.mark.parametrize("pairs", [PAIRS[:1], PAIRS, RICH])
def test_many_commits_whose_reply_is_lost_take_effect_once(
        client: Make, way: Way, pairs: Any) -> None:
    mesh = client()
    error = unknown(mesh, way, "lose_replies", lambda: mesh.commit_many(pairs, timeout=0.05))
    assert way.revision == 1 + len(pairs), "sent again and again"
    receipts = resolved(mesh, error)
    assert isinstance(receipts, Receipts)
    assert [each.key for each in receipts] == [key for key, _ in pairs]
    assert [each.version for each in receipts] == [n // 8 + 1 for n in range(20)][:len(pairs)] + (
        [1] if pairs is RICH else [])
    standing(mesh, way, receipts)
    assert resolved(mesh, error) == receipts
    after = mesh.commit_many(pairs)
    standing(mesh, way, after)
    assert resolved(mesh, error) == receipts, "also when others came after"


@pytest.mark.parametrize("pairs", [PAIRS, RICH])
def test_many_commits_that_never_arrived_resolve_to_none(
        client: Make, way: Way, pairs: Any) -> None:
    mesh = client()
    error = unknown(mesh, way, "lose_requests", lambda: mesh.commit_many(pairs, timeout=0.05))
    assert resolved(mesh, error) is None
    assert mesh.get("a/0") is None
    mesh.commit_many(pairs)
    assert resolved(mesh, error) is None


def test_many_commits_whose_memory_the_store_has_dropped_stay_unknown(
        client: Make, way: Way) -> None:
    mesh = client()
    way.engine.wanted_settings = {"history_revisions": 10}  # fewer than one call makes
    error = unknown(mesh, way, "lose_replies", lambda: mesh.commit_many(PAIRS, timeout=0.05))
    assert way.engine.state.floor == way.revision - 10
    with pytest.raises(errors.OutcomeUnknown):  # never a part of them
        resolved(mesh, error)


def test_each_receipt_tells_a_revision_of_the_past(client: Make, way: Way) -> None:
    mesh = client()
    mesh.commit("other", 0)
    receipts = mesh.commit_many(PAIRS)
    standing(mesh, way, receipts)
    assert [mesh.get(key, at=receipt).value for (key, _), receipt in zip(
        PAIRS, receipts, strict=True)] == [value for _, value in PAIRS]


def test_many_commits_under_a_prefix_are_told_by_the_users_keys(client: Make, way: Way) -> None:
    mesh, whole = client(prefix="team/x"), client()
    receipts = mesh.commit_many(PAIRS, expect={"a/0": None})
    assert [each.key for each in receipts] == [key for key, _ in PAIRS]
    assert whole.get("team/x/b/1").revision == receipts[17].revision == mesh.get("b/1").revision
    assert whole.get("b/1") is None
    with pytest.raises(errors.Conflict):
        mesh.commit_many(PAIRS, expect={"a/0": None})
    with pytest.raises(errors.TooLarge):
        mesh.commit_many([*PAIRS, ("k" * 510, 0)])
    whole.commit_many([("k" * 510, 0)])
    with pytest.raises(errors.InvalidKey):
        mesh.commit_many([*PAIRS, ("/a", 0)])
    assert way.revision == 21


def test_many_commits_and_submitted_ones_keep_their_order(client: Make, way: Way) -> None:
    mesh = client()
    before = [mesh.submit("a/0", n) for n in range(10)]
    receipts = mesh.commit_many(PAIRS)
    after = [mesh.submit("a/0", n) for n in range(10)]
    mesh.flush()
    told = [*[each.result(5) for each in before], *receipts, *[each.result(5) for each in after]]
    assert [each.revision for each in told] == [*range(1, 41)]
    assert [each.version for each in told if each.key == "a/0"] == [*range(1, 24)]
    assert way.engine.counts["commits"] == 40


def test_a_receipt_of_many_fits_wherever_one_of_a_commit_does(client: Make) -> None:
    mesh = client()
    receipts = mesh.commit_many(PAIRS)
    assert mesh.commit("a/0", "next", expect=receipts[16], sources=[receipts[3]]).version == 4
    with pytest.raises(errors.Conflict):
        mesh.commit("b/1", 0, expect=receipts[1])
    assert repr(receipts) == f"Receipts({[*receipts]!r})"
    with pytest.raises(TypeError):
        hash(receipts)


def test_many_commits_of_an_embedded_store_are_there_when_it_is_opened_again(
        tmp_path: Path) -> None:
    url = f"file:{tmp_path}/state"
    last = None
    for again in range(3):
        with ckptmesh.connect(url) as mesh:
            receipts = mesh.commit_many(PAIRS, expect={"a/0": last})
            rich = mesh.commit_many(RICH, expect={"a/0": receipts[16]})
            assert [each.version for each in [*receipts, *rich] if each.key == "a/0"] == [
                6 * again + n for n in range(1, 7)]
            assert rich[0].revision == receipts[-1].revision + 1
            assert [each.value for each in mesh.history("a/0", limit=3)] == [16, 8, 0]
            last = rich[16]


def test_a_transaction_of_many_puts_is_one_revision_whatever_stands_there(
        client: Make, way: Way) -> None:
    mesh = client()
    puts = {f"{'ab'[n % 2]}/{n}": n for n in range(20)}
    mesh.commit("a/4", "brief", ttl=3_600)
    mesh.commit("gone", 1)
    for again in range(1, 4):
        before = way.revision
        assert mesh.transact(put=puts) == before + 1 == way.revision
        assert {each.key: (each.value, each.revision, each.version) for each in mesh.list()
                if "/" in each.key} == {
            key: (value, before + 1, again + (key == "a/4")) for key, value in puts.items()}
    assert mesh.get("a/4").expires_at is None
    assert mesh.transact(put=puts, delete=["gone", "a/missing"],
                         expect={"gone": 2}) == way.revision == 6
    assert mesh.get("gone") is None
    for wrong, error in (({"put": puts, "delete": ["b/1"]}, errors.InvalidRequest),
                         ({"put": {**puts, "/a": 1}}, errors.InvalidKey),
                         ({"put": {**puts, "c": object()}}, errors.InvalidValue),
                         ({"put": puts, "expect": {"a/0": None}}, errors.Conflict),
                         ({"put": {f"k{n}": n for n in range(4_097)}}, errors.TooLarge)):
        with pytest.raises(error):
            mesh.transact(**wrong)
    assert way.revision == 6
    assert mesh.transact(put={f"k{n}": n for n in range(4_096)}) == 7
    error = unknown(mesh, way, "lose_replies", lambda: mesh.transact(put=puts, timeout=0.05))
    assert resolved(mesh, error) == way.revision
