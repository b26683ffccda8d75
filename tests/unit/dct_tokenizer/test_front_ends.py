"""Exact starts, whitening, and how the modules behave under casts, devices and gradients."""

import copy
import math

import numpy as np
import pytest
import torch
from scipy.fft import dctn, idctn
from torch.nn import functional as F

from dct_tokenizer import build_tokenizer, list_presets, preset_config
from dct_tokenizer.basis import CLIP_MEAN, CLIP_STD
from dct_tokenizer.front_end import resize_matrix
from dct_vl.inputs.cells import join_cells

BLOCK_PRESETS = [name for name in list_presets() if preset_config(name)["family"] == "block"]


def relative_error(ours: torch.Tensor, exact: torch.Tensor) -> float:
    return ((ours.double() - exact).norm() / exact.norm()).item()


def cut(preset: str, frames: np.ndarray, **options):
    tokenizer = build_tokenizer(preset, min_pixels=1, **options)
    plan = tokenizer.refine(frames, tokenizer.plan(*frames.shape[1:3], len(frames)))
    return tokenizer, plan, tokenizer.cells(frames, plan)


def normalised(cells: torch.Tensor) -> np.ndarray:
    """float64 (N, T', 3, B, B)."""
    mean, std = (np.array(v)[:, None, None] for v in (CLIP_MEAN, CLIP_STD))
    return (cells.numpy() / 255 - mean) / std


def ideal_low_pass(cells: np.ndarray, frames: int) -> np.ndarray:
    """float64 (N, 2, 3, 14, 14): cells of any size brought to stock size through scipy's DCT."""
    num_cells, _, _, size, _ = cells.shape
    clip = np.broadcast_to(cells, (num_cells, frames, 3, size, size))
    spectrum = dctn(clip, axes=(1, 3, 4), norm="ortho")
    known = min(14, size)
    kept = np.zeros((num_cells, 2, 3, 14, 14))
    kept[..., :known, :known] = spectrum[:, :2, :, :known, :known]
    gain = 14 / size * math.sqrt(2 / frames)
    return idctn(kept * gain, axes=(1, 3, 4), norm="ortho")


def conv(patches: np.ndarray, weight: torch.Tensor) -> torch.Tensor:
    """The pretrained embedding (N, O) in float64 of patches (N, 2, 3, 14, 14)."""
    volume = torch.from_numpy(patches.transpose(0, 2, 1, 3, 4).copy())
    return F.conv3d(volume, weight).flatten(1)


@pytest.mark.parametrize("whiten", [True, False])
@pytest.mark.parametrize("num_frames", [1, 16])
def test_dct14_starts_as_the_pixel_embedding(clip, pretrained, whiten, num_frames):
    tokenizer, _, cells = cut("dct14", clip[:num_frames], whiten=whiten)
    pixels = normalised(cells)
    exact = conv(np.broadcast_to(pixels, (len(pixels), 2, 3, 14, 14)), pretrained)
    assert relative_error(tokenizer.front_end(48, pretrained)(cells), exact) <= 1e-6


@pytest.mark.parametrize("preset", [p for p in BLOCK_PRESETS if p != "dct14_k10"])
@pytest.mark.parametrize("num_frames", [1, 16])
def test_every_preset_starts_as_the_embedding_of_the_ideal_low_pass(
    clip, pretrained, preset, num_frames
):
    tokenizer, _, cells = cut(preset, clip[:num_frames])
    patches = ideal_low_pass(normalised(cells), tokenizer.frames_per_cell)
    front_end = tokenizer.front_end(48, pretrained)
    assert relative_error(front_end(cells), conv(patches, pretrained)) <= 1e-6


