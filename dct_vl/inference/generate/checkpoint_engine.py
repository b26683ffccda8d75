"""Answers of a training checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from megatron.energon import Sample

from dct_tokenizer import VisualTokenizer
from dct_vl.inference.decode import DecodeOptions, cut_at, decode, logits_of
from dct_vl.inference.generate.engine import AnswerSettings, Reply, Watch, score_of
from dct_vl.inference.generate.fingerprint import checkpoint_fingerprint
from dct_vl.inference.generate.requests import Request
from dct_vl.inference.loading import LoadedModel
from dct_vl.inputs.clips import VideoRules
from dct_vl.inputs.encode import encode_chat, plan_chat
from dct_vl.inputs.samples import EncodedChat
from dct_vl.inputs.shard_reader import HeldOut


@dataclass(frozen=True, kw_only=True)
class EncodedRequest:
    """A prompt, and how long its answer may be."""

    prompt: EncodedChat
    max_new_tokens: int


class CheckpointEngine:
    """A checkpoint of any layout, in this process or divided over those of its team.

    Args:
        model: this process's part of it.
        settings: of the answers.
        is_blank: images and videos are replaced by even grey ones of their size.
    """

    def __init__(
        self, model: LoadedModel, settings: AnswerSettings, *, is_blank: bool = False
    ) -> None:
        visual = model.visual
        bounded = visual.within(
            visual.min_pixels if settings.min_pixels is None else settings.min_pixels,
            visual.max_pixels if settings.max_pixels is None else settings.max_pixels,
        )
        self.settings = settings
        self.is_blank = is_blank
        self.model = replace(model, visual=bounded)
        self.min_pixels, self.max_pixels = bounded.min_pixels, bounded.max_pixels

    @property
    def visual(self) -> VisualTokenizer:
        """See `Engine`."""
        return self.model.visual

    @property
    def video_rules(self) -> VideoRules:
        """See `Engine`."""
        return self.model.inputs.video

    def identity(self) -> dict[str, Any]:
        """See `Engine`."""
        run = self.model.run
        return {
            "run": run.experiment_name,
            "step": self.model.step,
            "weights": checkpoint_fingerprint(self.model.checkpoint),
            "tokenizer": run.tokenizer,
            "dtype": str(next(self.model.module.parameters()).dtype),
            **({"blank": True} if self.is_blank else {}),
        }

    def encode(self, request: Request) -> EncodedRequest:
        """Prompt and cells; of videos as much as training would take."""
        return EncodedRequest(
            prompt=encode_request(self.model, request, is_blank=self.is_blank),
            max_new_tokens=request.max_new_tokens,
        )

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
                damage=one.prompt.damage,
            )
            for given, one in zip(found, encoded, strict=True)
        ]

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
        places = torch.arange(length - 1, length - 1 + len(tokens))
        return score_of(logits_of(self.model, whole, places), tokens)


def encode_request(model: LoadedModel, request: Request, *, is_blank: bool = False) -> EncodedChat:
    """A request as the model takes it; of videos as much as training would take.

    Raises:
        ValueError, OSError: marks and media differ in number, the text holds a control token, or
            an image or video cannot be read or planned.
    """
    images, videos = request.read()
    origin = Sample(__key__=request.key, __restore_key__=())
    planned = plan_chat(model.inputs, origin, request.turns, images, videos, is_prompt=True)
    return encode_chat(model.inputs, planned, is_blank=is_blank)


def encode_sample(model: LoadedModel, sample: HeldOut) -> EncodedChat:
    """A whole conversation with its images and videos, as training sees it.

    Raises:
        ValueError: training would reject it.
    """
    origin = Sample(__key__=sample.key, __restore_key__=())
    turns = sample.record.turns
    planned = plan_chat(model.inputs, origin, turns, sample.images, sample.videos)
    return encode_chat(model.inputs, planned)
