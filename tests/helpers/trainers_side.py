"""What the trainer's own module says to questions about picture files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from data_prep.schema import Turn
from dct_tokenizer import VisualTokenizer
from dct_vl.evaluation.greedy import Question, answer, encode_question
from dct_vl.inference.loading import LoadedModel
from dct_vl.inputs.batch import pad_batch
from dct_vl.inputs.chat import ChatTokenizer
from dct_vl.inputs.images import decode_rgb


def loaded(module: Any, visual: VisualTokenizer, folder: Path) -> LoadedModel:
    """A module as if it had been loaded from a checkpoint."""
    chat = ChatTokenizer(AutoTokenizer.from_pretrained(folder))
    return LoadedModel(run=None, checkpoint=None, step=0, module=module, visual=visual, chat=chat)


def question(text: str, files: Sequence[Path] = ()) -> Question:
    """A question about pictures that precede it."""
    images = tuple(file.read_bytes() for file in files)
    return Question(
        key=text,
        turns=(Turn(role="user", text=text),),
        images=images,
        frames=tuple(decode_rgb(data) for data in images),
    )


@torch.no_grad()
def prompt_logits(model: LoadedModel, asked: Question) -> torch.Tensor:
    """(S, vocabulary) over the whole prompt."""
    sample = encode_question(model, asked)
    batch = pad_batch([sample], visual=model.visual, pad_to=None, pad_multiple=1)
    names = ("input_ids", "position_ids", "cells", "vit_positions", "vit_cu_seqlens", "vit_grids")
    return model.module(**{name: batch[name] for name in names})[0]


def texts(model: LoadedModel, questions: Sequence[Question], max_new_tokens: int) -> list[str]:
    """Greedy answers."""
    return [a.text for a in answer(model, questions, max_new_tokens)]
