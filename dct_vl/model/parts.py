"""The model's parts by the names of their tensors, and freezing by part."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from megatron.core import parallel_state
from megatron.core.tensor_parallel import param_is_not_tensor_parallel_duplicate
from megatron.core.transformer.module import param_is_not_shared

from dct_vl.runs.config.tuning import PARTS, Part

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
    """Part of a tensor of the model, with or without the `module.` of wrappers before its name.

    Raises:
        ValueError: the name belongs to no part.
    """
    while name.startswith("module."):
        name = name.removeprefix("module.")
    for prefix, part in _PREFIXES:
        if name.startswith(prefix):
            return part
    raise ValueError(f"{name!r} belongs to no part of the model; expected {', '.join(PARTS)}")


def freeze_parts(module: torch.nn.Module, trained: Collection[Part]) -> None:
    """Let only the tensors of `trained` parts, and adapters, have gradients."""
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(ADAPTER in name or part_of(name) in trained)


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
