"""Sizes against transformers' own rule, and the bounds that must hold whatever comes in."""

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize as hf_smart_resize

from dct_tokenizer import PlanError
from dct_tokenizer.geometry import smart_resize

sides = st.integers(1, 6000)
factors = st.sampled_from([28, 42, 56])
bounds = st.tuples(st.integers(1, 2_000_000), st.integers(1, 2_000_000)).map(sorted)


@settings(max_examples=500)
@given(sides, sides, factors, bounds)
def test_equals_transformers_wherever_that_gives_a_size_within_its_bound(h, w, factor, bound):
    low, high = bound
    assume(max(h, w) / min(h, w) <= 200 and min(h, w) >= factor and high >= factor * factor)
    theirs = hf_smart_resize(h, w, factor, low, high)
    ours = smart_resize(h, w, factor=factor, min_pixels=low, max_pixels=high)
    if min(theirs) >= factor:
        assert ours == theirs


@settings(max_examples=500)
@given(sides, sides, factors, bounds)
def test_sides_are_multiples_and_area_keeps_the_bounds(h, w, factor, bound):
    low, high = bound
    assume(max(h, w) / min(h, w) <= 200 and high >= factor * factor)
    new_h, new_w = smart_resize(h, w, factor=factor, min_pixels=low, max_pixels=high)
    assert new_h % factor == new_w % factor == 0
    assert min(new_h, new_w) >= factor
    overshoot = (new_h - factor) * (new_w - factor)
    assert new_h * new_w <= high or overshoot < low


def test_a_strip_that_would_vanish_is_clamped_and_keeps_the_area_bound():
    size = smart_resize(28, 28 * 150, factor=28, min_pixels=784, max_pixels=28 * 28 * 50)
    assert size == (28, 28 * 50)
    assert smart_resize(28 * 150, 28, factor=28, min_pixels=784, max_pixels=28 * 28 * 50) == (
        28 * 50,
        28,
    )


@pytest.mark.parametrize(
    ("size", "max_pixels", "words"),
    [
        ((0, 10), 10_000, ["0x10", "at least 1"]),
        ((10, 2010), 10_000, ["10x2010", "201.0", "200"]),
        ((100, 100), 783, ["max_pixels=783", "784"]),
    ],
)
def test_impossible_sizes_name_size_and_bound(size, max_pixels, words):
    with pytest.raises(PlanError) as error:
        smart_resize(*size, factor=28, min_pixels=1, max_pixels=max_pixels)
    assert all(word in str(error.value) for word in words)
