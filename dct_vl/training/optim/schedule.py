"""The learning rate's schedule: over the whole run, wherever this process starts and stops."""

from __future__ import annotations

from typing import Any

import torch
from nemo.core.optim.lr_scheduler import CosineAnnealing
from nemo.lightning.pytorch.optim import CosineAnnealingScheduler

#: what a checkpoint says about the place in the schedule; its shape is this run's own
_PLACE = ("last_epoch", "_step_count", "_last_lr")


class ResumedCosine(CosineAnnealing):
    """NeMo's cosine, whose floor follows a part's own rate, and which takes from a checkpoint how
    far it is and nothing else.

    A run that goes on with a raised `trainer.max_steps` would otherwise keep the length that it
    had before, and train at the floor from there on.
    """

    def get_lr(self) -> list[float]:
        """Rates of all parameter groups.

        A group's rate is the base rate times its multiplier at every step, as in Megatron's own
        schedule; NeMo's would let all of them end at one floor.
        """
        scales = [group.get("pre_lr_mult", 1.0) for group in self.optimizer.param_groups]
        rates: list[float] = self.base_lrs  # type: ignore[has-type]
        if all(scale == 1.0 for scale in scales):
            return super().get_lr()
        base = max((r / s for r, s in zip(rates, scales, strict=True) if s), default=0.0)
        self.base_lrs = [base] * len(rates)
        try:
            plain = super().get_lr()
        finally:
            self.base_lrs = rates
        return [rate * scale for rate, scale in zip(plain, scales, strict=True)]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on at the checkpoint's step, with the rate that this run has there."""
        super().load_state_dict({name: state_dict[name] for name in _PLACE if name in state_dict})
        with torch.optim.lr_scheduler._enable_get_lr_call(self):
            for group, rate in zip(self.optimizer.param_groups, self.get_lr(), strict=True):
                group["lr"] = rate


class RunLongCosine(CosineAnnealingScheduler):
    """Linear warmup, then a cosine down to `min_lr` at step `num_steps`.

    MegatronStrategy overwrites a scheduler's `max_steps` with the Trainer's, which is where this
    process stops. A run that is stopped in its middle and resumed would bend its schedule twice.

    Args:
        num_steps: length of the whole run in steps.
        warmup_steps: steps from 0 to the learning rate of the optimizer.
        min_lr: the end of the cosine.
    """

    def __init__(self, *, num_steps: int, warmup_steps: int, min_lr: float) -> None:
        super().__init__(
            max_steps=num_steps, warmup_steps=warmup_steps, constant_steps=0, min_lr=min_lr
        )
        self.num_steps = num_steps

    def scheduler(self, model: Any, optimizer: Any) -> dict[str, Any]:
        """The schedule over the whole run, in Lightning's form."""
        schedule = ResumedCosine(
            optimizer,
            max_steps=self.num_steps,
            warmup_steps=self.warmup_steps,
            constant_steps=self.constant_steps,
            min_lr=self.min_lr,
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {
                "scheduler": schedule,
                "interval": self.interval,
                "frequency": self.frequency,
            },
            "monitor": self.monitor,
        }
