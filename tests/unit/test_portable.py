"""The file of an export: every value comes back to the byte, every damage is told by its line."""

from __future__ import annotations

import gzip
import io
import json
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

import google_crc32c
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ckptmesh
from ckptmesh import ExportDamaged, ExportTruncated, InvalidPayload, Unsupported, values
from ckptmesh.features.portable import Header, Reader, Row, Writer
from ckptmesh.limits import EXPORT_LINE, EXPORT_READABLE
from ckptmesh.values import Packed
from ckptmesh.views import Checkpoint

HEADER = Header("ab" * 16, 3, 77, 1_700_000_000_000_001, "orders", True)


class Hue(Enum):  # not registered
    RED = 1


def checkpoint(key: str = "orders", value: Any = 1, data: bytes | None = None, **more: Any
               ) -> Checkpoint:
    packed = Packed(values.pack(value) if data is None else data)
    return Checkpoint(key, packed, **{  # type: ignore[arg-type]
        "revision": 7, "epoch": 2, "version": 3, "create_revision": 4, "micros": 1_000_001, **more})


def written(*rows: Row, squeezed: bool = False) -> bytes:
    stream = io.BytesIO()
    writer = Writer(stream, HEADER, squeezed)
    for row in rows:
        writer.put(*row)
    writer.end()
    return stream.getvalue()


def read(data: bytes) -> list[Row]:
    return list(Reader(io.BytesIO(data)))


SAMPLE = (
    Row(checkpoint("orders", {"offset": 42}, position=42, head=50)),
    Row(checkpoint("orders", {"offset": 41}, revision=6), True),
    Row(checkpoint("orders/eu", [b"\x00", Hue.RED], sources=(("orders", 7),),
                   expires_at=datetime(2030, 1, 1, tzinfo=UTC))),
    Row(checkpoint("orders/us", "Überschall \u2028")),
)

# --- every value ------------------------------------------------------------------------------

offsets = st.integers(-86_399, 86_399).map(lambda s: timezone(timedelta(seconds=s)))
scalars: st.SearchStrategy[Any] = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(allow_nan=False),
    st.text(), st.binary(), st.dates(), st.times(), st.uuids(), st.decimals(allow_nan=False),
    st.datetimes(min_value=datetime(2, 1, 1), max_value=datetime(9998, 1, 1), timezones=offsets),
    st.sampled_from([Hue.RED, -0.0, 1.0, 1, float("inf"), Decimal("1E+3"), Decimal("-0")]),
)
hashable = st.one_of(scalars, st.tuples(scalars, scalars), st.frozensets(scalars, max_size=3))
tagged = st.sampled_from(["$bytes", "$map", "$tuple", "$set", "$float", "$datetime", "$other"])
anything = st.recursive(
    scalars | st.sets(hashable, max_size=4) | st.frozensets(hashable, max_size=4),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(st.text(max_size=5), inner, max_size=4),
        st.dictionaries(tagged, inner, max_size=1)),
    max_leaves=12)
integers = st.none() | st.integers(-(2**63), 2**63 - 1)


@settings(max_examples=150, deadline=None)
@given(value=anything, position=integers, head=integers)
def test_every_value_comes_back_to_the_byte(value: Any, position: Any, head: Any) -> None:
    row = Row(checkpoint("k", value, position=position, head=head))
    for squeezed in (False, True):
        assert read(written(row, squeezed=squeezed)) == [row]


@pytest.mark.parametrize("value", [
    {"$bytes": "text"}, {"$map": {"$map": 1}}, -0.0, float("-inf"), {(1, b"x"), frozenset((2,))},
    Decimal("1.50"), UUID(int=1), date(2024, 5, 1), time(10, 30),
    datetime(2024, 5, 1, 10, 30, 0, 1, tzinfo=timezone(timedelta(hours=2))),
])
def test_what_json_lacks_is_written_for_people_all_the_same(value: Any) -> None:
    (line,) = written(Row(checkpoint(value=value))).splitlines()[1:-1]
    assert "value" in json.loads(line)


