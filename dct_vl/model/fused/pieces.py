"""The elementwise parts of a transformer layer, each in one kernel where torch.compile makes it.

Shape legend: S sequence, B micro batch, E width of the layer, G key/value groups, Q query heads a
group, D head size, F width of the MLP. All operate as Megatron's layers do, in the same order.
"""

from __future__ import annotations

import functools
import itertools
import types
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F

Function = TypeVar("Function", bound=Callable[..., Any])

_state = {"on": True}
_numbers = itertools.count()


def allow_compiling(on: bool) -> None:
    """Turn compilation in this process on or off; functions then run as they are written."""
    _state["on"] = on


def may_compile(tensor: torch.Tensor) -> bool:
    """Whether kernels are made for what is computed from `tensor`."""
    return _state["on"] and tensor.is_cuda


def compiled_on_cuda(function: Function) -> Function:
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


def _norm(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, eps: float, is_rms: bool
) -> torch.Tensor:
    """RMS norm or layer norm over the last dimension."""
    if is_rms:
        return F.rms_norm(x, (x.shape[-1],), weight, eps)
    return F.layer_norm(x, (x.shape[-1],), weight, bias, eps)


norm = compiled_on_cuda(_norm)


@compiled_on_cuda
def add_and_norm(
    x: torch.Tensor,
    x_bias: torch.Tensor | None,
    residual: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    eps: float,
    is_rms: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """x + x_bias + residual, and its norm: both (S, B, E)."""
    total = residual + (x if x_bias is None else x + x_bias)
    return total, _norm(total, weight, bias, eps, is_rms)


@compiled_on_cuda
def add(x: torch.Tensor, x_bias: torch.Tensor | None, residual: torch.Tensor) -> torch.Tensor:
    """x + x_bias + residual."""
    return residual + (x if x_bias is None else x + x_bias)


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


@compiled_on_cuda
def split_and_rotate(
    mixed: torch.Tensor,
    bias: torch.Tensor | None,
    cos: torch.Tensor,
    sin: torch.Tensor,
    num_groups: int,
    head_size: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Query, key and value out of Megatron's mixed layout, the first two rotated.

    Args:
        mixed: (S, B, G (Q + 2) D), groups outermost: Q query heads, a key and a value each.
        bias: (G (Q + 2) D,), not added yet, or None.
        cos, sin: (S, B or 1, 1, D) in the dtype of `mixed`.
        num_groups, head_size: G, D.

    Returns:
        (S, B, G Q, D), (S, B, G, D), (S, B, G, D), contiguous.
    """
    if bias is not None:
        mixed = mixed + bias
    length, rows, _ = mixed.shape
    heads = mixed.view(length, rows, num_groups, -1, head_size)
    query = heads[..., :-2, :].reshape(length, rows, -1, head_size)
    key, value = heads[..., -2, :], heads[..., -1, :]
    query, key = _rotate(query, cos, sin), _rotate(key, cos, sin)
    return query.contiguous(), key.contiguous(), value.contiguous()


@compiled_on_cuda
def swiglu(x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """silu(gate) · up of (S, B, 2 F), the gate first."""
    gate, up = (x if bias is None else x + bias).chunk(2, dim=-1)
    return F.silu(gate) * up


@compiled_on_cuda
def quick_gelu(x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """x · sigmoid(1.702 x), as OpenAI's CLIP has it."""
    x = x if bias is None else x + bias
    return x * torch.sigmoid(1.702 * x)


def swiglu_backward(
    grad: torch.Tensor, x: torch.Tensor, bias: torch.Tensor | None, wants_bias: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """`swiglu` again, (S, B, F), and the gradients of x, (S, B, 2 F), and of its bias."""
    if bias is None and may_compile(x):
        from dct_vl.model.fused import swiglu_kernel

        return *swiglu_kernel.swiglu_backward(grad, x), None
    return _swiglu_backward(grad, x, bias, wants_bias)


@compiled_on_cuda
def _swiglu_backward(
    grad: torch.Tensor, x: torch.Tensor, bias: torch.Tensor | None, wants_bias: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    gate, up = (x if bias is None else x + bias).chunk(2, dim=-1)
    sigmoid = torch.sigmoid(gate)
    silu = gate * sigmoid
    of_gate = grad * up * sigmoid * (1 + gate - silu)
    of_x = torch.cat((of_gate, grad * silu), dim=-1)
    return silu * up, of_x, of_x.flatten(0, -2).sum(0) if wants_bias else None


@compiled_on_cuda
def quick_gelu_backward(
    grad: torch.Tensor, x: torch.Tensor, bias: torch.Tensor | None, wants_bias: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """`quick_gelu` again and the gradient of x, both in the shape of x, and of its bias."""
    x = x if bias is None else x + bias
    sigmoid = torch.sigmoid(1.702 * x)
    active = x * sigmoid
    of_x = grad * (sigmoid + 1.702 * active * (1 - sigmoid))
    return active, of_x, of_x.flatten(0, -2).sum(0) if wants_bias else None
