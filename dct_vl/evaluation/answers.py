"""Ask a checkpoint every question of held-out samples and compare with the true answers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from tqdm import tqdm

from dct_vl.evaluation.greedy import Question, answer_encoded, encode_question
from dct_vl.evaluation.whole_file import written_whole
from dct_vl.inference.loading import LoadedModel
from dct_vl.inputs.chat import IMAGE_MARK, ChatError
from dct_vl.inputs.held_out import HeldOut, read_split
from dct_vl.inputs.images import decode_rgb
from dct_vl.inputs.rejected import RejectedSamples
from dct_vl.inputs.samples import EncodedChat
from dct_vl.runs.result_names import beside

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


@dataclass(frozen=True, kw_only=True)
class Answered:
    """How it went."""

    num_questions: int
    num_correct: int
    #: samples that could not be asked about
    rejected: RejectedSamples

    @property
    def share(self) -> float:
        """Exact answers, 0..1."""
        return self.num_correct / self.num_questions


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """A question that the model can be given, and what its line says beside the answer."""

    encoded: EncodedChat
    line: dict[str, Any]


def questions_of(sample: HeldOut, *, blank: bool) -> Iterator[tuple[int, Question, str]]:
    """(turn, question, truth) for every assistant turn; earlier turns keep their true answers.

    A question has the pictures whose marks it holds; all of them where there are no marks.
    """
    frames = tuple(decode_rgb(data) for data in sample.images)
    if blank:
        frames = tuple(np.full_like(f, BLANK_LEVEL) for f in frames)
    turns = sample.record.turns
    marked = any(IMAGE_MARK in turn.text for turn in turns)
    for position, turn in enumerate(turns):
        if turn.role == "assistant":
            marks = sum(earlier.text.count(IMAGE_MARK) for earlier in turns[:position])
            shown = marks if marked else len(frames)
            question = Question(
                key=sample.key,
                turns=turns[:position],
                images=sample.images[:shown],
                frames=frames[:shown],
            )
            yield position, question, turn.text


def write_answers(model: LoadedModel, options: AnswerOptions, output: Path) -> Answered:
    """Write one JSON line a question to `output`, e.g. val.jsonl.

    A line holds key, turn, question, truth, source, step, answer, correct and num_visual_tokens.
    Samples that cannot be asked about go to val.rejected.jsonl beside it. The file is there when it
    is whole: of a process that is killed an earlier one stays, and nobody takes a part for all.

    Raises:
        ValueError: the split has no sample, or none that can be asked about.
    """
    total = correct = 0
    rejected = RejectedSamples(beside(output, "rejected.jsonl"))
    with written_whole(output) as file, tqdm(desc=output.stem, unit="answer") as bar:
        for batch in _batches(model, options, rejected):
            answers = answer_encoded(model, [one.encoded for one in batch], options.max_new_tokens)
            for one, given in zip(batch, answers, strict=True):
                is_correct = given.text == one.line["truth"].strip()
                line = one.line | {
                    "answer": given.text,
                    "correct": is_correct,
                    "num_visual_tokens": given.num_visual_tokens,
                }
                file.write(orjson.dumps(line) + b"\n")
                total += 1
                correct += is_correct
            bar.update(len(batch))
            bar.set_postfix(exact=f"{correct / total:.3f}")
        if not total:
            raise ValueError(f"the {options.split} split has no question: {rejected}")
    return Answered(num_questions=total, num_correct=correct, rejected=rejected)


def _batches(
    model: LoadedModel, options: AnswerOptions, rejected: RejectedSamples
) -> Iterator[list[_Asked]]:
    batch: list[_Asked] = []
    path = model.run.data.path
    for sample in read_split(path, options.split, options.limit, on_fault=rejected.add):
        try:
            asked = _ask(model, sample, blank=options.blank)
        except ValueError as error:
            rejected.add(sample.key, error)
            continue
        batch += asked
        while len(batch) >= options.batch_size:
            yield batch[: options.batch_size]
            del batch[: options.batch_size]
    if batch:
        yield batch


def _ask(model: LoadedModel, sample: HeldOut, *, blank: bool) -> list[_Asked]:
    """Every question of a sample, or a ValueError where training would reject the sample."""
    turns = sample.record.turns
    if sample.videos:
        raise ChatError("video", f"{len(sample.videos)} videos; questions are asked about pictures")
    model.chat.messages(turns, len(sample.images))
    if not any(turn.role == "assistant" for turn in turns):
        raise ChatError("no_answer", "the conversation has no assistant turn")
    return [
        _Asked(
            encoded=encode_question(model, question),
            line={
                "key": sample.key,
                "turn": turn,
                "question": question.turns[-1].text,
                "truth": truth,
                "source": sample.record.source,
                "step": model.step,
            },
        )
        for turn, question, truth in questions_of(sample, blank=blank)
    ]
