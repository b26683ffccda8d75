"""Greedy answers in batches.

The pictures are encoded once; the text is run again for every new token, which is exact, needs no
cache, and is meant for short answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from data_prep.schema import Turn
from evaluation.loading import LoadedModel
from training.data.batch import visual_fields
from training.data.images import header_size
from training.data.pictures import encode_pictures
from training.data.plan_chat import place_media
from training.data.samples import EncodedChat


@dataclass(frozen=True, kw_only=True)
class Question:
    """A conversation that ends with a user's turn, and its pictures."""

    key: str
    turns: tuple[Turn, ...]
    #: encoded bytes, for their size
    images: tuple[bytes, ...]
    #: decoded uint8 (1, H, W, 3), which may differ from the bytes (blank pictures)
    frames: tuple[np.ndarray, ...]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the model said."""

    text: str
    num_visual_tokens: int


def answer(
    model: LoadedModel, questions: Sequence[Question], max_new_tokens: int = 16
) -> list[Answer]:
    """Answer a batch of questions greedily.

    Args:
        model: a loaded model.
        questions: any number that fits the memory.
        max_new_tokens: an answer is cut there if the end mark has not come.

    Raises:
        ValueError: a question that `encode_question` refuses.
    """
    return answer_encoded(model, [encode_question(model, q) for q in questions], max_new_tokens)


@torch.inference_mode()
def answer_encoded(
    model: LoadedModel, samples: Sequence[EncodedChat], max_new_tokens: int = 16
) -> list[Answer]:
    """As `answer`, of questions that `encode_question` has prepared."""
    pictures = [sample.pictures for sample in samples]
    fields = visual_fields(pictures, model.visual)
    device = model.device
    visual: torch.Tensor | None = model.module.encode_cells(
        fields["cells"].to(device),
        fields["vit_positions"].to(device),
        fields["vit_cu_seqlens"].to(device),
        fields["vit_grids"].to(device),
        fields["longest_segment"],
    )
    if all(p.cells is None for p in pictures):
        visual = None
    end = model.chat.tokenizer.eos_token_id
    ids = [list(sample.input_ids) for sample in samples]
    next_position = [int(sample.position_ids[:, -1].max()) + 1 for sample in samples]
    positions = [sample.position_ids for sample in samples]
    answers: list[list[int]] = [[] for _ in samples]
    open_rows = set(range(len(samples)))
    for _ in range(max_new_tokens):
        logits = _last_logits(model, ids, positions, visual)
        for row, token in enumerate(logits.argmax(-1).tolist()):
            if row not in open_rows:
                continue
            if token == end:
                open_rows.discard(row)
                continue
            answers[row].append(token)
            ids[row].append(token)
            column = np.full((3, 1), next_position[row], dtype=np.int64)
            positions[row] = np.concatenate((positions[row], column), axis=1)
            next_position[row] += 1
        if not open_rows:
            break
    return [
        Answer(
            text=model.chat.tokenizer.decode(tokens, skip_special_tokens=True).strip(),
            num_visual_tokens=int((sample.input_ids < 0).sum()),
        )
        for tokens, sample in zip(answers, samples, strict=True)
    ]


def encode_question(model: LoadedModel, question: Question) -> EncodedChat:
    """Token ids, positions and cells of a question.

    Raises:
        ValueError: marks and pictures differ in number, the text holds a control token, or a
            picture cannot be read or planned.
    """
    plans = [model.visual.plan(*header_size(data)) for data in question.images]
    pictures = encode_pictures(model.visual, question.frames, plans)
    chat = model.chat.prompt(question.turns, len(question.images))
    ids, is_answer, positions = place_media(chat, model.chat.pad_ids, pictures.plans)
    return EncodedChat(
        __key__=question.key,
        __restore_key__=(),
        input_ids=ids,
        is_answer=is_answer,
        position_ids=positions,
        pictures=pictures,
    )


def _last_logits(
    model: LoadedModel,
    ids: list[list[int]],
    positions: list[np.ndarray],
    visual: torch.Tensor | None,
) -> torch.Tensor:
    """Logits (rows, vocabulary) after the last token of each row."""
    lengths = [len(row) for row in ids]
    input_ids = torch.zeros((len(ids), max(lengths)), dtype=torch.long)
    position_ids = torch.zeros((3, len(ids), max(lengths)), dtype=torch.long)
    for row, (tokens, places) in enumerate(zip(ids, positions, strict=True)):
        input_ids[row, : len(tokens)] = torch.tensor(tokens)
        position_ids[:, row, : len(tokens)] = torch.from_numpy(places)
    device = model.device
    logits = model.module(
        input_ids=input_ids.to(device), position_ids=position_ids.to(device), visual=visual
    )
    return logits[torch.arange(len(ids)), torch.tensor(lengths) - 1]
