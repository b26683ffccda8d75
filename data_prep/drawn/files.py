"""Encode a drawing in the image formats that a real dataset mixes, broken files included."""

from __future__ import annotations

import io
from typing import Literal, TypeAlias

from PIL import Image, ImageChops

ImageFormat: TypeAlias = Literal["jpeg", "png", "png_alpha", "png_palette", "png_16bit"]
SUFFIXES: dict[str, str] = {"jpeg": ".jpg"}

#: EXIF tag 0x0112 and the value that tells a viewer to turn the stored image by 90° clockwise.
EXIF_ORIENTATION, ROTATE_CLOCKWISE = 0x0112, 6


def suffix(image_format: ImageFormat) -> str:
    """File name suffix, with its dot."""
    return SUFFIXES.get(image_format, ".png")


def encode(image: Image.Image, image_format: ImageFormat, *, quality: int = 88) -> bytes:
    """File bytes of an RGB image. JPEG ``quality`` above 90 also keeps full-resolution colour."""
    out = io.BytesIO()
    if image_format == "jpeg":
        image.save(out, "JPEG", quality=quality, subsampling=0 if quality > 90 else 2)
    elif image_format == "png_alpha":
        _cut_out(image).save(out, "PNG", compress_level=1)
    elif image_format == "png_palette":
        image.quantize(64).save(out, "PNG", compress_level=1)
    elif image_format == "png_16bit":
        # Both bytes of a sample equal to the 8-bit value: 257 × value, 0 … 65,535 exactly.
        gray = image.convert("L").tobytes()
        deep = bytearray(2 * len(gray))
        deep[0::2] = deep[1::2] = gray
        Image.frombytes("I;16", image.size, bytes(deep)).save(out, "PNG", compress_level=1)
    else:
        image.save(out, "PNG", compress_level=1)
    return out.getvalue()


def _cut_out(image: Image.Image) -> Image.Image:
    """RGBA in which the background is transparent, and black below, as drawing programs leave it.

    A reader that drops alpha sees a black page, one that composites sees its own page colour.
    """
    ground = Image.new("RGB", image.size, image.getpixel((0, 0)))
    bands = ImageChops.difference(image, ground).split()
    mask = ImageChops.lighter(ImageChops.lighter(bands[0], bands[1]), bands[2])
    mask = mask.point([0] + [255] * 255)
    cut = Image.new("RGBA", image.size, (0, 0, 0, 0))
    cut.paste(image, (0, 0), mask)
    return cut


def encode_rotated(image: Image.Image, *, quality: int = 88) -> bytes:
    """A JPEG stored on its side with the EXIF orientation that turns it back when it is shown."""
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = ROTATE_CLOCKWISE
    out = io.BytesIO()
    stored = image.transpose(Image.Transpose.ROTATE_90)
    stored.save(out, "JPEG", quality=quality, exif=exif)
    return out.getvalue()


def truncate(data: bytes) -> bytes:
    """The first 60 %: the header still tells the size, the image cannot be decoded."""
    return data[: len(data) * 6 // 10]
