"""Decoded images and videos as cells, with everything the vision tower is told about them.

Shape legend: N cells, G attention segments, P images and videos of the sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from dct_tokenizer import Plan, VisualTokenizer


@dataclass(frozen=True, kw_only=True)
class VisualCells:
    """All images and videos of a sample."""

    #: final plans; those of the headers, unless the tokenizer depends on the content
    plans: tuple[Plan, ...]
    #: (N, T, 3, B, B) uint8, T = 1 without a video; None without images
    cells: torch.Tensor | None
    #: (N, 2) float32
    vit_positions: np.ndarray
    #: (G,) int32 lengths of the attention segments
    vit_segments: np.ndarray
    #: (P, 3) int64 ViT grids in cells
    vit_grids: np.ndarray


def encode_visual(
    visual: VisualTokenizer, frames: Sequence[np.ndarray], plans: Sequence[Plan]
) -> VisualCells:
    """Cut decoded images and videos into cells.

    Args:
        frames: uint8 (T, H, W, 3) an image (T = 1) or video, of the size that its plan was made
            for, or resized to the plan's own already.
        plans: what `visual.plan` said from the headers.
    """
    final = tuple(
        # the time of a clip is not the tokenizer's concern
        replace(visual.refine(f, p), time_scale=p.time_scale)
        for f, p in zip(frames, plans, strict=True)
    )
    cells = [visual.cells(f, p) for f, p in zip(frames, final, strict=True)]
    no_positions, no_segments = np.zeros((0, 2), dtype=np.float32), np.zeros(0, dtype=np.int32)
    return VisualCells(
        plans=final,
        cells=join_cells(cells) if cells else None,
        vit_positions=np.concatenate([no_positions, *(p.vit_positions for p in final)]),
        vit_segments=np.concatenate([no_segments, *(np.diff(p.vit_cu_seqlens) for p in final)]),
        vit_grids=np.array([p.grid_thw for p in final], dtype=np.int64).reshape(-1, 3),
    )


def join_cells(cells: Sequence[torch.Tensor]) -> torch.Tensor:
    """(N, T, 3, B, B) of the cells of several images and videos.

    An image's cells hold one frame, a video's T; beside a video an image is T equal frames,
    which is what its one frame stands for.
    """
    num_frames = max(c.shape[1] for c in cells)
    return torch.cat([c.expand(-1, num_frames, -1, -1, -1) for c in cells])
