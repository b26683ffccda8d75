"""A rank of test_context_parallel.py: attention over the whole sequence from parts of it."""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist

from dct_vl.compat import activate

activate()

from megatron.core.transformer.enums import AttnMaskType  # noqa: E402
from megatron.core.transformer.transformer_config import TransformerConfig  # noqa: E402

from dct_vl.inputs.batch import Segments  # noqa: E402
from dct_vl.model.attention import SegmentedAttention  # noqa: E402
from dct_vl.model.context_parallel import attend_with_part_of_heads  # noqa: E402

HEAD_SIZE, LENGTH, ROWS = 4, 12, 2


def main(rank: int, size: int, heads: int, groups: int, store: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    config = TransformerConfig(
        num_layers=1, hidden_size=heads * HEAD_SIZE, num_attention_heads=heads
    )
    attention = SegmentedAttention(config, 1, AttnMaskType.causal, "self")
    # the samples end nowhere near where the parts of ranks do
    segments = Segments.of([5, 7, 7, 5])
    generator = torch.Generator().manual_seed(0)
    shapes = [(LENGTH, ROWS, count, HEAD_SIZE) for count in (heads, groups, groups)]
    whole = [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]
    weight = torch.randn(LENGTH, ROWS, heads * HEAD_SIZE, generator=generator)
    expected = attention(*whole, attention_bias=segments)
    wanted = torch.autograd.grad((expected * weight).sum(), whole)

    parts = [x.detach().chunk(size)[rank].requires_grad_() for x in whole]
    found = attend_with_part_of_heads(
        lambda q, k, v: attention(q, k, v, attention_bias=segments), *parts, dist.group.WORLD
    )
    torch.testing.assert_close(found, expected.chunk(size)[rank], rtol=1e-6, atol=1e-6)
    grads = torch.autograd.grad((found * weight.chunk(size)[rank]).sum(), parts)
    for grad, want in zip(grads, wanted, strict=True):
        torch.testing.assert_close(grad, want.chunk(size)[rank], rtol=1e-5, atol=1e-6)
    # a rank that leaves while others still talk to it takes gloo's threads down with it
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:5]), sys.argv[5])
