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

from dct_vl.model.attention import CoreAttention
from dct_vl.model.context_parallel import config_of_one_rank, context_group

if not isinstance(TEDotProductAttention, type):  # Megatron's stand-in for what it cannot import
    raise ModuleNotFoundError("Transformer Engine is not usable here", name="transformer_engine")


class SegmentedTEAttention(CoreAttention, TEDotProductAttention):
    """TEDotProductAttention over whole rows or within segments.

    Segments become Transformer Engine's packed format only here, after the rotary embedding;
    `dct_vl.model.attention` says why.
    """

    def __init__(self, config: Any, layer_number: int, *args: Any, **kwargs: Any) -> None:
        group = context_group(config)
        own = config if group is None else config_of_one_rank(config)
        super().__init__(own, layer_number, *args, **kwargs)
        self.context_group = group
        self.layer_number = layer_number
        self.given_scale: float | None = kwargs.get("softmax_scale")

    def _attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        boundaries: torch.Tensor | None,
        attn_mask_type: AttnMaskType | None,
    ) -> torch.Tensor:
        attend = functools.partial(TEDotProductAttention.forward, self)
        if boundaries is None:
            return attend(query, key, value, None, attn_mask_type)
        length, rows = query.shape[:2]
        longest = min(self.max_segment_length, length)
        segments = PackedSeqParams(
            qkv_format="thd",
            cu_seqlens_q=boundaries,
            cu_seqlens_kv=boundaries,
            max_seqlen_q=longest,
            max_seqlen_kv=longest,
        )
        query, key, value = (x.transpose(0, 1).flatten(0, 1) for x in (query, key, value))
        # Megatron turns causal into padding_causal, and full into padding, for this format
        context = attend(query, key, value, None, attn_mask_type, packed_seq_params=segments)
        return context.reshape(rows, length, -1).transpose(0, 1)
