"""How much of each video of a sample is taken, so that the sample fits."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace

from dct_tokenizer import Plan, VisualTokenizer
from dct_vl.inputs.video import VideoHeader
from dct_vl.inputs.video_rules import FRAME_FACTOR, VideoRules


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
