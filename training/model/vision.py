"""NeMo's Qwen2-VL vision tower with the front end of a visual tokenizer.

Shape legend: N cells, S attention segments, E ViT width, M LLM tokens (N / 4).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from nemo.collections.vlm.qwen2vl.model.base import Qwen2VLVisionConfig
from nemo.collections.vlm.qwen2vl.model.vision import Qwen2VisionModel

from dct_tokenizer import VisualTokenizer, build_tokenizer


class TokenizerVisionModel(Qwen2VisionModel):
    """Qwen2VisionModel whose patch embedding is a tokenizer's front end.

    Blocks, merging and parameter names are NeMo's. Position and segments of each cell come from
    the batch (they were planned by the tokenizer), not from a grid.
    """

    def __init__(self, *args: Any, tokenizer: VisualTokenizer, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        dtype = self.conv1.weight.dtype
        device = self.conv1.weight.device
        del self.conv1
        self.front_end = tokenizer.front_end(self.visual_hidden_size).to(device=device, dtype=dtype)
        #: what some tokenizers do with the projected tokens; None for most
        self.post_merge = tokenizer.post_merge()
        self.longest_segment = 0

    def forward(  # type: ignore[override]
        self,
        cells: torch.Tensor,
        positions: torch.Tensor,
        cu_seqlens: torch.Tensor,
        longest_segment: int | None = None,
    ) -> torch.Tensor:
        """Embed and encode cells.

        Args:
            cells: (N, T, 3, B, B) uint8, in merge order (four neighbours in a row).
            positions: (N, 2) float32, row and column of each cell in the ViT's rotary units.
            cu_seqlens: (S+1,) int32; a cell attends within its segment only.
            longest_segment: in cells; None where unknown, which costs a little speed.

        Returns:
            (M, 4 E): merged cells, ready for the projector.
        """
        self._note_longest(longest_segment or len(cells))
        hidden = self.front_end(cells).unsqueeze(1)
        # (N, 2, head_dim / 4) → (N, head_dim / 2), twice for the rotated halves, as Qwen2-VL does
        angles = positions.to(torch.float32)[:, :, None] * self.rotary_pos_emb.inv_freq.float()
        angles = angles.flatten(1)
        rotary = torch.cat((angles, angles), dim=-1)[:, None, None, :]
        hidden = self.decoder(hidden, cu_seqlens, rotary_pos_emb=rotary)
        return hidden.squeeze(1).view(-1, self.merge_hidden_size)

    def _note_longest(self, longest: int) -> None:
        """Tell every attention the longest segment so far: a bound that only grows also holds for
        the micro batches whose backward pass is still to come.
        """
        self.longest_segment = max(self.longest_segment, longest)
        for layer in self.decoder.layers:
            layer.self_attention.core_attention.max_segment_length = self.longest_segment


@dataclass
class TokenizerVisionConfig(Qwen2VLVisionConfig):
    """Vision config that builds a `TokenizerVisionModel`."""

    #: preset of the tokenizer: a flat mapping with `name`, `family` and the preset's keys
    tokenizer: dict[str, Any] = field(default_factory=lambda: {"name": "pixel"})

    def configure_model(self) -> TokenizerVisionModel:
        """Build the vision tower; `transformer_layer_spec` must be set."""
        return TokenizerVisionModel(
            self,
            self.transformer_layer_spec,
            add_class_token=self.add_class_token,
            class_token_len=self.class_token_len,
            patch_dim=self.patch_dim,
            temporal_patch_size=self.temporal_patch_size,
            spatial_merge_size=self.spatial_merge_size,
            spatial_patch_size=self.spatial_patch_size,
            img_h=self.img_h,
            img_w=self.img_w,
            tokenizer=build_tokenizer(self.tokenizer),
        )
