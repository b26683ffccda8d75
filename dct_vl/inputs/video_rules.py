"""How many frames of a video are taken, which ones, and how large they may be: pure arithmetic.

The rules are those of Qwen2-VL's own tools, `smart_nframes` and `fetch_video` in
`vision_process.py` of the package qwen-vl-utils, with the additions that each docstring names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

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
        """Refuse rules that no video can meet."""
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
