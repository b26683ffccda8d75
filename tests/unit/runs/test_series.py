"""Figures of the steps."""

from __future__ import annotations

import numpy as np
import pytest

from dct_vl.runs.series import (
    column,
    first_and_last_loss,
    median,
    steady_steps,
    steady_throughput,
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
