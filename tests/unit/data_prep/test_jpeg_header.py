import io
from contextlib import suppress

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from odd_files import exif, insert_segment
from PIL import Image
from raw_set import encoded, jpeg, picture

from data_prep.jpeg_header import JpegEndsEarly, read_jpeg_header

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
