"""Continue prompts token by token, with a cache of keys and values.

Shape legend: B rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state as ps

from dct_vl.inference.loading import LoadedModel
from dct_vl.inference.sampling import AnswerSettings, TokenChooser
from dct_vl.inputs.batch import Batch, pad_batch
from dct_vl.inputs.samples import EncodedChat
from dct_vl.model.families.qwen_vl.model import QwenVLWithVisualTokenizer
from dct_vl.model.kv_cache import KeyValueCache


def staged_forward(
    module: QwenVLWithVisualTokenizer, batch: Batch, cache: KeyValueCache
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


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """What followed a prompt."""

    #: without the end mark
    tokens: tuple[int, ...]
    #: False where the answer was cut off at its limit
    is_finished: bool


@torch.inference_mode()
def decode(
    model: LoadedModel,
    prompts: Sequence[EncodedChat],
    limits: Sequence[int],
    settings: AnswerSettings | None = None,
    watch: Callable[[Sequence[int]], None] | None = None,
) -> list[Decoded]:
    """Answer a batch of prompts.

    All ranks of a model call this at the same time with the same prompts, and all get the answers.

    Args:
        prompts: any number that fits the memory; their keys seed what is drawn.
        limits: most tokens of each answer, at least 1.
        settings: greedy by default; the prompts are encoded already, so that bounds play no part.
        watch: called after each step with the tokens of the first answer so far.
    """
    settings = settings or AnswerSettings()
    device = model.device
    batch = prompt_batch(model, prompts)
    lengths = torch.tensor(batch.sample_lengths, device=device)
    rows = torch.arange(len(prompts), device=device)
    # text goes on after the largest id so far, in all three rows
    position = batch.position_ids.amax(dim=(0, 2))
    choose = TokenChooser(settings.sampling, batch.sample_keys)
    answers = _Answers(model, limits, settings.stop)
    cache = KeyValueCache(lengths, max(batch.sample_lengths) + max(limits))
    last = rows * batch.input_ids.shape[1] + lengths - 1
    logits = staged_forward(model.module, replace(batch, answer_indices=last), cache)
    cache.end_prompts()
    while True:
        chosen = _choose(choose, logits, lengths)
        wants_more = answers.add(chosen.tolist())
        if watch is not None:
            watch(answers.tokens[0])
        if not wants_more:
            return answers.decoded()
        position = position + 1
        step = Batch(
            input_ids=chosen[:, None],
            position_ids=position[None, :, None].expand(3, -1, -1),
            answer_indices=rows,
        )
        logits = staged_forward(model.module, step, cache)
        cache.advance()


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
    batch = pad_batch(prompts, visual=model.visual, pad_to=None, pad_multiple=1)
    batch = replace(batch, labels=None, loss_mask=None)
    if not batch.num_visual_tokens or not ps.is_pipeline_first_stage():
        batch = replace(batch, visual=None)
    return model.on_device(batch)


def _choose(
    choose: Callable[[torch.Tensor], torch.Tensor],
    logits: torch.Tensor | None,
    like: torch.Tensor,
) -> torch.Tensor:
    """A token a row, (rows,) int64, the same on all ranks."""
    return agree(torch.empty_like(like) if logits is None else choose(logits.float()))


class _Answers:
    """The answers of a batch as they grow."""

    def __init__(self, model: LoadedModel, limits: Sequence[int], stop: Sequence[str]) -> None:
        self.model = model
        self.limits = limits
        self.stop = stop
        self.tokens: list[list[int]] = [[] for _ in limits]
        self.is_finished = [False] * len(limits)
        self.open = {row for row, limit in enumerate(limits) if limit > 0}

    def add(self, chosen: Sequence[int]) -> bool:
        """Take a token for each row; False once no row wants another."""
        for row in sorted(self.open):
            if chosen[row] in self.model.end_ids:
                self._close(row)
                continue
            self.tokens[row].append(chosen[row])
            if self.stop and cut_at(self.model.text(self.tokens[row]), self.stop)[1]:
                self._close(row)
            elif len(self.tokens[row]) >= self.limits[row]:
                self.open.discard(row)
        return bool(self.open)

    def _close(self, row: int) -> None:
        self.is_finished[row] = True
        self.open.discard(row)

    def decoded(self) -> list[Decoded]:
        rows = zip(self.tokens, self.is_finished, strict=True)
        return [Decoded(tokens=tuple(tokens), is_finished=done) for tokens, done in rows]


def cut_at(text: str, stop: Sequence[str]) -> tuple[str, bool]:
    """The text before the first of the stop texts, and whether there was one."""
    found = [start for mark in stop if (start := text.find(mark)) >= 0]
    return (text[: min(found)], True) if found else (text, False)
