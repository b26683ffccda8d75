"""Intervals by resampling pictures: the words of one picture are not independent of each other.

Shape legend: R seeds, K pictures.
"""

from __future__ import annotations

import numpy as np

NUM_RESAMPLES = 2000
LEVEL = 0.95


def share_interval(right: np.ndarray, words: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """95 % percentile bootstrap interval (Efron 1979) of the share of right words.

    Args:
        right: (R, K) right words of each run and picture.
        words: (K,) words of each picture.
        seed: of the resampling.
    """
    mean = right.mean(axis=0)
    picked = _resamples(len(words), seed)
    shares = mean[picked].sum(axis=1) / words[picked].sum(axis=1)
    return _ends(shares)


def difference_interval(
    ours: np.ndarray, theirs: np.ndarray, words: np.ndarray, seed: int = 0
) -> tuple[float, float]:
    """The same for the difference of two shares on the same pictures, paired by picture.

    Seeds are resampled too, each side's own, so that the interval covers what another training
    run would give.
    """
    rng = np.random.default_rng(seed)
    picked = _resamples(len(words), seed)
    differences = []
    for rows in picked:
        a = ours[rng.integers(len(ours), size=len(ours))].mean(axis=0)
        b = theirs[rng.integers(len(theirs), size=len(theirs))].mean(axis=0)
        differences.append((a - b)[rows].sum() / words[rows].sum())
    return _ends(np.array(differences))


def _resamples(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(count, size=(NUM_RESAMPLES, count))


def _ends(values: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
