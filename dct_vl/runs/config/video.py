"""From a run's keys to the rules by which frames of videos are taken."""

from __future__ import annotations

from dct_vl.inputs.video_rules import VideoRules
from dct_vl.runs.config.schema import DataConfig

#: part of a sequence that the tokens of a video may fill, and pixels behind a stock token; the
#: rule by which qwen-vl-utils derives its total from the model's context
_SHARE, _TOKEN_PIXELS = 0.9, 28 * 28


def video_rules(data: DataConfig) -> VideoRules:
    """The rules of a run.

    Raises:
        ValueError: rules that no video can meet; the message names the keys.
    """
    total = data.video_total_pixels
    return VideoRules(
        fps=data.video_fps,
        min_frames=data.video_min_frames,
        max_frames=data.video_max_frames,
        min_pixels=data.video_min_pixels,
        max_pixels=data.video_max_pixels,
        total_pixels=int(_SHARE * data.seq_length * _TOKEN_PIXELS) if total is None else total,
    )
