"""Forward and backward pass of a run's model on one batch of its own samples, by the clock.

Runs that trained side by side on one GPU, or waited for their loaders, say little about their
tokenizers' speed in their logs; this is measured alone, with the batch already on the device.
"""

from __future__ import annotations

import statistics
import time
from itertools import islice
from pathlib import Path

import orjson
import torch

from dct_vl.evaluation.words import encoded_samples
from dct_vl.inference.loading import LoadedModel
from dct_vl.inputs.batch import Batch, pad_batch

_WARM_UP, _ROUNDS = 3, 10


def write_speed(model: LoadedModel, output: Path, *, split: str, batch_size: int) -> float:
    """Write samples_per_second, batch_size, visual_tokens (of the batch) and device to `output`.

    Returns samples a second: batch size by the median of 10 passes after 3 that do not count.

    Raises:
        ValueError: the split has no sample that training would take.
    """
    rejected: list[str] = []
    samples = encoded_samples(
        model, split, None, on_fault=lambda key, error: rejected.append(f"{key}: {error}")
    )
    encoded = [one for _, one in islice(samples, batch_size)]
    if not encoded:
        raise ValueError(
            f"the {split} split of {model.run.data.path} has no sample that training would take"
            + "".join(f"; {found}" for found in rejected[:1])
        )
    batch = pad_batch(encoded, visual=model.visual, pad_to=None, pad_multiple=8).to(model.device)
    seconds = [_pass(model, batch) for _ in range(_WARM_UP + _ROUNDS)][_WARM_UP:]
    speed = len(encoded) / statistics.median(seconds)
    device = model.device
    line = {
        "samples_per_second": speed,
        "batch_size": len(encoded),
        "visual_tokens": batch.num_visual_tokens,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
    }
    output.write_bytes(orjson.dumps(line, option=orjson.OPT_INDENT_2))
    return speed


def _pass(model: LoadedModel, batch: Batch) -> float:
    """Seconds of one forward and backward pass."""
    start = _now(model.device)
    losses, loss_mask = model.module(batch)
    (losses * loss_mask).sum().backward()
    model.module.zero_grad(set_to_none=True)
    return _now(model.device) - start


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
