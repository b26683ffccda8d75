"""What a run cost, from its own log."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dct_vl.errors import ConfigError
from dct_vl.runs.config.schema import RunConfig
from dct_vl.runs.derived import RunSettings
from dct_vl.runs.flops import StepWork
from dct_vl.runs.series import Steps, column, steady_throughput


@dataclass(frozen=True, kw_only=True)
class TrainingCost:
    """Means and medians over the logged steps of a run."""

    #: forward FLOPs of a training sample, pictures and text; None where the model is not at hand
    flops: float | None
    #: median of the steady steps
    samples_per_second: float
    #: highest of any step, of the first rank's device, or of its process on a CPU
    peak_memory_gib: float | None


def training_cost(config: RunConfig, steps: Steps) -> TrainingCost:
    """Read the costs of a run with at least one step."""
    peaks = column(steps, "peak_memory_gib")
    return TrainingCost(
        flops=_forward_flops(config, steps),
        samples_per_second=steady_throughput(steps),
        peak_memory_gib=float(np.nanmax(peaks)) if np.isfinite(peaks).any() else None,
    )


def _forward_flops(config: RunConfig, steps: Steps) -> float | None:
    try:
        counter = RunSettings(config).step_flops()
    except ConfigError:
        return None
    try:
        total = sum(counter.forward(StepWork.of_totals(step)) for step in steps)
    except KeyError:  # a log of an earlier version, which counted less
        return None
    return total / sum(step["num_samples"] for step in steps)
