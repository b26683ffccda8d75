"""FLOPs of a step against figures known from elsewhere, and against torch's own count."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dct_tokenizer import build_tokenizer
from dct_tokenizer.cost import MODELS, plan_cost
from dct_vl.model.parts import LoraConfig, adapted_linears
from dct_vl.runs.flops import StepFlops, StepWork, peak_flops

LINEARS = ("linear_qkv", "linear_proj", "linear_fc1", "linear_fc2")
PIXEL_WEIGHT = 2 * 1280 * 588
QWEN2VL_2B = StepFlops(
    shape=MODELS["2b"], vocab_size=151936, front_end_fixed=0, front_end_weight=PIXEL_WEIGHT
)


def work(*, cells: int, text: int, output: int) -> StepWork:
    tokens = cells // 4 + text
    return StepWork(
        num_cells=cells,
        cell_pairs=cells**2,
        window_pairs=0,
        num_tokens=tokens,
        token_pairs=tokens**2,
        num_output_tokens=output,
    )


def test_a_step_is_three_prefills():
    """The picture of 1,024 tokens: 10.93 TFLOP forward, the causal half not taken off there."""
    tokenizer = build_tokenizer("pixel")
    plan = tokenizer.plan(896, 896)
    prefill = plan_cost(tokenizer, plan, MODELS["2b"]).total_flops
    assert prefill == pytest.approx(10.93e12, rel=1e-2)
    step = QWEN2VL_2B.of(work(cells=4096, text=0, output=0))
    causal_half = 3 * 2 * 28 * 1536 * 1024**2
    front_end = PIXEL_WEIGHT * 4096  # no gradient of the pixels
    assert step == pytest.approx(3 * prefill - causal_half - front_end, rel=1e-9)


def test_the_usual_formula():
    """6·N·T + attention, written out for 1,024 patches and 256 text tokens of Qwen2-VL-2B."""
    size = 28 * (1536 * (1536 + 2 * 256) + 1536 * 1536 + 3 * 1536 * 8960) + 1536 * 151936
    length, patches = 512, 1024
    llm = 6 * size * length + 6 * 28 * 1536 * length**2
    vit_size = 32 * (4 * 1280**2 + 2 * 1280 * 5120)
    vit = 6 * vit_size * patches + 12 * 32 * 1280 * patches**2
    merger = 6 * (5120**2 + 5120 * 1536) * patches // 4
    expected = llm + vit + merger + 2 * PIXEL_WEIGHT * patches
    counted = QWEN2VL_2B.of(work(cells=patches, text=256, output=length))
    assert counted == pytest.approx(expected, rel=1e-12)
    # 40.0 samples a second of these were measured as 0.374 of the H200's peak
    assert 40.0 * counted / 989e12 == pytest.approx(0.374, abs=2e-3)


def test_only_tokens_with_logits_count_for_the_output_layer():
    all_tokens = QWEN2VL_2B.of(work(cells=1024, text=256, output=512))
    answers = QWEN2VL_2B.of(work(cells=1024, text=256, output=100))
    assert all_tokens - answers == pytest.approx(412 * 6 * 1536 * 151936)


def test_frozen_parts_cost_less():
    sample = work(cells=1024, text=256, output=512)
    whole = QWEN2VL_2B.of(sample)
    no_llm = replace(QWEN2VL_2B, trains_llm=False).of(sample)
    frozen_vision = replace(QWEN2VL_2B, trains_vit=False, trains_front_end=False)
    no_vision = frozen_vision.of(sample)
    nothing = replace(frozen_vision, trains_merger=False, trains_llm=False).of(sample)
    # the frozen language model hands gradients on but has none of its own
    llm_products = 2 * 28 * (1536 * 3584 + 3 * 1536 * 8960) * 512
    llm_products += 2 * 1536 * 151936 * 512
    assert whole - no_llm == pytest.approx(llm_products, rel=1e-9)
    assert nothing < no_vision < no_llm < whole
    without_front_end = whole - 2 * PIXEL_WEIGHT * 1024
    assert nothing == pytest.approx(without_front_end / 3 + PIXEL_WEIGHT * 1024, rel=1e-9)


def test_adapters_of_the_language_model_ask_nothing_of_a_frozen_vit():
    """Worked out for one picture of 1,024 patches: the ViT and merger once, the rest as frozen."""
    sample = work(cells=1024, text=256, output=512)
    vit_layers = 2 * 32 * (4 * 1280**2 + 2 * 1280 * 5120) * 1024 + 4 * 32 * 1280 * 1024**2
    vision = vit_layers + 2 * (5120**2 + 5120 * 1536) * 256 + PIXEL_WEIGHT * 1024
    products = 2 * (28 * (1536 * 3584 + 3 * 1536 * 8960) + 1536 * 151936) * 512
    attention = 4 * 28 * 1536 * 512**2 / 2
    frozen = {f"trains_{part}": False for part in ("front_end", "vit", "merger", "llm")}
    counted = replace(QWEN2VL_2B, **frozen, llm_adapters=True).of(sample)
    assert counted == pytest.approx(vision + 2 * products + 3 * attention, rel=1e-12)
    # adapters in the ViT: gradients pass through all that follows
    both = replace(QWEN2VL_2B, **frozen, vit_adapters=True).of(sample)
    vit_attention = 4 * 32 * 1280 * 1024**2
    once = PIXEL_WEIGHT * 1024
    through = 2 * (vision - once - vit_attention + products) + 3 * (vit_attention + attention)
    assert both == pytest.approx(once + through, rel=1e-12)


@pytest.mark.parametrize(
    ("targets", "vision", "language"),
    [
        (LoraConfig().target_modules, {}, dict.fromkeys(LINEARS, 28)),
        (["linear_qkv"], {"linear_qkv": 32}, {"linear_qkv": 28}),
        (["*.self_attention.linear_qkv"], {"linear_qkv": 32}, {"linear_qkv": 28}),
        (["vision_model.decoder.layers.0.mlp.linear_fc1"], {"linear_fc1": 1}, {}),
        (["*.layers.1*.linear_fc2"], {"linear_fc2": 11}, {"linear_fc2": 11}),
    ],
)
def test_the_layers_with_adapters(targets, vision, language):
    lora = LoraConfig(target_modules=targets)
    assert adapted_linears(lora, "vision_model", 32) == vision
    assert adapted_linears(lora, "language_model", 28) == language


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H200", 989e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H20", 148e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L4", 121e12),
        ("Some Other Device", None),
    ],
)
def test_peaks_by_name(name, peak):
    assert peak_flops(name) == peak
