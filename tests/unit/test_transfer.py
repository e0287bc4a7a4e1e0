"""Export, import, migration and digests, by both clients."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from datetime import timedelta
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
import test_client
from test_client import Way
from test_packed import write_raw

import ckptmesh
from ckptmesh import Conflict, ExportDamaged, ExportTruncated, InvalidPayload, Misuse
from ckptmesh.features import pages
from ckptmesh.features.migrating import migrate
from ckptmesh.features.portable import Reader
from ckptmesh.features.sharing import BEAT, folder_of
from ckptmesh.flows import run

way = test_client.way  # fixtures
client = test_client.client
Make = Callable[..., Any]


class Interrupted(Exception):
    """What ends an import in the middle."""


class Hue(Enum):  # not registered
    RED = 1


@pytest.fixture
def other() -> Iterator[Any]:
    with ckptmesh.connect("memory://") as found:
        yield found


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "state.jsonl"


def fill(mesh: Any, count: int = 5) -> None:
    mesh.commit("orders", {"offset": 41})
    mesh.commit("orders", {"offset": 42, "hue": Hue.RED}, position=42, head=50)
    for number in range(count):
        mesh.commit(f"orders/part/{number}", number, position=number)
    mesh.commit("orders2", "another pipeline", ttl=3_600)
    mesh.commit("orders/_lock/x", "a lock", lease=True, ttl=30)
    mesh.commit(f"{folder_of('orders')}/w/{BEAT}", {"ttl": 30})


def test_what_was_exported_is_the_same_elsewhere(client: Make, other: Any, file: Path) -> None:
    mesh = client()
    fill(mesh)
    told = mesh.export(file)
    assert (told.keys, told.past) == (7, 0)
    report = other.import_(file)
    assert (report.keys, report.written, report.same) == (7, 7, 0)
    assert other.digest().sha256 == mesh.digest().sha256
    found = other.get("orders", packed=True)
    was = mesh.get("orders", packed=True)
    assert (found.value, found.position, found.head) == (was.value, 42, 50)
    assert other.get("orders/_lock/x") is None, "a lease is no progress"
    left = other.get("orders2").expires_at - mesh.get("orders2").expires_at
    assert abs(left) < timedelta(seconds=20)


def test_the_other_client_imports_it_as_well(client: Make, other: Any, file: Path) -> None:
    fill(other)
    other.export(file)
    mesh = client()
    assert mesh.import_(file).written == 7
    assert mesh.digest().sha256 == other.digest().sha256


def test_an_export_is_one_cut_however_many_pages(
    client: Make, other: Any, file: Path, way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "EXPORT_BATCH", 2)
    mesh = client()
    fill(mesh)
    before = mesh.digest()
    done: list[int] = []

    def meddle(what: str, count: int, total: int | None) -> None:
        done.append(count)
        writer.commit(f"orders/part/{len(done)}", "changed meanwhile")
        writer.commit(f"zz/{len(done)}", "new meanwhile")
        writer.delete("orders2")

    with test_client.Client(way.transport()) as writer:
        told = mesh.export(file, progress=meddle)
    assert len(done) >= 3
    assert told.revision == before.revision
    other.import_(file)
    assert other.digest().sha256 == before.sha256
    assert mesh.digest().sha256 != before.sha256
    assert mesh.digest(at=before.revision).sha256 == before.sha256


def test_an_export_of_the_past_and_of_a_part(client: Make, other: Any, file: Path) -> None:
    mesh = client()
    mesh.commit("a/b", 1)
    then = mesh.commit("a", 1)
    mesh.commit("a", 2)
    mesh.commit("ab", 3)
    mesh.export(file, "a", at=then)
    reader = Reader(io.BytesIO(file.read_bytes()))
    assert [(row.found.key, row.found.revision) for row in reader] == [
        ("a", then.revision), ("a/b", then.revision - 1)]
    assert (reader.header.prefix, reader.header.revision) == ("a", then.revision)


def test_earlier_versions_are_in_it_to_be_looked_at(client: Make, other: Any, file: Path) -> None:
    mesh = client()
    mesh.commit("a", "another life")
    mesh.delete("a")
    for value in range(3):
        last = mesh.commit("a", value)
    mesh.commit("a", "later")
    told = mesh.export(file, at=last, history=True)
    assert (told.keys, told.past) == (1, 2)
    rows = list(Reader(io.BytesIO(file.read_bytes())))
    assert [(row.past, row.found.version) for row in rows] == [(False, 3), (True, 2), (True, 1)]
    assert other.import_(file).keys == 1
    assert other.value("a") == 2


def test_what_stands_with_something_else_refuses_the_whole_import(
    client: Make, other: Any, file: Path
) -> None:
    fill(other)
    other.export(file)
    mesh = client()
    mesh.commit("orders/part/3", "mine")
    before = mesh.digest()
    with pytest.raises(Conflict, match="1 of 7 keys stand there with something else") as found:
        mesh.import_(file)
    assert found.value.details["key"] == "orders/part/3"
    assert mesh.digest() == before, "not even what was in nobody's way"


def test_what_stands_is_left_or_replaced_when_told(client: Make, other: Any, file: Path) -> None:
    fill(other)
    other.export(file)
    mesh = client()
    mesh.commit("orders/part/3", "mine")
    mesh.commit("orders/part/4", 4, position=4)
    told = mesh.import_(file, on_conflict="skip", dry_run=True)
    assert told == ckptmesh.ImportReport(7, 5, 0, 1, 1, 0, True)
    assert mesh.value("orders") is None
    told = mesh.import_(file, on_conflict="skip")
    assert (told.written, told.skipped, told.same, told.replaced) == (5, 1, 1, 0)
    assert mesh.value("orders/part/3") == "mine"
    told = mesh.import_(file, on_conflict="replace")
    assert (told.written, told.skipped, told.same, told.replaced) == (0, 0, 6, 1)
    assert mesh.digest().sha256 == other.digest().sha256


def test_a_lease_is_never_written_over(client: Make, other: Any, file: Path) -> None:
    other.commit("job", "progress")
    other.commit("a", 1)
    other.export(file)
    mesh = client()
    mesh.commit("job", "somebody holds this", lease=True, ttl=30)
    for choice in ("refuse", "replace"):
        with pytest.raises(Conflict, match="leases"):
            mesh.import_(file, on_conflict=choice)
    assert mesh.get("a") is None
    assert mesh.import_(file, on_conflict="skip").skipped == 1
    assert mesh.value("job") == "somebody holds this"


def test_a_commit_between_looking_and_writing_is_not_overwritten(
    client: Make, other: Any, file: Path, way: Way
) -> None:
    fill(other)
    other.export(file)
    mesh = client()
    with test_client.Client(way.transport()) as writer:
        def meddle(what: str, count: int, total: int | None) -> None:
            if what == "checked":
                writer.commit("orders/part/1", "mine")

        with pytest.raises(Conflict, match="'orders/part/1' was committed by somebody else"):
            mesh.import_(file, progress=meddle)
        assert writer.value("orders/part/1") == "mine"
        told = mesh.import_(file, on_conflict="replace")
        assert (told.written, told.replaced) == (6, 1)


def test_an_import_that_was_interrupted_is_run_again_and_ends_the_same(
    client: Make, other: Any, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "EXPORT_BATCH", 2)
    fill(other)
    other.export(file)
    mesh = client()

    def stop(what: str, count: int, total: int | None) -> None:
        if what == "written" and count >= 4:
            raise Interrupted

    with pytest.raises(Interrupted):
        mesh.import_(file, progress=stop)
    assert mesh.digest().keys == 4
    told = mesh.import_(file)
    assert (told.same, told.written) == (4, 3)
    assert mesh.digest().sha256 == other.digest().sha256


def test_no_damaged_file_leaves_anything(
    client: Make, other: Any, file: Path, way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "EXPORT_BATCH", 1)
    fill(other)
    other.export(file)
    mesh = client()
    before = way.revision
    lines = file.read_bytes().splitlines(keepends=True)
    for number, line in enumerate(lines):
        for bent in (line[:9] + b"?" + line[10:], line[:-2], b""):
            file.write_bytes(b"".join([*lines[:number], bent, *lines[number + 1:]]))
            with pytest.raises(ExportDamaged) as found:
                mesh.import_(file)
            assert found.value.details["line"] == number + 1
        file.write_bytes(b"".join(lines[:number]))
        with pytest.raises(ExportTruncated):
            mesh.import_(file)
    assert way.revision == before
    file.write_bytes(b"".join(lines))
    assert mesh.import_(file).written == 7


def test_a_file_has_its_name_only_once_it_is_whole(client: Make, file: Path) -> None:
    mesh = client()
    mesh.commit("a", 1)
    mesh.export(file)
    before = file.read_bytes()
    write_raw(mesh, "b", b"\xc1")
    with pytest.raises(InvalidPayload, match="'b'"):
        mesh.export(file)
    assert file.read_bytes() == before
    assert os.listdir(file.parent) == [file.name]


def test_streams_serve_as_well_as_paths_and_gz_is_known_by_its_name(
    client: Make, other: Any, tmp_path: Path
) -> None:
    mesh = client()
    fill(mesh)
    stream = io.BytesIO()
    mesh.export(stream)
    assert other.import_(stream).written == 7
    mesh.export(tmp_path / "x.jsonl.gz")
    assert (tmp_path / "x.jsonl.gz").read_bytes()[:2] == b"\x1f\x8b"
    reader, writer = os.pipe()
    with os.fdopen(writer, "wb") as end:
        mesh.export(end, squeezed=True)
    with os.fdopen(reader, "rb") as end:
        assert other.import_(end, onto="copy").written == 7
    assert next(each.key for each in other.list("copy")) == "copy/orders"


def test_a_part_is_imported_onto_another_prefix(client: Make, other: Any, file: Path) -> None:
    fill(other)
    other.export(file)
    mesh = client()
    told = mesh.import_(file, "orders/part", onto="old")
    assert told.keys == 5
    assert [each.key for each in mesh.list("")] == [f"old/orders/part/{n}" for n in range(5)]


def test_what_has_expired_since_is_passed_over(client: Make, other: Any, file: Path) -> None:
    other.commit("a", 1, ttl=0.001)
    other.commit("b", 1, ttl=60)
    found = other.get("b")
    other.export(file, at=found)
    mesh = client()
    told = mesh.import_(file)
    assert (told.keys - told.expired, told.written) == (1, 1)


def test_a_wrong_choice_is_told(client: Make, file: Path) -> None:
    with pytest.raises(Misuse, match="refuse, skip, replace"):
        client().import_(io.BytesIO(), on_conflict="overwrite")


# --- digests ----------------------------------------------------------------------------------


def test_a_digest_tells_state_from_state_and_not_how_it_came_to_be(
    client: Make, other: Any
) -> None:
    mesh = client()
    for key in ("b", "a"):
        mesh.commit(key, "old")
    for key in ("a", "b"):
        mesh.commit(key, key, position=1)
    other.commit_many({"b": "b", "a": "a"})
    assert mesh.digest().sha256 != other.digest().sha256, "positions count"
    for key in ("b", "a"):
        other.commit(key, key, position=1)
    assert mesh.digest().sha256 == other.digest().sha256
    assert mesh.digest("a").sha256 != mesh.digest("b").sha256
    assert mesh.digest("a").keys == 1
    mesh.commit("lease", 1, lease=True, ttl=9)
    assert mesh.digest().sha256 == other.digest().sha256
    mesh.commit("a", "a", position=1, head=2)
    assert mesh.digest().sha256 != other.digest().sha256


# --- migration --------------------------------------------------------------------------------


def source_of(way: Way) -> Any:
    return test_client.Client(way.transport())


def test_a_migration_copies_a_cut_and_proves_it(way: Way, other: Any) -> None:
    with source_of(way) as mesh:
        fill(mesh)
        before = mesh.digest()

        def meddle(what: str, count: int, total: int | None) -> None:
            mesh.commit("orders", "goes on")

        told = run(migrate(mesh, other, progress=meddle))
    assert told.verified == 7
    assert told.sha256 == before.sha256 == other.digest().sha256
    assert told.revision == before.revision


def test_a_target_with_something_else_is_refused_unless_told(way: Way, other: Any) -> None:
    with source_of(way) as mesh:
        fill(mesh)
        other.commit("zz", "not theirs")
        before = other.digest()
        with pytest.raises(Conflict, match="not empty: it holds 'zz'"):
            run(migrate(mesh, other))
        assert other.digest() == before
        other.commit("orders", "another")
        other.delete("zz")
        with pytest.raises(Conflict, match="something else"):
            run(migrate(mesh, other))
        told = run(migrate(mesh, other, replace=True))
        assert (told.loaded.written, told.loaded.replaced, told.verified) == (6, 1, 7)


def test_an_interrupted_migration_goes_on(
    way: Way, other: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "EXPORT_BATCH", 2)

    def stop(what: str, count: int, total: int | None) -> None:
        if what == "written":
            raise Interrupted

    with source_of(way) as mesh:
        fill(mesh)
        with pytest.raises(Interrupted):
            run(migrate(mesh, other, progress=stop))
        told = run(migrate(mesh, other, dry_run=True))
        assert (told.loaded.same, told.loaded.written, told.verified) == (1, 6, 0)
        told = run(migrate(mesh, other))
        assert (told.loaded.same, told.loaded.written, told.verified) == (1, 6, 7)


def test_a_migration_that_somebody_writes_into_is_not_called_done(way: Way, other: Any) -> None:
    def meddle(what: str, count: int, total: int | None) -> None:
        if what == "written":
            other.commit("orders/part/2", "meddled")

    with source_of(way) as mesh:
        fill(mesh)
        with pytest.raises(Conflict, match="1 of 7 keys differ in the target, first "
                                           "'orders/part/2'"):
            run(migrate(mesh, other, progress=meddle))


def test_a_store_is_not_migrated_into_itself(way: Way) -> None:
    with source_of(way) as mesh, source_of(way) as again, pytest.raises(Misuse, match="same store"):
        run(migrate(mesh, again))


def test_nothing_is_sent_that_changes_the_source(way: Way, other: Any) -> None:
    with source_of(way) as mesh:
        fill(mesh)
        before = way.revision
        run(migrate(mesh, other))
        mesh.export(io.BytesIO())
    assert way.revision == before


def test_a_value_that_nobody_can_read_is_not_migrated_and_told_by_its_key() -> None:
    with ckptmesh.connect("memory://") as source, ckptmesh.connect("memory://") as target:
        source.commit("a", 1)
        write_raw(source, "b", b"\xc1")
        with pytest.raises(InvalidPayload, match="'b'") as caught:
            run(migrate(source, target))
        assert caught.value.details["key"] == "b"
        assert "state repair b" in caught.value.hint
