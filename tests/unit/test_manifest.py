"""The manifest: readable, strict, and replaced as a whole."""

from __future__ import annotations

import json
from pathlib import Path

import google_crc32c
import pytest

from ckptmesh.disk import RealDisk
from ckptmesh.errors import Corrupt, Unsupported
from ckptmesh.manifest import (
    MANIFEST,
    ActiveSegment,
    Manifest,
    ManifestKeeper,
    Savepoint,
    SealedSegment,
    SnapshotEntry,
    decode_manifest,
    encode_manifest,
    parse_segment_file,
    read_manifest,
    segment_file,
    snapshot_file,
    write_manifest,
)

GOLDEN = Path(__file__).parent.parent / "golden" / "manifest-1.json"
ONE = SealedSegment(1, 1, 4, 3_584, bytes(32), b"1" * 32, 100)
TWO = SealedSegment(2, 5, 4, 1_024, b"1" * 32, b"2" * 32, 200)
SNAPSHOT = SnapshotEntry(snapshot_file(4, 1), 4, 1, 1_234, b"d" * 32, 150)
FULL = Manifest(
    b"u" * 16, 9, (ONE, TWO), ActiveSegment(3, 5, b"2" * 32), (SNAPSHOT,), (Savepoint("x", 4),),
    (ONE.file,), "revisions 2 to 3 were given up",
)


def signed(document: object) -> bytes:
    """The bytes of a document with a CRC that matches."""
    body = json.dumps(document, indent=1)[:-2].encode()
    return body + b',\n "crc32c": "%08x"\n}\n' % google_crc32c.value(body)


def changed(**members: object) -> bytes:
    document = json.loads(encode_manifest(FULL)) | members
    del document["crc32c"]
    return signed(document)


def test_a_manifest_comes_back_as_it_was() -> None:
    assert decode_manifest(encode_manifest(FULL)) == FULL
    assert decode_manifest(encode_manifest(Manifest(bytes(16)))) == Manifest(bytes(16))


def test_the_golden_manifest_of_version_1_reads_and_writes_byte_for_byte() -> None:
    data = GOLDEN.read_bytes()
    assert encode_manifest(decode_manifest(data)) == data
    assert decode_manifest(data).sealed[0].last_revision == 4


def test_a_savepoint_says_when_and_why_it_was_made_and_nothing_unknown() -> None:
    pinned = FULL._replace(savepoints=(Savepoint("x", 4), Savepoint("y", 4, 7, "why")))
    assert decode_manifest(encode_manifest(pinned)) == pinned
    for wrong in ({"revision": None}, {"made_at": "7"}, {"by": "me"}, {"reason": 1}):
        with pytest.raises(ValueError, match=r"\w"):
            decode_manifest(changed(savepoints=[{"name": "x", "revision": 4, **wrong}]))


def test_every_changed_byte_is_damage() -> None:
    data = encode_manifest(FULL)
    for position in range(len(data)):
        for change in (0x01, 0x20):
            image = bytearray(data)
            image[position] ^= change
            with pytest.raises(ValueError, match=r"\w"):
                decode_manifest(bytes(image))


def test_every_prefix_is_damage() -> None:
    data = encode_manifest(FULL)
    for size in range(len(data)):
        with pytest.raises(ValueError, match=r"\w"):
            decode_manifest(data[:size])


