"""Answer every question of a split's samples and compare with the true answers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson

from data_prep.durable import atomic_write
from dct_vl.inference.generate.engine import CheckpointEngine
from dct_vl.inference.generate.journal import Journal
from dct_vl.inference.generate.replicas import ParallelSizes, ReplicaGroup, join_replica_group
from dct_vl.inference.generate.requests import Request, Requests, digest_of
from dct_vl.inference.generate.run import generate
from dct_vl.inference.loading import LoadedModel
from dct_vl.inference.sampling import AnswerSettings
from dct_vl.inputs.chat import IMAGE_MARK, VIDEO_MARK, ChatError, count_marks
from dct_vl.inputs.rejects import RejectedSamples
from dct_vl.inputs.shard_reader import HeldOut, OnFault, read_split
from dct_vl.runs.result_files import beside

#: fields of a line of `generate` that are kept
_KEPT = ("num_visual_tokens", "damage")


@dataclass(frozen=True, kw_only=True)
class AnswerOptions:
    """How questions are asked."""

    split: str = "val"
    #: samples; None takes the whole split
    limit: int | None = None
    #: replace every image and video by an even grey one of its size: the guessing baseline
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
class Question:
    """An assistant's turn as a request."""

    request: Request
    #: fields of its line beside the answer
    line: dict[str, Any]


def questions_of(
    sample: HeldOut, step: int, max_new_tokens: int = AnswerOptions.max_new_tokens
) -> list[Question]:
    """One question an assistant's turn, asked of the model of a step; earlier turns keep their
    true answers.

    A question has the images and videos whose marks it holds; all of them where there are no marks.
    """
    turns = sample.record.turns

    def shown(media: tuple[bytes, ...], mark: str, number: int) -> tuple[bytes, ...]:
        marks = [count_marks(turn, mark, len(media)) for turn in turns]
        return media[: sum(marks[:number])] if any(marks) else media

    return [
        Question(
            request=Request(
                key=sample.key,
                turns=turns[:number],
                images=shown(sample.images, IMAGE_MARK, number),
                videos=shown(sample.videos, VIDEO_MARK, number),
                max_new_tokens=max_new_tokens,
            ),
            line={
                "key": sample.key,
                "turn": number,
                "question": turns[number - 1].text,
                "truth": turn.text,
                "source": sample.record.source,
                "step": step,
            },
        )
        for number, turn in enumerate(turns)
        if turn.role == "assistant"
    ]


def is_exact(answer: str, truth: str) -> bool:
    """Is it the true answer, character by character?"""
    return answer == truth.strip()


class SplitRequests(Requests):
    """The questions of a split's samples; media are read as the samples come by.

    Args:
        model: whose run names the shards.
        options: which samples.
        on_fault: told once of samples that cannot be read or that training would reject for their
            conversation.

    Attributes:
        lines: of the questions of each sample, see `Question.line`, in the order of the split.

    Raises:
        ValueError: the split has no sample.
    """

    def __init__(self, model: LoadedModel, options: AnswerOptions, on_fault: OnFault) -> None:
        self._model, self._options = model, options
        self.split = options.split
        self.rejected = []
        self.lines: list[list[dict[str, Any]]] = []
        self.keys = []
        self.digest = digest_of(self._first_pass(on_fault))

    def __iter__(self) -> Iterator[Request]:
        for questions in self._samples(lambda key, error: None):
            yield from (question.request for question in questions)

    def _first_pass(self, on_fault: OnFault) -> Iterator[Request]:
        for questions in self._samples(on_fault):
            self.lines.append([question.line for question in questions])
            self.keys += [question.request.key for question in questions]
            yield from (question.request for question in questions)

    def _samples(self, on_fault: OnFault) -> Iterator[list[Question]]:
        options = self._options
        path = self._model.run.data.path_of(options.split)
        number = 0
        for sample in read_split(path, options.split, options.limit, on_fault=on_fault):
            turns, found = sample.record.turns, []
            try:
                # marks in a turn that is not asked about count too
                self._model.chat.messages(turns, len(sample.images), len(sample.videos))
                found = questions_of(sample, self._model.step, options.max_new_tokens)
                if not found:
                    raise ChatError("no_answer", "the conversation has no assistant turn")
            except ChatError as error:
                on_fault(sample.key, error)
                continue
            # two samples of foreign shards may share their key
            yield [
                replace(one, request=replace(one.request, key=_key(number, one.line)))
                for one in found
            ]
            number += 1


def _key(number: int, line: dict[str, Any]) -> str:
    return f"{number}/{line['turn']}"


def write_answers(
    model: LoadedModel, options: AnswerOptions, output: Path, group: ReplicaGroup | None = None
) -> Answered | None:
    """Write one JSON line a question to `output`, e.g. val.jsonl, in the order of the split.

    A line holds key, turn, question, truth, source, step, answer, correct and num_visual_tokens,
    and damage where only a part of a video was seen. Samples of which a question cannot be asked go
    to val.rejected.jsonl beside it. The file takes its name when it is complete; until then the
    answers lie in val.jsonl.partial, from which a second start resumes.

    Args:
        output: JSONL to write.
        group: of this process, among those that share the questions; alone by default.

    Returns:
        How it went, on the first leader; None elsewhere.

    Raises:
        ValueError: the split has no sample, or none that can be asked about.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    group = group or join_replica_group(ParallelSizes())
    rejected = RejectedSamples(beside(output, "rejected.jsonl")) if group.is_first else None
    requests = SplitRequests(model, options, rejected.add if rejected else lambda key, error: None)
    settings = AnswerSettings()
    engine = CheckpointEngine(model, settings, is_blank=options.blank)
    journal = Journal(output.with_name(f"{output.name}.partial"), starts_over=True)
    done = generate(engine, requests, journal, group, settings, batch_size=options.batch_size)
    if done is None or rejected is None:
        return None
    try:
        return _write(requests, journal, output, rejected)
    finally:
        journal.remove()


def _write(
    requests: SplitRequests, journal: Journal, output: Path, rejected: RejectedSamples
) -> Answered:
    """Compare what the journal holds with the truth."""
    answers, refused = journal.read()
    total = correct = 0
    with atomic_write(output) as file:
        for number, lines in enumerate(requests.lines):
            keys = [_key(number, line) for line in lines]
            if faults := [refused[key] for key in keys if key in refused]:
                rejected.add_line({**faults[0], "key": lines[0]["key"]})
                continue
            for key, line in zip(keys, lines, strict=True):
                given = answers[key]
                right = is_exact(given["answer"], line["truth"])
                whole = {**line, "answer": given["answer"], "correct": right}
                whole |= {name: given[name] for name in _KEPT if name in given}
                file.write(orjson.dumps(whole) + b"\n")
                total += 1
                correct += right
        if not total:
            raise ValueError(f"the {requests.split} split has no question: {rejected}")
    return Answered(num_questions=total, num_correct=correct, rejected=rejected)
