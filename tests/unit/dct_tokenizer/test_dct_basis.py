"""The fixed bases against scipy's DCT, and reconstruction."""

import numpy as np
import pytest
import torch
from scipy.fft import dctn

from dct_tokenizer import build_tokenizer, list_presets, preset_config
from dct_tokenizer.basis import CLIP_MEAN, CLIP_STD, BandSelection, DCTBasis, dct_matrix

BLOCK_PRESETS = [name for name in list_presets() if preset_config(name)["family"] == "block"]


def scipy_coefficients(cells: np.ndarray, tokenizer) -> np.ndarray:
    """The same columns by scipy, in float64, from the definition."""
    mean, std = np.array(CLIP_MEAN), np.array(CLIP_STD)
    rgb = cells.transpose(0, 1, 3, 4, 2) / 255 - mean
    r, g, b = np.moveaxis(rgb, -1, 0)
    luma = 0.299 * r + 0.587 * g + 0.114 * b
    planes = [luma, (b - luma) / 1.772, (r - luma) / 1.402]
    frames = tokenizer.frames_per_cell
    bands = []
    for plane, keep in zip(
        planes, (tokenizer.luma_keep, tokenizer.chroma_keep, tokenizer.chroma_keep), strict=True
    ):
        clip = np.broadcast_to(plane, (len(plane), frames, *plane.shape[2:])) / std.mean()
        spectrum = dctn(clip, axes=(1, 2, 3), norm="ortho", type=2)
        bands.append(spectrum[:, : tokenizer.temporal_keep, :keep, :keep])
    flat = [band.reshape(len(cells), tokenizer.temporal_keep, -1) for band in bands]
    return np.concatenate(flat, axis=-1).reshape(len(cells), -1)


@pytest.mark.parametrize("preset", BLOCK_PRESETS)
@pytest.mark.parametrize("still", [True, False])
def test_every_basis_agrees_with_scipy(preset, still):
    tokenizer = build_tokenizer(preset)
    rng = np.random.default_rng(5)
    shape = (3, 1 if still else tokenizer.frames_per_cell, 3, tokenizer.cell, tokenizer.cell)
    cells = rng.integers(0, 256, shape, dtype=np.uint8)
    expected = scipy_coefficients(cells, tokenizer)
    ours = tokenizer.encode(torch.from_numpy(cells)).numpy()
    assert ours.shape == (3, tokenizer.bands.num_columns)
    np.testing.assert_allclose(ours, expected, atol=1e-5 * np.abs(expected).max())


def test_dct_rows_are_orthonormal_and_scipys():
    matrix = dct_matrix(28)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(28, dtype=torch.float64))
    np.testing.assert_allclose(matrix[:, 5], dctn(np.eye(28)[5], norm="ortho"), atol=1e-14)
    assert torch.equal(dct_matrix(28, 3), matrix[:3])


@pytest.mark.parametrize("preset", ["dct14", "dct14_t4"])
def test_complete_bases_decode_exactly(preset, clip):
    tokenizer = build_tokenizer(preset)
    assert tokenizer.bands.is_complete
    for frames in (clip[:1], clip):
        plan = tokenizer.plan(*clip.shape[1:3], len(frames))
        cells = tokenizer.cells(frames, plan)
        assert np.array_equal(tokenizer.decode(tokenizer.encode(cells), plan), frames)


@pytest.mark.parametrize("preset", BLOCK_PRESETS)
def test_dropped_bands_still_give_a_recognisable_picture(preset, photos):
    tokenizer = build_tokenizer(preset)
    frames = photos[0][None, :420, :588]
    plan = tokenizer.plan(420, 588)
    decoded = tokenizer.decode(tokenizer.encode(tokenizer.cells(frames, plan)), plan)
    assert decoded.shape == (1, plan.height, plan.width, 3)
    if decoded.shape == frames.shape:
        error = np.mean((decoded.astype(float) - frames) ** 2)
        assert 10 * np.log10(255**2 / max(error, 1e-9)) > 24


def test_a_grey_picture_survives_chroma_cutting():
    grey = np.random.default_rng(0).integers(0, 256, (1, 56, 56, 1), dtype=np.uint8)
    frames = np.repeat(grey, 3, axis=-1)
    tokenizer = build_tokenizer("dct28_420")
    plan = tokenizer.plan(56, 56)
    decoded = tokenizer.decode(tokenizer.encode(tokenizer.cells(frames, plan)), plan)
    assert np.abs(decoded.astype(int) - frames).max() <= 1


def test_float_cells_hold_the_same_values_as_uint8_cells():
    bands = BandSelection(cell=14, luma_keep=14, chroma_keep=7, frames_per_cell=2, temporal_keep=2)
    cells = torch.randint(0, 256, (4, 2, 3, 14, 14), dtype=torch.uint8)
    basis = DCTBasis(bands)
    assert torch.equal(basis(cells), basis(cells.bfloat16()))
