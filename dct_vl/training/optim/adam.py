"""Faster steps of torch's AdamW inside Megatron: gradients scaled in its kernel, lists made once.

A step scales every gradient twice: by one over the number of answer tokens, and by the clipping
coefficient. Each is a read and a write of 4 bytes a parameter. Both factors are known before AdamW
reads the gradients anyway, and its fused kernel takes a scale.

Between the gradient norm, which the host waits for, and AdamW's first kernel the device is idle;
and while AdamW runs, the host has to get as far as the next step's first layers. With a thousand
parameters, lists of tensors that are made anew in every step cost several milliseconds.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch


class PendingScale:
    """The factors that gradients have yet to be multiplied by, until AdamW has done it."""

    def __init__(self) -> None:
        self.tokens: torch.Tensor | float = 1.0
        self.clip = 1.0

    def forget(self) -> None:
        """AdamW leaves this step out."""
        self.tokens, self.clip = 1.0, 1.0

    def scale_gradients(self, factor: torch.Tensor | float) -> None:
        """In the place of `DistributedDataParallel.scale_gradients`."""
        self.tokens = self.tokens * factor

    def l2_norm(
        self, chunk_size: int, noop_flag: Any, tensor_lists: list[list[torch.Tensor]], *_: Any
    ) -> tuple[torch.Tensor, None]:
        """In the place of `multi_tensor_l2norm`: (1,), of the gradients as they will be."""
        norms = torch._foreach_norm(tensor_lists[0])
        return (torch.linalg.vector_norm(torch.stack(norms)) * self.tokens).view(1), None

    def clip_gradients(
        self,
        parameters: Any,
        max_norm: float,
        total_norm: float,
        use_decoupled_grad: bool = False,
    ) -> None:
        """In the place of `clip_grad_by_total_norm_fp32`, which goes through all gradients while
        the device has nothing to do; all optimizers of a step clip by one coefficient.
        """
        coefficient = max_norm / (total_norm + 1e-6)
        if coefficient < 1:
            self.clip = coefficient

    def attach(self, adams: Iterable[torch.optim.AdamW]) -> None:
        """Let these optimizers, all of one step and all fused, apply the factors in their step."""
        adams = list(adams)

        def before(adam: Any, *_: Any) -> None:
            device = next(p.device for group in adam.param_groups for p in group["params"])
            # the kernel divides by its scale
            factor = torch.as_tensor(self.tokens, dtype=torch.float32, device=device) * self.clip
            adam.grad_scale = factor.reciprocal().reshape(())
            adam.found_inf = torch.zeros((), device=device)

        def after(adam: Any, *_: Any) -> None:
            del adam.grad_scale, adam.found_inf
            if adam is adams[-1]:
                self.forget()

        for adam in adams:
            adam.register_step_pre_hook(before)
            adam.register_step_post_hook(after)


_STATE = ("exp_avg", "exp_avg_sq", "step")


def remember_lists(adam: torch.optim.AdamW) -> None:
    """Let a fused AdamW look its parameters and their state up once.

    Only gradients are looked at in every step. Parameters without one, or another state (of a
    checkpoint), have the lists made anew.
    """
    stock = adam._init_group
    known: list[tuple[dict[str, Any], list[torch.Tensor], list[list[torch.Tensor]]]] = []

    def lists_of(group: dict[str, Any]) -> tuple[list[torch.Tensor], list[list[torch.Tensor]]]:
        for number, (whose, parameters, lists) in enumerate(known):
            if whose is group:
                state = adam.state.get(parameters[0], {}) if parameters else {}
                if all(state.get(n) is values[0] for n, values in zip(_STATE, lists, strict=True)):
                    return parameters, lists
                del known[number]
                break
        return [], []

    def init_group(
        group: dict[str, Any],
        parameters: list[torch.Tensor],
        grads: list[torch.Tensor],
        averages: list[torch.Tensor],
        squares: list[torch.Tensor],
        max_squares: list[torch.Tensor],
        steps: list[torch.Tensor],
    ) -> bool:
        remembered, lists = lists_of(group)
        found = [parameter.grad for parameter in remembered]
        if remembered and all(grad is not None for grad in found):
            parameters += remembered
            grads += found  # type: ignore[arg-type]
            for target, values in zip((averages, squares, steps), lists, strict=True):
                target += values
            return False
        has_complex: bool = stock(group, parameters, grads, averages, squares, max_squares, steps)
        is_whole = len(parameters) == len(group["params"]) > 0
        if is_whole and not remembered and not group["amsgrad"] and not has_complex:
            # a checkpoint brings other groups; nothing else is to hold the state of the former ones
            known[:] = [one for one in known if any(one[0] is g for g in adam.param_groups)]
            known.append((group, list(parameters), [list(averages), list(squares), list(steps)]))
        return has_complex

    adam._init_group = init_group  # type: ignore[method-assign]


def copy_at_once(optimizer: Any) -> bool:
    """Let Megatron's distributed optimizer copy its float32 parameters to the bf16 ones by lists.

    Returns:
        Whether this optimizer copies one by one, and does no longer.
    """
    from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

    if (
        type(optimizer) is not DistributedOptimizer
        or optimizer.is_stub_optimizer
        or optimizer.ddp_config.use_megatron_fsdp
        or optimizer.config.use_precision_aware_optimizer_no_fp8_or_ds_fp8
        or any(optimizer._get_fp8_params_and_shard_fp32_from_fp8())
    ):
        return False
    targets: list[torch.Tensor] = []
    sources: list[torch.Tensor] = []
    for mains, models in (
        (optimizer.shard_fp32_from_float16_groups, optimizer.model_float16_groups),
        (optimizer.shard_fp32_groups, optimizer.model_fp32_groups),
    ):
        for main_group, model_group in zip(mains, models, strict=True):
            for main, model in zip(main_group, model_group, strict=True):
                buffer, _, bucket = optimizer.model_param_gbuf_map[model]
                place = optimizer._get_model_param_range_map(model)["gbuf_world_in_bucket"]
                data = optimizer.buffers[buffer].buckets[bucket].param_data.view(-1)
                targets.append(data[place.start : place.end])
                sources.append(main)

    def copy() -> None:
        if targets:
            torch._foreach_copy_(targets, [source.detach() for source in sources])

    optimizer._copy_main_params_to_model_params = copy
    return True
