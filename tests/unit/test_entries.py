"""Versions as they are held: every one comes back, equal ones are held alike."""

from __future__ import annotations

import gc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptmesh.entries import SMALL, Entries, pack_version, revision_of, unpack_version
from ckptmesh.messages import Version
from ckptmesh.timeline import weight, weight_of

COUNTS = st.integers(0, 2**64 - 1)
MAYBE = st.none() | st.integers(-(2**63), 2**63 - 1)
VERSIONS = st.builds(
    Version, st.binary(max_size=40) | st.sampled_from([bytes(SMALL), bytes(SMALL + 1)]),
    COUNTS, COUNTS, COUNTS, COUNTS, MAYBE, MAYBE, MAYBE, MAYBE,
    st.lists(st.tuples(st.text(max_size=5), COUNTS), max_size=3).map(tuple))


@given(VERSIONS)
def test_a_version_comes_back_as_it_was(version: Version) -> None:
    packed = pack_version(version)
    found = unpack_version(packed)
    assert (found, type(found)) == (version, Version)
    assert packed == pack_version(tuple(version)) == pack_version(found)
    assert revision_of(packed) == version.revision
    assert weight_of(packed) == weight(version)


@pytest.mark.parametrize("version", [
    Version(b"v", 1, 1, 1, 1), Version(bytes(SMALL + 1), 1, 1, 1, 1),
    Version(b"v", 1, 1, 1, 1, 5), Version(b"v", 1, 1, 1, 1, sources=(("a", 1),)),
])
def test_the_garbage_collector_leaves_what_is_held_alone(version: Version) -> None:
    packed = pack_version(version)
    assert type(packed) in (bytes, tuple)
    gc.collect()
    assert not gc.is_tracked(packed)


def test_entries_are_a_mapping_of_versions() -> None:
    entries, model = Entries(), {}
    for key, position in (("a", None), ("b", 5), ("a", None), ("c", None)):
        entries[key] = model[key] = Version(b"v", len(model) + 1, 1, 1, 1, position=position)
    del entries["c"], model["c"]
    assert dict(entries) == dict(entries.items()) == model
    assert list(entries.values()) == list(model.values())
    assert (len(entries), "a" in entries, "c" in entries) == (2, True, False)
    assert entries.get("b") == entries["b"] == model["b"]
    assert entries.get("c") is None
    with pytest.raises(KeyError):
        entries["c"]
