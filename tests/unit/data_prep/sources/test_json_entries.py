"""Entries of JSON lists and JSON lines, sound and broken."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.sources import SourceError, Unreadable, iter_entries, json_entries

#: what JSON can hold and both of its readers give back alike
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text('ab"\\ü', max_size=4), inner)
    ),
    max_leaves=12,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("entries")


def read(path):
    return [value for _, value in iter_entries(path)]


@given(
    entries=st.lists(VALUES, max_size=6),
    indent=st.sampled_from([None, 2]),
    chunk=st.integers(1, 40),
)
def test_any_list_reads_back_whatever_the_chunks(folder, entries, indent, chunk):
    path = folder / "a.json"
    path.write_text(json.dumps(entries, indent=indent, ensure_ascii=indent is None), "utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_entries, "_CHUNK", chunk)
        assert read(path) == entries


@settings(max_examples=25)
@given(
    entries=st.lists(st.dictionaries(st.text("abc", max_size=3), VALUES, max_size=3), min_size=2)
)
def test_lines_read_back_under_any_name(folder, entries):
    text = "\n".join(json.dumps(entry) for entry in entries)
    for name in ("a.jsonl", "a.ndjson", "a.json"):
        (folder / name).write_text(text)
        assert read(folder / name) == entries


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_a_bad_entry_costs_itself(tmp_path, name):
    entries = ['{"id": 1}', '{"id": NaN}', '{"id": [-Infinity]}', '{"id": 2}']
    joined = "\n".join(entries) if name == "a.jsonl" else "[" + ",\n".join(entries) + "]"
    (tmp_path / name).write_text("\ufeff" + joined, encoding="utf-8")
    found = list(iter_entries(tmp_path / name))
    assert [line for line, _ in found] == [1, 2, 3, 4]
    values = [value for _, value in found]
    assert [values[0], values[3]] == [{"id": 1}, {"id": 2}]
    assert all(isinstance(value, Unreadable) for value in values[1:3])


def test_broken_lines_are_numbered(tmp_path):
    lines = [b'{"id": 1}', b"", b'{"id"', b'{"id": "\xff"}', b'{"id": "\\ud800"}', b'{"id": 2}']
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    found = list(iter_entries(tmp_path / "a.jsonl"))
    assert [line for line, value in found if isinstance(value, Unreadable)] == [3, 4, 5]
    assert [value for _, value in found if isinstance(value, dict)] == [{"id": 1}, {"id": 2}]


def test_numbers_of_lists_stay_as_they_are(tmp_path):
    (tmp_path / "a.json").write_text(f"[{10**30}, 0.1, 1e400, -0]")
    assert read(tmp_path / "a.json") == [10**30, 0.1, math.inf, 0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1}', "is no JSON list"),
        ("", "is no JSON list"),
        ('[{"a": 1}, {"b"', r"is no sound JSON \(line 1"),
        ("[1,\n 2", r"line 2: expected a comma or \], found ''"),
        ("[1, 2] 3", "there is more behind the list"),
        ("[1 2]", "expected a comma"),
        ('[{"a": 1},\n\n{"b" 2}]', "line 3: Expecting ':'"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_what_is_no_list_is_named(tmp_path, text, message):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(SourceError, match=message):
        read(tmp_path / "a.json")
