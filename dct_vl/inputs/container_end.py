"""Does a video file end where its container says it does?

FFmpeg reads a file that was cut off as if it ended there, without an error.
"""

from __future__ import annotations

from av.container import InputContainer
from av.video.stream import VideoStream

_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
_RIFF = b"RIFF"


def ends_early(container: InputContainer, stream: VideoStream, data: bytes) -> bool:
    """True where a frame of the index, or the container itself, reaches beyond the data.

    MP4 and MOV by their index of frames, Matroska and WebM by the size of their segment
    (RFC 8794, sections 4 and 6), AVI by the size of its RIFF chunk. Other containers and streamed
    ones state no size: False.
    """
    if "mov" in container.format.name:
        return any(entry.pos + entry.size > len(data) for entry in stream.index_entries)
    if data.startswith(_EBML):
        return _matroska_end(data) > len(data)
    if data.startswith(_RIFF):
        return 8 + int.from_bytes(data[4:8], "little") > len(data)
    return False


def _matroska_end(data: bytes) -> int:
    """Position at which the segment ends; 0 where it is of unknown size or not found."""
    size, start = _variable_integer(data, len(_EBML))
    segment = start + (size or 0)
    if data[segment : segment + 4] != _SEGMENT:
        return 0
    size, start = _variable_integer(data, segment + 4)
    return 0 if size is None else start + size


def _variable_integer(data: bytes, place: int) -> tuple[int | None, int]:
    """An EBML data size and the position behind it; None for the reserved "unknown"."""
    first = data[place] if place < len(data) else 0
    length = 9 - first.bit_length()
    value = int.from_bytes(data[place : place + length], "big") & ((1 << 7 * length) - 1)
    return (None if value == (1 << 7 * length) - 1 else value), place + length
