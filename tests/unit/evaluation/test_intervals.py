"""Intervals, held to resamples and formulas done another way."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dct_vl.evaluation.compare.intervals import difference_interval, share_interval, wilson_interval


def test_intervals_hold_the_truth_and_shrink_with_samples():
    rng = np.random.default_rng(0)
    words = np.full(2000, 4)
    right = rng.binomial(words, 0.8)[None]
    low, high = share_interval(right, words)
    assert low < 0.8 < high
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(0.16 / 8000), rel=0.15)
    few_low, few_high = share_interval(right[:, :200], words[:200])
    assert few_high - few_low > 2 * (high - low)


def test_a_difference_of_runs_on_the_same_pictures_is_paired():
    """Images differ far more from each other than the two runs do on each of them."""
    words = np.full(500, 10)
    easy = np.random.default_rng(0).integers(0, 2, 500) * 5
    ours, theirs = (easy + 2)[None], (easy + 1)[None]
    assert difference_interval(ours, theirs, words) == pytest.approx((0.1, 0.1))


def resampled(statistic, count: int) -> tuple[float, float]:
    """95 % of a statistic of picked rows, by numpy alone."""
    rng = np.random.default_rng(7)
    found = [statistic(rng.integers(count, size=count)) for _ in range(8000)]
    low, high = np.quantile(found, (0.025, 0.975))
    return float(low), float(high)


def test_intervals_are_those_of_resampled_samples():
    rng = np.random.default_rng(1)
    of = rng.integers(1, 5, 300).astype(float)
    easy = rng.random(300)
    ours, theirs = rng.binomial(of.astype(int), easy), rng.binomial(of.astype(int), easy * 0.9)
    wanted = resampled(lambda rows: ours[rows].sum() / of[rows].sum(), 300)
    assert share_interval(ours, of) == pytest.approx(wanted, abs=0.004)
    wanted = resampled(lambda rows: (ours - theirs)[rows].sum() / of[rows].sum(), 300)
    found = difference_interval(ours, theirs, of)
    assert found == pytest.approx(wanted, abs=0.004)
    # were the runs resampled apart, the images' own difficulty would come on top
    apart = np.hypot(*(np.ptp(share_interval(x, of)) for x in (ours, theirs)))
    assert np.ptp(found) < 0.9 * apart


def test_a_constant_difference_is_certain_and_one_sample_is_not():
    hard = np.random.default_rng(0).integers(0, 2, 200) * 0.5
    of = np.ones(200)
    assert difference_interval(hard + 0.25, hard, of) == pytest.approx((0.25, 0.25))
    assert difference_interval(np.ones(1), np.zeros(1), np.ones(1)) is None
    assert share_interval(np.ones(1), np.ones(1)) is None


def test_the_seeds_of_both_sides_are_resampled_too():
    """One sample more or less changes nothing here, one run more or less does."""
    of = np.ones(50)
    ours = np.repeat([[0.2], [0.4], [0.6]], 50, axis=1)
    low, high = difference_interval(ours, np.zeros((1, 50)), of)
    assert low == pytest.approx(0.2, abs=0.07)
    assert high == pytest.approx(0.6, abs=0.07)
    assert share_interval(ours, of) == pytest.approx((0.4, 0.4))


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_intervals_follow_wilson(counts: tuple[int, int]) -> None:
    k, n = counts
    low, high = wilson_interval(k, n)
    z = 1.959963984540054
    middle, half = k + z * z / 2, z * math.sqrt(k * (n - k) / n + z * z / 4)
    assert low == pytest.approx(max(0.0, (middle - half) / (n + z * z)), abs=1e-9)
    assert high == pytest.approx(min(1.0, (middle + half) / (n + z * z)), abs=1e-9)
