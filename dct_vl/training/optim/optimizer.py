"""Megatron's optimizer with a learning rate for each part of the model, and its schedule."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import megatron.core.optimizer as megatron_optimizer
import torch
from megatron.core import parallel_state as ps
from megatron.core.distributed import finalize_model_grads
from megatron.core.optimizer import OptimizerConfig
from nemo.core.optim.lr_scheduler import CosineAnnealing
from nemo.lightning.pytorch.optim import (
    CosineAnnealingScheduler,
    LRSchedulerModule,
    MegatronOptimizerModule,
)

from dct_vl.model.parts import Part, part_of


class PartOptimizer(MegatronOptimizerModule):
    """NeMo's optimizer module whose parameter groups differ by part.

    Megatron-core 0.15.3 knows one multiplier for all parameters that meet one condition. Here its
    own function makes the groups once for each multiplier in use, and what it keeps (no weight
    decay on biases and norms, the same groups on all ranks, names in checkpoints) is Megatron's.

    Args:
        lr_scheduler: the schedule of the base rate.
        multipliers: learning rate of each part as a multiple of the base rate.
    """

    def __init__(
        self,
        config: OptimizerConfig,
        lr_scheduler: LRSchedulerModule,
        *,
        multipliers: Mapping[Part, float],
    ) -> None:
        super().__init__(config=config, lr_scheduler=lr_scheduler)
        self.multipliers = dict(multipliers)

    def optimizers(self, model: Any) -> list[torch.optim.Optimizer]:
        if set(self.multipliers.values()) == {1.0}:
            return super().optimizers(model)
        with _groups_by(self.multipliers):
            return super().optimizers(model)

    def finalize_model_grads(
        self,
        model: Sequence[Any],
        num_tokens: torch.Tensor | None = None,
        pg_collection: Any = None,
    ) -> None:
        """Gradients summed over ranks and divided by the tokens with loss of the global batch.

        Megatron asks the device whether there are any, and the host then prepares the update only
        after the backward pass has ended; without the question it does so meanwhile.
        """
        finalize_model_grads(model, None, pg_collection=pg_collection)
        if num_tokens is None:
            return
        stages = ps.get_pipeline_model_parallel_group()
        last = ps.get_pipeline_model_parallel_last_rank()
        torch.distributed.broadcast(num_tokens, src=last, group=stages)
        replicas = ps.get_data_parallel_group(with_context_parallel=True)
        torch.distributed.all_reduce(num_tokens, group=replicas)
        for chunk in model:
            chunk.scale_gradients(1.0 / num_tokens.clamp(min=1))

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Use this run's weight decay and betas; a checkpoint has brought those of its run."""
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["weight_decay"] = self.config.weight_decay * group.get("pre_wd_mult", 1.0)
                group["betas"] = (self.config.adam_beta1, self.config.adam_beta2)

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the base rate, whichever part the first group belongs to."""
        for group in self._optimizers[0].param_groups:
            multiplier = group.get("pre_lr_mult", 1.0)
            if multiplier:
                rate = group["lr"] if multiplier == 1.0 else group["lr"] / multiplier
                pl_module.log("lr", rate, batch_size=1, prog_bar=True)
                return


@contextmanager
def _groups_by(multipliers: Mapping[Part, float]) -> Iterator[None]:
    """Let Megatron make its groups once for each multiplier in use."""
    stock = megatron_optimizer._get_param_groups

    def grouped(
        model_chunks: Any, no_weight_decay_cond: Any, _condition: Any, _multiplier: Any, **rest: Any
    ) -> list[dict[str, Any]]:
        groups = []
        for wanted in sorted(set(multipliers.values())):
            # the others get a multiplier that no group has, and are left out here
            made = stock(
                model_chunks,
                no_weight_decay_cond,
                lambda name, parameter, wanted=wanted: multipliers[part_of(name)] != wanted,
                -1.0,
                **rest,
            )
            for group in made:
                if group["lr_mult"] == 1.0:
                    groups.append({**group, "lr_mult": wanted})
        return sorted(groups, key=lambda g: (g["lr_mult"], g["wd_mult"]))

    megatron_optimizer._get_param_groups = grouped
    try:
        yield
    finally:
        megatron_optimizer._get_param_groups = stock


#: what a checkpoint says about the place in the schedule; its shape is this run's own
_PLACE = ("last_epoch", "_step_count", "_last_lr")


class ResumedCosine(CosineAnnealing):
    """NeMo's cosine, whose floor follows a part's own rate, and which takes from a checkpoint how
    far it is and nothing else.

    A run that resumes with a raised `trainer.max_steps` would otherwise keep its old length, and
    train at the floor from there on.
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
    """Linear warm-up, then a cosine down to `min_lr` at step `num_steps`.

    MegatronStrategy overwrites a scheduler's `max_steps` with the Trainer's, which is where this
    process stops. A run that is stopped in its middle and resumed would bend its schedule twice.

    Args:
        num_steps: length of the run in steps.
        warmup_steps: steps from 0 to the learning rate of the optimizer.
        min_lr: the end of the cosine.
    """

    def __init__(self, *, num_steps: int, warmup_steps: int, min_lr: float) -> None:
        super().__init__(
            max_steps=num_steps, warmup_steps=warmup_steps, constant_steps=0, min_lr=min_lr
        )
        self.num_steps = num_steps

    def scheduler(self, model: Any, optimizer: Any) -> dict[str, Any]:
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
