"""Checkpoints without what Transformer Engine's norms keep beside their weights.

Its linear layers and Megatron's local ones write an entry for the state of FP8 each, empty without
FP8; of the norms only Transformer Engine's do, so that it could not read a checkpoint of the local
layer spec. The entry of a norm is always empty here and is neither written nor asked for.
"""

from __future__ import annotations

from typing import Any

import torch

_SUFFIX = "norm._extra_state"


def without_norm_state(state: dict[str, Any]) -> dict[str, Any]:
    """A sharded state dict without the entries."""
    return {name: value for name, value in state.items() if not name.endswith(_SUFFIX)}


def expect_no_norm_state(model: torch.nn.Module) -> None:
    """Let the norms of a model load where their entries are not."""
    for name, module in model.named_modules():
        has_own = type(module).set_extra_state is not torch.nn.Module.set_extra_state
        if has_own and f"{name}._extra_state".endswith(_SUFFIX):
            module.register_load_state_dict_pre_hook(_add_empty_state)


def _add_empty_state(module: torch.nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    state.setdefault(f"{prefix}_extra_state", None)
