"""NeMo's LoRA on this project's model: put on, start, load, and merge away.

NeMo applies LoRA from a Trainer callback, between loading a base checkpoint and building the
optimizer. Here the weights come from a Hugging Face folder while the model is built, so LoRA is
put on right there; the optimizer, checkpoints and resumed runs then see an ordinary model.
A checkpoint holds the base weights beside the adapters: it can be loaded without the folder.
"""

from __future__ import annotations

import math
import zlib
from typing import Any

import torch
from megatron.core import parallel_state
from nemo.collections.llm.peft.lora import LoRA, LoRALinear

from dct_vl.errors import ConfigError
from dct_vl.model.parts import LoraConfig
from dct_vl.model.weights import module_shards, place_in_full

#: names below which NeMo keeps the wrapped layer and its adapter
_WRAPPED, _ADAPTER = "to_wrap.", "adapter."


class StackLoRA(LoRA):
    """NeMo's LoRA, for stacks with and without gated MLPs."""

    def transform(self, m: torch.nn.Module, name: str | None = None, prefix: str | None = None):  # type: ignore[no-untyped-def]
        wrapped = super().transform(m, name=name, prefix=prefix)
        if isinstance(wrapped, LoRALinear) and not wrapped.to_wrap.config.gated_linear_unit:
            # NeMo takes every linear_fc1 for the two halves of a gated MLP when it shards the
            # adapter for a checkpoint, and reads the layer's kind from this name alone
            adapter = wrapped.adapter
            adapter.base_linear_name = adapter.base_linear_name.replace("linear_fc1", "linear_1")
        return wrapped


def apply_lora(module: Any, lora: LoraConfig, *, seed: int = 0) -> list[str]:
    """Wrap the target layers of a bare model in place.

    The second matrix of each adapter is 0, so the model's outputs do not change. The first one is
    drawn from the tensor's global name and `seed`: it is the same in every parallel layout.

    Args:
        module: this rank's stage, with its weights.

    Returns:
        Names of the wrapped layers of this rank.

    Raises:
        ConfigError: no layer of the whole model is a target, or a target is no linear layer or has
            no weight of its own.
    """
    method = StackLoRA(
        target_modules=list(lora.target_modules),
        dim=lora.rank,
        alpha=lora.alpha,
        dropout=lora.dropout,
    )
    method._add_via_setattr = False
    names = []
    for full_name, child in list(module.named_modules()):
        prefix, _, name = full_name.rpartition(".")
        try:
            wrapped = method.transform(child, name=name, prefix=prefix)
        except (NotImplementedError, AttributeError) as error:
            raise ConfigError(
                f"model.lora.target_modules matches {full_name}, a {type(child).__name__}: name "
                "linear layers of Megatron, such as language_model.*.linear_qkv"
            ) from error
        if wrapped is child:
            continue
        if name == "output_layer" and module.language_model.share_embeddings_and_output_weights:
            raise ConfigError(
                f"model.lora.target_modules matches {full_name}, whose weight is the embedding's "
                "in this model: an adapter could not be merged into it; name other layers"
            )
        wrapped.register_load_state_dict_pre_hook(_accept_plain_names)
        setattr(module.get_submodule(prefix), name, wrapped)
        names.append(full_name)
    count = torch.tensor(len(names), device=next(module.parameters()).device)
    torch.distributed.all_reduce(count, group=parallel_state.get_model_parallel_group())
    if not count:
        raise ConfigError(
            f"model.lora.target_modules={list(lora.target_modules)} matches no layer; expected "
            "names such as linear_qkv or language_model.*.linear_fc1"
        )
    _draw_first_matrices(module, seed)
    return names


def _draw_first_matrices(module: Any, seed: int) -> None:
    """Xavier-normal, as NeMo draws them, but from the name alone."""
    for shard in module_shards(module):
        if not shard.key.endswith(f"{_ADAPTER}linear_in.weight"):
            continue
        name, slices = place_in_full(shard)
        rank, width = shard.global_shape[shard.prepend_axis_num :]
        generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode()))
        std = math.sqrt(2.0 / (rank + width))
        with torch.no_grad():
            shard.data.copy_(torch.randn(rank, width, generator=generator)[slices] * std)


def _accept_plain_names(module: LoRALinear, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """NeMo writes a wrapped layer's tensors under their plain names; let torch read them so."""
    for key in [k for k in state if k.startswith(prefix)]:
        rest = key.removeprefix(prefix)
        if not rest.startswith((_WRAPPED, _ADAPTER)):
            state[f"{prefix}{_WRAPPED}{rest}"] = state.pop(key)


def merge_lora(module: torch.nn.Module) -> list[str]:
    """Add every adapter to its layer's weight, in fp32, and take the wrapper off, in place.

    Afterwards the module has the structure and the names of a model without LoRA.

    Args:
        module: an unsharded model (tensor-parallel size 1).

    Returns:
        Names of the merged layers; empty where there were none.

    Raises:
        ValueError: the model is divided over tensor-parallel ranks.
    """
    found = [(n, m) for n, m in module.named_modules() if isinstance(m, LoRALinear)]
    tp = parallel_state.get_tensor_model_parallel_world_size()
    if found and tp > 1:
        raise ValueError(
            f"adapters can be merged in an undivided model, this one has {tp} tensor-parallel "
            "ranks: load its checkpoint with dct_vl.inference.loading in one process"
        )
    for full_name, wrapped in found:
        layer, adapter = wrapped.to_wrap, wrapped.adapter
        with torch.no_grad():
            delta = adapter.linear_out.weight.float() @ adapter.linear_in.weight.float()
            merged = layer.weight.float() + delta * (adapter.alpha / adapter.dim)
            layer.weight.copy_(merged)
        # what NeMo set on Transformer Engine's fused norm + linear, for the adapter's input
        for flag in ("return_layernorm_output", "return_layernorm_output_gathered"):
            if hasattr(layer, flag):
                setattr(layer, flag, False)
        prefix, _, name = full_name.rpartition(".")
        setattr(module.get_submodule(prefix), name, layer)
    return [name for name, _ in found]
