"""What a video's container says: size, frames and their times, and where the file is damaged.

Shape legend: H, W pixels.
"""

from __future__ import annotations

import io
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.sidedata.sidedata import Type as SideDataType
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

#: what PyAV raises on damaged files; FFmpegError for most, the others where values are absurd
READ_ERRORS = (av.FFmpegError, OSError, ValueError, IndexError)

#: frames that a damaged file may announce without having them; more are a damaged number
_MOST_LOST = 1_000_000
_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
_RIFF = b"RIFF"


class VideoError(ValueError):
    """Video bytes of which no frame can be read."""


@dataclass(frozen=True, kw_only=True)
class VideoHeader:
    """A video without its pixels."""

    #: upright, in pixels
    height: int
    width: int
    #: as the container counts them, or as its packets do where it does not
    num_frames: int
    #: seconds
    duration: float


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """Presentation times of the frames of a stream, ascending, in ticks of its time base."""

    times: list[int]
    #: of the frames at which decoding can start
    key_times: list[int]
    #: packets that can be read before the first damaged one
    num_sound: int
    #: frames that the container announces behind the last of `times`
    num_lost: int
    damage: str

    def start_of(self, time: int) -> int:
        """Time of the last key frame that is not after `time`."""
        return self.key_times[max(0, bisect_right(self.key_times, time) - 1)]


def read_header(data: bytes) -> VideoHeader:
    """Size, number of frames and duration; one frame is decoded, for its display matrix.

    Where the container does not count frames (Matroska, WebM, streamed MP4) its packets are
    counted, which decodes nothing.

    Raises:
        VideoError: there is no video stream, or not one frame of it can be decoded.
    """
    try:
        with open_container(data) as container:
            stream = video_stream(container)
            first = next(decoded(stream, packets_of(container, stream)), None)
            if first is None:
                raise VideoError("the video has no frame")
            height, width = upright_pixels(np.empty((first.height, first.width)), first).shape
            counted, rate, tick = stream.frames, stream.average_rate, stream.time_base
        if counted and rate:
            duration = float(counted / rate)
            return VideoHeader(height=height, width=width, num_frames=counted, duration=duration)
        with open_container(data) as container:
            times = read_timeline(container, data).times
    except READ_ERRORS as error:
        raise as_video_error(error) from error
    # the last frame is shown as long as the others are on average
    ticks = (times[-1] - times[0]) * len(times) / max(1, len(times) - 1)
    duration = ticks * float(tick or 0)
    return VideoHeader(height=height, width=width, num_frames=len(times), duration=duration)


def first_frame(data: bytes) -> np.ndarray:
    """uint8 (H, W, 3) RGB, upright.

    Raises:
        VideoError: none can be decoded.
    """
    try:
        with open_container(data) as container:
            stream = video_stream(container)
            for frame in decoded(stream, packets_of(container, stream)):
                rgb = upright_pixels(frame.to_ndarray(format="rgb24"), frame)
                return np.ascontiguousarray(rgb)
    except READ_ERRORS as error:
        raise as_video_error(error) from error
    raise VideoError("the video has no frame")


def open_container(data: bytes) -> InputContainer:
    """Raises one of `READ_ERRORS`."""
    return av.open(io.BytesIO(data), mode="r", metadata_errors="replace")


def video_stream(container: InputContainer) -> VideoStream:
    """The first video stream that is no cover image."""
    cover = av.stream.Disposition.attached_pic
    for stream in container.streams.video:
        if not stream.disposition & cover:
            if stream.codec_context is None:
                raise VideoError("no decoder is known for the video stream's codec")
            # loader processes are the parallelism; a decoder's threads would hold frames each
            stream.thread_type = "NONE"
            return stream
    raise VideoError("the file has no video stream")


def read_timeline(container: InputContainer, data: bytes) -> Timeline:
    """Times of all frames, from packets alone."""
    stream = video_stream(container)
    counted = stream.frames
    cut_off = _ends_early(container, stream, data)
    times: list[int] = []
    key_times: list[int] = []
    num_packets = 0
    damage = "the file ends before the video does" if cut_off else ""
    try:
        for packet in packets_of(container, stream):
            if packet.is_corrupt:
                damage = damage or f"packet {num_packets} is damaged"
                break
            num_packets += 1
            time = time_of(packet)
            if time is None or packet.is_discard:
                continue
            times.append(time)
            if packet.is_keyframe:
                key_times.append(time)
    except READ_ERRORS as error:
        damage = damage or f"packet {num_packets} cannot be read: {error}"
    if not key_times:
        raise VideoError(damage or "the video stream has no frame to start from")
    key_times.sort()
    return Timeline(
        # what precedes the first key frame cannot be decoded
        times=sorted({time for time in times if time >= key_times[0]}),
        key_times=key_times,
        num_sound=num_packets,
        num_lost=min(max(0, counted - num_packets), _MOST_LOST) if damage else 0,
        damage=damage,
    )


def _ends_early(container: InputContainer, stream: VideoStream, data: bytes) -> bool:
    """True where a frame of the index, or the container itself, reaches beyond the data: FFmpeg
    reads a file that was cut off as if it ended there, without an error.

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


def packets_of(container: InputContainer, stream: VideoStream) -> Iterator[Packet]:
    """Those of the stream that hold something, in the order of the file."""
    return (packet for packet in container.demux(stream) if packet.size)


def time_of(packet: Packet) -> int | None:
    """Time of presentation in ticks, or of decoding where it has none."""
    return packet.dts if packet.pts is None else packet.pts


def decoded(stream: VideoStream, packets: Iterable[Packet]) -> Iterator[VideoFrame]:
    """Frames in order of presentation."""
    for packet in packets:
        yield from stream.codec_context.decode(packet)
    yield from stream.codec_context.decode(None)


def upright_pixels(pixels: np.ndarray, frame: VideoFrame) -> np.ndarray:
    """Pixels (H, W, …) turned and mirrored as the container's display matrix says.

    The matrix is ISO/IEC 14496-12's (8.3.2): (x, y) is shown at (a x + c y, b x + d y). Quarter
    turns and mirrorings are applied, the nearest one where the angle is another.
    """
    # a container of PyAV's whose types say less than it holds
    sides: list[Any] = list(frame.side_data)
    matrix = [side for side in sides if side.type is SideDataType.DISPLAYMATRIX]
    if not matrix:
        return pixels
    a, b, _, c, d = np.frombuffer(matrix[0], dtype=np.int32)[:5].tolist()
    if abs(b) > abs(a):
        pixels = pixels.swapaxes(0, 1)
        down, right = b, c
    else:
        down, right = d, a
    return pixels[:: -1 if down < 0 else 1, :: -1 if right < 0 else 1]


def as_video_error(error: Exception) -> VideoError:
    """One of `READ_ERRORS` as the error of this module."""
    return error if isinstance(error, VideoError) else VideoError(f"cannot be read: {error}")