@pytest.mark.parametrize("data", [
    values.pack(Hue.RED), values.pack({"a": (Hue.RED,)}),
    b"\x82\xa1a\x01\xa1a\x02",  # a map with a key twice
    b"\xcc\x01",  # the integer 1, in two bytes
    b"\x93" + b"\xca\x3f\x80\x00\x00" * 3,  # floats of 32 bits
])
def test_what_json_would_bend_is_written_as_its_bytes(data: bytes) -> None:
    (line,) = written(Row(checkpoint(data=data))).splitlines()[1:-1]
    assert "packed" in json.loads(line)
    assert read(written(Row(checkpoint(data=data))))[0].found.value == Packed(data)


def test_the_largest_values_fit_a_line() -> None:
    for value in (b"\x00" * (8 * 2**20 - 5), "\x01" * (EXPORT_READABLE - 5)):
        row = Row(checkpoint(value=value))
        assert max(map(len, written(row).splitlines())) < EXPORT_LINE
        assert read(written(row)) == [row]


@pytest.mark.parametrize("item", [
    frozenset[int](), set[int](), (), None, 1.5, "\x01" * 30, "\U0001f600", {"$map": 1}, b""])
def test_no_value_grows_so_much_that_a_line_could_not_hold_it(item: Any) -> None:
    value = [item] * 2_000
    line = max(written(Row(checkpoint(value=value))).splitlines(), key=len)
    assert "value" in json.loads(line)
    assert len(line) / len(values.pack(value)) < EXPORT_LINE / EXPORT_READABLE


def test_a_value_that_nobody_can_read_is_refused_by_its_key() -> None:
    with pytest.raises(InvalidPayload, match=r"'orders' at revision 7.*state repair orders"):
        written(Row(checkpoint(data=b"\xc1")))


# --- the header and the rest ------------------------------------------------------------------


def test_all_that_was_known_of_a_checkpoint_comes_back() -> None:
    reader = Reader(io.BytesIO(written(*SAMPLE)))
    assert reader.header == HEADER
    assert tuple(reader) == SAMPLE
    assert (reader.rows, reader.past) == (4, 1)
    assert len(reader.digest) == 64


def test_a_line_is_ascii_so_that_it_can_be_shown_anywhere() -> None:
    assert written(*SAMPLE).isascii()


def test_equal_exports_are_equal_files() -> None:
    assert written(*SAMPLE, squeezed=True) == written(*SAMPLE, squeezed=True)
    assert gzip.decompress(written(*SAMPLE, squeezed=True)) == written(*SAMPLE)


# --- damage -----------------------------------------------------------------------------------


def problem_of(data: bytes) -> ckptmesh.Error:
    """What reading says. It must say something."""
    with pytest.raises((ExportDamaged, Unsupported)) as found:
        read(data)
    assert isinstance(found.value, ckptmesh.Error)
    return found.value


def test_one_bit_anywhere_is_told_by_its_line() -> None:
    data = written(*SAMPLE)
    for place in range(len(data)):
        bent = bytearray(data)
        bent[place] ^= 1 << place % 8
        line = data.count(b"\n", 0, place) + 1
        error = problem_of(bytes(bent))
        if isinstance(error, Unsupported):  # the digit of the version itself
            assert line == 1
            continue
        # A line end that is gone makes one line of two; one too many makes two of one.
        assert error.details["line"] == line, (place, error)
        assert f"line {line}: " in error.message


def test_a_cut_anywhere_is_told_and_called_a_cut() -> None:
    data = written(*SAMPLE)
    for size in range(len(data)):
        error = problem_of(data[:size])
        if size == 0 or size > 40:  # before that it could be any file
            assert isinstance(error, ExportTruncated), size
        assert error.details["line"] == data.count(b"\n", 0, size) + 1


