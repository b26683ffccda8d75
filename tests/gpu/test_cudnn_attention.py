"""cuDNN's attention over segments gives what torch's flash kernel gives, and float32 SDPA."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

#: name → (lengths, query heads, key/value heads, channels of a head, causal)
CASES = {
    "pictures of one size": ((256,) * 16, 16, 16, 80, False),
    "pictures of many sizes": ((1000, 37, 4, 1300, 256, 777), 16, 16, 80, False),
    "windows": ((64,) * 200, 16, 16, 80, False),
    "samples of one length": ((512,) * 8, 12, 2, 128, True),
    "samples of many lengths": ((300, 5, 1, 900, 640), 12, 2, 128, True),
}


@pytest.fixture(scope="module")
def attention():
    from dct_vl.model.attention import have_cudnn_attention

    if not have_cudnn_attention():
        pytest.skip("no nvidia-cudnn-frontend, or no GPU of compute capability 9.0")
    from dct_vl.model import cudnn_attention

    return cudnn_attention


def in_float32(query, key, value, lengths, is_causal, scale):
    """Segment by segment."""
    outputs = []
    for q, k, v in zip(*(x.float().split(lengths) for x in (query, key, value)), strict=True):
        heads_first = (x.transpose(0, 1)[None] for x in (q, k, v))
        out = F.scaled_dot_product_attention(
            *heads_first, is_causal=is_causal, scale=scale, enable_gqa=True
        )
        outputs.append(out[0].transpose(0, 1))
    return torch.cat(outputs)


@pytest.mark.parametrize("slack", [1, 3])
@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients(attention, name, slack):
    """Also where the longest segment is said to be longer than it is, as after other packs."""
    lengths, heads, groups, size, is_causal = CASES[name]
    generator = torch.Generator("cuda").manual_seed(0)

    def draw(count):
        shape = (sum(lengths), count, size)
        drawn = torch.randn(shape, device="cuda", generator=generator)
        return drawn.bfloat16().requires_grad_()

    inputs = query, key, value = draw(heads), draw(groups), draw(groups)
    wanted = draw(heads).detach()
    ends = torch.tensor([0, *torch.tensor(lengths).cumsum(0)], dtype=torch.int32, device="cuda")
    assert attention.covers(query)
    got = attention.segmented_attention(
        query, key, value, ends, longest=slack * max(lengths), is_causal=is_causal, scale=size**-0.5
    )
    expected = in_float32(query, key, value, lengths, is_causal, size**-0.5)
    ours = torch.autograd.grad(got, inputs, wanted)
    theirs = torch.autograd.grad(expected, inputs, wanted.float())
    for one, other in zip((got, *ours), (expected, *theirs), strict=True):
        difference = (one.float() - other.float()).norm() / other.float().norm()
        assert difference < 1e-2, f"{difference:.1e}"


def test_packs_of_other_compositions_share_a_plan(attention):
    """A plan takes a tenth of a second to make."""
    attention._forward_plan.cache_clear()
    for lengths in ((500, 400, 100), (700, 290), (1000,), (125,) * 8):
        query = torch.randn(sum(lengths), 4, 64, device="cuda", dtype=torch.bfloat16)
        ends = torch.tensor([0, *torch.tensor(lengths).cumsum(0)], dtype=torch.int32, device="cuda")
        attention.segmented_attention(
            query, query, query, ends, longest=1000, is_causal=True, scale=0.125
        )
    assert attention._forward_plan.cache_info().misses == 1


def test_other_heads_are_left_to_torch(attention):
    for size, dtype in ((72, torch.bfloat16), (192, torch.bfloat16), (64, torch.float32)):
        assert not attention.covers(torch.empty(1, 1, size, device="cuda", dtype=dtype))
