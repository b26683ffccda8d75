"""Ask a checkpoint every question of held-out samples and compare with the true answers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from tqdm import tqdm

from evaluation.greedy import Question, answer
from evaluation.held_out import HeldOut, read_split
from evaluation.loading import LoadedModel
from training.data.images import decode_rgb

#: grey of the blank pictures; Qwen2-VL's normalisation maps it close to 0
BLANK_LEVEL = 118


@dataclass(frozen=True, kw_only=True)
class AnswerOptions:
    """How questions are asked."""

    split: str = "val"
    #: samples; None takes the whole split
    limit: int | None = None
    #: every picture replaced by an even grey one of its size: what can be guessed
    blank: bool = False
    batch_size: int = 32
    max_new_tokens: int = 16


def questions_of(sample: HeldOut, *, blank: bool) -> Iterator[tuple[int, Question, str]]:
    """(turn, question, truth) for every assistant turn; earlier turns keep their true answers."""
    frames = tuple(decode_rgb(data) for data in sample.images)
    if blank:
        frames = tuple(np.full_like(f, BLANK_LEVEL) for f in frames)
    for position, turn in enumerate(sample.record.turns):
        if turn.role == "assistant":
            question = Question(
                key=sample.key,
                turns=sample.record.turns[:position],
                images=sample.images,
                frames=frames,
            )
            yield position, question, turn.text


def write_answers(model: LoadedModel, options: AnswerOptions, output: Path) -> float:
    """Write one JSON line a question to `output` and return the share of exact answers.

    A line holds key, turn, question, truth, answer, correct, source and num_visual_tokens.
    """
    total = correct = 0
    output.parent.mkdir(parents=True, exist_ok=True)
    with open(output, "wb") as file, tqdm(desc=output.stem, unit="answer") as bar:
        for batch in _batches(model, options):
            answers = answer(
                model, [question for _, question, _, _ in batch], options.max_new_tokens
            )
            for (turn, question, truth, source), given in zip(batch, answers, strict=True):
                is_correct = given.text == truth.strip()
                line: dict[str, Any] = {
                    "key": question.key,
                    "turn": turn,
                    "question": question.turns[-1].text,
                    "truth": truth,
                    "answer": given.text,
                    "correct": is_correct,
                    "source": source,
                    "num_visual_tokens": given.num_visual_tokens,
                }
                file.write(orjson.dumps(line) + b"\n")
                total += 1
                correct += is_correct
            bar.update(len(batch))
            bar.set_postfix(exact=f"{correct / total:.3f}")
    return correct / total


def _batches(
    model: LoadedModel, options: AnswerOptions
) -> Iterator[list[tuple[int, Question, str, str]]]:
    batch: list[tuple[int, Question, str, str]] = []
    for sample in read_split(model.run.data.path, options.split, options.limit):
        for turn, question, truth in questions_of(sample, blank=options.blank):
            batch.append((turn, question, truth, sample.record.source))
            if len(batch) == options.batch_size:
                yield batch
                batch = []
    if batch:
        yield batch
