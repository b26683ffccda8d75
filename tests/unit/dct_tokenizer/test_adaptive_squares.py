"""Squares of several sizes: covering, counts, positions, and what is shown of them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.fft import dctn, idctn

from dct_tokenizer import build_tokenizer, quadtree


def texture_in_a_corner(height: int, width: int) -> np.ndarray:
    """A flat picture, uint8 (1, H, W, 3), with noise in its top left quarter."""
    picture = np.full((1, height, width, 3), 120, np.uint8)
    noise = np.random.default_rng(0).integers(0, 256, (height // 2, width // 2, 3), np.uint8)
    picture[0, : height // 2, : width // 2] = noise
    return picture


def refined(tokenizer, frames):
    plan = tokenizer.plan(*frames.shape[1:3], len(frames))
    return tokenizer.refine(frames, plan)


@settings(max_examples=25, deadline=None)
@given(
    height=st.integers(20, 500),
    width=st.integers(20, 500),
    frames=st.integers(1, 3),
    rule=st.sampled_from([{"budget": 0.25}, {"budget": 0.6}, {"threshold": 5.0}]),
)
def test_squares_cover_every_pixel_once(height, width, frames, rule):
    tokenizer = build_tokenizer({"name": "x", "family": "adaptive", **rule})
    picture = np.random.default_rng(1).integers(0, 256, (frames, height, width, 3), np.uint8)
    picture[:, : height // 2] = 90
    plan = refined(tokenizer, picture)
    covered = np.zeros((plan.grid_thw[0], plan.height, plan.width), int)
    for index, top, left, side in plan.token_boxes:
        covered[index, top : top + side, left : left + side] += 1
    assert (covered == 1).all()
    assert len({tuple(ids) for ids in plan.mrope_positions.tolist()}) == plan.num_llm_tokens
    assert (
        len({tuple(p) for p in plan.vit_positions[: plan.vit_cu_seqlens[1]].tolist()})
        == (plan.vit_cu_seqlens[1])
    )


@given(rows=st.integers(1, 40), columns=st.integers(1, 40), budget=st.floats(0.01, 1))
def test_budget_is_met_from_below_in_steps_of_three(rows, columns, budget):
    tokens = quadtree.budgeted_tokens(rows, columns, budget)
    allowed = budget * rows * columns
    everything_merged = rows * columns - 3 * (
        quadtree.complete_groups(rows, columns, 2) + quadtree.complete_groups(rows, columns, 4)
    )
    assert (rows * columns - tokens) % 3 == 0
    assert allowed - 3 <= tokens <= allowed + 1e-6 or tokens == everything_merged


def test_detail_gets_the_small_squares():
    picture = texture_in_a_corner(448, 448)
    for rule in ({"budget": 0.3}, {"threshold": 4.0}):
        tokenizer = build_tokenizer({"name": "x", "family": "adaptive", **rule})
        boxes = refined(tokenizer, picture).token_boxes
        in_noise = (boxes[:, 1] < 224) & (boxes[:, 2] < 224)
        assert (boxes[in_noise, 3] == 28).all()
        assert boxes[~in_noise, 3].min() >= 56


def test_under_a_full_budget_it_is_the_stock_grid():
    tokenizer = build_tokenizer({"name": "x", "family": "adaptive", "budget": 1.0})
    picture = texture_in_a_corner(280, 224)
    plan = refined(tokenizer, picture)
    stock_tokenizer = build_tokenizer("pixel")
    stock = stock_tokenizer.plan(280, 224)
    assert plan.num_cells == stock.num_cells
    assert np.array_equal(plan.vit_positions, stock.vit_positions)
    assert np.array_equal(plan.mrope_positions, stock.mrope_positions)
    assert plan.mrope_extent == stock.mrope_extent
    cells = tokenizer.cells(picture, plan)
    assert torch.equal(cells, stock_tokenizer.cells(picture, stock))


def test_the_cheapest_merge_comes_first():
    """Stripes that 56-pixel squares still hold and 112-pixel ones do not, beside faint noise."""
    tenth_band = 128 + 60 * np.cos(np.pi * (2 * np.arange(28) + 1) * 10 / 56)
    stripes = np.tile(tenth_band, 4)
    luma = np.concatenate([np.tile(stripes, (112, 1)), np.full((112, 112), 128.0)], axis=1)
    luma[:, 112:] += np.random.default_rng(0).normal(0, 3, (112, 112))
    picture = np.repeat(luma[None, :, :, None], 3, axis=-1).round().astype(np.uint8)
    for budget, sides in ((8 / 32, [56] * 8), (5 / 32, [56] * 4 + [112])):
        tokenizer = build_tokenizer({"name": "x", "family": "adaptive", "budget": budget})
        boxes = refined(tokenizer, picture).token_boxes
        assert sorted(boxes[:, 3]) == sides
        assert (boxes[boxes[:, 2] < 112, 3] == 56).all()


def test_a_quarter_is_the_number_of_tokens_of_28_pixel_cells():
    adaptive, double = build_tokenizer("adaptive"), build_tokenizer("dct28_420")
    for size in [(427, 640), (100, 900), (2000, 1500)]:
        ours, theirs = adaptive.plan(*size), double.plan(*size)
        assert ours.num_llm_tokens == theirs.num_llm_tokens
        assert (ours.height, ours.width) == (theirs.height, theirs.width)


def test_positions_are_centres():
    tokenizer = build_tokenizer({"name": "x", "family": "adaptive", "budget": 0.01})
    plan = refined(tokenizer, np.full((1, 112, 168, 3), 50, np.uint8))
    assert plan.token_boxes.tolist() == [[0, 0, 0, 112], [0, 0, 112, 56], [0, 56, 112, 56]]
    assert plan.vit_positions[:4].tolist() == [[1.5, 1.5], [1.5, 5.5], [5.5, 1.5], [5.5, 5.5]]
    assert plan.vit_positions[4].tolist() == [0.5, 8.5]
    assert plan.mrope_positions.tolist() == [[0, 1, 1], [0, 0, 4], [0, 2, 4]]


@pytest.mark.parametrize("span", [2, 4])
def test_error_and_low_pass_equal_scipys(span, photos):
    side = 14 * span
    frames = torch.from_numpy(photos[0][None, : 4 * side, : 6 * side].copy()).float()
    luma = frames.numpy()[0].astype(float) @ np.array([0.299, 0.587, 0.114])
    shown = np.zeros_like(luma)
    for top in range(0, 4 * side, side):
        for left in range(0, 6 * side, side):
            spectrum = dctn(luma[top : top + side, left : left + side], norm="ortho")
            spectrum[14:] = spectrum[:, 14:] = 0
            shown[top : top + side, left : left + side] = idctn(spectrum, norm="ortho")
    error = (luma - shown) ** 2
    expected = error.reshape(2, 2 * side, 3, 2 * side).sum((1, 3))
    np.testing.assert_allclose(
        quadtree.dropped_energy(quadtree.luma_of(frames), span), expected, rtol=1e-6
    )

    patches = quadtree.low_pass_patches(frames, span)
    enlarged = quadtree.enlarge_patches(patches, span)
    weights = torch.tensor([0.299, 0.587, 0.114])
    back = torch.einsum("rckab,k->racb", enlarged[0], weights).reshape(luma.shape)
    np.testing.assert_allclose(back, shown, atol=1e-2)


def test_decode_shows_the_picture_within_the_threshold(photos):
    tokenizer = build_tokenizer("adaptive_rms4")
    picture = photos[0][None]
    plan = refined(tokenizer, picture)
    stock = build_tokenizer("pixel").plan(*picture.shape[1:3])
    assert plan.num_llm_tokens < 0.8 * stock.num_llm_tokens
    decoded = tokenizer.decode(tokenizer.encode(tokenizer.cells(picture, plan)), plan)
    resized = Image.fromarray(picture[0]).resize((plan.width, plan.height), Image.BICUBIC)
    difference = (decoded[0].astype(float) - resized) @ np.array([0.299, 0.587, 0.114])
    for _, top, left, side in plan.token_boxes:
        rms = np.sqrt(np.mean(difference[top : top + side, left : left + side] ** 2))
        assert rms <= 4.5
    small = plan.token_boxes[:, 3] == 28
    assert small.any()
    assert not small.all()


def test_clips_are_cut_slice_by_slice(clip):
    frames = clip[:4].copy()
    frames[2:] = 77
    tokenizer = build_tokenizer(
        {"name": "x", "family": "adaptive", "threshold": 3.0, "min_pixels": 1}
    )
    plan = refined(tokenizer, frames)
    per_slice = np.diff(plan.vit_cu_seqlens)
    assert per_slice[0] > per_slice[1]
    decoded = tokenizer.decode(tokenizer.encode(tokenizer.cells(frames, plan)), plan)
    assert decoded.shape == (4, plan.height, plan.width, 3)
    assert np.abs(decoded[2:].astype(int) - 77).max() <= 1


def test_an_unrefined_plan_is_refused():
    tokenizer = build_tokenizer("adaptive")
    frames = np.zeros((1, 56, 56, 3), np.uint8)
    with pytest.raises(ValueError, match="call refine"):
        tokenizer.cells(frames, tokenizer.plan(56, 56))


def test_the_control_of_a_budget_has_at_most_as_many_tokens():
    reference = build_tokenizer("adaptive")
    control = build_tokenizer("pixel_downscale", same_tokens_as="adaptive")
    for size in [(427, 640), (100, 900), (640, 427)]:
        ours, theirs = control.plan(*size), reference.plan(*size)
        assert 0.85 * theirs.num_llm_tokens <= ours.num_llm_tokens <= theirs.num_llm_tokens
        assert ours.height / ours.width == pytest.approx(theirs.height / theirs.width, rel=0.25)
