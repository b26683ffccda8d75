import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.keys import MAX_ESCAPED_ID, decode_key, encode_key


@given(st.text(max_size=200), st.integers(0, 10**10))
def test_key_is_safe_and_reads_back(original_id, index):
    key = encode_key(original_id, index)
    assert re.fullmatch(r"[A-Za-z0-9_-]+", key)
    assert len(key) <= MAX_ESCAPED_ID + 12
    back_index, back_id = decode_key(key)
    assert back_index == index
    assert back_id == original_id or (back_id is None and len(original_id) * 12 > MAX_ESCAPED_ID)


@given(st.text(max_size=20), st.text(max_size=20), st.integers(0, 50), st.integers(0, 50))
def test_distinct_entries_have_distinct_keys(id_a, id_b, index_a, index_b):
    if index_a != index_b:
        assert encode_key(id_a, index_a) != encode_key(id_b, index_b)


def test_readable_example():
    assert encode_key("ai2d/my_1.png", 7) == "000000007-ai2d_2Fmy__1_2Epng"


@pytest.mark.parametrize("key", ["", "7-a", "000000007-a.b", "000000007-a_2", "x00000007-a"])
def test_foreign_keys_are_refused(key):
    with pytest.raises(ValueError, match="was not made by encode_key"):
        decode_key(key)
