"""What the machines draw: keys, values, what is expected."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

from hypothesis import strategies as st

from ckptmesh.limits import SECOND

LONG = 3_600  # seconds: a TTL that no example lives to see the end of

KEYS = st.sampled_from(["a", "a/b", "a/b/c", "ab", "a-", "b"])
"""Related in every way: parts of one another by segments, and by letters only."""
ALL_PREFIXES = ("", "a", "a/b", "ab", "b", "c")
PREFIXES = st.sampled_from(ALL_PREFIXES)
_LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(allow_nan=False),
    st.text(max_size=6), st.binary(max_size=6), st.sampled_from([
        Decimal("1.10"), datetime(2024, 2, 29, 23, 59, 59, 999_999, UTC), frozenset({(1, "x")}),
        "x" * 700]))
VALUES = st.one_of(
    st.integers(-2, 2), _LEAVES,
    st.recursive(_LEAVES, lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner)
                 | st.dictionaries(st.text(max_size=3), inner, max_size=3), max_leaves=6))
"""Small integers first, which can be incremented; then whatever else a store has to keep."""
POSITIONS = st.one_of(st.none(), st.integers(-3, 3), st.just(2**63 - 1))
TTLS = st.sampled_from([None, None, LONG])
LONG_OR_NONE = st.sampled_from([None, LONG * SECOND])
EXPECTATIONS = st.sampled_from(["right", "right", "nothing", "older", "newer"])
