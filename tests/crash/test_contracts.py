"""Contracts in the files of a store: whatever makes a state of them has the contracts of then."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ckptmesh.cuts import reading, state_at
from ckptmesh.disk import RealDisk
from ckptmesh.facts import ContractChanged
from ckptmesh.messages import Rules, Savepoint
from ckptmesh.repair import repair
from ckptmesh.restore import restore
from ckptmesh.state import State
from ckptmesh.survey import dump
from tests.crash.stores import SMALL, START, Store
from tests.crash.test_compaction_crashes import compact

OPTIONS = SMALL._replace(retain_seconds=10**9)
FIRST, SECOND = Rules(monotonic=True, history=3), Rules(max_bytes=4, ttl=7, schema="a" * 64)


def change(store: Store, rules: Rules) -> None:
    store.write([ContractChanged(START + store.state.revision, "orders", rules)])


@pytest.fixture
def directory(tmp_path: Path) -> str:
    """Without a contract up to revision 5; the first up to 25, through a snapshot at 15; then the
    second, through another at 35; none from 45 on, which is a savepoint."""
    store = Store(str(tmp_path / "old"), RealDisk(), OPTIONS, locked=True).serve().commit(5)
    change(store, FIRST)
    store.commit(10)
    compact(store, RealDisk())
    store.commit(10)
    change(store, SECOND)
    store.commit(10)
    compact(store, RealDisk())
    store.commit(9)
    change(store, Rules())
    store.commit(1)
    store.wal.pin(Savepoint("end", 45))
    store.commit(5).wal.close()
    return str(tmp_path / "old")


def rules_in(directory: str) -> list[Rules]:
    state: State = reading(RealDisk(), directory, lambda manifest: state_at(
        RealDisk(), directory, manifest, None))
    return [each.contract for each in state.contracts]


@pytest.mark.parametrize(("revision", "expected"), [
    (1, []), (5, []), (6, [FIRST]), (15, [FIRST]), (16, [FIRST]), (25, [FIRST]), (26, [SECOND]),
    (35, [SECOND]), (44, [SECOND]), (45, []), (50, [])])
def test_a_restored_store_has_the_contracts_of_its_revision(
        directory: str, tmp_path: Path, revision: int, expected: list[Rules]) -> None:
    restore(directory, str(tmp_path / "new"), revision=revision)
    assert rules_in(str(tmp_path / "new")) == expected


def test_a_restored_store_has_those_of_the_head_or_of_a_savepoint(
        directory: str, tmp_path: Path) -> None:
    store = Store(directory, RealDisk(), OPTIONS, locked=True).serve()
    change(store, FIRST)  # no revision follows
    store.wal.close()
    restore(directory, str(tmp_path / "head"))
    assert rules_in(str(tmp_path / "head")) == [FIRST]
    restore(directory, str(tmp_path / "end"), savepoint="end")
    assert rules_in(str(tmp_path / "end")) == []


def test_a_repaired_store_has_those_before_the_damage(directory: str, tmp_path: Path) -> None:
    repair(directory, str(tmp_path / "whole"))
    assert rules_in(str(tmp_path / "whole")) == []
    last = max((path for path in Path(directory, "wal").glob("*.seg")),
               key=lambda path: path.name)
    last.unlink()
    for entry in sorted(Path(directory, "wal").glob("*.seg")):
        if int(entry.name.partition("-")[2].partition(".")[0]) > 40:
            entry.unlink()
    report = repair(directory, str(tmp_path / "new"))
    assert 35 <= report.revision < 45
    assert rules_in(str(tmp_path / "new")) == [SECOND]


def test_a_dump_shows_the_change_of_a_contract(directory: str) -> None:
    records = [record for row in dump(directory) for record in row.get("records", ())]
    found = [record for record in records if record["record"] == "ContractChanged"]
    assert [(record["prefix"], record["contract"]) for record in found] == [
        ("orders", {"monotonic": True, "history": 3}),
        ("orders", {"max_bytes": 4, "ttl": 7, "schema": "a" * 64}), ("orders", {})]
    json.dumps(found)
