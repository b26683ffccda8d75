"""Pictures of other makers' shards: upright, and 16 bits brought to 8."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from dct_tokenizer.decode import decode_rgb, header_size

#: a bright quarter in the top left of a picture that is wider than high
QUARTER = np.zeros((32, 48, 3), dtype=np.uint8)
QUARTER[:16, :24] = 240
#: (where that quarter is shown by Exif 2.32, 4.6.4; are height and width exchanged?)
ORIENTATIONS = {
    1: ("top left", False),
    2: ("top right", False),
    3: ("bottom right", False),
    4: ("bottom left", False),
    5: ("top left", True),
    6: ("top right", True),
    7: ("bottom right", True),
    8: ("bottom left", True),
}


def encoded(image: Image.Image, kind: str, orientation: int | None = None) -> bytes:
    buffer = io.BytesIO()
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    image.save(buffer, kind, exif=exif)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_exif_turns_pictures_upright(kind, orientation):
    data = encoded(Image.fromarray(QUARTER), kind, orientation)
    corner, turned = ORIENTATIONS[orientation]
    height, width = header_size(data)
    assert (height, width) == ((48, 32) if turned else (32, 48))
    pixels = decode_rgb(data)[0].mean(-1)
    assert pixels.shape == (height, width)
    quarters = pixels.reshape(2, height // 2, 2, width // 2).mean((1, 3))
    assert quarters[int("bottom" in corner), int("right" in corner)] > 200
    assert quarters.sum() < 300


def test_an_orientation_out_of_range_means_nothing():
    data = encoded(Image.fromarray(QUARTER), "JPEG", 9)
    assert header_size(data) == decode_rgb(data).shape[1:3] == (32, 48)


def test_damage_in_the_exif_data_that_is_no_concern_of_the_picture():
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x0201] = 7
    buffer = io.BytesIO()
    Image.fromarray(QUARTER).save(buffer, "JPEG", exif=exif)
    # the offset of a thumbnail becomes text, which no Exif writer takes
    entry = b"\x02\x01\x00\x04"
    assert buffer.getvalue().count(entry) == 1
    data = buffer.getvalue().replace(entry, b"\x02\x01\x00\x02")
    assert header_size(data) == decode_rgb(data).shape[1:3] == (48, 32)


def test_the_header_of_a_png_does_not_decode_it():
    whole = encoded(Image.fromarray(QUARTER), "PNG")
    assert header_size(whole[: whole.index(b"IDAT") + 6]) == (32, 48)


def test_sixteen_bits_are_scaled_not_clipped():
    levels = np.array([[0, 257, 128 * 257, 65535]], dtype=np.uint16)
    pixels = decode_rgb(encoded(Image.fromarray(levels), "PNG"))
    assert pixels[0, 0].tolist() == [[0] * 3, [1] * 3, [128] * 3, [255] * 3]
