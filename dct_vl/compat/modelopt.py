"""NVIDIA ModelOpt is absent: its hooks in NeMo's strategy become no-ops.

Without ModelOpt there is no quantised or distilled state to save or to restore, so that nothing
is lost by doing nothing.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import types
from typing import Any

_PACKAGE = "nemo.collections.llm.modelopt"


def is_missing() -> bool:
    """True where `modelopt` is not installed."""
    return importlib.util.find_spec("modelopt") is None


def install_no_op_hooks() -> None:
    """Register modules with the functions that MegatronStrategy and MegatronParallel import."""
    set_spec = _nothing
    _module(_PACKAGE, set_modelopt_spec_if_exists_in_ckpt=set_spec)
    _module(
        f"{_PACKAGE}.model_utils",
        save_modelopt_state=_nothing,
        restore_modelopt_state=lambda *args, **kwargs: contextlib.nullcontext(),
        set_modelopt_spec_if_exists_in_ckpt=set_spec,
    )
    _module(f"{_PACKAGE}.distill")
    _module(f"{_PACKAGE}.distill.utils", get_tensor_shapes_adjust_fn_for_distillation=_nothing)


def _nothing(*args: Any, **kwargs: Any) -> None:
    return None


def _module(name: str, **attributes: Any) -> None:
    module = types.ModuleType(name)
    module.__path__ = []
    module.__dict__.update(attributes)
    sys.modules[name] = module
