"""Plans against what is really cut, and positions against transformers' own."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Qwen2VLConfig
from transformers.models.qwen2_vl.modeling_qwen2_vl import (
    Qwen2VisionTransformerPretrainedModel,
    Qwen2VLForConditionalGeneration,
)

from dct_tokenizer import PlanError, build_tokenizer, list_presets

VISION_START, IMAGE, VIDEO, TEXT = 7, 5, 6, 1


@pytest.fixture(scope="module")
def hf_model():
    vision = {"depth": 1, "embed_dim": 16, "hidden_size": 16, "num_heads": 2, "mlp_ratio": 1}
    config = Qwen2VLConfig(
        vocab_size=10,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        vision_config=vision,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=VISION_START,
        rope_scaling={"type": "mrope", "mrope_section": [1, 1, 2]},
    )
    return Qwen2VLForConditionalGeneration(config)


@pytest.mark.parametrize("preset", ["pixel", "pixel28", "dct14", "dct28_420", "dct21_420"])
@pytest.mark.parametrize(("height", "width", "frames"), [(200, 333, 1), (90, 57, 5), (60, 900, 8)])
def test_positions_equal_transformers_on_the_same_grid(hf_model, preset, height, width, frames):
    plan = build_tokenizer(preset, min_pixels=3136, max_pixels=200_000).plan(height, width, frames)
    grid = torch.tensor([plan.grid_thw])
    token = IMAGE if frames == 1 else VIDEO
    ids = torch.tensor([[TEXT, VISION_START, *[token] * plan.num_llm_tokens, TEXT, TEXT]])
    grids = {"image_grid_thw": grid} if frames == 1 else {"video_grid_thw": grid}
    theirs, _ = hf_model.get_rope_index(ids, **grids)
    media = theirs[:, 0, 2:-2].T.numpy()
    assert np.array_equal(plan.mrope_positions, media - 2)
    assert plan.mrope_extent == theirs[0, 0, -2].item() - 2

    visual: Qwen2VisionTransformerPretrainedModel = hf_model.visual
    rope = visual.rot_pos_emb(grid)
    frequencies = visual.rotary_pos_emb.inv_freq
    ours = torch.tensor(plan.vit_positions)[:, :, None] * frequencies
    torch.testing.assert_close(ours.flatten(1), rope)


@pytest.mark.parametrize(("preset", "step"), [("dct14_t4", 2), ("dct14_t8", 4), ("dct14_t16", 8)])
def test_longer_cells_keep_the_time_scale_of_stock_cells(preset, step):
    stock = build_tokenizer("pixel").plan(56, 56, 32)
    plan = build_tokenizer(preset).plan(56, 56, 32)
    assert sorted(set(plan.mrope_positions[:, 0])) == list(range(0, 16, step))
    assert plan.mrope_extent == stock.mrope_extent == 16
    assert plan.num_llm_tokens * step == stock.num_llm_tokens


@settings(max_examples=30, deadline=None)
@given(
    preset=st.sampled_from(list_presets()),
    height=st.integers(4, 700),
    width=st.integers(4, 700),
    frames=st.sampled_from([1, 1, 2, 3]),
)
def test_plan_equals_what_is_cut(preset, height, width, frames):
    tokenizer = build_tokenizer(preset, min_pixels=784, max_pixels=60_000)
    if preset == "pixel_downscale":
        frames = min(frames, 2)
    picture = np.random.default_rng(height).integers(0, 256, (frames, height, width, 3), np.uint8)
    before = tokenizer.plan(height, width, frames)
    plan = tokenizer.refine(picture, before)
    cells = tokenizer.cells(picture, plan)
    assert plan.num_llm_tokens <= before.num_llm_tokens
    assert plan.num_cells == before.num_cells or not tokenizer.counts_from_header
    assert tokenizer.content_dependent or plan is before
    assert cells.shape == (plan.num_cells, *plan.cell_shape)
    assert cells.numel() == plan.wire_bytes
    assert cells.dtype == torch.uint8
    assert plan.vit_positions.shape == (plan.num_cells, 2)
    assert plan.vit_positions.dtype == np.float32
    assert plan.mrope_positions.shape == (plan.num_llm_tokens, 3)
    assert plan.mrope_positions.dtype == np.int64
    assert plan.mrope_extent > plan.mrope_positions.max()
    assert plan.vit_cu_seqlens.dtype == np.int32
    assert plan.vit_cu_seqlens[0] == 0
    assert plan.vit_cu_seqlens[-1] == plan.num_cells
    assert len(plan.vit_cu_seqlens) == plan.grid_thw[0] + 1
    if plan.token_boxes is None:
        assert (np.diff(plan.vit_cu_seqlens) == np.prod(plan.grid_thw[1:])).all()
    again = pickle.loads(pickle.dumps(plan))
    assert again == plan
    assert hash(again) == hash(plan)


def test_plans_that_differ_are_not_equal():
    tokenizer = build_tokenizer("pixel")
    assert tokenizer.plan(56, 84) != tokenizer.plan(84, 56)
    assert tokenizer.plan(56, 84) != "a plan"


def test_four_times_fewer_tokens_with_double_cells():
    stock, double = (build_tokenizer(name).plan(448, 672) for name in ("pixel", "dct28_420"))
    assert stock.num_llm_tokens == 4 * double.num_llm_tokens
    assert stock.wire_bytes == double.wire_bytes == 448 * 672 * 3


def test_pixel_downscale_has_the_reference_grid_on_any_picture():
    options = {"min_pixels": 784, "max_pixels": 43_904}
    control = build_tokenizer("pixel_downscale", **options)
    reference = build_tokenizer("dct28_420", **options)
    for size in [(333, 500), (56, 900), (1000, 30)]:
        ours, theirs = control.plan(*size), reference.plan(*size)
        assert ours.grid_thw == theirs.grid_thw
        assert (ours.height * 2, ours.width * 2) == (theirs.height, theirs.width)


def test_cached_position_arrays_cannot_be_changed_by_a_caller():
    plan = build_tokenizer("pixel").plan(56, 56)
    with pytest.raises(ValueError):
        plan.vit_positions[0] = 1


def test_a_clip_of_no_frames_is_refused():
    with pytest.raises(PlanError, match="0 frames"):
        build_tokenizer("pixel").plan(56, 56, 0)
