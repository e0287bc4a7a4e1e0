"""Who has consumed checkpoints: read from the sources of places, runs and commits."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import ckptmesh
from ckptmesh import Mark
from ckptmesh.client import Client
from ckptmesh.features.consumers import consumers
from ckptmesh.features.placing import Place, key_of, name_of, read
from ckptmesh.flows import run
from ckptmesh.limits import SOURCES


@pytest.fixture
def mesh() -> Iterator[Client]:
    with ckptmesh.connect("memory://") as found:
        yield found


def place(mesh: Client, prefix: str, name: str, mark: int, sources: list[tuple[str, int]]) -> None:
    value = Place(prefix, Mark(mark), "00").value()
    mesh.commit(key_of(prefix, name), value, position=mark, sources=sources)


def told(mesh: Client, what: str | list[str], after: int) -> list[tuple[str, str, str, int]]:
    return [(each.kind, each.name, each.key, each.revision)
            for each in run(consumers(mesh, what, after))]


def test_watches_runs_and_commits_that_consumed_later_versions_are_told(mesh: Client) -> None:
    old = mesh.commit("orders/a", 1)
    new = mesh.commit("orders/a", 2)
    other = mesh.commit("orders/b", 1)
    place(mesh, "orders", "early", old.revision, [("orders/a", old.revision)])
    place(mesh, "orders", "late", new.revision, [("orders/a", new.revision)])
    place(mesh, "", "all", other.revision,
          [("orders/a", new.revision), ("orders/b", other.revision)])
    mesh.commit("report", "x", sources=[new])
    mesh.commit("orders/sum", 3, sources=[new])
    pipe = ckptmesh.pipeline("nightly")

    @pipe.stage
    def first(step: ckptmesh.StageRun) -> int:
        step.used(new)
        return 1

    @pipe.stage
    def second(step: ckptmesh.StageRun, rows: int) -> int:
        return rows + 1

    pipe.run(mesh, key="monday")
    assert told(mesh, "orders", old.revision) == [
        ("checkpoint", "report", "orders/a", new.revision),
        ("run", "nightly/monday", "orders/a", new.revision),
        ("watch", "ckptmesh/all", "orders/a", new.revision),
        ("watch", "ckptmesh/all", "orders/b", other.revision),
        ("watch", "orders/late", "orders/a", new.revision)]
    assert told(mesh, "orders", new.revision) == [
        ("watch", "ckptmesh/all", "orders/b", other.revision)]
    assert told(mesh, ["orders/b"], 0) == [("watch", "ckptmesh/all", "orders/b", other.revision)]
    assert told(mesh, ["orders/a"], new.revision) == []
    assert told(mesh, "order", 0) == [], "whole segments"
    assert told(mesh, "nightly", 0) == [], "what stages give each other is the run's own affair"


def test_a_watch_that_may_have_forgotten_keys_stands_with_its_prefix(mesh: Client) -> None:
    many = [(f"orders/{number:03}", number + 1) for number in range(SOURCES)]
    place(mesh, "orders", "many", 900, many)
    assert told(mesh, "orders/x", 500) == [("watch", "orders/many", "orders", 900)]
    assert told(mesh, ["orders/x"], 900) == []
    assert told(mesh, "invoices", 500) == []
    assert told(mesh, "orders/003", 2) == [("watch", "orders/many", "orders/003", 4)]


def test_what_stands_in_the_place_of_a_place_is_told_from_one() -> None:
    good = Place("orders", Mark(7, 1), "ab").value()
    assert read("k", good) == Place("orders", Mark(7, 1), "ab")
    for wrong in (None, 7, {}, {**good, "mark": [1, 2, 3]}, {**good, "mark": ["x", 1]},
                  {**good, "mark": [True, 0]}, {**good, "prefix": 1}, {**good, "store": None}):
        with pytest.raises(ckptmesh.InvalidPayload):
            read("k", wrong)
    with pytest.raises(ckptmesh.Unsupported):
        read("k", {**good, "schema": 2})
    assert [name_of(key) for key in ("a/_watches/b", "a/_watches", "a/_watches/b/c", "a/b/c")] == [
        "b", "", "", ""]
    for name in ("", "a/b", "_a", 7):
        with pytest.raises(ckptmesh.Misuse):
            key_of("orders", name)  # type: ignore[arg-type]
