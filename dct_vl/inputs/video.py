"""Video bytes to the chosen frames, upright and resized.

Shape legend: T frames, H, W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from data_prep.video_file import (
    READ_ERRORS,
    Timeline,
    VideoError,
    as_video_error,
    decoded,
    open_container,
    packets_of,
    read_timeline,
    time_of,
    upright_pixels,
    video_stream,
)
from dct_tokenizer.pixels import resize_frames
from dct_vl.inputs.clips import choose_frames


@dataclass(frozen=True, kw_only=True)
class VideoFrames:
    """The chosen frames that could be read."""

    #: uint8 (T, H, W, 3) RGB; may be fewer than asked for where `damage` is set
    frames: np.ndarray
    #: where reading stopped and why; "" for a whole video
    damage: str


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
        with open_container(data) as container:
            timeline = read_timeline(container, data)
        damage = timeline.damage
        targets = _targets(timeline, count)
        with open_container(data) as container:
            stream = video_stream(container)
            try:
                # one for all frames: its tables take longer to make than a frame to convert
                converter = VideoReformatter()
                for frame, repeats in _frames_at(container, stream, targets, timeline):
                    rgb = converter.reformat(frame, format="rgb24", threads=1).to_ndarray()
                    upright = np.ascontiguousarray(upright_pixels(rgb, frame))[None]
                    frames += [resize_frames(upright, height, width)[0]] * repeats
            except READ_ERRORS as error:
                damage = damage or f"decoding stops: {error}"
    except READ_ERRORS as error:
        raise as_video_error(error) from error
    if not frames:
        raise VideoError(damage or "none of the chosen frames can be decoded")
    if len(frames) < count and not damage:
        damage = "a frame is damaged or missing"
    return VideoFrames(
        frames=np.stack(frames),
        damage=damage and f"{len(frames)} of {count} frames are used: {damage}",
    )


def _targets(timeline: Timeline, count: int) -> list[int]:
    """Times of the chosen frames, spread over the whole video, those that are lost left out."""
    times = timeline.times
    gap = max(1, round((times[-1] - times[0]) / max(1, len(times) - 1)))
    lost = [times[-1] + gap * (place + 1) for place in range(timeline.num_lost)]
    places = choose_frames([*times, *lost], count)
    return [times[place] for place in places if place < len(times)]


def _frames_at(
    container: InputContainer, stream: VideoStream, targets: list[int], timeline: Timeline
) -> Iterator[tuple[VideoFrame, int]]:
    """The frame at each target and how often it is wanted.

    Ends without a word at the first damaged frame; raises what the decoder does.
    """
    waiting = list(targets)
    for frame in decoded(stream, _sound_packets(container, stream, waiting, timeline)):
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
    container: InputContainer, stream: VideoStream, waiting: list[int], timeline: Timeline
) -> Iterator[Packet]:
    """Packets up to the first damaged one, save those that no wanted frame needs.

    Packets before the last key frame that precedes the first time in `waiting`, a list that the
    caller shortens, are passed over.
    """
    goal: int | None = None
    skipping = True
    for packet in islice(packets_of(container, stream), timeline.num_sound):
        # decoders run ahead: the key frame of the next goal may be among the packets they have
        start = timeline.start_of(waiting[0])
        if goal is None or start > goal:
            goal, skipping = start, True
        if packet.is_keyframe:
            here = time_of(packet)
            if skipping and here == goal:
                stream.codec_context.flush_buffers()
                skipping = False
            elif not skipping and here is not None:
                goal = max(goal, here)
        if not skipping:
            yield packet
