"""Answers of a training checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dct_tokenizer import VisualTokenizer
from dct_vl.inference.decode import DecodeOptions, cut_at, decode, visual_embeddings
from dct_vl.inference.generate.engine import AnswerSettings, Reply, Watch, score_of
from dct_vl.inference.generate.fingerprint import checkpoint_fingerprint
from dct_vl.inference.generate.requests import Request
from dct_vl.inference.loading import LoadedModel, load_checkpoint
from dct_vl.inputs.batch import pad_batch
from dct_vl.inputs.clips import make_clip, shorten_clips
from dct_vl.inputs.images import header_size
from dct_vl.inputs.media import decode_media, in_order
from dct_vl.inputs.pictures import encode_pictures
from dct_vl.inputs.plan_chat import place_media
from dct_vl.inputs.samples import EncodedChat, PlannedChat
from dct_vl.inputs.video import read_header
from dct_vl.inputs.video_rules import VideoRules
from dct_vl.runs.derived import RunSettings


@dataclass(frozen=True, kw_only=True)
class EncodedRequest:
    """A prompt, and what its answer needs to know of it."""

    prompt: EncodedChat
    max_new_tokens: int
    damage: tuple[str, ...]


class CheckpointEngine:
    """A checkpoint of any layout, in this process or divided over those of its team.

    Args:
        path: a run's folder or a checkpoint.
        settings: of the answers.
        dtype: that the model computes in.
    """

    def __init__(self, path: Path, settings: AnswerSettings, dtype: torch.dtype) -> None:
        self.settings = settings
        self.use(load_checkpoint(path, dtype=dtype))

    def use(self, model: LoadedModel) -> None:
        """Answer with this model, under the bounds of the settings."""
        settings, visual = self.settings, model.visual
        bounded = visual.within(
            visual.min_pixels if settings.min_pixels is None else settings.min_pixels,
            visual.max_pixels if settings.max_pixels is None else settings.max_pixels,
        )
        self.model = replace(model, visual=bounded)
        self.min_pixels, self.max_pixels = bounded.min_pixels, bounded.max_pixels

    @property
    def visual(self) -> VisualTokenizer:
        """See `Engine`."""
        return self.model.visual

    @property
    def video_rules(self) -> VideoRules:
        """See `Engine`."""
        return _rules(self.model)

    def identity(self) -> dict[str, Any]:
        """See `Engine`."""
        run = self.model.run
        return {
            "run": run.experiment_name,
            "step": self.model.step,
            "weights": checkpoint_fingerprint(self.model.checkpoint),
            "tokenizer": run.tokenizer,
            "dtype": str(next(self.model.module.parameters()).dtype),
        }

    def encode(self, request: Request) -> EncodedRequest:
        """Prompt and cells; of videos as much as training would take."""
        return encode_request(self.model, request)

    def answer(self, encoded: Sequence[EncodedRequest], watch: Watch | None = None) -> list[Reply]:
        """See `Engine`."""
        settings = self.settings
        options = DecodeOptions(sampling=settings.sampling, stop=settings.stop)
        limits = [one.max_new_tokens for one in encoded]
        follow = None if watch is None else lambda tokens: watch(self.model.text(tokens))
        found = decode(self.model, [one.prompt for one in encoded], limits, options, follow)
        return [
            Reply(
                text=cut_at(self.model.text(given.tokens), settings.stop)[0].strip(),
                num_tokens=len(given.tokens),
                is_finished=given.is_finished,
                num_visual_tokens=int((one.prompt.input_ids < 0).sum()),
                damage=one.damage,
            )
            for given, one in zip(found, encoded, strict=True)
        ]

    @torch.inference_mode()
    def score(self, encoded: EncodedRequest, continuation: str) -> tuple[float, bool]:
        """See `Engine`; for a model that is not divided."""
        tokens = self.model.chat.tokenizer(continuation, add_special_tokens=False)["input_ids"]
        if not tokens:
            raise ValueError("the text to score has no token")
        prompt = encoded.prompt
        length, following = len(prompt.input_ids), prompt.position_ids.max() + 1
        positions = np.arange(following, following + len(tokens))
        whole = replace(
            prompt,
            input_ids=np.concatenate((prompt.input_ids, tokens)),
            is_answer=np.concatenate((prompt.is_answer, np.ones(len(tokens), dtype=bool))),
            position_ids=np.concatenate(
                (prompt.position_ids, np.broadcast_to(positions, (3, len(tokens)))), axis=1
            ),
        )
        fields = pad_batch([whole], visual=self.model.visual, pad_to=None, pad_multiple=1)
        device = self.model.device
        logits = self.model.module(
            input_ids=fields["input_ids"].to(device),
            position_ids=fields["position_ids"].to(device),
            visual=visual_embeddings(self.model, [whole], fields),
            answer_positions=torch.arange(length - 1, length - 1 + len(tokens), device=device),
            runtime_gather_output=True,
        )[:, 0]
        return score_of(logits, tokens)


def encode_request(model: LoadedModel, request: Request) -> EncodedRequest:
    """A request as the model takes it.

    Raises:
        ValueError, OSError: marks and media differ in number, the text holds a control token, or a
            picture or video cannot be read or planned.
    """
    visual = model.visual
    images, videos = request.read()
    chat = model.chat.prompt(request.turns, len(images), len(videos))
    pictures = [visual.plan(*header_size(data)) for data in images]
    clips = tuple(
        make_clip(read_header(data), _rules(model), model.ids_per_second) for data in videos
    )
    if clips:
        room = model.run.data.seq_length - len(chat.input_ids) + len(chat.media)
        clips = shorten_clips(
            clips,
            visual,
            max_tokens=room - sum(plan.num_llm_tokens for plan in pictures),
            min_frames=_rules(model).min_frames,
        )
    plans = in_order(chat.media, pictures, [clip.plan(visual) for clip in clips])
    ids, is_answer, positions = place_media(chat, model.chat.pad_ids, plans)
    planned = PlannedChat(
        __key__=request.key,
        __restore_key__=(),
        chat=chat,
        input_ids=ids,
        is_answer=is_answer,
        position_ids=positions,
        plans=plans,
        images=images,
        videos=videos,
        clips=clips,
    )
    media = decode_media(planned, visual)
    cells = encode_pictures(visual, media.frames, media.plans)
    if visual.content_dependent or media.damage:
        ids, is_answer, positions = place_media(chat, model.chat.pad_ids, cells.plans)
    prompt = EncodedChat(
        __key__=request.key,
        __restore_key__=(),
        input_ids=ids,
        is_answer=is_answer,
        position_ids=positions,
        pictures=cells,
    )
    return EncodedRequest(
        prompt=prompt, max_new_tokens=request.max_new_tokens, damage=tuple(media.damage)
    )


def _rules(model: LoadedModel) -> VideoRules:
    return RunSettings(model.run).video_rules
