"""Turn a source image into the JPEG that is stored; a sound JPEG keeps its bytes."""

import io
from dataclasses import dataclass

import numpy as np
import simplejpeg
from PIL import Image

from data_prep.options import FACTOR, Options
from data_prep.quarantine import Reason, Rejected
from dct_tokenizer.decode import Decoded, decode_image
from dct_tokenizer.geometry import MAX_ASPECT, smart_resize
from dct_tokenizer.image_headers import JPEG_START, JpegEndsEarly, JpegHeader, read_jpeg_header
from dct_tokenizer.upright import ImageError


@dataclass(frozen=True, kw_only=True)
class StoredImage:
    """A JPEG as it goes into a shard, upright."""

    data: bytes
    height: int  #: pixels
    width: int
    conversions: tuple[str, ...]  #: what was done to it; empty: the source's own bytes


def store_image(data: bytes, options: Options) -> StoredImage:
    """Check an image and convert it where needed; raises Rejected.

    A sound 8-bit grey or YCbCr/RGB JPEG in upright orientation passes untouched. Anything else is
    decoded once by the rule of `dct_tokenizer.upright`, and encoded with quality 95, 4:4:4.
    """
    if not data:
        raise Rejected(Reason.EMPTY_FILE, "the file has no bytes")
    header = _read_header(data)
    if header is not None:
        check_size(header.height, header.width, options)
        if not header.whole and options.verify != "none":
            raise Rejected(Reason.TRUNCATED_IMAGE, "the JPEG has no end marker")
        if _passes(header, options):
            if options.verify == "decode":
                _check_scan(data)
            return StoredImage(data=data, height=header.height, width=header.width, conversions=())
    try:
        decoded = decode_image(data, max_pixels=options.max_image_pixels)
    except ImageError as error:
        raise Rejected(Reason(error.fault), str(error)) from error
    conversions = list(decoded.kinds)
    if header is None and data.startswith(JPEG_START):
        conversions.append("mended_jpeg")
    return _encode(decoded, conversions, options)


def _read_header(data: bytes) -> JpegHeader | None:
    if not data.startswith(JPEG_START):
        return None
    try:
        return read_jpeg_header(data)
    except JpegEndsEarly as error:
        raise Rejected(Reason.TRUNCATED_IMAGE, str(error)) from error


def _passes(header: JpegHeader, options: Options) -> bool:
    return (
        not options.reencode
        and header.common
        and header.components in (1, 3)
        and header.orientation == 1
        and _stored_size(header.height, header.width, options) == (header.height, header.width)
    )


def _encode(decoded: Decoded, conversions: list[str], options: Options) -> StoredImage:
    pixels = decoded.pixels
    source_height, source_width = pixels.shape[:2]
    check_size(source_height, source_width, options)
    height, width = _stored_size(source_height, source_width, options)
    if (height, width) != (source_height, source_width):
        # bicubic with antialiasing, as Qwen's image processor resizes
        resized = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
        pixels = np.asarray(resized)
        conversions.append("resized")
    if options.reencode:
        conversions.append("reencoded")
    data = _encode_as_pillow(pixels) if options.reencode else _encode_finely(pixels)
    return StoredImage(data=data, height=height, width=width, conversions=tuple(conversions))


def _encode_finely(pixels: np.ndarray) -> bytes:
    """JPEG of quality 95, without chroma subsampling."""
    pixels = np.ascontiguousarray(pixels)
    if pixels.ndim == 2:
        return simplejpeg.encode_jpeg(
            pixels[..., None], quality=95, colorspace="GRAY", colorsubsampling="Gray"
        )
    return simplejpeg.encode_jpeg(pixels, quality=95, colorspace="RGB", colorsubsampling="444")


def _encode_as_pillow(pixels: np.ndarray) -> bytes:
    """RGB JPEG with Pillow's default settings: quality 75, 4:2:0."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert("RGB").save(buffer, format="JPEG")
    return buffer.getvalue()


def _stored_size(height: int, width: int, options: Options) -> tuple[int, int]:
    if options.presize is None:
        return height, width
    low, high, factor = options.presize
    return smart_resize(height, width, min_pixels=low, max_pixels=high, factor=factor)


def check_size(height: int, width: int, options: Options) -> None:
    """Raises Rejected where no model can take an image or frame of that size."""
    if not height * width:
        raise Rejected(Reason.CORRUPT_IMAGE, f"{width}x{height} in the header")
    if height * width > options.max_image_pixels:
        raise Rejected(
            Reason.TOO_MANY_PIXELS,
            f"{width}x{height} is over --max-image-pixels {options.max_image_pixels}",
        )
    if min(height, width) < FACTOR:
        raise Rejected(Reason.TOO_SMALL, f"{width}x{height} has a side under {FACTOR}")
    if max(height, width) > MAX_ASPECT * min(height, width):
        raise Rejected(Reason.TOO_ELONGATED, f"{width}x{height} is over {MAX_ASPECT}:1")


def _check_scan(data: bytes) -> None:
    """Decode at 1/8 scale: every entropy-coded byte is read, one pixel in 64 is made."""
    try:
        simplejpeg.decode_jpeg(data, colorspace="GRAY", min_height=1, min_width=1, strict=True)
    except ValueError as error:
        early_end = "Premature end" in str(error)
        reason = Reason.TRUNCATED_IMAGE if early_end else Reason.CORRUPT_IMAGE
        raise Rejected(reason, str(error)) from error
