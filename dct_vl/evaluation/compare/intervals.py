"""Intervals by resampling samples: questions about one picture are not independent of each other.

Shape legend: K samples.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.stats import bootstrap

from dct_vl.evaluation.study.intervals import LEVEL, NUM_RESAMPLES

#: numbers that a batch of resamples may hold at once
_BATCH = 2_000_000


def share_interval(got: np.ndarray, of: np.ndarray) -> tuple[float, float] | None:
    """95 % percentile bootstrap interval of Σ got / Σ of.

    Args:
        got: float (K,), points of each sample.
        of: float (K,), how many there are to get.

    Returns:
        None where there is but one sample.
    """
    return _interval((got, of), lambda g, o, axis=-1: g.sum(axis) / o.sum(axis))


def difference_interval(
    ours: np.ndarray, theirs: np.ndarray, of: np.ndarray
) -> tuple[float, float] | None:
    """The same of Σ ours / Σ of − Σ theirs / Σ of, both drawn with the same samples (paired)."""
    return _interval(
        (ours, theirs, of), lambda a, b, o, axis=-1: (a.sum(axis) - b.sum(axis)) / o.sum(axis)
    )


def _interval(
    columns: tuple[np.ndarray, ...], statistic: Callable[..., Any]
) -> tuple[float, float] | None:
    count = len(columns[0])
    if count < 2:
        return None
    found = bootstrap(
        columns,
        statistic,
        paired=True,
        vectorized=True,
        method="percentile",
        confidence_level=LEVEL,
        n_resamples=NUM_RESAMPLES,
        batch=max(1, _BATCH // count),
        # the name that SciPy before 1.15 knows too
        random_state=np.random.default_rng(0),
    ).confidence_interval
    return float(found.low), float(found.high)
