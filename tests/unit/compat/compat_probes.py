"""Run as a script: which of the things that `dct_vl.compat` makes possible work here?

usage: python compat_probes.py SKIPPED,ITEMS

Activates all items but the skipped ones, tries one probe (or several) an item, and prints a JSON
line: {"active": [names], "failed": {probe: error}}. A probe uses the stack as training does, so
that it passes without its item as soon as an upgrade makes the item unnecessary.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import torch


def dynamo() -> None:
    from megatron.core.jit import jit_fuser

    def function(x: torch.Tensor) -> torch.Tensor:
        return x + 1

    if jit_fuser(function) is not function:
        raise AssertionError("jit_fuser compiles")


def cuda_redirect() -> None:
    start_megatron()
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    model_parallel_cuda_manual_seed(1)
    values = torch.zeros(2, device="cuda").to(torch.cuda.current_device()).cuda()
    assert values.tolist() == [0, 0]


def modelopt() -> None:
    from nemo.collections.llm.modelopt.distill.utils import (
        get_tensor_shapes_adjust_fn_for_distillation,
    )
    from nemo.collections.llm.modelopt.model_utils import (
        restore_modelopt_state,
        save_modelopt_state,
    )

    assert get_tensor_shapes_adjust_fn_for_distillation
    assert save_modelopt_state
    assert restore_modelopt_state


def narrow_imports() -> None:
    import nemo.collections.vlm.qwen2vl.model.base as base

    assert base.Qwen2VLModel


def checkpoint_device() -> None:
    import nemo.lightning.io.pl as pl_io

    assert pl_io._fix_tensors_device({"a": 1}) == {"a": 1}


def lora_layers() -> None:
    """A target layer of Megatron's, as in the local layer spec."""
    from nemo.collections.llm.peft.lora import LoRA

    start_megatron()
    from megatron.core.tensor_parallel.layers import ColumnParallelLinear
    from megatron.core.transformer.transformer_config import TransformerConfig

    config = TransformerConfig(
        num_layers=1, hidden_size=4, num_attention_heads=1, use_cpu_initialization=True
    )
    layer = ColumnParallelLinear(
        4, 4, config=config, init_method=torch.nn.init.zeros_, bias=False, gather_output=False
    )
    assert LoRA(dim=2).transform(layer, name="linear_qkv").adapter.dim == 2


def adam_fresh_state() -> None:
    """The state of an optimizer that has not stepped, which a checkpoint is loaded into."""
    make_optimizer().state_dict()


def adam_own_steps() -> None:
    """After loading, each parameter counts steps of its own."""
    optimizer = make_optimizer()
    step_once(optimizer)
    optimizer.load_state_dict(optimizer.state_dict())
    set_states(optimizer, with_step=True)
    step_once(optimizer)
    steps = [state["step"].item() for state in optimizer.optimizer.state.values()]
    assert steps == [2.0] * len(steps), f"steps {steps}"


def adam_absent_step() -> None:
    """A checkpoint's tensors of a parameter come without a step."""
    optimizer = make_optimizer()
    step_once(optimizer)
    set_states(optimizer, with_step=False)


@torch.no_grad()
def set_states(optimizer: Any, *, with_step: bool) -> None:
    """Hand every parameter its own state back, as a checkpoint's reader does."""
    names = ("exp_avg", "exp_avg_sq", "step") if with_step else ("exp_avg", "exp_avg_sq")
    for param, (group, order) in optimizer.model_param_group_index_map.items():
        main = optimizer.optimizer.param_groups[group]["params"][order]
        state = optimizer.optimizer.state[main]
        tensors = {"param": main.detach().clone()} | {name: state[name] for name in names}
        optimizer._set_main_param_and_optimizer_states(param, tensors)


def start_megatron() -> None:
    from megatron.core import parallel_state

    if not parallel_state.is_initialized():
        store = torch.distributed.HashStore()
        torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
        parallel_state.initialize_model_parallel()


def make_optimizer() -> Any:
    start_megatron()
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
    from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
    from megatron.core.transformer.module import MegatronModule
    from megatron.core.transformer.transformer_config import TransformerConfig

    config = TransformerConfig(num_layers=1, hidden_size=4, num_attention_heads=1)
    module = MegatronModule(config)
    module.first = torch.nn.Linear(4, 4)
    module.second = torch.nn.Linear(4, 4)
    wrapped = DistributedDataParallel(
        config, DistributedDataParallelConfig(use_distributed_optimizer=True), module
    )
    settings = OptimizerConfig(optimizer="adam", lr=0.1, use_distributed_optimizer=True)
    return get_megatron_optimizer(settings, [wrapped]).chained_optimizers[0]


def step_once(optimizer: Any) -> None:
    for group in optimizer.optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.ones_like(parameter)
    optimizer.optimizer.step()


PROBES: dict[str, Callable[[], None]] = {
    "dynamo": dynamo,
    "cuda-redirect": cuda_redirect,
    "modelopt": modelopt,
    "narrow-imports": narrow_imports,
    "checkpoint-device": checkpoint_device,
    "lora-layers": lora_layers,
    "torch-adam-state: fresh": adam_fresh_state,
    "torch-adam-state: own steps": adam_own_steps,
    "torch-adam-state: absent step": adam_absent_step,
}


def main(skipped: set[str]) -> None:
    from dct_vl.compat import activate

    active = activate(skip=skipped)
    failed = {}
    for name, probe in PROBES.items():
        try:
            probe()
        except Exception as error:
            failed[name] = repr(error)
    print("\n" + json.dumps({"active": active, "failed": failed}))


if __name__ == "__main__":
    main(set(filter(None, sys.argv[1].split(","))))