def test_dct14_k10_starts_with_its_band_error(clip, pretrained):
    tokenizer, _, cells = cut("dct14_k10", clip[:1])
    pixels = ideal_low_pass(normalised(cells), 2)
    spectrum = dctn(pixels, axes=(3, 4), norm="ortho")
    spectrum[..., 10:, :] = spectrum[..., :, 10:] = 0
    exact = conv(idctn(spectrum, axes=(3, 4), norm="ortho"), pretrained)
    assert relative_error(tokenizer.front_end(48, pretrained)(cells), exact) <= 1e-6
    assert relative_error(exact, conv(pixels, pretrained)) > 1e-3


def test_dct28_420_starts_as_dct28_lp(photos, pretrained):
    outputs = []
    for preset in ("dct28_420", "dct28_lp"):
        tokenizer, _, cells = cut(preset, photos[0][None], max_pixels=200_000)
        outputs.append(tokenizer.front_end(48, pretrained)(cells))
    torch.testing.assert_close(outputs[0], outputs[1], atol=1e-6, rtol=1e-5)


def test_cells_smaller_than_a_patch_start_from_their_own_bands(clip, pretrained):
    config = {"name": "tiny", "family": "block", "cell": 7, "luma_keep": 7, "chroma_keep": 7}
    tokenizer, _, cells = cut(config, clip[:1])
    exact = conv(ideal_low_pass(normalised(cells), 2), pretrained)
    assert relative_error(tokenizer.front_end(48, pretrained)(cells), exact) <= 1e-6


def test_pixel28_on_an_enlarged_patch_is_the_stock_embedding_of_the_patch(pretrained):
    front_end = build_tokenizer("pixel28").front_end(48, pretrained)
    patches = torch.randn(5, 3, 2, 14, 14, dtype=torch.float64)
    enlarged = F.interpolate(patches.flatten(1, 2), size=28, mode="bilinear")
    ours = F.conv3d(enlarged.unflatten(1, (3, 2)), front_end.weight.double()).flatten(1)
    assert relative_error(ours, F.conv3d(patches, pretrained).flatten(1)) <= 1e-6
    assert resize_matrix(28).shape == (28, 14)


@pytest.mark.parametrize("preset", list_presets())
def test_a_still_equals_a_clip_of_equal_frames(clip, pretrained, preset):
    tokenizer, _, cells = cut(preset, clip[:1])
    frames = getattr(tokenizer, "frames_per_cell", 2)
    front_end = tokenizer.front_end(48, pretrained)
    repeated = cells.expand(-1, frames, -1, -1, -1)
    torch.testing.assert_close(front_end(cells), front_end(repeated), atol=3e-6, rtol=1e-5)


@pytest.mark.parametrize("preset", list_presets())
@pytest.mark.parametrize("num_frames", [1, 2])
def test_gradients_reach_every_column_and_only_parameters(clip, pretrained, preset, num_frames):
    tokenizer, _, cells = cut(preset, clip[:num_frames])
    front_end = tokenizer.front_end(48, pretrained)
    front_end(cells.float().requires_grad_()).square().sum().backward()
    gradient = front_end.weight.grad
    columns = gradient.abs().sum(0).flatten() > 0
    if num_frames == 1 and gradient.ndim == 2:
        per_band = front_end.bands.num_spatial
        assert columns[:per_band].all()
        assert not columns[per_band:].any()
    else:
        assert columns.float().mean() > 0.99
    assert (front_end.bias is None) or front_end.bias.grad.abs().min() > 0


@pytest.mark.parametrize("preset", list_presets())
@pytest.mark.parametrize("cast", ["bfloat16", "half"])
def test_casts_leave_the_fixed_half_in_float32(clip, pretrained, preset, cast):
    tokenizer, _, cells = cut(preset, clip[:1])
    front_end = tokenizer.front_end(48, pretrained)
    exact = front_end(cells)
    low = getattr(copy.deepcopy(front_end), cast)()
    buffers = dict(low.named_buffers())
    assert buffers
    for name, buffer in buffers.items():
        assert buffer.dtype == torch.float32
        assert torch.equal(buffer, front_end.get_buffer(name))
    assert low.weight.dtype == getattr(torch, cast)
    output = low(cells)
    assert output.dtype == low.weight.dtype
    assert relative_error(output, exact.double()) < 5e-3


