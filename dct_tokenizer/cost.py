"""What a plan costs: tokens, FLOPs of ViT and language model, KV cache and bytes on the wire.

Counts are of a prefill of the picture alone, one multiply-add as 2 FLOPs. The linear layers are
2 x parameters per row; attention is 4 x width x length² a layer and segment, causal masks not
credited, as kernels that skip nothing would do it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dct_tokenizer.base import VisualTokenizer
from dct_tokenizer.errors import TokenizerConfigError, nearest_first
from dct_tokenizer.geometry import MERGE
from dct_tokenizer.plan import Plan


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """Sizes of a Qwen2-VL model, as in its hub configuration."""

    vit_layers: int = 32
    vit_width: int = 1280
    vit_mlp: int = 5120
    llm_layers: int = 28
    llm_width: int
    llm_mlp: int
    heads: int
    kv_heads: int
    head_dim: int = 128


#: https://huggingface.co/Qwen/Qwen2-VL-2B-Instruct and -7B-Instruct, config.json.
MODELS = {
    "2b": ModelShape(llm_width=1536, llm_mlp=8960, heads=12, kv_heads=2),
    "7b": ModelShape(llm_width=3584, llm_mlp=18944, heads=28, kv_heads=4),
}


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The bill of one picture or clip."""

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
        """All of the prefill."""
        return self.front_end_flops + self.vit_flops + self.llm_flops


def model_shape(name: str) -> ModelShape:
    """The sizes of a known model. Raises TokenizerConfigError for another name."""
    if name not in MODELS:
        raise TokenizerConfigError(f"unknown model {name!r}; known: {nearest_first(name, MODELS)}")
    return MODELS[name]


def vit_layer_flops(model: ModelShape, num_cells: float, pairs: float) -> float:
    """Forward FLOPs of the ViT's layers. `pairs`: attended (query, key) pairs, Σ segment²."""
    width = model.vit_width
    layer = 4 * width * width + 2 * width * model.vit_mlp
    return 2.0 * model.vit_layers * layer * num_cells + 4.0 * model.vit_layers * width * pairs


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
    vit = vit_layer_flops(model, plan.num_cells, float((segments**2).sum()))
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
