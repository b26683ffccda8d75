"""The pixel family: Qwen2-VL's stock tokenizer, and controls of other cell sizes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from dct_tokenizer.base import GridTokenizer
from dct_tokenizer.basis import clip_mean_std
from dct_tokenizer.errors import TokenizerConfigError
from dct_tokenizer.front_end import PATCH, PATCH_FRAMES, PixelFrontEnd
from dct_tokenizer.pixels import join_cells, to_uint8
from dct_tokenizer.plan import Plan
from dct_tokenizer.registry import register_family


@register_family("pixel")
@dataclass(frozen=True, kw_only=True)
class PixelTokenizer(GridTokenizer):
    """Cells of B x B pixels and two frames, embedded as they are. B = 14 is stock Qwen2-VL.

    The coefficients are the CLIP-normalised pixels in the column order of the stock processor's
    `pixel_values`, (3, 2, B, B).
    """

    family: ClassVar[str]

    #: B
    cell: int = 14

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cell < 1:
            raise TokenizerConfigError(f"{self.name}: cell={self.cell}; expected at least 1")

    @property
    def exact_start(self) -> bool:
        """Only stock patches; others start by FlexiViT's resize, which is no ideal low-pass."""
        return self.cell == PATCH

    def random_front_end(self, embed_dim: int) -> PixelFrontEnd:
        """`weight` is the Conv3d weight (O, 3, 2, B, B)."""
        return PixelFrontEnd(embed_dim, cell=self.cell)

    def encode(self, cells: torch.Tensor) -> torch.Tensor:
        """float32 (N, 3 * 2 * B * B): the stock processor's `pixel_values`."""
        mean, std = (v.float()[:, None, None] for v in clip_mean_std())
        normalised = (cells.float() / 255 - mean) / std
        both = normalised.expand(-1, PATCH_FRAMES, -1, -1, -1)
        return both.transpose(1, 2).flatten(1)

    def decode(self, coefficients: torch.Tensor, plan: Plan) -> np.ndarray:
        """uint8 (T, H, W, 3), exact."""
        mean, std = (v.float()[:, None, None, None] for v in clip_mean_std())
        planes = coefficients.float().unflatten(1, (3, PATCH_FRAMES, self.cell, self.cell))
        pixels = ((planes * std + mean) * 255).transpose(1, 2)[:, : plan.cell_shape[0]]
        return join_cells(to_uint8(pixels), plan).numpy()
