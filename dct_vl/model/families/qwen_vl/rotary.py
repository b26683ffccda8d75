"""M-RoPE's angles without a matrix product.

Shape legend: B rows, S sequence, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from megatron.core.models.common.embeddings.rotary_pos_embedding import MultimodalRotaryEmbedding


class MultimodalAngles(MultimodalRotaryEmbedding):
    """MultimodalRotaryEmbedding as plain numbers multiplied.

    Megatron, like transformers, multiplies ids and frequencies as matrices. Where TF32 is allowed,
    as NVIDIA's containers do by an environment variable, a GPU may round both to 11 bits for that:
    ids above 2048 fall together, and the angles of smaller ones are off by up to half a radian.
    Nor does this take a context-parallel rank's part of ids that are a part already.
    """

    def forward(self, position_ids: torch.Tensor, mrope_section: Sequence[int]) -> torch.Tensor:
        """Angles (S, B, 1, D) float32 of (3, B, S) temporal, row and column ids.

        `mrope_section`: how many of the D / 2 frequencies are for each of the three.
        """
        ids = position_ids.to(device=self.inv_freq.device, dtype=self.inv_freq.dtype)
        half = torch.cat(
            [
                kind[..., None] * frequencies
                for kind, frequencies in zip(
                    ids, self.inv_freq.split(list(mrope_section)), strict=True
                )
            ],
            dim=-1,
        )
        return torch.cat((half, half), dim=-1).transpose(0, 1)[:, :, None].contiguous()
