"""The two layer specs: Transformer Engine's modules, or Megatron's local ones.

Both give the same checkpoint names, so that a checkpoint written with one loads into the other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.attention import SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_layer import (
    TransformerLayer,
    TransformerLayerSubmodules,
)

from dct_vl.compat import have_transformer_engine
from dct_vl.model.attention import ExplicitSelfAttention, SegmentedAttention
from dct_vl.model.fused.layer import FusedTransformerLayer
from dct_vl.model.torch_norm import TorchNorm, block_with_torch_norm

#: te: Transformer Engine's layers; local: Megatron's own; hybrid: Megatron's own around Transformer
#: Engine's attention
LayerSpecName = Literal["te", "local", "hybrid"]

#: what Transformer Engine's fused norm+linear modules call the norm's parameters
_CHECKPOINT_NAMES = {
    "input_layernorm.": "self_attention.linear_qkv.layer_norm_",
    "pre_mlp_layernorm.": "mlp.linear_fc1.layer_norm_",
}


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
    mask_type = AttnMaskType.no_mask if is_vision else AttnMaskType.causal
    if name == "te":
        return _te_spec(mask_type)
    spec = _local_spec(mask_type, fused)
    if name == "hybrid":
        from dct_vl.model.te_attention import SegmentedTEAttention

        spec.submodules.self_attention.submodules.core_attention = SegmentedTEAttention
    return spec


def projector_submodules(name: LayerSpecName) -> MLPSubmodules:
    """The two linear layers of the vision projector."""
    if name == "te":
        from megatron.core.extensions.transformer_engine import (
            TEColumnParallelLinear,
            TERowParallelLinear,
        )

        return MLPSubmodules(linear_fc1=TEColumnParallelLinear, linear_fc2=TERowParallelLinear)
    return MLPSubmodules(linear_fc1=ColumnParallelLinear, linear_fc2=RowParallelLinear)


def _local_spec(mask_type: AttnMaskType, fused: bool) -> ModuleSpec:
    return ModuleSpec(
        module=FusedTransformerLayer if fused else TransformerLayer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=TorchNorm,
            self_attention=ModuleSpec(
                module=ExplicitSelfAttention,
                params={"attn_mask_type": mask_type},
                submodules=SelfAttentionSubmodules(
                    linear_qkv=ColumnParallelLinear,
                    core_attention=SegmentedAttention,
                    linear_proj=RowParallelLinear,
                    q_layernorm=IdentityOp,
                    k_layernorm=IdentityOp,
                ),
            ),
            self_attn_bda=get_bias_dropout_add,
            pre_mlp_layernorm=TorchNorm,
            mlp=ModuleSpec(
                module=MLP,
                submodules=MLPSubmodules(
                    linear_fc1=ColumnParallelLinear, linear_fc2=RowParallelLinear
                ),
            ),
            mlp_bda=get_bias_dropout_add,
            sharded_state_dict_keys_map=dict(_CHECKPOINT_NAMES),
        ),
    )


def _te_spec(mask_type: AttnMaskType) -> ModuleSpec:
    from megatron.core.extensions.transformer_engine import (
        TELayerNormColumnParallelLinear,
        TERowParallelLinear,
    )

    from dct_vl.model.te_attention import SegmentedTEAttention

    return ModuleSpec(
        module=TransformerLayer,
        submodules=TransformerLayerSubmodules(
            self_attention=ModuleSpec(
                module=ExplicitSelfAttention,
                params={"attn_mask_type": mask_type},
                submodules=SelfAttentionSubmodules(
                    linear_qkv=TELayerNormColumnParallelLinear,
                    core_attention=SegmentedTEAttention,
                    linear_proj=TERowParallelLinear,
                    q_layernorm=IdentityOp,
                    k_layernorm=IdentityOp,
                ),
            ),
            self_attn_bda=get_bias_dropout_add,
            pre_mlp_layernorm=IdentityOp,
            mlp=ModuleSpec(
                module=MLP,
                submodules=MLPSubmodules(
                    linear_fc1=TELayerNormColumnParallelLinear, linear_fc2=TERowParallelLinear
                ),
            ),
            mlp_bda=get_bias_dropout_add,
        ),
    )
