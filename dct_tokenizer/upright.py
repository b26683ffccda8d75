"""The one rule of how an image is seen: upright, 8 bits, over white.

It holds for every container and in every place: preparation, training, answering, the export and
its check, pages. The reference is what Qwen's users feed the model: transformers' `load_image`
(`exif_transpose`, then `convert("RGB")`) and `to_rgb` of qwen-vl-utils.

- The first frame of an animation.
- Turned as Pillow's `getexif` says: an Exif block, else an Exif profile in a text chunk of a PNG,
  else ``tiff:Orientation`` in XMP. A broken block says nothing.
- Transparency of any kind (an alpha channel, a palette's, a colour key) over white. qwen-vl-utils
  does that to RGBA; `convert("RGB")` alone shows whatever colour lies under transparent pixels.
- Colour profiles are ignored: the pretrained model saw images that way, a JPEG that keeps its bytes
  keeps its profile, and the same pixels must not differ by the file that holds them. CMYK is
  brought to RGB by Pillow's formula, without a profile.
- Grey of 16 bits is scaled, not clipped. Pixels without a white level (32-bit integers, floats)
  and L*a*b* are refused.

This module needs Pillow and numpy alone: exported folders carry it.
"""

from __future__ import annotations

import warnings
from typing import Literal

import numpy as np
from PIL import Image

#: in which way an image cannot be read
Fault = Literal[
    "not_an_image", "truncated_image", "corrupt_image", "unsupported_image", "too_many_pixels"
]

ORIENTATION = 0x0112
#: what brings an image of an Exif orientation upright. Pillow's `exif_transpose` would write the
#: Exif data anew too, and fail on damage there that does not concern the image
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
#: those that exchange height and width
QUARTER_TURNS = (5, 6, 7, 8)

_ALPHA_MODES = ("RGBA", "LA", "PA", "RGBa")
_REFUSED_MODES = ("I", "F", "LAB")


class ImageError(ValueError):
    """An image that cannot be read."""

    def __init__(self, fault: Fault, detail: str) -> None:
        super().__init__(detail)
        self.fault = fault


def upright(image: Image.Image) -> np.ndarray:
    """Pixels of an opened image by the rule above: uint8 (H, W) grey or (H, W, 3) RGB.

    Raises:
        ImageError: the mode has no defined 8-bit image.
        Exception: whatever Pillow raises on a damaged file.
    """
    # PNGs may have their orientation behind the pixels
    image.load()
    sixteen_bits = is_sixteen_bits(image)
    if image.mode in _REFUSED_MODES and not sixteen_bits:
        kind = image.format or "an image"
        raise ImageError("unsupported_image", f"{kind} with pixels of mode {image.mode}")
    turn = _TURNS.get(orientation(image))
    if turn is not None:
        image = image.transpose(turn)
    if sixteen_bits:
        return _from_sixteen_bits(image)
    if has_alpha(image):
        image = image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image.getchannel("A"))
        return np.asarray(white)
    return np.asarray(image.convert("L" if image.mode in ("1", "L") else "RGB"))


def upright_rgb(image: Image.Image) -> np.ndarray:
    """The same as uint8 (H, W, 3) RGB, also of grey images."""
    return as_rgb(upright(image))


def as_rgb(pixels: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 3) of grey (H, W) or RGB."""
    return np.repeat(pixels[..., None], 3, axis=2) if pixels.ndim == 2 else pixels


def orientation(image: Image.Image) -> int:
    """1 upright … 8, as Exif counts, from what of the image has been read so far."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # not `image.getexif`, which loads a PNG
            found = Image.Image.getexif(image).get(ORIENTATION)
    except Exception:  # of a broken block Pillow raises struct.error, SyntaxError, TypeError …
        return 1
    return valid_orientation(found)


def exif_orientation(exif: bytes, xmp: bytes) -> int:
    """The same of blocks as they lie in a file, empty where it has none."""
    # Pillow's own order of the two, in the one place where it is written
    image = Image.Image()
    image.info.update(exif=exif, xmp=xmp)
    return orientation(image)


def valid_orientation(found: object) -> int:
    """A tag's value; 1 where it is absent or none of Exif's."""
    return int(found) if found in range(1, 9) else 1  # type: ignore[call-overload]


def has_alpha(image: Image.Image) -> bool:
    """Some pixels may be transparent."""
    return image.mode in _ALPHA_MODES or "transparency" in image.info


def is_sixteen_bits(image: Image.Image) -> bool:
    """Pillow gives 16-bit grey a mode of its own, save for PGM, which it scales to 0…65535, and
    for PNG before version 11.
    """
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PPM", "PNG"))


def _from_sixteen_bits(image: Image.Image) -> np.ndarray:
    """Grey of 0…65535 to 0…255, rounded: Pillow's own conversion clips at 255."""
    sixteen = np.asarray(image).astype(np.uint32)
    eight = ((sixteen * 255 + 32767) // 65535).astype(np.uint8)
    if "transparency" in image.info:
        eight[sixteen == image.info["transparency"]] = 255
    return eight
