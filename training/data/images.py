"""Picture bytes: size from the header, pixels as RGB."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

#: what Pillow raises on damaged files (seen on truncated and corrupted JPEG, PNG and WebP)
_PILLOW_ERRORS = (OSError, ValueError, TypeError, SyntaxError, Image.DecompressionBombError)


class ImageError(ValueError):
    """Picture bytes that cannot be read."""


def header_size(data: bytes) -> tuple[int, int]:
    """(height, width) in pixels, from the header alone.

    Raises:
        ImageError: the header cannot be read.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
    except _PILLOW_ERRORS as error:
        raise ImageError(f"header cannot be read: {error}") from error
    return height, width


def decode_rgb(data: bytes) -> np.ndarray:
    """(1, H, W, 3) uint8 RGB.

    Raises:
        ImageError: the picture is damaged. It is not tried again: a second load of a broken file
            can succeed with missing rows.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(image.convert("RGB"))[None]
    except _PILLOW_ERRORS as error:
        raise ImageError(f"cannot be decoded: {error}") from error
