"""Windows of attention: transformers' on equal cells, a window's worth of picture on others."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VisionTransformerPretrainedModel as Reference,
)

from dct_tokenizer import build_tokenizer
from dct_tokenizer.windows import attention_windows

SIDE = 8
TOWER = SimpleNamespace(window_size=112, spatial_merge_size=2, patch_size=14, spatial_merge_unit=4)


def windows_of(plans, side=SIDE):
    lengths = np.concatenate([np.diff(plan.vit_cu_seqlens) for plan in plans])
    positions = torch.from_numpy(np.concatenate([plan.vit_positions for plan in plans]))
    boundaries = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)
    return attention_windows(positions, boundaries, side)


@given(
    sizes=st.lists(
        st.tuples(st.integers(20, 500), st.integers(20, 500), st.integers(1, 5)), min_size=1
    )
)
@settings(max_examples=30, deadline=None)
def test_equal_cells_have_the_windows_of_transformers(sizes):
    """Several pictures and clips, with rests of windows at both edges."""
    visual = build_tokenizer("pixel")
    plans = [visual.plan(*size) for size in sizes]
    order, boundaries = windows_of(plans)
    grids = torch.tensor([plan.grid_thw for plan in plans])
    wanted, edges = Reference.get_window_index(TOWER, grids)
    assert torch.equal(order, wanted)
    assert boundaries.tolist() == list(dict.fromkeys(edges))
    assert boundaries.dtype == torch.int32


@pytest.mark.parametrize("preset", ["dct28_420", "dct14_t4", "post_dct", "pixel_downscale"])
def test_windows_are_four_tokens_wide_in_the_tokenizers_own_grid(preset):
    plan = build_tokenizer(preset).plan(700, 900, 8)
    order, boundaries = windows_of([plan])
    assert sorted(order.tolist()) == list(range(plan.num_cells // 4))
    slices, rows, columns = plan.grid_thw
    assert len(boundaries) - 1 == slices * -(-rows // SIDE) * -(-columns // SIDE)
    assert boundaries.diff().max() == SIDE * SIDE


def test_a_window_of_unequal_squares_is_as_large_and_holds_fewer():
    """Noise in one half of the picture, nothing in the other."""
    pixels = np.full((1, 448, 448, 3), 128, dtype=np.uint8)
    pixels[:, :, :224] = np.random.default_rng(0).integers(0, 256, (1, 448, 224, 3))
    visual = build_tokenizer("adaptive_rms4")
    plan = visual.refine(pixels, visual.plan(448, 448))
    order, boundaries = windows_of([plan])
    assert len(boundaries) - 1 == 16
    assert set(boundaries.diff().tolist()) == {4, 64}
    for groups in order.split((boundaries.diff() // 4).tolist()):
        boxes = plan.token_boxes[groups.numpy().reshape(-1)]
        top, left = boxes[:, 1:3].min(axis=0)
        assert (boxes[:, 1:3] + boxes[:, 3:] <= (top + 112, left + 112)).all()
