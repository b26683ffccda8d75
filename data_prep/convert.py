"""Decode any image to upright 8-bit grey or sRGB, once.

Plain PNGs, which most charts are, go through libspng in 60 % of Pillow's time; their chunk layout:
PNG specification (W3C), sections 5 and 11.
"""

import io
import warnings
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyspng
import simplejpeg
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from data_prep.quarantine import Reason, Rejected

Image.init()

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
    "AVIF": (b"\0\0\0\x1cftypavi", b"\0\0\0\x20ftypavi"),
    "ICO": (b"\0\0\1\0",),
}
_FORMATS = tuple(name for name in _MAGIC if name in Image.OPEN)

#: Modes without an agreed white level, hence without a defined 8-bit image.
_OPEN_RANGE_MODES = ("I", "F")
_ALPHA_MODES = ("RGBA", "LA", "PA", "La", "RGBa")


@dataclass(frozen=True)
class Decoded:
    """An upright image, and the conversions that made it."""

    pixels: np.ndarray  #: uint8, (height, width) grey or (height, width, 3) sRGB
    conversions: list[str]


def decode_upright(data: bytes, *, max_pixels: int) -> Decoded:
    """Decode an image's first frame, turn it upright, bring it to 8 bits over white.

    Raises Rejected; an image is never decoded a second time.
    """
    if data.startswith(PNG_START):
        plain = decode_plain_png(data, max_pixels=max_pixels)
        if plain is not None:
            return Decoded(plain, ["png"])
    image = _open(data, max_pixels=max_pixels)
    if image.mode in _OPEN_RANGE_MODES and not is_sixteen_bits(image):
        raise Rejected(Reason.UNSUPPORTED_IMAGE, f"{image.format} with pixels of mode {image.mode}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # the one time that pixels are decoded: a broken PNG can fail at the first load and
            # come out grey, without an error, at the second
            image.load()
            conversions = _kinds(image)
            profile = image.info.get("icc_profile")
            upright = ImageOps.exif_transpose(image) if "rotated" in conversions else image
            if is_sixteen_bits(image):
                return Decoded(from_sixteen_bits(upright), conversions)
            return Decoded(np.asarray(_to_eight_bits(upright, profile, conversions)), conversions)
    except MemoryError:
        raise
    except Exception as error:
        raise _broken(error) from error


def resize(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bicubic with antialiasing, as Qwen's image processor resizes."""
    image = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(image)


def encode(pixels: np.ndarray) -> bytes:
    """JPEG of quality 95, without chroma subsampling."""
    pixels = np.ascontiguousarray(pixels)
    if pixels.ndim == 2:
        return simplejpeg.encode_jpeg(
            pixels[..., None], quality=95, colorspace="GRAY", colorsubsampling="Gray"
        )
    return simplejpeg.encode_jpeg(pixels, quality=95, colorspace="RGB", colorsubsampling="444")


def encode_as_pillow(pixels: np.ndarray) -> bytes:
    """RGB JPEG with Pillow's default settings: quality 75, 4:2:0."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert("RGB").save(buffer, format="JPEG")
    return buffer.getvalue()


def _open(data: bytes, *, max_pixels: int) -> Image.Image:
    """Read an image's header; pixels are not decoded yet."""
    try:
        with warnings.catch_warnings():
            # Pillow warns of broken metadata and, at half our bound, of decompression bombs
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
    except UnidentifiedImageError as error:
        raise _unidentified(data) from error
    except Image.DecompressionBombError as error:
        raise Rejected(Reason.TOO_MANY_PIXELS, str(error)) from error
    except MemoryError:
        raise
    except Exception as error:
        # what decoders raise on broken files has no common base: OSError, ValueError, TypeError …
        raise _broken(error) from error
    if image.width * image.height > max_pixels:
        raise Rejected(
            Reason.TOO_MANY_PIXELS, f"{image.width}x{image.height} is over {max_pixels} pixels"
        )
    return image


def _kinds(image: Image.Image) -> list[str]:
    """Why an image is converted, by names that the manifest counts."""
    kinds = []
    if image.format not in ("JPEG", "MPO"):
        kinds.append(str(image.format).lower())
    if getattr(image, "is_animated", False) and image.format != "MPO":
        kinds.append("animated")
    if image.mode in _ALPHA_MODES or "transparency" in image.info:
        kinds.append("alpha")
    if image.mode in ("P", "PA"):
        kinds.append("palette")
    if is_sixteen_bits(image):
        kinds.append("16_bit")
    if image.mode == "CMYK":
        kinds.append("cmyk")
    if image.getexif().get(0x0112, 1) in range(2, 9):
        kinds.append("rotated")
    return kinds


def is_sixteen_bits(image: Image.Image) -> bool:
    """Pillow gives 16-bit grey a mode of its own, save for PGM, which it scales to 0…65535."""
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM")


def from_sixteen_bits(image: Image.Image) -> np.ndarray:
    """Grey of 0…65535 to 0…255, rounded: Pillow's own conversion clips at 255."""
    sixteen = np.asarray(image).astype(np.uint32)
    return ((sixteen * 255 + 32767) // 65535).astype(np.uint8)


def _to_eight_bits(
    image: Image.Image, profile: bytes | None, conversions: list[str]
) -> Image.Image:
    if image.mode in _ALPHA_MODES or "transparency" in image.info:
        with_alpha = image.convert("RGBA")
        colours = _to_srgb(with_alpha.convert("RGB"), profile, conversions)
        white = Image.new("RGB", image.size, "white")
        white.paste(colours, mask=with_alpha.getchannel("A"))
        return white
    if image.mode in ("1", "L"):
        return image.convert("L")
    if image.mode == "P":
        image = image.convert("RGB")
    image = _to_srgb(image, profile, conversions)
    return image if image.mode == "RGB" else image.convert("RGB")


def _to_srgb(image: Image.Image, profile: bytes | None, conversions: list[str]) -> Image.Image:
    """Apply an embedded profile; an unusable one is ignored."""
    if not profile or image.mode not in ("RGB", "CMYK"):
        return image
    transform = _transform(profile, image.mode)
    if transform is None:
        return image
    converted = ImageCms.applyTransform(image, transform)
    if converted is None:
        return image
    conversions.append("colour_profile")
    return converted


@lru_cache(maxsize=16)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    try:
        return ImageCms.buildTransform(
            io.BytesIO(profile), ImageCms.createProfile("sRGB"), mode, "RGB"
        )
    except (ImageCms.PyCMSError, OSError, ValueError):
        return None


def _unidentified(data: bytes) -> Rejected:
    for name, starts in _MAGIC.items():
        if data.startswith(starts):
            return Rejected(
                Reason.CORRUPT_IMAGE, f"starts as a {name}, but its header cannot be read"
            )
    return Rejected(Reason.NOT_AN_IMAGE, f"starts with {data[:16]!r}")


def _broken(error: Exception) -> Rejected:
    text = f"{type(error).__name__}: {error}"
    early_end = isinstance(error, EOFError) or "truncated" in text.lower()
    return Rejected(Reason.TRUNCATED_IMAGE if early_end else Reason.CORRUPT_IMAGE, text)


PNG_START = b"\x89PNG\r\n\x1a\n"
#: Colour types of 8 bits that need no palette: grey and RGB.
_PLAIN_COLOURS = (0, 2)
#: Chunks that change what is to be stored: transparency, profile, orientation, animation.
_MEANINGFUL = frozenset({b"tRNS", b"iCCP", b"eXIf", b"acTL", b"iTXt"})


def decode_plain_png(data: bytes, *, max_pixels: int) -> np.ndarray | None:
    """Pixels of an 8-bit grey or RGB PNG, uint8 (height, width) or (height, width, 3).

    None for a PNG with anything more to it (alpha, palette, profile, orientation, 16 bits) or with
    chunks out of order, which Pillow judges. Raises Rejected for a broken one.
    """
    if data[12:16] != b"IHDR" or len(data) < 33:
        return None
    width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    if data[24] != 8 or data[25] not in _PLAIN_COLOURS or not width * height <= max_pixels:
        return None
    if not width * height or not _has_only_pixels(data):
        return None
    try:
        pixels = pyspng.load(data)
    except (RuntimeError, ValueError) as error:
        early_end = "end of" in str(error).lower() or "stream" in str(error).lower()
        reason = Reason.TRUNCATED_IMAGE if early_end else Reason.CORRUPT_IMAGE
        raise Rejected(reason, f"PNG: {error}") from error
    return pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels


def _has_only_pixels(data: bytes) -> bool:
    """Chunks chain up to the end, and none of them changes what is to be stored."""
    position = 8
    while position + 12 <= len(data):
        name = data[position + 4 : position + 8]
        if name == b"IEND":
            return True
        if name in _MEANINGFUL:
            return False
        position += 12 + int.from_bytes(data[position : position + 4], "big")
    return False
