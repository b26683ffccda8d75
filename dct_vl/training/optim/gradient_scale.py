"""Gradients scaled inside AdamW's kernel instead of in passes over all of them.

A step scales every gradient twice: by one over the number of answer tokens, and by the clipping
coefficient. Each is a read and a write of 4 bytes a parameter. Both factors are known before AdamW
reads the gradients anyway, and its fused kernel takes a scale.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch


class PendingScale:
    """The factors that gradients have yet to be multiplied by, until AdamW has done it."""

    def __init__(self) -> None:
        self.tokens: torch.Tensor | float = 1.0
        self.clip = 1.0

    def forget(self) -> None:
        """AdamW leaves this step out."""
        self.tokens, self.clip = 1.0, 1.0

    def scale_gradients(self, factor: torch.Tensor | float) -> None:
        """In the place of `DistributedDataParallel.scale_gradients`."""
        self.tokens = self.tokens * factor

    def l2_norm(
        self, chunk_size: int, noop_flag: Any, tensor_lists: list[list[torch.Tensor]], *_: Any
    ) -> tuple[torch.Tensor, None]:
        """In the place of `multi_tensor_l2norm`: (1,), of the gradients as they will be."""
        norms = torch._foreach_norm(tensor_lists[0])
        return (torch.linalg.vector_norm(torch.stack(norms)) * self.tokens).view(1), None

    def clip_gradients(
        self,
        parameters: Any,
        max_norm: float,
        total_norm: float,
        use_decoupled_grad: bool = False,
    ) -> None:
        """In the place of `clip_grad_by_total_norm_fp32`, which goes through all gradients while
        the device has nothing to do; all optimizers of a step clip by one coefficient.
        """
        coefficient = max_norm / (total_norm + 1e-6)
        if coefficient < 1:
            self.clip = coefficient

    def attach(self, adams: Iterable[torch.optim.AdamW]) -> None:
        """Let these optimizers, all of one step and all fused, apply the factors in their step."""
        adams = list(adams)

        def before(adam: Any, *_: Any) -> None:
            device = next(p.device for group in adam.param_groups for p in group["params"])
            # the kernel divides by its scale
            factor = torch.as_tensor(self.tokens, dtype=torch.float32, device=device) * self.clip
            adam.grad_scale = factor.reciprocal().reshape(())
            adam.found_inf = torch.zeros((), device=device)

        def after(adam: Any, *_: Any) -> None:
            del adam.grad_scale, adam.found_inf
            if adam is adams[-1]:
                self.forget()

        for adam in adams:
            adam.register_step_pre_hook(before)
            adam.register_step_post_hook(after)
