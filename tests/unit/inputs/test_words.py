"""Teacher-forced words, against words that are cut from the text."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dct_vl.inputs.words import Role, score_words, token_roles
from dct_vl.model.random_model.tokenizer import train_tokenizer

TEXTS = ["Read the numbers row by row.", "13 76 04", "a red circle\nat the top left", "yes"]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS * 20, max_bpe_size=400)


def test_white_space_and_control_tokens_are_outside(tokenizer):
    roles = token_roles(tokenizer, len(tokenizer) + 5)
    ids = tokenizer(" \n", add_special_tokens=False)["input_ids"]
    ids += tokenizer("<|im_end|><|image_pad|>", add_special_tokens=False)["input_ids"]
    assert {int(roles[i]) for i in ids} == {Role.OUTSIDE}
    assert set(roles[len(tokenizer) :]) == {Role.OUTSIDE}


@pytest.mark.parametrize("text", [*TEXTS, "13 7604  9", " red", "x", "two\n\nlines here"])
def test_words_are_those_of_split(tokenizer, text):
    ids = np.array([tokenizer(text, add_special_tokens=False)["input_ids"]])
    roles = token_roles(tokenizer, len(tokenizer))
    mask = np.ones_like(ids, dtype=bool)
    words, right = score_words(ids, mask, mask, roles)
    assert words.tolist() == right.tolist() == [len(text.split())]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 99), min_size=1, max_size=9), st.data())
def test_a_word_is_wrong_where_one_token_is(tokenizer, numbers, data):
    text = " ".join(f"{n:02d}" for n in numbers)
    tokens = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids = np.array([tokens["input_ids"]])
    hits = np.array([[data.draw(st.booleans()) for _ in range(ids.shape[1])]])
    expected = 0
    for position in range(len(numbers)):
        first, last = 3 * position, 3 * position + 2
        expected += all(
            hit
            for hit, (start, end) in zip(hits[0], tokens["offset_mapping"], strict=True)
            if start < last and end > first and text[start:end].strip()
        )
    roles = token_roles(tokenizer, len(tokenizer))
    words, right = score_words(ids, np.ones_like(hits), hits, roles)
    assert (words[0], right[0]) == (len(numbers), expected)


def test_rows_are_counted_apart_and_questions_not_at_all(tokenizer):
    roles = token_roles(tokenizer, len(tokenizer))
    ids = np.array([tokenizer("13 76", add_special_tokens=False)["input_ids"]] * 3)
    mask = np.ones_like(ids, dtype=bool)
    mask[1] = False
    hits = np.ones_like(mask)
    hits[2, 0] = False
    words, right = score_words(ids, mask, hits, roles)
    assert words.tolist() == [2, 0, 2]
    assert right.tolist() == [2, 0, 1]
