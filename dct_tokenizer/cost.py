"""What a plan costs: tokens, FLOPs of ViT and language model, KV cache and bytes on the wire.

Counts are of a prefill of the image alone, one multiply-add as 2 FLOPs. The linear layers are
2 x parameters per row; attention is 4 x width x length² a layer and segment, causal masks not
credited, as kernels that skip nothing would do it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from dct_tokenizer.base import VisualTokenizer
from dct_tokenizer.errors import TokenizerConfigError, nearest_first
from dct_tokenizer.geometry import MERGE
from dct_tokenizer.plan import Plan
from dct_tokenizer.windows import attention_windows


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """Sizes of a Qwen2-VL or Qwen2.5-VL model, as in its hub configuration."""

    vit_layers: int = 32
    vit_width: int = 1280
    #: Inner width of the ViT's MLP, of one half where it is gated.
    vit_mlp: int = 5120
    #: Gate and up in one matrix, norms without biases: Qwen2.5-VL.
    vit_gated: bool = False
    #: Side of an attention window in cells, and the layers that see whole slices all the same; None
    #: where all do.
    vit_window: int | None = None
    vit_full_layers: int = 0
    llm_layers: int = 28
    llm_width: int
    llm_mlp: int
    heads: int
    kv_heads: int
    head_dim: int = 128


_VIT_25: dict[str, Any] = {
    "vit_mlp": 3420,
    "vit_gated": True,
    "vit_window": 8,
    "vit_full_layers": 4,
}
#: https://huggingface.co/Qwen/Qwen2-VL-2B-Instruct and -7B-Instruct, config.json; 3b25 and 7b25 are
#: Qwen2.5-VL's.
MODELS = {
    "2b": ModelShape(llm_width=1536, llm_mlp=8960, heads=12, kv_heads=2),
    "7b": ModelShape(llm_width=3584, llm_mlp=18944, heads=28, kv_heads=4),
    "3b25": ModelShape(
        **_VIT_25, llm_layers=36, llm_width=2048, llm_mlp=11008, heads=16, kv_heads=2
    ),
    "7b25": ModelShape(**_VIT_25, llm_width=3584, llm_mlp=18944, heads=28, kv_heads=4),
}


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The cost of one image or clip."""

    num_cells: int
    num_llm_tokens: int
    #: FLOPs of the front end, fixed basis included.
    front_end_flops: float
    #: FLOPs of the ViT's layers and merger.
    vit_flops: float
    llm_flops: float
    #: Bytes of keys and values in bf16.
    kv_bytes: int
    wire_bytes: int

    @property
    def total_flops(self) -> float:
        return self.front_end_flops + self.vit_flops + self.llm_flops


def model_shape(name: str) -> ModelShape:
    """The sizes of a known model. Raises TokenizerConfigError for another name."""
    if name not in MODELS:
        raise TokenizerConfigError(f"unknown model {name!r}; known: {nearest_first(name, MODELS)}")
    return MODELS[name]


def vit_layer_flops(
    model: ModelShape, num_cells: float, pairs: float, window_pairs: float
) -> float:
    """Forward FLOPs of the ViT's layers.

    Args:
        num_cells: of all images.
        pairs: attended (query, key) pairs of a layer that sees whole slices, Σ segment².
        window_pairs: likewise of a layer that sees windows, Σ window²; see `window_pairs`.
    """
    width = model.vit_width
    layer = 4 * width * width + (3 if model.vit_gated else 2) * width * model.vit_mlp
    full = model.vit_layers if model.vit_window is None else model.vit_full_layers
    attended = full * pairs + (model.vit_layers - full) * window_pairs
    return 2.0 * model.vit_layers * layer * num_cells + 4.0 * width * attended


def window_pairs(plan: Plan, model: ModelShape) -> float:
    """Σ window² of a plan; an upper bound where its positions are known only after decoding."""
    if model.vit_window is None:
        return 0.0
    _, boundaries = attention_windows(
        torch.from_numpy(np.array(plan.vit_positions)),
        torch.from_numpy(np.array(plan.vit_cu_seqlens)),
        model.vit_window,
    )
    # cells stand at least a unit apart
    most = plan.num_cells * model.vit_window**2
    return min(float((boundaries.diff().double() ** 2).sum()), float(most))


def merger_flops(model: ModelShape, num_cells: float) -> float:
    """Forward FLOPs of the merger that makes one token of the language model from four cells."""
    merged = MERGE * MERGE * model.vit_width
    merger = merged * merged + merged * model.llm_width
    return 2.0 * merger * num_cells / (MERGE * MERGE)


def llm_layer_flops(model: ModelShape, num_tokens: float, pairs: float) -> float:
    """Forward FLOPs of the language model's layers, without embedding and output layer.

    `pairs`: attended (query, key) pairs, tokens² where a causal mask is not credited.
    """
    queries = model.heads * model.head_dim
    keys_values = 2 * model.kv_heads * model.head_dim
    block = model.llm_width * (2 * queries + keys_values) + 3 * model.llm_width * model.llm_mlp
    return 2.0 * model.llm_layers * block * num_tokens + 4.0 * model.llm_layers * queries * pairs


def plan_cost(tokenizer: VisualTokenizer, plan: Plan, model: ModelShape) -> Cost:
    """The cost of a plan of `tokenizer` under a model."""
    width = model.vit_width
    segments = np.diff(plan.vit_cu_seqlens).astype(np.float64)
    pairs = float((segments**2).sum())
    vit = vit_layer_flops(model, plan.num_cells, pairs, window_pairs(plan, model))
    vit += merger_flops(model, plan.num_cells)
    tokens = plan.num_llm_tokens
    llm = llm_layer_flops(model, tokens, tokens**2)
    keys_values = 2 * model.kv_heads * model.head_dim
    front_end = tokenizer.front_end(1).flops_per_cell(width, still=plan.cell_shape[0] == 1)
    return Cost(
        num_cells=plan.num_cells,
        num_llm_tokens=tokens,
        front_end_flops=front_end * plan.num_cells,
        vit_flops=vit,
        llm_flops=llm,
        kv_bytes=2 * model.llm_layers * keys_values * tokens,
        wire_bytes=plan.wire_bytes,
    )
