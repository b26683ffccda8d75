"""The language model: losses or logits of the tokens that they are wanted of, and first choices.

Shape legend: B rows, S sequence, H width, V vocabulary, N tokens with loss.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from megatron.core import parallel_state as ps
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from megatron.core.tensor_parallel.layers import ColumnParallelLinear

from dct_vl.inputs.batch import Batch
from dct_vl.model.attention import Attended
from dct_vl.model.fused.linear_cross_entropy import linear_cross_entropy


class AnswerLossGPTModel(GPTModel):
    """GPTModel that takes embeddings with explicit positions."""

    def forward(  # type: ignore[override]
        self,
        embeddings: torch.Tensor | None,
        position_ids: torch.Tensor,
        attended: Attended,
        *,
        labels: torch.Tensor | None,
        answer_indices: torch.Tensor | None,
        runtime_gather_output: bool | None,
    ) -> torch.Tensor:
        """Run this rank's layers.

        Args:
            embeddings: (S, B, H); None behind the first stage.
            position_ids: (3, B, S) int64 M-RoPE ids.
            attended: of every layer.
            labels: (B, S) int64; None for logits.
            answer_indices: (N,) int64, places in (B, S) row after row: losses of these only, all
                others are 0, as a loss mask would make them; or logits of these only. None for
                every token. Where an adapter wraps the output layer, every loss is made.
            runtime_gather_output: gather logits over tensor-parallel ranks.

        Returns:
            Hidden states (S, B, H); of the last stage losses (B, S), or logits (B, S, V), of chosen
            tokens (N, 1, V).
        """
        hidden = self.decoder(
            hidden_states=embeddings,
            attention_mask=None,
            rotary_pos_emb=self.rotary_pos_emb(position_ids, self.mrope_section),
            packed_seq_params=attended,
        )
        if not self.post_process:
            return hidden
        if labels is not None and answer_indices is not None:
            if isinstance(self.output_layer, ColumnParallelLinear):
                return self._answer_losses(hidden, labels, answer_indices)
        elif answer_indices is not None:
            if self.config.sequence_parallel:
                raise ValueError("logits of chosen tokens cannot be had in sequence parallelism")
            length = len(hidden)
            hidden = hidden[answer_indices % length, answer_indices // length][None]
        weight = None
        if self.share_embeddings_and_output_weights:
            weight = self.shared_embedding_or_output_weight()
        logits, _ = self.output_layer(
            hidden, weight=weight, runtime_gather_output=runtime_gather_output
        )
        if labels is None:
            return logits.transpose(0, 1).contiguous()
        return self.compute_language_model_loss(labels, logits)

    def _answer_losses(
        self, hidden_states: torch.Tensor, labels: torch.Tensor, positions: torch.Tensor
    ) -> torch.Tensor:
        layer = self.output_layer
        weight = layer.weight
        if self.share_embeddings_and_output_weights:
            weight = self.shared_embedding_or_output_weight()
        if layer.sequence_parallel:
            hidden_states = gather_from_sequence_parallel_region(
                hidden_states, tensor_parallel_output_grad=True, group=layer.tp_group
            )
        rows, length = labels.shape
        # (S, B) places of the same tokens
        places = positions % length * rows + torch.div(positions, length, rounding_mode="floor")
        chosen = hidden_states.flatten(0, 1).index_select(0, places)
        losses = linear_cross_entropy(
            chosen,
            weight,
            labels.flatten().index_select(0, positions),
            group=layer.tp_group,
            sums_gradient=not layer.sequence_parallel,
        )
        return losses.new_zeros(rows * length).index_copy(0, positions, losses).view(rows, length)


def scored_forward(model: torch.nn.Module, batch: Batch) -> tuple[Any, torch.Tensor | None]:
    """A forward pass that also says which answer tokens were the model's first choice.

    Args:
        model: with a `language_model`, wrapped or not.
        batch: with labels on the last pipeline stage.

    Returns:
        What the model gives for the batch, and bool (B, S) where its first choice is the
        label; None for the second on other stages than the last.
    """
    labels = batch.labels
    if labels is None:
        return model(batch), None
    logits = model(replace(batch, labels=None))  # (B, S, V / tensor-parallel ranks)
    inner: Any = model
    while not hasattr(inner, "language_model"):
        inner = inner.module
    losses = inner.language_model.compute_language_model_loss(
        labels, logits.transpose(0, 1).contiguous()
    )
    return (losses, batch.loss_mask), first_choice(logits) == labels


def first_choice(logits: torch.Tensor) -> torch.Tensor:
    """int64 (B, S): the id with the largest logit, over all tensor-parallel ranks, of which this
    one has (B, S, V / ranks).
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
