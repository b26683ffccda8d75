"""Core attention over segments, without Transformer Engine.

Shapes: S sequence, B micro batch, H query heads, G key/value heads, D head size, N segments.

Megatron's own route for segments (`packed_seq_params`) makes its attention layer cut the rotary
frequencies anew at 0 for every segment, which loses explicit multimodal positions. So the
boundaries take another road here: they arrive in the place of the attention mask, after the
rotary embedding has been applied from the given ids.
"""

from __future__ import annotations

import functools
import importlib.util
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig


@functools.cache
def have_varlen_attention() -> bool:
    """True where this torch has `torch.nn.attention.varlen` (2.10 and later)."""
    return importlib.util.find_spec("torch.nn.attention.varlen") is not None


class SegmentedAttention(MegatronModule):
    """Scaled dot-product attention: causal, full, or full within segments.

    `attention_mask` is either None (one segment a batch row) or the int32 tensor (N+1,) of
    cumulative segment boundaries over S, which needs B = 1. Uses torch's variable-length flash
    kernel for segments on CUDA in half precision and SDPA for everything else.

    Source: `megatron.core.transformer.dot_product_attention` for the call contract; Qwen2-VL's
    vision attention for the segments (one per temporal slice of an image).
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        attention_dropout: float | None = None,
        softmax_scale: float | None = None,
        cp_comm_type: str | None = None,
        pg_collection: Any = None,
    ) -> None:
        super().__init__(config=config)
        if config.context_parallel_size > 1:
            raise ValueError(
                "context parallelism needs Transformer Engine's attention: set CP_SIZE=1 or "
                "install Transformer Engine"
            )
        self.is_causal = attn_mask_type == AttnMaskType.causal
        self.softmax_scale = softmax_scale
        #: upper bound of a segment's length for the flash kernel's grid; whoever passes boundaries
        #: sets it beforehand, so that no step waits for the device
        self.max_segment_length: int | None = None

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: torch.Tensor | None = None,
        packed_seq_params: Any = None,
    ) -> torch.Tensor:
        """Attend.

        Args:
            query: (S, B, H, D).
            key: (S, B, G, D).
            value: (S, B, G, D).
            attention_mask: None, or cumulative segment boundaries (N+1,) int32 with B = 1.
            attn_mask_type: ignored; the layer spec decides between causal and full.
            attention_bias: not supported.
            packed_seq_params: not supported; see the module's docstring.

        Returns:
            (S, B, H*D) in the dtype of `query`.
        """
        if packed_seq_params is not None or attention_bias is not None:
            raise ValueError("SegmentedAttention takes segment boundaries as attention_mask only")
        if attention_mask is None:
            context = self._sdpa(query, key, value, mask=None)
        elif (
            query.is_cuda
            and query.dtype in (torch.float16, torch.bfloat16)
            and have_varlen_attention()
        ):
            context = self._flash_segments(query, key, value, attention_mask)
        else:
            context = self._sdpa(query, key, value, mask=self._block_mask(query, attention_mask))
        return context

    def _sdpa(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
    ) -> torch.Tensor:
        query, key, value = (x.permute(1, 2, 0, 3) for x in (query, key, value))  # B heads S D
        context = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            is_causal=self.is_causal and mask is None and query.shape[2] > 1,
            scale=self.softmax_scale,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        return context.permute(2, 0, 1, 3).flatten(2)

    def _flash_segments(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        boundaries: torch.Tensor,
    ) -> torch.Tensor:
        from torch.nn.attention.varlen import varlen_attn

        if self.is_causal:
            raise ValueError("causal segments are not supported by this attention")
        longest = min(self.max_segment_length or query.shape[0], query.shape[0])
        context = varlen_attn(
            query.squeeze(1).contiguous(),
            key.squeeze(1).contiguous(),
            value.squeeze(1).contiguous(),
            boundaries,
            boundaries,
            longest,
            longest,
        )
        assert isinstance(context, torch.Tensor)
        return context.flatten(1).unsqueeze(1)

    def _block_mask(self, query: torch.Tensor, boundaries: torch.Tensor) -> torch.Tensor:
        """True where two positions share a segment (and, if causal, the key is not later)."""
        position = torch.arange(query.shape[0], device=query.device)
        segment = torch.searchsorted(boundaries.to(torch.long), position, right=True)
        mask = segment[:, None] == segment[None, :]
        if self.is_causal:
            mask &= position[:, None] >= position[None, :]
        return mask
