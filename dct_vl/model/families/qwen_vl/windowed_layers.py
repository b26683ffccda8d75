"""Layers that take their segments from where NeMo's Qwen2.5-VL block puts them.

That block hands every layer one of two `packed_seq_params`, for windows or for whole slices. Here
they are boundaries of segments, which `dct_vl.model.attention` takes as the attention mask (it
says why).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_layer import TransformerLayer

from dct_vl.model.fused.layer import FusedTransformerLayer


class WindowedLayer(TransformerLayer):
    """`TransformerLayer` with segments in `packed_seq_params`."""

    def forward(self, *args: Any, packed_seq_params: torch.Tensor, **kwargs: Any) -> Any:
        """See `TransformerLayer.forward`; `packed_seq_params` are boundaries (S+1,) int32."""
        return super().forward(*args, **{**kwargs, "attention_mask": packed_seq_params})


class WindowedFusedLayer(FusedTransformerLayer):
    """`FusedTransformerLayer` with segments in `packed_seq_params`."""

    def forward(self, *args: Any, packed_seq_params: torch.Tensor, **kwargs: Any) -> Any:
        """See `WindowedLayer.forward`."""
        return super().forward(*args, **{**kwargs, "attention_mask": packed_seq_params})


_WINDOWED = {TransformerLayer: WindowedLayer, FusedTransformerLayer: WindowedFusedLayer}


def windowed(layer: ModuleSpec) -> ModuleSpec:
    """The spec of `dct_vl.model.layer_specs.layer_spec` for Qwen2.5-VL's vision tower."""
    return replace(layer, module=_WINDOWED[layer.module])
