"""The post-ViT competitor: its crop against scipy, its plans against its features."""

import numpy as np
import pytest
import torch
from scipy.fft import dctn, idctn

from dct_tokenizer import build_tokenizer
from dct_tokenizer.families.post_dct import SpectrumCrop, compact_side


@pytest.mark.parametrize("dc_gain", [True, False])
def test_crop_equals_scipys(dc_gain):
    rng = np.random.default_rng(2)
    # two sizes of two pictures each, one of a video, in turns
    grids = [(1, 18, 24), (3, 6, 10), (1, 18, 24), (1, 6, 10)]
    features = [rng.normal(size=(t, h // 2, w // 2, 7)) for t, h, w in grids]
    expected = []
    for part in features:
        rows, columns = (compact_side(n, 2 / 3) for n in part.shape[1:3])
        spectrum = dctn(part, axes=(1, 2), norm="ortho")[:, :rows, :columns]
        small = idctn(spectrum, axes=(1, 2), norm="ortho")
        area = rows * columns / (part.shape[1] * part.shape[2])
        expected.append((small * (np.sqrt(area) if dc_gain else 1)).reshape(-1, 7))
    rows = torch.from_numpy(np.concatenate([part.reshape(-1, 7) for part in features])).float()
    crop = SpectrumCrop(2 / 3, dc_gain=dc_gain)
    ours = crop(rows, torch.tensor(grids))
    np.testing.assert_allclose(ours, np.concatenate(expected), atol=1e-5)


def test_a_constant_grid_stays_constant():
    out = SpectrumCrop(0.5)(torch.full((6 * 9, 4), 3.0), [(1, 12, 18)])
    torch.testing.assert_close(out, torch.full((3 * 5, 4), 3.0))


@pytest.mark.parametrize(("preset", "ratio"), [("post_dct", 2 / 3), ("post_dct_half", 0.5)])
def test_plan_counts_what_the_crop_returns(preset, ratio):
    tokenizer = build_tokenizer(preset, max_pixels=200_000)
    plans = [tokenizer.plan(*size) for size in [(300, 500, 1), (90, 40, 5), (28, 28, 1)]]
    features = torch.randn(sum(plan.num_cells // 4 for plan in plans), 5).bfloat16()
    out = tokenizer.post_merge()(features, [plan.grid_thw for plan in plans])
    assert out.shape == (sum(plan.num_llm_tokens for plan in plans), 5)
    assert out.dtype == torch.bfloat16
    large = plans[0]
    assert large.num_llm_tokens / (large.num_cells / 4) == pytest.approx(ratio**2, abs=0.03)
    assert large.mrope_extent == max(large.mrope_positions.max(0)) + 1


def test_ratio_one_changes_nothing_and_gradients_pass():
    features = torch.randn(6, 5, requires_grad=True)
    out = SpectrumCrop(1.0)(features, [(1, 4, 6)])
    torch.testing.assert_close(out, features)
    out.sum().backward()
    assert features.grad.abs().min() > 0


def test_foreign_grids_are_refused():
    with pytest.raises(ValueError, match="7 features"):
        SpectrumCrop(0.5)(torch.zeros(7, 4), [(1, 4, 6)])


def test_other_tokenizers_have_no_post_merge():
    assert build_tokenizer("dct28_420").post_merge() is None
