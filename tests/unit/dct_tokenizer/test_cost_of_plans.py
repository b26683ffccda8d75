"""Counted FLOPs and bytes against figures known from elsewhere."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen2VLConfig
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VisionTransformerPretrainedModel,
)
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VisionTransformerPretrainedModel

from dct_tokenizer import TokenizerConfigError, build_tokenizer, list_presets
from dct_tokenizer.cost import MODELS, ModelShape, model_shape, plan_cost, window_pairs


def bill(preset: str, *size: int):
    tokenizer = build_tokenizer(preset)
    return plan_cost(tokenizer, tokenizer.plan(*size), MODELS["2b"])


def test_a_picture_of_1024_tokens():
    stock = bill("pixel", 896, 896)
    assert stock.num_llm_tokens == 1024
    assert stock.kv_bytes == 1024 * 28_672
    assert stock.total_flops == pytest.approx(10.9e12, rel=0.02)
    assert stock.vit_flops / stock.total_flops == pytest.approx(0.73, abs=0.01)
    assert 1 - bill("dct28_420", 896, 896).total_flops / stock.total_flops == pytest.approx(
        0.79, abs=0.015
    )
    assert 1 - bill("post_dct_half", 896, 896).total_flops / stock.total_flops == pytest.approx(
        0.19, abs=0.015
    )


def test_vit_flops_equal_torchs_own_count():
    """The formula, on a ViT of two layers, against what transformers' model executes."""
    shape = MODELS["2b"]
    small = {"depth": 2, "embed_dim": 64, "hidden_size": 48, "num_heads": 2, "mlp_ratio": 4}
    vit = Qwen2VisionTransformerPretrainedModel._from_config(
        Qwen2VLConfig(vision_config=small).vision_config, attn_implementation="eager"
    )
    tokenizer = build_tokenizer("pixel", min_pixels=784)
    plan = tokenizer.plan(112, 168)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        vit(torch.zeros(plan.num_cells, 1176), torch.tensor([plan.grid_thw]))
    model = type(shape)(
        vit_layers=2, vit_width=64, vit_mlp=256, llm_width=48, llm_mlp=1, heads=1, kv_heads=1
    )
    ours = plan_cost(tokenizer, plan, model).vit_flops
    embed = 2 * plan.num_cells * 1176 * 64
    assert counter.get_total_flops() - embed == pytest.approx(ours, rel=1e-6)


def test_flops_of_windows_equal_torchs_own_count():
    """Masks hide nothing from transformers' attention, so that the windows are whole pictures."""
    vit = Qwen2_5_VisionTransformerPretrainedModel._from_config(
        Qwen2_5_VLVisionConfig(
            depth=3,
            hidden_size=64,
            intermediate_size=96,
            num_heads=2,
            out_hidden_size=48,
            fullatt_block_indexes=[1],
        ),
        attn_implementation="eager",
    )
    tokenizer = build_tokenizer("pixel", min_pixels=784)
    shape = ModelShape(
        vit_layers=3,
        vit_width=64,
        vit_mlp=96,
        vit_gated=True,
        vit_window=8,
        vit_full_layers=1,
        llm_width=48,
        llm_mlp=1,
        heads=1,
        kv_heads=1,
    )
    plan = tokenizer.plan(112, 84)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        vit(torch.zeros(plan.num_cells, 1176), torch.tensor([plan.grid_thw]))
    embed = 2 * plan.num_cells * 1176 * 64
    found = plan_cost(tokenizer, plan, shape).vit_flops
    assert counter.get_total_flops() - embed == pytest.approx(found, rel=1e-6)
    # twelve by ten cells of a larger picture are four windows: 8 + 4 by 8 + 2
    plan = tokenizer.plan(168, 140)
    whole, windows = (12 * 10) ** 2, (64**2 + 32**2 + 16**2 + 8**2)
    less = plan_cost(tokenizer, plan, replace(shape, vit_window=None)).vit_flops
    less -= plan_cost(tokenizer, plan, shape).vit_flops
    assert less == pytest.approx(2 * 4 * 64 * (whole - windows))
    # where the squares are not known yet there are no more than fit a window
    plan = build_tokenizer("adaptive").plan(896, 896)
    assert window_pairs(plan, shape) == plan.num_cells * 64


@pytest.mark.parametrize("preset", list_presets())
@pytest.mark.parametrize("frames", [1, 2])
def test_front_end_flops_equal_torchs_own_count(preset, frames):
    tokenizer = build_tokenizer(preset)
    length = tokenizer.plan(112, 112, frames).cell_shape[0]
    shape = tokenizer.plan(112, 112, frames).cell_shape
    front_end = tokenizer.front_end(32)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        front_end(torch.zeros(5, *shape, dtype=torch.uint8))
    ours = 5 * front_end.flops_per_cell(32, still=length == 1)
    assert counter.get_total_flops() == pytest.approx(ours, rel=1e-3)


def test_unknown_models_are_refused():
    with pytest.raises(TokenizerConfigError, match="known: 2b"):
        model_shape("2bb")
