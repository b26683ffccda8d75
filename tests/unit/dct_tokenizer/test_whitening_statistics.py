"""The model of natural pictures against photographs, and statistics files."""

import json

import numpy as np
import pytest
import torch

from dct_tokenizer import TokenizerConfigError, build_tokenizer
from dct_tokenizer.whitening import load_statistics, natural_statistics, save_statistics


@pytest.mark.parametrize("preset", ["dct14", "dct28_420", "dct21_420", "dct28_lp"])
def test_the_model_flattens_the_spectrum_of_photographs(photos, preset):
    tokenizer = build_tokenizer(preset)
    coefficients = []
    for photo in photos:
        plan = tokenizer.plan(*photo.shape[:2])
        coefficients.append(tokenizer.encode(tokenizer.cells(photo[None], plan)))
    still = tokenizer.bands.num_spatial
    measured = torch.cat(coefficients)[:, :still].std(0).double()
    modelled = natural_statistics(tokenizer.bands).std[:still]
    luma = tokenizer.luma_keep**2
    for part in (slice(0, luma), slice(luma, still)):
        before = measured[part].log10()
        after = (measured[part] / modelled[part]).log10()
        assert before.max() - before.min() > 1.9
        assert after.std() < 0.6 * before.std()
        assert after.abs().median() < 0.5


def test_a_model_of_still_and_clip_agree_on_shape_and_positivity():
    for preset in ("dct28_420_t8", "dct14_t16"):
        bands = build_tokenizer(preset).bands
        stats = natural_statistics(bands)
        assert stats.mean.shape == stats.std.shape == (bands.num_columns,)
        assert (stats.std > 0).all()
        by_band = stats.std.reshape(bands.temporal_keep, -1)
        assert (by_band[:-1] > by_band[1:]).all()


def test_a_file_of_statistics_is_what_the_front_end_applies(tmp_path, pretrained):
    bands = build_tokenizer("dct28_420").bands
    stats = natural_statistics(bands)
    rng = np.random.default_rng(1)
    stats.mean[:] = torch.from_numpy(rng.normal(size=len(stats.mean)))
    stats.mean[bands.num_spatial :] = 0
    path = tmp_path / "stats.json"
    save_statistics(path, bands, stats, "a test")
    loaded = load_statistics(path, bands)
    torch.testing.assert_close(loaded.mean, stats.mean, rtol=1e-5, atol=1e-5)

    measured = build_tokenizer("dct28_420", statistics=str(path)).front_end(48, pretrained)
    assert measured.bias.abs().max() > 1e-3
    natural = build_tokenizer("dct28_420").front_end(48, pretrained)
    cells = torch.randint(0, 256, (16, 1, 3, 28, 28), dtype=torch.uint8)
    torch.testing.assert_close(measured(cells), natural(cells), atol=2e-6, rtol=1e-5)


def test_files_of_other_bands_or_missing_ones_are_refused(tmp_path):
    tokenizer = build_tokenizer("dct28_420")
    path = tmp_path / "stats.json"
    with pytest.raises(TokenizerConfigError, match="no such file"):
        load_statistics(path, tokenizer.bands)
    save_statistics(path, tokenizer.bands, natural_statistics(tokenizer.bands), "a test")
    assert json.loads(path.read_text())["source"] == "a test"
    with pytest.raises(TokenizerConfigError, match="gather them again"):
        load_statistics(path, build_tokenizer("dct28_lp").bands)
