"""Attention windows over any tokenizer's cells, for Qwen2.5-VL's vision tower.

Shape legend: N cells, S attention segments, G = N / 4 groups of cells that merge to one token,
W windows.
"""

from __future__ import annotations

import torch

from dct_tokenizer.geometry import MERGE

#: cells of a group
GROUP = MERGE * MERGE
#: windows of a slice, per side, that a key leaves room for
_SIDE_BITS = 20


def attention_windows(
    positions: torch.Tensor, cu_seqlens: torch.Tensor, side: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Order of the groups that makes every window contiguous, and the windows' boundaries.

    A window is a square of `side` x `side` units of the ViT's positions in one segment; a group
    belongs to the one that holds the mean position of its cells. On the grid of equal cells these
    are the windows of `get_window_index` in transformers' `modeling_qwen2_5_vl.py`, in its order;
    where cells differ in size a window holds as many of them as lie there.

    Args:
        positions: (N, 2) float32, four cells of a group in a row.
        cu_seqlens: (S+1,) int32 boundaries of segments over cells.
        side: of a window, in units of `positions`.

    Returns:
        (G,) int64 indices of the groups; (W+1,) int32 boundaries over the cells in that order.
        Both on the device of `positions`; on CUDA the host waits for the number of windows.
    """
    centres = positions.view(-1, GROUP, 2).mean(dim=1)
    rows, columns = torch.div(centres, side, rounding_mode="floor").to(torch.int64).unbind(1)
    first_cells = torch.arange(0, len(positions), GROUP, device=positions.device)
    segments = torch.searchsorted(cu_seqlens.to(torch.int64), first_cells, right=True)
    keys = ((segments << _SIDE_BITS) + rows << _SIDE_BITS) + columns
    keys, order = keys.sort(stable=True)
    _, counts = keys.unique_consecutive(return_counts=True)
    boundaries = torch.nn.functional.pad(counts.cumsum(0) * GROUP, (1, 0))
    return order, boundaries.to(torch.int32)
