"""Layers that compute their activations again in the backward pass, behind frozen parts."""

from __future__ import annotations

from typing import Any

import torch


def with_gradient(hidden: torch.Tensor, block: Any) -> torch.Tensor:
    """The input of `block` so that what is trained in it gets gradients.

    Megatron's recomputation, like torch's reentrant one, takes part in the backward pass only where
    a layer's input has a gradient. Behind a frozen front end or embedding there is none, and
    trained layers or adapters would stay as they are, without a word.

    Args:
        hidden: (S, B, E), what the first layer gets.
        block: a `TransformerBlock`.

    Returns:
        `hidden`, or the same values with a gradient, which nothing reads.
    """
    if (
        hidden.requires_grad
        or not torch.is_grad_enabled()
        or block.config.recompute_granularity != "full"
        or not any(parameter.requires_grad for parameter in block.parameters())
    ):
        return hidden
    return hidden.detach().requires_grad_()
