"""What a picture or clip will become, known before a single pixel is decoded.

Shape legend: N cells (ViT patches), M LLM tokens (N / 4 where four cells merge), S attention
segments.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np


class PlanError(ValueError):
    """A size that this tokenizer cannot turn into cells; the message names size and bound."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """Geometry of one picture or clip under one tokenizer.

    Rows of every per-cell array are in Qwen2-VL's order (t, H/2, W/2, 2, 2): four consecutive
    cells are one LLM token.
    """

    #: Size after resizing, in pixels.
    height: int
    width: int
    #: Frames after padding to whole cells; 1 for a still picture.
    frames: int
    #: (t, h, w) of the ViT grid in cells. Where `token_boxes` is set the cells do not fill it one
    #: by one: take numbers from `num_cells` and `num_llm_tokens`.
    grid_thw: tuple[int, int, int]
    #: (t, h, w) of the grid of LLM tokens; h = w = 0 where the tokens form no regular grid.
    llm_grid_thw: tuple[int, int, int]
    #: N
    num_cells: int
    #: M
    num_llm_tokens: int
    #: (T', 3, B, B) of one cell on the wire; T' = 1 for a still picture.
    cell_shape: tuple[int, int, int, int]
    #: float32 (N, 2): row and column in the units of the pretrained ViT's rotary embedding.
    vit_positions: np.ndarray
    #: int64 (M, 3): temporal, row and column M-RoPE ids, starting at 0.
    mrope_positions: np.ndarray
    #: First M-RoPE id that is free after the media.
    mrope_extent: int
    #: int32 (S + 1,): boundaries over cells; a cell attends only within its segment.
    vit_cu_seqlens: np.ndarray
    #: Bytes of the uint8 cells that the loader ships.
    wire_bytes: int
    #: int32 (M, 4): temporal slice, top, left and side in pixels of the square behind each token,
    #: for tokenizers whose squares differ in size; None for regular grids.
    token_boxes: np.ndarray | None = None

    def __eq__(self, other: object) -> bool:
        """Equal when every field is, arrays by value."""
        if not isinstance(other, Plan):
            return NotImplemented
        return all(
            np.array_equal(getattr(self, f.name), getattr(other, f.name)) for f in fields(self)
        )

    def __hash__(self) -> int:
        """Hash of the cheap fields."""
        return hash((self.height, self.width, self.frames, self.grid_thw, self.cell_shape))
