"""Figures from the lines of steps.jsonl: steady rates, smoothed and thinned curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
import pandas as pd

#: lines of steps.jsonl, by step
Steps: TypeAlias = Sequence[Mapping[str, Any]]

#: first steps of a process are slow: memory is allocated, kernels are chosen, loaders fill up
NUM_WARM_UP_STEPS = 10
TOKEN_KINDS = ("text", "visual", "padding")


def column(steps: Steps, name: str) -> np.ndarray:
    """float64 (num_steps,): one field of every step, NaN where it is null or absent."""
    values = [step.get(name) for step in steps]
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def steady_steps(steps: Steps) -> Steps:
    """The steps without the first ten, or all of them where there are no others."""
    return steps[NUM_WARM_UP_STEPS:] or steps


def steady_throughput(steps: Steps) -> float:
    """Median samples per second of the `steady_steps`.

    Raises:
        ValueError: no step.
    """
    if not steps:
        raise ValueError("no step was logged, so there is no rate: let the run do one step")
    return float(np.median(column(steady_steps(steps), "samples_per_second")))


def median(steps: Steps, name: str) -> float | None:
    """Median of one field where it is known; None where it never is."""
    values = column(steps, name)
    values = values[np.isfinite(values)]
    return float(np.median(values)) if len(values) else None


def token_rates(steps: Steps) -> dict[str, np.ndarray]:
    """Tokens per second of each kind of `TOKEN_KINDS`, each float64 (num_steps,)."""
    seconds = column(steps, "seconds")
    return {kind: column(steps, f"num_{kind}_tokens") / seconds for kind in TOKEN_KINDS}


def first_and_last_loss(steps: Steps, count: int = 5) -> tuple[float, float]:
    """Mean training loss of the first and of the last `count` logged steps.

    Raises:
        ValueError: no step.
    """
    if not steps:
        raise ValueError("no step was logged, so there is no loss: let the run do one step")
    loss = column(steps, "loss")
    return float(loss[:count].mean()), float(loss[-count:].mean())


def smooth(values: np.ndarray, by: Literal["mean", "median"]) -> np.ndarray:
    """Moving mean or median over about 3 % of the run around each step; NaN stays NaN."""
    window = max(5, 2 * (len(values) // 60) + 1)
    series = pd.Series(values).rolling(window, center=True, min_periods=1)
    average = series.mean() if by == "mean" else series.median()
    return np.where(np.isnan(values), np.nan, average.to_numpy())


def thin(x: np.ndarray, y: np.ndarray, limit: int = 600) -> tuple[np.ndarray, np.ndarray]:
    """At most `limit` points that keep every peak: lowest and highest of each stretch.

    Non-finite values of `y` are left out.
    """
    finite = np.isfinite(y)
    x, y = x[finite], y[finite]
    if len(x) <= limit:
        return x, y
    chosen: set[int] = {0, len(x) - 1}
    for stretch in np.array_split(np.arange(len(x)), limit // 2 - 1):
        chosen.update((int(stretch[y[stretch].argmin()]), int(stretch[y[stretch].argmax()])))
    order = sorted(chosen)
    return x[order], y[order]


def frame_top(values: np.ndarray) -> float | None:
    """Upper end of a vertical axis that a few outliers would flatten; None: none are there."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return None
    top = 1.5 * float(np.quantile(finite, 0.95))
    return top if 0 < top < finite.max() else None