def test_autocast_does_not_touch_the_front_end(clip, pretrained):
    tokenizer, _, cells = cut("dct28_420", clip[:1])
    front_end = tokenizer.front_end(48, pretrained)
    with torch.autocast("cpu", torch.bfloat16):
        output = front_end(cells)
    assert output.dtype == torch.float32
    assert torch.equal(output, front_end(cells))


@pytest.mark.parametrize("preset", list_presets())
def test_a_state_dict_carries_weights_and_statistics_only(pretrained, preset):
    tokenizer = build_tokenizer(preset)
    front_end = tokenizer.front_end(48, pretrained)
    state = front_end.state_dict()
    assert state.keys() <= {"weight", "bias", "mean", "std"}
    other = tokenizer.front_end(48)
    other.load_state_dict(state)
    cells = torch.randint(0, 256, (4, *tokenizer.plan(56, 56).cell_shape), dtype=torch.uint8)
    assert torch.equal(other(cells), front_end(cells))


def test_whitening_changes_the_parameters_and_not_the_output(photos, pretrained):
    cells, fronts = None, []
    for whiten in (True, False):
        tokenizer, _, cells = cut("dct28_420", photos[1][None], whiten=whiten, max_pixels=100_000)
        fronts.append(tokenizer.front_end(48, pretrained))
    white, plain = fronts
    assert not torch.allclose(white.weight, plain.weight)
    torch.testing.assert_close(white(cells), plain(cells), atol=2e-6, rtol=1e-5)


def test_reloading_a_pretrained_weight_into_a_half_precision_module(clip, pretrained):
    tokenizer, _, cells = cut("dct28_420", clip[:1])
    module = tokenizer.front_end(48).bfloat16()
    module.load_pretrained(pretrained.bfloat16())
    exact = tokenizer.front_end(48, pretrained.bfloat16())(cells)
    assert relative_error(module(cells), exact.double()) < 5e-3


def test_one_seed_gives_every_preset_the_same_random_start(clip):
    outputs = []
    for preset in ("pixel", "dct14"):
        tokenizer, _, cells = cut(preset, clip[:1])
        torch.manual_seed(0)
        outputs.append(tokenizer.front_end(32)(cells))
    torch.testing.assert_close(outputs[0], outputs[1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("preset", ["pixel", "dct14", "dct28_420_t8"])
def test_stills_and_clips_are_embedded_in_one_batch(clip, pretrained, preset):
    parts = [cut(preset, frames)[2] for frames in (clip[:1], clip[:8], clip[3:4])]
    assert {part.shape[1] for part in parts} == {1, parts[1].shape[1]}
    front_end = build_tokenizer(preset).front_end(48, pretrained)
    direction = torch.randn(sum(map(len, parts)), 48, generator=torch.Generator().manual_seed(0))
    together = front_end(join_cells(parts))
    (together * direction).sum().backward()
    gradient = front_end.weight.grad.clone()
    front_end.zero_grad()
    alone = torch.cat([front_end(part) for part in parts])
    torch.testing.assert_close(together, alone)
    (alone * direction).sum().backward()
    torch.testing.assert_close(gradient, front_end.weight.grad, atol=1e-3, rtol=1e-4)


def test_foreign_weights_and_cells_are_refused(pretrained):
    tokenizer = build_tokenizer("dct28_420")
    with pytest.raises(ValueError, match=r"\(32, 3, 2, 14, 14\)"):
        tokenizer.front_end(32, pretrained)
    with pytest.raises(ValueError, match="another tokenizer"):
        tokenizer.front_end(48)(torch.zeros(4, 1, 3, 14, 14, dtype=torch.uint8))
