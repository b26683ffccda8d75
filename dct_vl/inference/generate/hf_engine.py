"""Answers of a Hugging Face folder that this project's own model does not cover, through plain
transformers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    LogitsProcessor,
    LogitsProcessorList,
)
from transformers.generation.streamers import BaseStreamer
from transformers.models.qwen2_vl.image_processing_qwen2_vl import (
    Qwen2VLImageProcessor,
    smart_resize,
)

from data_prep.video_file import read_header
from dct_tokenizer import VisualTokenizer, build_tokenizer
from dct_tokenizer.decode import decode_rgb
from dct_vl.inference.decode import cut_at
from dct_vl.inference.generate.engine import (
    AnswerSettings,
    Reply,
    Watch,
    score_of,
)
from dct_vl.inference.generate.requests import Request
from dct_vl.inference.sampling import Sampling, TokenChooser
from dct_vl.inputs.chat import read_chat_tokenizer, render
from dct_vl.inputs.clips import VideoRules, make_clip
from dct_vl.inputs.video import read_frames
from dct_vl.runs.checkpoint_files import weights_fingerprint


@dataclass(frozen=True, kw_only=True)
class HfPrompt:
    """A request as the processor takes it."""

    key: str
    text: str
    images: tuple[Image.Image, ...]
    #: uint8 (T, H, W, 3)
    videos: tuple[np.ndarray, ...]
    #: frames a second of each video
    rates: tuple[float, ...]
    max_new_tokens: int
    damage: tuple[str, ...]


class HfEngine:
    """A folder that `AutoModelForImageTextToText` and `AutoProcessor` load.

    Args:
        folder: of a Qwen2-VL or one that shares its chat template, as this project exports.
        settings: of the answers.
        device: where the model goes.
        dtype: that the model computes in.
        trust_remote_code: run the code that the folder brings.

    Raises:
        ValueError: the folder brings code and is not trusted, or its template is another one.
    """

    def __init__(
        self,
        folder: Path,
        settings: AnswerSettings,
        *,
        device: torch.device,
        dtype: torch.dtype,
        trust_remote_code: bool = False,
    ) -> None:
        self.settings = settings
        self._folder = folder
        bounds = {
            name: value
            for name in ("min_pixels", "max_pixels")
            if (value := getattr(settings, name)) is not None
        }
        self.processor = AutoProcessor.from_pretrained(
            folder, use_fast=False, trust_remote_code=trust_remote_code, **bounds
        )
        # use_fast is about images, where the fast processor needs more packages and differs; the
        # processor hands it on to the text tokenizer, whose slow one cannot decode unused ids
        self.chat = read_chat_tokenizer(folder, padding_side="left")
        self.processor.tokenizer = self.chat.tokenizer
        self.model = (
            AutoModelForImageTextToText.from_pretrained(
                folder, torch_dtype=dtype, trust_remote_code=trust_remote_code
            )
            .to(device)
            .eval()
        )
        images = self.processor.image_processor
        self.min_pixels, self.max_pixels = images.min_pixels, images.max_pixels
        self.visual = _visual(folder).within(self.min_pixels, self.max_pixels)
        self.video_rules = VideoRules()

    def identity(self) -> dict[str, Any]:
        return {
            "folder": str(self._folder.resolve()),
            "weights": weights_fingerprint(self._folder),
            "dtype": str(self.model.dtype),
        }

    def encode(self, request: Request) -> HfPrompt:
        """Rendered text and decoded media; of videos what Qwen2-VL's rules take.

        Raises:
            ValueError, OSError: as of `Engine`; also for an image that the processor would refuse,
                which in a batch would take the other questions with it.
        """
        images, videos = request.read()
        messages = self.chat.messages(request.turns, len(images), len(videos))
        decoded = tuple(Image.fromarray(decode_rgb(data)[0]) for data in images)
        for image in decoded:
            self._check_size(image.height, image.width)
        frames, rates, damage = [], [], []
        for data in videos:
            clip = make_clip(read_header(data), self.video_rules)
            plan = clip.plan(build_tokenizer("pixel"))
            read = read_frames(data, clip.num_frames, plan.height, plan.width)
            # an odd number of frames is no whole number of the model's pairs
            frames.append(read.frames[: len(read.frames) // 2 * 2 or 1])
            rates.append(clip.fps)
            damage += [read.damage] if read.damage else []
        return HfPrompt(
            key=request.key,
            text=render(self.processor.tokenizer, messages),
            images=decoded,
            videos=tuple(frames),
            rates=tuple(rates),
            max_new_tokens=request.max_new_tokens,
            damage=tuple(damage),
        )

    @torch.inference_mode()
    def answer(self, encoded: Sequence[HfPrompt], watch: Watch | None = None) -> list[Reply]:
        settings, tokenizer = self.settings, self.processor.tokenizer
        inputs = self._inputs(encoded)
        options: dict[str, Any] = {}
        if settings.stop:
            options |= {"stop_strings": list(settings.stop), "tokenizer": tokenizer}
        if settings.sampling.temperature:
            chosen = _OwnChoice(settings.sampling, [one.key for one in encoded])
            options["logits_processor"] = LogitsProcessorList([chosen])
        if watch is not None:
            options["streamer"] = _Watcher(tokenizer, watch)
        ids = inputs["input_ids"]
        found = self.model.generate(
            **inputs,
            **options,
            # the settings of a folder's generation_config.json would change what greedy means
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            repetition_penalty=1.0,
            max_new_tokens=max(one.max_new_tokens for one in encoded),
        )[:, ids.shape[1] :].tolist()
        seen = torch.isin(ids, torch.tensor(self.chat.pad_ids, device=ids.device)).sum(dim=1)
        rows = zip(encoded, found, seen.tolist(), strict=True)
        return [self._reply(one, tokens, count) for one, tokens, count in rows]

    def stream(
        self, encoded: Iterator[HfPrompt], batch_size: int
    ) -> Iterator[tuple[int, Reply | ValueError]]:
        numbered = enumerate(encoded)
        while batch := list(islice(numbered, batch_size)):
            replies = self.answer([prompt for _, prompt in batch])
            yield from zip((number for number, _ in batch), replies, strict=True)

    @torch.inference_mode()
    def score(self, encoded: HfPrompt, continuation: str) -> tuple[float, bool]:
        tokens = self.processor.tokenizer(continuation, add_special_tokens=False)["input_ids"]
        if not tokens:
            raise ValueError("the text to score has no token")
        inputs = self._inputs([encoded])
        more = torch.tensor([tokens], device=self.model.device)
        inputs["input_ids"] = torch.cat((inputs["input_ids"], more), dim=1)
        mask = inputs["attention_mask"]
        inputs["attention_mask"] = torch.cat((mask, torch.ones_like(more)), dim=1)
        return score_of(self.model(**inputs).logits[0, -len(tokens) - 1 : -1], tokens)

    def _check_size(self, height: int, width: int) -> None:
        """Raises ValueError where the folder's processor would."""
        if not isinstance(self.processor.image_processor, Qwen2VLImageProcessor):
            self.visual.plan(height, width)
            return
        # it refuses small images, which the `pixel` tokenizer enlarges
        settings = self.processor.image_processor
        smart_resize(
            height,
            width,
            factor=settings.patch_size * settings.merge_size,
            min_pixels=self.min_pixels,
            max_pixels=self.max_pixels,
        )

    def _inputs(self, encoded: Sequence[HfPrompt]) -> Any:
        images = [image for one in encoded for image in one.images]
        videos = [list(clip) for one in encoded for clip in one.videos]
        # Qwen2.5-VL counts time; the processor of Qwen2-VL knows no rates
        counts_time = hasattr(self.model.config.vision_config, "tokens_per_second")
        rates = {"fps": [rate for one in encoded for rate in one.rates]} if counts_time else {}
        return self.processor(
            text=[one.text for one in encoded],
            images=images or None,
            videos=videos or None,
            **(rates if videos else {}),
            padding=True,
            return_tensors="pt",
        ).to(self.model.device)

    def _reply(self, prompt: HfPrompt, tokens: list[int], num_visual: int) -> Reply:
        ends = self.model.generation_config.eos_token_id
        ends = set(ends if isinstance(ends, list) else [ends])
        kept = tokens[: prompt.max_new_tokens]
        is_finished = any(token in ends for token in kept)
        if is_finished:
            kept = kept[: next(i for i, token in enumerate(kept) if token in ends)]
        text = self.processor.tokenizer.decode(kept, skip_special_tokens=True)
        text, is_cut = cut_at(text, self.settings.stop)
        return Reply(
            text=text.strip(),
            num_tokens=len(kept),
            is_finished=is_finished or is_cut,
            num_visual_tokens=num_visual,
            damage=prompt.damage,
        )


