"""Bounds of a run's single numbers, said before a process starts that would trip over them."""

from __future__ import annotations

import math
from operator import attrgetter

from dct_vl.errors import ConfigError
from dct_vl.runs.config.schema import RunConfig

#: key → smallest value; null, where a key may be null, is left alone
_LEAST = {
    "seed": 0,
    "data.num_workers": 0,
    "data.shuffle_buffer_size": 0,
    "data.max_samples_per_sequence": 1,
    "data.worker_timeout_s": 0,
    "data.max_rejects_in_a_row": 1,
    "trainer.val_every": 0,
    "trainer.val_batches": 0,
    "trainer.save_every": -1,
    "trainer.stop_at_step": 1,
    "trainer.stall_warning_s": 0,
    "trainer.spike_factor": 0,
    "optim.lr": 0,
    "optim.min_lr": 0,
    "optim.warmup_steps": 0,
    "optim.weight_decay": 0,
    "optim.adam_beta1": 0,
    "optim.adam_beta2": 0,
    "optim.clip_grad": 0,
}


def check_bounds(run: RunConfig) -> None:
    """Names and numbers that mean nothing; parallel and batch sizes have checks of their own.

    Raises:
        ConfigError: the first of them.
    """
    for key in ("experiment_name", "log_dir"):
        if not attrgetter(key)(run).strip():
            raise ConfigError(f"{key} is empty: the run's folder is LOG_DIR/experiment_name")
    for key, least in _LEAST.items():
        value = attrgetter(key)(run)
        if value is not None and not (least <= value and math.isfinite(value)):
            raise ConfigError(f"{key} is {value}; expected at least {least}")
    optim = run.optim
    for key in ("adam_beta1", "adam_beta2"):
        if getattr(optim, key) >= 1:
            raise ConfigError(f"optim.{key} is {getattr(optim, key)}; expected less than 1")
    if optim.min_lr > optim.lr:
        raise ConfigError(
            f"optim.min_lr={optim.min_lr:g}, where the schedule ends, is more than "
            f"optim.lr={optim.lr:g}: the rate would rise; set it to {optim.lr / 10:g}, say"
        )
