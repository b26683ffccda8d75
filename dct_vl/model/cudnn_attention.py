"""cuDNN's attention over segments laid end to end, through NVIDIA's `cudnn` package.

On Hopper it takes about half the time of the flash kernel that torch carries, the more so for
heads of 80 channels, which that kernel pads to 96. torch itself calls cuDNN for rows of equal
length only: for segments it would build the kernel anew in every call. Here the plans are kept.
They are made for rounded sizes, so that packs of any composition share a few of them; segments
that are not there have length 0.

Shape legend: T tokens of all segments, N segments, H query heads, G key/value heads, D head size.
Imported only where `cudnn` is.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from enum import IntEnum, auto
from typing import Any, TypeAlias

import cudnn
import torch

#: cuDNN ignores the distance of batch rows where there are ragged offsets
_UNUSED = 2**31 - 1


class NoPlanError(RuntimeError):
    """cuDNN has no attention for these sizes on this device."""


class _Uid(IntEnum):
    QUERY = auto()
    KEY = auto()
    VALUE = auto()
    OUT = auto()
    STATISTICS = auto()
    GRAD_OUT = auto()
    GRAD_QUERY = auto()
    GRAD_KEY = auto()
    GRAD_VALUE = auto()
    LENGTHS = auto()
    QUERY_OFFSETS = auto()
    KEY_OFFSETS = auto()
    STATISTICS_OFFSETS = auto()


@dataclass(frozen=True, kw_only=True)
class _Sizes:
    """What a plan is made for."""

    segments: int
    longest: int
    tokens: int
    heads: int
    groups: int
    head_size: int
    dtype: torch.dtype
    is_causal: bool
    scale: float
    device: int


#: lengths and offsets of a pack's segments: int32 on the device, N or N+1 by (1, 1, 1)
_Segments: TypeAlias = dict[_Uid, torch.Tensor]


def round_up(number: int, least: int) -> int:
    """To a power of two, `least` at least."""
    return max(least, 1 << (number - 1).bit_length())


@functools.cache
def _handle(device: int) -> Any:
    with torch.cuda.device(device):
        return cudnn.create_handle()


class _Graph:
    """A cuDNN graph of tensors over ragged segments, to which an operation is added."""

    def __init__(self, sizes: _Sizes) -> None:
        self.sizes = sizes
        kinds = {torch.bfloat16: cudnn.data_type.BFLOAT16, torch.float16: cudnn.data_type.HALF}
        self.graph = cudnn.pygraph(
            io_data_type=kinds[sizes.dtype],
            intermediate_data_type=cudnn.data_type.FLOAT,
            compute_data_type=cudnn.data_type.FLOAT,
            handle=_handle(sizes.device),
        )
        self.lengths = self._integers(_Uid.LENGTHS, sizes.segments)
        self.query_offsets = self._integers(_Uid.QUERY_OFFSETS, sizes.segments + 1)
        self.key_offsets = self._integers(_Uid.KEY_OFFSETS, sizes.segments + 1)
        self.statistics_offsets = self._integers(_Uid.STATISTICS_OFFSETS, sizes.segments + 1)
        self.options = {
            "attn_scale": sizes.scale,
            "use_padding_mask": True,
            "seq_len_q": self.lengths,
            "seq_len_kv": self.lengths,
            "use_causal_mask": sizes.is_causal,
        }

    def _integers(self, uid: _Uid, count: int) -> Any:
        return self.graph.tensor(
            dim=[count, 1, 1, 1],
            stride=[1, 1, 1, 1],
            data_type=cudnn.data_type.INT32,
            name=uid.name,
            uid=int(uid),
        )

    def _layout(self, uid: _Uid) -> tuple[list[int], list[int], Any]:
        """Dimensions (N, heads, longest, D), strides, and the ragged offsets."""
        sizes = self.sizes
        if uid is _Uid.STATISTICS:
            strides = [_UNUSED, 1, sizes.heads, 1]
            return [sizes.segments, sizes.heads, sizes.longest, 1], strides, self.statistics_offsets
        is_key = uid in (_Uid.KEY, _Uid.VALUE, _Uid.GRAD_KEY, _Uid.GRAD_VALUE)
        heads = sizes.groups if is_key else sizes.heads
        return (
            [sizes.segments, heads, sizes.longest, sizes.head_size],
            [_UNUSED, sizes.head_size, heads * sizes.head_size, 1],
            self.key_offsets if is_key else self.query_offsets,
        )

    def input(self, uid: _Uid) -> Any:
        """A tensor that the caller hands in."""
        dims, strides, offsets = self._layout(uid)
        kind = {"data_type": cudnn.data_type.FLOAT} if uid is _Uid.STATISTICS else {}
        return self.graph.tensor(
            dim=dims, stride=strides, ragged_offset=offsets, name=uid.name, uid=int(uid), **kind
        )

    def output(self, tensor: Any, uid: _Uid) -> None:
        """Let a tensor of the operation be one that the caller reads."""
        dims, strides, offsets = self._layout(uid)
        tensor.set_output(True).set_uid(int(uid)).set_dim(dims).set_stride(strides)
        tensor.set_ragged_offset(offsets)
        if uid is _Uid.STATISTICS:
            tensor.set_data_type(cudnn.data_type.FLOAT)

    def build(self) -> tuple[Any, int]:
        """The graph with its plan, and the bytes that it works in."""
        try:
            self.graph.validate()
            self.graph.build_operation_graph()
            self.graph.create_execution_plans([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
            self.graph.check_support()
            self.graph.build_plans()
        except (RuntimeError, cudnn.cudnnGraphNotSupportedError) as error:
            raise NoPlanError(
                f"cuDNN {cudnn.backend_version_string()} has no attention for {self.sizes}: {error}"
            ) from error
        return self.graph, self.graph.get_workspace_size()


@functools.lru_cache(maxsize=256)
def _forward_plan(sizes: _Sizes) -> tuple[Any, int]:
    made = _Graph(sizes)
    out, statistics = made.graph.sdpa(
        q=made.input(_Uid.QUERY),
        k=made.input(_Uid.KEY),
        v=made.input(_Uid.VALUE),
        generate_stats=True,
        **made.options,
    )
    made.output(out, _Uid.OUT)
    made.output(statistics, _Uid.STATISTICS)
    return made.build()


@functools.lru_cache(maxsize=256)
def _backward_plan(sizes: _Sizes) -> tuple[Any, int]:
    made = _Graph(sizes)
    grads = made.graph.sdpa_backward(
        q=made.input(_Uid.QUERY),
        k=made.input(_Uid.KEY),
        v=made.input(_Uid.VALUE),
        o=made.input(_Uid.OUT),
        dO=made.input(_Uid.GRAD_OUT),
        stats=made.input(_Uid.STATISTICS),
        max_total_seq_len_q=sizes.tokens,
        max_total_seq_len_kv=sizes.tokens,
        **made.options,
    )
    wanted = (_Uid.GRAD_QUERY, _Uid.GRAD_KEY, _Uid.GRAD_VALUE)
    for tensor, uid in zip(grads, wanted, strict=True):
        made.output(tensor, uid)
    return made.build()


def _run(
    plan: tuple[Any, int], sizes: _Sizes, segments: _Segments, tensors: dict[_Uid, torch.Tensor]
) -> None:
    graph, num_bytes = plan
    handle = _handle(sizes.device)
    cudnn.set_stream(handle=handle, stream=torch.cuda.current_stream().cuda_stream)
    device = segments[_Uid.LENGTHS].device
    workspace = torch.empty(max(1, num_bytes), dtype=torch.uint8, device=device)
    pack = {int(uid): tensor for uid, tensor in (tensors | segments).items()}
    graph.execute(pack, workspace, handle=handle)


class _CudnnAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        segments: _Segments,
        sizes: _Sizes,
    ) -> torch.Tensor:
        out = torch.empty_like(query)
        statistics = query.new_empty(len(query), sizes.heads, 1, dtype=torch.float32)
        named = {_Uid.QUERY: query, _Uid.KEY: key, _Uid.VALUE: value, _Uid.OUT: out}
        _run(_forward_plan(sizes), sizes, segments, {**named, _Uid.STATISTICS: statistics})
        ctx.save_for_backward(query, key, value, out, statistics)
        ctx.segments, ctx.sizes = segments, sizes
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        saved = ctx.saved_tensors
        grads = tuple(torch.empty_like(tensor) for tensor in saved[:3])
        names = (_Uid.QUERY, _Uid.KEY, _Uid.VALUE, _Uid.OUT, _Uid.STATISTICS)
        named = dict(zip(names, saved, strict=True)) | {_Uid.GRAD_OUT: grad.contiguous()}
        wanted = (_Uid.GRAD_QUERY, _Uid.GRAD_KEY, _Uid.GRAD_VALUE)
        named |= dict(zip(wanted, grads, strict=True))
        _run(_backward_plan(ctx.sizes), ctx.sizes, ctx.segments, named)
        return *grads, None, None


#: of the latest boundaries, which all layers of a forward pass share
_latest: list[tuple[torch.Tensor, tuple[int, ...], _Segments]] = []


def _segments_of(boundaries: torch.Tensor, count: int, widths: tuple[int, int, int]) -> _Segments:
    for held, key, segments in _latest:
        if held is boundaries and key == (count, *widths):
            return segments
    missing = count + 1 - len(boundaries)
    ends = torch.cat((boundaries, boundaries[-1:].expand(missing))).view(-1, 1, 1, 1)
    offsets = (_Uid.QUERY_OFFSETS, _Uid.KEY_OFFSETS, _Uid.STATISTICS_OFFSETS)
    segments = {uid: ends * width for uid, width in zip(offsets, widths, strict=True)}
    segments[_Uid.LENGTHS] = ends.diff(dim=0).contiguous()
    # the towers have one kind each, windowed ones two
    _latest[:] = [(boundaries, (count, *widths), segments), *_latest[:3]]
    return segments


def covers(query: torch.Tensor) -> bool:
    """Whether cuDNN is asked for these queries, (..., D): half precision, Hopper or later."""
    size = query.shape[-1]
    return (
        query.is_cuda
        and query.numel() < 2**31  # offsets are int32
        and query.dtype in (torch.bfloat16, torch.float16)
        and size % 16 == 0
        and size <= 128
        and torch.cuda.get_device_capability(query.device) >= (9, 0)
    )


def segmented_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    boundaries: torch.Tensor,
    *,
    longest: int,
    is_causal: bool,
    scale: float,
) -> torch.Tensor:
    """Attention within segments.

    Args:
        query: (T, H, D), contiguous, of a kind that `covers` names.
        key, value: (T, G, D), contiguous.
        boundaries: (N+1,) int32 from 0 to T, on the device.
        longest: of the segments, or more.
        is_causal: no token sees those behind it.

    Returns:
        (T, H, D).

    Raises:
        NoPlanError: before anything is computed, also where only the gradient cannot be had.
    """
    tokens, heads, head_size = query.shape
    groups = key.shape[1]
    sizes = _Sizes(
        segments=round_up(len(boundaries) - 1, 8),
        longest=round_up(longest, 128),
        tokens=round_up(tokens, 1024),
        heads=heads,
        groups=groups,
        head_size=head_size,
        dtype=query.dtype,
        is_causal=is_causal,
        scale=scale,
        device=query.device.index,
    )
    if torch.is_grad_enabled() and query.requires_grad:
        _backward_plan(sizes)
    widths = (heads * head_size, groups * head_size, heads)
    segments = _segments_of(boundaries, sizes.segments, widths)
    result: torch.Tensor = _CudnnAttention.apply(query, key, value, segments, sizes)
    return result
