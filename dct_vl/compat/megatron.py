"""Megatron-core 0.15.3 without Transformer Engine and Apex, and with NumPy 2."""

from __future__ import annotations

import functools
import importlib.util
import sys
from typing import Any

import numpy as np
import torch

_NEED_CUDA = ("transformer_engine", "apex")


def installed_without_cuda() -> bool:
    """True where Transformer Engine or Apex is installed and torch sees no CUDA device."""
    if torch.cuda.is_available():
        return False
    return any(name not in sys.modules and is_installed(name) for name in _NEED_CUDA)


def hide_cuda_packages() -> None:
    """Make them unimportable in this process: Megatron takes their optimizer wherever they are."""
    for name in _NEED_CUDA:
        sys.modules[name] = None  # type: ignore[assignment]


def is_installed(name: str) -> bool:
    """Is a package installed, and not hidden?"""
    if name in sys.modules:
        return sys.modules[name] is not None
    return importlib.util.find_spec(name) is not None


@functools.cache
def have_transformer_engine() -> bool:
    """True where `transformer_engine.pytorch` imports and a CUDA device is there to run it."""
    if not torch.cuda.is_available() or not is_installed("transformer_engine"):
        return False
    try:
        import transformer_engine.pytorch  # noqa: F401
    except (ImportError, OSError, RuntimeError):
        return False
    return True


def fused_adam_is_missing() -> bool:
    """True where neither Transformer Engine nor Apex offers its FusedAdam."""
    return not any(is_installed(name) for name in _NEED_CUDA)


def carry_step() -> None:
    """Let `DistributedOptimizer` save and load the state of torch's AdamW, which has a `step`.

    Four places of `megatron/core/optimizer/distrib_optimizer.py` (0.15.3) expect otherwise.
    `state_dict` reads the step of a fresh optimizer, which has no state yet: the state that AdamW
    would make at its first step is made before. `load_state_dict` gives all parameters one and the
    same step tensor, which AdamW would then count up once a parameter.
    `_set_main_param_and_optimizer_states` wants a step among a parameter's loaded tensors, which
    their readers leave out because it is set already: it is handed in, as a copy of its own.
    And `state_dict` wants exactly one step also of a pipeline stage whose parameters are all
    frozen; its groups get the step 0, which nothing reads.
    """
    from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

    original_state_dict = DistributedOptimizer.state_dict
    original_set = DistributedOptimizer._set_main_param_and_optimizer_states

    def state_dict(self: Any) -> dict[str, Any]:
        adam = self.optimizer
        if not adam.state:
            for group in adam.param_groups:
                for parameter in group["params"]:
                    adam.state[parameter] = {
                        "step": torch.tensor(0.0),
                        "exp_avg": torch.zeros_like(parameter),
                        "exp_avg_sq": torch.zeros_like(parameter),
                    }
        if not adam.state:
            groups = adam.state_dict()["param_groups"]
            return {
                "optimizer": {
                    "param_groups": [
                        {k: v for k, v in group.items() if k != "params"} | {"step": 0.0}
                        for group in groups
                    ]
                }
            }
        return original_state_dict(self)

    def set_states(self: Any, model_param: torch.Tensor, tensors: dict[str, Any]) -> None:
        group, order = self.model_param_group_index_map[model_param]
        main_param = self.optimizer.param_groups[group]["params"][order]
        state = self.optimizer.state[main_param]
        # one tensor is shared by all parameters at this point, and AdamW counts it up in place
        state["step"] = state["step"].detach().clone()
        original_set(self, model_param, {"step": state["step"], **tensors})

    DistributedOptimizer.state_dict = state_dict
    DistributedOptimizer._set_main_param_and_optimizer_states = set_states


def product_is_missing() -> bool:
    """True with NumPy 2, which calls it `prod` only."""
    return not hasattr(np, "product")


def restore_product() -> None:
    """`numpy.product`, for Megatron's distributed checkpoints."""
    np.product = np.prod  # type: ignore[attr-defined]
