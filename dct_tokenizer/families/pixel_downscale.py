"""The control family: stock pixels, resized to the token count of another preset."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from dct_tokenizer.base import VisualTokenizer
from dct_tokenizer.errors import TokenizerConfigError
from dct_tokenizer.families.pixel import PixelTokenizer
from dct_tokenizer.front_end import PATCH, PATCH_FRAMES
from dct_tokenizer.geometry import MERGE, regular_plan
from dct_tokenizer.plan import Plan
from dct_tokenizer.registry import build_tokenizer, register_family


@register_family("pixel_downscale")
@dataclass(frozen=True, kw_only=True)
class PixelDownscaleTokenizer(PixelTokenizer):
    """Resizes the image so that the stock 14-pixel grid equals the reference's grid.

    Where the reference has squares of several sizes, the grid is the one of the image's aspect
    with as many tokens, or a few less.

    The pixel bounds are the reference's: they say how large the image is for it, and this control
    sees the same image at a lower resolution.
    """

    family: ClassVar[str]

    #: Name of the preset whose number of LLM tokens is matched, image by image.
    same_tokens_as: str = "dct28_420"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cell != PATCH:
            raise TokenizerConfigError(
                f"{self.name}: cell={self.cell}; the control is made of stock {PATCH}-pixel cells"
            )
        if isinstance(self.reference, PixelDownscaleTokenizer):
            raise TokenizerConfigError(
                f"{self.name}: same_tokens_as={self.same_tokens_as!r} is such a control itself"
            )

        if not self.reference.counts_from_header:
            raise TokenizerConfigError(
                f"{self.name}: same_tokens_as={self.same_tokens_as!r} has no token count before "
                "decoding; name a preset with a fixed number or a budget"
            )

    @cached_property
    def reference(self) -> VisualTokenizer:
        """The tokenizer whose token count is matched, with this one's pixel bounds."""
        return build_tokenizer(
            self.same_tokens_as, min_pixels=self.min_pixels, max_pixels=self.max_pixels
        )

    def view_size(self, height: int, width: int) -> tuple[int, int]:
        """The reference's: the downscaling is what this control loses."""
        return self.reference.view_size(height, width)

    def plan(self, height: int, width: int, frames: int = 1) -> Plan:
        theirs = self.reference.plan(height, width, frames)
        slices, rows, columns = theirs.llm_grid_thw
        if not rows:
            rows, columns = _grid_of(theirs.num_llm_tokens // slices, theirs.height / theirs.width)
        own = regular_plan(
            height=rows * MERGE * PATCH,
            width=columns * MERGE * PATCH,
            frames=frames,
            cell=PATCH,
            frames_per_cell=PATCH_FRAMES,
        )
        if own.grid_thw[0] != slices:
            raise TokenizerConfigError(
                f"{self.name}: a clip of {frames} frames has {slices} slices under "
                f"{self.same_tokens_as} and {own.grid_thw[0]} under stock patches: this control "
                f"matches references with {PATCH_FRAMES} frames per cell"
            )
        return own


def _grid_of(num_tokens: int, aspect: float) -> tuple[int, int]:
    """Rows and columns of at most `num_tokens` tokens, with height / width near `aspect`."""
    rows = min(num_tokens, max(1, round(math.sqrt(num_tokens * aspect))))
    return rows, num_tokens // rows
