"""Answers on held-out samples: read, paired, counted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import orjson
from scipy.stats import binomtest

_IMAGE_MARK = "<image>"


@dataclass(frozen=True, kw_only=True)
class AnswerLine:
    """One line of the JSONL that `dct-vl answers` writes."""

    key: str
    turn: int
    question: str
    truth: str
    answer: str
    correct: bool
    source: str
    #: of the whole sample; 0 where it has no picture
    num_visual_tokens: int

    @property
    def plain_question(self) -> str:
        """The question without the marks of its pictures."""
        return self.question.replace(_IMAGE_MARK, "").strip()


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """A share of right answers with its 95 % interval."""

    num_right: int
    num_answers: int

    @property
    def share(self) -> float:
        """0 to 1."""
        return self.num_right / self.num_answers

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's score interval (1927), which stays inside 0 to 1 also at the ends."""
        test = binomtest(self.num_right, self.num_answers)
        found = test.proportion_ci(confidence_level=0.95, method="wilson")
        return float(found.low), float(found.high)


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """What the pictures of the asked samples cost."""

    num_pictures: int
    tokens_per_picture: float
    #: of a sample
    fewest_tokens: int
    most_tokens: int


def read_answers(path: Path) -> tuple[AnswerLine, ...]:
    """Answers in the order of the file.

    Raises:
        ValueError: no such file, no answer about a picture, a line of another shape, or a question
            twice.
    """
    names = [field.name for field in fields(AnswerLine)]
    lines = []
    try:
        texts = path.read_bytes().splitlines()
    except OSError as error:
        raise ValueError(
            f"{path} cannot be read ({error.strerror}): write it with `dct-vl answers`"
        ) from error
    for number, text in enumerate(texts, start=1):
        try:
            entry = orjson.loads(text)
            lines.append(AnswerLine(**{name: entry[name] for name in names}))
        except (orjson.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path}, line {number}: {error!r}; expected an object with {', '.join(names)} "
                "as `dct-vl answers` writes it"
            ) from error
    if len({(line.key, line.turn) for line in lines}) != len(lines):
        raise ValueError(f"{path} answers a question twice: write it again from the start")
    if not any(line.num_visual_tokens for line in lines):
        raise ValueError(f"{path} has no answer about a picture: ask about other samples")
    return tuple(lines)


def check_paired(main: Sequence[AnswerLine], other: Sequence[AnswerLine], name: str) -> None:
    """Raises ValueError unless both answer the same questions: shares compare only then."""
    asked, also = ({(line.key, line.turn) for line in lines} for lines in (main, other))
    if asked != also:
        example = min(asked ^ also)
        raise ValueError(
            f"{len(asked ^ also)} questions are answered only by the main run or only by {name}, "
            f"for instance turn {example[1]} of {example[0]}: ask all about the same samples"
        )


def about_pictures(lines: Iterable[AnswerLine]) -> list[AnswerLine]:
    """Without the samples that have no picture: they say nothing about a visual tokenizer."""
    return [line for line in lines if line.num_visual_tokens]


def accuracy(lines: Iterable[AnswerLine]) -> Accuracy:
    """Counts over at least one line."""
    right = [line.correct for line in lines]
    return Accuracy(num_right=sum(right), num_answers=len(right))


def by_source(lines: Iterable[AnswerLine]) -> dict[str, list[AnswerLine]]:
    """Lines by their dataset, in alphabetical order."""
    found: dict[str, list[AnswerLine]] = {}
    for line in lines:
        found.setdefault(line.source or "unnamed", []).append(line)
    return dict(sorted(found.items()))


def count_pictures(lines: Iterable[AnswerLine]) -> Pictures:
    """Pictures, by the marks in the questions of each sample, and their visual tokens."""
    tokens: dict[str, int] = {}
    marks: dict[str, int] = {}
    for line in about_pictures(lines):
        tokens[line.key] = max(line.num_visual_tokens, tokens.get(line.key, 0))
        marks[line.key] = marks.get(line.key, 0) + line.question.count(_IMAGE_MARK)
    num_pictures = sum(max(1, count) for count in marks.values())
    return Pictures(
        num_pictures=num_pictures,
        tokens_per_picture=sum(tokens.values()) / num_pictures,
        fewest_tokens=min(tokens.values()),
        most_tokens=max(tokens.values()),
    )
