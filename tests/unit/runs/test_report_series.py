"""Figures and curves of the pages."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dct_vl.pages.page import amount, duration, figure, percent
from dct_vl.runs.series import (
    column,
    first_and_last_loss,
    frame_top,
    median,
    smooth,
    steady_steps,
    steady_throughput,
    thin,
    token_rates,
)


def steps_with(**fields: list[float | None]) -> list[dict[str, float | None]]:
    return [dict(zip(fields, values, strict=True)) for values in zip(*fields.values(), strict=True)]


def test_null_and_absent_fields_are_nan() -> None:
    got = column([{"loss": 1.0}, {"loss": None}, {}], "loss")
    np.testing.assert_array_equal(got, [1.0, np.nan, np.nan])


def test_the_median_of_a_field_is_of_what_is_known() -> None:
    assert median([{"mfu": None}, {"mfu": 0.4}, {}, {"mfu": 0.2}, {"mfu": 0.3}], "mfu") == 0.3
    assert median([{"mfu": None}, {}], "mfu") is None


def test_throughput_is_the_median_without_ten_warm_up_steps() -> None:
    slow = [1.0] * 10
    assert steady_throughput(steps_with(samples_per_second=[*slow, 30.0, 10.0, 20.0])) == 20.0
    assert steady_throughput(steps_with(samples_per_second=[1.0, 3.0, 8.0])) == 3.0
    assert len(steady_steps(steps_with(samples_per_second=slow))) == 10
    with pytest.raises(ValueError, match="no step"):
        steady_throughput([])


def test_first_and_last_loss_are_means_of_five() -> None:
    losses = [10.0, 9.0, 8.0, 7.0, 6.0, 5.0, 4.0]
    assert first_and_last_loss(steps_with(loss=losses)) == (8.0, 6.0)
    assert first_and_last_loss(steps_with(loss=[4.0])) == (4.0, 4.0)
    with pytest.raises(ValueError, match="no step"):
        first_and_last_loss([])


def test_token_rates_are_tokens_over_seconds() -> None:
    steps = steps_with(
        num_text_tokens=[100.0], num_visual_tokens=[20.0], num_padding_tokens=[6.0], seconds=[0.5]
    )
    assert {kind: list(rate) for kind, rate in token_rates(steps).items()} == {
        "text": [200.0],
        "visual": [40.0],
        "padding": [12.0],
    }


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
