"""The contract of a visual tokenizer: everything downstream reads plans, cells and a front end.

Shape legend: T frames, H, W pixels, N cells, T' frames per cell on the wire, B cell side,
K coefficients per cell, O embedding width.
"""

from __future__ import annotations

import abc
import math
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from torch import nn

from dct_tokenizer.errors import TokenizerConfigError
from dct_tokenizer.front_end import PATCH_FRAMES, FrontEnd
from dct_tokenizer.geometry import MERGE, regular_plan, smart_resize
from dct_tokenizer.pixels import (
    Frames,
    as_frames,
    check_frame_count,
    cut_cells,
    pad_frames,
    resize_frames,
)
from dct_tokenizer.plan import Plan

_Tokenizer = TypeVar("_Tokenizer", bound="VisualTokenizer")

#: The pixel bounds of Qwen2-VL's hub configuration.
QWEN_MIN_PIXELS = 3136
QWEN_MAX_PIXELS = 12_845_056


@dataclass(frozen=True, kw_only=True)
class VisualTokenizer(abc.ABC):
    """Base of all families. The dataclass fields are the keys of a preset.

    Instances are immutable, picklable and cheap; they hold no tensors.
    """

    family: ClassVar[str]
    #: True where the cells depend on the pixels: call `refine` after decoding.
    content_dependent: ClassVar[bool] = False

    name: str
    #: Bounds of height * width after the resize, in pixels.
    min_pixels: int = QWEN_MIN_PIXELS
    max_pixels: int = QWEN_MAX_PIXELS

    def __post_init__(self) -> None:
        if not 0 < self.min_pixels <= self.max_pixels:
            raise TokenizerConfigError(
                f"{self.name}: min_pixels={self.min_pixels}, max_pixels={self.max_pixels}; "
                "expected 0 < min_pixels <= max_pixels"
            )

    def config(self) -> dict[str, Any]:
        """The flat mapping that `build_tokenizer` turns into an equal tokenizer."""
        return {"family": self.family, **asdict(self)}

    def within(self: _Tokenizer, min_pixels: int, max_pixels: int) -> _Tokenizer:
        """The same tokenizer with other pixel bounds, which concern `plan` alone.

        Plans of either go with `refine`, `cells` and `decode` of the other, and with one front end.
        """
        return replace(self, min_pixels=min_pixels, max_pixels=max_pixels)

    @abc.abstractmethod
    def plan(self, height: int, width: int, frames: int = 1) -> Plan:
        """Geometry of an image (frames=1) or clip of `height` x `width` pixels, nothing decoded.

        Raises:
            PlanError: a size that cannot be cut; the message names it and the bound.
        """

    def refine(self, frames: Frames, plan: Plan) -> Plan:
        """The final plan, once the pixels are known; the same plan for most tokenizers.

        Args:
            frames: uint8 (T, H, W, 3) RGB of the size that the plan was made for.
            plan: `self.plan(H, W, T)`; its num_cells and num_llm_tokens are upper bounds.
        """
        return plan

    def cells(self, frames: Frames, plan: Plan) -> torch.Tensor:
        """What the loader ships: uint8 (N, T', 3, B, B), each distinct frame once.

        Args:
            frames: uint8 (T, H, W, 3) RGB of the size that the plan was made for, or resized to
                the plan's own already.
            plan: `self.refine(frames, self.plan(H, W, T))`.
        """
        array = as_frames(frames)
        check_frame_count(array, plan)
        resized = resize_frames(array, plan.height, plan.width)
        return cut_cells(pad_frames(resized, plan.frames), plan)

    @abc.abstractmethod
    def front_end(self, embed_dim: int, pretrained_weight: torch.Tensor | None = None) -> FrontEnd:
        """A module from cells to ViT inputs (N, O).

        Args:
            embed_dim: O.
            pretrained_weight: Conv3d weight (O, 3, 2, 14, 14) to start from; random without.
        """

    def post_merge(self) -> nn.Module | None:
        """A module between the ViT's merger and the language model, or None.

        It is called with the merged features (M', C) of several images and their ViT grids
        (num_images, 3), and returns the `num_llm_tokens` features (M, C) of their plans.
        """
        return None

    @abc.abstractmethod
    def encode(self, cells: torch.Tensor) -> torch.Tensor:
        """float32 (N, K): the coefficients that the model is given, before whitening."""

    @abc.abstractmethod
    def decode(self, coefficients: torch.Tensor, plan: Plan) -> np.ndarray:
        """uint8 (T, H, W, 3): what the model sees, at the plan's size."""

    def seen(self, frames: Frames, plan: Plan) -> np.ndarray:
        """uint8 (T, H, W, 3): what the model sees of frames; both arguments as of `cells`."""
        return self.decode(self.encode(self.cells(frames, plan)), plan)

    def view_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width in pixels at which what the model sees is compared with the image."""
        plan = self.plan(height, width)
        return plan.height, plan.width

    @property
    def counts_from_header(self) -> bool:
        """True where `plan` already has the final numbers of cells and tokens."""
        return True

    @property
    def exact_start(self) -> bool:
        """True where the start equals the pretrained embedding of the ideally low-passed cell."""
        return True

    @property
    def psnr_bound(self) -> float:
        """Decibels that decode(encode(cells)) reaches on natural images; inf where exact."""
        return math.inf


@dataclass(frozen=True, kw_only=True)
class GridTokenizer(VisualTokenizer):
    """Cells of B x B pixels that fill the resized image; 2 x 2 of them are an LLM token."""

    family: ClassVar[str]

    #: B
    cell: int

    @property
    def cell_frames(self) -> int:
        """Frames of a clip that a cell spans."""
        return PATCH_FRAMES

    def plan(self, height: int, width: int, frames: int = 1) -> Plan:
        new_height, new_width = smart_resize(
            height,
            width,
            factor=MERGE * self.cell,
            min_pixels=self.min_pixels,
            max_pixels=self.max_pixels,
        )
        return regular_plan(
            height=new_height,
            width=new_width,
            frames=frames,
            cell=self.cell,
            frames_per_cell=self.cell_frames,
        )

    def front_end(self, embed_dim: int, pretrained_weight: torch.Tensor | None = None) -> FrontEnd:
        """`random_front_end`, started from the pretrained weight where there is one."""
        module = self.random_front_end(embed_dim)
        if pretrained_weight is not None:
            module.load_pretrained(pretrained_weight)
        return module

    @abc.abstractmethod
    def random_front_end(self, embed_dim: int) -> FrontEnd:
        """A front end of embedding width `embed_dim` with random parameters."""
