"""The backward pass of SwiGLU in one kernel. Imported only where there is a CUDA device.

Inductor writes the two halves of the gradient as a concatenation and reads its operands once for
each; this kernel reads them once, and gives the activation again besides.
"""

from __future__ import annotations

import torch
import triton  # type: ignore[import-not-found,unused-ignore]
import triton.language as tl  # type: ignore[import-not-found,unused-ignore]

BLOCK = 1024


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _kernel(grad, x, activation, grad_x, width, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    short, long = row * width + column, row * width * 2 + column
    gate = tl.load(x + long, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(x + long + width, mask=inside, other=0.0).to(tl.float32)
    wanted = tl.load(grad + short, mask=inside, other=0.0).to(tl.float32)
    sigmoid = tl.sigmoid(gate)
    silu = gate * sigmoid
    tl.store(activation + short, silu * up, mask=inside)
    tl.store(grad_x + long, wanted * up * sigmoid * (1.0 + gate - silu), mask=inside)
    tl.store(grad_x + long + width, wanted * silu, mask=inside)


def swiglu_backward(grad: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """silu(gate) · up again, and the gradient of (gate, up).

    Args:
        grad: (..., F).
        x: (..., 2 F), the gate first.

    Returns:
        (..., F) and (..., 2 F), as `x`.
    """
    grad, x = grad.contiguous(), x.contiguous()
    activation, grad_x = torch.empty_like(grad), torch.empty_like(x)
    width = grad.shape[-1]
    if grad.numel():
        grid = (grad.numel() // width, triton.cdiv(width, BLOCK))
        _kernel[grid](grad, x, activation, grad_x, width, BLOCK=BLOCK)
    return activation, grad_x
