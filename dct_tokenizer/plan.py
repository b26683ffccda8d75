"""The plan of an image or clip: all sizes and positions, before a pixel is decoded.

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
    """Geometry of one image or clip under one tokenizer.

    Rows of every per-cell array are in Qwen2-VL's order (t, H/2, W/2, 2, 2): four consecutive
    cells are one LLM token.
    """

    #: Size after resizing, in pixels.
    height: int
    width: int
    #: Frames after padding to whole cells; 1 for a still image.
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
    #: (T', 3, B, B) of one cell on the wire; T' = 1 for a still image.
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
    #: (seconds between the pairs of frames behind two temporal ids, temporal ids of a second) where
    #: the model reads time in seconds, as Qwen2.5-VL does; None for an id a pair
    time_scale: tuple[float, float] | None = None

    def placed_ids(self) -> tuple[np.ndarray, int]:
        """M-RoPE ids (M, 3) int64 and the first free one, on the scale of the model's time.

        Source: `get_rope_index` of transformers' `modeling_qwen2_5_vl.py`, its float32 included.
        """
        if self.time_scale is None:
            return self.mrope_positions, self.mrope_extent
        pairs = -(-self.frames // 2)
        ids = self.mrope_positions.copy()
        ids[:, 0] = self._timed(ids[:, 0])
        # the extent covers time and space; where it is that of time, space has what it uses
        space = self.mrope_extent if self.mrope_extent > pairs else int(ids[:, 1:].max()) + 1
        return ids, max(int(self._timed(np.array(pairs - 1))) + 1, space)

    def _timed(self, pairs: np.ndarray) -> np.ndarray:
        assert self.time_scale is not None
        seconds, ids_per_second = (np.float32(factor) for factor in self.time_scale)
        return (pairs.astype(np.float32) * seconds * ids_per_second).astype(np.int64)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Plan):
            return NotImplemented
        return all(
            np.array_equal(getattr(self, f.name), getattr(other, f.name)) for f in fields(self)
        )

    def __hash__(self) -> int:
        return hash((self.height, self.width, self.frames, self.grid_thw, self.cell_shape))
