"""Gradients of weights that matrix products add straight to Megatron's sums.

Megatron keeps float32 sums of gradients, `main_grad`, beside the bf16 parameters. A product's
backward pass otherwise writes a bf16 gradient that is then read, widened and added in a pass of its
own. Here the product adds to the sum itself, in float32, as Apex's fused weight gradient does.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F


def has_main_gradient(weight: torch.Tensor) -> bool:
    """True for a trained weight whose float32 sum exists: Megatron's DDP is around the model."""
    main = getattr(weight, "main_grad", None)
    return weight.requires_grad and main is not None and main.dtype == torch.float32


def add_weight_gradient(weight: torch.Tensor, grad: torch.Tensor, x: torch.Tensor) -> None:
    """weight.main_grad += gradᵀ x.

    Args:
        weight: (O, I), for which `has_main_gradient` holds.
        grad: (N, O) of the product x weightᵀ.
        x: (N, I).
    """
    main: torch.Tensor = weight.main_grad  # type: ignore[attr-defined]
    if grad.dtype == main.dtype:
        main.addmm_(grad.t(), x)
    elif grad.is_cuda:
        torch.ops.aten.addmm.dtype_out(main, grad.t(), x, main.dtype, out=main)
    else:  # no such product on the CPU
        main.add_(grad.t() @ x)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        return F.linear(x, weight)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, None]:
        x, weight = ctx.saved_tensors
        grad_x = grad @ weight if ctx.needs_input_grad[0] else None
        add_weight_gradient(weight, grad.flatten(0, -2), x.flatten(0, -2))
        # Megatron's hook adds what arrives at the parameter, and nothing does
        return grad_x, None


def product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x weightᵀ, (..., I) and (O, I) → (..., O); the weight's gradient goes where its sum is, if it
    has one.
    """
    if torch.is_grad_enabled() and has_main_gradient(weight):
        result: torch.Tensor = _Product.apply(x, weight)
        return result
    return F.linear(x, weight)
