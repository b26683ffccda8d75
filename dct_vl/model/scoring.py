"""A forward pass that also says which answer tokens were the model's first choice.

Shape legend: B rows, S sequence, V vocabulary.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from megatron.core import parallel_state as ps

from dct_vl.inputs.batch import Batch


def scored_forward(model: torch.nn.Module, batch: Batch) -> tuple[Any, torch.Tensor | None]:
    """Run a model in evaluation.

    Args:
        model: a `QwenVLWithVisualTokenizer`, wrapped or not.
        batch: with labels on the last pipeline stage.

    Returns:
        What the model gives for the batch, and bool (B, S) where its first choice is the
        label; None for the second on other stages than the last.
    """
    labels = batch.labels
    if labels is None:
        return model(batch), None
    logits = model(replace(batch, labels=None))  # (B, S, V / tensor-parallel ranks)
    language_model = _innermost(model).language_model
    losses = language_model.compute_language_model_loss(labels, logits.transpose(0, 1).contiguous())
    return (losses, batch.loss_mask), first_choice(logits) == labels


def first_choice(logits: torch.Tensor) -> torch.Tensor:
    """int64 (B, S): the id with the largest logit, over all tensor-parallel ranks.

    Args:
        logits: (B, S, V / ranks), this rank's part of the vocabulary.
    """
    best, place = logits.max(dim=-1)
    ranks = ps.get_tensor_model_parallel_world_size()
    if ranks == 1:
        return place
    group = ps.get_tensor_model_parallel_group()
    place = place + ps.get_tensor_model_parallel_rank() * logits.shape[-1]
    all_best = [torch.empty_like(best) for _ in range(ranks)]
    all_places = [torch.empty_like(place) for _ in range(ranks)]
    torch.distributed.all_gather(all_best, best.contiguous(), group=group)
    torch.distributed.all_gather(all_places, place.contiguous(), group=group)
    winner = torch.stack(all_best).argmax(dim=0, keepdim=True)
    return torch.stack(all_places).gather(0, winner).squeeze(0)


def _innermost(model: Any) -> Any:
    while not hasattr(model, "language_model"):
        model = model.module
    return model
