"""Every container and every place that reads images follows the rule of `dct_tokenizer.upright`."""

from __future__ import annotations

import io
import struct
import sys
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps, PngImagePlugin

from data_prep.images import store_image
from data_prep.options import Options
from data_prep.quarantine import Reason, Rejected
from dct_tokenizer.decode import decode_rgb, header_size
from dct_tokenizer.image_headers import read_jpeg_header
from dct_tokenizer.show.views import load_image
from dct_tokenizer.upright import ImageError, upright_rgb
from dct_vl.export.bundle.processing_dct_vl import _rgb

RNG = np.random.default_rng(0)
SMALL = Image.fromarray(RNG.integers(0, 255, (4, 6, 3), dtype=np.uint8))
PHOTO = SMALL.resize((60, 40), Image.Resampling.BICUBIC)
ALPHA = Image.fromarray(np.linspace(0, 255, 60).astype(np.uint8)[None].repeat(40, 0))
SIX = Image.Exif()
SIX[0x0112] = 6
XMP = '<x xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/>'


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    # a copy: saving some formats leaves its options on the image
    image.copy().save(buffer, kind, **options)
    return buffer.getvalue()


def with_alpha(mode: str = "RGBA") -> Image.Image:
    image = PHOTO.convert("RGBA")
    image.putalpha(ALPHA)
    return image.convert(mode)


def over_white(image: Image.Image) -> np.ndarray:
    """`to_rgb` of qwen-vl-utils 0.0.14."""
    image = image.convert("RGBA")
    white = Image.new("RGB", image.size, (255, 255, 255))
    white.paste(image, mask=image.split()[3])
    return np.asarray(white)


def seen_everywhere(data: bytes) -> dict[str, np.ndarray]:
    """Pixels by the place that reads them; the stored JPEG's last."""
    opened = Image.open(io.BytesIO(data))
    stored = store_image(data, Options())
    return {
        "training": decode_rgb(data)[0],
        "show": upright_rgb(opened),
        "bundle": _rgb(Image.open(io.BytesIO(data))),
        "stored": decode_rgb(stored.data)[0],
    }


def assert_seen(data: bytes, expected: np.ndarray) -> None:
    """Exactly, and in the stored JPEG as near as quality 95 comes."""
    assert header_size(data) == expected.shape[:2]
    for place, pixels in seen_everywhere(data).items():
        if place == "stored":
            assert np.abs(pixels.astype(int) - expected).mean() < 3, place
        else:
            assert np.array_equal(pixels, expected), place


TRANSPARENT = {
    "rgba": encoded(with_alpha()),
    "grey_alpha": encoded(with_alpha("LA")),
    "palette": encoded(PHOTO.quantize(32), transparency=bytes(range(0, 256, 8))),
    "palette_key": encoded(PHOTO.quantize(32), transparency=3),
    "colour_key": encoded(PHOTO, transparency=PHOTO.getpixel((5, 5))),
    "grey_key": encoded(PHOTO.convert("L"), transparency=PHOTO.convert("L").getpixel((5, 5))),
    "webp": encoded(with_alpha(), "WEBP", lossless=True, exact=True),
    "gif": encoded(PHOTO.quantize(32), "GIF", transparency=2),
    "tiff": encoded(with_alpha(), "TIFF"),
}


@pytest.mark.parametrize("name", TRANSPARENT)
def test_transparency_is_over_white(name):
    data = TRANSPARENT[name]
    expected = over_white(Image.open(io.BytesIO(data)))
    plain = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert not np.array_equal(expected, plain), "the picture does not tell the rules apart"
    assert_seen(data, expected)


def test_a_colour_key_of_sixteen_bits_is_white():
    levels = np.linspace(0, 60_000, 40 * 60).astype(np.uint16).reshape(40, 60)
    levels[:30] = 12_345
    data = encoded(Image.fromarray(levels), transparency=12_345)
    expected = np.where(levels == 12_345, 255, (levels / 257).round()).astype(np.uint8)
    assert_seen(data, expected[..., None].repeat(3, -1))


