"""Cross-entropy of an output layer without float32 logits of all tokens.

Shape legend: N tokens, H width, V vocabulary of this tensor-parallel rank.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from dct_vl.model.fused.pieces import compiled_on_cuda
from dct_vl.model.fused.products import add_weight_gradient, has_main_gradient

#: tokens whose logits exist at once: 0.6 GB of bf16 for a vocabulary of 151,936
CHUNK = 2048
#: bytes of logits that are kept for the backward pass; beyond, they are computed again
KEEP_BYTES = 1 << 31


@compiled_on_cuda
def _statistics(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-sum-exp and label's logit, 0 where the label is another rank's: float32 (N,) each."""
    scores = logits.float()
    inside = (labels >= 0) & (labels < logits.shape[1])
    place = torch.where(inside, labels, 0)
    target = scores.gather(1, place[:, None]).squeeze(1)
    return scores.logsumexp(1), torch.where(inside, target, 0.0)


@compiled_on_cuda
def _gradient(
    logits: torch.Tensor, labels: torch.Tensor, lse: torch.Tensor, scale: torch.Tensor
) -> torch.Tensor:
    """(softmax - one-hot) · scale, in the dtype of the logits."""
    softmax = torch.exp(logits.float() - lse[:, None])
    ids = torch.arange(logits.shape[1], device=logits.device)
    return ((softmax - (ids == labels[:, None]).float()) * scale[:, None]).to(logits.dtype)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        labels: torch.Tensor,
        group: dist.ProcessGroup | None,
        chunk: int,
        keep_bytes: int,
    ) -> torch.Tensor:
        ranks = group if group is not None and group.size() > 1 else None
        if ranks is not None:
            labels = labels - ranks.rank() * weight.shape[0]
        keeps = len(hidden) * weight.shape[0] * hidden.element_size() <= keep_bytes
        parts, kept = [], []
        for start in range(0, len(hidden), chunk):
            logits = hidden[start : start + chunk] @ weight.t()
            parts.append(_statistics(logits, labels[start : start + chunk]))
            if keeps:
                kept.append(logits)
        empty = hidden.new_empty(0, dtype=torch.float32)
        lse = torch.cat([empty, *(part[0] for part in parts)])
        target = torch.cat([empty, *(part[1] for part in parts)])
        if ranks is not None:
            all_lse = [torch.empty_like(lse) for _ in range(ranks.size())]
            dist.all_gather(all_lse, lse, group=ranks)
            lse = torch.stack(all_lse).logsumexp(0)
            dist.all_reduce(target, group=ranks)
        ctx.save_for_backward(hidden, weight, labels, lse, *kept)
        ctx.chunk = chunk
        return lse - target

    @staticmethod
    def backward(ctx: Any, grad_loss: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden, weight, labels, lse, *kept = ctx.saved_tensors
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        chunks = range(0, len(hidden), ctx.chunk)
        into_main = wants_weight and has_main_gradient(weight)
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        grad_weight = None
        for number, start in enumerate(chunks):
            part = slice(start, start + ctx.chunk)
            logits = kept[number] if kept else hidden[part] @ weight.t()
            grad = _gradient(logits, labels[part], lse[part], grad_loss[part])
            if grad_hidden is not None:
                torch.mm(grad, weight, out=grad_hidden[part])
            if into_main:
                add_weight_gradient(weight, grad, hidden[part])
            elif wants_weight:
                product = grad.t() @ hidden[part]
                if len(chunks) == 1:
                    grad_weight = product
                elif grad_weight is None:
                    grad_weight = product.float()  # sums of many chunks would lose bits in bf16
                else:
                    grad_weight += product
        if wants_weight and not into_main:
            zero = torch.zeros_like(weight) if grad_weight is None else grad_weight
            grad_weight = zero.to(weight.dtype)
        return grad_hidden, grad_weight, None, None, None, None


class _SumGradient(torch.autograd.Function):
    """Identity whose gradient is summed over a group."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        grad = grad.contiguous()
        dist.all_reduce(grad, group=ctx.group)
        return grad, None


def linear_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    *,
    group: dist.ProcessGroup | None = None,
    sums_gradient: bool = True,
    chunk: int = CHUNK,
    keep_bytes: int = KEEP_BYTES,
) -> torch.Tensor:
    """-log softmax(hidden @ weight.T)[labels] with at most `chunk` rows of logits in float32.

    Logits have the dtype of `hidden`; log-sum-exp and loss are float32. Gradients flow to `hidden`
    and `weight`, which may be tied to the embedding.

    Args:
        hidden: (N, H), the same on all ranks of `group`.
        weight: (V, H): this rank's rows of the output layer.
        labels: (N,) int64 in 0 .. ranks * V - 1.
        group: tensor-parallel group that the vocabulary is divided over.
        sums_gradient: sum the gradient of `hidden` over `group`; False where the caller's own
            backward pass does it (a reduce-scatter of sequence parallelism).
        chunk: rows of logits at once.
        keep_bytes: logits up to this size are kept for the backward pass.

    Returns:
        (N,) float32.
    """
    if group is not None and group.size() > 1 and sums_gradient:
        hidden = _SumGradient.apply(hidden, group)
    loss: torch.Tensor = _LinearCrossEntropy.apply(hidden, weight, labels, group, chunk, keep_bytes)
    return loss
