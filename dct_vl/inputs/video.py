"""Video bytes: what the container says, and the chosen frames, upright and resized.

Shape legend: T frames, H, W pixels.
"""

from __future__ import annotations

import io
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.sidedata.sidedata import Type as SideDataType
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from dct_tokenizer.pixels import resize_frames
from dct_vl.inputs.clips import VideoHeader, choose_frames

#: what PyAV raises on damaged files; FFmpegError for most, the others where values are absurd
_ERRORS = (av.FFmpegError, OSError, ValueError, IndexError)

#: frames that a damaged file may announce without having them; more are a damaged number
_MOST_LOST = 1_000_000
_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
_RIFF = b"RIFF"


class VideoError(ValueError):
    """Video bytes of which no frame can be read."""


@dataclass(frozen=True, kw_only=True)
class VideoFrames:
    """The chosen frames that could be read."""

    #: uint8 (T, H, W, 3) RGB; may be fewer than asked for where `damage` is set
    frames: np.ndarray
    #: where reading stopped and why; "" for a whole video
    damage: str


@dataclass(frozen=True, kw_only=True)
class _Timeline:
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
        with _open(data) as container:
            stream = _stream(container)
            first = next(_decoded(stream, _packets(container, stream)), None)
            if first is None:
                raise VideoError("the video has no frame")
            height, width = _upright(np.empty((first.height, first.width)), first).shape
            counted, rate, tick = stream.frames, stream.average_rate, stream.time_base
        if counted and rate:
            duration = float(counted / rate)
            return VideoHeader(height=height, width=width, num_frames=counted, duration=duration)
        with _open(data) as container:
            times = _timeline(container, data).times
    except _ERRORS as error:
        raise _as_video_error(error) from error
    # the last frame is shown as long as the others are on average
    ticks = (times[-1] - times[0]) * len(times) / max(1, len(times) - 1)
    duration = ticks * float(tick or 0)
    return VideoHeader(height=height, width=width, num_frames=len(times), duration=duration)


def read_frames(data: bytes, count: int, height: int, width: int) -> VideoFrames:
    """`count` frames spread over the video, each resized as soon as it is decoded.

    The first damage ends the video: what was to be taken behind it is left out, what was to be
    taken before it stays. Memory: the result, one frame of full size, and the decoder's own.

    Args:
        count: frames to take; a video with fewer repeats some.
        height, width: of the result, resized with Pillow's bicubic, as HF's processor does.

    Raises:
        VideoError: not one frame can be read.
    """
    frames: list[np.ndarray] = []
    try:
        with _open(data) as container:
            timeline = _timeline(container, data)
        damage = timeline.damage
        targets = _targets(timeline, count)
        with _open(data) as container:
            stream = _stream(container)
            try:
                # one for all frames: its tables take longer to make than a frame to convert
                converter = VideoReformatter()
                for frame, repeats in _frames_at(container, stream, targets, timeline):
                    rgb = converter.reformat(frame, format="rgb24", threads=1).to_ndarray()
                    upright = np.ascontiguousarray(_upright(rgb, frame))[None]
                    frames += [resize_frames(upright, height, width)[0]] * repeats
            except _ERRORS as error:
                damage = damage or f"decoding stops: {error}"
    except _ERRORS as error:
        raise _as_video_error(error) from error
    if not frames:
        raise VideoError(damage or "none of the chosen frames can be decoded")
    if len(frames) < count and not damage:
        damage = "a frame is damaged or missing"
    return VideoFrames(
        frames=np.stack(frames),
        damage=damage and f"{len(frames)} of {count} frames are used: {damage}",
    )


def _open(data: bytes) -> InputContainer:
    return av.open(io.BytesIO(data), mode="r", metadata_errors="replace")


def _stream(container: InputContainer) -> VideoStream:
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


def _timeline(container: InputContainer, data: bytes) -> _Timeline:
    """Times of all frames, from packets alone."""
    stream = _stream(container)
    counted = stream.frames
    cut_off = _ends_early(container, stream, data)
    times: list[int] = []
    key_times: list[int] = []
    num_packets = 0
    damage = "the file ends before the video does" if cut_off else ""
    try:
        for packet in _packets(container, stream):
            if packet.is_corrupt:
                damage = damage or f"packet {num_packets} is damaged"
                break
            num_packets += 1
            time = _time(packet)
            if time is None or packet.is_discard:
                continue
            times.append(time)
            if packet.is_keyframe:
                key_times.append(time)
    except _ERRORS as error:
        damage = damage or f"packet {num_packets} cannot be read: {error}"
    if not key_times:
        raise VideoError(damage or "the video stream has no frame to start from")
    key_times.sort()
    return _Timeline(
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


def _targets(timeline: _Timeline, count: int) -> list[int]:
    """Times of the chosen frames, spread over the whole video, those that are lost left out."""
    times = timeline.times
    gap = max(1, round((times[-1] - times[0]) / max(1, len(times) - 1)))
    lost = [times[-1] + gap * (place + 1) for place in range(timeline.num_lost)]
    places = choose_frames([*times, *lost], count)
    return [times[place] for place in places if place < len(times)]


def _frames_at(
    container: InputContainer, stream: VideoStream, targets: list[int], timeline: _Timeline
) -> Iterator[tuple[VideoFrame, int]]:
    """The frame at each target and how often it is wanted.

    Ends without a word at the first damaged frame; raises what the decoder does.
    """
    waiting = list(targets)
    for frame in _decoded(stream, _sound_packets(container, stream, waiting, timeline)):
        if frame.pts is None or frame.pts < timeline.start_of(waiting[0]):
            # it leads a key frame that was jumped to, and lacks what it builds on
            continue
        if frame.is_corrupt:
            return
        repeats = 0
        while waiting and frame.pts >= waiting[0]:
            waiting.pop(0)
            repeats += 1
        if repeats:
            yield frame, repeats
        if not waiting:
            return


def _sound_packets(
    container: InputContainer, stream: VideoStream, waiting: list[int], timeline: _Timeline
) -> Iterator[Packet]:
    """Packets up to the first damaged one, save those that no wanted frame needs.

    Packets before the last key frame that precedes the first time in `waiting`, a list that the
    caller shortens, are passed over.
    """
    goal: int | None = None
    skipping = True
    for packet in islice(_packets(container, stream), timeline.num_sound):
        # decoders run ahead: the key frame of the next goal may be among the packets they have
        start = timeline.start_of(waiting[0])
        if goal is None or start > goal:
            goal, skipping = start, True
        if packet.is_keyframe:
            here = _time(packet)
            if skipping and here == goal:
                stream.codec_context.flush_buffers()
                skipping = False
            elif not skipping and here is not None:
                goal = max(goal, here)
        if not skipping:
            yield packet


def _packets(container: InputContainer, stream: VideoStream) -> Iterator[Packet]:
    return (packet for packet in container.demux(stream) if packet.size)


def _time(packet: Packet) -> int | None:
    return packet.dts if packet.pts is None else packet.pts


def _decoded(stream: VideoStream, packets: Iterable[Packet]) -> Iterator[VideoFrame]:
    """Frames in order of presentation."""
    for packet in packets:
        yield from stream.codec_context.decode(packet)
    yield from stream.codec_context.decode(None)


def _upright(pixels: np.ndarray, frame: VideoFrame) -> np.ndarray:
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


def _as_video_error(error: Exception) -> VideoError:
    return error if isinstance(error, VideoError) else VideoError(f"cannot be read: {error}")
