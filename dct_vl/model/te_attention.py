"""Transformer Engine's attention over segments given as cumulative boundaries.

Imported only where Transformer Engine is.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from megatron.core.extensions.transformer_engine import TEDotProductAttention
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.enums import AttnMaskType

from dct_vl.model.context_parallel import (
    attend_with_part_of_heads,
    config_of_one_rank,
    context_group,
)
from dct_vl.model.kv_cache import LayerCache


class SegmentedTEAttention(TEDotProductAttention):
    """TEDotProductAttention whose `attention_mask` holds segment boundaries (N+1,) int32.

    They run over the rows laid end to end, 0 to B*S; None attends over whole rows. The boundaries
    become Transformer Engine's packed format only here, after the rotary embedding;
    `dct_vl.model.attention` says why.
    """

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        group = context_group(config)
        own = config if group is None else config_of_one_rank(config)
        super().__init__(own, *args, **kwargs)
        self.context_group = group
        self.max_segment_length: int | None = None
        self.given_scale: float | None = kwargs.get("softmax_scale")
        #: keys and values of earlier tokens, while answers are generated
        self.cache: LayerCache | None = None

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        attn_mask_type: AttnMaskType,
        attention_bias: torch.Tensor | None = None,
        packed_seq_params: PackedSeqParams | None = None,
    ) -> torch.Tensor:
        """Attend within segments: (S, B, H, D) and (S, B, G, D) ×2 → (S, B, H*D)."""
        if self.cache is not None:
            attended = self.cache.attend(query, key, value, self.given_scale)
            if attended is not None:
                return attended
        if packed_seq_params is not None or attention_bias is not None:
            raise ValueError("SegmentedTEAttention takes segment boundaries as attention_mask only")
        attend = functools.partial(
            self._attend, boundaries=attention_mask, attn_mask_type=attn_mask_type
        )
        return attend_with_part_of_heads(attend, query, key, value, self.context_group)

    def _attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        boundaries: torch.Tensor | None,
        attn_mask_type: AttnMaskType,
    ) -> torch.Tensor:
        if boundaries is None:
            return super().forward(query, key, value, None, attn_mask_type)
        length, rows = query.shape[:2]
        longest = min(self.max_segment_length or length, length)
        segments = PackedSeqParams(
            qkv_format="thd",
            cu_seqlens_q=boundaries,
            cu_seqlens_kv=boundaries,
            max_seqlen_q=longest,
            max_seqlen_kv=longest,
        )
        query, key, value = (x.transpose(0, 1).flatten(0, 1) for x in (query, key, value))
        # Megatron turns causal into padding_causal, and full into padding, for this format
        context = super().forward(
            query, key, value, None, attn_mask_type, packed_seq_params=segments
        )
        return context.reshape(rows, length, -1).transpose(0, 1).contiguous()
