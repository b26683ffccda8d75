"""The adaptive family: large squares where little happens, small ones where there is detail.

Shape legend: N cells, M LLM tokens, T frames, H, W pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch

from dct_tokenizer import quadtree
from dct_tokenizer.base import VisualTokenizer
from dct_tokenizer.errors import TokenizerConfigError
from dct_tokenizer.families.block import BlockTokenizer
from dct_tokenizer.front_end import PATCH, PATCH_FRAMES, FrontEnd
from dct_tokenizer.geometry import MERGE, num_slices, smart_resize
from dct_tokenizer.pixels import (
    Frames,
    as_frames,
    check_frame_count,
    pad_frames,
    resize_frames,
    to_uint8,
)
from dct_tokenizer.plan import Plan
from dct_tokenizer.registry import register_family

#: Sides are multiples of this many pixels, so that every unit can merge at least once; it is also
#: the factor of 28-pixel cells, hence a budget of 1/4 is exactly their number of tokens.
RESIZE_FACTOR = 2 * quadtree.UNIT


@register_family("adaptive")
@dataclass(frozen=True, kw_only=True)
class AdaptiveTokenizer(VisualTokenizer):
    """Squares of 28, 56 or 112 pixels, each 2 x 2 patches brought to 14 x 14 and one LLM token.

    Which squares are merged depends on the pixels, so a plan is made in two steps: `plan` from the
    header, then `refine` with the frames. Under a budget the first already has the exact number of
    tokens and cells; under a threshold it has the upper bound. Positions come with the second.
    """

    family: ClassVar[str]
    content_dependent: ClassVar[bool] = True

    #: Tokens as a part of stock Qwen2-VL's, 0..1; 0 to go by `threshold`.
    budget: float = 0.0
    #: Root-mean-square luma error in grey levels that a square may lose; 0 to go by `budget`.
    threshold: float = 0.0
    #: As in the block family: the patches are embedded through their 14 x 14 DCT coefficients.
    whiten: bool = True
    center: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.budget <= 1 or self.threshold < 0:
            raise TokenizerConfigError(
                f"{self.name}: budget={self.budget}, threshold={self.threshold}; expected a budget "
                "of 0..1 and a threshold of at least 0"
            )
        if (self.budget > 0) == (self.threshold > 0):
            raise TokenizerConfigError(
                f"{self.name}: budget={self.budget}, threshold={self.threshold}; set exactly one "
                "of them above 0"
            )

    @property
    def patches(self) -> BlockTokenizer:
        """The tokenizer of single patches, all 14 x 14 coefficients."""
        return BlockTokenizer(
            name=f"{self.name} patches",
            cell=PATCH,
            luma_keep=PATCH,
            chroma_keep=PATCH,
            whiten=self.whiten,
            center=self.center,
        )

    @property
    def counts_from_header(self) -> bool:
        """A budget is met exactly; what a threshold needs is known after decoding."""
        return self.budget > 0

    @property
    def psnr_bound(self) -> float:
        return 20.0

    def plan(self, height: int, width: int, frames: int = 1) -> Plan:
        """Size, bounds and numbers; positions are zeros until `refine`."""
        new_height, new_width = smart_resize(
            height,
            width,
            factor=RESIZE_FACTOR,
            min_pixels=self.min_pixels,
            max_pixels=self.max_pixels,
        )
        slices = num_slices(frames, PATCH_FRAMES)
        rows, columns = new_height // quadtree.UNIT, new_width // quadtree.UNIT
        tokens = rows * columns
        if self.budget > 0:
            tokens = quadtree.budgeted_tokens(rows, columns, self.budget)
        still = frames == 1
        blank = Plan(
            height=new_height,
            width=new_width,
            frames=1 if still else slices * PATCH_FRAMES,
            grid_thw=(slices, rows * MERGE, columns * MERGE),
            llm_grid_thw=(slices, 0, 0),
            num_cells=0,
            num_llm_tokens=0,
            cell_shape=(1 if still else PATCH_FRAMES, 3, PATCH, PATCH),
            vit_positions=np.zeros((0, 2), np.float32),
            mrope_positions=np.zeros((0, 3), np.int64),
            mrope_extent=max(slices, rows, columns),
            vit_cu_seqlens=np.zeros(1, np.int32),
            wire_bytes=0,
        )
        counted = _with_numbers(blank, [tokens] * slices)
        return replace(
            counted,
            vit_positions=np.zeros((counted.num_cells, 2), np.float32),
            mrope_positions=np.zeros((counted.num_llm_tokens, 3), np.int64),
        )

    def refine(self, frames: Frames, plan: Plan) -> Plan:
        """The plan with the squares chosen from the pixels, slice by slice."""
        resized = self._resized(frames, plan)
        squares = []
        slices = plan.grid_thw[0]
        for clip in resized.chunk(slices):
            if self.budget > 0:
                chosen = quadtree.squares_within_budget(clip, plan.num_llm_tokens // slices)
            else:
                chosen = quadtree.squares_under_threshold(clip, self.threshold)
            squares.append(chosen)
        boxes = np.array(
            [
                (index, row * quadtree.UNIT, column * quadtree.UNIT, span * quadtree.UNIT)
                for index, chosen in enumerate(squares)
                for row, column, span in chosen
            ],
            dtype=np.int32,
        )
        return replace(
            _with_numbers(plan, [len(chosen) for chosen in squares]),
            token_boxes=boxes,
            vit_positions=_patch_centres(boxes),
            mrope_positions=_token_ids(boxes),
        )

    def cells(self, frames: Frames, plan: Plan) -> torch.Tensor:
        """uint8 (N, T', 3, 14, 14) of a refined plan: patches of 14, 28 or 56 pixels at 14 x 14."""
        boxes = self._boxes(plan)
        clips = self._resized(frames, plan)
        by_slice = clips.reshape(plan.grid_thw[0], -1, *clips.shape[1:])
        cells = torch.empty(len(boxes), MERGE * MERGE, *plan.cell_shape, dtype=torch.uint8)
        i, j = torch.arange(MERGE).repeat_interleave(MERGE), torch.arange(MERGE).repeat(MERGE)
        for span in quadtree.SPANS:
            which = np.flatnonzero(boxes[:, 3] == span * quadtree.UNIT)
            if not len(which):
                continue
            patches = quadtree.low_pass_patches(clips, span)
            patches = patches if span == 1 else to_uint8(patches)
            patches = patches.reshape(*by_slice.shape[:2], *patches.shape[1:])
            index, top, left, _ = torch.from_numpy(boxes[which]).long().T[..., None]
            row, column = top // (PATCH * span) + i, left // (PATCH * span) + j
            cells[which] = patches[index, :, row, column]
        return cells.flatten(0, 1)

    def front_end(self, embed_dim: int, pretrained_weight: torch.Tensor | None = None) -> FrontEnd:
        """The front end of `dct14`: every square is embedded by the same weight."""
        return self.patches.front_end(embed_dim, pretrained_weight)

    def encode(self, cells: torch.Tensor) -> torch.Tensor:
        """float32 (N, 1176): as `dct14`."""
        return self.patches.encode(cells)

    def decode(self, coefficients: torch.Tensor, plan: Plan) -> np.ndarray:
        """uint8 (T, H, W, 3) with every patch enlarged to its square again."""
        boxes = self._boxes(plan)
        pixels = self.patches.reconstruct(coefficients)[:, : plan.cell_shape[0]]
        tokens = pixels.unflatten(0, (-1, MERGE, MERGE))
        frames = torch.zeros(plan.grid_thw[0], plan.cell_shape[0], 3, plan.height, plan.width)
        for (index, top, left, side), token in zip(boxes.tolist(), tokens, strict=True):
            large = quadtree.enlarge_patches(token, side // quadtree.UNIT)
            square = large.permute(2, 3, 0, 4, 1, 5).flatten(2, 3).flatten(3, 4)
            frames[index, :, :, top : top + side, left : left + side] = square
        return to_uint8(frames.flatten(0, 1).permute(0, 2, 3, 1)).numpy()

    def _resized(self, frames: Frames, plan: Plan) -> torch.Tensor:
        array = as_frames(frames)
        check_frame_count(array, plan)
        return torch.from_numpy(
            pad_frames(resize_frames(array, plan.height, plan.width), plan.frames)
        )

    def _boxes(self, plan: Plan) -> np.ndarray:
        if plan.token_boxes is None:
            raise ValueError(
                f"{self.name}: the plan has no squares yet; call refine(frames, plan) first"
            )
        return plan.token_boxes


def _with_numbers(plan: Plan, tokens_per_slice: list[int]) -> Plan:
    """The plan with this many tokens in each slice."""
    num_tokens = sum(tokens_per_slice)
    num_cells = num_tokens * MERGE * MERGE
    boundaries = np.cumsum([0, *tokens_per_slice]) * MERGE * MERGE
    return replace(
        plan,
        num_llm_tokens=num_tokens,
        num_cells=num_cells,
        vit_cu_seqlens=boundaries.astype(np.int32),
        wire_bytes=num_cells * math.prod(plan.cell_shape),
    )


def _patch_centres(boxes: np.ndarray) -> np.ndarray:
    """float32 (N, 2): centre of each patch in units of a 14-pixel grid; a stock patch gets its own
    row and column, larger ones fractions."""
    corner = np.stack(np.divmod(np.arange(MERGE * MERGE), MERGE), axis=1)
    patch = boxes[:, 3, None, None] / MERGE
    centres = boxes[:, None, 1:3] + (corner + 0.5) * patch
    return (centres / PATCH - 0.5).reshape(-1, 2).astype(np.float32)


def _token_ids(boxes: np.ndarray) -> np.ndarray:
    """int64 (M, 3): slice, and the 28-pixel unit at (or just before) each square's centre."""
    centre = (boxes[:, 1:3] + (boxes[:, 3:] - quadtree.UNIT) // 2) // quadtree.UNIT
    return np.concatenate([boxes[:, :1], centre], axis=1).astype(np.int64)
