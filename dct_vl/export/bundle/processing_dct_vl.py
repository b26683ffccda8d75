"""Images and text → the fields of `DctVLForConditionalGeneration` and its newer sibling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, TypeVar, cast

import numpy as np
import torch
from transformers import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import make_flat_list_of_images
from transformers.models.qwen2_vl.processing_qwen2_vl import Qwen2VLProcessor

from dct_tokenizer.base import VisualTokenizer
from dct_tokenizer.registry import build_tokenizer
from dct_tokenizer.upright import upright_rgb
from dct_vl.export.bundle.media_fields import NAMES, TOKENS, media_fields

_Media = TypeVar("_Media")

IMAGE_TOKEN, VIDEO_TOKEN = "<|image_pad|>", "<|video_pad|>"


class DctVLImageProcessor(BaseImageProcessor):
    """Cuts images and clips into uint8 cells as the tokenizer plans them.

    Args:
        visual_tokenizer: flat mapping of the tokenizer's keys.
        min_pixels: bounds of an image's area after the resize.
        max_pixels: likewise.
        size: the same bounds as later releases of transformers write them, `shortest_edge` and
            `longest_edge`; what stands above wins, as in the stock processor.
        ids_per_second: temporal M-RoPE ids of a second of video; None where a pair of frames is one
            id, whatever it lasts.
    """

    model_input_names: ClassVar[list[str]] = list(NAMES)

    def __init__(
        self,
        visual_tokenizer: dict[str, Any] | None = None,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        ids_per_second: float | None = None,
        size: dict[str, int] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.visual_tokenizer = visual_tokenizer
        edges = size or {}
        self.min_pixels = edges.get("shortest_edge") if min_pixels is None else min_pixels
        self.max_pixels = edges.get("longest_edge") if max_pixels is None else max_pixels
        self.size = {"shortest_edge": self.min_pixels, "longest_edge": self.max_pixels}
        self.ids_per_second = ids_per_second

    def tokenizer_with(self, **bounds: int | None) -> VisualTokenizer:
        """The tokenizer with this processor's bounds, or with other ones."""
        own = {"min_pixels": self.min_pixels, "max_pixels": self.max_pixels}
        chosen = {**own, **{k: v for k, v in bounds.items() if v is not None}}
        if self.visual_tokenizer is None:
            raise ValueError("preprocessor_config.json has no visual_tokenizer")
        return build_tokenizer(
            self.visual_tokenizer, **{k: v for k, v in chosen.items() if v is not None}
        )

    def preprocess(  # type: ignore[override]
        self,
        images: Any,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        return_tensors: Any = None,
        **_: Any,
    ) -> BatchFeature:
        """Fields of images.

        Args:
            images: Pillow images, or uint8 (H, W, 3) arrays; lists of them are flattened.
            min_pixels: instead of the processor's own bound.
            max_pixels: likewise.
            return_tensors: "pt" whatever is asked for.
        """
        media = [(_rgb(image)[None], None) for image in _flat(images)]
        return self.encode(media, min_pixels=min_pixels, max_pixels=max_pixels)

    def encode(
        self, media: Sequence[tuple[np.ndarray, float | None]], **bounds: int | None
    ) -> BatchFeature:
        """Fields of images and clips in the order of the text: uint8 (T, H, W, 3), and of clips
        the frames a second.
        """
        tokenizer = self.tokenizer_with(**bounds)
        plans, cells = [], []
        for frames, fps in media:
            num_frames, height, width, _ = frames.shape
            plan = tokenizer.refine(frames, tokenizer.plan(height, width, num_frames))
            if fps is not None and self.ids_per_second is not None:
                plan = replace(plan, time_scale=(2 / fps, self.ids_per_second))
            plans.append(plan)
            cells.append(tokenizer.cells(frames, plan))
        return BatchFeature(media_fields(cells, plans))


def _flat(images: Any) -> list[Any]:
    """Images of nested lists, one image, or None."""
    return [] if images is None else list(cast(Any, make_flat_list_of_images(images)))


