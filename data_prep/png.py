"""The fast way for the PNGs that most charts are: libspng takes 60 % of Pillow's time.

Chunk layout: PNG specification (W3C), sections 5 and 11.
"""

import numpy as np
import pyspng

from data_prep.reasons import Reason, Rejected

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
