"""Megatron's transformer layer with its elementwise parts fused.

Parameters, names and checkpoints are `TransformerLayer`'s. The matrix products and the attention
are called as there; what lies between them goes through `dct_vl.model.fused.pieces`. Whatever
this does not cover (dropout, adapters around the MLP's activation, inference caches, selective
recomputation) takes Megatron's own forward.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel import (
    reduce_from_tensor_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
)
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.transformer_layer import TransformerLayer
from megatron.core.utils import make_viewless_tensor
from nemo.collections.llm.fn.activation import quick_gelu

from dct_vl.model.fused import pieces, products
from dct_vl.model.fused.products import Activation, activated_product


class FusedTransformerLayer(TransformerLayer):
    """`TransformerLayer` of the local spec; forward equals its forward."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """See `TransformerLayer.forward`: hidden states (S, B, E) and None."""
        hidden = args[0] if args else kwargs["hidden_states"]
        if not self._covers(kwargs) or len(args) > 1:
            return super().forward(*args, **kwargs)
        attention, mlp = self.self_attention, self.mlp
        x = pieces.norm(hidden, *norm_arguments(self.input_layernorm))
        mixed, bias = product(attention.linear_qkv, x)
        cos, sin = rotation(kwargs["rotary_pos_emb"], mixed.dtype)
        query, key, value = pieces.split_and_rotate(
            mixed,
            bias,
            cos,
            sin,
            attention.num_query_groups_per_partition,
            attention.hidden_size_per_attention_head,
        )
        context = attention.core_attention(
            query,
            key,
            value,
            attn_mask_type=attention.attn_mask_type,
            attention_bias=kwargs.get("packed_seq_params"),
        )
        x, bias = product(attention.linear_proj, context)
        hidden, x = pieces.add_and_norm(x, bias, hidden, *norm_arguments(self.pre_mlp_layernorm))
        x, bias = product(mlp.linear_fc1, x)
        activation: Activation = "swiglu" if self.config.gated_linear_unit else "quick_gelu"
        if is_plain(mlp.linear_fc2, RowParallelLinear):
            summed = activated_product(x, bias, mlp.linear_fc2.weight, activation)
            x, bias = over_ranks(summed, mlp.linear_fc2), mlp.linear_fc2.bias
        else:
            x, bias = product(mlp.linear_fc2, getattr(pieces, activation)(x, bias))
        hidden = pieces.add(x, bias, hidden)
        # pipeline schedules free outputs, which must not be views
        return make_viewless_tensor(hidden, hidden.requires_grad, keep_graph=True), None

    def _covers(self, kwargs: dict[str, Any]) -> bool:
        config = self.config
        if config.gated_linear_unit:
            known = config.activation_func is F.silu and config.activation_func_clamp_value is None
        else:
            known = config.activation_func is quick_gelu
        return (
            known
            and (not self.training or config.hidden_dropout == 0)
            and config.recompute_granularity != "selective"
            and isinstance(kwargs.get("rotary_pos_emb"), torch.Tensor)
            and kwargs.get("inference_context") is None
        )


def norm_arguments(module: Any) -> tuple[torch.Tensor, torch.Tensor | None, float, bool]:
    """Weight, bias, eps and whether it is an RMS norm, of one of torch's two norms."""
    is_rms = isinstance(module, torch.nn.RMSNorm)
    return module.weight, None if is_rms else module.bias, module.eps, is_rms


def is_plain(linear: Any, kind: type) -> bool:
    """Whether nothing is wrapped around a parallel linear layer, or hooked into it."""
    is_hooked = linear._forward_pre_hooks or linear._forward_hooks
    return type(linear) is kind and not is_hooked


def product(linear: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The matrix product of a parallel linear layer, and its bias not yet added, if it has one.

    Megatron's layers are a plain product inside Python autograd functions; those cost time, and are
    left out where they do no more: in layers divided by rows, and on one rank.
    """
    if type(linear) not in (ColumnParallelLinear, RowParallelLinear):
        result: tuple[torch.Tensor, torch.Tensor | None] = linear(x)  # an adapter's wrapper
        return result
    if is_plain(linear, RowParallelLinear):
        return over_ranks(products.product(x, linear.weight), linear), linear.bias
    if is_plain(linear, ColumnParallelLinear) and linear.tp_group.size() == 1:
        return products.product(x, linear.weight), linear.bias
    wanted, linear.skip_bias_add = linear.skip_bias_add, True
    try:
        result = linear(x)
    finally:
        linear.skip_bias_add = wanted
    return result


def over_ranks(x: torch.Tensor, linear: RowParallelLinear) -> torch.Tensor:
    """A product summed over its tensor-parallel ranks: all, or this rank's part of the sequence."""
    if linear.tp_group.size() == 1:
        return x
    if linear.sequence_parallel:
        return reduce_scatter_to_sequence_parallel_region(x, group=linear.tp_group)
    return reduce_from_tensor_model_parallel_region(x, group=linear.tp_group)


#: cosine and sine of the latest angles: all layers of a forward pass share theirs
_latest: list[tuple[torch.Tensor, torch.dtype, tuple[torch.Tensor, torch.Tensor]]] = []


def rotation(angles: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine of (S, B or 1, 1, D) float32 angles, rounded to `dtype` as Megatron does."""
    if not _latest or _latest[0][0] is not angles or _latest[0][1] != dtype:
        _latest[:] = [(angles, dtype, (angles.cos().to(dtype), angles.sin().to(dtype)))]
    return _latest[0][2]
