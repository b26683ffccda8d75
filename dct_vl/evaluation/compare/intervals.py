"""95 % intervals: of shares and their differences by resampling samples, of counts by a formula.

Questions about one sample are not independent of each other, so samples are resampled with all
their questions (percentile bootstrap, Efron 1979).

Shape legend: K samples, R runs (seeds) of one configuration.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.stats import binomtest

NUM_RESAMPLES = 2000
LEVEL = 0.95
_ENDS = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)

Interval = tuple[float, float]


def share_interval(got: np.ndarray, of: np.ndarray) -> Interval | None:
    """Interval of Σ got / Σ of.

    Args:
        got: (K,) or (R, K), points of each sample; of several runs their mean counts.
        of: (K,), how many there are to get.

    Returns:
        None where there is but one sample.
    """
    mean = np.atleast_2d(got).mean(axis=0)
    return _bootstrap(lambda rows: mean[rows].sum() / of[rows].sum(), len(of))


def difference_interval(ours: np.ndarray, theirs: np.ndarray, of: np.ndarray) -> Interval | None:
    """Interval of Σ ours / Σ of − Σ theirs / Σ of, both drawn with the same samples (paired).

    Where a side has several runs they are resampled too, each side's own, so that the interval
    covers what another training run would give. Arguments as of `share_interval`.
    """
    sides = [np.atleast_2d(ours), np.atleast_2d(theirs)]
    rng = np.random.default_rng(0)

    def difference(rows: np.ndarray) -> float:
        a, b = (s[rng.integers(len(s), size=len(s))].mean(axis=0) for s in sides)
        return (a - b)[rows].sum() / of[rows].sum()

    return _bootstrap(difference, len(of))


def wilson_interval(num_right: int, num_answers: int) -> Interval:
    """Wilson's score interval (1927) of a share of independent answers; never leaves 0 to 1."""
    found = binomtest(num_right, num_answers).proportion_ci(LEVEL, method="wilson")
    return float(found.low), float(found.high)


def _bootstrap(statistic: Callable[[np.ndarray], float], count: int) -> Interval | None:
    if count < 2:
        return None
    rng = np.random.default_rng(0)
    values = [statistic(rng.integers(count, size=count)) for _ in range(NUM_RESAMPLES)]
    low, high = np.quantile(values, _ENDS)
    return float(low), float(high)
