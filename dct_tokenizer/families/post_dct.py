"""Stock pixels into the ViT, then fewer tokens out of it: the published competitor."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

from dct_tokenizer.errors import TokenizerConfigError
from dct_tokenizer.families.pixel import PixelTokenizer
from dct_tokenizer.geometry import mrope_grid_positions
from dct_tokenizer.plan import Plan
from dct_tokenizer.post_merge import SpectrumCrop, compact_side
from dct_tokenizer.registry import register_family


@register_family("post_dct")
@dataclass(frozen=True, kw_only=True)
class PostDCTTokenizer(PixelTokenizer):
    """The pixel tokenizer whose merged features are cut to the low frequencies of their grid.

    M-RoPE ids are those of a picture with the compact grid.
    """

    family: ClassVar[str]

    #: Part of the merged grid kept per side, above 0 and at most 1.
    ratio: float
    #: Undo the gain that the crop has on a constant grid.
    dc_gain: bool = True

    def __post_init__(self) -> None:
        """Refuse ratios outside 0..1."""
        super().__post_init__()
        if not 0 < self.ratio <= 1:
            raise TokenizerConfigError(
                f"{self.name}: ratio={self.ratio}; expected above 0 and at most 1"
            )

    def plan(self, height: int, width: int, frames: int = 1) -> Plan:
        """See `VisualTokenizer.plan`."""
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
        """The module between merger and language model."""
        return SpectrumCrop(self.ratio, dc_gain=self.dc_gain)
