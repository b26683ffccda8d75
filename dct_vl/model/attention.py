"""Core attention over segments, without Transformer Engine.

Shapes: S sequence, B micro batch, H query heads, G key/value heads, D head size, N segments of all
rows together.

Every layer gets what its tokens attend to as Megatron's `packed_seq_params`, from the block around
it, and the angles of explicit positions as `rotary_pos_emb`. Megatron's `SelfAttention` would cut
these angles anew at 0 for every segment, so `ExplicitSelfAttention` stands in its place.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import inspect
import sys
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core.transformer.attention import SelfAttention
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from packaging.version import Version

from dct_vl.inputs.batch import Segments
from dct_vl.model.context_parallel import attend_with_part_of_heads, context_group
from dct_vl.model.kv_cache import SlotCache

#: what the tokens of a forward pass attend to: their segment, earlier tokens too, or their row
Attended: TypeAlias = Segments | SlotCache | None

#: the first one whose attention takes `generate_stats`
CUDNN_FRONTEND = Version("1.13")


@functools.cache
def have_varlen_attention() -> bool:
    """True where this torch has `torch.nn.attention.varlen` (2.10 and later)."""
    return importlib.util.find_spec("torch.nn.attention.varlen") is not None


@functools.cache
def varlen_parameters() -> frozenset[str]:
    """Names of the parameters of `varlen_attn`, which changed between torch 2.10 and 2.13."""
    from torch.nn.attention.varlen import varlen_attn

    return frozenset(inspect.signature(varlen_attn).parameters)


@functools.cache
def have_cudnn_attention() -> bool:
    """True where NVIDIA's `cudnn` package and a device of the kind that it is faster on are.

    Containers hold older ones, too, whose attention takes other arguments.
    """
    try:
        found = importlib.metadata.version("nvidia-cudnn-frontend")
    except importlib.metadata.PackageNotFoundError:
        return False
    return (
        Version(found) >= CUDNN_FRONTEND
        and importlib.util.find_spec("cudnn") is not None
        and torch.cuda.is_available()
        and torch.cuda.get_device_capability() >= (9, 0)
    )


_state = {"cudnn": False, "required": False}


def prefer_cudnn(on: bool, *, required: bool = False) -> None:
    """Let packs attend with cuDNN in this process, or with torch's flash kernel.

    Args:
        on: with cuDNN, where it takes heads of the kind.
        required: fail where cuDNN turns out to have no kernel; otherwise torch's is used from then
            on, with a warning.
    """
    _state.update(cudnn=on, required=required)


class ExplicitSelfAttention(SelfAttention):
    """SelfAttention that leaves rotary angles as they are given.

    Megatron's hands `packed_seq_params` to the rotary embedding, and besides them only tensors to
    the core attention. Its slot for a bias, which no kernel here takes, reaches the core attention
    untouched, also through recomputation: `Attended` travels the last step in it.
    `CoreAttention` reads it there.
    """

    def forward(self, *args: Any, packed_seq_params: Attended = None, **kwargs: Any) -> Any:
        return super().forward(*args, **{**kwargs, "attention_bias": packed_seq_params})


class CoreAttention:
    """The forward pass of a core attention, whatever its kernel."""

    layer_number: int
    given_scale: float | None
    context_group: dist.ProcessGroup | None
    #: over whole sequences: query, key, value, boundaries as of `Segments`, and the kind of mask
    _attend: Callable[..., torch.Tensor]
    #: the longest segment so far, for the kernel's grid: a bound that only grows needs few plans
    max_segment_length = 0

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: None = None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: Attended = None,
        packed_seq_params: None = None,
    ) -> torch.Tensor:
        """Attend.

        Args:
            query: (S, B, H, D); with context parallelism this rank's part of S.
            key, value: (S, B, G, D).
            attention_mask, packed_seq_params: not supported.
            attn_mask_type: causal or full, as the layer spec says.
            attention_bias: no bias; see `ExplicitSelfAttention`.

        Returns:
            (S, B, H*D) in the dtype of `query`, contiguous, dimensions of size 1 included: with the
            strides that a transposition leaves them, torch multiplies by a weight without a
            gradient one token at a time. `.contiguous()` would not touch them.
        """
        if attention_mask is not None or packed_seq_params is not None:
            raise ValueError(f"{type(self).__name__} takes segments or a cache only")
        if isinstance(attention_bias, SlotCache):
            attended = attention_bias.attend(self.layer_number, query, key, value, self.given_scale)
            if attended is not None:
                return _laid_out(attended)
            attention_bias = attention_bias.segments
        boundaries = None
        if attention_bias is not None:
            boundaries = attention_bias.cu_seqlens
            if attention_bias.longest > self.max_segment_length:
                self.max_segment_length = attention_bias.longest
        attend = functools.partial(
            self._attend, boundaries=boundaries, attn_mask_type=attn_mask_type
        )
        return _laid_out(attend_with_part_of_heads(attend, query, key, value, self.context_group))


def _laid_out(context: torch.Tensor) -> torch.Tensor:
    _, rows, width = context.shape
    if context.stride() == (rows * width, width, 1):
        return context  # every further view is a node of the backward pass, in every layer
    # one row passes `contiguous` as it is; the view sets its strides
    return context.contiguous().view(context.shape)


def _rows_inside(context: torch.Tensor, rows: int) -> torch.Tensor:
    """(B*S, H, D), row after row → (S, B, H*D)."""
    length = len(context) // rows
    if rows == 1:
        return context.view(length, 1, -1)
    return context.view(rows, length, -1).transpose(0, 1)


class SegmentedAttention(CoreAttention, MegatronModule):
    """Scaled dot-product attention, causal or full, over whole rows or within segments.

    Uses torch's variable-length flash kernel for segments on CUDA in half precision and SDPA for
    everything else.

    Source: `megatron.core.transformer.dot_product_attention` for the call contract; Qwen2-VL's
    vision attention for the segments (one per temporal slice of an image).
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        attention_dropout: float | None = None,
        softmax_scale: float | None = None,
        cp_comm_type: str | None = None,
        pg_collection: Any = None,
    ) -> None:
        super().__init__(config=config)
        self.context_group = context_group(config)
        self.is_causal = attn_mask_type == AttnMaskType.causal
        self.given_scale = softmax_scale
        self.layer_number = layer_number

    def _attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        boundaries: torch.Tensor | None,
        attn_mask_type: AttnMaskType | None,
    ) -> torch.Tensor:
        if boundaries is None:
            return self._sdpa(query, key, value, mask=None)
        if (
            query.is_cuda
            and query.dtype in (torch.float16, torch.bfloat16)
            and have_varlen_attention()
        ):
            return self._flash_segments(query, key, value, boundaries)
        return self._sdpa(query, key, value, mask=self._block_mask(query, boundaries))

    def _sdpa(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        query, key, value = (x.permute(1, 2, 0, 3) for x in (query, key, value))  # B heads S D
        context = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            is_causal=self.is_causal and mask is None and query.shape[2] > 1,
            scale=self.given_scale,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        return context.permute(2, 0, 1, 3).flatten(2)

    def _flash_segments(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, boundaries: torch.Tensor
    ) -> torch.Tensor:
        length, rows, heads, size = query.shape
        longest = min(self.max_segment_length, length)
        # (S, B, heads, D) → (B*S, heads, D); free for B = 1
        q, k, v = (x.transpose(0, 1).flatten(0, 1).contiguous() for x in (query, key, value))
        if _state["cudnn"]:
            from dct_vl.model import cudnn_attention

            if cudnn_attention.covers(q):
                try:
                    attended = cudnn_attention.segmented_attention(
                        q,
                        k,
                        v,
                        boundaries,
                        longest=longest,
                        is_causal=self.is_causal,
                        scale=self.given_scale or size**-0.5,
                    )
                    return _rows_inside(attended, rows)
                except cudnn_attention.NoPlanError as error:
                    if _state["required"]:
                        raise
                    prefer_cudnn(False)
                    print(f"\nwarning: {error}; torch's flash attention is used", file=sys.stderr)
        from torch.nn.attention.varlen import varlen_attn

        known = varlen_parameters()
        options: dict[str, Any] = {}
        if self.given_scale is not None:
            options["scale"] = self.given_scale
        if self.is_causal:
            options |= {"is_causal": True} if "is_causal" in known else {"window_size": (-1, 0)}
        if k.shape[1] != heads:
            if "enable_gqa" in known:
                options["enable_gqa"] = True
            else:
                k, v = (x.repeat_interleave(heads // x.shape[1], 1) for x in (k, v))
        context = varlen_attn(q, k, v, boundaries, boundaries, longest, longest, **options)
        assert isinstance(context, torch.Tensor)
        return _rows_inside(context, rows)

    def _block_mask(self, query: torch.Tensor, boundaries: torch.Tensor) -> torch.Tensor:
        """(B, 1, S, S), True where two places share a segment (and, if causal, the key is not
        later).
        """
        length, rows = query.shape[:2]
        place = torch.arange(rows * length, device=query.device)
        segment = torch.searchsorted(boundaries.to(torch.long), place, right=True)
        segment = segment.view(rows, 1, length)
        mask = segment[..., :, None] == segment[..., None, :]
        return mask.tril() if self.is_causal else mask
