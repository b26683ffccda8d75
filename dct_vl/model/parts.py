"""The model's parts by the names of their tensors, its adapters, and freezing by part.

`front_end` is the visual tokenizer's own weights, `vision` the ViT's blocks, `projector` the MLP
between ViT and language model, `language` the language model with its embeddings. Settings name
them too, without a model: torch and Megatron are imported by what needs them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:
    import torch

Part = Literal["front_end", "vision", "projector", "language"]
PARTS: tuple[Part, ...] = get_args(Part)

_LINEARS = (
    "self_attention.linear_qkv",
    "self_attention.linear_proj",
    "mlp.linear_fc1",
    "mlp.linear_fc2",
)
#: first match wins
_PREFIXES: tuple[tuple[str, Part], ...] = (
    ("vision_model.front_end.", "front_end"),
    ("vision_model.post_merge.", "front_end"),
    ("vision_model.", "vision"),
    ("vision_projection.", "projector"),
    ("language_model.", "language"),
)
#: stands in the names of adapters' tensors
ADAPTER = ".adapter."


def part_of(name: str) -> Part:
    """Part of a tensor, with wrappers' `module.` before its name or not; else a ValueError."""
    while name.startswith("module."):
        name = name.removeprefix("module.")
    for prefix, part in _PREFIXES:
        if name.startswith(prefix):
            return part
    raise ValueError(f"{name!r} belongs to no part of the model; expected {', '.join(PARTS)}")


@dataclass
class LoraConfig:
    """Low-rank adapters (NeMo's LoRA); read with `model.tuning=lora`."""

    #: names of linear layers that get an adapter, with * as wildcard: linear_qkv, linear_proj,
    #: linear_fc1 and linear_fc2 of `language_model.*` and `vision_model.*`
    target_modules: list[str] = field(
        default_factory=lambda: [
            "language_model.*.linear_qkv",
            "language_model.*.linear_proj",
            "language_model.*.linear_fc1",
            "language_model.*.linear_fc2",
        ]
    )
    #: inner dimension of an adapter; a multiple of the tensor-parallel size
    rank: int = 16
    #: an adapter's output is scaled by alpha / rank
    alpha: int = 32
    #: share of an adapter's inputs that are dropped
    dropout: float = 0.0
    #: parts that are trained in full beside the adapters: front_end, vision, projector, language
    also_train: list[str] = field(default_factory=lambda: ["front_end", "projector"])


def adapted_linears(lora: LoraConfig, tower: str, num_layers: int) -> Counter[str]:
    """Linear layers of a tower that get an adapter, by NeMo's rules.

    Args:
        lora: its `target_modules` are names of layers, or whole names with * as wildcard.
        tower: vision_model or language_model.

    Returns:
        linear_qkv, linear_proj, linear_fc1 and linear_fc2 → in how many layers.
    """
    found: Counter[str] = Counter()
    for number in range(num_layers):
        for name in _LINEARS:
            whole = f"{tower}.decoder.layers.{number}.{name}"
            last = name.rpartition(".")[2]
            found[last] += any(
                last == p or re.fullmatch(p.replace("*", "(.*)"), whole) is not None
                for p in lora.target_modules
            )
    return +found


def freeze_parts(module: torch.nn.Module, trained: Collection[Part]) -> None:
    """Let only the tensors of `trained` parts, and adapters, have gradients."""
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(ADAPTER in name or part_of(name) in trained)


def with_gradient(hidden: torch.Tensor, block: Any) -> torch.Tensor:
    """`hidden` (S, B, E), the input of a `TransformerBlock`, so that what is trained there gets
    gradients: the same values, with a gradient that nothing reads where it needs one.

    Megatron's recomputation, like torch's reentrant one, takes part in the backward pass only where
    a layer's input has a gradient. Behind a frozen front end or embedding there is none, and
    trained layers or adapters would stay as they are, without a word.
    """
    import torch

    if (
        hidden.requires_grad
        or not torch.is_grad_enabled()
        or block.config.recompute_granularity != "full"
        or not any(parameter.requires_grad for parameter in block.parameters())
    ):
        return hidden
    return hidden.detach().requires_grad_()


@dataclass(frozen=True, kw_only=True)
class ParameterCount:
    """Numbers of scalars of one part."""

    total: int
    trained: int
    #: of `trained`, those in adapters
    adapters: int


def count_parameters(module: torch.nn.Module) -> dict[Part, ParameterCount]:
    """Parameters of the whole model by part, each counted once however it is divided.

    Call it on all ranks: counts are summed over tensor- and pipeline-parallel ranks.
    """
    import torch
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel import param_is_not_tensor_parallel_duplicate
    from megatron.core.transformer.module import param_is_not_shared

    counts = torch.zeros(len(PARTS), 3, dtype=torch.int64)
    for name, parameter in module.named_parameters():
        if not param_is_not_shared(parameter):
            continue  # the last stage's copy of the embedding
        if not param_is_not_tensor_parallel_duplicate(parameter):
            continue
        trained = parameter.requires_grad
        row = counts[PARTS.index(part_of(name))]
        row += parameter.numel() * torch.tensor([1, trained, trained and ADAPTER in name])
    device = next(module.parameters()).device
    counts = counts.to(device)
    torch.distributed.all_reduce(counts, group=parallel_state.get_model_parallel_group())
    return {
        part: ParameterCount(total=total, trained=trained, adapters=adapters)
        for part, (total, trained, adapters) in zip(PARTS, counts.tolist(), strict=True)
    }
