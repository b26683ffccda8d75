"""What the kernels of GPUs get that attend within segments; stand-ins for them answer here."""

from __future__ import annotations

import importlib
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import varlen

from dct_vl.compat import activate

activate()

from megatron.core.transformer.enums import AttnMaskType  # noqa: E402

from dct_vl.inputs.batch import Segments  # noqa: E402
from dct_vl.model import attention  # noqa: E402
from dct_vl.model.kv_cache import SlotCache  # noqa: E402

ROWS, LENGTH, HEADS, SIZE = 2, 12, 4, 8
#: no segment crosses the end of a row
BOUNDARIES = torch.tensor([0, 5, 12, 13, 20, 24], dtype=torch.int32)
LONGEST = 7
SEGMENTS = Segments(cu_seqlens=BOUNDARIES, longest=LONGEST)
CONFIG: Any = SimpleNamespace(context_parallel_size=1)


def draw_inputs(groups: int, rows: int = ROWS) -> list[torch.Tensor]:
    """Query, key and value."""
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(LENGTH, rows, heads, SIZE, generator=generator, requires_grad=True)
        for heads in (HEADS, groups, groups)
    ]


def assert_same(inputs: list[torch.Tensor], got: torch.Tensor, expected: torch.Tensor) -> None:
    """Values and gradients."""
    torch.testing.assert_close(got, expected)
    scale = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    for ours, theirs in zip(
        torch.autograd.grad((got * scale).sum(), inputs),
        torch.autograd.grad((expected * scale).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def attend(query: Any, key: Any, value: Any, starts: Any, longest: Any, is_causal: bool) -> Any:
    """Segment after segment, for what torch's kernel takes: (places, heads, size), contiguous."""
    assert all(x.is_contiguous() and x.shape[0] == starts[-1] for x in (query, key, value))
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
@pytest.mark.parametrize("bound", [LONGEST, LENGTH, 10 * LENGTH])
def test_the_kernel_gets_what_it_takes(monkeypatch, kernel, mask, groups, bound):
    monkeypatch.setattr(varlen, "varlen_attn", kernel)
    attention.varlen_parameters.cache_clear()
    module = attention.SegmentedAttention(CONFIG, 1, mask, "self")
    inputs = draw_inputs(groups)
    segments = Segments(cu_seqlens=BOUNDARIES, longest=bound)
    expected = module(*inputs, attention_bias=segments)
    got = module._flash_segments(*inputs, BOUNDARIES)
    attention.varlen_parameters.cache_clear()
    assert_same(inputs, got, expected)


class StandIn(torch.nn.Module):
    """Transformer Engine's attention as Megatron wraps it: packed (thd) or (S, B, heads, size)."""

    def __init__(self, config: Any, layer_number: int, **kwargs: Any) -> None:
        super().__init__()

    def forward(self, query, key, value, mask, mask_type, packed_seq_params=None):
        assert mask is None
        is_causal = mask_type == AttnMaskType.causal
        key, value = (x.repeat_interleave(HEADS // x.shape[-2], -2) for x in (key, value))
        if packed_seq_params is None:
            rows = (x.permute(1, 2, 0, 3) for x in (query, key, value))
            attended = F.scaled_dot_product_attention(*rows, is_causal=is_causal)
            return attended.permute(2, 0, 1, 3).flatten(2)
        given = packed_seq_params
        assert given.qkv_format == "thd"
        assert given.cu_seqlens_q is given.cu_seqlens_kv
        assert given.max_seqlen_q == given.max_seqlen_kv
        longest = given.max_seqlen_q
        return attend(query, key, value, given.cu_seqlens_q, longest, is_causal).flatten(1)


def with_stand_in(monkeypatch: pytest.MonkeyPatch, mask: AttnMaskType) -> torch.nn.Module:
    """Our attention on top of it."""
    from megatron.core.extensions import transformer_engine

    monkeypatch.setattr(transformer_engine, "TEDotProductAttention", StandIn)
    name = "dct_vl.model.te_attention"
    monkeypatch.delitem(sys.modules, name, raising=False)
    module = importlib.import_module(name).SegmentedTEAttention(CONFIG, 1, attn_mask_type=mask)
    del sys.modules[name]
    return module


@pytest.mark.parametrize("mask", [AttnMaskType.causal, AttnMaskType.no_mask])
@pytest.mark.parametrize(
    "segments",
    [None, *(Segments(cu_seqlens=BOUNDARIES, longest=bound) for bound in (LENGTH, LONGEST))],
    ids=["rows", "segments of any length", "segments"],
)
def test_transformer_engine_gets_what_it_takes(monkeypatch, mask, segments):
    module = with_stand_in(monkeypatch, mask)
    inputs = draw_inputs(2)
    own = attention.SegmentedAttention(CONFIG, 1, mask, "self")
    got = module(*inputs, attn_mask_type=mask, attention_bias=segments)
    assert got.is_contiguous()
    assert_same(inputs, got, own(*inputs, attention_bias=segments))


class NoPlanError(RuntimeError):
    """As of `dct_vl.model.cudnn_attention`."""


@pytest.fixture
def cudnn(monkeypatch):
    """A stand-in for `dct_vl.model.cudnn_attention`, preferred; `fails` lets it have no plan."""
    import dct_vl.model

    def segmented_attention(q, k, v, starts, *, longest, is_causal, scale):
        if made.fails:
            raise NoPlanError("cuDNN 9 has no attention for heads like these")
        assert scale == SIZE**-0.5
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
        return attend(q, k, v, starts, longest, is_causal)

    made = SimpleNamespace(
        covers=lambda query: query.shape[-1] == SIZE,
        segmented_attention=segmented_attention,
        NoPlanError=NoPlanError,
        fails=False,
    )
    monkeypatch.setattr(dct_vl.model, "cudnn_attention", made, raising=False)
    monkeypatch.setattr(varlen, "varlen_attn", of_torch_211)
    attention.varlen_parameters.cache_clear()
    attention.prefer_cudnn(True)
    yield made
    attention.prefer_cudnn(False)
    attention.varlen_parameters.cache_clear()


@pytest.mark.parametrize("mask", [AttnMaskType.causal, AttnMaskType.no_mask])
@pytest.mark.parametrize("groups", [HEADS, 2])
def test_cudnn_gets_what_it_takes(monkeypatch, cudnn, mask, groups):
    monkeypatch.setattr(varlen, "varlen_attn", None)
    module = attention.SegmentedAttention(CONFIG, 1, mask, "self")
    inputs = draw_inputs(groups)
    expected = module(*inputs, attention_bias=SEGMENTS)
    assert_same(inputs, module._flash_segments(*inputs, BOUNDARIES), expected)


def test_torchs_kernel_steps_in_where_cudnn_has_none(cudnn, capsys):
    module = attention.SegmentedAttention(CONFIG, 1, AttnMaskType.causal, "self")
    inputs = draw_inputs(2)
    expected = module(*inputs, attention_bias=SEGMENTS)
    cudnn.fails = True
    got = module._flash_segments(*inputs, BOUNDARIES)
    assert "heads like these; torch's flash attention is used" in capsys.readouterr().err
    assert_same(inputs, got, expected)
    module._flash_segments(*inputs, BOUNDARIES)
    assert not capsys.readouterr().err, "said once"


def test_cudnn_that_was_asked_for_fails_where_it_has_none(cudnn):
    module = attention.SegmentedAttention(CONFIG, 1, AttnMaskType.causal, "self")
    cudnn.fails = True
    attention.prefer_cudnn(True, required=True)
    with pytest.raises(NoPlanError, match="heads like these"):
        module._flash_segments(*draw_inputs(2), BOUNDARIES)


@pytest.mark.parametrize("rows", [1, ROWS])
@pytest.mark.parametrize("is_packed", [False, True], ids=["rows", "segments"])
@pytest.mark.parametrize("kernel", ["torch", "flash", "cudnn", "transformer engine", "cache"])
def test_what_comes_out_is_contiguous_also_where_there_is_one_row(
    request, monkeypatch, kernel, is_packed, rows
):
    """`is_contiguous` looks past dimensions of size 1; the choice of torch.matmul does not."""
    module: Any = attention.SegmentedAttention(CONFIG, 1, AttnMaskType.causal, "self")
    inputs = draw_inputs(2, rows)
    attended: Any = None
    if is_packed:
        attended = Segments.of([7, 5] * rows)
    if kernel in ("flash", "cudnn"):
        stand_in = request.getfixturevalue("cudnn")
        stand_in.fails = kernel == "flash"
        monkeypatch.setattr(module, "_attend", flash_segments_of(module, rows))
    elif kernel == "transformer engine":
        module = with_stand_in(monkeypatch, AttnMaskType.causal)
    elif kernel == "cache":
        # prompts in one row, then a step of as many slots
        attended = SlotCache(rows, LENGTH + 1, torch.device("cpu"))
        attended.begin_prompts(torch.arange(rows), Segments.of([LENGTH] * rows), LENGTH * rows)
        in_one_row = [x.transpose(0, 1).flatten(0, 1)[:, None] for x in inputs]
        outputs = [module(*in_one_row, attention_bias=attended)]
        attended.end_prompts()
        outputs.append(module(*(x[:1] for x in inputs), attention_bias=attended))
        shapes = [(LENGTH * rows, 1), (1, rows)]
    if kernel != "cache":
        outputs = [module(*inputs, attn_mask_type=AttnMaskType.causal, attention_bias=attended)]
        shapes = [(LENGTH, rows)]
    for (length, width), output in zip(shapes, outputs, strict=True):
        assert output.shape == (length, width, HEADS * SIZE)
        assert output.stride() == (width * HEADS * SIZE, HEADS * SIZE, 1)


def flash_segments_of(module: Any, rows: int) -> Any:
    """What runs on a CUDA device, where whole rows have a kernel of their own."""
    whole = torch.arange(rows + 1, dtype=torch.int32) * LENGTH

    def attend(query, key, value, boundaries, attn_mask_type):
        module.max_segment_length = LENGTH
        return module._flash_segments(
            query, key, value, whole if boundaries is None else boundaries
        )

    return attend
