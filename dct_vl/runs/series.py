"""Figures from the lines of steps.jsonl and validation.jsonl: losses, steady rates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

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
    """Median samples per second of the `steady_steps`; a ValueError where there is none."""
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
    """Mean training loss of the first and last `count` logged steps; a ValueError without any."""
    if not steps:
        raise ValueError("no step was logged, so there is no loss: let the run do one step")
    loss = column(steps, "loss")
    return float(loss[:count].mean()), float(loss[-count:].mean())
