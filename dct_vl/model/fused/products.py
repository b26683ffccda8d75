"""Matrix products that add their weights' gradients straight to Megatron's sums.

Megatron keeps float32 sums of gradients, `main_grad`, beside the bf16 parameters. A product's
backward pass otherwise writes a bf16 gradient that is then read, widened and added in a pass of its
own. Here the product adds to the sum itself, in float32, as Apex's fused weight gradient does.

The second product of an MLP keeps what its activation is made of, not the activation, which is made
again in the backward pass, by the kernel that needs its ingredients anyway.
Shape legend: S sequence, B micro batch, F width of the MLP, E width of the layer.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F

from dct_vl.model.fused import pieces

Activation = Literal["swiglu", "quick_gelu"]
_FORWARD = {"swiglu": pieces.swiglu, "quick_gelu": pieces.quick_gelu}
_BACKWARD = {"swiglu": pieces.swiglu_backward, "quick_gelu": pieces.quick_gelu_backward}


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


class _ActivatedProduct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        bias: torch.Tensor | None,
        weight: torch.Tensor,
        activation: Activation,
    ) -> torch.Tensor:
        ctx.save_for_backward(x, bias, weight)
        ctx.activation = activation
        return F.linear(_FORWARD[activation](x, bias), weight)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, bias, weight = ctx.saved_tensors
        active, grad_x, grad_bias = _BACKWARD[ctx.activation](
            grad @ weight, x, bias, ctx.needs_input_grad[1]
        )
        grad_weight = None
        if ctx.needs_input_grad[2]:
            rows = grad.flatten(0, -2), active.flatten(0, -2)
            if has_main_gradient(weight):
                add_weight_gradient(weight, *rows)
            else:
                grad_weight = rows[0].t() @ rows[1]
        return grad_x, grad_bias, grad_weight, None


def activated_product(
    x: torch.Tensor, bias: torch.Tensor | None, weight: torch.Tensor, activation: Activation
) -> torch.Tensor:
    """activation(x + bias) weightᵀ, (S, B, E), of x (S, B, F), of SwiGLU (S, B, 2 F), and weight
    (E, F).
    """
    result: torch.Tensor = _ActivatedProduct.apply(x, bias, weight, activation)
    return result
