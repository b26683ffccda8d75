"""The post-DCT family: stock pixels into the ViT, fewer tokens out of it.

After the 2 x 2 merger the features are transformed by an orthonormal 2-D DCT per frame, the low
frequencies are kept, and the inverse transform of the smaller size gives a compact grid: the
published competitor (Fourier compressor, arXiv 2508.06038).

Shape legend: M' merged features, M LLM tokens, C feature width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import ClassVar

import torch
from torch import nn

from dct_tokenizer.basis import dct_matrix
from dct_tokenizer.errors import TokenizerConfigError
from dct_tokenizer.families.pixel import PixelTokenizer
from dct_tokenizer.geometry import MERGE, mrope_grid_positions
from dct_tokenizer.plan import Plan
from dct_tokenizer.registry import register_family


def compact_side(side: int, ratio: float) -> int:
    """Tokens kept of `side` merged features; the nearest whole number, at least 1."""
    return max(1, math.floor(side * ratio + 0.5))


def resampling_matrix(side: int, kept: int, dc_gain: bool) -> torch.Tensor:
    """float32 (kept, side): DCT of `side`, crop to `kept`, inverse DCT of `kept`.

    The crop of an orthonormal spectrum multiplies a constant by sqrt(side / kept); `dc_gain`
    divides that out, so that a constant grid stays what it is.
    """
    gain = math.sqrt(kept / side) if dc_gain else 1.0
    return (gain * dct_matrix(kept).T @ dct_matrix(side, kept)).float()


@lru_cache(maxsize=512)
def _matrix_on(side: int, ratio: float, dc_gain: bool, device: torch.device) -> torch.Tensor:
    """`resampling_matrix` on a device, made and copied once."""
    with torch.inference_mode(False):  # what is kept may meet autograd later
        return resampling_matrix(side, compact_side(side, ratio), dc_gain).to(device)


class SpectrumCrop(nn.Module):
    """(M', C) merged features of several images -> (M, C), no parameters, float32 inside."""

    def __init__(self, ratio: float, *, dc_gain: bool = True) -> None:
        super().__init__()
        self.ratio = ratio
        self.dc_gain = dc_gain

    def forward(
        self, features: torch.Tensor, grid_thw: torch.Tensor | Sequence[Sequence[int]]
    ) -> torch.Tensor:
        """Compact the grid of every image; images of one size are transformed together.

        Args:
            features: (M', C), any float dtype, images one after another, rows (t, h/2, w/2).
            grid_thw: (num_images, 3) ViT grids in cells, `Plan.grid_thw`, on the host: on a
                device they have to be waited for.

        Raises:
            ValueError: grids that do not add up to the number of features.
        """
        grids = grid_thw.tolist() if isinstance(grid_thw, torch.Tensor) else grid_thw
        sizes = [(t, h // MERGE, w // MERGE) for t, h, w in grids]
        lengths = [math.prod(size) for size in sizes]
        if sum(lengths) != len(features):
            raise ValueError(
                f"{len(features)} features for grids {grids} of {sum(lengths)} merged cells: "
                "pass the ViT grids of exactly these images"
            )
        by_size: dict[tuple[int, int], list[int]] = {}
        for index, (_, h, w) in enumerate(sizes):
            by_size.setdefault((h, w), []).append(index)
        if not by_size:
            return features
        if len(by_size) == 1:
            return self._crop(features, *next(iter(by_size)))
        order = [index for group in by_size.values() for index in group]
        rows = _concatenated(_ranges(lengths), order, features.device)
        grouped = [sum(lengths[i] for i in group) for group in by_size.values()]
        parts = features[rows].split(grouped)
        compact = torch.cat(
            [self._crop(part, h, w) for part, (h, w) in zip(parts, by_size, strict=True)]
        )
        kept = [
            t * compact_side(h, self.ratio) * compact_side(w, self.ratio)
            for t, h, w in (sizes[i] for i in order)
        ]
        back = sorted(range(len(order)), key=order.__getitem__)
        return compact[_concatenated(_ranges(kept), back, features.device)]

    def _crop(self, features: torch.Tensor, h: int, w: int) -> torch.Tensor:
        """(F h w, C) of any number of frames of one size -> (F h' w', C)."""
        rows, columns = (_matrix_on(n, self.ratio, self.dc_gain, features.device) for n in (h, w))
        with torch.autocast(features.device.type, enabled=False):
            grid = features.float().unflatten(0, (-1, h, w))
            small = torch.einsum("ih,jw,thwc->tijc", rows, columns, grid)
        return small.flatten(0, 2).to(features.dtype)


def _ranges(lengths: Sequence[int]) -> list[torch.Tensor]:
    """int64 indices of consecutive parts of these lengths."""
    return list(torch.arange(sum(lengths)).split(list(lengths)))


def _concatenated(
    ranges: Sequence[torch.Tensor], order: Sequence[int], device: torch.device
) -> torch.Tensor:
    return torch.cat([ranges[index] for index in order]).to(device, non_blocking=True)


@register_family("post_dct")
@dataclass(frozen=True, kw_only=True)
class PostDCTTokenizer(PixelTokenizer):
    """The pixel tokenizer whose merged features are cut to the low frequencies of their grid.

    M-RoPE ids are those of an image with the compact grid.
    """

    family: ClassVar[str]

    #: Part of the merged grid kept per side, above 0 and at most 1.
    ratio: float
    #: Undo the gain that the crop has on a constant grid.
    dc_gain: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.ratio <= 1:
            raise TokenizerConfigError(
                f"{self.name}: ratio={self.ratio}; expected above 0 and at most 1"
            )

    def plan(self, height: int, width: int, frames: int = 1) -> Plan:
        stock = super().plan(height, width, frames)
        slices, rows, columns = stock.llm_grid_thw
        grid = (slices, compact_side(rows, self.ratio), compact_side(columns, self.ratio))
        return replace(
            stock,
            llm_grid_thw=grid,
            num_llm_tokens=math.prod(grid),
            mrope_positions=mrope_grid_positions(grid),
            mrope_extent=max(grid),
        )

    def post_merge(self) -> SpectrumCrop:
        return SpectrumCrop(self.ratio, dc_gain=self.dc_gain)
