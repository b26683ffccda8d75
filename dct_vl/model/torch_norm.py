"""torch's norms for the local layer spec, under sequence parallelism too.

Megatron's wrapper around them refuses sequence parallelism, although nothing is missing but a mark:
a norm sees its rank's part of the sequence, so that the gradients of its parameters are to be
summed over tensor-parallel ranks, which Megatron does for parameters with `sequence_parallel` set.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import (
    TransformerBlockSubmodules,
    get_num_layers_to_build,
)
from megatron.core.transformer.transformer_config import TransformerConfig


class TorchNorm:
    """Makes torch's LayerNorm or RMSNorm, as the configuration says."""

    def __new__(  # type: ignore[misc]
        cls, config: TransformerConfig, hidden_size: int, eps: float = 1e-5
    ) -> torch.nn.LayerNorm | torch.nn.RMSNorm:
        """The norm, its parameters marked for Megatron's reduction of gradients."""
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