class _OwnChoice(LogitsProcessor):
    """Leaves one token a row to choose from, the one that `TokenChooser` draws."""

    def __init__(self, sampling: Sampling, keys: Sequence[str]) -> None:
        self._choose = TokenChooser(sampling, keys)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """Scores (B, V) of 0 at the drawn tokens."""
        chosen = self._choose(scores.float())
        return torch.full_like(scores, -torch.inf).scatter(1, chosen[:, None], 0.0)


class _Watcher(BaseStreamer):
    """Tells of the first row's text after each token; transformers sends the prompt first."""

    def __init__(self, tokenizer: Any, watch: Watch) -> None:
        self._tokenizer, self._watch = tokenizer, watch
        self._tokens: list[int] = []

    def put(self, value: torch.Tensor) -> None:
        """Take the prompts (B, S), or the next tokens (B,)."""
        if value.ndim == 1:
            self._tokens.append(int(value[0]))
            self._watch(self._tokenizer.decode(self._tokens, skip_special_tokens=True))

    def end(self) -> None:
        """Nothing is held back."""


def _visual(folder: Path) -> VisualTokenizer:
    """The tokenizer whose code the folder brings, or the stock one."""
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return build_tokenizer(settings.get("visual_tokenizer", "pixel"))


def brings_code(folder: Path) -> bool:
    """Whether a Hugging Face folder asks for its own code to be run."""
    return b"auto_map" in (folder / "config.json").read_bytes()
