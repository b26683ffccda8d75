"""JPEG headers, and images stored at another size."""

import io
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from odd_files import exif, insert_segment
from PIL import Image
from raw_set import encoded, jpeg, picture
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize as reference

from data_prep.images import store_image
from data_prep.options import Options
from dct_tokenizer.geometry import smart_resize
from dct_tokenizer.image_headers import JpegEndsEarly, read_jpeg_header

BASE = jpeg(1, (200, 100))


@settings(max_examples=40)
@given(
    st.integers(1, 300),
    st.integers(1, 300),
    st.sampled_from(["L", "RGB", "CMYK"]),
    st.booleans(),
    st.integers(1, 8),
)
def test_agrees_with_pillow(width, height, mode, progressive, orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    data = encoded(picture(1, (width, height), mode), progressive=progressive, exif=tags)
    header = read_jpeg_header(data)
    image = Image.open(io.BytesIO(data))
    assert (header.width, header.height) == image.size
    assert header.components == len(image.getbands())
    assert header.orientation == image.getexif()[0x0112]
    assert header.common
    assert header.whole


@given(st.binary(max_size=300))
@example(b"\x00" * 20)
def test_exif_of_noise_is_upright(noise):
    header = read_jpeg_header(insert_segment(BASE, 0xE1, b"Exif\0\0II*\0" + noise))
    assert 1 <= header.orientation <= 8


@given(st.integers(3, len(BASE) - 1))
def test_no_cut_looks_whole(cut):
    try:
        header = read_jpeg_header(BASE[:cut])
    except JpegEndsEarly:
        return
    assert not header.whole


@given(st.binary(max_size=400))
def test_noise_never_crashes(noise):
    with suppress(JpegEndsEarly):
        read_jpeg_header(b"\xff\xd8\xff" + noise)


def test_first_orientation_counts():
    twice = insert_segment(insert_segment(BASE, 0xE1, exif(3)), 0xE1, exif(6))
    assert read_jpeg_header(twice).orientation == 6


@pytest.mark.parametrize("code", [0xC3, 0xC9])
def test_uncommon_frames_are_named(code):
    frame = BASE.index(b"\xff\xc0")
    assert not read_jpeg_header(BASE[: frame + 1] + bytes([code]) + BASE[frame + 2 :]).common


def test_the_end_of_a_thumbnail_is_not_the_end():
    with_thumbnail = insert_segment(BASE, 0xE1, b"Exif\0\0" + jpeg(2, (32, 32)))
    assert read_jpeg_header(with_thumbnail).whole
    assert not read_jpeg_header(with_thumbnail[:-200]).whole


_SIDES = st.integers(28, 6000)
_BOUNDS = st.sampled_from([(784, 43_904), (3136, 12_845_056), (200_704, 1_003_520), (784, 784)])


@given(_SIDES, _SIDES, _BOUNDS)
def test_formula_is_qwens(height, width, bounds):
    if max(height, width) > 200 * min(height, width):
        return
    low, high = bounds
    expected = reference(height, width, min_pixels=low, max_pixels=high)
    ours = smart_resize(height, width, factor=28, min_pixels=low, max_pixels=high)
    assert ours == expected or (min(expected) < 28 and min(ours) == 28)


@given(_SIDES, _SIDES, _BOUNDS)
def test_a_resized_image_is_not_resized_again(height, width, bounds):
    assume(max(height, width) <= 200 * min(height, width))
    low, high = bounds
    once = smart_resize(height, width, factor=28, min_pixels=low, max_pixels=high)
    if low <= once[0] * once[1] <= high:
        assert smart_resize(*once, factor=28, min_pixels=low, max_pixels=high) == once


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
