"""Guards against bad steps: loss or gradients that are not finite, and loss spikes."""

from __future__ import annotations

import math
import sys
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from megatron.core import parallel_state as ps

from dct_vl.errors import RunError
from dct_vl.runs.run_files import append_json_line
from dct_vl.training.watch.metering import MicroBatch

if TYPE_CHECKING:  # it needs `dct_vl.compat.activate`
    from dct_vl.training.optim.speed import SpeedUp

BAD_STEPS_NAME = "bad_steps"
#: losses that a spike is measured against, and how many of them there must be
_WINDOW, _LEAST = 100, 10
#: updates that are left out in a row at most: it is no longer the batches then
MOST_IN_A_ROW = 10


class SpikeMeter:
    """Says what is wrong with a step's figures, from those of the steps before.

    Args:
        factor: a loss above this many times the median of the last 100 good ones is a spike; 0
            looks for none.
    """

    def __init__(self, factor: float = 0.0) -> None:
        self.factor = factor
        self.losses: deque[float] = deque(maxlen=_WINDOW)

    def judge(self, loss: float, grad_norm: float | None) -> str | None:
        """The fault of a step, None for a good one, which is remembered."""
        if not math.isfinite(loss):
            return "the loss is not finite"
        if grad_norm is not None and not math.isfinite(grad_norm):
            return f"the gradient norm is {grad_norm}"
        if self.factor and len(self.losses) >= _LEAST:
            usual = median(self.losses)
            if loss > self.factor * usual:
                return f"the loss is {loss:.4g}, {loss / usual:.1f} times the usual {usual:.4g}"
        self.losses.append(loss)
        return None


class GuardRails(pl.Callback):
    """Looks at every step between its gradients and its update, on all ranks alike.

    Checkpoints hold its state under its name.

    Args:
        run_dir: the run's folder; BAD_STEPS_NAME in it lists the samples of bad steps.
        policy: stop (the run ends, the update is not made) | skip (the update is left out, and the
            run goes on, unless it is the tenth in a row) | ignore.
        spike_factor: see `SpikeMeter`.
        speed_up: whose pending factors go with a step that is left out.
    """

    def __init__(
        self, run_dir: Path, *, policy: str, spike_factor: float, speed_up: SpeedUp
    ) -> None:
        self.run_dir = run_dir
        self.policy = policy
        self.meter = SpikeMeter(spike_factor)
        self.speed_up = speed_up
        self._group: dist.ProcessGroup | None = None
        self._grad_norm: float | None = None
        self._stop: str | None = None
        self._num_in_a_row = 0

    def state_dict(self) -> dict[str, Any]:
        return {"losses": list(self.meter.losses)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.meter.losses.extend(state_dict["losses"])

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Stand between Megatron's gradient norm and its update."""
        if self.policy == "ignore":
            return
        if dist.get_world_size() > 1:
            self._group = dist.new_group(backend="gloo")
        for optimizer in trainer.optimizers:
            mcore = optimizer.mcore_optimizer  # type: ignore[attr-defined]
            mcore.get_grad_norm = self._remember(mcore.get_grad_norm)
            mcore.step_with_ready_grads = self._guard(mcore.step_with_ready_grads, trainer, module)

    def on_train_batch_end(self, *_: Any) -> None:
        """End the run, after the other callbacks have written what they know of the step.

        Raises:
            RunError: the step was bad, and the policy is to stop.
        """
        if self._stop:
            raise RunError(self._stop)

    def _remember(self, get_grad_norm: Callable[[], float]) -> Callable[[], float]:
        def remembering() -> float:
            self._grad_norm = get_grad_norm()
            return self._grad_norm

        return remembering

    def _guard(
        self, update: Callable[[], bool], trainer: pl.Trainer, module: Any
    ) -> Callable[[], bool]:
        def guarded() -> bool:
            loss, grad_norm = self._agree(module.training_loss_reduction.latest)
            fault = self.meter.judge(loss, grad_norm)
            if fault is None:
                self._num_in_a_row = 0
                return update()
            self._num_in_a_row += 1
            self._report(trainer, module, fault, loss, grad_norm)
            if self.speed_up.pending is not None:
                self.speed_up.pending.forget()
            return False

        return guarded

    def _agree(self, loss: torch.Tensor | None) -> tuple[float, float | None]:
        """The step's loss and gradient norm, the same on all ranks.

        The gradient norm has waited for the device already. Only last pipeline stages know the
        loss.
        """
        norm = self._grad_norm
        known = float(loss) if loss is not None and ps.is_pipeline_last_stage() else -math.inf
        # NaN does not take part in a maximum
        worst = [math.inf if v is None or math.isnan(v) else float(v) for v in (known, norm or 0.0)]
        if self._group is not None:
            both = torch.tensor(worst, dtype=torch.float64)
            dist.all_reduce(both, op=dist.ReduceOp.MAX, group=self._group)
            worst = both.tolist()
        return worst[0], worst[1] if norm is not None else None

    def _report(
        self, trainer: pl.Trainer, module: Any, fault: str, loss: float, grad_norm: float | None
    ) -> None:
        step = trainer.global_step + 1
        folder = self.run_dir / BAD_STEPS_NAME
        done = "the update was left out" if self.policy == "skip" else "the run stops before it"
        text = f"step {step}: {fault}; {done}. Its samples are in {folder}/*.jsonl"
        inner = ps.get_tensor_model_parallel_rank() + ps.get_context_parallel_rank()
        if ps.is_pipeline_last_stage() and inner == 0:
            folder.mkdir(exist_ok=True)
            path = folder / f"dp{ps.get_data_parallel_rank():04d}.jsonl"
            entry = {
                "step": step,
                "fault": fault,
                "loss": loss,
                "grad_norm": grad_norm,
                "micro_batches": describe_losses(
                    module.meter.micro_batches, module.training_loss_reduction.sums
                ),
            }
            append_json_line(path, entry)
        if self.policy == "skip" and self._num_in_a_row >= MOST_IN_A_ROW:
            self._stop = (
                f"{text}. It is the {MOST_IN_A_ROW}th in a row, which is not for the samples: the "
                "weights are broken, or losses have another level now. Go on from a checkpoint of "
                "before, under another experiment_name (trainer.resume=PATH), with a lower "
                "optim.lr or a higher trainer.spike_factor"
            )
            return
        if self.policy == "skip":
            if trainer.is_global_zero:
                print(f"\nwarning: {text}", file=sys.stderr)
            return
        self._stop = (
            f"{text}. Go on from the newest checkpoint with trainer.on_bad_loss=skip to leave "
            "such updates out, or =ignore to make them"
        )


def describe_losses(
    micro_batches: Sequence[MicroBatch], sums: torch.Tensor | None
) -> list[dict[str, Any]]:
    """Sample keys and mean loss of each micro batch of a rank; null where it is not finite."""
    pairs = sums.tolist() if sums is not None else [[math.nan, 1.0]] * len(micro_batches)
    return [
        {"loss": total / count if count else None, "keys": list(batch.sample_keys)}
        for batch, (total, count) in zip(micro_batches, pairs, strict=True)
    ]
