"""torch.compile for pure functions, where it pays."""

from __future__ import annotations

import functools
import itertools
import types
from collections.abc import Callable
from typing import Any, TypeVar

import torch

F = TypeVar("F", bound=Callable[..., Any])

_state = {"on": True}
_numbers = itertools.count()


def allow_compiling(on: bool) -> None:
    """Turn compilation in this process on or off; functions then run as they are written."""
    _state["on"] = on


def may_compile(tensor: torch.Tensor) -> bool:
    """Whether kernels are made for what is computed from `tensor`."""
    return _state["on"] and tensor.is_cuda


def compiled_on_cuda(function: F) -> F:
    """Run `function` through torch.compile where its first tensor lies on a CUDA device.

    Only functions of tensors and constants are compiled, never modules: the guards stay few, and
    parallel layers, hooks and attention kernels stay out of the graph. Every combination of widths,
    dtypes and constants gets a copy of its own, because torch makes a dimension dynamic for good
    once it has seen two sizes, and kernels with a dynamic width are slow: the two towers must not
    meet in one copy. Lengths may change; they become dynamic at the second one.
    """

    @functools.cache
    def compiled(*_: Any) -> Callable[..., Any]:
        code = function.__code__
        # torch keeps what it has seen of sizes by a function's file, line and name
        name = f"{function.__name__}_{next(_numbers)}"
        copy = types.FunctionType(code.replace(co_name=name), function.__globals__, name)
        compiled_copy: Callable[..., Any] = torch.compile(copy)
        return compiled_copy

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        if may_compile(args[0]):
            return compiled(*map(_traits, args))(*args)
        return function(*args)

    return call  # type: ignore[return-value]


def _traits(argument: Any) -> Any:
    """What a copy is made for: dtype, rank and width of a tensor, or the constant itself."""
    if not isinstance(argument, torch.Tensor):
        return argument
    # tensors of one dimension are biases, whose width another argument has, or as long as the batch
    width = argument.shape[-1] if argument.ndim > 1 else None
    return argument.dtype, argument.ndim, width, argument.requires_grad
