"""What was on the device when its memory ran out, and which settings would lower it most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch

from training.config.schema import RunConfig
from training.config.tuning import trained_parts
from training.metering import MicroBatch, StepMeter

_GIB = 2**30


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
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def measure(resting_bytes: int) -> MemoryUse | None:
    """The memory of this rank's device; None without a CUDA device.

    Args:
        resting_bytes: allocated before the step began.
    """
    if not torch.cuda.is_available():
        return None
    _, total = torch.cuda.mem_get_info()
    peak = torch.cuda.max_memory_allocated()
    return MemoryUse(total=total / _GIB, resting=resting_bytes / _GIB, peak=peak / _GIB)


def explain(
    run: RunConfig,
    *,
    rank: int,
    step: int,
    meter: StepMeter,
    use: MemoryUse | None,
    data_parallel_size: int,
    cause: str,
) -> str:
    """The message of a run that ran out of memory.

    Args:
        run: the configuration.
        rank: this process's.
        step: the step that was running.
        meter: of that step.
        use: the device's memory; None where it is the host's.
        data_parallel_size: of the run.
        cause: the allocator's message.
    """
    lines = [f"rank {rank} ran out of memory in step {step}: {cause.splitlines()[0]}"]
    if use:
        lines.append(
            f"  of {use.total:.1f} GiB, {use.resting:.1f} held weights, gradients and optimizer "
            f"state, and the step took {use.activations:.1f} more"
        )
    if meter.micro_batches:
        lines.append("  " + describe(meter.micro_batches[-1], len(meter.micro_batches)))
    lines.append("these settings lower it most:")
    for setting, saves in advise(run, use, data_parallel_size)[:3]:
        lines.append(f"  {setting:<44} {saves}")
    return "\n".join(lines)


def describe(batch: MicroBatch, number: int) -> str:
    """One line about a micro batch."""
    return (
        f"micro batch {number}: {batch.num_rows} rows of {batch.row_length} tokens with "
        f"{len(batch.sample_keys)} samples; {batch.num_text_tokens} text, "
        f"{batch.num_visual_tokens} visual and {batch.num_padding_tokens} padding tokens; "
        f"{batch.num_cells} ViT patches, {batch.longest_segment} in the longest picture; samples: "
        + ", ".join(batch.sample_keys[:8])
        + (", …" if len(batch.sample_keys) > 8 else "")
    )


def advise(run: RunConfig, use: MemoryUse | None, data_parallel_size: int) -> list[tuple[str, str]]:
    """Settings with what each saves, the most first.

    Rough shares: recomputation keeps a fifth of the activations (layer inputs and one layer);
    halving rows or their length halves them; two tensor-parallel ranks halve both kinds. Of 18
    bytes a parameter in mixed precision (Megatron-LM's count: 2 weight, 4 gradient, 12 state) the
    distributed optimizer divides 12 by the number of data-parallel ranks, and adapters need 2.
    """
    trainer, data = run.trainer, run.data
    # without a device to ask, as of a step that takes half
    resting, active = (use.resting, use.activations) if use else (0.5, 0.5)
    offers: list[tuple[float, str]] = []
    if not run.speed.recompute:
        offers.append((0.8 * active, "speed.recompute=true"))
    if trainer.micro_batch_size > 1:
        half = trainer.micro_batch_size // 2
        share = 1 - half / trainer.micro_batch_size
        offers.append((share * active, f"trainer.micro_batch_size={half}"))
    # a tie goes to what keeps every sample
    length = data.seq_length // 2 // 8 * 8
    offers.append((0.49 * active, f"data.seq_length={length}"))
    offers.append((0.4 * active, f"data.max_pixels={data.max_pixels // 2}"))
    if trainer.tensor_parallel_size < 8:
        tp = 2 * trainer.tensor_parallel_size
        sequence = " trainer.sequence_parallel=true" if not trainer.sequence_parallel else ""
        name = f"trainer.tensor_parallel_size={tp}{sequence}"
        offers.append((0.48 * active + 0.5 * resting, name))
    if not trainer.distributed_optimizer and data_parallel_size > 1:
        share = 12 / 18 * (1 - 1 / data_parallel_size)
        offers.append((share * resting, "trainer.distributed_optimizer=true"))
    if run.model.tuning == "full" and "language" in trained_parts(run.model):
        offers.append((16 / 18 * resting, "model.tuning=lora"))
    return [(name, _amount(saved, use)) for saved, name in sorted(offers, key=_by_saving)]


def _by_saving(offer: tuple[float, str]) -> float:
    return -offer[0]


def _amount(saved: float, use: MemoryUse | None) -> str:
    return f"about {saved:.1f} GiB less" if use else f"about {saved:.0%} less"


class MemoryWatch(pl.Callback):
    """Knows what a step was made of when its memory ran out.

    Args:
        run: the configuration.
        data_parallel_size: of the run.
    """

    def __init__(self, run: RunConfig, data_parallel_size: int) -> None:
        self.run = run
        self.data_parallel_size = data_parallel_size
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
            data_parallel_size=self.data_parallel_size,
            cause=str(error) or type(error).__name__,
        )
