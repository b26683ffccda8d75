"""Context parallelism: a rank holds a part of each sequence, and attends with a part of the heads.

Before the core attention the ranks exchange heads for sequence, and back after it
(DeepSpeed-Ulysses, arXiv 2309.14509). The attention in between sees whole sequences, so that every
kernel works as it does without: any segments of packs, Transformer Engine's or torch's, on GPUs and
on the CPU. The price is that heads have to divide. Ring attention, Transformer Engine's way, takes
any number of heads, but wants every sample of a pack to divide by twice the ranks, and CUDA.

The vision tower runs whole on every rank; of its tokens each keeps those of its part.

Shape legend: C ranks, S sequence, B micro batch, Q query heads, G key/value heads, D head size.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state as ps


def part_of_sequence(x: torch.Tensor, dim: int) -> torch.Tensor:
    """This rank's part of a dimension, rank 0's first; a ValueError where it does not divide."""
    size = ps.get_context_parallel_world_size()
    if size == 1:
        return x
    if x.shape[dim] % size:
        raise ValueError(f"{x.shape[dim]} tokens do not divide into {size} context-parallel parts")
    return x.chunk(size, dim)[ps.get_context_parallel_rank()].contiguous()


def whole_sequence(x: torch.Tensor, dim: int) -> torch.Tensor:
    """The parts of all ranks, without a gradient."""
    size = ps.get_context_parallel_world_size()
    if size == 1:
        return x
    kind, x = x.dtype, x.to(torch.uint8) if x.dtype == torch.bool else x
    parts = [torch.empty_like(x) for _ in range(size)]
    dist.all_gather(parts, x.contiguous(), group=ps.get_context_parallel_group())
    return torch.cat(parts, dim).to(kind)


class _Exchange(torch.autograd.Function):
    """(C, …): part i goes to rank i, and comes from it; its own backward pass."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
        ctx.group = group
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        dist.all_to_all_single(out, x.contiguous(), group=group)
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return _Exchange.apply(grad, ctx.group), None


def context_group(config: Any) -> dist.ProcessGroup | None:
    """The ranks that a sequence is divided over; None where it is not."""
    return ps.get_context_parallel_group() if config.context_parallel_size > 1 else None


def attend_with_part_of_heads(
    attend: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor],
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    group: dist.ProcessGroup | None,
) -> torch.Tensor:
    """Attention over the whole sequence, of which each rank holds a part.

    Args:
        attend: (S, B, Q/C, D) and (S, B, G', D) twice → (S, B, Q/C*D).
        query: (S/C, B, Q, D).
        key, value: (S/C, B, G, D); where G is less than the ranks, each head goes to several.
        group: the ranks; None where one holds it all.

    Returns:
        (S/C, B, Q*D).
    """
    if group is None:
        return attend(query, key, value)
    size = group.size()
    if key.shape[2] % size:
        copies = size // key.shape[2]
        key, value = (x.repeat_interleave(copies, dim=2) for x in (key, value))
    length, rows, heads, width = query.shape
    parts = [x.unflatten(2, (size, -1)) for x in (query, key, value)]  # (S/C, B, C, heads/C, D)
    counts = [part.shape[3] for part in parts]
    mixed = torch.cat(parts, dim=3).permute(2, 0, 1, 3, 4)  # C first
    mixed = _Exchange.apply(mixed, group).flatten(0, 1)  # (S, B, all heads/C, D)
    context = attend(*(x.contiguous() for x in mixed.split(counts, dim=2)))
    context = _Exchange.apply(context.reshape(size, length, rows, heads // size, width), group)
    return context.permute(1, 2, 0, 3, 4).reshape(length, rows, heads * width)


def config_of_one_rank(config: Any) -> Any:
    """The configuration of attention with a context-parallel rank's heads over whole sequences."""
    size = config.context_parallel_size
    # fewer key/value heads than ranks are repeated
    groups = max(config.num_query_groups, config.tensor_model_parallel_size * size)
    own = copy.copy(config)
    own.context_parallel_size = 1
    own.num_attention_heads = config.num_attention_heads // size
    own.num_query_groups = groups // size
    return own
