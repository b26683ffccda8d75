"""What a decoder has to know of a JPEG or PNG before it starts, read without one.

A JPEG's header takes about 15 µs a file against 80 µs for opening it with Pillow. Marker codes and
segment layouts: ITU-T T.81, annex B; PNG's chunks: PNG specification (W3C), sections 5 and 11.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from dct_tokenizer.upright import exif_orientation

JPEG_START = b"\xff\xd8\xff"
PNG_START = b"\x89PNG\r\n\x1a\n"

_APP1, _SOS = 0xE1, 0xDA
_EOI = b"\xff\xd9"
#: Start-of-frame codes; 0xC4, 0xC8 and 0xCC in their midst mean something else.
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
#: Huffman-coded baseline, extended and progressive: what every decoder reads.
_COMMON_FRAMES = frozenset({0xC0, 0xC1, 0xC2})
_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD9)})
_EXIF, _XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"

_PNG_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
#: keywords of texts in which an orientation may stand, up to where they end
_ORIENTED_TEXTS = (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0", b"exif\0", b"xmp\0")


@dataclass(frozen=True, kw_only=True)
class JpegHeader:
    """Frame and orientation of a JPEG."""

    height: int  #: pixels as stored, before the orientation is applied
    width: int
    components: int  #: 1 grey, 3 YCbCr or RGB, 4 CMYK or YCCK
    common: bool  #: 8 bits, Huffman-coded baseline, extended or progressive
    orientation: int  #: 1 upright … 8, as Exif counts; 1 where absent or out of range
    whole: bool  #: an end marker follows the start of the scan


class JpegEndsEarly(ValueError):
    """The data ends before its first scan starts."""


def read_jpeg_header(data: bytes) -> JpegHeader | None:
    """Header of a JPEG (data that starts with `JPEG_START`), up to its first scan.

    None where something else than a segment stands between the segments: a decoder that skips
    junk may still read the file. Raises JpegEndsEarly where the data ends before a scan starts.
    """
    frame: tuple[int, int, int, int, int] | None = None
    exif = xmp = b""
    position, end = 2, len(data)
    while position + 4 <= end and data[position] == 0xFF:
        code = data[position + 1]
        if code == 0xFF:  # a fill byte
            position += 1
            continue
        if code in _WITHOUT_LENGTH:
            position += 2
            continue
        length = (data[position + 2] << 8) | data[position + 3]
        body, following = position + 4, position + 2 + length
        if length < 2:
            return None
        if following > end:
            break
        if code == _SOS:
            if frame is None:
                return None
            kind, precision, height, width, components = frame
            return JpegHeader(
                height=height,
                width=width,
                components=components,
                common=kind in _COMMON_FRAMES and precision == 8,
                orientation=exif_orientation(exif, xmp) if exif or xmp else 1,
                whole=data.rfind(_EOI, following) >= 0,
            )
        if code in _FRAMES:
            if length < 8:
                return None
            frame = (code, *struct.unpack_from(">BHHB", data, body))
        elif code == _APP1:
            # as Pillow takes them: a second Exif block goes on where the first one ends, of XMP
            # the last counts
            if data.startswith(_EXIF, body):
                exif += data[body + (len(_EXIF) if exif else 0) : following]
            elif data.startswith(_XMP, body):
                xmp = data[body + len(_XMP) : following]
        position = following
    if position + 4 <= end and data[position] != 0xFF:
        return None
    raise JpegEndsEarly(f"{end} bytes end before the first scan")


def png_chunks(data: bytes) -> Iterator[tuple[bytes, int]]:
    """(name, position of its body) of each chunk up to the end chunk; fewer where data ends."""
    position = len(PNG_START)
    while position + 12 <= len(data):
        name = data[position + 4 : position + 8]
        yield name, position + 8
        if name == b"IEND":
            return
        position += 12 + int.from_bytes(data[position : position + 4], "big")


def may_orient(data: bytes, name: bytes, body: int) -> bool:
    """A PNG's chunk may hold the image's orientation."""
    return name == b"eXIf" or (name in _PNG_TEXTS and data.startswith(_ORIENTED_TEXTS, body))


def is_oriented_behind_pixels(data: bytes) -> bool:
    """A PNG may have its orientation where only decoding its pixels leads to."""
    behind = False
    for name, body in png_chunks(data):
        behind = behind or name == b"IDAT"
        if behind and may_orient(data, name, body):
            return True
    return False
