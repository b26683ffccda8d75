"""A crop of the merged feature grid's spectrum, between the merger and the language model.

The published competitor (Fourier compressor, arXiv 2508.06038): the features after the 2 x 2 merger
are transformed by an orthonormal 2-D DCT per frame, the low frequencies are kept, and the inverse
transform of the smaller size gives a compact grid.

Shape legend: M' merged features, M LLM tokens, C feature width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import nn

from dct_tokenizer.geometry import MERGE
from dct_tokenizer.transforms import dct_matrix


def compact_side(side: int, ratio: float) -> int:
    """Tokens kept of `side` merged features; the nearest whole number, at least 1."""
    return max(1, math.floor(side * ratio + 0.5))


@lru_cache(maxsize=256)
def resampling_matrix(side: int, kept: int, dc_gain: bool) -> torch.Tensor:
    """float32 (kept, side): DCT of `side`, crop to `kept`, inverse DCT of `kept`.

    The crop of an orthonormal spectrum multiplies a constant by sqrt(side / kept); `dc_gain`
    divides that out, so that a constant grid stays what it is.
    """
    gain = math.sqrt(kept / side) if dc_gain else 1.0
    return (gain * dct_matrix(kept).T @ dct_matrix(side, kept)).float()


class SpectrumCrop(nn.Module):
    """(M', C) merged features of several pictures -> (M, C), no parameters, float32 inside."""

    def __init__(self, ratio: float, *, dc_gain: bool = True) -> None:
        super().__init__()
        self.ratio = ratio
        self.dc_gain = dc_gain

    def forward(
        self, features: torch.Tensor, grid_thw: torch.Tensor | Sequence[Sequence[int]]
    ) -> torch.Tensor:
        """Compact the grid of every picture.

        Args:
            features: (M', C), any float dtype, pictures one after another, rows (t, h/2, w/2).
            grid_thw: (num_pictures, 3) ViT grids in cells, `Plan.grid_thw`.

        Raises:
            ValueError: grids that do not add up to the number of features.
        """
        grids = grid_thw.tolist() if isinstance(grid_thw, torch.Tensor) else grid_thw
        sizes = [(t, h // MERGE, w // MERGE) for t, h, w in grids]
        lengths = [math.prod(size) for size in sizes]
        if sum(lengths) != len(features):
            raise ValueError(
                f"{len(features)} features for grids {grids} of {sum(lengths)} merged cells: "
                "pass the ViT grids of exactly these pictures"
            )
        compact = []
        for (_, h, w), part in zip(sizes, features.split(lengths), strict=True):
            rows, columns = (
                resampling_matrix(n, compact_side(n, self.ratio), self.dc_gain).to(features.device)
                for n in (h, w)
            )
            with torch.autocast(features.device.type, enabled=False):
                grid = part.float().unflatten(0, (-1, h, w))
                small = torch.einsum("ih,jw,thwc->tijc", rows, columns, grid)
            compact.append(small.flatten(0, 2).to(features.dtype))
        return torch.cat(compact) if compact else features
