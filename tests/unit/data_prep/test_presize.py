import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from odd_files import exif, insert_segment
from PIL import Image
from raw_set import encoded, jpeg, picture
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize as reference

from data_prep.images import store_image
from data_prep.options import Options
from data_prep.smart_resize import smart_resize

_SIDES = st.integers(28, 6000)
_BOUNDS = st.sampled_from([(784, 43_904), (3136, 12_845_056), (200_704, 1_003_520), (784, 784)])


@given(_SIDES, _SIDES, _BOUNDS)
def test_formula_is_qwens(height, width, bounds):
    if max(height, width) > 200 * min(height, width):
        return
    low, high = bounds
    expected = reference(height, width, min_pixels=low, max_pixels=high)
    ours = smart_resize(height, width, min_pixels=low, max_pixels=high)
    assert ours == expected or (min(expected) < 28 and min(ours) == 28)


@given(_SIDES, _SIDES, _BOUNDS)
def test_a_resized_image_is_not_resized_again(height, width, bounds):
    low, high = bounds
    once = smart_resize(height, width, min_pixels=low, max_pixels=high)
    if low <= once[0] * once[1] <= high:
        assert smart_resize(*once, min_pixels=low, max_pixels=high) == once


@pytest.mark.parametrize("size", [(500, 375), (40, 300), (1000, 30)])
def test_stored_at_the_size_that_the_loader_wants(size):
    low, high = 784, 43_904
    stored = store_image(jpeg(1, size), Options(presize=(low, high, 28)))
    assert stored.conversions == ("resized",)
    wanted = reference(size[1], size[0], min_pixels=low, max_pixels=high)
    assert (stored.height, stored.width) == wanted
    exact = picture(1, size).resize((stored.width, stored.height), Image.Resampling.BICUBIC)
    difference = np.asarray(Image.open(io.BytesIO(stored.data))).astype(int) - np.asarray(exact)
    assert np.abs(difference).mean() < 4


def test_right_size_stays_untouched():
    data = jpeg(1, (56, 84))
    stored = store_image(data, Options(presize=(784, 43_904, 28)))
    assert stored.data == data
    assert stored.conversions == ()


def test_factor_is_an_option():
    stored = store_image(jpeg(1, (500, 375)), Options(presize=(3136, 43_904, 56)))
    assert stored.height % 56 == stored.width % 56 == 0


def test_size_is_taken_after_turning_upright():
    data = insert_segment(jpeg(1, (400, 100)), 0xE1, exif(6))
    stored = store_image(data, Options(presize=(784, 12_544, 28)))
    assert stored.conversions == ("rotated", "resized")
    assert stored.height > stored.width


def test_grey_stays_grey():
    data = encoded(picture(1, (300, 200), "L"), "PNG")
    stored = store_image(data, Options(presize=(784, 12_544, 28)))
    assert Image.open(io.BytesIO(stored.data)).mode == "L"