def _rgb(image: Any) -> np.ndarray:
    """uint8 (H, W, 3)."""
    if hasattr(image, "convert"):
        return upright_rgb(image)
    array = image.numpy() if isinstance(image, torch.Tensor) else np.asarray(image)
    if array.ndim == 3 and array.shape[-1] != 3 and array.shape[0] == 3:
        array = array.transpose(1, 2, 0)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[-1] != 3:
        raise ValueError(
            f"an image is {array.dtype} {array.shape}; expected a Pillow image or uint8 RGB"
        )
    return np.ascontiguousarray(array)


class DctVLProcessor(Qwen2VLProcessor):
    """Qwen2VLProcessor whose placeholders are as many as the tokenizer plans."""

    image_processor_class = "AutoImageProcessor"
    image_processor: DctVLImageProcessor
    tokenizer: Any

    def __call__(  # type: ignore[override]
        self, images: Any = None, text: Any = None, videos: Any = None, **kwargs: Any
    ) -> BatchFeature:
        """Text with one placeholder an image or clip → ids, mask and media fields.

        Args:
            images: Pillow images or uint8 (H, W, 3) arrays of the whole batch, in order.
            text: strings, as the chat template renders them.
            videos: clips of the whole batch: lists of frames, or uint8 (T, H, W, 3).
            kwargs: `min_pixels`, `max_pixels`, `fps` of the frames of all clips or a list with that
                of each (2 by default; only Qwen2.5-VL counts time), and what the text tokenizer
                takes.

        Raises:
            ValueError: placeholders and images differ in number.
        """
        bounds = {name: kwargs.pop(name, None) for name in ("min_pixels", "max_pixels")}
        for name in ("images_kwargs", "videos_kwargs", "common_kwargs"):
            kwargs.update(kwargs.pop(name, {}))
        clips = [np.stack([_rgb(frame) for frame in clip]) for clip in videos or []]
        fps = kwargs.pop("fps", 2.0)
        rates = list(fps) if isinstance(fps, Sequence) else [float(fps)] * len(clips)
        if len(rates) != len(clips):
            raise ValueError(f"{len(rates)} values of fps for {len(clips)} clips")
        texts = [text] if isinstance(text, str) else list(text)
        waiting: dict[str, list[tuple[np.ndarray, float | None]]] = {
            IMAGE_TOKEN: [(_rgb(image)[None], None) for image in _flat(images)],
            VIDEO_TOKEN: list(zip(clips, rates, strict=True)),
        }
        media = _in_order(texts, waiting)
        fields: dict[str, Any] = {}
        if media:
            fields = dict(self.image_processor.encode(media, **bounds))
            counts = iter(fields["media_counts"][:, TOKENS].tolist())
            texts = [_expanded(line, counts) for line in texts]
        kwargs = {"padding": False, **kwargs}
        return BatchFeature(
            {**self.tokenizer(texts, **kwargs), **fields}, tensor_type=kwargs.get("return_tensors")
        )

    @property
    def model_input_names(self) -> list[str]:
        """Names of all fields."""
        return list(dict.fromkeys((*self.tokenizer.model_input_names, *NAMES)))


def _marks(line: str) -> list[str]:
    """The placeholders of a text, in order."""
    found: list[str] = []
    place = 0
    while True:
        places = {m: line.find(m, place) for m in (IMAGE_TOKEN, VIDEO_TOKEN)}
        there = {m: p for m, p in places.items() if p >= 0}
        if not there:
            return found
        first = min(there, key=lambda m: there[m])
        found.append(first)
        place = there[first] + len(first)


def _in_order(texts: list[str], waiting: dict[str, list[_Media]]) -> list[_Media]:
    marks = [mark for line in texts for mark in _marks(line)]
    for mark, given in waiting.items():
        if marks.count(mark) != len(given):
            raise ValueError(f"{marks.count(mark)} {mark} in the text for {len(given)} given")
    iterators = {mark: iter(given) for mark, given in waiting.items()}
    return [next(iterators[mark]) for mark in marks]


def _expanded(line: str, counts: Any) -> str:
    pieces = []
    for mark in _marks(line):
        before, _, line = line.partition(mark)
        pieces += [before, mark * next(counts)]
    return "".join([*pieces, line])
