"""Image bytes to pixels by the rule of `dct_tokenizer.upright`; sizes from headers alone.

The one decoder of the project. Ordinary JPEGs go through libjpeg-turbo in 0.4 of Pillow's time,
plain PNGs, which most charts are, through libspng in 0.6 of it, both to the same bits.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module

import numpy as np
import pyspng
import simplejpeg
from PIL import Image, UnidentifiedImageError

from dct_tokenizer.image_headers import (
    JPEG_START,
    PNG_START,
    JpegEndsEarly,
    is_oriented_behind_pixels,
    may_orient,
    png_chunks,
    read_jpeg_header,
)
from dct_tokenizer.upright import (
    ORIENTATION,
    QUARTER_TURNS,
    ImageError,
    as_rgb,
    has_alpha,
    is_sixteen_bits,
    orientation,
    upright,
)

#: Pillow's bound for decompression bombs
MAX_PIXELS = 178_956_970

#: Formats that are opened, by the first bytes of their files. Those that would start another
#: program (EPS) or that random bytes can pass for (TGA) stay closed. MPO counts as JPEG.
_MAGIC = {
    "JPEG": (b"\xff\xd8",),
    "PNG": (b"\x89PNG",),
    "WEBP": (b"RIFF",),
    "GIF": (b"GIF8",),
    "BMP": (b"BM",),
    "TIFF": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    "PPM": (b"P1", b"P2", b"P3", b"P4", b"P5", b"P6"),
    "JPEG2000": (b"\0\0\0\x0cjP", b"\xff\x4f\xff\x51"),
    "ICO": (b"\0\0\1\0",),
    "JXL": (b"\xff\x0a", b"\0\0\0\x0cJXL "),
}
#: formats of ISO/IEC 23008-12, by the brands that follow "ftyp"
_BRANDS = {
    "AVIF": (b"avif", b"avis"),
    "HEIF": (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"),
}
#: (module, package) that adds a format to Pillow where it is installed
_PLUGINS = {
    "HEIF": ("pillow_heif", "pillow-heif"),
    "JXL": ("pillow_jxl", "pillow-jxl-plugin"),
}

#: 8-bit colour types of PNG that need no palette: grey and RGB
_PLAIN_COLOURS = (0, 2)


@dataclass(frozen=True)
class Decoded:
    """An upright image, and why its file cannot be used as it is."""

    pixels: np.ndarray  #: uint8, (H, W) grey or (H, W, 3) RGB
    kinds: list[str]  #: what is unusual about the file, by names that manifests count


def header_size(data: bytes) -> tuple[int, int]:
    """(height, width) in pixels of the upright image, from the header alone; or ImageError."""
    if data.startswith(JPEG_START):
        try:
            header = read_jpeg_header(data)
        except JpegEndsEarly as error:
            raise ImageError("truncated_image", f"header cannot be read: {error}") from error
        if header is not None and 0 < header.height * header.width <= MAX_PIXELS:
            size = header.height, header.width
            return size[::-1] if header.orientation in QUARTER_TURNS else size
    with _as_image_errors("header cannot be read"):
        image = _open(data, MAX_PIXELS)
        if ORIENTATION in getattr(image, "tag_v2", ()):
            # Pillow turns a TIFF itself, and says the size that it has then, save where XMP says so
            return image.height, image.width
        if image.format == "PNG" and is_oriented_behind_pixels(data):
            image.load()
        height, width = image.height, image.width
        return (width, height) if orientation(image) in QUARTER_TURNS else (height, width)


def decode_rgb(data: bytes) -> np.ndarray:
    """(1, H, W, 3) uint8 RGB; see `decode_image`."""
    return as_rgb(decode_image(data).pixels)[None]


def decode_image(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Decoded:
    """Decode an image by the rule of `dct_tokenizer.upright`.

    Raises:
        ImageError: it is damaged, too large, or none that is read here. It is not tried again: a
            second load of a broken file can succeed with missing rows.
    """
    if data.startswith(JPEG_START):
        pixels = _decode_plain_jpeg(data, max_pixels)
        if pixels is not None:
            return Decoded(pixels, [])
    elif data.startswith(PNG_START):
        pixels = _decode_plain_png(data, max_pixels)
        if pixels is not None:
            return Decoded(pixels, ["png"])
    with _as_image_errors("cannot be decoded"):
        image = _open(data, max_pixels)
        # the one time that pixels are decoded: a broken PNG can fail at the first load and come
        # out grey, without an error, at the second
        image.load()
        return Decoded(upright(image), _kinds(image))


def _open(data: bytes, max_pixels: int) -> Image.Image:
    """Read an image's header; pixels are not decoded yet."""
    kind = _kind_of(data)
    if kind is None:
        raise ImageError("not_an_image", f"starts with {data[:16]!r}")
    if kind in _PLUGINS:
        _load_plugin(kind)
    if kind not in Image.OPEN:
        Image.init()
    if kind not in Image.OPEN:
        raise ImageError("unsupported_image", f"the Pillow that is installed reads no {kind}")
    try:
        image = Image.open(io.BytesIO(data), formats=(kind,))
    except UnidentifiedImageError as error:
        detail = f"starts as a {kind}, but its header cannot be read"
        raise ImageError("corrupt_image", detail) from error
    except Image.DecompressionBombError as error:
        raise ImageError("too_many_pixels", str(error)) from error
    if image.width * image.height > max_pixels:
        size = f"{image.width}x{image.height}"
        raise ImageError("too_many_pixels", f"{size} is over {max_pixels} pixels")
    return image


