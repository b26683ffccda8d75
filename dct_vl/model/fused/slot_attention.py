"""A step's attention over slots: one new token a slot, all query heads of a group together.

Each slot is read as far as it is filled. Imported only where there is a CUDA device.

torch's kernels take a mask or lengths known to the host: the first read every place of every slot,
the others cannot be part of a CUDA graph.

Shape legend: N slots, n the first of them, C places a slot, H query heads, G key/value heads, D
head size, a power of two from 16 on.
"""

from __future__ import annotations

import torch
import triton  # type: ignore[import-not-found,unused-ignore]
import triton.language as tl  # type: ignore[import-not-found,unused-ignore]

#: places read at once
BLOCK = 64
#: rows of the smallest product that tensor cores make
_LEAST_ROWS = 16


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _write(key, value, keys, values, lengths, capacity, WIDTH: tl.constexpr, PADDED: tl.constexpr):  # type: ignore[no-untyped-def]
    slot = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, PADDED)
    inside = at < WIDTH
    target = (slot * capacity + tl.load(lengths + slot)) * WIDTH + at
    tl.store(keys + target, tl.load(key + slot * WIDTH + at, mask=inside), mask=inside)
    tl.store(values + target, tl.load(value + slot * WIDTH + at, mask=inside), mask=inside)


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _attend(  # type: ignore[no-untyped-def]
    query,
    keys,
    values,
    lengths,
    context,
    scale,
    capacity,
    GROUPS: tl.constexpr,
    HEADS: tl.constexpr,
    ROWS: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    slot, group = tl.program_id(0).to(tl.int64), tl.program_id(1)
    length = tl.load(lengths + slot).to(tl.int32) + 1
    head, channel = tl.arange(0, ROWS), tl.arange(0, SIZE)
    here = head[:, None] < HEADS
    at = ((slot * GROUPS + group) * HEADS + head)[:, None] * SIZE + channel[None, :]
    q = tl.load(query + at, mask=here, other=0.0)
    largest = tl.full([ROWS], -float("inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    summed = tl.zeros([ROWS, SIZE], tl.float32)
    base = slot * capacity * GROUPS * SIZE + group * SIZE
    for start in range(0, length, BLOCK):
        place = start + tl.arange(0, BLOCK)
        inside = place < length
        where = base + place.to(tl.int64)[:, None] * (GROUPS * SIZE) + channel[None, :]
        k = tl.load(keys + where, mask=inside[:, None], other=0.0)
        v = tl.load(values + where, mask=inside[:, None], other=0.0)
        score = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
        score = tl.where(inside[None, :], score, -float("inf"))
        larger = tl.maximum(largest, tl.max(score, 1))
        share = tl.exp(score - larger[:, None])
        shrink = tl.exp(largest - larger)
        total = total * shrink + tl.sum(share, 1)
        seen = tl.dot(share.to(v.dtype), v, input_precision=PRECISION)
        summed = summed * shrink[:, None] + seen
        largest = larger
    tl.store(context + at, (summed / total[:, None]).to(context.dtype.element_ty), mask=here)


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    lengths: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """Write a token's key and value behind each slot's, and attend to all that are there.

    Args:
        query: (1, n, H, D).
        key, value: (1, n, G, D).
        keys, values: (N, C, G, D) contiguous, changed in place.
        lengths: (N,) int64, tokens that are there already.
        scale: of the products of queries and keys.

    Returns:
        (1, n, H D) in the dtype of `query`; sums are made in float32.
    """
    _, rows, heads, size = query.shape
    _, capacity, groups, _ = keys.shape
    query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
    width = groups * size
    _write[(rows,)](
        key,
        value,
        keys,
        values,
        lengths,
        capacity,
        WIDTH=width,
        PADDED=triton.next_power_of_2(width),
        num_warps=1,
    )
    context = torch.empty_like(query)
    _attend[(rows, groups)](
        query,
        keys,
        values,
        lengths,
        context,
        scale,
        capacity,
        GROUPS=groups,
        HEADS=heads // groups,
        ROWS=max(_LEAST_ROWS, triton.next_power_of_2(heads // groups)),
        SIZE=size,
        BLOCK=BLOCK,
        PRECISION="ieee" if query.dtype == torch.float32 else "tf32",
        num_warps=4,
        num_stages=3,
    )
    return context.view(1, rows, heads * size)
