"""The one way from a conversation and its encoded media to the inputs of a model.

`plan_chat` reads text and headers and decodes nothing; `encode_chat` decodes and cuts into cells.
Training calls them in two stages of its loader, everything that answers one after the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from megatron.energon import Sample

from data_prep.schema import Turn
from data_prep.video_file import read_header
from dct_tokenizer import Plan, VisualTokenizer
from dct_tokenizer.decode import decode_rgb, header_size
from dct_vl.inputs.cells import encode_visual
from dct_vl.inputs.chat import ChatTokenizer, place_media
from dct_vl.inputs.clips import VideoRules, make_clip, shorten_clips
from dct_vl.inputs.samples import EncodedChat, PlannedChat
from dct_vl.inputs.video import read_frames

#: grey of blank images; Qwen2-VL's normalisation maps it close to 0
BLANK_LEVEL = 118


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """What a model's inputs depend on beside the sample."""

    #: renders and tokenises
    chat: ChatTokenizer
    #: plans images and videos and cuts them into cells
    visual: VisualTokenizer
    #: of the videos of a sample with more tokens than this fewer frames are taken
    seq_length: int
    #: which frames are taken of videos, in place of the pixel bounds of `visual`
    video: VideoRules = field(default_factory=VideoRules)
    #: temporal ids of a second of video, see `dct_vl.inputs.clips.Clip`
    ids_per_second: float | None = None


def plan_chat(
    spec: InputSpec,
    origin: Sample,
    turns: Sequence[Turn],
    images: Sequence[bytes],
    videos: Sequence[bytes] = (),
    *,
    is_prompt: bool = False,
) -> PlannedChat:
    """Token ids, positions and plans from the text and the headers of the media.

    Args:
        origin: whose key and sources the result carries.
        images, videos: encoded, in the order of the conversation.
        is_prompt: up to the point where the model answers the last (user) turn; otherwise a whole
            conversation, whose answers are to be predicted.

    Raises:
        ChatError: see `ChatTokenizer`.
        ImageError, VideoError: a header cannot be read.
        PlanError, TokenizerConfigError: the tokenizer cannot cut an image or video.
    """
    tokenize = spec.chat.prompt if is_prompt else spec.chat.tokenize
    chat = tokenize(turns, len(images), len(videos))
    image_plans = [spec.visual.plan(*header_size(data)) for data in images]
    room = spec.seq_length - len(chat.input_ids) + len(chat.media)
    clips = shorten_clips(
        [make_clip(read_header(data), spec.video, spec.ids_per_second) for data in videos],
        spec.visual,
        max_tokens=room - sum(plan.num_llm_tokens for plan in image_plans),
        min_frames=spec.video.min_frames,
    )
    planned = {"image": iter(image_plans), "video": (clip.plan(spec.visual) for clip in clips)}
    plans = tuple(next(planned[kind]) for kind in chat.media)
    ids, is_answer, positions = place_media(chat, spec.chat.pad_ids, plans)
    return PlannedChat.derive_from(
        origin,
        chat=chat,
        input_ids=ids,
        is_answer=is_answer,
        position_ids=positions,
        plans=plans,
        images=tuple(images),
        videos=tuple(videos),
        clips=clips,
    )


def encode_chat(spec: InputSpec, planned: PlannedChat, *, is_blank: bool = False) -> EncodedChat:
    """Decode images and the chosen frames of videos, and cut them into cells.

    A damaged video is planned anew with the frames before the damage, which keep their size.

    Args:
        is_blank: every frame becomes an even grey one of its size: what can be guessed without.

    Raises:
        ImageError, VideoError: an image is damaged, or not one frame of a video can be read.
        ValueError: pixels contradict their header.
    """
    frames: list[np.ndarray] = []
    plans: list[Plan] = []
    damage: list[str] = []
    images, videos = iter(planned.images), zip(planned.videos, planned.clips, strict=True)
    for kind, plan in zip(planned.chat.media, planned.plans, strict=True):
        if kind == "image":
            frames.append(decode_rgb(next(images)))
            plans.append(plan)
            continue
        data, clip = next(videos)
        read = read_frames(data, clip.num_frames, plan.height, plan.width)
        if read.damage:
            damage.append(read.damage)
        is_short = len(read.frames) < clip.num_frames
        frames.append(read.frames)
        plans.append(clip.plan(spec.visual, len(read.frames)) if is_short else plan)
    if is_blank:
        frames = [np.full_like(one, BLANK_LEVEL) for one in frames]
    visual = encode_visual(spec.visual, frames, plans)
    ids, is_answer, positions = planned.input_ids, planned.is_answer, planned.position_ids
    if spec.visual.content_dependent or damage:
        ids, is_answer, positions = place_media(planned.chat, spec.chat.pad_ids, visual.plans)
    return EncodedChat.derive_from(
        planned,
        input_ids=ids,
        is_answer=is_answer,
        position_ids=positions,
        visual=visual,
        damage=tuple(damage),
    )
