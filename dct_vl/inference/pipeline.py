"""Run a model whose layers and matrices may be divided over ranks, for answers.

Shape legend: B rows, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state as ps

from dct_vl.inputs.batch import Batch
from dct_vl.model.families.qwen_vl.model import QwenVLWithVisualTokenizer
from dct_vl.model.kv_cache import KeyValueCache


def staged_forward(
    module: QwenVLWithVisualTokenizer, batch: Batch, cache: KeyValueCache
) -> torch.Tensor | None:
    """Run this rank's stage between the one before and the one after.

    All ranks of a model call this at the same time with the same tokens.

    Args:
        module: this rank's stage.
        batch: on the device, with the one token of each row whose logits are wanted.
        cache: of earlier tokens.

    Returns:
        (B, V) on the last stage, the whole vocabulary; None on the others.
    """
    rows, length = batch.input_ids.shape
    group = ps.get_pipeline_model_parallel_group()
    if not ps.is_pipeline_first_stage():
        weight = next(module.language_model.parameters())
        hidden = weight.new_empty(length, rows, module.language_model.config.hidden_size)
        dist.recv(hidden, src=ps.get_pipeline_model_parallel_prev_rank(), group=group)
        module.language_model.set_input_tensor(hidden)
    output: Any = module(batch, cache=cache, runtime_gather_output=True)
    if not ps.is_pipeline_last_stage():
        dist.send(output.contiguous(), dst=ps.get_pipeline_model_parallel_next_rank(), group=group)
        return None
    return output[:, 0]


def agree(tokens: torch.Tensor) -> torch.Tensor:
    """The tokens (B,) of the last rank of a model, on all of its ranks."""
    group = ps.get_model_parallel_group()
    ranks = dist.get_process_group_ranks(group)
    if len(ranks) > 1:
        # ranks of the last stage have the highest numbers
        dist.broadcast(tokens, src=max(ranks), group=group)
    return tokens
