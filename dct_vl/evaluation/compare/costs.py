"""What a run cost, from its own log."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dct_vl.inference.seen import tokenizer_of
from dct_vl.runs.config.overrides import ConfigError
from dct_vl.runs.config.schema import RunConfig
from dct_vl.runs.flops import StepFlops, StepWork
from dct_vl.runs.model_sizes import model_sizes
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
        sizes = model_sizes(config.model.path)
    except ConfigError:
        return None
    front_end: Any = tokenizer_of(config).front_end(1)
    fixed = front_end.flops_per_cell(0, still=True)
    # with nothing to train a step is its forward pass
    counter = StepFlops(
        shape=sizes.shape,
        vocab_size=sizes.vocab_size,
        front_end_fixed=fixed,
        front_end_weight=front_end.flops_per_cell(sizes.shape.vit_width, still=True) - fixed,
        trains_front_end=False,
        trains_vit=False,
        trains_merger=False,
        trains_llm=False,
    )
    try:
        total = sum(counter.of(_work(step)) for step in steps)
    except KeyError:  # a log of an earlier version, which counted less
        return None
    return total / sum(step["num_samples"] for step in steps)


def _work(step: Mapping[str, Any]) -> StepWork:
    return StepWork(
        num_cells=step["num_cells"],
        cell_pairs=step["num_cell_pairs"],
        num_tokens=step["num_text_tokens"] + step["num_visual_tokens"],
        token_pairs=step["num_token_pairs"],
        num_output_tokens=step["num_answer_tokens"],
    )
