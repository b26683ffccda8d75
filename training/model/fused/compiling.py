"""torch.compile for pure functions, where it pays."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch

F = TypeVar("F", bound=Callable[..., Any])

_state = {"on": True}


def allow_compiling(on: bool) -> None:
    """Turn compilation in this process on or off; functions then run as they are written."""
    _state["on"] = on


def compiled_on_cuda(function: F) -> F:
    """Run `function` through torch.compile where its first tensor lies on a CUDA device.

    Only functions of tensors and constants are compiled, never modules: the guards stay few, and
    parallel layers, hooks and attention kernels stay out of the graph. A length that changes makes
    its dimension dynamic at the second shape.
    """
    compiled = functools.cache(lambda: torch.compile(function))

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        if _state["on"] and args[0].is_cuda:
            return compiled()(*args)
        return function(*args)

    return call  # type: ignore[return-value]
