"""Words of the answers: the unit in which teacher-forced predictions are scored.

A word is a run of answer tokens up to the next white space. It counts as right where every one of
its tokens is the model's first choice, given the true text before it. That is the accuracy of
greedy decoding where the words of an answer do not depend on each other, from one forward pass.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import numpy as np

#: how byte-level BPE writes space, line break, carriage return and tab
_WHITE = "ĠĊčĉ"


class Role(IntEnum):
    """What a token does to the words around it."""

    #: white space and control tokens: part of no word
    OUTSIDE = 0
    #: begins with white space and goes on with letters
    STARTS = 1
    #: letters that belong to the word before them, if there is one
    CONTINUES = 2


def token_roles(tokenizer: Any, vocab_size: int) -> np.ndarray:
    """int8 (vocab_size,): the `Role` of every id; ids that the tokenizer does not know are OUTSIDE.

    Args:
        tokenizer: a byte-level BPE tokenizer of Hugging Face (Qwen2's is one).
        vocab_size: rows of the model's output layer, padding included.
    """
    roles = np.full(vocab_size, Role.OUTSIDE, dtype=np.int8)
    control = set(tokenizer.get_added_vocab().values())
    known = [i for i in range(min(vocab_size, len(tokenizer))) if i not in control]
    for number, text in zip(known, tokenizer.convert_ids_to_tokens(known), strict=True):
        if text.strip(_WHITE):
            roles[number] = Role.STARTS if text[0] in _WHITE else Role.CONTINUES
    return roles


def score_words(
    labels: np.ndarray, is_answer: np.ndarray, is_right: np.ndarray, roles: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Words of each row, and how many of them are right.

    Args:
        labels: int64 (B, S) token ids to be predicted.
        is_answer: bool (B, S), False where nothing is to be predicted.
        is_right: bool (B, S), where the first choice was the label.
        roles: from `token_roles`.

    Returns:
        num_words int64 (B,), num_right int64 (B,).
    """
    role = roles[labels]
    inside = is_answer & (role != Role.OUTSIDE)
    before = np.zeros_like(inside)
    before[:, 1:] = inside[:, :-1]
    starts = inside & ((role == Role.STARTS) | ~before)
    num_words = starts.sum(axis=1)
    # words of all rows are numbered from 0; a word with one wrong token is wrong
    number = np.cumsum(starts.ravel()) - 1
    wrong = np.zeros(int(starts.sum()), dtype=bool)
    wrong[number[(inside & ~is_right).ravel()]] = True
    row_of_word = np.repeat(np.arange(len(labels)), num_words)
    num_wrong = np.bincount(row_of_word[wrong], minlength=len(labels))
    return num_words, num_words - num_wrong
