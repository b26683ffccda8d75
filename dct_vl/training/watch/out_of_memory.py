"""What was on the device when its memory ran out, and which settings would fit."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch

from dct_vl.errors import ConfigError
from dct_vl.runs.config.schema import RunConfig
from dct_vl.runs.derived import RunSettings
from dct_vl.training.estimate.memory import GIB, BatchShape
from dct_vl.training.watch.memory_advice import MemorySaving, memory_savings, peak_gib
from dct_vl.training.watch.metering import MicroBatch, StepMeter

#: what failed allocations say that are torch's own errors neither: of the host, of the driver and
#: NCCL, of cuBLAS
_FAILED = ("can't allocate memory", "out of memory", "STATUS_ALLOC_FAILED")
#: GiB that stay free where a setting is said to fit: fragments, and what NCCL takes
_SPARE_GIB = 3.0


@dataclass(frozen=True, kw_only=True)
class MemoryUse:
    """Device memory of a rank in GiB."""

    total: float
    #: weights, gradients and optimizer state, as between two steps
    resting: float
    #: most that was in use, which the failed allocation comes on top of
    peak: float

    @property
    def activations(self) -> float:
        """What a step adds; at least a tenth of the peak, as it is what did not fit."""
        return max(self.peak - self.resting, 0.1 * self.peak)


def is_out_of_memory(error: BaseException) -> bool:
    """Did an allocation fail, on a CUDA device or on the CPU?"""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and any(words in text for words in _FAILED)


def measure(resting_bytes: int) -> MemoryUse | None:
    """The memory of this rank's device; None without a CUDA device.

    Args:
        resting_bytes: allocated before the step began.
    """
    if not torch.cuda.is_available():
        return None
    _, total = torch.cuda.mem_get_info()
    peak = torch.cuda.max_memory_allocated()
    return MemoryUse(total=total / GIB, resting=resting_bytes / GIB, peak=peak / GIB)


def explain(
    run: RunConfig,
    *,
    rank: int,
    step: int,
    meter: StepMeter,
    use: MemoryUse | None,
    world_size: int,
    cause: str,
) -> str:
    """The message of a run that ran out of memory: of the device, or of the host where `use` is
    None. `cause` is the allocator's message, `meter` that of the step which was running.
    """
    lines = [f"rank {rank} ran out of memory in step {step}: {cause.splitlines()[0]}"]
    if use:
        lines.append(
            f"  of {use.total:.1f} GiB, {use.resting:.1f} held weights, gradients and optimizer "
            f"state, and the step took {use.activations:.1f} more"
        )
    if meter.micro_batches:
        lines.append("  " + describe(meter.micro_batches[-1], len(meter.micro_batches)))
    batch = meter.micro_batches[-1] if meter.micro_batches else None
    return "\n".join([*lines, *advise(run, use, batch, world_size, asked=asked_gib(cause))])


def describe(batch: MicroBatch, number: int) -> str:
    """One line about a micro batch."""
    return (
        f"micro batch {number}: {batch.num_rows} rows of {batch.row_length} tokens with "
        f"{len(batch.sample_keys)} samples; {batch.num_text_tokens} text, "
        f"{batch.num_visual_tokens} visual and {batch.num_padding_tokens} padding tokens; "
        f"{batch.num_cells} ViT patches, {batch.longest_segment} in the longest image; samples: "
        + ", ".join(batch.sample_keys[:8])
        + (", …" if len(batch.sample_keys) > 8 else "")
    )


def asked_gib(cause: str) -> float:
    """What the failed allocation asked for, by the allocator's message; 0 where it does not say."""
    found = re.search(r"allocate ([\d.]+) ([KMG])iB", cause)
    return float(found[1]) / 1024 ** "GMK".index(found[2]) if found else 0.0


def advise(
    run: RunConfig,
    use: MemoryUse | None,
    batch: MicroBatch | None,
    world_size: int,
    *,
    asked: float = 0.0,
) -> list[str]:
    """A heading and at most three settings: those that fit by the estimate, or else those that save
    most.

    Args:
        use: the device's memory; None where it is the host's.
        batch: the micro batch that did not fit; None for the largest that the settings allow.
        asked: GiB that were not there.
    """
    failed = _shape_of(run, batch)
    try:
        found = memory_savings(run, failed, world_size, on_cuda=use is not None)
        needed = peak_gib(run, failed, world_size)
    except ConfigError:
        return []  # a model whose sizes are not known
    room = 0.0
    if use:
        # at least what was there and was asked for; more of the step may have been to come
        room = use.total - _SPARE_GIB - max(needed, use.peak + asked)
    fitting = [saving for saving in found if use and room + saving.saves >= 0]
    if fitting:
        head = "each of these settings fits by the estimate:"
    else:
        fitting = sorted(found, key=lambda saving: -saving.saves)
        alone = "no single setting fits by the estimate; " if use else ""
        head = f"{alone}these lower it most:"
    shown = fitting[:3]
    width = max((len(saving.setting) for saving in shown), default=0)
    lines = [f"  {saving.setting:<{width}}  {_saving(saving, use)}" for saving in shown]
    if not all(saving.resumes for saving in shown):
        lines.append("  (new run: a checkpoint of this one cannot go on with it)")
    return [head, *lines] if shown else []


def _shape_of(run: RunConfig, batch: MicroBatch | None) -> BatchShape:
    if batch is None:
        rows, length = run.trainer.micro_batch_size, run.data.seq_length
        cells = RunSettings(run).max_patches_per_pack
        return BatchShape(
            rows=rows, row_tokens=length, num_cells=rows * cells, num_answers=rows * length
        )
    return BatchShape(
        rows=batch.num_rows,
        row_tokens=batch.row_length,
        num_cells=batch.num_cells,
        num_answers=batch.num_text_tokens,
    )


def _saving(saving: MemorySaving, use: MemoryUse | None) -> str:
    amount = f"{saving.saves:.1f} GiB" if use else f"{saving.share:.0%}"
    return f"about {amount} less" + ("" if saving.resumes else ", new run")


class MemoryWatch(pl.Callback):
    """Knows what a step was made of when its memory ran out."""

    def __init__(self, run: RunConfig, world_size: int) -> None:
        self.run = run
        self.world_size = world_size
        self._resting_bytes = 0

    def on_train_batch_start(self, *_: Any) -> None:
        """Weights and optimizer state are all that is held between steps."""
        if torch.cuda.is_available():
            self._resting_bytes = torch.cuda.memory_allocated()

    def explain(self, trainer: pl.Trainer, module: Any, error: BaseException) -> str:
        """The message of an error for which `is_out_of_memory` is true."""
        return explain(
            self.run,
            rank=trainer.global_rank,
            step=trainer.global_step + 1,
            meter=module.meter,
            use=measure(self._resting_bytes),
            world_size=self.world_size,
            cause=str(error) or type(error).__name__,
        )
