"""How much is taken of a video: which frames, how large, and how many so that the sample fits.

Nothing is decoded here. The rules are those of Qwen2-VL's own tools, `smart_nframes` and
`fetch_video` in `vision_process.py` of the package qwen-vl-utils, with the additions that each
docstring names.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from data_prep.video_file import VideoHeader
from dct_tokenizer import Plan, VisualTokenizer

#: frame counts are multiples of it: the frames behind one patch of the pretrained model
FRAME_FACTOR = 2


@dataclass(frozen=True, kw_only=True)
class VideoRules:
    """Sampling in time and bounds of size; the defaults are Qwen2-VL's."""

    #: frames a second
    fps: float = 2.0
    min_frames: int = 4
    max_frames: int = 768
    #: bounds of a resized frame's area in pixels
    min_pixels: int = 128 * 28 * 28
    max_pixels: int = 768 * 28 * 28
    #: area of all frames of a video, a pair of frames counted once
    total_pixels: int = 24576 * 28 * 28

    def __post_init__(self) -> None:
        if self.fps <= 0:
            raise ValueError(f"video_fps is {self.fps}; expected more than 0")
        if not FRAME_FACTOR <= self.min_frames <= self.max_frames:
            raise ValueError(
                f"video_min_frames is {self.min_frames}, video_max_frames {self.max_frames}; "
                f"expected {FRAME_FACTOR} <= video_min_frames <= video_max_frames"
            )
        if not 0 < self.min_pixels <= self.max_pixels:
            raise ValueError(
                f"video_min_pixels is {self.min_pixels}, video_max_pixels {self.max_pixels}; "
                "expected 0 < video_min_pixels <= video_max_pixels"
            )

    def num_frames(self, available: int, duration: float) -> int:
        """Frames to take, an even number.

        `smart_nframes`: duration × fps within the bounds and what there is, rounded to a multiple
        of two (half to even). Added: a video of one frame gives that frame twice.

        Args:
            available: frames of the video, at least 1.
            duration: seconds.
        """
        lowest = -(-self.min_frames // FRAME_FACTOR) * FRAME_FACTOR
        highest = min(self.max_frames, available) // FRAME_FACTOR * FRAME_FACTOR
        wanted = min(max(duration * self.fps, lowest), highest)
        return max(FRAME_FACTOR, round(wanted / FRAME_FACTOR) * FRAME_FACTOR)

    def frame_bounds(self, num_frames: int) -> tuple[int, int]:
        """(min_pixels, max_pixels) of each of so many frames.

        `fetch_video`: the total is divided among pairs of frames, within max_pixels, but never
        below 1.05 times min_pixels, so that long videos keep legible frames.
        """
        share = self.total_pixels / num_frames * FRAME_FACTOR
        return self.min_pixels, int(max(min(self.max_pixels, share), int(self.min_pixels * 1.05)))


@dataclass(frozen=True, kw_only=True)
class Clip:
    """The frames that are taken of a video."""

    header: VideoHeader
    #: an even number
    num_frames: int
    #: bounds of a frame's area in pixels
    min_pixels: int
    max_pixels: int
    #: temporal M-RoPE ids of a second; None where a pair of frames is one id, whatever it lasts
    ids_per_second: float | None = None

    @property
    def fps(self) -> float:
        """Frames taken a second; what the rules ask for where the video does not say how long it
        is.
        """
        duration = self.header.duration
        return self.num_frames / duration if duration else VideoRules.fps

    def plan(self, visual: VisualTokenizer, num_frames: int | None = None) -> Plan:
        """The plan of the clip, or of as many frames of it, under the clip's pixel bounds.

        Raises:
            PlanError, TokenizerConfigError: the tokenizer cannot cut it.
        """
        bounded = visual.within(self.min_pixels, self.max_pixels)
        frames = self.num_frames if num_frames is None else num_frames
        plan = bounded.plan(self.header.height, self.header.width, frames)
        if self.ids_per_second is None:
            return plan
        # fewer frames of a damaged clip keep their distance
        return replace(plan, time_scale=(FRAME_FACTOR / self.fps, self.ids_per_second))


def make_clip(header: VideoHeader, rules: VideoRules, ids_per_second: float | None = None) -> Clip:
    """What the rules take of a video; `ids_per_second` as of `Clip`."""
    num_frames = rules.num_frames(header.num_frames, header.duration)
    least, most = rules.frame_bounds(num_frames)
    return Clip(
        header=header,
        num_frames=num_frames,
        min_pixels=least,
        max_pixels=most,
        ids_per_second=ids_per_second,
    )


def shorten_clips(
    clips: Sequence[Clip], visual: VisualTokenizer, *, max_tokens: int, min_frames: int
) -> tuple[Clip, ...]:
    """The clips with the most frames with which all of them together have at most `max_tokens`.

    Frames keep their size and there are fewer of them, spread over the same time: one limit is
    set to the number of frames of every clip, so that the longest lose first. It never falls below
    `min_frames`, although more than `max_tokens` are left then.
    """

    def limited(half: int) -> tuple[Clip, ...]:
        limit = half * FRAME_FACTOR
        return tuple(replace(c, num_frames=min(c.num_frames, limit)) for c in clips)

    def num_tokens(half: int) -> int:
        return sum(clip.plan(visual).num_llm_tokens for clip in limited(half))

    lowest = -(-min_frames // FRAME_FACTOR)
    highest = max((c.num_frames for c in clips), default=0) // FRAME_FACTOR
    if highest <= lowest or num_tokens(highest) <= max_tokens:
        return tuple(clips)
    fitting = bisect_right(range(lowest, highest), max_tokens, key=num_tokens)
    return limited(max(lowest, lowest + fitting - 1))


def choose_frames(times: Sequence[int], count: int) -> list[int]:
    """Places of `count` frames in `times`, evenly spread from the first to the last.

    At a constant rate this is qwen-vl-utils' `linspace(0, N - 1, count).round()`. Added, for a
    variable rate: spread over time instead of over places, each time the nearest frame.

    Args:
        times: ascending, of all frames, in ticks.
        count: at least 1; may exceed the number of frames, which then repeat.
    """
    stamps = np.asarray(times, dtype=np.float64)
    last = len(stamps) - 1
    even = np.linspace(stamps[0], stamps[-1], len(stamps))
    # containers round times to their ticks (a millisecond in Matroska)
    if np.abs(stamps - even).max() <= 1:
        return np.linspace(0, last, count).round().astype(int).tolist()
    wanted = np.linspace(stamps[0], stamps[-1], count)
    after = np.searchsorted(stamps, wanted).clip(1, last)
    nearer = wanted - stamps[after - 1] <= stamps[after] - wanted
    return np.where(nearer, after - 1, after).tolist()
