"""What `show` measures, against definitions and libraries."""

import re

import numpy as np
import pytest
from PIL import Image

from dct_tokenizer import build_tokenizer
from dct_tokenizer.show import look, write_html, write_png


@pytest.fixture(scope="module")
def picture(photos):
    return photos[0][:280, :392].copy()


def test_a_lossless_tokenizer_shows_no_error(picture):
    view = look(build_tokenizer("dct14"), picture)
    assert np.array_equal(view.seen, picture)
    assert view.psnr == float("inf")
    assert view.ssim == pytest.approx(1)
    assert view.error.max() == 0
    assert (view.kept_by_band == 1).all()


def test_measures_order_the_tokenizers_by_what_they_keep(picture):
    views = [look(build_tokenizer(n), picture) for n in ("dct28_420", "dct28_lp", "adaptive")]
    full, half, _ = views
    assert full.psnr > half.psnr > 20
    assert full.ssim > half.ssim > 0.5
    assert full.kept_by_band.min() > 0.95
    assert half.kept_by_band[:14].min() > 0.95
    assert half.kept_by_band[14:].max() < 0.1
    for view in views:
        assert view.image.shape == view.seen.shape == (*view.error.shape, 3)
        mse = np.mean((view.image.astype(float) - view.seen) ** 2)
        assert view.psnr == pytest.approx(10 * np.log10(255**2 / mse))


def test_the_downscaled_control_is_compared_at_the_references_size(picture):
    view = look(build_tokenizer("pixel_downscale"), picture)
    reference = build_tokenizer("dct28_420").plan(*picture.shape[:2])
    assert view.image.shape[:2] == (reference.height, reference.width)
    assert view.plan.height * 2 == reference.height


@pytest.mark.parametrize("shape", [(30, 40), (40, 2000), (1500, 30)])
def test_odd_shapes_are_drawn(tmp_path, shape):
    noise = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    views = [look(build_tokenizer(n, max_pixels=50_000), noise) for n in ("adaptive", "pixel")]
    write_png(views, tmp_path / "a.png")
    assert Image.open(tmp_path / "a.png").width > 800


def test_the_page_is_self_contained_and_holds_the_numbers(tmp_path, picture):
    views = [look(build_tokenizer(n), picture) for n in ("dct28_420", "adaptive")]
    page = tmp_path / "a.html"
    write_html(views, page, "a <b> & c")
    text = page.read_text()
    assert "a &lt;b&gt; &amp; c" in text
    assert not re.search(r"(src|href)=[\"'](?!data:)", text)
    assert text.count('<div class="row">') == 2
    assert f">{views[0].plan.num_llm_tokens}<" in text
    assert text.count("<rect x=") >= len(views[1].plan.token_boxes)