@pytest.mark.parametrize("number", range(6))
def test_a_line_that_is_lost_doubled_or_moved_is_told(number: int) -> None:
    lines = written(*SAMPLE).splitlines(keepends=True)
    assert len(lines) == 6
    lost, doubled = lines[:number] + lines[number + 1:], lines[:number + 1] + lines[number:]
    at = problem_of(b"".join(lost)).details["line"]
    assert at == number + 1
    at = problem_of(b"".join(doubled)).details["line"]
    assert at == number + 2
    if number < 5:
        moved = [*lines[:number], lines[number + 1], lines[number], *lines[number + 2:]]
        assert problem_of(b"".join(moved)).details["line"] == number + 1


def test_damage_to_a_squeezed_file_is_told_or_harmless() -> None:
    data = written(*SAMPLE, squeezed=True)
    harmless = []
    for place in range(len(data)):
        bent = bytearray(data)
        bent[place] ^= 1 << place % 8
        try:
            assert tuple(read(bytes(bent))) == SAMPLE
            harmless.append(place)
        except (ExportDamaged, Unsupported):
            pass
    assert set(harmless) <= {*range(3, 10), len(data) - 9}, (
        "flags, time and system in the head of gzip, and the unused bits after the last symbol")
    for size in range(len(data)):
        assert isinstance(problem_of(data[:size]), ExportDamaged)
    assert isinstance(problem_of(data[:-4]), ExportTruncated)


def summed(*documents: dict[str, Any]) -> bytes:
    """Lines with right sums, whatever they say."""
    crc, lines = 0, b""
    for document in documents:
        text = json.dumps(document, separators=(",", ":")).encode()[:-1]
        crc = google_crc32c.extend(crc, text)
        lines += text + b',"crc":"%08x"}\n' % crc
    return lines


HEAD = {"format": "ckptmesh-export", "version": 1, "store": "ab", "epoch": 1, "revision": 1,
        "time": "2026-01-01T00:00:00Z", "prefix": "", "history": False}
LINE = {"key": "k", "value": 1, "revision": 1, "version": 1, "created": 1, "epoch": 1,
        "time": "2026-01-01T00:00:00Z"}


def test_a_newer_version_is_unsupported_whatever_its_lines_look_like() -> None:
    for data in (summed({**HEAD, "version": 2}),
                 b'{"format":"ckptmesh-export","version":2,"other":"things"}\nmore\n'):
        error = problem_of(data)
        assert isinstance(error, Unsupported)
        assert error.details["line"] == 1
        assert "version 2" in error.message


@pytest.mark.parametrize("change", [
    {"key": "/k"}, {"key": 1}, {"value": {"$uuid": "x"}}, {"packed": "wQ=="}, {"packed": "?"},
    {"revision": -1}, {"revision": "1"}, {"time": "yesterday"}, {"time": "2026-01-01T00:00:00"},
    {"position": 1.5}, {"sources": [1]}, {"expires_at": 3}, {"past": True},
])
def test_a_line_with_a_right_sum_and_wrong_content_is_damage(change: dict[str, Any]) -> None:
    error = problem_of(summed(HEAD, {**LINE, **change}))
    assert isinstance(error, ExportDamaged)
    assert error.details["line"] == 2


def test_a_header_with_wrong_content_is_damage() -> None:
    for change in ({"store": 1}, {"revision": None}, {"time": 5}, {"version": "1"}):
        assert problem_of(summed({**HEAD, **change})).details["line"] == 1


@pytest.mark.parametrize("data", [
    b"", b"\n", b"{}\n", b"[]\n", b"\x89PNG\r\n", b"[" * 100_000 + b"\n", b"x" * (EXPORT_LINE + 2),
    gzip.compress(b"hello\n", mtime=0)])
def test_another_file_is_no_export(data: bytes) -> None:
    assert problem_of(data).details["line"] == 1


def test_what_comes_after_the_end_is_damage() -> None:
    data = written(*SAMPLE)
    assert problem_of(data + b"\n").details["line"] == 7
    assert problem_of(data + data).details["line"] == 7
