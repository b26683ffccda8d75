"""Continue prompts token by token, with a cache of keys and values.

Shape legend: B rows, S length of the longest prompt, M visual tokens, H width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from megatron.core import parallel_state as ps

from dct_vl.inference.loading import LoadedModel
from dct_vl.inference.pipeline import agree, staged_forward
from dct_vl.inference.sampling import Sampling, TokenChooser
from dct_vl.inputs.batch import pad_batch
from dct_vl.inputs.samples import EncodedChat
from dct_vl.model.kv_cache import Places, cached_attention


@dataclass(frozen=True, kw_only=True)
class DecodeOptions:
    """How answers are made."""

    sampling: Sampling = field(default_factory=Sampling)
    #: an answer ends before the first of these texts
    stop: tuple[str, ...] = ()


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
    options: DecodeOptions | None = None,
    watch: Callable[[Sequence[int]], None] | None = None,
) -> list[Decoded]:
    """Answer a batch of prompts.

    All ranks of a model call this at the same time with the same prompts, and all get the answers.

    Args:
        model: this process's part of a model.
        prompts: any number that fits the memory; their keys seed what is drawn.
        limits: most tokens of each answer, at least 1.
        options: greedy by default.
        watch: called after each step with the tokens of the first answer so far.
    """
    options = options or DecodeOptions()
    device = model.device
    fields = pad_batch(prompts, visual=model.visual, pad_to=None, pad_multiple=1)
    lengths = torch.tensor([len(prompt.input_ids) for prompt in prompts], device=device)
    visual = _visual_embeddings(model, prompts, fields) if ps.is_pipeline_first_stage() else None
    # text goes on after the largest id so far, in all three rows
    position = fields["position_ids"].amax(dim=(0, 2)).to(device)
    choose = TokenChooser(options.sampling, [prompt.__key__ for prompt in prompts])
    rows = _Rows(model, limits, options.stop)
    places = Places(lengths, int(lengths.max()) + max(limits))
    with cached_attention(model.module.language_model, places):
        logits = staged_forward(
            model.module,
            fields["input_ids"].to(device),
            fields["position_ids"].to(device),
            last=lengths - 1,
            visual=visual,
        )
        places.end_prompts()
        while True:
            chosen = _choose(choose, logits, lengths)
            wants_more = rows.add(chosen.tolist())
            if watch is not None:
                watch(rows.tokens[0])
            if not wants_more:
                return rows.decoded()
            position = position + 1
            logits = staged_forward(
                model.module,
                chosen[:, None],
                position[None, :, None].expand(3, -1, -1),
                last=torch.zeros_like(lengths),
                visual=None,
            )
            places.advance()


@torch.inference_mode()
def logits_of(model: LoadedModel, prompt: EncodedChat, places: torch.Tensor) -> torch.Tensor:
    """(P, vocabulary) after the tokens at `places` (P,) int64 of a prompt, without a cache; for a
    model that is not divided into pipeline stages.
    """
    fields = pad_batch([prompt], visual=model.visual, pad_to=None, pad_multiple=1)
    logits: torch.Tensor = model.module(
        input_ids=fields["input_ids"].to(model.device),
        position_ids=fields["position_ids"].to(model.device),
        visual=_visual_embeddings(model, [prompt], fields),
        answer_positions=places.to(model.device),
        runtime_gather_output=True,
    )
    return logits[:, 0]


def _visual_embeddings(
    model: LoadedModel, prompts: Sequence[EncodedChat], fields: dict[str, Any]
) -> torch.Tensor | None:
    """(M, H) of the prompts of `pad_batch`'s fields, or None where none has a picture."""
    if all(prompt.pictures.cells is None for prompt in prompts):
        return None
    device = model.device
    return model.module.encode_cells(
        fields["cells"].to(device),
        fields["vit_positions"].to(device),
        fields["vit_cu_seqlens"].to(device),
        fields["vit_grids"],
        fields["longest_segment"],
    )


def _choose(
    choose: Callable[[torch.Tensor], torch.Tensor],
    logits: torch.Tensor | None,
    like: torch.Tensor,
) -> torch.Tensor:
    """(B,) int64, the same on all ranks."""
    return agree(torch.empty_like(like) if logits is None else choose(logits.float()))


class _Rows:
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
    places = [place for mark in stop if (place := text.find(mark)) >= 0]
    return (text[: min(places)], True) if places else (text, False)
