"""The crash images of small disks, counted by hand; and a store on all of them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable

import pytest

from ckptmesh.testing.disks import FaultyDisk, MemoryDisk
from ckptmesh.testing.images import Images
from tests.campaign import crash_images
from tests.campaign.crash_images import Examination, plan
from tests.crash.lives import PLACE, Life, fresh

SECTOR = MemoryDisk.SECTOR
GARBAGE = b"?" * SECTOR


def listed(disk: MemoryDisk) -> list[dict[str, bytes]]:
    """The files of every image."""
    images = Images(disk, garbage=lambda sector: GARBAGE)
    found = [files_of(image) for image in images]
    assert images.exhaustive
    assert images.distinct == len(found)
    return found


def files_of(disk: MemoryDisk) -> dict[str, bytes]:
    return {path: bytes(file.data) for path, file in disk.names.items() if file is not None}


def names_of(disk: MemoryDisk) -> set[frozenset[str]]:
    return {frozenset(image) for image in listed(disk)}


def write(disk: MemoryDisk, path: str, data: bytes, offset: int = 0, *, sync: bool = False) -> None:
    handle = disk.open(path, "write" if path in disk.names else "create")
    disk.pwrite(handle, data, offset)
    if sync:
        disk.fdatasync(handle)
    disk.close(handle)


def durable(*files: tuple[str, bytes]) -> MemoryDisk:
    return MemoryDisk.holding({"/": None, **dict(files)})


# --- bytes ------------------------------------------------------------------------------------


def test_what_is_synced_has_one_image() -> None:
    disk = MemoryDisk()
    write(disk, "/a", b"new", sync=True)
    disk.sync_directory("/")
    assert listed(disk) == [{"/a": b"new"}]


@pytest.mark.fault(21)
def test_an_unsynced_sector_is_new_old_zero_garbage_or_torn() -> None:
    old, new, half = b"o" * SECTOR, b"n" * SECTOR, SECTOR // 2
    disk = durable(("/a", old))
    write(disk, "/a", new)
    assert [image["/a"] for image in listed(disk)] == [
        new, old, bytes(SECTOR), new[:half] + old[half:], GARBAGE]


@pytest.mark.fault(21)
def test_sectors_of_one_write_are_decided_one_by_one_and_the_others_stay() -> None:
    disk = durable(("/a", b"o" * 4 * SECTOR))
    write(disk, "/a", b"n" * 2 * SECTOR, SECTOR)
    found = [image["/a"] for image in listed(disk)]
    assert len(found) == len(set(found)) == 5 * 5
    assert all(data[:SECTOR] == data[-SECTOR:] == b"o" * SECTOR for data in found)


def test_a_sector_written_twice_may_hold_what_was_between() -> None:
    disk = durable(("/a", b"1" * SECTOR))
    write(disk, "/a", b"2" * SECTOR)
    write(disk, "/a", b"3" * SECTOR)
    assert {image["/a"][:1] + image["/a"][-1:] for image in listed(disk)} == {
        b"11", b"22", b"33", b"\0\0", b"31", b"??"}


@pytest.mark.fault(20)
def test_a_file_that_grew_may_end_at_sectors_or_at_any_byte_of_its_last_one() -> None:
    disk = durable(("/a", b""))
    write(disk, "/a", b"n" * 700)
    found = [image["/a"] for image in listed(disk)]
    # Two sectors: new, zero, torn, garbage; the half that is torn off the second is beyond its end.
    whole = [data for data in found if len(data) == 700]
    assert len(whole) == 4 * 3
    assert sum(len(data) == SECTOR for data in found) == 4
    assert found.count(b"") == 1
    tails = {data for data in found if SECTOR < len(data) < 700}
    assert tails == {b"n" * size for size in range(SECTOR + 1, 700)}
    assert len(found) == 12 + 4 + 1 + 187


@pytest.mark.fault(22)
def test_zeroes_of_a_new_file_may_be_missing_or_garbage() -> None:
    disk = durable(("/a", b""))
    disk.zero_fill(disk.open("/a", "write"), 3 * SECTOR)
    assert len(listed(disk)) == 2**3 + 2**2 + 2 + 1


def test_a_cut_may_be_lost_and_what_was_cut_off_may_be_zeroes() -> None:
    disk = durable(("/a", b"o" * 2 * SECTOR))
    disk.truncate(disk.open("/a", "write"), SECTOR)
    one = b"o" * SECTOR
    assert {image["/a"] for image in listed(disk)} == {one, one + one, one + bytes(SECTOR)}


def test_files_are_decided_one_by_one() -> None:
    disk = durable(("/a", b"o" * SECTOR), ("/b", b"o" * SECTOR))
    write(disk, "/a", b"n" * SECTOR)
    write(disk, "/b", b"n" * SECTOR)
    assert len({tuple(image.values()) for image in listed(disk)}) == 5 * 5


# --- names ------------------------------------------------------------------------------------


@pytest.mark.fault(26)
def test_a_rename_over_a_file_shows_the_old_one_or_the_new_one() -> None:
    disk = durable(("/a", b"old"))
    write(disk, "/t", b"new", sync=True)
    disk.sync_directory("/")
    disk.rename("/t", "/a")
    assert listed(disk) == [{"/a": b"new"}, {"/a": b"old", "/t": b"new"}]


@pytest.mark.fault(26)
def test_changes_of_names_may_be_lost_in_any_order() -> None:
    disk = durable(("/a", b"a"), ("/b", b"b"))
    disk.unlink("/a")
    disk.rename("/b", "/c")
    write(disk, "/d", b"", sync=True)
    assert names_of(disk) == {
        frozenset((*a, b, *d)) for a in ((), ("/a",)) for b in ("/b", "/c") for d in ((), ("/d",))}
    disk.sync_directory("/")
    assert names_of(disk) == {frozenset(("/c", "/d"))}


def test_a_new_file_that_was_renamed_has_either_name_or_none() -> None:
    disk = MemoryDisk()
    write(disk, "/t", b"new", sync=True)
    disk.rename("/t", "/a")
    assert names_of(disk) == {frozenset(("/a",)), frozenset(("/t",)), frozenset()}


def test_what_is_in_a_directory_goes_with_its_name() -> None:
    disk = MemoryDisk()
    disk.mkdir("/d")
    write(disk, "/d/a", b"a", sync=True)
    disk.sync_directory("/d")
    assert listed(disk) == [{"/d/a": b"a"}, {}]
    assert {tuple(image.names) for image in Images(disk)} == {("/", "/d", "/d/a"), ("/",)}
    disk.sync_directory("/")
    assert listed(disk) == [{"/d/a": b"a"}]


# --- many -------------------------------------------------------------------------------------


def large() -> MemoryDisk:
    disk = durable(*((f"/{name}", b"o" * 6 * SECTOR) for name in "abc"))
    for name in "abc":
        write(disk, f"/{name}", b"n" * 6 * SECTOR)
    return disk


def test_beyond_the_bound_a_sample_is_given_by_seed_and_says_so() -> None:
    images = Images(large(), bound=300, seed=4)
    found = [files_of(image) for image in images]
    assert not images.exhaustive
    assert 200 < len(found) <= 300
    assert images.combinations > 300
    assert {"/a": b"n" * 6 * SECTOR, "/b": b"n" * 6 * SECTOR, "/c": b"n" * 6 * SECTOR} in found
    assert {"/a": b"o" * 6 * SECTOR, "/b": b"o" * 6 * SECTOR, "/c": b"o" * 6 * SECTOR} in found
    assert found == [files_of(image) for image in Images(large(), bound=300, seed=4)]
    assert found != [files_of(image) for image in Images(large(), bound=300, seed=5)]


def test_equal_images_are_given_once_and_counted() -> None:
    disk = durable(("/a", b"1" * SECTOR))
    write(disk, "/b", b"1" * SECTOR, sync=True)
    disk.rename("/b", "/a")  # another file with the very same bytes
    images = Images(disk)
    assert len(list(images)) == images.distinct == 2  # with /b, and without
    assert (images.combinations, images.equal) == (3, 1)


def test_images_stay_as_they_were_when_the_disk_goes_on() -> None:
    disk = durable(("/a", b"o" * SECTOR))
    write(disk, "/a", b"n" * SECTOR)
    images = Images(disk)
    write(disk, "/a", b"x" * SECTOR, sync=True)
    disk.unlink("/a")
    assert len(list(images)) == 5


def test_whatever_a_power_failure_draws_is_listed_too() -> None:
    disk = fresh()
    seen: list[dict[str, bytes]] = []
    drawn: list[dict[str, bytes]] = []
    life = Life(FaultyDisk(disk)).live(("commit",))

    def watch(point: object) -> None:
        seen.extend(files_of(image) for image in Images(disk, garbage=lambda sector: GARBAGE))
        for seed in range(8):
            source = random.Random(seed)
            source.randbytes = lambda size: GARBAGE  # type: ignore[method-assign]
            drawn.append(files_of(disk.power_failure(source, all_lost=seed == 0)))

    life.watched.watch = watch
    life.live(("batch", "rotation"))
    assert len(drawn) > 100
    assert all(image in seen for image in drawn)


# --- a store on all of them -------------------------------------------------------------------


def numbers(*kinds: str, steps: Iterable[tuple[str, ...]]) -> list[int]:
    wanted = set(steps)
    return [number for number, case in enumerate(plan())
            if case.kind in kinds and case.steps in wanted]


@pytest.mark.fault(2)
@pytest.mark.fault(5)
@pytest.mark.fault(20)
@pytest.mark.fault(21)
@pytest.mark.fault(26)
def test_every_image_of_the_shortest_histories_is_recovered() -> None:
    steps = [("commit",), ("batch",), ("rotation",), ("commit", "reopen")]
    found = [Examination(number).run() for number in numbers("life", steps=steps)]
    assert [line for each in found for line in each.findings] == []
    for each, label in zip(found, ("commit", "commit", "rotation", "recovery"), strict=True):
        assert each.counts[f"images_{label}"] >= 4, each.case
        assert each.exhaustive
        assert each.counts["served"] > 0


@pytest.mark.fault(6)
def test_recovery_cut_short_at_any_change_is_recovered_again() -> None:
    of_commit = numbers("crash", steps=[("commit",)])
    assert len(of_commit) == 6  # two changes; after each a kill and two power failures
    for number in of_commit:
        found = Examination(number).run()
        assert found.findings == []
        assert found.counts["images_recovery"] > 500


@pytest.mark.fault(29)
def test_a_restore_or_repair_cut_short_leaves_the_source_and_no_half_store() -> None:
    for number in numbers("restore", "repair", steps=[("commit",)]):
        found = Examination(number).run()
        assert found.findings == []
        assert found.counts[f"images_{found.case.kind}"] > 500


def test_a_share_of_the_campaign_goes_on_where_the_one_before_it_ended() -> None:
    first = crash_images.share(1_000_000, 0.5)
    again = crash_images.share(first.next, 0)
    assert first.next > 1_000_000
    assert again.next == first.next + 1
    assert first.findings + again.findings == []
    assert first.counts["images"] > 0
    assert first.counts["sampled_cases"] == first.next - 1_000_000


def lying(operation: str, part: str) -> Callable[[MemoryDisk], FaultyDisk]:
    """A disk that says it has synced what has `part` in its path, and has not."""

    class Lying(FaultyDisk):
        def fdatasync(self, handle: int) -> None:
            path = self._paths[handle]
            if operation != "fdatasync" or part not in path:
                super().fdatasync(handle)
            else:
                self._call("fdatasync", path)

        def sync_directory(self, path: str) -> None:
            if operation != "sync_directory" or path != part:
                super().sync_directory(path)
            else:
                self._call("sync_directory", path)

    return Lying


@pytest.mark.parametrize(("operation", "part", "kind"), [
    ("fdatasync", ".seg", "life"),
    ("fdatasync", "MANIFEST", "life"),
    ("fdatasync", "next.tmp", "life"),
    ("fdatasync", "snap", "any restore"),
    ("sync_directory", "/", "life"),
    ("sync_directory", PLACE, "life"),
    ("sync_directory", f"{PLACE}/wal", "life"),
    ("sync_directory", f"{PLACE}/snap", "compaction"),
    ("sync_directory", "/new", "repair"),
    ("sync_directory", "/new/snap", "repair"),
])
def test_a_sync_left_out_anywhere_is_found(operation: str, part: str, kind: str) -> None:
    number = {"compaction": numbers("life", steps=[("compaction",)])[0],
              "any restore": 1_000_002}.get(kind) or numbers(kind, steps=[()])[0]
    found = Examination(number, lying(operation, part)).run()
    assert found.findings, "nobody misses this sync"
    assert f"--start {number} " in found.findings[0]
