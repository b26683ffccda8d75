"""JPEG files are decoded fast and to the same bits and errors as Pillow's."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dct_tokenizer import decode
from dct_tokenizer.decode import decode_rgb
from dct_tokenizer.upright import ImageError, as_rgb


def picture(height: int, width: int, seed: int) -> Image.Image:
    """Smooth shapes with noise, as in a photo."""
    noise = np.random.default_rng(seed).normal(0, 12, (height, width, 3))
    y, x, band = np.mgrid[:height, :width, :3]
    values = 127 + 100 * np.sin(x / 17 + y / 31 + band) + noise
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


def jpeg(image: Image.Image, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


def by_pillow(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))[None]


@pytest.fixture
def fast(monkeypatch):
    """Counts the pictures that do not go through Pillow."""
    decoded = []
    original = decode._decode_jpeg

    def count(data, **options):
        out = original(data, **options)
        decoded.append(len(data))
        return out

    monkeypatch.setattr(decode, "_decode_jpeg", count)
    return decoded


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 70),
    st.integers(1, 70),
    st.sampled_from(["RGB", "L"]),
    st.sampled_from([0, 1, 2]),
    st.sampled_from([40, 90, 100]),
    st.booleans(),
)
def test_the_same_bits_as_pillow(height, width, mode, subsampling, quality, progressive):
    data = jpeg(
        picture(height, width, height + width).convert(mode),
        subsampling=subsampling,
        quality=quality,
        progressive=progressive,
    )
    pixels = decode._decode_jpeg(data, is_grey=mode == "L")
    assert np.array_equal(as_rgb(pixels)[None], by_pillow(data))


def test_ordinary_files_take_the_fast_way(fast):
    data = jpeg(picture(40, 60, 0))
    assert np.array_equal(decode_rgb(data), by_pillow(data))
    stored_as_rgb = jpeg(picture(40, 60, 0), keep_rgb=True)
    assert np.array_equal(decode_rgb(stored_as_rgb), by_pillow(stored_as_rgb))
    assert fast == [len(data), len(stored_as_rgb)]


def test_inks_and_turned_pictures_are_left_to_pillow(fast):
    inks = jpeg(picture(40, 60, 0).convert("CMYK"))
    assert np.array_equal(decode_rgb(inks), by_pillow(inks))
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode_rgb(jpeg(picture(40, 60, 0), exif=exif)).shape == (1, 60, 40, 3)
    assert fast == []


def test_damage_is_judged_by_pillow(fast):
    data = jpeg(picture(80, 80, 0))
    with pytest.raises(ImageError, match="truncated"):
        decode_rgb(data[: len(data) // 2])
    middle = len(data) * 3 // 4
    spoilt = data[:middle] + b"\xff\xd0" + data[middle + 2 :]
    try:
        wanted = by_pillow(spoilt)
    except OSError:
        with pytest.raises(ImageError):
            decode_rgb(spoilt)
    else:
        assert np.array_equal(decode_rgb(spoilt), wanted)
    assert fast == []
