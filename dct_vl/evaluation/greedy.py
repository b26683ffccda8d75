"""Greedy answers in batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data_prep.schema import Turn
from dct_vl.inference.decode import decode
from dct_vl.inference.loading import LoadedModel
from dct_vl.inputs.chat import TokenizedChat
from dct_vl.inputs.images import header_size
from dct_vl.inputs.pictures import encode_pictures
from dct_vl.inputs.plan_chat import place_media
from dct_vl.inputs.samples import EncodedChat


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


def answer_encoded(
    model: LoadedModel, samples: Sequence[EncodedChat], max_new_tokens: int = 16
) -> list[Answer]:
    """As `answer`, of questions that `encode_question` has prepared."""
    found = decode(model, samples, [max_new_tokens] * len(samples))
    return [
        Answer(
            text=model.text(given.tokens).strip(),
            num_visual_tokens=int((sample.input_ids < 0).sum()),
        )
        for given, sample in zip(found, samples, strict=True)
    ]


def encode_question(model: LoadedModel, question: Question) -> EncodedChat:
    """Token ids, positions and cells of a question.

    Raises:
        ValueError: marks and pictures differ in number, the text holds a control token, or a
            picture cannot be read or planned.
    """
    chat = model.chat.prompt(question.turns, len(question.images))
    return encode_chat(model, question.key, chat, question.images, question.frames)


def encode_chat(
    model: LoadedModel,
    key: str,
    chat: TokenizedChat,
    images: Sequence[bytes],
    frames: Sequence[np.ndarray],
) -> EncodedChat:
    """A tokenised conversation with its pictures, as training sees it.

    Args:
        model: whose tokenizer plans and cuts.
        key: name of the sample.
        chat: from `ChatTokenizer`, one placeholder a picture.
        images: encoded pictures, for the size in their headers.
        frames: the same, uint8 (1, H, W, 3).
    """
    plans = [model.visual.plan(*header_size(data)) for data in images]
    pictures = encode_pictures(model.visual, frames, plans)
    ids, is_answer, positions = place_media(chat, model.chat.pad_ids, pictures.plans)
    return EncodedChat(
        __key__=key,
        __restore_key__=(),
        input_ids=ids,
        is_answer=is_answer,
        position_ids=positions,
        pictures=pictures,
    )