@pytest.mark.parametrize("members", [
    {"kind": "another"}, {"uuid": "00"}, {"uuid": None}, {"uuid": "x" * 32}, {"sequence": -1},
    {"sequence": True}, {"sequence": "1"}, {"sealed": None}, {"sealed": [1]}, {"sealed": [{}]},
    {"active": {}}, {"active": 3}, {"snapshots": {}}, {"savepoints": [["x", 4]]}, {"lossy": None},
    {"needed_before": [1]}, {"needed_before": 1}, {"more": 1},
])
def test_a_wrong_member_is_damage(members: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        decode_manifest(changed(**members))


@pytest.mark.parametrize("document", [[1], {"kind": "ckptmesh manifest", "format": 1}])
def test_another_document_is_damage(document: object) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        decode_manifest(signed(document))


@pytest.mark.fault(46)
@pytest.mark.parametrize("depth", [300, 950, 990, 5_000, 1_000_000])
@pytest.mark.parametrize("name", ["sealed", "uuid", "another"])
def test_a_deep_nest_is_damage(depth: int, name: str) -> None:
    body = encode_manifest(FULL).partition(b',\n "crc32c"')[0]
    body += b',\n "%s": ' % name.encode() + b"[" * depth + b"]" * depth
    with pytest.raises(ValueError, match=r"\w"):
        decode_manifest(body + b',\n "crc32c": "%08x"\n}\n' % google_crc32c.value(body))


@pytest.mark.parametrize("manifest", [
    FULL._replace(sealed=(TWO, ONE)), FULL._replace(sealed=(ONE,)), FULL._replace(sealed=()),
    FULL._replace(sealed=(ONE, TWO._replace(start=b"x" * 32))),
    FULL._replace(sealed=(ONE, TWO._replace(first_revision=6, last_revision=6))),
    FULL._replace(snapshots=(SNAPSHOT, SNAPSHOT)),
    FULL._replace(snapshots=(SNAPSHOT._replace(file="snap/../../etc/passwd"),)),
    FULL._replace(snapshots=(SNAPSHOT._replace(segment=3, file=snapshot_file(4, 3)),)),
    Manifest(bytes(16), active=ActiveSegment(2, 1, bytes(32))),
    Manifest(bytes(16), active=ActiveSegment(0, 1, bytes(32))),
])
def test_what_no_honest_writer_writes_is_damage(manifest: Manifest) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        decode_manifest(encode_manifest(manifest))


def test_an_unknown_version_is_unsupported_and_named_with_the_known_one(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_bytes(changed(format=2))
    with pytest.raises(Unsupported, match="version 2; this release reads 1"):
        read_manifest(RealDisk(), str(tmp_path))


def test_damage_is_corrupt_and_names_the_file(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_bytes(encode_manifest(FULL)[:-1])
    with pytest.raises(Corrupt) as caught:
        read_manifest(RealDisk(), str(tmp_path))
    assert caught.value.details["file"] == str(tmp_path / MANIFEST)


def test_no_manifest_is_none(tmp_path: Path) -> None:
    assert read_manifest(RealDisk(), str(tmp_path)) is None


def test_a_manifest_replaces_the_one_before(tmp_path: Path) -> None:
    for sequence in (1, 2):
        (tmp_path / "MANIFEST.tmp").write_text("left by a crash")
        write_manifest(RealDisk(), str(tmp_path), FULL._replace(sequence=sequence))
        assert read_manifest(RealDisk(), str(tmp_path)) == FULL._replace(sequence=sequence)
    assert [path.name for path in tmp_path.iterdir()] == [MANIFEST]


def test_a_file_is_unlinked_when_neither_of_the_last_two_manifests_needs_it(
    tmp_path: Path,
) -> None:
    (tmp_path / "wal").mkdir()
    first, second = tmp_path / ONE.file, tmp_path / TWO.file
    first.write_bytes(b"1")
    second.write_bytes(b"2")
    keeper = ManifestKeeper(RealDisk(), str(tmp_path), Manifest(b"u" * 16, 1, (ONE, TWO)))
    keeper.write(keeper.current._replace(sealed=(TWO,)))
    assert first.exists()
    assert keeper.current.needed_before == (ONE.file, TWO.file)
    keeper.write(keeper.current)
    assert not first.exists()
    assert second.exists()
    assert keeper.current.sequence == 3


def test_file_names_sort_as_numbers_do() -> None:
    assert segment_file(12, 345) == "wal/00000012-000000000345.seg"
    assert parse_segment_file("00000012-000000000345.seg") == (12, 345)
    assert parse_segment_file(segment_file(10**9, 10**14)[4:]) == (10**9, 10**14)
    whole = "00000012-000000000345.seg"
    for name in ("12-345.seg", f"{whole}.tmp", "spare", f"x{whole}"):
        assert parse_segment_file(name) is None
