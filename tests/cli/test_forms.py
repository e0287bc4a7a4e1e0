"""Values, versions and times as the command line writes them."""

from __future__ import annotations

import json
import re
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptmesh import values
from ckptmesh.backends.base import Capability
from ckptmesh.cli import forms
from ckptmesh.cli.text import plain
from ckptmesh.errors import InvalidValue, Misuse
from ckptmesh.features.pipeline.storage import FileRef
from ckptmesh.messages import LAST_INDEX
from ckptmesh.views import Mark

SCALARS = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False) | st.text() | st.binary() | st.uuids() | st.dates() | st.times()
    | st.decimals(allow_nan=False)
    | st.datetimes(timezones=st.sampled_from([UTC, timezone(timedelta(hours=2))]))
)
HASHABLE = st.recursive(SCALARS, lambda inner: st.frozensets(inner, max_size=3)
                        | st.tuples(inner, inner), max_leaves=4)
NAMES = st.text(max_size=5) | st.sampled_from(["$bytes", "$set", "$map", "$float", "$other"])
VALUES = st.recursive(
    SCALARS | st.sets(HASHABLE, max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=8,
)


@given(VALUES)
def test_every_value_comes_back_from_its_json_form(value: object) -> None:
    stored = values.unpack(values.pack(value))
    text = forms.compact(forms.to_json(stored))
    assert "\n" not in text
    back = forms.value_of(text)
    assert back == stored
    assert type(back) is type(stored)
    assert json.loads(forms.indented(forms.to_json(stored))) == json.loads(text)


@pytest.mark.parametrize(("text", "value", "kind"), [
    ("42", 42, "integer"),
    ("-1.5", -1.5, "float"),
    ("true", True, "boolean"),
    ("null", None, "null"),
    ('"42"', "42", "string"),
    ("hello world", "hello world", "string"),
    ("", "", "string"),
    ("NaN", "NaN", "string"),
    ("Infinity", "Infinity", "string"),
    ('{"a": [1]}', {"a": [1]}, "map"),
    ('{"$bytes": "aGk="}', b"hi", "bytes"),
    ('{"$datetime": "2024-05-01T10:30:00Z"}', datetime(2024, 5, 1, 10, 30, tzinfo=UTC),
     "datetime"),
    ('{"$date": "2024-05-01"}', date(2024, 5, 1), "date"),
    ('{"$time": "10:30:00"}', time(10, 30), "time"),
    ('{"$decimal": "1.50"}', Decimal("1.50"), "decimal"),
    ('{"$uuid": "00000000-0000-0000-0000-000000000001"}', UUID(int=1), "uuid"),
    ('{"$set": [2, 1]}', {1, 2}, "set"),
    ('{"$tuple": [1, {"$bytes": ""}]}', (1, b""), "tuple"),
    ('{"$map": {"$bytes": "text"}}', {"$bytes": "text"}, "map"),
    ('{"$inc": {"n": 1}}', {"$inc": {"n": 1}}, "map"),
    ('{"$set": 1, "b": 2}', {"$set": 1, "b": 2}, "map"),
])
def test_text_is_json_where_it_parses_and_else_a_string(
    text: str, value: object, kind: str
) -> None:
    found = forms.value_of(text)
    assert found == value
    assert forms.kind_of(found) == kind


@pytest.mark.parametrize("text", [
    '{"a": 1, "a": 2}', "1e999", "1" * 5_000, "[" * 100_000 + "]" * 100_000,
    '{"$set": {"n": 1}}', '{"$set": [[1]]}', '{"$bytes": "not base64!"}', '{"$decimal": 1.5}',
    '{"$datetime": "yesterday"}', '{"$float": "NaN"}', '{"a": [{"$uuid": 7}]}',
])
def test_json_that_cannot_be_kept_exactly_is_refused(text: str) -> None:
    with pytest.raises(InvalidValue):
        forms.value_of(text)


def test_a_refusal_names_the_place_and_tells_how_to_store_the_map_itself() -> None:
    with pytest.raises(InvalidValue) as caught:
        forms.value_of('{"a": [{"$uuid": 7}]}')
    assert caught.value.message.startswith("value['a'][0]: ")
    assert '{"$map": {"$uuid": …}}' in caught.value.hint


def test_nothing_printed_commands_a_terminal() -> None:
    nasty = "\x1b]0;owned\x07 \x9b31m \u202e \x7f"
    for text in (forms.compact({nasty: nasty}), forms.indented([nasty]), plain(nasty)):
        assert not set(text) & {"\x1b", "\x07", "\x9b", "\u202e", "\x7f"}
    assert json.loads(forms.compact([nasty])) == [nasty]
    assert plain("two\nlines\tand a tab") == "two\nlines\tand a tab"


@pytest.mark.parametrize(("text", "key", "revision"), [
    ("orders", "orders", None), ("orders@7", "orders", 7), ("orders@", "orders", None),
    ("me@home", "me@home", None), ("user@42@", "user@42", None), ("user@42@7", "user@42", 7),
])
def test_a_key_may_name_a_version(text: str, key: str, revision: int | None) -> None:
    assert forms.key_and_revision(text) == (key, revision)


def test_revisions_are_read_as_they_are_printed() -> None:
    assert forms.revision_of("7") == forms.revision_of("orders@7") == 7
    for text in ("", "orders", "-1", "7.0", "\u0663"):
        with pytest.raises(Misuse):
            forms.revision_of(text)


@pytest.mark.parametrize("mark", [Mark(7), Mark(0, LAST_INDEX), Mark(7, 0), Mark(12, 3)])
def test_marks_are_read_as_they_are_printed(mark: Mark) -> None:
    assert forms.mark_of(forms.mark_text(mark)) == mark


def test_moments_are_revisions_times_or_how_long_ago() -> None:
    now = datetime(2024, 5, 1, 10, 30, tzinfo=UTC)
    assert forms.moment_of("7") == 7
    assert forms.moment_of("10m", now) == now - timedelta(minutes=10)
    assert forms.moment_of("2024-05-01T10:30Z") == now
    assert forms.moment_of("2024-05-01T12:30+02:00") == now
    for text in ("", "soon", "2024-05-01T10:30", "2024-05-01", "-3"):
        with pytest.raises(Misuse):
            forms.moment_of(text)


def test_the_page_about_the_command_line_shows_the_forms_as_they_are() -> None:
    page = (Path(__file__).parent.parent.parent / "docs" / "cli.md").read_text()
    shown = re.findall(r"^\| `(\{.*?\})` \|", page, re.M)
    assert len(shown) == 7
    for form in shown:
        assert not isinstance(forms.value_of(form), dict) or "$map" in form
        assert forms.compact(forms.to_json(forms.value_of(form))) == form


def test_classes_that_are_known_here_look_as_those_that_are_not() -> None:
    ref = FileRef("day/rows.csv", 6, "14c5e7", "host", "/shared")
    for value in (ref, [Capability.WATCH, {"file": ref}]):
        document = forms.to_json(value)
        assert json.loads(forms.compact(document)) == document
    assert document == ["WATCH", {"file": {"name": "day/rows.csv", "size": 6, "sha256": "14c5e7",
                                           "host": "host", "storage": "/shared"}}]
