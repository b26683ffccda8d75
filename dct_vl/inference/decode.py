"""Forward passes of a loaded model that give logits, as they are or replayed.

Shape legend: B rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state as ps

from dct_vl.inference.loading import LoadedModel
from dct_vl.inputs.batch import Batch, pad_batch
from dct_vl.inputs.samples import EncodedChat
from dct_vl.model.families.qwen_vl.model import QwenVLWithVisualTokenizer
from dct_vl.model.kv_cache import SlotCache


def staged_forward(
    module: QwenVLWithVisualTokenizer, batch: Batch, cache: SlotCache
) -> torch.Tensor | None:
    """Run this rank's stage between the one before and the one after.

    All ranks of a model call this at the same time with the same tokens.

    Args:
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


class StepGraphs:
    """A step as a CUDA graph for each number of rows: asked for kernel by kernel, it takes the host
    ten times as long as the device.

    The first step of a number runs as it is, and compiles what is compiled; the second one is
    recorded.
    """

    def __init__(self) -> None:
        self._graphs: dict[int, torch.cuda.CUDAGraph | None] = {}

    def run(self, step: Callable[[int], None], num_rows: int) -> None:
        """Run `step(num_rows)`, which is the same one every time."""
        if num_rows not in self._graphs:
            self._graphs[num_rows] = None
            step(num_rows)
            return
        graph = self._graphs[num_rows]
        if graph is None:
            graph = torch.cuda.CUDAGraph()
            pool = next((g.pool() for g in self._graphs.values() if g is not None), None)
            # other threads prepare images meanwhile, and may ask for memory
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                step(num_rows)
            self._graphs[num_rows] = graph
        graph.replay()


@torch.inference_mode()
def logits_of(model: LoadedModel, prompt: EncodedChat, indices: torch.Tensor) -> torch.Tensor:
    """(P, vocabulary) after the tokens at `indices` (P,) int64 of a prompt, without a cache; for a
    model that is not divided into pipeline stages.
    """
    batch = replace(prompt_batch(model, [prompt]), answer_indices=indices.to(model.device))
    logits: torch.Tensor = model.module(batch, runtime_gather_output=True)
    return logits[:, 0]


def prompt_batch(model: LoadedModel, prompts: Sequence[EncodedChat]) -> Batch:
    """Prompts as padded rows on the model's device, for logits."""
    return for_logits(model, pad_batch(prompts, visual=model.visual, pad_to=None, pad_multiple=1))


def for_logits(model: LoadedModel, batch: Batch) -> Batch:
    """A batch on the model's device, without what only losses want."""
    batch = replace(batch, labels=None, loss_mask=None)
    if not batch.num_visual_tokens or not ps.is_pipeline_first_stage():
        batch = replace(batch, visual=None)
    return model.on_device(batch)


def cut_at(text: str, stop: Sequence[str]) -> tuple[str, bool]:
    """The text before the first of the stop texts, and whether there was one."""
    found = [start for mark in stop if (start := text.find(mark)) >= 0]
    return (text[: min(found)], True) if found else (text, False)
