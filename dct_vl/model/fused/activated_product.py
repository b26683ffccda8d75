"""The second product of an MLP, which keeps what its activation is made of, not the activation.

The activation is made again in the backward pass, by the kernel that needs its ingredients anyway.
Shape legend: S sequence, B micro batch, F width of the MLP, E width of the layer.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F

from dct_vl.model.fused import pieces
from dct_vl.model.fused.main_gradient import add_weight_gradient, has_main_gradient

Activation = Literal["swiglu", "quick_gelu"]
_FORWARD = {"swiglu": pieces.swiglu, "quick_gelu": pieces.quick_gelu}
_BACKWARD = {"swiglu": pieces.swiglu_backward, "quick_gelu": pieces.quick_gelu_backward}


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
    """activation(x + bias) weightᵀ.

    Args:
        x: (S, B, F), of SwiGLU (S, B, 2 F).
        bias: of x, or None.
        weight: (E, F).
        activation: one of `dct_vl.model.fused.pieces`.

    Returns:
        (S, B, E).
    """
    result: torch.Tensor = _ActivatedProduct.apply(x, bias, weight, activation)
    return result