def foreign_profile() -> bytes:
    """sRGB's with red and green exchanged."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, green = profile.index(b"rXYZ"), profile.index(b"gXYZ")
    profile[red : red + 4], profile[green : green + 4] = b"gXYZ", b"rXYZ"
    return bytes(profile)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {"quality": 98, "subsampling": 0}),
        ("PNG", {}),
        ("WEBP", {"lossless": True}),
        ("TIFF", {}),
    ],
)
def test_a_colour_profile_changes_nothing(kind, options):
    data = encoded(PHOTO, kind, icc_profile=foreign_profile(), **options)
    assert Image.open(io.BytesIO(data)).info["icc_profile"] == foreign_profile()
    assert_seen(data, decode_rgb(encoded(PHOTO, kind, **options))[0])


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png_with(extra: bytes, *, behind: bool) -> bytes:
    """A PNG with a chunk before or behind its pixels."""
    png = encoded(PHOTO)
    place = len(png) - 12 if behind else png.index(b"IDAT") - 4
    return png[:place] + extra + png[place:]


def exif_text() -> bytes:
    """As ImageMagick writes it."""
    block = SIX.tobytes()
    return f"\nexif\n{len(block):8}\n{block.hex()}\n".encode()


ORIENTED_CHUNKS = {
    "exif": chunk(b"eXIf", SIX.tobytes()[6:]),
    "text": chunk(b"tEXt", b"Raw profile type exif\0" + exif_text()),
    "packed_text": chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(exif_text())),
    "xmp": chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP.encode()),
}


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("name", ORIENTED_CHUNKS)
def test_the_orientation_of_a_png(name, behind):
    data = png_with(ORIENTED_CHUNKS[name], behind=behind)
    assert_seen(data, np.asarray(PHOTO.transpose(Image.Transpose.ROTATE_270)))


@pytest.mark.parametrize("tags", [{700: XMP.encode()}, {274: 6}, {274: 6, 700: XMP.encode()}])
def test_the_orientation_of_a_tiff(tags):
    data = encoded(PHOTO, "TIFF", tiffinfo=tags)
    assert_seen(data, np.asarray(PHOTO.transpose(Image.Transpose.ROTATE_270)))


@pytest.mark.parametrize("kind", ["WEBP", "AVIF"])
def test_the_orientation_of_other_files(kind):
    data = encoded(PHOTO, kind, exif=SIX.tobytes(), quality=100)
    turned = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    assert turned.size == (40, 60)
    assert_seen(data, np.asarray(turned))


def test_a_text_behind_the_pixels_costs_no_decoding(monkeypatch):
    """ImageMagick puts dates there."""
    data = png_with(chunk(b"tEXt", b"date:create\x002026-01-01"), behind=True)
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", None)
    assert header_size(data) == (40, 60)


def segment(body: bytes) -> bytes:
    return b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body


@pytest.mark.parametrize("prefixes", [1, 2, 3])
def test_a_repeated_exif_prefix_is_passed_over(prefixes):
    body = b"Exif\0\0" * prefixes + SIX.tobytes().removeprefix(b"Exif\0\0")
    jpeg = encoded(PHOTO, "JPEG", quality=98, subsampling=0)
    data = jpeg[:2] + segment(body) + jpeg[2:]
    assert_seen(data, np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data)))))
    assert decode_rgb(data).shape == (1, 60, 40, 3)
    assert store_image(data, Options()).conversions == ("rotated",)


def exif_block(orientation: int) -> bytes:
    tags = Image.Exif()
    tags[0x010F] = "maker"
    if orientation:
        tags[0x0112] = orientation
    return tags.tobytes()


_BLOCKS = st.one_of(
    st.integers(0, 9).map(exif_block),
    st.binary(max_size=40).map(lambda noise: b"Exif\0\0II*\0\x08\0\0\0" + noise),
    st.integers(0, 9).map(
        lambda n: b'http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation="%d"/>' % n
    ),
    st.just(b"http://ns.adobe.com/xap/1.0/\0<x/>"),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(_BLOCKS, max_size=4))
@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_the_quick_header_reads_orientations_as_pillow_does(blocks):
    jpeg = encoded(PHOTO, "JPEG")
    data = jpeg[:2] + b"".join(map(segment, blocks)) + jpeg[2:]
    try:
        expected = Image.open(io.BytesIO(data)).getexif().get(0x0112, 1)
    except Exception:  # a broken block says nothing
        expected = 1
    header = read_jpeg_header(data)
    assert header is not None
    assert header.orientation == (expected if expected in range(1, 9) else 1)


@pytest.mark.parametrize(
    ("kind", "package"), [("HEIF", "pillow-heif"), ("JXL", "pillow-jxl-plugin")]
)
def test_formats_of_plugins(kind, package, monkeypatch):
    module = package.replace("-", "_").removesuffix("_plugin")
    plugin = pytest.importorskip(module)
    if kind == "HEIF":
        plugin.register_heif_opener()
        data = encoded(PHOTO, kind, quality=-1, chroma=444)
    else:
        data = encoded(PHOTO, kind, lossless=True)
    difference = decode_rgb(data)[0].astype(int) - np.asarray(PHOTO)
    assert np.abs(difference).max() <= 2
    stored = store_image(data, Options())
    assert (stored.height, stored.width, stored.conversions) == (40, 60, (kind.lower(),))
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImageError, match=f"pip install {package}$"):
        header_size(data)
    with pytest.raises(Rejected, match=f"pip install {package}$") as caught:
        store_image(data, Options())
    assert caught.value.reason is Reason.UNSUPPORTED_IMAGE


def test_show_names_the_file(tmp_path):
    path = tmp_path / "photo.png"
    path.write_bytes(TRANSPARENT["rgba"])
    assert np.array_equal(load_image(path), over_white(with_alpha()))
    path.write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"photo.png cannot be decoded: starts with"):
        load_image(path)