def _kind_of(data: bytes) -> str | None:
    """Pillow's name of the format that data starts as."""
    if data[4:8] == b"ftyp":
        brands = data[8 : min(int.from_bytes(data[:4], "big"), 64)]
        found = [brands[i : i + 4] for i in range(0, len(brands), 4)]
        return next((k for k, names in _BRANDS.items() if any(b in names for b in found)), None)
    return next((kind for kind, starts in _MAGIC.items() if data.startswith(starts)), None)


def _load_plugin(kind: str) -> None:
    module, package = _PLUGINS[kind]
    try:
        plugin = import_module(module)
    except ImportError as error:
        raise ImageError(
            "unsupported_image",
            f"{kind} is read where {package} is installed: pip install {package}",
        ) from error
    if kind == "HEIF":
        plugin.register_heif_opener()


def _kinds(image: Image.Image) -> list[str]:
    """Of a loaded image."""
    found = {
        str(image.format).lower(): image.format not in ("JPEG", "MPO"),
        "animated": getattr(image, "is_animated", False) and image.format != "MPO",
        "alpha": has_alpha(image),
        "palette": image.mode in ("P", "PA"),
        "16_bit": is_sixteen_bits(image),
        "cmyk": image.mode == "CMYK",
        "rotated": orientation(image) != 1,
    }
    return [name for name, holds in found.items() if holds]


@contextmanager
def _as_image_errors(said: str) -> Iterator[None]:
    """What decoders raise on broken files has no common base: OSError, ValueError, TypeError …"""
    try:
        with warnings.catch_warnings():
            # Pillow warns of broken metadata and, at half our bound, of decompression bombs
            warnings.simplefilter("ignore")
            yield
    except ImageError as error:
        raise ImageError(error.fault, f"{said}: {error}") from error
    except MemoryError:
        raise
    except Exception as error:
        text = f"{said}: {type(error).__name__}: {error}"
        early_end = isinstance(error, EOFError) or "truncated" in text.lower()
        raise ImageError("truncated_image" if early_end else "corrupt_image", text) from error


def _decode_plain_jpeg(data: bytes, max_pixels: int) -> np.ndarray | None:
    """Pixels of an upright 8-bit grey, YCbCr or RGB JPEG; None where Pillow has to decide."""
    try:
        header = read_jpeg_header(data)
        if (
            header is None
            or not (header.common and header.components in (1, 3) and header.orientation == 1)
            or not 0 < header.height * header.width <= max_pixels
        ):
            return None
        return _decode_jpeg(data, is_grey=header.components == 1)
    except ValueError:
        # slight damage that Pillow may pass over
        return None


def _decode_jpeg(data: bytes, *, is_grey: bool) -> np.ndarray:
    """Raises ValueError at the slightest damage. Pillow calls libjpeg-turbo too, with the accurate
    inverse DCT and smooth upsampling, so that they agree to the bit (a test holds this).
    """
    pixels = simplejpeg.decode_jpeg(
        data,
        colorspace="GRAY" if is_grey else "RGB",
        fastdct=False,
        fastupsample=False,
        strict=True,
    )
    return pixels[..., 0] if is_grey else pixels


def _decode_plain_png(data: bytes, max_pixels: int) -> np.ndarray | None:
    """Pixels of an 8-bit grey or RGB PNG, uint8 (H, W) or (H, W, 3).

    None for a PNG with anything more to it (alpha, palette, orientation, frames, 16 bits) or with
    chunks out of order, which Pillow judges. Raises ImageError for a broken one.
    """
    if data[12:16] != b"IHDR" or len(data) < 33:
        return None
    width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    if data[24] != 8 or data[25] not in _PLAIN_COLOURS or not 0 < width * height <= max_pixels:
        return None
    name = b""
    for name, body in png_chunks(data):
        if name in (b"tRNS", b"acTL") or may_orient(data, name, body):
            return None
    if name != b"IEND":
        return None
    try:
        pixels = pyspng.load(data)
    except (RuntimeError, ValueError) as error:
        early_end = "end of" in str(error).lower() or "stream" in str(error).lower()
        raise ImageError(
            "truncated_image" if early_end else "corrupt_image", f"cannot be decoded: PNG: {error}"
        ) from error
    return pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels
