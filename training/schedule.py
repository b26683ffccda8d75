"""The learning rate's schedule, which a run that stops early keeps."""

from __future__ import annotations

from typing import Any

from nemo.lightning.pytorch.optim import CosineAnnealingScheduler


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
        """NeMo's schedule over the whole run."""
        self.max_steps = self.num_steps
        return super().scheduler(model, optimizer)
