"""Lists of tensors that the optimizer makes anew in every step, made once.

Between the gradient norm, which the host waits for, and AdamW's first kernel the device has nothing
to do; and while AdamW runs, the host has to get as far as the next step's first layers. With a
thousand parameters the lists cost several milliseconds a step.
"""

from __future__ import annotations

from typing import Any

import torch

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
