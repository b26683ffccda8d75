"""The tensors that say what a batch's images and videos are: made by the processor, read by the
model.

Shape legend: P images and videos in the order of the text, N cells, G attention segments of the
vision tower, M visual tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from dct_tokenizer.plan import Plan

#: columns of `media_counts`
CELLS, SEGMENTS, TOKENS, EXTENT = range(4)
#: fields whose rows belong to an image by the column of `media_counts` that numbers them
ROWS_BY = {
    "pixel_values": CELLS,
    "cell_positions": CELLS,
    "segment_lengths": SEGMENTS,
    "token_positions": TOKENS,
}
#: fields with one row an image
ROW_EACH = ("media_counts", "image_grid_thw")
NAMES = (*ROWS_BY, *ROW_EACH)


def float_bits(values: torch.Tensor) -> torch.Tensor:
    """int32 with the bits of float32: what casts floats to a model's dtype leaves it alone."""
    return values.to(torch.float32).contiguous().view(torch.int32)


def bits_float(bits: torch.Tensor) -> torch.Tensor:
    """float32 of `float_bits`."""
    return bits.contiguous().view(torch.float32)


def media_fields(cells: Sequence[torch.Tensor], plans: Sequence[Plan]) -> dict[str, torch.Tensor]:
    """Fields of a batch.

    Args:
        cells: uint8 (n, T, 3, B, B) of each image (T = 1) or video.
        plans: the final plans.

    Returns:
        pixel_values (N, T, 3, B, B) uint8: beside a video an image is T equal frames;
        cell_positions (N, 2) int32, the bits of float32; segment_lengths (G,) int64;
        token_positions (M, 3) int64; media_counts (P, 4) int64: cells, segments, tokens, extent of
        the M-RoPE ids; image_grid_thw (P, 3) int64 in cells.
    """
    frames = max(c.shape[1] for c in cells)
    placed = [p.placed_ids() for p in plans]
    lengths = [np.diff(p.vit_cu_seqlens).astype(np.int64) for p in plans]
    counts = [
        (p.num_cells, len(n), p.num_llm_tokens, extent)
        for p, n, (_, extent) in zip(plans, lengths, placed, strict=True)
    ]
    positions = torch.from_numpy(np.concatenate([p.vit_positions for p in plans]))
    return {
        "pixel_values": torch.cat(
            [c if c.shape[1] == frames else c.expand(-1, frames, -1, -1, -1) for c in cells]
        ),
        "cell_positions": float_bits(positions),
        "segment_lengths": torch.from_numpy(np.concatenate(lengths)),
        "token_positions": torch.from_numpy(np.concatenate([ids for ids, _ in placed])),
        "media_counts": torch.tensor(counts, dtype=torch.int64),
        "image_grid_thw": torch.tensor([p.grid_thw for p in plans], dtype=torch.int64),
    }


def take_media(fields: dict[str, torch.Tensor], chosen: Sequence[int]) -> dict[str, torch.Tensor]:
    """The fields of some images, in the given order, repeats allowed."""
    counts = fields["media_counts"]
    taken = {}
    for name, column in ROWS_BY.items():
        parts = fields[name].split(counts[:, column].tolist())
        taken[name] = torch.cat([parts[media] for media in chosen])
    for name in ROW_EACH:
        taken[name] = fields[name][list(chosen)]
    return taken
