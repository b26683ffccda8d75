"""The frame, the curves and the bars of every page."""

from __future__ import annotations

import io
from base64 import b64decode

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dct_vl.pages.bars import bar_width
from dct_vl.pages.charts import frame_top, smooth, thin
from dct_vl.pages.page import amount, duration, figure, image_uri, percent


def test_large_images_are_reduced_and_others_keep_every_value() -> None:
    def shown(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        given = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
        data = image_uri(given, 64).removeprefix("data:image/png;base64,")
        return given, np.asarray(Image.open(io.BytesIO(b64decode(data))))

    np.testing.assert_array_equal(*shown(48, 64))
    assert shown(200, 50)[1].shape == (64, 16, 3)
    assert shown(1, 500)[1].shape == (1, 64, 3)


@given(st.lists(st.floats(-1e6, 1e6) | st.just(float("nan")), min_size=1, max_size=3000))
def test_thinning_keeps_ends_and_peaks(values: list[float]) -> None:
    y = np.array(values)
    x = np.arange(len(y), dtype=np.float64)
    thin_x, thin_y = thin(x, y, limit=100)
    assert len(thin_x) <= 100
    assert (np.diff(thin_x) > 0).all()
    np.testing.assert_array_equal(y[thin_x.astype(int)], thin_y)
    finite = np.isfinite(y)
    if finite.any():
        assert (thin_x[0], thin_x[-1]) == (x[finite][0], x[finite][-1])
        assert (thin_y.min(), thin_y.max()) == (y[finite].min(), y[finite].max())


def test_smoothing_does_not_lag_and_keeps_gaps() -> None:
    ramp = np.arange(200.0)
    np.testing.assert_allclose(smooth(ramp, "mean")[10:-10], ramp[10:-10])
    spiked = np.ones(50)
    spiked[20], spiked[30] = 1000.0, np.nan
    got = smooth(spiked, "median")
    assert got[20] == 1.0
    assert np.isnan(got[30])
    assert np.isfinite(np.delete(got, 30)).all()


def test_outliers_leave_the_frame() -> None:
    assert frame_top(np.array([8.0, *[1.0] * 40])) == 1.5
    assert frame_top(np.linspace(1, 1.2, 40)) is None
    assert frame_top(np.zeros(5)) is None
    assert frame_top(np.array([np.nan])) is None


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (2.7664, "2.77"),
        (0.01234, "0.0123"),
        (36.84, "36.8"),
        (2940.4, "2,940"),
        (1e-6, "1.00e-06"),
        (-0.5, "-0.500"),
        (float("nan"), "–"),
        (None, "–"),
    ],
)
def test_figures_are_short(value: float | None, text: str) -> None:
    assert figure(value) == text


def test_other_formats() -> None:
    assert percent(0.534) == "53.4\u00a0%"
    assert amount(12345) == "12,345"
    assert [duration(s).replace("\u00a0", " ") for s in (0.217, 42.4, 59.7, 185, 7800)] == [
        "0.22 s",
        "42 s",
        "1 min 0 s",
        "3 min 5 s",
        "2 h 10 min",
    ]


@pytest.mark.parametrize(
    ("places", "width"),
    [([1.0, 2.0, 4.0], 0.8), ([3.0], 0.8), ([0.75, 1.0, 1.0001, 1.75], 0.01)],
)
def test_bars_are_apart_and_visible(places: list[float], width: float) -> None:
    assert bar_width(places) == pytest.approx(width)
