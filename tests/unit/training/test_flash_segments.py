"""What a GPU's attention over segments is called with; a stand-in for its kernel answers here."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import varlen

from training.compat import activate

activate()

from megatron.core.transformer.enums import AttnMaskType  # noqa: E402

from training.model import attention  # noqa: E402

ROWS, LENGTH, HEADS, SIZE = 2, 12, 4, 8
#: no segment crosses the end of a row
BOUNDARIES = torch.tensor([0, 5, 12, 13, 20, 24], dtype=torch.int32)
LONGEST = 7


def attend(query: Any, key: Any, value: Any, starts: Any, longest: Any, is_causal: bool) -> Any:
    """Segment after segment, for what torch's kernel takes: (places, heads, size), contiguous."""
    assert all(x.is_contiguous() and x.shape[0] == ROWS * LENGTH for x in (query, key, value))
    assert query.shape[1] == key.shape[1] == value.shape[1]
    assert starts.dtype == torch.int32
    assert type(longest) is int
    assert longest >= starts.diff().max()
    parts = []
    for start, stop in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        one = (x[start:stop].transpose(0, 1) for x in (query, key, value))
        parts.append(F.scaled_dot_product_attention(*one, is_causal=is_causal).transpose(0, 1))
    return torch.cat(parts)


def of_torch_210(q, k, v, starts, starts_k, longest, longest_k, is_causal=False):
    """Knows neither windows nor grouped heads."""
    assert starts is starts_k
    assert longest == longest_k
    return attend(q, k, v, starts, longest, is_causal)


def of_torch_211(
    q, k, v, starts, starts_k, longest, longest_k, *, window_size=(-1, -1), enable_gqa=False
):
    """Causal is a window without an end on the left; heads are grouped only where it is said."""
    assert starts is starts_k
    assert longest == longest_k
    assert (k.shape[1] != q.shape[1]) == enable_gqa
    assert window_size in ((-1, -1), (-1, 0))
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    return attend(q, k, v, starts, longest, window_size == (-1, 0))


@pytest.mark.parametrize("kernel", [of_torch_210, of_torch_211])
@pytest.mark.parametrize("mask", [AttnMaskType.causal, AttnMaskType.no_mask])
@pytest.mark.parametrize("groups", [HEADS, 2])
@pytest.mark.parametrize("bound", [None, LONGEST, 10 * LENGTH])
def test_the_kernel_gets_what_it_takes(monkeypatch, kernel, mask, groups, bound):
    monkeypatch.setattr(varlen, "varlen_attn", kernel)
    attention.varlen_parameters.cache_clear()
    config = SimpleNamespace(context_parallel_size=1)
    module = attention.SegmentedAttention(config, 1, mask, "self")  # type: ignore[arg-type]
    module.max_segment_length = bound
    generator = torch.Generator().manual_seed(0)
    inputs = [
        torch.randn(LENGTH, ROWS, heads, SIZE, generator=generator, requires_grad=True)
        for heads in (HEADS, groups, groups)
    ]
    expected = module(*inputs, BOUNDARIES)
    got = module._flash_segments(*inputs, BOUNDARIES)
    attention.varlen_parameters.cache_clear()
    torch.testing.assert_close(got, expected)
    scale = torch.randn(expected.shape, generator=generator)
    for ours, theirs in zip(
        torch.autograd.grad((got * scale).sum(), inputs),
        torch.autograd.grad((expected * scale).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)
