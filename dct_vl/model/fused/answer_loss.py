"""A language model that computes logits only for the tokens that they are wanted of.

Shape legend: B rows, S sequence, H width, N tokens with loss.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from megatron.core.tensor_parallel.layers import ColumnParallelLinear

from dct_vl.model.fused.linear_cross_entropy import linear_cross_entropy


class AnswerLossGPTModel(GPTModel):
    """GPTModel whose losses are computed at `answer_positions`, and 0 elsewhere.

    The other losses would be multiplied by a loss mask of 0. Without labels the logits of these
    positions are given, (N, 1, V). Without positions everything is GPTModel's, and losses are where
    an adapter wraps the output layer.
    """

    #: (N,) int64, places in (B, S) row after row, on the device; set for one forward pass
    answer_positions: torch.Tensor | None = None

    def _postprocess(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        labels, positions = kwargs.get("labels"), self.answer_positions
        if positions is None or not self.post_process or self.mtp_process:
            return super()._postprocess(hidden_states, *args, **kwargs)
        layer = self.output_layer
        if labels is None:
            if self.config.sequence_parallel:
                raise ValueError("logits of chosen tokens cannot be had in sequence parallelism")
            length, rows, _ = hidden_states.shape
            chosen = hidden_states[positions % length, positions // length]
            return super()._postprocess(chosen[None], *args, **kwargs)
        if not isinstance(layer, ColumnParallelLinear):
            return super()._postprocess(hidden_states, *args, **kwargs)
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
