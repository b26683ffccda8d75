"""Pictures and videos of a sample, in the order of its conversation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from dct_tokenizer import Plan, VisualTokenizer
from dct_vl.inputs.chat import Kind
from dct_vl.inputs.images import decode_rgb
from dct_vl.inputs.samples import PlannedChat
from dct_vl.inputs.video import read_frames

_Item = TypeVar("_Item")


@dataclass(frozen=True, kw_only=True)
class DecodedMedia:
    """A sample's pixels."""

    #: uint8 (T, H, W, 3) a picture or video
    frames: list[np.ndarray]
    #: those of the sample, shorter ones in the place of damaged videos
    plans: tuple[Plan, ...]
    #: what is wrong with videos of which only a part is used
    damage: list[str]


def in_order(
    media: Sequence[Kind], images: Iterable[_Item], videos: Iterable[_Item]
) -> tuple[_Item, ...]:
    """One item a placeholder, from those of the pictures and those of the videos."""
    sources = {"image": iter(images), "video": iter(videos)}
    return tuple(next(sources[kind]) for kind in media)


def decode_media(sample: PlannedChat, visual: VisualTokenizer) -> DecodedMedia:
    """Decode pictures in full, and of videos the chosen frames, at the size of their plans.

    A damaged video is planned anew with the frames before the damage, which keep their size.

    Raises:
        ImageError, VideoError: a picture is damaged, or not one frame of a video can be read.
    """
    frames: list[np.ndarray] = []
    plans: list[Plan] = []
    damage: list[str] = []
    images, videos = iter(sample.images), iter(zip(sample.videos, sample.clips, strict=True))
    for kind, plan in zip(sample.chat.media, sample.plans, strict=True):
        if kind == "image":
            frames.append(decode_rgb(next(images)))
            plans.append(plan)
            continue
        data, clip = next(videos)
        read = read_frames(data, clip.num_frames, plan.height, plan.width)
        if read.damage:
            damage.append(read.damage)
        short = len(read.frames) < clip.num_frames
        frames.append(read.frames)
        plans.append(clip.plan(visual, len(read.frames)) if short else plan)
    return DecodedMedia(frames=frames, plans=tuple(plans), damage=damage)
