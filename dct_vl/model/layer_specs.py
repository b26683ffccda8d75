"""The two layer specs: Transformer Engine's modules, or Megatron's local ones.

Both give the same checkpoint names, so that a checkpoint written with one loads into the other.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal

import torch
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.attention import SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import (
    TransformerBlockSubmodules,
    get_num_layers_to_build,
)
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules

from dct_vl.compat import have_transformer_engine
from dct_vl.model.attention import ExplicitSelfAttention, SegmentedAttention
from dct_vl.model.fused.layer import FusedTransformerLayer

#: te: Transformer Engine's layers; local: Megatron's own; hybrid: Megatron's own around Transformer
#: Engine's attention
LayerSpecName = Literal["te", "local", "hybrid"]

#: what Transformer Engine's fused norm+linear modules call the norm's parameters
_CHECKPOINT_NAMES = {
    "input_layernorm.": "self_attention.linear_qkv.layer_norm_",
    "pre_mlp_layernorm.": "mlp.linear_fc1.layer_norm_",
}
_NORM_STATE = "norm._extra_state"


def resolve_layer_spec(wanted: str) -> LayerSpecName:
    """Turn "auto", "te", "local" or "hybrid" into the spec to use.

    Raises:
        ValueError: an unknown name, or one that needs Transformer Engine where it is not usable.
    """
    if wanted == "auto":
        return "te" if have_transformer_engine() else "local"
    if wanted == "local":
        return "local"
    if wanted not in ("te", "hybrid"):
        raise ValueError(f"layer spec {wanted!r}; expected one of auto, te, local, hybrid")
    if not have_transformer_engine():
        raise ValueError(
            f"layer spec {wanted!r} needs Transformer Engine and a CUDA device; use "
            "model.layer_spec=auto"
        )
    return "te" if wanted == "te" else "hybrid"


def language_spec(
    name: LayerSpecName, *, fused: bool = False
) -> ModuleSpec | Callable[..., TransformerBlockSubmodules]:
    """What NeMo's language configuration takes: the layers and the norm behind them."""
    layer = layer_spec(name, is_vision=False, fused=fused)
    return layer if name == "te" else block_with_torch_norm(layer)


def layer_spec(name: LayerSpecName, *, is_vision: bool, fused: bool = False) -> ModuleSpec:
    """The transformer layer of the ViT (full attention) or of the language model (causal).

    `fused` takes this project's fused layer in the local and hybrid specs; Transformer Engine has
    its own.
    """
    norm: Any = TorchNorm
    column: Any = ColumnParallelLinear
    row: Any = RowParallelLinear
    attention: Any = SegmentedAttention
    names = dict(_CHECKPOINT_NAMES)
    if name != "local":
        from dct_vl.model.te_attention import SegmentedTEAttention as attention
    if name == "te":
        from megatron.core.extensions import transformer_engine as te

        column, row = te.TELayerNormColumnParallelLinear, te.TERowParallelLinear
        norm, names, fused = IdentityOp, {}, False
    return ModuleSpec(
        module=FusedTransformerLayer if fused else TransformerLayer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=norm,
            self_attention=ModuleSpec(
                module=ExplicitSelfAttention,
                params={
                    "attn_mask_type": AttnMaskType.no_mask if is_vision else AttnMaskType.causal
                },
                submodules=SelfAttentionSubmodules(
                    linear_qkv=column,
                    core_attention=attention,
                    linear_proj=row,
                    q_layernorm=IdentityOp,
                    k_layernorm=IdentityOp,
                ),
            ),
            self_attn_bda=get_bias_dropout_add,
            pre_mlp_layernorm=norm,
            mlp=ModuleSpec(module=MLP, submodules=MLPSubmodules(linear_fc1=column, linear_fc2=row)),
            mlp_bda=get_bias_dropout_add,
            sharded_state_dict_keys_map=names,
        ),
    )


def projector_submodules(name: LayerSpecName) -> MLPSubmodules:
    """The two linear layers of the vision projector."""
    if name == "te":
        from megatron.core.extensions.transformer_engine import (
            TEColumnParallelLinear,
            TERowParallelLinear,
        )

        return MLPSubmodules(linear_fc1=TEColumnParallelLinear, linear_fc2=TERowParallelLinear)
    return MLPSubmodules(linear_fc1=ColumnParallelLinear, linear_fc2=RowParallelLinear)


class TorchNorm:
    """Makes torch's LayerNorm or RMSNorm for the local spec, under sequence parallelism too.

    Megatron's wrapper around them refuses sequence parallelism, although nothing is missing but a
    mark: a norm sees its rank's part of the sequence, so that the gradients of its parameters are
    to be summed over tensor-parallel ranks, which Megatron does for parameters with
    `sequence_parallel` set.
    """

    def __new__(  # type: ignore[misc]
        cls, config: TransformerConfig, hidden_size: int, eps: float = 1e-5
    ) -> torch.nn.LayerNorm | torch.nn.RMSNorm:
        kinds = {"LayerNorm": torch.nn.LayerNorm, "RMSNorm": torch.nn.RMSNorm}
        norm: torch.nn.LayerNorm | torch.nn.RMSNorm
        norm = kinds[config.normalization](hidden_size, eps=eps)
        for parameter in norm.parameters():
            parameter.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]
        return norm


def block_with_torch_norm(layer: ModuleSpec) -> Callable[..., TransformerBlockSubmodules]:
    """A block of such layers with `TorchNorm` at its end as well: what NeMo takes for a spec.

    Megatron's own choice for the last norm depends on what is installed.
    """
    return functools.partial(_block, layer=layer)


def _block(
    config: TransformerConfig, vp_stage: int | None = None, *, layer: ModuleSpec
) -> TransformerBlockSubmodules:
    count = get_num_layers_to_build(config, vp_stage=vp_stage)
    return TransformerBlockSubmodules(layer_specs=[layer] * count, layer_norm=TorchNorm)


def without_norm_state(state: dict[str, Any]) -> dict[str, Any]:
    """A sharded state dict without what Transformer Engine's norms keep beside their weights.

    Its linear layers and Megatron's local ones write an entry for the state of FP8 each, empty
    without FP8; of the norms only Transformer Engine's do, so that it could not read a checkpoint
    of the local layer spec. A norm's entry is always empty here, and is neither written nor asked
    for.
    """
    return {name: value for name, value in state.items() if not name.endswith(_NORM_STATE)}


def expect_no_norm_state(model: torch.nn.Module) -> None:
    """Let the norms of a model load where their entries are not."""
    for name, module in model.named_modules():
        has_own = type(module).set_extra_state is not torch.nn.Module.set_extra_state
        if has_own and f"{name}._extra_state".endswith(_NORM_STATE):
            module.register_load_state_dict_pre_hook(_add_empty_state)


def _add_empty_state(module: torch.nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    state.setdefault(f"{prefix}_extra_state", None)
