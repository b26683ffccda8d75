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
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import torch

from dct_tokenizer import VisualTokenizer
from dct_tokenizer.cost import ModelShape, llm_layer_flops, merger_flops, vit_layer_flops
from dct_vl.model.parts import PARTS, LoraConfig, Part, adapted_linears
from dct_vl.runs.model_sizes import ModelSizes

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
    #: likewise over the windows of Qwen2.5-VL's ViT; 0 for a ViT without windows
    window_pairs: float
    #: tokens of the language model, text and visual
    num_tokens: float
    #: Σ length² over the samples
    token_pairs: float
    #: tokens whose logits are needed
    num_output_tokens: float

    @classmethod
    def of_totals(cls, totals: Mapping[str, int]) -> StepWork:
        """The work of a step from its line in steps.jsonl, or from `StepMeter.totals`.

        Raises:
            KeyError: a line of an earlier version, which counted less.
        """
        return cls(
            num_cells=totals["num_cells"],
            cell_pairs=totals["num_cell_pairs"],
            window_pairs=totals["num_window_pairs"],
            num_tokens=totals["num_text_tokens"] + totals["num_visual_tokens"],
            token_pairs=totals["num_token_pairs"],
            num_output_tokens=totals["num_answer_tokens"],
        )


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
                vit_layer_flops(self.shape, work.num_cells, 0, 0),
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

    def forward(self, work: StepWork) -> float:
        """FLOPs of the forward pass alone, which is a step with nothing to train."""
        forward = replace(
            self,
            trains_front_end=False,
            trains_vit=False,
            trains_merger=False,
            trains_llm=False,
            vit_adapters=False,
            llm_adapters=False,
        )
        return forward.of(work)


def step_flops(
    sizes: ModelSizes,
    visual: VisualTokenizer,
    *,
    trained: Collection[Part] = PARTS,
    lora: LoraConfig | None = None,
) -> StepFlops:
    """The counter of a model.

    Args:
        visual: its tokenizer, whose front end is counted as for stills.
        trained: parts whose own weights are trained.
        lora: where adapters sit, whose own products, of a small rank, are not counted.
    """
    front_end = visual.front_end(1)
    shape = sizes.shape
    # linear in the width of the embedding: what is left at width 0 is the fixed transforms
    fixed = front_end.flops_per_cell(0, still=True)
    return StepFlops(
        shape=shape,
        vocab_size=sizes.vocab_size,
        front_end_fixed=fixed,
        front_end_weight=front_end.flops_per_cell(shape.vit_width, still=True) - fixed,
        trains_front_end="front_end" in trained,
        trains_vit="vision" in trained,
        trains_merger="projector" in trained,
        trains_llm="language" in trained,
        vit_adapters=bool(lora and adapted_linears(lora, "vision_model", shape.vit_layers)),
        llm_adapters=bool(lora and adapted_linears(lora, "language_model", shape.llm_layers)),
    )
