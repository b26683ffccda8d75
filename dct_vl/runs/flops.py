"""FLOPs of a training step, and the share of the device's peak that they are (MFU).

One multiply-add is 2 FLOPs. The forward pass is

    ViT        2 · parameters · cells    + 4 · layers · width · Σ segment²      (or Σ window²)
    merger     2 · parameters · tokens that it makes
    LLM        2 · parameters · tokens   + 4 · layers · width · ½ Σ sample²     (causal: half)
    output     2 · width · vocabulary · tokens through the output layer
    front end  what `FrontEnd.flops_per_cell` says

with the layer formulas of `dct_tokenizer.cost`. The backward pass costs twice the forward pass, one
matrix product for the gradient of the input and one for that of the weight: the well-known
6 · parameters · tokens in all. Parts that are frozen cost less: forward plus the input's gradient
(factor 2) where something before them is trained, forward alone (factor 1) where nothing is. The
attention of a frozen part costs 3 or 1 likewise; it has no weights to save on. The front end has no
input gradient, and its fixed basis no gradient at all. Padding is not counted, nor recomputation,
nor the optimizer: MFU is useful work over time, as in PaLM (arXiv 2204.02311, appendix B).
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch

from dct_tokenizer import build_tokenizer
from dct_tokenizer.cost import ModelShape, llm_layer_flops, merger_flops, vit_layer_flops
from dct_vl.runs.config.schema import LoraConfig
from dct_vl.runs.config.tuning import PARTS, adapted_linears

#: dense bf16 FLOP/s by the words of a device's name, first match; from NVIDIA's data sheets
_PEAKS: tuple[tuple[frozenset[str], float], ...] = tuple(
    (frozenset(words.split()), peak)
    for words, peak in (
        ("GB200", 2.5e15),
        ("B200", 2.25e15),
        ("GH200", 989e12),
        ("H200", 989e12),
        ("H100 PCIE", 756e12),
        ("H100 NVL", 835e12),
        ("H100", 989e12),
        ("H800", 989e12),
        ("H20", 148e12),
        ("A100", 312e12),
        ("A800", 312e12),
        ("L40S", 362e12),
        ("L40", 181e12),
        ("L4", 121e12),
        ("A40", 149.7e12),
        ("A10", 125e12),
        ("A6000", 154.8e12),
        ("4090", 165.2e12),
        ("3090", 71e12),
    )
)


def peak_flops(device_name: str) -> float | None:
    """Dense bf16 FLOP/s of a device by the name that torch gives it; None where unknown."""
    words = frozenset(re.findall(r"[A-Z0-9]+", device_name.upper()))
    return next((peak for wanted, peak in _PEAKS if wanted <= words), None)


def device_peak_flops() -> float | None:
    """`peak_flops` of this process's device; None on the CPU."""
    return peak_flops(torch.cuda.get_device_name()) if torch.cuda.is_available() else None


@dataclass(frozen=True, kw_only=True)
class StepWork:
    """What a step goes through, summed over its samples, padding left out."""

    num_cells: float
    #: Σ length² over the ViT's attention segments
    cell_pairs: float
    #: likewise over the windows of Qwen2.5-VL's ViT
    window_pairs: float = 0.0
    #: tokens of the language model, text and visual
    num_tokens: float
    #: Σ length² over the samples
    token_pairs: float
    #: tokens whose logits are needed
    num_output_tokens: float


@dataclass(frozen=True, kw_only=True)
class StepFlops:
    """FLOPs of steps of one model. The `trains_` flags say which parts have gradients."""

    shape: ModelShape
    vocab_size: int
    #: FLOPs a cell of the front end's fixed transforms, and of its trainable weight
    front_end_fixed: float
    front_end_weight: float
    trains_front_end: bool = True
    trains_vit: bool = True
    trains_merger: bool = True
    trains_llm: bool = True
    #: adapters sit in the tower's layers: gradients pass through frozen ones too
    vit_adapters: bool = False
    llm_adapters: bool = False

    def of(self, work: StepWork) -> float:
        """Forward and backward FLOPs."""
        front_end = self.front_end_fixed + self.front_end_weight * (1 + self.trains_front_end)
        total = front_end * work.num_cells
        upstream = self.trains_front_end
        # matrix products and attention apart, for their factors differ where a part is frozen
        for trained, adapters, products, attention in (
            (
                self.trains_vit,
                self.vit_adapters,
                vit_layer_flops(self.shape, work.num_cells, 0),
                vit_layer_flops(self.shape, 0, work.cell_pairs, work.window_pairs),
            ),
            (self.trains_merger, False, merger_flops(self.shape, work.num_cells), 0.0),
            (
                self.trains_llm,
                self.llm_adapters,
                llm_layer_flops(self.shape, work.num_tokens, 0)
                + 2.0 * self.shape.llm_width * self.vocab_size * work.num_output_tokens,
                llm_layer_flops(self.shape, 0, work.token_pairs / 2),
            ),
        ):
            through = trained or adapters or upstream
            total += (1 + through + trained) * products + (3 if through else 1) * attention
            upstream = through
        return total


def step_flops(
    config: Any, trained: Collection[str] = PARTS, *, lora: LoraConfig | None = None
) -> StepFlops:
    """The counter of a model.

    Args:
        config: a `TokenizerQwen2VLConfig`. Its front end is counted as for stills.
        trained: parts whose own weights are trained.
        lora: where adapters sit, whose own products, of a small rank, are not counted.
    """
    front_end = build_tokenizer(config.vision_transformer_config.tokenizer).front_end(1)
    language, vision = config.language_transformer_config, config.vision_transformer_config
    shape = ModelShape(
        vit_layers=vision.num_layers,
        vit_width=vision.hidden_size,
        vit_mlp=vision.ffn_hidden_size,
        vit_gated=vision.gated_linear_unit,
        vit_window=getattr(vision, "window_side", None),
        vit_full_layers=len(getattr(vision, "fullatt_block_indexes", ())),
        llm_layers=language.num_layers,
        llm_width=language.hidden_size,
        llm_mlp=language.ffn_hidden_size,
        heads=language.num_attention_heads,
        kv_heads=language.num_query_groups,
        head_dim=language.kv_channels or language.hidden_size // language.num_attention_heads,
    )
    # linear in the width of the embedding: what is left at width 0 is the fixed transforms
    fixed = front_end.flops_per_cell(0, still=True)
    whole = front_end.flops_per_cell(vision.hidden_size, still=True)
    return StepFlops(
        shape=shape,
        vocab_size=language.vocab_size,
        front_end_fixed=fixed,
        front_end_weight=whole - fixed,
        trains_front_end="front_end" in trained,
        trains_vit="vision" in trained,
        trains_merger="projector" in trained,
        trains_llm="language" in trained,
        vit_adapters=bool(lora and adapted_linears(lora, "vision_model", vision.num_layers)),
        llm_adapters=bool(lora and adapted_linears(lora, "language_model", language.num_layers)),
    )
